//! The status of a pod from what runs (upstream `kubelet_pods.go`, `generateAPIPodStatus`, and
//! `pkg/kubelet/status/generate.go`).

use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus,
};

use crate::core::Core;
use crate::runtime::{Running, RuntimePod};
use crate::termination_message::Messages;
use crate::worker::{Memory, Verdict};
use crate::{actions, allocation, pod, resources};

/// The conditions that the kubelet owns; all others stay as they are.
pub(crate) const OWNED: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    allocation::PENDING,
    allocation::IN_PROGRESS,
    DISRUPTION,
];

/// Others set it too; the kubelet only ever adds it.
const DISRUPTION: &str = "DisruptionTarget";

/// The pod's status now. `ended`: the containers are being stopped or were.
pub(crate) fn generate(
    core: &Core,
    target: &Pod,
    real: &RuntimePod,
    messages: &Messages,
    memory: &Memory,
    ended: bool,
    verdict: Option<&Verdict>,
) -> PodStatus {
    let old = core.statuses.last(target);
    let mut status = PodStatus {
        observed_generation: target.metadata.generation,
        start_time: old.start_time.clone().or_else(|| Some(pod::now())),
        qos_class: Some(resources::qos(target).as_str().to_owned()),
        host_ip: Some(core.config.node_ip()),
        host_ips: Some(core.config.host_ips().into_iter().map(|ip| HostIP { ip }).collect()),
        ..PodStatus::default()
    };
    let ips = pod_ips(core, target, real, &old);
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
    let make = |list: &[Container], old: Option<&Vec<ContainerStatus>>, init: bool| -> Vec<ContainerStatus> {
        list.iter()
            .map(|c| container_status(core, target, c, real, messages, memory, old, init, ended))
            .collect()
    };
    let init = pod::init_containers(target);
    if !init.is_empty() {
        status.init_container_statuses = Some(make(init, old.init_container_statuses.as_ref(), true));
    }
    status.container_statuses = Some(make(pod::containers(target), old.container_statuses.as_ref(), false));
    let ephemeral = pod::ephemeral_containers(target);
    if !ephemeral.is_empty() {
        status.ephemeral_container_statuses =
            Some(make(&ephemeral, old.ephemeral_container_statuses.as_ref(), false));
    }
    let mut phase = phase(target, &status, real.is_active());
    let before = old.phase.as_deref().unwrap_or("");
    if pod::is_terminal_phase(before) {
        before.clone_into(&mut phase);
        status.reason.clone_from(&old.reason);
        status.message.clone_from(&old.message);
    }
    if let Some(verdict) = verdict {
        "Failed".clone_into(&mut phase);
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    } else if ended && !real.is_active() && !pod::is_terminal_phase(&phase) {
        // Stopped before it could end by itself: upstream decides by the containers' exit codes.
        let codes = status.container_statuses.iter().flatten().map(|container| {
            container
                .state
                .as_ref()
                .and_then(|state| state.terminated.as_ref())
                .map_or(137, |end| end.exit_code)
        });
        let failed = codes.into_iter().any(|code| code != 0);
        if failed { "Failed" } else { "Succeeded" }.clone_into(&mut phase);
    }
    status.phase = Some(phase);
    conditions(target, &mut status, &old, real);
    if let Some(verdict) = verdict.filter(|verdict| verdict.disruption) {
        let before = old.conditions.iter().flatten().find(|c| c.type_ == DISRUPTION && c.status == "True");
        status.conditions.get_or_insert_default().push(PodCondition {
            type_: DISRUPTION.to_owned(),
            status: "True".to_owned(),
            reason: Some("TerminationByKubelet".to_owned()),
            message: Some(verdict.message.clone()),
            last_transition_time: before
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(pod::now())),
            observed_generation: target.metadata.generation,
            ..PodCondition::default()
        });
    }
    if !ended {
        let resize = core.allocations.conditions(&pod::uid(target));
        status.conditions.get_or_insert_default().extend(resize);
    }
    status
}

