//! Structural schemas of CRDs: every place has a type, value validations add none
//! (`apiextensions-apiserver/pkg/apiserver/schema`).

use serde_json::{Map, Value};

use super::util::{list, text};
use crate::field::{FieldError, index, join};

/// What a schema may not have anywhere.
const UNSUPPORTED: [&str; 5] = ["$ref", "definitions", "dependencies", "patternProperties", "id"];
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
pub(super) fn structural(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match text(schema, "type") {
        "" => errors.push(FieldError::required(format!("{path}.type"), "must not be empty at the root")),
        "object" => {}
        other => {
            errors.push(FieldError::invalid(format!("{path}.type"), other, "must be object at the root"));
        }
    }
    if let Some(metadata) = schema["properties"]["metadata"].as_object() {
        let at = format!("{path}.properties[metadata]");
        let extra = metadata.keys().any(|key| !matches!(key.as_str(), "type" | "properties" | "description"))
            || metadata.get("properties").and_then(Value::as_object).is_some_and(|properties| {
                properties.keys().any(|key| !matches!(key.as_str(), "name" | "generateName"))
            });
        if extra {
            errors.push(FieldError::forbidden(
                at,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
    }
    walk(schema, path, "", errors, 0);
}

/// `role` says in the message what kind of place lacks its type; empty at the root.
fn walk(schema: &Value, path: &str, role: &str, errors: &mut Vec<FieldError>, depth: usize) {
    let Some(map) = schema.as_object() else {
        errors.push(FieldError::invalid(path, schema.clone(), "must be an object"));
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
    for name in UNSUPPORTED.iter().filter(|name| map.contains_key(**name)) {
        errors.push(FieldError::forbidden(join(path, name), format!("{name} is not supported")));
    }
    if flag("uniqueItems") {
        errors.push(FieldError::forbidden(
            format!("{path}.uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        errors.push(FieldError::invalid(
            format!("{path}.x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }
    if kind.is_empty() && !role.is_empty() && !preserve && !int_or_string {
        errors.push(FieldError::required(
            format!("{path}.type"),
            format!("must not be empty for specified {role}"),
        ));
    }
    if int_or_string && !kind.is_empty() {
        errors.push(FieldError::forbidden(
            format!("{path}.type"),
            "must be empty if x-kubernetes-int-or-string is true",
        ));
    }
    if flag("x-kubernetes-embedded-resource") && kind != "object" {
        errors.push(FieldError::invalid(
            format!("{path}.type"),
            kind,
            "must be object if x-kubernetes-embedded-resource is true",
        ));
    }
    let additional = map.get("additionalProperties");
    if map.contains_key("properties") && additional.is_some_and(|value| *value != false) {
        errors.push(FieldError::forbidden(
            format!("{path}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if additional == Some(&Value::Bool(false)) {
        errors.push(FieldError::forbidden(
            format!("{path}.additionalProperties"),
            "additionalProperties cannot be set to false",
        ));
    }
    for (name, sub) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let implied = role.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
        let role = if implied { "" } else { "object fields" };
        walk(sub, &format!("{path}.properties[{name}]"), role, errors, depth + 1);
    }
    if let Some(values @ Value::Object(_)) = additional {
        walk(values, &format!("{path}.additionalProperties"), "object fields", errors, depth + 1);
    }
    match map.get("items") {
        Some(Value::Array(_)) => errors.push(FieldError::forbidden(
            format!("{path}.items"),
            "items must be a schema object and not an array",
        )),
        Some(items) => walk(items, &format!("{path}.items"), "array items", errors, depth + 1),
        None if kind == "array" => {
            errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
        }
        None => {}
    }
    list_type(schema, path, errors);
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, sub) in list(schema, field).iter().enumerate() {
            value_validation(sub, &format!("{path}.{field}[{i}]"), int_or_string, errors, depth + 1);
        }
    }
    if let Some(not) = map.get("not") {
        value_validation(not, &format!("{path}.not"), false, errors, depth + 1);
    }
}

fn list_type(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let list_type = text(schema, "x-kubernetes-list-type");
    if !matches!(list_type, "" | "atomic" | "set" | "map") {
        errors.push(FieldError::not_supported(
            format!("{path}.x-kubernetes-list-type"),
            list_type,
            &["atomic", "set", "map"],
        ));
    }
    if !list_type.is_empty() && text(schema, "type") != "array" {
        errors.push(FieldError::invalid(
            format!("{path}.type"),
            text(schema, "type"),
            "must be array if x-kubernetes-list-type is specified",
        ));
    }
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let at = format!("{path}.x-kubernetes-list-map-keys");
    if list_type != "map" {
        if !keys.is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.x-kubernetes-list-type"),
                list_type,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            ));
        }
        return;
    }
    if keys.is_empty() {
        errors.push(FieldError::required(at, "must not be empty if x-kubernetes-list-type is map"));
        return;
    }
    let items = &schema["items"];
    for (i, name) in keys.iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        let property = &items["properties"][name];
        if property.is_null() {
            errors.push(FieldError::invalid(
                index(&at, i),
                name,
                "entries must all be names of item properties",
            ));
        } else if property["default"].is_null() && !list(items, "required").iter().any(|own| own == name) {
            errors.push(FieldError::required(
                format!("{path}.items.properties[{name}].default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ));
        }
    }
}

fn value_validation(
    schema: &Value,
    path: &str,
    int_or_string: bool,
    errors: &mut Vec<FieldError>,
    depth: usize,
) {
    let Some(map) = schema.as_object() else { return };
    if depth > 100 {
        return;
    }
    let allowed = |map: &Map<String, Value>, name: &str| {
        // The one pattern with types that upstream lets pass.
        int_or_string && name == "type" && matches!(map[name].as_str(), Some("integer" | "string"))
    };
    for name in STRUCTURE.iter().filter(|name| map.contains_key(**name) && !allowed(map, name)) {
        errors.push(FieldError::forbidden(join(path, name), "must be empty to be structural"));
    }
    for (name, sub) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        value_validation(sub, &format!("{path}.properties[{name}]"), false, errors, depth + 1);
    }
    if let Some(items) = map.get("items") {
        value_validation(items, &format!("{path}.items"), false, errors, depth + 1);
    }
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, sub) in list(schema, field).iter().enumerate() {
            let inner = int_or_string && field != "oneOf";
            value_validation(sub, &format!("{path}.{field}[{i}]"), inner, errors, depth + 1);
        }
    }
}
