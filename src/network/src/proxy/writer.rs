//! The one task that writes the table. A change is written as soon as the one before is done; timers
//! are for retries only.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kedge_base::{Backoff, Chain};
use kedge_client::{Informer, ObjectKey};
use nix::errno::Errno;
use tokio::sync::{Mutex, watch};

use super::ProxyConfig;
use super::build::service_state;
use super::changes::Changes;
use super::conntrack::StaleFlows;
use super::endpoints::Place;
use super::health::HealthServers;
use super::model::Name;
use super::rules::{SERVICES_CHAIN, fixed_chains};
use super::table::{Delta, Garbage, Table};
use crate::host::prepare_connection_tracking;
use crate::nft::{Batch, Noticed, Remembered, TransactionError, Watcher, Writer};

/// Heals that follow each other closer than this are slowed down: somebody fights for the table.
const QUIET: Duration = Duration::from_secs(30);

/// What is in the kernel, and the means to change it.
pub(crate) struct ProxyWriter {
    config: ProxyConfig,
    kernel: Arc<Writer>,
    table: Table,
    garbage: Garbage,
    flows: StaleFlows,
    /// The kernel's content is not known: write everything.
    needs_full: bool,
}

impl ProxyWriter {
    pub(crate) fn open(config: ProxyConfig) -> io::Result<Self> {
        Ok(Self {
            config,
            kernel: Arc::new(Writer::open()?),
            table: Table::default(),
            garbage: Garbage::default(),
            flows: StaleFlows::default(),
            needs_full: true,
        })
    }

    /// Bring the kernel up to date with what has changed. True when something was written.
    async fn sync(
        &mut self,
        services: &Informer<Service>,
        changes: &Changes,
        health: &HealthServers,
    ) -> Result<bool, TransactionError> {
        let mut delta = Delta::default();
        let mut again: Vec<ObjectKey> = Vec::new();
        let taken = changes.take();
        // Asked afterwards: when the zone changes now, the Services are marked once more.
        let place = Place { node: self.config.node_name.clone(), zone: changes.zone() };
        for (key, slices) in taken {
            let service = services.get_key(&key);
            let state = service.map(|service| service_state(&place, &service, &slices)).unwrap_or_default();
            let old = self.table.service(&key);
            let old_health = old.and_then(|old| old.health);
            if old_health != state.health {
                health.set(&key, state.health);
            }
            let old_udp = old.map(|old| old.udp.as_slice()).unwrap_or_default();
            if old_udp != state.udp.as_slice() {
                self.flows.add(old_udp, &state.udp);
            }
            again.extend(self.table.set(&key, state, &mut delta));
        }
        if !again.is_empty() {
            changes.add(again);
        }

        let batch = if self.needs_full {
            let clients = self.clients().await;
            self.table.full(&self.config, clients)
        } else if delta.is_empty() {
            return Ok(false);
        } else {
            self.garbage.follow(&delta);
            delta.batch(&self.config)
        };
        let was_full = self.needs_full;
        // Whatever happens before the kernel has confirmed: the next write is a full one.
        self.needs_full = true;
        self.commit(batch).await?;
        self.needs_full = false;
        if was_full {
            self.garbage = Garbage::default();
            if let Err(error) = prepare_connection_tracking() {
                tracing::debug!(error = %Chain(&error), "half-closed connections are kept for the kernel's time only");
            }
        }
        Ok(true)
    }

    /// Which clients stick to which endpoints in the table that is there now: after a restart of Kedge
    /// they go on doing so.
    async fn clients(&self) -> BTreeMap<Name, Remembered> {
        let (kernel, table) = (self.kernel.clone(), self.config.table_name.clone());
        let sets = self.table.affinity_sets();
        let read = tokio::task::spawn_blocking(move || {
            let known = |set: Name| Some((set, kernel.remembered(&table, &set.to_string()).ok()?));
            sets.into_iter().filter_map(known).filter(|(_, clients)| !clients.is_empty()).collect()
        });
        read.await.unwrap_or_default()
    }

    async fn commit(&self, batch: Batch) -> Result<(), TransactionError> {
        let kernel = self.kernel.clone();
        let done = tokio::task::spawn_blocking(move || kernel.commit(batch)).await;
        done.unwrap_or_else(|error| Err(TransactionError::Io(io::Error::other(error))))
    }

    /// End UDP flows that go to endpoints that are no longer there. Failing is not worth a retry:
    /// such flows end by themselves when nothing is sent for a while.
    async fn end_stale_flows(&mut self) {
        if self.flows.is_empty() {
            return;
        }
        let flows = std::mem::take(&mut self.flows);
        let node_ips = self.config.node_ips.clone();
        match tokio::task::spawn_blocking(move || flows.delete(&node_ips)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => tracing::debug!(count, "stale UDP flows ended"),
            Ok(Err(error)) => tracing::warn!(%error, "stale UDP flows could not be ended"),
            Err(error) => tracing::warn!(%error, "stale UDP flows could not be ended"),
        }
    }

