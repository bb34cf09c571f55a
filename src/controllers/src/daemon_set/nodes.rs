//! Which nodes run a daemon, and the pod that is made for one node (upstream
//! controller/daemon/util and NodeShouldRunDaemonPod). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodTemplateSpec, Toleration,
};
use kedge_client::node_fit::{affinity_fits, taints, tolerates_all};

use crate::history::REVISION_LABEL;
use crate::pods;

const NAME_FIELD: &str = "metadata.name";

/// Key and effect of what every daemon bears, and whether only with the host's network.
const TOLERATED: [(&str, &str, bool); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute", false),
    ("node.kubernetes.io/unreachable", "NoExecute", false),
    ("node.kubernetes.io/disk-pressure", "NoSchedule", false),
    ("node.kubernetes.io/memory-pressure", "NoSchedule", false),
    ("node.kubernetes.io/pid-pressure", "NoSchedule", false),
    ("node.kubernetes.io/unschedulable", "NoSchedule", false),
    ("node.kubernetes.io/network-unavailable", "NoSchedule", true),
];

fn with_default_tolerations(tolerations: &mut Vec<Toleration>, host_network: bool) {
    for (key, effect, host_only) in TOLERATED {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let known =
            tolerations.iter().any(|t| Toleration { toleration_seconds: None, ..t.clone() } == toleration);
        if host_only && !host_network {
            continue;
        }
        if known {
            // For ever: a daemon does not leave.
            tolerations
                .iter_mut()
                .filter(|t| Toleration { toleration_seconds: None, ..(*t).clone() } == toleration)
                .for_each(|t| t.toleration_seconds = None);
        } else {
            tolerations.push(toleration);
        }
    }
}

/// The template of the pod for `node`: labelled with the revision, held to the node by its name.
/// The scheduler binds it, so that it also counts the node's resources.
pub(super) fn template_for(template: &PodTemplateSpec, node: &str, hash: &str) -> PodTemplateSpec {
    let mut template = template.clone();
    if !hash.is_empty() {
        let labels: &mut BTreeMap<_, _> =
            template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(REVISION_LABEL.into(), hash.into());
    }
    let spec = template.spec.get_or_insert_default();
    let host_network = spec.host_network.unwrap_or(false);
    with_default_tolerations(spec.tolerations.get_or_insert_default(), host_network);
    let requirement = NodeSelectorRequirement {
        key: NAME_FIELD.into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    node_affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![requirement]),
            match_expressions: None,
        }],
    });
    template
}

/// The node a daemon runs on or waits for.
pub(super) fn target_node(pod: &Pod) -> Option<&str> {
    let node = pods::node_name(pod);
    if !node.is_empty() {
        return Some(node);
    }
    let required = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.as_deref().unwrap_or_default())
        .find(|field| field.key == NAME_FIELD && field.operator == "In")
        .and_then(|field| match field.values.as_deref() {
            Some([name]) => Some(name.as_str()),
            _ => None,
        })
}

/// Whether a daemon is to be started there, and whether one that is there may stay.
pub(super) fn should_run(node: &Node, set: &DaemonSet) -> (bool, bool) {
    let Some(DaemonSetSpec { template: PodTemplateSpec { spec: Some(spec), .. }, .. }) = &set.spec else {
        return (false, false);
    };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let pinned = spec.node_name.as_deref().unwrap_or_default();
    if (!pinned.is_empty() && pinned != name) || !affinity_fits(spec, node) {
        return (false, false);
    }
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    with_default_tolerations(&mut tolerations, spec.host_network.unwrap_or(false));
    let taints = taints(node);
    if tolerates_all(&tolerations, taints, &["NoSchedule", "NoExecute"]) {
        return (true, true);
    }
    (false, tolerates_all(&tolerations, taints, &["NoExecute"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> DaemonSet {
        serde_json::from_value(json!({ "spec": { "selector": {}, "template": { "spec": spec } } }))
            .expect("a set")
    }

    fn node(labels: Value, taints: Value) -> Node {
        serde_json::from_value(
            json!({ "metadata": { "name": "n1", "labels": labels }, "spec": { "taints": taints } }),
        )
        .expect("a node")
    }

    #[test]
    fn nodes_that_run_a_daemon() {
        let taint = |key: &str, effect: &str| json!([{ "key": key, "effect": effect }]);
        for (what, spec, labels, taints, expected) in [
            ("any node", json!({}), json!({}), json!([]), (true, true)),
            ("another node's name", json!({ "nodeName": "n2" }), json!({}), json!([]), (false, false)),
            ("its own name", json!({ "nodeName": "n1" }), json!({}), json!([]), (true, true)),
            ("wrong label", json!({ "nodeSelector": { "a": "b" } }), json!({}), json!([]), (false, false)),
            (
                "right label",
                json!({ "nodeSelector": { "a": "b" } }),
                json!({ "a": "b" }),
                json!([]),
                (true, true),
            ),
            ("not scheduled there, but stays", json!({}), json!({}), taint("x", "NoSchedule"), (false, true)),
            ("thrown out", json!({}), json!({}), taint("x", "NoExecute"), (false, false)),
            ("only preferred", json!({}), json!({}), taint("x", "PreferNoSchedule"), (true, true)),
            (
                "cordoned",
                json!({}),
                json!({}),
                taint("node.kubernetes.io/unschedulable", "NoSchedule"),
                (true, true),
            ),
            (
                "not ready",
                json!({}),
                json!({}),
                taint("node.kubernetes.io/not-ready", "NoExecute"),
                (true, true),
            ),
            (
                "no network",
                json!({}),
                json!({}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                (false, true),
            ),
            (
                "no network, but needs none",
                json!({ "hostNetwork": true }),
                json!({}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                (true, true),
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            assert_eq!(should_run(&node(labels, taints), &set(spec)), expected, "{what}");
        }
    }

    #[test]
    fn a_pod_is_held_to_its_node() {
        let template: PodTemplateSpec = serde_json::from_value(json!({ "spec": {
            "containers": [],
            "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3 }],
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "a", "operator": "Exists" }] } ] } } },
        } }))
        .expect("a template");
        let made = template_for(&template, "n1", "abc");
        let labels = made.metadata.as_ref().and_then(|meta| meta.labels.clone()).expect("labels");
        assert_eq!(labels[REVISION_LABEL], "abc");
        let spec = made.spec.clone().expect("a spec");
        let tolerations = spec.tolerations.as_deref().expect("tolerations");
        assert_eq!((tolerations.len(), tolerations[0].toleration_seconds), (6, None));
        let pod = Pod { spec: Some(spec), ..Pod::default() };
        assert_eq!(target_node(&pod), Some("n1"));
        assert_eq!(template_for(&made, "n1", "abc"), made, "nothing is added twice");
        assert_eq!(target_node(&Pod::default()), None);
    }
}
