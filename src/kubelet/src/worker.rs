//! One task a pod. It sleeps until something concerns its pod, then makes reality match the object.
//!
//! The states follow upstream's `pod_workers.go`: syncing, terminating (containers are stopped),
//! terminated (volumes and cgroups are cleaned up), finished.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kedge_base::Chain;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::core::Shared;
use crate::metrics::Round;
use crate::{launch, pod, resize, terminate};

/// A pod is looked at again after an error.
const AFTER_ERROR: Duration = Duration::from_secs(10);
/// Errors of the network or the runtime pass sooner.
const AFTER_TRANSIENT: Duration = Duration::from_secs(1);

/// Why the pod must end although the API does not say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Its containers get no more seconds than these to end.
    pub(crate) grace: Option<i64>,
    /// The pod is told to be a `DisruptionTarget`: it is the node's fault, not the pod's.
    pub(crate) disruption: bool,
}

/// What the outside says to a worker.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) pod: Arc<Pod>,
    /// The API no longer has the pod: everything of it goes, at once.
    pub(crate) gone: bool,
    /// The node can bear the pod no longer; it stays, whatever the API says later.
    pub(crate) evicted: Option<Verdict>,
}

impl Order {
    pub(crate) fn of(pod: Arc<Pod>, gone: bool) -> Self {
        Self { pod, gone, evicted: None }
    }
}

/// What a worker keeps between two rounds.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// When its worker began with it; `None` once it has run.
    pub(crate) seen: Option<std::time::Instant>,
    /// The pod passed admission on this node.
    pub(crate) admitted: bool,
    /// Restart back-off of each container: failures and when the next start may be.
    pub(crate) restarts: HashMap<String, Restart>,
    /// Containers that a resize ends: they start again without delay.
    pub(crate) resized: HashSet<String>,
    /// Waiting reasons of containers that could not be started.
    pub(crate) waiting: HashMap<String, (String, String)>,
    /// Held while the runtime starts a container: cut short, the container would have ended by an error of the
    /// runtime's own and not by its grace period.
    pub(crate) starting: Arc<tokio::sync::Mutex<()>>,
}

/// Restart back-off of one container.
#[derive(Clone, Debug)]
pub(crate) struct Restart {
    pub(crate) delay: Duration,
    /// The death that the delay counts from; a newer one doubles it.
    pub(crate) finished_at: i64,
    pub(crate) until: Instant,
}

/// All workers. Clones share.
#[derive(Clone, Default)]
pub(crate) struct Workers(Arc<Mutex<HashMap<String, Handle>>>);

#[derive(Clone)]
struct Handle {
    orders: watch::Sender<Order>,
    wake: Arc<Notify>,
    /// Nothing of the pod runs any more, and its volumes and cgroups are gone.
    cleaned: watch::Sender<bool>,
}

impl Workers {
    /// Something concerns the pod: its worker looks again.
    pub(crate) fn wake(&self, uid: &str) {
        if let Some(handle) = self.0.lock().get(uid) {
            handle.wake.notify_one();
        }
    }

