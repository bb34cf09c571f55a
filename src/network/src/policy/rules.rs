//! The rules of the policies' table: the fixed chains, and the rules of one policy. No Kubernetes types.
//!
//! Both directions are judged in the forward hook, after Services' addresses were translated: first what
//! the sender may send, then what the receiver may take. An accept ends its own base chain only, so a
//! packet passes when both let it. Traffic between a node and its own pods is not forwarded, and so free.

use std::net::IpAddr;

use ipnet::IpNet;

use super::content::{Chain, Content, Set};
use crate::nft::{
    BaseChain, CT_ESTABLISHED, CT_RELATED, Compare, Expr, Family, Hook, KeyType, META_L4PROTO, NETWORK,
    Protocol, Rule, SetSpec, TRANSPORT, Values, Verdict,
};

/// After the service proxy's chains, before most firewalls'.
const PRIORITY: i32 = -10;
const ICMPV6: u8 = 58;
/// Router and neighbour discovery (RFC 4861): without it an IPv6 pod reaches nobody, not even those it may.
const DISCOVERY: (u8, u8) = (133, 137);

/// Whose connections a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Egress,
    Ingress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// Is the peer the one that opens the connection?
    fn peer_is_source(self) -> bool {
        self == Self::Ingress
    }

    /// The map from the addresses of isolated pods to what is theirs.
    pub(super) fn map(self, family: Family) -> String {
        format!("{}-pods-{}", self.word(), family.digit())
    }
}

/// One way in which a peer may match.
#[derive(Debug)]
pub(super) enum Peers {
    Any,
    Block {
        net: IpNet,
        except: Vec<IpNet>,
    },
    /// The set of their addresses.
    Pods {
        family: Family,
        set: String,
    },
}

/// One way in which a port may match.
#[derive(Debug)]
pub(super) enum Ports {
    Any,
    Protocol(Protocol),
    /// Both ends included.
    Range(Protocol, u16, u16),
    /// The set of addresses, protocols and ports that pods gave the name to.
    Named {
        family: Family,
        set: String,
    },
}

/// The addresses of isolated pods, each twice: what a pod sends to itself is never stopped.
fn own(family: Family) -> String {
    format!("own-{}", family.digit())
}

/// A set of addresses.
pub(super) fn address_set(name: String, family: Family) -> Set {
    set(name, vec![family.key()], Values::None)
}

/// A set of addresses with protocol and port.
pub(super) fn port_set(name: String, family: Family) -> Set {
    set(name, vec![family.key(), KeyType::Protocol, KeyType::Port], Values::None)
}

fn set(name: String, key: Vec<KeyType>, values: Values) -> Set {
    Set { spec: SetSpec { name, key, values, timeout: None }, elements: Default::default() }
}

