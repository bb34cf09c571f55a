//! The OpenAPI v2 document in the protobuf form that kubectl asks for: the message `openapi.v2.Document`
//! of gnostic (`openapiv2/OpenAPIv2.proto`), whose field numbers stand here beside the keys of the JSON
//! form that they carry.

use serde_json::{Map, Value};

/// One message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// A text, unless the value is none; an empty one is the default and is not written.
    fn text(&mut self, field: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str)
            && !text.is_empty()
        {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u32, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    /// A map as name and value pairs, each a message of its own.
    fn pairs(&mut self, field: u32, value: Option<&Value>, write: impl Fn(&Value) -> Self) {
        for (name, value) in value.and_then(Value::as_object).into_iter().flatten() {
            self.named(field, name, &write(value));
        }
    }

    fn named(&mut self, field: u32, name: &str, value: &Self) {
        let mut pair = Self::default();
        pair.bytes(1, name.as_bytes());
        pair.message(2, value);
        self.message(field, &pair);
    }

    /// `x-*`, which every object may have.
    fn extensions(&mut self, field: u32, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                self.named(field, name, &any(value));
            }
        }
    }
}

/// A message with another in one of its fields.
fn wrapped(field: u32, inner: &Message) -> Message {
    let mut outer = Message::default();
    outer.message(field, inner);
    outer
}

/// `Document`
pub(crate) fn document(value: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, value.get("swagger"));
    if let Some(info) = value.get("info") {
        let mut inner = Message::default();
        inner.text(1, info.get("title"));
        inner.text(2, info.get("version"));
        message.message(2, &inner);
    }
    if let Some(paths) = value.get("paths") {
        let mut inner = Message::default();
        inner.pairs(2, Some(paths), path_item);
        message.message(8, &inner);
    }
    if let Some(definitions) = value.get("definitions") {
        let mut inner = Message::default();
        inner.pairs(1, Some(definitions), schema);
        message.message(9, &inner);
    }
    message.0
}

fn path_item(value: &Value) -> Message {
    let mut message = Message::default();
    let methods =
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")];
    for (field, method) in methods {
        if let Some(value) = value.get(method) {
            message.message(field, &operation(value));
        }
    }
    parameters(&mut message, 9, value);
    message.extensions(10, value);
    message
}

fn operation(value: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, value.get("tags"));
    message.text(3, value.get("description"));
    message.text(5, value.get("operationId"));
    message.texts(6, value.get("produces"));
    message.texts(7, value.get("consumes"));
    parameters(&mut message, 8, value);
    if let Some(responses) = value.get("responses") {
        let mut inner = Message::default();
        // `ResponseValue` is a `Response` or a reference.
        inner.pairs(1, Some(responses), |value| wrapped(1, &response(value)));
        message.message(9, &inner);
    }
    message.extensions(13, value);
    message
}

fn response(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, value.get("description"));
    if let Some(value) = value.get("schema") {
        // `SchemaItem` is a schema or a file's.
        message.message(2, &wrapped(1, &schema(value)));
    }
    message
}

fn parameters(message: &mut Message, field: u32, value: &Value) {
    for parameter in value.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        // `ParametersItem` is a `Parameter` or a reference.
        message.message(field, &wrapped(1, &self::parameter(parameter)));
    }
}

fn parameter(value: &Value) -> Message {
    let mut message = Message::default();
    if value["in"] == "body" {
        message.text(1, value.get("description"));
        message.text(2, value.get("name"));
        message.text(3, value.get("in"));
        message.flag(4, value.get("required"));
        if let Some(value) = value.get("schema") {
            message.message(5, &schema(value));
        }
        return wrapped(1, &message);
    }
    message.flag(1, value.get("required"));
    message.text(2, value.get("in"));
    message.text(3, value.get("description"));
    message.text(4, value.get("name"));
    // A parameter in the query can be empty, so its further fields have other numbers.
    let in_path = value["in"] == "path";
    let (kind, unique) = if in_path { (5, 19) } else { (6, 20) };
    message.text(kind, value.get("type"));
    message.flag(unique, value.get("uniqueItems"));
    wrapped(2, &wrapped(if in_path { 4 } else { 3 }, &message))
}

fn schema(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, value.get("$ref"));
    message.text(2, value.get("format"));
    message.text(4, value.get("description"));
    if let Some(value) = value.get("default") {
        message.message(5, &any(value));
    }
    message.texts(19, value.get("required"));
    for value in value.get("enum").and_then(Value::as_array).into_iter().flatten() {
        message.message(20, &any(value));
    }
    match value.get("additionalProperties") {
        Some(flag @ Value::Bool(_)) => {
            let mut inner = Message::default();
            inner.flag(2, Some(flag));
            message.message(21, &inner);
        }
        Some(value) => message.message(21, &wrapped(1, &schema(value))),
        None => {}
    }
    match value.get("type") {
        Some(Value::String(kind)) => {
            let mut inner = Message::default();
            inner.bytes(1, kind.as_bytes());
            message.message(22, &inner);
        }
        Some(kinds @ Value::Array(_)) => {
            let mut inner = Message::default();
            inner.texts(1, Some(kinds));
            message.message(22, &inner);
        }
        _ => {}
    }
    if let Some(value) = value.get("items") {
        message.message(23, &wrapped(1, &schema(value)));
    }
    if value.get("properties").is_some() {
        let mut inner = Message::default();
        inner.pairs(1, value.get("properties"), schema);
        message.message(25, &inner);
    }
    message.extensions(31, value);
    message
}

/// `Any`: a value as YAML, in block style and with sorted keys as gnostic writes it.
fn any(value: &Value) -> Message {
    let mut text = String::new();
    yaml(&mut text, value, 0);
    let mut message = Message::default();
    message.bytes(2, text.as_bytes());
    message
}

fn yaml(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                indent(text, depth, at > 0);
                text.push_str("- ");
                yaml(text, item, depth + 1);
            }
        }
        Value::Object(fields) if !fields.is_empty() => yaml_fields(text, fields, depth),
        // What JSON writes on one line is YAML.
        Value::String(word) if is_plain(word) => {
            text.push_str(word);
            text.push('\n');
        }
        other => {
            text.push_str(&other.to_string());
            text.push('\n');
        }
    }
}

fn yaml_fields(text: &mut String, fields: &Map<String, Value>, depth: usize) {
    for (at, (name, value)) in fields.iter().enumerate() {
        indent(text, depth, at > 0);
        text.push_str(&if is_plain(name) { name.clone() } else { Value::String(name.clone()).to_string() });
        text.push(':');
        let nested = match value {
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => false,
        };
        if nested {
            text.push('\n');
            indent(text, depth + 1, true);
            yaml(text, value, depth + 1);
        } else {
            text.push(' ');
            yaml(text, value, depth);
        }
    }
}

/// The first entry of a block stands where the line already is.
fn indent(text: &mut String, depth: usize, wanted: bool) {
    if wanted {
        text.extend(std::iter::repeat_n("  ", depth));
    }
}

/// Whether a word needs no quotes. That it is no number, date or other word of YAML's own is seen
/// by its letters: what is doubtful is quoted.
fn is_plain(word: &str) -> bool {
    const WORDS: [&str; 11] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '-' | '_' | '+'))
        && !WORDS.contains(&word.to_ascii_lowercase().as_str())
}

#[cfg(test)]
#[path = "proto_tests.rs"]
mod tests;
