//! VolumeBinding: the pod's claims have to be bound, or to be of a class that waits for the pod.
//! For the latter a matching volume is reserved, or the chosen node is announced on the claim; the
//! pod is tried again when the volume controller or the provisioner has bound it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kedge_api::quantity::Quantity;
use kedge_client::node_fit::node_selector_matches;

use crate::framework::{
    Cluster, CycleState, Events, NODE_ADDED, NODE_LABELS, Plugin, PreFilter, Rejection, VOLUMES,
};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::selector::Selector;

pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub(crate) struct VolumeBinding;

/// A claim that waits for its first consumer.
#[derive(Clone, Debug)]
struct Delayed {
    claim: Arc<PersistentVolumeClaim>,
    class: Arc<StorageClass>,
}

/// The pod's claims.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Volumes of claims that are bound.
    pub bound: Vec<Arc<PersistentVolume>>,
    delayed: Vec<Delayed>,
    /// Volumes that a delayed claim could take.
    unbound: Vec<Arc<PersistentVolume>>,
}

/// What has to be written before the pod can be bound.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Reserve the volume for the claim.
    Reserve { volume: Arc<PersistentVolume>, claim: Arc<PersistentVolumeClaim> },
    /// Tell the provisioner on which node the claim is needed.
    Provision { claim: Arc<PersistentVolumeClaim>, node: String },
}

fn fits_node(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let required = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref())
        .and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|selector| node_selector_matches(selector, &node.labels, &node.name))
}

/// Whether a volume could serve a claim on some node.
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offer), Some(wish)) = (&volume.spec, &claim.spec) else { return false };
    if let Some(reference) = &offer.claim_ref {
        let ours = reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && (reference.uid.as_deref().unwrap_or_default().is_empty()
                || reference.uid == claim.metadata.uid);
        if !ours {
            return false;
        }
    }
    let class = |name: &Option<String>| name.clone().unwrap_or_default();
    let mode = |name: &Option<String>| name.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let offered = offer.access_modes.as_deref().unwrap_or_default();
    let size = |list: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        let amount = list.and_then(|list| list.get("storage"));
        amount.and_then(|amount| amount.0.parse::<Quantity>().ok()).map_or(0, |amount| amount.value())
    };
    volume.metadata.deletion_timestamp.is_none()
        && class(&offer.storage_class_name) == class(&wish.storage_class_name)
        && mode(&offer.volume_mode) == mode(&wish.volume_mode)
        && wish.access_modes.iter().flatten().all(|mode| offered.contains(mode))
        && size(offer.capacity.as_ref()) >= size(wish.resources.as_ref().and_then(|r| r.requests.as_ref()))
        && wish.selector.as_ref().is_none_or(|selector| {
            Selector::new(Some(selector)).matches(&volume.metadata.labels.clone().unwrap_or_default())
        })
}

impl State {
    /// A volume for the claim on the node, the smallest name first, none taken twice.
    fn volume_for(
        &self,
        claim: &PersistentVolumeClaim,
        node: &NodeInfo,
        taken: &[Arc<PersistentVolume>],
    ) -> Option<Arc<PersistentVolume>> {
        self.unbound
            .iter()
            .find(|volume| {
                fits_node(volume, node)
                    && suits(volume, claim)
                    && !taken.iter().any(|other| other.metadata.name == volume.metadata.name)
            })
            .cloned()
    }

    /// Whether a claim still has to be bound before the pod can be.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// What is still to be written for the pod to run on the node.
    pub(crate) fn actions(&self, node: &NodeInfo) -> Vec<Action> {
        let mut taken = Vec::new();
        let mut actions = Vec::new();
        for Delayed { claim, .. } in &self.delayed {
            // Announced by an earlier cycle; the filter has seen to it that it is this node.
            if selected_node(claim).is_some() {
                continue;
            }
            if let Some(volume) = self.volume_for(claim, node, &taken) {
                taken.push(volume.clone());
                let reserved = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
                if !reserved {
                    actions.push(Action::Reserve { volume, claim: claim.clone() });
                }
            } else {
                actions.push(Action::Provision { claim: claim.clone(), node: node.name.clone() });
            }
        }
        actions
    }
}

pub(crate) fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.metadata.annotations.as_ref()?.get(SELECTED_NODE).map(String::as_str)
}

