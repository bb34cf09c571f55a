//! The Node authorizer (upstream `plugin/pkg/auth/authorizer/node`): a kubelet reads only the Secrets, ConfigMaps,
//! claims and volumes that pods on its own node refer to, and asks for tokens of their accounts. The rest of the
//! match is what the ClusterRole `system:node` says, which is bound to nobody.
//! Unlike upstream, a node may list all pods: its part of the pod network applies NetworkPolicies to them.

use serde_json::Value;

use super::rbac::Attributes;
use crate::admission::objects_in;
use crate::state::State;

/// Whether the kubelet of `node` may do this.
pub(crate) fn allows(state: &State, node: &str, attributes: &Attributes<'_>) -> bool {
    if !attributes.is_resource {
        return false;
    }
    let read = matches!(attributes.verb, "get" | "list" | "watch");
    match (attributes.api_group, attributes.resource, attributes.subresource) {
        ("", "secrets", "") => read && named(attributes) && refers(state, node, attributes, secret_names),
        ("", "configmaps", "") => {
            read && named(attributes) && refers(state, node, attributes, configmap_names)
        }
        ("", "persistentvolumeclaims", "") => {
            attributes.verb == "get" && named(attributes) && refers(state, node, attributes, claim_names)
        }
        ("", "persistentvolumeclaims", "status") => {
            matches!(attributes.verb, "get" | "update" | "patch")
                && named(attributes)
                && refers(state, node, attributes, claim_names)
        }
        ("", "persistentvolumes", "") => attributes.verb == "get" && mounts(state, node, attributes.name),
        ("storage.k8s.io", "volumeattachments", "") => {
            attributes.verb == "get"
                && object(state, "volumeattachments.storage.k8s.io", "", attributes.name)
                    .is_some_and(|attachment| attachment["spec"]["nodeName"] == node)
        }
        ("", "serviceaccounts", "token") => {
            attributes.verb == "create" && refers(state, node, attributes, account_names)
        }
        ("", "nodes", "" | "status") => match attributes.verb {
            "get" | "update" | "patch" | "delete" => attributes.name == node,
            "create" => true,
            "list" | "watch" => attributes.name.is_empty() || attributes.name == node,
            _ => false,
        },
        // NodeRestriction admission looks at the object itself.
        ("", "pods", "") => matches!(attributes.verb, "get" | "list" | "watch" | "create" | "delete"),
        ("", "pods", "status") => matches!(attributes.verb, "get" | "update" | "patch"),
        ("", "pods", "eviction") => attributes.verb == "create",
        ("", "services", "") => read,
        ("", "events", "") | ("events.k8s.io", "events", "") => {
            matches!(attributes.verb, "create" | "update" | "patch")
        }
        ("coordination.k8s.io", "leases", "") => {
            attributes.namespace == "kube-node-lease"
                && (attributes.verb == "create" || attributes.name == node)
                && matches!(attributes.verb, "get" | "create" | "update" | "patch" | "delete")
        }
        ("storage.k8s.io", "csinodes", "") => {
            attributes.verb == "create"
                || (attributes.name == node
                    && matches!(attributes.verb, "get" | "update" | "patch" | "delete"))
        }
        ("storage.k8s.io", "csidrivers", "") | ("node.k8s.io", "runtimeclasses", "") => read,
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
            attributes.verb == "create"
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => {
            matches!(attributes.verb, "create" | "get" | "list" | "watch")
        }
        ("certificates.k8s.io", "certificatesigningrequests", "selfnodeclient") => {
            attributes.verb == "create"
        }
        _ => false,
    }
}

fn named(attributes: &Attributes<'_>) -> bool {
    !attributes.name.is_empty() && !attributes.namespace.is_empty()
}

/// Whether a pod of this node and namespace refers to the object.
fn refers(state: &State, node: &str, attributes: &Attributes<'_>, names: fn(&Value) -> Vec<String>) -> bool {
    pods(state, node, attributes.namespace).any(|pod| names(&pod).iter().any(|name| name == attributes.name))
}

/// The node's pods in a namespace. Only they are parsed: kubelets ask for each Secret and ConfigMap of each pod.
fn pods<'a>(state: &State, node: &'a str, namespace: &str) -> impl Iterator<Item = Value> + use<'a> {
    let place = state.cache.bucket("pods").field("spec.nodeName");
    let is_here = move |stored: &crate::cache::Stored| {
        let at = place.and_then(|place| stored.extracted.fields.get(place));
        at.is_some_and(|at| &**at == node)
    };
    objects_in(state, "pods", namespace)
        .into_iter()
        .filter(move |stored| is_here(stored))
        .filter_map(|stored| serde_json::from_slice(&stored.bytes).ok())
}

