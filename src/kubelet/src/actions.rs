//! What has to be done for a pod, as a pure function of the object and of what runs
//! (upstream `kuberuntime_manager.go`, `computePodActions`, and `kuberuntime_container.go`,
//! `computeInitContainerActions`).

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod;
use crate::runtime::{Running, RuntimePod};

/// Why a container is stopped; becomes the event's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) message: String,
}

/// What has to be done, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Stop everything, the sandbox too.
    pub(crate) kill_pod: bool,
    /// The reason is a changed sandbox, which is worth an event.
    pub(crate) sandbox_changed: bool,
    pub(crate) create_sandbox: bool,
    /// The number of the new sandbox.
    pub(crate) attempt: u32,
    pub(crate) kill: Vec<Kill>,
    /// Names of containers to start: init, ephemeral or ordinary ones.
    pub(crate) start: Vec<String>,
}

/// What probes know of a container.
pub(crate) trait Verdicts {
    /// `liveness` or `startup` when that probe has failed for good.
    fn failed(&self, container_id: &str) -> Option<&'static str>;
    /// The startup probe succeeded, or there is none.
    fn started(&self, container_id: &str, container: &Container) -> bool;
}

pub(crate) fn plan(target: &Pod, real: &RuntimePod, verdicts: &dyn Verdicts) -> Plan {
    let newest = real.sandboxes.first();
    let sandbox = real.ready_sandbox().filter(|sandbox| {
        sandbox.host_network == pod::host_network(target) && (sandbox.host_network || !sandbox.ips.is_empty())
    });
    let Some(sandbox) = sandbox else {
        return with_new_sandbox(target, real, newest.map(|sandbox| sandbox.attempt));
    };
    let mut plan = Plan { attempt: sandbox.attempt, ..Plan::default() };
    for container in pod::ephemeral_containers(target) {
        if real.latest(&container.name).is_none() {
            plan.start.push(container.name);
        }
    }
    let work_left = pod::containers(target).iter().any(|container| {
        real.latest(&container.name)
            .is_none_or(|c| c.is_running() || should_restart(target, container, Some(c)))
    });
    if !init_containers(target, real, &sandbox.id, verdicts, work_left, &mut plan) {
        return plan;
    }
    for container in pod::containers(target) {
        let Some(current) = real.latest(&container.name).filter(|current| current.is_running()) else {
            if should_restart(target, container, real.latest(&container.name)) {
                plan.start.push(container.name.clone());
            }
            continue;
        };
        check_running(target, container, current, verdicts, &mut plan);
    }
    plan
}

fn with_new_sandbox(target: &Pod, real: &RuntimePod, attempt: Option<u32>) -> Plan {
    let mut plan = Plan {
        kill_pod: attempt.is_some(),
        sandbox_changed: attempt.is_some(),
        attempt: attempt.map_or(0, |attempt| attempt + 1),
        ..Plan::default()
    };
    let init = pod::init_containers(target);
    let started_before = !real.containers.is_empty();
    if pod::restart_policy(target) == "Never" && attempt.is_some() && started_before {
        // The pod ran once and may not run again.
        return plan;
    }
    let wanted: Vec<String> = pod::containers(target)
        .iter()
        .filter(|container| {
            let last = real.latest(&container.name);
            // What succeeded under OnFailure stays done.
            !(pod::restart_policy(target) == "OnFailure"
                && last.is_some_and(|last| last.is_exited() && last.status.exit_code == 0))
        })
        .map(|container| container.name.clone())
        .collect();
    if wanted.is_empty() {
        return plan;
    }
    plan.create_sandbox = true;
    plan.start = match init.first() {
        Some(first) => vec![first.name.clone()],
        None => wanted,
    };
    plan
}

