//! One round for a pod that shall run: what runs is read, what is missing is started, what is wrong
//! is stopped, and the status is told (upstream `kubelet.go`, `SyncPod`, and `kuberuntime_manager.go`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use tokio::time::Instant;

use crate::container_config::{self, Making};
use crate::core::Shared;
use crate::metrics::GroupWork;
use crate::runtime::RuntimePod;
use crate::worker::{Memory, Restart, Verdict};
use crate::{
    Error, actions, admission, allocation, lifecycle, objects, pod, pod_logs, resize, resize_action,
    sandbox_config, status, terminate, termination_message, volumes,
};

const FIRST_RESTART: Duration = Duration::from_secs(10);
const LONGEST_RESTART: Duration = Duration::from_secs(300);
/// A container that ran for this long starts with the first delay again.
const RESTART_RESET: Duration = Duration::from_secs(600);
/// A memory limit may have to wait until less is in use.
const AFTER_FAILED_RESIZE: Duration = Duration::from_secs(10);

/// How a round ended.
pub(crate) enum Outcome {
    /// Look again when something happens, at the latest then.
    Again(Option<Instant>),
    /// The pod is over: stop what is left of it.
    End(Option<Verdict>),
}

/// The earliest of all reasons to look again.
#[derive(Default)]
struct Next(Option<Instant>);

impl Next {
    fn at(&mut self, at: Instant) {
        self.0 = Some(self.0.map_or(at, |known| known.min(at)));
    }
}

