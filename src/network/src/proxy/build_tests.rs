//! Tests of `build`: what a Service and its slices become on one node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec,
    ServiceStatus, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};

use super::build::service_state;
use super::endpoints::Place;
use super::model::{Chain, ElementKey, Family, Map, Name, Protocol, ServiceState, Target};

fn place() -> Place {
    Place { node: "node1".into(), zone: "zone1".into() }
}

const VIP: &str = "10.96.0.7";

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort { name: Some(name.into()), port: number, ..ServicePort::default() }
}

fn service(change: impl FnOnce(&mut ServiceSpec)) -> Service {
    let mut spec = ServiceSpec {
        cluster_ip: Some(VIP.into()),
        cluster_ips: Some(vec![VIP.into()]),
        ports: Some(vec![port("http", 80)]),
        ..ServiceSpec::default()
    };
    change(&mut spec);
    let mut service = Service { spec: Some(spec), ..Service::default() };
    service.metadata.namespace = Some("ns".into());
    service.metadata.name = Some("web".into());
    service
}

/// node, address, ready, serving, terminating
type Spec = (&'static str, &'static str, bool, bool, bool);

fn slice(port_name: &str, number: i32, endpoints: &[Spec]) -> Arc<EndpointSlice> {
    let endpoint = |(node, address, ready, serving, terminating): &Spec| Endpoint {
        addresses: vec![(*address).to_owned()],
        node_name: Some((*node).to_owned()),
        conditions: Some(EndpointConditions {
            ready: Some(*ready),
            serving: Some(*serving),
            terminating: Some(*terminating),
        }),
        ..Endpoint::default()
    };
    Arc::new(EndpointSlice {
        address_type: "IPv4".into(),
        endpoints: Some(endpoints.iter().map(endpoint).collect()),
        ports: Some(vec![EndpointPort {
            name: Some(port_name.into()),
            port: Some(number),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        }]),
        ..EndpointSlice::default()
    })
}

const HERE: Spec = ("node1", "10.244.0.5", true, true, false);
const THERE: Spec = ("node2", "10.244.1.5", true, true, false);

fn state(service: &Service, endpoints: &[Spec]) -> ServiceState {
    service_state(&place(), service, &[slice("http", 8080, endpoints)])
}

fn element(map: Map, address: Option<&str>, port: u16) -> ElementKey {
    let address = address.map(|text| text.parse::<IpAddr>().unwrap());
    ElementKey { map, family: Family::V4, address, port: Some((Protocol::Tcp, port)), number: 0 }
}

/// The endpoints that packets which match the element can reach, for clients from elsewhere.
fn reached(state: &ServiceState, element: &ElementKey) -> BTreeSet<SocketAddr> {
    match state.elements.get(element) {
        Some(Target::Goto(chain)) => reached_from(state, chain),
        Some(Target::Balance(balancer)) => {
            let numbered = |number| ElementKey { map: Map::Endpoints, number, ..*element };
            let targets = (0..balancer.ways).map(|number| match state.elements[&numbered(number)] {
                Target::To(to) => to,
                other => panic!("{other:?}"),
            });
            targets.collect()
        }
        _ => BTreeSet::new(),
    }
}

fn reached_from(state: &ServiceState, name: &Name) -> BTreeSet<SocketAddr> {
    match &state.chains[name] {
        Chain::Endpoint { to, .. } => BTreeSet::from([*to]),
        Chain::Direct { targets, .. } => targets.iter().copied().collect(),
        Chain::Balance { choices, .. } => {
            choices.iter().flat_map(|choice| reached_from(state, &choice.endpoint)).collect()
        }
        Chain::ExternalCluster { service } => reached_from(state, service),
        Chain::ExternalLocal { local, .. } => {
            local.iter().flat_map(|local| reached_from(state, local)).collect()
        }
        Chain::Firewall { .. } => BTreeSet::new(),
    }
}

