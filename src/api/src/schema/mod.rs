//! The structural schema of the API: what fields a type has, how its lists and
//! maps merge, which types are scalars with their own syntax.
//!
//! One arena ([`SchemaSet`]) holds every node; a [`SchemaRef`] is a cheap pointer
//! into it. The built-in set is parsed once from `data/types.txt`; a CRD makes
//! its own small set from its `openAPIV3Schema`. Nothing here does I/O.

mod builtin;
mod check;
mod openapi;
mod pattern;
mod rules;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

pub use check::{apply_defaults, validate_schema, validate_schema_update};
pub use openapi::SchemaError;
pub use pattern::Pattern;
pub use rules::{Rule, mistakes, unenforced};

/// A name that is static for built-in types and owned for those of a CRD.
pub type Name = Cow<'static, str>;
/// The index of a node within its set.
pub type NodeId = u32;

/// What values a node takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Anything: `JSON`, `RawExtension`, `x-kubernetes-preserve-unknown-fields`.
    Any,
    String,
    /// A string of base64.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A string or a number that is a resource quantity.
    Quantity,
    /// An int32 or a string.
    IntOrString,
    Int32,
    Int64,
    Number,
    Bool,
    Array,
    /// An object with arbitrary keys; the values are of node `item`.
    Map,
    /// An object with declared fields.
    Object,
}

/// How a list merges (x-kubernetes-list-type).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Items are identified by the values of these fields.
    Map(Vec<Name>),
}

/// What a strategic merge patch does with a field (x-kubernetes-patch-strategy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    /// Named explicitly; replacing is also what happens without any strategy.
    pub replace: bool,
}

/// One declared field of an object.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: Name,
    pub node: NodeId,
    pub required: bool,
    /// x-kubernetes-map-type: atomic, given at the field and not at its type.
    pub atomic: bool,
    pub patch: PatchStrategy,
    pub merge_key: Option<Name>,
}

/// Value constraints; only schemas of CRDs have them.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub default: Option<Value>,
    pub enumeration: Vec<Value>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: Option<Pattern>,
    pub format: Option<Name>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    /// Required names, also of fields that are not declared.
    pub required: Vec<Name>,
    /// Value validations: schemas that constrain but declare nothing.
    pub all_of: Vec<NodeId>,
    pub any_of: Vec<NodeId>,
    pub one_of: Vec<NodeId>,
    pub not: Option<NodeId>,
    /// `x-kubernetes-validations`.
    pub validations: Arc<[rules::Rule]>,
}

/// One type.
#[derive(Clone, Debug)]
pub struct Node {
    /// The definition's name (`io.k8s.api.core.v1.Pod`); empty for an inline type.
    pub name: Name,
    pub shape: Shape,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// The node of an array's items or of a map's values.
    pub item: Option<NodeId>,
    pub list: ListType,
    /// x-kubernetes-map-type: atomic.
    pub atomic: bool,
    pub preserve_unknown: bool,
    /// x-kubernetes-embedded-resource: apiVersion, kind and metadata are kept.
    pub embedded: bool,
    pub nullable: bool,
    pub limits: Option<Box<Limits>>,
}

impl Node {
    fn new(shape: Shape) -> Self {
        Self {
            name: Cow::Borrowed(""),
            shape,
            fields: Vec::new(),
            item: None,
            list: ListType::Atomic,
            atomic: false,
            preserve_unknown: shape == Shape::Any,
            embedded: false,
            nullable: false,
            limits: None,
        }
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok().map(|i| &self.fields[i])
    }

