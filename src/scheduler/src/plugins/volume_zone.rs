//! VolumeZone: zone and region labels of bound volumes.

use crate::framework::{
    Cluster, CycleState, Events, NODE_ADDED, NODE_LABELS, Plugin, PreFilter, Rejection, VOLUMES,
};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

const KEYS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

pub(crate) struct VolumeZone;

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | NODE_LABELS | VOLUMES
    }

    fn pre_filter(
        &self,
        state: &mut CycleState,
        _: &PodInfo,
        _: Cluster<'_>,
    ) -> Result<PreFilter, Rejection> {
        let labelled = state.volumes.as_ref().is_some_and(|volumes| {
            volumes
                .bound
                .iter()
                .filter_map(|volume| volume.metadata.labels.as_ref())
                .any(|labels| KEYS.iter().any(|key| labels.contains_key(*key)))
        });
        Ok(if labelled { PreFilter::Run } else { PreFilter::Skip })
    }

    fn filter(
        &self,
        state: &CycleState,
        _: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        // A cluster without zones has nothing to compare with.
        if KEYS.iter().all(|key| node.label(key).is_none()) {
            return Ok(());
        }
        let Some(volumes) = &state.volumes else { return Ok(()) };
        for labels in volumes.bound.iter().filter_map(|volume| volume.metadata.labels.as_ref()) {
            for key in KEYS {
                let Some(allowed) = labels.get(key) else { continue };
                let here = node.label(key);
                // Several zones are joined by a double underscore.
                if !allowed.split("__").any(|zone| here == Some(zone)) {
                    return Err(Rejection::unresolvable("node(s) had no available volume zone"));
                }
            }
        }
        Ok(())
    }
}
