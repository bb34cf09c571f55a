//! NodeName: a pod that names its node. Such pods are bound already when they arrive; the filter
//! keeps what-if calculations right.

use crate::framework::{Cluster, CycleState, Events, NODE_ADDED, Plugin, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(crate) struct NodeName;

fn wanted(pod: &PodInfo) -> Option<&str> {
    pod.spec()?.node_name.as_deref().filter(|name| !name.is_empty())
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED
    }

    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: Cluster<'_>) -> Result<PreFilter, Rejection> {
        Ok(if wanted(pod).is_some() { PreFilter::Run } else { PreFilter::Skip })
    }

    fn filter(
        &self,
        _: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        if wanted(pod).is_none_or(|name| name == node.name) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match the requested node name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};

    #[test]
    fn only_the_named_node_fits() {
        let world = World::of(vec![testing::node("a")]);
        for (name, fits) in [("a", true), ("b", false), ("", true)] {
            let pod = testing::pod("p").spec(|spec| spec.node_name = Some(name.into())).info();
            let result = NodeName.filter(&CycleState::default(), &pod, world.cache.node(0), world.cluster());
            assert_eq!(result.is_ok(), fits, "{name}");
        }
    }
}
