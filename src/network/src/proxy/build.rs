//! From a Service and its EndpointSlices to [`ServiceState`]: pure functions. Semantics follow
//! kube-proxy (pkg/proxy/serviceport.go, nftables/proxier.go).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoints::{Endpoint, Place, endpoints, slice_family, usable_anywhere, usable_here};
use super::model::{
    Affinity, Balancer, Chain, Choice, ElementKey, Family, HealthCheck, Kind, Map, Name, Protocol,
    ServiceState, Target, UdpPort,
};

/// A Service or slice with this label belongs to another proxy.
pub(super) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` by default: three hours.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// The state for a Service as this node sees it. Empty for those that are not proxied.
pub(crate) fn service_state(place: &Place, service: &Service, slices: &[Arc<EndpointSlice>]) -> ServiceState {
    let mut state = ServiceState::default();
    let Some(spec) = service.spec.as_ref().filter(|_| is_proxied(service)) else { return state };
    for family in Family::BOTH {
        let Some(cluster_ip) = cluster_ip(spec, family) else { continue };
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
            let endpoints = endpoints(place, slices, family, port, protocol);
            let mut builder = PortBuilder::new(service, spec, family, cluster_ip, port, protocol, &mut state);
            builder.build(&endpoints);
        }
    }
    state.health = health_check(&place.node, spec, slices);
    state
}

fn is_proxied(service: &Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()).unwrap_or("ClusterIP");
    kind != "ExternalName" && !labels.is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL))
}

fn cluster_ip(spec: &ServiceSpec, family: Family) -> Option<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    // "None" and "" do not parse: headless Services are not proxied.
    all.filter_map(|ip| ip.parse::<IpAddr>().ok()).find(|ip| Family::of(*ip) == family)
}

/// The addresses of `list` that belong to the family.
fn addresses<'a>(list: impl IntoIterator<Item = &'a String>, family: Family) -> Vec<IpAddr> {
    let parsed = list.into_iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
    let found: BTreeSet<IpAddr> =
        parsed.filter(|ip| Family::of(*ip) == family && !ip.is_unspecified()).collect();
    found.into_iter().collect()
}

fn load_balancer_ips(service: &Service, family: Family) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    // ipMode Proxy: the load balancer wants to see the traffic itself.
    let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    addresses(direct.filter_map(|ingress| ingress.ip.as_ref()), family)
}

fn is_local_external(spec: &ServiceSpec) -> bool {
    spec.external_traffic_policy.as_deref() == Some("Local")
}

/// Number of local endpoints for `healthCheckNodePort`; terminating ones do not count (KEP-1669).
fn health_check(node: &str, spec: &ServiceSpec, slices: &[Arc<EndpointSlice>]) -> Option<HealthCheck> {
    if spec.type_.as_deref() != Some("LoadBalancer") || !is_local_external(spec) {
        return None;
    }
    let port =
        spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?;
    let local_in = |family: Family| {
        let of_family = slices.iter().filter(|slice| slice_family(slice) == Some(family));
        let here = of_family.flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            ready && endpoint.node_name.as_deref() == Some(node)
        });
        here.filter_map(|endpoint| endpoint.addresses.first()).collect::<BTreeSet<_>>().len()
    };
    // A pod with addresses of both families is one endpoint.
    let local_endpoints = Family::BOTH.into_iter().map(local_in).max().unwrap_or(0);
    Some(HealthCheck { port, local_endpoints })
}

/// Adds one port in one family to the state.
struct PortBuilder<'a> {
    service: &'a Service,
    spec: &'a ServiceSpec,
    family: Family,
    cluster_ip: IpAddr,
    port: u16,
    node_port: Option<u16>,
    protocol: Protocol,
    /// What the names of this port's chains are made from.
    identity: [String; 4],
    affinity_seconds: Option<u32>,
    state: &'a mut ServiceState,
}

impl<'a> PortBuilder<'a> {
    fn new(
        service: &'a Service,
        spec: &'a ServiceSpec,
        family: Family,
        cluster_ip: IpAddr,
        port: &ServicePort,
        protocol: Protocol,
        state: &'a mut ServiceState,
    ) -> Self {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let name = service.metadata.name.clone().unwrap_or_default();
        let label = format!("{family:?}/{protocol:?}/{}", port.name.as_deref().unwrap_or_default());
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        let seconds = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = seconds.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
        Self {
            service,
            spec,
            family,
            cluster_ip,
            port: u16::try_from(port.port).unwrap_or(0),
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            protocol,
            identity: [namespace, name, label, port.port.to_string()],
            affinity_seconds: sticky
                .then(|| u32::try_from(seconds).unwrap_or(0))
                .filter(|seconds| *seconds > 0),
            state,
        }
    }

    fn name(&self, kind: Kind, detail: &str) -> Name {
        let [namespace, name, label, port] = &self.identity;
        Name::new(kind, &[namespace, name, label, port, detail])
    }

    fn build(&mut self, endpoints: &[Endpoint]) {
        let external_ips = addresses(self.spec.external_ips.iter().flatten(), self.family);
        let balancer_ips = load_balancer_ips(self.service, self.family);
        let is_external = self.node_port.is_some() || !external_ips.is_empty() || !balancer_ips.is_empty();
        let internal_local = self.spec.internal_traffic_policy.as_deref() == Some("Local");
        let external_local = is_local_external(self.spec);

        let cluster = usable_anywhere(endpoints);
        let local = usable_here(endpoints);
        let uses_cluster = !internal_local || is_external;
        let uses_local = internal_local || (external_local && is_external);

        // No endpoint anywhere: refuse, so that clients need not wait. None here: drop, so that a
        // load balancer can try another node.
        let without = if cluster.is_empty() && local.is_empty() { Target::Reject } else { Target::Drop };
        self.element(Map::ClusterIps, Some(self.cluster_ip), None, Target::Member);
        if !is_external && self.affinity_seconds.is_none() {
            self.share(if internal_local { &local } else { &cluster }, without);
            self.udp_port(cluster, local, &[]);
            return;
        }

        let service_chain = if uses_cluster { self.balance(Kind::Service, &cluster) } else { None };
        let local_chain = if uses_local { self.balance(Kind::Local, &local) } else { None };

        match if internal_local { local_chain } else { service_chain } {
            Some(chain) => self.port_element(Map::ServiceIps, Some(self.cluster_ip), Target::Goto(chain)),
            None => self.port_element(Map::NoEndpointServices, Some(self.cluster_ip), without),
        }

        if is_external {
            let external_chain = (service_chain.is_some() || local_chain.is_some()).then(|| {
                let chain = match service_chain {
                    Some(service) if !external_local => Chain::ExternalCluster { service },
                    service => Chain::ExternalLocal { family: self.family, service, local: local_chain },
                };
                self.add_chain(Kind::External, "", chain)
            });
            let answered = if external_local { local_chain.is_some() } else { service_chain.is_some() };
            let addresses: Vec<IpAddr> = external_ips.iter().chain(&balancer_ips).copied().collect();
            for address in addresses {
                if let Some(chain) = external_chain {
                    self.port_element(Map::ServiceIps, Some(address), Target::Goto(chain));
                }
                if !answered {
                    self.port_element(Map::NoEndpointServices, Some(address), without);
                }
            }
            if let Some(node_port) = self.node_port {
                let port = Some((self.protocol, node_port));
                if let Some(chain) = external_chain {
                    self.element(Map::ServiceNodePorts, None, port, Target::Goto(chain));
                }
                if !answered {
                    self.element(Map::NoEndpointNodePorts, None, port, without);
                }
            }
            self.firewall(&balancer_ips);
        }

        let addresses: Vec<IpAddr> = external_ips.into_iter().chain(balancer_ips).collect();
        self.udp_port(cluster, local, &addresses);
    }

    /// What connection tracking has to forget when endpoints change.
    fn udp_port(&mut self, cluster: Vec<SocketAddr>, local: Vec<SocketAddr>, external: &[IpAddr]) {
        if self.protocol != Protocol::Udp {
            return;
        }
        let mut endpoints = cluster;
        endpoints.extend(local);
        endpoints.sort_unstable();
        endpoints.dedup();
        let mut addresses = vec![self.cluster_ip];
        addresses.extend(external);
        let (port, node_port) = (self.port, self.node_port);
        self.state.udp.push(UdpPort { addresses, port, node_port, endpoints });
    }

    /// The cluster IP alone, with any endpoint: by a chain that is there already, as a rule.
    fn share(&mut self, endpoints: &[SocketAddr], without: Target) {
        let address = Some(self.cluster_ip);
        let Ok(ways @ 1..) = u16::try_from(endpoints.len()) else {
            return self.port_element(Map::NoEndpointServices, address, without);
        };
        let balancer = Balancer { family: self.family, protocol: self.protocol, ways };
        self.port_element(Map::ServiceIps, address, Target::Balance(balancer));
        for (number, to) in (0..).zip(endpoints) {
            self.element(Map::Hairpin, Some(to.ip()), None, Target::Member);
            let port = Some((self.protocol, self.port));
            let key = ElementKey { map: Map::Endpoints, family: self.family, address, port, number };
            self.state.elements.insert(key, Target::To(*to));
        }
    }

    /// A chain that chooses among the endpoints. None when there are none.
    fn balance(&mut self, kind: Kind, endpoints: &[SocketAddr]) -> Option<Name> {
        if endpoints.is_empty() {
            return None;
        }
        for to in endpoints {
            self.element(Map::Hairpin, Some(to.ip()), None, Target::Member);
        }
        let Some(seconds) = self.affinity_seconds else {
            let chain = Chain::Direct { protocol: self.protocol, targets: endpoints.to_vec() };
            return Some(self.add_chain(kind, "", chain));
        };
        let mut choices = Vec::with_capacity(endpoints.len());
        for &to in endpoints {
            let set = self.name(Kind::Affinity, &format!("{to}/{seconds}"));
            self.state.affinity_sets.insert(set, (self.family, seconds));
            let affinity = Affinity { set, seconds };
            let chain = Chain::Endpoint { to, protocol: self.protocol, affinity };
            let endpoint = self.add_chain(Kind::Endpoint, &to.to_string(), chain);
            choices.push(Choice { endpoint, affinity: set });
        }
        Some(self.add_chain(kind, "", Chain::Balance { family: self.family, choices }))
    }

    fn firewall(&mut self, balancer_ips: &[IpAddr]) {
        let ranges: Vec<&String> = self.spec.load_balancer_source_ranges.iter().flatten().collect();
        if ranges.is_empty() || balancer_ips.is_empty() {
            return;
        }
        let parsed = ranges.iter().filter_map(|range| range.trim().parse::<IpNet>().ok());
        let mut sources: BTreeSet<IpNet> =
            parsed.filter(|net| Family::of_net(net) == self.family).map(|net| net.trunc()).collect();
        // Where the balancer's address is also this node's, its own health checks come from it.
        sources.extend(balancer_ips.iter().map(|ip| IpNet::from(*ip)));
        let chain = Chain::Firewall { sources: sources.into_iter().collect() };
        let chain = self.add_chain(Kind::Firewall, "", chain);
        for address in balancer_ips {
            self.port_element(Map::FirewallIps, Some(*address), Target::Goto(chain));
        }
    }

    fn add_chain(&mut self, kind: Kind, detail: &str, chain: Chain) -> Name {
        let name = self.name(kind, detail);
        self.state.chains.insert(name, chain);
        name
    }

    fn port_element(&mut self, map: Map, address: Option<IpAddr>, target: Target) {
        self.element(map, address, Some((self.protocol, self.port)), target);
    }

    fn element(&mut self, map: Map, address: Option<IpAddr>, port: Option<(Protocol, u16)>, target: Target) {
        self.state.elements.insert(ElementKey { map, family: self.family, address, port, number: 0 }, target);
    }
}
