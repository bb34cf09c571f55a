//! Builds a schema from a CRD's structural `openAPIV3Schema`.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    Field, Limits, ListType, Name, Node, NodeId, PatchStrategy, Pattern, SchemaRef, SchemaSet, Shape,
};

/// Why an `openAPIV3Schema` was refused.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("{0}: must be an object")]
    NotAnObject(String),
    #[error("{0}: Unsupported type {1:?}")]
    Type(String, String),
    #[error("{0}: schema is nested too deeply")]
    Depth(String),
}

/// Nested schemas deeper than this are refused.
const MAX_DEPTH: usize = 100;

/// The part of ObjectMeta that a schema needs; server-set fields are plain.
fn copy_builtin(to: &mut SchemaSet, name: &str) -> NodeId {
    let from = SchemaSet::builtin();
    let Some(root) = from.by_name.get(name) else { return to.push(Node::new(Shape::Any)) };
    copy_node(to, from, *root)
}

fn copy_node(to: &mut SchemaSet, from: &SchemaSet, id: NodeId) -> NodeId {
    let source = from.node(id);
    if let Some(known) = to.by_name.get(&source.name).filter(|_| !source.name.is_empty()) {
        return *known;
    }
    let mut node = source.clone();
    let new = to.push(Node::new(source.shape));
    if !node.name.is_empty() {
        to.by_name.insert(node.name.clone(), new);
    }
    node.item = source.item.map(|i| copy_node(to, from, i));
    for f in &mut node.fields {
        f.node = copy_node(to, from, f.node);
    }
    to.nodes[new as usize] = node;
    new
}

pub(super) fn build(schema: &Value) -> Result<SchemaRef, SchemaError> {
    let mut set = SchemaSet::default();
    let id = add(&mut set, schema, "openAPIV3Schema", true, 0)?;
    set.nodes.shrink_to_fit();
    Ok(SchemaRef { set: Arc::new(set), id })
}

fn number(m: &Map<String, Value>, key: &str) -> Option<u64> {
    m.get(key).and_then(Value::as_u64)
}

fn flag(m: &Map<String, Value>, key: &str) -> bool {
    m.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn limits(
    set: &mut SchemaSet,
    m: &Map<String, Value>,
    path: &str,
    depth: usize,
) -> Result<Limits, SchemaError> {
    let pattern = m.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty()).map(Pattern::new);
    let mut many = |key: &str| -> Result<Vec<NodeId>, SchemaError> {
        let list = m.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter()
            .enumerate()
            .map(|(i, s)| add(set, s, &format!("{path}.{key}[{i}]"), false, depth + 1))
            .collect()
    };
    let (all_of, any_of, one_of) = (many("allOf")?, many("anyOf")?, many("oneOf")?);
    let not = match m.get("not") {
        Some(s) if s.is_object() => Some(add(set, s, &format!("{path}.not"), false, depth + 1)?),
        _ => None,
    };
    let names = |key: &str| -> Vec<Name> {
        m.get(key)
            .and_then(Value::as_array)
            .map(|a| a.iter().filter_map(Value::as_str).map(|s| Cow::Owned(s.to_string())).collect())
            .unwrap_or_default()
    };
    Ok(Limits {
        default: m.get("default").filter(|v| !v.is_null() || flag(m, "nullable")).cloned(),
        enumeration: m.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        minimum: m.get("minimum").and_then(Value::as_f64),
        maximum: m.get("maximum").and_then(Value::as_f64),
        exclusive_minimum: flag(m, "exclusiveMinimum"),
        exclusive_maximum: flag(m, "exclusiveMaximum"),
        multiple_of: m.get("multipleOf").and_then(Value::as_f64),
        min_length: number(m, "minLength"),
        max_length: number(m, "maxLength"),
        pattern,
        format: m.get("format").and_then(Value::as_str).map(|s| Cow::Owned(s.to_string())),
        min_items: number(m, "minItems"),
        max_items: number(m, "maxItems"),
        unique_items: flag(m, "uniqueItems"),
        min_properties: number(m, "minProperties"),
        max_properties: number(m, "maxProperties"),
        required: names("required"),
        all_of,
        any_of,
        one_of,
        not,
        validations: super::rules::compile(m.get("x-kubernetes-validations")),
    })
}

fn has_properties(m: &Map<String, Value>) -> bool {
    m.get("properties").and_then(Value::as_object).is_some_and(|properties| !properties.is_empty())
}

fn shape(m: &Map<String, Value>, path: &str) -> Result<Shape, SchemaError> {
    let format = m.get("format").and_then(Value::as_str).unwrap_or_default();
    Ok(match m.get("type").and_then(Value::as_str).unwrap_or_default() {
        // A type beside it counts: such values are of that type.
        "" if flag(m, "x-kubernetes-int-or-string") => Shape::IntOrString,
        "" => Shape::Any,
        "string" => Shape::String,
        "integer" if format == "int32" => Shape::Int32,
        "integer" => Shape::Int64,
        "number" => Shape::Number,
        "boolean" => Shape::Bool,
        "array" => Shape::Array,
        "object" => match m.get("additionalProperties") {
            Some(Value::Object(_) | Value::Bool(true)) if !has_properties(m) => Shape::Map,
            _ => Shape::Object,
        },
        other => return Err(SchemaError::Type(path.to_string(), other.to_string())),
    })
}

