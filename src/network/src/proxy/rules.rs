//! The rules of the table: the fixed chains that every node has, and the content of a Service's chains.
//! Shape and hook priorities follow kube-proxy's nftables mode (pkg/proxy/nftables/proxier.go).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::ProxyConfig;
use super::model::{Affinity, Balancer, Chain, Choice, ElementKey, Family, Map, Protocol, Target};
use crate::nft::{
    BaseChain, CT_NEW, Compare, Expr, Hook, KeyType, META_L4PROTO, NETWORK, Rule, SetSpec, TRANSPORT, Values,
    Verdict,
};

/// Bit of the packet mark that asks for masquerading; kube-proxy's default too.
const MASQUERADE_MARK: u32 = 0x4000;

const MARK_CHAIN: &str = "mark-for-masquerade";
const REJECT_CHAIN: &str = "reject-chain";
const NODEPORTS_CHAIN: &str = "nodeports";
const NO_ENDPOINT_NODEPORTS_CHAIN: &str = "no-endpoint-nodeports-check";
/// The chain that the NAT hooks jump to; without rules nothing works, so it is what a check looks at.
pub(crate) const SERVICES_CHAIN: &str = "services";

/// linux/netfilter/nf_tables.h
const META_MARK: u32 = 3;
/// IPS_DST_NAT
const CT_DNAT: u32 = 0x20;
/// RTN_LOCAL
const LOCAL: u32 = 2;

/// A chain that is always there.
pub(crate) struct FixedChain {
    pub(crate) name: &'static str,
    pub(crate) base: Option<BaseChain>,
    pub(crate) rules: Vec<Vec<Expr>>,
}

/// The maps and sets that are always there.
pub(crate) fn fixed_sets() -> Vec<SetSpec> {
    let mut sets = Vec::new();
    for map in Map::ALL {
        for family in Family::BOTH {
            let mut key = Vec::new();
            if map.has_address() {
                key.push(family.key());
            }
            if map.has_port() {
                key.extend([KeyType::Protocol, KeyType::Port]);
            }
            match map {
                Map::Hairpin => key.extend(key.clone()),
                Map::Endpoints => key.push(KeyType::Number),
                _ => {}
            }
            let values = match map {
                Map::Endpoints => Values::Targets { ipv6: family == Family::V6 },
                _ if map.is_set() => Values::None,
                _ => Values::Verdicts,
            };
            sets.push(SetSpec { name: map.name(family), key, values, timeout: None });
        }
    }
    sets
}

/// The set that remembers the clients of one endpoint.
pub(crate) fn affinity_set(name: &str, family: Family, seconds: u32) -> SetSpec {
    let key = vec![family.key()];
    SetSpec { name: name.to_owned(), key, values: Values::None, timeout: Some(milliseconds(seconds)) }
}

fn milliseconds(seconds: u32) -> u64 {
    u64::from(seconds) * 1000
}

/// An element's key as the kernel wants it: each part padded to four bytes.
pub(crate) fn key_bytes(key: &ElementKey) -> Vec<u8> {
    let mut bytes = key.address.map(Expr::address_bytes).unwrap_or_default();
    if key.map == Map::Hairpin {
        bytes.extend(bytes.clone());
    }
    if let Some((protocol, port)) = key.port {
        bytes.extend([protocol.number(), 0, 0, 0]);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0]);
    }
    if key.map == Map::Endpoints {
        bytes.extend(u32::from(key.number).to_ne_bytes());
    }
    bytes
}

/// What a map element does.
pub(crate) fn target_verdict(target: Target) -> Option<Verdict> {
    match target {
        Target::Member | Target::To(_) => None,
        Target::Balance(balancer) => Some(Verdict::Goto(balancer.to_string())),
        Target::Goto(name) => Some(Verdict::Goto(name.to_string())),
        Target::Reject => Some(Verdict::Goto(REJECT_CHAIN.into())),
        Target::Drop => Some(Verdict::Drop),
    }
}

fn base(kind: &'static str, hook: Hook, priority: i32) -> Option<BaseChain> {
    Some(BaseChain { kind, hook, priority })
}

