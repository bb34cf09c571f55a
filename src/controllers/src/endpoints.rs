//! Endpoints, the older form of EndpointSlices: one object a Service (upstream pkg/controller/endpoint).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_base::Order as _;
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, Recorder, reference};
use kube::api::{DeleteParams, PostParams};

use crate::context::{Context, ignore_not_found, message, namespace_is_terminating};
use crate::endpoint_slice::build::{self, TRIGGER_ANNOTATION};
use crate::endpoint_slice::enqueue_services;
use crate::pods;

const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY_ANNOTATION: &str = "endpoints.kubernetes.io/over-capacity";
/// One object holds no more addresses.
const MAX: usize = 1000;

struct Controller {
    ctx: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    recorder: Recorder,
}

pub(crate) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        ctx: ctx.clone(),
        services: ctx.informers.informer::<Service>(),
        pods: ctx.informers.informer::<Pod>(),
        endpoints: ctx.informers.informer::<Endpoints>(),
        recorder: ctx.recorder("endpoint-controller"),
    });
    let queue: Queue<ObjectKey> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&controller.services, move |change| adder.add(change.key()));
    let (adder, services) = (queue.clone(), controller.services.clone());
    ctx.on_change(&controller.pods, move |change| enqueue_services(&services, &adder, change));
    let adder = queue.clone();
    ctx.on_change(&controller.endpoints, move |change| adder.add(change.key()));
    let this = controller.clone();
    let synced = async move {
        this.services.synced().await;
        this.pods.synced().await;
        this.endpoints.synced().await;
    };
    ctx.run("endpoints", queue, 5, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let api = self.ctx.api::<Endpoints>(&key.namespace);
        let found = self.endpoints.get_key(key);
        let Some(service) = self.services.get_key(key) else {
            // Only those made here: Endpoints without a Service may be somebody's lock.
            let ours = found.is_some_and(|endpoints| {
                let labels = endpoints.metadata.labels.as_ref();
                labels.and_then(|labels| labels.get(MANAGED_BY_LABEL)).is_some_and(|by| by == MANAGER)
            });
            if ours {
                ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)?;
            }
            return Ok(None);
        };
        if !build::has_endpoints(&service) {
            return Ok(None);
        }
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| build::selects(&service, pod));
        let (subsets, truncated) = subsets(&service, &pods);
        let mut labels = build::labels(&service, &[build::HEADLESS_LABEL, MANAGED_BY_LABEL]);
        labels.insert(MANAGED_BY_LABEL.into(), MANAGER.into());
        let mut wanted = found.as_deref().cloned().unwrap_or_else(|| Endpoints {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                ..ObjectMeta::default()
            },
            subsets: None,
        });
        wanted.metadata.labels = Some(labels);
        wanted.subsets = (!subsets.is_empty()).then_some(subsets);
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        if truncated {
            annotations.insert(OVER_CAPACITY_ANNOTATION.into(), "truncated".into());
        } else {
            annotations.remove(OVER_CAPACITY_ANNOTATION);
        }
        let changed = found.as_deref().is_none_or(|found| {
            let plain = |meta: &ObjectMeta| meta.annotations.clone().unwrap_or_default();
            found.metadata.labels != wanted.metadata.labels
                || found.subsets.as_deref().unwrap_or_default()
                    != wanted.subsets.as_deref().unwrap_or_default()
                || plain(&found.metadata) != plain(&wanted.metadata)
        });
        if !changed {
            return Ok(None);
        }
        if let Some(at) = build::trigger_time(&service.metadata, &pods) {
            let annotations = wanted.metadata.annotations.get_or_insert_default();
            annotations.insert(TRIGGER_ANNOTATION.into(), at.to_string());
        }
        let result = match &found {
            Some(_) => api.replace(&key.name, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match result {
            Ok(_) => Ok(None),
            Err(error) if namespace_is_terminating(&error) => Ok(None),
            Err(error) if kedge_client::is_conflict(&error) => Err(error.into()),
            Err(error) => {
                let (what, verb) = match &found {
                    Some(_) => ("FailedToUpdateEndpoint", "update"),
                    None => ("FailedToCreateEndpoint", "create"),
                };
                let text = format!("Failed to {verb} endpoint {key}: {}", message(&error));
                self.recorder.event(reference(&wanted), EventType::Warning, what, text);
                Err(error.into())
            }
        }
    }
}

