//! Serves OpenAPI documents: made when first asked for, kept compressed.

use std::collections::HashMap;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use kedge_api::status::Status;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::respond;
use crate::state::State;

/// The documents that were asked for so far, gzip-compressed, by name.
#[derive(Default)]
pub(crate) struct Documents(Mutex<HashMap<String, Bytes>>);

/// The answer when the path is one of OpenAPI's.
pub(crate) fn answer(
    state: &State,
    headers: &HeaderMap,
    path: &str,
) -> Result<Option<Response<Body>>, Status> {
    let version = kedge_base::git_version();
    if path == "/openapi/v3" {
        let mut paths = Map::new();
        for (group, api_version) in group_versions(state) {
            let name = kedge_openapi::document_name(&group, &api_version);
            let url = format!("/openapi/v3/{name}?hash={}", kedge_base::VERSION);
            paths.insert(name, json!({ "serverRelativeURL": url }));
        }
        return Ok(Some(respond::json(StatusCode::OK, &json!({ "paths": Value::Object(paths) }))));
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let json_accepted = accept.split(',').any(|media| media.contains("json") || media.contains("*/*"));
    if !json_accepted {
        return Err(Status::not_acceptable(&["application/json"]));
    }
    let name = path.trim_start_matches("/openapi/").to_owned();
    if let Some(document) = state.openapi.0.lock().get(&name) {
        return compressed(headers, document.clone()).map(Some);
    }
    let registry = state.registry.read();
    let document = if name == "v2" {
        kedge_openapi::v2(registry.iter().map(|resource| &**resource), &version)
    } else {
        let wanted = name.strip_prefix("v3/").unwrap_or_default();
        let resources: Vec<_> = registry
            .iter()
            .filter(|resource| kedge_openapi::document_name(&resource.group, &resource.version) == wanted)
            .cloned()
            .collect();
        if resources.is_empty() {
            return Ok(None);
        }
        kedge_openapi::v3(resources.iter().map(|resource| &**resource), &version)
    };
    drop(registry);
    let document: Bytes =
        document.map_err(|error| Status::internal(kedge_base::Chain(&error).to_string()))?.into();
    state.openapi.0.lock().insert(name, document.clone());
    compressed(headers, document).map(Some)
}

fn group_versions(state: &State) -> Vec<(String, String)> {
    let registry = state.registry.read();
    let mut all: Vec<(String, String)> =
        registry.iter().map(|resource| (resource.group.to_string(), resource.version.to_string())).collect();
    all.sort();
    all.dedup();
    all
}

/// A client that cannot take gzip gets the document unpacked.
fn compressed(headers: &HeaderMap, gzip: Bytes) -> Result<Response<Body>, Status> {
    let accepts = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    if accepts.is_some_and(|accepts| accepts.contains("gzip")) {
        let mut response = respond::json_bytes(StatusCode::OK, gzip);
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return Ok(response);
    }
    let plain = kedge_openapi::unpack(&gzip).map_err(|error| Status::internal(error.to_string()))?;
    Ok(respond::json_bytes(StatusCode::OK, plain.into()))
}
