//! One watch on the metadata of every kind that can be deleted; new kinds are found by discovery.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kedge_base::{Chain, Tasks};
use kedge_client::{Event, Watch};
use kube::Resource as _;
use kube::api::DynamicObject;
use serde::Deserialize;

use super::Collector;
use super::graph::Uid;
use crate::discovery::{Served, discover};

/// Of an object only what says who owns it: every change of anything comes by here.
#[derive(Deserialize)]
#[serde(from = "Parts")]
struct Owned {
    metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    metadata: Meta,
}

/// The fields of [`ObjectMeta`] that the graph looks at.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    uid: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    finalizers: Option<Vec<String>>,
    deletion_timestamp: Option<Time>,
}

impl From<Parts> for Owned {
    fn from(Parts { metadata }: Parts) -> Self {
        let Meta { uid, namespace, name, owner_references, finalizers, deletion_timestamp } = metadata;
        let rest = ObjectMeta::default();
        Self {
            metadata: ObjectMeta {
                uid,
                namespace,
                name,
                owner_references,
                finalizers,
                deletion_timestamp,
                ..rest
            },
        }
    }
}

/// A running watch.
pub(super) struct Monitor {
    tasks: Tasks,
    resource: Arc<Served>,
    synced: Arc<AtomicBool>,
}

/// Events are many, short-lived and never own anything (upstream ignores them too).
fn is_watched(resource: &Served) -> bool {
    let is_event = resource.api.plural == "events" && matches!(&*resource.api.group, "" | "events.k8s.io");
    !is_event && ["delete", "list", "watch"].iter().all(|verb| resource.can(verb))
}

impl Collector {
    /// Keep one monitor for every kind that is served, for as long as it is.
    pub(super) async fn follow_discovery(self: Arc<Self>) {
        let mut backoff = kedge_base::Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            match discover(&self.ctx.client).await {
                Ok(found) => {
                    backoff.reset();
                    let partial = !found.failed.is_empty();
                    self.set_resources(found.resources, partial);
                    self.refresh.notified().await;
                    // Definitions come in bunches, and are served a moment after they are established.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "garbage collector cannot discover kinds");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// `partial`: some group did not answer; what is missing may still be there.
    fn set_resources(self: &Arc<Self>, resources: Vec<Served>, partial: bool) {
        let resources: Vec<Arc<Served>> = resources.into_iter().map(Arc::new).collect();
        *self.resources.lock() = resources.clone();
        let mut monitors = self.monitors.lock();
        let wanted: HashSet<_> =
            resources.iter().filter(|r| is_watched(r)).map(|resource| resource.api.clone()).collect();
        if !partial {
            let ended: Vec<_> = monitors.keys().filter(|api| !wanted.contains(*api)).cloned().collect();
            for api in ended {
                if let Some(monitor) = monitors.remove(&api) {
                    monitor.tasks.token().cancel();
                    let uids = self.graph.lock().of_resource(&monitor.resource);
                    for uid in uids {
                        self.unwatch(&uid);
                    }
                }
            }
        }
        for resource in resources.iter().filter(|resource| is_watched(resource)) {
            if monitors.contains_key(&resource.api) {
                continue;
            }
            let tasks = self.ctx.tasks.child("garbage");
            let synced = Arc::new(AtomicBool::new(false));
            let (this, watched, flag) = (self.clone(), resource.clone(), synced.clone());
            let name = format!("garbage {}.{}", resource.api.plural, resource.api.group);
            // Awaited through the controllers' own group, ended by the child's token.
            let token = tasks.token().clone();
            self.ctx.tasks.spawn_until_stopped(&name, async move {
                let _ = token.run_until_cancelled(this.follow(watched, flag)).await;
            });
            monitors.insert(resource.api.clone(), Monitor { tasks, resource: resource.clone(), synced });
        }
        drop(monitors);
        self.progress.notify_waiters();
    }

    async fn follow(self: Arc<Self>, resource: Arc<Served>, synced: Arc<AtomicBool>) {
        let path = DynamicObject::url_path(&resource.api, None);
        let mut events = Watch::<Owned>::new(self.ctx.client.clone(), path, "", "");
        let mut listed: HashSet<Uid> = HashSet::new();
        loop {
            match events.next().await {
                Event::Changed(object) => self.apply(&resource, &object.metadata),
                Event::Deleted(object) => self.forget(object.metadata.uid.as_deref().unwrap_or_default()),
                Event::Begin => listed.clear(),
                Event::Listed(object) => {
                    if let Some(uid) = object.metadata.uid.as_deref() {
                        listed.insert(uid.into());
                    }
                    self.apply(&resource, &object.metadata);
                }
                Event::Done => {
                    let known = self.graph.lock().of_resource(&resource);
                    for uid in known.iter().filter(|uid| !listed.contains(*uid)) {
                        self.forget(uid);
                    }
                    listed = HashSet::new();
                    synced.store(true, Ordering::Release);
                    self.progress.notify_waiters();
                }
            }
        }
    }

    fn apply(&self, resource: &Arc<Served>, metadata: &ObjectMeta) {
        let mut graph = self.graph.lock();
        let is_new = metadata.uid.as_deref().is_some_and(|uid| graph.get(uid).is_none());
        let work = graph.apply(resource, metadata);
        drop(graph);
        self.enqueue(work);
        if is_new {
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            self.tell(&resource.api.group, &resource.api.plural, namespace);
        }
    }

    /// Whether every kind has been listed once: before that, "nothing depends on it" is not known.
    pub(super) fn is_complete(&self) -> bool {
        let monitors = self.monitors.lock();
        !monitors.is_empty() && monitors.values().all(|monitor| monitor.synced.load(Ordering::Acquire))
    }

    /// Whether a resource has been listed; also one that is not served, once discovery has been.
    pub(super) fn is_listed(&self, group: &str, plural: &str) -> bool {
        let monitors = self.monitors.lock();
        let found = monitors.values().find(|monitor| {
            let api = &monitor.resource.api;
            api.group == group && api.plural == plural
        });
        match found {
            Some(monitor) => monitor.synced.load(Ordering::Acquire),
            None => !monitors.is_empty(),
        }
    }

    /// Returns when every kind has been listed, or after `patience`.
    pub(super) async fn all_synced(&self, patience: Duration) {
        let complete = async {
            loop {
                let progress = self.progress.notified();
                tokio::pin!(progress);
                progress.as_mut().enable();
                if self.is_complete() {
                    return;
                }
                progress.await;
            }
        };
        if tokio::time::timeout(patience, complete).await.is_err() {
            tracing::warn!("garbage collector starts although some kinds could not be listed yet");
        } else {
            tracing::debug!(objects = self.graph.lock().len(), "garbage collector's graph is complete");
        }
    }
}
