//! What fuzz/ calls: what this crate reads from requests and from kubelets.

use std::io::Cursor;

use bytes::Bytes;
use futures::executor::block_on;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::request::{Query, RequestInfo};
use crate::{authn, body, encode, extract, respond, token, verbs};

pub use crate::stream::fuzz::{session, session_seeds, spdy, websocket};

/// A request's line and headers: `METHOD URI`, then a header a line.
pub fn request(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    if let Some((method, uri)) = first.split_once(' ')
        && let (Ok(method), Ok(uri)) = (method.parse::<Method>(), uri.parse::<Uri>())
    {
        let query = Query::parse(&uri);
        let info = RequestInfo::parse(&method, &uri, &query);
        assert!(!info.is_resource || !info.resource.is_empty());
        assert!(info.name.len() + info.namespace.len() <= uri.path().len() * 3);
        let _ = query.flag("watch");
        if let Some(token) = query.get("continue") {
            verbs::read::fuzz_continue(token);
        }
    }
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]))
        {
            headers.append(name, value);
        }
    }
    let _ = respond::negotiate(&headers);
    let _ = authn::impersonation(&headers);
    for subresource in ["exec", "portforward"] {
        let _ = crate::stream::way(subresource, &Method::GET, &headers);
    }
    crate::stream::without_token(&mut headers);
}

/// A body in YAML.
pub fn yaml(data: &[u8]) {
    let Ok(text) = body::json_text("application/yaml", &Bytes::copy_from_slice(data)) else { return };
    // What is nested too deeply is refused when it is read as JSON.
    let _ = serde_json::from_slice::<serde_json::Value>(&text);
}

/// A body in JSON: how it is stored, and what selectors see of it.
pub fn json(data: &[u8]) {
    let resources = kedge_api::registry::Registry::builtin();
    let paths = extract::Paths::new(&resources.find("", "v1", "pods").expect("pods are built in").selectable);
    let _ = paths.extract(data);
    let Ok(value) = body::value("application/json", data) else { return };
    let _ = body::json_text("application/json", &Bytes::copy_from_slice(data));
    let stored = encode::encode(&value);
    let spliced = encode::spliced(&stored, 7);
    let read: serde_json::Value = serde_json::from_slice(&spliced).expect("JSON");
    if value.get("metadata").is_some_and(serde_json::Value::is_object) {
        let mut expected = value;
        expected["metadata"]["resourceVersion"] = "7".into();
        // A float may lose its last digit when it is read.
        let expected: serde_json::Value = serde_json::from_str(&expected.to_string()).expect("JSON");
        assert_eq!(read.to_string(), expected.to_string());
    }
    let _ = paths.extract(&spliced);
}

/// ServiceAccount tokens and client certificates.
pub fn credentials(data: &[u8]) {
    thread_local! {
        static TOKENS: token::Tokens = tokens();
    }
    let text = String::from_utf8_lossy(data);
    TOKENS.with(|tokens| {
        let _ = tokens.verify(&text);
        let _ = tokens.verify(&format!("eyJhbGciOiJFUzI1NiJ9.{text}"));
    });
    let _ = authn::from_certificate(&data.into());
}

fn tokens() -> token::Tokens {
    use base64::Engine as _;
    let random = ring::rand::SystemRandom::new();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
    let text = base64::engine::general_purpose::STANDARD.encode(key.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    token::Tokens::new("https://kubernetes.default.svc".into(), &pem).expect("a key")
}

/// A connection that gives these bytes and takes any.
pub(crate) fn connection(data: &[u8]) -> tokio::io::Join<Cursor<Vec<u8>>, tokio::io::Sink> {
    tokio::io::join(Cursor::new(data.to_vec()), tokio::io::sink())
}

pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    block_on(future)
}
