//! What the rows of several kinds read in the same way: a value at a path, as a cell shows it.

use serde_json::Value;

use crate::object::{get, get_str};
use crate::selector::LabelSelector;

pub(super) fn list<'a>(v: &'a Value, path: &str) -> &'a [Value] {
    get(v, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn int(v: &Value, path: &str) -> Value {
    get(v, path).as_i64().unwrap_or(0).into()
}

pub(super) fn text(v: &Value, path: &str) -> Value {
    get_str(v, path).into()
}

/// The text at a path or what stands for nothing.
pub(super) fn or(v: &Value, path: &str, nothing: &str) -> Value {
    let s = match get(v, path) {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    if s.is_empty() { nothing.into() } else { s.into() }
}

pub(super) fn len(v: &Value, path: &str) -> usize {
    match get(v, path) {
        Value::Array(a) => a.len(),
        Value::Object(m) => m.len(),
        _ => 0,
    }
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(v: &Value) -> Value {
    match v.as_object().filter(|m| !m.is_empty()) {
        Some(m) => join(m.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())), ","),
        None => "<none>".into(),
    }
}

pub(super) fn join(parts: impl Iterator<Item = String>, with: &str) -> Value {
    parts.collect::<Vec<_>>().join(with).into()
}

pub(super) fn selector(v: &Value, none: &str) -> Value {
    match LabelSelector::from_object(v) {
        Ok(s) if !s.requirements.is_empty() => s.to_string().into(),
        _ => none.into(),
    }
}

/// Names and images of the template's containers.
pub(super) fn containers(v: &Value, path: &str) -> [Value; 2] {
    let all = list(v, path);
    let column = |f: &str| join(all.iter().map(|c| get_str(c, f).to_string()), ",");
    [column("/name"), column("/image")]
}

/// At most `max` of the items, then how many more.
pub(super) fn some(items: &[String], max: usize, none: &str) -> Value {
    if items.is_empty() {
        return none.into();
    }
    let shown = items.iter().take(max).cloned().collect::<Vec<_>>().join(",");
    match items.len().saturating_sub(max) {
        0 => shown.into(),
        more => format!("{shown} + {more} more...").into(),
    }
}

pub(super) fn access_modes(v: &Value, path: &str) -> Value {
    let short = |m: &Value| match m.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO".to_string(),
        "ReadOnlyMany" => "ROX".to_string(),
        "ReadWriteMany" => "RWX".to_string(),
        "ReadWriteOncePod" => "RWOP".to_string(),
        other => other.to_string(),
    };
    join(list(v, path).iter().map(short), ",")
}
