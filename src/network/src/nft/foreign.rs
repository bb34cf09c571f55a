//! Base chains of other programs, and rules of ours among theirs.

use std::fmt;
use std::io;

use super::{GETCHAIN, GETRULE, NEWCHAIN, NEWRULE, header, kind};
use crate::netlink::{
    Builder, Message, NLM_F_DUMP, NLM_F_REQUEST, Protocol, Socket, attribute, attributes, text,
};

const NF_DROP: [u8; 4] = [0; 4];

/// Where a foreign base chain hangs (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForeignHook {
    Input = 1,
    Forward = 2,
}

/// A base chain in one of those hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignChain {
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) chain: String,
    /// What it does not accept is dropped.
    pub(crate) drops: bool,
}

impl ForeignChain {
    /// As nft calls it.
    pub(crate) fn family_name(&self) -> &'static str {
        match self.family {
            1 => "inet",
            2 => "ip",
            _ => "ip6",
        }
    }
}

impl fmt::Display for ForeignChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family_name(), self.table, self.chain)
    }
}

/// All base chains in the hook, of whatever table.
pub(crate) fn base_chains(hook: ForeignHook) -> io::Result<Vec<ForeignChain>> {
    let socket = Socket::open(Protocol::Netfilter, 0)?;
    let mut request = Builder::default();
    request.begin(kind(GETCHAIN), NLM_F_REQUEST | NLM_F_DUMP, 1);
    request.raw(&header(0));
    request.end();
    let mut found = Vec::new();
    socket.dump(request.bytes(), |message| found.extend(base_chain(message, hook)))?;
    Ok(found)
}

/// The numbers and comments of a chain's rules that have a comment.
pub(crate) fn commented_rules(chain: &ForeignChain) -> io::Result<Vec<(u64, String)>> {
    let socket = Socket::open(Protocol::Netfilter, 0)?;
    let mut request = Builder::default();
    request.begin(kind(GETRULE), NLM_F_REQUEST | NLM_F_DUMP, 1);
    request.raw(&header(chain.family));
    request.string(1, &chain.table);
    request.string(2, &chain.chain);
    request.end();
    let mut found = Vec::new();
    socket.dump(request.bytes(), |message| found.extend(commented_rule(message, chain)))?;
    Ok(found)
}

pub(super) fn commented_rule(message: &Message<'_>, of: &ForeignChain) -> Option<(u64, String)> {
    let parts = message.attributes(4);
    let is = |kind, name: &str| attribute(parts, kind).is_some_and(|found| text(found) == name);
    // Older kernels give the rules of all chains.
    if message.kind != kind(NEWRULE) || !is(1, &of.table) || !is(2, &of.chain) {
        return None;
    }
    let handle = u64::from_be_bytes(attribute(parts, 3)?.try_into().ok()?);
    let data = attribute(parts, 7)?;
    let length = usize::from(*data.get(1)?);
    (data[0] == 0).then_some(())?;
    Some((handle, text(data.get(2..2 + length)?)))
}

pub(super) fn base_chain(message: &Message<'_>, wanted: ForeignHook) -> Option<ForeignChain> {
    let family = *message.body.first()?;
    if message.kind != kind(NEWCHAIN) || ![1, 2, 10].contains(&family) {
        return None;
    }
    let parts = message.attributes(4);
    let hook = attribute(attributes(attribute(parts, 4)?), 1)?;
    let policy = attribute(parts, 5)?;
    (hook == (wanted as u32).to_be_bytes()).then_some(())?;
    let (table, chain) = (text(attribute(parts, 1)?), text(attribute(parts, 3)?));
    Some(ForeignChain { family, table, chain, drops: policy == NF_DROP })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;
    use crate::nft::{BaseChain, Batch, Hook};

    #[test]
    fn the_policy_of_a_chain_is_read() {
        let mut batch = Batch::new("filter");
        let base = BaseChain { kind: "filter", hook: Hook::Forward, priority: 0 };
        batch.add_chain("FORWARD", Some(base), "");
        let built = batch.finish();
        let mut bytes = built.bytes().to_vec();
        let find =
            |bytes: &[u8]| messages(bytes).find_map(|message| base_chain(&message, ForeignHook::Forward));
        let chain =
            |drops| ForeignChain { family: 1, table: "filter".into(), chain: "FORWARD".into(), drops };
        assert_eq!(find(&bytes), Some(chain(false)));
        // The policy's value: turn accept into drop.
        let policy = bytes.windows(8).position(|w| w == [8, 0, 5, 0, 0, 0, 0, 1]);
        let at = policy.expect("the policy attribute is there");
        bytes[at + 7] = 0;
        assert_eq!(find(&bytes), Some(chain(true)));
        assert!(messages(&bytes).all(|message| base_chain(&message, ForeignHook::Input).is_none()));
    }

    #[test]
    fn a_rule_with_our_comment_is_found_again() {
        let chain = ForeignChain { family: 2, table: "filter".into(), chain: "FORWARD".into(), drops: true };
        let mut batch = Batch::of_family(2, "filter");
        batch.insert_rule("FORWARD", &[], "kedge: pods");
        let built = batch.finish();
        let message = messages(built.bytes()).nth(1).unwrap();
        assert_eq!(commented_rule(&message, &chain), None, "it has no number yet");
        let mut numbered = Builder::default();
        numbered.begin(kind(NEWRULE), 0, 1);
        numbered.raw(message.body);
        numbered.be64(3, 42);
        numbered.end();
        let message = messages(numbered.bytes()).next().unwrap();
        assert_eq!(commented_rule(&message, &chain), Some((42, "kedge: pods".into())));
        let other = ForeignChain { chain: "OTHER".into(), ..chain };
        assert_eq!(commented_rule(&message, &other), None);
    }
}
