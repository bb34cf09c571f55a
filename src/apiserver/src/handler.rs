//! One request from beginning to end: who, whether, what.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::FutureExt;
use http::header::ACCEPT;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use kedge_api::status::Status;
use kedge_base::prometheus::{self, Exposition, Kind};
use serde_json::json;
use tokio::time::Instant;

use crate::authn::{self, User};
use crate::authz::{self, rbac::Attributes};
use crate::request::{Query, RequestInfo};
use crate::state::State;
use crate::verbs::{self, Context};
use crate::{aggregation, body, components, discovery, protobuf, proxy, respond, review, stream};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Answer a request. `peer` is the user of a verified client certificate, or the component of this
/// process that asks.
pub(crate) async fn handle(state: Arc<State>, request: Request<Body>, peer: Option<User>) -> Response<Body> {
    let what = format!("{} {}", request.method(), request.uri().path());
    // Read again only when there is an error to write.
    let accept = request.headers().get(ACCEPT).cloned();
    match AssertUnwindSafe(answer(&state, request, peer)).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => {
            let accept = accept.map(|value| (ACCEPT, value)).into_iter().collect();
            match respond::negotiate(&accept) {
                Ok(accepted) if accepted.protobuf => protobuf::status(&status),
                _ => respond::status(&status),
            }
        }
        Err(_) => {
            tracing::error!(request = what, "a request's handler panicked");
            respond::status(&Status::internal(
                "this request caused the API server to panic; its log has more",
            ))
        }
    }
}

async fn answer(
    state: &Arc<State>,
    mut request: Request<Body>,
    peer: Option<User>,
) -> Result<Response<Body>, Status> {
    let query = Query::parse(request.uri());
    let info = RequestInfo::parse(request.method(), request.uri(), &query);
    let user = authn::authenticate(state, request.headers(), peer.as_ref())?;
    let deadline = Instant::now() + time_limit(&info, &query)?;
    let user = impersonated(state, user, request.headers())?;
    if state.is_new() && !user.is_in(authn::MASTERS) && info.is_resource {
        return Err(Status::service_unavailable("the API server is starting"));
    }
    let _permit = state.inflight.enter(&user, &info)?;
    authz::require(state, &user, &authz::attributes(&user, &info))?;
    if info.no_route {
        return Ok(no_such_path());
    }
    if (info.is_resource || is_version_root(&info.path))
        && let Some(remote) = aggregation::find(state, &info.group, &info.version)
    {
        let answer = aggregation::forward(state, &remote, &user, request);
        return if info.is_long_running() { answer.await } else { within(deadline, answer).await };
    }
    if matches!(*request.method(), Method::GET | Method::HEAD)
        && let Some((group, version)) = crate::openapi::group_version(&info.path)
        && let Some(remote) = aggregation::find(state, group, version)
    {
        let user = aggregation::user();
        return within(deadline, aggregation::forward(state, &remote, &user, request)).await;
    }
    if !info.is_resource {
        return plain(state, request.headers(), request.method(), &info, &query);
    }
    let Some(resource) = state.find(&info.group, &info.version, &info.resource) else {
        return Ok(no_such_path());
    };
    let is_stream = proxy::is_stream(&info.group, &info.resource, &info.subresource);
    let is_watch = info.verb == "watch";
    let reader = if is_watch || (is_stream && info.subresource == "log") {
        stream::Reader::take(&mut request, is_watch)
    } else {
        None
    };
    let mut is_beta = false;
    // What a proxy or stream answers is not ours to negotiate.
    let accepted = if is_stream {
        respond::Accepted::JSON
    } else {
        let mut accepted = respond::negotiate(request.headers())?;
        is_beta = accepted.beta;
        // The messages of a watch are text.
        accepted.protobuf &= reader.is_none();
        let metadata = accepted.form == respond::Form::Metadata;
        if accepted.protobuf
            && !metadata
            && !kedge_api::protobuf::has_message(&resource.api_version(), &resource.kind)
        {
            return Err(Status::not_acceptable(&["application/json", "application/yaml"]));
        }
        accepted
    };
    let mut context = Context {
        state: state.clone(),
        user,
        info,
        query,
        headers: request.headers().clone(),
        resource,
        accepted,
    };
    if context.resource.plural == "namespaces" && context.resource.group.is_empty() {
        // The namespace in the path served authorisation; the object itself is of cluster scope.
        context.info.namespace = String::new();
    }
    // A scope that the path does not have, or more than a subresource has.
    if (!context.resource.namespaced && !context.info.namespace.is_empty())
        || (!context.info.rest.is_empty() && context.info.subresource != "proxy")
    {
        return Ok(no_such_path());
    }
    // An object is made where its kind is listed: what an item's path was authorised for is that item.
    if context.info.verb == "create" && context.info.subresource.is_empty() && !context.info.name.is_empty() {
        return Err(Status::method_not_supported(&context.group_resource(), context.info.verb));
    }
    if is_stream {
        let context = Arc::new(context);
        let response = proxy::run(&context, request).await?;
        return Ok(match reader {
            Some(reader) => reader.answer(&state.tasks, response),
            None => response,
        });
    }
    let body = within(deadline, body::collect(request.into_body())).await?;
    let takes_protobuf = accepted.protobuf;
    let response = if is_watch {
        verbs::run(context, body).await?
    } else if context.resource.stored {
        within(deadline, verbs::run(context, body)).await?
    } else if context.resource.group.is_empty() && context.resource.plural == "componentstatuses" {
        within(deadline, components::run(&context)).await?
    } else if context.accepted.form == respond::Form::Object {
        review::create(&Arc::new(context), &body).await?
    } else {
        // What is only answered has no table and no bare metadata.
        return Err(Status::not_acceptable(&["application/json", "application/yaml"]));
    };
    let response = if is_beta { respond::as_beta(response, is_watch).await? } else { response };
    if let Some(reader) = reader {
        return Ok(reader.answer(&state.tasks, response));
    }
    if takes_protobuf { protobuf::answer(response, is_watch).await } else { Ok(response) }
}

