//! Protobuf's wire format into JSON, led by the table. The input is hostile:
//! lengths are checked against what is left before anything is taken, nothing is
//! allocated by a length alone, and depth and the number of values are bounded.

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::ProtobufError as Error;
use super::table::{Field, Item, Label, Table};
use crate::object;

pub(super) const PREFIX: &[u8] = b"k8s\0";
/// Messages within messages; no kind of the API needs a third of it, and a CRD's
/// schema may nest as far as this allows.
pub(super) const MAX_DEPTH: usize = 64;
/// Elements, map values and fields of one body. A value of two bytes on the wire
/// takes some dozens in memory, so the size of the body alone is no good bound.
const MAX_VALUES: usize = 1 << 20;
/// Go's zero `time.Time`, which JSON has as null.
const ZERO_TIME: i64 = -62_135_596_800;

/// The object in a whole body.
pub(super) fn body(table: &'static Table, bytes: &[u8]) -> Result<Value, Error> {
    let data = bytes.strip_prefix(PREFIX).ok_or(Error::Prefix)?;
    let mut api_version = "";
    let mut kind = "";
    let mut raw: &[u8] = &[];
    let mut envelope = Reader::new(data);
    while let Some((number, wire)) = envelope.field()? {
        match number {
            1 => {
                let mut meta = Reader::new(wire.bytes("typeMeta")?);
                while let Some((number, wire)) = meta.field()? {
                    match number {
                        1 => api_version = wire.text("apiVersion")?,
                        2 => kind = wire.text("kind")?,
                        _ => {}
                    }
                }
            }
            2 => raw = wire.bytes("raw")?,
            3 => {
                let encoding = wire.text("contentEncoding")?;
                if !encoding.is_empty() {
                    return Err(Error::Encoding(encoding.to_owned()));
                }
            }
            4 => {
                let content_type = wire.text("contentType")?;
                if !content_type.is_empty() && !super::is_protobuf(content_type) {
                    return Err(Error::ContentType(content_type.to_owned()));
                }
            }
            _ => {}
        }
    }
    if kind.is_empty() {
        return Err(Error::MissingKind);
    }
    if api_version.is_empty() {
        return Err(Error::MissingVersion);
    }
    let message = table
        .kind(api_version, kind)
        .ok_or_else(|| Error::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() })?;
    let mut into = Map::new();
    into.insert("apiVersion".to_owned(), Value::from(api_version));
    into.insert("kind".to_owned(), Value::from(kind));
    Decoder { table, left: MAX_VALUES }.message(message, raw, 0, &mut into)?;
    Ok(Value::Object(into))
}

struct Decoder {
    table: &'static Table,
    /// How many more values the body may hold.
    left: usize,
}

