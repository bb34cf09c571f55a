//! What the collector does with one object (upstream garbagecollector.go).

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kedge_client::{Error, EventType};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::Collector;
use super::gone::Owner;
use super::graph::{FOREGROUND, Node, ORPHAN};

/// When something is not known yet that decides over a finalizer.
const NOT_YET: Duration = Duration::from_secs(1);

/// The state of an object's owners.
#[derive(Debug, Default)]
struct Owners {
    /// There, and not waiting for their dependents.
    solid: usize,
    /// Verified to be gone.
    dangling: Vec<String>,
    /// Being deleted in the foreground.
    waiting: Vec<String>,
}

enum OwnerState {
    Solid,
    Dangling,
    Waiting,
}

impl Collector {
    /// Delete the object if nobody owns it any more; finish its foreground deletion if nothing
    /// blocks it.
    pub(super) async fn consider(&self, uid: &str) -> Result<Option<Duration>, Error> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(None) };
        if node.deleting && !node.foreground {
            return Ok(None);
        }
        let api = node.resource.in_namespace(&self.ctx.client, &node.namespace);
        let live = match api.get_metadata_opt(&node.name).await? {
            Some(live) if live.metadata.uid.as_deref() == Some(uid) => live.metadata,
            _ => {
                self.forget(uid);
                return Ok(None);
            }
        };
        if is_waiting(&live) {
            return self.finish_foreground(uid, &node, &live).await;
        }
        let references = live.owner_references.clone().unwrap_or_default();
        if references.is_empty() {
            return Ok(None);
        }
        let mut owners = Owners::default();
        for reference in &references {
            match self.owner_state(&node, uid, reference).await? {
                OwnerState::Solid => owners.solid += 1,
                OwnerState::Dangling => owners.dangling.push(reference.uid.clone()),
                OwnerState::Waiting => owners.waiting.push(reference.uid.clone()),
            }
        }
        if owners.solid > 0 {
            let useless: Vec<String> = owners.dangling.into_iter().chain(owners.waiting).collect();
            if !useless.is_empty() {
                self.patch(&node, &live, &without(&references, &useless)).await?;
            }
            return Ok(None);
        }
        let dependents = self.graph.lock().dependents(uid);
        let policy = if !owners.waiting.is_empty() && !dependents.is_empty() {
            if dependents.iter().any(|(_, dependent, _)| dependent.foreground) {
                // A circle of owners that wait for each other: this one steps back.
                let unblocked: Vec<OwnerReference> = references
                    .iter()
                    .cloned()
                    .map(|reference| OwnerReference { block_owner_deletion: Some(false), ..reference })
                    .collect();
                self.patch(&node, &live, &json!({ "ownerReferences": unblocked })).await?;
                // The patch changed the resource version the deletion below would insist on.
                return self.delete(&node, uid, None, DeleteParams::foreground()).await;
            }
            DeleteParams::foreground()
        } else if has_finalizer(&live, ORPHAN) {
            DeleteParams::orphan()
        } else if has_finalizer(&live, FOREGROUND) {
            DeleteParams::foreground()
        } else {
            DeleteParams::background()
        };
        self.delete(&node, uid, live.resource_version, policy).await
    }

    async fn delete(
        &self,
        node: &Node,
        uid: &str,
        resource_version: Option<String>,
        policy: DeleteParams,
    ) -> Result<Option<Duration>, Error> {
        let api = node.resource.in_namespace(&self.ctx.client, &node.namespace);
        let params = policy.preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version });
        match api.delete(&node.name, &params).await {
            Ok(_) => {
                let kind = &node.resource.api.kind;
                tracing::debug!(kind, namespace = %node.namespace, name = %node.name, "garbage deleted");
                Ok(None)
            }
            Err(error) if kedge_client::is_not_found(&error) => {
                self.forget(uid);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn finish_foreground(
        &self,
        uid: &str,
        node: &Node,
        live: &ObjectMeta,
    ) -> Result<Option<Duration>, Error> {
        if !self.is_complete() {
            return Ok(Some(NOT_YET));
        }
        let blocking: Vec<_> =
            self.graph.lock().dependents(uid).into_iter().filter(|(_, _, blocks)| *blocks).collect();
        if blocking.is_empty() {
            self.patch(node, live, &without_finalizer(live, FOREGROUND)).await?;
            return Ok(None);
        }
        for (dependent, state, _) in blocking {
            if !state.foreground {
                self.delete.add(dependent.to_string());
            }
        }
        Ok(None)
    }

    async fn owner_state(
        &self,
        node: &Node,
        uid: &str,
        reference: &OwnerReference,
    ) -> Result<OwnerState, Error> {
        if self.gone.lock().has(&node.namespace, reference) {
            return Ok(OwnerState::Dangling);
        }
        let Some(resource) = self.resource_of(&reference.api_version, &reference.kind) else {
            return Err(Error::other(format!(
                "owner of {} {}/{}: no kind {} in {}",
                node.resource.api.kind, node.namespace, node.name, reference.kind, reference.api_version
            )));
        };
        if resource.namespaced && node.namespace.is_empty() {
            // Cannot be resolved, so it can never be said to be gone.
            self.complain(node, uid, reference);
            return Ok(OwnerState::Solid);
        }
        let namespace = if resource.namespaced { &*node.namespace } else { "" };
        // The graph may be behind with a deletion, but then that will bring us here again.
        let known = self.graph.lock().get(&reference.uid).cloned();
        if let Some(owner) = known {
            let same = owner.resource.api == resource.api
                && *owner.namespace == *namespace
                && *owner.name == *reference.name;
            if same {
                return Ok(if owner.foreground { OwnerState::Waiting } else { OwnerState::Solid });
            }
            self.complain(node, uid, reference);
        }
        let api = resource.in_namespace(&self.ctx.client, namespace);
        match api.get_metadata_opt(&reference.name).await? {
            Some(live) if live.metadata.uid.as_deref() == Some(reference.uid.as_str()) => {
                Ok(if is_waiting(&live.metadata) { OwnerState::Waiting } else { OwnerState::Solid })
            }
            // The uid may live in another namespace: gone for this reference only.
            _ if self.graph.lock().get(&reference.uid).is_some() => Ok(OwnerState::Dangling),
            _ => {
                self.gone.lock().note(Owner::named(&node.namespace, reference));
                Ok(OwnerState::Dangling)
            }
        }
    }

    fn complain(&self, node: &Node, uid: &str, reference: &OwnerReference) {
        let regarding = ObjectReference {
            api_version: Some(node.resource.api.api_version.clone()),
            kind: Some(node.resource.api.kind.clone()),
            namespace: Some(node.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
            name: Some(node.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let text = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace \"{}\"",
            reference.api_version,
            reference.kind,
            node.namespace,
            reference.name,
            reference.uid,
            node.namespace
        );
        self.recorder.event(regarding, EventType::Warning, "OwnerRefInvalidNamespace", text);
    }

    /// Take the owner reference out of everything that depends on the object, then its finalizer.
    pub(super) async fn set_free(&self, uid: &str) -> Result<Option<Duration>, Error> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(None) };
        if !self.is_complete() {
            return Ok(Some(NOT_YET));
        }
        let api = node.resource.in_namespace(&self.ctx.client, &node.namespace);
        let live = match api.get_metadata_opt(&node.name).await? {
            Some(live) if live.metadata.uid.as_deref() == Some(uid) => live.metadata,
            _ => {
                self.forget(uid);
                return Ok(None);
            }
        };
        if live.deletion_timestamp.is_none() || !has_finalizer(&live, ORPHAN) {
            return Ok(None);
        }
        let dependents = self.graph.lock().dependents(uid);
        for (dependent_uid, dependent, _) in dependents {
            let api = dependent.resource.in_namespace(&self.ctx.client, &dependent.namespace);
            let Some(found) = api.get_metadata_opt(&dependent.name).await? else { continue };
            if found.metadata.uid.as_deref() != Some(&*dependent_uid) {
                continue;
            }
            let references = found.metadata.owner_references.clone().unwrap_or_default();
            if references.iter().any(|reference| reference.uid == uid) {
                let change = without(&references, &[uid.to_owned()]);
                self.patch(&dependent, &found.metadata, &change).await?;
            }
        }
        self.patch(&node, &live, &without_finalizer(&live, ORPHAN)).await?;
        Ok(None)
    }

    /// Change fields of the metadata, if the object is still as it was read. (A merge patch: kinds
    /// from CustomResourceDefinitions know no strategic one.)
    async fn patch(&self, node: &Node, live: &ObjectMeta, change: &Value) -> Result<(), Error> {
        let mut metadata = change.clone();
        metadata["uid"] = json!(live.uid);
        metadata["resourceVersion"] = json!(live.resource_version);
        let api = node.resource.in_namespace(&self.ctx.client, &node.namespace);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        match api.patch(&node.name, &PatchParams::default(), &patch).await {
            Err(error) if !kedge_client::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.as_deref().unwrap_or_default().iter().any(|found| found == finalizer)
}

/// Being deleted in the foreground.
fn is_waiting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && has_finalizer(meta, FOREGROUND)
}

/// The change that takes owners out; an empty list is written as null, which removes the field.
fn without(references: &[OwnerReference], uids: &[String]) -> Value {
    let rest: Vec<&OwnerReference> =
        references.iter().filter(|reference| !uids.contains(&reference.uid)).collect();
    json!({ "ownerReferences": if rest.is_empty() { Value::Null } else { json!(rest) } })
}

fn without_finalizer(meta: &ObjectMeta, finalizer: &str) -> Value {
    let all = meta.finalizers.as_deref().unwrap_or_default();
    let rest: Vec<&String> = all.iter().filter(|found| *found != finalizer).collect();
    json!({ "finalizers": if rest.is_empty() { Value::Null } else { json!(rest) } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_keep_what_is_not_ours() {
        let owner = |uid: &str| OwnerReference { uid: uid.into(), ..OwnerReference::default() };
        let both = [owner("a"), owner("b")];
        let change = without(&both, &["a".to_owned()]);
        assert_eq!(change["ownerReferences"].as_array().map(Vec::len), Some(1));
        assert_eq!(change["ownerReferences"][0]["uid"], "b");
        assert!(without(&both[..1], &["a".to_owned()])["ownerReferences"].is_null());
        let meta = ObjectMeta {
            finalizers: Some(vec![FOREGROUND.into(), "example.com/x".into()]),
            ..ObjectMeta::default()
        };
        assert_eq!(without_finalizer(&meta, FOREGROUND), json!({ "finalizers": ["example.com/x"] }));
    }
}
