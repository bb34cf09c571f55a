//! One scheduling cycle: which node for this pod. Pure calculation over the cache.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::framework::{Cluster, Code, CycleState, Framework, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// Below this many feasible nodes all are looked for.
const MIN_FEASIBLE: usize = 100;

/// Pods for which a preemption makes room, by node.
pub(crate) type Nominated = HashMap<String, Vec<Arc<PodInfo>>>;

/// Why a pod fits nowhere.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    pub total: usize,
    pub nodes: Vec<(usize, Rejection)>,
    /// Said before nodes were looked at; stands for all of them.
    pub all: Option<Rejection>,
    /// What the nodes that were not looked at get as reason.
    pub absent: Option<String>,
    /// Bits of the plugins that rejected.
    pub plugins: u32,
}

/// The end of a cycle.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Index of the node in the cache.
    Fits(usize),
    NoNodes,
    Unfit(Diagnosis),
}

/// "0/2 nodes are available: 1 Insufficient cpu, 1 ...": reasons counted, ordered as text.
pub(crate) fn summary<'a>(
    total: usize,
    reasons: impl Iterator<Item = &'a str>,
    absent: Option<(&'a str, usize)>,
) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    if let Some((reason, count)) = absent.filter(|(_, count)| *count > 0) {
        *counts.entry(reason).or_default() += count;
    }
    let mut texts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    let mut message = format!("0/{total} nodes are available:");
    if !texts.is_empty() {
        message.push_str(&format!(" {}.", texts.join(", ")));
    }
    message
}

impl Diagnosis {
    /// The text of the event and the condition, without what preemption has to say.
    pub(crate) fn message(&self) -> String {
        if let Some(all) = &self.all {
            let reasons: Vec<&str> = all.reasons.iter().map(Cow::as_ref).collect();
            return format!("0/{} nodes are available: {}.", self.total, reasons.join(", "));
        }
        let reasons = self.nodes.iter().flat_map(|(_, rejection)| rejection.reasons.iter().map(Cow::as_ref));
        let absent =
            self.absent.as_deref().map(|reason| (reason, self.total.saturating_sub(self.nodes.len())));
        summary(self.total, reasons, absent)
    }
}

/// How many feasible nodes are enough (upstream's numFeasibleNodesToFind with the adaptive percentage).
pub(crate) fn enough(nodes: usize) -> usize {
    if nodes < MIN_FEASIBLE {
        return nodes;
    }
    let percentage = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percentage / 100).max(MIN_FEASIBLE)
}

/// The algorithm and the little that it remembers from cycle to cycle.
pub(crate) struct Algorithm {
    pub framework: Framework,
    next_start: usize,
    random: u64,
}

impl Algorithm {
    /// `seed` decides ties; any number but 0 will do.
    pub(crate) fn new(seed: u64) -> Self {
        Self { framework: Framework::default(), next_start: 0, random: seed | 1 }
    }

    fn random(&mut self, below: u64) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    /// Whether the pod fits with and without the pods nominated to the node.
    pub(crate) fn fits(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        cluster: Cluster<'_>,
        nominated: &Nominated,
    ) -> Result<(), Rejection> {
        let others: Vec<&Arc<PodInfo>> = nominated
            .get(&node.name)
            .into_iter()
            .flatten()
            .filter(|other| other.priority >= pod.priority && other.uid != pod.uid)
            .collect();
        if !others.is_empty() {
            let mut fuller = node.clone();
            let mut state = state.clone();
            for other in others {
                fuller.add_pod(other.clone());
                self.framework.other_pod(&mut state, pod, other, &fuller, cluster, 1);
            }
            self.framework.filter(&state, pod, &fuller, cluster)?;
        }
        self.framework.filter(state, pod, node, cluster)
    }

