//! Parses `data/types.txt`, the facts about the built-in types.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::{Field, Gvk, ListType, Name, Node, NodeId, PatchStrategy, SchemaSet, Shape};

const TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/types.txt.gz"));

/// The table is immutable, so one parsed copy serves the process.
pub(super) fn get() -> &'static Arc<SchemaSet> {
    static SET: OnceLock<Arc<SchemaSet>> = OnceLock::new();
    SET.get_or_init(|| Arc::new(parse(crate::packed::text(TABLE))))
}

fn long_name(short: &'static str) -> Name {
    let (prefix, rest) = match short.as_bytes().first() {
        Some(b'.') => ("io.k8s.api.", &short[1..]),
        Some(b'+') => ("io.k8s.apimachinery.pkg.apis.meta.v1.", &short[1..]),
        Some(b'~') => ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.", &short[1..]),
        Some(b'^') => ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.", &short[1..]),
        _ => return Cow::Borrowed(short),
    };
    Cow::Owned(format!("{prefix}{rest}"))
}

/// Types that the table declares without fields.
fn special(name: &str) -> Shape {
    match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Shape::Quantity,
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Shape::IntOrString,
        "+Time" => Shape::Time,
        "+MicroTime" => Shape::MicroTime,
        "+FieldsV1"
        | "+Patch"
        | "io.k8s.apimachinery.pkg.runtime.RawExtension"
        | "~JSON"
        | "~JSONSchemaPropsOrArray"
        | "~JSONSchemaPropsOrBool"
        | "~JSONSchemaPropsOrStringArray" => Shape::Any,
        _ => Shape::Object,
    }
}

struct Parser {
    set: SchemaSet,
    ids: HashMap<&'static str, NodeId>,
    inline: HashMap<(String, bool), NodeId>,
}

impl Parser {
    /// The node of a type expression; equal inline types share one node.
    fn node(&mut self, expr: &'static str, list: &ListType, atomic: bool) -> NodeId {
        if let Some(name) = expr.strip_prefix('@') {
            return self.ids.get(name).copied().unwrap_or_default();
        }
        let key = (format!("{expr} {list:?}"), atomic);
        if let Some(id) = self.inline.get(&key) {
            return *id;
        }
        let mut node = Node::new(match expr.as_bytes()[0] {
            b's' => Shape::String,
            b'y' => Shape::Bytes,
            b'i' => Shape::Int32,
            b'l' => Shape::Int64,
            b'd' => Shape::Number,
            b'b' => Shape::Bool,
            b'[' => Shape::Array,
            b'{' => Shape::Map,
            _ => Shape::Any,
        });
        if matches!(node.shape, Shape::Array | Shape::Map) {
            node.item = Some(self.node(&expr[1..], &ListType::Atomic, false));
        }
        node.list = list.clone();
        node.atomic = atomic;
        let id = self.set.push(node);
        self.inline.insert(key, id);
        id
    }

    fn field(&mut self, line: &'static str) -> Field {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let expr = words.next().unwrap_or("s");
        let mut list = ListType::Atomic;
        let mut field = Field {
            name: Cow::Borrowed(name),
            node: 0,
            required: false,
            atomic: false,
            patch: PatchStrategy::default(),
            merge_key: None,
        };
        for word in words {
            match word.as_bytes()[0] {
                b'!' => field.required = true,
                b'A' => field.atomic = true,
                b'L' => {
                    list = match &word[1..] {
                        "s" => ListType::Set,
                        "a" => ListType::Atomic,
                        keys => ListType::Map(keys[2..].split(',').map(Cow::Borrowed).collect()),
                    };
                }
                _ => {
                    let (what, key) = word[1..].split_once(':').unwrap_or((&word[1..], ""));
                    field.patch.merge = what.contains('m');
                    field.patch.retain_keys = what.contains('r');
                    field.patch.replace = what.contains('x');
                    field.merge_key = (!key.is_empty()).then_some(Cow::Borrowed(key));
                }
            }
        }
        let is_ref = expr.starts_with('@');
        field.node = self.node(expr, &list, field.atomic && !is_ref);
        field
    }
}

fn parse(table: &'static str) -> SchemaSet {
    let mut p = Parser {
        set: SchemaSet { builtin: true, ..Default::default() },
        ids: HashMap::new(),
        inline: HashMap::new(),
    };
    for line in table.lines() {
        if let Some(rest) = line.strip_prefix("T ") {
            let (short, flags) = rest.split_once(' ').unwrap_or((rest, ""));
            let mut node = Node::new(special(short));
            node.name = long_name(short);
            node.atomic = flags == "a";
            let name = node.name.clone();
            let id = p.set.push(node);
            p.ids.insert(short, id);
            p.set.by_name.insert(name, id);
        }
    }
    let mut current: NodeId = 0;
    for line in table.lines() {
        match line.as_bytes().first() {
            Some(b'T') => {
                let short = line[2..].split(' ').next().unwrap_or_default();
                current = p.ids[short];
            }
            Some(b'G') => {
                let mut w = line[2..].split(' ').map(|s| if s == "-" { "" } else { s });
                let mut next = || Cow::Borrowed(w.next().unwrap_or_default());
                let gvk = Gvk { group: next(), version: next(), kind: next(), node: current };
                p.set.gvks.push(gvk);
            }
            Some(b' ') => {
                let field = p.field(&line[1..]);
                p.set.nodes[current as usize].fields.push(field);
            }
            _ => {}
        }
    }
    p.set.nodes.shrink_to_fit();
    for node in &mut p.set.nodes {
        node.fields.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        node.fields.shrink_to_fit();
    }
    p.set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_well_known_types() {
        let set = get();
        let pod = set.by_gvk("", "v1", "Pod").unwrap();
        let spec = pod.field("spec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!(containers.node().list, ListType::Map(vec!["name".into()]));
        let f = spec.node().field("containers").unwrap();
        assert!(f.required && f.patch.merge);
        assert_eq!(f.merge_key.as_deref(), Some("name"));
        let item = containers.at(containers.node().item.unwrap());
        assert_eq!(item.node().short_name(), "Container");
        assert_eq!(
            item.field("ports").unwrap().node().list,
            ListType::Map(vec!["containerPort".into(), "protocol".into()])
        );
        assert!(spec.node().field("nodeSelector").unwrap().atomic);
        let deploy = set.by_gvk("apps", "v1", "Deployment").unwrap().field("spec").unwrap();
        assert_eq!(deploy.field("replicas").unwrap().node().shape, Shape::Int32);
        assert!(deploy.node().field("strategy").unwrap().patch.retain_keys);
        assert_eq!(set.by_gvk("", "v1", "Nothing").map(|s| s.id()), None);
    }

    #[test]
    fn fits_in_memory() {
        let set = get();
        let bytes: usize = set
            .nodes
            .iter()
            .map(|n| size_of::<Node>() + n.fields.capacity() * size_of::<Field>() + n.name.len())
            .sum();
        assert!(bytes < 500_000, "{bytes}");
        assert!(set.types().len() > 500);
    }
}
