//! Whether an applied configuration fits its type: every field is declared, every value of the declared kind, every
//! item of a list one of its own (structured-merge-diff `typed/validate.go`). Values are written as Go does it.

use serde_json::{Map, Value};

use crate::schema::{Cursor, ListType, SchemaRef, Shape};

/// After so many bytes no further error is told: each has its whole path, and clients choose the names in it.
const MOST: usize = 64 << 10;

/// What does not fit, each with its path; empty: it fits.
pub fn mismatches(schema: &SchemaRef, value: &Value) -> Vec<String> {
    let mut walk = Walk { path: String::new(), found: Vec::new(), room: MOST };
    walk.check(schema.cursor(), value, false);
    walk.found
}

/// One line, or one for each, as `typed.ValidationErrors`.
pub fn told(found: &[String]) -> String {
    match found {
        [one] => one.clone(),
        many => many.iter().fold("errors:".to_owned(), |text, error| format!("{text}\n  {error}")),
    }
}

struct Walk {
    /// `.spec.containers[name="a"]`
    path: String,
    found: Vec<String>,
    room: usize,
}

impl Walk {
    fn tell(&mut self, what: &str) {
        if self.room == 0 {
            return;
        }
        let error = if self.path.is_empty() { what.to_owned() } else { format!("{}: {what}", self.path) };
        self.room = self.room.saturating_sub(error.len());
        self.found.push(error);
    }

    fn below(&mut self, element: &str, check: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(element);
        check(self);
        self.path.truncate(length);
    }

    /// `preserves`: a type around this one, of the same definition, takes unknown fields.
    fn check(&mut self, at: Cursor<'_>, value: &Value, preserves: bool) {
        let preserves = at.node.name.is_empty() && (preserves || at.node.preserve_unknown);
        match (at.node.shape, value) {
            (Shape::Any, _) | (_, Value::Null) => {}
            (Shape::Object | Shape::Map, Value::Object(map)) => self.object(at, map, preserves),
            (Shape::Object | Shape::Map, other) => {
                self.tell(&format!("expected map, got &{{{}}}", go(other)));
            }
            (Shape::Array, Value::Array(items)) => self.list(at, items, preserves),
            (Shape::Array, other) => {
                self.tell(&format!("expected list, got &{{{}}}", go(other)));
            }
            (shape, value) => self.scalar(at, shape, value),
        }
    }

    fn scalar(&mut self, at: Cursor<'_>, shape: Shape, value: &Value) {
        let has_format = at.node.limits.as_ref().is_some_and(|limits| limits.format.is_some());
        match shape {
            Shape::String | Shape::Bytes if !has_format => {
                if !value.is_string() {
                    self.tell(&format!(
                        "expected string, got &value.valueUnstructured{{Value:{}}}",
                        go(value)
                    ));
                }
            }
            Shape::Int32 | Shape::Int64 | Shape::Number => {
                let got = match value {
                    Value::Number(_) => return,
                    Value::String(_) => "string",
                    Value::Bool(_) => "bool",
                    Value::Array(_) => "[]interface {}",
                    _ => "map[string]interface {}",
                };
                self.tell(&format!("expected numeric (int or float), got {got}"));
            }
            Shape::Bool => {
                if !value.is_boolean() {
                    self.tell(&format!("expected boolean, got &{{{}}}", go(value)));
                }
            }
            _ => {
                if value.is_object() || value.is_array() {
                    self.tell(&format!("expected any scalar, got &{{{}}}", go(value)));
                }
            }
        }
    }

    fn object(&mut self, at: Cursor<'_>, map: &Map<String, Value>, preserves: bool) {
        // An object of which nothing is declared takes anything.
        let is_free =
            preserves || at.node.preserve_unknown || (at.node.fields.is_empty() && at.item().is_none());
        for (name, value) in map {
            self.below(&format!(".{name}"), |walk| match at.child(name) {
                Some(child) => walk.check(child, value, preserves),
                None if is_free => {}
                None => walk.tell("field not declared in schema"),
            });
        }
    }

    fn list(&mut self, at: Cursor<'_>, items: &[Value], preserves: bool) {
        let Some(item_at) = at.item() else { return };
        let mut seen = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let element = match element(at, item_at, item) {
                Ok(Some(element)) if seen.contains(&element) => {
                    self.tell(&format!("duplicate entries for key {element}"));
                    element
                }
                Ok(Some(element)) => {
                    seen.push(element.clone());
                    element
                }
                Ok(None) => format!("[{i}]"),
                // Without its key there is no place to tell more about.
                Err(what) => return self.tell(&format!("element {i}: {what}")),
            };
            self.below(&element, |walk| walk.check(item_at, item, preserves));
        }
    }
}

