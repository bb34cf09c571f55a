//! Serves OpenAPI documents: made when first asked for, kept compressed for as long as the resources
//! stay that they were made from.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use kedge_api::registry::Resource;
use kedge_api::status::Status;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::aggregation;
use crate::request::Query;
use crate::respond;
use crate::state::State;

const JSON: &str = "application/json";
/// What clients ask for; the answer spells it without the `@`, which no media type may have.
const PROTO_ASKED: [&str; 2] = ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", PROTO];
const PROTO: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents that were asked for so far, by name and media type.
#[derive(Default)]
pub(crate) struct Documents(Mutex<HashMap<(String, &'static str), Document>>);

/// One document.
#[derive(Clone)]
struct Document {
    gzip: Bytes,
    /// Of the contents.
    hash: String,
    etag: HeaderValue,
    modified: HeaderValue,
    media: &'static str,
    made_from: Parts,
}

/// What a document is made from.
#[derive(Clone)]
struct Parts {
    resources: Arc<[Arc<Resource>]>,
    /// v2 documents of other servers, compressed.
    others: Arc<[Bytes]>,
}

impl Parts {
    /// A resource that changes is another object in the registry.
    fn is_same(&self, now: &Self) -> bool {
        self.resources.len() == now.resources.len()
            && self.resources.iter().zip(&*now.resources).all(|(before, now)| Arc::ptr_eq(before, now))
            && self.others == now.others
    }
}

/// The answer when the path is one of OpenAPI's.
pub(crate) fn answer(
    state: &State,
    headers: &HeaderMap,
    path: &str,
    query: &Query,
) -> Result<Option<Response<Body>>, Status> {
    if path == "/openapi/v3" {
        return Ok(Some(respond::json(StatusCode::OK, &json!({ "paths": paths(state)? }))));
    }
    let name = path.trim_start_matches("/openapi/").to_owned();
    let media = negotiate(headers, name == "v2")?;
    let Some(document) = document(state, name, media)? else { return Ok(None) };
    let mut response = respond(headers, &document)?;
    // Who asks by the hash of contents may keep what it gets (kube-openapi `pkg/handler3`).
    if let Some(asked) = query.get("hash").filter(|asked| *asked != kedge_base::VERSION) {
        if asked != document.hash {
            return moved(path, &document.hash).map(Some);
        }
        let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(Some(response))
}

/// Where each group version's document is. Clients ask again when the hash in it is another one: documents of
/// definitions change at any time, those of built-in kinds with the program only.
fn paths(state: &State) -> Result<Map<String, Value>, Status> {
    let mut paths = Map::new();
    for (group, api_version) in group_versions(state) {
        let name = kedge_openapi::document_name(&group, &api_version);
        let hash = if state.registry.read().is_builtin(&group, &api_version) {
            kedge_base::VERSION.to_owned()
        } else {
            match document(state, format!("v3/{name}"), JSON)? {
                Some(document) => document.hash,
                None => continue,
            }
        };
        let url = format!("/openapi/v3/{name}?hash={hash}");
        paths.insert(name, json!({ "serverRelativeURL": url }));
    }
    for (group, api_version, url) in aggregation::openapi_paths(state) {
        let name = kedge_openapi::document_name(&group, &api_version);
        paths.entry(name).or_insert_with(|| json!({ "serverRelativeURL": url }));
    }
    Ok(paths)
}

/// The address of the present document for one that was asked for by an old hash.
fn moved(path: &str, hash: &str) -> Result<Response<Body>, Status> {
    let place = HeaderValue::try_from(format!("{path}?hash={hash}"))
        .map_err(|error| Status::internal(error.to_string()))?;
    let mut response = respond::text(StatusCode::MOVED_PERMANENTLY, "");
    response.headers_mut().insert(header::LOCATION, place);
    Ok(response)
}

/// The group and version whose v3 document a path names.
pub(crate) fn group_version(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/openapi/v3/apis/")?.trim_end_matches('/').split_once('/')
}

/// The document of that name as of now; `None` when there is nothing that it could be about.
fn document(state: &State, name: String, media: &'static str) -> Result<Option<Document>, Status> {
    let resources = resources(state, &name);
    let others = if name == "v2" { aggregation::openapi_v2(state) } else { Vec::new() };
    let key = (name, media);
    if resources.is_empty() {
        // The last definition of the group is gone.
        state.openapi.0.lock().remove(&key);
        return Ok(None);
    }
    let parts = Parts { resources: resources.into(), others: others.into() };
    let kept = state.openapi.0.lock().get(&key).filter(|kept| kept.made_from.is_same(&parts)).cloned();
    if kept.is_some() {
        return Ok(kept);
    }
    let document = make(state, &key.0, media, parts)?;
    state.openapi.0.lock().insert(key, document.clone());
    Ok(Some(document))
}

/// The media type of the answer; 406 when there is none.
fn negotiate(headers: &HeaderMap, has_proto: bool) -> Result<&'static str, Status> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    for media in accept.split(',') {
        match media.split(';').next().unwrap_or_default().trim() {
            JSON | "application/*" | "*/*" | "" => return Ok(JSON),
            asked if has_proto && PROTO_ASKED.contains(&asked) => return Ok(PROTO),
            _ => {}
        }
    }
    let offered: &[&str] = if has_proto { &[JSON, PROTO] } else { &[JSON] };
    Err(Status::not_acceptable(offered))
}

/// What a document is about.
fn resources(state: &State, name: &str) -> Vec<Arc<Resource>> {
    let registry = state.registry.read();
    let group_version = name.strip_prefix("v3/");
    let is_wanted = |resource: &Resource| match group_version {
        Some(wanted) => kedge_openapi::document_name(&resource.group, &resource.version) == wanted,
        None => name == "v2",
    };
    registry.iter().filter(|resource| is_wanted(resource)).cloned().collect()
}

/// The schema of a custom resource's version, from its definition.
fn schema_of(state: &State, resource: &Resource) -> Option<Value> {
    if !resource.custom {
        return None;
    }
    let definitions = state.cache.bucket("customresourcedefinitions.apiextensions.k8s.io");
    let stored = definitions.get(&format!("/{}", resource.storage_key))?;
    let mut definition = crate::verbs::read::parse(&stored.bytes).ok()?;
    let versions = definition["spec"]["versions"].as_array_mut()?;
    let version = versions.iter_mut().find(|version| version["name"] == *resource.version)?;
    Some(version["schema"]["openAPIV3Schema"].take())
}

fn make(state: &State, name: &str, media: &'static str, parts: Parts) -> Result<Document, Status> {
    let version = kedge_base::git_version();
    let list = parts.resources.iter().map(|resource| &**resource);
    let schemas = |resource: &Resource| schema_of(state, resource);
    let gzip = match (name, media) {
        ("v2", PROTO) => kedge_openapi::v2_proto(list, &parts.others, &version, &schemas),
        ("v2", _) => kedge_openapi::v2(list, &parts.others, &version, &schemas),
        _ => kedge_openapi::v3(list, &version, &schemas),
    };
    let gzip = gzip.map_err(|error| Status::internal(kedge_base::Chain(&error).to_string()))?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &gzip);
    let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    let modified = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
    let header =
        |text: String| HeaderValue::try_from(text).map_err(|error| Status::internal(error.to_string()));
    Ok(Document {
        gzip: gzip.into(),
        etag: header(format!("\"{hash}\""))?,
        hash,
        modified: header(modified.map_err(|error| Status::internal(error.to_string()))?)?,
        media,
        made_from: parts,
    })
}

