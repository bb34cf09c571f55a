//! Validation of object metadata, as apimachinery's `api/validation/objectmeta.go`.

use serde_json::Value;

use crate::field::FieldError;
use crate::names;
use crate::object;

/// All annotations together, keys included.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// A new object's metadata.
pub fn validate(
    obj: &Value,
    namespaced: bool,
    name_rule: fn(&str) -> Vec<String>,
    errors: &mut Vec<FieldError>,
) {
    let name = object::name(obj);
    let base = object::generate_name(obj);
    if !base.is_empty() {
        // A trailing dash is completed by the suffix.
        let whole = format!("{}a", base.trim_end_matches('-'));
        for m in name_rule(&whole) {
            errors.push(FieldError::invalid("metadata.generateName", base, m));
        }
    }
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        for m in name_rule(name) {
            errors.push(FieldError::invalid("metadata.name", name, m));
        }
    }
    let namespace = object::namespace(obj);
    if !namespaced {
        if !namespace.is_empty() {
            errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
        }
    } else if namespace.is_empty() {
        errors.push(FieldError::required("metadata.namespace", ""));
    } else {
        for m in names::dns1123_label(namespace) {
            errors.push(FieldError::invalid("metadata.namespace", namespace, m));
        }
    }
    if object::generation(obj) < 0 {
        errors.push(FieldError::invalid(
            "metadata.generation",
            object::generation(obj),
            "must be greater than or equal to 0",
        ));
    }
    labels(object::get(obj, "/metadata/labels"), "metadata.labels", errors);
    annotations(object::get(obj, "/metadata/annotations"), "metadata.annotations", errors);
    owners(obj, errors);
    for f in object::finalizers(obj) {
        finalizer(f, errors);
    }
}

/// Keys and values of labels.
pub fn labels(labels: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (k, v) in labels.as_object().into_iter().flatten() {
        for m in names::qualified_name(k) {
            errors.push(FieldError::invalid(path, k.as_str(), m));
        }
        let v = v.as_str().unwrap_or_default();
        for m in names::label_value(v) {
            errors.push(FieldError::invalid(path, v, m));
        }
    }
}

/// Keys and the total size of annotations.
pub fn annotations(annotations: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (k, v) in annotations.as_object().into_iter().flatten() {
        for m in names::qualified_name(&k.to_lowercase()) {
            errors.push(FieldError::invalid(path, k.as_str(), m));
        }
        total += k.len() + v.as_str().map_or(0, str::len);
    }
    if total > MAX_ANNOTATION_BYTES {
        errors.push(FieldError::too_long(path, MAX_ANNOTATION_BYTES as u64));
    }
}

fn owners(obj: &Value, errors: &mut Vec<FieldError>) {
    let mut controller: Option<&str> = None;
    for o in object::owner_references(obj) {
        let text = |f: &str| o.get(f).and_then(Value::as_str).unwrap_or_default();
        let path = "metadata.ownerReferences";
        // A missing field is reported by the schema; an empty one here.
        for (field, message) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if o.get(field).is_some() && text(field).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", message));
            }
        }
        if o.get("controller").and_then(Value::as_bool) == Some(true) {
            match controller {
                Some(first) => errors.push(FieldError::invalid(
                    path,
                    o.clone(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                        text("name")
                    ),
                )),
                None => controller = Some(text("name")),
            }
        }
    }
}

fn finalizer(f: &str, errors: &mut Vec<FieldError>) {
    let found = names::qualified_name(f);
    for m in &found {
        errors.push(FieldError::invalid("metadata.finalizers", f, m.as_str()));
    }
}

/// What built-in kinds demand of finalizers beyond that (core `validation.ValidateObjectMeta`).
pub fn standard_finalizers(obj: &Value, errors: &mut Vec<FieldError>) {
    for f in object::finalizers(obj) {
        let is_known = f.contains('/') || matches!(f, "orphan" | "foregroundDeletion" | "kubernetes");
        if !is_known && names::qualified_name(f).is_empty() {
            errors.push(FieldError::invalid(
                "metadata.finalizers",
                f,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
}

/// What an update may not change.
pub fn validate_update(obj: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if !object::get(old, "/metadata/deletionTimestamp").is_null() {
        let before = object::finalizers(old);
        let added: Vec<&str> = object::finalizers(obj).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")),
            ));
        }
    }
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        immutable(obj, old, &format!("/metadata/{field}"), errors);
    }
}

/// Reports a change of the value at `path` (`/spec/selector`).
pub fn immutable(obj: &Value, old: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let new = object::get(obj, path);
    if new != object::get(old, path) {
        errors.push(FieldError::invalid(
            path.trim_start_matches('/').replace('/', "."),
            new.clone(),
            "field is immutable",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(v: &Value) -> Vec<String> {
        let mut e = Vec::new();
        validate(v, true, names::dns1123_subdomain, &mut e);
        e.iter().map(|e| e.path.clone()).collect()
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
        let mut e = Vec::new();
        let finalizers = json!({"metadata": {"finalizers": ["x", "orphan", "a.b/c"]}});
        standard_finalizers(&finalizers, &mut e);
        assert_eq!(e.iter().map(|e| e.value.clone()).collect::<Vec<_>>(), [json!("x")]);
        let mut e = Vec::new();
        validate_update(
            &json!({"metadata": {"name": "a", "uid": "2"}}),
            &json!({"metadata": {"name": "a", "uid": "1"}}),
            &mut e,
        );
        assert_eq!(e[0].to_string(), r#"metadata.uid: Invalid value: "2": field is immutable"#);
    }
}
