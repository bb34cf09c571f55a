//! The thread that drives Raft: proposals in, one log append and one flush for all that wait, apply,
//! acknowledge.
//!
//! A sole voter that leads needs no clock: the thread then blocks until there is something to do. With
//! peers it ticks, and `persist` is the seam where the flush moves to a thread of its own, so that
//! heartbeats never wait for the disk: Raft is told of persisted entries by number already
//! ([`RawNode::on_persist_ready`]), and messages that need no flush are sent before it.

mod apply;

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kedge_base::Chain;
use raft::eraftpb::{HardState, Message};
use raft::{RawNode, Ready, StateRole};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::command::CommandOp;
use crate::disk::{Disk, Done, Job};
use crate::error::{CommitError, Error};
use crate::logger::logger;
use crate::raftlog::RaftLog;
use crate::recover::{self, Opened, Paths};
use crate::state::{Meta, Overlay, State};
use crate::store::Shared;
use crate::types::{Change, Config, Observer, Revision};
use crate::wal::Wal;

/// Raft's clock, when it runs.
const TICK: Duration = Duration::from_millis(50);
/// How long a lazy transaction may wait; the flush itself comes on top.
const LAZY: Duration = Duration::from_millis(300);
/// Proposals that share one frame of the log, in bytes.
const FRAME_BYTES: usize = 1 << 20;
/// How much may pile up in memory while the engine is written.
const STALL_BYTES: u64 = 16 << 20;
/// The engine is written at the latest after so many bytes of log.
const FLUSH_BYTES: u64 = 4 << 20;
/// How long after a failure of the engine it is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Applied entries kept in memory for followers.
const FOLLOWER_BYTES: usize = 4 << 20;

type Reply = oneshot::Sender<Result<Revision, CommitError>>;

