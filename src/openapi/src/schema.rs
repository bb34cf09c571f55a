//! Types as OpenAPI schemas.

use std::collections::BTreeSet;

use kedge_api::registry::Resource;
use kedge_api::schema::{ListType, Node, NodeId, PatchStrategy, SchemaRef, SchemaSet, Shape};
use serde_json::{Map, Value, json};

use crate::Descriptions;
use crate::custom::{self, Common};

/// The two versions differ in where definitions live and in how a reference may carry a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub(crate) fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

/// Collects the definitions that some resources need.
pub(crate) struct Writer<'a> {
    dialect: Dialect,
    descriptions: &'a Descriptions,
    definitions: Map<String, Value>,
}

/// A resource's definition name: the type's own, or one made of group, version and kind for a CRD's.
pub(crate) fn definition_name(resource: &Resource) -> String {
    let name = &resource.schema.node().name;
    if name.is_empty() {
        let mut parts: Vec<&str> = resource.group.rsplit('.').collect();
        parts.extend([&*resource.version, &*resource.kind]);
        parts.join(".")
    } else {
        name.to_string()
    }
}

impl<'a> Writer<'a> {
    pub(crate) fn new(dialect: Dialect, descriptions: &'a Descriptions) -> Self {
        Self { dialect, descriptions, definitions: Map::new() }
    }

    pub(crate) fn finish(self) -> Map<String, Value> {
        self.definitions
    }

    /// The resource's type, its list's, and what both are made of; `custom` is the schema of its definition, if
    /// it has one.
    pub(crate) fn add_resource(&mut self, resource: &Resource, custom: Option<Value>) {
        let name = definition_name(resource);
        match custom {
            Some(schema) => {
                let common = self.common();
                self.definitions.insert(name.clone(), custom::definition(schema, &common, self.dialect));
            }
            None => self.add(&name, &resource.schema),
        }
        if let Some(definition) = self.definitions.get_mut(&name) {
            definition["x-kubernetes-group-version-kind"] =
                json!([{ "group": resource.group, "version": resource.version, "kind": resource.kind }]);
        }
        if !resource.verbs.iter().any(|verb| *verb == "list") {
            return;
        }
        let metadata = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
        if let Some(schema) = SchemaSet::builtin().by_name(metadata) {
            self.add(metadata, &schema);
        }
        self.definitions.insert(
            format!("{name}List"),
            json!({
                "description": format!("{} is a list of {} objects.", resource.list_kind, resource.kind),
                "type": "object",
                "required": ["items"],
                "properties": {
                    "apiVersion": { "type": "string" },
                    "kind": { "type": "string" },
                    "metadata": { "$ref": self.dialect.reference(metadata) },
                    "items": { "type": "array", "items": { "$ref": self.dialect.reference(&name) } },
                },
                "x-kubernetes-group-version-kind":
                    [{ "group": resource.group, "version": resource.version, "kind": resource.list_kind }],
            }),
        );
    }

    /// What every object has, described as upstream does it.
    fn common(&mut self) -> Common {
        let metadata = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
        if let Some(schema) = SchemaSet::builtin().by_name(metadata) {
            self.add(metadata, &schema);
        }
        let place = |field: &str| match field {
            "metadata" => json!({ "$ref": self.dialect.reference(metadata) }),
            _ => json!({ "type": "string" }),
        };
        ["apiVersion", "kind", "metadata"].map(|field| {
            let text = self.text("io.k8s.api.core.v1.ConfigMap", field);
            (field, described(place(field), text, self.dialect))
        })
    }

    fn add(&mut self, name: &str, root: &SchemaRef) {
        let mut waiting = vec![(name.to_owned(), root.clone())];
        while let Some((name, schema)) = waiting.pop() {
            if self.definitions.contains_key(&name) {
                continue;
            }
            let mut needed = BTreeSet::new();
            let definition = self.definition(&name, &schema, &mut needed);
            self.definitions.insert(name, definition);
            for id in needed {
                let schema = schema.at(id);
                waiting.push((schema.node().name.to_string(), schema));
            }
        }
    }

    fn definition(&self, name: &str, schema: &SchemaRef, needed: &mut BTreeSet<NodeId>) -> Value {
        let mut value = self.inline(schema.set(), schema.node(), name, needed);
        if let Some(text) = self.text(name, "") {
            value["description"] = json!(text);
        }
        value
    }

