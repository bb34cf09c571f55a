//! One transaction under construction: the messages between `NFNL_MSG_BATCH_BEGIN` and `_END`.

use std::net::SocketAddr;

use super::expr::{Expr, Verdict};
use super::{
    DELCHAIN, DELRULE, DELSET, DELSETELEM, DELTABLE, FAMILY_INET, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM,
    NEWTABLE, SUBSYSTEM, header, kind,
};
use crate::netlink::{Builder, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// The kernel replaces `%d` by a number.
pub(super) const ANONYMOUS_MAP: &str = "__map%d";
/// An attribute's length has 16 bits; lists of elements are split well below.
const LIST_LIMIT: usize = 32 * 1024;

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
/// nft's own number for "verdict" as data type.
const TYPE_VERDICT: u32 = 0xffff_ff00;
const TYPE_INTEGER: u32 = 4;

/// Where a base chain hangs, with nft's names for the kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A chain that packets enter from the kernel. The policy is accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BaseChain {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

/// One part of a key. Each takes a multiple of four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyType {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    /// A number in the machine's byte order. (nft calls it a mark: its plain integers have no size.)
    Number,
}

/// What the elements of a named set map to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// Nothing: it is a set.
    None,
    Verdicts,
    /// Address and port.
    Targets {
        ipv6: bool,
    },
}

impl KeyType {
    /// nft's number of the type, so that `nft list` can print elements.
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Number => 19,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Ipv6 => 16,
            Self::Ipv4 | Self::Protocol | Self::Port | Self::Number => 4,
        }
    }
}

/// A named set or verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetSpec {
    pub(crate) name: String,
    pub(crate) key: Vec<KeyType>,
    pub(crate) values: Values,
    /// Filled by rules; elements leave after so many milliseconds.
    pub(crate) timeout: Option<u64>,
}

/// The messages of one transaction on one table.
#[derive(Debug)]
pub(crate) struct Batch {
    family: u8,
    out: Builder,
    table: String,
    sequence: u32,
    next_set: u32,
}

impl Batch {
    /// On a table of family `inet`.
    pub(crate) fn new(table: &str) -> Self {
        Self::of_family(FAMILY_INET, table)
    }

    /// On a table of another family (`NFPROTO_*`).
    pub(crate) fn of_family(family: u8, table: &str) -> Self {
        let (out, table) = (Builder::default(), table.to_owned());
        let mut batch = Self { family, out, table, sequence: 0, next_set: 1 };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// Whether nothing was put in.
    pub(crate) fn is_empty(&self) -> bool {
        self.sequence == 1
    }

    /// The sequence number of the message that was added last.
    pub(crate) fn last_sequence(&self) -> u32 {
        self.sequence - 1
    }

    /// The bytes to send, in one piece: the last change asks for an acknowledgement.
    pub(crate) fn finish(mut self) -> Builder {
        self.out.or_flags_of_last(NLM_F_ACK);
        self.frame(BATCH_END);
        self.out
    }

    fn frame(&mut self, message: u16) {
        self.out.begin(message, NLM_F_REQUEST, self.sequence);
        // AF_UNSPEC, version 0, and the subsystem in network byte order.
        self.out.raw(&[0, 0, 0, SUBSYSTEM.to_be_bytes()[1]]);
        self.out.end();
        self.sequence += 1;
    }

    fn message(&mut self, message: u16, flags: u16, fill: impl FnOnce(&mut Builder)) {
        self.out.begin(kind(message), NLM_F_REQUEST | flags, self.sequence);
        self.out.raw(&header(self.family));
        self.out.string(1, &self.table);
        fill(&mut self.out);
        self.out.end();
        self.sequence += 1;
    }

    /// No error when it exists.
    pub(crate) fn add_table(&mut self) {
        self.message(NEWTABLE, NLM_F_CREATE, |out| out.be32(2, 0));
    }

    /// With everything in it. An error when there is none.
    pub(crate) fn delete_table(&mut self) {
        self.message(DELTABLE, 0, |_| ());
    }

    /// No error when it exists. `comment` shows in `nft list`.
    pub(crate) fn add_chain(&mut self, name: &str, base: Option<BaseChain>, comment: &str) {
        self.message(NEWCHAIN, NLM_F_CREATE, |out| {
            out.string(3, name);
            if let Some(base) = base {
                out.string(7, base.kind);
                // NF_ACCEPT
                out.be32(5, 1);
                out.nested(4, |out| {
                    out.be32(1, base.hook as u32);
                    out.attribute(2, &base.priority.to_be_bytes());
                });
            }
            if !comment.is_empty() {
                out.attribute(12, &user_comment(comment));
            }
        });
    }

    /// With its rules. An error while something refers to it.
    pub(crate) fn delete_chain(&mut self, name: &str) {
        self.message(DELCHAIN, 0, |out| out.string(3, name));
    }

    /// Remove all rules of a chain.
    pub(crate) fn flush_chain(&mut self, name: &str) {
        self.message(DELRULE, 0, |out| out.string(2, name));
    }

    /// Append a rule. At most one [`Expr::Random`] or [`Expr::DnatRandom`] in it.
    pub(crate) fn add_rule(&mut self, chain: &str, rule: &[Expr]) {
        let mut random_map = 0;
        for expr in rule {
            match expr {
                Expr::Random(choices) => {
                    let values = choices.iter().cloned().map(Data::Verdict).collect();
                    random_map = self.anonymous_map(TYPE_VERDICT, 0, values);
                }
                Expr::DnatRandom(targets) => {
                    let ipv6 = targets.first().is_some_and(SocketAddr::is_ipv6);
                    let (kind, length) = target_type(ipv6);
                    let values = targets.iter().map(target_data).collect();
                    random_map = self.anonymous_map(kind, length, values);
                }
                _ => {}
            }
        }
        self.message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |out| {
            out.string(2, chain);
            out.nested(4, |out| rule.iter().for_each(|expr| expr.encode(out, random_map)));
        });
    }

