//! OpenAPI documents of aggregated APIs (`kube-aggregator/pkg/controllers/{openapi,openapiv3}`): where a server has its
//! v3 document, which is passed on when somebody asks for it, and its part of the one v2 document. They are looked
//! at as often as the server's availability is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use super::{Remote, add_user, remotes};
use crate::authn::User;
use crate::state::State;

const PATIENCE: Duration = Duration::from_secs(5);
/// Kubernetes' own document has 4 MB.
const LONGEST: usize = 16 << 20;

/// What one server says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    /// Where the v3 document of the APIService's version is, with its hash.
    v3: Option<String>,
    v2: Option<V2>,
}

#[derive(Clone, Debug)]
struct V2 {
    etag: Option<String>,
    /// What belongs to the APIService's version, as JSON and compressed.
    gzip: Bytes,
}

/// Who asks for documents (upstream's name).
pub(crate) fn user() -> User {
    User::new("system:aggregator", [])
}

/// Group, version and address of the v3 documents that other servers have.
pub(crate) fn openapi_paths(state: &State) -> Vec<(String, String, String)> {
    let documents = state.aggregation.documents.lock();
    let remotes = remotes_of(state);
    let known = |remote: &Arc<Remote>| documents.get(&remote.name)?.v3.clone();
    remotes
        .iter()
        .filter_map(|remote| Some((remote.group.clone(), remote.version.clone(), known(remote)?)))
        .collect()
}

/// The v2 documents of other servers, compressed.
pub(crate) fn openapi_v2(state: &State) -> Vec<Bytes> {
    let documents = state.aggregation.documents.lock();
    let remotes = remotes_of(state);
    remotes.iter().filter_map(|remote| Some(documents.get(&remote.name)?.v2.as_ref()?.gzip.clone())).collect()
}

fn remotes_of(state: &State) -> Vec<Arc<Remote>> {
    let known = state.aggregation.remotes.last().unwrap_or_default();
    known.values().filter(|remote| remote.available).cloned().collect()
}

/// Looks whether a server has other documents by now. One without any is as good as before.
pub(super) async fn refresh(state: &Arc<State>, remote: &Remote) {
    let known = state.aggregation.documents.lock().get(&remote.name).cloned().unwrap_or_default();
    let fresh = Documents {
        v3: timely(v3(state, remote)).await.unwrap_or_else(|| known.v3.clone()),
        v2: timely(v2(state, remote, known.v2.as_ref())).await.unwrap_or_else(|| known.v2.clone()),
    };
    // It may have been taken off meanwhile.
    if remotes(state).values().any(|present| present.name == remote.name) {
        state.aggregation.documents.lock().insert(remote.name.clone(), fresh);
    }
}

/// `None`: it could not be found out, and what was known stays.
async fn timely<T>(asked: impl Future<Output = Option<T>>) -> Option<T> {
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
}

async fn v3(state: &Arc<State>, remote: &Remote) -> Option<Option<String>> {
    let (status, _, body) = get(state, remote, "/openapi/v3", None).await?;
    if status != StatusCode::OK {
        return Some(None);
    }
    let root: Value = serde_json::from_slice(&body).ok()?;
    let name = kedge_openapi::document_name(&remote.group, &remote.version);
    let url = root["paths"][&name]["serverRelativeURL"].as_str();
    // Nothing but its own document may be named.
    let own = format!("/openapi/v3/{name}");
    let is_own = |url: &&str| url.split('?').next() == Some(own.as_str());
    Some(url.filter(is_own).map(str::to_owned))
}

async fn v2(state: &Arc<State>, remote: &Remote, known: Option<&V2>) -> Option<Option<V2>> {
    let etag = known.and_then(|known| known.etag.as_deref());
    if known.is_some() && etag.is_none() {
        // There is no cheap way to find out whether it has changed.
        return None;
    }
    let (status, fresh, body) = get(state, remote, "/openapi/v2", etag).await?;
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED => return None,
        _ => return Some(None),
    }
    let prefix = format!("/apis/{}/{}", remote.group, remote.version);
    match kedge_openapi::part_of_v2(&body, &prefix) {
        Ok(gzip) => Some(gzip.map(|gzip| V2 { etag: fresh, gzip: gzip.into() })),
        Err(error) => {
            tracing::debug!(api_service = remote.name, %error, "an OpenAPI document that cannot be read");
            Some(None)
        }
    }
}

/// Status, ETag and body of a server's answer.
async fn get(
    state: &Arc<State>,
    remote: &Remote,
    path: &str,
    etag: Option<&str>,
) -> Option<(StatusCode, Option<String>, Bytes)> {
    let server = remote.server.as_ref().ok()?;
    let mut request = Request::builder().uri(path).header(header::ACCEPT, "application/json");
    if let Some(etag) = etag {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let mut request = request.body(Body::empty()).ok()?;
    add_user(request.headers_mut(), &user()).ok()?;
    let response = server.send(state, request).await.ok()?;
    let status = response.status();
    let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), LONGEST).collect().await.ok()?.to_bytes();
    Some((status, etag, body))
}
