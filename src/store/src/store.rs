//! The handle that callers hold.

mod members;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use kedge_base::{Chain, Tasks};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::members::Recovered;
use crate::command;
use crate::error::{CommitError, Error};
use crate::membership;
use crate::node::{Msg, Node, Proposal, Ticket};
use crate::recover::Paths;
use crate::stats::{Counters, Stats};
use crate::status::{Group, Status};
use crate::transport::Service;
use crate::types::{Bootstrap, Config, Observer, Op, Revision, Txn};

/// The largest encoded transaction in bytes; upstream takes requests of 3 MiB.
const TXN_BYTES: usize = 4 << 20;
/// How many bytes of transactions may wait; whoever comes then waits in line.
const QUEUE_BYTES: usize = 16 << 20;
/// The queue is measured in units of this, and each transaction counts for one at least.
const UNIT: usize = 256;

/// What the handle and the thread share.
pub(crate) struct Shared {
    pub(crate) id: u64,
    pub(crate) snapshots: PathBuf,
    pub(crate) sender: Sender<Msg>,
    pub(crate) revision: AtomicU64,
    /// There is nobody else, so what this node has applied is all that was acknowledged.
    pub(crate) alone: AtomicBool,
    pub(crate) counters: Arc<Counters>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) group: RwLock<Group>,
    queue: Arc<Semaphore>,
    pub(crate) closed: CancellationToken,
    /// Microseconds until a write to the log is on the disk, as a moving average; 0: none was measured.
    pub(crate) sync_micros: AtomicU64,
    pub(crate) disk_full: AtomicBool,
}

impl Shared {
    pub(crate) fn revision(&self) -> Revision {
        self.revision.load(Acquire)
    }

    /// Waits until there is room for a transaction of `size` bytes.
    pub(crate) async fn permit(&self, size: usize) -> Result<OwnedSemaphorePermit, AcquireError> {
        let units = size.div_ceil(UNIT).min(QUEUE_BYTES / UNIT) as u32;
        self.queue.clone().acquire_many_owned(units).await
    }
}

/// The replicated store. Clones are handles to the same one.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    service: Service,
}

