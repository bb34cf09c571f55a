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
//! One thread ([`node`]) drives Raft, the log and the state machine; a second ([`disk`]) writes the engine
//! and the snapshots. Only this crate may name sled and raft. It knows nothing about Kubernetes: keys
//! and values are opaque.

mod command;
mod disk;
mod engine;
mod error;
mod logger;
mod node;
mod raftlog;
mod recover;
mod snapshot;
mod state;
mod stats;
mod store;
mod types;
mod wal;

pub use command::{DecodeError, check_encoding};
pub use error::{CommitError, Error};
pub use stats::Stats;
pub use store::Store;
pub use types::{Change, Check, Condition, Config, Entry, Key, Observer, Op, Revision, Txn, Value};
