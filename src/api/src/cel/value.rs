//! What expressions compute with. Copies share what they are copies of, so that binding a variable or building
//! a list costs the same whatever is in it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::formats::Format;
use super::images::Image;
use super::network::{Cidr, Url};
use super::versions::Semver;
use crate::quantity::Quantity;

/// A value of the language.
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Value>>),
    Map(Arc<Map>),
    /// Nanoseconds.
    Duration(i64),
    /// In UTC.
    Timestamp(jiff::civil::DateTime),
    /// A type, by its name.
    Type(Arc<str>),
    Optional(Option<Arc<Value>>),
    /// A message by its type's name: what a mutation is made of (`Object.spec{...}`, `JSONPatch{...}`).
    Message(Arc<Message>),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(Cidr),
    Url(Arc<Url>),
    Semver(Arc<Semver>),
    Image(Arc<Image>),
    /// The name of a format that strings can be checked against.
    Format(Format),
    /// Answers questions about what users may do.
    Authorizer(Arc<super::authz::Check>),
    /// What was answered.
    Decision(Arc<super::authz::Decision>),
}

/// Keys and their values.
pub type Map = BTreeMap<Key, Value>;

/// What a message literal makes.
#[derive(Debug)]
pub struct Message {
    pub name: Arc<str>,
    pub fields: BTreeMap<Arc<str>, Value>,
}

/// The key of a map. Whole numbers are one key whatever their type is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    /// Beyond what an int can hold.
    Uint(u64),
    String(Arc<str>),
}

impl Key {
    /// The key that a value is, if it can be one.
    pub fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Int(number) => Self::Int(*number),
            Value::Uint(number) => i64::try_from(*number).map_or(Self::Uint(*number), Self::Int),
            Value::Double(number) => Self::Int(whole(*number)?),
            Value::String(text) => Self::String(text.clone()),
            _ => return None,
        })
    }
}

impl From<Key> for Value {
    fn from(key: Key) -> Self {
        match key {
            Key::Bool(truth) => Self::Bool(truth),
            Key::Int(number) => Self::Int(number),
            Key::Uint(number) => Self::Uint(number),
            Key::String(text) => Self::String(text),
        }
    }
}

/// The int that a double is.
pub(super) fn whole(number: f64) -> Option<i64> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    (number.fract() == 0.0 && (-LIMIT..LIMIT).contains(&number)).then_some(number as i64)
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Self::List(Arc::new(items))
    }
}

impl Value {
    /// A map with strings for keys.
    pub fn map(entries: impl Iterator<Item = (String, Value)>) -> Self {
        Self::Map(Arc::new(entries.map(|(name, value)| (Key::String(name.into()), value)).collect()))
    }

    /// An optional value that is there.
    pub fn some(value: Value) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// What `type()` says.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Message(message) => &message.name,
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Image(_) => "kubernetes.Image",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authorizer(check) => check.type_name(),
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    /// How large the value is for whoever counts costs: what it is made of, else 1 (cel-go `actualSize`).
    pub(super) fn size(&self) -> u64 {
        let size = match self {
            Self::String(text) => text.chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(items) => items.len(),
            Self::Map(map) => map.len(),
            Self::Cidr(cidr) => cidr.bytes(),
            Self::Ip(IpAddr::V4(_)) => 4,
            Self::Ip(IpAddr::V6(_)) => 16,
            _ => 1,
        };
        size as u64
    }

    /// The order of two values that have one; `None`: there is none between their types.
    pub(super) fn compare(&self, other: &Self) -> Option<Option<Ordering>> {
        Some(match (self, other) {
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            _ => return numbers(self, other),
        })
    }

    /// As JSON; what has no form there is `None`.
    pub fn to_json(&self) -> Option<serde_json::Value> {
        Some(match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(truth) => json!(truth),
            Self::Int(number) => json!(number),
            Self::Uint(number) => json!(number),
            // A whole double is a whole number in JSON.
            Self::Double(number) => whole(*number).map_or_else(|| json!(number), |number| json!(number)),
            Self::String(text) => json!(text.as_ref()),
            Self::Bytes(bytes) => json!(STANDARD.encode(bytes)),
            Self::List(items) => items.iter().map(Self::to_json).collect::<Option<Vec<_>>>()?.into(),
            Self::Map(map) => {
                let entry = |(key, value): (&Key, &Self)| {
                    let Key::String(name) = key else { return None };
                    Some((name.to_string(), value.to_json()?))
                };
                serde_json::Value::Object(map.iter().map(entry).collect::<Option<_>>()?)
            }
            Self::Message(message) => {
                let entry = |(name, value): (&Arc<str>, &Self)| Some((name.to_string(), value.to_json()?));
                serde_json::Value::Object(message.fields.iter().map(entry).collect::<Option<_>>()?)
            }
            Self::Optional(Some(value)) => value.to_json()?,
            Self::Duration(nanos) => json!(super::time::duration_text(*nanos)),
            Self::Timestamp(time) => json!(super::time::timestamp_text(*time)),
            Self::Quantity(quantity) => json!(quantity.to_string()),
            Self::Ip(address) => json!(address.to_string()),
            Self::Cidr(cidr) => json!(cidr.to_string()),
            _ => return None,
        })
    }
}

/// Numbers have one order over all their types (`CrossTypeNumericComparisons`); NaN has no place in it.
fn numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Int(b)) => double_and_whole(*a, i128::from(*b)),
        (Value::Double(a), Value::Uint(b)) => double_and_whole(*a, i128::from(*b)),
        (Value::Int(a), Value::Double(b)) => double_and_whole(*b, i128::from(*a)).map(Ordering::reverse),
        (Value::Uint(a), Value::Double(b)) => double_and_whole(*b, i128::from(*a)).map(Ordering::reverse),
        _ => return None,
    })
}

/// Without rounding the whole number to a double.
fn double_and_whole(double: f64, whole: i128) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    let floor = double.floor();
    Some((floor as i128).cmp(&whole).then(if double > floor { Ordering::Greater } else { Ordering::Equal }))
}

/// Whether two values are equal. Values of other types are not, and that is no error. `steps` is how many
/// values were looked at.
pub(super) fn equal(a: &Value, b: &Value, steps: &mut u64) -> bool {
    *steps += 1;
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::List(a), Value::List(b)) => {
            Arc::ptr_eq(a, b)
                || (a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(a, b, steps)))
        }
        (Value::Map(a), Value::Map(b)) => {
            Arc::ptr_eq(a, b)
                || (a.len() == b.len()
                    && a.iter().zip(b.iter()).all(|((k, a), (l, b))| k == l && equal(a, b, steps)))
        }
        (Value::Message(a), Value::Message(b)) => {
            a.name == b.name
                && a.fields.len() == b.fields.len()
                && a.fields.iter().zip(b.fields.iter()).all(|((k, a), (l, b))| k == l && equal(a, b, steps))
        }
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => equal(a, b, steps),
            _ => false,
        },
        (Value::Type(a), Value::Type(b)) => a == b,
        (Value::Quantity(a), Value::Quantity(b)) => a == b,
        (Value::Ip(a), Value::Ip(b)) => a == b,
        (Value::Cidr(a), Value::Cidr(b)) => a == b,
        (Value::Url(a), Value::Url(b)) => a.text == b.text,
        (Value::Semver(a), Value::Semver(b)) => a.cmp(b) == Ordering::Equal,
        (Value::Image(a), Value::Image(b)) => a == b,
        (Value::Format(a), Value::Format(b)) => a == b,
        _ => a.compare(b).flatten() == Some(Ordering::Equal),
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        equal(self, other, &mut 0)
    }
}