/// All fixed chains. Those that others refer to come first.
pub(crate) fn fixed_chains(config: &ProxyConfig) -> Vec<FixedChain> {
    let chain = |name, base, rules| FixedChain { name, base, rules };
    let both = |make: &dyn Fn(Family) -> Vec<Expr>| Family::BOTH.map(make).to_vec();
    let new = |rest: Vec<Expr>| join([is_new(), rest]);
    let jump = |name: &str| vec![Expr::Verdict(Verdict::Jump(name.into()))];

    let mark = Rule::default()
        .meta(META_MARK)
        .bitwise(!MASQUERADE_MARK, MASQUERADE_MARK)
        .push(Expr::MetaSet { key: META_MARK, register: 1 });
    let reject_tcp =
        Rule::default().meta(META_L4PROTO).equals(&[Protocol::Tcp.number()]).push(Expr::RejectTcp);

    // What comes to a cluster IP from outside the pod network.
    let from_outside = |net: &IpNet| {
        let family = Family::of_net(net);
        let rule = Rule::default().address(true, net, Compare::NotEqual).load_address(false, family);
        let set = Map::ClusterIps.name(family);
        rule.push(Expr::InSet { register: 1, set }).verdict(Verdict::Jump(MARK_CHAIN.into())).0
    };
    let mut services: Vec<Vec<Expr>> = config.pod_cidrs.iter().map(from_outside).collect();
    services.extend(both(&|family| lookup(family, Map::ServiceIps)));
    services.extend(node_port_rules(config, NODEPORTS_CHAIN));
    let mut input = node_port_rules(config, NO_ENDPOINT_NODEPORTS_CHAIN);
    input.iter_mut().for_each(|rule| *rule = new(std::mem::take(rule)));
    let no_endpoints = both(&|family| new(lookup(family, Map::NoEndpointServices)));
    input.extend(no_endpoints.clone());
    let mut cluster_ips = both(&|family| new(cluster_ip_check(family)));
    // Cluster IPs that no Service has: nobody else may answer for them.
    let unknown =
        |net: &IpNet| new(Rule::default().address(false, net, Compare::Equal).verdict(Verdict::Drop).0);
    cluster_ips.extend(config.service_cidrs.iter().map(unknown));
    let mut forward = no_endpoints.clone();
    forward.extend(cluster_ips.clone());
    let firewall = both(&|family| new(lookup(family, Map::FirewallIps)));

    vec![
        chain(MARK_CHAIN, None, vec![mark.0]),
        chain(REJECT_CHAIN, None, vec![reject_tcp.0, vec![Expr::RejectPort]]),
        chain(NODEPORTS_CHAIN, None, both(&|family| lookup(family, Map::ServiceNodePorts))),
        chain(NO_ENDPOINT_NODEPORTS_CHAIN, None, both(&|family| lookup(family, Map::NoEndpointNodePorts))),
        chain(SERVICES_CHAIN, None, services),
        chain("masquerading", None, masquerading(config)),
        chain("nat-prerouting", base("nat", Hook::Prerouting, -100), vec![jump(SERVICES_CHAIN)]),
        chain("nat-output", base("nat", Hook::Output, -100), vec![jump(SERVICES_CHAIN)]),
        chain("nat-postrouting", base("nat", Hook::Postrouting, 100), vec![jump("masquerading")]),
        // Before address translation: the balancer's addresses are still to be seen.
        chain("firewall-prerouting", base("filter", Hook::Prerouting, -110), firewall.clone()),
        chain("firewall-output", base("filter", Hook::Output, -110), firewall),
        // Rejecting is possible in input, forward and output only.
        chain("filter-input", base("filter", Hook::Input, -110), input),
        chain("filter-forward", base("filter", Hook::Forward, -110), forward),
        chain("filter-output", base("filter", Hook::Output, -110), no_endpoints),
        // After address translation: what still goes to a cluster IP goes to a port that no Service has.
        chain("filter-output-translated", base("filter", Hook::Output, -90), cluster_ips),
    ]
}