/// The sender, or the user that the sender may act as.
fn impersonated(state: &State, user: User, headers: &HeaderMap) -> Result<User, Status> {
    let Some(wanted) = authn::impersonation(headers)? else { return Ok(user) };
    for (group, resource, namespace, name, subresource) in &wanted.checks {
        let attributes = Attributes {
            user: &user.name,
            groups: &user.groups,
            verb: "impersonate",
            namespace,
            api_group: group,
            resource,
            subresource,
            name,
            path: "",
            is_resource: true,
        };
        authz::require(state, &user, &attributes)?;
    }
    Ok(wanted.user)
}

/// How long a client may take to send its request, and another server to answer it: what the client asks for, up to
/// upstream's `--request-timeout` (apiserver `filters/request_deadline.go`). Requests that live long cannot ask.
fn time_limit(info: &RequestInfo, query: &Query) -> Result<Duration, Status> {
    let Some(timeout) = query.get("timeout").filter(|_| !info.is_long_running()) else {
        return Ok(REQUEST_TIMEOUT);
    };
    let nanos = kedge_api::cel::duration(timeout).ok_or_else(|| {
        Status::bad_request(format!(
            "invalid timeout specified in the request URL - time: invalid duration {timeout:?}"
        ))
    })?;
    let asked = u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    Ok(asked.unwrap_or(REQUEST_TIMEOUT).min(REQUEST_TIMEOUT))
}

/// What comes in time (apiserver `server/filters/timeout.go`).
async fn within<T>(deadline: Instant, future: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout_at(deadline, future)
        .await
        .unwrap_or_else(|_| Err(Status::timeout("request did not complete within the allotted timeout", 0)))
}

/// `/apis/GROUP/VERSION`
fn is_version_root(path: &str) -> bool {
    path.starts_with("/apis/") && path.trim_end_matches('/').matches('/').count() == 3
}

