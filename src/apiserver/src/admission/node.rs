//! TaintNodesByCondition for new nodes, and NodeRestriction: a kubelet changes its own Node and the
//! pods bound to it, nothing else (`plugin/pkg/admission/noderestriction`).

use kedge_api::object;
use kedge_api::status::{GroupResource, Status};
use serde_json::{Value, json};

use super::{Operation, Request};
use crate::authz;
use crate::authz::node::{audiences, claim_names, reference};
use crate::authz::rbac::{Attributes, Decision};
use crate::verbs::{object_key, read};

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
        ("", "serviceaccounts") if request.subresource == "token" => restrict_token(request, node, value),
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
            match (request.operation, request.subresource) {
                (Operation::Create, _) => restrict_mirror(request, node, value),
                (Operation::Update, "status") => restrict_pod_status(request, node, value),
                _ => Ok(()),
            }
        }
        ("", "persistentvolumeclaims") => restrict_claim(request, node, value),
        ("storage.k8s.io", "csinodes") if request.name != node => {
            Err(request.forbidden("can only access CSINode with the same name as the requesting node"))
        }
        ("resource.k8s.io", "resourceslices") if request.old.unwrap_or(value)["spec"]["nodeName"] != node => {
            Err(request
                .forbidden("can only access ResourceSlice with the same NodeName as the requesting node"))
        }
        ("coordination.k8s.io", "leases")
            if request.namespace != "kube-node-lease" || request.name != node =>
        {
            Err(request.forbidden("can only access node lease with the same name as the requesting node"))
        }
        _ => Ok(()),
    }
}

