//! The layout of the API's protobuf messages, parsed once from
//! `data/protobuf.txt`, whose first lines describe its form.

use std::collections::HashMap;
use std::sync::LazyLock;

const SOURCE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/protobuf.txt.gz"));
/// The message of CRD schemas, which the schema-or kinds hold.
const SCHEMA: &str = "~JSONSchemaProps";
/// What lists hold besides their elements.
const LIST_META: &str = "+ListMeta";

/// The data is part of the program, so it is either always sound or never: a unit
/// test reads it.
static TABLE: LazyLock<Table> =
    LazyLock::new(|| Table::parse(crate::packed::text(SOURCE)).expect("data/protobuf.txt is well formed"));

/// How often a field occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    One,
    Repeated,
    /// Entries of a string key (1) and a value (2).
    Map,
    /// A message whose fields belong to the parent in JSON.
    Inline,
}

/// What a field, an element or a map's value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    String,
    Bytes,
    Int32,
    Int64,
    Double,
    Bool,
    /// The index of a message.
    Message(u16),
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// A message with JSON text as its field 1.
    RawJson,
    /// A message with strings as its field 1, a plain array in JSON.
    Strings,
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStrings,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) number: u16,
    pub(super) label: Label,
    pub(super) item: Item,
    /// The zero value is left out of JSON (`omitempty` of a field that is no pointer).
    pub(super) omit_zero: bool,
    /// The name in JSON.
    pub(super) name: &'static str,
}

struct Kind {
    /// `*` for the option kinds, which every group version has.
    api_version: &'static str,
    kind: &'static str,
    message: u16,
}

pub(super) struct Table {
    kinds: Vec<Kind>,
    /// Where each message's fields begin; one more at the end.
    starts: Vec<u16>,
    /// All fields, by message, then by number.
    fields: Vec<Field>,
    schema: u16,
    list_meta: Option<u16>,
}

impl Table {
    pub(super) fn get() -> &'static Self {
        &TABLE
    }

    /// The message of a kind.
    pub(super) fn kind(&self, api_version: &str, kind: &str) -> Option<u16> {
        self.kinds
            .iter()
            .find(|k| k.kind == kind && (k.api_version == "*" || k.api_version == api_version))
            .map(|k| k.message)
    }

    /// The message of a CRD's schema.
    pub(super) fn schema(&self) -> u16 {
        self.schema
    }

    /// The message of lists' metadata.
    pub(super) fn list_meta(&self) -> Option<u16> {
        self.list_meta
    }

    /// A message's fields, by number.
    pub(super) fn fields(&self, message: u16) -> &[Field] {
        let start = |at: usize| self.starts.get(at).copied().map(usize::from);
        let at = usize::from(message);
        let range = start(at).zip(start(at + 1)).and_then(|(start, end)| self.fields.get(start..end));
        range.unwrap_or_default()
    }

    pub(super) fn field(&self, message: u16, number: u32) -> Option<Field> {
        let fields = self.fields(message);
        let found = fields.binary_search_by_key(&number, |f| u32::from(f.number)).ok()?;
        fields.get(found).copied()
    }

    fn parse(source: &'static str) -> Result<Self, String> {
        let mut ids: HashMap<&'static str, u16> = HashMap::new();
        for name in source.lines().filter_map(|l| l.strip_prefix("T ")) {
            let id = u16::try_from(ids.len()).map_err(|_| "too many messages".to_owned())?;
            if ids.insert(name, id).is_some() {
                return Err(format!("{name} occurs twice"));
            }
        }
        let schema = *ids.get(SCHEMA).ok_or("no schema message")?;
        let starts = Vec::with_capacity(ids.len() + 1);
        let list_meta = ids.get(LIST_META).copied();
        let mut table = Self { kinds: Vec::new(), starts, fields: Vec::new(), schema, list_meta };
        for line in source.lines() {
            let bad = || format!("line {line:?}");
            if line.starts_with("T ") {
                table.starts.push(table.len()?);
            } else if let Some(rest) = line.strip_prefix("G ") {
                let (api_version, kind) = rest.split_once(' ').ok_or_else(bad)?;
                let message = table.starts.len().checked_sub(1).ok_or_else(bad)?;
                let message = u16::try_from(message).map_err(|_| bad())?;
                table.kinds.push(Kind { api_version, kind, message });
            } else if let Some(rest) = line.strip_prefix(' ') {
                let field = parse_field(rest, &ids).ok_or_else(bad)?;
                let start = table.starts.last().copied().map(usize::from).ok_or_else(bad)?;
                let before = table.fields.get(start..).and_then(<[Field]>::last);
                if before.is_some_and(|b| b.number >= field.number) {
                    return Err(bad());
                }
                table.fields.push(field);
            } else if !line.starts_with('#') {
                return Err(bad());
            }
        }
        table.starts.push(table.len()?);
        table.fields.shrink_to_fit();
        table.kinds.shrink_to_fit();
        Ok(table)
    }

    fn len(&self) -> Result<u16, String> {
        u16::try_from(self.fields.len()).map_err(|_| "too many fields".to_owned())
    }
}

