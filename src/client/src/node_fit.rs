//! Whether a pod may run on a node, as far as node selectors and taints say (component-helpers
//! `scheduling/corev1`): the scheduler, controllers and the kubelet answer it alike. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |greater: bool| {
        let (Some(actual), [bound]) = (value.and_then(|v| v.parse::<i64>().ok()), values) else {
            return false;
        };
        bound.parse::<i64>().is_ok_and(|bound| if greater { actual > bound } else { actual < bound })
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|v| v == value)),
        "NotIn" => value.is_none_or(|value| values.iter().all(|v| v != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

/// Whether a node satisfies one term. A term without requirements matches no node.
pub fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_matches(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| requirement_matches(r, (r.key == "metadata.name").then_some(name)))
}

/// Whether a node satisfies any of the terms.
pub fn node_selector_matches(selector: &NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, labels, name))
}

/// `spec.nodeSelector` and the required node affinity, for a node of this name with these labels.
pub fn is_selected(spec: &PodSpec, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| node_selector_matches(selector, labels, name))
}

/// [`is_selected`] for a node as the API has it.
pub fn affinity_fits(spec: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    is_selected(spec, labels, node.metadata.name.as_deref().unwrap_or_default())
}

/// The taints of a node.
pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// corev1 `Toleration.ToleratesTaint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        // An empty key is only valid with Exists.
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// Whether every taint with one of `effects` is tolerated.
pub fn tolerates_all(tolerations: &[Toleration], taints: &[Taint], effects: &[&str]) -> bool {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn labels(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn node_selector_terms() {
        let node = labels(&[("disk", "ssd"), ("cores", "8")]);
        let requirement = |key: &str, operator: &str, values: &[&str]| NodeSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
        };
        let expression = |r: NodeSelectorRequirement| NodeSelectorTerm {
            match_expressions: Some(vec![r]),
            match_fields: None,
        };
        for (term, expected) in [
            (NodeSelectorTerm::default(), false),
            (expression(requirement("disk", "In", &["ssd"])), true),
            (expression(requirement("disk", "NotIn", &["ssd"])), false),
            (expression(requirement("cores", "Gt", &["4"])), true),
            (expression(requirement("cores", "Lt", &["4"])), false),
            (expression(requirement("disk", "Gt", &["4"])), false),
            (
                NodeSelectorTerm {
                    match_expressions: None,
                    match_fields: Some(vec![requirement("metadata.name", "In", &["n1"])]),
                },
                true,
            ),
        ] {
            assert_eq!(term_matches(&term, &node, "n1"), expected, "{term:?}");
        }
    }

    #[test]
    fn tolerations() {
        let taint = |effect: &str| Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: effect.into(),
            time_added: None,
        };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        for (toleration, expected) in [
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Equal", "w", ""), false),
            (toleration("k", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "Equal", "v", ""), false),
            (toleration("k", "Exists", "", "NoExecute"), false),
        ] {
            assert_eq!(tolerates(&toleration, &taint("NoSchedule")), expected, "{toleration:?}");
        }
        assert!(tolerates_all(&[], &[taint("PreferNoSchedule")], &["NoSchedule"]));
        assert!(!tolerates_all(&[], &[taint("NoExecute")], &["NoSchedule", "NoExecute"]));
    }

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
            assert_eq!(
                tolerates_all(&list, taints(&node), &["NoSchedule", "NoExecute"]),
                expected,
                "{tolerations}"
            );
        }
    }
}
