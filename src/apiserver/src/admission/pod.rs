//! Priority, DefaultTolerationSeconds, RuntimeClass and PodTopologyLabels.

use std::sync::Arc;

use kedge_api::status::Status;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Operation, Request};
use crate::state::State;

/// How long a pod stays on a node that is not ready, in seconds.
const TOLERATION_SECONDS: i64 = 300;

pub(super) fn mutate(request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    priority(request, pod)?;
    default_tolerations(pod);
    if let Some(node) = pod["spec"]["nodeName"].as_str().map(ToOwned::to_owned) {
        topology_labels(request.state, &node, pod);
    }
    runtime_class(request, pod)
}

/// Updates: what admission set when the pod was made stays where the client leaves it out (`plugin/pkg/admission/
/// priority` and `defaulttolerationseconds` are for updates too).
pub(super) fn mutate_update(request: &Request<'_>, pod: &mut Value) {
    if let Some(old) = request.old {
        keep_priority(pod, old);
    }
    default_tolerations(pod);
}

fn keep_priority(pod: &mut Value, old: &Value) {
    for field in ["priority", "preemptionPolicy"] {
        let before = &old["spec"][field];
        if pod["spec"][field].is_null() && !before.is_null() {
            pod["spec"][field] = before.clone();
        }
    }
}

/// `plugin/pkg/admission/podtopologylabels`: a pod on a node knows, by the downward API, where that is. To be
/// called when the pod gets its node; of a node that is not there nothing is known.
pub(crate) fn topology_labels(state: &State, node: &str, pod: &mut Value) {
    let Some(node) = state.cache.bucket("nodes").get(&format!("/{node}")) else { return };
    for key in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
        if let Some(value) = node.extracted.label(key) {
            pod["metadata"]["labels"][key] = json!(value);
        }
    }
}