/// A transaction on its way into the log.
pub(crate) struct Proposal {
    pub(crate) data: Vec<u8>,
    pub(crate) lazy: bool,
    pub(crate) reply: Reply,
    /// Its share of the bytes that may be queued.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What the thread can be told.
pub(crate) enum Msg {
    Propose(Proposal),
    Read(oneshot::Sender<Result<Revision, Error>>),
    Disk(Done),
    Close(oneshot::Sender<Result<(), Error>>),
    /// Stop without flushing, as a crash would: for tests.
    Abandon(oneshot::Sender<()>),
}

/// A transaction in the log that is not applied yet.
struct Pending {
    index: u64,
    term: u64,
    reply: Reply,
    _permit: OwnedSemaphorePermit,
}

struct PendingRead {
    context: u64,
    /// Known once the leader has answered.
    index: Option<u64>,
    reply: oneshot::Sender<Result<Revision, Error>>,
}

/// A batch on its way to the engine.
struct Flushing {
    overlay: Arc<Overlay>,
    meta: Meta,
}

pub(crate) struct Node {
    config: Config,
    shared: Arc<Shared>,
    observer: Arc<dyn Observer>,
    /// Nothing is shown to the observer before its first reset.
    muted: bool,
    raw: RawNode<RaftLog>,
    wal: Wal,
    state: State,
    /// Started once the observer has seen what the engine holds.
    disk: Option<Disk>,
    _lock: File,
    queue: VecDeque<Proposal>,
    urgent: usize,
    lazy_since: Option<Instant>,
    pending: VecDeque<Pending>,
    reads: Vec<PendingRead>,
    next_read: u64,
    next_tick: Option<Instant>,
    changes: Vec<Change>,
    flushing: Option<Flushing>,
    since_flush: u64,
    since_snapshot: u64,
    snapshot_bytes: u64,
    retry_at: Option<Instant>,
    disk_full: bool,
    failed: Option<String>,
}

fn raft_config(node_id: u64, applied: u64) -> raft::Config {
    raft::Config {
        id: node_id,
        applied,
        election_tick: 10,
        heartbeat_tick: 2,
        pre_vote: true,
        check_quorum: true,
        max_size_per_msg: FRAME_BYTES as u64,
        max_committed_size_per_ready: FRAME_BYTES as u64,
        max_inflight_msgs: 64,
        ..raft::Config::default()
    }
}

impl Node {
    /// Opens the files, applies what the log holds, shows everything to the observer.
    pub(crate) fn open(
        config: Config,
        observer: Arc<dyn Observer>,
        shared: Arc<Shared>,
    ) -> Result<Self, Error> {
        let paths = Paths::new(&config.dir);
        let opened = recover::open(&config, &paths, &shared.counters)?;
        let Opened { lock, engine, state, wal, log, replay_bytes, snapshots } = opened;
        let flushed = state.meta.clone();
        let raw = RawNode::new(&raft_config(config.node_id, state.meta.applied), log, &logger())?;
        // With two snapshots the log reaches back to the older one.
        let behind = if snapshots < 2 { 0 } else { config.snapshot_after_bytes };
        let since_snapshot = shared.counters.read().wal_bytes.saturating_sub(behind);
        let mut node = Self {
            muted: true,
            raw,
            wal,
            state,
            disk: None,
            _lock: lock,
            queue: VecDeque::new(),
            urgent: 0,
            lazy_since: None,
            pending: VecDeque::new(),
            reads: Vec::new(),
            next_read: 0,
            next_tick: None,
            changes: Vec::new(),
            flushing: None,
            since_flush: replay_bytes,
            since_snapshot,
            snapshot_bytes: 0,
            retry_at: None,
            disk_full: false,
            failed: None,
            config,
            shared,
            observer,
        };
        node.drive()?;
        node.lead()?;
        node.reset_observer(engine.as_ref())?;
        drop(engine);
        node.muted = false;
        node.publish();
        let shared = node.shared.clone();
        let disk =
            Disk::start(node.config.clone(), paths, flushed, node.shared.counters.clone(), move |done| {
                let _ = shared.sender.send(Msg::Disk(done));
            })?;
        node.disk = Some(disk);
        Ok(node)
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self, messages: &Receiver<Msg>) {
        loop {
            let first = match self.wait() {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => messages.recv_timeout(wait),
            };
            let first = match first {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            for message in first.into_iter().chain(messages.try_iter()) {
                match message {
                    Msg::Propose(proposal) => self.enqueue(proposal),
                    Msg::Read(reply) => self.read(reply),
                    Msg::Disk(done) => self.disk_done(done),
                    Msg::Close(reply) => {
                        let _ = reply.send(self.close(messages));
                        return;
                    }
                    Msg::Abandon(reply) => {
                        if let Some(disk) = &mut self.disk {
                            disk.stop();
                        }
                        drop(self);
                        let _ = reply.send(());
                        return;
                    }
                }
            }
            self.turn();
        }
    }

    fn turn(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.work()
        {
            self.fail(&error);
        }
        if self.failed.is_some() {
            self.refuse_all();
        }
    }

    fn work(&mut self) -> Result<(), Error> {
        if self.next_tick.is_some_and(|at| at <= Instant::now()) {
            self.next_tick = Some(Instant::now() + TICK);
            self.raw.tick();
        }
        self.propose()?;
        self.drive()?;
        self.flush_if_due(false);
        Ok(())
    }

    /// How long the thread may block; `None`: until there is a message.
    fn wait(&mut self) -> Option<Duration> {
        if self.failed.is_some() {
            return None;
        }
        let now = Instant::now();
        let lone = self.is_sole_voter() && self.raw.raft.prs().iter().count() == 1;
        self.next_tick = if lone { None } else { Some(self.next_tick.unwrap_or(now + TICK)) };
        let queue_due = if self.is_stalled() {
            None
        } else if self.urgent > 0 {
            Some(now)
        } else {
            self.lazy_since.map(|since| since + LAZY)
        };
        let due = [queue_due, self.next_tick, self.retry_at].into_iter().flatten().min()?;
        Some(due.saturating_duration_since(now))
    }

    fn enqueue(&mut self, proposal: Proposal) {
        if proposal.lazy {
            self.lazy_since.get_or_insert_with(Instant::now);
        } else {
            self.urgent += 1;
        }
        self.queue.push_back(proposal);
    }

    fn is_sole_voter(&self) -> bool {
        recover::is_sole_voter(&self.state.meta.members, self.config.node_id)
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The engine is being written and enough waits for it in memory.
    fn is_stalled(&self) -> bool {
        self.flushing.is_some() && self.since_flush > STALL_BYTES
    }

    /// A sole voter need not wait for an election timeout.
    fn lead(&mut self) -> Result<(), Error> {
        if self.is_sole_voter() && !self.is_leader() {
            self.raw.campaign()?;
            self.drive()?;
        }
        Ok(())
    }

    /// Hands waiting transactions to Raft, as many as share one frame.
    fn propose(&mut self) -> Result<(), Error> {
        let due = self.urgent > 0 || self.lazy_since.is_some_and(|since| since.elapsed() >= LAZY);
        if !due || self.is_stalled() {
            return Ok(());
        }
        self.lead()?;
        let (batch, bytes) = self.take_batch();
        if !self.is_leader() {
            // Followers will forward to the leader here once there is a transport.
            let error = if self.disk_full { CommitError::Full } else { CommitError::NoLeader };
            answer_all(batch, &error);
            return Ok(());
        }
        if let Err(error) = self.wal.reserve(batch.len(), bytes) {
            if !error.is_full() {
                answer_all(batch, &CommitError::Unavailable(Chain(&error).to_string()));
                return Err(error);
            }
            self.note_full(&error);
            answer_all(batch, &CommitError::Full);
            return Ok(());
        }
        for Proposal { data, reply, permit, .. } in batch {
            match self.raw.propose(Vec::new(), data) {
                Ok(()) => self.pending.push_back(Pending {
                    index: self.raw.raft.raft_log.last_index(),
                    term: self.raw.raft.term,
                    reply,
                    _permit: permit,
                }),
                Err(raft::Error::ProposalDropped) => {
                    let _ = reply.send(Err(CommitError::NoLeader));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take_batch(&mut self) -> (Vec<Proposal>, usize) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut touched = HashSet::new();
        while let Some(next) = self.queue.front() {
            if !batch.is_empty() && bytes + next.data.len() > FRAME_BYTES {
                break;
            }
            let Some(proposal) = self.queue.pop_front() else { break };
            if !proposal.lazy {
                self.urgent -= 1;
            }
            if let Some(conflict) = self.hopeless(&proposal.data, &mut touched) {
                let _ = proposal.reply.send(Err(conflict));
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
        if !self.is_sole_voter() || !self.is_leader() || !self.pending.is_empty() {
            return None;
        }
        let command = crate::command::decode(data).ok()?;
        let untouched = command.conditions.iter().filter(|(key, _)| !touched.contains(&hash(key)));
        if let Err((key, current)) = self.state.check(untouched.copied()) {
            return Some(CommitError::Conflict { key, current });
        }
        touched.extend(command.ops.iter().map(|op| match op {
            CommandOp::Put { key, .. } | CommandOp::Delete { key } => hash(key),
        }));
        None
    }

    /// Handles all that Raft has ready.
    fn drive(&mut self) -> Result<(), Error> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            send(ready.take_messages());
            if !ready.snapshot().is_empty() {
                return Err(Error::Failed("a snapshot arrived, but this version has no transport".into()));
            }
            for state in ready.take_read_states() {
                self.read_known(&state.request_ctx, state.index);
            }
            self.apply(&ready.take_committed_entries())?;
            self.raw.advance_apply_to(self.state.meta.applied);
            if let Err(error) = self.persist(&mut ready) {
                drop(ready);
                self.log_failed(error)?;
                break;
            }
            let number = ready.number();
            let messages = ready.take_persisted_messages();
            self.raw.advance_append_async(ready);
            self.raw.on_persist_ready(number);
            send(messages);
            let keep = if self.raw.raft.prs().iter().count() == 1 { 0 } else { FOLLOWER_BYTES };
            let applied = self.state.meta.applied;
            self.raw.mut_store().compact(applied, keep);
        }
        self.answer_reads();
        Ok(())
    }

    fn persist(&mut self, ready: &mut Ready) -> Result<(), Error> {
        let hard_state: Option<HardState> = ready.hs().cloned();
        let entries = ready.take_entries();
        // A new commit index alone is worth no write: it goes along with the next frame.
        if ready.must_sync() {
            let bytes = self.wal.append(hard_state.as_ref(), &entries)?;
            self.since_flush += bytes;
            self.since_snapshot += bytes;
            if std::mem::take(&mut self.disk_full) {
                tracing::info!("the disk has space again; the store goes on");
            }
        }
        let log = self.raw.mut_store();
        if let Some(hard_state) = hard_state {
            log.hard_state = hard_state;
        }
        log.append(entries);
        Ok(())
    }

    /// An append failed. With a full disk Raft starts again from what is on the disk, as after a crash,
    /// and forgets what could not be written.
    fn log_failed(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_full() {
            return Err(error);
        }
        self.note_full(&error);
        let sole = self.is_sole_voter();
        for pending in self.pending.drain(..) {
            // With peers the entry may have reached one of them already.
            let error = if sole { CommitError::Full } else { CommitError::NoLeader };
            let _ = pending.reply.send(Err(error));
        }
        let mut log = self.raw.store().clone();
        log.members = self.state.meta.members.clone();
        let applied = self.state.meta.applied;
        log.hard_state.commit = log.hard_state.commit.clamp(applied, log.last());
        self.raw = RawNode::new(&raft_config(self.config.node_id, applied), log, &logger())?;
        Ok(())
    }

    fn note_full(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.disk_full, true) {
            tracing::error!(
                error = %Chain(error),
                "the disk is full: writes are refused until there is space"
            );
        }
    }

    fn read(&mut self, reply: oneshot::Sender<Result<Revision, Error>>) {
        let context = self.next_read;
        self.next_read += 1;
        self.reads.push(PendingRead { context, index: None, reply });
        self.raw.read_index(context.to_le_bytes().to_vec());
    }

    fn read_known(&mut self, context: &[u8], index: u64) {
        for read in &mut self.reads {
            if read.context.to_le_bytes() == context {
                read.index = Some(index);
            }
        }
    }

    fn answer_reads(&mut self) {
        let (applied, revision) = (self.state.meta.applied, self.state.meta.revision);
        let leaderless = self.raw.raft.leader_id == 0;
        for read in self.reads.extract_if(.., |read| match read.index {
            Some(index) => index <= applied,
            None => leaderless,
        }) {
            let answer = match read.index {
                Some(_) => Ok(revision),
                None => Err(Error::Failed("there is no leader at the moment".into())),
            };
            let _ = read.reply.send(answer);
        }
    }

    /// Starts a batch to the engine when enough has changed.
    fn flush_if_due(&mut self, now: bool) {
        let limit = (self.config.snapshot_after_bytes / 4).clamp(1, FLUSH_BYTES);
        let waiting = self.retry_at.is_some_and(|at| at > Instant::now());
        if self.flushing.is_some() || !now && (self.since_flush < limit || waiting) {
            return;
        }
        self.retry_at = None;
        let overlay = Arc::new(self.state.take_overlay());
        let meta = self.state.meta.clone();
        let snapshot_limit = self.config.snapshot_after_bytes.max(self.snapshot_bytes.saturating_mul(4));
        let snapshot = self.since_snapshot >= snapshot_limit;
        let job = Job { overlay: overlay.clone(), meta: meta.clone(), snapshot };
        if self.disk.as_ref().is_some_and(|disk| disk.submit(job)) {
            self.since_flush = 0;
            self.flushing = Some(Flushing { overlay, meta });
        } else {
            self.state.restore_overlay(&overlay);
        }
    }

    fn disk_done(&mut self, done: Done) {
        let Some(Flushing { overlay, meta }) = self.flushing.take() else { return };
        if let Err(error) = done.flushed {
            tracing::warn!(error = %Chain(&error), "the state engine cannot be written; it is tried again");
            self.state.restore_overlay(&overlay);
            self.since_flush = FLUSH_BYTES;
            self.retry_at = Some(Instant::now() + RETRY);
        }
        match done.snapshot {
            Some(Ok((bytes, keep))) => {
                self.snapshot_bytes = bytes;
                self.since_snapshot = 0;
                tracing::debug!(index = meta.applied, bytes, "snapshot made");
                if let Err(error) = self.wal.cut(keep) {
                    tracing::warn!(error = %Chain(&error), "old log segments cannot be removed");
                }
            }
            Some(Err(error)) => {
                // The log grows on; the next one comes after as many bytes again.
                self.since_snapshot = 0;
                tracing::warn!(error = %Chain(&error), "no snapshot could be made");
            }
            None => {}
        }
    }

    /// Finish what was taken on, write the engine, stop the other thread.
    fn close(&mut self, messages: &Receiver<Msg>) -> Result<(), Error> {
        for message in messages.try_iter() {
            match message {
                Msg::Propose(proposal) => self.enqueue(proposal),
                Msg::Disk(done) => self.disk_done(done),
                _ => {}
            }
        }
        if self.flushing.is_some() {
            self.await_disk(messages);
        }
        while !self.queue.is_empty() && self.failed.is_none() {
            // Lazy ones do not wait any longer.
            self.queue.iter_mut().for_each(|proposal| proposal.lazy = false);
            self.urgent = self.queue.len();
            if let Err(error) = self.propose().and_then(|()| self.drive()) {
                self.fail(&error);
            }
        }
        self.refuse_all();
        if self.failed.is_none() && !self.state.overlay().is_empty() {
            self.flush_if_due(true);
            self.await_disk(messages);
        }
        if let Some(disk) = &mut self.disk {
            disk.stop();
        }
        Ok(())
    }

    fn await_disk(&mut self, messages: &Receiver<Msg>) {
        while self.flushing.is_some() {
            match messages.recv() {
                Ok(Msg::Disk(done)) => self.disk_done(done),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// After this nothing is accepted any more; reading goes on from what the observer has.
    fn fail(&mut self, error: &Error) {
        let text = Chain(error).to_string();
        tracing::error!(error = text, "the store stopped; restart the process when the cause is gone");
        self.failed = Some(text);
        self.shared.sole.store(false, Release);
    }

    fn refuse_all(&mut self) {
        let failed = self.failed.clone();
        let error = match &failed {
            Some(text) => CommitError::Unavailable(text.clone()),
            None => CommitError::Closed,
        };
        let replies = self.pending.drain(..).map(|p| p.reply).chain(self.queue.drain(..).map(|p| p.reply));
        for reply in replies {
            let _ = reply.send(Err(error.clone()));
        }
        for read in self.reads.drain(..) {
            let _ = read.reply.send(Err(failed.clone().map_or(Error::Closed, Error::Failed)));
        }
        (self.urgent, self.lazy_since) = (0, None);
    }

    /// What others may read without asking the thread.
    fn publish(&self) {
        self.shared.counters.keys.store(self.state.meta.count, Relaxed);
        self.shared.sole.store(self.is_sole_voter(), Release);
        self.shared.revision.store(self.state.meta.revision, Release);
    }
}

fn hash(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn answer_all(batch: Vec<Proposal>, error: &CommitError) {
    for proposal in batch {
        let _ = proposal.reply.send(Err(error.clone()));
    }
}

/// Where the transport begins. A group of one has nobody to write to.
fn send(messages: Vec<Message>) {
    for message in messages {
        tracing::debug!(to = message.to, kind = ?message.msg_type(), "no transport: message dropped");
    }
}
