//! Addresses that move between nodes: those of Services of type LoadBalancer, and the API server's own. One node
//! at a time holds an address; it puts it on a network interface and tells the segment's machines (gratuitous
//! ARP, unsolicited neighbour advertisements). Who holds what is decided elsewhere: `hold` says it.
//!
//! The kernel takes a held address off by itself when nobody renews it ([`Purpose`]): a Kedge that was killed, or
//! one that hangs, does not stand in the way of the next holder. What an earlier process left is taken over or
//! removed at the start.

mod claims;
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
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use claims::Claims;
pub use follow::follow_node;
use kernel::{Pass, Term};

use crate::Error;
use crate::rt::{Event, Mac, Rt, RtWatcher};

/// The longest time for which the kernel keeps an address that is not renewed.
const LONGEST_LIFE: Duration = Duration::from_secs(30);
/// When the neighbours are told, counted from the moment the address came; some of them miss a packet, and the
/// holder before may go on answering until its kernel has given up.
const TELL: [u64; 7] = [0, 1, 2, 4, 8, 16, 32];
/// How often afterwards, in seconds: a machine that holds it too, and should not, hears of it.
const TELL_AGAIN: u64 = 60;
/// Another machine's claim is passed on this often at most.
const CLAIM_PAUSE: Duration = Duration::from_secs(5);

/// When the neighbours are told for this time.
fn tell_at(times: usize) -> Duration {
    let last = TELL.len() - 1;
    let further = u64::try_from(times.saturating_sub(last)).unwrap_or(u64::MAX);
    Duration::from_secs(TELL[times.min(last)].saturating_add(further.saturating_mul(TELL_AGAIN)))
}

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
    /// How often an address was confirmed to be this node's: it is told again each time.
    confirmed: BTreeMap<IpAddr, u64>,
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

    fn all(&self) -> BTreeSet<IpAddr> {
        Purpose::ALL.into_iter().flat_map(|purpose| self.of(purpose)).collect()
    }

    fn is_empty(&self) -> bool {
        Purpose::ALL.iter().all(|purpose| self.of(*purpose).next().is_none())
    }
}

/// Holds addresses on this node. Clones share.
#[derive(Debug, Clone)]
pub struct Announcer {
    wanted: Arc<watch::Sender<Wanted>>,
    claims: broadcast::Sender<Claim>,
}

/// Another machine says that it has an address which this node holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) address: IpAddr,
    pub(crate) by: Mac,
}

impl Announcer {
    /// From now on this node holds these addresses for this purpose, and no others.
    pub fn hold(&self, purpose: Purpose, addresses: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.clone();
            match purpose {
                Purpose::ApiServer => wanted.api_server = addresses,
                Purpose::Services => wanted.services = Some(addresses),
            }
            let all = wanted.all();
            wanted.confirmed.retain(|address, _| all.contains(address));
            *wanted != before
        });
    }

    /// Claims of other machines, from now on.
    pub(crate) fn claims(&self) -> broadcast::Receiver<Claim> {
        self.claims.subscribe()
    }

    /// A claim was wrong: the neighbours are told again where the address is.
    pub(crate) fn confirm(&self, address: IpAddr) {
        self.wanted.send_if_modified(|wanted| {
            let is_held = wanted.all().contains(&address);
            if is_held {
                *wanted.confirmed.entry(address).or_default() += 1;
            }
            is_held
        });
    }
}

/// Starts the task that holds addresses; it costs nothing while there are none. `node_ips` are this node's own
/// addresses: their interface is the one for addresses of no known network.
pub fn start_announcer(node_ips: Vec<IpAddr>, tasks: &Tasks) -> Announcer {
    let wanted = Arc::new(watch::Sender::new(Wanted::default()));
    let announcer = Announcer { wanted, claims: broadcast::Sender::new(16) };
    let (wanted, claims) = (announcer.wanted.subscribe(), announcer.claims.clone());
    let token = tasks.token().clone();
    tasks.spawn("announced addresses", async move {
        let mut keeper = Keeper {
            node_ips,
            wanted,
            claims,
            claimed: BTreeMap::new(),
            confirmed: BTreeMap::new(),
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
    claims: broadcast::Sender<Claim>,
    /// When a claim was passed on last.
    claimed: BTreeMap<IpAddr, Instant>,
    /// How often addresses had been confirmed when they were told last.
    confirmed: BTreeMap<IpAddr, u64>,
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
        let mut listener: Option<Claims> = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let done = self.pass(&wanted).await;
            if wanted.is_empty() {
                // Without addresses there is nothing to watch.
                (watcher, listener) = (None, None);
            } else if watcher.is_none() {
                match RtWatcher::open() {
                    Ok(opened) => {
                        let heard = Claims::open();
                        listener =
                            heard.inspect_err(|error| tracing::warn!(%error, "claims are not heard")).ok();
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
                claim = claimed(listener.as_ref(), &wanted) => self.pass_on(claim).await,
            }
        }
    }

    async fn pass_on(&mut self, claim: Claim) {
        self.claimed.retain(|_, at| at.elapsed() < CLAIM_PAUSE);
        if self.claimed.contains_key(&claim.address) {
            return;
        }
        // A bridge or a bond may show this machine its own packets.
        let own =
            blocking(move || Ok(Rt::open()?.links()?.iter().any(|link| link.mac == Some(claim.by)))).await;
        if matches!(own, Ok(false)) {
            self.claimed.insert(claim.address, Instant::now());
            // Nobody listens on a node that holds the API server's address only.
            let _ = self.claims.send(claim);
        }
    }

    async fn pass(&mut self, wanted: &Wanted) -> io::Result<()> {
        let mut terms = BTreeMap::new();
        for purpose in Purpose::ALL {
            let renew = self.renewed.get(&purpose).is_none_or(|renewed| renewed.elapsed() >= purpose.pause());
            if renew {
                self.renewed.insert(purpose, Instant::now());
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
        for address in all.iter().filter(|address| !pass.problems.contains_key(*address)) {
            if pass.taken.contains(address) {
                self.told.insert(*address, (now, 0));
            }
            // What an earlier process has held is told anew, too.
            self.told.entry(*address).or_insert((now, 0));
        }
        let mut due = BTreeSet::new();
        for (address, (since, times)) in &mut self.told {
            if since.elapsed() >= tell_at(*times) {
                *times += 1;
                due.insert(*address);
            }
            if wanted.confirmed.get(address) > self.confirmed.get(address) {
                due.insert(*address);
            }
        }
        self.confirmed.clone_from(&wanted.confirmed);
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
        self.told.values().map(|(since, times)| tell_at(*times).saturating_sub(since.elapsed())).min()
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

async fn claimed(listener: Option<&Claims>, wanted: &Wanted) -> Claim {
    let Some(listener) = listener else { return std::future::pending().await };
    let all = wanted.all();
    match listener.next(|address| all.contains(&address)).await {
        Ok((address, by)) => Claim { address, by },
        Err(error) => {
            tracing::warn!(%error, "claims of other machines are not heard");
            std::future::pending().await
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