    /// Put a rule before all others of its chain. `comment` shows in `nft list`.
    pub(crate) fn insert_rule(&mut self, chain: &str, rule: &[Expr], comment: &str) {
        self.message(NEWRULE, NLM_F_CREATE, |out| {
            out.string(2, chain);
            out.nested(4, |out| rule.iter().for_each(|expr| expr.encode(out, 0)));
            // NFTA_RULE_USERDATA
            out.attribute(7, &user_comment(comment));
        });
    }

    /// Remove one rule by the number that the kernel has given it.
    pub(crate) fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.message(DELRULE, 0, |out| {
            out.string(2, chain);
            out.be64(3, handle);
        });
    }

    /// From 0, 1, ... to the values.
    fn anonymous_map(&mut self, data_type: u32, data_length: u32, values: Vec<Data>) -> u32 {
        let id = self.next_set;
        self.next_set += 1;
        self.message(NEWSET, NLM_F_CREATE, |out| {
            out.string(2, ANONYMOUS_MAP);
            out.be32(3, SET_ANONYMOUS | SET_CONSTANT | SET_MAP);
            out.be32(4, TYPE_INTEGER);
            out.be32(5, 4);
            out.be32(6, data_type);
            out.be32(7, data_length);
            out.be32(10, id);
            // NFTA_SET_DESC { NFTA_SET_DESC_SIZE }
            out.nested(9, |out| out.be32(1, u32::try_from(values.len()).unwrap_or(u32::MAX)));
            // NFTNL_UDATA_SET_KEYBYTEORDER = host: for `nft list` only.
            let mut order = vec![0, 4];
            order.extend_from_slice(&1u32.to_ne_bytes());
            if data_length > 0 {
                // NFTNL_UDATA_SET_DATABYTEORDER = network.
                order.extend_from_slice(&[1, 4]);
                order.extend_from_slice(&2u32.to_ne_bytes());
            }
            out.attribute(13, &order);
        });
        let keyed = (0u32..).zip(values).map(|(n, value)| (n.to_ne_bytes().to_vec(), value));
        self.elements(NEWSETELEM, ANONYMOUS_MAP, Some(id), keyed);
        id
    }

    /// No error when it exists with the same description.
    pub(crate) fn add_set(&mut self, set: &SetSpec) {
        let id = self.next_set;
        self.next_set += 1;
        let key_type = set.key.iter().fold(0, |whole, part| whole << 6 | part.number());
        let length: u32 = set.key.iter().map(|part| part.length()).sum();
        let mut flags = 0;
        let values = match set.values {
            Values::None => None,
            Values::Verdicts => Some((TYPE_VERDICT, 0)),
            Values::Targets { ipv6 } => Some(target_type(ipv6)),
        };
        if values.is_some() {
            flags |= SET_MAP;
        }
        if set.timeout.is_some() {
            flags |= SET_TIMEOUT | SET_EVAL;
        }
        self.message(NEWSET, NLM_F_CREATE, |out| {
            out.string(2, &set.name);
            out.be32(3, flags);
            out.be32(4, key_type);
            out.be32(5, length);
            if let Some((data_type, length)) = values {
                out.be32(6, data_type);
                out.be32(7, length);
            }
            out.be32(10, id);
            if let Some(timeout) = set.timeout {
                out.be64(11, timeout);
                out.nested(9, |out| out.be32(1, 65_535));
            }
        });
    }

    /// An error while something refers to it.
    pub(crate) fn delete_set(&mut self, name: &str) {
        self.message(DELSET, 0, |out| out.string(2, name));
    }

    /// Put elements into a named set (no verdict) or map.
    pub(crate) fn add_elements(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = (Vec<u8>, Option<Verdict>)>,
    ) {
        let data = |verdict: Option<Verdict>| verdict.map_or(Data::None, Data::Verdict);
        let elements = elements.into_iter().map(|(key, verdict)| (key, data(verdict)));
        self.elements(NEWSETELEM, set, None, elements);
    }

    /// Put elements into a named map of targets.
    pub(crate) fn add_targets(
        &mut self,
        map: &str,
        elements: impl IntoIterator<Item = (Vec<u8>, SocketAddr)>,
    ) {
        let elements = elements.into_iter().map(|(key, target)| (key, target_data(&target)));
        self.elements(NEWSETELEM, map, None, elements);
    }

    /// Put back elements that leave the set by themselves after so many milliseconds.
    pub(crate) fn restore_elements(&mut self, set: &str, elements: Vec<(Vec<u8>, u64)>) {
        let elements = elements.into_iter().map(|(key, left)| (key, Data::Left(left)));
        self.elements(NEWSETELEM, set, None, elements);
    }

    /// Take elements out of a named set or map. An error for one that is not there.
    pub(crate) fn delete_elements(&mut self, set: &str, keys: impl IntoIterator<Item = Vec<u8>>) {
        self.elements(DELSETELEM, set, None, keys.into_iter().map(|key| (key, Data::None)));
    }

    fn elements(
        &mut self,
        message: u16,
        set: &str,
        id: Option<u32>,
        elements: impl IntoIterator<Item = (Vec<u8>, Data)>,
    ) {
        let mut elements = elements.into_iter().peekable();
        let flags = if message == NEWSETELEM { NLM_F_CREATE } else { 0 };
        while elements.peek().is_some() {
            let elements = &mut elements;
            self.message(message, flags, |out| {
                out.string(2, set);
                if let Some(id) = id {
                    out.be32(4, id);
                }
                out.nested(3, |out| {
                    let start = out.len();
                    while out.len() - start < LIST_LIMIT
                        && let Some((key, data)) = elements.next()
                    {
                        out.nested(1, |out| {
                            out.nested(1, |out| out.attribute(1, &key));
                            match data {
                                Data::None => {}
                                Data::Verdict(verdict) => verdict.encode(out, 2),
                                // NFTA_SET_ELEM_EXPIRATION
                                Data::Left(left) => out.be64(5, left),
                                Data::Bytes(bytes) => out.nested(2, |out| out.attribute(1, &bytes)),
                            }
                        });
                    }
                });
            });
        }
    }
}

