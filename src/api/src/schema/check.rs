//! Checks a value against a schema and fills in a schema's defaults: the part of
//! validation that is the same for every kind. For CRDs the wording follows
//! kube-openapi's validator.

use serde_json::Value;

use super::{Cursor, Limits, ListType, SchemaRef, Shape};
use crate::field::{At, FieldError, FieldErrorKind};

const NOT_CHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Fills in the `default` values of a CRD's schema.
pub fn apply_defaults(schema: &SchemaRef, value: &mut Value) {
    if !schema.set().is_builtin() {
        defaults(schema.cursor(), value);
    }
}

/// A null where none is allowed and no default stands in for it: as if it were not there
/// (`PruneNonNullableNullsWithoutDefaults`).
fn is_stray_null(at: Cursor<'_>, name: &str, value: &Value) -> bool {
    value.is_null()
        && at.child(name).is_some_and(|child| {
            !child.node.nullable && child.node.limits.as_ref().is_none_or(|l| l.default.is_none())
        })
}

fn defaults(at: Cursor<'_>, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.values().any(Value::is_null) {
                map.retain(|name, value| !is_stray_null(at, name, value));
            }
            for f in &at.node.fields {
                let child = at.at(f.node);
                let Some(default) = child.node.limits.as_ref().and_then(|l| l.default.as_ref()) else {
                    continue;
                };
                match map.get(f.name.as_ref()) {
                    None => drop(map.insert(f.name.to_string(), default.clone())),
                    // A null where none is allowed stands for the default.
                    Some(Value::Null) if !child.node.nullable => {
                        map.insert(f.name.to_string(), default.clone());
                    }
                    Some(_) => {}
                }
            }
            for (k, v) in map.iter_mut() {
                if let Some(child) = at.child(k) {
                    defaults(child, v);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = at.item() {
                for v in items {
                    defaults(item, v);
                }
            }
        }
        _ => {}
    }
}

/// Required fields, and for CRDs also types, limits and list types.
///
/// Of a built-in type only strings, objects and unions are checked for presence:
/// Go reads a missing list or number as its zero value and lets the kind's own
/// validation decide. A built-in `status` is never checked.
pub fn validate_schema(schema: &SchemaRef, value: &Value) -> Vec<FieldError> {
    validate_schema_update(schema, value, None)
}

/// The same for an update: what of a custom resource has not changed is not held against it, so that a
/// definition may become stricter (KEP-4008).
pub fn validate_schema_update(schema: &SchemaRef, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if schema.set().is_builtin() {
        required(schema.cursor(), value, At::ROOT, &mut errors);
    } else {
        check(schema.cursor(), value, old, At::ROOT, &mut errors);
        if schema.set().has_rules {
            // Rules may rely on the types of what they look at.
            if errors.iter().any(is_blocking) {
                errors.push(FieldError::invalid("<nil>", Value::Null, NOT_CHECKED));
            } else {
                super::rules::check(schema.cursor(), value, old, At::ROOT, &mut errors);
            }
        }
    }
    errors
}

/// What rules are not checked after (`hasBlockingErr`).
fn is_blocking(error: &FieldError) -> bool {
    use FieldErrorKind as K;
    matches!(error.kind, K::NotSupported | K::Required | K::TooLong | K::TooMany | K::TypeInvalid)
}

/// Required by OpenAPI, yet defaulted or optional in Go.
fn lenient(type_name: &str, field: &str) -> bool {
    matches!(
        (type_name, field),
        ("RoleRef", "apiGroup")
            | ("Event", _)
            | ("EventSeries", _)
            | ("Condition", _)
            | ("FlowSchemaSpec" | "PriorityLevelConfigurationSpec", _)
            | ("CustomResourceDefinition", "status")
    )
}

