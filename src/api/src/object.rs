//! Reading and writing object metadata of a `serde_json::Value`, times, and
//! generated names.

use serde_json::{Map, Value};

/// Objects are nested at most so deep, counting maps and lists. JSON deeper than 127 levels cannot be read back, and
/// the fields of a manager stand some levels below those that they name.
pub const MAX_NESTING: usize = 110;

/// Whether there are more than `levels` maps and lists within each other.
pub fn nests_deeper_than(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (Value::Object(_) | Value::Array(_), None) => true,
        (Value::Object(map), Some(left)) => map.values().any(|value| nests_deeper_than(value, left)),
        (Value::Array(list), Some(left)) => list.iter().any(|value| nests_deeper_than(value, left)),
        _ => false,
    }
}

/// The characters of a generated name's suffix: no vowels, no look-alikes.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A generated name's base is cut to this many bytes before the suffix.
const MAX_GENERATED_BASE: usize = 63 - 5;

static EMPTY: Value = Value::Null;

/// The value at a path such as `/spec/nodeName`; null where there is none.
pub fn get<'a>(obj: &'a Value, path: &str) -> &'a Value {
    let mut at = obj;
    for part in path.split('/').filter(|p| !p.is_empty()) {
        at = match at {
            Value::Object(m) => match m.get(part) {
                Some(v) => v,
                None => return &EMPTY,
            },
            Value::Array(a) => match part.parse::<usize>().ok().and_then(|i| a.get(i)) {
                Some(v) => v,
                None => return &EMPTY,
            },
            _ => return &EMPTY,
        };
    }
    at
}

/// The string at a path; empty where there is none.
pub fn get_str<'a>(obj: &'a Value, path: &str) -> &'a str {
    get(obj, path).as_str().unwrap_or_default()
}

/// Sets the value at a path, making objects on the way.
pub fn set(obj: &mut Value, path: &str, value: impl Into<Value>) {
    let mut at = obj;
    for part in path.split('/').filter(|p| !p.is_empty()) {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(m) = at else { return };
        at = m.entry(part).or_insert(Value::Null);
    }
    *at = value.into();
}

/// Removes the value at a path and returns it.
pub fn remove(obj: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = path.rsplit_once('/')?;
    let at = if parent.is_empty() { obj } else { obj.pointer_mut(parent)? };
    at.as_object_mut()?.remove(last)
}

/// The object at a key, made if it is missing or null.
pub fn object_entry<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = map.entry(key).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(m) => m,
        _ => unreachable!("was just made an object"),
    }
}

fn meta<'a>(obj: &'a Value, field: &str) -> &'a Value {
    obj.get("metadata").and_then(|m| m.get(field)).unwrap_or(&EMPTY)
}

fn meta_str<'a>(obj: &'a Value, field: &str) -> &'a str {
    meta(obj, field).as_str().unwrap_or_default()
}

/// The object's `metadata`, made if it is missing.
pub fn metadata_mut(obj: &mut Value) -> &mut Map<String, Value> {
    if !obj.is_object() {
        *obj = Value::Object(Map::new());
    }
    match obj {
        Value::Object(m) => object_entry(m, "metadata"),
        _ => unreachable!("was just made an object"),
    }
}

