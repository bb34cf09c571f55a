//! The deterministic heart of a member: Raft, the state machine, and what waits for them. No threads, no
//! clock, no files, no network: inputs are calls, outputs are collected in [`Output`], and chance comes
//! from a seed. The same inputs give the same outputs, which is what the simulation lives on.
//!
//! ```text
//! inputs:  tick, step (a message), propose, read, persisted, installed, transfer
//! outputs: an append, a snapshot to install, messages, answers, calls of the observer
//! ```
//!
//! Appends are written by somebody else and reported by number. A message leaves only when what it
//! promises is on the disk; heartbeats promise no more than the term and the vote, so they do not wait for
//! entries.

mod apply;
mod reads;
mod reconcile;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raft::eraftpb::{Entry, HardState, Message, MessageType};
use raft::{RawNode, Ready, SnapshotStatus, StateRole};

use self::reads::Round;
pub(crate) use self::reconcile::Placement;
use crate::error::{CommitError, Error};
use crate::logger::logger;
use crate::raftlog::{RaftLog, SnapshotId};
use crate::recover;
use crate::state::State;
use crate::types::{Change, Observer, Revision};

/// Ticks between heartbeats.
const HEARTBEAT: usize = 2;
/// A leader that hears from no majority for so many ticks steps down; nobody votes against one it heard
/// of within as many.
const ELECTION: usize = 8;
/// Elections begin after so many ticks without a leader, and fewer than twice as many.
const ELECTION_MIN: usize = 9;
/// How far slow disks may stretch that.
const MAX_STRETCH: usize = 8;
/// Bytes of entries in one message, and in one batch to apply.
const BATCH_BYTES: u64 = 1 << 20;
/// Applied entries kept in memory for followers.
const FOLLOWER_BYTES: usize = 4 << 20;
/// A member was heard of within so many ticks, or it is not healthy.
const HEALTHY: u64 = 30;
/// For so many ticks after a snapshot was made for a follower the log behind it is kept.
const HOLD: u64 = 600;

/// What distinguishes one core from another.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) id: u64,
    /// Decides the election timeouts and the names of reads; must differ from start to start.
    pub(crate) seed: u64,
    /// After so many ticks of silence a voter is replaced.
    pub(crate) replace_after: u64,
    /// After so many ticks a removal that nobody went on with is forgotten.
    pub(crate) forget_after: u64,
    /// After so many ticks a transaction or a read that got nowhere is given up.
    pub(crate) patience: u64,
    /// A log that lacks no more entries than this is as good as complete.
    pub(crate) lag: u64,
}

/// What is to be written to the log, in one flush.
#[derive(Debug, Default)]
pub(crate) struct Append {
    /// To be given to [`Core::persisted`].
    pub(crate) number: u64,
    pub(crate) hard_state: Option<HardState>,
    /// Later ones replace earlier ones of the same index.
    pub(crate) entries: Vec<Entry>,
}

/// What a core wants done. Whoever drives it takes things out at leisure; what is added later fits to
/// what still waits.
#[derive(Debug)]
pub(crate) struct Output<T, R> {
    pub(crate) append: Option<Append>,
    /// Replace the state by this snapshot, which was received before its message was given to
    /// [`Core::step`]; then write `append`.
    pub(crate) install: Option<SnapshotId>,
    pub(crate) messages: Vec<Message>,
    pub(crate) commits: Vec<(T, Result<Revision, CommitError>)>,
    /// `Err`: no leader could be asked in time.
    pub(crate) reads: Vec<(R, Result<Revision, ()>)>,
}

impl<T, R> Default for Output<T, R> {
    fn default() -> Self {
        Self { append: None, install: None, messages: vec![], commits: vec![], reads: vec![] }
    }
}

/// A transaction in the log that is not applied yet.
struct Pending<T> {
    index: u64,
    term: u64,
    expires: u64,
    token: T,
}

/// `T` and `R` name transactions and reads to whoever drives the core.
pub(crate) struct Core<T, R> {
    settings: Settings,
    observer: Arc<dyn Observer>,
    /// Nothing is shown to the observer before its first reset.
    muted: bool,
    raw: RawNode<RaftLog>,
    pub(crate) state: State,
    /// By index and term. After a lost and regained lead one index may be there twice.
    pending: VecDeque<Pending<T>>,
    rounds: Vec<Round<R>>,
    new_reads: Vec<(u64, R)>,
    next_context: u64,
    random: u64,
    ticks: u64,
    timeout: usize,
    stretch: usize,
    role: (u64, StateRole, u64),
    led_since: u64,
    /// Numbers of the last ready that changed term or vote, that has to be synced at all, that is synced.
    vote_number: u64,
    sync_number: u64,
    synced: u64,
    held: Vec<(u64, Message)>,
    /// The number of the ready whose snapshot is being installed.
    installing: Option<u64>,
    hold_until: Option<(u64, u64)>,
    seen: BTreeMap<u64, u64>,
    /// When this leader first saw the marks of those that are to leave.
    marks: BTreeMap<u64, u64>,
    /// Why the configuration is not what the records ask for.
    waits: Option<String>,
    changes: Vec<Change>,
    applied_transactions: u64,
    configured_version: u64,
}

