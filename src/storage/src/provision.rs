//! Makes the volume of a claim that waits for one on this node
//! (sig-storage-lib-external-provisioner `controller/controller.go`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Error, EventType, ObjectKey, reference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::{FINALIZER, NODE, PROVISIONED_BY, PROVISIONER, Provisioner, folder};

const ASKED: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// What a node leaves to others is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(300);

/// The node that a claim waits on, when it waits for us at all.
fn waits_on(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    let asked = ASKED.iter().any(|key| annotations.get(*key).is_some_and(|value| value == PROVISIONER));
    let unbound = claim.spec.as_ref()?.volume_name.as_deref().unwrap_or_default().is_empty();
    let node = annotations.get(SELECTED_NODE).filter(|node| !node.is_empty())?;
    (asked && unbound && claim.metadata.deletion_timestamp.is_none()).then_some(node)
}

/// Why a folder cannot be what the claim wants.
fn impossible(claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let spec = claim.spec.as_ref()?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("a folder cannot be a block device: use volumeMode Filesystem");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Some("volumes cannot be made from snapshots or other claims: leave dataSource out");
    }
    if spec.selector.is_some() {
        return Some("claim.spec.selector is not supported for volumes that are made on demand");
    }
    None
}

fn volume_of(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    root: &std::path::Path,
    node: &str,
    hostname: &str,
) -> PersistentVolume {
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let claim_name = claim.metadata.name.as_deref().unwrap_or_default();
    let spec = claim.spec.clone().unwrap_or_default();
    let name = format!("pvc-{uid}");
    let path = root.join(folder::name(namespace, claim_name, &name));
    let annotations = [(PROVISIONED_BY, PROVISIONER), (NODE, node)];
    let requirement = NodeSelectorRequirement {
        key: HOSTNAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![hostname.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    let size = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(size.into_iter().filter(|(key, _)| key == "storage").collect()),
            claim_ref: Some(reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: path.display().to_string(),
                // A disk that is not mounted must not look like an empty volume.
                type_: Some("Directory".to_owned()),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            ),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

impl Provisioner {
    pub(crate) async fn claim(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(None) };
        let Some(node) = waits_on(&claim) else { return Ok(None) };
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        if self.volumes.get("", &format!("pvc-{uid}")).is_some() {
            return Ok(None);
        }
        if node != self.config.node {
            return self.of_other_node(&claim, node).await;
        }
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        let Some(class) = class.and_then(|name| self.classes.get("", name)) else {
            // The volume controller says so; the claim comes again with its next change.
            return Ok(None);
        };
        if class.provisioner != PROVISIONER {
            return Ok(None);
        }
        let text = format!("External provisioner is provisioning volume for claim \"{key}\"");
        self.recorder.event(reference(&*claim), EventType::Normal, "Provisioning", text);
        let name = class.metadata.name.as_deref().unwrap_or_default();
        if let Some(why) = impossible(&claim) {
            let text = format!("failed to provision volume with StorageClass \"{name}\": {why}");
            self.recorder.event(reference(&*claim), EventType::Warning, "ProvisioningFailed", text);
            return Ok(None);
        }
        match self.provision(&claim, &class).await {
            Ok(volume) => {
                tracing::info!(claim = %key, volume, "volume made");
                let text = format!("Successfully provisioned volume {volume}");
                self.recorder.event(reference(&*claim), EventType::Normal, "ProvisioningSucceeded", text);
                Ok(None)
            }
            Err(error) => {
                let text = format!(
                    "failed to provision volume with StorageClass \"{name}\": {}",
                    kedge_base::Chain(&error)
                );
                self.recorder.event(reference(&*claim), EventType::Warning, "ProvisioningFailed", text);
                Err(error)
            }
        }
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<String, Error> {
        let node = &self.config.node;
        let labels = self.node(node).await?.and_then(|node| node.metadata.labels);
        let hostname =
            labels.and_then(|labels| labels.get(HOSTNAME).cloned()).unwrap_or_else(|| node.clone());
        let volume = volume_of(claim, class, &self.config.root, node, &hostname);
        let path = volume.spec.as_ref().and_then(|spec| spec.host_path.as_ref()).map(|own| own.path.clone());
        folder::make(path.unwrap_or_default().into()).await?;
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Err(error) if !kedge_client::is_already_exists(&error) => Err(error.into()),
            _ => Ok(volume.metadata.name.unwrap_or_default()),
        }
    }

    /// A node that is gone for good cannot make the volume: the scheduler chooses again when the choice
    /// is taken off the claim.
    async fn of_other_node(
        &self,
        claim: &PersistentVolumeClaim,
        node: &str,
    ) -> Result<Option<Duration>, Error> {
        if self.node(node).await?.is_some() {
            return Ok(Some(AGAIN));
        }
        let patch = json!({ "metadata": {
            "resourceVersion": claim.metadata.resource_version, "annotations": { SELECTED_NODE: null },
        } });
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            // Another node's provisioner was first.
            Err(error) if kedge_client::is_conflict(&error) || kedge_client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => tracing::info!(claim = name, namespace, node, "the node chosen for the claim is gone"),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, VolumeResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn claim(annotations: &[(&str, &str)]) -> PersistentVolumeClaim {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let requests = [("storage".to_owned(), Quantity("1Gi".into()))].into();
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some("data".into()),
                namespace: Some("ns".into()),
                uid: Some("7".into()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".into()]),
                resources: Some(VolumeResourceRequirements { requests: Some(requests), limits: None }),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }

    #[test]
    fn claims_that_wait_for_us() {
        let asked = (ASKED[0], PROVISIONER);
        let node = (SELECTED_NODE, "a");
        assert_eq!(waits_on(&claim(&[asked, node])), Some("a"));
        assert_eq!(waits_on(&claim(&[(ASKED[1], PROVISIONER), node])), Some("a"));
        assert_eq!(waits_on(&claim(&[(ASKED[0], "other"), node])), None);
        assert_eq!(waits_on(&claim(&[asked])), None, "no pod yet");
        let mut bound = claim(&[asked, node]);
        bound.spec.as_mut().unwrap().volume_name = Some("v".into());
        assert_eq!(waits_on(&bound), None);
    }

    #[test]
    fn volumes_belong_to_node_and_claim() {
        let mut class = StorageClass { provisioner: PROVISIONER.into(), ..StorageClass::default() };
        class.metadata.name = Some("fast".into());
        let volume = volume_of(&claim(&[]), &class, "/srv".as_ref(), "a", "host-a");
        let spec = volume.spec.unwrap();
        assert_eq!(spec.host_path.unwrap().path, "/srv/ns-data-pvc-7");
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
        assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("7"));
        let terms = spec.node_affinity.unwrap().required.unwrap().node_selector_terms;
        let expression = &terms[0].match_expressions.as_ref().unwrap()[0];
        assert_eq!(expression.values.as_deref(), Some(&["host-a".to_owned()][..]));
        assert_eq!(volume.metadata.annotations.unwrap()[NODE], "a");
    }

    #[test]
    fn what_a_folder_cannot_be_is_said() {
        assert_eq!(impossible(&claim(&[])), None);
        let mut block = claim(&[]);
        block.spec.as_mut().unwrap().volume_mode = Some("Block".into());
        assert!(impossible(&block).is_some_and(|why| why.contains("Filesystem")));
    }
}
