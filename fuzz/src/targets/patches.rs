//! The four kinds of patches, on objects of a few kinds that have every kind of list and map.

use std::sync::OnceLock;

use kedge_api::managed::{self, FieldSet, Manager};
use kedge_api::patch;
use kedge_api::registry::{Registry, Resource};
use kedge_api::schema::SchemaRef;
use serde_json::{Value, json};

use super::bytes;
use crate::shape::{self, Source};

/// Kinds with set lists, map lists with one and two keys, atomic lists and maps, and such without strategies.
const KINDS: [(&str, &str, &str); 7] = [
    ("", "v1", "pods"),
    ("", "v1", "services"),
    ("", "v1", "configmaps"),
    ("", "v1", "nodes"),
    ("apps", "v1", "deployments"),
    ("networking.k8s.io", "v1", "ingresses"),
    ("rbac.authorization.k8s.io", "v1", "clusterroles"),
];

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::builtin)
}

fn schema(source: &mut Source<'_>) -> SchemaRef {
    let (group, version, plural) = KINDS[source.below(KINDS.len())];
    let resource: std::sync::Arc<Resource> =
        registry().find(group, version, plural).expect("a built-in kind");
    resource.schema.clone()
}

/// An object that the schema allows.
fn object(schema: &SchemaRef, source: &mut Source<'_>) -> Value {
    let mut object = shape::value(schema.cursor(), source, 0, false);
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// The patch is a partial object, with directives and mistakes.
pub(super) fn strategic(data: &[u8]) {
    let mut source = Source(data);
    let schema = schema(&mut source);
    let current = object(&schema, &mut source);
    let patch = shape::value(schema.cursor(), &mut source, 0, true);
    let Ok(patched) = patch::strategic_merge_patch(&schema, &current, &patch) else { return };
    assert!(patched.is_object());
    assert_eq!(patch::strategic_merge_patch(&schema, &current, &json!({})).ok(), Some(current));
}

pub(super) fn merge(data: &[u8]) {
    let mut source = Source(data);
    let schema = schema(&mut source);
    let current = object(&schema, &mut source);
    let patch = shape::value(schema.cursor(), &mut source, 0, true);
    let patched = patch::merge_patch(&current, &patch).expect("no patch of this depth is refused");
    // The same again changes nothing (RFC 7396).
    assert_eq!(patch::merge_patch(&patched, &patch).ok().as_ref(), Some(&patched));
    assert!(
        !has_null_member(&patched)
            || !patch.is_object()
            || has_null_member(&current)
            || has_null_item(&patch)
    );
}

fn has_null_member(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.values().any(|value| value.is_null() || has_null_member(value)),
        Value::Array(list) => list.iter().any(has_null_member),
        _ => false,
    }
}

/// Lists are taken as they are, nulls within them too.
fn has_null_item(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.values().any(has_null_item),
        Value::Array(list) => list.iter().any(|value| value.is_null() || has_null_member(value)),
        _ => false,
    }
}

/// Operations on places that are there mostly.
pub(super) fn json(data: &[u8]) {
    let mut source = Source(data);
    let schema = schema(&mut source);
    let current = object(&schema, &mut source);
    let mut places = vec![String::new(), "/metadata".to_owned(), "/spec/-".to_owned()];
    collect(&current, "", &mut places);
    let mut operations = Vec::new();
    while !source.is_empty() && operations.len() < 40 {
        let op = ["add", "remove", "replace", "move", "copy", "test", "other"][source.below(7)];
        let mut place = source.pick(&places).cloned().unwrap_or_default();
        if source.byte() < 60 {
            place.push_str(["/-", "/0", "/x", "/~1", "/00", "/18446744073709551616", "~"][source.below(7)]);
        }
        let from = source.pick(&places).cloned().unwrap_or_default();
        let value = shape::any(&mut source, 4);
        places.push(place.clone());
        operations.push(json!({ "op": op, "path": place, "from": from, "value": value }));
    }
    let patch = Value::Array(operations).to_string();
    if let Ok(patched) = patch::json_patch(&current, patch.as_bytes()) {
        // Bounded, whatever is copied.
        assert!(patched.to_string().len() <= current.to_string().len() + patch.len() + (4 << 20));
    }
}

fn collect(value: &Value, place: &str, places: &mut Vec<String>) {
    if places.len() > 60 {
        return;
    }
    places.push(place.to_owned());
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect(value, &format!("{place}/{name}"), places);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                collect(value, &format!("{place}/{index}"), places);
            }
        }
        _ => {}
    }
}