/// The element of a [`port_set`], each part padded to four bytes.
pub(super) fn port_key(address: IpAddr, protocol: Protocol, port: u16) -> Vec<u8> {
    let mut key = Expr::address_bytes(address);
    key.extend([protocol.number(), 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// What is always there: the base chains and what they look up.
pub(super) fn fixed() -> Content {
    let mut content = Content::default();
    let mut add = |set: Set| content.sets.insert(set.spec.name.clone(), set);
    for family in Family::BOTH {
        add(set(own(family), vec![family.key(), family.key()], Values::None));
        for direction in Direction::BOTH {
            add(set(direction.map(family), vec![family.key()], Values::Verdicts));
        }
    }
    for (n, direction) in (0..).zip(Direction::BOTH) {
        let base = Some(BaseChain { kind: "filter", hook: Hook::Forward, priority: PRIORITY + n });
        let chain = Chain { base, comment: String::new(), rules: base_rules(direction) };
        content.chains.insert(direction.word().to_owned(), chain);
    }
    content
}

fn base_rules(direction: Direction) -> Vec<Vec<Expr>> {
    let established = Rule::default().state(CT_ESTABLISHED | CT_RELATED).verdict(Verdict::Accept);
    let discovery = Rule::default()
        .meta(META_L4PROTO)
        .equals(&[ICMPV6])
        .push(Expr::Payload { base: TRANSPORT, offset: 0, length: 1, register: 1 })
        .compare(Compare::AtLeast, &[DISCOVERY.0])
        .compare(Compare::AtMost, &[DISCOVERY.1])
        .verdict(Verdict::Accept);
    let mut rules = vec![established.0, discovery.0];
    for family in Family::BOTH {
        let (offset, length, second) = match family {
            Family::V4 => (16, 4, 9),
            Family::V6 => (24, 16, 2),
        };
        let to_itself = Rule::default()
            .family(family)
            .load_address(true, family)
            .push(Expr::Payload { base: NETWORK, offset, length, register: second })
            .push(Expr::InSet { register: 1, set: own(family) })
            .verdict(Verdict::Accept);
        let pods = Rule::default()
            .family(family)
            .load_address(!direction.peer_is_source(), family)
            .push(Expr::VerdictMap { register: 1, map: direction.map(family) });
        rules.extend([to_itself.0, pods.0]);
    }
    rules
}

/// Isolates the pod with this address in this direction: `chain` says what it may do.
pub(super) fn isolate(content: &mut Content, direction: Direction, address: IpAddr, chain: &str) {
    let family = Family::of(address);
    let bytes = Expr::address_bytes(address);
    let mut put = |name: String, key: Vec<u8>, verdict| {
        if let Some(set) = content.sets.get_mut(&name) {
            set.elements.insert(key, verdict);
        }
    };
    put(direction.map(family), bytes.clone(), Some(Verdict::Goto(chain.to_owned())));
    put(own(family), [bytes.clone(), bytes].concat(), None);
}

/// The rules of pods that all of these policies' chains are about: what none of them lets pass is dropped.
pub(super) fn group_rules<'a>(policies: impl Iterator<Item = &'a String>) -> Vec<Vec<Expr>> {
    let mut rules: Vec<Vec<Expr>> =
        policies.map(|chain| vec![Expr::Verdict(Verdict::Jump(chain.clone()))]).collect();
    rules.push(vec![Expr::Counter, Expr::Verdict(Verdict::Drop)]);
    rules
}

/// Accept from (or to) these peers at this port. `None` when the two never occur together.
pub(super) fn accept(direction: Direction, peers: &Peers, ports: &Ports) -> Option<Vec<Expr>> {
    let family = match peers {
        Peers::Any => None,
        Peers::Block { net, .. } => Some(Family::of_net(net)),
        Peers::Pods { family, .. } => Some(*family),
    };
    if let (Some(peers), Ports::Named { family: ports, .. }) = (family, ports)
        && peers != *ports
    {
        return None;
    }
    let source = direction.peer_is_source();
    let rule = match peers {
        Peers::Any => Rule::default(),
        Peers::Block { net, except } => {
            let within = Rule::default().address(source, net, Compare::Equal);
            except.iter().fold(within, |rule, net| rule.address(source, net, Compare::NotEqual))
        }
        Peers::Pods { family, set } => Rule::default()
            .family(*family)
            .load_address(source, *family)
            .push(Expr::InSet { register: 1, set: set.clone() }),
    };
    Some(port(rule, ports).verdict(Verdict::Accept).0)
}

fn port(rule: Rule, ports: &Ports) -> Rule {
    let load = |register| Expr::Payload { base: TRANSPORT, offset: 2, length: 2, register };
    match ports {
        Ports::Any => rule,
        Ports::Protocol(protocol) => rule.meta(META_L4PROTO).equals(&[protocol.number()]),
        Ports::Range(protocol, first, last) => {
            let rule = rule.meta(META_L4PROTO).equals(&[protocol.number()]).push(load(1));
            if first == last {
                return rule.equals(&first.to_be_bytes());
            }
            rule.compare(Compare::AtLeast, &first.to_be_bytes()).compare(Compare::AtMost, &last.to_be_bytes())
        }
        Ports::Named { family, set } => {
            // Parts of a key lie in consecutive 4-byte registers, of which register 1 is the first four.
            let register = if *family == Family::V4 { 9 } else { 12 };
            rule.family(*family)
                .load_address(false, *family)
                .push(Expr::Meta { key: META_L4PROTO, register })
                .push(load(register + 1))
                .push(Expr::InSet { register: 1, set: set.clone() })
        }
    }
}
