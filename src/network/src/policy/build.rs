//! From objects to the table: which pods of this node are isolated, and what their policies let pass. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kedge_client::selector_matches;

use super::content::{Chain, Content, Set};
use super::rules::{
    Direction, Peers, Ports, accept, address_set, fixed, group_rules, isolate, port_key, port_set,
};
use crate::nft::{Expr, Family, Protocol, hash};

/// All that the answer depends on.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// This node's name.
    pub(super) node: String,
    pub(super) policies: Vec<Arc<NetworkPolicy>>,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) namespaces: Vec<Arc<Namespace>>,
}

/// What of a pod the policies look at. Two that are equal here mean the same.
#[derive(Debug, PartialEq)]
pub(super) struct View<'a> {
    namespace: &'a str,
    labels: &'a Option<BTreeMap<String, String>>,
    addresses: Vec<IpAddr>,
    node: &'a str,
    /// Name, protocol, number.
    ports: Vec<(&'a str, Protocol, u16)>,
}

impl<'a> View<'a> {
    /// `None` for pods without addresses of their own: those of the host's network, those that have ended
    /// (their addresses may be another's already), and those that have none yet.
    pub(super) fn of(pod: &'a Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let listed = status.pod_ips.iter().flatten().map(|entry| &entry.ip);
        let addresses: Vec<IpAddr> = listed.filter_map(|address| address.parse().ok()).collect();
        if spec.host_network == Some(true) || ended || addresses.is_empty() {
            return None;
        }
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            Some((port.name.as_deref()?, protocol, u16::try_from(port.container_port).ok()?))
        });
        Some(Self {
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
            labels: &pod.metadata.labels,
            addresses,
            node: spec.node_name.as_deref().unwrap_or_default(),
            ports: ports.collect(),
        })
    }

    fn is_in(&self, namespace: &str, selector: Option<&LabelSelector>) -> bool {
        self.namespace == namespace && self.is_selected(selector)
    }

    fn is_selected(&self, selector: Option<&LabelSelector>) -> bool {
        selector.is_none_or(|selector| selector_matches(selector, self.labels))
    }
}

type Labels = Option<BTreeMap<String, String>>;

/// The content of the table for this node.
pub(super) fn build(cluster: &Cluster) -> Content {
    let mut pods: Vec<View<'_>> = cluster.pods.iter().filter_map(|pod| View::of(pod)).collect();
    // The same content for the same pods, in whatever order they are listed.
    pods.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    let namespaces = cluster
        .namespaces
        .iter()
        .filter_map(|namespace| Some((namespace.metadata.name.as_deref()?, &namespace.metadata.labels)));
    let mut world = World { pods: &pods, namespaces: namespaces.collect(), content: fixed() };
    // The policies' chains of each isolated address.
    let mut isolated: BTreeMap<(&str, IpAddr), (Direction, BTreeSet<String>)> = BTreeMap::new();
    for policy in &cluster.policies {
        let Some(spec) = &policy.spec else { continue };
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let selected: Vec<&View<'_>> = pods
            .iter()
            .filter(|pod| pod.node == cluster.node && pod.is_in(namespace, spec.pod_selector.as_ref()))
            .collect();
        if selected.is_empty() {
            continue;
        }
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        for direction in directions(spec) {
            let chain = format!("{}-{:016x}", direction.word(), hash(&[namespace, name]));
            let rules = world.rules(&chain, namespace, spec, direction, &selected);
            let comment = format!("{} of {namespace}/{name}", direction.word());
            world.content.chains.insert(chain.clone(), Chain { base: None, comment, rules });
            for address in selected.iter().flat_map(|pod| &pod.addresses) {
                let entry = isolated.entry((direction.word(), *address));
                entry.or_insert_with(|| (direction, BTreeSet::new())).1.insert(chain.clone());
            }
        }
    }
    let mut content = world.content;
    for ((_, address), (direction, policies)) in isolated {
        // Pods with the same policies share a chain.
        let parts: Vec<&str> = policies.iter().map(String::as_str).collect();
        let group = format!("{}-pods-{:016x}", direction.word(), hash(&parts));
        content.chains.entry(group.clone()).or_insert_with(|| Chain {
            base: None,
            comment: String::new(),
            rules: group_rules(policies.iter()),
        });
        isolate(&mut content, direction, address, &group);
    }
    content
}

/// A policy is about incoming connections unless it says otherwise, and about outgoing ones when it has
/// rules for them (as upstream's defaulting fills in `policyTypes`).
fn directions(spec: &NetworkPolicySpec) -> Vec<Direction> {
    let named = spec.policy_types.as_deref().unwrap_or_default();
    let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    let is_about = |direction: Direction| match (named.is_empty(), direction) {
        (true, Direction::Ingress) => true,
        (true, Direction::Egress) => has_egress,
        (false, Direction::Ingress) => named.iter().any(|name| name == "Ingress"),
        (false, Direction::Egress) => named.iter().any(|name| name == "Egress"),
    };
    Direction::BOTH.into_iter().filter(|direction| is_about(*direction)).collect()
}

struct World<'a> {
    pods: &'a [View<'a>],
    namespaces: HashMap<&'a str, &'a Labels>,
    content: Content,
}

