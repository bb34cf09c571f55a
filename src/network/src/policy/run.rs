//! The one task that writes the policies' table. A change is written as soon as the one before is done;
//! timers are for retries only.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kedge_base::{Backoff, Chain};
use kedge_client::{Informer, Informers};
use tokio::sync::{Mutex, Notify, watch};

use super::build::{Cluster, View, build};
use super::content::Content;
use crate::nft::{Batch, Noticed, TransactionError, Watcher, Writer, delete_table};

/// Heals that follow each other closer than this are slowed down: somebody fights for the table.
const QUIET: Duration = Duration::from_secs(30);

/// Where the wanted content comes from.
pub(super) struct Sources {
    node: String,
    informers: Informers,
    changed: Arc<Notify>,
    policies: Informer<NetworkPolicy>,
    /// Followed from the first policy on.
    others: Option<(Informer<Pod>, Informer<Namespace>)>,
}

impl Sources {
    pub(super) fn new(node: String, informers: Informers) -> Self {
        let changed = Arc::new(Notify::new());
        let policies = informers.informer::<NetworkPolicy>();
        let told = changed.clone();
        policies.on_change(move |_| told.notify_one());
        Self { node, informers, changed, policies, others: None }
    }

    /// What should be in the table; `None` when there is no policy and so no table.
    async fn wanted(&mut self) -> Option<Content> {
        self.policies.synced().await;
        if self.policies.list().is_empty() {
            return None;
        }
        let (informers, changed) = (&self.informers, &self.changed);
        let (pods, namespaces) = self.others.get_or_insert_with(|| follow(informers, changed));
        pods.synced().await;
        namespaces.synced().await;
        let cluster = Cluster {
            node: self.node.clone(),
            policies: self.policies.list(),
            pods: pods.list(),
            namespaces: namespaces.list(),
        };
        // Thousands of pods take milliseconds, in which others may run.
        match tokio::task::spawn_blocking(move || build(&cluster)).await {
            Ok(content) => Some(content),
            // This task is started again; no content would mean no policy.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Most of what pods and namespaces report is nothing to the policies.
fn follow(informers: &Informers, changed: &Arc<Notify>) -> (Informer<Pod>, Informer<Namespace>) {
    let (pods, namespaces) = (informers.informer::<Pod>(), informers.informer::<Namespace>());
    let (told, heard) = (changed.clone(), changed.clone());
    pods.on_change(move |change| {
        if change.old.as_deref().and_then(View::of) != change.new.as_deref().and_then(View::of) {
            told.notify_one();
        }
    });
    namespaces.on_change(move |change| {
        let labels = |namespace: &Option<Arc<Namespace>>| {
            namespace.as_ref().map(|namespace| namespace.metadata.labels.clone())
        };
        if labels(&change.old) != labels(&change.new) {
            heard.notify_one();
        }
    });
    (pods, namespaces)
}

/// What is in the table, as far as that is known.
enum Known {
    Nothing,
    NoTable,
    Content(Content),
}

/// The table, and the means to change it.
pub(super) struct Kernel {
    table: String,
    writer: Arc<Writer>,
    known: Known,
}

impl Kernel {
    pub(super) fn open(table: String) -> io::Result<Self> {
        Ok(Self { table, writer: Arc::new(Writer::open()?), known: Known::Nothing })
    }

    /// Bring the table to this content, or remove it.
    async fn write(&mut self, wanted: Option<Content>) -> Result<(), TransactionError> {
        // Whatever happens before the kernel has confirmed: the next write is a full one.
        let known = std::mem::replace(&mut self.known, Known::Nothing);
        self.known = match (known, wanted) {
            (Known::NoTable, None) => Known::NoTable,
            (_, None) => {
                let table = self.table.clone();
                blocking(move || delete_table(&table).map(drop)).await?;
                Known::NoTable
            }
            (Known::Content(old), Some(wanted)) => {
                if old != wanted {
                    self.commit(wanted.change(&old, &self.table)).await?;
                    self.commit(wanted.garbage(&old, &self.table)).await?;
                }
                Known::Content(wanted)
            }
            (_, Some(wanted)) => {
                self.commit(wanted.full(&self.table)).await?;
                Known::Content(wanted)
            }
        };
        Ok(())
    }

    async fn commit(&self, batch: Batch) -> Result<(), TransactionError> {
        let writer = self.writer.clone();
        blocking(move || writer.commit(batch)).await
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), TransactionError> + Send + 'static,
) -> Result<(), TransactionError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(TransactionError::Io(io::Error::other(error))))
}

/// Runs until it is dropped. May be started again after a panic: it then writes everything.
pub(super) async fn run(state: Arc<Mutex<(Kernel, Sources)>>, writes: watch::Sender<u64>) {
    let mut state = state.lock_owned().await;
    let (kernel, sources) = &mut *state;
    kernel.known = Known::Nothing;
    let changed = sources.changed.clone();
    let mut failed = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    let mut fought = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut last_heal: Option<Instant> = None;
    let mut watcher: Option<Watcher> = None;
    loop {
        let wanted = sources.wanted().await;
        if wanted.is_none() {
            watcher = None;
        } else if watcher.is_none() {
            // Before the write, so that nothing happens unseen between them.
            match Watcher::open(&kernel.table, kernel.writer.port()) {
                Ok(opened) => watcher = Some(opened),
                Err(error) => tracing::warn!(%error, "changes of the policies' table by others go unnoticed"),
            }
        }
        if let Err(error) = kernel.write(wanted).await {
            let delay = failed.next_delay();
            tracing::warn!(error = %Chain(&error), retry_in = ?delay, "network policies could not be written to nftables");
            tokio::time::sleep(delay).await;
            continue;
        }
        failed.reset();
        writes.send_modify(|count| *count += 1);
        let noticed = tokio::select! {
            () = changed.notified() => continue,
            noticed = noticed(watcher.as_ref()) => noticed,
        };
        // Lost notifications may have been about this table.
        if let Err(error) = noticed {
            tracing::warn!(%error, "nftables notifications failed, they are opened again");
            watcher = None;
        }
        kernel.known = Known::Nothing;
        tracing::warn!(table = %kernel.table, "the nftables table was changed by somebody else, it is written again");
        if last_heal.is_some_and(|last| last.elapsed() < QUIET) {
            tokio::time::sleep(fought.next_delay()).await;
        } else {
            fought.reset();
        }
        last_heal = Some(Instant::now());
    }
}

async fn noticed(watcher: Option<&Watcher>) -> io::Result<Noticed> {
    match watcher {
        Some(watcher) => watcher.noticed().await,
        None => std::future::pending().await,
    }
}
