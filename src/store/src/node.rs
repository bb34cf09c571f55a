//! The thread that drives the [`Core`]: takes messages from a channel, lets time pass, carries out what
//! the core wants done. It never waits for a disk or for another member, but for one case: a member that is
//! alone writes its log right here, which saves two switches of threads for each flush.
//!
//! All transactions that wait while a flush is under way become one append and one flush.

mod closing;
mod engine;
mod flush;
mod queue;
mod status;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kedge_base::Chain;
use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use self::flush::{Appended, Flusher};
use crate::backup::BackupReply;
use crate::core::{Core, Output, Settings};
use crate::disk::{Disk, Done};
use crate::error::{CommitError, Error};
use crate::membership::Member;
use crate::recover::{self, Opened, Paths};
use crate::state::{Meta, Overlay, show_all};
use crate::status::Status;
use crate::store::Shared;
use crate::transport::{Outcome, Transport};
use crate::types::{Bootstrap, Config, Observer, Revision};

/// Raft's clock, when it runs: heartbeats go out every second tick, elections begin after 0.45 to 0.85 s.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// How long a lazy transaction may wait; the flush itself comes on top.
const LAZY: Duration = Duration::from_millis(300);
/// How long a transaction or a read waits for a leader or for a majority.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long closing waits for another member to take the lead.
const HANDOVER: Duration = Duration::from_secs(2);
/// A member that lacks no more log entries than this may become a voter.
const LAG: u64 = 1000;
/// A vote waits for two flushes; elections take at least so many times the usual flush.
const FLUSHES_PER_ELECTION: u32 = 10;

type Reply = oneshot::Sender<Result<Revision, CommitError>>;
type ReadReply = oneshot::Sender<Result<Revision, Error>>;

/// A transaction on its way into the log.
pub(crate) struct Proposal {
    pub(crate) data: Vec<u8>,
    pub(crate) lazy: bool,
    /// Another member sent it here: it goes no further.
    pub(crate) remote: bool,
    pub(crate) since: Instant,
    pub(crate) ticket: Ticket,
}

/// Who waits for a transaction.
pub(crate) struct Ticket {
    pub(crate) reply: Reply,
    /// Its share of the bytes that may be queued.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Ticket {
    fn answer(self, result: Result<Revision, CommitError>) {
        drop(self.permit);
        let _ = self.reply.send(result);
    }
}

/// What the thread can be told.
pub(crate) enum Msg {
    Propose(Proposal),
    Read(ReadReply),
    Disk(Done),
    Appended(Appended),
    /// From another member; its sender has been checked.
    Step(Message),
    /// This member says where it can be reached.
    Heard(u64, String),
    /// Messages to this member were lost.
    Unreachable(u64),
    /// What became of sending a snapshot to this member.
    SnapshotSent(u64, bool),
    /// What became of a transaction that was sent to the leader.
    Forwarded(Proposal, Outcome),
    /// Another member says that this one is no member any more.
    Removed,
    /// A copy of the state for somebody else.
    Backup(BackupReply),
    /// The group as the leader sees it.
    Ask(oneshot::Sender<Result<Status, Error>>),
    /// The group as this member sees it, now: what is published is up to half a second old.
    Look(oneshot::Sender<Status>),
    Close(oneshot::Sender<Result<(), Error>>),
    /// Stop without flushing, as a crash would: for tests.
    Abandon(oneshot::Sender<()>),
}

/// A batch on its way to the engine.
struct Flushing {
    overlay: Arc<Overlay>,
    meta: Meta,
    /// Who gets a copy of the snapshot that is made.
    backups: Vec<BackupReply>,
}

/// The leader has answered, but this member has not applied so much yet.
struct Behind {
    revision: Revision,
    until: Instant,
    ticket: Ticket,
    result: Result<Revision, CommitError>,
}

struct Closing {
    reply: oneshot::Sender<Result<(), Error>>,
    until: Instant,
}

