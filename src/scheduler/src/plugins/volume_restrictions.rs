//! VolumeRestrictions: a ReadWriteOncePod claim belongs to one pod.

use crate::framework::{Cluster, CycleState, Events, POD_DELETED, Plugin, PreFilter, Rejection, VOLUMES};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(crate) struct VolumeRestrictions;

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn wakes_on(&self) -> Events {
        POD_DELETED | VOLUMES
    }

    fn pre_filter(
        &self,
        _: &mut CycleState,
        pod: &PodInfo,
        cluster: Cluster<'_>,
    ) -> Result<PreFilter, Rejection> {
        let exclusive = |name: &str| {
            cluster.lookup.claim(pod.namespace(), name).is_some_and(|claim| {
                let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref());
                modes.unwrap_or_default().iter().any(|mode| mode == "ReadWriteOncePod")
            })
        };
        let in_use = |name: &str| {
            cluster.cache.nodes().flat_map(|node| &node.pods).any(|other| {
                other.namespace() == pod.namespace() && other.claims.iter().any(|(used, _)| used == name)
            })
        };
        let clash = pod.claims.iter().any(|(name, _)| exclusive(name) && in_use(name));
        Ok(if clash { PreFilter::Run } else { PreFilter::Skip })
    }

    /// Only asked when the claim is in use somewhere.
    fn filter(&self, _: &CycleState, _: &PodInfo, _: &NodeInfo, _: Cluster<'_>) -> Result<(), Rejection> {
        Err(Rejection::unschedulable(
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
        ))
    }
}