    /// The last segment of the definition's name: Go's name of the struct.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// A group, version and kind with the node of its type.
#[derive(Clone, Debug)]
pub struct Gvk {
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub node: NodeId,
}

/// All nodes of the built-in API or of one CRD's version.
#[derive(Debug, Default)]
pub struct SchemaSet {
    nodes: Vec<Node>,
    by_name: HashMap<Name, NodeId>,
    gvks: Vec<Gvk>,
    /// Some node has validation rules.
    has_rules: bool,
    /// Some rule looks at the value before.
    has_transitions: bool,
    /// True for the built-in types, whose decoding follows Go's `omitempty`.
    builtin: bool,
}

impl SchemaSet {
    /// The built-in types of Kubernetes 1.36, parsed at first use.
    pub fn builtin() -> &'static Arc<SchemaSet> {
        builtin::get()
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// All named types, in the order of their names.
    pub fn types(&self) -> Vec<(&str, NodeId)> {
        let mut all: Vec<_> = self.by_name.iter().map(|(n, id)| (n.as_ref(), *id)).collect();
        all.sort_unstable();
        all
    }

    /// All kinds with their types.
    pub fn gvks(&self) -> &[Gvk] {
        &self.gvks
    }

    pub fn by_name(self: &Arc<Self>, name: &str) -> Option<SchemaRef> {
        self.by_name.get(name).map(|id| SchemaRef { set: Arc::clone(self), id: *id })
    }

    pub fn by_gvk(self: &Arc<Self>, group: &str, version: &str, kind: &str) -> Option<SchemaRef> {
        self.gvks
            .iter()
            .find(|g| g.kind == kind && g.version == version && g.group == group)
            .map(|g| SchemaRef { set: Arc::clone(self), id: g.node })
    }

    pub fn is_builtin(&self) -> bool {
        self.builtin
    }

    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }
}

/// A pointer to one type within its set.
#[derive(Clone, Debug)]
pub struct SchemaRef {
    set: Arc<SchemaSet>,
    id: NodeId,
}

impl SchemaRef {
    /// From a structural `openAPIV3Schema`; the root is an object with
    /// `apiVersion`, `kind` and `metadata` of the built-in ObjectMeta.
    pub fn from_openapi(schema: &Value) -> Result<SchemaRef, SchemaError> {
        openapi::build(schema)
    }

    /// A type that takes anything below `apiVersion`, `kind` and `metadata`.
    pub fn untyped() -> SchemaRef {
        let any = serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        openapi::build(&any).unwrap_or_else(|_| SchemaRef { set: Arc::clone(SchemaSet::builtin()), id: 0 })
    }

    pub fn set(&self) -> &Arc<SchemaSet> {
        &self.set
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn node(&self) -> &Node {
        self.set.node(self.id)
    }

    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { set: &self.set, node: self.node(), atomic: false }
    }

    pub fn field(&self, name: &str) -> Option<SchemaRef> {
        self.node().field(name).map(|f| SchemaRef { set: Arc::clone(&self.set), id: f.node })
    }

    /// The same set at another node.
    pub fn at(&self, id: NodeId) -> SchemaRef {
        SchemaRef { set: Arc::clone(&self.set), id }
    }
}

/// A borrowed place in a schema, for walks beside a value.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    pub set: &'a SchemaSet,
    pub node: &'a Node,
    /// The field by which this place was reached says "atomic".
    pub atomic: bool,
}

impl<'a> Cursor<'a> {
    /// A declared field.
    pub fn field(&self, name: &str) -> Option<(&'a Field, Cursor<'a>)> {
        let field = self.node.field(name)?;
        Some((field, Cursor { set: self.set, node: self.set.node(field.node), atomic: field.atomic }))
    }

    pub fn at(&self, id: NodeId) -> Cursor<'a> {
        Cursor { set: self.set, node: self.set.node(id), atomic: false }
    }

    /// The items of an array or the values of a map.
    pub fn item(&self) -> Option<Cursor<'a>> {
        self.node.item.map(|id| self.at(id))
    }

    /// The child under an object's or a map's key; `None` where nothing is declared.
    pub fn child(&self, key: &str) -> Option<Cursor<'a>> {
        match self.node.field(key) {
            Some(f) => Some(Cursor { set: self.set, node: self.set.node(f.node), atomic: f.atomic }),
            None => self.item(),
        }
    }

    pub fn is_atomic(&self) -> bool {
        self.atomic || self.node.atomic
    }
}
