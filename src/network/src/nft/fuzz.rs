//! Messages about nftables, for fuzz/.

use super::foreign::{self, ForeignChain, ForeignHook};
use super::{BaseChain, Batch, Hook, transaction};
use crate::netlink::{Message, attribute};

pub(crate) fn message(message: &Message<'_>) {
    let _ = transaction::describe(message);
    let _ = foreign::base_chain(message, ForeignHook::Forward);
    let chain = ForeignChain { family: 1, table: "filter".into(), chain: "forward".into(), drops: false };
    let _ = foreign::commented_rule(message, &chain);
    let _ = transaction::remembered(attribute(message.attributes(4), 3).unwrap_or_default());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut batch = Batch::new("filter");
    batch.add_table();
    let base = BaseChain { kind: "filter", hook: Hook::Forward, priority: 0 };
    batch.add_chain("forward", Some(base), "words");
    batch.restore_elements("set", vec![(vec![192, 0, 2, 7], 1234)]);
    vec![batch.finish().bytes().to_vec()]
}
