//! InterPodAffinity: required and preferred affinity and anti-affinity to other pods, both ways.

use std::collections::HashMap;

use crate::framework::{
    Cluster, CycleState, Events, MAX_SCORE, NAMESPACES, NODE_ADDED, NODE_LABELS, POD_ASSIGNED, POD_DELETED,
    Plugin, PreFilter, Rejection,
};
use crate::node::NodeInfo;
use crate::pod::{AffinityTerm, Identity, Memo, PodInfo};
use crate::selector::Labels;

/// How much an existing pod's required affinity counts when nodes are scored.
const HARD_WEIGHT: i64 = 1;

pub(crate) struct InterPodAffinity;

/// Amounts by topology key and value.
#[derive(Clone, Debug, Default)]
struct Counts(HashMap<String, HashMap<String, i64>>);

impl Counts {
    fn add(&mut self, key: &str, node: &NodeInfo, amount: i64) {
        let Some(value) = node.label(key) else { return };
        if !self.0.contains_key(key) {
            self.0.insert(key.to_owned(), HashMap::new());
        }
        let Some(values) = self.0.get_mut(key) else { return };
        if let Some(count) = values.get_mut(value) {
            *count += amount;
            if *count == 0 {
                values.remove(value);
            }
        } else if amount != 0 {
            values.insert(value.to_owned(), amount);
        }
    }

    fn get(&self, key: &str, value: &str) -> i64 {
        self.0.get(key).and_then(|values| values.get(value)).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.values().all(HashMap::is_empty)
    }
}

/// How many pods matter in each domain.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilterState {
    /// Existing pods whose anti-affinity is against the pod.
    existing_anti: Counts,
    /// Pods that match all of the pod's affinity terms.
    affinity: Counts,
    /// Pods that match an anti-affinity term of the pod.
    anti: Counts,
}

/// The score of each domain.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScoreState(Counts);

fn matches_all(terms: &[AffinityTerm], target: &Identity, namespaces: &HashMap<String, Labels>) -> bool {
    !terms.is_empty() && terms.iter().all(|term| term.matches(target, namespaces))
}

impl FilterState {
    /// Counts one pod on a node, in both directions.
    fn count(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, cluster: Cluster<'_>, delta: i64) {
        let namespaces = &cluster.cache.namespaces;
        for term in other.terms.iter().flat_map(|terms| &terms.required_anti) {
            if term.matches(&pod.identity, namespaces) {
                self.existing_anti.add(&term.topology_key, node, delta);
            }
        }
        let Some(terms) = &pod.terms else { return };
        if matches_all(&terms.required, &other.identity, namespaces) {
            for term in &terms.required {
                self.affinity.add(&term.topology_key, node, delta);
            }
        }
        for term in &terms.required_anti {
            if term.matches(&other.identity, namespaces) {
                self.anti.add(&term.topology_key, node, delta);
            }
        }
    }

