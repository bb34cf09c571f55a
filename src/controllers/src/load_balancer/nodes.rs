//! Which nodes may answer for a Service, and what of a node matters here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::Informer;
use kedge_client::load_balancer::{ADDRESSES, PORTS, PORTS_ANSWER, Port, PortsAnswer, parse_ports};

/// An EndpointSlice's label.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Upstream's label and taint of nodes that load balancers leave alone.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const GOING: &str = "ToBeDeletedByClusterAutoscaler";

/// What of a node matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) name: String,
    /// Load balancers may use it.
    pub(super) is_fit: bool,
    /// It runs Kedge, and can hold addresses; a stock kubelet's node cannot.
    pub(super) is_kedge: bool,
    /// Others' first, then its own.
    pub(super) addresses: Vec<IpAddr>,
    /// Where its kubelet answers.
    pub(super) kubelet: Option<SocketAddr>,
    /// What it was told to hold.
    pub(super) held: BTreeSet<IpAddr>,
    pub(super) asked: BTreeSet<Port>,
    pub(super) answer: PortsAnswer,
    /// It has one of our annotations.
    pub(super) is_marked: bool,
}

impl Facts {
    pub(super) fn of(node: Option<&Node>) -> Option<Self> {
        let node = node?;
        let (meta, status) = (&node.metadata, node.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let is_ready =
            conditions.into_iter().flatten().any(|known| known.type_ == "Ready" && known.status == "True");
        let is_excluded = meta.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let is_going =
            meta.deletion_timestamp.is_some() || taints.into_iter().flatten().any(|taint| taint.key == GOING);
        let listed = status.and_then(|status| status.addresses.as_ref());
        let of_type = |kind: &str| -> Vec<IpAddr> {
            let all = listed.into_iter().flatten().filter(|address| address.type_ == kind);
            all.filter_map(|address| address.address.parse().ok()).collect()
        };
        let internal = of_type("InternalIP");
        // As kedge_base::git_version makes it.
        let version = status.and_then(|status| Some(status.node_info.as_ref()?.kubelet_version.as_str()));
        let port = status.and_then(|status| {
            let endpoint = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
            u16::try_from(endpoint.port).ok().filter(|port| *port != 0)
        });
        let annotation =
            |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
        let held = annotation(ADDRESSES).unwrap_or_default();
        let mut addresses = of_type("ExternalIP");
        addresses.extend(internal.iter().filter(|own| !addresses.contains(own)).copied().collect::<Vec<_>>());
        Some(Self {
            name: meta.name.clone().unwrap_or_default(),
            is_kedge: version.is_some_and(|version| version.contains("+kedge.")),
            is_fit: is_ready && !is_excluded && !is_going,
            addresses,
            kubelet: internal.first().zip(port).map(|(address, port)| SocketAddr::new(*address, port)),
            held: held.split(',').filter_map(|part| part.parse().ok()).collect(),
            asked: annotation(PORTS).map(parse_ports).unwrap_or_default(),
            answer: annotation(PORTS_ANSWER).map(PortsAnswer::parse).unwrap_or_default(),
            is_marked: [ADDRESSES, PORTS, PORTS_ANSWER].iter().any(|name| annotation(name).is_some()),
        })
    }
}

/// All nodes by name.
pub(super) fn all(nodes: &Informer<Node>) -> BTreeMap<String, Facts> {
    let all = nodes.list();
    all.iter().filter_map(|node| Facts::of(Some(node))).map(|facts| (facts.name.clone(), facts)).collect()
}

/// Only nodes with endpoints of its own may answer.
pub(super) fn is_local(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref());
    policy == Some("Local")
}

/// The nodes that have a ready endpoint of the Service.
pub(super) fn with_endpoints(service: &Service, slices: &Informer<EndpointSlice>) -> BTreeSet<String> {
    let name = service.metadata.name.as_ref();
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let mut own: Vec<Arc<EndpointSlice>> = slices.list_namespace(namespace);
    own.retain(|slice| slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) == name);
    let endpoints = own.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
}