impl World<'_> {
    /// The rules of one policy in one direction.
    fn rules(
        &mut self,
        chain: &str,
        namespace: &str,
        spec: &NetworkPolicySpec,
        direction: Direction,
        selected: &[&View<'_>],
    ) -> Vec<Vec<Expr>> {
        type Parts<'s> = (Option<&'s Vec<NetworkPolicyPeer>>, Option<&'s Vec<NetworkPolicyPort>>);
        let listed: Vec<Parts<'_>> = match direction {
            Direction::Ingress => {
                spec.ingress.iter().flatten().map(|rule| (rule.from.as_ref(), rule.ports.as_ref())).collect()
            }
            Direction::Egress => {
                spec.egress.iter().flatten().map(|rule| (rule.to.as_ref(), rule.ports.as_ref())).collect()
            }
        };
        let mut rules = Vec::new();
        for (n, (peers, ports)) in listed.into_iter().enumerate() {
            let peers = self.peers(&format!("{chain}-{n}"), namespace, peers.map_or(&[], Vec::as_slice));
            let mut matched = Vec::new();
            for (m, port) in ports.into_iter().flatten().enumerate() {
                matched.extend(self.ports(&format!("{chain}-{n}-{m}"), port, direction, selected));
            }
            if ports.is_none_or(Vec::is_empty) {
                matched.push(Ports::Any);
            }
            for peer in &peers {
                rules.extend(matched.iter().filter_map(|ports| accept(direction, peer, ports)));
            }
        }
        rules
    }

    /// No peers at all means everybody.
    fn peers(&mut self, name: &str, namespace: &str, listed: &[NetworkPolicyPeer]) -> Vec<Peers> {
        if listed.is_empty() {
            return vec![Peers::Any];
        }
        let mut peers: Vec<Peers> =
            listed.iter().filter_map(|peer| peer.ip_block.as_ref()).filter_map(block).collect();
        let selectors: Vec<&NetworkPolicyPeer> = listed
            .iter()
            .filter(|peer| peer.pod_selector.is_some() || peer.namespace_selector.is_some())
            .collect();
        if selectors.is_empty() {
            return peers;
        }
        let is_peer = |pod: &&View<'_>| {
            selectors.iter().any(|peer| match &peer.namespace_selector {
                None => pod.is_in(namespace, peer.pod_selector.as_ref()),
                Some(namespaces) => {
                    let labels = self.namespaces.get(pod.namespace);
                    labels.is_some_and(|labels| selector_matches(namespaces, labels))
                        && pod.is_selected(peer.pod_selector.as_ref())
                }
            })
        };
        let addresses: Vec<IpAddr> =
            self.pods.iter().filter(is_peer).flat_map(|pod| pod.addresses.iter().copied()).collect();
        for family in Family::BOTH {
            let set = format!("{name}-{}", family.digit());
            let mut content = address_set(set.clone(), family);
            let own = addresses.iter().filter(|address| Family::of(**address) == family);
            content.elements.extend(own.map(|address| (Expr::address_bytes(*address), None)));
            self.add(content);
            peers.push(Peers::Pods { family, set });
        }
        peers
    }

    /// A name is looked up at the pod that takes the connection.
    fn ports(
        &mut self,
        name: &str,
        port: &NetworkPolicyPort,
        direction: Direction,
        selected: &[&View<'_>],
    ) -> Vec<Ports> {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { return Vec::new() };
        let wanted = match &port.port {
            None => return vec![Ports::Protocol(protocol)],
            Some(IntOrString::Int(number)) => {
                let end = port.end_port.unwrap_or(*number);
                let ends = (u16::try_from(*number), u16::try_from(end));
                let (Ok(first), Ok(last)) = ends else { return Vec::new() };
                return vec![Ports::Range(protocol, first, last)];
            }
            Some(IntOrString::String(wanted)) => wanted,
        };
        let everybody: Vec<&View<'_>>;
        let receivers = match direction {
            Direction::Ingress => selected,
            Direction::Egress => {
                everybody = self.pods.iter().collect();
                &everybody
            }
        };
        let mut keys: Vec<(IpAddr, Vec<u8>)> = Vec::new();
        for pod in receivers {
            let numbers = pod.ports.iter().filter(|port| port.0 == wanted && port.1 == protocol);
            for (_, protocol, number) in numbers {
                let key = |address: &IpAddr| (*address, port_key(*address, *protocol, *number));
                keys.extend(pod.addresses.iter().map(key));
            }
        }
        let named = Family::BOTH.map(|family| {
            let set = format!("{name}-{}", family.digit());
            let mut content = port_set(set.clone(), family);
            let own = keys.iter().filter(|(address, _)| Family::of(*address) == family);
            content.elements.extend(own.map(|(_, key)| (key.clone(), None)));
            self.add(content);
            Ports::Named { family, set }
        });
        named.into()
    }

    fn add(&mut self, set: Set) {
        self.content.sets.insert(set.spec.name.clone(), set);
    }
}

fn block(block: &IPBlock) -> Option<Peers> {
    let net: IpNet = block.cidr.parse().ok()?;
    let except = block.except.iter().flatten().filter_map(|net| net.parse().ok()).collect();
    Some(Peers::Block { net, except })
}
