//! The group as one member sees it.

use std::collections::HashMap;
use std::time::Duration;

use crate::membership::Member;

/// What part a member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its copy counts for what is committed.
    Voter,
    /// Has all data and takes a voter's place when one is lost.
    Standby,
    /// On its way to having all data.
    Joining,
    /// It is about to be removed, or its record is gone and the group does not do without it yet.
    Leaving,
}

/// One member. What the leader alone knows is `None` elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    pub id: u64,
    /// `None` for one that leaves, and on a node that has not announced itself.
    pub member: Option<Member>,
    pub role: Role,
    /// Its vote counts, whatever its part will be.
    pub votes: bool,
    pub is_leader: bool,
    /// It was heard of within the last 1.5 s.
    pub healthy: Option<bool>,
    /// Since it was heard of, to within 0.5 s.
    pub silent_for: Option<Duration>,
    /// How many log entries it lacks.
    pub lag: Option<u64>,
}

/// The whole group. Changes of health and lag show within 0.5 s, others at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This node's own id.
    pub id: u64,
    /// The leader, if this node knows one. Without one nothing can be written.
    pub leader: Option<u64>,
    pub term: u64,
    /// The loss of any one voter does no harm.
    pub high_availability: bool,
    /// The group is on its way from one set of voters to another and needs majorities of both.
    pub changing: bool,
    /// In the order of their ids.
    pub members: Vec<MemberStatus>,
    /// Why the leader cannot make the group what its members ask for.
    pub waits: Option<String>,
    /// Another member says that this node was removed.
    pub removed: bool,
}

/// What the service has to know of the group for each message.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) leads: bool,
    /// The members' names by id.
    pub(crate) names: HashMap<u64, String>,
    /// Everybody in Raft's configuration.
    pub(crate) configured: Vec<u64>,
}