/// What stands for a file of the node belongs to the node, and leads it to no other object: the Node authorizer gives
/// a node what its pods refer to.
fn restrict_mirror(request: &Request<'_>, node: &str, pod: &Value) -> Result<(), Status> {
    let forbidden = |what: &str| Err(request.forbidden(&format!("node {node:?} {what}")));
    let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let owner = match owners {
        [owner] if owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node => owner,
        [_, _, ..] => return forbidden("can only create pods with a single owner reference set to itself"),
        _ => return forbidden("can only create pods with an owner reference set to itself"),
    };
    if owner["controller"] != true {
        return forbidden("can only create pods with a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return forbidden("must not set blockOwnerDeletion on an owner reference");
    }
    let own = find(request, "nodes", "", node)?;
    let own = object::uid(&own);
    if owner["uid"] != own {
        return forbidden(&format!(
            "UID mismatch: expected {own} got {}",
            owner["uid"].as_str().unwrap_or_default()
        ));
    }
    match reference(pod) {
        Some(what) => forbidden(&format!("can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// Labels say which Services lead to a pod and who owns it; claims are what the node may read.
fn restrict_pod_status(request: &Request<'_>, node: &str, pod: &Value) -> Result<(), Status> {
    let none = Value::Null;
    let old = request.old.unwrap_or(&none);
    let differ = |path: &str| {
        // What is not there and what is empty mean the same.
        let is_empty = |value: &&Value| **value == json!({}) || **value == json!([]) || value.is_null();
        let at = |object: &'_ Value| object.pointer(path).filter(|value| !is_empty(value)).cloned();
        at(old) != at(pod)
    };
    [
        ("/metadata/labels", "labels through pod status"),
        ("/status/resourceClaimStatuses", "resource claim statues"),
        ("/status/extendedResourceClaimStatus", "extended resource claim status"),
    ]
    .into_iter()
    .find(|(path, _)| differ(path))
    .map_or(Ok(()), |(_, what)| Err(request.forbidden(&format!("node {node:?} cannot update {what}"))))
}

/// Of a claim a kubelet says how large its volume has become.
fn restrict_claim(request: &Request<'_>, node: &str, claim: &Value) -> Result<(), Status> {
    if request.subresource != "status" || request.operation != Operation::Update {
        return Err(request.forbidden("may only update PVC status"));
    }
    let rest = |object: &Value| {
        let mut rest = object.clone();
        for (part, fields) in [
            ("metadata", &["resourceVersion", "managedFields"][..]),
            ("status", &["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"]),
        ] {
            let Some(part) = rest.get_mut(part).and_then(Value::as_object_mut) else { continue };
            part.retain(|field, _| !fields.contains(&field.as_str()));
        }
        rest
    };
    if request.old.map(rest) == Some(rest(claim)) {
        return Ok(());
    }
    Err(request.forbidden(&format!(
        "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
    )))
}

/// A token for a pod of the node, of an audience that the pod asks for.
fn restrict_token(request: &Request<'_>, node: &str, asked: &Value) -> Result<(), Status> {
    let bound = &asked["spec"]["boundObjectRef"];
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&bound["name"]);
    if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || name.is_empty() {
        return Err(request.forbidden("node requested token not bound to a pod"));
    }
    if text(&bound["uid"]).is_empty() {
        return Err(request.forbidden("node requested token with a pod binding without a uid"));
    }
    let pod = find(request, "pods", request.namespace, &name)?;
    if bound["uid"] != object::uid(&pod) {
        return Err(request.forbidden(&format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text(&bound["uid"])
        )));
    }
    if pod["spec"]["nodeName"] != node {
        return Err(request.forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    let wanted = match asked["spec"]["audiences"].as_array().map(Vec::as_slice).unwrap_or_default() {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err(request.forbidden("node may only request 0 or 1 audiences")),
    };
    if audiences(&pod).any(|audience| audience == wanted)
        || drivers_ask_for(request, &pod, wanted)
        || is_allowed(request, wanted)
    {
        return Ok(());
    }
    Err(request.forbidden(&format!("audience {wanted:?} not found in pod spec volume")))
}

/// Whether a CSI driver of one of the pod's volumes wants tokens of that audience.
fn drivers_ask_for(request: &Request<'_>, pod: &Value, wanted: &str) -> bool {
    let at = |resource: &str, namespace: &str, name: &str| {
        let stored = request.state.cache.bucket(resource).get(&object_key(namespace, name))?;
        read::parse(&stored.bytes).ok()
    };
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let inline = volumes.filter_map(|volume| volume["csi"]["driver"].as_str().map(str::to_owned));
    let mounted = claim_names(pod).into_iter().filter_map(|claim| {
        let claim = at("persistentvolumeclaims", request.namespace, &claim)?;
        let volume = at("persistentvolumes", "", claim["spec"]["volumeName"].as_str()?)?;
        volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
    });
    inline.chain(mounted).filter_map(|driver| at("csidrivers.storage.k8s.io", "", &driver)).any(|driver| {
        let asked = driver["spec"]["tokenRequests"].as_array();
        asked.into_iter().flatten().any(|asked| asked["audience"].as_str().unwrap_or_default() == wanted)
    })
}

/// Whether a role says that the node may ask for it (KEP-4412).
fn is_allowed(request: &Request<'_>, wanted: &str) -> bool {
    let attributes = Attributes {
        user: &request.user.name,
        groups: &request.user.groups,
        verb: "request-serviceaccounts-token-audience",
        namespace: request.namespace,
        api_group: "",
        resource: wanted,
        subresource: "",
        name: request.name,
        path: "",
        is_resource: true,
    };
    matches!(authz::authorize(request.state, request.user, &attributes), Decision::Allow(_))
}

fn find(request: &Request<'_>, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let stored = request.state.cache.bucket(resource).get(&object_key(namespace, name));
    let stored = stored.ok_or_else(|| Status::not_found(&GroupResource::new("", resource), name))?;
    read::parse(&stored.bytes)
}

/// Labels that say where workloads may run are not a kubelet's to change, nor are the Node's owners: the garbage
/// collector would take the Node away, and its taints with it.
fn restrict_node(request: &Request<'_>, node: &str, value: &Value) -> Result<(), Status> {
    if request.operation == Operation::Delete {
        return Err(request.forbidden(&format!("node {node:?} is not allowed to delete its own node object")));
    }
    let none = Value::Null;
    let old = request.old.unwrap_or(&none);
    if request.operation == Operation::Update && value["spec"]["taints"] != old["spec"]["taints"] {
        return Err(request.forbidden(&format!("node {node:?} is not allowed to modify taints")));
    }
    if value["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] {
        return Err(request.forbidden(&format!("node {node:?} is not allowed to modify ownerReferences")));
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