fn group_versions(state: &State) -> Vec<(String, String)> {
    let registry = state.registry.read();
    let mut all: Vec<(String, String)> =
        registry.iter().map(|resource| (resource.group.to_string(), resource.version.to_string())).collect();
    all.sort();
    all.dedup();
    all
}

/// 304 to a client that has the document; one that cannot take gzip gets it unpacked.
fn respond(headers: &HeaderMap, document: &Document) -> Result<Response<Body>, Status> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = document.etag.to_str().unwrap_or_default();
    let has_it = text(header::IF_NONE_MATCH)
        .is_some_and(|known| known.split(',').map(str::trim).any(|known| known == "*" || known == etag));
    let mut response = if has_it {
        respond::json_bytes(StatusCode::NOT_MODIFIED, Bytes::new())
    } else if text(header::ACCEPT_ENCODING).is_some_and(|accepts| accepts.contains("gzip")) {
        let mut response = respond::json_bytes(StatusCode::OK, document.gzip.clone());
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let plain =
            kedge_openapi::unpack(&document.gzip).map_err(|error| Status::internal(error.to_string()))?;
        respond::json_bytes(StatusCode::OK, plain.into())
    };
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(document.media));
    fields.insert(header::ETAG, document.etag.clone());
    fields.insert(header::LAST_MODIFIED, document.modified.clone());
    fields.insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_known_wins() {
        let kubectl = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        for (accept, v2, v3) in [
            (kubectl, Some(PROTO), None),
            (PROTO, Some(PROTO), None),
            ("application/json", Some(JSON), Some(JSON)),
            ("*/*", Some(JSON), Some(JSON)),
            (
                "application/json, application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
                Some(JSON),
                Some(JSON),
            ),
            (
                "application/com.github.proto-openapi.spec.v2@v1.0+protobuf;q=0.5,application/json",
                Some(PROTO),
                Some(JSON),
            ),
            ("text/html", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(negotiate(&headers, true).ok(), v2, "{accept}");
            assert_eq!(negotiate(&headers, false).ok(), v3, "{accept}");
        }
    }
}
