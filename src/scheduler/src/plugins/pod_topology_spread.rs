//! PodTopologySpread: topologySpreadConstraints, and upstream's system defaults (zone skew 5, host
//! skew 3, both soft) for pods that belong to a Service or a workload.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::framework::{
    Cluster, CycleState, Events, MAX_SCORE, NODE_ADDED, NODE_LABELS, NODE_TAINTS, POD_ASSIGNED, POD_DELETED,
    Plugin, PreFilter, Rejection,
};
use crate::node::NodeInfo;
use crate::plugins::node_affinity;
use crate::pod::{Memo, PodInfo};
use crate::selector::{Selector, tolerates_node};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) struct PodTopologySpread;

#[derive(Clone, Debug)]
struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: usize,
    selector: Selector,
    honor_affinity: bool,
    honor_taints: bool,
    /// Whether the pod to place counts itself.
    matches_self: bool,
}

#[derive(Clone, Debug)]
struct Domains {
    constraint: Constraint,
    /// Matching pods by the value of the topology key.
    counts: HashMap<String, i64>,
}

/// Hard constraints with the pods counted.
#[derive(Clone, Debug)]
pub(crate) struct FilterState(Vec<Domains>);

/// A score for each feasible node; `None` where it lacks a topology key.
#[derive(Clone, Debug)]
pub(crate) struct ScoreState(Vec<Option<i64>>);

impl Constraint {
    fn new(spec: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let mut selector = Selector::new(spec.label_selector.as_ref());
        for key in spec.match_label_keys.iter().flatten() {
            if let Some(value) = pod.labels().get(key) {
                selector.require(key, value, true);
            }
        }
        Self {
            key: spec.topology_key.clone(),
            max_skew: i64::from(spec.max_skew),
            min_domains: spec.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
            matches_self: selector.matches(pod.labels()),
            selector,
            honor_affinity: spec.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: spec.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    fn system_default(key: &str, max_skew: i64, selector: &Selector, pod: &PodInfo) -> Self {
        Self {
            key: key.to_owned(),
            max_skew,
            min_domains: 1,
            matches_self: selector.matches(pod.labels()),
            selector: selector.clone(),
            honor_affinity: true,
            honor_taints: false,
        }
    }

    /// Whether the node's domain takes part.
    fn includes(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honor_affinity || node_affinity::allows(pod, node))
            && (!self.honor_taints || tolerates_node(pod.tolerations(), node.taints()))
    }

    fn count(&self, pod: &PodInfo, node: &NodeInfo, memo: &mut Memo) -> i64 {
        let matching = node.pods.iter().filter(|other| {
            !other.terminating
                && memo.get(&other.identity, |identity| {
                    identity.namespace == pod.namespace() && self.selector.matches(&identity.labels)
                })
        });
        i64::try_from(matching.count()).unwrap_or(i64::MAX)
    }
}

impl Domains {
    fn smallest(&self) -> i64 {
        if self.counts.len() < self.constraint.min_domains {
            return 0;
        }
        self.counts.values().copied().min().unwrap_or(0)
    }
}

fn constraints(pod: &PodInfo, hard: bool) -> Vec<Constraint> {
    pod.spread_constraints()
        .iter()
        .filter(|spec| (spec.when_unsatisfiable == "DoNotSchedule") == hard)
        .map(|spec| Constraint::new(spec, pod))
        .collect()
}

fn has_all_keys<'a>(node: &NodeInfo, mut keys: impl Iterator<Item = &'a str>) -> bool {
    keys.all(|key| node.label(key).is_some())
}

