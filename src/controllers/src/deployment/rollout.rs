//! The steps of a rollout as requests: the new set, scaling, both strategies, cleaning up
//! (upstream sync.go, rolling.go and recreate.go).

use std::collections::HashSet;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kedge_base::Order as _;
use kedge_client::{Error, EventType, reference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::math::{self, is_rolling, max_surge, size, sum, wanted};
use super::revision::{self, REVISION_ANNOTATION};
use super::{Controller, Sets, status};
use crate::adoption::{controller_of, is_controlled_by, owner_reference};
use crate::context::{ignore_not_found, message, namespace_is_terminating};
use crate::template::{HASH_LABEL, equal_ignoring_hash, hash};

impl Controller {
    /// Bring the revision of the new set and of the Deployment up to date; make the new set if
    /// asked to and there is none.
    pub(super) async fn sync_revision(
        &self,
        deployment: &mut Deployment,
        sets: &mut Sets,
        create: bool,
    ) -> Result<(), Error> {
        let next = revision::max_revision(&sets.old) + 1;
        let Some(new) = &mut sets.new else {
            return if create { self.create_set(deployment, sets, next).await } else { Ok(()) };
        };
        let min_ready = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let mut changed = new.clone();
        let mut update = revision::annotate(&deployment.metadata, &mut changed.metadata, next);
        if let Some(spec) = &mut changed.spec
            && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
        {
            spec.min_ready_seconds = min_ready;
            update = true;
        }
        if update {
            *new = self.update_set(&changed).await?;
        }
        let revision = revision::revision(&new.metadata).max(next);
        let name = new.metadata.name.clone().unwrap_or_default();
        self.set_revision(deployment, revision).await?;
        let mut status = deployment.status.clone().unwrap_or_default();
        if status::deadline(deployment).is_some() && status::find(&status, status::PROGRESSING).is_none() {
            let text = format!("Found new replica set \"{name}\"");
            let found = status::condition(status::PROGRESSING, "True", "FoundNewReplicaSet", text);
            status::set(&mut status, found);
            self.write_status(deployment, status).await?;
        }
        Ok(())
    }

    async fn create_set(&self, deployment: &mut Deployment, sets: &mut Sets, next: i64) -> Result<(), Error> {
        let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
        let wanted_set = new_set(deployment, &sets.old, next);
        let name = wanted_set.metadata.name.clone().unwrap_or_default();
        let api = self.ctx.api::<ReplicaSet>(&namespace);
        let mut existed = false;
        let made = match api.create(&PostParams::default(), &wanted_set).await {
            Ok(made) => made,
            Err(error) if kedge_client::is_already_exists(&error) => {
                existed = true;
                let found = api.get(&name).await?;
                let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
                let template = found.spec.as_ref().and_then(|spec| spec.template.as_ref());
                let ours = is_controlled_by(&found.metadata, uid)
                    && template.is_some_and(|t| {
                        deployment.spec.as_ref().is_some_and(|spec| equal_ignoring_hash(t, &spec.template))
                    });
                if !ours {
                    // Another template has the same hash: count the collision, so the next name differs.
                    let mut status = deployment.status.clone().unwrap_or_default();
                    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                    self.write_status(deployment, status).await?;
                    return Err(error.into());
                }
                found
            }
            Err(error) if namespace_is_terminating(&error) => return Err(error.into()),
            Err(error) => {
                if status::deadline(deployment).is_some() {
                    let text = format!("Failed to create new replica set \"{name}\": {}", message(&error));
                    let failed =
                        status::condition(status::PROGRESSING, "False", "ReplicaSetCreateError", text);
                    self.write_condition(deployment, failed).await?;
                }
                return Err(error.into());
            }
        };
        if !existed && size(&made) > 0 {
            let text = format!("Scaled up replica set {name} from 0 to {}", size(&made));
            self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", text);
        }
        self.set_revision(deployment, revision::revision(&made.metadata)).await?;
        if !existed && status::deadline(deployment).is_some() {
            let text = format!("Created new replica set \"{name}\"");
            let created = status::condition(status::PROGRESSING, "True", "NewReplicaSetCreated", text);
            self.write_condition(deployment, created).await?;
        }
        sets.new = Some(made);
        Ok(())
    }

    async fn write_condition(
        &self,
        deployment: &mut Deployment,
        condition: DeploymentCondition,
    ) -> Result<(), Error> {
        let mut status = deployment.status.clone().unwrap_or_default();
        if status::set(&mut status, condition) {
            self.write_status(deployment, status).await?;
        }
        Ok(())
    }

    /// Upstream writes this annotation through the status; a patch of the object itself does not
    /// depend on what a server lets through there.
    async fn set_revision(&self, deployment: &mut Deployment, revision: i64) -> Result<(), Error> {
        let revision = revision.to_string();
        let old = deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION_ANNOTATION));
        if old == Some(&revision) {
            return Ok(());
        }
        let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let patch = json!({ "metadata": {
            "uid": deployment.metadata.uid, "annotations": { REVISION_ANNOTATION: revision }
        } });
        let api = self.ctx.api::<Deployment>(&namespace);
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        if patched.metadata.generation != deployment.metadata.generation {
            // The user changed it meanwhile: start over with what is asked for now.
            self.queue.add(kedge_client::ObjectKey::new(namespace, name));
        }
        deployment.metadata.annotations = patched.metadata.annotations;
        deployment.metadata.resource_version = patched.metadata.resource_version;
        Ok(())
    }

    async fn update_set(&self, set: &ReplicaSet) -> Result<ReplicaSet, Error> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let name = set.metadata.name.as_deref().unwrap_or_default();
        Ok(self.ctx.api::<ReplicaSet>(namespace).replace(name, &PostParams::default(), set).await?)
    }

    /// Give the set another size and note for which wish it got it. Whether the size changed.
    async fn resize(&self, deployment: &Deployment, set: &mut ReplicaSet, to: i32) -> Result<bool, Error> {
        let from = size(set);
        let mut changed = set.clone();
        let most = wanted(deployment) + max_surge(deployment);
        let noted = revision::set_replicas(&mut changed.metadata, wanted(deployment), most);
        if from == to && !noted {
            return Ok(false);
        }
        if let Some(spec) = &mut changed.spec {
            spec.replicas = Some(to);
        }
        *set = self.update_set(&changed).await?;
        if from == to {
            return Ok(false);
        }
        let direction = if from < to { "up" } else { "down" };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let text = format!("Scaled {direction} replica set {name} from {from} to {to}");
        self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", text);
        Ok(true)
    }

    /// The number of replicas changed, or the Deployment is paused: no rollout, only sizes.
    pub(super) async fn scale(&self, deployment: &Deployment, sets: &mut Sets) -> Result<(), Error> {
        let wanted = wanted(deployment);
        let active = sets.old.iter().chain(&sets.new).filter(|set| size(set) > 0).count();
        if active <= 1 {
            // One set only: the active one, else the new one, else the latest.
            let only = match sets.old.iter().position(|set| size(set) > 0) {
                Some(position) => sets.old.get_mut(position),
                None if sets.new.is_some() => sets.new.as_mut(),
                None => sets.old.last_mut(),
            };
            if let Some(only) = only {
                self.resize(deployment, only, wanted).await?;
            }
            return Ok(());
        }
        if math::is_saturated(deployment, sets.new.as_ref()) {
            for set in sets.old.iter_mut().filter(|set| size(set) > 0) {
                self.resize(deployment, set, 0).await?;
            }
            return Ok(());
        }
        if is_rolling(deployment) {
            let mut active: Vec<&mut ReplicaSet> =
                sets.old.iter_mut().chain(&mut sets.new).filter(|set| size(set) > 0).collect();
            let copies: Vec<ReplicaSet> = active.iter().map(|set| (**set).clone()).collect();
            let sizes = math::proportional(deployment, &copies);
            for (set, to) in active.iter_mut().zip(sizes) {
                self.resize(deployment, set, to).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn roll(&self, deployment: &mut Deployment, sets: &mut Sets) -> Result<(), Error> {
        self.sync_revision(deployment, sets, true).await?;
        let Some(new) = &mut sets.new else { return Ok(()) };
        // First up with the new set ...
        let total = sum(&sets.old, size) + size(new);
        let to = match size(new).cmp(&wanted(deployment)) {
            std::cmp::Ordering::Equal => size(new),
            std::cmp::Ordering::Greater => wanted(deployment),
            std::cmp::Ordering::Less => math::new_set_size(deployment, total, size(new)),
        };
        if to != size(new) && self.resize(deployment, new, to).await? {
            return Ok(());
        }
        // ... then down with the old ones: those that do not work first.
        let max = math::max_scaled_down(deployment, total, new);
        let mut scaled = false;
        if sum(&sets.old, size) > 0 && max > 0 {
            let available = sum(&sets.old, math::available) + math::available(new);
            let healthy = math::without_unhealthy(&sets.old, max);
            let sizes = math::scaled_down(deployment, &healthy, available);
            for (set, to) in sets.old.iter_mut().zip(sizes) {
                if size(set) != to {
                    scaled |= self.resize(deployment, set, to).await?;
                }
            }
        }
        let complete = deployment.status.as_ref().is_some_and(|s| status::is_complete(deployment, s));
        if !scaled && complete {
            self.clean_up(deployment, &sets.old).await?;
        }
        Ok(())
    }

    pub(super) async fn recreate(&self, deployment: &mut Deployment, sets: &mut Sets) -> Result<(), Error> {
        self.sync_revision(deployment, sets, false).await?;
        let mut scaled = false;
        for set in sets.old.iter_mut().filter(|set| size(set) > 0) {
            scaled |= self.resize(deployment, set, 0).await?;
        }
        if scaled || self.old_pods_remain(deployment, &sets.old) {
            return Ok(());
        }
        if sets.new.is_none() {
            self.sync_revision(deployment, sets, true).await?;
        }
        if let Some(new) = &mut sets.new
            && size(new) != wanted(deployment)
        {
            self.resize(deployment, new, wanted(deployment)).await?;
        }
        let complete = deployment.status.as_ref().is_some_and(|s| status::is_complete(deployment, s));
        if complete {
            self.clean_up(deployment, &sets.old).await?;
        }
        Ok(())
    }

    /// Whether a pod of an old set may still run, one that is being deleted included.
    fn old_pods_remain(&self, deployment: &Deployment, old: &[ReplicaSet]) -> bool {
        if sum(old, |set| set.status.as_ref().map_or(0, |status| status.replicas)) > 0 {
            return true;
        }
        let owners: HashSet<&str> = old.iter().filter_map(|set| set.metadata.uid.as_deref()).collect();
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        self.pods.list_namespace(namespace).iter().any(|pod| {
            !crate::pods::is_finished(pod)
                && controller_of(&pod.metadata).is_some_and(|owner| owners.contains(owner.uid.as_str()))
        })
    }

    /// Delete the oldest empty sets above `revisionHistoryLimit`.
    pub(super) async fn clean_up(&self, deployment: &Deployment, old: &[ReplicaSet]) -> Result<(), Error> {
        let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|&limit| limit != i32::MAX) else { return Ok(()) };
        for set in expendable(old, usize::try_from(limit).unwrap_or(0)) {
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let params = DeleteParams::default()
                .preconditions(Preconditions { uid: set.metadata.uid.clone(), resource_version: None });
            ignore_not_found(self.ctx.api::<ReplicaSet>(namespace).delete(name, &params).await)?;
        }
        Ok(())
    }
}

/// The sets to delete, lowest revision first.
fn expendable(old: &[ReplicaSet], limit: usize) -> Vec<&ReplicaSet> {
    let mut alive: Vec<&ReplicaSet> =
        old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    if alive.len() <= limit {
        return Vec::new();
    }
    alive.order_by_key(|set| revision::revision(&set.metadata));
    alive.truncate(alive.len() - limit);
    alive.retain(|set| {
        let status = set.status.clone().unwrap_or_default();
        status.replicas == 0
            && size(set) == 0
            && set.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0)
    });
    alive
}