pub(crate) struct Node {
    config: Config,
    shared: Arc<Shared>,
    core: Core<Ticket, ReadReply>,
    out: Output<Ticket, ReadReply>,
    flusher: Flusher,
    disk: Disk,
    transport: Option<Transport>,
    /// Where others said they are, for as long as there is no record.
    heard: HashMap<u64, String>,
    /// Where those were at last that have no record any more and are still in the configuration.
    former: HashMap<u64, String>,
    _lock: File,
    queue: VecDeque<Proposal>,
    urgent: usize,
    lazy_since: Option<Instant>,
    behind: Vec<Behind>,
    /// This leader could not be reached, or does not lead: until the next tick nothing more is sent there.
    shunned: Option<u64>,
    next_tick: Option<Instant>,
    /// The usual time of a flush.
    flush_time: Duration,
    flushing: Option<Flushing>,
    /// The disk's thread replaces the state.
    installing: bool,
    /// A follower waits for a snapshot.
    snapshot_wanted: bool,
    /// Who waits for a copy of the state.
    backups: Vec<BackupReply>,
    since_flush: u64,
    since_snapshot: u64,
    snapshot_bytes: u64,
    retry_at: Option<Instant>,
    disk_full: bool,
    removed: bool,
    closing: Option<Closing>,
    status_key: Option<status::StatusKey>,
    status_at: Instant,
    failed: Option<String>,
}

fn ticks(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX)
}

