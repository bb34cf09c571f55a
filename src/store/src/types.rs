//! What callers hand to the store and get back from it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::transport::Dial;

/// Counts transactions; one for the whole store. A fresh store is at 1.
pub type Revision = u64;

/// An opaque UTF-8 key, by convention `RESOURCE.GROUP/NAMESPACE/NAME`.
pub type Key = Arc<str>;

/// Where the store lives and how much it may use.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of the store; made if it does not exist. One process may have it open.
    pub dir: PathBuf,
    /// This node's id in the group, the one of its [`crate::Member`]; not 0, and fixed for the life of the
    /// folder. The node that founds a group may keep the default.
    pub node_id: u64,
    /// Size of one segment of the log in bytes; it is reserved on the disk at once.
    pub segment_bytes: u64,
    /// A snapshot is made when the log has grown by this many bytes (or by four times the size of the
    /// last snapshot, whichever is more: large states are not copied too often).
    pub snapshot_after_bytes: u64,
    /// Cache of the embedded engine in bytes. Reads do not come from it, so it may be small.
    pub cache_bytes: u64,
    /// How many bytes the objects may take, keys included. Who leads refuses what would add to them beyond that
    /// ([`crate::CommitError::Quota`]); 0: as many as there is space for.
    pub quota_bytes: u64,
    /// How other members are reached; without it the store is alone and stays alone.
    pub cluster: Option<Cluster>,
}

/// What a store needs to take part in a group.
#[derive(Clone)]
pub struct Cluster {
    /// Opens connections to other members.
    pub dial: Arc<dyn Dial>,
    /// What an empty folder begins as; one that holds data goes on as what it is.
    pub bootstrap: Bootstrap,
    /// A voter that is silent for so long is replaced by a standby.
    pub replace_after: Duration,
}

impl Cluster {
    /// A founding member, with silent voters replaced after a minute.
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial, bootstrap: Bootstrap::New, replace_after: Duration::from_secs(60) }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("bootstrap", &self.bootstrap)
            .field("replace_after", &self.replace_after)
            .finish_non_exhaustive()
    }
}

/// How the store of an empty folder begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// It founds a group.
    New,
    /// It was admitted to a group and gets everything from there; [`Config::node_id`] is the id it was
    /// admitted with. It may be opened again and again until that is done. A member that has lost its
    /// folder must not use its old id for that: it is removed, and admitted with another one.
    Join {
        /// The members known so far: where to answer to before the records have arrived.
        peers: Vec<crate::Member>,
    },
}

impl Config {
    /// Defaults for one node: 4 MiB segments, snapshots each 16 MiB, 2 MiB of cache.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            node_id: 1,
            segment_bytes: 4 << 20,
            snapshot_after_bytes: 16 << 20,
            cache_bytes: 2 << 20,
            quota_bytes: 0,
            cluster: None,
        }
    }
}

/// What a key must be for a transaction to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key does not exist.
    Absent,
    /// The key exists and was last modified at this revision.
    At(Revision),
    /// The key exists, at whatever revision.
    Any,
}

/// A check on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub key: Key,
    pub check: Check,
}

/// The final bytes of a value. With `splice` the decimal digits of the transaction's revision are
/// inserted at that byte offset when it is applied, so that JSON stays opaque to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub bytes: Bytes,
    pub splice: Option<u32>,
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create or replace.
    Put { key: Key, value: Value },
    /// Remove; removing what does not exist changes nothing.
    Delete { key: Key },
}

impl Op {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Checks and changes that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub conditions: Vec<Condition>,
    /// No key may occur twice.
    pub ops: Vec<Op>,
    /// The transaction may wait up to 400 ms for another one to share its flush: for leases and events.
    pub lazy: bool,
}

/// What is stored under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value, with the revision spliced in.
    pub bytes: Bytes,
    /// Where the digits of `modified` start in `bytes`.
    pub splice: Option<u32>,
    pub created: Revision,
    pub modified: Revision,
}

/// What a transaction did to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub revision: Revision,
    /// `None`: deleted.
    pub entry: Option<Entry>,
}

/// Sees every transaction, one call at a time and in order, before it is acknowledged: whoever holds an
/// acknowledgement finds the observer up to date. Must be quick and must not block.
pub trait Observer: Send + Sync + 'static {
    /// Everything that exists, in no particular order: once at open, before any [`Observer::applied`],
    /// and again when a snapshot replaced the state; it replaces all the observer knew.
    fn reset(&self, revision: Revision, entries: &mut dyn Iterator<Item = (Key, Entry)>);

    /// One transaction. `changes` may be empty: the store has a few keys of its own.
    fn applied(&self, revision: Revision, changes: &[Change]);
}