fn pod_ips(core: &Core, target: &Pod, real: &RuntimePod, old: &PodStatus) -> Vec<String> {
    if pod::host_network(target) {
        return core.config.host_ips();
    }
    let ips = core.config.sorted(real.ips());
    if !ips.is_empty() {
        return ips;
    }
    old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
}

#[allow(clippy::too_many_arguments)]
fn container_status(
    core: &Core,
    target: &Pod,
    container: &Container,
    real: &RuntimePod,
    messages: &Messages,
    memory: &Memory,
    old: Option<&Vec<ContainerStatus>>,
    init: bool,
    ended: bool,
) -> ContainerStatus {
    let old = old.and_then(|list| list.iter().find(|status| status.name == container.name));
    let all: Vec<&Running> = real.containers.iter().filter(|c| c.name == container.name).collect();
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        resources: container.resources.clone(),
        ..ContainerStatus::default()
    };
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let has_init = !pod::init_containers(target).is_empty();
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    match all.first() {
        None => {
            if let Some(old) = old {
                // The runtime has lost the container, or none was made since the sandbox was.
                status.restart_count = old.restart_count;
                status.last_state.clone_from(&old.last_state);
                status.image_id.clone_from(&old.image_id);
                status.container_id.clone_from(&old.container_id);
                if let Some(end) = old.state.as_ref().and_then(|state| state.terminated.clone()) {
                    status.state =
                        Some(ContainerState { terminated: Some(end), ..ContainerState::default() });
                } else if old.state.as_ref().is_some_and(|state| state.running.is_some()) {
                    let lost = ContainerStateTerminated {
                        reason: Some("ContainerStatusUnknown".into()),
                        message: Some(
                            "The container could not be located when the pod was terminated".into(),
                        ),
                        exit_code: 137,
                        ..ContainerStateTerminated::default()
                    };
                    if ended {
                        status.state =
                            Some(ContainerState { terminated: Some(lost), ..ContainerState::default() });
                    }
                }
            }
            if status.state.is_none() && init && !pod::is_sidecar(container) && initialized(target, real) {
                // The pod's containers were made, so this one had ended well before.
                let end = ContainerStateTerminated {
                    reason: Some("Completed".into()),
                    message: Some(
                        "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally".into(),
                    ),
                    ..ContainerStateTerminated::default()
                };
                status.state = Some(ContainerState { terminated: Some(end), ..ContainerState::default() });
            }
            if status.state.is_none() {
                status.state = Some(waiting(default_reason, None));
            }
        }
        Some(current) => {
            let restarts = old.map_or(0, |old| old.restart_count);
            status.restart_count = i32::try_from(current.restart_count).unwrap_or(i32::MAX).max(restarts);
            status.container_id = Some(format!("containerd://{}", current.id));
            status.image_id.clone_from(&current.status.image_ref);
            // What was granted, and what the runtime took last.
            status.allocated_resources =
                container.resources.as_ref().and_then(|granted| granted.requests.clone());
            if current.is_running()
                && let Some(actual) = core.allocations.actual(&pod::uid(target), &container.name)
            {
                status.resources = Some(actual);
            }
            status.user = user(current);
            if let Some(image) = current.status.image.as_ref().filter(|image| !image.image.is_empty()) {
                // The runtime names untagged images by their id; what the user wrote says more.
                if !image.image.starts_with("sha256:") {
                    status.image.clone_from(&image.image);
                }
            }
            status.state = Some(state_of(container, current, messages));
            if let Some(last) = all.get(1).filter(|last| last.is_exited()) {
                status.last_state = Some(state_of(container, last, messages));
            } else {
                status.last_state = old.and_then(|old| old.last_state.clone());
            }
        }
    }
    let exited = all.first().is_none_or(|current| current.is_exited());
    let waits = memory.waiting.get(&container.name).filter(|_| exited && !ended);
    if let Some((reason, message)) = waits {
        let goes_on = all
            .first()
            .is_none_or(|current| actions::restarts_after(target, container, current.status.exit_code));
        if goes_on {
            if let Some(end) = status.state.take().filter(|state| state.terminated.is_some()) {
                status.last_state = Some(end);
            }
            status.state = Some(waiting(reason, Some(message.clone()).filter(|text| !text.is_empty())));
        }
    }
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    let id = all.first().map(|current| current.id.as_str()).unwrap_or_default();
    let started = running && core.probes.is_started(id, container);
    status.started = Some(started);
    status.ready = if init && !pod::is_sidecar(container) {
        status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|end| end.exit_code == 0)
    } else {
        running && started && core.probes.is_ready(id, container)
    };
    status
}

