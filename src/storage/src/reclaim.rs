//! Removes the folder of a volume whose claim is gone, and then the volume.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kedge_client::{Error, EventType, reference};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::{FINALIZER, NODE, PROVISIONED_BY, PROVISIONER, Provisioner, folder};

/// Upstream's finalizer of volumes that a claim is bound to.
const PROTECTION: &str = "kubernetes.io/pv-protection";
/// What a node leaves to others is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(300);

/// What is to be done with a volume.
#[derive(Debug, PartialEq, Eq)]
enum Work {
    Nothing,
    /// Remove the folder, then the volume.
    Delete,
    /// The folder stays; the volume that somebody deleted may go.
    LetGo,
}

fn work(volume: &PersistentVolume) -> Work {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let has = |name: &str| volume.metadata.finalizers.iter().flatten().any(|own| own == name);
    let deleted = volume.metadata.deletion_timestamp.is_some();
    if deleted && has(PROTECTION) {
        // Still bound.
        return Work::Nothing;
    }
    let released = matches!(phase, "Released" | "Failed");
    match (policy, deleted) {
        (Some("Delete"), false) if released => Work::Delete,
        (Some("Delete"), true) if has(FINALIZER) => Work::Delete,
        (_, true) if has(FINALIZER) => Work::LetGo,
        _ => Work::Nothing,
    }
}

impl Provisioner {
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<Duration>, Error> {
        let Some(volume) = self.volumes.get("", name) else { return Ok(None) };
        let note = |key: &str| volume.metadata.annotations.as_ref().and_then(|notes| notes.get(key)).cloned();
        if note(PROVISIONED_BY).as_deref() != Some(PROVISIONER) {
            return Ok(None);
        }
        let work = work(&volume);
        if work == Work::Nothing {
            return Ok(None);
        }
        let node = note(NODE).unwrap_or_default();
        if node != self.config.node {
            if self.node(&node).await?.is_some() {
                return Ok(Some(AGAIN));
            }
            tracing::info!(volume = name, node, "the node of the volume is gone, and its folder with it");
        } else if work == Work::Delete
            && let Err(error) = self.remove_folder(&volume).await
        {
            let text = kedge_base::Chain(&error).to_string();
            self.recorder.event(reference(&*volume), EventType::Warning, "VolumeFailedDelete", text);
            return Err(error);
        }
        self.forget(&volume, work == Work::Delete).await?;
        tracing::info!(volume = name, "volume reclaimed");
        Ok(None)
    }

    async fn remove_folder(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let path = volume.spec.as_ref().and_then(|spec| spec.host_path.as_ref()).map(|own| own.path.as_str());
        let path = path.unwrap_or_default();
        if !folder::is_ours(&self.config.root, Path::new(path), name) {
            return Err(Error::other(format!(
                "{path} is not a folder of {}: remove it by hand, then take the finalizer {FINALIZER} off the volume",
                self.config.root.display()
            )));
        }
        folder::remove(path.into()).await
    }

    /// Takes our finalizer off, and deletes the volume when nobody has done so.
    async fn forget(&self, volume: &PersistentVolume, delete: bool) -> Result<(), Error> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let gone = |error: &kube::Error| kedge_client::is_not_found(error);
        if delete && volume.metadata.deletion_timestamp.is_none() {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: volume.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            match api.delete(name, &params).await {
                Err(error) if !gone(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let Some(live) = api.get_opt(name).await?.filter(|live| live.metadata.uid == volume.metadata.uid)
        else {
            return Ok(());
        };
        let finalizers = live.metadata.finalizers.unwrap_or_default();
        let kept: Vec<&String> = finalizers.iter().filter(|own| *own != FINALIZER).collect();
        let patch =
            json!({ "metadata": { "finalizers": kept, "resourceVersion": live.metadata.resource_version } });
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PersistentVolumeSpec, PersistentVolumeStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn what_is_to_be_done() {
        for (phase, policy, deleted, finalizers, expected) in [
            ("Bound", "Delete", false, vec![FINALIZER, PROTECTION], Work::Nothing),
            ("Bound", "Delete", true, vec![FINALIZER, PROTECTION], Work::Nothing),
            ("Released", "Delete", false, vec![FINALIZER, PROTECTION], Work::Delete),
            ("Released", "Retain", false, vec![FINALIZER, PROTECTION], Work::Nothing),
            ("Released", "Retain", true, vec![FINALIZER], Work::LetGo),
            ("Bound", "Delete", true, vec![FINALIZER], Work::Delete),
            ("Failed", "Delete", false, vec![FINALIZER], Work::Delete),
            ("Available", "Delete", false, vec![FINALIZER], Work::Nothing),
            ("Released", "Delete", true, vec!["other"], Work::Nothing),
        ] {
            let mut volume = PersistentVolume {
                spec: Some(PersistentVolumeSpec {
                    persistent_volume_reclaim_policy: Some(policy.into()),
                    ..PersistentVolumeSpec::default()
                }),
                status: Some(PersistentVolumeStatus {
                    phase: Some(phase.into()),
                    ..PersistentVolumeStatus::default()
                }),
                ..PersistentVolume::default()
            };
            volume.metadata.finalizers = Some(finalizers.iter().map(|own| (*own).to_owned()).collect());
            if deleted {
                let zero = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
                volume.metadata.deletion_timestamp = Some(Time(zero));
            }
            assert_eq!(work(&volume), expected, "{phase} {policy} {deleted} {finalizers:?}");
        }
    }
}