    /// Finds the node. `state` keeps what plugins worked out, for preemption and volumes.
    pub(crate) fn schedule(
        &mut self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: Cluster<'_>,
        nominated: &Nominated,
    ) -> Outcome {
        let total = cluster.cache.order().len();
        if total == 0 {
            return Outcome::NoNodes;
        }
        let mut diagnosis = Diagnosis { total, ..Diagnosis::default() };
        let only = match self.framework.pre_filter(state, pod, cluster) {
            Ok(only) => only,
            Err(rejection) => {
                diagnosis.plugins = 1 << rejection.plugin;
                diagnosis.all = Some(rejection);
                return Outcome::Unfit(diagnosis);
            }
        };
        if let Some(index) = pod.nominated_node().and_then(|name| cluster.cache.index_of(name))
            && only.as_ref().is_none_or(|(names, _)| names.contains(&cluster.cache.node(index).name))
            && self.fits(state, pod, cluster.cache.node(index), cluster, nominated).is_ok()
        {
            return Outcome::Fits(index);
        }
        let candidates: Cow<'_, [usize]> = match &only {
            None => Cow::Borrowed(cluster.cache.order()),
            Some((names, plugins)) => {
                diagnosis.plugins |= plugins;
                let names_of_plugins = self.framework.names(*plugins).join(" ");
                diagnosis.absent = Some(format!("node(s) didn't satisfy plugin(s) [{names_of_plugins}]"));
                let mut found: Vec<usize> =
                    names.iter().filter_map(|name| cluster.cache.index_of(name)).collect();
                found.sort_unstable();
                Cow::Owned(found)
            }
        };
        let wanted = enough(candidates.len());
        let mut feasible = Vec::with_capacity(wanted);
        let mut looked_at = 0;
        for step in 0..candidates.len() {
            let index = candidates[(self.next_start + step) % candidates.len()];
            looked_at += 1;
            match self.fits(state, pod, cluster.cache.node(index), cluster, nominated) {
                Ok(()) => {
                    feasible.push(index);
                    if feasible.len() >= wanted {
                        break;
                    }
                }
                Err(rejection) => {
                    diagnosis.plugins |= 1 << rejection.plugin;
                    diagnosis.nodes.push((index, rejection));
                }
            }
        }
        if !candidates.is_empty() {
            self.next_start = (self.next_start + looked_at) % total;
        }
        match feasible[..] {
            [] => Outcome::Unfit(diagnosis),
            [only] => Outcome::Fits(only),
            _ => {
                let scores = self.framework.score(state, pod, &feasible, cluster);
                Outcome::Fits(feasible[self.best(&scores)])
            }
        }
    }

    /// The position of the highest score, ties broken at random.
    fn best(&mut self, scores: &[i64]) -> usize {
        let (mut best, mut ties) = (0, 1);
        for position in 1..scores.len() {
            if scores[position] > scores[best] {
                (best, ties) = (position, 1);
            } else if scores[position] == scores[best] {
                ties += 1;
                if self.random(ties) == 0 {
                    best = position;
                }
            }
        }
        best
    }
}

/// Whether removing pods from the node could help.
pub(crate) fn preemption_may_help(rejection: &Rejection) -> bool {
    rejection.code == Code::Unschedulable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};

    #[test]
    fn how_many_nodes_are_enough() {
        for (nodes, expected) in [(10, 10), (99, 99), (100, 100), (1000, 420), (5000, 500), (6000, 300)] {
            assert_eq!(enough(nodes), expected, "{nodes}");
        }
    }

    #[test]
    fn the_emptier_node_wins_and_reasons_are_counted() {
        let mut world = World::of(vec![
            testing::node("a"),
            testing::node("b"),
            testing::node("c").taint("k", "v", "NoSchedule"),
        ]);
        world.run(testing::pod("x").cpu("2"), "a");
        let mut algorithm = Algorithm::new(7);
        let mut schedule = |pod: &PodInfo| {
            algorithm.schedule(&mut CycleState::default(), pod, world.cluster(), &Nominated::new())
        };
        let fits = schedule(&testing::pod("p").cpu("1").info());
        assert!(matches!(fits, Outcome::Fits(1)), "{fits:?}");
        let Outcome::Unfit(diagnosis) = schedule(&testing::pod("p").cpu("5").info()) else {
            panic!("it cannot fit")
        };
        assert_eq!(
            diagnosis.message(),
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu."
        );
    }

    #[test]
    fn ties_go_to_everybody() {
        let world = World::of(vec![testing::node("a"), testing::node("b"), testing::node("c")]);
        let mut algorithm = Algorithm::new(7);
        let mut seen = [false; 3];
        for _ in 0..100 {
            let pod = testing::pod("p").info();
            let result =
                algorithm.schedule(&mut CycleState::default(), &pod, world.cluster(), &Nominated::new());
            if let Outcome::Fits(index) = result {
                seen[index] = true;
            }
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn nominated_pods_keep_their_place() {
        let world = World::of(vec![testing::node("a")]);
        let nominee = testing::pod("n").priority(10).cpu("4").info();
        let nominated = Nominated::from([("a".to_owned(), vec![nominee])]);
        let mut algorithm = Algorithm::new(7);
        for (priority, fits) in [(0, false), (20, true)] {
            let pod = testing::pod("p").priority(priority).cpu("1").info();
            let result = algorithm.schedule(&mut CycleState::default(), &pod, world.cluster(), &nominated);
            assert_eq!(matches!(result, Outcome::Fits(_)), fits, "{priority}");
        }
    }
}