    pub(crate) fn wake_all(&self) {
        for handle in self.0.lock().values() {
            handle.wake.notify_one();
        }
    }

    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.0.lock().contains_key(uid)
    }

    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.0.lock().values().map(|handle| handle.orders.borrow().pod.clone()).collect()
    }

    /// Ends the pod; false: it ends because of that already, or there is no such pod.
    pub(crate) fn evict(&self, uid: &str, verdict: Verdict) -> bool {
        let Some(handle) = self.0.lock().get(uid).cloned() else { return false };
        let taken = !*handle.cleaned.borrow()
            && handle.orders.send_if_modified(|order| {
                let first = order.evicted.is_none();
                order.evicted.get_or_insert(verdict);
                first
            });
        handle.wake.notify_one();
        taken
    }

    /// Pods of which something is on this node, and those of which nothing is but dead containers and logs.
    pub(crate) fn living_and_ended(&self) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
        let (mut living, mut ended) = (Vec::new(), Vec::new());
        for handle in self.0.lock().values() {
            let pod = handle.orders.borrow().pod.clone();
            if *handle.cleaned.borrow() { ended.push(pod) } else { living.push(pod) }
        }
        (living, ended)
    }

    /// Returns when the pod is cleaned up, or has no worker.
    pub(crate) async fn cleaned(&self, uid: &str) {
        let watched = self.0.lock().get(uid).map(|handle| handle.cleaned.subscribe());
        if let Some(mut watched) = watched {
            let _ = watched.wait_for(|cleaned| *cleaned).await;
        }
    }

    /// Tell the pod's worker of a new version, starting the worker when there is none. Unless `wake`, one that
    /// sleeps goes on sleeping.
    pub(crate) fn order(&self, core: &Shared, order: Order, wake: bool) {
        let uid = pod::uid(&order.pod);
        let mut workers = self.0.lock();
        if let Some(handle) = workers.get(&uid) {
            handle.orders.send_modify(|known| {
                known.pod = order.pod;
                known.gone = order.gone;
            });
            if wake {
                handle.wake.notify_one();
            }
            return;
        }
        if order.gone {
            return;
        }
        let handle = Handle {
            orders: watch::Sender::new(order.clone()),
            wake: Arc::default(),
            cleaned: watch::Sender::new(false),
        };
        workers.insert(uid.clone(), handle.clone());
        drop(workers);
        let (core, all) = (core.clone(), self.clone());
        let name = format!("pod {}/{}", pod::namespace(&order.pod), pod::name(&order.pod));
        let tasks = core.tasks.clone();
        tasks.spawn_until_stopped(&name, async move {
            outlive_panics(&order.pod, || run(&core, &uid, &handle)).await;
            all.0.lock().remove(&uid);
            // The object may have been created again, or changed, while the worker ended.
            let again = core.pods.list().into_iter().find(|pod| pod::uid(pod) == uid);
            if let Some(again) = again.filter(|pod| !pod::is_terminal_phase(pod::phase(pod)))
                && !pod::is_being_deleted(&again)
            {
                all.order(&core, Order::of(again, false), true);
            }
        });
    }
}

/// A panic costs one round and not the pod, which nobody would work on any more.
async fn outlive_panics<F: Future<Output = ()>>(pod: &Pod, mut run: impl FnMut() -> F) {
    while AssertUnwindSafe(run()).catch_unwind().await.is_err() {
        tracing::error!(pod = pod::name(pod), "the pod's worker ended abnormally; it is started again");
        tokio::time::sleep(AFTER_ERROR).await;
    }
}

async fn run(core: &Shared, uid: &str, handle: &Handle) {
    let mut memory = Memory { seen: Some(std::time::Instant::now()), ..Memory::default() };
    let mut orders = handle.orders.subscribe();
    let mut first = true;
    loop {
        let kind = match orders.has_changed() {
            _ if first => Round::Create,
            Ok(true) => Round::Update,
            _ => Round::Sync,
        };
        first = false;
        let begun = std::time::Instant::now();
        let order = orders.borrow_and_update().clone();
        let verdict = if must_end(&order) {
            order.evicted
        } else {
            // A long round (an image pull) is cut short when the pod must end.
            let starting = memory.starting.clone();
            let cut = async {
                ends(&handle.orders).await;
                drop(starting.lock().await);
            };
            let round = launch::sync(core, &order.pod, &mut memory);
            let outcome = tokio::select! {
                outcome = round => Some(outcome),
                () = cut => None,
            };
            if outcome.is_some() {
                core.metrics.round(kind, begun);
            }
            match outcome {
                None => continue,
                Some(Ok(launch::Outcome::Again(at))) => {
                    wait(handle, at).await;
                    continue;
                }
                Some(Ok(launch::Outcome::End(verdict))) => verdict,
                Some(Err(error)) => {
                    tracing::debug!(pod = %pod::name(&order.pod), error = %Chain(&error), "pod not synced, trying again");
                    let delay = if error.is_transient() { AFTER_TRANSIENT } else { AFTER_ERROR };
                    wait(handle, Some(Instant::now() + delay)).await;
                    continue;
                }
            }
        };
        finish(core, uid, handle, &mut memory, verdict).await;
        return;
    }
}

