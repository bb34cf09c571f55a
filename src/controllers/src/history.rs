//! ControllerRevisions: the templates that a DaemonSet or StatefulSet had, so that pods can be told
//! apart by revision and a rollback is possible (upstream pkg/controller/history).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kedge_base::Order as _;
use kedge_client::{Error, Informer};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::adoption::claim;
use crate::context::{Context, ignore_not_found};
use crate::template::{fnv1a, safe_encode};

/// The label of pods (and of a DaemonSet's revisions) that names the revision.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

/// The revisions of one kind of owner.
#[derive(Clone)]
pub(crate) struct History {
    pub(crate) ctx: Context,
    pub(crate) revisions: Informer<ControllerRevision>,
    /// The label that carries the hash on revisions.
    pub(crate) hash_label: &'static str,
}

/// Whose history it is.
pub(crate) struct Owner<'a> {
    pub(crate) meta: &'a ObjectMeta,
    pub(crate) reference: OwnerReference,
    pub(crate) selector: &'a LabelSelector,
    pub(crate) template: &'a PodTemplateSpec,
    pub(crate) collisions: Option<i32>,
}

/// The patch that brings an owner back to this template; kubectl applies it on a rollback.
pub(crate) fn snapshot(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    let mut data = json!({ "spec": { "template": template } });
    drop_nulls(&mut data);
    data
}

/// The template in a snapshot.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    // By way of text, as everything typed is decoded: one decoder of pod templates in the binary is enough.
    serde_json::from_str(&template.to_string()).ok()
}

/// Upstream writes `"creationTimestamp": null`; that says the same as nothing.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn is_snapshot(revision: &ControllerRevision, wanted: &Value) -> bool {
    revision.data.as_ref().is_some_and(|data| {
        let mut data = data.0.clone();
        drop_nulls(&mut data);
        data == *wanted
    })
}

fn hash(data: &Value, collisions: Option<i32>) -> String {
    let mut bytes = data.to_string().into_bytes();
    if let Some(collisions) = collisions {
        bytes.extend_from_slice(&collisions.to_le_bytes());
    }
    safe_encode(&fnv1a(&bytes).to_string())
}

/// A revision's name.
pub(crate) fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

impl History {
    /// All revisions of the owner, oldest first, and the one of its template, which is made or
    /// brought to the front when need be. The last is how often names have collided.
    pub(crate) async fn sync<F>(
        &self,
        owner: &Owner<'_>,
        fresh: F,
    ) -> Result<(Vec<Arc<ControllerRevision>>, Arc<ControllerRevision>, Option<i32>), Error>
    where
        F: Future<Output = Result<ObjectMeta, kube::Error>>,
    {
        let namespace = owner.meta.namespace.as_deref().unwrap_or_default();
        let candidates = self.revisions.list_namespace(namespace);
        let mut all =
            claim(&self.ctx.client, owner.meta, &owner.reference, owner.selector, candidates, fresh).await?;
        all.order_by(|a, b| {
            let created = |r: &ControllerRevision| r.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (a.revision, created(a), name_of(a)).cmp(&(b.revision, created(b), name_of(b)))
        });
        let data = snapshot(owner.template);
        let next = all.last().map_or(0, |last| last.revision) + 1;
        let position = all.iter().rposition(|revision| is_snapshot(revision, &data));
        if let Some(position) = position {
            let found = all[position].clone();
            if position + 1 == all.len() {
                return Ok((all, found, owner.collisions));
            }
            // A rollback: the old revision becomes the newest.
            let api = self.ctx.api::<ControllerRevision>(namespace);
            let patch = json!({ "metadata": { "uid": found.metadata.uid }, "revision": next });
            let moved = api.patch(name_of(&found), &PatchParams::default(), &Patch::Strategic(patch)).await?;
            all.remove(position);
            let moved = Arc::new(moved);
            all.push(moved.clone());
            return Ok((all, moved, owner.collisions));
        }
        let (made, collisions) = self.create(owner, namespace, data, next).await?;
        all.retain(|revision| revision.metadata.uid != made.metadata.uid);
        all.push(made.clone());
        Ok((all, made, collisions))
    }

    async fn create(
        &self,
        owner: &Owner<'_>,
        namespace: &str,
        data: Value,
        number: i64,
    ) -> Result<(Arc<ControllerRevision>, Option<i32>), Error> {
        let api = self.ctx.api::<ControllerRevision>(namespace);
        let mut collisions = owner.collisions;
        loop {
            let hash = hash(&data, collisions);
            // The hash must fit: an owner's name may be as long as a name may be.
            let prefix: String = owner.reference.name.chars().take(252 - hash.len()).collect();
            let name = format!("{prefix}-{hash}");
            let mut labels: BTreeMap<String, String> =
                owner.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
            labels.insert(self.hash_label.to_owned(), hash);
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.to_owned()),
                    labels: Some(labels),
                    annotations: owner.meta.annotations.clone(),
                    owner_references: Some(vec![owner.reference.clone()]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data.clone())),
                revision: number,
            };
            match api.create(&PostParams::default(), &revision).await {
                Ok(made) => return Ok((Arc::new(made), collisions)),
                Err(error) if kedge_client::is_already_exists(&error) => {}
                Err(error) => return Err(error.into()),
            }
            // The cache may be behind: it may be our own.
            let found = api.get(&name).await?;
            let ours = crate::adoption::is_controlled_by(&found.metadata, &owner.reference.uid);
            if ours && is_snapshot(&found, &data) {
                return Ok((Arc::new(found), collisions));
            }
            collisions = Some(collisions.unwrap_or(0) + 1);
        }
    }

    /// Delete the oldest revisions that nobody uses until `limit` of those are left.
    pub(crate) async fn trim(
        &self,
        revisions: &[Arc<ControllerRevision>],
        limit: Option<i32>,
        is_live: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), Error> {
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
        let unused: Vec<_> = revisions.iter().filter(|revision| !is_live(revision)).collect();
        for revision in &unused[..unused.len().saturating_sub(limit)] {
            let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
            let api = self.ctx.api::<ControllerRevision>(namespace);
            ignore_not_found(api.delete(name_of(revision), &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_gives_the_template_back() {
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "a" }] }
        }))
        .expect("a template");
        let data = snapshot(&template);
        assert_eq!(data["spec"]["template"]["$patch"], "replace");
        let mut upstreams = data.clone();
        upstreams["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
        let revision =
            ControllerRevision { data: Some(RawExtension(upstreams)), ..ControllerRevision::default() };
        assert!(is_snapshot(&revision, &data));
        assert_eq!(template_of(&revision), Some(template));
        assert_ne!(hash(&data, None), hash(&data, Some(1)));
    }
}