fn sockets(list: &[&str]) -> BTreeSet<SocketAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn which_endpoints_are_used() {
    let stopping: Spec = ("node1", "10.244.0.6", false, true, true);
    let stopped: Spec = ("node1", "10.244.0.7", false, false, true);
    let starting: Spec = ("node1", "10.244.0.8", false, false, false);
    let vip = element(Map::ServiceIps, Some(VIP), 80);
    for (name, endpoints, expected) in [
        ("ready ones", vec![HERE, THERE, stopping, starting], vec!["10.244.0.5:8080", "10.244.1.5:8080"]),
        ("none ready: those that stop but serve", vec![stopping, stopped, starting], vec!["10.244.0.6:8080"]),
        ("none at all", vec![stopped, starting], vec![]),
    ] {
        let state = state(&service(|_| ()), &endpoints);
        assert_eq!(reached(&state, &vip), sockets(&expected), "{name}");
        let refused = state.elements.get(&element(Map::NoEndpointServices, Some(VIP), 80));
        assert_eq!(refused == Some(&Target::Reject), expected.is_empty(), "{name}");
    }
}

#[test]
fn traffic_policies() {
    let node_port = |spec: &mut ServiceSpec| {
        spec.type_ = Some("NodePort".into());
        spec.ports.iter_mut().flatten().for_each(|port| port.node_port = Some(30080));
    };
    let vip = element(Map::ServiceIps, Some(VIP), 80);
    let nodes = element(Map::ServiceNodePorts, None, 30080);
    let both = ["10.244.0.5:8080", "10.244.1.5:8080"];

    let plain = state(&service(node_port), &[HERE, THERE]);
    assert_eq!((reached(&plain, &vip), reached(&plain, &nodes)), (sockets(&both), sockets(&both)));

    let external = service(|spec| {
        node_port(spec);
        spec.external_traffic_policy = Some("Local".into());
    });
    let local = state(&external, &[HERE, THERE]);
    assert_eq!((reached(&local, &vip), reached(&local, &nodes)), (sockets(&both), sockets(&both[..1])));
    let elsewhere = state(&external, &[THERE]);
    assert!(reached(&elsewhere, &nodes).is_empty());
    assert!(elsewhere.elements.contains_key(&nodes), "pods and this node still get through");
    let dropped = element(Map::NoEndpointNodePorts, None, 30080);
    assert_eq!(elsewhere.elements.get(&dropped), Some(&Target::Drop));
    let nowhere = state(&external, &[]);
    assert_eq!(nowhere.elements.get(&dropped), Some(&Target::Reject));
    assert!(nowhere.chains.is_empty());

    let internal = service(|spec| spec.internal_traffic_policy = Some("Local".into()));
    assert_eq!(reached(&state(&internal, &[HERE, THERE]), &vip), sockets(&both[..1]));
    let elsewhere = state(&internal, &[THERE]);
    assert_eq!(elsewhere.elements.get(&element(Map::NoEndpointServices, Some(VIP), 80)), Some(&Target::Drop));
}

#[test]
fn external_addresses_and_source_ranges() {
    let mut balanced = service(|spec| {
        spec.type_ = Some("LoadBalancer".into());
        spec.external_ips = Some(vec!["198.51.100.1".into(), "2001:db8::1".into(), "nonsense".into()]);
        spec.load_balancer_source_ranges = Some(vec!["203.0.113.0/24".into(), " 2001:db8::/32".into()]);
    });
    let ingress = |ip: &str, mode: Option<&str>| LoadBalancerIngress {
        ip: Some(ip.into()),
        ip_mode: mode.map(str::to_owned),
        ..LoadBalancerIngress::default()
    };
    balanced.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus {
            ingress: Some(vec![ingress("198.51.100.2", Some("VIP")), ingress("198.51.100.3", Some("Proxy"))]),
        }),
        ..ServiceStatus::default()
    });
    let state = state(&balanced, &[HERE]);
    let reaches = |address| !reached(&state, &element(Map::ServiceIps, Some(address), 80)).is_empty();
    assert_eq!(
        [reaches("198.51.100.1"), reaches("198.51.100.2"), reaches("198.51.100.3")],
        [true, true, false]
    );
    let Some(Target::Goto(firewall)) =
        state.elements.get(&element(Map::FirewallIps, Some("198.51.100.2"), 80))
    else {
        panic!("no firewall for the balancer's address: {:?}", state.elements);
    };
    let expected = ["198.51.100.2/32", "203.0.113.0/24"].map(|net| net.parse().unwrap()).to_vec();
    assert_eq!(state.chains[firewall], Chain::Firewall { sources: expected });
    assert!(!state.elements.contains_key(&element(Map::FirewallIps, Some("198.51.100.1"), 80)));
}