/// By what an item is told from the others; `None` in an atomic list.
fn element(at: Cursor<'_>, item_at: Cursor<'_>, item: &Value) -> Result<Option<String>, String> {
    match &at.node.list {
        ListType::Atomic => Ok(None),
        ListType::Set => match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => {
                Err("associative list without keys has an element that's an explicit null".to_owned())
            }
            scalar => Ok(Some(format!("[={scalar}]"))),
        },
        ListType::Map(keys) => {
            let map = match item {
                Value::Object(map) => map,
                Value::Null => {
                    return Err("associative list with keys may not have a null element".to_owned());
                }
                _ => return Err("associative list with keys may not have non-map elements".to_owned()),
            };
            let default = |key: &str| {
                let limits = item_at.child(key).and_then(|child| child.node.limits.as_deref());
                let own = limits.and_then(|limits| limits.default.clone());
                // The only built-in key with a default: a port's protocol.
                own.or_else(|| (item_at.set.is_builtin() && key == "protocol").then(|| "TCP".into()))
            };
            let mut named: Vec<String> = keys
                .iter()
                .filter_map(|key| Some((key, map.get(key.as_ref()).cloned().or_else(|| default(key))?)))
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            if named.is_empty() {
                let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                    keys.join(" ")
                ));
            }
            named.sort();
            Ok(Some(format!("[{}]", named.join(","))))
        }
    }
}

/// As Go's `%v` writes it.
fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SchemaSet;
    use serde_json::json;

    #[test]
    fn built_in_types() {
        let pod = SchemaSet::builtin().by_gvk("", "v1", "Pod").unwrap();
        let container = |container: Value| json!({ "spec": { "containers": [container] } });
        for (value, wanted) in [
            (json!({ "metadata": { "name": "a", "labels": { "a": "b" } }, "spec": {} }), ""),
            (json!({ "metadata": { "creationTimestamp": null } }), ""),
            (json!({ "nope": 1 }), ".nope: field not declared in schema"),
            (
                json!({ "spec": { "priority": "1" } }),
                ".spec.priority: expected numeric (int or float), got string",
            ),
            (
                json!({ "spec": { "nodeName": 1 } }),
                ".spec.nodeName: expected string, got &value.valueUnstructured{Value:1}",
            ),
            (json!({ "spec": { "hostNetwork": "yes" } }), ".spec.hostNetwork: expected boolean, got &{yes}"),
            (json!({ "spec": [1, 2] }), ".spec: expected map, got &{[1 2]}"),
            (
                json!({ "spec": { "containers": { "a": 1 } } }),
                ".spec.containers: expected list, got &{map[a:1]}",
            ),
            (container(json!({ "name": "a", "resources": { "limits": { "cpu": 1, "memory": "1Gi" } } })), ""),
            (
                container(json!({ "name": "a", "imag": "x" })),
                ".spec.containers[name=\"a\"].imag: field not declared in schema",
            ),
            (
                container(
                    json!({ "name": "a", "ports": [{ "containerPort": 80 }, { "containerPort": 80, "protocol": "UDP" }] }),
                ),
                "",
            ),
            (
                container(
                    json!({ "name": "a", "ports": [{ "containerPort": 80 }, { "containerPort": 80, "protocol": "TCP" }] }),
                ),
                ".spec.containers[name=\"a\"].ports: duplicate entries for key [containerPort=80,protocol=\"TCP\"]",
            ),
            (
                container(json!({ "image": "x" })),
                ".spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
            ),
            (
                json!({ "metadata": { "finalizers": ["a/b", "a/b"] } }),
                ".metadata.finalizers: duplicate entries for key [=\"a/b\"]",
            ),
        ] {
            let found = mismatches(&pod, &value);
            assert_eq!(if found.is_empty() { String::new() } else { told(&found) }, wanted, "{value}");
        }
        let two = mismatches(&pod, &json!({ "a": 1, "b": 2 }));
        let wanted = "errors:\n  .a: field not declared in schema\n  .b: field not declared in schema";
        assert_eq!(told(&two), wanted);
    }

    #[test]
    fn what_is_told_does_not_grow_with_what_clients_choose() {
        let pod = SchemaSet::builtin().by_gvk("", "v1", "Pod").unwrap();
        let mut container = json!({ "name": "n".repeat(10_000) });
        for i in 0..1000 {
            container[format!("unknown{i}")] = json!(1);
        }
        let found = mismatches(&pod, &json!({ "spec": { "containers": [container] } }));
        assert!(!found.is_empty() && found.len() <= MOST / 10_000 + 1, "{}", found.len());
    }

    #[test]
    fn custom_types() {
        let schema = SchemaRef::from_openapi(&json!({"type": "object", "properties": {"spec": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
                    "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
                    "spec": {"type": "object"}}},
                "at": {"type": "string", "format": "date-time"}}},
            "closed": {"type": "object", "properties": {"a": {"type": "integer"}}}}}))
        .unwrap();
        for (value, wanted) in [
            (json!({ "spec": { "free": { "a": [1] }, "at": "x" } }), Vec::new()),
            (json!({ "spec": { "template": { "spec": { "any": 1 }, "other": 1 } } }), Vec::new()),
            (json!({ "closed": { "b": 1 } }), vec![".closed.b"]),
            (json!({ "unknown": 1 }), vec![".unknown"]),
            (
                json!({ "metadata": { "x": 1 }, "spec": { "template": { "metadata": { "y": 1 } } } }),
                vec![".metadata.x", ".spec.template.metadata.y"],
            ),
        ] {
            let wanted: Vec<String> =
                wanted.iter().map(|path| format!("{path}: field not declared in schema")).collect();
            assert_eq!(mismatches(&schema, &value), wanted, "{value}");
        }
        assert!(mismatches(&SchemaRef::untyped(), &json!({ "a": { "b": 1 } })).is_empty());
    }
}
