//! NodeUnschedulable: cordoned nodes take pods only that tolerate it.

use k8s_openapi::api::core::v1::Taint;
use kedge_client::node_fit::tolerates;

use crate::framework::{Cluster, CycleState, Events, NODE_ADDED, NODE_TAINTS, Plugin, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(crate) struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
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
        if !node.unschedulable() {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if pod.tolerations().iter().any(|toleration| tolerates(toleration, &taint)) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) were unschedulable"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};
    use k8s_openapi::api::core::v1::Toleration;

    #[test]
    fn cordoned_nodes() {
        let tolerant = Toleration { operator: Some("Exists".into()), ..Toleration::default() };
        let tolerant = testing::pod("t").spec(|spec| spec.tolerations = Some(vec![tolerant])).info();
        let plain = testing::pod("p").info();
        for (node, pod, fits) in [
            (testing::node("n"), &plain, true),
            (testing::node("n").unschedulable(), &plain, false),
            (testing::node("n").unschedulable(), &tolerant, true),
        ] {
            let world = World::of(vec![node]);
            let result =
                NodeUnschedulable.filter(&CycleState::default(), pod, world.cache.node(0), world.cluster());
            assert_eq!(result.is_ok(), fits);
        }
    }
}