impl Decoder {
    /// Adds the fields of a message to an object. A message that comes in several
    /// pieces is merged, as protobuf demands.
    fn message(
        &mut self,
        message: u16,
        bytes: &[u8],
        depth: usize,
        into: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            if let Some(field) = self.table.field(message, number) {
                self.field(field, wire, depth, into)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: Field,
        wire: Wire<'_>,
        depth: usize,
        into: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        let Field { label, item, name, .. } = field;
        match (label, item) {
            (Label::Inline, Item::Message(message)) => {
                self.count()?;
                self.message(message, wire.bytes(name)?, depth + 1, into)
            }
            (Label::One, Item::Message(message)) => {
                self.count()?;
                let bytes = wire.bytes(name)?;
                match into.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                    Value::Object(inner) => self.message(message, bytes, depth + 1, inner),
                    // Two fields of one JSON name; the table has none.
                    _ => Err(Error::Value { field: name, what: "occurs as two types" }),
                }
            }
            (Label::One | Label::Inline, _) => {
                let value = self.value(item, name, wire, depth)?;
                if value.is_null() || (field.omit_zero && is_zero(&value)) {
                    into.remove(name);
                } else {
                    into.insert(name.to_owned(), value);
                }
                Ok(())
            }
            (Label::Repeated, _) => {
                let slot = into.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = slot else {
                    return Err(Error::Value { field: name, what: "occurs as two types" });
                };
                match (item, wire) {
                    // Numbers may be packed into one field.
                    (Item::Int32 | Item::Int64 | Item::Bool, Wire::Bytes(packed)) => {
                        let mut reader = Reader::new(packed);
                        while !reader.is_empty() {
                            let number = Wire::Varint(reader.varint()?);
                            list.push(self.value(item, name, number, depth)?);
                        }
                    }
                    (item, wire) => list.push(self.value(item, name, wire, depth)?),
                }
                Ok(())
            }
            (Label::Map, _) => {
                let slot = into.entry(name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = slot else {
                    return Err(Error::Value { field: name, what: "occurs as two types" });
                };
                let mut key = "";
                // A missing value is the zero value of its type.
                let mut value = match item {
                    Item::Int32 | Item::Int64 | Item::Bool => Wire::Varint(0),
                    Item::Double => Wire::Fixed64(0),
                    _ => Wire::Bytes(&[]),
                };
                let mut entry = Reader::new(wire.bytes(name)?);
                while let Some((number, wire)) = entry.field()? {
                    match number {
                        1 => key = wire.text(name)?,
                        2 => value = wire,
                        _ => {}
                    }
                }
                let value = self.value(item, name, value, depth)?;
                map.insert(key.to_owned(), value);
                Ok(())
            }
        }
    }

    /// One value; null where Go has a zero time or empty JSON.
    fn value(
        &mut self,
        item: Item,
        name: &'static str,
        wire: Wire<'_>,
        depth: usize,
    ) -> Result<Value, Error> {
        self.count()?;
        Ok(match item {
            Item::String => Value::from(wire.text(name)?),
            Item::Bytes => Value::from(base64::engine::general_purpose::STANDARD.encode(wire.bytes(name)?)),
            // A negative int32 is sign-extended to ten bytes; the upper half is dropped.
            Item::Int32 => Value::from(wire.varint(name)? as i32),
            Item::Int64 => Value::from(wire.varint(name)? as i64),
            Item::Bool => Value::from(wire.varint(name)? != 0),
            Item::Double => double(wire.fixed64(name)?, name)?,
            Item::Message(message) => {
                let mut inner = Map::new();
                self.message(message, wire.bytes(name)?, depth + 1, &mut inner)?;
                Value::Object(inner)
            }
            Item::Quantity => {
                let mut text = "";
                let mut reader = Reader::new(wire.bytes(name)?);
                while let Some((number, wire)) = reader.field()? {
                    if number == 1 {
                        text = wire.text(name)?;
                    }
                }
                Value::from(if text.is_empty() { "0" } else { text })
            }
            Item::IntOrString => int_or_string(wire.bytes(name)?, name)?,
            Item::Time => time(wire.bytes(name)?, name, false)?,
            Item::MicroTime => time(wire.bytes(name)?, name, true)?,
            Item::RawJson => {
                let mut raw: &[u8] = &[];
                let mut reader = Reader::new(wire.bytes(name)?);
                while let Some((number, wire)) = reader.field()? {
                    if number == 1 {
                        raw = wire.bytes(name)?;
                    }
                }
                if raw.is_empty() {
                    Value::Null
                } else {
                    serde_json::from_slice(raw).map_err(|source| Error::Json { field: name, source })?
                }
            }
            Item::Strings => Value::Array(self.strings(wire.bytes(name)?, 1, name)?),
            Item::SchemaOrBool => {
                let bytes = wire.bytes(name)?;
                let mut allows = false;
                let mut schema = None;
                let mut reader = Reader::new(bytes);
                while let Some((number, wire)) = reader.field()? {
                    match number {
                        1 => allows = wire.varint(name)? != 0,
                        2 => self.schema(wire.bytes(name)?, depth, &mut schema)?,
                        _ => {}
                    }
                }
                schema.map_or(Value::Bool(allows), Value::Object)
            }
            Item::SchemaOrArray => {
                let mut schema = None;
                let mut list = Vec::new();
                let mut reader = Reader::new(wire.bytes(name)?);
                while let Some((number, wire)) = reader.field()? {
                    match number {
                        1 => self.schema(wire.bytes(name)?, depth, &mut schema)?,
                        2 => list.push(self.value(Item::Message(self.table.schema()), name, wire, depth)?),
                        _ => {}
                    }
                }
                list_or_schema(list, schema)
            }
            Item::SchemaOrStrings => {
                let bytes = wire.bytes(name)?;
                let mut schema = None;
                let mut reader = Reader::new(bytes);
                while let Some((number, wire)) = reader.field()? {
                    if number == 1 {
                        self.schema(wire.bytes(name)?, depth, &mut schema)?;
                    }
                }
                let list = self.strings(bytes, 2, name)?;
                list_or_schema(list, schema)
            }
        })
    }

    /// A CRD's schema within one of the schema-or kinds.
    fn schema(
        &mut self,
        bytes: &[u8],
        depth: usize,
        into: &mut Option<Map<String, Value>>,
    ) -> Result<(), Error> {
        self.count()?;
        let schema = self.table.schema();
        self.message(schema, bytes, depth + 1, into.get_or_insert_with(Map::new))
    }

    /// The strings in field `wanted` of a message.
    fn strings(&mut self, bytes: &[u8], wanted: u32, name: &'static str) -> Result<Vec<Value>, Error> {
        let mut list = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            if number == wanted {
                self.count()?;
                list.push(Value::from(wire.text(name)?));
            }
        }
        Ok(list)
    }

