//! Looks every ten seconds, and when the kernel says that programs wait for memory, at what the machine has
//! left; under pressure removes what nobody needs, and when that is not enough ends one pod after another
//! (upstream `eviction_manager.go`). While nothing is short and no pod has a limit, that is all it does.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kedge_client::EventType;
use tokio::time::Instant;

use super::limits::Limits;
use super::message;
use super::pressure::Threshold;
use super::rank::rank;
use super::stalls::Stalls;
use super::usage::{Need, measure};
use super::{Levels, Signal};
use crate::core::Shared;
use crate::runtime::keys;
use crate::worker::Verdict;
use crate::{node, pod, terminate};

const PERIOD: Duration = Duration::from_secs(10);
/// Programs that wait go on waiting: not every word of it needs a look.
const STALL_PAUSE: Duration = Duration::from_secs(1);
/// So long an evicted pod has the time to go before the next one is.
const CLEANUP: Duration = Duration::from_secs(30);
/// Seconds: upstream's `immediateEvictionGracePeriodSeconds`.
pub(super) const AT_ONCE: i64 = 1;

/// A look at the machine.
pub(crate) fn observe(core: &Shared) -> Levels {
    let levels = node::levels(&core.config);
    let changed = core.pressure.lock().observe(&levels, Instant::now());
    if changed {
        tracing::info!(conditions = ?core.pressure.lock().conditions(), "the node's pressure is another one");
        core.looked.notify_one();
    }
    levels
}

/// Everything.
pub(crate) async fn run(core: Shared) {
    let mut stalls = Stalls::watch();
    let limits = Limits::default();
    let mut stuck = false;
    let mut due = Instant::now() + PERIOD;
    let mut stalls_from = Instant::now();
    loop {
        let evicted = synchronize(&core, &limits, &mut stuck).await;
        if !evicted.is_empty() {
            let all = join_all(evicted.iter().map(|uid| core.workers.cleaned(uid)));
            if tokio::time::timeout(CLEANUP, all).await.is_err() {
                tracing::warn!(uids = ?evicted, "evicted pods are not cleaned up yet");
            }
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {
                due = Instant::now() + PERIOD;
                core.looked.notify_one();
            }
            () = async {
                tokio::time::sleep_until(stalls_from).await;
                stalls.next().await;
            } => {
                tracing::debug!("programs wait for memory");
                stalls_from = Instant::now() + STALL_PAUSE;
            }
        }
    }
}

/// One round; the uids of the pods that it ends.
async fn synchronize(core: &Shared, limits: &Limits, stuck: &mut bool) -> Vec<String> {
    let levels = observe(core);
    if !core.pods.has_synced() {
        return Vec::new();
    }
    let (mut living, ended) = core.workers.living_and_ended();
    // Those that were admitted.
    living.retain(|target| core.statuses.last(target).start_time.is_some());
    let counting = limits.count(core, &living);
    let active = core.pressure.lock().active();
    // Whoever takes more of the disk than it may goes before the others.
    if active.first().is_some_and(|first| first.signal.is_of_disk())
        && let Some(counting) = counting
        && let Ok(Some(evicted)) = counting.await
        && !evicted.is_empty()
    {
        return evicted;
    }
    let Some(first) = active.first() else {
        *stuck = false;
        return Vec::new();
    };
    let resource = first.signal.resource();
    // While nothing can be done it is not said, nor written to a full disk, over and over.
    if let Some(node) = core.node.get("", &core.config.node_name).filter(|_| !*stuck) {
        let mut regarding = kedge_client::reference(&*node);
        regarding.uid = Some(core.config.node_name.clone());
        let text = format!("Attempting to reclaim {resource}");
        core.recorder.event(regarding, EventType::Warning, "EvictionThresholdMet", text);
    }
    let separate = node::has_image_disk(&core.config);
    if reclaim(core, &active, &ended, separate).await {
        tracing::info!(resource, "enough was reclaimed without evicting a pod");
        *stuck = false;
        return Vec::new();
    }
    let need = match first.signal {
        Signal::PidAvailable => Need { groups: true, ..Need::default() },
        Signal::MemoryAvailable => Need { groups: true, containers: true, folders: false },
        _ => Need { groups: false, containers: true, folders: true },
    };
    let uses = measure(core, &living, need).await;
    let mut living: Vec<Arc<Pod>> = living.iter().map(|target| core.allocations.apply(target)).collect();
    rank(&mut living, &uses, first.signal, separate);
    let grace = if first.grace.is_some() { i64::from(core.config.eviction.max_pod_grace) } else { AT_ONCE };
    for target in &living {
        let uid = pod::uid(target);
        let text = message::of_pressure(resource, target, uses.get(&uid), &active, &levels);
        if evict(core, target, first.signal.name(), text, grace.max(AT_ONCE), true) {
            *stuck = false;
            return vec![uid];
        }
    }
    if !std::mem::replace(stuck, true) {
        tracing::warn!(resource, "the node is under pressure and has no pod that could be evicted");
    }
    Vec::new()
}