fn required(at: Cursor<'_>, value: &Value, path: At<'_>, errors: &mut Vec<FieldError>) {
    // A pod's own validation looks at everything, in its own order.
    if at.node.short_name() == "PodSpec" {
        return;
    }
    match value {
        Value::Object(map) => {
            for f in at.node.fields.iter().filter(|f| f.required) {
                let shape = at.at(f.node).node.shape;
                let checked =
                    matches!(shape, Shape::String | Shape::Object | Shape::IntOrString | Shape::Bytes);
                if checked && !map.contains_key(f.name.as_ref()) && !lenient(at.node.short_name(), &f.name) {
                    errors.push(FieldError::required(path.child(&f.name), ""));
                }
            }
            for (k, v) in map {
                if !matches!(v, Value::Object(_) | Value::Array(_)) || (path.is_root() && k == "status") {
                    continue;
                }
                if k == "managedFields" && at.node.short_name() == "ObjectMeta" {
                    continue;
                }
                if let Some(child) = at.child(k) {
                    let deeper = if at.node.shape == Shape::Map { path.key(k) } else { path.child(k) };
                    required(child, v, deeper, errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = at.item().filter(|i| !i.node.fields.is_empty()) {
                for (i, v) in items.iter().enumerate() {
                    required(item, v, path.index(i), errors);
                }
            }
        }
        _ => {}
    }
}

pub(super) fn type_name(shape: Shape) -> &'static str {
    match shape {
        Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Quantity => "string",
        Shape::Int32 | Shape::Int64 => "integer",
        Shape::Number => "number",
        Shape::Bool => "boolean",
        Shape::Array => "array",
        Shape::Map | Shape::Object => "object",
        Shape::IntOrString => "integer,string",
        Shape::Any => "",
    }
}

fn json_type(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn fits(shape: Shape, v: &Value) -> bool {
    match shape {
        Shape::Any => true,
        Shape::Array => v.is_array(),
        Shape::Map | Shape::Object => v.is_object(),
        Shape::Bool => v.is_boolean(),
        Shape::Number => v.is_number(),
        Shape::Int32 | Shape::Int64 => {
            v.is_i64() || v.is_u64() || v.as_f64().is_some_and(|f| f.fract() == 0.0 && f.abs() < 9e15)
        }
        Shape::IntOrString => v.is_string() || v.is_i64() || v.is_u64(),
        Shape::Quantity => v.is_string() || v.is_number(),
        Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime => v.is_string(),
    }
}

/// The item of the old list that is the same thing as `item`; only lists of type "map" can tell.
pub(super) fn same_item<'a>(at: Cursor<'_>, old: Option<&'a Value>, item: &Value) -> Option<&'a Value> {
    let ListType::Map(keys) = &at.node.list else { return None };
    let list = old?.as_array()?;
    list.iter().find(|old| keys.iter().all(|key| old.get(key.as_ref()) == item.get(key.as_ref())))
}

fn check(at: Cursor<'_>, value: &Value, old: Option<&Value>, path: At<'_>, errors: &mut Vec<FieldError>) {
    if old == Some(value) {
        return;
    }
    if value.is_null() && at.node.nullable {
        return;
    }
    if !fits(at.node.shape, value) {
        errors.push(FieldError::type_invalid(
            path,
            json_type(value),
            format!("{path} in body must be of type {}: \"{}\"", type_name(at.node.shape), json_type(value)),
        ));
        return;
    }
    if let Some(l) = &at.node.limits {
        limits(at, l, value, path, errors);
    }
    match value {
        Value::Object(map) => {
            for (k, v) in map {
                if let Some(child) = at.child(k) {
                    check(child, v, old.and_then(|old| old.get(k)), path.child(k), errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = at.item() {
                for (i, v) in items.iter().enumerate() {
                    check(item, v, same_item(at, old, v), path.index(i), errors);
                }
            }
            unique(at, items, path, errors);
        }
        _ => {}
    }
}

fn unique(at: Cursor<'_>, items: &[Value], path: At<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = std::collections::HashSet::new();
    for (i, v) in items.iter().enumerate() {
        let id = match &at.node.list {
            ListType::Atomic => return,
            ListType::Set => v.clone(),
            ListType::Map(keys) => Value::Object(
                keys.iter().filter_map(|k| v.get(k.as_ref()).map(|x| (k.to_string(), x.clone()))).collect(),
            ),
        };
        if !seen.insert(id.to_string()) {
            errors.push(FieldError::duplicate(path.index(i), id));
        }
    }
}

fn limits(at: Cursor<'_>, l: &Limits, value: &Value, path: At<'_>, errors: &mut Vec<FieldError>) {
    if !l.enumeration.is_empty() && !l.enumeration.contains(value) {
        let names: Vec<String> =
            l.enumeration.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_string)).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &names));
    }
    let mut invalid = |detail: String| errors.push(FieldError::invalid(path, value.clone(), detail));
    if let Some(n) = value.as_f64() {
        if let Some(min) = l.minimum.filter(|m| n < *m || (l.exclusive_minimum && n <= *m)) {
            let or = if l.exclusive_minimum { "" } else { " or equal to" };
            invalid(format!("{path} in body should be greater than{or} {min}"));
        }
        if let Some(max) = l.maximum.filter(|m| n > *m || (l.exclusive_maximum && n >= *m)) {
            let or = if l.exclusive_maximum { "" } else { " or equal to" };
            invalid(format!("{path} in body should be less than{or} {max}"));
        }
        if let Some(m) = l.multiple_of.filter(|m| *m > 0.0 && (n / m).fract().abs() > 1e-9) {
            invalid(format!("{path} in body should be a multiple of {m}"));
        }
    }
    if let Some(s) = value.as_str() {
        let chars = s.chars().count() as u64;
        if let Some(min) = l.min_length.filter(|m| chars < *m) {
            invalid(format!("{path} in body should be at least {min} chars long"));
        }
        if let Some(p) = l.pattern.as_ref().filter(|p| !p.is_match(s)) {
            invalid(format!("{path} in body should match '{p}'"));
        }
        if let Some(f) = l.format.as_deref().filter(|f| !format_ok(f, s)) {
            invalid(format!("{path} in body must be of type {f}: {s:?}"));
        }
        if let Some(max) = l.max_length.filter(|m| chars > *m) {
            errors.push(FieldError::too_long(path, max));
        }
    }
    let mut invalid = |detail: String| errors.push(FieldError::invalid(path, value.clone(), detail));
    match value {
        Value::Array(items) => {
            if let Some(min) = l.min_items.filter(|m| (items.len() as u64) < *m) {
                invalid(format!("{path} in body should have at least {min} items"));
            }
            if let Some(max) = l.max_items.filter(|m| items.len() as u64 > *m) {
                errors.push(FieldError::too_many(path, items.len(), max));
            }
        }
        Value::Object(map) => {
            if let Some(min) = l.min_properties.filter(|m| (map.len() as u64) < *m) {
                invalid(format!("{path} in body should have at least {min} properties"));
            }
            if let Some(max) = l.max_properties.filter(|m| map.len() as u64 > *m) {
                errors.push(FieldError::too_many(path, map.len(), max));
            }
            for name in l.required.iter().filter(|n| !map.contains_key(n.as_ref())) {
                errors.push(FieldError::required(path.child(name), ""));
            }
        }
        _ => {}
    }
    combined(at, l, value, path, errors);
}

fn combined(at: Cursor<'_>, l: &Limits, value: &Value, path: At<'_>, errors: &mut Vec<FieldError>) {
    let run = |id: u32| {
        let mut found = Vec::new();
        check(at.at(id), value, None, path, &mut found);
        found
    };
    for id in &l.all_of {
        errors.extend(run(*id));
    }
    if !l.any_of.is_empty() && l.any_of.iter().all(|id| !run(*id).is_empty()) {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("{path} in body must validate at least one schema (anyOf)"),
        ));
        errors.extend(run(l.any_of[0]));
    }
    if !l.one_of.is_empty() {
        let valid = l.one_of.iter().filter(|id| run(**id).is_empty()).count();
        if valid != 1 {
            let found = if valid == 0 { "none" } else { "more" };
            errors.push(FieldError::invalid(
                path,
                value.clone(),
                format!("{path} in body must validate one and only one schema (oneOf). Found {found} valid"),
            ));
        }
    }
    if l.not.is_some_and(|id| run(id).is_empty()) {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("{path} in body must not validate the schema (not)"),
        ));
    }
}