impl Node {
    /// Opens the files, applies what the log holds, shows everything to the observer.
    pub(crate) fn open(
        config: Config,
        observer: Arc<dyn Observer>,
        shared: Arc<Shared>,
        runtime: Handle,
    ) -> Result<Self, Error> {
        let paths = Paths::new(&config.dir);
        let opened = recover::open(&config, &paths, &shared.counters)?;
        let Opened { lock, engine, state, wal, log, replay_bytes, snapshots } = opened;
        let flushed = state.meta.clone();
        let replace_after = config.cluster.as_ref().map_or(Duration::MAX, |cluster| cluster.replace_after);
        let settings = Settings {
            id: config.node_id,
            seed: Member::new_id(),
            replace_after: ticks(replace_after),
            forget_after: ticks(crate::membership::FORGOTTEN),
            patience: ticks(PATIENCE),
            lag: LAG,
        };
        let core = Core::new(settings, state, log, observer.clone())?;
        let wal = Arc::new(Mutex::new(wal));
        let sender = shared.sender.clone();
        let flusher = Flusher::start(wal.clone(), move |done| {
            let _ = sender.send(Msg::Appended(done));
        })?;
        let sender = shared.sender.clone();
        let disk = Disk::start(
            config.clone(),
            paths.clone(),
            flushed,
            wal,
            observer.clone(),
            shared.counters.clone(),
            move |done| {
                let _ = sender.send(Msg::Disk(done));
            },
        )?;
        let transport = config
            .cluster
            .as_ref()
            .map(|cluster| Transport::new(cluster.dial.clone(), runtime, &paths, shared.sender.clone()));
        // With two snapshots the log reaches back to the older one.
        let behind = if snapshots < 2 { 0 } else { config.snapshot_after_bytes };
        let since_snapshot = shared.counters.read().wal_bytes.saturating_sub(behind);
        let mut node = Self {
            core,
            out: Output::default(),
            flusher,
            disk,
            transport,
            heard: HashMap::new(),
            former: HashMap::new(),
            _lock: lock,
            queue: VecDeque::new(),
            urgent: 0,
            lazy_since: None,
            behind: Vec::new(),
            shunned: None,
            next_tick: None,
            flush_time: Duration::ZERO,
            flushing: None,
            installing: false,
            snapshot_wanted: false,
            backups: Vec::new(),
            since_flush: replay_bytes,
            since_snapshot,
            snapshot_bytes: 0,
            retry_at: None,
            disk_full: false,
            removed: false,
            closing: None,
            status_key: None,
            status_at: Instant::now(),
            failed: None,
            config,
            shared,
        };
        node.drive()?;
        node.core.lead()?;
        node.drive()?;
        show_all(&node.core.state, engine.as_ref(), observer.as_ref())?;
        drop(engine);
        node.core.set_muted(false);
        node.publish();
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
                if let Msg::Abandon(reply) = message {
                    self.abandon();
                    drop(self);
                    let _ = reply.send(());
                    return;
                }
                self.handle(message);
            }
            self.turn();
            if self.may_close() {
                self.close(messages);
                return;
            }
        }
    }

    fn handle(&mut self, message: Msg) {
        match message {
            Msg::Propose(proposal) => self.enqueue(proposal),
            Msg::Read(reply) => self.core.read(reply),
            Msg::Disk(done) => self.disk_done(done),
            Msg::Appended(done) => {
                self.flusher.done();
                if let Err(error) = self.appended(done) {
                    self.fail(&error);
                }
            }
            Msg::Step(message) => {
                // Nobody writes to one that was removed.
                self.removed = false;
                self.core.step(message);
            }
            Msg::Heard(id, address) => {
                self.heard.insert(id, address);
            }
            Msg::Unreachable(id) => self.core.unreachable(id),
            Msg::SnapshotSent(to, arrived) => self.core.snapshot_sent(to, arrived),
            Msg::Forwarded(proposal, outcome) => self.forwarded(proposal, outcome),
            Msg::Removed => self.removed = true,
            Msg::Backup(reply) => match &self.failed {
                Some(why) => drop(reply.send(Err(Error::Failed(why.clone())))),
                None => self.backups.push(reply),
            },
            Msg::Ask(reply) => self.ask(reply),
            Msg::Look(reply) => drop(reply.send(self.status())),
            Msg::Close(reply) => self.begin_close(reply),
            Msg::Abandon(_) => {}
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
        // What came in is taken out before time passes.
        self.drive()?;
        if self.next_tick.is_some_and(|at| at <= Instant::now()) {
            self.next_tick = Some(Instant::now() + TICK);
            self.core.tick(&mut self.out);
            self.shunned = None;
            self.expire();
            self.drive()?;
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
        self.next_tick = if self.core.is_alone() { None } else { Some(self.next_tick.unwrap_or(now + TICK)) };
        let due = [self.queue_due(now), self.next_tick, self.retry_at].into_iter().flatten().min()?;
        Some(due.saturating_duration_since(now))
    }

    /// Whether the log is written on this thread.
    fn writes_here(&self) -> bool {
        (self.transport.is_none() || self.core.is_sole_voter() && !self.core.has_peers())
            && !self.flusher.is_busy()
    }

    /// Carries out what the core wants done, until it wants nothing that can be done at once.
    fn drive(&mut self) -> Result<(), Error> {
        loop {
            self.core.drive(&mut self.out)?;
            self.send();
            self.publish();
            self.answer();
            self.start_install();
            if self.core.wants_snapshot() {
                self.snapshot_wanted = true;
            }
            if self.flusher.is_busy() || self.installing || self.out.install.is_some() {
                return Ok(());
            }
            let Some(append) = self.out.append.take() else { return Ok(()) };
            if self.writes_here() {
                let done = self.flusher.append_here(&append);
                self.appended(done)?;
            } else {
                self.flusher.submit(append);
                return Ok(());
            }
        }
    }

    fn appended(&mut self, done: Appended) -> Result<(), Error> {
        match done.result {
            Ok(bytes) => {
                self.since_flush += bytes;
                self.since_snapshot += bytes;
                if std::mem::take(&mut self.disk_full) {
                    self.shared.counters.disk_full.store(false, Relaxed);
                    tracing::info!("the disk has space again; the store goes on");
                }
                self.note_flush_time(done.took);
                self.core.persisted(done.number, &mut self.out);
                Ok(())
            }
            Err(error) => self.log_failed(error),
        }
    }

    /// Elections wait for the disk, so they get more time where that is slow.
    fn note_flush_time(&mut self, took: Duration) {
        self.flush_time = (self.flush_time * 7 + took) / 8;
        let micros = u64::try_from(self.flush_time.as_micros()).unwrap_or(u64::MAX);
        self.shared.counters.sync_lately_micros.store(micros, Relaxed);
        let usual = self.flush_time * FLUSHES_PER_ELECTION;
        let stretch = 1 + (usual.as_millis() / (TICK * 10).as_millis()) as usize;
        if self.core.set_stretch(stretch) && stretch > 1 && self.transport.is_some() {
            tracing::warn!(
                flush_ms = self.flush_time.as_millis() as u64,
                "the disk is slow: when the leader is lost, it takes longer until there is another one"
            );
        }
    }

    /// An append failed. With a full disk Raft starts again from what is on the disk, as after a crash,
    /// and forgets what could not be written.
    fn log_failed(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_full() {
            return Err(error);
        }
        self.note_full(&error);
        let sole = self.core.is_sole_voter();
        for ticket in self.core.take_pending() {
            // With peers the entry may have reached one of them already.
            let text = "the disk is full, but others may have it".to_owned();
            ticket.answer(Err(if sole { CommitError::Full } else { CommitError::Unknown(text) }));
        }
        self.out.append = None;
        self.out.messages.clear();
        let (hard_state, entries) = self.flusher.wal().lock().reread(self.core.state.meta.applied)?;
        self.core.restart(hard_state, entries)
    }

    fn note_full(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.disk_full, true) {
            self.shared.counters.disk_full.store(true, Relaxed);
            tracing::error!(
                error = %Chain(error),
                "the disk is full: writes are refused until there is space"
            );
        }
    }

    /// Hands messages to the transport. A group of one has nobody to write to.
    fn send(&mut self) {
        for message in self.out.messages.drain(..) {
            let Some(transport) = &mut self.transport else { continue };
            let record = self.core.state.members().get(&message.to).map(|member| &member.address);
            let known =
                record.or_else(|| self.heard.get(&message.to)).or_else(|| self.former.get(&message.to));
            let address = known.or_else(|| {
                let cluster = self.config.cluster.as_ref()?;
                let Bootstrap::Join { peers } = &cluster.bootstrap else { return None };
                peers.iter().find(|peer| peer.id == message.to).map(|peer| &peer.address)
            });
            let Some(address) = address else {
                if message.msg_type() == MessageType::MsgSnapshot {
                    self.core.snapshot_sent(message.to, false);
                }
                tracing::debug!(to = message.to, "no address is known: message dropped");
                continue;
            };
            transport.send(address, message);
        }
    }

    fn answer(&mut self) {
        for (ticket, result) in self.out.commits.drain(..) {
            ticket.answer(result);
        }
        for (reply, result) in self.out.reads.drain(..) {
            let text = "no leader that a majority of the control plane nodes follows; reads without a \
                        guarantee of freshness go on";
            let _ = reply.send(result.map_err(|()| Error::Unavailable(text.into())));
        }
        let revision = self.core.state.meta.revision;
        for behind in self.behind.extract_if(.., |behind| behind.revision <= revision) {
            behind.ticket.answer(behind.result);
        }
    }

    /// After this nothing is accepted any more; reading goes on from what the observer has.
    fn fail(&mut self, error: &Error) {
        let text = Chain(error).to_string();
        tracing::error!(error = text, "the store stopped; restart the process when the cause is gone");
        self.failed = Some(text);
        self.publish();
    }

    /// What others may read without asking the thread; before anybody gets an answer.
    fn publish(&mut self) {
        let counters = &self.shared.counters;
        counters.transactions.store(self.core.applied_transactions(), Relaxed);
        counters.keys.store(self.core.state.meta.count, Relaxed);
        counters.bytes.store(self.core.state.bytes(), Relaxed);
        counters.quota_bytes.store(self.config.quota_bytes, Relaxed);
        if self.core.state.bytes() < self.config.quota_bytes / 8 * 7 {
            counters.quota_exceeded.store(false, Relaxed);
        }
        self.shared.alone.store(self.core.is_alone() && self.failed.is_none(), Release);
        self.shared.revision.store(self.core.state.meta.revision, Release);
        self.publish_status();
    }
}