/// One round. Errors mean: try again later.
pub(crate) async fn sync(core: &Shared, desired: &Arc<Pod>, memory: &mut Memory) -> Result<Outcome, Error> {
    let uid = pod::uid(desired);
    let real = core.runtime.pod(&uid).await?;
    own_all(core, &uid, &real);
    if !memory.admitted {
        // What runs already was admitted by the process before this one, with what it granted.
        let granted = core.allocations.apply(desired);
        if real.sandboxes.is_empty()
            && let Err(verdict) = admission::check(core, &granted).await
        {
            core.warning(&granted, None, &verdict.reason, verdict.message.clone());
            return Ok(Outcome::End(Some(verdict)));
        }
        core.allocations.admit(&granted);
        memory.admitted = true;
    }
    // From here on everything goes by what was granted, not by what is asked for.
    let granted = resize::review(core, desired);
    let target = granted.as_ref();
    allocation::save(core, &uid).await?;
    core.objects.register(&uid, objects::sources(target));
    // Before the first status: what was ready stays so when this process has just started.
    core.probes.track(core, target, &real);
    let mut next = Next::default();
    if let Some(verdict) = deadline(core, target, &mut next) {
        core.normal(target, None, "DeadlineExceeded", verdict.message.clone());
        return Ok(Outcome::End(Some(verdict)));
    }
    if let Some(end) = report(core, target, &real, memory).await {
        return Ok(end);
    }
    if let Err(error) = prepare(core, target, &real).await {
        report(core, target, &real, memory).await;
        return Err(error);
    }
    let paths = match volumes::set_up(core, target, &core.config.sorted(real.ips())).await {
        Ok(ready) => {
            if let Some(at) = ready.refresh_at {
                next.at(at);
            }
            ready.paths
        }
        Err(error) => {
            core.warning(target, None, "FailedMount", error.text());
            // Containers that run already do so whatever becomes of their volumes.
            if !real.is_active() {
                return Err(error);
            }
            next.at(Instant::now() + Duration::from_secs(30));
            HashMap::new()
        }
    };
    let mut plan = actions::plan(target, &real, &core.probes);
    memory.resized = resize_action::restarts(core, target, &real, &mut plan);
    if plan.kill_pod {
        if plan.sandbox_changed && plan.create_sandbox {
            core.normal(
                target,
                None,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
        }
        terminate::stop_all(core, target, &real, pod::grace_period(target)).await?;
    }
    for kill in &plan.kill {
        if let Some(container) = real.containers.iter().find(|container| container.id == kill.id) {
            let grace = probe_grace(target, &kill.name, &kill.message);
            terminate::stop_container(core, target, container, &kill.message, grace).await?;
        }
    }
    let mut real = if plan.kill_pod || !plan.kill.is_empty() { core.runtime.pod(&uid).await? } else { real };
    // Something else may run, or in another way, than what was read.
    let mut acted = match resize_action::carry_out(core, target, &real).await {
        Ok(resized) => resized,
        Err(error) => {
            tracing::info!(pod = pod::name(target), error = %error.text(), "resize not carried out, trying again");
            resize::failed(core, target, &error.text());
            next.at(Instant::now() + AFTER_FAILED_RESIZE);
            true
        }
    };
    if resize::waits(core, &uid) {
        next.at(Instant::now() + resize::RETRY);
    }
    if plan.create_sandbox {
        create_sandbox(core, target, plan.attempt).await?;
        real = core.runtime.pod(&uid).await?;
        report(core, target, &real, memory).await;
    }
    if let Some(sandbox) = real.ready_sandbox().cloned() {
        let config = sandbox_config::make(core, target, sandbox.attempt);
        // After a start-up that ended early the rest follows in the next round.
        let mut paths = paths;
        if plan.create_sandbox && !pod::host_network(target) {
            // Volumes may show the pod's address.
            paths = volumes::set_up(core, target, &sandbox.ips).await.map_or(paths, |ready| ready.paths);
        }
        let launch =
            Launch { core, target, real: &real, sandbox: &sandbox.id, config: &config, paths: &paths };
        for name in &plan.start {
            acted |= launch.start(name, memory, &mut next).await?;
        }
    }
    if acted {
        real = core.runtime.pod(&uid).await?;
    }
    own_all(core, &uid, &real);
    core.probes.track(core, target, &real);
    resize::settle(core, target, &real);
    allocation::save(core, &uid).await?;
    if let Some(end) = report(core, target, &real, memory).await {
        return Ok(end);
    }
    let settling = pod::containers(target)
        .iter()
        .filter_map(|container| status::settles_in(container, real.latest(&container.name)?))
        .max();
    if let Some(left) = settling {
        next.at(Instant::now() + left);
    }
    // Init containers that ended while others were started leave no event behind.
    let again = actions::plan(target, &real, &core.probes);
    let waits = |name: &String| memory.restarts.contains_key(name) || memory.waiting.contains_key(name);
    if !again.start.is_empty()
        && !again.start.iter().any(waits)
        && !plan.start.iter().any(|name| again.start.contains(name))
    {
        next.at(Instant::now());
    }
    prune(core, &real).await;
    Ok(Outcome::Again(next.0))
}

fn own_all(core: &Shared, uid: &str, real: &RuntimePod) {
    for sandbox in &real.sandboxes {
        core.own(&sandbox.id, uid);
    }
    for container in &real.containers {
        core.own(&container.id, uid);
    }
}

/// Tells the status; `Some` when it says that the pod is over.
async fn report(core: &Shared, target: &Pod, real: &RuntimePod, memory: &mut Memory) -> Option<Outcome> {
    let messages = termination_message::read(core, target, real).await;
    let mut made = status::generate(core, target, real, &messages, memory, false, None);
    let over =
        pod::is_terminal_phase(made.phase.as_deref().unwrap_or("")) || status::work_is_done(target, real);
    if over && real.is_active() {
        // The end is told when nothing runs any more.
        made.phase = Some("Running".to_owned());
    }
    if made.phase.as_deref() == Some("Running")
        && let Some(seen) = memory.seen.take()
        && core.statuses.last(target).phase.as_deref() == Some("Pending")
    {
        core.metrics.pod_starts.observe_since(seen);
    }
    core.statuses.set(target, made);
    over.then_some(Outcome::End(None))
}

/// `activeDeadlineSeconds`.
fn deadline(core: &Shared, target: &Pod, next: &mut Next) -> Option<Verdict> {
    let limit = target.spec.as_ref()?.active_deadline_seconds?;
    // The first round begins the time, with its report.
    let start = core.statuses.last(target).start_time;
    let left = limit - start.map_or(0, |start| pod::seconds_since(&start));
    if left > 0 {
        next.at(Instant::now() + Duration::from_secs(u64::try_from(left).unwrap_or(0)));
        return None;
    }
    Some(Verdict {
        reason: "DeadlineExceeded".into(),
        message: "Pod was active on the node longer than the specified deadline".into(),
        ..Verdict::default()
    })
}

/// The network is there, and the pod's folders and cgroup.
async fn prepare(core: &Shared, target: &Pod, real: &RuntimePod) -> Result<(), Error> {
    if real.ready_sandbox().is_some() {
        return Ok(());
    }
    let network = core.health.borrow().clone().and_then(|health| health.network);
    if let Some(problem) = network.filter(|_| !pod::host_network(target)) {
        let error = Error::NetworkNotReady(problem);
        core.warning(target, None, "NetworkNotReady", error.text());
        return Err(error);
    }
    let (cgroups, pod_of_group) = (core.cgroups.clone(), target.clone());
    let dir = core.config.pod_dir(&pod::uid(target));
    let begun = std::time::Instant::now();
    volumes::blocking(move || {
        volumes::make_dir(&dir, 0o750)?;
        cgroups.ensure(&pod_of_group)
    })
    .await
    .inspect(|()| core.metrics.group_work(GroupWork::Create, begun))
    .inspect_err(|error| {
        core.warning(
            target,
            None,
            "FailedCreatePodContainer",
            format!("unable to ensure pod container exists: {}", error.text()),
        );
    })
}

/// What the pod's RuntimeClass names (upstream `pkg/kubelet/runtimeclass`); empty is the default.
async fn runtime_handler(core: &Shared, target: &Pod) -> Result<String, Error> {
    let Some(name) = target.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()) else {
        return Ok(String::new());
    };
    if name.is_empty() {
        return Ok(String::new());
    }
    let api = kube::Api::<RuntimeClass>::all(core.client.clone());
    match api.get_opt(name).await {
        Ok(Some(class)) => Ok(class.handler),
        Ok(None) => Err(Error::other(format!("runtimeclass.node.k8s.io {name:?} not found"))),
        Err(error) => Err(Error::other(format!("failed to lookup RuntimeClass {name}: {error}"))),
    }
}