/// The formats that upstream enforces and that CRDs use in practice.
fn format_ok(format: &str, s: &str) -> bool {
    match format {
        "date-time" => s.parse::<jiff::Timestamp>().is_ok(),
        "date" => s.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => s.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => s.parse::<std::net::Ipv6Addr>().is_ok(),
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(s).is_ok()
        }
        "uuid" => uuid::Uuid::parse_str(s).is_ok(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SchemaSet;
    use serde_json::json;

    fn texts(e: &[FieldError]) -> Vec<String> {
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn crd_limits_and_defaults() {
        let s = SchemaRef::from_openapi(&json!({"type": "object", "properties": {"spec": {
            "type": "object", "required": ["name"], "properties": {
                "name": {"type": "string", "pattern": "^[a-z]+$"},
                "size": {"type": "integer", "minimum": 1, "default": 2},
                "mode": {"type": "string", "enum": ["a", "b"]},
                "nested": {"type": "object", "default": {}, "properties": {"x": {"type": "string", "default": "y"}}}}}}}))
        .unwrap();
        let mut v =
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "x"}, "spec": {"name": "abc"}});
        apply_defaults(&s, &mut v);
        assert_eq!(v["spec"], json!({"name": "abc", "size": 2, "nested": {"x": "y"}}));
        assert!(validate_schema(&s, &v).is_empty());
        v["spec"] = json!({"name": "A", "size": 0, "mode": "c"});
        assert_eq!(
            texts(&validate_schema(&s, &v)),
            [
                r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#,
                r#"spec.name: Invalid value: "A": spec.name in body should match '^[a-z]+$'"#,
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
            ]
        );
        v["spec"] = json!({"size": "x"});
        assert_eq!(
            texts(&validate_schema(&s, &v)),
            [
                "spec.name: Required value",
                r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#,
            ]
        );
    }

    #[test]
    fn stray_nulls_go() {
        let s = SchemaRef::from_openapi(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string"}, "b": {"type": "string", "nullable": true}, "c": {"type": "string", "default": "x"}}}}}))
        .unwrap();
        let mut v = json!({"metadata": {"name": "n", "creationTimestamp": null}, "spec": {"a": null, "b": null, "c": null}});
        apply_defaults(&s, &mut v);
        assert_eq!(v, json!({"metadata": {"name": "n"}, "spec": {"b": null, "c": "x"}}));
        assert!(validate_schema(&s, &v).is_empty());
    }

    #[test]
    fn what_has_not_changed_is_not_held_against_an_update() {
        let s = SchemaRef::from_openapi(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "integer", "minimum": 5}, "b": {"type": "integer", "minimum": 5}}}}}),
        )
        .unwrap();
        let old = json!({"spec": {"a": 1, "b": 1}});
        let new = json!({"spec": {"a": 1, "b": 2}});
        let errors = validate_schema_update(&s, &new, Some(&old));
        assert_eq!(errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["spec.b"]);
        assert_eq!(validate_schema(&s, &new).len(), 2);
    }

    #[test]
    fn builtin_required() {
        let s = SchemaSet::builtin().by_gvk("apps", "v1", "Deployment").unwrap();
        let v = json!({"metadata": {"name": "x", "ownerReferences": [{"name": "o", "uid": "u", "kind": "K"}]},
            "spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}});
        assert_eq!(
            texts(&validate_schema(&s, &v)),
            ["metadata.ownerReferences[0].apiVersion: Required value", "spec.selector: Required value"]
        );
    }
}
