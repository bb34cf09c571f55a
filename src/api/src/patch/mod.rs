//! The three client-side patches: JSON patch (RFC 6902), merge patch (RFC 7396)
//! and Kubernetes' strategic merge patch.

mod outcome;
mod present;
mod strategic;

use json_patch::PatchOperation;
use serde_json::Value;

use crate::object::{self, MAX_NESTING};
use crate::schema::SchemaRef;
use crate::status::Status;

pub use outcome::Checked;
pub(crate) use outcome::conversion;
pub use strategic::strategic_merge_patch;

/// More operations than this are refused, as upstream.
const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;
/// Patches nested deeper than this are refused.
const MAX_DEPTH: usize = MAX_NESTING;

/// What all copies of a JSON patch may add together, in bytes of JSON, as upstream (`JSONPatchMaxCopyBytes`):
/// copies of copies double each time.
const MAX_COPIED: usize = 3 << 20;

/// Applies a JSON patch.
pub fn json_patch(current: &Value, patch: &[u8]) -> Result<Value, Status> {
    patched(current, patch)?.map_err(|path| unprocessable(&format!("testing value {path} failed")))
}

/// Applies a JSON patch to an object of that type; a built-in one has the empty structs that Go writes.
pub fn json_patch_of(schema: &SchemaRef, current: &Value, patch: &[u8]) -> Result<Value, Status> {
    if !schema.set().is_builtin() {
        return json_patch(current, patch);
    }
    let mut full = current.clone();
    present::fill(schema, &mut full);
    let mut out = json_patch(&full, patch)?;
    present::strip(schema, &mut out, current);
    Ok(out)
}

/// Applies a JSON patch; `None` when one of its tests fails.
pub fn json_patch_if(current: &Value, patch: &[u8]) -> Result<Option<Value>, Status> {
    patched(current, patch).map(Result::ok)
}

/// The keys of a JSON patch's operations that no operation has, named as fields that are not known.
pub fn unknown_in_operations(patch: &Value) -> Vec<String> {
    let fields = patch.as_array().into_iter().flatten().enumerate().flat_map(|(index, operation)| {
        operation.as_object().into_iter().flatten().map(move |(name, _)| (index, name))
    });
    fields
        .filter(|(_, name)| !matches!(name.as_str(), "op" | "path" | "from" | "value"))
        .take(crate::decode::MAX_STRICT_ERRORS)
        .map(|(index, name)| format!("unknown field {:?}", format!("[{index}].{name}")))
        .collect()
}

/// The inner error is the path of a test that failed.
fn patched(current: &Value, patch: &[u8]) -> Result<Result<Value, String>, Status> {
    let operations: Vec<PatchOperation> = serde_json::from_slice(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(Status::request_entity_too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut out = current.clone();
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        check_growth(&out, operation, &mut copied).map_err(|what| unprocessable(&what))?;
        if let Err(e) = json_patch::patch(&mut out, std::slice::from_ref(operation)) {
            if matches!(operation, PatchOperation::Test(_)) {
                return Ok(Err(e.path.to_string()));
            }
            return Err(unprocessable(&format!("operation {index} at {}: {}", e.path, e.kind)));
        }
    }
    Ok(Ok(out))
}

/// A patch that does not fit the object, as upstream answers.
fn unprocessable(what: &str) -> Status {
    Status::plain(
        422,
        "Invalid",
        format!("the server rejected our request due to an error in our request: {what}"),
    )
}

/// Short patches can make large and deep objects by copying what they have made. It is refused before it is made:
/// even to throw away an object of a million levels takes a stack that no thread has.
fn check_growth(current: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), String> {
    let (path, value) = match operation {
        PatchOperation::Add(op) => (&op.path, Some(&op.value)),
        PatchOperation::Replace(op) => (&op.path, Some(&op.value)),
        // Upwards nothing gets deeper.
        PatchOperation::Move(op) if op.path.count() <= op.from.count() => return Ok(()),
        PatchOperation::Move(op) => (&op.path, op.from.resolve(current).ok()),
        PatchOperation::Copy(op) => {
            let value = op.from.resolve(current).ok();
            *copied += value.map_or(0, |value| value.to_string().len());
            if *copied > MAX_COPIED {
                return Err(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                ));
            }
            (&op.path, value)
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    if value.is_some_and(|value| object::nests_deeper_than(value, MAX_NESTING.saturating_sub(path.count()))) {
        return Err(format!("the object would be nested more than {MAX_NESTING} levels deep"));
    }
    Ok(())
}

/// Applies a merge patch.
pub fn merge_patch(current: &Value, patch: &Value) -> Result<Value, Status> {
    let mut out = current.clone();
    merge_into(&mut out, patch, 0)?;
    Ok(out)
}

fn merge_into(target: &mut Value, patch: &Value, depth: usize) -> Result<(), Status> {
    if depth > MAX_DEPTH {
        return Err(Status::bad_request("patch is nested too deeply"));
    }
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(map) = target else { return Ok(()) };
    for (key, change) in changes {
        if change.is_null() {
            map.remove(key);
        } else {
            merge_into(map.entry(key.as_str()).or_insert(Value::Null), change, depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patches() {
        let v = json!({"a": 1, "l": [1, 2]});
        let ok = json_patch(
            &v,
            br#"[{"op":"replace","path":"/a","value":2},{"op":"add","path":"/l/-","value":3}]"#,
        );
        assert_eq!(ok.unwrap(), json!({"a": 2, "l": [1, 2, 3]}));
        assert_eq!(json_patch(&v, br#"[{"op":"test","path":"/a","value":2}]"#).unwrap_err().code, 422);
        assert_eq!(json_patch(&v, br#"[{"op":"remove","path":"/nope"}]"#).unwrap_err().code, 422);
        assert_eq!(json_patch(&v, b"{}").unwrap_err().code, 400);
        let many = format!("[{}]", vec![r#"{"op":"test","path":"/a","value":1}"#; 10_001].join(","));
        assert_eq!(json_patch(&v, many.as_bytes()).unwrap_err().code, 413);
    }

    #[test]
    fn merge_patches() {
        // The examples of RFC 7396, appendix A.
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (current, patch, want) in cases {
            let got = merge_patch(&current, &patch).unwrap();
            assert_eq!(got, want);
            // Applying it again changes nothing.
            assert_eq!(merge_patch(&got, &patch).unwrap(), want);
        }
    }
}