fn raft_config(id: u64, applied: u64) -> raft::Config {
    raft::Config {
        id,
        applied,
        election_tick: ELECTION,
        min_election_tick: ELECTION_MIN,
        max_election_tick: 2 * ELECTION_MIN * MAX_STRETCH,
        heartbeat_tick: HEARTBEAT,
        pre_vote: true,
        check_quorum: true,
        max_size_per_msg: BATCH_BYTES,
        max_committed_size_per_ready: BATCH_BYTES,
        max_inflight_msgs: 32,
        ..raft::Config::default()
    }
}

impl<T, R> Core<T, R> {
    /// `log` and `state` are what the disk holds.
    pub(crate) fn new(
        settings: Settings,
        state: State,
        log: RaftLog,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        let raw = RawNode::new(&raft_config(settings.id, state.meta.applied), log, &logger())?;
        let mut core = Self {
            random: settings.seed,
            next_context: 0,
            settings,
            observer,
            muted: true,
            role: (raw.raft.term, StateRole::Follower, 0),
            raw,
            state,
            pending: VecDeque::new(),
            rounds: Vec::new(),
            new_reads: Vec::new(),
            ticks: 0,
            timeout: 0,
            stretch: 1,
            led_since: 0,
            vote_number: 0,
            sync_number: 0,
            synced: 0,
            held: Vec::new(),
            installing: None,
            hold_until: None,
            seen: BTreeMap::new(),
            marks: BTreeMap::new(),
            waits: None,
            changes: Vec::new(),
            applied_transactions: 0,
            configured_version: 0,
        };
        // A late answer to a read of an earlier life must not be taken for one of this life.
        core.next_context = core.random();
        core.timeout = core.draw_timeout();
        core.settle();
        Ok(core)
    }

