//! NodePorts: host ports are free on the node.

use crate::framework::{Cluster, CycleState, Events, NODE_ADDED, POD_DELETED, Plugin, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(crate) struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | POD_DELETED
    }

    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: Cluster<'_>) -> Result<PreFilter, Rejection> {
        Ok(if pod.ports.is_empty() { PreFilter::Skip } else { PreFilter::Run })
    }

    fn filter(
        &self,
        _: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        if node.with_ports == 0 {
            return Ok(());
        }
        let mut used = node.pods.iter().flat_map(|other| &other.ports);
        if used.any(|used| pod.ports.iter().any(|port| port.conflicts(used))) {
            return Err(Rejection::unschedulable(
                "node(s) didn't have free ports for the requested pod ports",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};

    #[test]
    fn a_used_port_rejects() {
        let mut world = World::of(vec![testing::node("a")]);
        world.run(testing::pod("other").host_port(80), "a");
        let mut state = CycleState::default();
        for (port, fits) in [(80, false), (81, true)] {
            let pod = testing::pod("p").host_port(port).info();
            assert_eq!(NodePorts.pre_filter(&mut state, &pod, world.cluster()), Ok(PreFilter::Run));
            let result = NodePorts.filter(&state, &pod, world.cache.node(0), world.cluster());
            assert_eq!(result.is_ok(), fits, "{port}");
        }
        let plain = testing::pod("q").info();
        assert_eq!(NodePorts.pre_filter(&mut state, &plain, world.cluster()), Ok(PreFilter::Skip));
    }
}