#[test]
fn session_affinity_has_a_set_per_endpoint() {
    let sticky = |seconds| {
        service(|spec| {
            spec.session_affinity = Some("ClientIP".into());
            spec.session_affinity_config =
                Some(SessionAffinityConfig { client_ip: Some(ClientIPConfig { timeout_seconds: seconds }) });
        })
    };
    let default = state(&sticky(None), &[HERE, THERE]);
    assert_eq!(default.affinity_sets.values().collect::<Vec<_>>(), [&(Family::V4, 10_800); 2]);
    let short = state(&sticky(Some(60)), &[HERE, THERE]);
    assert!(
        short.affinity_sets.keys().all(|name| !default.affinity_sets.contains_key(name)),
        "a set's timeout is fixed"
    );
    assert!(state(&service(|_| ()), &[HERE]).affinity_sets.is_empty());
}

#[test]
fn what_is_not_proxied() {
    for (name, service) in [
        (
            "headless",
            service(|spec| {
                (spec.cluster_ip, spec.cluster_ips) = (Some("None".into()), Some(vec!["None".into()]));
            }),
        ),
        ("external name", service(|spec| spec.type_ = Some("ExternalName".into()))),
        ("another proxy's", {
            let mut service = service(|_| ());
            let label = ("service.kubernetes.io/service-proxy-name".to_owned(), "other".to_owned());
            service.metadata.labels = Some(BTreeMap::from([label]));
            service
        }),
    ] {
        assert_eq!(state(&service, &[HERE]), ServiceState::default(), "{name}");
    }
}

#[test]
fn ports_are_matched_by_name_and_chains_are_per_port() {
    let two = service(|spec| spec.ports = Some(vec![port("http", 80), port("admin", 81)]));
    let slices = [slice("http", 8080, &[HERE]), slice("admin", 9090, &[HERE, THERE])];
    let state = service_state(&place(), &two, &slices);
    assert_eq!(reached(&state, &element(Map::ServiceIps, Some(VIP), 80)), sockets(&["10.244.0.5:8080"]));
    assert_eq!(
        reached(&state, &element(Map::ServiceIps, Some(VIP), 81)),
        sockets(&["10.244.0.5:9090", "10.244.1.5:9090"])
    );
    let again = service_state(&place(), &two, &slices);
    assert_eq!(state, again, "the same input gives the same names");
}

#[test]
fn health_checks_count_ready_local_endpoints() {
    let balanced = service(|spec| {
        spec.type_ = Some("LoadBalancer".into());
        spec.external_traffic_policy = Some("Local".into());
        spec.health_check_node_port = Some(31000);
    });
    let stopping: Spec = ("node1", "10.244.0.6", false, true, true);
    let health = state(&balanced, &[HERE, THERE, stopping]).health.unwrap();
    assert_eq!((health.port, health.local_endpoints), (31000, 1));
    assert!(state(&service(|_| ()), &[HERE]).health.is_none());
}

#[test]
fn udp_ports_remember_what_flows_may_use() {
    let dns = service(|spec| {
        spec.ports = Some(vec![ServicePort { protocol: Some("UDP".into()), ..port("http", 53) }]);
    });
    let mut udp_slice = (*slice("http", 8053, &[HERE])).clone();
    udp_slice.ports.iter_mut().flatten().for_each(|port| port.protocol = Some("UDP".into()));
    let state = service_state(&place(), &dns, &[Arc::new(udp_slice)]);
    assert_eq!(state.udp.len(), 1);
    assert_eq!(
        state.udp[0].endpoints.iter().copied().collect::<BTreeSet<_>>(),
        sockets(&["10.244.0.5:8053"])
    );
}
