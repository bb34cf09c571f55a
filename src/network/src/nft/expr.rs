//! The expressions that Kedge's rules are made of, and their encoding. Each writes one `NFTA_LIST_ELEM`
//! of a rule. Registers are numbered as the kernel numbers them: 1 to 4 hold 16 bytes each, 8 to 23
//! hold 4 bytes each of the same memory.

use std::net::{IpAddr, SocketAddr};

use crate::netlink::Builder;

/// `NFTA_DATA_VALUE` and `NFTA_DATA_VERDICT`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    /// As the content of a data attribute (an element's data, an immediate's data).
    pub(super) fn encode(&self, out: &mut Builder, kind: u16) {
        let (code, chain): (i32, Option<&str>) = match self {
            Self::Accept => (1, None),
            Self::Drop => (0, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        out.nested(kind, |out| {
            out.nested(DATA_VERDICT, |out| {
                out.attribute(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    out.string(2, chain);
                }
            });
        });
    }
}

/// How a register is compared with data (`NFT_CMP_*`); byte by byte, so order means network byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Load `NFT_META_*` into a register.
    Meta { key: u32, register: u32 },
    /// Set `NFT_META_*` from a register.
    MetaSet { key: u32, register: u32 },
    /// Load bytes of the network header (base 1) or the transport header (base 2).
    Payload { base: u32, offset: u32, length: u32, register: u32 },
    /// End the rule unless the register compares so.
    Cmp { register: u32, compare: Compare, data: Vec<u8> },
    /// register = (register & mask) ^ xor
    Bitwise { register: u32, mask: Vec<u8>, xor: Vec<u8> },
    /// End the rule unless the key in the register is in the set.
    InSet { register: u32, set: String },
    /// Do what the map says for the key in the register.
    VerdictMap { register: u32, map: String },
    /// One of the verdicts with equal chance; becomes an anonymous map.
    Random(Vec<Verdict>),
    /// Change the destination to one of these with equal chance, all of one family; becomes an anonymous
    /// map.
    DnatRandom(Vec<SocketAddr>),
    /// A random number below the limit into a register.
    Number { limit: u32, register: u32 },
    /// What the map has for the key in the register, into a register.
    Map { register: u32, map: String, into: u32 },
    /// Load data into a register.
    Load { register: u32, data: Vec<u8> },
    /// Count packets and bytes.
    Counter,
    /// Do it.
    Verdict(Verdict),
    /// The connection's state bits into a register.
    CtState { register: u32 },
    /// The connection's status bits (`IPS_*`) into a register.
    CtStatus { register: u32 },
    /// The address type (`RTN_*`) of the source or destination into a register.
    FibType { source: bool, register: u32 },
    /// Change the destination to the address in `address` and the port in `port` (registers).
    Dnat { ipv6: bool, address: u32, port: u32 },
    /// Source becomes the outgoing interface's address, with a fully random port.
    Masquerade,
    /// Answer with a TCP reset.
    RejectTcp,
    /// Answer with ICMP or ICMPv6 port unreachable.
    RejectPort,
    /// Put the key in the register into the set, or renew it there. Milliseconds.
    Remember { register: u32, set: String, timeout: u64 },
}