/// `plugin/pkg/admission/runtimeclass`: the class must exist; its overhead and where it can run become the
/// pod's.
fn runtime_class(request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    let rejected = |why: &str| request.forbidden(&format!("pod rejected: {why}"));
    let own = pod["spec"]["overhead"].clone();
    let has_overhead = own.as_object().is_some_and(|overhead| !overhead.is_empty());
    let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        if has_overhead {
            return Err(rejected("Pod Overhead set without corresponding RuntimeClass defined Overhead"));
        }
        return Ok(());
    }
    let stored = request.state.cache.bucket("runtimeclasses.node.k8s.io").get(&format!("/{name}"));
    let stored = stored.ok_or_else(|| rejected(&format!("RuntimeClass {name:?} not found")))?;
    let class: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
    let overhead = &class["overhead"]["podFixed"];
    if overhead.as_object().is_some_and(|overhead| !overhead.is_empty()) {
        if has_overhead && own != *overhead {
            return Err(rejected("Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        pod["spec"]["overhead"] = overhead.clone();
    } else if has_overhead {
        return Err(rejected("Pod Overhead set without corresponding RuntimeClass defined Overhead"));
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = &pod["spec"]["nodeSelector"][key];
        if !own.is_null() && own != value {
            return Err(rejected(&format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
            )));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    let more = class["scheduling"]["tolerations"].as_array().cloned().unwrap_or_default();
    if !more.is_empty() {
        let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        for toleration in more {
            if !tolerations.contains(&toleration) {
                tolerations.push(toleration);
            }
        }
        pod["spec"]["tolerations"] = json!(tolerations);
    }
    Ok(())
}

/// `plugin/pkg/admission/priority`.
fn priority(request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default();
    let class = if name.is_empty() {
        PriorityClass::global_default(request.state).as_ref().clone()
    } else {
        let stored = request.state.cache.bucket(CLASSES).get(&format!("/{name}"));
        let class = stored.and_then(|stored| serde_json::from_slice::<PriorityClass>(&stored.bytes).ok());
        Some(
            class
                .ok_or_else(|| request.forbidden(&format!("no PriorityClass with name {name} was found")))?,
        )
    };
    give_priority(pod, class.as_ref()).map_err(|wrong| request.forbidden(&wrong))
}

/// Sets what the class says (nothing more than 0 where there is none); what the pod says itself must be that.
fn give_priority(pod: &mut Value, class: Option<&PriorityClass>) -> Result<(), String> {
    let value = class.map_or(0, |class| class.value);
    let policy = class.and_then(|class| class.preemption_policy.as_deref()).unwrap_or("PreemptLowerPriority");
    let spec = &mut pod["spec"];
    if let Some(own) = spec["priority"].as_i64().filter(|own| *own != value) {
        return Err(format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        ));
    }
    if let Some(own) = spec["preemptionPolicy"].as_str().filter(|own| *own != policy) {
        return Err(format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        spec["priorityClassName"] = json!(class.metadata.name);
    }
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = json!(policy);
    Ok(())
}

/// The storage key of PriorityClasses.
const CLASSES: &str = "priorityclasses.scheduling.k8s.io";

/// What is read of a PriorityClass.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PriorityClass {
    metadata: Named,
    #[serde(default)]
    value: i64,
    #[serde(default)]
    global_default: bool,
    preemption_policy: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Named {
    name: String,
}

impl PriorityClass {
    /// The one of pods that name none; of several the one with the lowest value.
    fn global_default(state: &State) -> Arc<Option<Self>> {
        state.default_priority.get(&state.cache, [CLASSES], || {
            let classes = state.cache.bucket(CLASSES).objects();
            let parsed = classes.values().filter_map(|stored| serde_json::from_slice(&stored.bytes).ok());
            parsed.filter(|class: &Self| class.global_default).min_by_key(|class| class.value)
        })
    }
}

/// There is one default at most (`validatePriorityClass`), and the system's classes stay
/// (`pkg/registry/scheduling/priorityclass`).
pub(super) fn validate_class(request: &Request<'_>, class: &Value) -> Result<(), Status> {
    const SYSTEM: [&str; 2] = ["system-node-critical", "system-cluster-critical"];
    if !request.is("scheduling.k8s.io", "priorityclasses") {
        return Ok(());
    }
    if request.operation == Operation::Delete && SYSTEM.contains(&request.name) {
        return Err(request.forbidden("this is a system priority class and cannot be deleted"));
    }
    let is_write = matches!(request.operation, Operation::Create | Operation::Update);
    if !is_write || class["globalDefault"] != true {
        return Ok(());
    }
    match PriorityClass::global_default(request.state).as_ref() {
        Some(other) if request.operation == Operation::Create || other.metadata.name != request.name => {
            Err(request.forbidden(&format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.metadata.name
            )))
        }
        _ => Ok(()),
    }
}

/// `plugin/pkg/admission/defaulttolerationseconds`.
fn default_tolerations(pod: &mut Value) {
    let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let mut wanted = tolerations.clone();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = tolerations.iter().any(|toleration| {
            let own = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            wanted.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    if !wanted.is_empty() {
        pod["spec"]["tolerations"] = json!(wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_that_leaves_the_priority_out_keeps_it() {
        let old = json!({"spec": {"priority": 7, "preemptionPolicy": "Never"}});
        let mut pod = json!({"spec": {}});
        keep_priority(&mut pod, &old);
        assert_eq!(pod, old);
        let mut pod = json!({"spec": {"priority": 8, "preemptionPolicy": "Never"}});
        keep_priority(&mut pod, &old);
        assert_eq!(pod["spec"]["priority"], 8, "validation refuses it");
    }

    #[test]
    fn a_pod_has_the_priority_of_its_class() {
        let class: PriorityClass = serde_json::from_value(
            json!({"metadata": {"name": "c"}, "value": 5, "preemptionPolicy": "Never"}),
        )
        .expect("a class");
        let mut pod = json!({"spec": {"priorityClassName": "c"}});
        give_priority(&mut pod, Some(&class)).expect("given");
        let given = json!({"priorityClassName": "c", "priority": 5, "preemptionPolicy": "Never"});
        assert_eq!(pod["spec"], given);
        give_priority(&mut pod, Some(&class)).expect("it may say the same");
        for (field, value) in [("priority", json!(6)), ("preemptionPolicy", json!("PreemptLowerPriority"))] {
            let mut pod = json!({"spec": {field: value}});
            let wrong = give_priority(&mut pod, Some(&class)).expect_err("another one");
            assert!(wrong.contains("must not be provided in pod spec"), "{wrong}");
        }
        let mut pod = json!({"spec": {"preemptionPolicy": "Never"}});
        assert!(give_priority(&mut pod, None).is_err());
        let mut pod = json!({"spec": {}});
        give_priority(&mut pod, None).expect("no class");
        assert_eq!(pod["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
    }

    #[test]
    fn tolerations_are_added_unless_the_pod_has_its_own() {
        let count = |tolerations: Value| {
            let mut pod = json!({"spec": {"tolerations": tolerations}});
            default_tolerations(&mut pod);
            pod["spec"]["tolerations"].as_array().expect("list").len()
        };
        assert_eq!(count(Value::Null), 2);
        assert_eq!(count(json!([{"operator": "Exists"}])), 1);
        assert_eq!(count(json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}])), 2);
        assert_eq!(count(json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])), 3);
    }
}