fn topology_allows(class: &StorageClass, node: &NodeInfo) -> bool {
    class.allowed_topologies.as_ref().filter(|terms| !terms.is_empty()).is_none_or(|terms| {
        terms.iter().any(|term| {
            term.match_label_expressions.iter().flatten().all(|requirement| {
                node.label(&requirement.key)
                    .is_some_and(|value| requirement.values.iter().any(|v| v == value))
            })
        })
    })
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | NODE_LABELS | VOLUMES
    }

    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: Cluster<'_>,
    ) -> Result<PreFilter, Rejection> {
        if pod.claims.is_empty() {
            return Ok(PreFilter::Skip);
        }
        let mut result = State::default();
        for (name, ephemeral) in &pod.claims {
            let Some(claim) = cluster.lookup.claim(pod.namespace(), name) else {
                return Err(Rejection::unresolvable(if *ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    )
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                }));
            };
            let volume_name =
                claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
                let volume = volume_name.unwrap_or_default();
                return Err(Rejection::unresolvable(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                )));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(Rejection::unresolvable(format!(
                    "persistentvolumeclaim \"{name}\" is being deleted"
                )));
            }
            if *ephemeral
                && !claim.metadata.owner_references.iter().flatten().any(|owner| owner.uid == pod.uid)
            {
                return Err(Rejection::unresolvable(format!(
                    "PVC {}/{name} was not created for pod {}/{} (pod is not owner)",
                    pod.namespace(),
                    pod.namespace(),
                    pod.name
                )));
            }
            let complete = claim
                .metadata
                .annotations
                .as_ref()
                .is_some_and(|notes| notes.contains_key("pv.kubernetes.io/bind-completed"))
                || claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
            match (volume_name, complete) {
                (Some(volume_name), true) => match cluster.lookup.volume(&volume_name) {
                    Some(volume) => result.bound.push(volume),
                    None => {
                        return Err(Rejection::unresolvable(
                            "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
                        ));
                    }
                },
                _ => {
                    let class = claim
                        .spec
                        .as_ref()
                        .and_then(|spec| spec.storage_class_name.as_deref())
                        .and_then(|class| cluster.lookup.class(class))
                        .filter(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
                    match class {
                        Some(class) => result.delayed.push(Delayed { claim, class }),
                        None => {
                            return Err(Rejection::unresolvable(
                                "pod has unbound immediate PersistentVolumeClaims",
                            ));
                        }
                    }
                }
            }
        }
        if !result.delayed.is_empty() {
            result.unbound = cluster.lookup.volumes();
        }
        state.volumes = Some(result);
        Ok(PreFilter::Run)
    }

    fn filter(
        &self,
        state: &CycleState,
        _: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        let Some(volumes) = &state.volumes else { return Ok(()) };
        if volumes.bound.iter().any(|volume| !fits_node(volume, node)) {
            return Err(Rejection::unresolvable("node(s) didn't match PersistentVolume's node affinity"));
        }
        let mut taken = Vec::new();
        for delayed in &volumes.delayed {
            let cannot =
                || Err(Rejection::unresolvable("node(s) didn't find available persistent volumes to bind"));
            if let Some(selected) = selected_node(&delayed.claim) {
                if selected != node.name {
                    return cannot();
                }
            } else if let Some(volume) = volumes.volume_for(&delayed.claim, node, &taken) {
                taken.push(volume);
            } else if delayed.class.provisioner.is_empty()
                || delayed.class.provisioner == NO_PROVISIONER
                || !topology_allows(&delayed.class, node)
            {
                return cannot();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};
    use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, Volume};

    fn consumer() -> Arc<PodInfo> {
        testing::pod("p")
            .spec(|spec| {
                spec.volumes = Some(vec![Volume {
                    name: "data".into(),
                    persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                        claim_name: "data".into(),
                        read_only: None,
                    }),
                    ..Volume::default()
                }]);
            })
            .info()
    }

    fn claim(class: &str) -> PersistentVolumeClaim {
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.name = Some("data".into());
        claim.metadata.namespace = Some("ns".into());
        claim.spec = Some(PersistentVolumeClaimSpec {
            storage_class_name: Some(class.into()),
            ..PersistentVolumeClaimSpec::default()
        });
        claim
    }

    fn class(name: &str, mode: &str, provisioner: &str) -> Arc<StorageClass> {
        let mut class = StorageClass::default();
        class.metadata.name = Some(name.into());
        class.provisioner = provisioner.into();
        class.volume_binding_mode = Some(mode.into());
        Arc::new(class)
    }

    fn rejected(world: &World) -> Option<String> {
        VolumeBinding
            .pre_filter(&mut CycleState::default(), &consumer(), world.cluster())
            .err()
            .map(|rejection| rejection.reasons[0].to_string())
    }

    #[test]
    fn unbound_claims() {
        let mut world = World::of(vec![testing::node("a"), testing::node("b")]);
        assert_eq!(rejected(&world).as_deref(), Some("persistentvolumeclaim \"data\" not found"));
        world.lookup.claims = vec![Arc::new(claim("now"))];
        world.lookup.classes =
            vec![class("now", "Immediate", "x"), class("later", "WaitForFirstConsumer", "x")];
        assert_eq!(rejected(&world).as_deref(), Some("pod has unbound immediate PersistentVolumeClaims"));

        world.lookup.claims = vec![Arc::new(claim("later"))];
        let mut state = CycleState::default();
        assert_eq!(VolumeBinding.pre_filter(&mut state, &consumer(), world.cluster()), Ok(PreFilter::Run));
        assert!(VolumeBinding.filter(&state, &consumer(), world.cache.node(0), world.cluster()).is_ok());
        let actions = state.volumes.map(|volumes| volumes.actions(world.cache.node(0))).unwrap_or_default();
        assert!(matches!(&actions[..], [Action::Provision { node, .. }] if node == "a"));

        let mut chosen = claim("later");
        chosen.metadata.annotations = Some([(SELECTED_NODE.to_owned(), "b".to_owned())].into());
        world.lookup.claims = vec![Arc::new(chosen)];
        let mut state = CycleState::default();
        assert!(VolumeBinding.pre_filter(&mut state, &consumer(), world.cluster()).is_ok());
        for (index, fits) in [(0, false), (1, true)] {
            let result = VolumeBinding.filter(&state, &consumer(), world.cache.node(index), world.cluster());
            assert_eq!(result.is_ok(), fits, "the choice of an earlier cycle holds");
        }

        world.lookup.claims = vec![Arc::new(claim("later"))];
        world.lookup.classes = vec![class("later", "WaitForFirstConsumer", NO_PROVISIONER)];
        let mut state = CycleState::default();
        assert!(VolumeBinding.pre_filter(&mut state, &consumer(), world.cluster()).is_ok());
        assert!(VolumeBinding.filter(&state, &consumer(), world.cache.node(0), world.cluster()).is_err());
    }
}