/// Whether ordinary containers may run now.
fn init_containers(
    target: &Pod,
    real: &RuntimePod,
    sandbox: &str,
    verdicts: &dyn Verdicts,
    work_left: bool,
    plan: &mut Plan,
) -> bool {
    let init = pod::init_containers(target);
    let initialized = pod::containers(target)
        .iter()
        .any(|container| real.latest(&container.name).is_some_and(|c| c.sandbox_id == sandbox));
    for container in init {
        let sidecar = pod::is_sidecar(container);
        let current = real.latest(&container.name).filter(|current| current.sandbox_id == sandbox);
        let Some(current) = current else {
            if !initialized || (sidecar && work_left) {
                plan.start.push(container.name.clone());
            }
            if initialized {
                continue;
            }
            return false;
        };
        if current.is_running() {
            if !sidecar {
                return initialized;
            }
            if work_left {
                check_running(target, container, current, verdicts, plan);
            }
            if !initialized && !verdicts.started(&current.id, container) {
                return false;
            }
        } else if sidecar {
            if work_left {
                plan.start.push(container.name.clone());
            }
            if !initialized {
                return false;
            }
        } else if current.is_exited() {
            if current.status.exit_code == 0 || initialized {
                continue;
            }
            if should_restart(target, container, Some(current)) {
                plan.start.push(container.name.clone());
            } else {
                plan.kill_pod = true;
            }
            return false;
        } else {
            // Created but never started, or unknown: make it anew.
            if !initialized {
                plan.kill.push(Kill {
                    id: current.id.clone(),
                    name: container.name.clone(),
                    message: "Init container is in \"Unknown\" state, try killing it before restart"
                        .to_owned(),
                });
                plan.start.push(container.name.clone());
                return false;
            }
        }
    }
    true
}

fn check_running(
    target: &Pod,
    container: &Container,
    current: &Running,
    verdicts: &dyn Verdicts,
    plan: &mut Plan,
) {
    let message = if current.hash != pod::container_hash(container) {
        // A changed definition restarts the container whatever its policy says.
        Some((format!("Container {} definition changed", container.name), true))
    } else {
        verdicts.failed(&current.id).map(|probe| {
            let restart = pod::is_sidecar(container) || policy(target, container) != "Never";
            (format!("Container {} failed {probe} probe", container.name), restart)
        })
    };
    let Some((mut message, restart)) = message else { return };
    if restart {
        message.push_str(", will be restarted");
        plan.start.push(container.name.clone());
    }
    plan.kill.push(Kill { id: current.id.clone(), name: container.name.clone(), message });
}

/// The container's own restart policy, else the pod's.
fn policy<'a>(target: &'a Pod, container: &'a Container) -> &'a str {
    container.restart_policy.as_deref().unwrap_or_else(|| pod::restart_policy(target))
}

/// Whether a container that does not run has to be started (again).
pub(crate) fn should_restart(target: &Pod, container: &Container, last: Option<&Running>) -> bool {
    let Some(last) = last else { return true };
    if last.is_running() {
        return false;
    }
    if !last.is_exited() {
        return true;
    }
    restarts_after(target, container, last.status.exit_code)
}

/// Whether a container is started again after it ended with that code.
pub(crate) fn restarts_after(target: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.as_deref().unwrap_or_default().contains(&exit_code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if matches && rule.action == "Restart" {
            return true;
        }
    }
    match policy(target, container) {
        "Never" => false,
        // An init container that succeeded is done under every policy.
        "OnFailure" => exit_code != 0,
        _ => exit_code != 0 || pod::is_sidecar(container) || !is_init(target, container),
    }
}

