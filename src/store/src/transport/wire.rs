//! The messages on the wire. Raft's own stay bytes here: they come from another version of prost.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::error::CommitError;
use crate::status::{Role, Status};
use crate::types::Revision;

pub(super) const SERVICE: &str = "kedge.store.v1.Group";
pub(super) const DELIVER: &str = "/kedge.store.v1.Group/Deliver";
pub(super) const PROPOSE: &str = "/kedge.store.v1.Group/Propose";
pub(super) const HEALTH: &str = "/kedge.store.v1.Group/Health";
pub(super) const OFFER: &str = "/kedge.store.v1.Group/OfferSnapshot";
pub(super) const SNAPSHOT: &str = "/kedge.store.v1.Group/SendSnapshot";

/// No message is larger: a batch ends at a megabyte or after one message, and that has one transaction
/// at most beyond a megabyte.
pub(super) const LARGEST: usize = 32 << 20;

/// Raft messages in the order in which they were sent.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Batch {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(super) messages: Vec<Bytes>,
    /// Where the sender can be reached; in the first batch of a stream. Who has just joined has no records
    /// to look that up.
    #[prost(string, optional, tag = "2")]
    pub(super) address: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Empty {}

/// A transaction for the leader.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Propose {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) command: Bytes,
    #[prost(bool, tag = "2")]
    pub(super) lazy: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Proposed {
    #[prost(enumeration = "Verdict", tag = "1")]
    pub(super) verdict: i32,
    /// The transaction's revision; for a conflict that of the key, if it exists.
    #[prost(uint64, optional, tag = "2")]
    pub(super) revision: Option<Revision>,
    /// The key of a conflict, or what else there is to say.
    #[prost(string, tag = "3")]
    pub(super) text: String,
    /// What the leader had applied when it answered.
    #[prost(uint64, tag = "4")]
    pub(super) seen: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Verdict {
    /// It did not happen; somebody else leads, or nobody.
    NotLeader = 0,
    Done = 1,
    Conflict = 2,
    Full = 3,
    Unavailable = 4,
    Unknown = 5,
    Invalid = 6,
    Quota = 7,
}

impl Proposed {
    pub(super) fn new(result: Result<Revision, CommitError>, seen: Revision) -> Self {
        let (verdict, revision, text) = match result {
            Ok(revision) => (Verdict::Done, Some(revision), String::new()),
            Err(CommitError::Conflict { key, current }) => (Verdict::Conflict, current, key.to_string()),
            Err(CommitError::Full) => (Verdict::Full, None, String::new()),
            Err(CommitError::Quota { bytes, quota }) => (Verdict::Quota, Some(quota), bytes.to_string()),
            Err(CommitError::Unavailable(text)) => (Verdict::Unavailable, None, text),
            Err(CommitError::Unknown(text)) => (Verdict::Unknown, None, text),
            Err(error @ (CommitError::Invalid(_) | CommitError::TooLarge { .. })) => {
                (Verdict::Invalid, None, error.to_string())
            }
            // Both are said before anything happens.
            Err(CommitError::NoLeader | CommitError::Closed) => (Verdict::NotLeader, None, String::new()),
        };
        Self { verdict: verdict.into(), revision, text, seen }
    }

    /// `None`: not the leader.
    pub(super) fn result(self) -> Option<Result<Revision, CommitError>> {
        Some(match self.verdict() {
            Verdict::NotLeader => return None,
            Verdict::Done => Ok(self.revision.unwrap_or(self.seen)),
            Verdict::Conflict => Err(CommitError::Conflict { key: self.text.into(), current: self.revision }),
            Verdict::Full => Err(CommitError::Full),
            Verdict::Quota => Err(CommitError::Quota {
                bytes: self.text.parse().unwrap_or_default(),
                quota: self.revision.unwrap_or_default(),
            }),
            Verdict::Unavailable => Err(CommitError::Unavailable(self.text)),
            Verdict::Unknown => Err(CommitError::Unknown(self.text)),
            Verdict::Invalid => Err(CommitError::Invalid(self.text)),
        })
    }
}

/// What a leader alone knows of the members.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Health {
    /// Whether the one who answers leads.
    #[prost(bool, tag = "1")]
    pub(super) leads: bool,
    #[prost(message, repeated, tag = "2")]
    pub(super) members: Vec<MemberHealth>,
    #[prost(string, optional, tag = "3")]
    pub(super) waits: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct MemberHealth {
    #[prost(fixed64, tag = "1")]
    pub(super) id: u64,
    #[prost(bool, tag = "2")]
    pub(super) healthy: bool,
    #[prost(uint64, tag = "3")]
    pub(super) silent_ms: u64,
    #[prost(uint64, optional, tag = "4")]
    pub(super) lag: Option<u64>,
    /// It has all data, but no vote.
    #[prost(bool, tag = "5")]
    pub(super) standby: bool,
}

impl Health {
    pub(super) fn of(status: &Status) -> Self {
        let members = status.members.iter().map(|member| MemberHealth {
            id: member.id,
            healthy: member.healthy.unwrap_or_default(),
            silent_ms: member.silent_for.map_or(0, |silent| silent.as_millis() as u64),
            lag: member.lag,
            standby: member.role == Role::Standby,
        });
        let leads = status.leader == Some(status.id);
        Self { leads, members: members.collect(), waits: status.waits.clone() }
    }

    /// Adds what the leader knows to what this member knows.
    pub(super) fn add_to(&self, status: &mut Status) {
        status.waits.clone_from(&self.waits);
        for member in &mut status.members {
            let Some(known) = self.members.iter().find(|known| known.id == member.id) else { continue };
            member.healthy = Some(known.healthy);
            member.silent_for = Some(Duration::from_millis(known.silent_ms));
            member.lag = known.lag;
            if matches!(member.role, Role::Standby | Role::Joining) {
                member.role = if known.standby { Role::Standby } else { Role::Joining };
            }
        }
    }
}

/// A snapshot is about to be sent.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Offer {
    /// Raft's message, to be taken in when the file is whole.
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) message: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) length: u64,
}

/// How much of it is there already.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Progress {
    #[prost(uint64, tag = "1")]
    pub(super) offset: u64,
}

/// A piece of the snapshot that was offered last.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Chunk {
    #[prost(uint64, tag = "1")]
    pub(super) offset: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: Bytes,
    #[prost(fixed32, tag = "3")]
    pub(super) crc: u32,
}