/// Addresses by their ports, ready and not; whether some had to be left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_all = spec.publish_not_ready_addresses.unwrap_or(false);
    let family = build::families(service).first().copied().unwrap_or("IPv4");
    let service_ports = spec.ports.unwrap_or_default();
    let mut found: Vec<(Vec<EndpointPort>, Vec<EndpointAddress>, Vec<EndpointAddress>)> = Vec::new();
    for pod in pods.iter().filter(|pod| build::is_eligible(pod, publish_all)) {
        let Some(ip) = build::address(pod, family) else { continue };
        let ports: Vec<EndpointPort> = service_ports
            .iter()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone().filter(|name| !name.is_empty()),
                    port: build::target_port(pod, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && !service_ports.is_empty() {
            continue;
        }
        let node = pods::node_name(pod);
        let address = EndpointAddress {
            ip: ip.to_owned(),
            node_name: (!node.is_empty()).then(|| node.to_owned()),
            hostname: build::hostname(service, pod),
            target_ref: Some(build::target_ref(pod)),
        };
        let known = found.iter().position(|(known, _, _)| *known == ports);
        let position = known.unwrap_or_else(|| {
            found.push((ports, Vec::new(), Vec::new()));
            found.len() - 1
        });
        if publish_all || pods::is_ready(pod) {
            found[position].1.push(address);
        } else {
            found[position].2.push(address);
        }
    }
    // Too many: ready ones first.
    let total: usize = found.iter().map(|(_, ready, not)| ready.len() + not.len()).sum();
    let mut room = MAX;
    for (_, ready, _) in &mut found {
        ready.truncate(room);
        room -= ready.len();
    }
    for (_, _, not_ready) in &mut found {
        not_ready.truncate(room);
        room -= not_ready.len();
    }
    let some = |mut addresses: Vec<EndpointAddress>| {
        addresses.order_by(|a, b| a.ip.cmp(&b.ip));
        (!addresses.is_empty()).then_some(addresses)
    };
    let subsets = found.into_iter().map(|(ports, ready, not_ready)| EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: (!ports.is_empty()).then_some(ports),
    });
    let subsets = subsets.filter(|s| s.addresses.is_some() || s.not_ready_addresses.is_some()).collect();
    (subsets, total > MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};

    fn with_ip(n: usize, ready: bool) -> Arc<Pod> {
        let mut pod = pod(&format!("p{n}"), "n1", "Running", ready.then_some(10));
        if let Some(status) = &mut pod.status {
            status.pod_ip = Some(format!("10.1.{}.{}", n / 250, n % 250 + 1));
        }
        Arc::new(pod)
    }

    #[test]
    fn ready_and_not_ready_addresses_up_to_the_limit() {
        let service = Service {
            spec: Some(ServiceSpec {
                cluster_ip: Some("10.96.0.1".into()),
                ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        let (few, truncated) = subsets(&service, &[with_ip(1, true), with_ip(2, false)]);
        assert!(!truncated);
        assert_eq!(few.len(), 1);
        assert_eq!(few[0].addresses.as_ref().map(Vec::len), Some(1));
        assert_eq!(few[0].not_ready_addresses.as_ref().map(Vec::len), Some(1));
        assert_eq!(few[0].ports.as_ref().map(|ports| ports[0].port), Some(80));
        let many: Vec<_> = (0..1100).map(|n| with_ip(n, n % 10 != 0)).collect();
        let (many, truncated) = subsets(&service, &many);
        assert!(truncated);
        assert_eq!(many[0].addresses.as_ref().map(Vec::len), Some(990));
        assert_eq!(many[0].not_ready_addresses.as_ref().map(Vec::len), Some(10));
    }
}
