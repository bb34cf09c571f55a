//! Transactions on their way into the log, or to the leader.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use kedge_base::Chain;

use super::{Behind, LAZY, Node, PATIENCE, Proposal};
use crate::command::CommandOp;
use crate::error::{CommitError, Error};
use crate::membership::is_reserved;
use crate::transport::Outcome;

/// Proposals that share one frame of the log, in bytes.
const FRAME_BYTES: usize = 1 << 20;
/// What a change may add to objects that are there although the quota is used up.
const MARK_BYTES: i64 = 4 << 10;
/// How much may pile up in memory while the engine is written.
const STALL_BYTES: u64 = 16 << 20;

impl Node {
    pub(super) fn enqueue(&mut self, proposal: Proposal) {
        // From one member to the next it goes only once.
        if proposal.remote && !self.core.is_leader() {
            proposal.ticket.answer(Err(CommitError::NoLeader));
            return;
        }
        if proposal.lazy {
            self.lazy_since.get_or_insert(proposal.since);
        } else {
            self.urgent += 1;
        }
        self.queue.push_back(proposal);
    }

    /// The engine is being written and enough waits for it in memory.
    pub(super) fn is_stalled(&self) -> bool {
        self.flushing.is_some() && self.since_flush > STALL_BYTES
    }

    /// Whether somebody is known who takes transactions.
    pub(super) fn can_propose(&self) -> bool {
        let leader = self.core.leader();
        let reachable = leader.is_some() && leader != self.shunned;
        self.core.is_leader() || self.core.is_sole_voter() || reachable || self.transport.is_none()
    }

    /// When the transactions that wait are to go on.
    pub(super) fn queue_due(&self, now: Instant) -> Option<Instant> {
        if self.queue.is_empty() || self.is_stalled() || !self.can_propose() {
            None
        } else if self.urgent > 0 || !self.core.is_leader() {
            // What is lazy waits at the leader.
            Some(now)
        } else {
            self.lazy_since.map(|since| since + LAZY)
        }
    }

    /// Hands waiting transactions to Raft, as many as share one frame, or to the leader.
    pub(super) fn propose(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.queue_due(now).is_none_or(|due| due > now) {
            return Ok(());
        }
        self.core.lead()?;
        if !self.core.is_leader() {
            self.forward();
            return Ok(());
        }
        let (batch, bytes) = self.take_batch();
        let reserved =
            if self.writes_here() { self.flusher.wal().lock().reserve(batch.len(), bytes) } else { Ok(()) };
        if let Err(error) = reserved {
            if !error.is_full() {
                answer_all(batch, &CommitError::Unavailable(Chain(&error).to_string()));
                return Err(error);
            }
            self.note_full(&error);
            answer_all(batch, &CommitError::Full);
            return Ok(());
        }
        for Proposal { data, ticket, .. } in batch {
            if let Err(ticket) = self.core.propose(data, ticket) {
                ticket.answer(Err(CommitError::NoLeader));
            }
        }
        Ok(())
    }

    /// Sends what waits to the leader, if one is known. Otherwise it waits on, for a while.
    fn forward(&mut self) {
        if self.transport.is_none() {
            let error = if self.disk_full { CommitError::Full } else { CommitError::NoLeader };
            answer_all(self.queue.drain(..).collect(), &error);
            (self.urgent, self.lazy_since) = (0, None);
            return;
        }
        for proposal in self.take_queued(|proposal| proposal.remote) {
            proposal.ticket.answer(Err(CommitError::NoLeader));
        }
        let leader = self.core.leader().and_then(|id| self.core.state.members().get(&id));
        if let (Some(leader), Some(transport)) = (leader, &mut self.transport) {
            for proposal in self.queue.drain(..) {
                transport.forward(leader.id, &leader.address, proposal);
            }
        }
        self.recount();
    }

    fn take_queued(&mut self, which: impl Fn(&Proposal) -> bool) -> Vec<Proposal> {
        let (taken, rest): (VecDeque<_>, VecDeque<_>) = self.queue.drain(..).partition(which);
        self.queue = rest;
        Vec::from(taken)
    }

    fn recount(&mut self) {
        self.urgent = self.queue.iter().filter(|proposal| !proposal.lazy).count();
        if self.queue.is_empty() {
            self.lazy_since = None;
        }
    }

    /// The leader, or the way to it, had something to say about a transaction.
    pub(super) fn forwarded(&mut self, proposal: Proposal, outcome: Outcome) {
        match outcome {
            Outcome::NotSent if proposal.since.elapsed() < PATIENCE => {
                // The next tick tries again, or the next leader.
                self.shunned = self.core.leader();
                self.queue.push_back(proposal);
                self.recount();
                self.lazy_since.get_or_insert_with(Instant::now);
            }
            Outcome::NotSent => proposal.ticket.answer(Err(no_leader())),
            Outcome::Lost(why) => proposal.ticket.answer(Err(CommitError::Unknown(why))),
            Outcome::Answer { result, seen } => self.behind.push(Behind {
                revision: seen,
                until: Instant::now() + PATIENCE,
                ticket: proposal.ticket,
                result,
            }),
        }
    }

