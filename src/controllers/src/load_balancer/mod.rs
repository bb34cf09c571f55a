//! Services of type LoadBalancer on machines of one's own, while the addon `load-balancer` is enabled. With a
//! pool, a Service gets an address of it, and one node at a time holds that address (as MetalLB in layer 2
//! mode); without, it answers at the nodes' own addresses (as k3s's ServiceLB). Events, the finalizer and which
//! nodes count follow upstream's service controller (k8s.io/cloud-provider/controllers/service).
//!
//! The addon's ConfigMap says what is wanted. Nodes are spoken with by annotations of their Node objects
//! ([`kedge_client::load_balancer`]). A Service that is taken care of here carries the annotation [`MARK`]:
//! others, of a cloud's controller or of MetalLB, are never touched.

mod allocate;
mod holders;
mod nodes;
mod ports;
mod reach;
mod service;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::{Change, Error, EventType, Informer, ObjectKey, Queue, Recorder, reference};
use parking_lot::Mutex;

use self::reach::Reach;
use self::settings::State;
use crate::context::Context;

/// `spec.loadBalancerClass` of Services that are meant for this controller; those without a class are, too.
const CLASS: &str = "kedge.dev/load-balancer";
/// A Service's annotation: in which mode it is taken care of here.
const MARK: &str = "kedge.dev/load-balancer-mode";
/// Upstream's, so that tools know what it is about.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

#[derive(Clone, PartialEq, Eq, Hash)]
enum Item {
    Service(ObjectKey),
    /// What the nodes are asked for.
    Nodes,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Nodes => f.write_str("nodes"),
        }
    }
}

struct Controller {
    ctx: Context,
    settings: Informer<ConfigMap>,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    pods: Informer<Pod>,
    recorder: Recorder,
    queue: Queue<Item>,
    /// Problems that were told already, so that not every look at a Service tells them again.
    told: Mutex<BTreeMap<ObjectKey, String>>,
    /// Whether the nodes that hold addresses are there.
    reach: Reach,
}

pub(crate) fn start(ctx: &Context) {
    let queue: Queue<Item> = Queue::new();
    let again = queue.clone();
    let this = Arc::new(Controller {
        ctx: ctx.clone(),
        settings: ctx.informers.informer_with_fields::<ConfigMap>(&settings::selector()),
        services: ctx.informers.informer::<Service>(),
        nodes: ctx.informers.informer::<Node>(),
        slices: ctx.informers.informer::<EndpointSlice>(),
        pods: ctx.informers.informer::<Pod>(),
        recorder: ctx.recorder("service-controller"),
        queue: queue.clone(),
        told: Mutex::default(),
        reach: Reach::new(&ctx.tasks, move || again.add(Item::Nodes)),
    });
    let waker = this.clone();
    ctx.on_change(&this.settings, move |_| waker.wake_all());
    let waker = this.clone();
    ctx.on_change(&this.services, move |change| waker.service_changed(change));
    let waker = this.clone();
    ctx.on_change(&this.nodes, move |change| {
        if nodes::Facts::of(change.old.as_deref()) != nodes::Facts::of(change.new.as_deref()) {
            waker.wake_all();
        }
    });
    let waker = this.clone();
    ctx.on_change(&this.slices, move |change| waker.slice_changed(change));
    let waker = this.clone();
    ctx.on_change(&this.pods, move |change| {
        if ports::of_host(change.old.as_deref()) != ports::of_host(change.new.as_deref()) {
            waker.wake_all();
        }
    });
    let ready = this.clone();
    let synced = async move {
        ready.settings.synced().await;
        ready.services.synced().await;
        ready.nodes.synced().await;
        ready.slices.synced().await;
        ready.pods.synced().await;
        // What an addon that was disabled meanwhile has left is seen without any change.
        ready.wake_all();
    };
    // One worker: two Services never look for a free address at the same time.
    ctx.run("load-balancer", queue, 1, synced, move |item| {
        let this = this.clone();
        async move {
            match item {
                Item::Service(key) => this.reconcile(&key).await?,
                Item::Nodes => this.ask_nodes().await?,
            }
            Ok(None::<Duration>)
        }
    });
}

impl Controller {
    fn state(&self) -> State {
        settings::read(&self.settings)
    }

