//! Structural schemas of CRDs: every place has a type, value validations add none
//! (`apiextensions-apiserver/pkg/apiserver/schema`).

use serde_json::{Map, Value, json};

use super::checks::Checks;
use super::util::{list, strings, text};
use crate::field::At;

/// What a schema may not have anywhere.
const UNSUPPORTED: [&str; 6] =
    ["$ref", "definitions", "dependencies", "patternProperties", "id", "additionalItems"];
/// What a value validation (below `allOf` and the like) may not say.
const STRUCTURE: [&str; 12] = [
    "type",
    "title",
    "description",
    "default",
    "nullable",
    "additionalProperties",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
];

/// What keeps a schema from being structural.
pub(super) fn structural(c: &mut Checks, schema: &Value, path: At<'_>) {
    match text(schema, "type") {
        "" if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
        "" => c.required(path.child("type"), "must not be empty at the root"),
        "object" => {}
        other => {
            c.invalid(path.child("type"), other, "must be object at the root");
        }
    }
    if let Some(metadata) = schema["properties"]["metadata"].as_object() {
        let extra = metadata.keys().any(|key| !matches!(key.as_str(), "type" | "properties" | "description"))
            || metadata.get("properties").and_then(Value::as_object).is_some_and(|properties| {
                properties.keys().any(|key| !matches!(key.as_str(), "name" | "generateName"))
            });
        if extra {
            c.forbidden(path.child("properties").key("metadata"), "must not specify anything other than name and generateName, but metadata is implicitly specified");
        }
    }
    if !schema["additionalProperties"].is_null() {
        c.forbidden(path.child("additionalProperties"), "must not be used at the root");
    }
    walk(c, schema, path, "", 0);
}

/// `role` says in the message what kind of place lacks its type; empty at the root.
fn walk(c: &mut Checks, schema: &Value, path: At<'_>, role: &str, depth: usize) {
    let Some(map) = schema.as_object() else {
        c.invalid(path, schema.clone(), "must be an object");
        return;
    };
    // The compiler of schemas refuses what is deeper.
    if depth > 100 {
        return;
    }
    let flag = |name: &str| map.get(name) == Some(&Value::Bool(true));
    let preserve = flag("x-kubernetes-preserve-unknown-fields");
    let int_or_string = flag("x-kubernetes-int-or-string");
    let kind = text(schema, "type");
    let is_there = |name: &str| {
        map.get(name).is_some_and(|value| !value.is_null() && *value != json!({}) && *value != json!(""))
    };
    for name in UNSUPPORTED.iter().filter(|name| is_there(name)) {
        c.forbidden(path.child(name), format!("{name} is not supported"));
    }
    if flag("uniqueItems") {
        c.forbidden(
            path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        c.invalid(format!("{path}.x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined");
    }
    if kind.is_empty() && !role.is_empty() && !preserve && !int_or_string {
        c.required(path.child("type"), format!("must not be empty for specified {role}"));
    }
    if flag("x-kubernetes-embedded-resource") && kind != "object" {
        c.invalid(path.child("type"), kind, "must be object if x-kubernetes-embedded-resource is true");
    }
    let additional = map.get("additionalProperties");
    if is_there("properties") && additional.is_some_and(|value| !value.is_null() && *value != true) {
        c.forbidden(
            path.child("additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        );
    }
    for (name, sub) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let implied = role.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
        let role = if implied { "" } else { "object fields" };
        walk(c, sub, path.child("properties").key(name), role, depth + 1);
    }
    if let Some(values @ Value::Object(_)) = additional {
        walk(c, values, path.child("additionalProperties"), "object fields", depth + 1);
    }
    match map.get("items") {
        Some(Value::Array(_)) => {
            c.forbidden(path.child("items"), "items must be a schema object and not an array");
        }
        Some(items) => walk(c, items, path.child("items"), "array items", depth + 1),
        None if kind == "array" => {
            c.required(path.child("items"), "must be specified");
        }
        None => {}
    }
    list_type(c, schema, path);
    let either = json!([{ "type": "integer" }, { "type": "string" }]);
    let says_either = schema["anyOf"] == either || schema["allOf"][0]["anyOf"] == either;
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, sub) in list(schema, field).iter().enumerate() {
            value_validation(c, sub, path.item(field, i), int_or_string || says_either, depth + 1);
        }
    }
    if let Some(not) = map.get("not") {
        value_validation(c, not, path.child("not"), false, depth + 1);
    }
}

fn list_type(c: &mut Checks, schema: &Value, path: At<'_>) {
    let list_type = text(schema, "x-kubernetes-list-type");
    if !matches!(list_type, "" | "atomic" | "set" | "map") {
        c.unsupported(path.child("x-kubernetes-list-type"), list_type, &["atomic", "set", "map"]);
    }
    if !list_type.is_empty() && text(schema, "type") != "array" {
        c.invalid(
            path.child("type"),
            text(schema, "type"),
            "must be array if x-kubernetes-list-type is specified",
        );
    }
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let at = path.child("x-kubernetes-list-map-keys");
    if list_type != "map" {
        if !keys.is_empty() {
            c.invalid(
                path.child("x-kubernetes-list-type"),
                list_type,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            );
        }
        return;
    }
    if keys.is_empty() {
        c.required(at, "must not be empty if x-kubernetes-list-type is map");
        return;
    }
    let items = &schema["items"];
    for (i, name) in strings(schema, "x-kubernetes-list-map-keys").enumerate() {
        let property = &items["properties"][name];
        if property.is_null() {
            c.invalid(at.index(i), name, "entries must all be names of item properties");
        } else if property["default"].is_null() && !list(items, "required").iter().any(|own| own == name) {
            c.required(path.child("items").child("properties").key(name).child("default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property");
        }
    }
}

fn value_validation(c: &mut Checks, schema: &Value, path: At<'_>, int_or_string: bool, depth: usize) {
    let Some(map) = schema.as_object() else { return };
    if depth > 100 {
        return;
    }
    let allowed = |map: &Map<String, Value>, name: &str| {
        // The one pattern with types that upstream lets pass.
        int_or_string && name == "type" && matches!(map[name].as_str(), Some("integer" | "string"))
    };
    for name in STRUCTURE.iter().filter(|name| map.contains_key(**name) && !allowed(map, name)) {
        c.forbidden(path.child(name), "must be empty to be structural");
    }
    for (name, sub) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        value_validation(c, sub, path.child("properties").key(name), false, depth + 1);
    }
    if let Some(items) = map.get("items") {
        value_validation(c, items, path.child("items"), false, depth + 1);
    }
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, sub) in list(schema, field).iter().enumerate() {
            let inner = int_or_string && field != "oneOf";
            value_validation(c, sub, path.item(field, i), inner, depth + 1);
        }
    }
}
