//! The Node authorizer (upstream `plugin/pkg/auth/authorizer/node`): a kubelet reads only the
//! Secrets, ConfigMaps, claims and tokens that pods on its own node refer to. What else a kubelet
//! may do is in the ClusterRole `system:node`, applied here to the group `system:nodes`.

use serde_json::Value;

use super::rbac::Attributes;
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
        ("", "persistentvolumes", "") => attributes.verb == "get" && named(attributes),
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

/// Whether a pod of this node and namespace refers to the object. Asked only when a pod starts or a
/// volume is refreshed, so the pods of one namespace are looked through each time.
fn refers(state: &State, node: &str, attributes: &Attributes<'_>, names: fn(&Value) -> Vec<&str>) -> bool {
    let bucket = state.cache.bucket("pods");
    let prefix: std::sync::Arc<str> = format!("{}/", attributes.namespace).into();
    bucket
        .objects()
        .range(prefix.clone()..)
        .take_while(|(key, _)| key.starts_with(&*prefix))
        .filter_map(|(_, stored)| serde_json::from_slice::<Value>(&stored.bytes).ok())
        .filter(|pod| pod["spec"]["nodeName"] == node)
        .any(|pod| names(&pod).contains(&attributes.name))
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

fn secret_names(pod: &Value) -> Vec<&str> {
    let env = containers(pod).flat_map(|container| {
        let from = list(container, "envFrom").map(|source| &source["secretRef"]["name"]);
        list(container, "env").map(|env| &env["valueFrom"]["secretKeyRef"]["name"]).chain(from)
    });
    let volumes =
        sources(pod).flat_map(|source| [&source["secret"]["secretName"], &source["secret"]["name"]]);
    let pulls = list(&pod["spec"], "imagePullSecrets").map(|secret| &secret["name"]);
    env.chain(volumes).chain(pulls).filter_map(Value::as_str).collect()
}

fn configmap_names(pod: &Value) -> Vec<&str> {
    let env = containers(pod).flat_map(|container| {
        let from = list(container, "envFrom").map(|source| &source["configMapRef"]["name"]);
        list(container, "env").map(|env| &env["valueFrom"]["configMapKeyRef"]["name"]).chain(from)
    });
    env.chain(sources(pod).map(|source| &source["configMap"]["name"])).filter_map(Value::as_str).collect()
}

fn claim_names(pod: &Value) -> Vec<&str> {
    sources(pod).filter_map(|source| source["persistentVolumeClaim"]["claimName"].as_str()).collect()
}

fn account_names(pod: &Value) -> Vec<&str> {
    pod["spec"]["serviceAccountName"].as_str().into_iter().collect()
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
                        {"persistentVolumeClaim": {"claimName": "claim"}}],
        }});
        assert_eq!(secret_names(&pod), ["key", "from", "volume", "projected", "pull"]);
        assert_eq!(configmap_names(&pod), ["map"]);
        assert_eq!(claim_names(&pod), ["claim"]);
        assert_eq!(account_names(&pod), ["robot"]);
    }
}