    /// Delete what nothing refers to any more. What the kernel still finds busy stays for later.
    async fn collect_garbage(&mut self) {
        for _ in 0..4 {
            if self.garbage.is_empty() {
                return;
            }
            let (chains, sets): (Vec<_>, Vec<_>) =
                (self.garbage.chains.iter().copied().collect(), self.garbage.sets.iter().copied().collect());
            let mut batch = Batch::new(&self.config.table_name);
            chains.iter().for_each(|name| batch.delete_chain(&name.to_string()));
            sets.iter().for_each(|name| batch.delete_set(&name.to_string()));
            let failures = match self.commit(batch).await {
                Ok(()) => {
                    self.garbage = Garbage::default();
                    return;
                }
                Err(TransactionError::Refused(failures)) => failures,
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "unused chains stay for now");
                    return;
                }
            };
            // Sequence 0 is the frame of the batch.
            let names: Vec<_> = chains.iter().chain(&sets).copied().collect();
            let mut busy = Garbage::default();
            for failure in &failures {
                let place = usize::try_from(failure.sequence).ok().and_then(|place| place.checked_sub(1));
                let Some(name) = place.and_then(|place| names.get(place)) else { return };
                let from_chains = self.garbage.chains.remove(name);
                self.garbage.sets.remove(name);
                if failure.errno == Errno::ENOENT as i32 {
                    continue;
                }
                if from_chains {
                    busy.chains.insert(*name)
                } else {
                    busy.sets.insert(*name)
                };
            }
            // The rest can go now; what was busy is tried again later.
            let rest = std::mem::take(&mut self.garbage);
            if !rest.is_empty() {
                let mut batch = Batch::new(&self.config.table_name);
                rest.chains.iter().for_each(|name| batch.delete_chain(&name.to_string()));
                rest.sets.iter().for_each(|name| batch.delete_set(&name.to_string()));
                if self.commit(batch).await.is_err() {
                    self.garbage = rest;
                }
            }
            self.garbage.chains.extend(&busy.chains);
            self.garbage.sets.extend(&busy.sets);
            if !busy.is_empty() {
                return;
            }
        }
    }

    /// After lost notifications: whether the table still looks like ours.
    fn looks_whole(&self) -> bool {
        let expected = fixed_chains(&self.config)
            .iter()
            .find(|chain| chain.name == SERVICES_CHAIN)
            .map_or(0, |chain| chain.rules.len());
        self.kernel.rule_count(&self.config.table_name, SERVICES_CHAIN).is_ok_and(|count| count == expected)
    }
}

/// Runs until it is dropped. May be started again after a panic: it then writes everything.
pub(crate) async fn run(
    writer: Arc<Mutex<ProxyWriter>>,
    services: Informer<Service>,
    changes: Arc<Changes>,
    writes: watch::Sender<u64>,
    health: HealthServers,
) {
    let mut this = writer.lock_owned().await;
    this.needs_full = true;
    changes.add(services.list().iter().map(|service| ObjectKey::of(&**service)));
    changes.add(this.table.keys().map(|key| (**key).clone()).collect::<Vec<_>>());

    let mut failed = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    let mut fought = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let mut busy = Backoff::new(Duration::from_millis(20), Duration::from_secs(5));
    let mut last_heal: Option<Instant> = None;
    let mut watcher: Option<Watcher> = None;
    let mut pause: Option<Duration> = None;
    loop {
        if watcher.is_none() {
            // Before the write, so that nothing happens unseen between them.
            match Watcher::open(&this.config.table_name, this.kernel.port()) {
                Ok(opened) => watcher = Some(opened),
                Err(error) => tracing::warn!(%error, "changes of the nftables table by others go unnoticed"),
            }
        }
        if let Some(pause) = pause.take() {
            // Changes need not wait for a retry of what they may repair, nor for garbage.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changes.changed() => {}
            }
        }
        match this.sync(&services, &changes, &health).await {
            Ok(written) => {
                failed.reset();
                if written {
                    writes.send_modify(|count| *count += 1);
                    busy.reset();
                }
            }
            Err(error) => {
                let delay = failed.next_delay();
                tracing::warn!(error = %Chain(&error), retry_in = ?delay, "services could not be written to nftables");
                pause = Some(delay);
                continue;
            }
        }
        this.end_stale_flows().await;
        this.collect_garbage().await;

        let garbage_delay = (!this.garbage.is_empty()).then(|| busy.next_delay());
        let noticed = tokio::select! {
            () = changes.changed() => None,
            () = sleep_or_wait(garbage_delay) => None,
            noticed = noticed(watcher.as_ref()) => Some(noticed),
        };
        match noticed {
            None => continue,
            Some(Ok(Noticed::Lost)) if this.looks_whole() => continue,
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, "nftables notifications failed, they are opened again");
                watcher = None;
            }
        }
        this.needs_full = true;
        tracing::warn!(table = %this.config.table_name, "the nftables table was changed by somebody else, it is written again");
        if last_heal.is_some_and(|last| last.elapsed() < QUIET) {
            pause = Some(fought.next_delay());
        } else {
            fought.reset();
        }
        last_heal = Some(Instant::now());
    }
}

async fn sleep_or_wait(delay: Option<Duration>) {
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
}

async fn noticed(watcher: Option<&Watcher>) -> io::Result<Noticed> {
    match watcher {
        Some(watcher) => watcher.noticed().await,
        None => std::future::pending().await,
    }
}
