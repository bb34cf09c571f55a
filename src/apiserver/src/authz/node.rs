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
        ("", "secrets", "") => {
            read && named(attributes)
                && (refers(state, node, attributes, secret_names) || opens(state, node, attributes))
        }
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
        // Kubelets read what an account says of itself for plugins that log in to registries (KEP-4412).
        ("", "serviceaccounts", sub @ ("" | "token")) => {
            attributes.verb == if sub.is_empty() { "get" } else { "create" }
                && named(attributes)
                && refers(state, node, attributes, account_names)
        }
        ("resource.k8s.io", "resourceclaims", "") => {
            attributes.verb == "get"
                && named(attributes)
                && refers(state, node, attributes, device_claim_names)
        }
        // NodeRestriction admission looks at what is written and deleted.
        ("resource.k8s.io", "resourceslices", "") => match attributes.verb {
            "get" | "update" | "patch" | "delete" => {
                object(state, "resourceslices.resource.k8s.io", "", attributes.name)
                    .is_some_and(|slice| slice["spec"]["nodeName"] == node)
            }
            verb => matches!(verb, "create" | "list" | "watch" | "deletecollection"),
        },
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

/// Whether a volume that is mounted here is opened with that Secret.
fn opens(state: &State, node: &str, attributes: &Attributes<'_>) -> bool {
    let volumes = objects_in(state, "persistentvolumes", "");
    let mut parsed =
        volumes.into_iter().filter_map(|stored| serde_json::from_slice::<Value>(&stored.bytes).ok());
    parsed.any(|volume| {
        volume_secrets(&volume)
            .any(|(namespace, name)| (namespace, name) == (attributes.namespace, attributes.name))
            && mounts(state, node, kedge_api::object::name(&volume))
    })
}

/// Namespace and name of the Secrets that a kubelet needs for a volume
/// (`pkg/api/v1/persistentvolume.VisitPVSecretNames`, those visible to it).
fn volume_secrets(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    const REFERENCES: [&str; 4] =
        ["secretRef", "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"];
    let claimed_in = volume["spec"]["claimRef"]["namespace"].as_str().unwrap_or_default();
    let sources = volume["spec"].as_object().into_iter().flat_map(serde_json::Map::values);
    sources.flat_map(move |source| {
        let references = REFERENCES.iter().map(|key| (&source[*key]["namespace"], &source[*key]["name"]));
        let flat = std::iter::once((&source["secretNamespace"], &source["secretName"]));
        references.chain(flat).filter_map(move |(namespace, name)| {
            let namespace = namespace.as_str().filter(|namespace| !namespace.is_empty());
            Some((namespace.unwrap_or(claimed_in), name.as_str()?))
        })
    })
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
    let projected = sources(pod).map(|source| &source["secret"]["name"]);
    // A Secret as a volume, and what others are opened with.
    let opened = list(&pod["spec"], "volumes").filter_map(Value::as_object).flat_map(serde_json::Map::values);
    let opened = opened.flat_map(|source| {
        [&source["secretRef"]["name"], &source["nodePublishSecretRef"]["name"], &source["secretName"]]
    });
    let pulls = list(&pod["spec"], "imagePullSecrets").map(|secret| &secret["name"]);
    texts(env.chain(projected).chain(opened).chain(pulls))
}

fn configmap_names(pod: &Value) -> Vec<String> {
    let env = containers(pod).flat_map(|container| {
        let from = list(container, "envFrom").map(|source| &source["configMapRef"]["name"]);
        list(container, "env").map(|env| &env["valueFrom"]["configMapKeyRef"]["name"]).chain(from)
    });
    texts(env.chain(sources(pod).map(|source| &source["configMap"]["name"])))
}

/// With those that are made for the pod from a template.
pub(crate) fn claim_names(pod: &Value) -> Vec<String> {
    let made = list(&pod["spec"], "volumes").filter(|volume| !volume["ephemeral"].is_null()).map(|volume| {
        format!("{}-{}", kedge_api::object::name(pod), volume["name"].as_str().unwrap_or_default())
    });
    let named = sources(pod).filter_map(|source| source["persistentVolumeClaim"]["claimName"].as_str());
    named.map(str::to_owned).chain(made).collect()
}

/// Claims of devices, also those made for the pod (its status says which).
fn device_claim_names(pod: &Value) -> Vec<String> {
    let named = list(&pod["spec"], "resourceClaims").chain(list(&pod["status"], "resourceClaimStatuses"));
    let extended = std::iter::once(&pod["status"]["extendedResourceClaimStatus"]);
    texts(named.chain(extended).map(|claim| &claim["resourceClaimName"]))
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
                        {"name": "f", "azureFile": {"secretName": "share"}},
                        {"name": "i", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "inline"}}},
                        {"name": "c", "cephfs": {"secretRef": {"name": "ceph"}}},
                        {"persistentVolumeClaim": {"claimName": "claim"}}, {"name": "own", "ephemeral": {}}],
            "resourceClaims": [{"name": "a", "resourceClaimName": "gpu"}, {"name": "b", "resourceClaimTemplateName": "t"}],
        }, "metadata": {"name": "p"}, "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b"}]}});
        assert_eq!(
            secret_names(&pod),
            ["key", "from", "projected", "volume", "share", "inline", "ceph", "pull"]
        );
        assert_eq!(configmap_names(&pod), ["map"]);
        assert_eq!(claim_names(&pod), ["claim", "p-own"]);
        assert_eq!(account_names(&pod), ["robot"]);
        assert_eq!(device_claim_names(&pod), ["gpu", "p-b"]);
    }

    #[test]
    fn a_volume_names_the_secrets_that_it_is_opened_with() {
        let named = |spec: Value| -> Vec<String> {
            let volume = json!({ "spec": spec });
            volume_secrets(&volume).map(|(namespace, name)| format!("{namespace}/{name}")).collect()
        };
        let claim = json!({"namespace": "ns", "name": "c"});
        let csi = json!({
            "driver": "d", "controllerPublishSecretRef": {"namespace": "csi", "name": "hidden"},
            "nodeStageSecretRef": {"namespace": "csi", "name": "stage"},
            "nodePublishSecretRef": {"namespace": "csi", "name": "publish"},
        });
        assert_eq!(named(json!({"claimRef": claim, "csi": csi})), ["csi/publish", "csi/stage"]);
        assert_eq!(named(json!({"claimRef": claim, "rbd": {"secretRef": {"name": "s"}}})), ["ns/s"]);
        let file = json!({"secretName": "s", "secretNamespace": "other"});
        assert_eq!(named(json!({"claimRef": claim, "azureFile": file})), ["other/s"]);
    }
}
