//! The nodes' own addresses have each port once: who may have it, and on which nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServiceSpec};
use kedge_client::ObjectKey;
use kedge_client::load_balancer::Port;

use super::nodes::Facts;
use super::{families, is_meant, rank};
use crate::pods;

/// The ports that a Service answers on.
pub(super) fn of_service(spec: &ServiceSpec) -> BTreeSet<Port> {
    let all = spec.ports.iter().flatten();
    all.filter_map(|port| named(port.protocol.as_deref(), port.port)).collect()
}

fn named(protocol: Option<&str>, number: i32) -> Option<Port> {
    let number = u16::try_from(number).ok().filter(|number| *number != 0)?;
    Some(Port { protocol: protocol.unwrap_or("TCP").to_owned(), number })
}

/// The node of a pod that runs, and the ports that it has there.
pub(super) fn of_host(pod: Option<&Pod>) -> Option<(&str, BTreeSet<Port>)> {
    let pod = pod.filter(|pod| !pods::is_finished(pod) && !pods::node_name(pod).is_empty())?;
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let ports: BTreeSet<Port> =
        ports.filter_map(|port| named(port.protocol.as_deref(), port.host_port?)).collect();
    (!ports.is_empty()).then(|| (pods::node_name(pod), ports))
}

/// Which pods have which ports of each node.
pub(super) fn of_pods(pods: &[Arc<Pod>]) -> BTreeMap<String, BTreeMap<Port, ObjectKey>> {
    let mut found: BTreeMap<String, BTreeMap<Port, ObjectKey>> = BTreeMap::new();
    for pod in pods {
        let Some((node, ports)) = of_host(Some(pod)) else { continue };
        let node = found.entry(node.to_owned()).or_default();
        node.extend(ports.into_iter().map(|port| (port, ObjectKey::of(&**pod))));
    }
    found
}

/// What keeps a Service from the nodes' addresses altogether: another Service was there first, or has the port
/// as its node port.
pub(super) fn conflict(service: &Service, others: &[Arc<Service>]) -> Option<String> {
    let (key, spec) = (ObjectKey::of(service), service.spec.as_ref()?);
    let (ports, own_families, own_rank) = (of_service(spec), families(spec), rank(service));
    for other in others {
        let (other_key, Some(other_spec)) = (ObjectKey::of(&**other), other.spec.as_ref()) else { continue };
        if other_key == key || !families(other_spec).iter().any(|family| own_families.contains(family)) {
            continue;
        }
        if is_meant(other)
            && rank(other) < own_rank
            && let Some(port) = of_service(other_spec).intersection(&ports).next()
        {
            return Some(format!(
                "port {port} of the nodes' addresses belongs to the Service {other_key}; use another port, or a \
                 pool of addresses (kedge enable load-balancer:addresses=...)"
            ));
        }
        let node_ports = other_spec.ports.iter().flatten();
        let mut node_ports = node_ports.filter_map(|port| named(port.protocol.as_deref(), port.node_port?));
        if let Some(port) = node_ports.find(|port| ports.contains(port)) {
            return Some(format!(
                "port {port} is the node port of the Service {other_key}; use another port"
            ));
        }
    }
    None
}

/// Where a Service answers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) addresses: Vec<IpAddr>,
    /// Fit nodes that are left out, and why.
    pub(super) refused: Vec<String>,
    /// Fit nodes that have not said yet which ports are free.
    pub(super) is_waiting: bool,
}