impl Store {
    /// Opens the store, repairs what a crash left, shows everything to `observer`, and accepts transactions.
    /// When `tasks` stops, the store closes.
    ///
    /// # Errors
    /// What is wrong with the folder, with the file's name and the remedy.
    pub async fn open(config: Config, observer: Arc<dyn Observer>, tasks: &Tasks) -> Result<Self, Error> {
        if config.node_id == 0 {
            return Err(Error::Config("the node id must not be 0".into()));
        }
        if !(16 << 10..=1 << 30).contains(&config.segment_bytes) {
            return Err(Error::Config("log segments must have 16 KiB to 1 GiB".into()));
        }
        if let Some(cluster) = &config.cluster
            && let Bootstrap::Join { peers } = &cluster.bootstrap
            && peers.iter().all(|peer| peer.id == config.node_id)
        {
            return Err(Error::Config("a store that joins a group must know a member of it".into()));
        }
        let (sender, messages) = channel();
        let shared = Arc::new(Shared {
            id: config.node_id,
            snapshots: Paths::new(&config.dir).snapshots,
            sender,
            revision: AtomicU64::new(0),
            alone: AtomicBool::new(false),
            counters: Arc::default(),
            status: watch::Sender::default(),
            group: RwLock::default(),
            queue: Arc::new(Semaphore::new(QUEUE_BYTES / UNIT)),
            closed: CancellationToken::new(),
            sync_micros: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
        });
        let (ready, opened) = oneshot::channel();
        let (for_thread, runtime) = (shared.clone(), Handle::current());
        std::thread::Builder::new()
            .name("kedge-store".into())
            .spawn(move || thread(config, observer, for_thread, runtime, &messages, ready))
            .map_err(Error::Thread)?;
        opened.await.map_err(|_| Error::Failed("its thread panicked while opening".into()))??;
        let store = Self { service: Service::new(shared.clone()), shared };
        let (closing, token) = (store.clone(), tasks.token().clone());
        tasks.spawn("store", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = closing.shared.closed.cancelled() => return,
            }
            if let Err(error) = closing.close().await {
                tracing::error!(error = %Chain(&error), "the store did not close cleanly");
            }
        });
        Ok(store)
    }

    /// Commits a transaction: when this returns it is on the disk, applied, and seen by the observer.
    /// Returns its revision, or the current one if it changed nothing. Dropping the future does not
    /// take the transaction back.
    ///
    /// # Errors
    /// See [`CommitError`], which says for each case whether something may have happened.
    pub async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        if txn.ops.iter().any(|op| membership::is_reserved(op.key())) {
            return Err(CommitError::Invalid(format!(
                "keys that begin with {} are the store's own",
                membership::PREFIX
            )));
        }
        self.commit_any(txn).await
    }

    /// The same, without restrictions on the keys.
    async fn commit_any(&self, txn: Txn) -> Result<Revision, CommitError> {
        validate(&txn)?;
        let size = command::encoded_len(&txn);
        if size > TXN_BYTES {
            return Err(CommitError::TooLarge { size, limit: TXN_BYTES });
        }
        let permit = self.shared.permit(size).await.map_err(|_| CommitError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket { reply, permit };
        let data = command::encode(&txn);
        let proposal = Proposal { data, lazy: txn.lazy, remote: false, since: Instant::now(), ticket };
        self.shared.sender.send(Msg::Propose(proposal)).map_err(|_| CommitError::Closed)?;
        // The answer is lost only when the thread ends.
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    /// Returns once this node has applied everything that was committed before the call.
    ///
    /// # Errors
    /// When the store is closed; [`Error::Unavailable`] when for 5 s there was no leader that a majority
    /// follows.
    pub async fn read_barrier(&self) -> Result<Revision, Error> {
        // Where no other node takes part, all that was acknowledged is applied here.
        if self.shared.alone.load(Acquire) {
            return Ok(self.revision());
        }
        let (reply, answer) = oneshot::channel();
        self.shared.sender.send(Msg::Read(reply)).map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// How long a write to the log takes until it is on the disk, as a moving average; `None` before the first.
    pub fn sync_time(&self) -> Option<std::time::Duration> {
        let micros = self.shared.sync_micros.load(Acquire);
        (micros > 0).then(|| std::time::Duration::from_micros(micros))
    }

    /// Writes are refused because the disk has no space.
    pub fn disk_full(&self) -> bool {
        self.shared.disk_full.load(Acquire)
    }

    /// The revision of the last applied transaction.
    pub fn revision(&self) -> Revision {
        self.shared.revision()
    }

    /// Hands the lead over to another member, commits what waits, writes everything to the disk and stops
    /// the threads. Calling it again is no error.
    ///
    /// # Errors
    /// None at present: what is not in the engine is in the log.
    pub async fn close(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        // No answer: another call of close came first.
        if self.shared.sender.send(Msg::Close(reply)).is_ok()
            && let Ok(result) = answer.await
        {
            result?;
        }
        self.shared.closed.cancelled().await;
        Ok(())
    }

    pub(crate) fn tell(&self, message: Msg) -> Result<(), Error> {
        self.shared.sender.send(message).map_err(|_| Error::Closed)
    }

    /// What the store has done since it was opened.
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// Stops the threads without flushing anything, as a crash would. For tests.
    #[doc(hidden)]
    pub async fn abandon(&self) {
        let (reply, answer) = oneshot::channel();
        if self.shared.sender.send(Msg::Abandon(reply)).is_ok() {
            let _ = answer.await;
        }
        self.shared.closed.cancelled().await;
    }
}

/// The store's thread. A panic on it ends the process: whatever the observer or the state holds after
/// one cannot be trusted, and the log has everything.
fn thread(
    config: Config,
    observer: Arc<dyn Observer>,
    shared: Arc<Shared>,
    runtime: Handle,
    messages: &Receiver<Msg>,
    ready: oneshot::Sender<Result<(), Error>>,
) {
    let (queue, closed) = (shared.queue.clone(), shared.closed.clone());
    let ended = catch_unwind(AssertUnwindSafe(|| match Node::open(config, observer, shared, runtime) {
        Ok(node) => {
            let _ = ready.send(Ok(()));
            node.run(messages);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }));
    if ended.is_err() {
        tracing::error!("the store's thread panicked; the process ends");
        std::process::abort();
    }
    queue.close();
    closed.cancel();
}

fn validate(txn: &Txn) -> Result<(), CommitError> {
    let invalid = |what: String| Err(CommitError::Invalid(what));
    if txn.conditions.iter().any(|condition| condition.key.is_empty()) {
        return invalid("a key is empty".into());
    }
    let mut seen = HashSet::new();
    for op in &txn.ops {
        let key = match op {
            Op::Put { key, value } => {
                if value.splice.is_some_and(|at| at as usize > value.bytes.len() || at == u32::MAX) {
                    return invalid(format!("the splice offset of {key} lies outside of its value"));
                }
                key
            }
            Op::Delete { key } => key,
        };
        if key.is_empty() {
            return invalid("a key is empty".into());
        }
        if txn.ops.len() > 1 && !seen.insert(key) {
            return invalid(format!("{key} occurs twice"));
        }
    }
    Ok(())
}
