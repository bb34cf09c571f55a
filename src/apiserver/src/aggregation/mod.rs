//! API aggregation (`kube-aggregator`): whole groups that another server answers for. An APIService
//! names the Service; requests go there with the user in the front proxy's headers.

mod availability;
mod discovery;
mod openapi;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use http::header::{AUTHORIZATION, CONNECTION, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use kedge_api::object;
use kedge_api::status::Status;
use parking_lot::Mutex;
use serde_json::Value;

pub(crate) use availability::run as watch_availability;
pub(crate) use discovery::{add_groups, aggregated_groups};
pub(crate) use openapi::{openapi_paths, openapi_v2, user};

use crate::authn::User;
use crate::cache::Derived;
use crate::outbound::{self, Server};
use crate::state::State;
use crate::verbs::read;

const SERVICES: &str = "apiservices.apiregistration.k8s.io";

/// One APIService that is not answered here.
pub(crate) struct Remote {
    name: String,
    group: String,
    version: String,
    group_priority: i64,
    version_priority: i64,
    available: bool,
    server: Result<Server, String>,
}

/// The APIServices by group and version, and what their servers said they have.
#[derive(Default)]
pub(crate) struct Aggregation {
    remotes: Derived<Remotes, 1>,
    /// Whether there is any: most clusters have none, and their requests look no further.
    any: AtomicBool,
    /// `APIResourceList` of each, by the APIService's name.
    resources: Mutex<BTreeMap<String, Arc<Value>>>,
    /// What each says of itself in OpenAPI, by the APIService's name.
    documents: Mutex<BTreeMap<String, openapi::Documents>>,
}

type Remotes = BTreeMap<(String, String), Arc<Remote>>;

/// The remote APIs as of now; read again only after an APIService has changed.
fn remotes(state: &State) -> Arc<Remotes> {
    state.aggregation.remotes.get(&state.cache, [SERVICES], || read_remotes(state))
}

fn read_remotes(state: &State) -> Remotes {
    let mut found = BTreeMap::new();
    for stored in state.cache.bucket(SERVICES).objects().values() {
        let Ok(service) = read::parse(&stored.bytes) else { continue };
        let spec = &service["spec"];
        if !spec["service"].is_object() {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let remote = Remote {
            name: object::name(&service).to_owned(),
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            available: kedge_api::crd::has_condition(&service, "Available"),
            server: server(state, spec),
        };
        found.insert((remote.group.clone(), remote.version.clone()), Arc::new(remote));
    }
    state.aggregation.resources.lock().retain(|name, _| found.values().any(|remote| remote.name == *name));
    state.aggregation.documents.lock().retain(|name, _| found.values().any(|remote| remote.name == *name));
    state.aggregation.any.store(!found.is_empty(), Ordering::Release);
    found
}

fn server(state: &State, spec: &Value) -> Result<Server, String> {
    let service = &spec["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default();
    let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
    let client = state.config.front_proxy.as_ref().map(|front| &*front.client);
    let insecure = spec["insecureSkipTLSVerify"] == true;
    let tls = outbound::tls(state, spec["caBundle"].as_str(), insecure, client)?;
    Ok(Server::of_service(text("namespace"), text("name"), port, tls))
}

/// Who answers for a group and version, if that is somebody else.
pub(crate) fn find(state: &State, group: &str, version: &str) -> Option<Arc<Remote>> {
    if group.is_empty() || !state.aggregation.any.load(Ordering::Acquire) {
        return None;
    }
    let remotes = remotes(state);
    remotes.get(&(group.to_owned(), version.to_owned())).cloned()
}

/// Passes a request on, as the user who sent it.
pub(crate) async fn forward(
    state: &Arc<State>,
    remote: &Remote,
    user: &User,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    if !remote.available {
        return Err(Status::service_unavailable("service unavailable"));
    }
    let failed =
        |error: String| Status::service_unavailable(format!("error trying to reach service: {error}"));
    let server = remote.server.as_ref().map_err(|error| failed(error.clone()))?;
    let is_upgrade = request.headers().contains_key(UPGRADE);
    let client = is_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut outgoing = Request::builder().method(parts.method).uri(path);
    if let Some(headers) = outgoing.headers_mut() {
        *headers = passed_on(&parts.headers, is_upgrade);
        crate::stream::without_token(headers);
        add_user(headers, user).map_err(failed)?;
    }
    let outgoing = outgoing.body(body).map_err(|error| failed(error.to_string()))?;
    let mut response = server.send(state, outgoing).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        outbound::join(&state.tasks, client, &mut response);
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = passed_on(response.headers(), true);
        return Ok(answer);
    }
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(body);
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = passed_on(&parts.headers, false);
    Ok(answer)
}

/// The user in the front proxy's headers (`--requestheader-*` of the other server).
///
/// # Errors
/// For what cannot be a header: the other server would take the user for another one.
fn add_user(headers: &mut HeaderMap, user: &User) -> Result<(), String> {
    let mut add = |name: &str, value: &str| -> Result<(), String> {
        let what =
            HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_bytes(value.as_bytes()).ok());
        let (name, value) = what.ok_or_else(|| format!("the user's {name} cannot be a header"))?;
        headers.append(name, value);
        Ok(())
    };
    add("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        let key: String = key.bytes().map(escaped).collect();
        for value in values {
            add(&format!("x-remote-extra-{key}"), value)?;
        }
    }
    Ok(())
}

/// Percent-encodes what a header's name may not have.
fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
        char::from(byte).to_ascii_lowercase().to_string()
    } else {
        format!("%{byte:02x}")
    }
}

/// The headers without those of one connection, those that identify the client to us, and those that
/// only a front proxy may set.
fn passed_on(headers: &HeaderMap, is_upgrade: bool) -> HeaderMap {
    let dropped = ["keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "host"];
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        let connection = *name == CONNECTION || *name == UPGRADE;
        let secret =
            *name == AUTHORIZATION || text.starts_with("x-remote-") || text.starts_with("impersonate-");
        if (connection && !is_upgrade) || secret || dropped.contains(&text) {
            continue;
        }
        kept.append(name, value.clone());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_front_proxy_says_who_the_user_is() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-remote-user", "eve"), ("authorization", "Bearer x"), ("accept", "a/b")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let mut kept = passed_on(&headers, false);
        let mut user = User::new("ann", ["team".to_owned()]);
        user.extra.insert("example.com/a".to_owned(), vec!["1".to_owned()]);
        add_user(&mut kept, &user).expect("headers");
        let all: Vec<String> =
            kept.iter().map(|(name, value)| format!("{name}={}", value.to_str().expect("text"))).collect();
        assert_eq!(
            all,
            [
                "accept=a/b",
                "x-remote-user=ann",
                "x-remote-group=team",
                "x-remote-group=system:authenticated",
                "x-remote-extra-example.com%2fa=1",
            ]
        );
        add_user(&mut HeaderMap::new(), &User::new("jörg", [])).expect("a header may have any letters");
        assert!(add_user(&mut HeaderMap::new(), &User::new("a\nb", [])).is_err());
    }
}
