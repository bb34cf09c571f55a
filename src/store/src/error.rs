//! Why the store does not open, or a transaction did not happen.

use std::io;
use std::path::{Path, PathBuf};

use crate::types::{Key, Revision};

/// Errors of opening, reading and closing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Another process has the store open.
    #[error("{} is in use by another process; stop it first", .0.display())]
    InUse(PathBuf),
    /// A setting that cannot work.
    #[error("store configuration: {0}")]
    Config(String),
    /// The folder belongs to another node.
    #[error(
        "{} belongs to node {found} and not to node {expected}; use this node's own data folder",
        path.display()
    )]
    WrongNode { path: PathBuf, found: u64, expected: u64 },
    /// The log is damaged at a place that was safely on the disk.
    #[error(
        "{} is damaged at byte {offset} ({what}); the disk lost data that was written safely: restore the \
         data folder from a snapshot or a backup, or remove this node and let it join again",
        path.display()
    )]
    DamagedLog { path: PathBuf, offset: u64, what: String },
    /// The log ends before what the state machine holds, or begins after it.
    #[error(
        "the log in {} {what}; files are missing or were replaced: put them back, or restore the data \
         folder from a snapshot",
        path.display()
    )]
    LogLost { path: PathBuf, what: String },
    /// Neither the engine nor a snapshot can be used, and the log alone is not enough.
    #[error("no usable state in {}: {what}; restore the data folder from a snapshot or a backup", path.display())]
    NoState { path: PathBuf, what: String },
    /// A snapshot file is damaged.
    #[error("snapshot {} is damaged: {what}", path.display())]
    DamagedSnapshot { path: PathBuf, what: String },
    /// The engine failed or holds something impossible.
    #[error("state engine in {}: {what}", path.display())]
    Engine { path: PathBuf, what: String },
    /// A log entry that this version cannot read.
    #[error("log entry {index} cannot be read: it was written by a newer version, or damaged")]
    Entry {
        index: u64,
        #[source]
        source: crate::command::DecodeError,
    },
    /// Raft refused.
    #[error("raft")]
    Raft(#[source] Box<raft::Error>),
    /// A thread could not be started.
    #[error("start store thread")]
    Thread(#[source] io::Error),
    /// The group cannot be asked: no leader, or none that a majority follows. Reads that need no barrier
    /// go on.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store is closed, or closing.
    #[error("the store is closed")]
    Closed,
    /// The store stopped after an error it cannot continue from; the log names it.
    #[error("the store stopped: {0}")]
    Failed(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the cause is a full disk (or quota).
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl From<raft::Error> for Error {
    fn from(error: raft::Error) -> Self {
        Self::Raft(Box::new(error))
    }
}

/// Why a transaction was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A condition does not hold; nothing changed. `current` is the key's modified revision, if it exists.
    #[error("conflict on {key}")]
    Conflict { key: Key, current: Option<Revision> },
    /// The encoded transaction is larger than the store takes.
    #[error("transaction of {size} bytes is larger than {limit}")]
    TooLarge { size: usize, limit: usize },
    /// The transaction makes no sense (an empty key, a key twice, a splice offset outside of the value).
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// The leader changed before the transaction was committed. It did not happen and will not.
    #[error("the store has no leader")]
    NoLeader,
    /// The transaction was sent on its way and may have taken effect, or may yet; read before repeating it.
    #[error("it is unknown whether the write took effect: {0}")]
    Unknown(String),
    /// The store stopped after an error, or has no majority. The transaction may have taken effect, or may
    /// yet.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The disk is full; nothing changed. The store goes on as soon as there is space.
    #[error("the disk is full")]
    Full,
    /// The objects take more than [`crate::Config::quota_bytes`] and this would add to them; nothing changed.
    /// The words are etcd's.
    #[error(
        "etcdserver: mvcc: database space exceeded: the objects take {bytes} bytes and may take {quota}; delete what \
         is not needed, or raise store-quota"
    )]
    Quota { bytes: u64, quota: u64 },
    /// The store is closed, or closing.
    #[error("the store is closed")]
    Closed,
}

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// This id has been given out.
    #[error("the id {0:016x} is taken")]
    IdTaken(u64),
    /// Another member has this name.
    #[error("the name {0} is taken by another node; remove that one first")]
    NameTaken(String),
    /// Another member has this address.
    #[error("the address {0} is taken by another node")]
    AddressTaken(String),
    /// There is no such member.
    #[error("no member has the id {0:016x}")]
    Unknown(u64),
    /// This node has no record of its own yet.
    #[error("this node is not announced as a member yet; call announce first")]
    NotAnnounced,
    /// A group cannot be without members.
    #[error("this is the only member")]
    Last,
    /// The group could not go on without it, or has nobody to take its place now; the text says who does not
    /// answer and what to do.
    #[error("{0}")]
    Unsafe(String),
    /// A field that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// A condition of the caller's transaction does not hold, or it could not be committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}
