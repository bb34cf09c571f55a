//! Whether a resize of a running pod is granted (KEP-1287; upstream `pkg/kubelet/allocation`): it is, it waits
//! for room (Deferred), or no room can come (Infeasible). The pods that wait are looked at again when room may
//! have come free, in upstream's order. What was granted is carried out by [`crate::resize_action`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use kedge_base::Order as _;
use kedge_client::EventType;
use serde::Serialize;

use crate::allocation::{Record, Stage, State};
use crate::core::Core;
use crate::resources::{self, Qos};
use crate::runtime::RuntimePod;
use crate::{admission, pod};

/// A pod that waits is looked at again after this time at the latest.
pub(crate) const RETRY: Duration = Duration::from_secs(180);

/// Why a resize is not granted: `Deferred` or `Infeasible`, and the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// An event to tell when the lock is free again.
struct Told {
    pod: Arc<Pod>,
    kind: EventType,
    reason: &'static str,
    message: String,
}

/// Looks at what the object asks for; returns the pod with what it was granted.
pub(crate) fn review(core: &Core, desired: &Arc<Pod>) -> Arc<Pod> {
    let uid = pod::uid(desired);
    let differs = {
        let mut state = core.allocations.lock();
        let differs = state.records.get(&uid).is_some_and(|record| record.differs(desired));
        if differs {
            if !state.waiting.contains(&uid) {
                state.waiting.push(uid);
            }
        } else {
            state.waiting.retain(|waiting| *waiting != uid);
            if let Some(record) = state.records.get_mut(&uid) {
                record.pending = None;
            }
        }
        differs
    };
    if differs {
        retry(core, Some(desired));
    }
    core.allocations.apply(desired)
}

/// Whether the pod waits for room.
pub(crate) fn waits(core: &Core, uid: &str) -> bool {
    core.allocations.lock().waiting.iter().any(|waiting| waiting == uid)
}

/// Looks again at all resizes that wait; `newest` is a pod that its caller knows better than the workers do.
pub(crate) fn retry(core: &Core, newest: Option<&Arc<Pod>>) {
    let mut told = Vec::new();
    let mut changed = Vec::new();
    {
        let mut state = core.allocations.lock();
        if state.waiting.is_empty() {
            return;
        }
        let mut pods: HashMap<String, Arc<Pod>> =
            core.workers.pods().into_iter().map(|pod| (pod::uid(&pod), pod)).collect();
        if let Some(newest) = newest {
            pods.insert(pod::uid(newest), newest.clone());
        }
        let mut waiting = std::mem::take(&mut state.waiting);
        waiting.retain(|uid| pods.contains_key(uid));
        waiting.order_by_key(|uid| rank(&state, &pods, uid));
        for uid in waiting {
            let Some(desired) = pods.get(&uid) else { continue };
            let verdict = decide(core, &state, desired, &pods);
            let Some(record) = state.records.get_mut(&uid) else { continue };
            let before = (record.pending.clone(), record.allocated.clone());
            match verdict {
                Ok(()) => told.extend(accept(record, desired)),
                Err(refusal) => {
                    let infeasible = refusal.reason == "Infeasible";
                    told.extend(refuse(record, desired, refusal));
                    if !infeasible {
                        state.waiting.push(uid.clone());
                    }
                }
            }
            let same = state
                .records
                .get(&uid)
                .is_some_and(|record| (&record.pending, &record.allocated) == (&before.0, &before.1));
            let own = newest.is_some_and(|newest| pod::uid(newest) == uid);
            if !same && !own {
                changed.push(uid);
            }
        }
    }
    for event in told {
        core.event(&event.pod, None, event.kind, event.reason, event.message);
    }
    for uid in changed {
        core.workers.wake(&uid);
    }
}

/// Upstream `sortPendingResizes`: what frees room first, then by priority, class, and how long it waits.
fn rank(state: &State, pods: &HashMap<String, Arc<Pod>>, uid: &str) -> impl Ord + use<> {
    let desired = pods.get(uid);
    let record = state.records.get(uid);
    let grows = desired.zip(record).is_some_and(|(desired, record)| {
        let granted = record.granted(desired);
        ["cpu", "memory"]
            .iter()
            .any(|name| resources::pod_request(desired, name) > resources::pod_request(&granted, name))
    });
    let priority = desired.and_then(|pod| pod.spec.as_ref()?.priority).unwrap_or(0);
    let burstable = desired.is_none_or(|pod| resources::qos(pod) != Qos::Guaranteed);
    let since = record.and_then(|record| record.pending.as_ref()).map(|stage| stage.since.0);
    (grows, std::cmp::Reverse(priority), burstable, since.is_none(), since)
}

