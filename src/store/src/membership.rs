//! Who belongs to the group, and who of them votes. Pure: no clock, no files, no network.
//!
//! Members are data: records under [`PREFIX`], written in the transaction that admits a node. The Raft
//! configuration follows the records: the leader compares the two and [`plan`] says what to change next.
//! Nobody edits the configuration by hand.

mod leave;
mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

pub(crate) use self::leave::objection;
#[cfg(test)]
pub(crate) use self::plan::wanted_voters;
pub(crate) use self::plan::{Health, Step, plan};
pub(crate) use self::record::{
    PREFIX, address_key, decode, encode, is_reserved, key, leaving_key, name_key, parse_key, parse_leaving,
};

/// A removal that neither ended nor was taken back in this time was cut off. Longer than one can take.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(60);

/// A node that takes part in the store. Workers are no members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Random, not 0, and never used again after the member is gone: see [`Member::new_id`].
    pub id: u64,
    /// The node's name; no two members have the same one.
    pub name: String,
    /// `host:port` of the cluster port; no two members have the same one.
    pub address: String,
    /// Voters are spread over as many of these as there are.
    pub failure_domain: Option<String>,
}

impl Member {
    /// An id for a new member.
    pub fn new_id() -> u64 {
        loop {
            // Each RandomState is keyed from the system's random source.
            let id = RandomState::new().build_hasher().finish();
            if id != 0 {
                return id;
            }
        }
    }
}

/// All members by id.
pub(crate) type Members = BTreeMap<u64, Member>;