/// The pod's containers must be stopped.
fn must_end(order: &Order) -> bool {
    order.gone
        || order.evicted.is_some()
        || pod::is_being_deleted(&order.pod)
        || pod::is_terminal_phase(pod::phase(&order.pod))
}

async fn ends(orders: &watch::Sender<Order>) {
    let mut orders = orders.subscribe();
    if orders.wait_for(must_end).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn wait(handle: &Handle, at: Option<Instant>) {
    match at {
        Some(at) => {
            let _ = tokio::time::timeout_at(at, handle.wake.notified()).await;
        }
        None => handle.wake.notified().await,
    }
}

/// Stop the containers, clean up, and when the API has marked the pod as deleted, delete it there.
async fn finish(core: &Shared, uid: &str, handle: &Handle, memory: &mut Memory, verdict: Option<Verdict>) {
    core.probes.remove_pod(uid);
    let begun = std::time::Instant::now();
    stop_all(core, handle, memory, verdict.as_ref()).await;
    core.metrics.round(Round::Kill, begun);
    core.probes.forget(uid);
    core.metrics.forget(uid);
    let begun = std::time::Instant::now();
    loop {
        let order = handle.orders.borrow().clone();
        match terminate::clean_up(core, &order.pod, order.gone).await {
            Ok(()) => break,
            Err(error) => {
                tracing::warn!(pod = %pod::name(&order.pod), error = %Chain(&error), "pod not cleaned up, trying again");
                wait(handle, Some(Instant::now() + AFTER_TRANSIENT)).await;
            }
        }
    }
    core.metrics.round(Round::Terminated, begun);
    core.allocations.forget(uid);
    handle.cleaned.send_replace(true);
    resize::retry(core, None);
    // A pod that ended by itself stays in the API, with its logs, until somebody deletes it.
    let mut orders = handle.orders.subscribe();
    let last = orders.wait_for(|order| order.gone || pod::is_being_deleted(&order.pod)).await;
    let Some(order) = last.ok().map(|order| order.clone()) else { return };
    if !order.gone {
        core.statuses.finish(&order.pod);
    }
    terminate::remove_containers(core, &order.pod).await;
    core.objects.unregister(uid);
    let _ = orders.wait_for(|order| order.gone).await;
    core.statuses.forget(uid);
}

/// Stops the containers with the grace period that the API asks for; a shorter one that comes
/// later is obeyed at once.
async fn stop_all(core: &Shared, handle: &Handle, memory: &mut Memory, verdict: Option<&Verdict>) {
    let mut orders = handle.orders.subscribe();
    loop {
        let order = orders.borrow_and_update().clone();
        let grace = effective_grace(&order);
        let target = core.allocations.apply(&order.pod);
        let stop = terminate::stop_pod(core, &target, grace, memory, verdict, &handle.wake);
        let ended = tokio::select! {
            ended = stop => Some(ended),
            () = shorter(&handle.orders, grace) => None,
        };
        match ended {
            Some(Ok(())) => return,
            Some(Err(error)) => {
                tracing::warn!(pod = %pod::name(&order.pod), error = %Chain(&error), "containers not stopped, trying again");
                wait(handle, Some(Instant::now() + AFTER_TRANSIENT)).await;
            }
            None => {}
        }
    }
}

fn effective_grace(order: &Order) -> i64 {
    let most = order.evicted.as_ref().and_then(|verdict| verdict.grace).unwrap_or(i64::MAX);
    let grace = pod::grace_period(&order.pod).min(most);
    if order.gone { grace.min(1) } else { grace }
}

async fn shorter(orders: &watch::Sender<Order>, grace: i64) {
    let mut orders = orders.subscribe();
    if orders.wait_for(|order| effective_grace(order) < grace).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_round_and_not_the_end() {
        let mut rounds = 0;
        let pod = Pod::default();
        let worked = outlive_panics(&pod, || {
            rounds += 1;
            let first = rounds == 1;
            async move { assert!(!first, "on purpose") }
        });
        worked.await;
        assert_eq!(rounds, 2);
    }
}
