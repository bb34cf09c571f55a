//! Answers: JSON objects, errors as `metav1.Status`, and what the client accepts.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use kedge_api::status::Status;
use serde_json::Value;

/// How a client wants objects to be shown (`Accept` with `as=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Table,
    /// `PartialObjectMetadata` and its list.
    Metadata,
}

/// Whether YAML or protobuf is to be answered instead of JSON, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) form: Form,
    pub(crate) yaml: bool,
    /// Answers are written as JSON, and turned into protobuf at the end.
    pub(crate) protobuf: bool,
    /// Tables and bare metadata as `meta.k8s.io/v1beta1`, which is the same but for its name.
    pub(crate) beta: bool,
}

impl Accepted {
    /// Plain JSON.
    pub(crate) const JSON: Self = Self { form: Form::Object, yaml: false, protobuf: false, beta: false };
}

/// The first media type of `Accept` that can be answered; 406 when there is none. Protobuf, which not every
/// kind has, is the last resort.
pub(crate) fn negotiate(headers: &HeaderMap) -> Result<Accepted, Status> {
    let mut protobuf = None;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    for media in accept.split(',') {
        let mut parts = media.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let get = |key: &str| parameters.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let is_protobuf = kind == kedge_api::protobuf::CONTENT_TYPE;
        let yaml = match kind {
            "application/json" | "application/*" | "*/*" | "" => false,
            "application/yaml" => true,
            _ if is_protobuf => false,
            _ => continue,
        };
        // Protobuf and YAML of the older version nobody asks for.
        let is_beta = get("v") == Some("v1beta1") && !is_protobuf && !yaml;
        let has_version = get("v") == Some("v1") || is_beta;
        let form = match (get("as"), get("g")) {
            (None, _) => Form::Object,
            (Some("Table"), Some("meta.k8s.io")) if has_version => Form::Table,
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io"))
                if has_version =>
            {
                Form::Metadata
            }
            _ => continue,
        };
        let accepted = Accepted { form, yaml, protobuf: is_protobuf, beta: form != Form::Object && is_beta };
        if !is_protobuf {
            return Ok(accepted);
        }
        // A table has no message.
        if form != Form::Table {
            protobuf = protobuf.or(Some(accepted));
        }
    }
    protobuf.ok_or_else(|| {
        Status::not_acceptable(&["application/json", "application/yaml", kedge_api::protobuf::CONTENT_TYPE])
    })
}

/// An answer of `meta.k8s.io/v1` under the name of its older version.
pub(crate) async fn as_beta(response: Response<Body>, is_watch: bool) -> Result<Response<Body>, Status> {
    const NEW: &str = r#""apiVersion":"meta.k8s.io/v1""#;
    const OLD: &str = r#""apiVersion":"meta.k8s.io/v1beta1""#;
    // Within a string the quotes would be escaped.
    let renamed = |bytes: Bytes| match std::str::from_utf8(&bytes) {
        Ok(text) => Bytes::from(text.replace(NEW, OLD)),
        Err(_) => bytes,
    };
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    if is_watch {
        use futures::StreamExt as _;
        let lines = body.into_data_stream().map(move |chunk| chunk.map(renamed));
        return Ok(Response::from_parts(parts, Body::from_stream(lines)));
    }
    let bytes = axum::body::to_bytes(body, usize::MAX).await;
    let bytes = bytes.map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::from_parts(parts, Body::from(renamed(bytes))))
}

/// Bytes that already are JSON.
pub(crate) fn json_bytes(code: StatusCode, bytes: Bytes) -> Response<Body> {
    json_body(code, Body::from(bytes))
}

/// A body that is JSON.
pub(crate) fn json_body(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A value as JSON.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, value.to_string().into())
}

/// JSON bytes in the format that was negotiated.
pub(crate) fn object(code: StatusCode, bytes: Bytes, accepted: Accepted) -> Response<Body> {
    if !accepted.yaml {
        return json_bytes(code, bytes);
    }
    let text = serde_json::from_slice::<Value>(&bytes)
        .map_err(|error| error.to_string())
        .and_then(|value| serde_saphyr::to_string(&value).map_err(|error| error.to_string()));
    match text {
        Ok(text) => {
            let mut response = json_bytes(code, text.into());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
            response
        }
        Err(error) => status(&Status::internal(format!("object cannot be written as YAML: {error}"))),
    }
}

/// An error.
pub(crate) fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_value());
    let retry = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, retry.into());
    }
    response
}

/// Plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// Warnings travel in headers (KEP-1693); quotes are escaped, control characters dropped.
pub(crate) fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let safe: String = warning.chars().filter(|c| !c.is_control()).flat_map(escape).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{safe}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

fn escape(c: char) -> impl Iterator<Item = char> {
    let escaped = matches!(c, '"' | '\\');
    escaped.then_some('\\').into_iter().chain(std::iter::once(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &'static str) -> Result<Accepted, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(text));
        negotiate(&headers)
    }

    #[test]
    fn the_first_form_that_is_known_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(kubectl).expect("accepted").form, Form::Table);
        let client_go = "application/vnd.kubernetes.protobuf, application/json";
        assert_eq!(accept(client_go).expect("accepted").form, Form::Object);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(accept(metadata).expect("accepted").form, Form::Metadata);
        assert!(accept("application/yaml").expect("accepted").yaml);
    }

    #[test]
    fn protobuf_is_for_those_who_take_nothing_else() {
        for (text, protobuf) in [
            ("application/vnd.kubernetes.protobuf", true),
            ("application/vnd.kubernetes.protobuf;stream=watch", true),
            ("application/vnd.kubernetes.protobuf,application/json", false),
            ("application/vnd.kubernetes.protobuf, */*", false),
            ("application/cbor,application/vnd.kubernetes.protobuf", true),
            ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", true),
        ] {
            assert_eq!(accept(text).expect("accepted").protobuf, protobuf, "{text}");
        }
        for text in ["application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", "application/cbor"] {
            assert_eq!(accept(text).expect_err("406").code, 406, "{text}");
        }
    }
}