    fn count(&mut self) -> Result<(), Error> {
        self.left = self.left.checked_sub(1).ok_or(Error::TooMany)?;
        Ok(())
    }
}

/// The list if it has elements, else the schema, else null.
fn list_or_schema(list: Vec<Value>, schema: Option<Map<String, Value>>) -> Value {
    if list.is_empty() { schema.map_or(Value::Null, Value::Object) } else { Value::Array(list) }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(s) => s.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0),
        Value::Bool(b) => !b,
        _ => false,
    }
}

/// A whole number is written without a fraction, as Go does.
fn double(bits: u64, name: &'static str) -> Result<Value, Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = f64::from_bits(bits);
    if !number.is_finite() {
        return Err(Error::Value { field: name, what: "the number is not finite" });
    }
    if number.fract() == 0.0 && number.abs() < EXACT {
        return Ok(Value::from(number as i64));
    }
    Ok(Value::from(number))
}

/// `intstr.IntOrString`: which of the two (1), the number (2), the text (3).
fn int_or_string(bytes: &[u8], name: &'static str) -> Result<Value, Error> {
    let mut which = 0;
    let mut number = 0;
    let mut text = "";
    let mut reader = Reader::new(bytes);
    while let Some((field, wire)) = reader.field()? {
        match field {
            1 => which = wire.varint(name)?,
            2 => number = wire.varint(name)? as i32,
            3 => text = wire.text(name)?,
            _ => {}
        }
    }
    match which {
        0 => Ok(Value::from(number)),
        1 => Ok(Value::from(text)),
        _ => Err(Error::Value { field: name, what: "impossible IntOrString type" }),
    }
}

/// `metav1.Time` and `MicroTime`: seconds (1) and nanoseconds (2) since 1970. An
/// empty message is the zero time, which JSON has as null; `Time` has no fractions.
fn time(bytes: &[u8], name: &'static str, micro: bool) -> Result<Value, Error> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let mut seconds = 0_i64;
    let mut nanos = 0_i32;
    let mut reader = Reader::new(bytes);
    while let Some((field, wire)) = reader.field()? {
        match field {
            1 => seconds = wire.varint(name)? as i64,
            2 => nanos = wire.varint(name)? as i32,
            _ => {}
        }
    }
    let range = || Error::Value { field: name, what: "the time is out of range" };
    if seconds < ZERO_TIME || !(0..1_000_000_000).contains(&nanos) {
        return Err(range());
    }
    let micros = if micro { i64::from(nanos) / 1000 } else { 0 };
    if seconds == ZERO_TIME && micros == 0 {
        return Ok(Value::Null);
    }
    if micro {
        let total = seconds.checked_mul(1_000_000).and_then(|s| s.checked_add(micros)).ok_or_else(range)?;
        let at = Timestamp::from_microsecond(total).map_err(|_| range())?;
        return Ok(Value::from(object::format_micro_time(at)));
    }
    let at = Timestamp::from_second(seconds).map_err(|_| range())?;
    Ok(Value::from(object::format_time(at)))
}

/// One field's content. What a type does not use is kept only to tell it is wrong.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Wire<'a> {
    fn varint(self, field: &'static str) -> Result<u64, Error> {
        let Self::Varint(v) = self else { return Err(Error::WireType { field }) };
        Ok(v)
    }

    fn fixed64(self, field: &'static str) -> Result<u64, Error> {
        let Self::Fixed64(v) = self else { return Err(Error::WireType { field }) };
        Ok(v)
    }

    fn bytes(self, field: &'static str) -> Result<&'a [u8], Error> {
        let Self::Bytes(v) = self else { return Err(Error::WireType { field }) };
        Ok(v)
    }

    fn text(self, field: &'static str) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes(field)?)
            .map_err(|_| Error::Value { field, what: "the string is not UTF-8" })
    }
}

/// What is left of a message.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next field's number and content; none at the end.
    fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, Error> {
        if self.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n)).ok_or(Error::Tag(tag))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            // Groups (3, 4) are not in use; 6 and 7 do not exist.
            _ => return Err(Error::Tag(tag)),
        };
        Ok(Some((number, wire)))
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Error::Truncated)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return Err(Error::Varint);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Varint)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array(&mut self) -> Result<[u8; 8], Error> {
        self.take(8)?.try_into().map_err(|_| Error::Truncated)
    }
}