pub fn api_version(obj: &Value) -> &str {
    obj.get("apiVersion").and_then(Value::as_str).unwrap_or_default()
}
pub fn kind(obj: &Value) -> &str {
    obj.get("kind").and_then(Value::as_str).unwrap_or_default()
}
pub fn name(obj: &Value) -> &str {
    meta_str(obj, "name")
}
pub fn generate_name(obj: &Value) -> &str {
    meta_str(obj, "generateName")
}
pub fn namespace(obj: &Value) -> &str {
    meta_str(obj, "namespace")
}
pub fn uid(obj: &Value) -> &str {
    meta_str(obj, "uid")
}
pub fn resource_version(obj: &Value) -> &str {
    meta_str(obj, "resourceVersion")
}
pub fn creation_timestamp(obj: &Value) -> Option<&str> {
    meta(obj, "creationTimestamp").as_str()
}
pub fn deletion_timestamp(obj: &Value) -> Option<&str> {
    meta(obj, "deletionTimestamp").as_str()
}
/// Seconds.
pub fn deletion_grace_period(obj: &Value) -> Option<i64> {
    meta(obj, "deletionGracePeriodSeconds").as_i64()
}
pub fn generation(obj: &Value) -> i64 {
    meta(obj, "generation").as_i64().unwrap_or(0)
}
pub fn labels(obj: &Value) -> Option<&Map<String, Value>> {
    meta(obj, "labels").as_object()
}
pub fn label<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    labels(obj)?.get(key)?.as_str()
}
pub fn annotations(obj: &Value) -> Option<&Map<String, Value>> {
    meta(obj, "annotations").as_object()
}
pub fn annotation<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    annotations(obj)?.get(key)?.as_str()
}
pub fn owner_references(obj: &Value) -> &[Value] {
    meta(obj, "ownerReferences").as_array().map(Vec::as_slice).unwrap_or_default()
}
/// Takes out owner references that are there already; the uids of those.
pub fn dedup_owner_references(obj: &mut Value) -> Vec<String> {
    if owner_references(obj).len() < 2 {
        return Vec::new();
    }
    let Some(list) = metadata_mut(obj).get_mut("ownerReferences").and_then(Value::as_array_mut) else {
        return Vec::new();
    };
    let (mut kept, mut twice) = (Vec::new(), Vec::new());
    for reference in list.drain(..) {
        if kept.contains(&reference) {
            twice.push(reference["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(reference);
        }
    }
    *list = kept;
    twice
}
pub fn finalizers(obj: &Value) -> Vec<&str> {
    let list = meta(obj, "finalizers").as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect()
}
pub fn managed_fields(obj: &Value) -> &[Value] {
    meta(obj, "managedFields").as_array().map(Vec::as_slice).unwrap_or_default()
}

fn set_meta_str(obj: &mut Value, field: &str, value: &str) {
    let m = metadata_mut(obj);
    if value.is_empty() {
        m.remove(field);
    } else {
        m.insert(field.to_string(), value.into());
    }
}

pub fn set_name(obj: &mut Value, v: &str) {
    set_meta_str(obj, "name", v);
}
pub fn set_namespace(obj: &mut Value, v: &str) {
    set_meta_str(obj, "namespace", v);
}
pub fn set_uid(obj: &mut Value, v: &str) {
    set_meta_str(obj, "uid", v);
}
pub fn set_resource_version(obj: &mut Value, v: &str) {
    set_meta_str(obj, "resourceVersion", v);
}
pub fn set_creation_timestamp(obj: &mut Value, v: &str) {
    set_meta_str(obj, "creationTimestamp", v);
}
pub fn set_deletion_timestamp(obj: &mut Value, v: &str) {
    set_meta_str(obj, "deletionTimestamp", v);
}
pub fn set_deletion_grace_period(obj: &mut Value, seconds: i64) {
    metadata_mut(obj).insert("deletionGracePeriodSeconds".into(), seconds.into());
}
pub fn set_generation(obj: &mut Value, v: i64) {
    metadata_mut(obj).insert("generation".into(), v.into());
}
pub fn set_label(obj: &mut Value, key: &str, value: &str) {
    object_entry(metadata_mut(obj), "labels").insert(key.to_string(), value.into());
}
pub fn set_annotation(obj: &mut Value, key: &str, value: &str) {
    object_entry(metadata_mut(obj), "annotations").insert(key.to_string(), value.into());
}
/// Replaces the finalizers; an empty list removes the field.
pub fn set_finalizers(obj: &mut Value, list: &[&str]) {
    let m = metadata_mut(obj);
    if list.is_empty() {
        m.remove("finalizers");
    } else {
        m.insert("finalizers".into(), list.iter().map(|s| Value::from(*s)).collect());
    }
}

/// The present time as `metav1.Time` writes it: seconds, UTC.
pub fn now_rfc3339() -> String {
    format_time(jiff::Timestamp::now())
}

pub fn format_time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// As `metav1.MicroTime` writes it.
pub fn format_micro_time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A random (version 4) UID.
pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Five random characters for a generated name.
pub fn name_suffix() -> String {
    let random = uuid::Uuid::new_v4();
    // Bytes 6 and 8 of a version 4 UUID are not wholly random; two others serve each character.
    let bytes = random.as_bytes();
    [(0, 1), (2, 3), (4, 5), (10, 11), (12, 13)]
        .iter()
        .map(|(a, b)| {
            let n = usize::from(bytes[*a]) << 8 | usize::from(bytes[*b]);
            char::from(SUFFIX_ALPHABET[n % SUFFIX_ALPHABET.len()])
        })
        .collect()
}

/// A name from `generateName`.
pub fn generated_name(base: &str) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], name_suffix())
}

/// Splits `apps/v1` or `v1` into group and version.
pub fn split_api_version(s: &str) -> (&str, &str) {
    s.split_once('/').unwrap_or(("", s))
}

/// `apps/v1`, or `v1` for the core group.
pub fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accessors() {
        let mut o = json!({"metadata": {"name": "a", "labels": {"x": "y"}, "finalizers": ["f"]}, "spec": {"l": [{"n": 1}]}});
        assert_eq!((name(&o), namespace(&o), label(&o, "x")), ("a", "", Some("y")));
        assert_eq!(finalizers(&o), ["f"]);
        assert_eq!(get(&o, "/spec/l/0/n"), 1);
        assert!(get(&o, "/spec/nope/0").is_null());
        set(&mut o, "/status/phase", "Running");
        assert_eq!(get_str(&o, "/status/phase"), "Running");
        set_finalizers(&mut o, &[]);
        assert!(finalizers(&o).is_empty());
        assert_eq!(remove(&mut o, "/status/phase"), Some("Running".into()));
    }

    #[test]
    fn generated() {
        let n = generated_name("web-");
        assert_eq!(n.len(), 9);
        assert!(n[4..].bytes().all(|b| SUFFIX_ALPHABET.contains(&b)));
        assert_eq!(generated_name(&"a".repeat(100)).len(), 63);
        assert_eq!(now_rfc3339().len(), 20);
        assert_eq!(format_micro_time(jiff::Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
    }
}
