//! Whether a pod may run on a node, as far as names, labels and taints say (component-helpers
//! `scheduling/corev1`): what the scheduler's NodeName, NodeAffinity and TaintToleration would say.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PodSpec, Toleration};
use kedge_client::node_fit::{self, node_selector_matches};

/// `spec.nodeSelector` and the required node affinity.
pub(crate) fn affinity_fits(spec: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| node_selector_matches(selector, labels, name))
}

/// Whether the tolerations cover all of the node's taints with one of `effects`.
pub(crate) fn tolerates_all(tolerations: &[Toleration], node: &Node, effects: &[&str]) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    node_fit::tolerates_all(tolerations, taints, effects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nodes_fit_by_labels_names_and_taints() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n1", "labels": { "disk": "ssd", "cores": "8" } },
            "spec": { "taints": [{ "key": "gpu", "value": "a", "effect": "NoSchedule" }, { "key": "slow", "effect": "PreferNoSchedule" }] },
        }))
        .expect("a node");
        let term = |kind: &str, key: &str, operator: &str, values: Value| {
            json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ kind: [{ "key": key, "operator": operator, "values": values }] }] } } } })
        };
        for (spec, expected) in [
            (json!({}), true),
            (json!({ "nodeSelector": { "disk": "ssd" } }), true),
            (json!({ "nodeSelector": { "disk": "hdd" } }), false),
            (term("matchExpressions", "disk", "In", json!(["ssd"])), true),
            (term("matchExpressions", "disk", "NotIn", json!(["ssd"])), false),
            (term("matchExpressions", "zone", "NotIn", json!(["a"])), true),
            (term("matchExpressions", "zone", "Exists", json!([])), false),
            (term("matchExpressions", "cores", "Gt", json!(["4"])), true),
            (term("matchExpressions", "cores", "Lt", json!(["8"])), false),
            (term("matchExpressions", "disk", "Gt", json!(["4"])), false),
            (term("matchFields", "metadata.name", "In", json!(["n1"])), true),
            (term("matchFields", "metadata.name", "In", json!(["n2"])), false),
            (term("matchFields", "metadata.uid", "In", json!(["n1"])), false),
            (
                json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{}] } } } }),
                false,
            ),
        ] {
            let pod: PodSpec = serde_json::from_value({
                let mut spec = spec.clone();
                spec["containers"] = json!([]);
                spec
            })
            .expect("a pod");
            assert_eq!(affinity_fits(&pod, &node), expected, "{spec}");
        }
        for (tolerations, expected) in [
            (json!([]), false),
            (json!([{ "operator": "Exists" }]), true),
            (json!([{ "key": "gpu", "value": "a" }]), true),
            (json!([{ "key": "gpu", "value": "b" }]), false),
            (json!([{ "key": "gpu", "operator": "Exists", "effect": "NoExecute" }]), false),
        ] {
            let list: Vec<Toleration> = serde_json::from_value(tolerations.clone()).expect("tolerations");
            assert_eq!(tolerates_all(&list, &node, &["NoSchedule", "NoExecute"]), expected, "{tolerations}");
        }
    }
}
