//! ServiceAccount: every pod runs as an account, and finds its token, the cluster CA and its
//! namespace under /var/run/secrets (`plugin/pkg/admission/serviceaccount`).

use kedge_api::object;
use kedge_api::status::Status;
use serde_json::{Value, json};

use super::Request;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How the volume's name begins.
const VOLUME: &str = "kube-api-access-";
/// Seconds; the kubelet renews the token long before.
const TOKEN_LIFE: u64 = 3607;

pub(super) fn mutate(request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    // A mirror pod stands for a file on a node: it has no account.
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        if !pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
            return Err(request.forbidden("a mirror pod may not reference service accounts"));
        }
        return Ok(());
    }
    let mut name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        name = "default".to_owned();
    }
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    let stored = request.state.cache.bucket("serviceaccounts").get(&format!("{}/{name}", request.namespace));
    let Some(account) = stored.and_then(|stored| serde_json::from_slice::<Value>(&stored.bytes).ok()) else {
        return Err(request.forbidden(&format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            request.namespace
        )));
    };
    let wants_token = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wants_token {
        mount_token(pod);
    }
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|secrets| !secrets.is_empty())
    {
        pod["spec"]["imagePullSecrets"] = json!(secrets);
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut names = volumes.filter_map(|volume| volume["name"].as_str());
    // There already when a webhook has added a container since.
    let made = names.find(|name| name.starts_with(VOLUME)).map(str::to_owned);
    let is_new = made.is_none();
    let volume = made.unwrap_or_else(|| format!("{VOLUME}{}", object::name_suffix()));
    let mut used = false;
    for kind in ["initContainers", "containers"] {
        // An index would leave a null behind where there is no such list.
        let list = pod.pointer_mut(&format!("/spec/{kind}")).and_then(Value::as_array_mut);
        for container in list.into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({ "name": volume, "mountPath": MOUNT_PATH, "readOnly": true }));
            used = true;
        }
    }
    if !used || !is_new {
        return;
    }
    let projected = json!({
        "name": volume,
        "projected": {
            "defaultMode": 420,
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_LIFE, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{
                    "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                }] } },
            ],
        },
    });
    match pod["spec"]["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(projected),
        None => pod["spec"]["volumes"] = json!([projected]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_mounted_where_there_is_none_yet() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
        ]}});
        mount_token(&mut pod);
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().expect("mounts").clone();
        assert_eq!(mounts[0]["name"], pod["spec"]["volumes"][0]["name"]);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().expect("mounts").len(), 1);
        let before = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, before, "a second time changes nothing");

        pod["spec"]["containers"].as_array_mut().expect("containers").push(json!({"name": "injected"}));
        mount_token(&mut pod);
        assert_eq!(pod["spec"]["volumes"], before["spec"]["volumes"]);
        assert_eq!(
            pod["spec"]["containers"][2]["volumeMounts"],
            before["spec"]["containers"][0]["volumeMounts"]
        );
    }
}
