//! TaintNodesByCondition for new nodes, and NodeRestriction: a kubelet changes its own Node and the
//! pods bound to it, nothing else (`plugin/pkg/admission/noderestriction`).

use kedge_api::status::Status;
use serde_json::{Value, json};

use super::{Operation, Request};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// A new node takes no pods until it says that it is ready.
pub(super) fn taint_new(node: &mut Value) {
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    if !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
        node["spec"]["taints"] = json!(taints);
    }
}

pub(super) fn restrict(request: &Request<'_>, value: &Value) -> Result<(), Status> {
    let Some(node) = request.user.node() else { return Ok(()) };
    match (&*request.resource.group, &*request.resource.plural) {
        ("", "nodes") if request.operation != Operation::Delete && request.name != node => {
            Err(request.forbidden(&format!("node {node:?} is not allowed to modify node {:?}", request.name)))
        }
        ("", "nodes") => restrict_node(request, node, value),
        ("", "pods") => {
            let subject =
                if request.operation == Operation::Create { value } else { request.old.unwrap_or(value) };
            if request.operation == Operation::Create
                && !value["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string()
            {
                return Err(request.forbidden(&format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                )));
            }
            if subject["spec"]["nodeName"] != node {
                return Err(request.forbidden(&format!(
                    "node {node:?} can only {} pods with spec.nodeName set to itself",
                    match request.operation {
                        Operation::Create => "create",
                        Operation::Update => "update",
                        Operation::Delete => "delete",
                        Operation::Connect => "connect to",
                    }
                )));
            }
            Ok(())
        }
        ("coordination.k8s.io", "leases")
            if request.namespace != "kube-node-lease" || request.name != node =>
        {
            Err(request.forbidden("can only access node lease with the same name as the requesting node"))
        }
        _ => Ok(()),
    }
}

/// Labels that say where workloads may run are not a kubelet's to change.
fn restrict_node(request: &Request<'_>, node: &str, value: &Value) -> Result<(), Status> {
    if request.operation == Operation::Delete {
        return Err(request.forbidden(&format!("node {node:?} is not allowed to delete its own node object")));
    }
    let none = Value::Null;
    let old = request.old.unwrap_or(&none);
    if request.operation == Operation::Update && value["spec"]["taints"] != old["spec"]["taints"] {
        return Err(request.forbidden(&format!("node {node:?} is not allowed to modify taints")));
    }
    let empty = serde_json::Map::new();
    let labels = |object: &'_ Value| {
        object["metadata"]["labels"].as_object().cloned().unwrap_or_else(|| empty.clone())
    };
    let (before, after) = (labels(old), labels(value));
    let changed: Vec<&str> = before
        .iter()
        .filter(|(key, value)| after.get(*key) != Some(*value))
        .map(|(key, _)| key.as_str())
        .chain(after.keys().filter(|key| !before.contains_key(*key)).map(String::as_str))
        .filter(|key| is_restricted_label(key))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(request.forbidden(&format!("node {node:?} is not allowed to modify labels: {}", changed.join(", "))))
}

/// Must a node not give itself this label (`k8s.io/kubelet/pkg/apis`)?
#[must_use]
pub fn is_restricted_label(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let kubernetes = |suffix: &str| domain == suffix || domain.ends_with(&format!(".{suffix}"));
    if domain == "node-restriction.kubernetes.io" || domain.ends_with(".node-restriction.kubernetes.io") {
        return true;
    }
    if !kubernetes("kubernetes.io") && !kubernetes("k8s.io") {
        return false;
    }
    let own = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.kubernetes.io/region",
        "failure-domain.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let prefixes = ["kubelet.kubernetes.io", "node.kubernetes.io"];
    !own.contains(&label) && !prefixes.iter().any(|prefix| kubernetes(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kubelets_own_labels_are_free() {
        for (label, restricted) in [
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/instance-type", false),
            ("x.kubelet.kubernetes.io/any", false),
            ("example.com/any", false),
            ("plain", false),
            ("node-role.kubernetes.io/control-plane", true),
            ("node-restriction.kubernetes.io/a", true),
            ("k8s.io/a", true),
        ] {
            assert_eq!(is_restricted_label(label), restricted, "{label}");
        }
    }
}