async fn create_sandbox(core: &Shared, target: &Pod, attempt: u32) -> Result<(), Error> {
    let config = sandbox_config::make(core, target, attempt);
    let (logs, notes) = (PathBuf::from(&config.log_directory), core.config.log_notes_dir());
    let uid = pod::uid(target);
    volumes::blocking(move || {
        pod_logs::note(&notes, &uid)?;
        volumes::make_dir(&logs, 0o755)
    })
    .await?;
    let run = async {
        let handler = runtime_handler(core, target).await?;
        core.runtime.run_sandbox(config, handler).await
    };
    core.metrics.started_pods.add();
    match run.await {
        Ok(id) => {
            core.own(&id, &pod::uid(target));
            Ok(())
        }
        Err(error) => {
            core.metrics.failed_pods.add();
            core.warning(
                target,
                None,
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {}", error.text()),
            );
            Err(error)
        }
    }
}

/// What all containers of a pod are started with in one round.
#[derive(Clone, Copy)]
struct Launch<'a> {
    core: &'a Shared,
    target: &'a Pod,
    real: &'a RuntimePod,
    /// The sandbox that they join, and what it was made with.
    sandbox: &'a str,
    config: &'a cri::PodSandboxConfig,
    /// Where each volume of the pod is on the host.
    paths: &'a HashMap<String, PathBuf>,
}

