//! Request bodies in protobuf, as kubectl and client-go send them for built-in kinds
//! (apimachinery `runtime/serializer/protobuf`): four magic bytes, an envelope with apiVersion and
//! kind, and the kind's own message. They are turned into JSON and take the common way from there;
//! answers are always JSON, which every such client accepts.

mod table;
mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use table::{Kind, Message, Table};
use wire::{Field, Reader};

const MAGIC: &[u8] = b"k8s\0";
/// Deeper bodies are refused; upstream's types are about 15 deep.
const MAX_DEPTH: usize = 64;

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not begin as Kubernetes' protobuf does.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// Only uncompressed bodies are understood.
    #[error("content encoding {0:?} is not supported")]
    Encoding(String),
    /// A kind that is not built in.
    #[error("no protobuf encoding is known for {0}")]
    UnknownKind(String),
    /// Damaged, or not what the kind's message looks like.
    #[error("malformed protobuf: {0}")]
    Malformed(&'static str),
}

/// Whether a body of that type is protobuf.
pub fn is_protobuf(content_type: &str) -> bool {
    content_type.split(';').next().unwrap_or_default().trim() == "application/vnd.kubernetes.protobuf"
}

/// The JSON object that the body says.
///
/// # Errors
/// See [`ProtobufError`].
pub fn decode(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut envelope = Reader::new(bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, field)) = envelope.next()? {
        match (number, field) {
            (1, Field::Bytes(meta)) => {
                let mut meta = Reader::new(meta);
                while let Some((number, field)) = meta.next()? {
                    match number {
                        1 => api_version = field.text()?,
                        2 => kind = field.text()?,
                        _ => {}
                    }
                }
            }
            (2, Field::Bytes(bytes)) => raw = bytes,
            (3, field) => match field.text()? {
                encoding if encoding.is_empty() => {}
                encoding => return Err(ProtobufError::Encoding(encoding)),
            },
            _ => {}
        }
    }
    let table = Table::get();
    let (group, version) = crate::object::split_api_version(&api_version);
    let message = table.kind(group, version, &kind);
    let message = message.ok_or_else(|| ProtobufError::UnknownKind(format!("{api_version}, Kind={kind}")))?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), Value::from(api_version));
    object.insert("kind".to_owned(), Value::from(kind));
    read_message(table, message, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn read_message(
    table: &Table,
    message: &Message,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed("nested too deeply"));
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, field)) = reader.next()? {
        // A field of a newer version is skipped, as protobuf demands.
        let Some(known) = message.field(number) else { continue };
        if known.name == "*" {
            let Kind::Message(name) = known.kind else { continue };
            let Some(inline) = table.message(name) else { continue };
            read_message(table, inline, field.bytes()?, object, depth + 1)?;
            continue;
        }
        if known.is_map {
            let (key, value) = map_entry(table, known.kind, field.bytes()?, depth)?;
            let entry = object.entry(known.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = entry {
                map.insert(key, value);
            }
        } else if known.is_repeated {
            let value = read_value(table, known.kind, &field, depth)?;
            let entry = object.entry(known.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = entry {
                list.push(value);
            }
        } else {
            let value = read_value(table, known.kind, &field, depth)?;
            // Go sends every field of a struct, set or not; "unset" is an empty string or a zero time.
            if !value.is_null() && value.as_str() != Some("") {
                object.insert(known.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn map_entry(
    table: &Table,
    kind: Kind,
    bytes: &[u8],
    depth: usize,
) -> Result<(String, Value), ProtobufError> {
    let mut reader = Reader::new(bytes);
    let (mut key, mut value) = (String::new(), None);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => key = field.text()?,
            2 => value = Some(read_value(table, kind, &field, depth)?),
            _ => {}
        }
    }
    Ok((key, value.unwrap_or_else(|| Value::from(""))))
}

fn read_value(table: &Table, kind: Kind, field: &Field<'_>, depth: usize) -> Result<Value, ProtobufError> {
    Ok(match kind {
        Kind::String => field.text()?.into(),
        Kind::Bytes => STANDARD.encode(field.bytes()?).into(),
        Kind::Integer => field.integer()?.into(),
        Kind::Bool => (field.integer()? != 0).into(),
        Kind::Double => field.double()?.into(),
        Kind::Message(name) => {
            if let Some(value) = special(name, field.bytes()?)? {
                return Ok(value);
            }
            let message = table.message(name).ok_or(ProtobufError::Malformed("unknown message"))?;
            let mut object = Map::new();
            read_message(table, message, field.bytes()?, &mut object, depth + 1)?;
            // Named lists of strings (ExtraValue) are messages here and plain lists in JSON.
            if name.ends_with(".ExtraValue") {
                return Ok(object.remove("items").unwrap_or_else(|| Value::Array(Vec::new())));
            }
            Value::Object(object)
        }
    })
}

/// Types with a form of their own in JSON.
fn special(name: &str, bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    let last = name.rsplit('.').next().unwrap_or(name).trim_start_matches(['+', '~', '^']);
    let first_bytes = || -> Result<Vec<u8>, ProtobufError> {
        let mut reader = Reader::new(bytes);
        while let Some((number, field)) = reader.next()? {
            if number == 1 {
                return Ok(field.bytes()?.to_vec());
            }
        }
        Ok(Vec::new())
    };
    Ok(Some(match last {
        "Quantity" => String::from_utf8(first_bytes()?)
            .map_err(|_| ProtobufError::Malformed("text is not UTF-8"))?
            .into(),
        "RawExtension" | "FieldsV1" | "JSON" => {
            let raw = first_bytes()?;
            if raw.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&raw).map_err(|_| ProtobufError::Malformed("embedded JSON"))?
            }
        }
        "IntOrString" => {
            let (mut kind, mut number, mut text) = (0, 0, String::new());
            let mut reader = Reader::new(bytes);
            while let Some((field_number, field)) = reader.next()? {
                match field_number {
                    1 => kind = field.integer()?,
                    2 => number = field.integer()?,
                    3 => text = field.text()?,
                    _ => {}
                }
            }
            if kind == 1 { text.into() } else { number.into() }
        }
        "Time" | "MicroTime" | "Timestamp" => {
            let (mut seconds, mut nanos) = (0, 0);
            let mut reader = Reader::new(bytes);
            while let Some((number, field)) = reader.next()? {
                match number {
                    1 => seconds = field.integer()?,
                    2 => nanos = field.integer()?,
                    _ => {}
                }
            }
            if bytes.is_empty() {
                return Ok(Some(Value::Null));
            }
            let nanos = i32::try_from(nanos).map_err(|_| ProtobufError::Malformed("time"))?;
            let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed("time"))?;
            if last == "MicroTime" {
                crate::object::format_micro_time(time)
            } else {
                crate::object::format_time(time)
            }
            .into()
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
        out.extend_from_slice(bytes);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_becomes_json() {
        let entry = [field(1, b"key"), field(2, b"value")].concat();
        let metadata = [field(1, b"name"), field(3, b"ns"), field(8, b"")].concat();
        let raw = [field(1, &metadata), field(2, &entry), vec![4 << 3, 1]].concat();
        assert_eq!(
            decode(&body("v1", "ConfigMap", &raw)),
            Ok(json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "name", "namespace": "ns" },
                "data": { "key": "value" }, "immutable": true,
            }))
        );
    }

    #[test]
    fn inline_messages_and_special_types_follow_gos_json() {
        // Volume { name: "v", volumeSource: { configMap: { localObjectReference: { name: "m" } } } }
        let source = field(19, &field(1, &field(1, b"m")));
        let mut source_19 = source;
        // Field 19 takes two bytes of tag.
        source_19.splice(0..1, [0x9a, 0x01]);
        let volume = [field(1, b"v"), field(2, &source_19)].concat();
        let spec = field(1, &volume);
        let pod = decode(&body("v1", "Pod", &field(2, &spec))).expect("decoded");
        assert_eq!(pod["spec"]["volumes"], json!([{ "name": "v", "configMap": { "name": "m" } }]));
        // DeploymentStrategy { rollingUpdate { maxUnavailable: "25%", maxSurge: 1 } }
        let percent = [vec![1 << 3, 1], field(3, b"25%")].concat();
        let rolling = [field(1, &percent), field(2, &[2 << 3, 1])].concat();
        let strategy = field(4, &field(2, &rolling));
        let deployment = decode(&body("apps/v1", "Deployment", &field(2, &strategy))).expect("decoded");
        assert_eq!(
            deployment["spec"]["strategy"]["rollingUpdate"],
            json!({ "maxUnavailable": "25%", "maxSurge": 1 })
        );
    }

    #[test]
    fn hostile_bodies_are_errors() {
        let good = body("v1", "ConfigMap", &field(1, &field(1, b"name")));
        assert_eq!(decode(b"{}"), Err(ProtobufError::NoMagic));
        for cut in 5..good.len() {
            let _ = decode(&good[..cut]);
        }
        assert!(matches!(decode(&body("v1", "Nothing", b"")), Err(ProtobufError::UnknownKind(_))));
        assert!(
            decode(&body("v1", "ConfigMap", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])).is_err(),
            "a length beyond the end"
        );
        assert!(decode(&body("v1", "ConfigMap", &[0xff; 12])).is_err(), "a number that never ends");
        let wrong = decode(&body("v1", "ConfigMap", &[1 << 3, 7]));
        assert!(wrong.is_err(), "metadata is no number: {wrong:?}");
    }
}