    /// Gives up what has waited too long.
    pub(super) fn expire(&mut self) {
        let mut expired = false;
        if !self.core.is_leader() {
            for proposal in self.take_queued(|proposal| proposal.remote) {
                proposal.ticket.answer(Err(CommitError::NoLeader));
                expired = true;
            }
            for proposal in self.take_queued(|proposal| proposal.since.elapsed() >= PATIENCE) {
                proposal.ticket.answer(Err(no_leader()));
                expired = true;
            }
        }
        if expired {
            self.recount();
        }
        let now = Instant::now();
        // It did happen; this node only lags behind.
        for behind in self.behind.extract_if(.., |behind| behind.until <= now) {
            behind.ticket.answer(behind.result);
        }
    }

    fn take_batch(&mut self) -> (Vec<Proposal>, usize) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut touched = HashSet::new();
        let mut grown = 0;
        while let Some(next) = self.queue.front() {
            if !batch.is_empty() && bytes + next.data.len() > FRAME_BYTES {
                break;
            }
            let Some(proposal) = self.queue.pop_front() else { break };
            if !proposal.lazy {
                self.urgent -= 1;
            }
            if let Some(conflict) = self.hopeless(&proposal.data, &mut touched) {
                proposal.ticket.answer(Err(conflict));
                continue;
            }
            if let Some(refused) = self.exceeds_quota(&proposal.data, &mut grown) {
                proposal.ticket.answer(Err(refused));
                continue;
            }
            bytes += proposal.data.len();
            batch.push(proposal);
        }
        self.lazy_since = if self.queue.is_empty() { None } else { self.lazy_since };
        (batch, bytes)
    }

    /// A transaction whose conditions fail already need not go through the log. Only a sole voter may say
    /// so, for nobody else changes the state, and only about keys that nothing in front of it touches.
    fn hopeless(&self, data: &[u8], touched: &mut HashSet<u64>) -> Option<CommitError> {
        if !self.core.is_sole_voter() || !self.core.is_leader() || self.core.has_pending() {
            return None;
        }
        let command = crate::command::decode(data).ok()?;
        let untouched = command.conditions.iter().filter(|(key, _)| !touched.contains(&hash(key)));
        if let Err((key, current)) = self.core.state.check(untouched.copied()) {
            return Some(CommitError::Conflict { key, current });
        }
        touched.extend(command.ops.iter().map(|op| match op {
            CommandOp::Put { key, .. } | CommandOp::Delete { key } => hash(key),
        }));
        None
    }

    /// Beyond the quota nothing is added: no object, and to those that are there no more than marks (that one
    /// is to be deleted, that a node is alive), and these only up to a sixteenth above it. Whatever makes room
    /// goes on. Counted is what the state holds and what this batch adds; what is on its way is seen in the
    /// next one.
    fn exceeds_quota(&self, data: &[u8], grown: &mut i64) -> Option<CommitError> {
        let quota = self.config.quota_bytes;
        let bytes = self.core.state.bytes();
        if quota == 0 {
            return None;
        }
        let command = crate::command::decode(data).ok()?;
        let own = command.ops.iter().any(|op| {
            let (CommandOp::Put { key, .. } | CommandOp::Delete { key }) = op;
            is_reserved(key)
        });
        let (objects, added) = self.core.state.growth(&command);
        let after = bytes.saturating_add_signed(*grown + added);
        let small = objects <= 0 && added <= MARK_BYTES && after <= quota + quota / 16;
        if own || added <= 0 || after <= quota || small {
            *grown += added;
            return None;
        }
        if !self.shared.counters.quota_exceeded.swap(true, Relaxed) {
            tracing::error!(
                bytes,
                quota,
                "the objects take all that store-quota allows: nothing is added until something is deleted"
            );
        }
        Some(CommitError::Quota { bytes, quota })
    }

    /// Nothing that waits will be done any more.
    pub(super) fn refuse_all(&mut self) {
        let failed = self.failed.clone();
        let error = match &failed {
            Some(text) => CommitError::Unavailable(text.clone()),
            None => CommitError::Closed,
        };
        let waiting = self.core.take_pending().chain(self.queue.drain(..).map(|p| p.ticket));
        let waiting: Vec<_> = waiting.collect();
        for ticket in waiting {
            ticket.answer(Err(error.clone()));
        }
        for behind in self.behind.drain(..) {
            behind.ticket.answer(behind.result);
        }
        for reply in self.core.take_reads() {
            let _ = reply.send(Err(failed.clone().map_or(Error::Closed, Error::Failed)));
        }
        (self.urgent, self.lazy_since) = (0, None);
    }
}

fn no_leader() -> CommitError {
    CommitError::Unavailable(
        "no majority of the control plane nodes can be reached, so there is no leader".into(),
    )
}

fn hash(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn answer_all(batch: Vec<Proposal>, error: &CommitError) {
    for proposal in batch {
        proposal.ticket.answer(Err(error.clone()));
    }
}
