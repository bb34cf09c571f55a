//! Addresses that move between nodes: those of Services of type LoadBalancer, and the API server's own. One node
//! at a time holds an address; it puts it on a network interface and tells the segment's machines (gratuitous
//! ARP, unsolicited neighbour advertisements). Who holds what is decided elsewhere: `hold` says it.
//!
//! The kernel takes a held address off by itself when nobody renews it ([`Purpose`]): a Kedge that was killed, or
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

use kedge_base::{Backoff, Tasks};
use tokio::sync::watch;
use tokio::time::Instant;

pub use follow::follow_node;
use kernel::{Pass, Term};

use crate::Error;
use crate::rt::{Event, RtWatcher};

/// The longest time for which the kernel keeps an address that is not renewed.
const LONGEST_LIFE: Duration = Duration::from_secs(30);
/// When the neighbours are told, counted from the moment the address came; some of them miss a packet, and the
/// holder before may go on answering until its kernel has given up.
const TELL: [u64; 7] = [0, 1, 2, 4, 8, 16, 32];

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

impl Purpose {
    const ALL: [Self; 2] = [Self::Services, Self::ApiServer];

    /// How long the kernel keeps an address that is not renewed: Services are answered while Kedge restarts;
    /// where no API server runs its address is in the way of the next holder.
    fn life(self) -> Duration {
        match self {
            Self::ApiServer => Duration::from_secs(6),
            Self::Services => LONGEST_LIFE,
        }
    }

    /// How often its addresses are renewed.
    fn pause(self) -> Duration {
        self.life() / 3
    }
}

impl Wanted {
    fn of(&self, purpose: Purpose) -> impl Iterator<Item = IpAddr> {
        let none = BTreeSet::new();
        let all = match purpose {
            Purpose::ApiServer => &self.api_server,
            Purpose::Services => self.services.as_ref().unwrap_or(&none),
        };
        all.iter().copied().collect::<Vec<_>>().into_iter()
    }

    fn is_empty(&self) -> bool {
        Purpose::ALL.iter().all(|purpose| self.of(*purpose).next().is_none())
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
        let mut keeper = Keeper {
            node_ips,
            wanted,
            told: BTreeMap::new(),
            said: BTreeMap::new(),
            renewed: BTreeMap::new(),
        };
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
    renewed: BTreeMap<Purpose, Instant>,
}

impl Keeper {
    async fn run(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut watcher: Option<RtWatcher> = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let done = self.pass(&wanted).await;
            if wanted.is_empty() {
                // Without addresses there is nothing to watch.
                watcher = None;
            } else if watcher.is_none() {
                match RtWatcher::open() {
                    Ok(opened) => {
                        // What changed before it was opened is looked at once more.
                        watcher = Some(opened);
                        continue;
                    }
                    Err(error) => tracing::warn!(%error, "changes of addresses are noticed late only"),
                }
            }
            let pause = match done {
                Ok(()) => {
                    backoff.reset();
                    self.next_look(&wanted)
                }
                Err(error) => {
                    tracing::warn!(%error, "announced addresses are not as they should be, trying again");
                    Some(backoff.next_delay())
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
                () = disturbed(watcher.as_ref()) => {}
            }
        }
    }

    async fn pass(&mut self, wanted: &Wanted) -> io::Result<()> {
        let mut terms = BTreeMap::new();
        for purpose in Purpose::ALL {
            let renewed = self.renewed.entry(purpose).or_insert_with(Instant::now);
            let renew = renewed.elapsed() >= purpose.pause();
            if renew {
                *renewed = Instant::now();
            }
            let term = Term { life: purpose.life(), renew };
            terms.extend(wanted.of(purpose).map(|address| (address, term)));
        }
        let all: BTreeSet<IpAddr> = terms.keys().copied().collect();
        let (node_ips, keep_strays) = (self.node_ips.clone(), wanted.services.is_none());
        let pass = blocking(move || kernel::hold(&terms, &node_ips, keep_strays)).await?;
        self.say(&pass);
        let now = Instant::now();
        self.told.retain(|address, _| all.contains(address));
        for address in &pass.taken {
            self.told.insert(*address, (now, 0));
        }
        let mut due = BTreeSet::new();
        for (address, (since, times)) in &mut self.told {
            if TELL.get(*times).is_some_and(|at| since.elapsed().as_secs() >= *at) {
                *times += 1;
                due.insert(*address);
            }
        }
        blocking(move || kernel::announce(&due)).await
    }

    /// Until something is to be renewed or to be told.
    fn next_look(&self, wanted: &Wanted) -> Option<Duration> {
        let renewals = Purpose::ALL.into_iter().filter(|purpose| wanted.of(*purpose).next().is_some());
        let left = |purpose: Purpose| {
            purpose
                .pause()
                .saturating_sub(self.renewed.get(&purpose).map_or(Duration::ZERO, Instant::elapsed))
        };
        renewals.map(left).chain(self.next_telling()).min()
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
