//! Whether an aggregated API answers: the APIService's condition "Available"
//! (`kube-aggregator/pkg/controllers/status/remote`). Sleeps while there is no such API.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, header};
use http_body_util::{BodyExt as _, Limited};
use kedge_api::crd::set_condition;
use kedge_api::status::Status;
use serde_json::{Value, json};

use super::{Remote, SERVICES, add_user, remotes};
use crate::authn::User;
use crate::outbound;
use crate::state::State;
use crate::verbs::options::WriteOptions;
use crate::verbs::update::{Change, Edit, Target};

/// Upstream's interval; other servers tell nobody when they go.
const AGAIN: Duration = Duration::from_secs(30);
/// While one does not answer, it is asked more often: it may just be starting.
const SOON: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: usize = 4 << 20;

pub(crate) async fn run(state: Arc<State>) {
    loop {
        let mut changed = state.cache.bucket(SERVICES).subscribe();
        loop {
            changed.borrow_and_update();
            let all = remotes(&state);
            let mut healthy = true;
            for remote in all.values() {
                healthy &= check(&state, remote).await;
            }
            let next = if healthy { AGAIN } else { SOON };
            tokio::select! {
                result = changed.changed() => if result.is_err() { break },
                () = tokio::time::sleep(next), if !all.is_empty() => {}
            }
        }
    }
}

async fn check(state: &Arc<State>, remote: &Remote) -> bool {
    let outcome = match tokio::time::timeout(PATIENCE, ask(state, remote)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(("FailedDiscoveryCheck", "no answer in time".to_owned())),
    };
    let (value, reason, message) = match &outcome {
        Ok(()) => ("True", "Passed", "all checks passed"),
        Err((reason, message)) => ("False", *reason, message.as_str()),
    };
    if let Err(status) = write(state, remote, value, reason, message).await {
        tracing::warn!(api_service = remote.name, %status, "availability not written");
    }
    if outcome.is_ok() {
        super::openapi::refresh(state, remote).await;
    }
    outcome.is_ok()
}

/// Asks the server for what it has.
async fn ask(state: &Arc<State>, remote: &Remote) -> Result<(), (&'static str, String)> {
    let failed = |message: String| ("FailedDiscoveryCheck", message);
    let server = remote.server.as_ref().map_err(|error| failed(error.clone()))?;
    if let Some((namespace, name)) = &server.service {
        if state.cache.bucket("services").get(&format!("{namespace}/{name}")).is_none() {
            return Err(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
        }
        outbound::endpoint(state, namespace, name, server.port).map_err(|_| {
            ("MissingEndpoints", format!("endpoints for service/{name} in {namespace:?} have no addresses"))
        })?;
    }
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let url = format!("https://{}:{}{path}", server.host, server.port);
    let bad = |what: String| failed(format!("failing or missing response from {url}: {what}"));
    let mut request = Request::builder()
        .uri(&path)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|error| bad(error.to_string()))?;
    let user = User::new("system:kube-aggregator", ["system:masters".to_owned()]);
    add_user(request.headers_mut(), &user).map_err(&bad)?;
    let response = server.send(state, request).await.map_err(&bad)?;
    let status = response.status();
    if !status.is_success() {
        return Err(bad(format!("bad status from {url}: {}", status.as_u16())));
    }
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
    let bytes = body.map_err(|error| bad(error.to_string()))?.to_bytes();
    let list: Value = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    state.aggregation.resources.lock().insert(remote.name.clone(), Arc::new(list));
    Ok(())
}

async fn write(
    state: &Arc<State>,
    remote: &Remote,
    value: &str,
    reason: &str,
    message: &str,
) -> Result<(), Status> {
    let Some(resource) = state.find("apiregistration.k8s.io", "v1", "apiservices") else { return Ok(()) };
    let user = User::component("system:apiserver");
    let change = Change { state, user: &user, resource: &resource, target: Target::Trusted("status") };
    let mut edit = |current: &Value| {
        let mut new = current.clone();
        if !new["status"].is_object() {
            new["status"] = json!({});
        }
        set_condition(&mut new["status"], "Available", value, reason, message);
        Ok(Edit::replace(new))
    };
    match change.run("", &remote.name, &WriteOptions::internal(), &mut edit).await {
        Err(status) if status.code == 404 => Ok(()),
        result => result.map(drop),
    }
}
