//! Logins for registries from the pod's `imagePullSecrets` and from the node's own `config.json`
//! (upstream `pkg/credentialprovider`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Pod;
use kedge_base::Order as _;
use serde_json::Value;

use super::records::{Proof, SecretUse, hash};
use super::reference;
use crate::core::Core;
use crate::objects::Source;
use crate::pod;

/// A login and who owns it.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) auth: AuthConfig,
    pub(super) proof: Proof,
}

/// Logins that fit the image: the pod's, the most specific first, then those of Docker's `config.json` in
/// the kubelet's folder. Secrets that are missing or broken are skipped: the pull may succeed without them,
/// and says why when it does not.
pub(super) async fn of_pod(core: &Core, target: &Pod, image: &str) -> Vec<Login> {
    let spec = pod::spec(target);
    let mut found: Vec<(usize, Login)> = Vec::new();
    for secret in spec.image_pull_secrets.iter().flatten() {
        let source =
            Source { secret: true, namespace: pod::namespace(target).to_owned(), name: secret.name.clone() };
        let object = match core.objects.get(&source).await {
            Ok(Some(object)) => object,
            Ok(None) => {
                core.warning(target, None, "FailedToRetrieveImagePullSecret", format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    secret.name
                ));
                continue;
            }
            Err(error) => {
                tracing::debug!(secret = secret.name, error = %error.text(), "pull secret not read");
                continue;
            }
        };
        let (key, nested) = match object.type_.as_str() {
            "kubernetes.io/dockercfg" => (".dockercfg", false),
            _ => (".dockerconfigjson", true),
        };
        let Some(bytes) = object.data.get(key) else { continue };
        let Ok(value) = serde_json::from_slice::<Value>(bytes) else { continue };
        let entries = if nested { value.get("auths").cloned().unwrap_or_default() } else { value };
        found.extend(matching(&entries, image).into_iter().map(|(length, auth)| {
            let used = SecretUse {
                uid: object.uid.clone(),
                namespace: source.namespace.clone(),
                name: source.name.clone(),
                credential_hash: credential_hash(&auth),
            };
            (length, Login { auth, proof: Proof::Secret(used) })
        }));
    }
    found.order_by_key(|(length, _)| std::cmp::Reverse(*length));
    let mut node = of_node(core, image);
    node.order_by_key(|(length, _)| std::cmp::Reverse(*length));
    let node = node.into_iter().map(|(_, auth)| Login { auth, proof: Proof::Node });
    found.into_iter().map(|(_, login)| login).chain(node).collect()
}

/// Upstream reads `config.json` in the kubelet's root folder too.
fn of_node(core: &Core, image: &str) -> Vec<(usize, AuthConfig)> {
    let bytes = std::fs::read(core.config.root_dir.join("config.json")).unwrap_or_default();
    let value = serde_json::from_slice::<Value>(&bytes).unwrap_or_default();
    value.get("auths").map(|entries| matching(entries, image)).unwrap_or_default()
}

/// What tells one login from another without keeping it.
fn credential_hash(auth: &AuthConfig) -> String {
    let parts = [&auth.username, &auth.password, &auth.auth, &auth.identity_token];
    hash(serde_json::json!(parts).to_string().as_bytes())
}

fn matching(entries: &Value, image: &str) -> Vec<(usize, AuthConfig)> {
    let (_, path) = reference::registry_and_path(image);
    let mut found = Vec::new();
    for (server, entry) in entries.as_object().into_iter().flatten() {
        let bare = server.trim_start_matches("https://").trim_start_matches("http://");
        let bare = bare.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let bare = if bare.trim_end_matches('/') == "index.docker.io" { "docker.io" } else { bare };
        if !fits(bare, &path) {
            continue;
        }
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (mut username, mut password) = (text("username"), text("password"));
        if let Some(decoded) =
            STANDARD.decode(text("auth")).ok().and_then(|bytes| String::from_utf8(bytes).ok())
            && let Some((user, secret)) = decoded.split_once(':')
        {
            (username, password) = (user.to_owned(), secret.to_owned());
        }
        let auth =
            AuthConfig { username, password, identity_token: text("identitytoken"), ..Default::default() };
        found.push((bare.len(), auth));
    }
    found
}

/// The image lies below the server's path. Labels of the host may have `*` for anything in them; ports must
/// be the same.
fn fits(server: &str, path: &str) -> bool {
    let (server_host, server_path) = server.split_once('/').unwrap_or((server, ""));
    let (host, rest) = path.split_once('/').unwrap_or((path, ""));
    let parts = |host: &str| -> (Vec<String>, Option<String>) {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, Some(port.to_owned())),
            _ => (host, None),
        };
        (name.split('.').map(str::to_owned).collect(), port)
    };
    let ((wanted, wanted_port), (labels, port)) = (parts(server_host), parts(host));
    wanted_port == port
        && wanted.len() == labels.len()
        && wanted.iter().zip(&labels).all(|(wanted, label)| glob(wanted, label))
        && rest.starts_with(server_path)
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_by_server() {
        let entries = serde_json::json!({
            "https://index.docker.io/v1/": { "auth": STANDARD.encode("me:secret") },
            "*.example.com": { "username": "u", "password": "p" },
            "registry.example.com/team": { "username": "team", "password": "p" },
            "reg*.example.net:5000": { "username": "port", "password": "p" },
            "localhost:5000": { "username": "local", "password": "p" },
        });
        let users = |image: &str| -> Vec<String> {
            let mut found = matching(&entries, image);
            found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
            found.into_iter().map(|(_, auth)| auth.username).collect()
        };
        assert_eq!(users("nginx"), ["me"]);
        assert_eq!(users("registry.example.com/team/app"), ["team", "u"]);
        assert_eq!(users("registry.example.com/other"), ["u"]);
        assert!(users("quay.io/x").is_empty());
        assert_eq!(users("registry1.example.net:5000/x:1"), ["port"]);
        assert!(users("registry1.example.net:5001/x").is_empty());
        assert!(users("registry1.example.net/x").is_empty());
        assert_eq!(users("localhost:5000/a/b"), ["local"]);
    }
}
