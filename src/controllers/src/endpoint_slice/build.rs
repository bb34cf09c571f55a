//! From a Service and its pods to endpoints: which pods count, as what, and with which ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pods;

pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
pub(crate) const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Endpoints that share an address family and ports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// `IPv4` or `IPv6`.
    pub(crate) address_type: &'static str,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

pub(crate) fn zone(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get(ZONE_LABEL).map(String::as_str)
}

/// Whether endpoints are made for the Service at all: it selects pods and is no mere alias.
pub(crate) fn has_endpoints(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|s| !s.is_empty())
    })
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        .is_none_or(|ip| ip.is_empty() || ip == "None")
}

pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { return false };
    let labels = pod.metadata.labels.as_ref();
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

/// Whether a pod's change can change an endpoint.
pub(crate) fn matters(old: Option<&Pod>, new: Option<&Pod>) -> bool {
    let seen = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        (
            is_eligible(pod, true),
            pods::is_ready(pod),
            pod.metadata.deletion_timestamp.is_some(),
            addresses(pod).into_iter().map(str::to_owned).collect::<Vec<_>>(),
            pods::node_name(pod).to_owned(),
            spec.and_then(|spec| spec.hostname.clone()),
            spec.and_then(|spec| spec.subdomain.clone()),
        )
    };
    match (old, new) {
        (Some(old), Some(new)) => seen(old) != seen(new),
        (Some(one), None) | (None, Some(one)) => is_eligible(one, true),
        (None, None) => false,
    }
}

/// Not finished, and it has an address. Whether one that is being deleted counts is the caller's choice.
pub(crate) fn is_eligible(pod: &Pod, with_terminating: bool) -> bool {
    !pods::is_finished(pod)
        && !addresses(pod).is_empty()
        && (with_terminating || pod.metadata.deletion_timestamp.is_none())
}

fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if let Some(ip) = status.pod_ip.as_deref()
        && !all.contains(&ip)
    {
        all.insert(0, ip);
    }
    all.retain(|ip| !ip.is_empty());
    all
}

/// The pod's first address of a family.
pub(crate) fn address<'a>(pod: &'a Pod, address_type: &str) -> Option<&'a str> {
    addresses(pod).into_iter().find(|address| family(address) == address_type)
}

pub(crate) fn family(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

/// The Service's address families, the first one first.
pub(crate) fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let named: Vec<&'static str> = spec
        .and_then(|spec| spec.ip_families.as_deref())
        .unwrap_or_default()
        .iter()
        .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
        .collect();
    if named.is_empty() {
        // An object from before dual stack.
        vec![family(spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default())]
    } else {
        named
    }
}

/// The number behind a Service's port on this pod; `None` when the pod has no port of that name.
pub(crate) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    // Containers first, then those that start before them and stay.
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|p| p.container_port)
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let each = ports.iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    each.collect()
}

/// The pod's own name in DNS, when it asks for one below this Service.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain == service.metadata.name && spec.subdomain.is_some()).then(|| hostname.clone())
}

pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// All endpoints of a Service. Every family has at least one group, so that "no endpoints" can be
/// told from "not looked at yet".
pub(crate) fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let publish_all =
        service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let mut groups: Vec<Group> = Vec::new();
    for address_type in families(service) {
        let before = groups.len();
        for pod in pods.iter().filter(|pod| is_eligible(pod, true)) {
            let Some(address) = address(pod, address_type) else { continue };
            let serving = pods::is_ready(pod);
            let terminating = pod.metadata.deletion_timestamp.is_some();
            let node = pods::node_name(pod);
            let endpoint = Endpoint {
                addresses: vec![address.to_owned()],
                conditions: Some(EndpointConditions {
                    ready: Some(publish_all || (serving && !terminating)),
                    serving: Some(serving),
                    terminating: Some(terminating),
                }),
                hostname: hostname(service, pod),
                node_name: (!node.is_empty()).then(|| node.to_owned()),
                zone: zone(node),
                target_ref: Some(target_ref(pod)),
                ..Endpoint::default()
            };
            let ports = ports(service, pod);
            match groups[before..].iter_mut().find(|group| group.ports == ports) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group { address_type, ports, endpoints: vec![endpoint] }),
            }
        }
        if groups.len() == before {
            groups.push(Group { address_type, ports: Vec::new(), endpoints: Vec::new() });
        }
    }
    groups
}

/// The Service's labels without the reserved ones, and the mark of a headless Service.
pub(crate) fn labels(service: &Service, reserved: &[&str]) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|name, _| !reserved.contains(&name.as_str()));
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels
}