/// Who the first process runs as; containerd says it from 2.0 on.
fn user(current: &Running) -> Option<ContainerUser> {
    let linux = current.status.user.as_ref()?.linux.as_ref()?;
    let groups = Some(linux.supplemental_groups.clone()).filter(|groups| !groups.is_empty());
    let linux = LinuxContainerUser { uid: linux.uid, gid: linux.gid, supplemental_groups: groups };
    Some(ContainerUser { linux: Some(linux) })
}

/// Whether ordinary containers could be started already.
fn initialized(target: &Pod, real: &RuntimePod) -> bool {
    pod::containers(target).iter().any(|container| real.latest(&container.name).is_some())
}

/// Clients attach to a container with an input for one (`kubectl run -i`) as soon as it is said to run, and miss
/// what it wrote before. Of one that ends within this time they are told that it has ended, and read its log:
/// with upstream's kubelet, which looks once a second, it is the same by chance.
const SETTLED: Duration = Duration::from_secs(1);

/// How long the container is not said to run yet.
pub(crate) fn settles_in(container: &Container, current: &Running) -> Option<Duration> {
    if !current.is_running() || container.stdin_once != Some(true) {
        return None;
    }
    let now = jiff::Timestamp::now().as_nanosecond();
    let age =
        u64::try_from(now - i128::from(current.status.started_at)).map_or(SETTLED, Duration::from_nanos);
    SETTLED.checked_sub(age).filter(|left| !left.is_zero())
}

fn state_of(container: &Container, current: &Running, messages: &Messages) -> ContainerState {
    let status = &current.status;
    match current.state {
        cri::ContainerState::ContainerRunning if settles_in(container, current).is_none() => ContainerState {
            running: Some(ContainerStateRunning { started_at: pod::time_from_nanos(status.started_at) }),
            ..ContainerState::default()
        },
        cri::ContainerState::ContainerExited => {
            let reason = match status.reason.as_str() {
                "" if status.exit_code == 0 => "Completed",
                "" => "Error",
                reason => reason,
            };
            ContainerState {
                terminated: Some(ContainerStateTerminated {
                    container_id: Some(format!("containerd://{}", current.id)),
                    exit_code: status.exit_code,
                    reason: Some(reason.to_owned()),
                    message: messages.get(&current.id).cloned().filter(|text| !text.is_empty()),
                    started_at: pod::time_from_nanos(status.started_at),
                    finished_at: pod::time_from_nanos(status.finished_at),
                    signal: None,
                }),
                ..ContainerState::default()
            }
        }
        _ => ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some("ContainerCreating".into()), message: None }),
            ..ContainerState::default()
        },
    }
}

