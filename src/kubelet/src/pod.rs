//! Small questions about a Pod object that many modules ask.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;
/// 68 years. The API has no upper limit; clocks and the runtime's protocol cannot count further than some more.
pub(crate) const LONGEST_GRACE: i64 = i32::MAX as i64;

pub(crate) fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// The pod's spec; an API server never stores a pod without one.
pub(crate) fn spec(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}

pub(crate) fn status(pod: &Pod) -> PodStatus {
    pod.status.clone().unwrap_or_default()
}

pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

pub(crate) fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default()
}

/// Ephemeral containers in the shape of ordinary ones.
pub(crate) fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    let list = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    list.iter().map(from_ephemeral).collect()
}

/// The container whose namespaces an ephemeral container joins.
pub(crate) fn target_of(pod: &Pod, name: &str) -> Option<String> {
    let list = pod.spec.as_ref()?.ephemeral_containers.as_ref()?;
    let container = list.iter().find(|container| container.name == name)?;
    container.target_container_name.clone().filter(|target| !target.is_empty())
}

fn from_ephemeral(from: &EphemeralContainer) -> Container {
    Container {
        args: from.args.clone(),
        command: from.command.clone(),
        env: from.env.clone(),
        env_from: from.env_from.clone(),
        image: from.image.clone(),
        image_pull_policy: from.image_pull_policy.clone(),
        name: from.name.clone(),
        resources: from.resources.clone(),
        security_context: from.security_context.clone(),
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path.clone(),
        termination_message_policy: from.termination_message_policy.clone(),
        tty: from.tty,
        volume_mounts: from.volume_mounts.clone(),
        working_dir: from.working_dir.clone(),
        ..Container::default()
    }
}

/// All kinds of containers by name.
pub(crate) fn find_container(pod: &Pod, name: &str) -> Option<Container> {
    init_containers(pod)
        .iter()
        .chain(containers(pod))
        .find(|container| container.name == name)
        .cloned()
        .or_else(|| ephemeral_containers(pod).into_iter().find(|container| container.name == name))
}

/// Upstream's label `container_type` (`pkg/kubelet/metrics/metrics.go`).
pub(crate) fn kind_of_container(pod: &Pod, name: &str) -> &'static str {
    let is = |list: &[Container]| list.iter().any(|container| container.name == name);
    if is(init_containers(pod)) {
        "init_container"
    } else if is(containers(pod)) {
        "container"
    } else {
        "ephemeral_container"
    }
}

/// An init container that keeps running beside the others (KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn has_sidecars(pod: &Pod) -> bool {
    init_containers(pod).iter().any(is_sidecar)
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The pod's restart policy, `Always` when unset.
pub(crate) fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

pub(crate) fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Failed" | "Succeeded")
}

/// Is there anything new that a round for the pod would go by? Not when the kubelet's own status came back
/// (upstream `podsDifferSemantically`, and `NeedToReconcilePodReadiness` for what others say).
pub(crate) fn needs_a_look(old: &Pod, new: &Pod) -> bool {
    let metadata =
        |pod: &Pod| ObjectMeta { resource_version: None, managed_fields: None, ..pod.metadata.clone() };
    let gates = |pod: &Pod| -> Vec<PodCondition> {
        let gates = new.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
        let wanted =
            |condition: &&PodCondition| gates.iter().any(|gate| gate.condition_type == condition.type_);
        conditions.unwrap_or_default().iter().filter(wanted).cloned().collect()
    };
    old.spec != new.spec
        || metadata(old) != metadata(new)
        || is_terminal_phase(phase(old)) != is_terminal_phase(phase(new))
        || gates(old) != gates(new)
}

pub(crate) fn is_being_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// How long the containers get to end: what the deletion says, else what the spec says.
pub(crate) fn grace_period(pod: &Pod) -> i64 {
    let grace = if is_being_deleted(pod) { pod.metadata.deletion_grace_period_seconds } else { None };
    grace
        .or_else(|| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds))
        .unwrap_or(DEFAULT_GRACE)
        .clamp(0, LONGEST_GRACE)
}

/// Upstream's `SystemCriticalPriority`.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// Pods that the node itself needs: they are neither refused nor ended under pressure (upstream
/// `pkg/kubelet/types/pod_update.go`, `IsCriticalPod`). There the kubelet notes in annotations which pods
/// come from files, and these count too; here all come from the API, and annotations say what their author likes.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|it| it >= SYSTEM_CRITICAL)
}