/// When the newest change happened that endpoints show: a pod became (not) ready, or the Service was made.
pub(crate) fn trigger_time(meta: &ObjectMeta, pods: &[Arc<Pod>]) -> Option<Timestamp> {
    let of_pods =
        pods.iter().filter_map(|pod| Some(pods::condition(pod, "Ready")?.last_transition_time.as_ref()?.0));
    of_pods.chain(meta.creation_timestamp.as_ref().map(|time| time.0)).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use k8s_openapi::api::core::v1::{Container, ContainerPort, ServiceSpec};

    fn service() -> Service {
        let mut service = Service {
            spec: Some(ServiceSpec {
                selector: Some([("app".to_owned(), "web".to_owned())].into()),
                cluster_ip: Some("10.96.0.7".into()),
                ports: Some(vec![ServicePort {
                    port: 80,
                    target_port: Some(IntOrString::String("http".into())),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        service.metadata.name = Some("web".into());
        service
    }

    fn web(uid: &str, ip: &str, port: i32, ready: bool) -> Pod {
        let mut pod = pod(uid, "n1", "Running", ready.then_some(10));
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        if let Some(status) = &mut pod.status {
            status.pod_ip = (!ip.is_empty()).then(|| ip.to_owned());
        }
        if let Some(spec) = &mut pod.spec {
            spec.containers = vec![Container {
                ports: Some(vec![ContainerPort {
                    name: Some("http".into()),
                    container_port: port,
                    ..ContainerPort::default()
                }]),
                ..Container::default()
            }];
        }
        pod
    }

    #[test]
    fn endpoints_say_ready_serving_and_terminating() {
        let mut going = web("c", "10.0.0.3", 8080, true);
        going.metadata.deletion_timestamp = Some(crate::time::now());
        let pods: Vec<Arc<Pod>> = [
            web("a", "10.0.0.1", 8080, true),
            web("b", "10.0.0.2", 8080, false),
            going,
            web("d", "", 8080, true),
            web("e", "10.0.0.5", 9090, true),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let zone = |node: &str| (node == "n1").then(|| "z".to_owned());
        let conditions = |service: &Service| -> Vec<(i32, bool, bool, bool)> {
            let groups = groups(service, &pods, &zone);
            let each = groups.iter().flat_map(|group| {
                group.endpoints.iter().map(|endpoint| {
                    let c = endpoint.conditions.clone().expect("set");
                    let flags = (
                        c.ready.unwrap_or(false),
                        c.serving.unwrap_or(false),
                        c.terminating.unwrap_or(false),
                    );
                    (group.ports[0].port.unwrap_or(0), flags.0, flags.1, flags.2)
                })
            });
            each.collect()
        };
        let mut service = service();
        assert_eq!(
            conditions(&service),
            [
                (8080, true, true, false),
                (8080, false, false, false),
                (8080, false, true, true),
                (9090, true, true, false)
            ]
        );
        if let Some(spec) = &mut service.spec {
            spec.publish_not_ready_addresses = Some(true);
        }
        assert!(conditions(&service).iter().all(|endpoint| endpoint.1));
        let first = &groups(&service, &pods, &zone)[0];
        assert_eq!(first.endpoints[0].zone.as_deref(), Some("z"));
        let empty = groups(&service, &[], &zone);
        assert_eq!(empty.len(), 1, "a placeholder");
        assert!(empty[0].endpoints.is_empty());
    }

    #[test]
    fn ports_resolve_by_number_and_name() {
        let pod = web("a", "10.0.0.1", 8080, true);
        let port = |target: Option<IntOrString>, protocol: &str| ServicePort {
            port: 80,
            target_port: target,
            protocol: Some(protocol.into()),
            ..ServicePort::default()
        };
        let name = |name: &str| Some(IntOrString::String(name.into()));
        for (port, expected) in [
            (port(None, "TCP"), Some(80)),
            (port(Some(IntOrString::Int(81)), "TCP"), Some(81)),
            (port(name("http"), "TCP"), Some(8080)),
            (port(name("http"), "UDP"), None),
            (port(name("other"), "TCP"), None),
        ] {
            assert_eq!(target_port(&pod, &port), expected, "{port:?}");
        }
    }

    #[test]
    fn only_changes_that_show_matter() {
        let pod = web("a", "10.0.0.1", 8080, true);
        let mut noted = pod.clone();
        noted.metadata.annotations = Some(BTreeMap::new());
        let unready = web("a", "10.0.0.1", 8080, false);
        let pending = web("a", "", 8080, false);
        assert!(!matters(Some(&pod), Some(&noted)));
        assert!(matters(Some(&pod), Some(&unready)));
        assert!(matters(Some(&pod), None) && !matters(None, Some(&pending)));
    }
}