    fn affinity_satisfied(
        &self,
        terms: &[AffinityTerm],
        pod: &PodInfo,
        node: &NodeInfo,
        cluster: Cluster<'_>,
    ) -> bool {
        let mut found = true;
        for term in terms {
            // Every topology key has to be there.
            let Some(value) = node.label(&term.topology_key) else { return false };
            found &= self.affinity.get(&term.topology_key, value) > 0;
        }
        // The first pod of a group that wants to be together may start anywhere.
        found || (self.affinity.is_empty() && matches_all(terms, &pod.identity, &cluster.cache.namespaces))
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | NODE_LABELS | POD_ASSIGNED | POD_DELETED | NAMESPACES
    }

    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: Cluster<'_>,
    ) -> Result<PreFilter, Rejection> {
        let own =
            pod.terms.as_ref().filter(|terms| !terms.required.is_empty() || !terms.required_anti.is_empty());
        let mut counts = FilterState::default();
        let namespaces = &cluster.cache.namespaces;
        // One memo for the affinity terms together, one for each anti-affinity term.
        let mut affinity_memo = Memo::default();
        let mut anti_memos: Vec<Memo> =
            own.iter().flat_map(|terms| &terms.required_anti).map(|_| Memo::default()).collect();
        for node in cluster.cache.nodes() {
            if node.with_anti_terms > 0 {
                for other in &node.pods {
                    for term in other.terms.iter().flat_map(|terms| &terms.required_anti) {
                        if term.matches(&pod.identity, namespaces) {
                            counts.existing_anti.add(&term.topology_key, node, 1);
                        }
                    }
                }
            }
            let Some(terms) = own else { continue };
            for other in &node.pods {
                if !terms.required.is_empty()
                    && affinity_memo.get(&other.identity, |id| matches_all(&terms.required, id, namespaces))
                {
                    for term in &terms.required {
                        counts.affinity.add(&term.topology_key, node, 1);
                    }
                }
                for (term, memo) in terms.required_anti.iter().zip(&mut anti_memos) {
                    if memo.get(&other.identity, |id| term.matches(id, namespaces)) {
                        counts.anti.add(&term.topology_key, node, 1);
                    }
                }
            }
        }
        if own.is_none() && counts.existing_anti.is_empty() {
            return Ok(PreFilter::Skip);
        }
        state.affinity_filter = Some(counts);
        Ok(PreFilter::Run)
    }

    fn filter(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        cluster: Cluster<'_>,
    ) -> Result<(), Rejection> {
        let Some(counts) = &state.affinity_filter else { return Ok(()) };
        if let Some(terms) = &pod.terms {
            if !terms.required.is_empty() && !counts.affinity_satisfied(&terms.required, pod, node, cluster) {
                return Err(Rejection::unresolvable("node(s) didn't match pod affinity rules"));
            }
            let clash = terms.required_anti.iter().any(|term| {
                node.label(&term.topology_key)
                    .is_some_and(|value| counts.anti.get(&term.topology_key, value) > 0)
            });
            if clash {
                return Err(Rejection::unschedulable("node(s) didn't match pod anti-affinity rules"));
            }
        }
        let refused = counts.existing_anti.0.iter().any(|(key, values)| {
            node.label(key).is_some_and(|value| values.get(value).is_some_and(|count| *count > 0))
        });
        if refused {
            return Err(Rejection::unschedulable("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn other_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        cluster: Cluster<'_>,
        delta: i64,
    ) {
        if let Some(counts) = &mut state.affinity_filter {
            counts.count(pod, other, node, cluster, delta);
        }
    }

    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, _: &[usize], cluster: Cluster<'_>) -> bool {
        let own = pod
            .terms
            .as_ref()
            .filter(|terms| !terms.preferred.is_empty() || !terms.preferred_anti.is_empty());
        let namespaces = &cluster.cache.namespaces;
        let mut scores = Counts::default();
        let weighted: Vec<(&AffinityTerm, i64)> = own
            .iter()
            .flat_map(|terms| {
                let attracted = terms.preferred.iter().map(|term| (term, term.weight));
                attracted.chain(terms.preferred_anti.iter().map(|term| (term, -term.weight)))
            })
            .collect();
        let mut memos: Vec<Memo> = weighted.iter().map(|_| Memo::default()).collect();
        for node in cluster.cache.nodes() {
            if own.is_none() && node.with_terms == 0 {
                continue;
            }
            for other in &node.pods {
                for ((term, weight), memo) in weighted.iter().zip(&mut memos) {
                    if memo.get(&other.identity, |id| term.matches(id, namespaces)) {
                        scores.add(&term.topology_key, node, *weight);
                    }
                }
                let Some(theirs) = &other.terms else { continue };
                for (terms, sign) in [(&theirs.preferred, 1), (&theirs.preferred_anti, -1)] {
                    for term in terms {
                        if term.matches(&pod.identity, namespaces) {
                            scores.add(&term.topology_key, node, sign * term.weight);
                        }
                    }
                }
                for term in &theirs.required {
                    if term.matches(&pod.identity, namespaces) {
                        scores.add(&term.topology_key, node, HARD_WEIGHT);
                    }
                }
            }
        }
        let useful = !scores.is_empty();
        state.affinity_score = Some(ScoreState(scores));
        useful
    }

    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeInfo, _: Cluster<'_>) -> i64 {
        let Some(ScoreState(counts)) = &state.affinity_score else { return 0 };
        counts.0.iter().filter_map(|(key, values)| values.get(node.label(key)?).copied()).sum()
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn normalize(&self, _: &CycleState, _: &[usize], scores: &mut [i64], _: Cluster<'_>) {
        let smallest = scores.iter().copied().min().unwrap_or(0);
        let range = scores.iter().copied().max().unwrap_or(0) - smallest;
        for score in scores {
            *score = if range == 0 {
                0
            } else {
                (MAX_SCORE as f64 * ((*score - smallest) as f64 / range as f64)) as i64
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, PodBuilder, World};

    fn world() -> World {
        World::of(vec![
            testing::node("a").label("zone", "1"),
            testing::node("b").label("zone", "1"),
            testing::node("c").label("zone", "2"),
        ])
    }

    fn fits(world: &World, pod: PodBuilder) -> Vec<Option<String>> {
        let pod = pod.info();
        let mut state = CycleState::default();
        if InterPodAffinity.pre_filter(&mut state, &pod, world.cluster()) == Ok(PreFilter::Skip) {
            return vec![None; 3];
        }
        (0..3)
            .map(|index| {
                InterPodAffinity
                    .filter(&state, &pod, world.cache.node(index), world.cluster())
                    .err()
                    .map(|rejection| rejection.reasons[0].to_string())
            })
            .collect()
    }

    #[test]
    fn required_terms_both_ways() {
        let mut world = world();
        let no = |reason: &str| Some(reason.to_owned());
        assert_eq!(fits(&world, testing::pod("p")), [None, None, None]);
        let affine = || testing::pod("p").require_affinity("app", "web", "zone");
        let rules = no("node(s) didn't match pod affinity rules");
        assert_eq!(fits(&world, affine()), [rules.clone(), rules.clone(), rules.clone()]);
        assert_eq!(fits(&world, affine().label("app", "web")), [None, None, None], "the first of its group");
        world.run(testing::pod("w").label("app", "web"), "a");
        assert_eq!(fits(&world, affine()), [None, None, rules]);
        let anti = no("node(s) didn't match pod anti-affinity rules");
        assert_eq!(
            fits(&world, testing::pod("p").anti_affinity("app", "web", "zone")),
            [anti.clone(), anti, None]
        );
        world.run(testing::pod("lonely").anti_affinity("app", "db", "kubernetes.io/hostname"), "c");
        let existing = no("node(s) didn't satisfy existing pods anti-affinity rules");
        assert_eq!(fits(&world, testing::pod("p").label("app", "db")), [None, None, existing]);
    }

    #[test]
    fn a_removed_pod_no_longer_counts() {
        let mut world = world();
        let other = testing::pod("w").label("app", "web").info();
        world.cache.set_pod(other.clone(), "a");
        let pod = testing::pod("p").anti_affinity("app", "web", "kubernetes.io/hostname").info();
        let mut state = CycleState::default();
        assert!(InterPodAffinity.pre_filter(&mut state, &pod, world.cluster()).is_ok());
        let node = world.cache.node(0);
        assert!(InterPodAffinity.filter(&state, &pod, node, world.cluster()).is_err());
        InterPodAffinity.other_pod(&mut state, &pod, &other, node, world.cluster(), -1);
        assert!(InterPodAffinity.filter(&state, &pod, node, world.cluster()).is_ok());
    }

    #[test]
    fn namespaces_and_their_labels() {
        let mut world = world();
        world.cache.namespaces.insert("ns".into(), [("team".to_owned(), "x".to_owned())].into());
        world.run(testing::pod("w").label("app", "web"), "a");
        let with = |change: fn(&mut k8s_openapi::api::core::v1::PodAffinityTerm)| {
            testing::pod("p").anti_affinity("app", "web", "zone").spec(|spec| {
                let terms = spec
                    .affinity
                    .as_mut()
                    .and_then(|affinity| affinity.pod_anti_affinity.as_mut())
                    .and_then(|anti| anti.required_during_scheduling_ignored_during_execution.as_mut());
                change(&mut terms.expect("terms")[0]);
            })
        };
        assert!(fits(&world, with(|term| term.namespaces = Some(vec!["other".into()])))[0].is_none());
        assert!(fits(&world, with(|term| term.namespace_selector = Some(Default::default())))[0].is_some());
    }

    #[test]
    fn preferences_score() {
        let mut world = world();
        world.run(testing::pod("w").label("app", "web"), "a");
        let pod = testing::pod("p").prefer_affinity("app", "web", "zone", 10).info();
        let mut state = CycleState::default();
        assert!(InterPodAffinity.pre_score(&mut state, &pod, &[0, 1, 2], world.cluster()));
        let mut scores: Vec<i64> = (0..3)
            .map(|index| InterPodAffinity.score(&state, &pod, world.cache.node(index), world.cluster()))
            .collect();
        assert_eq!(scores, [10, 10, 0]);
        InterPodAffinity.normalize(&state, &[0, 1, 2], &mut scores, world.cluster());
        assert_eq!(scores, [100, 100, 0]);
        let plain = testing::pod("q").info();
        assert!(!InterPodAffinity.pre_score(&mut CycleState::default(), &plain, &[0], world.cluster()));
    }
}