/// Jump to `target` for packets to this node's own addresses, loopback excepted.
fn node_port_rules(config: &ProxyConfig, target: &str) -> Vec<Vec<Expr>> {
    let local =
        Rule::default().push(Expr::FibType { source: false, register: 1 }).equals(&LOCAL.to_ne_bytes());
    let jump = Expr::Verdict(Verdict::Jump(target.into()));
    if config.node_port_addresses.is_empty() {
        let loopback = [loopback_v4(), IpNet::from(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST))];
        return loopback
            .iter()
            .map(|net| {
                let not_loopback = Rule::default().address(false, net, Compare::NotEqual);
                join([not_loopback.0, local.0.clone(), vec![jump.clone()]])
            })
            .collect();
    }
    config
        .node_port_addresses
        .iter()
        .map(|net| {
            let within = Rule::default().address(false, net, Compare::Equal);
            join([within.0, local.0.clone(), vec![jump.clone()]])
        })
        .collect()
}

fn loopback_v4() -> IpNet {
    ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8).into()
}

fn is_new() -> Vec<Expr> {
    Rule::default().state(CT_NEW).0
}

fn cluster_ip_check(family: Family) -> Vec<Expr> {
    let rule = Rule::default().family(family).load_address(false, family);
    let set = Map::ClusterIps.name(family);
    rule.push(Expr::InSet { register: 1, set }).verdict(Verdict::Goto(REJECT_CHAIN.into())).0
}

/// Look up destination, protocol and port, or the latter two, in one of the maps.
fn lookup(family: Family, map: Map) -> Vec<Expr> {
    let mut rule = Rule::default().family(family);
    // Parts of a key lie in consecutive 4-byte registers, of which register 1 is the first four.
    let mut register = 1;
    if map.has_address() {
        rule = rule.load_address(false, family);
        register = if family == Family::V4 { 9 } else { 12 };
    }
    let port_register = if register == 1 { 9 } else { register + 1 };
    rule.push(Expr::Meta { key: META_L4PROTO, register })
        .push(Expr::Payload { base: TRANSPORT, offset: 2, length: 2, register: port_register })
        .push(Expr::VerdictMap { register: 1, map: map.name(family) })
        .0
}

/// What leaves the node with another source address: marked connections, and pods' connections to
/// outside the pod network.
fn masquerading(config: &ProxyConfig) -> Vec<Vec<Expr>> {
    let marked = Rule::default()
        .meta(META_MARK)
        .bitwise(MASQUERADE_MARK, 0)
        .compare(Compare::NotEqual, &0u32.to_ne_bytes());
    // The mark has done its work: other programs must not see it.
    let unmark = marked
        .meta(META_MARK)
        .bitwise(u32::MAX, MASQUERADE_MARK)
        .push(Expr::MetaSet { key: META_MARK, register: 1 })
        .push(Expr::Masquerade);
    let mut rules = vec![unmark.0];
    rules.extend(Family::BOTH.map(hairpin));
    for net in &config.pod_cidrs {
        let multicast: IpNet = if net.addr().is_ipv4() {
            ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(224, 0, 0, 0), 4).into()
        } else {
            ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).into()
        };
        let egress = Rule::default()
            .address(true, net, Compare::Equal)
            .address(false, net, Compare::NotEqual)
            .address(false, &multicast, Compare::NotEqual)
            .push(Expr::Masquerade);
        rules.push(egress.0);
    }
    rules
}

/// A pod that reaches itself through a Service must not see its own address as source: it would answer
/// itself without the packet ever coming back through here.
fn hairpin(family: Family) -> Vec<Expr> {
    let (source, destination, length, second) = match family {
        Family::V4 => (12, 16, 4, 9),
        Family::V6 => (8, 24, 16, 2),
    };
    let set = Map::Hairpin.name(family);
    Rule::default()
        .family(family)
        .push(Expr::CtStatus { register: 1 })
        .bitwise(CT_DNAT, 0)
        .compare(Compare::NotEqual, &0u32.to_ne_bytes())
        .push(Expr::Payload { base: NETWORK, offset: source, length, register: 1 })
        .push(Expr::Payload { base: NETWORK, offset: destination, length, register: second })
        .push(Expr::InSet { register: 1, set })
        .push(Expr::Masquerade)
        .0
}

