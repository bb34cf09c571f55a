//! What flannel's manifest (Documentation/kube-flannel.yml) makes in a cluster, so that a stock flanneld on
//! another node finds its network's configuration and may do its work: the namespace, the ConfigMap
//! `kube-flannel-cfg`, its ServiceAccount and roles. The ConfigMap is also what Kedge's own nodes read, so an
//! administrator may change it; only one that Kedge has written follows the settings.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kedge_base::{Backoff, Chain};
use kedge_network::{CONFIG_MAP_NAME, CONFIG_MAP_NAMESPACE, NetworkConfig, POD_NETWORK};
use kube::api::{Api, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Makes what is missing; ends when everything is there. `enabled` says how a new cluster begins.
pub(super) async fn publish(client: kube::Client, network: NetworkConfig, enabled: bool) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(60));
    while let Err(error) = write(&client, &network, enabled).await {
        tracing::debug!(error = %Chain(&error), "flannel's objects are not written yet");
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn write(client: &kube::Client, network: &NetworkConfig, enabled: bool) -> Result<(), kube::Error> {
    let namespace = json!({ "metadata": {
        "name": CONFIG_MAP_NAMESPACE,
        "labels": { "k8s-app": "flannel", "pod-security.kubernetes.io/enforce": "privileged" },
    }});
    make::<Namespace>(&Api::all(client.clone()), namespace).await?;
    config_map(client, network, enabled).await?;
    let account = json!({ "metadata": { "name": "flannel", "labels": { "k8s-app": "flannel" } } });
    make::<ServiceAccount>(&Api::namespaced(client.clone(), CONFIG_MAP_NAMESPACE), account).await?;
    make::<ClusterRole>(&Api::all(client.clone()), role()).await?;
    make::<ClusterRoleBinding>(&Api::all(client.clone()), binding()).await?;
    // Kedge's workers read it with their nodes' identity.
    make::<Role>(&Api::namespaced(client.clone(), CONFIG_MAP_NAMESPACE), node_role()).await?;
    make::<RoleBinding>(&Api::namespaced(client.clone(), CONFIG_MAP_NAMESPACE), node_binding()).await
}

async fn make<K>(api: &Api<K>, object: Value) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + serde::Serialize,
{
    let object: K = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        result => result.map(drop),
    }
}

async fn config_map(
    client: &kube::Client,
    network: &NetworkConfig,
    enabled: bool,
) -> Result<(), kube::Error> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), CONFIG_MAP_NAMESPACE);
    let mut wanted = network.config_map();
    wanted.metadata.labels.get_or_insert_default().insert(MANAGED_BY.into(), "kedge".into());
    let Some(found) = api.get_opt(CONFIG_MAP_NAME).await? else {
        if !enabled {
            wanted.metadata.annotations.get_or_insert_default().insert(POD_NETWORK.into(), "none".into());
        }
        return api.create(&PostParams::default(), &wanted).await.map(drop);
    };
    let ours = found.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
    let same = NetworkConfig::from_config_map(&found).is_ok_and(|known| known.networks == network.networks);
    if same || ours.is_none_or(|by| by != "kedge") {
        return Ok(());
    }
    // Another family was added. How packets travel is the administrator's choice, if there was one.
    if let Ok(known) = NetworkConfig::from_config_map(&found) {
        let backend = known.backend;
        wanted.data = NetworkConfig { networks: network.networks.clone(), backend }.config_map().data;
    }
    wanted.metadata.annotations = found.metadata.annotations;
    wanted.metadata.resource_version = found.metadata.resource_version;
    api.replace(CONFIG_MAP_NAME, &PostParams::default(), &wanted).await.map(drop)
}

fn role() -> Value {
    json!({
        "metadata": { "name": "flannel", "labels": { "k8s-app": "flannel" } },
        "rules": [
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] },
            { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] },
        ],
    })
}

fn binding() -> Value {
    json!({
        "metadata": { "name": "flannel", "labels": { "k8s-app": "flannel" } },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel" },
        "subjects": [{ "kind": "ServiceAccount", "name": "flannel", "namespace": CONFIG_MAP_NAMESPACE }],
    })
}

fn node_role() -> Value {
    json!({
        "metadata": { "name": "kedge:pod-network" },
        "rules": [{
            "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CONFIG_MAP_NAME], "verbs": ["get"],
        }],
    })
}

fn node_binding() -> Value {
    json!({
        "metadata": { "name": "kedge:pod-network" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "kedge:pod-network" },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes",
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_are_what_they_are_said_to_be() {
        serde_json::from_value::<ClusterRole>(role()).unwrap();
        serde_json::from_value::<ClusterRoleBinding>(binding()).unwrap();
        serde_json::from_value::<Role>(node_role()).unwrap();
        serde_json::from_value::<RoleBinding>(node_binding()).unwrap();
    }
}