/// Ends the pod, unless the node needs it. `signal` is what it is counted under.
pub(super) fn evict(
    core: &Shared,
    target: &Arc<Pod>,
    signal: &'static str,
    text: String,
    grace: i64,
    disruption: bool,
) -> bool {
    if pod::is_critical(target) {
        return false;
    }
    let verdict = Verdict { reason: "Evicted".into(), message: text.clone(), grace: Some(grace), disruption };
    if !core.workers.evict(&pod::uid(target), verdict) {
        return false;
    }
    tracing::warn!(
        pod = pod::name(target),
        namespace = pod::namespace(target),
        reason = text,
        "evicting a pod"
    );
    core.metrics.evicted(signal);
    core.warning(target, None, "Evicted", text);
    true
}

/// Removes dead containers and unused images, as many as it takes; true: nothing is missing any more.
async fn reclaim(core: &Shared, active: &[Threshold], ended: &[Arc<Pod>], separate: bool) -> bool {
    let of_pods = |signal: Signal| matches!(signal, Signal::NodefsAvailable | Signal::NodefsInodesFree);
    // Nothing of them is on the pods' disk when the images have their own.
    let helps = |signal: Signal| signal.is_of_disk() && !(separate && of_pods(signal));
    if !active.first().is_some_and(|first| helps(first.signal)) {
        return false;
    }
    let missing = || -> Option<u64> {
        let levels = node::levels(&core.config);
        let amounts = active.iter().filter_map(|threshold| {
            let amount = threshold.missing(&levels, true)?;
            // Of images the bytes are known, not the files: one after another.
            let is_bytes = matches!(threshold.signal, Signal::NodefsAvailable | Signal::ImagefsAvailable);
            Some(if is_bytes { u64::try_from(amount).unwrap_or(0) } else { 1 })
        });
        amounts.max()
    };
    remove_dead(core, ended).await;
    for all in [false, true] {
        let Some(missing) = missing() else { return true };
        let wanted = if all { u64::MAX } else { missing };
        if let Err(error) = core.collector.lock().await.run(core, Some(wanted)).await {
            tracing::warn!(error = %error.text(), "images not collected");
        }
    }
    missing().is_none()
}

/// The containers of pods that have ended, and their logs.
async fn remove_dead(core: &Shared, ended: &[Arc<Pod>]) {
    if ended.is_empty() {
        return;
    }
    let containers = match core.runtime.list_containers(None).await {
        Ok(containers) => containers,
        Err(error) => {
            tracing::warn!(error = %error.text(), "dead containers not looked for");
            return;
        }
    };
    let owners: HashSet<&String> =
        containers.iter().filter_map(|container| container.labels.get(keys::POD_UID)).collect();
    for target in ended {
        if owners.contains(&pod::uid(target)) {
            tracing::info!(pod = pod::name(target), "removing the containers of a pod that has ended");
            terminate::remove_containers(core, target).await;
        }
    }
}
