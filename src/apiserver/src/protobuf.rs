//! Answers for clients that accept protobuf and nothing else: what was to be answered as JSON, written anew.
//! Whoever accepts JSON too gets JSON, which nothing has to be done for.

use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use kedge_api::protobuf;
use kedge_api::status::Status;
use serde_json::Value;

use crate::respond;

const WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// The same answer in protobuf; what is no JSON stays as it is.
pub(crate) async fn answer(response: Response<Body>, is_watch: bool) -> Result<Response<Body>, Status> {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    if !content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/json")) {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let (content_type, body) = if is_watch {
        (WATCH, events(body))
    } else {
        let text = body.collect().await.map_err(|error| Status::internal(error.to_string()))?.to_bytes();
        (protobuf::CONTENT_TYPE, Body::from(object(&text)?))
    };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(Response::from_parts(parts, body))
}

/// An error in protobuf.
pub(crate) fn status(status: &Status) -> Response<Body> {
    let mut response = respond::status(status);
    if let Ok(bytes) = encoded(&status.to_value()) {
        *response.body_mut() = Body::from(bytes);
        let content_type = HeaderValue::from_static(protobuf::CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}

fn object(text: &[u8]) -> Result<Vec<u8>, Status> {
    let value: Value = serde_json::from_slice(text).map_err(|error| Status::internal(error.to_string()))?;
    encoded(&value)
}

fn encoded(value: &Value) -> Result<Vec<u8>, Status> {
    protobuf::encode(value)
        .map_err(|error| Status::internal(format!("the answer cannot be written in protobuf: {error}")))
}

/// Lines of JSON events as frames of protobuf ones.
fn events(body: Body) -> Body {
    let frames = body.into_data_stream().scan(BytesMut::new(), |pending, piece| {
        let frames = piece.map(|piece| {
            pending.extend_from_slice(&piece);
            take_lines(pending).iter().flat_map(|line| frame(line)).collect::<Vec<u8>>()
        });
        std::future::ready(Some(frames.map(Bytes::from)))
    });
    Body::from_stream(frames.filter(|frame| {
        let is_empty = frame.as_ref().is_ok_and(Bytes::is_empty);
        std::future::ready(!is_empty)
    }))
}

/// The lines that are complete.
fn take_lines(pending: &mut BytesMut) -> Vec<BytesMut> {
    let mut lines = Vec::new();
    while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
        lines.push(pending.split_to(end));
        pending.advance(1);
    }
    lines
}

/// One event; one that cannot be written becomes an error, which ends a client's watch.
fn frame(line: &[u8]) -> Vec<u8> {
    let event: Value = serde_json::from_slice(line).unwrap_or_default();
    let kind = event["type"].as_str().unwrap_or("ERROR");
    let (kind, object) = match encoded(&event["object"]) {
        Ok(object) => (kind, object),
        Err(status) => ("ERROR", encoded(&status.to_value()).unwrap_or_default()),
    };
    protobuf::watch_frame(kind, &object)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;

    async fn bytes(response: Response<Body>) -> Bytes {
        response.into_body().collect().await.expect("the body").to_bytes()
    }

    #[tokio::test]
    async fn objects_and_what_is_no_object() {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": { "k": "v" } });
        let written = answer(respond::json(StatusCode::CREATED, &map), false).await.expect("answered");
        assert_eq!(written.status(), StatusCode::CREATED);
        assert_eq!(written.headers()[header::CONTENT_TYPE], "application/vnd.kubernetes.protobuf");
        let back = protobuf::decode(&bytes(written).await).expect("protobuf");
        assert_eq!((&back["metadata"]["name"], &back["data"]), (&map["metadata"]["name"], &map["data"]));

        let text = answer(respond::text(StatusCode::OK, "ok"), false).await.expect("answered");
        assert_eq!(bytes(text).await, "ok");
        let custom = json!({ "apiVersion": "example.com/v1", "kind": "Toy" });
        let refused = answer(respond::json(StatusCode::OK, &custom), false).await.expect_err("no message");
        assert!(refused.message.contains("Toy"), "{}", refused.message);
    }

    /// Pieces of a body end anywhere.
    #[tokio::test]
    async fn events_are_framed_whatever_their_pieces() {
        let event = |kind: &str, name: &str| {
            let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
            (
                json!({ "type": kind, "object": object }).to_string() + "\n",
                protobuf::encode(&object).expect("protobuf"),
            )
        };
        let (first, second, third) = (event("ADDED", "a"), event("MODIFIED", "b"), event("DELETED", "c"));
        let (text, wanted) = (
            [first.0, second.0, third.0].concat(),
            [
                protobuf::watch_frame("ADDED", &first.1),
                protobuf::watch_frame("MODIFIED", &second.1),
                protobuf::watch_frame("DELETED", &third.1),
            ]
            .concat(),
        );
        for size in [1, 7, 100, 10_000] {
            let pieces: Vec<_> = text
                .as_bytes()
                .chunks(size)
                .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
                .collect();
            let body = events(Body::from_stream(futures::stream::iter(pieces)));
            assert_eq!(body.collect().await.expect("the body").to_bytes(), wanted, "pieces of {size}");
        }
    }
}