/// One field from `number name kind`.
fn parse_field(line: &'static str, ids: &HashMap<&'static str, u16>) -> Option<Field> {
    let mut parts = line.split(' ');
    let number = parts.next()?.parse().ok()?;
    let name = parts.next()?;
    let kind = parts.next()?;
    if parts.next().is_some() {
        return None;
    }
    if let Some(message) = kind.strip_prefix('<') {
        let item = Item::Message(*ids.get(message)?);
        return Some(Field { number, label: Label::Inline, item, omit_zero: false, name });
    }
    let (label, kind) = if let Some(item) = kind.strip_prefix('[') {
        (Label::Repeated, item)
    } else if let Some(value) = kind.strip_prefix('{') {
        (Label::Map, value)
    } else {
        (Label::One, kind)
    };
    if let Some(message) = kind.strip_prefix('@') {
        let item = Item::Message(*ids.get(message)?);
        return Some(Field { number, label, item, omit_zero: false, name });
    }
    let (kind, omit_zero) = kind.strip_suffix('z').map_or((kind, false), |k| (k, true));
    let item = match kind {
        "s" => Item::String,
        "y" => Item::Bytes,
        "i" => Item::Int32,
        "l" => Item::Int64,
        "d" => Item::Double,
        "b" => Item::Bool,
        "q" => Item::Quantity,
        "o" => Item::IntOrString,
        "t" => Item::Time,
        "u" => Item::MicroTime,
        "r" => Item::RawJson,
        "e" => Item::Strings,
        "B" => Item::SchemaOrBool,
        "A" => Item::SchemaOrArray,
        "S" => Item::SchemaOrStrings,
        _ => return None,
    };
    Some(Field { number, label, item, omit_zero, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_well_formed() {
        let table = Table::parse(crate::packed::text(SOURCE)).unwrap();
        assert!(table.kinds.len() > 100);
        let pod = table.kind("v1", "Pod").unwrap();
        assert_eq!(table.field(pod, 2).unwrap().name, "spec");
        assert!(table.field(pod, 99).is_none());
        assert_eq!(table.kind("anything/v7", "DeleteOptions"), table.kind("v1", "DeleteOptions"));
        assert!(table.kind("v1", "DeleteOptions").is_some());
        assert!(table.kind("apps/v1", "Pod").is_none());
        for (api_version, kind) in [
            ("v1", "Binding"),
            ("v1", "Status"),
            ("v1", "PodTemplate"),
            ("policy/v1", "Eviction"),
            ("autoscaling/v1", "Scale"),
            ("authentication.k8s.io/v1", "TokenRequest"),
            ("authentication.k8s.io/v1", "TokenReview"),
            ("authorization.k8s.io/v1", "SubjectAccessReview"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
            ("apiregistration.k8s.io/v1", "APIService"),
            ("resource.k8s.io/v1", "ResourceClaim"),
        ] {
            assert!(table.kind(api_version, kind).is_some(), "{api_version} {kind}");
        }
    }

    /// Only messages can be inlined, and only scalars have a zero to leave out:
    /// the decoder relies on it.
    #[test]
    fn labels_fit_their_items() {
        for field in &Table::get().fields {
            if field.label == Label::Inline {
                assert!(matches!(field.item, Item::Message(_)), "{field:?}");
            }
            if field.omit_zero {
                let scalar =
                    matches!(field.item, Item::String | Item::Bytes | Item::Int32 | Item::Int64 | Item::Bool);
                assert!(scalar && field.label == Label::One, "{field:?}");
            }
        }
    }

    #[test]
    fn bad_data_is_refused() {
        for (name, source) in [
            ("unknown message", "T ~JSONSchemaProps\n 1 a @nothing\n"),
            ("numbers not in order", "T ~JSONSchemaProps\n 2 a s\n 1 b s\n"),
            ("unknown kind", "T ~JSONSchemaProps\n 1 a x\n"),
            ("twice", "T ~JSONSchemaProps\nT ~JSONSchemaProps\n"),
            ("no schema", "T a\n"),
            ("a field of nothing", " 1 a s\nT ~JSONSchemaProps\n"),
        ] {
            assert!(Table::parse(source).is_err(), "{name}");
        }
    }
}
