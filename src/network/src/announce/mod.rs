//! Addresses that move between nodes: those of Services of type LoadBalancer, and the API server's own. One node
//! at a time holds an address; it puts it on a network interface and tells the segment's machines (gratuitous
//! ARP, unsolicited neighbour advertisements). Who holds what is decided elsewhere: `hold` says it.
//!
//! The kernel takes a held address off by itself when nobody renews it for [`LIFE`]: a Kedge that was killed, or
//! one that hangs, does not stand in the way of the next holder. What an earlier process left is taken over or
//! removed at the start.

mod follow;
mod frames;
mod kernel;
mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kedge_base::{Backoff, Chain, Tasks};
use tokio::sync::watch;
use tokio::time::Instant;

pub use follow::follow_node;
use kernel::Pass;

use crate::Error;
use crate::rt::{Event, RtWatcher};

/// How long the kernel keeps an address that is not renewed: longer than a restart of Kedge takes.
const LIFE: Duration = Duration::from_secs(30);
/// How often held addresses are renewed.
const RENEW: Duration = Duration::from_secs(10);
/// When the neighbours are told, counted from the moment the address came; some of them miss a packet, and the
/// holder before may go on answering until its kernel has given up.
const TELL: [u64; 8] = [0, 1, 2, 4, 8, 16, 32, 40];

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The API server's: given back at once when this process stops, for it then answers no more.
    ApiServer,
    /// Services': kept while Kedge restarts, as the rules for Services are.
    Services,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    api_server: BTreeSet<IpAddr>,
    /// `None`: not known yet. What an earlier process held stays so long.
    services: Option<BTreeSet<IpAddr>>,
}

impl Wanted {
    fn all(&self) -> BTreeSet<IpAddr> {
        self.api_server.iter().chain(self.services.iter().flatten()).copied().collect()
    }
}

/// Holds addresses on this node. Clones share.
#[derive(Debug, Clone)]
pub struct Announcer(Arc<watch::Sender<Wanted>>);

impl Announcer {
    /// From now on this node holds these addresses for this purpose, and no others.
    pub fn hold(&self, purpose: Purpose, addresses: BTreeSet<IpAddr>) {
        self.0.send_if_modified(|wanted| {
            let before = wanted.clone();
            match purpose {
                Purpose::ApiServer => wanted.api_server = addresses,
                Purpose::Services => wanted.services = Some(addresses),
            }
            *wanted != before
        });
    }
}

/// Starts the task that holds addresses; it costs nothing while there are none. `node_ips` are this node's own
/// addresses: their interface is the one for addresses of no known network.
pub fn start_announcer(node_ips: Vec<IpAddr>, tasks: &Tasks) -> Announcer {
    let announcer = Announcer(Arc::new(watch::Sender::new(Wanted::default())));
    let wanted = announcer.0.subscribe();
    let token = tasks.token().clone();
    tasks.spawn("announced addresses", async move {
        let mut keeper = Keeper { node_ips, wanted, told: BTreeMap::new(), said: BTreeMap::new() };
        token.run_until_cancelled(keeper.run()).await;
        keeper.stop().await;
    });
    announcer
}

/// For uninstalling: takes off what a Kedge holds on this machine.
pub(crate) fn release_all() -> Result<(), Error> {
    kernel::release_all().map_err(|source| Error::netlink("take off announced addresses", source))
}

struct Keeper {
    node_ips: Vec<IpAddr>,
    wanted: watch::Receiver<Wanted>,
    /// Since when an address is here, and how often that was told.
    told: BTreeMap<IpAddr, (Instant, usize)>,
    /// Problems that are in the log already.
    said: BTreeMap<IpAddr, String>,
}

impl Keeper {
    async fn run(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut renewed = Instant::now();
        let mut watcher: Option<RtWatcher> = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let all = wanted.all();
            let renew = renewed.elapsed() >= RENEW;
            let done = self.pass(&all, wanted.services.is_none(), renew).await;
            if renew {
                renewed = Instant::now();
            }
            let failed = done.is_err();
            if let Err(error) = done {
                tracing::warn!(error = %Chain(&error), "announced addresses are not as they should be, trying again");
            } else {
                backoff.reset();
            }
            // Without addresses there is nothing to watch.
            match RtWatcher::open() {
                _ if all.is_empty() => watcher = None,
                Ok(opened) if watcher.is_none() => {
                    // What changed before it was opened is looked at once more.
                    watcher = Some(opened);
                    continue;
                }
                Err(error) if watcher.is_none() => {
                    tracing::warn!(%error, "changes of addresses are noticed late only");
                }
                _ => {}
            }
            let mut pause = if all.is_empty() { None } else { Some(RENEW.saturating_sub(renewed.elapsed())) };
            if failed {
                pause = Some(backoff.next_delay());
            } else if let (Some(pause), Some(next)) = (&mut pause, self.next_telling()) {
                *pause = next.min(*pause);
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
                () = disturbed(watcher.as_ref()) => {}
            }
        }
    }

    async fn pass(&mut self, all: &BTreeSet<IpAddr>, keep_strays: bool, renew: bool) -> io::Result<()> {
        let (wanted, node_ips) = (all.clone(), self.node_ips.clone());
        let pass = blocking(move || kernel::hold(&wanted, &node_ips, keep_strays, renew)).await?;
        self.say(&pass);
        let now = Instant::now();
        self.told.retain(|address, _| all.contains(address));
        for address in &pass.taken {
            self.told.insert(*address, (now, 0));
        }
        let due: BTreeSet<IpAddr> = self
            .told
            .iter()
            .filter(|(_, (since, times))| TELL.get(*times).is_some_and(|at| since.elapsed().as_secs() >= *at))
            .map(|(address, _)| *address)
            .collect();
        for address in &due {
            if let Some((_, times)) = self.told.get_mut(address) {
                *times += 1;
            }
        }
        blocking(move || kernel::announce(&due)).await
    }

    /// Until an address is to be told again.
    fn next_telling(&self) -> Option<Duration> {
        let left = |(since, times): &(Instant, usize)| {
            let at = Duration::from_secs(*TELL.get(*times)?);
            Some(at.saturating_sub(since.elapsed()))
        };
        self.told.values().filter_map(left).min()
    }

    fn say(&mut self, pass: &Pass) {
        for address in &pass.taken {
            tracing::info!(%address, "this node holds the address now");
        }
        for address in &pass.released {
            tracing::info!(%address, "this node no longer holds the address");
        }
        for (address, problem) in &pass.problems {
            if self.said.get(address) != Some(problem) {
                tracing::warn!(%address, problem, "the address cannot be held here");
            }
        }
        self.said.clone_from(&pass.problems);
    }

    /// The API server's address goes at once. Without restart the others follow when their life is over.
    async fn stop(&mut self) {
        let wanted = self.wanted.borrow().clone();
        if wanted.api_server.is_empty() {
            return;
        }
        let services: BTreeSet<IpAddr> = wanted.services.clone().unwrap_or_default();
        let gone: BTreeSet<IpAddr> = wanted.api_server.difference(&services).copied().collect();
        if let Err(error) = blocking(move || kernel::release(&gone)).await {
            tracing::warn!(%error, "the API server's address was not taken off; the kernel does it soon");
        }
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// Somebody changed addresses, we ourselves included.
async fn disturbed(watcher: Option<&RtWatcher>) {
    let Some(watcher) = watcher else { return std::future::pending().await };
    if let Err(error) = watcher.until(|event| matches!(event, Event::Address(_) | Event::Lost)).await {
        tracing::warn!(%error, "changes of addresses are noticed late only");
        std::future::pending::<()>().await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
