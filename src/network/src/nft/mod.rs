//! nftables over netlink: expressions, transactions and notifications, as linux/netfilter/nf_tables.h
//! defines them. Knows nothing of Services; only `netlink` lies below.

use sha2::{Digest, Sha256};

mod batch;
mod expr;
mod foreign;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod rule;
mod transaction;
mod watch;

pub(crate) use batch::{BaseChain, Batch, Hook, KeyType, SetSpec, Values};
pub(crate) use expr::{Compare, Expr, Verdict};
pub(crate) use foreign::{ForeignChain, ForeignHook, base_chains, commented_rules};
pub(crate) use rule::{
    CT_ESTABLISHED, CT_NEW, CT_RELATED, Family, META_L4PROTO, NETWORK, Protocol, Rule, TRANSPORT,
};
pub(crate) use transaction::{Remembered, TransactionError, Writer, delete_table};
pub(crate) use watch::{Noticed, Watcher};

/// linux/netfilter/nfnetlink.h
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: IPv4 and IPv6 in one table; NAT chains work in it since Linux 5.2.
const FAMILY_INET: u8 = 1;

/// For names of chains and sets: 64 bits of SHA-256, so that nobody can make two things share one.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// `struct nfgenmsg`: family, version 0, resource id 0.
fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}
