//! Puts rules together from the conditions that Kedge's tables share.

use std::net::IpAddr;

use ipnet::IpNet;

use super::batch::KeyType;
use super::expr::{Compare, Expr, Verdict};

// linux/netfilter/nf_tables.h
const META_NFPROTO: u32 = 15;
pub(crate) const META_L4PROTO: u32 = 16;
/// Where a payload is counted from: the network header, the transport header.
pub(crate) const NETWORK: u32 = 1;
pub(crate) const TRANSPORT: u32 = 2;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`, in both directions; and so on.
pub(crate) const CT_ESTABLISHED: u32 = 2;
pub(crate) const CT_RELATED: u32 = 4;
pub(crate) const CT_NEW: u32 = 8;

/// IPv4 or IPv6. Chains and maps exist per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// An address of it as part of a key.
    pub(crate) fn key(self) -> KeyType {
        match self {
            Self::V4 => KeyType::Ipv4,
            Self::V6 => KeyType::Ipv6,
        }
    }

    pub(crate) fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// For the names of chains and sets.
    pub(crate) fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

/// The transport protocols a Service can have; the numbers are IANA's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl Protocol {
    /// From `spec.ports[].protocol`; absent means TCP.
    pub(crate) fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    pub(crate) fn number(self) -> u8 {
        self as u8
    }
}

/// Puts a rule together; everything goes through register 1.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rule(pub(crate) Vec<Expr>);

impl Rule {
    pub(crate) fn push(mut self, expr: Expr) -> Self {
        self.0.push(expr);
        self
    }

    pub(crate) fn verdict(self, verdict: Verdict) -> Self {
        self.push(Expr::Verdict(verdict))
    }

    pub(crate) fn meta(self, key: u32) -> Self {
        self.push(Expr::Meta { key, register: 1 })
    }

    pub(crate) fn compare(self, compare: Compare, data: &[u8]) -> Self {
        self.push(Expr::Cmp { register: 1, compare, data: data.to_vec() })
    }

    pub(crate) fn equals(self, data: &[u8]) -> Self {
        self.compare(Compare::Equal, data)
    }

    /// On a number in the machine's byte order, as marks and states are.
    pub(crate) fn bitwise(self, mask: u32, xor: u32) -> Self {
        self.push(Expr::Bitwise {
            register: 1,
            mask: mask.to_ne_bytes().to_vec(),
            xor: xor.to_ne_bytes().to_vec(),
        })
    }

    pub(crate) fn family(self, family: Family) -> Self {
        let number = if family == Family::V4 { 2 } else { 10 };
        self.meta(META_NFPROTO).equals(&[number])
    }

    /// The connection is in one of these states (`CT_*`).
    pub(crate) fn state(self, states: u32) -> Self {
        self.push(Expr::CtState { register: 1 })
            .bitwise(states, 0)
            .compare(Compare::NotEqual, &0u32.to_ne_bytes())
    }

    pub(crate) fn load_address(self, source: bool, family: Family) -> Self {
        let (offset, length) = match (family, source) {
            (Family::V4, true) => (12, 4),
            (Family::V4, false) => (16, 4),
            (Family::V6, true) => (8, 16),
            (Family::V6, false) => (24, 16),
        };
        self.push(Expr::Payload { base: NETWORK, offset, length, register: 1 })
    }

    /// The packet is of the net's family, and its address is (not) in the net.
    pub(crate) fn address(self, source: bool, net: &IpNet, compare: Compare) -> Self {
        let family = Family::of_net(net);
        let mut rule = self.family(family).load_address(source, family);
        if net.prefix_len() < net.max_prefix_len() {
            let mask = Expr::address_bytes(net.netmask());
            let xor = vec![0; mask.len()];
            rule = rule.push(Expr::Bitwise { register: 1, mask, xor });
        }
        rule.compare(compare, &Expr::address_bytes(net.trunc().addr()))
    }
}
