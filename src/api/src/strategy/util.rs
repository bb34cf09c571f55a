//! Small helpers that the kinds' rules share.

use serde_json::{Map, Value};

/// `obj[key]` as an object, if it is one.
pub(super) fn map<'a>(obj: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    obj.get_mut(key).and_then(Value::as_object_mut)
}

/// The object's `spec`.
pub(super) fn spec(obj: &mut Value) -> Option<&mut Map<String, Value>> {
    map(obj, "spec")
}

/// Sets a field that is missing or null.
pub(super) fn put(m: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    match m.get(key) {
        None | Some(Value::Null) => drop(m.insert(key.to_string(), value.into())),
        Some(_) => {}
    }
}

/// Sets a string that is missing or empty.
pub(super) fn put_str(m: &mut Map<String, Value>, key: &str, value: &str) {
    if m.get(key).and_then(Value::as_str).unwrap_or_default().is_empty() {
        m.insert(key.to_string(), value.into());
    }
}

/// The objects of a list.
pub(super) fn each<'a>(
    m: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    m.get_mut(key)
        .and_then(Value::as_array_mut)
        .map(|a| a.as_mut_slice())
        .unwrap_or_default()
        .iter_mut()
        .filter_map(Value::as_object_mut)
}

/// A list, empty if there is none.
pub(super) fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}
