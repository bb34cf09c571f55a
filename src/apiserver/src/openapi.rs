//! Serves the OpenAPI documents that were made at build time.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::request::Query;
use crate::respond;
use crate::state::State;

/// The answer when the path is one of OpenAPI's.
pub(crate) fn answer(_state: &State, headers: &HeaderMap, path: &str, _query: &Query) -> Option<Response<Body>> {
    match path {
        "/openapi/v2" => Some(compressed(headers, kedge_openapi::v2()?)),
        "/openapi/v3" => {
            let paths: serde_json::Map<String, serde_json::Value> = kedge_openapi::v3_documents()
                .map(|(name, hash)| {
                    let url = format!("/openapi/v3/{name}?hash={hash}");
                    (name.to_owned(), serde_json::json!({ "serverRelativeURL": url }))
                })
                .collect();
            Some(respond::json(StatusCode::OK, &serde_json::json!({ "paths": paths })))
        }
        _ => Some(compressed(headers, kedge_openapi::v3(path.strip_prefix("/openapi/v3/")?)?)),
    }
}

/// The bytes are kept compressed; a client that cannot take that gets them unpacked.
fn compressed(headers: &HeaderMap, gzip: &'static [u8]) -> Response<Body> {
    let accepts = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    if accepts.is_some_and(|accepts| accepts.contains("gzip")) {
        let mut response = respond::json_bytes(StatusCode::OK, bytes::Bytes::from_static(gzip));
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return response;
    }
    respond::json_bytes(StatusCode::OK, kedge_openapi::unpack(gzip).into())
}