impl Launch<'_> {
    /// Starts one container unless its back-off says "later". What goes wrong with it is kept for the
    /// status and does not stop the others. False: nothing was tried.
    async fn start(&self, name: &str, memory: &mut Memory, next: &mut Next) -> Result<bool, Error> {
        let Self { core, target, real, .. } = *self;
        let Some(container) = pod::find_container(target, name) else { return Ok(false) };
        let resized = memory.resized.remove(name);
        if let Some(at) = back_off(target, &container, real, memory).filter(|_| !resized) {
            let delay = memory.restarts.get(name).map_or(FIRST_RESTART, |restart| restart.delay);
            let message = format!(
                "back-off {} restarting failed container={name} pod={}_{}({})",
                go_duration(delay),
                pod::name(target),
                pod::namespace(target),
                pod::uid(target)
            );
            let text = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                pod::name(target),
                pod::namespace(target),
                pod::uid(target)
            );
            if memory.waiting.get(name).is_none_or(|(reason, _)| reason != "CrashLoopBackOff") {
                core.warning(target, Some(name), "BackOff", text);
            }
            memory.waiting.insert(name.to_owned(), ("CrashLoopBackOff".into(), message));
            next.at(at);
            return Ok(false);
        }
        let kind = pod::kind_of_container(target, name);
        core.metrics.starting(kind);
        match self.create_and_start(&container, &memory.starting).await {
            Ok(()) => {
                memory.waiting.remove(name);
            }
            Err(Error::Container { reason, message }) => {
                tracing::debug!(
                    pod = pod::name(target),
                    container = name,
                    reason,
                    message,
                    "container not started"
                );
                core.metrics.not_started(kind, reason);
                if matches!(
                    reason,
                    "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName"
                ) {
                    core.warning(target, Some(name), "Failed", format!("Error: {reason}"));
                } else {
                    core.warning(target, Some(name), "Failed", format!("Error: {message}"));
                }
                memory.waiting.insert(name.to_owned(), (reason.to_owned(), message));
                // The start of a pull's back-off shows at once as such, when somebody looks again.
                let retry = core.images.retry_at(target, &container).filter(|at| *at > Instant::now());
                let soon = Instant::now() + Duration::from_secs(2);
                next.at(if reason == "ErrImagePull" {
                    soon
                } else {
                    retry.unwrap_or(soon + Duration::from_secs(8))
                });
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Pulls its image, makes the container and runs it.
    async fn create_and_start(
        &self,
        container: &Container,
        starting: &tokio::sync::Mutex<()>,
    ) -> Result<(), Error> {
        let Self { core, target, real, sandbox, config, paths } = *self;
        let name = Some(container.name.as_str());
        let image = core.images.ensure(core, target, container, config).await?;
        lifecycle::check_user(target, container, &image)?;
        let known = core.statuses.last(target);
        let statuses = known.container_statuses.iter().chain(&known.init_container_statuses).flatten();
        let told = statuses.into_iter().find(|s| s.name == container.name);
        let lost = told
            .filter(|told| told.container_id.is_some())
            .map(|told| u32::try_from(told.restart_count).unwrap_or(0) + 1);
        let restart_count =
            real.latest(&container.name).map(|last| last.restart_count + 1).or(lost).unwrap_or(0);
        let target_id = pod::target_of(target, &container.name)
            .and_then(|wanted| real.latest(&wanted).filter(|c| c.is_running()).map(|c| c.id.clone()));
        let making = Making {
            core: core.clone(),
            pod: target.clone(),
            container: container.clone(),
            restart_count,
            image: image.id.clone(),
            pod_ips: if pod::host_network(target) {
                core.config.host_ips()
            } else {
                core.config.sorted(real.ips())
            },
            volumes: paths.clone(),
            target_id,
        };
        let made = container_config::make(making).await.map_err(|error| match error {
            Error::Container { .. } => error,
            other => Error::config(other.text()),
        })?;
        let logs = PathBuf::from(&config.log_directory).join(&container.name);
        volumes::blocking(move || volumes::make_dir(&logs, 0o755)).await?;
        let whole = starting.lock().await;
        let created = core.runtime.create_container(sandbox, made, config.clone()).await;
        let id = created
            .map_err(|error| Error::Container { reason: "CreateContainerError", message: error.message() })?;
        core.own(&id, &pod::uid(target));
        core.normal(target, name, "Created", "Container created");
        if let Err(error) = core.runtime.start_container(&id).await {
            return Err(Error::Container { reason: "RunContainerError", message: error.message() });
        }
        drop(whole);
        core.allocations.actuate(
            &pod::uid(target),
            &container.name,
            container.resources.clone().unwrap_or_default(),
        );
        core.normal(target, name, "Started", "Container started");
        if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
            && let Err(error) = lifecycle::run(core, target, &container.name, &id, hook).await
        {
            core.warning(target, name, "FailedPostStartHook", "PostStartHook failed");
            tracing::info!(pod = pod::name(target), container = container.name, error = %error.text(), "postStart hook failed");
            let now = core.runtime.pod(&pod::uid(target)).await?;
            if let Some(running) = now.containers.iter().find(|c| c.id == id) {
                let grace = pod::grace_period(target);
                terminate::stop_container(core, target, running, "FailedPostStartHook", grace).await?;
            }
            return Err(Error::Container { reason: "PostStartHookError", message: error.text() });
        }
        Ok(())
    }
}

/// When the container may start, if that is not now. Counts a new death.
fn back_off(target: &Pod, container: &Container, real: &RuntimePod, memory: &mut Memory) -> Option<Instant> {
    let last = real.latest(&container.name).filter(|last| last.is_exited())?;
    let now = Instant::now();
    let finished = last.status.finished_at;
    // Time that has passed since then, also before this process started.
    let nanos = jiff::Timestamp::now().as_nanosecond() - i128::from(finished);
    let ago = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    let ran = Duration::from_nanos(u64::try_from(finished - last.status.started_at).unwrap_or(0));
    match memory.restarts.get_mut(&container.name) {
        Some(known) if known.finished_at == finished => {}
        Some(known) => {
            known.delay =
                if ran > RESTART_RESET { FIRST_RESTART } else { (known.delay * 2).min(LONGEST_RESTART) };
            known.finished_at = finished;
            known.until = now + known.delay.saturating_sub(ago);
        }
        None => {
            // The first restart comes at once; the delay counts from the second death on.
            let first = last.restart_count == 0 && !pod::is_being_deleted(target);
            let delay = if first { Duration::ZERO } else { FIRST_RESTART };
            memory.restarts.insert(
                container.name.clone(),
                Restart {
                    delay: FIRST_RESTART / 2,
                    finished_at: finished,
                    until: now + delay.saturating_sub(ago),
                },
            );
            if !first && let Some(known) = memory.restarts.get_mut(&container.name) {
                known.delay = FIRST_RESTART;
            }
        }
    }
    memory.restarts.get(&container.name).map(|known| known.until).filter(|until| *until > now)
}

/// `10s`, `1m20s`, `5m0s`: as Go prints durations.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// The grace period of a container that a probe has failed; the probe may name its own.
fn probe_grace(target: &Pod, name: &str, message: &str) -> i64 {
    let container = pod::find_container(target, name);
    let probe = container.and_then(|container| {
        if message.contains("failed liveness probe") {
            container.liveness_probe
        } else if message.contains("failed startup probe") {
            container.startup_probe
        } else {
            None
        }
    });
    probe
        .and_then(|probe| probe.termination_grace_period_seconds)
        .map_or_else(|| pod::grace_period(target), |grace| grace.min(pod::LONGEST_GRACE))
}

/// Keeps the newest dead container of each name, for `logs --previous`; and the newest sandbox.
async fn prune(core: &Shared, real: &RuntimePod) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for container in &real.containers {
        let count = seen.entry(container.name.as_str()).or_default();
        *count += 1;
        if *count > 2 && container.is_exited() {
            let _ = core.runtime.remove_container(&container.id).await;
            core.owners.lock().remove(&container.id);
        }
    }
    for sandbox in real.sandboxes.iter().skip(1).filter(|sandbox| !sandbox.ready) {
        if !real.containers.iter().any(|container| container.sandbox_id == sandbox.id) {
            let _ = core.runtime.remove_sandbox(&sandbox.id).await;
            core.owners.lock().remove(&sandbox.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_prints_them() {
        let cases = [(10, "10s"), (80, "1m20s"), (300, "5m0s")];
        for (seconds, expected) in cases {
            assert_eq!(go_duration(Duration::from_secs(seconds)), expected);
        }
    }
}
