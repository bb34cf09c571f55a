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

/// The fields of an object, none if it is none.
pub(super) fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(key, value)| (key.as_str(), value))
}

pub(super) fn integer(of: &Value, field: &str) -> Option<i64> {
    of.get(field).and_then(Value::as_i64)
}

/// A number of a field, zero if it is not there, as Go reads it.
pub(super) fn number(of: &Value, field: &str) -> i64 {
    integer(of, field).unwrap_or(0)
}

pub(super) fn flag(of: &Value, field: &str) -> Option<bool> {
    of.get(field).and_then(Value::as_bool)
}

pub(super) fn is_set(of: &Value, field: &str) -> bool {
    of.get(field).is_some_and(|value| !value.is_null())
}

/// The strings of a list.
pub(super) fn strings<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = &'a str> + Clone {
    list(of, field).iter().map(|value| value.as_str().unwrap_or_default())
}
