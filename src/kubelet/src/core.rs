//! What all parts of the kubelet share.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use kedge_base::Tasks;
use kedge_client::{EventType, Informer, Recorder};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::allocation::Allocations;
use crate::cgroup::Cgroups;
use crate::eviction::Pressure;
use crate::fields::NodeFacts;
use crate::images::{Collector, Images};
use crate::kubelet::Summary;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::probe::Probes;
use crate::runtime::{Health, Runtime};
use crate::status_manager::Statuses;
use crate::volumes::Tokens;
use crate::worker::Workers;
use crate::{Config, node, resources};

/// One per kubelet, behind an `Arc`.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) tasks: Tasks,
    pub(crate) client: kube::Client,
    pub(crate) runtime: Runtime,
    pub(crate) recorder: Recorder,
    /// What is counted for `/metrics`.
    pub(crate) metrics: Metrics,
    /// The pods bound to this node.
    pub(crate) pods: Informer<Pod>,
    pub(crate) services: Informer<Service>,
    /// This node's object only.
    pub(crate) node: Informer<Node>,
    pub(crate) objects: Objects,
    pub(crate) images: Images,
    pub(crate) statuses: Statuses,
    pub(crate) probes: Probes,
    pub(crate) cgroups: Cgroups,
    pub(crate) allocations: Allocations,
    pub(crate) workers: Workers,
    pub(crate) tokens: Tokens,
    pub(crate) machine: node::Machine,
    /// Whether the runtime and its network are ready; `None` before the first look.
    pub(crate) health: watch::Sender<Option<Health>>,
    pub(crate) summary: watch::Sender<Summary>,
    /// Container or sandbox id to the uid of its pod: runtime events name ids only.
    pub(crate) owners: Mutex<HashMap<String, String>>,
    /// What the node has too little of.
    pub(crate) pressure: Mutex<Pressure>,
    /// The machine was looked at: the node's status is due.
    pub(crate) looked: Notify,
    /// What is known of the images' use.
    pub(crate) collector: tokio::sync::Mutex<Collector>,
}

/// Everyone holds one of these.
pub(crate) type Shared = Arc<Core>;

impl Core {
    /// An event about the pod, or about one of its containers.
    pub(crate) fn event(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut regarding: ObjectReference = kedge_client::reference(pod);
        if let Some(name) = container {
            regarding.field_path = Some(field_path(pod, name));
        }
        self.recorder.event(regarding, kind, reason, message);
    }

    pub(crate) fn normal(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event(pod, container, EventType::Normal, reason, message);
    }

    pub(crate) fn warning(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event(pod, container, EventType::Warning, reason, message);
    }

    /// What Downward API fields may show.
    pub(crate) fn facts(&self, pod_ips: Vec<String>) -> NodeFacts {
        let node = self.node.get("", &self.config.node_name);
        let allocatable =
            node.and_then(|node| node.status.as_ref().and_then(|status| status.allocatable.clone()));
        let allocatable = allocatable.unwrap_or_default();
        let units = |name: &str| allocatable.get(name).map_or(0, resources::value);
        NodeFacts {
            host_ips: self.config.host_ips(),
            pod_ips,
            cpu_milli: allocatable.get("cpu").map_or(0, resources::milli),
            memory: units("memory"),
            storage: units("ephemeral-storage"),
        }
    }

    /// Remember whose container or sandbox it is.
    pub(crate) fn own(&self, id: &str, uid: &str) {
        self.owners.lock().insert(id.to_owned(), uid.to_owned());
    }

    /// A line in the kubelet's summary about something that went wrong, or that it is well again.
    pub(crate) fn report(&self, error: Option<String>) {
        self.summary.send_if_modified(|summary| {
            let changed = summary.last_error != error;
            summary.last_error = error;
            changed
        });
    }
}

fn field_path(pod: &Pod, name: &str) -> String {
    let has =
        |list: &[k8s_openapi::api::core::v1::Container]| list.iter().any(|container| container.name == name);
    let list = if has(crate::pod::containers(pod)) {
        "containers"
    } else if has(crate::pod::init_containers(pod)) {
        "initContainers"
    } else {
        "ephemeralContainers"
    };
    format!("spec.{list}{{{name}}}")
}