/// The phase from the containers' states (upstream `getPhase`).
fn phase(target: &Pod, status: &PodStatus, active: bool) -> String {
    let mut pending_init = false;
    let mut failed_init = false;
    let state = |list: &Option<Vec<ContainerStatus>>, name: &str| {
        list.iter().flatten().find(|s| s.name == name).and_then(|s| s.state.clone()).unwrap_or_default()
    };
    for container in pod::init_containers(target) {
        let found = state(&status.init_container_statuses, &container.name);
        if pod::is_sidecar(container) {
            let has_started = status
                .init_container_statuses
                .iter()
                .flatten()
                .any(|s| s.name == container.name && (s.started == Some(true) || s.restart_count > 0));
            pending_init |= !has_started && found.terminated.is_none();
            continue;
        }
        match found.terminated {
            Some(end) if end.exit_code == 0 => {}
            Some(end) if actions::restarts_after(target, container, end.exit_code) => pending_init = true,
            Some(_) => failed_init = true,
            None => pending_init = true,
        }
    }
    let (mut waiting, mut running, mut succeeded, mut failed, mut again) = (0, 0, 0, 0, 0);
    for container in pod::containers(target) {
        let found = state(&status.container_statuses, &container.name);
        if found.running.is_some() {
            running += 1;
        } else if let Some(end) = found.terminated {
            if actions::restarts_after(target, container, end.exit_code) {
                again += 1;
            } else if end.exit_code == 0 {
                succeeded += 1;
            } else {
                failed += 1;
            }
        } else if status.container_statuses.iter().flatten().any(|s| {
            s.name == container.name && s.last_state.as_ref().is_some_and(|l| l.terminated.is_some())
        }) {
            again += 1;
        } else {
            waiting += 1;
        }
    }
    if failed_init {
        return "Failed".to_owned();
    }
    if (pending_init && running + succeeded + failed + again == 0) || waiting > 0 {
        return "Pending".to_owned();
    }
    if running > 0 || again > 0 {
        return "Running".to_owned();
    }
    // Sidecars may still be ending; upstream stays Running until they have.
    if pod::has_sidecars(target) && active && sidecar_runs(target, status) {
        return "Running".to_owned();
    }
    if failed > 0 { "Failed".to_owned() } else { "Succeeded".to_owned() }
}

fn sidecar_runs(target: &Pod, status: &PodStatus) -> bool {
    let statuses = status.init_container_statuses.as_deref().unwrap_or_default();
    pod::init_containers(target).iter().filter(|container| pod::is_sidecar(container)).any(|container| {
        statuses.iter().any(|s| {
            s.name == container.name && s.state.as_ref().is_some_and(|state| state.running.is_some())
        })
    })
}

/// Whether every ordinary container has ended for good, so that sidecars may be stopped.
pub(crate) fn work_is_done(target: &Pod, real: &RuntimePod) -> bool {
    !pod::containers(target).is_empty()
        && pod::containers(target).iter().all(|container| {
            real.latest(&container.name).is_some_and(|current| {
                current.is_exited() && !actions::restarts_after(target, container, current.status.exit_code)
            })
        })
}