/// A patch as a client sends it.
pub(super) fn json_text(data: &[u8]) {
    let current =
        json!({ "metadata": { "name": "a", "labels": { "x": "y" } }, "list": [1, 2, { "b": null }] });
    if let Ok(patched) = patch::json_patch(&current, data) {
        assert!(patched.to_string().len() <= 1000 + data.len() + (4 << 20));
    }
}

pub(super) fn json_text_seeds() -> Vec<Vec<u8>> {
    bytes(&[
        r#"[{"op":"add","path":"/metadata/labels/z","value":"w"},{"op":"test","path":"/list/0","value":1}]"#,
        r#"[{"op":"copy","from":"/list","path":"/metadata/copy"},{"op":"move","from":"/list/1","path":"/list/-"},{"op":"remove","path":"/list/2"}]"#,
        r#"[{"op":"copy","from":"","path":"/c"},{"op":"copy","from":"","path":"/d"}]"#,
    ])
}

fn manager(name: &str) -> Manager {
    Manager {
        name: name.to_owned(),
        api_version: "v1".to_owned(),
        time: "2024-01-01T00:00:00Z".to_owned(),
        subresource: String::new(),
        reset: &["status"],
    }
}

/// One writer updates, two apply, the first applies less.
pub(super) fn apply(data: &[u8]) {
    let mut source = Source(data);
    let schema = schema(&mut source);
    let mut live = object(&schema, &mut source);
    if !live.get("metadata").is_some_and(Value::is_object) {
        live["metadata"] = json!({ "name": "a" });
    }
    managed::track_update(&schema, None, &mut live, &manager("writer"));
    let wild = source.byte() < 100;
    for (name, force) in [("first", true), ("second", false), ("second", true), ("first", true)] {
        let mut config = shape::value(schema.cursor(), &mut source, 0, wild);
        if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        if !config.is_object() {
            continue;
        }
        let Ok(applied) = managed::apply(&schema, Some(&live), &config, &manager(name), force) else {
            continue;
        };
        let entries = applied.pointer("/metadata/managedFields").and_then(Value::as_array);
        let entries = entries.map(Vec::as_slice).unwrap_or_default();
        assert!(managed::decode_entries(entries).is_ok(), "{applied}");
        // Items of lists may lack their keys here, which validation refuses: the same again need not be the same.
        let _ = managed::apply(&schema, Some(&applied), &config, &manager(name), force);
        let before = live;
        live = applied;
        // A writer that puts the old object back owns what it changed.
        let mut back = before;
        managed::track_update(&schema, Some(&live), &mut back, &manager("writer"));
    }
}

/// Entries of managedFields as a client may send them.
pub(super) fn managed_fields(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    if let Some(set) = FieldSet::from_value(&value) {
        assert_eq!(
            FieldSet::from_value(&set.to_value()).as_ref().map(FieldSet::to_value),
            Some(set.to_value())
        );
        let mut rest = set.clone();
        rest.difference(&set);
        assert!(rest.paths().is_empty());
        let mut both = set.clone();
        both.union(&set);
        assert_eq!(both.to_value(), set.to_value());
        assert_eq!(set.intersection(&set).to_value(), set.to_value());
    }
    let Some(list) = value.as_array() else { return };
    let _ = managed::decode_entries(list);
    let schema = registry().find("", "v1", "pods").expect("pods").schema.clone();
    let mut live = json!({ "metadata": { "name": "a", "managedFields": list }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let config = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "j" }] } });
    if let Ok(applied) = managed::apply(&schema, Some(&live), &config, &manager("first"), true) {
        let again = managed::apply(&schema, Some(&applied), &config, &manager("first"), true);
        assert_eq!(again.ok(), Some(applied));
    }
    managed::track_update(&schema, None, &mut live, &manager("writer"));
}

pub(super) fn managed_fields_seeds() -> Vec<Vec<u8>> {
    bytes(&[
        r#"[{"manager":"kubectl","operation":"Apply","apiVersion":"v1","time":"2024-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}}},"f:metadata":{"f:finalizers":{"v:\"a\"":{}},"f:labels":{"f:x":{}}}}}]"#,
        r#"{"f:a":{".":{},"i:0":{},"v:1":{},"k:{\"x\":1,\"y\":\"z\"}":{"f:b":{}}}}"#,
    ])
}

/// Bytes enough for objects of some size.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut random = crate::Random::new(1);
    (0..24).map(|index| (0..60 * (index + 1)).map(|_| random.number().to_le_bytes()[0]).collect()).collect()
}
