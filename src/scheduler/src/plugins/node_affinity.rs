//! NodeAffinity: spec.nodeSelector and spec.affinity.nodeAffinity.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::NodeSelector;
use kedge_client::node_fit::{is_selected, term_matches};

use crate::framework::{
    Cluster, CycleState, Events, NODE_ADDED, NODE_LABELS, Plugin, PreFilter, Rejection, scale,
};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(crate) struct NodeAffinity;

fn required(pod: &PodInfo) -> Option<&NodeSelector> {
    pod.node_affinity()?.required_during_scheduling_ignored_during_execution.as_ref()
}

/// Whether the node is one that the pod's node selector and required node affinity allow.
pub(crate) fn allows(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.spec().is_none_or(|spec| is_selected(spec, &node.labels, &node.name))
}

/// The nodes that the terms name outright (as DaemonSet pods do), when every term does.
fn named_nodes(selector: &NodeSelector) -> Option<HashSet<String>> {
    let mut all = HashSet::new();
    for term in &selector.node_selector_terms {
        let mut names: Option<HashSet<String>> = None;
        for field in term.match_fields.iter().flatten() {
            if field.key == "metadata.name" && field.operator == "In" {
                let values: HashSet<String> = field.values.iter().flatten().cloned().collect();
                names = Some(match names {
                    None => values,
                    Some(known) => known.intersection(&values).cloned().collect(),
                });
            }
        }
        all.extend(names?);
    }
    Some(all)
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | NODE_LABELS
    }

    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: Cluster<'_>) -> Result<PreFilter, Rejection> {
        let selects = pod
            .spec()
            .and_then(|spec| spec.node_selector.as_ref())
            .is_some_and(|selector| !selector.is_empty());
        let Some(terms) = required(pod) else {
            return Ok(if selects { PreFilter::Run } else { PreFilter::Skip });
        };
        match named_nodes(terms) {
            Some(names) if names.is_empty() && !terms.node_selector_terms.is_empty() => {
                Err(Rejection::unresolvable("pod affinity terms conflict"))
            }
            Some(names) if !names.is_empty() => Ok(PreFilter::Nodes(names)),
            _ => Ok(PreFilter::Run),
        }
    }

    fn filter(
        &self,
        _: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        if allows(pod, node) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }

    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &[usize], _: Cluster<'_>) -> bool {
        pod.node_affinity()
            .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref())
            .is_some_and(|terms| !terms.is_empty())
    }

    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: Cluster<'_>) -> i64 {
        let terms = pod
            .node_affinity()
            .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default();
        terms
            .iter()
            .filter(|term| term_matches(&term.preference, &node.labels, &node.name))
            .map(|term| i64::from(term.weight))
            .sum()
    }

    fn normalize(&self, _: &CycleState, _: &[usize], scores: &mut [i64], _: Cluster<'_>) {
        scale(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};
    use k8s_openapi::api::core::v1::{
        Affinity, NodeAffinity as ApiNodeAffinity, NodeSelectorRequirement, NodeSelectorTerm,
        PreferredSchedulingTerm,
    };

    fn requirement(key: &str, value: &str) -> NodeSelectorRequirement {
        NodeSelectorRequirement { key: key.into(), operator: "In".into(), values: Some(vec![value.into()]) }
    }

    fn with(affinity: ApiNodeAffinity) -> std::sync::Arc<PodInfo> {
        testing::pod("p")
            .spec(|spec| {
                spec.affinity = Some(Affinity { node_affinity: Some(affinity), ..Affinity::default() });
            })
            .info()
    }

    #[test]
    fn selectors_and_terms() {
        let world = World::of(vec![testing::node("a").label("disk", "ssd"), testing::node("b")]);
        let selector = testing::pod("p")
            .spec(|spec| spec.node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into()))
            .info();
        let term = NodeSelectorTerm {
            match_expressions: Some(vec![requirement("disk", "ssd")]),
            match_fields: None,
        };
        let required = with(ApiNodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![term.clone()],
            }),
            ..ApiNodeAffinity::default()
        });
        for pod in [&selector, &required] {
            let mut state = CycleState::default();
            assert_eq!(NodeAffinity.pre_filter(&mut state, pod, world.cluster()), Ok(PreFilter::Run));
            for (index, fits) in [(0, true), (1, false)] {
                let result = NodeAffinity.filter(&state, pod, world.cache.node(index), world.cluster());
                assert_eq!(result.is_ok(), fits);
            }
        }
        let preferred = with(ApiNodeAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![PreferredSchedulingTerm {
                preference: term,
                weight: 7,
            }]),
            ..ApiNodeAffinity::default()
        });
        assert_eq!(
            NodeAffinity.score(&CycleState::default(), &preferred, world.cache.node(0), world.cluster()),
            7
        );
        assert_eq!(
            NodeAffinity.score(&CycleState::default(), &preferred, world.cache.node(1), world.cluster()),
            0
        );
    }

    #[test]
    fn named_nodes_are_the_only_ones_looked_at() {
        let world = World::of(vec![testing::node("a")]);
        let term = |fields: Vec<NodeSelectorRequirement>| NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(fields),
        };
        let pod = |terms: Vec<NodeSelectorTerm>| {
            with(ApiNodeAffinity {
                required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                    node_selector_terms: terms,
                }),
                ..ApiNodeAffinity::default()
            })
        };
        let mut state = CycleState::default();
        let daemon = pod(vec![term(vec![requirement("metadata.name", "a")])]);
        let names: HashSet<String> = ["a".to_owned()].into();
        assert_eq!(
            NodeAffinity.pre_filter(&mut state, &daemon, world.cluster()),
            Ok(PreFilter::Nodes(names))
        );
        let torn =
            pod(vec![term(vec![requirement("metadata.name", "a"), requirement("metadata.name", "b")])]);
        assert!(NodeAffinity.pre_filter(&mut state, &torn, world.cluster()).is_err());
    }
}
