//! What is published of a custom resource: the schema of its definition, with what every object has. As
//! apiextensions-apiserver `pkg/controller/openapi/builder` does it; `v2` cannot say everything, and old
//! kubectls trip over some of what it can (`pkg/controller/openapi/v2/conversion.go`).

use serde_json::{Map, Value, json};

use crate::schema::Dialect;

/// What objects have whatever their schema says: `apiVersion`, `kind` and `metadata`, as they are published.
pub(crate) type Common = [(&'static str, Value); 3];

const PRESERVES: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
/// Flags that say nothing when they are not set.
const FLAGS: [&str; 4] = [PRESERVES, EMBEDDED, INT_OR_STRING, "nullable"];
/// Alternatives, which `v2` has no words for.
const ALTERNATIVES: [&str; 4] = ["allOf", "anyOf", "oneOf", "not"];

/// The definition that is published of a resource with this schema.
pub(crate) fn definition(mut schema: Value, common: &Common, dialect: Dialect) -> Value {
    let preserves = schema[PRESERVES] == true;
    match (schema.as_object_mut(), dialect) {
        // kubectl takes fields for wrong that stand beside any that are named.
        (_, Dialect::V2) if preserves => json!({ "type": "object" }),
        (Some(root), _) => {
            publish(root, common, dialect);
            add(root, common);
            schema
        }
        (None, _) => json!({ "type": "object" }),
    }
}

fn publish(node: &mut Map<String, Value>, common: &Common, dialect: Dialect) {
    for flag in FLAGS {
        if node.get(flag).is_some_and(|value| *value != true) {
            node.remove(flag);
        }
    }
    match dialect {
        Dialect::V2 => simplify(node),
        Dialect::V3 if is(node, INT_OR_STRING) => unfold(node),
        Dialect::V3 => {}
    }
    let fields = node.get_mut("properties").and_then(Value::as_object_mut);
    for field in fields.into_iter().flat_map(|fields| fields.values_mut()).filter_map(Value::as_object_mut) {
        publish(field, common, dialect);
    }
    for place in ["items", "additionalProperties"] {
        if let Some(part) = node.get_mut(place).and_then(Value::as_object_mut) {
            publish(part, common, dialect);
        }
    }
    let is_open = dialect == Dialect::V2 && is(node, PRESERVES);
    if is(node, EMBEDDED) && !is_open {
        add(node, common);
        let required = node.entry("required").or_insert_with(|| json!([]));
        for name in ["kind", "apiVersion"] {
            if let Some(list) = required.as_array_mut().filter(|list| !list.iter().any(|field| field == name))
            {
                list.push(json!(name));
            }
        }
    }
}

fn is(node: &Map<String, Value>, flag: &str) -> bool {
    node.get(flag) == Some(&Value::Bool(true))
}

fn add(node: &mut Map<String, Value>, common: &Common) {
    let fields = node.entry("properties").or_insert_with(|| json!({}));
    for (name, value) in common {
        fields[*name] = value.clone();
    }
}

/// The two types are alternatives of their own, unless the definition says so itself.
fn unfold(node: &mut Map<String, Value>) {
    let both = json!([{ "type": "integer" }, { "type": "string" }]);
    let first = node.get("allOf").and_then(|list| list.get(0)?.get("anyOf"));
    if node.get("anyOf") == Some(&both) || first == Some(&both) {
        return;
    }
    if !node.contains_key("anyOf") {
        node.insert("anyOf".to_owned(), both);
        return;
    }
    let all = node.entry("allOf").or_insert_with(|| json!([]));
    if let Some(all) = all.as_array_mut() {
        all.insert(0, json!({ "anyOf": both }));
    }
}

fn simplify(node: &mut Map<String, Value>) {
    for key in ALTERNATIVES {
        node.remove(key);
    }
    let is_nullable = node.remove("nullable").is_some();
    // What has no type may not say what is in it, nor may what holds more than it says.
    if is_nullable || is(node, PRESERVES) {
        node.remove("items");
        node.remove("properties");
    }
    let kind = node.get("type").and_then(Value::as_str).unwrap_or_default();
    let is_any =
        (kind == "array" && !node.contains_key("items")) || (kind == "object" && is(node, PRESERVES));
    if is_nullable || is_any {
        node.remove("type");
    }
    let nullable = |schema: &Value| schema["nullable"] == true;
    if node.get("additionalProperties").is_some_and(nullable) {
        node.remove("required");
    }
    let may_be_null: Vec<String> = node
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, field)| nullable(field))
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(required) = node.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !may_be_null.iter().any(|field| name == field));
        if required.is_empty() {
            node.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Common {
        [("apiVersion", json!("v")), ("kind", json!("k")), ("metadata", json!("m"))]
    }

    fn published(schema: Value, dialect: Dialect) -> Value {
        definition(schema, &common(), dialect)
    }

    /// What is made of one field of a definition.
    fn field(schema: Value, dialect: Dialect) -> Value {
        let root = json!({ "type": "object", "properties": { "field": schema } });
        published(root, dialect)["properties"]["field"].take()
    }

    #[test]
    fn a_definition_is_published_as_it_is() {
        let schema = json!({ "type": "object", "description": "a lamp", "required": ["spec"], "properties": {
            "metadata": { "type": "object", "properties": { "name": { "type": "string", "maxLength": 3 } } },
            "spec": { "type": "object", "x-kubernetes-validations": [{ "rule": "self.a < self.b" }], "properties": {
                "plain": { "type": "array", "minItems": 1, "items": { "type": "integer" } },
                "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string", "pattern": "a|b", "maxLength": 3 } },
                "limited": { "type": "integer", "format": "int64", "minimum": 0, "default": 1, "nullable": false },
            } },
        } });
        for dialect in [Dialect::V2, Dialect::V3] {
            let mut expected = schema.clone();
            expected["properties"]["apiVersion"] = json!("v");
            expected["properties"]["kind"] = json!("k");
            expected["properties"]["metadata"] = json!("m");
            let limited =
                expected.pointer_mut("/properties/spec/properties/limited").and_then(Value::as_object_mut);
            limited.expect("a field").remove("nullable");
            assert_eq!(published(schema.clone(), dialect), expected);
        }
    }

    #[test]
    fn what_takes_anything_names_no_field() {
        let open = json!({ "type": "object", PRESERVES: true, "properties": { "a": { "type": "string" } } });
        assert_eq!(published(open.clone(), Dialect::V2), json!({ "type": "object" }));
        let v3 = published(open.clone(), Dialect::V3);
        assert_eq!(v3["properties"]["a"], json!({ "type": "string" }));
        assert_eq!(v3["properties"]["metadata"], "m");
        assert_eq!(field(open.clone(), Dialect::V2), json!({ PRESERVES: true }));
        assert_eq!(field(open.clone(), Dialect::V3), open);
    }

    #[test]
    fn what_v2_cannot_say() {
        let cases = [
            (
                json!({ "type": "string", "anyOf": [{ "minLength": 1 }], "not": {} }),
                json!({ "type": "string" }),
            ),
            (json!({ "type": "object", "nullable": true, "properties": { "a": {} } }), json!({})),
            (json!({ "type": "array" }), json!({})),
            (
                json!({ "type": "object", "required": ["a", "b"], "properties": { "a": { "type": "string", "nullable": true }, "b": { "type": "string" } } }),
                json!({ "type": "object", "required": ["b"], "properties": { "a": {}, "b": { "type": "string" } } }),
            ),
            (
                json!({ "type": "object", "required": ["a"], "additionalProperties": { "type": "string", "nullable": true } }),
                json!({ "type": "object", "additionalProperties": {} }),
            ),
            (json!({ INT_OR_STRING: true }), json!({ INT_OR_STRING: true })),
        ];
        for (schema, expected) in cases {
            assert_eq!(field(schema.clone(), Dialect::V2), expected, "{schema}");
        }
    }

    #[test]
    fn numbers_or_words() {
        let both = json!([{ "type": "integer" }, { "type": "string" }]);
        let other = json!([{ "minLength": 1 }]);
        let cases = [
            (json!({ INT_OR_STRING: true }), json!({ INT_OR_STRING: true, "anyOf": both })),
            (json!({ INT_OR_STRING: true, "anyOf": both }), json!({ INT_OR_STRING: true, "anyOf": both })),
            (
                json!({ INT_OR_STRING: true, "anyOf": other }),
                json!({ INT_OR_STRING: true, "anyOf": other, "allOf": [{ "anyOf": both }] }),
            ),
            (
                json!({ INT_OR_STRING: true, "anyOf": other, "allOf": [{ "anyOf": both }] }),
                json!({ INT_OR_STRING: true, "anyOf": other, "allOf": [{ "anyOf": both }] }),
            ),
        ];
        for (schema, expected) in cases {
            assert_eq!(field(schema, Dialect::V3), expected);
        }
    }

    #[test]
    fn objects_within_objects() {
        let schema = json!({ "type": "object", EMBEDDED: true, "required": ["kind"] });
        for dialect in [Dialect::V2, Dialect::V3] {
            let made = field(schema.clone(), dialect);
            assert_eq!(made["required"], json!(["kind", "apiVersion"]));
            assert_eq!(made["properties"]["metadata"], "m");
        }
        let open = json!({ "type": "object", EMBEDDED: true, PRESERVES: true });
        assert_eq!(field(open.clone(), Dialect::V2), json!({ EMBEDDED: true, PRESERVES: true }));
        assert_eq!(field(open, Dialect::V3)["properties"]["kind"], "k");
    }
}
