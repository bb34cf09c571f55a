//! The requests for one pod of a StatefulSet and its claims, with upstream's events
//! (upstream controller/statefulset/stateful_pod_control.go).

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kedge_client::{Error, EventType, Informer, Recorder, reference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::identity;
use crate::context::{Context, ignore_not_found, message, namespace_is_terminating};

pub(super) struct Control {
    pub(super) ctx: Context,
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) recorder: Recorder,
}

fn name_of(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

impl Control {
    fn say(&self, set: &StatefulSet, verb: &str, what: &str, error: Option<&kube::Error>) {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let title = format!("{}{}", verb[..1].to_uppercase(), &verb[1..]);
        let (kind, reason, text) = match error {
            None => (
                EventType::Normal,
                format!("Successful{title}"),
                format!("{verb} {what} in StatefulSet {name} successful"),
            ),
            Some(error) => (
                EventType::Warning,
                format!("Failed{title}"),
                format!("{verb} {what} in StatefulSet {name} failed error: {}", message(error)),
            ),
        };
        self.recorder.event(reference(set), kind, &reason, text);
    }

    fn namespace(set: &StatefulSet) -> &str {
        set.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Whether a claim of the pod to be made is about to go.
    pub(super) fn has_stale_claim(&self, set: &StatefulSet, ordinal: i32) -> bool {
        let name = identity::pod_name(set, ordinal);
        identity::claims(set, ordinal).iter().any(|claim| {
            let found = claim.metadata.name.as_deref().and_then(|n| self.claims.get(Self::namespace(set), n));
            found.is_some_and(|found| identity::is_stale(set, &name, None, &found.metadata))
        })
    }

    /// Make the claims that are missing.
    pub(super) async fn create_claims(&self, set: &StatefulSet, ordinal: i32) -> Result<(), Error> {
        let namespace = Self::namespace(set);
        let pod = identity::pod_name(set, ordinal);
        for claim in identity::claims(set, ordinal) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            if let Some(found) = self.claims.get(namespace, &name) {
                if found.metadata.deletion_timestamp.is_some() {
                    return Err(Error::other(format!(
                        "pvc {name} is being deleted: pod {pod} waits until it is gone"
                    )));
                }
                continue;
            }
            let api = self.ctx.api::<PersistentVolumeClaim>(namespace);
            let result = api.create(&PostParams::default(), &claim).await;
            let set_name = set.metadata.name.as_deref().unwrap_or_default();
            match result {
                Ok(_) => {
                    let text = format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                    self.recorder.event(reference(set), EventType::Normal, "SuccessfulCreate", text);
                }
                Err(error) if kedge_client::is_already_exists(&error) => {}
                Err(error) => {
                    let text = format!(
                        "create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {}",
                        message(&error)
                    );
                    self.recorder.event(reference(set), EventType::Warning, "FailedCreate", text);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Make the claims, then the pod.
    pub(super) async fn create(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result<(), Error> {
        self.create_claims(set, ordinal).await?;
        let api = self.ctx.api::<Pod>(Self::namespace(set));
        let what = format!("Pod {}", name_of(pod));
        match api.create(&PostParams::default(), pod).await {
            Ok(made) => {
                self.say(set, "create", &what, None);
                self.fix_claims(set, &made, ordinal).await
            }
            Err(error) if kedge_client::is_already_exists(&error) => {
                // The cache is behind, or somebody else has the name.
                let found = api.get(name_of(pod)).await?;
                let uid = set.metadata.uid.as_deref().unwrap_or_default();
                if crate::adoption::is_controlled_by(&found.metadata, uid)
                    || crate::adoption::controller_of(&found.metadata).is_none()
                {
                    return Ok(());
                }
                self.say(set, "create", &what, Some(&error));
                Err(error.into())
            }
            // Nothing can be created there any more: do not come back.
            Err(error) if namespace_is_terminating(&error) => Ok(()),
            Err(error) => {
                self.say(set, "create", &what, Some(&error));
                Err(error.into())
            }
        }
    }

    pub(super) async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        let api = self.ctx.api::<Pod>(Self::namespace(set));
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        let what = format!("Pod {}", name_of(pod));
        match api.delete(name_of(pod), &params).await {
            Ok(_) => {
                self.say(set, "delete", &what, None);
                Ok(())
            }
            // Gone, or another pod has its name now.
            Err(error) if kedge_client::is_not_found(&error) || kedge_client::is_conflict(&error) => Ok(()),
            Err(error) => {
                self.say(set, "delete", &what, Some(&error));
                Err(error.into())
            }
        }
    }

    /// Bring back the labels by which a pod is found, and its claims.
    pub(super) async fn fix(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result<(), Error> {
        let labels = identity::identity_labels(set, ordinal);
        let present = pod.metadata.labels.clone().unwrap_or_default();
        // The index label is not taken from a pod that was made without it.
        if present.get(identity::NAME_LABEL) != labels.get(identity::NAME_LABEL) {
            let patch = json!({ "metadata": { "uid": pod.metadata.uid, "labels": labels } });
            let api = self.ctx.api::<Pod>(Self::namespace(set));
            let result = api.patch(name_of(pod), &PatchParams::default(), &Patch::Strategic(patch)).await;
            self.say(set, "update", &format!("Pod {}", name_of(pod)), result.as_ref().err());
            ignore_not_found(result)?;
        }
        self.fix_claims(set, pod, ordinal).await
    }

    /// Give the claims the owners that the retention policy asks for.
    pub(super) async fn fix_claims(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result<(), Error> {
        let namespace = Self::namespace(set);
        let api = self.ctx.api::<PersistentVolumeClaim>(namespace);
        for claim in identity::claims(set, ordinal) {
            let name = claim.metadata.name.unwrap_or_default();
            // A claim that was only just made is not in the cache yet.
            let found = match self.claims.get(namespace, &name) {
                Some(found) => found,
                None if identity::retention(set) == (false, false) => continue,
                None => match api.get_opt(&name).await? {
                    Some(found) => found.into(),
                    None => continue,
                },
            };
            if identity::is_stale(set, name_of(pod), pod.metadata.uid.as_deref(), &found.metadata) {
                continue;
            }
            if let Some(owners) = identity::claim_owners(set, pod, ordinal, &found.metadata) {
                let patch = json!({ "metadata": {
                    "uid": found.metadata.uid, "resourceVersion": found.metadata.resource_version,
                    "ownerReferences": owners,
                } });
                ignore_not_found(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
            }
        }
        Ok(())
    }
}