    fn text(&self, name: &str, field: &str) -> Option<&str> {
        self.descriptions.get(name)?.get(field).map(String::as_str)
    }

    fn inline(&self, set: &SchemaSet, node: &Node, name: &str, needed: &mut BTreeSet<NodeId>) -> Value {
        let mut value = match node.shape {
            Shape::Any => json!({ "type": "object" }),
            Shape::String => json!({ "type": "string" }),
            Shape::Bytes => json!({ "type": "string", "format": "byte" }),
            Shape::Time | Shape::MicroTime => json!({ "type": "string", "format": "date-time" }),
            Shape::Quantity if self.dialect == Dialect::V3 => {
                json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] })
            }
            Shape::IntOrString if self.dialect == Dialect::V3 => {
                json!({ "oneOf": [{ "type": "integer" }, { "type": "string" }], "format": "int-or-string" })
            }
            Shape::Quantity => json!({ "type": "string" }),
            Shape::IntOrString => json!({ "type": "string", "format": "int-or-string" }),
            Shape::Int32 => json!({ "type": "integer", "format": "int32" }),
            Shape::Int64 => json!({ "type": "integer", "format": "int64" }),
            Shape::Number => json!({ "type": "number", "format": "double" }),
            Shape::Bool => json!({ "type": "boolean" }),
            Shape::Array => self.array(set, node, needed),
            Shape::Map => {
                let mut value = json!({ "type": "object" });
                if let Some(item) = node.item {
                    value["additionalProperties"] = self.place(set, item, needed);
                }
                value
            }
            Shape::Object => self.object(set, node, name, needed),
        };
        if node.atomic {
            value["x-kubernetes-map-type"] = json!("atomic");
        }
        if node.preserve_unknown && node.shape != Shape::Any {
            value["x-kubernetes-preserve-unknown-fields"] = json!(true);
        }
        value
    }

    fn array(&self, set: &SchemaSet, node: &Node, needed: &mut BTreeSet<NodeId>) -> Value {
        let mut value = json!({ "type": "array" });
        if let Some(item) = node.item {
            value["items"] = self.place(set, item, needed);
        }
        match &node.list {
            ListType::Atomic => value["x-kubernetes-list-type"] = json!("atomic"),
            ListType::Set => value["x-kubernetes-list-type"] = json!("set"),
            ListType::Map(keys) => {
                value["x-kubernetes-list-type"] = json!("map");
                value["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
        value
    }

    fn object(&self, set: &SchemaSet, node: &Node, name: &str, needed: &mut BTreeSet<NodeId>) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &node.fields {
            let mut value =
                described(self.place(set, field.node, needed), self.text(name, &field.name), self.dialect);
            if let Some(strategy) = strategy(field.patch) {
                value["x-kubernetes-patch-strategy"] = json!(strategy);
            }
            if let Some(key) = &field.merge_key {
                value["x-kubernetes-patch-merge-key"] = json!(key);
            }
            if field.required {
                required.push(field.name.as_ref());
            }
            properties.insert(field.name.to_string(), value);
        }
        let mut value = json!({ "type": "object" });
        if !properties.is_empty() {
            value["properties"] = Value::Object(properties);
        }
        if !required.is_empty() {
            value["required"] = json!(required);
        }
        value
    }

    /// A type where it is used: a reference when it has a name.
    fn place(&self, set: &SchemaSet, id: NodeId, needed: &mut BTreeSet<NodeId>) -> Value {
        let node = set.node(id);
        if node.name.is_empty() {
            return self.inline(set, node, "", needed);
        }
        needed.insert(id);
        json!({ "$ref": self.dialect.reference(&node.name) })
    }
}

/// Beside a reference OpenAPI v3 wants no other key.
fn described(mut value: Value, text: Option<&str>, dialect: Dialect) -> Value {
    let Some(text) = text else { return value };
    if value.get("$ref").is_some() && dialect == Dialect::V3 {
        value = json!({ "allOf": [value] });
    }
    value["description"] = json!(text);
    value
}

fn strategy(patch: PatchStrategy) -> Option<&'static str> {
    match (patch.merge, patch.retain_keys, patch.replace) {
        (true, true, _) => Some("merge,retainKeys"),
        (true, false, _) => Some("merge"),
        (false, true, _) => Some("retainKeys"),
        (false, false, true) => Some("replace"),
        (false, false, false) => None,
    }
}
