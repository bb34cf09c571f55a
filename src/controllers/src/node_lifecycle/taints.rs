//! Which taints and conditions a node should have, and how long a pod bears them. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use kedge_client::node_fit::tolerates;

use crate::time;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Condition, its status, and the taint that says so to the scheduler.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_deref()?.iter().find(|condition| condition.type_ == kind)
}

pub(super) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|condition| condition.status == "True")
}

/// The taints a node should have. Those that are nobody's business here stay as they are.
/// `evict`: whether pods may be driven off a node that is not ready (not in a full disruption).
pub(super) fn wanted(node: &Node, evict: bool) -> Vec<Taint> {
    let spec = node.spec.clone().unwrap_or_default();
    let status = |kind: &str| condition(node, kind).map(|condition| condition.status.as_str());
    let mut taints = spec.taints.unwrap_or_default();
    let mut want = |key: &str, effect: &str, wanted: bool| {
        let position = taints.iter().position(|taint| taint.key == key && taint.effect == effect);
        match (position, wanted) {
            (None, true) => taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(time::now()),
                value: None,
            }),
            (Some(position), false) => {
                taints.remove(position);
            }
            _ => {}
        }
    };
    for (kind, bad, key) in BY_CONDITION {
        want(key, NO_SCHEDULE, status(kind) == Some(bad));
    }
    want(UNSCHEDULABLE, NO_SCHEDULE, spec.unschedulable == Some(true));
    want(NOT_READY, NO_EXECUTE, evict && status("Ready") == Some("False"));
    want(UNREACHABLE, NO_EXECUTE, evict && status("Ready") == Some("Unknown"));
    taints
}

/// Whether `wanted` drives pods off that `node` does not drive off yet.
pub(super) fn adds_eviction(node: &Node, wanted: &[Taint]) -> bool {
    let has = |taint: &Taint| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        taints.iter().any(|old| old.key == taint.key && old.effect == taint.effect)
    };
    wanted.iter().any(|taint| taint.effect == NO_EXECUTE && !has(taint))
}

/// The conditions of a node that is not heard of any more.
pub(super) fn unknown_conditions(node: &Node) -> Vec<NodeCondition> {
    let now = time::now();
    let mut conditions =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(now.clone()),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(now.clone());
            }
            Some(_) => {}
        }
    }
    conditions
}

/// When the pod must leave the node: `None` never, else a time (maybe past). `seen` is when the node was
/// first found to drive it off: what counts for taints that do not say when they were added.
pub(super) fn leaves_at(node: &Node, pod: &Pod, seen: Timestamp) -> Option<Timestamp> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut leaves: Option<Timestamp> = None;
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let since = taint.time_added.as_ref().map_or(seen, |time| time.0);
        let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if matching.peek().is_none() {
            return Some(seen);
        }
        // The shortest of all times that are given; none given means for ever.
        if let Some(seconds) = matching.filter_map(|toleration| toleration.toleration_seconds).min() {
            let at = time::plus(since, seconds.max(0));
            leaves = Some(leaves.map_or(at, |earlier| earlier.min(at)));
        }
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{at, pod};
    use k8s_openapi::api::core::v1::Toleration;
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn node(ready: &str) -> Node {
        Node {
            spec: Some(NodeSpec {
                taints: Some(vec![Taint {
                    key: "mine".into(),
                    effect: NO_SCHEDULE.into(),
                    ..Taint::default()
                }]),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                conditions: Some(vec![NodeCondition {
                    type_: "Ready".into(),
                    status: ready.into(),
                    ..NodeCondition::default()
                }]),
                ..NodeStatus::default()
            }),
            ..Node::default()
        }
    }

    #[test]
    fn taints_follow_the_conditions() {
        for (ready, evict, expected) in [
            ("True", true, vec!["mine:NoSchedule"]),
            ("False", true, vec!["mine:NoSchedule", "not-ready:NoSchedule", "not-ready:NoExecute"]),
            ("Unknown", true, vec!["mine:NoSchedule", "unreachable:NoSchedule", "unreachable:NoExecute"]),
            ("Unknown", false, vec!["mine:NoSchedule", "unreachable:NoSchedule"]),
        ] {
            let mut node = node(ready);
            let taints = wanted(&node, evict);
            let names: Vec<String> = taints
                .iter()
                .map(|taint| {
                    format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
                })
                .collect();
            assert_eq!(names, expected, "{ready} {evict}");
            assert_eq!(adds_eviction(&node, &taints), expected.len() == 3);
            if let Some(spec) = &mut node.spec {
                spec.taints = Some(taints.clone());
            }
            assert_eq!(wanted(&node, evict), taints, "nothing changes twice");
        }
    }

    #[test]
    fn pods_leave_when_their_patience_ends() {
        let mut node = node("Unknown");
        if let Some(spec) = &mut node.spec {
            spec.taints = Some(vec![Taint {
                key: UNREACHABLE.into(),
                effect: NO_EXECUTE.into(),
                time_added: Some(Time(at(100))),
                value: None,
            }]);
        }
        let toleration = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        for (tolerations, expected) in [
            (vec![], Some(at(150))),
            (vec![toleration(NOT_READY, Some(300))], Some(at(150))),
            (vec![toleration(UNREACHABLE, Some(300))], Some(at(400))),
            (vec![toleration(UNREACHABLE, None), toleration("", Some(60))], Some(at(160))),
            (vec![toleration(UNREACHABLE, None)], None),
        ] {
            let mut pod = pod("p", "n", "Running", None);
            if let Some(spec) = &mut pod.spec {
                spec.tolerations = Some(tolerations.clone());
            }
            assert_eq!(leaves_at(&node, &pod, at(150)), expected, "{tolerations:?}");
        }
    }

    #[test]
    fn a_silent_node_is_unknown() {
        let conditions = unknown_conditions(&node("True"));
        assert_eq!(conditions.len(), 4);
        assert_eq!(conditions[0].message.as_deref(), Some("Kubelet stopped posting node status."));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
    }
}
