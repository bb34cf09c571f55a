//! Start of the kubelet: the order in which its parts come up.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kedge_base::Tasks;
use kedge_client::{Change, Informers, Recorder};
use tokio::sync::{oneshot, watch};

use crate::allocation::Allocations;
use crate::cgroup::Cgroups;
use crate::core::{Core, Shared};
use crate::eviction::Pressure;
use crate::images::{Images, Layers};
use crate::metrics::Metrics;
use crate::node::Machine;
use crate::objects::Objects;
use crate::probe::Probes;
use crate::runtime::Runtime;
use crate::status_manager::Statuses;
use crate::volumes::Tokens;
use crate::worker::{Order, Workers};
use crate::{Config, Error, eviction, gc, node, pod, runtime_events, server, volumes};

/// How the kubelet is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The node's Ready condition is true.
    pub ready: bool,
    /// What went wrong last with the container runtime's events, if it still is.
    pub last_error: Option<String>,
    /// Why the node is not registered, or not heard of by the cluster: the API server does not answer.
    pub api: Option<String>,
    /// The container runtime does not answer or says that it is not ready.
    pub runtime: Option<String>,
    /// Network plugins that are missing.
    pub plugins: Option<String>,
}

/// A running kubelet; it ends with its tasks.
#[derive(Clone)]
pub struct Kubelet {
    core: Shared,
}

impl Kubelet {
    /// The summary, and every change of it.
    pub fn status(&self) -> watch::Receiver<Summary> {
        self.core.summary.subscribe()
    }
}

/// Adopts what runs, and starts all loops; the node is registered as soon as the API server answers, which
/// [`Summary::api`] tells.
///
/// # Errors
/// When the machine lacks something (cgroup controllers, the listen address).
pub async fn start(config: Config, informers: &Informers, tasks: &Tasks) -> Result<Kubelet, Error> {
    let tasks = tasks.child("kubelet");
    for dir in [&config.root_dir, &config.pods_dir(), &config.log_dir] {
        volumes::make_dir(dir, 0o750)?;
    }
    let cgroups = Cgroups::detect(&config.cgroup_root)?;
    let client = informers.client().clone();
    let runtime = Runtime::new(&config.containerd_socket)?;
    let layers = Layers::new(&runtime, &config.image_dir, &config.root_dir.join("layers"))?;
    let (mended, layers_mended) = oneshot::channel();
    tasks.spawn_until_stopped("unpacked layers", layers.follow(mended));
    let name = config.node_name.clone();
    let workers = Workers::default();
    let wake = workers.clone();
    let objects = Objects::new(client.clone(), &tasks, Arc::new(move |uid: &str| wake.wake(uid)));
    let recorder = Recorder::new(client.clone(), &tasks, "kubelet", &name);
    let core: Shared = Arc::new(Core {
        recorder,
        metrics: Metrics::new(),
        pods: informers.informer_with_fields::<Pod>(&format!("spec.nodeName={name}")),
        services: informers.informer::<Service>(),
        node: informers.informer_with_fields::<Node>(&format!("metadata.name={name}")),
        objects,
        images: Images::new(runtime.clone(), &config),
        statuses: Statuses::new(),
        probes: Probes::default(),
        cgroups,
        allocations: Allocations::load(&config.pods_dir()),
        workers,
        tokens: Tokens::default(),
        machine: Machine::look(),
        health: watch::Sender::new(None),
        summary: watch::Sender::new(Summary::default()),
        owners: parking_lot::Mutex::default(),
        pressure: parking_lot::Mutex::new(Pressure::new(&config.eviction)),
        looked: tokio::sync::Notify::new(),
        collector: tokio::sync::Mutex::default(),
        tasks: tasks.clone(),
        client,
        runtime,
        config,
    });
    server::listen(&core).await?;
    eviction::observe(&core);
    // Pods wait for the network only when it is known not to be there.
    node::look(&core).await;
    core.statuses.run(&tasks, &core.client, &core.pods);
    tasks.spawn_until_stopped("node status", node::report(core.clone()));
    tasks.spawn_until_stopped("evictions", eviction::run(core.clone()));
    tasks.spawn_until_stopped("node lease", node::heartbeat(core.clone()));
    tasks.spawn_until_stopped("runtime events", runtime_events::follow(core.clone()));
    let follower = core.clone();
    tasks.spawn_until_stopped("pods", async move {
        // Services are in the environment of containers: none may start without them.
        follower.services.synced().await;
        follower.node.synced().await;
        follower.pods.synced().await;
        // An error: this kubelet is stopping.
        let _ = layers_mended.await;
        let core = follower.clone();
        follower.pods.on_change(move |change| pod_changed(&core, change));
        gc::remove_orphans(&follower).await;
        gc::run(follower).await;
    });
    Ok(Kubelet { core })
}

fn pod_changed(core: &Shared, change: &Change<Pod>) {
    // A pod that was deleted and made again between two looks has another uid.
    let old = match (&change.old, &change.new) {
        (Some(old), Some(new)) if pod::uid(old) != pod::uid(new) => {
            core.workers.order(core, Order::of(old.clone(), true), true);
            None
        }
        (old, _) => old.as_ref(),
    };
    match (&change.new, old) {
        (Some(new), old) => {
            core.statuses.seen(new);
            let wake = old.is_none_or(|old| pod::needs_a_look(old, new));
            core.workers.order(core, Order::of(new.clone(), false), wake);
        }
        (None, Some(old)) => core.workers.order(core, Order::of(old.clone(), true), true),
        (None, None) => {}
    }
}
