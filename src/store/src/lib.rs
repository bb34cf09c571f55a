//! The replicated key-value store. Always a Raft group, from the first node on: a single node is a
//! group of one. Three layers keep the data:
//!
//! - the write-ahead log ([`wal`]): the Raft log and hard state; one append and one `fdatasync` for all
//!   transactions that wait (group commit). An acknowledged transaction is in it.
//! - the state machine ([`state`]): in memory only each key's revisions and what changed since the last
//!   flush; the rest sits in an embedded engine ([`engine`], sled) that is written in large, rare batches.
//! - snapshot files ([`snapshot`]): checksummed copies of the state machine; the log is cut only up to an
//!   index that a snapshot holds, so the engine is never the only truth and may be rebuilt at any time.
//!
//! The heart ([`core`](self::core)) is deterministic: Raft, the state machine, who votes ([`membership`]).
//! One thread ([`node`]) drives it; others write the log, and the engine and the snapshots ([`disk`]).
//! Members talk over tonic ([`transport`]) on connections that the caller opens and secures.
//!
//! Only this crate may name sled and raft. It knows nothing about Kubernetes: keys and values are opaque.

pub mod backup;
mod command;
mod core;
mod disk;
mod engine;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod logger;
mod membership;
mod node;
mod numbered;
mod raftlog;
mod recover;
#[cfg(test)]
mod sim;
mod snapshot;
mod state;
mod stats;
mod status;
mod store;
mod transport;
mod types;
mod wal;

pub use command::{DecodeError, check_encoding};
pub use error::{CommitError, Error, MemberError};
pub use membership::Member;
pub use recover::Book;
pub use stats::Stats;
pub use status::{MemberStatus, Role, Status};
pub use store::{Recovered, Store};
pub use transport::{Connection, Dial, Dialing, Peer};
pub use types::{
    Bootstrap, Change, Check, Cluster, Condition, Config, Entry, Key, Observer, Op, Revision, Txn, Value,
};
