//! The garbage collector: deletes what its owners left behind, in the background or before the
//! owner itself goes (upstream pkg/controller/garbagecollector). `graph` holds who depends on
//! whom, `monitor` keeps it up to date, `collect` acts on it.

mod census;
mod collect;
mod gone;
mod graph;
mod monitor;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kedge_client::{Queue, Recorder};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::census::Census;
use self::gone::{Gone, Owner};
use self::graph::{Graph, Work};
use crate::context::Context;
use crate::discovery::Served;

const WORKERS: usize = 10;
/// A kind that cannot be listed must not hold up the collection of the others for longer.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn start(ctx: &Context) -> Census {
    let collector = Arc::new(Collector {
        recorder: ctx.recorder("garbage-collector-controller"),
        ctx: ctx.clone(),
        graph: Mutex::default(),
        resources: Mutex::default(),
        gone: Mutex::default(),
        delete: Queue::new(),
        orphan: Queue::new(),
        refresh: Notify::new(),
        monitors: Mutex::default(),
        progress: Notify::new(),
        listeners: Mutex::default(),
    });
    let census = Census::of(collector.clone());
    let this = collector.clone();
    let definitions = ctx.informers.informer::<CustomResourceDefinition>();
    ctx.on_change(&definitions, move |change| {
        let generation = |side: &Option<Arc<CustomResourceDefinition>>| {
            side.as_ref().map(|d| (d.metadata.generation, established(d)))
        };
        if generation(&change.old) != generation(&change.new) {
            this.refresh.notify_one();
        }
    });
    let this = collector.clone();
    ctx.tasks.spawn_restarting("garbage monitors", move || {
        let this = this.clone();
        async move { this.follow_discovery().await }
    });
    let this = collector.clone();
    let synced = async move { this.all_synced(PATIENCE).await };
    let this = collector.clone();
    ctx.run("garbage-collector", collector.delete.clone(), WORKERS, synced, move |uid: String| {
        let this = this.clone();
        async move { this.consider(&uid).await }
    });
    let this = collector.clone();
    let synced = async move { this.all_synced(PATIENCE).await };
    ctx.run("garbage-collector orphans", collector.orphan.clone(), 2, synced, move |uid: String| {
        let this = collector.clone();
        async move { this.set_free(&uid).await }
    });
    census
}

fn established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default().iter().any(|c| c.type_ == "Established" && c.status == "True")
}

struct Collector {
    ctx: Context,
    recorder: Recorder,
    graph: Mutex<Graph>,
    /// Everything served, also what cannot be watched: to find an owner by its kind.
    resources: Mutex<Vec<Arc<Served>>>,
    gone: Mutex<Gone>,
    /// Uids. May have to be deleted, or may finish a foreground deletion.
    delete: Queue<String>,
    /// Uids. Set what depends on it free.
    orphan: Queue<String>,
    refresh: Notify,
    monitors: Mutex<HashMap<kube::discovery::ApiResource, monitor::Monitor>>,
    /// Notified when a monitor has its first list.
    progress: Notify,
    listeners: Mutex<Vec<census::Listener>>,
}

impl Collector {
    fn enqueue(&self, work: Work) {
        for uid in work.delete {
            self.delete.add(uid.to_string());
        }
        for uid in work.orphan {
            self.orphan.add(uid.to_string());
        }
    }

    /// The resource of an owner reference's kind.
    fn resource_of(&self, api_version: &str, kind: &str) -> Option<Arc<Served>> {
        let (group, _) = api_version.split_once('/').unwrap_or(("", api_version));
        let resources = self.resources.lock();
        resources.iter().find(|r| r.api.group == group && r.api.kind == kind).cloned()
    }

    /// The object is gone: forget it and look at what depended on it.
    fn forget(&self, uid: &str) {
        self.gone.lock().note(Owner::Seen(uid.to_owned()));
        self.unwatch(uid);
    }

    /// The object is not followed any more, and may still be there: its kind is served in another version, or by
    /// nobody for a while.
    fn unwatch(&self, uid: &str) {
        let mut graph = self.graph.lock();
        let known = graph.get(uid).map(|node| (node.resource.clone(), node.namespace.clone()));
        let work = graph.remove(uid);
        drop(graph);
        self.enqueue(work);
        if let Some((resource, namespace)) = known {
            self.tell(&resource.api.group, &resource.api.plural, &namespace);
        }
    }
}