/// What an element maps to.
enum Data {
    None,
    Verdict(Verdict),
    Bytes(Vec<u8>),
    /// To nothing, and so many milliseconds are left of its time.
    Left(u64),
}

/// nft's number for an address with a port, and its length.
fn target_type(ipv6: bool) -> (u32, u32) {
    let address = if ipv6 { KeyType::Ipv6 } else { KeyType::Ipv4 };
    (address.number() << 6 | KeyType::Port.number(), address.length() + KeyType::Port.length())
}

/// Address and port, the latter padded.
fn target_data(target: &SocketAddr) -> Data {
    let mut bytes = Expr::address_bytes(target.ip());
    bytes.extend(target.port().to_be_bytes());
    bytes.extend([0, 0]);
    Data::Bytes(bytes)
}

/// `NFTNL_UDATA_CHAIN_COMMENT` and `NFTNL_UDATA_RULE_COMMENT`, both 0: type, length, text with its zero; at most 128 bytes for nft.
fn user_comment(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(126);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let text = &comment.as_bytes()[..end];
    let mut bytes = vec![0, u8::try_from(end + 1).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Message, attribute, attributes, messages, text};

    #[test]
    fn a_batch_is_framed_numbered_and_acknowledged_once() {
        let mut batch = Batch::new("kedge");
        assert!(batch.is_empty());
        batch.add_table();
        batch.add_chain("c", None, "");
        assert_eq!(batch.last_sequence(), 2);
        let built = batch.finish();
        let read: Vec<Message<'_>> = messages(built.bytes()).collect();
        assert_eq!(read.iter().map(|m| m.sequence).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(read[0].kind, BATCH_BEGIN);
        assert_eq!(read[0].body, [0, 0, 0, 10]);
        assert_eq!(read[2].kind, 10 << 8 | NEWCHAIN);
        assert_eq!(text(attribute(read[2].attributes(4), 3).unwrap()), "c");
        assert_eq!(read[3].kind, BATCH_END);
        // Flags of the last change: REQUEST | ACK | CREATE.
        let at = 20 + 40 + 6;
        assert_eq!(u16::from_ne_bytes([built.bytes()[at], built.bytes()[at + 1]]), 0x405);
    }

    #[test]
    fn long_lists_are_split_and_nothing_is_lost() {
        let mut batch = Batch::new("kedge");
        let keys =
            (0u32..5000).map(|n| (n.to_be_bytes().to_vec(), Some(Verdict::Goto(format!("chain-{n}")))));
        batch.add_elements("map", keys);
        let built = batch.finish();
        let read: Vec<Message<'_>> = messages(built.bytes()).filter(|m| m.kind == kind(NEWSETELEM)).collect();
        assert!(read.len() > 1);
        let total: usize =
            read.iter().map(|m| attributes(attribute(m.attributes(4), 3).unwrap()).count()).sum();
        assert_eq!(total, 5000);
    }

    #[test]
    fn a_concatenated_key_has_the_type_number_nft_gives_it() {
        let mut batch = Batch::new("kedge");
        let key = vec![KeyType::Ipv4, KeyType::Protocol, KeyType::Port];
        batch.add_set(&SetSpec { name: "m".into(), key, values: Values::Verdicts, timeout: None });
        let built = batch.finish();
        let set = messages(built.bytes()).nth(1).unwrap();
        assert_eq!(attribute(set.attributes(4), 4).unwrap(), [0, 0, 0x73, 0x0d]);
        assert_eq!(attribute(set.attributes(4), 5).unwrap(), [0, 0, 0, 12]);
    }

    #[test]
    fn a_random_choice_is_an_anonymous_map_before_its_rule() {
        let mut batch = Batch::new("kedge");
        batch.add_rule("c", &[Expr::Random(vec![Verdict::Goto("a".into()), Verdict::Goto("b".into())])]);
        let built = batch.finish();
        let kinds: Vec<u16> = messages(built.bytes()).map(|m| m.kind & 0xff).collect();
        assert_eq!(kinds, [BATCH_BEGIN, NEWSET, NEWSETELEM, NEWRULE, BATCH_END]);
    }

    #[test]
    fn targets_are_padded_and_typed_as_nft_types_them() {
        for (target, kind, length) in [("10.244.0.5:80", 7 << 6 | 13, 8), ("[fd00::5]:80", 8 << 6 | 13, 20)] {
            let target: SocketAddr = target.parse().unwrap();
            let mut batch = Batch::new("kedge");
            batch.add_rule("c", &[Expr::DnatRandom(vec![target; 2])]);
            let built = batch.finish();
            let read: Vec<Message<'_>> = messages(built.bytes()).collect();
            assert_eq!(attribute(read[1].attributes(4), 6).unwrap(), u32::to_be_bytes(kind));
            assert_eq!(attribute(read[1].attributes(4), 7).unwrap(), u32::to_be_bytes(length));
            let list = attributes(attribute(read[2].attributes(4), 3).unwrap());
            let data: Vec<&[u8]> = list
                .map(|(_, element)| {
                    attribute(attributes(attribute(attributes(element), 2).unwrap()), 1).unwrap()
                })
                .collect();
            assert_eq!(data.len(), 2);
            assert_eq!(data[0].len(), usize::try_from(length).unwrap());
            assert_eq!(data[0][data[0].len() - 4..], [0, 80, 0, 0]);
        }
    }

    #[test]
    fn comments_are_cut_at_a_character() {
        let bytes = user_comment(&"ä".repeat(100));
        assert_eq!(bytes.len(), 2 + 126 + 1);
        assert_eq!(usize::from(bytes[1]), 127);
    }
}
