//! Whether a pod may run on a node, as far as names, labels and taints say (component-helpers
//! `scheduling/corev1`): what the scheduler's NodeName, NodeAffinity and TaintToleration would say.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// Upstream's ToleratesTaint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        "Exists" => true,
        _ => false,
    }
}

/// Whether the tolerations cover all of the node's taints with one of `effects`.
pub(crate) fn tolerates_all(tolerations: &[Toleration], node: &Node, effects: &[&str]) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |holds: fn(i64, i64) -> bool| {
        let ([wanted], Some(value)) = (values, value) else { return false };
        matches!((number(value), number(wanted)), (Some(value), Some(wanted)) if holds(value, wanted))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
        "NotIn" => value.is_none_or(|value| values.iter().all(|wanted| wanted != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, wanted| value > wanted),
        "Lt" => compare(|value, wanted| value < wanted),
        _ => false,
    }
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without requirements matches nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label =
        |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    expressions.iter().all(|requirement| requirement_holds(requirement, label(&requirement.key)))
        && fields.iter().all(|requirement| {
            requirement.key == "metadata.name"
                && requirement_holds(requirement, node.metadata.name.as_deref())
        })
}

/// Whether one of the terms matches. No terms: nothing matches.
pub(crate) fn selector_matches_node(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// `spec.nodeSelector` and the required node affinity.
pub(crate) fn affinity_fits(spec: &PodSpec, node: &Node) -> bool {
    let labels = spec.node_selector.iter().flatten().all(|(key, value)| {
        node.metadata.labels.as_ref().is_some_and(|labels| labels.get(key) == Some(value))
    });
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    labels && required.is_none_or(|selector| selector_matches_node(selector, node))
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
