//! Writes planned slices, and waits until its own writes are back in the cache before it plans again.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kedge_client::{Change, Error, Informer, ObjectKey};
use kube::api::{DeleteParams, PostParams, Preconditions};
use parking_lot::Mutex;

use super::build::{Group, TRIGGER_ANNOTATION};
use super::plan::plan;
use super::{MANAGED_BY_LABEL, SERVICE_LABEL};
use crate::context::{Context, ignore_not_found, namespace_is_terminating};

/// After this time the cache must have missed a write.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    ctx: Context,
    manager: &'static str,
    pub(super) slices: Informer<EndpointSlice>,
    /// By Service: the slices written, at which version, and when.
    written: Mutex<HashMap<ObjectKey, HashMap<String, (u64, Instant)>>>,
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl Writer {
    pub(super) fn new(ctx: &Context, manager: &'static str) -> Self {
        Self {
            ctx: ctx.clone(),
            manager,
            slices: ctx.informers.informer::<EndpointSlice>(),
            written: Mutex::default(),
        }
    }

    /// The Service (or Endpoints) that a slice of ours belongs to.
    fn key_of(&self, slice: &EndpointSlice) -> Option<ObjectKey> {
        let labels = slice.metadata.labels.as_ref()?;
        let ours = labels.get(MANAGED_BY_LABEL).is_some_and(|manager| manager == self.manager);
        let service = labels.get(SERVICE_LABEL).filter(|_| ours)?;
        Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), service.clone()))
    }

    /// A slice changed in the cache: whose endpoints to look at, if the change was not our own.
    pub(super) fn seen(&self, change: &Change<EndpointSlice>) -> Option<ObjectKey> {
        let slice = change.object();
        let key = self.key_of(slice).or_else(|| self.key_of(change.old.as_deref()?))?;
        let name = slice.metadata.name.clone().unwrap_or_default();
        let mut written = self.written.lock();
        let Some(ours) = written.get_mut(&key) else { return Some(key) };
        if change.new.is_none() {
            ours.remove(&name);
        }
        let own = ours.get(&name).is_some_and(|(wrote, _)| *wrote == version(&slice.metadata));
        (!own).then_some(key)
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.written.lock().remove(key);
    }

    fn is_behind(&self, key: &ObjectKey) -> bool {
        let written = self.written.lock();
        written.get(key).is_some_and(|ours| {
            ours.iter().any(|(name, (wrote, at))| {
                at.elapsed() < PATIENCE
                    && self
                        .slices
                        .get(&key.namespace, name)
                        .is_none_or(|slice| version(&slice.metadata) < *wrote)
            })
        })
    }

    fn note(&self, key: &ObjectKey, slice: &EndpointSlice) {
        let name = slice.metadata.name.clone().unwrap_or_default();
        let entry = (version(&slice.metadata), Instant::now());
        self.written.lock().entry(key.clone()).or_default().insert(name, entry);
    }

    fn un_note(&self, key: &ObjectKey, slice: &EndpointSlice) {
        if let Some(ours) = self.written.lock().get_mut(key) {
            ours.remove(slice.metadata.name.as_deref().unwrap_or_default());
        }
    }

    /// Make the slices of `key` hold exactly `groups`.
    pub(super) async fn sync(
        &self,
        key: &ObjectKey,
        owner: OwnerReference,
        mut labels: BTreeMap<String, String>,
        trigger: Option<Timestamp>,
        groups: &[Group],
    ) -> Result<Option<Duration>, Error> {
        if self.is_behind(key) {
            return Ok(Some(Duration::from_millis(50)));
        }
        labels.insert(SERVICE_LABEL.into(), key.name.clone());
        labels.insert(MANAGED_BY_LABEL.into(), self.manager.into());
        let mut existing = self.slices.list_namespace(&key.namespace);
        existing.retain(|slice| self.key_of(slice).as_ref() == Some(key));
        let mut plan = plan(groups, existing);
        for slice in std::mem::take(&mut plan.keep) {
            if slice.metadata.labels.as_ref() != Some(&labels) {
                let endpoints = slice.endpoints.clone().unwrap_or_default();
                plan.update.push((slice, endpoints));
            }
        }
        let api = self.ctx.api::<EndpointSlice>(&key.namespace);
        for (index, endpoints) in plan.create {
            let Some(group) = groups.get(index) else { continue };
            let slice = EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", key.name)),
                    namespace: Some(key.namespace.clone()),
                    labels: Some(labels.clone()),
                    annotations: trigger.map(|at| [(TRIGGER_ANNOTATION.to_owned(), at.to_string())].into()),
                    owner_references: Some(vec![owner.clone()]),
                    ..ObjectMeta::default()
                },
                address_type: group.address_type.to_owned(),
                endpoints: Some(endpoints),
                ports: Some(group.ports.clone()),
            };
            match api.create(&PostParams::default(), &slice).await {
                Ok(made) => self.note(key, &made),
                Err(error) if namespace_is_terminating(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        for (slice, endpoints) in plan.update {
            let mut changed = (*slice).clone();
            changed.endpoints = Some(endpoints);
            changed.metadata.labels = Some(labels.clone());
            if let Some(at) = trigger {
                let annotations = changed.metadata.annotations.get_or_insert_default();
                annotations.insert(TRIGGER_ANNOTATION.into(), at.to_string());
            }
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let updated = api.replace(name, &PostParams::default(), &changed).await?;
            self.note(key, &updated);
        }
        for slice in plan.delete {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let params = DeleteParams::default()
                .preconditions(Preconditions { uid: slice.metadata.uid.clone(), resource_version: None });
            ignore_not_found(api.delete(name, &params).await)?;
            self.un_note(key, &slice);
        }
        Ok(None)
    }
}
