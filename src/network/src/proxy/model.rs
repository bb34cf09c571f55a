//! What the table holds for one Service, as plain data: no Kubernetes types, no netlink. Rules are
//! made from it only when they are written, so that the copy kept for comparison stays small.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::nft::hash;
pub(crate) use crate::nft::{Family, Protocol};
use ipnet::IpNet;

/// What a chain or set is for. The order is the order in which unused ones can be deleted: a chain
/// before those it refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Decides about traffic from outside the cluster.
    External,
    /// Checks `loadBalancerSourceRanges`.
    Firewall,
    /// Chooses among all endpoints.
    Service,
    /// Chooses among this node's endpoints.
    Local,
    /// Sends to one endpoint.
    Endpoint,
    /// The clients that stick to one endpoint (a set).
    Affinity,
}

/// The name of a chain or set: what it is for, and a hash of what it belongs to. Cheap to copy;
/// 64 bits of SHA-256 so that nobody can make two Services share a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    kind: Kind,
    hash: u64,
}

impl Name {
    pub(crate) fn new(kind: Kind, parts: &[&str]) -> Self {
        Self { kind, hash: hash(parts) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::External => "external",
            Kind::Firewall => "firewall",
            Kind::Service => "service",
            Kind::Local => "local",
            Kind::Endpoint => "endpoint",
            Kind::Affinity => "affinity",
        };
        write!(f, "{kind}-{:016x}", self.hash)
    }
}

/// Session affinity of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Affinity {
    pub(crate) set: Name,
    pub(crate) seconds: u32,
}

/// One way a balancing chain can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) endpoint: Name,
    pub(crate) affinity: Name,
}

/// The content of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chain {
    Endpoint {
        to: SocketAddr,
        protocol: Protocol,
        affinity: Affinity,
    },
    /// Any endpoint will do. All in one rule: see [`Balancer`] about the cost of many.
    Direct {
        protocol: Protocol,
        targets: Vec<SocketAddr>,
    },
    /// Clients stick to endpoints, each of which has a chain.
    Balance {
        family: Family,
        choices: Vec<Choice>,
    },
    /// externalTrafficPolicy: Cluster.
    ExternalCluster {
        service: Name,
    },
    /// externalTrafficPolicy: Local. `local` is absent when this node has no endpoint.
    ExternalLocal {
        family: Family,
        service: Option<Name>,
        local: Option<Name>,
    },
    /// Drops what comes from elsewhere.
    Firewall {
        sources: Vec<IpNet>,
    },
}

/// The maps and sets whose elements belong to Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Map {
    ServiceIps,
    ServiceNodePorts,
    NoEndpointServices,
    NoEndpointNodePorts,
    FirewallIps,
    /// A set: all cluster IPs.
    ClusterIps,
    /// The endpoints of most cluster IPs, by number.
    Endpoints,
    /// A set: each endpoint's address twice, as source and destination.
    Hairpin,
}

impl Map {
    pub(crate) const ALL: [Self; 8] = [
        Self::ServiceIps,
        Self::ServiceNodePorts,
        Self::NoEndpointServices,
        Self::NoEndpointNodePorts,
        Self::FirewallIps,
        Self::ClusterIps,
        Self::Endpoints,
        Self::Hairpin,
    ];

    pub(crate) fn name(self, family: Family) -> String {
        let name = match self {
            Self::ServiceIps => "service-ips",
            Self::ServiceNodePorts => "service-nodeports",
            Self::NoEndpointServices => "no-endpoint-services",
            Self::NoEndpointNodePorts => "no-endpoint-nodeports",
            Self::FirewallIps => "firewall-ips",
            Self::ClusterIps => "cluster-ips",
            Self::Endpoints => "endpoints",
            Self::Hairpin => "hairpin-endpoints",
        };
        format!("{name}-{}", family.digit())
    }

    pub(crate) fn has_address(self) -> bool {
        !matches!(self, Self::ServiceNodePorts | Self::NoEndpointNodePorts)
    }

    pub(crate) fn has_port(self) -> bool {
        !self.is_set()
    }

    /// Elements have no verdict.
    pub(crate) fn is_set(self) -> bool {
        matches!(self, Self::ClusterIps | Self::Hairpin)
    }
}

/// The key of one element of one map. At most one Service can have it, sets excepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ElementKey {
    pub(crate) map: Map,
    pub(crate) family: Family,
    /// Absent in maps that are keyed by protocol and port only.
    pub(crate) address: Option<IpAddr>,
    /// Absent in sets.
    pub(crate) port: Option<(Protocol, u16)>,
    /// Which of several, in [`Map::Endpoints`]; otherwise 0.
    pub(crate) number: u16,
}

/// A chain that all Services share which have so many endpoints: it takes one of them out of
/// [`Map::Endpoints`]. The kernel looks at all chains of a table again when a rule or a verdict is added,
/// but not when such an element is; so a change of endpoints costs the same however many Services there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Balancer {
    pub(crate) family: Family,
    pub(crate) protocol: Protocol,
    pub(crate) ways: u16,
}

impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "balance-{protocol}-{}-{}", self.ways, self.family.digit())
    }
}

/// What a map says for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The element of a set: nothing.
    Member,
    Goto(Name),
    Balance(Balancer),
    /// The value of [`Map::Endpoints`].
    To(SocketAddr),
    Reject,
    Drop,
}

/// One UDP port of a Service: connection tracking keeps stale UDP flows alive, see `conntrack`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct UdpPort {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    pub(crate) endpoints: Vec<SocketAddr>,
}

/// `healthCheckNodePort` of a Service with externalTrafficPolicy Local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub(crate) port: u16,
    pub(crate) local_endpoints: usize,
}

/// Everything that one Service contributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ServiceState {
    pub(crate) chains: BTreeMap<Name, Chain>,
    pub(crate) affinity_sets: BTreeMap<Name, (Family, u32)>,
    pub(crate) elements: BTreeMap<ElementKey, Target>,
    pub(crate) udp: Vec<UdpPort>,
    pub(crate) health: Option<HealthCheck>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_separate_their_parts() {
        let name = Name::new(Kind::Service, &["default", "web", "http"]);
        assert_eq!(name, Name::new(Kind::Service, &["default", "web", "http"]));
        assert_ne!(name, Name::new(Kind::Service, &["default", "webhttp", ""]));
        assert_ne!(name, Name::new(Kind::Local, &["default", "web", "http"]));
        let shown = name.to_string();
        assert!(shown.starts_with("service-") && shown.len() == "service-".len() + 16, "{shown}");
    }

    #[test]
    fn referrers_sort_before_what_they_refer_to() {
        assert!(
            Kind::External < Kind::Service
                && Kind::Service < Kind::Endpoint
                && Kind::Endpoint < Kind::Affinity
        );
    }
}
