//! Ending a pod: containers are asked, then forced, to stop; then everything of it is removed
//! (upstream `kubelet.go`, `SyncTerminatingPod` and `SyncTerminatedPod`, and `killContainer`).

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::{Core, Shared};
use crate::metrics::GroupWork;
use crate::runtime::{Running, RuntimePod, keys};
use crate::worker::{Memory, Verdict};
use crate::{Error, lifecycle, pod, pod_logs, status, termination_message, volumes};

/// A container gets at least this long after its preStop hook (upstream `minimumGracePeriodInSeconds`).
const MINIMUM_GRACE: i64 = 2;

/// Stops all containers of the pod and its sandbox, and reports the status that results.
pub(crate) async fn stop_pod(
    core: &Shared,
    target: &Pod,
    grace: i64,
    memory: &mut Memory,
    verdict: Option<&Verdict>,
    wake: &Notify,
) -> Result<(), Error> {
    let uid = pod::uid(target);
    let real = core.runtime.pod(&uid).await?;
    let messages = termination_message::read(core, target, &real).await;
    let report = |memory: &Memory| {
        let reported = status::generate(core, target, &real, &messages, memory, true, verdict);
        // A terminal phase may be told only when nothing runs any more.
        if !real.is_active() || !pod::is_terminal_phase(reported.phase.as_deref().unwrap_or("")) {
            core.statuses.set(target, reported);
        }
    };
    report(memory);
    let readiness =
        || real.containers.iter().map(|c| core.probes.readiness(&c.id)).collect::<Vec<Option<bool>>>();
    let mut known = readiness();
    let stopping = stop_all(core, target, &real, grace);
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            stopped = &mut stopping => break stopped?,
            () = wake.notified() => {
                let now = readiness();
                // Containers that have ended are reported when all have.
                let changed =
                    known.iter().zip(&now).any(|(old, new)| new.is_some() && old.is_some() && old != new);
                if changed {
                    report(memory);
                }
                known = now;
            }
        }
    }
    let real = core.runtime.pod(&uid).await?;
    if real.is_active() {
        return Err(Error::other("a container of the pod still runs"));
    }
    memory.waiting.clear();
    let messages = termination_message::read(core, target, &real).await;
    core.statuses.set(target, status::generate(core, target, &real, &messages, memory, true, verdict));
    Ok(())
}

/// Stops every container, then every sandbox. Sidecars end after the others, the last first.
pub(crate) async fn stop_all(core: &Core, target: &Pod, real: &RuntimePod, grace: i64) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
    let sidecars: Vec<String> = pod::init_containers(target)
        .iter()
        .filter(|container| pod::is_sidecar(container))
        .map(|container| container.name.clone())
        .collect();
    let alive = |c: &&Running| !c.is_exited();
    let (last, first): (Vec<&Running>, Vec<&Running>) =
        real.containers.iter().filter(alive).partition(|c| sidecars.contains(&c.name));
    let stops = first.into_iter().map(|c| stop_container(core, target, c, "Stopping container", grace));
    for result in join_all(stops).await {
        result?;
    }
    for name in sidecars.iter().rev() {
        for container in last.iter().filter(|c| c.name == *name) {
            let left = deadline.saturating_duration_since(Instant::now()).as_secs();
            let left = i64::try_from(left).unwrap_or(0).min(grace);
            stop_container(core, target, container, "Stopping container", left).await?;
        }
    }
    for sandbox in real.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        core.runtime.stop_sandbox(&sandbox.id).await.inspect_err(|error| {
            core.warning(target, None, "FailedKillPod", format!("error killing pod: {}", error.text()));
        })?;
    }
    Ok(())
}

/// Runs the preStop hook within the grace period, then stops the container in what is left of it.
pub(crate) async fn stop_container(
    core: &Core,
    target: &Pod,
    container: &Running,
    message: &str,
    grace: i64,
) -> Result<(), Error> {
    let text = if message == "Stopping container" {
        format!("Stopping container {}", container.name)
    } else {
        message.to_owned()
    };
    core.normal(target, Some(&container.name), "Killing", text);
    let mut left = grace;
    if container.is_running() && grace > 0 {
        let spec = pod::find_container(target, &container.name);
        let hook: Option<LifecycleHandler> = match &spec {
            Some(spec) => spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone()),
            None => container
                .status
                .annotations
                .get(keys::PRE_STOP)
                .and_then(|text| serde_json::from_str(text).ok()),
        };
        if let Some(hook) = hook {
            let begun = Instant::now();
            let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            let run = lifecycle::run(core, target, &container.name, &container.id, &hook);
            match tokio::time::timeout(limit, run).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(pod = pod::name(target), container = container.name, error = %error.text(), "preStop hook failed");
                    core.warning(target, Some(&container.name), "FailedPreStopHook", "PreStopHook failed");
                }
                Err(_) => {
                    tracing::info!(
                        pod = pod::name(target),
                        container = container.name,
                        "preStop hook did not end in the grace period"
                    );
                }
            }
            let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace);
            left = (grace - used).max(MINIMUM_GRACE);
        }
    }
    core.runtime.stop_container(&container.id, left).await?;
    core.probes.remove_container(&container.id);
    Ok(())
}

/// After the containers: volumes, tokens and cgroups.
pub(crate) async fn clean_up(core: &Core, target: &Pod, gone: bool) -> Result<(), Error> {
    let uid = pod::uid(target);
    core.images.forget_pod(&uid);
    core.tokens.forget(&uid);
    // Termination messages live in the pod's folder and were read into the status before.
    volumes::remove(core, &uid).await?;
    let (cgroups, pod_of_group) = (core.cgroups.clone(), target.clone());
    let begun = std::time::Instant::now();
    volumes::blocking(move || cgroups.remove(&pod_of_group)).await?;
    core.metrics.group_work(GroupWork::Destroy, begun);
    if gone {
        tracing::debug!(pod = pod::name(target), "pod is gone from the API server");
    }
    Ok(())
}

/// Removes the dead containers, the sandboxes and the logs. Best effort: what stays is found again
/// by the garbage collector at the next start.
pub(crate) async fn remove_containers(core: &Core, target: &Pod) {
    let uid = pod::uid(target);
    let real = core.runtime.pod(&uid).await.unwrap_or_default();
    for container in &real.containers {
        if let Err(error) = core.runtime.remove_container(&container.id).await {
            tracing::debug!(container = container.id, error = %error.text(), "container not removed");
        }
    }
    for sandbox in &real.sandboxes {
        if let Err(error) = core.runtime.remove_sandbox(&sandbox.id).await {
            tracing::debug!(sandbox = sandbox.id, error = %error.text(), "sandbox not removed");
        }
    }
    core.owners.lock().retain(|_, owner| *owner != uid);
    let (notes, logs) = (core.config.log_notes_dir(), core.config.log_dir.clone());
    let dir = core.config.pod_log_dir(pod::namespace(target), pod::name(target), &uid);
    let _ = volumes::blocking(move || {
        let _ = std::fs::remove_dir_all(dir);
        pod_logs::remove(&notes, &logs, &|noted| noted == uid);
        Ok(())
    })
    .await;
}