fn is_init(target: &Pod, container: &Container) -> bool {
    pod::init_containers(target).iter().any(|init| init.name == container.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Sandbox;
    use k8s_cri::v1 as cri;
    use k8s_openapi::api::core::v1::PodSpec;

    struct NoProbes;

    impl Verdicts for NoProbes {
        fn failed(&self, container_id: &str) -> Option<&'static str> {
            (container_id == "sick").then_some("liveness")
        }
        fn started(&self, _: &str, _: &Container) -> bool {
            true
        }
    }

    fn container(name: &str) -> Container {
        Container { name: name.into(), ..Container::default() }
    }

    fn target(policy: &str, init: &[&str]) -> Pod {
        let sidecar = |name: &&str| Container {
            restart_policy: name.starts_with("side").then(|| "Always".to_owned()),
            ..container(name)
        };
        Pod {
            spec: Some(PodSpec {
                restart_policy: Some(policy.into()),
                init_containers: Some(init.iter().map(sidecar).collect()),
                containers: vec![container("web")],
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    /// `code`: `None` runs, `Some` has exited.
    fn real(ready: bool, list: &[(&str, &str, Option<i32>)]) -> RuntimePod {
        let sandbox = Sandbox {
            id: "s".into(),
            ready,
            created_at: 1,
            attempt: 0,
            ips: vec!["10.0.0.1".into()],
            host_network: false,
        };
        let containers = list.iter().map(|(name, id, code)| Running {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            sandbox_id: "s".into(),
            state: if code.is_some() {
                cri::ContainerState::ContainerExited
            } else {
                cri::ContainerState::ContainerRunning
            },
            restart_count: 0,
            hash: pod::container_hash(&container(name)),
            status: cri::ContainerStatus { exit_code: code.unwrap_or(0), ..Default::default() },
        });
        RuntimePod { sandboxes: vec![sandbox], containers: containers.collect() }
    }

    #[test]
    fn plans() {
        // (policy, init containers, what runs; expected: starts, kills, kill pod, new sandbox)
        type Case<'a> = (&'a str, &'a [&'a str], RuntimePod, (&'a [&'a str], &'a [&'a str], bool, bool));
        let cases: Vec<Case<'_>> = vec![
            ("Always", &[], RuntimePod::default(), (&["web"], &[], false, true)),
            ("Always", &["init"], RuntimePod::default(), (&["init"], &[], false, true)),
            ("Always", &[], real(true, &[("web", "w", None)]), (&[], &[], false, false)),
            ("Always", &[], real(true, &[("web", "w", Some(0))]), (&["web"], &[], false, false)),
            ("OnFailure", &[], real(true, &[("web", "w", Some(0))]), (&[], &[], false, false)),
            ("OnFailure", &[], real(true, &[("web", "w", Some(1))]), (&["web"], &[], false, false)),
            ("Never", &[], real(true, &[("web", "w", Some(1))]), (&[], &[], false, false)),
            ("Never", &[], real(false, &[("web", "w", Some(1))]), (&[], &[], true, false)),
            ("Always", &[], real(false, &[("web", "w", Some(1))]), (&["web"], &[], true, true)),
            ("Always", &[], real(true, &[("web", "sick", None)]), (&["web"], &["web"], false, false)),
            ("Never", &[], real(true, &[("web", "sick", None)]), (&[], &["web"], false, false)),
            ("Always", &["a", "b"], real(true, &[("a", "a", Some(0))]), (&["b"], &[], false, false)),
            ("Always", &["a", "b"], real(true, &[("a", "a", None)]), (&[], &[], false, false)),
            ("Always", &["a"], real(true, &[("a", "a", Some(2))]), (&["a"], &[], false, false)),
            ("Never", &["a"], real(true, &[("a", "a", Some(2))]), (&[], &[], true, false)),
            ("Always", &["side"], real(true, &[("side", "x", None)]), (&["web"], &[], false, false)),
            (
                "Always",
                &["side"],
                real(true, &[("side", "x", Some(1)), ("web", "w", None)]),
                (&["side"], &[], false, false),
            ),
        ];
        for (policy, init, real, (start, kill, kill_pod, create)) in cases {
            let plan = plan(&target(policy, init), &real, &NoProbes);
            let killed: Vec<&str> = plan.kill.iter().map(|kill| kill.name.as_str()).collect();
            let case = format!("{policy} {init:?} {:?}", real.containers.first().map(|c| &c.name));
            assert_eq!(plan.start, start, "{case}");
            assert_eq!(killed, kill, "{case}");
            assert_eq!((plan.kill_pod, plan.create_sandbox), (kill_pod, create), "{case}");
        }
    }
}