    pub(crate) fn id(&self) -> u64 {
        self.settings.id
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// What it says in its term, it may say aloud.
    #[cfg(test)]
    pub(crate) fn term_is_durable(&self) -> bool {
        self.vote_number <= self.synced
    }

    /// It leads, and has applied all that was committed before it did.
    pub(crate) fn leads_for_sure(&self) -> bool {
        self.is_leader() && self.raw.raft.apply_to_current_term()
    }

    /// The leader, if this member knows one.
    pub(crate) fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|&id| id != 0)
    }

    pub(crate) fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub(crate) fn is_sole_voter(&self) -> bool {
        recover::is_sole_voter(&self.state.meta.members, self.settings.id)
    }

    /// There is nobody else: no clock is needed, and no heartbeat.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_sole_voter()
            && self.is_leader()
            && self.raw.raft.prs().iter().count() == 1
            && self.state.members().keys().all(|&id| id == self.settings.id)
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn set_muted(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// Transactions applied so far, for the counters.
    pub(crate) fn applied_transactions(&self) -> u64 {
        self.applied_transactions
    }

    /// Grows with each change of the configuration.
    pub(crate) fn configured_version(&self) -> u64 {
        self.configured_version
    }

    /// Whether entries are sent to anybody.
    pub(crate) fn has_peers(&self) -> bool {
        self.raw.raft.prs().iter().any(|(&id, _)| id != self.settings.id)
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn draw_timeout(&mut self) -> usize {
        ELECTION_MIN * self.stretch + (self.random() % (ELECTION_MIN * self.stretch) as u64) as usize
    }

    /// How much longer than usual elections take, for a vote waits for the disk. 1 to [`MAX_STRETCH`].
    /// Returns whether that is news.
    pub(crate) fn set_stretch(&mut self, stretch: usize) -> bool {
        let stretch = stretch.clamp(1, MAX_STRETCH);
        let news = stretch != self.stretch;
        if news {
            self.stretch = stretch;
            self.timeout = self.draw_timeout();
            self.settle();
        }
        news
    }

    /// After each call of Raft: its election timeout comes from our seed.
    fn settle(&mut self) {
        let raft = &self.raw.raft;
        let role = (raft.term, raft.state, raft.leader_id);
        if role != self.role {
            if role.1 == StateRole::Leader {
                self.led_since = self.ticks;
            } else {
                self.waits = None;
            }
            self.role = role;
            self.timeout = self.draw_timeout();
        }
        if self.raw.raft.randomized_election_timeout() != self.timeout {
            self.raw.raft.set_randomized_election_timeout(self.timeout);
        }
    }

    /// Whether an election could be over before all that was promised is on the disk.
    fn is_unsettled(&self) -> bool {
        self.synced < self.sync_number || self.raw.has_ready()
    }

    /// A sole voter need not wait for an election timeout.
    pub(crate) fn lead(&mut self) -> Result<(), Error> {
        if self.is_sole_voter() && !self.is_leader() && !self.is_unsettled() && self.installing.is_none() {
            self.raw.campaign()?;
            self.settle();
        }
        Ok(())
    }

    /// Time passes. All that was ready must have been taken out by [`Core::drive`] before.
    pub(crate) fn tick(&mut self, out: &mut Output<T, R>) {
        self.ticks += 1;
        // A sole voter wins at once, and Raft wants everything on the disk by then.
        let hasty = !self.is_leader() && self.is_sole_voter() && self.is_unsettled();
        if self.installing.is_none() && !hasty {
            self.raw.tick();
            self.settle();
        }
        if self.hold_until.is_some_and(|(_, until)| until <= self.ticks) {
            self.hold_until = None;
        }
        self.give_up_old(out);
        self.reconcile_if_due();
    }

    fn give_up_old(&mut self, out: &mut Output<T, R>) {
        let now = self.ticks;
        if self.pending.iter().any(|pending| pending.expires <= now) {
            let (old, rest): (VecDeque<_>, VecDeque<_>) =
                self.pending.drain(..).partition(|pending| pending.expires <= now);
            self.pending = rest;
            let text = "no majority of the control plane nodes confirmed the write in time";
            out.commits
                .extend(old.into_iter().map(|p| (p.token, Err(CommitError::Unavailable(text.to_owned())))));
        }
        self.give_up_reads(out);
    }

    /// A message from another member.
    pub(crate) fn step(&mut self, message: Message) {
        self.seen.insert(message.from, self.ticks);
        // What Raft would look up for an election is not there before the snapshot is installed.
        if self.installing.is_some() && message.msg_type() == MessageType::MsgTimeoutNow {
            return;
        }
        let kind = message.msg_type();
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(%error, ?kind, "message not used");
        }
        self.settle();
    }

    /// Puts a transaction into the log. Returns the token if this member does not lead: then nothing
    /// has happened.
    pub(crate) fn propose(&mut self, data: Vec<u8>, token: T) -> Result<(), T> {
        if !self.is_leader() || self.raw.propose(Vec::new(), data).is_err() {
            return Err(token);
        }
        let (index, term) = (self.raw.raft.raft_log.last_index(), self.raw.raft.term);
        let expires = self.ticks + self.settings.patience;
        // Nearly always the end. But the log may have been cut back to below what still waits: that may yet
        // come back from another member, so it is not over.
        let at = self.pending.iter().rposition(|p| (p.index, p.term) < (index, term)).map_or(0, |at| at + 1);
        self.pending.insert(at, Pending { index, term, expires, token });
        Ok(())
    }

    /// Takes waiting transactions out, for instance because the log is started again from the disk.
    pub(crate) fn take_pending(&mut self) -> impl Iterator<Item = T> {
        self.pending.drain(..).map(|pending| pending.token)
    }

    /// Handles all that Raft has ready.
    pub(crate) fn drive(&mut self, out: &mut Output<T, R>) -> Result<(), Error> {
        self.begin_round();
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.note_numbers(&ready);
            if !ready.snapshot().is_empty() {
                self.begin_install(&ready, out);
            }
            for state in ready.take_read_states() {
                self.read_known(&state.request_ctx, state.index);
            }
            self.apply(&ready.take_committed_entries(), out)?;
            self.collect(&mut ready, out);
            let number = ready.number();
            let (now, later) = (ready.take_messages(), ready.take_persisted_messages());
            self.raw.advance_append_async(ready);
            if self.synced >= self.sync_number {
                self.raw.on_persist_ready(number);
            }
            if self.installing.is_none() {
                self.raw.advance_apply_to(self.state.meta.applied);
            }
            self.settle();
            for message in now {
                self.send(self.vote_number, message, out);
            }
            for message in later {
                let after = if is_light(&message) { self.vote_number } else { self.sync_number };
                self.send(after, message, out);
            }
            self.begin_round();
        }
        self.answer_reads(out);
        self.compact();
        Ok(())
    }

    fn note_numbers(&mut self, ready: &Ready) {
        let known = &self.raw.store().hard_state;
        if ready.hs().is_some_and(|new| (new.term, new.vote) != (known.term, known.vote)) {
            self.vote_number = ready.number();
        }
        if ready.must_sync() {
            self.sync_number = ready.number();
        }
    }

    fn begin_install(&mut self, ready: &Ready, out: &mut Output<T, R>) {
        let metadata = ready.snapshot().get_metadata();
        let members = metadata.get_conf_state().clone();
        self.raw.mut_store().restore(metadata.index, metadata.term, members.clone());
        out.install = Some(SnapshotId { index: metadata.index, term: metadata.term, members });
        if let Some(append) = &mut out.append {
            append.entries.clear();
        }
        self.installing = Some(ready.number());
    }

    /// What has to be written.
    fn collect(&mut self, ready: &mut Ready, out: &mut Output<T, R>) {
        let entries = ready.take_entries();
        let must_sync = ready.must_sync();
        let log = self.raw.mut_store();
        if let Some(hard_state) = ready.hs() {
            log.hard_state = hard_state.clone();
        }
        // A new commit index alone is worth no write: it goes along with the next frame.
        if must_sync {
            let append = out.append.get_or_insert_with(Append::default);
            append.number = ready.number();
            append.hard_state = Some(log.hard_state.clone());
            append.entries.extend_from_slice(&entries);
        }
        log.append(entries);
    }

    fn send(&mut self, after: u64, message: Message, out: &mut Output<T, R>) {
        if after <= self.synced {
            out.messages.push(message);
        } else {
            self.held.push((after, message));
        }
    }

    /// The append with this number, and all before it, are on the disk.
    pub(crate) fn persisted(&mut self, number: u64, out: &mut Output<T, R>) {
        self.synced = self.synced.max(number);
        self.raw.on_persist_ready(number);
        if self.installing.is_some_and(|installing| installing <= number) {
            self.installing = None;
            self.raw.advance_apply_to(self.state.meta.applied);
        }
        self.settle();
        let synced = self.synced;
        out.messages
            .extend(self.held.extract_if(.., |(after, _)| *after <= synced).map(|(_, message)| message));
    }

    /// The snapshot of [`Output::install`] is on the disk, and this is its state. The append that came
    /// with it is still to be written.
    pub(crate) fn installed(&mut self, state: State, out: &mut Output<T, R>) {
        self.state = state;
        self.configured_version += 1;
        let applied = self.state.meta.applied;
        // What this member proposed when it led may be in the snapshot, or not.
        while self.pending.front().is_some_and(|pending| pending.index <= applied) {
            let Some(pending) = self.pending.pop_front() else { break };
            let text = "this node fell behind and does not see what became of the write".into();
            out.commits.push((pending.token, Err(CommitError::Unknown(text))));
        }
    }

    /// An append failed: Raft starts again from what is on the disk, as after a crash.
    pub(crate) fn restart(&mut self, hard_state: HardState, entries: Vec<Entry>) -> Result<(), Error> {
        let meta = &self.state.meta;
        let log = recover::raft_log(self.settings.id, meta, hard_state, entries);
        self.raw = RawNode::new(&raft_config(self.settings.id, meta.applied), log, &logger())?;
        (self.vote_number, self.sync_number, self.synced) = (0, 0, 0);
        self.installing = None;
        self.held.clear();
        self.settle();
        Ok(())
    }

    fn compact(&mut self) {
        if self.installing.is_some() {
            return;
        }
        let progress = || self.raw.raft.prs().iter();
        let sending = progress()
            .filter(|(_, p)| p.state == raft::ProgressState::Snapshot)
            .map(|(_, p)| p.pending_snapshot)
            .min();
        let keep = if progress().count() == 1 { 0 } else { FOLLOWER_BYTES };
        let hold = sending.into_iter().chain(self.hold_until.map(|(index, _)| index)).min();
        let applied = self.state.meta.applied;
        let log = self.raw.mut_store();
        log.set_hold(hold);
        log.compact(applied, keep);
    }

    /// Whether a follower needs a newer snapshot than there is.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.raw.store().take_wanted()
    }

    /// A snapshot that reaches to `id.index` can be sent from now on. The caller decides before it is made,
    /// with [`Core::hold`], from where on the log is kept.
    pub(crate) fn offer(&mut self, id: SnapshotId) {
        self.raw.mut_store().offer(id);
    }

    /// Keep the log after this index for a while: a snapshot is made up to it for a follower.
    pub(crate) fn hold(&mut self, index: u64) {
        self.hold_until = Some((index, self.ticks + HOLD));
    }

    /// What became of sending a snapshot.
    pub(crate) fn snapshot_sent(&mut self, to: u64, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(to, status);
        self.settle();
    }

    /// Messages to this member were lost.
    pub(crate) fn unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
        self.settle();
    }
}

/// Messages that promise nothing beyond the term and the vote.
fn is_light(message: &Message) -> bool {
    matches!(
        message.msg_type(),
        MessageType::MsgHeartbeatResponse
            | MessageType::MsgReadIndex
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
    )
}