/// The set for the Deployment's template.
fn new_set(deployment: &Deployment, old: &[ReplicaSet], revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash(&spec.template, collisions);
    let mut template: PodTemplateSpec = spec.template;
    let template_meta = template.metadata.get_or_insert_default();
    template_meta.labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = template_meta.labels.clone();
    let mut selector: LabelSelector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let mut meta = ObjectMeta {
        name: Some(format!("{name}-{hash}")),
        namespace: deployment.metadata.namespace.clone(),
        labels,
        owner_references: Some(vec![owner_reference(deployment)]),
        ..ObjectMeta::default()
    };
    revision::annotate(&deployment.metadata, &mut meta, revision);
    let most = wanted(deployment) + max_surge(deployment);
    revision::set_replicas(&mut meta, wanted(deployment), most);
    ReplicaSet {
        metadata: meta,
        spec: Some(ReplicaSetSpec {
            replicas: Some(math::new_set_size(deployment, sum(old, size), 0)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetStatus};

    #[test]
    fn a_new_set_is_marked_with_the_hash() {
        let mut deployment = Deployment {
            spec: Some(DeploymentSpec { replicas: Some(2), ..DeploymentSpec::default() }),
            ..Deployment::default()
        };
        deployment.metadata.name = Some("web".into());
        deployment.metadata.uid = Some("u".into());
        let set = new_set(&deployment, &[], 1);
        let name = set.metadata.name.clone().expect("named");
        let hash = name.strip_prefix("web-").expect("the Deployment's name first");
        let spec = set.spec.as_ref().expect("there");
        let labels =
            spec.template.as_ref().and_then(|t| t.metadata.as_ref()?.labels.clone()).expect("labels");
        assert_eq!(labels.get(HASH_LABEL).map(String::as_str), Some(hash));
        assert_eq!(spec.selector.match_labels, Some(labels));
        assert_eq!(spec.replicas, Some(2));
        assert_eq!(revision::revision(&set.metadata), 1);
        assert!(is_controlled_by(&set.metadata, "u"));
    }

    #[test]
    fn history_keeps_the_latest_and_what_is_in_use() {
        let set = |revision: i64, replicas: i32| {
            let mut set = ReplicaSet {
                spec: Some(ReplicaSetSpec { replicas: Some(replicas), ..ReplicaSetSpec::default() }),
                status: Some(ReplicaSetStatus { replicas, ..ReplicaSetStatus::default() }),
                ..ReplicaSet::default()
            };
            set.metadata.annotations = Some([(REVISION_ANNOTATION.to_owned(), revision.to_string())].into());
            set
        };
        let old = [set(4, 0), set(1, 0), set(2, 1), set(3, 0)];
        let gone = |limit| -> Vec<i64> {
            expendable(&old, limit).into_iter().map(|set| revision::revision(&set.metadata)).collect()
        };
        assert_eq!(gone(10), [0i64; 0]);
        assert_eq!(gone(2), [1]);
        assert_eq!(gone(0), [1, 3, 4]);
    }
}