/// Whether the node can give what the object asks for.
fn decide(
    core: &Core,
    state: &State,
    desired: &Pod,
    pods: &HashMap<String, Arc<Pod>>,
) -> Result<(), Refusal> {
    let Some(node) = core.node.get("", &core.config.node_name) else { return Ok(()) };
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let uid = pod::uid(desired);
    let others: Vec<Arc<Pod>> = pods
        .values()
        .filter(|other| pod::uid(other) != uid && !pod::is_terminal_phase(pod::phase(other)))
        .filter(|other| state.records.contains_key(&pod::uid(other)))
        .map(|other| state.charged(other))
        .collect();
    feasible(desired, &allocatable)?;
    admission::fits(desired, &others, &allocatable)
        .map_err(|(_, message)| Refusal { reason: "Deferred", message })
}

/// Whether the pod would fit on the empty node.
fn feasible(desired: &Pod, allocatable: &resources::Amounts) -> Result<(), Refusal> {
    let has = |name: &str, unit: fn(&_) -> i64| allocatable.get(name).map_or(i64::MAX, unit);
    for (name, capacity) in
        [("memory", has("memory", resources::value)), ("cpu", has("cpu", resources::milli))]
    {
        let asked = resources::pod_request(desired, name);
        if asked > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}");
            return Err(Refusal { reason: "Infeasible", message });
        }
    }
    Ok(())
}

fn accept(record: &mut Record, desired: &Arc<Pod>) -> Option<Told> {
    record.pending = None;
    if !record.differs(desired) {
        return None;
    }
    record.grant(desired);
    let generation = desired.metadata.generation;
    record.in_progress =
        Some(Stage { reason: String::new(), message: String::new(), generation, since: pod::now() });
    Some(Told {
        pod: desired.clone(),
        kind: EventType::Normal,
        reason: "ResizeStarted",
        message: summary("Pod resize started", desired, generation, ""),
    })
}

fn refuse(record: &mut Record, desired: &Arc<Pod>, refusal: Refusal) -> Option<Told> {
    let generation = desired.metadata.generation;
    let old = record.pending.take();
    let same = old.as_ref().is_some_and(|old| {
        (old.reason.as_str(), &old.message, old.generation) == (refusal.reason, &refusal.message, generation)
    });
    let since = old.map_or_else(pod::now, |old| old.since);
    let reason = refusal.reason.to_owned();
    record.pending = Some(Stage { reason, message: refusal.message.clone(), generation, since });
    (!same).then(|| Told {
        pod: desired.clone(),
        kind: EventType::Warning,
        reason: if refusal.reason == "Infeasible" { "ResizeInfeasible" } else { "ResizeDeferred" },
        message: summary(&format!("Pod resize {}", refusal.reason), desired, generation, &refusal.message),
    })
}

/// The grant could not be carried out (yet).
pub(crate) fn failed(core: &Core, target: &Pod, error: &str) {
    let generation = {
        let mut state = core.allocations.lock();
        let Some(record) = state.records.get_mut(&pod::uid(target)) else { return };
        let stage = record.in_progress.get_or_insert_with(|| Stage {
            reason: String::new(),
            message: String::new(),
            generation: target.metadata.generation,
            since: pod::now(),
        });
        if (stage.reason.as_str(), stage.message.as_str()) == ("Error", error) {
            return;
        }
        "Error".clone_into(&mut stage.reason);
        error.clone_into(&mut stage.message);
        stage.generation
    };
    core.warning(target, None, "ResizeError", summary("Pod resize error", target, generation, error));
}

/// Whether a grant is still to be carried out; tells when it has been.
pub(crate) fn settle(core: &Core, target: &Pod, real: &RuntimePod) {
    let uid = pod::uid(target);
    let done = {
        let mut state = core.allocations.lock();
        let Some(record) = state.records.get_mut(&uid) else { return };
        let lags = record
            .actuated
            .keys()
            .any(|name| real.latest(name).is_some_and(crate::runtime::Running::is_running));
        if lags {
            record.in_progress.get_or_insert_with(|| Stage {
                reason: String::new(),
                message: String::new(),
                generation: target.metadata.generation,
                since: pod::now(),
            });
            return;
        }
        record.in_progress.take()
    };
    let Some(stage) = done else { return };
    core.normal(
        target,
        None,
        "ResizeCompleted",
        summary("Pod resize completed", target, stage.generation, ""),
    );
    // It may have left room.
    retry(core, None);
}

