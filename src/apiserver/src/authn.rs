//! Who sends a request: client certificates, ServiceAccount tokens, impersonation, or nobody.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue};
use kedge_api::status::Status;
use rustls_pki_types::CertificateDer;
use uuid::Uuid;

use crate::request::percent_decode;
use crate::state::State;
use crate::token::{Bound, Claims};
use crate::verbs::object_key;

/// Members may do everything, whatever RBAC says.
pub(crate) const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Says by which certificate or token somebody is known.
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// How long tokens outlive the end of what they are bound to.
const LEEWAY: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// An authenticated (or anonymous) user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name, e.g. `system:node:board1`.
    pub name: String,
    /// A ServiceAccount's uid; empty otherwise.
    pub uid: String,
    /// The groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// Further facts, e.g. the pod that a token was made for.
    pub extra: BTreeMap<String, Vec<String>>,
    /// From when on the client certificate that names the user is valid, in Unix seconds.
    pub(crate) certified: Option<i64>,
}

impl User {
    /// An authenticated user: `system:authenticated` is added to the groups.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), uid: String::new(), groups, extra: BTreeMap::new(), certified: None }
    }

    /// A component of this process, with all rights.
    pub fn component(name: &str) -> Self {
        Self::new(name, [MASTERS.to_owned()])
    }

    pub(crate) fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.into()],
            extra: BTreeMap::new(),
            certified: None,
        }
    }

    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|known| known == group)
    }

    /// The node's name when the user is a kubelet.
    pub(crate) fn node(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.is_in("system:nodes"))
    }
}

/// The user that a verified client certificate names: CN and O (RFC 5280, upstream's x509 authenticator).
/// Its fingerprint says which one it was.
pub(crate) fn from_certificate(der: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|value| value.as_str().ok()).map(str::to_owned);
    let certified = Some(certificate.validity().not_before.timestamp());
    let mut user = User { certified, ..User::new(name, groups) };
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    user.extra.insert(CREDENTIAL.to_owned(), vec![format!("X509SHA256={hex}")]);
    Some(user)
}

/// The sender of a request. `peer` is the user of a verified client certificate.
pub(crate) fn authenticate(state: &State, headers: &HeaderMap, peer: Option<&User>) -> Result<User, Status> {
    if let Some(peer) = peer {
        if let (Some(node), Some(certified), Some(departed)) =
            (peer.node(), peer.certified, state.departed.get())
            && departed(node, certified)
        {
            tracing::debug!(node, "certificate of a node that was taken off the cluster refused");
            return Err(Status::unauthorized("Unauthorized"));
        }
        return Ok(peer.clone());
    }
    let header = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let websocket = || {
        // Browsers cannot set headers on WebSockets: base64url.bearer.authorization.k8s.io.TOKEN
        let protocols = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
        let token = protocols
            .split(',')
            .find_map(|protocol| protocol.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).ok()?;
        String::from_utf8(bytes).ok()
    };
    let bearer = header
        .and_then(|header| header.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim().to_owned())
        .or_else(websocket);
    match bearer {
        Some(token) if !token.is_empty() => {
            token_user(state, &token, &[]).map(|(user, _)| user).map_err(|reason| {
                tracing::debug!(reason, "bearer token refused");
                Status::unauthorized("Unauthorized")
            })
        }
        _ if header.is_some_and(|header| !header.is_empty()) => Err(Status::unauthorized("Unauthorized")),
        _ => Ok(User::anonymous()),
    }
}