fn conditions(target: &Pod, status: &mut PodStatus, old: &PodStatus, real: &RuntimePod) {
    let phase = status.phase.clone().unwrap_or_default();
    let done = pod::is_terminal_phase(&phase);
    let containers = status.container_statuses.clone().unwrap_or_default();
    let init = status.init_container_statuses.clone().unwrap_or_default();
    let name_list = |names: &[String]| format!("[{}]", names.join(" "));
    let incomplete: Vec<String> = pod::init_containers(target)
        .iter()
        .filter(|container| {
            let found = init.iter().find(|s| s.name == container.name);
            !found.is_some_and(|s| if pod::is_sidecar(container) { s.started == Some(true) } else { s.ready })
        })
        .map(|container| container.name.clone())
        .collect();
    let started = !real.containers.is_empty() && initialized(target, real);
    let initialized = if phase == "Succeeded" {
        Check::good_because("PodCompleted")
    } else if incomplete.is_empty() || started {
        Check::good()
    } else {
        Check::bad(
            "ContainersNotInitialized",
            format!("containers with incomplete status: {}", name_list(&incomplete)),
        )
    };
    let sidecar_statuses = pod::init_containers(target)
        .iter()
        .filter(|container| pod::is_sidecar(container))
        .filter_map(|container| init.iter().find(|s| s.name == container.name));
    let unready: Vec<String> =
        sidecar_statuses.chain(&containers).filter(|s| !s.ready).map(|s| s.name.clone()).collect();
    let containers_ready = if phase == "Succeeded" {
        Check::bad("PodCompleted", String::new())
    } else if phase == "Failed" {
        Check::bad("PodFailed", String::new())
    } else if unready.is_empty() {
        Check::good()
    } else {
        Check::bad("ContainersNotReady", format!("containers with unready status: {}", name_list(&unready)))
    };
    let mut ready = containers_ready.clone();
    let gates = target.spec.as_ref().and_then(|spec| spec.readiness_gates.clone()).unwrap_or_default();
    if ready.good && !done {
        let closed: Vec<String> = gates
            .iter()
            .filter_map(|gate| {
                let found = target.status.iter().flat_map(|s| s.conditions.iter().flatten());
                let condition = found.into_iter().find(|c| c.type_ == gate.condition_type);
                match condition {
                    None => Some(format!(
                        "corresponding condition of pod readiness gate {:?} does not exist.",
                        gate.condition_type
                    )),
                    Some(c) if c.status != "True" => Some(format!(
                        "the status of pod readiness gate {:?} is not \"True\", but {}",
                        gate.condition_type, c.status
                    )),
                    Some(_) => None,
                }
            })
            .collect();
        if !closed.is_empty() {
            ready = Check::bad("ReadinessGatesNotReady", closed.join(", "));
        }
    }
    let sandbox = real.ready_sandbox().is_some_and(|s| s.host_network || !s.ips.is_empty());
    let network = Check { good: sandbox, reason: None, message: None };
    let list = [
        ("PodReadyToStartContainers", network),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Check::good()),
    ];
    let now = pod::now();
    let made = list.into_iter().map(|(kind, check)| {
        let before = old.conditions.iter().flatten().find(|c| c.type_ == kind);
        let value = if check.good { "True" } else { "False" };
        let since = before.filter(|c| c.status == value).and_then(|c| c.last_transition_time.clone());
        PodCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: check.reason,
            message: check.message,
            last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
            last_probe_time: None,
            observed_generation: target.metadata.generation,
        }
    });
    status.conditions = Some(made.collect());
}

#[derive(Clone)]
struct Check {
    good: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Check {
    fn good() -> Self {
        Self { good: true, reason: None, message: None }
    }

    fn good_because(reason: &str) -> Self {
        Self { good: true, reason: Some(reason.to_owned()), message: None }
    }

    fn bad(reason: &str, message: String) -> Self {
        Self {
            good: false,
            reason: Some(reason.to_owned()),
            message: Some(message).filter(|text| !text.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;

    fn ended(code: i32) -> ContainerState {
        let end = ContainerStateTerminated { exit_code: code, ..ContainerStateTerminated::default() };
        ContainerState { terminated: Some(end), ..ContainerState::default() }
    }

    #[test]
    fn phases() {
        let running =
            ContainerState { running: Some(ContainerStateRunning::default()), ..ContainerState::default() };
        for (policy, states, expected) in [
            ("Always", vec![ContainerState::default()], "Pending"),
            ("Always", vec![running.clone()], "Running"),
            ("Always", vec![ended(0)], "Running"),
            ("OnFailure", vec![ended(0)], "Succeeded"),
            ("OnFailure", vec![ended(1)], "Running"),
            ("Never", vec![ended(1), ended(0)], "Failed"),
            ("Never", vec![ended(1), running], "Running"),
            ("Never", vec![ended(0), ended(0)], "Succeeded"),
        ] {
            let names: Vec<String> = (0..states.len()).map(|at| format!("c{at}")).collect();
            let containers =
                names.iter().map(|name| Container { name: name.clone(), ..Container::default() });
            let target = Pod {
                spec: Some(PodSpec {
                    restart_policy: Some(policy.into()),
                    containers: containers.collect(),
                    ..PodSpec::default()
                }),
                ..Pod::default()
            };
            let statuses = names.iter().zip(states).map(|(name, state)| ContainerStatus {
                name: name.clone(),
                state: Some(state),
                ..ContainerStatus::default()
            });
            let status = PodStatus { container_statuses: Some(statuses.collect()), ..PodStatus::default() };
            assert_eq!(phase(&target, &status, false), expected, "{policy} {expected}");
        }
    }
}
