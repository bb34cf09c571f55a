//! Validation of object metadata, as apimachinery's `api/validation/objectmeta.go`.

use serde_json::Value;

use super::checks::{Checks, NON_NEGATIVE, Syntax};
use super::util::entries;
use crate::field::At;
use crate::names;
use crate::object;

/// All annotations together, keys included.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;
pub(super) const ANNOTATIONS: At<'_> = At::root("metadata.annotations");
const METADATA: At<'_> = At::root("metadata");

/// A new object's metadata.
pub(super) fn validate(c: &mut Checks, obj: &Value, namespaced: bool, name_rule: Syntax) {
    let name = object::name(obj);
    let base = object::generate_name(obj);
    if !base.is_empty() {
        // A trailing dash is completed by the suffix.
        let whole = format!("{}a", base.trim_end_matches('-'));
        c.each(METADATA.child("generateName"), base, name_rule(&whole));
    }
    if name.is_empty() {
        c.required("metadata.name", "name or generateName is required");
    } else {
        c.syntax(METADATA.child("name"), name, name_rule);
    }
    let namespace = object::namespace(obj);
    if !namespaced {
        if !namespace.is_empty() {
            c.forbidden("metadata.namespace", "not allowed on this type");
        }
    } else if namespace.is_empty() {
        c.required("metadata.namespace", "");
    } else {
        c.syntax(METADATA.child("namespace"), namespace, names::dns1123_label);
    }
    if object::generation(obj) < 0 {
        c.invalid("metadata.generation", object::generation(obj), NON_NEGATIVE);
    }
    labels(c, object::get(obj, "/metadata/labels"), METADATA.child("labels"));
    annotations(c, object::get(obj, "/metadata/annotations"), ANNOTATIONS);
    owners(c, obj);
    for f in object::finalizers(obj) {
        c.syntax(METADATA.child("finalizers"), f, names::qualified_name);
    }
}

/// Keys and values of labels.
pub(super) fn labels(c: &mut Checks, labels: &Value, at: At<'_>) {
    for (key, value) in entries(labels) {
        c.syntax(at, key, names::qualified_name);
        c.syntax(at, value.as_str().unwrap_or_default(), names::label_value);
    }
}

/// Keys and the total size of annotations.
pub(super) fn annotations(c: &mut Checks, annotations: &Value, at: At<'_>) {
    let mut total = 0;
    for (key, value) in entries(annotations) {
        annotation_key(c, key, at);
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > MAX_ANNOTATION_BYTES {
        c.too_long(at, MAX_ANNOTATION_BYTES);
    }
}

/// Case does not matter in keys of annotations.
pub(super) fn annotation_key(c: &mut Checks, key: &str, at: At<'_>) {
    let wrong = names::qualified_name(key);
    if !wrong.is_empty() {
        c.each(at, key, names::qualified_name(&key.to_lowercase()));
    }
}

fn owners(c: &mut Checks, obj: &Value) {
    let mut controller: Option<&str> = None;
    for o in object::owner_references(obj) {
        let text = |f: &str| o.get(f).and_then(Value::as_str).unwrap_or_default();
        let path = METADATA.child("ownerReferences");
        // A missing field is reported by the schema; an empty one here.
        for (field, message) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if o.get(field).is_some() && text(field).is_empty() {
                c.invalid(path.child(field), "", message);
            }
        }
        if o.get("controller").and_then(Value::as_bool) == Some(true) {
            match controller {
                Some(first) => c.invalid(path, o.clone(), format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                        text("name")
                    )),
                None => controller = Some(text("name")),
            }
        }
    }
}

/// What built-in kinds demand of finalizers beyond that (core `validation.ValidateObjectMeta`).
pub(super) fn standard_finalizers(c: &mut Checks, obj: &Value) {
    for f in object::finalizers(obj) {
        let is_known = f.contains('/') || matches!(f, "orphan" | "foregroundDeletion" | "kubernetes");
        if !is_known && names::qualified_name(f).is_empty() {
            c.invalid(
                "metadata.finalizers",
                f,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}

/// What an update may not change.
pub(super) fn validate_update(c: &mut Checks, obj: &Value, old: &Value) {
    if !object::get(old, "/metadata/deletionTimestamp").is_null() {
        let before = object::finalizers(old);
        let added: Vec<&str> = object::finalizers(obj).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            c.forbidden("metadata.finalizers", format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")));
        }
    }
    for path in [
        "/metadata/name",
        "/metadata/namespace",
        "/metadata/uid",
        "/metadata/creationTimestamp",
        "/metadata/deletionTimestamp",
        "/metadata/deletionGracePeriodSeconds",
    ] {
        c.immutable(obj, old, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(v: &Value) -> Vec<String> {
        let mut e = Checks::default();
        validate(&mut e, v, true, names::dns1123_subdomain);
        e.errors.iter().map(|e| e.path.clone()).collect()
    }

    #[test]
    fn metadata() {
        assert!(check(&json!({"metadata": {"name": "a", "namespace": "b"}})).is_empty());
        assert_eq!(check(&json!({"metadata": {"name": "A", "namespace": "b"}})), ["metadata.name"]);
        assert_eq!(check(&json!({"metadata": {}})), ["metadata.name", "metadata.namespace"]);
        assert_eq!(
            check(
                &json!({"metadata": {"name": "a", "namespace": "b", "labels": {"a b": "c"}, "finalizers": ["x"]}})
            ),
            ["metadata.labels"]
        );
        let mut e = Checks::default();
        let finalizers = json!({"metadata": {"finalizers": ["x", "orphan", "a.b/c"]}});
        standard_finalizers(&mut e, &finalizers);
        assert_eq!(e.errors.iter().map(|e| e.value.clone()).collect::<Vec<_>>(), [json!("x")]);
        let mut e = Checks::default();
        validate_update(
            &mut e,
            &json!({"metadata": {"name": "a", "uid": "2"}}),
            &json!({"metadata": {"name": "a", "uid": "1"}}),
        );
        assert_eq!(e.errors[0].to_string(), r#"metadata.uid: Invalid value: "2": field is immutable"#);
    }
}
