//! Objects of any shape out of bytes: random text is hardly ever JSON, and what a schema allows is met even
//! less often. What is made follows the schema mostly, and not always. Pure.

use kedge_api::schema::{Cursor, Shape};
use serde_json::{Map, Value, json};

/// Bytes that are used up; zeros when there are none left.
pub(crate) struct Source<'a>(pub(crate) &'a [u8]);

impl Source<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let number = u16::from_le_bytes([self.byte(), if limit > 256 { self.byte() } else { 0 }]);
        usize::from(number) % limit.max(1)
    }

    pub(crate) fn pick<'b, T>(&mut self, from: &'b [T]) -> Option<&'b T> {
        from.get(self.below(from.len()))
    }
}

/// Texts that mean something somewhere.
const TEXTS: [&str; 24] = [
    "a",
    "b",
    "c",
    "",
    "name",
    "$patch",
    "replace",
    "delete",
    "merge",
    "$retainKeys",
    "10",
    "100m",
    "1Gi",
    "2024-01-01T00:00:00Z",
    "50%",
    "TCP",
    "10.0.0.1",
    "a.example.com/b",
    "Always",
    "é\u{1F600}",
    "~1/~0",
    "-",
    "$deleteFromPrimitiveList/finalizers",
    "$setElementOrder/containers",
];

fn text(source: &mut Source<'_>) -> String {
    source.pick(&TEXTS).copied().unwrap_or_default().to_owned()
}

fn number(source: &mut Source<'_>) -> Value {
    match source.below(8) {
        0 => json!(i64::MAX),
        1 => json!(i64::MIN),
        2 => json!(-1),
        3 => json!(1.5),
        4 => json!(u64::MAX),
        other => json!(other + source.below(100)),
    }
}

/// Any value.
pub(crate) fn any(source: &mut Source<'_>, depth: usize) -> Value {
    if source.is_empty() {
        return Value::Null;
    }
    match source.below(if depth > 6 { 6 } else { 9 }) {
        0 => Value::Null,
        1 => json!(source.byte().is_multiple_of(2)),
        2 => number(source),
        3..6 => text(source).into(),
        6 => (0..source.below(4)).map(|_| any(source, depth + 1)).collect(),
        _ => (0..source.below(4)).map(|_| (text(source), any(source, depth + 1))).collect(),
    }
}

/// A value such as the schema wants it; with `wild`, now and then another one, and directives of patches.
pub(crate) fn value(at: Cursor<'_>, source: &mut Source<'_>, depth: usize, wild: bool) -> Value {
    if source.is_empty() || (wild && source.byte() < 12) {
        return if wild { any(source, depth) } else { empty(at) };
    }
    if depth > 10 {
        return empty(at);
    }
    match at.node.shape {
        Shape::Object => {
            let fields: Vec<&str> = at.node.fields.iter().map(|field| &*field.name).collect();
            let mut map = Map::new();
            for _ in 0..source.below(5) {
                let Some(name) = source.pick(&fields) else { break };
                if let Some((_, child)) = at.field(name) {
                    map.insert((*name).to_owned(), value(child, source, depth + 1, wild));
                }
            }
            if wild {
                directive(&mut map, &fields, source);
            }
            Value::Object(map)
        }
        Shape::Map => (0..source.below(4))
            .map(|_| {
                let name = text(source);
                let value = at.item().map_or(Value::Null, |item| value(item, source, depth + 1, wild));
                (name, value)
            })
            .collect::<Map<_, _>>()
            .into(),
        Shape::Array => {
            let Some(item) = at.item() else { return json!([]) };
            (0..source.below(4)).map(|_| value(item, source, depth + 1, wild)).collect()
        }
        Shape::Bool => json!(source.byte().is_multiple_of(2)),
        Shape::Int32 | Shape::Int64 | Shape::Number => json!(source.below(100)),
        _ => scalar(at, source),
    }
}

fn scalar(at: Cursor<'_>, source: &mut Source<'_>) -> Value {
    match at.node.shape {
        Shape::Quantity => json!(["1", "100m", "1Gi", "0.5"][source.below(4)]),
        Shape::IntOrString => json!(source.below(100)),
        Shape::Any => any(source, 5),
        Shape::Time => json!("2024-01-01T00:00:00Z"),
        Shape::MicroTime => json!("2024-01-01T00:00:00.000001Z"),
        Shape::Bytes => json!("YWJj"),
        _ => text(source).into(),
    }
}

fn empty(at: Cursor<'_>) -> Value {
    match at.node.shape {
        Shape::Object | Shape::Map => json!({}),
        Shape::Array => json!([]),
        Shape::Bool => json!(false),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => json!(0),
        Shape::Quantity => json!("0"),
        Shape::Time => json!("2024-01-01T00:00:00Z"),
        Shape::MicroTime => json!("2024-01-01T00:00:00.000001Z"),
        _ => json!(""),
    }
}

/// What strategic merge patches say beside values.
fn directive(map: &mut Map<String, Value>, fields: &[&str], source: &mut Source<'_>) {
    match source.below(16) {
        0 => {
            let word = ["replace", "delete", "merge", "retainKeys"][source.below(4)];
            map.insert("$patch".to_owned(), json!(word));
        }
        1 => {
            map.insert("$retainKeys".to_owned(), any(source, 5));
        }
        kind @ (2 | 3) => {
            let prefix = if kind == 2 { "$deleteFromPrimitiveList/" } else { "$setElementOrder/" };
            if let Some(field) = source.pick(fields) {
                let list: Value = (0..source.below(4)).map(|_| any(source, 5)).collect();
                map.insert(format!("{prefix}{field}"), list);
            }
        }
        4 => {
            if let Some(field) = source.pick(fields) {
                map.insert((*field).to_owned(), Value::Null);
            }
        }
        _ => {}
    }
}
