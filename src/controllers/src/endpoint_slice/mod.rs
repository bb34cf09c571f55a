//! EndpointSlices of Services with a selector, and mirrors of Endpoints that users write
//! themselves (upstream pkg/controller/endpointslice and endpointslicemirroring).

pub(crate) mod build;
mod mirror;
mod plan;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kedge_client::{Change, Error, Informer, ObjectKey, Queue};

use self::writer::Writer;
use crate::adoption::owner_reference;
use crate::context::Context;

pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";

pub(crate) fn start(ctx: &Context) {
    start_services(ctx);
    mirror::start(ctx);
}

struct Controller {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    writer: Writer,
    queue: Queue<ObjectKey>,
}

fn start_services(ctx: &Context) {
    let controller = Arc::new(Controller {
        services: ctx.informers.informer::<Service>(),
        pods: ctx.informers.informer::<Pod>(),
        nodes: ctx.informers.informer::<Node>(),
        writer: Writer::new(ctx, MANAGER),
        queue: Queue::new(),
    });
    let queue = controller.queue.clone();
    ctx.on_change(&controller.services, move |change| queue.add(change.key()));
    let this = controller.clone();
    ctx.on_change(&controller.pods, move |change| {
        enqueue_services(&this.services, &this.queue, change);
    });
    let this = controller.clone();
    ctx.on_change(&controller.writer.slices, move |change| {
        if let Some(key) = this.writer.seen(change) {
            this.queue.add(key);
        }
    });
    let this = controller.clone();
    ctx.on_change(&controller.nodes, move |change| {
        let zone =
            |side: &Option<Arc<Node>>| side.as_ref().and_then(|node| build::zone(node).map(str::to_owned));
        if zone(&change.old) != zone(&change.new) {
            for service in this.services.list() {
                this.queue.add(ObjectKey::of(&*service));
            }
        }
    });
    let this = controller.clone();
    let synced = async move {
        this.services.synced().await;
        this.pods.synced().await;
        this.nodes.synced().await;
        this.writer.slices.synced().await;
    };
    ctx.run("endpoint-slice", controller.queue.clone(), 5, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

/// The Services that select the pod now or did before, when the change matters to them.
pub(crate) fn enqueue_services(services: &Informer<Service>, queue: &Queue<ObjectKey>, change: &Change<Pod>) {
    let key = change.key();
    let relabelled = match (&change.old, &change.new) {
        (Some(old), Some(new)) => old.metadata.labels != new.metadata.labels,
        _ => false,
    };
    if !relabelled && !build::matters(change.old.as_deref(), change.new.as_deref()) {
        return;
    }
    for service in services.list_namespace(&key.namespace) {
        let selects =
            |side: &Option<Arc<Pod>>| side.as_ref().is_some_and(|pod| build::selects(&service, pod));
        if selects(&change.old) || selects(&change.new) {
            queue.add(ObjectKey::of(&*service));
        }
    }
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(service) = self.services.get_key(key) else {
            // The slices go with their owner.
            self.writer.forget(key);
            return Ok(None);
        };
        if !build::has_endpoints(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| build::selects(&service, pod));
        let zone =
            |node: &str| self.nodes.get("", node).and_then(|node| build::zone(&node).map(str::to_owned));
        let groups = build::groups(&service, &pods, &zone);
        let owner = owner_reference(&*service);
        let trigger = build::trigger_time(&service.metadata, &pods);
        let labels = build::labels(&service, &[SERVICE_LABEL, MANAGED_BY_LABEL, build::HEADLESS_LABEL]);
        self.writer.sync(key, owner, labels, trigger, &groups).await
    }
}