fn no_such_path() -> Response<Body> {
    respond::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Paths that name no resource.
fn plain(
    state: &State,
    headers: &HeaderMap,
    method: &Method,
    info: &RequestInfo,
    query: &Query,
) -> Result<Response<Body>, Status> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(respond::text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"));
    }
    let path = info.path.trim_end_matches('/');
    if path.starts_with("/api") || path == "/apis" {
        return Ok(discovery::answer(state, headers, path).unwrap_or_else(no_such_path));
    }
    if path.starts_with("/openapi") {
        return Ok(crate::openapi::answer(state, headers, path, query)?.unwrap_or_else(no_such_path));
    }
    Ok(match path {
        "" => respond::json(
            StatusCode::OK,
            &json!({ "paths": [
                "/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics",
                "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version",
            ]}),
        ),
        "/healthz" | "/livez" | "/livez/ping" | "/healthz/ping" => respond::text(StatusCode::OK, "ok"),
        "/readyz" | "/readyz/ping" => ready(state, query),
        "/version" => respond::json(StatusCode::OK, &version()),
        "/metrics" => metrics(state),
        "/metrics/slis" => health_metrics(state),
        "/openid/v1/jwks" => respond::json(StatusCode::OK, &state.tokens.jwks()),
        "/.well-known/openid-configuration" => respond::json(
            StatusCode::OK,
            &json!({
                "issuer": state.tokens.issuer(),
                "jwks_uri": format!("https://{}:{}/openid/v1/jwks", state.config.advertise_address, state.config.listen.port()),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
        ),
        _ => no_such_path(),
    })
}

fn ready(state: &State, query: &Query) -> Response<Body> {
    if !*state.bootstrapped.borrow() {
        return respond::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "[+]ping ok\n[-]poststarthook/bootstrap failed: not finished\nreadyz check failed\n",
        );
    }
    // What upstream's check of etcd is: without it nothing is written, nor read fresh.
    if state.store.leader().is_none() {
        return respond::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "[+]ping ok\n[-]datastore failed: there is no leader\n[+]poststarthook/bootstrap ok\nreadyz check failed\n",
        );
    }
    if query.flag("verbose") {
        return respond::text(
            StatusCode::OK,
            "[+]ping ok\n[+]datastore ok\n[+]poststarthook/bootstrap ok\nreadyz check passed\n",
        );
    }
    respond::text(StatusCode::OK, "ok")
}

fn version() -> serde_json::Value {
    let mut parts = kedge_base::KUBERNETES_VERSION.split('.');
    json!({
        "major": parts.next().unwrap_or_default(),
        "minor": parts.next().unwrap_or_default(),
        "gitVersion": kedge_base::git_version(),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// Prometheus text: what the health checks say (component-base `metrics/prometheus/slis`).
fn health_metrics(state: &State) -> Response<Body> {
    let mut out = Exposition::default();
    let help = "[STABLE] This metric records the result of a single healthcheck.";
    let mut family = out.family("kubernetes_healthcheck", Kind::Gauge, help);
    let bootstrapped = i32::from(*state.bootstrapped.borrow());
    let checks = [("ping", "healthz", 1), ("ping", "livez", 1), ("ping", "readyz", 1)];
    let datastore = i32::from(state.store.leader().is_some());
    let own = [("datastore", "readyz", datastore), ("poststarthook/bootstrap", "readyz", bootstrapped)];
    for (name, kind, result) in checks.into_iter().chain(own) {
        family.sample(&prometheus::labels(&[("name", name), ("type", kind)]), result);
    }
    respond::text(StatusCode::OK, out.finish())
}

/// Prometheus text: how many objects there are and what the store does.
fn metrics(state: &State) -> Response<Body> {
    let mut out = Exposition::default();
    let mut sizes = state.cache.sizes();
    sizes.sort();
    let help = "Objects that are stored, by their resource.";
    let mut family = out.family("apiserver_storage_objects", Kind::Gauge, help);
    for (resource, count) in sizes.iter().filter(|(resource, _)| !resource.starts_with('@')) {
        family.sample(&prometheus::labels(&[("resource", resource)]), count);
    }
    let help = "Changes of the store since it was made.";
    out.single("kedge_store_revision", Kind::Counter, help, state.store.revision());
    respond::text(StatusCode::OK, out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_ask_for_less_time_but_not_for_more() {
        let limit = |uri: &str| {
            let uri: http::Uri = uri.parse().expect("URI");
            let query = Query::parse(&uri);
            time_limit(&RequestInfo::parse(&Method::GET, &uri, &query), &query)
        };
        let seconds = |uri| limit(uri).expect(uri).as_secs();
        assert_eq!(seconds("/api/v1/pods"), 60);
        assert_eq!(seconds("/api/v1/pods?timeout=34s"), 34);
        assert_eq!(seconds("/api/v1/pods?timeout=1h"), 60);
        assert_eq!(seconds("/api/v1/pods?timeout=0s") + seconds("/api/v1/pods?timeout=-1s"), 120);
        assert_eq!(limit("/api/v1/pods?timeout=7").expect_err("no unit").code, 400);
        assert_eq!(seconds("/api/v1/namespaces/a/pods/b/log?timeout=7"), 60);
    }
}