/// The addresses of all `nodes` on which the ports are free.
pub(super) fn place<'a>(
    spec: &ServiceSpec,
    nodes: impl Iterator<Item = &'a Facts>,
    of_pods: &BTreeMap<String, BTreeMap<Port, ObjectKey>>,
) -> Place {
    let (ports, families) = (of_service(spec), families(spec));
    let mut place = Place::default();
    for node in nodes {
        let name = &node.name;
        let by_pod =
            of_pods.get(name).and_then(|pods| ports.iter().find_map(|port| Some((port, pods.get(port)?))));
        if let Some((port, pod)) = by_pod {
            place.refused.push(format!("{name}: the pod {pod} has its port {port}"));
        } else if let Some(port) = ports.intersection(&node.answer.taken).next() {
            place.refused.push(format!("{name}: a program of the machine, or Kedge, has port {port}"));
        } else if !ports.is_subset(&node.answer.free) {
            place.is_waiting = true;
        } else {
            let usable = node.addresses.iter().filter(|address| families.contains(&address.is_ipv4()));
            place.addresses.extend(usable);
        }
    }
    // The main family first, as in `spec.ipFamilies`.
    let order = |address: &IpAddr| families.iter().position(|family| *family == address.is_ipv4());
    place.addresses.sort_by_key(|address| (order(address), *address));
    place.addresses.dedup();
    place
}

#[cfg(test)]
mod tests {
    use kedge_client::load_balancer::{PortsAnswer, parse_ports};
    use serde_json::json;

    use super::*;

    fn service(name: &str, port: u16, created: &str, ingress: Option<&str>) -> Arc<Service> {
        let ingress: Vec<_> = ingress.iter().map(|ip| json!({ "ip": ip })).collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "namespace": "ns", "name": name, "creationTimestamp": created },
                "spec": { "type": "LoadBalancer", "ports": [{ "port": port, "nodePort": 30_000 + i32::from(port) }] },
                "status": { "loadBalancer": { "ingress": ingress } },
            }))
            .unwrap(),
        )
    }

    #[test]
    fn who_came_first_has_the_port() {
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let old = service("old", 80, early, None);
        let new = service("new", 80, late, None);
        let all = [old.clone(), new.clone()];
        assert_eq!(conflict(&old, &all), None);
        assert!(
            conflict(&new, &all)
                .unwrap()
                .contains("port TCP/80 of the nodes' addresses belongs to the Service ns/old")
        );
        // What is there already is not taken away, however old the other one is.
        let served = service("new", 80, late, Some("192.0.2.1"));
        let all = [old.clone(), served.clone()];
        assert_eq!(conflict(&served, &all), None);
        assert!(conflict(&old, &all).unwrap().contains("ns/new"));
        let odd = service("odd", 30_080, late, None);
        assert!(
            conflict(&odd, &[old, odd.clone()]).unwrap().contains("is the node port of the Service ns/old")
        );
    }

    #[test]
    fn nodes_with_the_port_in_use_are_left_out() {
        let node = |name: &str, address: &str, free: &str, taken: &str| Facts {
            name: name.into(),
            is_fit: true,
            addresses: vec![address.parse().unwrap(), "2001:db8::1".parse().unwrap()],
            answer: PortsAnswer { free: parse_ports(free), taken: parse_ports(taken) },
            ..Facts::default()
        };
        let nodes = [
            node("a", "192.0.2.3", "TCP/80,TCP/443", ""),
            node("b", "192.0.2.1", "TCP/80", ""),
            node("c", "192.0.2.2", "", "TCP/80"),
            node("d", "192.0.2.4", "", ""),
        ];
        let pods = BTreeMap::from([(
            "b".to_owned(),
            BTreeMap::from([("TCP/80".parse().unwrap(), ObjectKey::new("ns", "web-1"))]),
        )]);
        let service = service("x", 80, "2026-01-01T00:00:00Z", None);
        let found = place(service.spec.as_ref().unwrap(), nodes.iter(), &pods);
        assert_eq!(found.addresses, ["192.0.2.3".parse::<IpAddr>().unwrap()]);
        assert!(found.is_waiting);
        assert!(found.refused[0].contains("b: the pod ns/web-1 has its port TCP/80"), "{found:?}");
        assert!(found.refused[1].contains("c: a program of the machine"), "{found:?}");
    }
}