    /// Services that may want something, those first that were there first.
    fn balanced(&self) -> Vec<Arc<Service>> {
        let mut services = self.services.list();
        services.retain(|service| is_meant(service) || mark(service).is_some());
        services.sort_by_key(|service| rank(service));
        services
    }

    fn wake_all(&self) {
        for service in self.balanced() {
            self.queue.add(Item::Service(ObjectKey::of(&*service)));
        }
        self.queue.add(Item::Nodes);
    }

    fn service_changed(&self, change: &Change<Service>) {
        let concerns = |service: &Service| is_meant(service) || mark(service).is_some();
        if ![&change.old, &change.new].into_iter().flatten().any(|service| concerns(service)) {
            return;
        }
        self.queue.add(Item::Service(change.key()));
        // What one Service gives up, another may wait for.
        if change.old.as_deref().map(claims) != change.new.as_deref().map(claims) {
            self.wake_all();
        }
    }

    /// Where endpoints are matters to Services that want to be answered there only.
    fn slice_changed(&self, change: &Change<EndpointSlice>) {
        let slice = change.object();
        let labels = slice.metadata.labels.as_ref();
        let Some(name) = labels.and_then(|labels| labels.get(nodes::SERVICE_NAME)) else { return };
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        let service = self.services.get(namespace, name);
        if service.is_some_and(|service| is_meant(&service) && nodes::is_local(&service)) {
            self.queue.add(Item::Service(ObjectKey::new(namespace, name)));
            self.queue.add(Item::Nodes);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(service) = self.services.get_key(key) else {
            self.told.lock().remove(key);
            return Ok(());
        };
        match self.state() {
            State::On(mode) if is_meant(&service) => self.ensure(&service, &mode).await,
            // What it was before stays until the settings can be read.
            State::Broken(text) if is_meant(&service) => {
                self.refuse(&service, &text);
                Ok(())
            }
            _ if mark(&service).is_some() => self.release(&service).await,
            _ => Ok(()),
        }
    }

    /// A problem that waits for somebody to change something: an event, once.
    fn refuse(&self, service: &Service, text: &str) {
        let text = format!("Error syncing load balancer: failed to ensure load balancer: {text}");
        self.tell(service, EventType::Warning, "SyncLoadBalancerFailed", text);
    }

    /// An event, unless it is the one that was told last.
    fn tell(&self, service: &Service, kind: EventType, reason: &str, text: String) {
        let before = self.told.lock().insert(ObjectKey::of(service), text.clone());
        if before.as_ref() != Some(&text) {
            self.recorder.event(reference(service), kind, reason, text);
        }
    }

    fn event(&self, service: &Service, reason: &str, text: impl Into<String>) {
        self.recorder.event(reference(service), EventType::Normal, reason, text.into());
    }
}

/// Whether it wants a load balancer, and from this controller.
fn is_meant(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    service.metadata.deletion_timestamp.is_none()
        && spec.type_.as_deref() == Some("LoadBalancer")
        && class.is_none_or(|class| class == CLASS)
}

/// What of a Service matters to the others.
fn claims(service: &Service) -> impl PartialEq + use<> {
    let spec = service.spec.as_ref();
    let spec = spec.map(|spec| (spec.ports.clone(), spec.external_traffic_policy.clone()));
    (is_meant(service), mark(service).map(str::to_owned), ingress(service), spec)
}

fn mark(service: &Service) -> Option<&str> {
    service.metadata.annotations.as_ref()?.get(MARK).map(String::as_str)
}

/// The addresses that its status has.
fn ingress(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let all = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    all.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

/// Who comes first when two want the same: who has something already, then who is older.
fn rank(service: &Service) -> (bool, Option<jiff::Timestamp>, ObjectKey) {
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (ingress(service).is_empty(), created, ObjectKey::of(service))
}

/// The IP families that it has, the main one first: whether each is IPv4.
fn families(spec: &ServiceSpec) -> Vec<bool> {
    let named: Vec<bool> = spec.ip_families.iter().flatten().map(|family| family == "IPv4").collect();
    if !named.is_empty() {
        return named;
    }
    let own = spec.cluster_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    vec![own.is_none_or(|address| address.is_ipv4())]
}