/// The rules of a Service's chain.
pub(crate) fn chain_rules(config: &ProxyConfig, chain: &Chain) -> Vec<Vec<Expr>> {
    match chain {
        Chain::Endpoint { to, protocol, affinity } => endpoint_rules(*to, *protocol, *affinity),
        Chain::Direct { protocol, targets } => vec![direct_rule(*protocol, targets)],
        Chain::Balance { family, choices } => balance_rules(*family, choices),
        Chain::ExternalCluster { service } => {
            vec![mark_rule(), vec![Expr::Verdict(Verdict::Goto(service.to_string()))]]
        }
        Chain::ExternalLocal { family, service, local } => {
            let mut rules = Vec::new();
            if let Some(service) = service {
                let goto = Verdict::Goto(service.to_string());
                // Pods and this node reach the Service whatever the policy: the client's address
                // would not be preserved by a detour anyway.
                for net in config.pod_cidrs.iter().filter(|net| Family::of_net(net) == *family) {
                    rules.push(Rule::default().address(true, net, Compare::Equal).verdict(goto.clone()).0);
                }
                let from_node = || {
                    Rule::default()
                        .push(Expr::FibType { source: true, register: 1 })
                        .equals(&LOCAL.to_ne_bytes())
                };
                rules.push(from_node().verdict(Verdict::Jump(MARK_CHAIN.into())).0);
                rules.push(from_node().verdict(goto).0);
            }
            if let Some(local) = local {
                rules.push(vec![Expr::Verdict(Verdict::Goto(local.to_string()))]);
            }
            rules
        }
        Chain::Firewall { sources } => {
            let mut rules: Vec<Vec<Expr>> = sources
                .iter()
                .map(|net| Rule::default().address(true, net, Compare::Equal).verdict(Verdict::Return).0)
                .collect();
            rules.push(vec![Expr::Verdict(Verdict::Drop)]);
            rules
        }
    }
}

fn mark_rule() -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Jump(MARK_CHAIN.into()))]
}

/// The only rule of a shared chain.
pub(crate) fn balancer_rule(balancer: &Balancer) -> Vec<Expr> {
    let Balancer { family, protocol, ways } = *balancer;
    // Parts of a key lie in consecutive 4-byte registers, of which register 1 is the first four.
    let (protocol_register, port) = if family == Family::V4 { (9, 9) } else { (12, 12) };
    Rule::default()
        .meta(META_L4PROTO)
        .equals(&[protocol.number()])
        .load_address(false, family)
        .push(Expr::Meta { key: META_L4PROTO, register: protocol_register })
        .push(Expr::Payload { base: TRANSPORT, offset: 2, length: 2, register: protocol_register + 1 })
        .push(Expr::Number { limit: ways.into(), register: protocol_register + 2 })
        .push(Expr::Map { register: 1, map: Map::Endpoints.name(family), into: 1 })
        .push(Expr::Dnat { ipv6: family == Family::V6, address: 1, port })
        .0
}

/// The destination becomes one of the targets.
fn direct_rule(protocol: Protocol, targets: &[SocketAddr]) -> Vec<Expr> {
    // nft wants to know the protocol before it shows ports.
    let rule = Rule::default().meta(META_L4PROTO).equals(&[protocol.number()]);
    let [to] = targets else { return rule.push(Expr::DnatRandom(targets.to_vec())).0 };
    rule.push(Expr::Load { register: 1, data: Expr::address_bytes(to.ip()) })
        .push(Expr::Load { register: 2, data: to.port().to_be_bytes().to_vec() })
        .push(Expr::Dnat { ipv6: to.is_ipv6(), address: 1, port: 2 })
        .0
}

fn endpoint_rules(to: SocketAddr, protocol: Protocol, affinity: Affinity) -> Vec<Vec<Expr>> {
    let family = Family::of(to.ip());
    let timeout = milliseconds(affinity.seconds);
    let remember = Expr::Remember { register: 1, set: affinity.set.to_string(), timeout };
    let remember = Rule::default().family(family).load_address(true, family).push(remember);
    vec![remember.0, direct_rule(protocol, &[to])]
}