/// The user of a ServiceAccount token and the audiences that matched. The token's account, and the
/// pod, secret or node that it is bound to, must still exist with the same uid.
pub(crate) fn token_user(
    state: &State,
    token: &str,
    audiences: &[String],
) -> Result<(User, Vec<String>), &'static str> {
    let claims: Claims = state.tokens.verify(token)?;
    let wanted: Vec<String> =
        if audiences.is_empty() { vec![state.tokens.issuer().to_owned()] } else { audiences.to_vec() };
    let matched: Vec<String> = wanted.into_iter().filter(|audience| claims.aud.contains(audience)).collect();
    if matched.is_empty() {
        return Err("token audiences do not match");
    }
    let bound = &claims.kubernetes;
    let is_there = |resource: &str, namespace: &str, object: &Bound| {
        let stored = state.cache.bucket(resource).get(&object_key(namespace, &object.name));
        stored.is_some_and(|stored| {
            Uuid::parse_str(&object.uid) == Ok(stored.extracted.uid) && !has_gone(&stored.bytes)
        })
    };
    if !is_there("serviceaccounts", &bound.namespace, &bound.serviceaccount) {
        return Err("service account is gone or was replaced");
    }
    let mut extra = BTreeMap::new();
    if let Some(jti) = &claims.jti {
        extra.insert(CREDENTIAL.to_owned(), vec![format!("JTI={jti}")]);
    }
    if let Some(pod) = &bound.pod {
        if !is_there("pods", &bound.namespace, pod) {
            return Err("the pod that the token is bound to is gone");
        }
        extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec![pod.name.clone()]);
        extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), vec![pod.uid.clone()]);
    }
    if let Some(node) = &bound.node {
        // With a pod, it is the pod that counts (KEP-4193).
        if bound.pod.is_none() && !is_there("nodes", "", node) {
            return Err("the node that the token is bound to is gone");
        }
        extra.insert("authentication.kubernetes.io/node-name".to_owned(), vec![node.name.clone()]);
        extra.insert("authentication.kubernetes.io/node-uid".to_owned(), vec![node.uid.clone()]);
    }
    if let Some(secret) = &bound.secret
        && !is_there("secrets", &bound.namespace, secret)
    {
        return Err("the secret that the token is bound to is gone");
    }
    let mut user = User::new(
        format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
        ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", bound.namespace)],
    );
    user.uid.clone_from(&bound.serviceaccount.uid);
    user.extra = extra;
    Ok((user, matched))
}

/// Whether the object should have been deleted a minute ago (upstream's leeway); it may stay for its finalizers.
fn has_gone(object: &[u8]) -> bool {
    if memchr::memmem::find(object, b"\"deletionTimestamp\"").is_none() {
        return false;
    }
    let object: serde_json::Value = serde_json::from_slice(object).unwrap_or_default();
    let at =
        object["metadata"]["deletionTimestamp"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    at.is_some_and(|at| jiff::Timestamp::now().duration_since(at) > LEEWAY)
}

/// What an impersonation asks for: the user to become, and what the sender must be allowed to
/// `impersonate` as (group, resource, namespace, name, subresource).
pub(crate) struct Impersonation {
    pub(crate) user: User,
    pub(crate) checks: Vec<(&'static str, &'static str, String, String, String)>,
}

/// Reads the `Impersonate-*` headers (apiserver `filters/impersonation.go`).
///
/// # Errors
/// For a header that is there and cannot be read: without it the request would be the sender's own.
pub(crate) fn impersonation(headers: &HeaderMap) -> Result<Option<Impersonation>, Status> {
    let text = |value: &HeaderValue| {
        String::from_utf8(value.as_bytes().to_vec())
            .map_err(|_| Status::bad_request("an Impersonate header is not valid UTF-8"))
    };
    let get = |name: &str| headers.get(name).map(text).transpose().map(Option::unwrap_or_default);
    let groups =
        headers.get_all("impersonate-group").iter().map(text).collect::<Result<Vec<String>, Status>>()?;
    let mut extras: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            extras.push((percent_decode(key), text(value)?));
        }
    }
    let (name, uid) = (get("impersonate-user")?, get("impersonate-uid")?);
    if name.is_empty() {
        if groups.is_empty() && extras.is_empty() && uid.is_empty() {
            return Ok(None);
        }
        return Err(Status::internal("requested impersonation without impersonating a user"));
    }
    let mut checks = Vec::new();
    let mut groups = groups;
    for group in &groups {
        checks.push(("", "groups", String::new(), group.clone(), String::new()));
    }
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            checks.push(("", "serviceaccounts", namespace.to_owned(), account.to_owned(), String::new()));
            if groups.is_empty() {
                groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        None => checks.push(("", "users", String::new(), name.clone(), String::new())),
    }
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in extras {
        checks.push(("authentication.k8s.io", "userextras", String::new(), value.clone(), key.clone()));
        extra.entry(key).or_default().push(value);
    }
    if !uid.is_empty() {
        checks.push(("authentication.k8s.io", "uids", String::new(), uid.clone(), String::new()));
    }
    let mut user = if name == "system:anonymous" { User::anonymous() } else { User::new(name, groups) };
    user.uid = uid;
    user.extra = extra;
    Ok(Some(Impersonation { user, checks }))
}