/// The text of an event: what every container has (upstream `events/resize.go`).
fn summary(prefix: &str, target: &Pod, generation: Option<i64>, error: &str) -> String {
    #[derive(Serialize)]
    struct One<'a> {
        name: &'a str,
        resources: ResourceRequirements,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct All<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<One<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<One<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        error: &'a str,
    }
    fn list(containers: &[Container]) -> Vec<One<'_>> {
        let one = |c: &'_ Container| c.resources.clone().unwrap_or_default();
        containers.iter().map(|c| One { name: &c.name, resources: one(c) }).collect()
    }
    let all = All {
        init_containers: list(pod::init_containers(target)),
        containers: list(pod::containers(target)),
        generation: generation.unwrap_or(0),
        error,
    };
    match serde_json::to_string(&all) {
        Ok(text) => format!("{prefix}: {text}"),
        Err(_) => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn target(generation: i64, cpu: &str, memory: &str) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": "p", "uid": "u", "generation": generation},
            "spec": {"containers": [
                {"name": "c0", "resources": {"requests": {"cpu": cpu, "memory": memory}}},
            ]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn amounts(list: &[(&str, &str)]) -> resources::Amounts {
        resources::tests::amounts(list).unwrap_or_default()
    }

    #[test]
    fn what_no_empty_node_has_is_infeasible() {
        let node = amounts(&[("cpu", "2"), ("memory", "1Gi")]);
        for (cpu, memory, expected) in [
            ("2", "1Gi", None),
            ("2001m", "1Gi", Some("Node didn't have enough capacity: cpu, requested: 2001, capacity: 2000")),
            (
                "3",
                "2Gi",
                Some("Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824"),
            ),
        ] {
            let refusal = feasible(&target(1, cpu, memory), &node).err();
            assert_eq!(refusal.as_ref().map(|r| r.message.as_str()), expected, "{cpu} {memory}");
            assert!(refusal.is_none_or(|r| r.reason == "Infeasible"));
        }
    }

    #[test]
    fn refusals_are_told_once_and_keep_their_time() {
        let all = crate::allocation::Allocations::default();
        all.admit(&target(1, "1", "1Gi"));
        let mut state = all.lock();
        let record = state.records.get_mut("u").expect("admitted");
        let refusal = |used: i64| Refusal {
            reason: "Deferred",
            message: format!(
                "Node didn't have enough resource: cpu, requested: 2000, used: {used}, capacity: 2000"
            ),
        };
        let first = refuse(record, &target(2, "2", "1Gi"), refusal(500)).expect("told");
        assert_eq!(first.reason, "ResizeDeferred");
        assert_eq!(
            first.message,
            "Pod resize Deferred: {\"containers\":[{\"name\":\"c0\",\"resources\":{\"requests\":{\"cpu\":\"2\",\"memory\":\"1Gi\"}}}],\
             \"generation\":2,\"error\":\"Node didn't have enough resource: cpu, requested: 2000, used: 500, capacity: 2000\"}"
        );
        let since = record.pending.clone().expect("waits").since;
        assert!(refuse(record, &target(2, "2", "1Gi"), refusal(500)).is_none());
        assert!(refuse(record, &target(2, "2", "1Gi"), refusal(600)).is_some());
        assert_eq!(record.pending.clone().expect("waits").since, since);
        let told = accept(record, &target(3, "1500m", "1Gi")).expect("told");
        assert_eq!(told.reason, "ResizeStarted");
        assert!(record.pending.is_none());
        assert_eq!(record.in_progress.clone().expect("under way").generation, Some(3));
        assert!(accept(record, &target(3, "1500m", "1Gi")).is_none());
    }

    #[test]
    fn what_frees_room_goes_first() {
        let all = crate::allocation::Allocations::default();
        let pod = |uid: &str, cpu: &str, priority: i32| {
            let mut pod = Pod::clone(&target(1, cpu, "1Gi"));
            pod.metadata.uid = Some(uid.into());
            pod.spec.get_or_insert_default().priority = Some(priority);
            Arc::new(pod)
        };
        for uid in ["less", "low", "high"] {
            all.admit(&pod(uid, "1", 0));
        }
        let pods: HashMap<String, Arc<Pod>> =
            [pod("low", "2", 0), pod("high", "2", 5), pod("less", "500m", 0)]
                .into_iter()
                .map(|pod| (pod::uid(&pod), pod))
                .collect();
        let state = all.lock();
        let mut order = vec!["low", "high", "less"];
        order.order_by_key(|uid| rank(&state, &pods, uid));
        assert_eq!(order, ["less", "high", "low"]);
    }
}