fn add(counts: &mut HashMap<String, i64>, value: &str, amount: i64) {
    if let Some(count) = counts.get_mut(value) {
        *count += amount;
    } else {
        counts.insert(value.to_owned(), amount);
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | NODE_LABELS | NODE_TAINTS | POD_ASSIGNED | POD_DELETED
    }

    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: Cluster<'_>,
    ) -> Result<PreFilter, Rejection> {
        let mut domains: Vec<Domains> = constraints(pod, true)
            .into_iter()
            .map(|constraint| Domains { constraint, counts: HashMap::new() })
            .collect();
        if domains.is_empty() {
            return Ok(PreFilter::Skip);
        }
        let mut memos: Vec<Memo> = domains.iter().map(|_| Memo::default()).collect();
        for node in cluster.cache.nodes() {
            if !has_all_keys(node, domains.iter().map(|domain| domain.constraint.key.as_str())) {
                continue;
            }
            for (domain, memo) in domains.iter_mut().zip(&mut memos) {
                let Some(value) = node.label(&domain.constraint.key) else { continue };
                if domain.constraint.includes(pod, node) {
                    let count = domain.constraint.count(pod, node, memo);
                    add(&mut domain.counts, value, count);
                }
            }
        }
        state.spread_filter = Some(FilterState(domains));
        Ok(PreFilter::Run)
    }

    fn filter(
        &self,
        state: &CycleState,
        _: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        let Some(FilterState(domains)) = &state.spread_filter else { return Ok(()) };
        for domain in domains {
            let Some(value) = node.label(&domain.constraint.key) else {
                return Err(Rejection::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let here = domain.counts.get(value).copied().unwrap_or(0);
            let skew = here + i64::from(domain.constraint.matches_self) - domain.smallest();
            if skew > domain.constraint.max_skew {
                return Err(Rejection::unschedulable("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    fn other_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
        delta: i64,
    ) {
        let Some(FilterState(domains)) = &mut state.spread_filter else { return };
        if other.namespace() != pod.namespace()
            || !has_all_keys(node, domains.iter().map(|domain| domain.constraint.key.as_str()))
        {
            return;
        }
        for domain in domains {
            let Some(value) = node.label(&domain.constraint.key) else { continue };
            if domain.constraint.selector.matches(other.labels()) && domain.constraint.includes(pod, node) {
                add(&mut domain.counts, value, delta);
            }
        }
    }

    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        feasible: &[usize],
        cluster: Cluster<'_>,
    ) -> bool {
        let own = !pod.spread_constraints().is_empty();
        let constraints = if own {
            constraints(pod, false)
        } else if let Some(selector) = cluster.lookup.default_selector(pod).filter(|s| !s.is_empty()) {
            vec![
                Constraint::system_default(HOSTNAME, 3, &selector, pod),
                Constraint::system_default(ZONE, 5, &selector, pod),
            ]
        } else {
            Vec::new()
        };
        if constraints.is_empty() {
            return false;
        }
        state.spread_score = Some(score_nodes(&constraints, own, pod, feasible, cluster));
        true
    }

    /// The scores were worked out for all nodes together; here they are brought into range.
    fn normalize(&self, state: &CycleState, _: &[usize], scores: &mut [i64], _: Cluster<'_>) {
        let Some(ScoreState(raw)) = &state.spread_score else { return };
        let smallest = raw.iter().flatten().copied().min().unwrap_or(0);
        let largest = raw.iter().flatten().copied().max().unwrap_or(0);
        for (score, raw) in scores.iter_mut().zip(raw) {
            *score = match raw {
                None => 0,
                Some(_) if largest == 0 => MAX_SCORE,
                Some(raw) => MAX_SCORE * (largest + smallest - raw) / largest,
            };
        }
    }
}

/// `strict`: nodes without all topology keys take no part (upstream's requireAllTopologies).
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn score_nodes(
    constraints: &[Constraint],
    strict: bool,
    pod: &PodInfo,
    feasible: &[usize],
    cluster: Cluster<'_>,
) -> ScoreState {
    let takes_part =
        |node: &NodeInfo| !strict || has_all_keys(node, constraints.iter().map(|c| c.key.as_str()));
    let candidates = feasible.iter().filter(|&&index| takes_part(cluster.cache.node(index))).count();
    let mut totals: Vec<Option<f64>> =
        feasible.iter().map(|&index| takes_part(cluster.cache.node(index)).then_some(0.0)).collect();
    for constraint in constraints {
        let mut memo = Memo::default();
        let per_host = constraint.key == HOSTNAME;
        let mut counts: HashMap<&str, i64> = HashMap::new();
        if !per_host {
            for &index in feasible {
                let node = cluster.cache.node(index);
                if let Some(value) = node.label(&constraint.key).filter(|_| takes_part(node)) {
                    counts.insert(value, 0);
                }
            }
            if counts.is_empty() {
                continue;
            }
            for node in cluster.cache.nodes().filter(|node| takes_part(node)) {
                let Some(count) = node.label(&constraint.key).and_then(|value| counts.get_mut(value)) else {
                    continue;
                };
                if constraint.includes(pod, node) {
                    *count += constraint.count(pod, node, &mut memo);
                }
            }
        }
        let domains = if per_host { candidates } else { counts.len() };
        let weight = (domains as f64 + 2.0).ln();
        for (total, &index) in totals.iter_mut().zip(feasible) {
            let node = cluster.cache.node(index);
            let (Some(total), Some(value)) = (total, node.label(&constraint.key)) else { continue };
            let count = if per_host {
                constraint.count(pod, node, &mut memo)
            } else {
                counts.get(value).copied().unwrap_or(0)
            };
            *total += count as f64 * weight + (constraint.max_skew - 1) as f64;
        }
    }
    ScoreState(totals.into_iter().map(|total| total.map(|total| total.round() as i64)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    fn constraint(key: &str, skew: i32, hard: bool) -> TopologySpreadConstraint {
        TopologySpreadConstraint {
            topology_key: key.into(),
            max_skew: skew,
            when_unsatisfiable: if hard { "DoNotSchedule" } else { "ScheduleAnyway" }.into(),
            label_selector: Some(LabelSelector {
                match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
                match_expressions: None,
            }),
            ..TopologySpreadConstraint::default()
        }
    }

    fn world() -> World {
        let mut world = World::of(vec![
            testing::node("a").label("zone", "1"),
            testing::node("b").label("zone", "2"),
            testing::node("c"),
        ]);
        for name in ["x", "y"] {
            world.run(testing::pod(name).label("app", "web"), "a");
        }
        world.run(testing::pod("z").label("app", "db"), "b");
        world
    }

    #[test]
    fn hard_constraints() {
        let world = world();
        for (skew, min_domains, expected) in
            [(1, None, [false, true]), (3, None, [true, true]), (2, Some(3), [false, true])]
        {
            let pod = testing::pod("p")
                .label("app", "web")
                .spec(|spec| {
                    let mut constraint = constraint("zone", skew, true);
                    constraint.min_domains = min_domains;
                    spec.topology_spread_constraints = Some(vec![constraint]);
                })
                .info();
            let mut state = CycleState::default();
            assert_eq!(PodTopologySpread.pre_filter(&mut state, &pod, world.cluster()), Ok(PreFilter::Run));
            let fits = |state: &CycleState, index| {
                PodTopologySpread.filter(state, &pod, world.cache.node(index), world.cluster())
            };
            assert_eq!([fits(&state, 0).is_ok(), fits(&state, 1).is_ok()], expected, "skew {skew}");
            let missing = fits(&state, 2).expect_err("no zone");
            assert!(missing.reasons[0].ends_with("(missing required label)"));
            let other = testing::pod("x").label("app", "web").info();
            for _ in 0..2 {
                PodTopologySpread.other_pod(
                    &mut state,
                    &pod,
                    &other,
                    world.cache.node(0),
                    world.cluster(),
                    -1,
                );
            }
            assert!(fits(&state, 0).is_ok(), "with the others gone it fits");
        }
    }

    #[test]
    fn soft_and_default_constraints_spread() {
        let mut world = world();
        let scores = |pod: &PodInfo, world: &World| {
            let mut state = CycleState::default();
            let feasible: Vec<usize> = vec![0, 1, 2];
            assert!(PodTopologySpread.pre_score(&mut state, pod, &feasible, world.cluster()));
            let mut scores = vec![0; 3];
            PodTopologySpread.normalize(&state, &feasible, &mut scores, world.cluster());
            scores
        };
        let soft = testing::pod("p")
            .label("app", "web")
            .spec(|spec| spec.topology_spread_constraints = Some(vec![constraint("zone", 1, false)]))
            .info();
        assert_eq!(scores(&soft, &world), [0, 100, 0]);
        let plain = testing::pod("p").label("app", "web").info();
        assert!(!PodTopologySpread.pre_score(&mut CycleState::default(), &plain, &[0], world.cluster()));
        let mut selector = Selector::everything();
        selector.require("app", "web", true);
        world.lookup.selector = Some(selector);
        let spread = scores(&plain, &world);
        assert!(spread[1] > spread[0] && spread[2] > spread[0], "{spread:?}");
    }
}
