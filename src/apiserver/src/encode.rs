//! Writes an object's final JSON and says where the store puts the revision in, so that no reader
//! ever has to touch the bytes again.

use bytes::Bytes;
use serde_json::{Map, Value};

/// The JSON of `object` without a resource version, and the offset where its digits belong.
pub(crate) fn encode(object: &Value) -> kedge_store::Value {
    let mut out = Vec::with_capacity(1024);
    let mut splice = None;
    match object {
        Value::Object(map) => {
            out.push(b'{');
            for (index, (key, value)) in map.iter().enumerate() {
                separate(&mut out, index);
                name(&mut out, key);
                match value {
                    Value::Object(metadata) if key == "metadata" => {
                        splice = Some(write_metadata(&mut out, metadata));
                    }
                    _ => write(&mut out, value),
                }
            }
            out.push(b'}');
        }
        other => write(&mut out, other),
    }
    kedge_store::Value { bytes: out.into(), splice }
}

/// What the store will hold after it has put `revision` in.
pub(crate) fn spliced(value: &kedge_store::Value, revision: u64) -> Bytes {
    match value.splice {
        Some(at) => {
            let (head, tail) = value.bytes.split_at(at as usize);
            [head, revision.to_string().as_bytes(), tail].concat().into()
        }
        None => value.bytes.clone(),
    }
}

/// Whether [`spliced`] gives these bytes.
pub(crate) fn is_spliced(value: &kedge_store::Value, revision: u64, bytes: &[u8]) -> bool {
    match value.splice {
        Some(at) => {
            let (head, tail) = value.bytes.split_at(at as usize);
            let rest = bytes.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail));
            rest.is_some_and(|digits| digits == revision.to_string().as_bytes())
        }
        None => value.bytes == bytes,
    }
}

fn write_metadata(out: &mut Vec<u8>, metadata: &Map<String, Value>) -> u32 {
    out.push(b'{');
    let mut splice = None;
    let mut index = 0;
    for (key, value) in metadata {
        if key == "resourceVersion" {
            continue;
        }
        if splice.is_none() && key.as_str() > "resourceVersion" {
            separate(out, index);
            index += 1;
            splice = Some(write_version(out));
        }
        separate(out, index);
        index += 1;
        name(out, key);
        write(out, value);
    }
    let splice = splice.unwrap_or_else(|| {
        separate(out, index);
        write_version(out)
    });
    out.push(b'}');
    splice
}

fn write_version(out: &mut Vec<u8>) -> u32 {
    out.extend_from_slice(b"\"resourceVersion\":\"");
    let at = out.len();
    out.push(b'"');
    // An object's size is bounded far below 4 GiB.
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn separate(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}

fn name(out: &mut Vec<u8>, key: &str) {
    write(out, key);
    out.push(b':');
}

fn write(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    // A Value has string keys only and a Vec takes every byte: there is nothing to fail.
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        tracing::error!(%error, "JSON value could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_revision_lands_in_metadata_wherever_the_text_appears_elsewhere() {
        for object in [
            json!({"metadata": {"name": "a", "uid": "u", "annotations": {"x": "\"resourceVersion\":\"\""}}}),
            json!({"involvedObject": {"resourceVersion": ""}, "metadata": {"name": "a", "resourceVersion": "99"}}),
            json!({"metadata": {"annotations": {}}, "spec": {"metadata": {"resourceVersion": "5"}}}),
            json!({"metadata": {}}),
        ] {
            let value = encode(&object);
            let bytes = spliced(&value, 42);
            assert!(is_spliced(&value, 42, &bytes));
            assert!(!is_spliced(&value, 43, &bytes) && !is_spliced(&value, 420, &bytes));
            assert!(!is_spliced(&value, 42, &bytes[1..]) && !is_spliced(&value, 42, b""));
            let mut wanted = object.clone();
            wanted["metadata"]["resourceVersion"] = json!("42");
            assert_eq!(serde_json::from_slice::<Value>(&bytes).expect("JSON"), wanted);
        }
    }
}
