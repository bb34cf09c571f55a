//! Which rules belong to which kind.

use serde_json::{Value, json};

use super::Rules;

/// Kinds whose `metadata.generation` counts changes.
const GENERATION: &[&str] = &[
    "Pod",
    "ReplicationController",
    "Deployment",
    "ReplicaSet",
    "DaemonSet",
    "StatefulSet",
    "Job",
    "CronJob",
    "PodDisruptionBudget",
    "Ingress",
    "IngressClass",
    "NetworkPolicy",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "FlowSchema",
    "PriorityLevelConfiguration",
    "EndpointSlice",
    "CSIDriver",
    "ResourceSlice",
    "DeviceClass",
    "PriorityClass",
];

/// The rules of a built-in kind.
pub fn rules_for(group: &str, kind: &str) -> Rules {
    let _ = group;
    Rules { generation: GENERATION.contains(&kind), ..Rules::PLAIN }
}

/// Copies the containers' resources: all that a resize may change.
pub(super) fn copy_resources(to: &mut Value, from: &Value) {
    for list in ["containers", "initContainers"] {
        let source = from["spec"][list].as_array().cloned().unwrap_or_default();
        let Some(items) = to["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for item in items {
            let Some(new) = source.iter().find(|c| c["name"] == item["name"]) else { continue };
            for f in ["resources", "resizePolicy"] {
                if let Some(v) = new.get(f) {
                    item[f] = v.clone();
                }
            }
        }
    }
}

/// Warnings about valid objects.
pub(super) fn warnings(_obj: &Value) -> Vec<String> {
    let _ = json!({});
    Vec::new()
}