/// Whether the volume is bound to a claim that a pod of this node refers to.
fn mounts(state: &State, node: &str, volume: &str) -> bool {
    let Some(volume) = object(state, "persistentvolumes", "", volume) else { return false };
    let claim = &volume["spec"]["claimRef"];
    let (Some(namespace), Some(name)) = (claim["namespace"].as_str(), claim["name"].as_str()) else {
        return false;
    };
    pods(state, node, namespace).any(|pod| claim_names(&pod).iter().any(|own| own == name))
}

fn object(state: &State, storage_key: &str, namespace: &str, name: &str) -> Option<Value> {
    let stored = state.cache.bucket(storage_key).get(&crate::verbs::object_key(namespace, name))?;
    serde_json::from_slice(&stored.bytes).ok()
}

/// What other objects a pod refers to, in upstream's words: those that a node may then read.
pub(crate) fn reference(pod: &Value) -> Option<&'static str> {
    let projects = |kind: &str| sources(pod).any(|source| !source[kind].is_null());
    [
        ("a service account", !account_names(pod).is_empty() || projects("serviceAccountToken")),
        ("secrets", !secret_names(pod).is_empty()),
        ("configmaps", !configmap_names(pod).is_empty()),
        ("persistentvolumeclaims", !claim_names(pod).is_empty() || projects("ephemeral")),
        ("resourceclaims", list(&pod["spec"], "resourceClaims").next().is_some()),
        ("clustertrustbundles", projects("clusterTrustBundle")),
    ]
    .into_iter()
    .find_map(|(what, is_there)| is_there.then_some(what))
}

/// The audiences that a pod's volumes ask for; an empty one is the API server's.
pub(crate) fn audiences(pod: &Value) -> impl Iterator<Item = &str> {
    sources(pod)
        .map(|source| &source["serviceAccountToken"])
        .filter(|token| !token.is_null())
        .map(|token| token["audience"].as_str().unwrap_or_default())
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|key| list(&pod["spec"], key))
}

/// Volumes and the sources of projected volumes.
fn sources(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["spec"], "volumes")
        .flat_map(|volume| std::iter::once(volume).chain(list(&volume["projected"], "sources")))
}

fn texts<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<String> {
    values.filter_map(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned).collect()
}

fn secret_names(pod: &Value) -> Vec<String> {
    let env = containers(pod).flat_map(|container| {
        let from = list(container, "envFrom").map(|source| &source["secretRef"]["name"]);
        list(container, "env").map(|env| &env["valueFrom"]["secretKeyRef"]["name"]).chain(from)
    });
    let volumes =
        sources(pod).flat_map(|source| [&source["secret"]["secretName"], &source["secret"]["name"]]);
    let pulls = list(&pod["spec"], "imagePullSecrets").map(|secret| &secret["name"]);
    texts(env.chain(volumes).chain(pulls))
}

fn configmap_names(pod: &Value) -> Vec<String> {
    let env = containers(pod).flat_map(|container| {
        let from = list(container, "envFrom").map(|source| &source["configMapRef"]["name"]);
        list(container, "env").map(|env| &env["valueFrom"]["configMapKeyRef"]["name"]).chain(from)
    });
    texts(env.chain(sources(pod).map(|source| &source["configMap"]["name"])))
}

/// With those that are made for the pod from a template.
fn claim_names(pod: &Value) -> Vec<String> {
    let made = list(&pod["spec"], "volumes").filter(|volume| !volume["ephemeral"].is_null()).map(|volume| {
        format!("{}-{}", kedge_api::object::name(pod), volume["name"].as_str().unwrap_or_default())
    });
    let named = sources(pod).filter_map(|source| source["persistentVolumeClaim"]["claimName"].as_str());
    named.map(str::to_owned).chain(made).collect()
}

fn account_names(pod: &Value) -> Vec<String> {
    texts(std::iter::once(&pod["spec"]["serviceAccountName"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_to_refer_to_a_secret_counts() {
        let pod = json!({"spec": {
            "serviceAccountName": "robot",
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "map"}}]}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "key"}}}]}],
            "volumes": [{"secret": {"secretName": "volume"}}, {"projected": {"sources": [{"secret": {"name": "projected"}}]}},
                        {"persistentVolumeClaim": {"claimName": "claim"}}, {"name": "own", "ephemeral": {}}],
        }, "metadata": {"name": "p"}});
        assert_eq!(secret_names(&pod), ["key", "from", "volume", "projected", "pull"]);
        assert_eq!(configmap_names(&pod), ["map"]);
        assert_eq!(claim_names(&pod), ["claim", "p-own"]);
        assert_eq!(account_names(&pod), ["robot"]);
    }
}
