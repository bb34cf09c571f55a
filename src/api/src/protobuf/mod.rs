//! Request bodies in `application/vnd.kubernetes.protobuf`, as kubectl and
//! client-go send them, turned into the JSON objects the rest of the crate works
//! on, and answers turned into protobuf for the clients that accept nothing else.
//!
//! A body is the four bytes `k8s\0` and apimachinery's `runtime.Unknown`: an
//! apiVersion and a kind, and the bytes of the object in its own message. The
//! layout of those messages is `data/protobuf.txt`; field numbers not in it are
//! skipped, as protobuf demands. The result is what Go would marshal to JSON from
//! the decoded struct, except that fields Go would write as `null` are left out.
//! Pure functions: no I/O, and memory bounded by the size of the body.

mod decode;
mod encode;
mod table;
#[cfg(test)]
mod tests;

use serde_json::Value;

/// The media type of a protobuf body.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// A body that is not a protobuf object of a known kind. All of these are the
/// client's mistake (400).
#[derive(Debug, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix k8s\\0")]
    Prefix,
    #[error("unexpected end of the protobuf data")]
    Truncated,
    #[error("a protobuf varint is longer than 64 bits")]
    Varint,
    /// A field number out of range, or a wire type that is not in use.
    #[error("illegal protobuf tag {0}")]
    Tag(u64),
    #[error("wrong protobuf wire type for field {field}")]
    WireType { field: &'static str },
    #[error("protobuf messages are nested too deeply")]
    TooDeep,
    #[error("the protobuf data holds too many values")]
    TooMany,
    #[error("invalid value for field {field}: {what}")]
    Value { field: &'static str, what: &'static str },
    #[error("field {field} does not hold JSON")]
    Json {
        field: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("unsupported content encoding {0:?} inside the protobuf data")]
    Encoding(String),
    #[error("unsupported content type {0:?} inside the protobuf data")]
    ContentType(String),
    #[error("Object 'Kind' is missing in the protobuf data")]
    MissingKind,
    #[error("Object 'apiVersion' is missing in the protobuf data")]
    MissingVersion,
    #[error("no kind {kind:?} is registered for version {api_version:?} in protobuf")]
    UnknownKind { api_version: String, kind: String },
}

/// Whether a Content-Type header names protobuf, whatever its parameters.
pub fn is_protobuf(content_type: &str) -> bool {
    let media = content_type.split_once(';').map_or(content_type, |(media, _)| media);
    media.trim().eq_ignore_ascii_case(CONTENT_TYPE)
}

/// The JSON object in a protobuf body, with `apiVersion` and `kind` of its envelope.
pub fn decode(bytes: &[u8]) -> Result<Value, ProtobufError> {
    decode::body(table::Table::get(), bytes)
}

/// A JSON object, a list or a Status as a protobuf body with its envelope. Fields that
/// the kind's message does not have are left out.
///
/// # Errors
/// When the kind has no message (a custom resource, a Table), or a value is not of its field's type.
pub fn encode(object: &Value) -> Result<Vec<u8>, ProtobufError> {
    encode::body(table::Table::get(), object)
}

/// Whether [`encode`] has a message for this kind or, for a list, for its elements.
pub fn has_message(api_version: &str, kind: &str) -> bool {
    encode::knows(table::Table::get(), api_version, kind)
}

/// A watch's event around an object that [`encode`] made: `metav1.WatchEvent` with its
/// length in four bytes before it, as streams of the content type have it.
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let event = encode::event(kind, object);
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [length.to_be_bytes().as_slice(), &event].concat()
}