impl Expr {
    /// The bytes of an address, as they stand in packets and registers.
    pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    /// `random_map` is the id of the anonymous set that a [`Expr::Random`] of this rule looks up.
    pub(super) fn encode(&self, out: &mut Builder, random_map: u32) {
        match self {
            Self::Meta { key, register } => element(out, "meta", |out| {
                out.be32(2, *key);
                out.be32(1, *register);
            }),
            Self::MetaSet { key, register } => element(out, "meta", |out| {
                out.be32(2, *key);
                out.be32(3, *register);
            }),
            Self::Payload { base, offset, length, register } => element(out, "payload", |out| {
                out.be32(1, *register);
                out.be32(2, *base);
                out.be32(3, *offset);
                out.be32(4, *length);
            }),
            Self::Cmp { register, compare, data } => element(out, "cmp", |out| {
                out.be32(1, *register);
                out.be32(2, *compare as u32);
                value(out, 3, data);
            }),
            Self::Bitwise { register, mask, xor } => element(out, "bitwise", |out| {
                out.be32(1, *register);
                out.be32(2, *register);
                out.be32(3, u32::try_from(mask.len()).unwrap_or(0));
                value(out, 4, mask);
                value(out, 5, xor);
            }),
            Self::InSet { register, set } => element(out, "lookup", |out| {
                out.string(1, set);
                out.be32(2, *register);
            }),
            Self::VerdictMap { register, map } => element(out, "lookup", |out| {
                out.string(1, map);
                out.be32(2, *register);
                out.be32(3, 0);
            }),
            Self::Random(choices) => {
                number(out, choices.len(), 1);
                element(out, "lookup", |out| {
                    out.string(1, super::batch::ANONYMOUS_MAP);
                    out.be32(2, 1);
                    out.be32(3, 0);
                    out.be32(4, random_map);
                });
            }
            Self::DnatRandom(targets) => {
                number(out, targets.len(), 1);
                element(out, "lookup", |out| {
                    out.string(1, super::batch::ANONYMOUS_MAP);
                    out.be32(2, 1);
                    out.be32(3, 1);
                    out.be32(4, random_map);
                });
                let ipv6 = targets.first().is_some_and(SocketAddr::is_ipv6);
                // The port lies behind the address: registers of 4 bytes begin at 8.
                Self::Dnat { ipv6, address: 1, port: if ipv6 { 12 } else { 9 } }.encode(out, 0);
            }
            Self::Number { limit, register } => {
                number(out, usize::try_from(*limit).unwrap_or(usize::MAX), *register);
            }
            Self::Map { register, map, into } => element(out, "lookup", |out| {
                out.string(1, map);
                out.be32(2, *register);
                out.be32(3, *into);
            }),
            Self::Load { register, data } => element(out, "immediate", |out| {
                out.be32(1, *register);
                value(out, 2, data);
            }),
            Self::Counter => element(out, "counter", |out| {
                out.be64(1, 0);
                out.be64(2, 0);
            }),
            Self::Verdict(verdict) => element(out, "immediate", |out| {
                out.be32(1, 0);
                verdict.encode(out, 2);
            }),
            Self::CtState { register } => element(out, "ct", |out| {
                out.be32(2, 0);
                out.be32(1, *register);
            }),
            Self::CtStatus { register } => element(out, "ct", |out| {
                out.be32(2, 2);
                out.be32(1, *register);
            }),
            Self::FibType { source, register } => element(out, "fib", |out| {
                out.be32(1, *register);
                out.be32(2, 3);
                out.be32(3, if *source { 1 } else { 2 });
            }),
            Self::Dnat { ipv6, address, port } => element(out, "nat", |out| {
                out.be32(1, 1);
                out.be32(2, if *ipv6 { 10 } else { 2 });
                out.be32(3, *address);
                out.be32(5, *port);
            }),
            // NF_NAT_RANGE_PROTO_RANDOM_FULLY
            Self::Masquerade => element(out, "masq", |out| out.be32(1, 0x10)),
            Self::RejectTcp => reject(out, 1, 0),
            // NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_PORT_UNREACH
            Self::RejectPort => reject(out, 2, 1),
            Self::Remember { register, set, timeout } => element(out, "dynset", |out| {
                out.string(1, set);
                // NFT_DYNSET_OP_UPDATE
                out.be32(3, 1);
                out.be32(4, *register);
                out.be64(6, *timeout);
            }),
        }
    }
}

/// Random, below the limit.
fn number(out: &mut Builder, limit: usize, register: u32) {
    element(out, "numgen", |out| {
        out.be32(1, register);
        out.be32(2, u32::try_from(limit).unwrap_or(u32::MAX));
        out.be32(3, 1);
        out.be32(4, 0);
    });
}

fn reject(out: &mut Builder, kind: u32, code: u8) {
    element(out, "reject", |out| {
        out.be32(1, kind);
        out.attribute(2, &[code]);
    });
}

/// `NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA { .. } }`
fn element(out: &mut Builder, name: &str, fill: impl FnOnce(&mut Builder)) {
    out.nested(1, |out| {
        out.string(1, name);
        out.nested(2, fill);
    });
}

fn value(out: &mut Builder, kind: u16, data: &[u8]) {
    out.nested(kind, |out| out.attribute(DATA_VALUE, data));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(expr: &Expr) -> Vec<u8> {
        let mut out = Builder::default();
        expr.encode(&mut out, 9);
        out.bytes().to_vec()
    }

    /// Attribute headers are in the machine's byte order; these bytes were taken from `nft
    /// --debug=mnl` on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn meta_load_is_what_nft_sends() {
        #[rustfmt::skip]
        let expected = [
            36, 0, 1, 0x80,
            9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
            20, 0, 2, 0x80,
            8, 0, 2, 0, 0, 0, 0, 3,
            8, 0, 1, 0, 0, 0, 0, 1,
        ];
        assert_eq!(encoded(&Expr::Meta { key: 3, register: 1 }), expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_jump_is_what_nft_sends() {
        #[rustfmt::skip]
        let expected = [
            64, 0, 1, 0x80,
            14, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0,
            44, 0, 2, 0x80,
            8, 0, 1, 0, 0, 0, 0, 0,
            32, 0, 2, 0x80,
            28, 0, 2, 0x80,
            8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfd,
            13, 0, 2, 0, b's', b'e', b'r', b'v', b'i', b'c', b'e', b's', 0, 0, 0, 0,
        ];
        assert_eq!(encoded(&Expr::Verdict(Verdict::Jump("services".into()))), expected);
    }

    #[test]
    fn addresses_keep_the_byte_order_of_packets() {
        assert_eq!(Expr::address_bytes("10.96.0.1".parse().unwrap()), [10, 96, 0, 1]);
        assert_eq!(Expr::address_bytes("fd00::1".parse().unwrap())[..2], [0xfd, 0]);
    }
}