fn balance_rules(family: Family, choices: &[Choice]) -> Vec<Vec<Expr>> {
    let mut rules = Vec::new();
    for choice in choices {
        let remembered = Rule::default()
            .family(family)
            .load_address(true, family)
            .push(Expr::InSet { register: 1, set: choice.affinity.to_string() })
            .verdict(Verdict::Goto(choice.endpoint.to_string()));
        rules.push(remembered.0);
    }
    let mut verdicts: Vec<Verdict> =
        choices.iter().map(|choice| Verdict::Goto(choice.endpoint.to_string())).collect();
    let last = if verdicts.len() == 1 { Expr::Verdict(verdicts.remove(0)) } else { Expr::Random(verdicts) };
    rules.push(vec![last]);
    rules
}

fn join<const N: usize>(parts: [Vec<Expr>; N]) -> Vec<Expr> {
    parts.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::model::{Kind, Name};

    #[test]
    fn keys_are_padded_as_the_kernel_wants() {
        let key = ElementKey {
            map: Map::ServiceIps,
            family: Family::V4,
            address: Some("10.96.0.1".parse().unwrap()),
            port: Some((Protocol::Tcp, 443)),
            number: 0,
        };
        let endpoint = ElementKey { map: Map::Endpoints, number: 3, ..key };
        let number = 3u32.to_ne_bytes();
        assert_eq!(key_bytes(&endpoint), [&[10, 96, 0, 1, 6, 0, 0, 0, 1, 0xbb, 0, 0], &number[..]].concat());
        assert_eq!(key_bytes(&key), [10, 96, 0, 1, 6, 0, 0, 0, 1, 0xbb, 0, 0]);
        let node_port = ElementKey { map: Map::ServiceNodePorts, address: None, ..key };
        assert_eq!(key_bytes(&node_port), [6, 0, 0, 0, 1, 0xbb, 0, 0]);
        let cluster_ip = ElementKey { map: Map::ClusterIps, port: None, ..key };
        assert_eq!(key_bytes(&cluster_ip), [10, 96, 0, 1]);
    }

    #[test]
    fn every_set_key_is_as_long_as_its_elements() {
        for map in Map::ALL {
            for (family, address) in [(Family::V4, "192.0.2.1"), (Family::V6, "2001:db8::1")] {
                let key = ElementKey {
                    map,
                    family,
                    address: map.has_address().then(|| address.parse().unwrap()),
                    port: map.has_port().then_some((Protocol::Udp, 53)),
                    number: 0,
                };
                let double = map == Map::Hairpin;
                let addresses = if double { 2 } else { usize::from(map.has_address()) };
                let numbers = usize::from(map == Map::Endpoints);
                let parts = addresses + if map.has_port() { 2 } else { 0 } + numbers;
                let spec = fixed_sets().into_iter().find(|set| set.name == map.name(family)).unwrap();
                assert_eq!(spec.key.len(), parts);
                let address_length = if family == Family::V4 { 4 } else { 16 };
                let expected = addresses * address_length + if map.has_port() { 8 } else { 0 } + numbers * 4;
                assert_eq!(key_bytes(&key).len(), expected, "{}", map.name(family));
            }
        }
    }

    #[test]
    fn one_endpoint_needs_no_dice() {
        let config = ProxyConfig::for_tests();
        let target = |n: u8| SocketAddr::from(([10, 244, 0, n], 80));
        let rules = |targets: Vec<SocketAddr>| {
            chain_rules(&config, &Chain::Direct { protocol: Protocol::Tcp, targets })
        };
        let (one, two) = (rules(vec![target(1)]), rules(vec![target(1), target(2)]));
        assert!(matches!(one[0].last(), Some(Expr::Dnat { ipv6: false, .. })));
        assert_eq!(two[0].last(), Some(&Expr::DnatRandom(vec![target(1), target(2)])));

        let choice = |detail| Choice {
            endpoint: Name::new(Kind::Endpoint, &[detail]),
            affinity: Name::new(Kind::Affinity, &[detail]),
        };
        let sticky =
            |choices: Vec<Choice>| chain_rules(&config, &Chain::Balance { family: Family::V4, choices });
        let (one, two) = (sticky(vec![choice("a")]), sticky(vec![choice("a"), choice("b")]));
        assert_eq!((one.len(), two.len()), (2, 3), "who is remembered comes first");
        assert_eq!(one[1], [Expr::Verdict(Verdict::Goto(choice("a").endpoint.to_string()))]);
        assert!(matches!(&two[2][0], Expr::Random(choices) if choices.len() == 2));
    }
}
