//! TaintToleration: taints keep pods off (NoSchedule, NoExecute) or are avoided (PreferNoSchedule).

use kedge_client::node_fit::tolerates;

use crate::framework::{Cluster, CycleState, Events, NODE_ADDED, NODE_TAINTS, Plugin, Rejection, scale};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::selector::tolerates_node;

pub(crate) struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | NODE_TAINTS
    }

    fn filter(
        &self,
        _: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        if node.taints().is_empty() || tolerates_node(pod.tolerations(), node.taints()) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) had untolerated taint(s)"))
    }

    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: Cluster<'_>) -> i64 {
        let relevant = |effect: Option<&str>| matches!(effect, None | Some("" | "PreferNoSchedule"));
        let intolerable = node.taints().iter().filter(|taint| {
            taint.effect == "PreferNoSchedule"
                && !pod
                    .tolerations()
                    .iter()
                    .any(|toleration| relevant(toleration.effect.as_deref()) && tolerates(toleration, taint))
        });
        i64::try_from(intolerable.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _: &CycleState, _: &[usize], scores: &mut [i64], _: Cluster<'_>) {
        scale(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};

    #[test]
    fn filter_and_score() {
        let world = World::of(vec![
            testing::node("a"),
            testing::node("b").taint("k", "v", "NoSchedule"),
            testing::node("c").taint("k", "v", "PreferNoSchedule"),
        ]);
        let (state, pod) = (CycleState::default(), testing::pod("p").info());
        let fits: Vec<bool> = (0..3)
            .map(|i| TaintToleration.filter(&state, &pod, world.cache.node(i), world.cluster()).is_ok())
            .collect();
        assert_eq!(fits, [true, false, true]);
        let mut scores: Vec<i64> = [0, 2]
            .iter()
            .map(|&i| TaintToleration.score(&state, &pod, world.cache.node(i), world.cluster()))
            .collect();
        TaintToleration.normalize(&state, &[0, 2], &mut scores, world.cluster());
        assert_eq!(scores, [100, 0]);
    }
}