/// A named or numbered port of a container.
pub(crate) fn resolve_port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => match text.parse::<i32>() {
            Ok(number) => number,
            Err(_) => {
                let ports = container.ports.as_deref().unwrap_or_default();
                ports.iter().find(|p| p.name.as_deref() == Some(text.as_str()))?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// The time, in whole seconds as the API has it.
pub(crate) fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// A time of the runtime (nanoseconds since 1970); zero and below are "never".
pub(crate) fn time_from_nanos(nanos: i64) -> Option<Time> {
    (nanos > 0).then(|| Timestamp::from_second(nanos / 1_000_000_000).ok().map(Time)).flatten()
}

/// Seconds that have passed since `time`; negative when it lies ahead.
pub(crate) fn seconds_since(time: &Time) -> i64 {
    Timestamp::now().as_second() - time.0.as_second()
}

/// FNV-1a with 32 bits, as upstream's hashes are.
pub(crate) fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// What makes a running container outdated: its name and image (upstream `HashContainer`).
pub(crate) fn container_hash(container: &Container) -> String {
    let picked = serde_json::json!({ "name": container.name, "image": container.image });
    format!("{:x}", fnv32a(picked.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_period_prefers_the_deletion() {
        let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
        assert_eq!(grace_period(&pod), 30);
        if let Some(spec) = &mut pod.spec {
            spec.termination_grace_period_seconds = Some(5);
        }
        pod.metadata.deletion_grace_period_seconds = Some(1);
        assert_eq!(grace_period(&pod), 5, "not deleted yet");
        pod.metadata.deletion_timestamp = Some(now());
        assert_eq!(grace_period(&pod), 1);
        pod.metadata.deletion_grace_period_seconds = Some(9_000_000_000_000);
        assert_eq!(grace_period(&pod), LONGEST_GRACE);
    }

    #[test]
    fn a_status_alone_needs_no_look_but_what_others_say_does() {
        let pod = || {
            serde_json::json!({
                "metadata": {"name": "p", "resourceVersion": "1", "managedFields": [{"manager": "a"}]},
                "spec": {"containers": [], "readinessGates": [{"conditionType": "example.com/gate"}]},
                "status": {"phase": "Pending", "conditions": [
                    {"type": "Ready", "status": "False"}, {"type": "example.com/gate", "status": "False"},
                ]},
            })
        };
        let old: Pod = serde_json::from_value(pod()).expect("a pod");
        for (path, value, needs) in [
            ("/metadata/resourceVersion", "2".into(), false),
            ("/metadata/managedFields", serde_json::json!([{"manager": "b"}]), false),
            ("/status/phase", "Running".into(), false),
            ("/status/conditions/0/status", "True".into(), false),
            ("/status/conditions/1/status", "True".into(), true),
            ("/status/phase", "Failed".into(), true),
            ("/spec/containers", serde_json::json!([{"name": "c", "image": "i:2"}]), true),
            ("/metadata", serde_json::json!({"name": "p", "labels": {"a": "b"}}), true),
            (
                "/metadata",
                serde_json::json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
                true,
            ),
        ] {
            let mut changed = pod();
            *changed.pointer_mut(path).expect("it is there") = value;
            let new: Pod = serde_json::from_value(changed.clone()).expect("a pod");
            assert_eq!(needs_a_look(&old, &new), needs, "{changed}");
        }
    }

    #[test]
    fn critical_ones() {
        let with = |key: &str, value: &str, priority: i32| {
            let json = serde_json::json!({"metadata": {"annotations": {key: value}},
                "spec": {"containers": [], "priority": priority}});
            serde_json::from_value::<Pod>(json).expect("a pod")
        };
        for (pod, critical) in [
            (Pod::default(), false),
            (with("x", "y", 1_999_999_999), false),
            (with("x", "y", 2_000_001_000), true),
            (with("kubernetes.io/config.source", "file", 0), false),
            (with("kubernetes.io/config.mirror", "1", 0), false),
        ] {
            assert_eq!(is_critical(&pod), critical, "{pod:?}");
        }
    }

    #[test]
    fn ports_by_name_and_number() {
        let container = Container {
            ports: Some(vec![k8s_openapi::api::core::v1::ContainerPort {
                name: Some("http".into()),
                container_port: 8080,
                ..Default::default()
            }]),
            ..Container::default()
        };
        for (port, expected) in [
            (IntOrString::Int(80), Some(80)),
            (IntOrString::String("http".into()), Some(8080)),
            (IntOrString::String("81".into()), Some(81)),
            (IntOrString::String("admin".into()), None),
            (IntOrString::Int(0), None),
        ] {
            assert_eq!(resolve_port(&port, &container), expected, "{port:?}");
        }
    }

    #[test]
    fn hash_changes_with_the_image_only() {
        let mut container = Container { name: "a".into(), image: Some("x:1".into()), ..Container::default() };
        let before = container_hash(&container);
        container.tty = Some(true);
        assert_eq!(container_hash(&container), before);
        container.image = Some("x:2".into());
        assert_ne!(container_hash(&container), before);
    }
}