fn add(
    set: &mut SchemaSet,
    schema: &Value,
    path: &str,
    root: bool,
    depth: usize,
) -> Result<NodeId, SchemaError> {
    if depth > MAX_DEPTH {
        return Err(SchemaError::Depth(path.to_string()));
    }
    let m = schema.as_object().ok_or_else(|| SchemaError::NotAnObject(path.to_string()))?;
    let mut node = Node::new(shape(m, path)?);
    node.preserve_unknown = flag(m, "x-kubernetes-preserve-unknown-fields")
        // Beside properties: whatever else there is.
        || (node.shape == Shape::Object && flag(m, "additionalProperties"))
        || (node.shape == Shape::Any && !m.contains_key("properties"));
    node.nullable = flag(m, "nullable");
    node.embedded = flag(m, "x-kubernetes-embedded-resource");
    node.atomic = m.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
    node.list = match m.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListType::Set,
        Some("map") => ListType::Map(
            m.get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array)
                .map(|a| a.iter().filter_map(Value::as_str).map(|s| Cow::Owned(s.to_string())).collect())
                .unwrap_or_default(),
        ),
        _ => ListType::Atomic,
    };
    let l = limits(set, m, path, depth)?;
    set.has_rules |= !l.validations.is_empty();
    set.has_transitions |= l.validations.iter().any(super::Rule::is_transition);
    let required: Vec<Name> = l.required.clone();
    node.limits = Some(Box::new(l));
    if let Some(props) = m.get("properties").and_then(Value::as_object) {
        if node.shape == Shape::Any {
            // A value validation (inside allOf and the like) that names properties only.
            node.preserve_unknown = true;
        }
        for (name, sub) in props {
            if (root || node.embedded) && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let id = add(set, sub, &format!("{path}.properties[{name}]"), false, depth + 1)?;
            let required = required.iter().any(|r| r == name);
            node.fields.push(plain(name.clone(), id, required));
        }
    }
    node.item = match (node.shape, m.get("items"), m.get("additionalProperties")) {
        (Shape::Array, Some(items), _) => Some(add(set, items, &format!("{path}.items"), false, depth + 1)?),
        (Shape::Array, None, _) => Some(set.push(Node::new(Shape::Any))),
        (_, _, Some(values @ Value::Object(_))) => {
            Some(add(set, values, &format!("{path}.additionalProperties"), false, depth + 1)?)
        }
        (_, _, Some(Value::Bool(true))) => Some(set.push(Node::new(Shape::Any))),
        _ => None,
    };
    if root || node.embedded {
        let string = set.push(Node::new(Shape::String));
        node.fields.push(plain("apiVersion".to_string(), string, false));
        node.fields.push(plain("kind".to_string(), string, false));
        let meta = copy_builtin(set, "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        node.fields.push(plain("metadata".to_string(), meta, false));
        if matches!(node.shape, Shape::Any | Shape::Map) {
            node.shape = Shape::Object;
        }
    }
    node.fields.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    node.fields.shrink_to_fit();
    Ok(set.push(node))
}

fn plain(name: String, node: NodeId, required: bool) -> Field {
    Field {
        name: Cow::Owned(name),
        node,
        required,
        atomic: false,
        patch: PatchStrategy::default(),
        merge_key: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn structural_schema() {
        let s = SchemaRef::from_openapi(&json!({
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object", "required": ["size"],
                    "properties": {
                        "size": {"type": "integer", "format": "int32", "minimum": 1, "default": 3},
                        "port": {"x-kubernetes-int-or-string": true},
                        "items": {"type": "array", "x-kubernetes-list-type": "map",
                                  "x-kubernetes-list-map-keys": ["name"],
                                  "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}}
                    }
                }
            }
        }))
        .unwrap();
        let spec = s.field("spec").unwrap();
        assert!(spec.node().field("size").unwrap().required);
        assert_eq!(spec.field("port").unwrap().node().shape, Shape::IntOrString);
        assert_eq!(spec.field("items").unwrap().node().list, ListType::Map(vec!["name".into()]));
        assert!(spec.field("free").unwrap().node().preserve_unknown);
        assert_eq!(spec.field("labels").unwrap().node().shape, Shape::Map);
        assert_eq!(s.field("metadata").unwrap().node().short_name(), "ObjectMeta");
    }

    #[test]
    fn bad_schema() {
        assert!(SchemaRef::from_openapi(&json!({"type": "thing"})).is_err());
    }
}
