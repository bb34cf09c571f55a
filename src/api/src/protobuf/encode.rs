//! JSON into protobuf's wire format, led by the same table as decoding. Fields in
//! ascending order, as Go's generated code writes them; what JSON leaves out is left
//! out here too, which every decoder reads as the zero value.

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::ProtobufError as Error;
use super::decode::{MAX_DEPTH, PREFIX};
use super::table::{Field, Item, Label, Table};

/// The whole body of an object or a list.
pub(super) fn body(table: &'static Table, object: &Value) -> Result<Vec<u8>, Error> {
    let text = |name| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if kind.is_empty() {
        return Err(Error::MissingKind);
    }
    if api_version.is_empty() {
        return Err(Error::MissingVersion);
    }
    let unknown = || Error::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() };
    let fields = object.as_object().ok_or_else(unknown)?;
    let encoder = Encoder { table };
    let mut raw = Vec::new();
    if let Some(message) = table.kind(api_version, kind) {
        encoder.message(message, fields, 0, &mut raw)?;
    } else {
        let element = element(table, api_version, kind).ok_or_else(unknown)?;
        encoder.list(element, fields, &mut raw)?;
    }
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + meta.len() + 24);
    out.extend_from_slice(PREFIX);
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, &raw);
    // The content's encoding and type: none, and the envelope's own.
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    Ok(out)
}

/// Whether objects of this kind have a message of their own, or are lists of such ones.
pub(super) fn knows(table: &'static Table, api_version: &str, kind: &str) -> bool {
    table.kind(api_version, kind).is_some() || element(table, api_version, kind).is_some()
}

/// All lists look alike: their metadata is field 1, their elements are field 2.
fn element(table: &'static Table, api_version: &str, list: &str) -> Option<u16> {
    table.kind(api_version, list.strip_suffix("List")?)
}

/// `metav1.WatchEvent`: its type, and the object as a body of its own.
pub(super) fn event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut extension = Vec::with_capacity(object.len() + 6);
    put_bytes(&mut extension, 1, object);
    let mut out = Vec::with_capacity(extension.len() + 24);
    put_bytes(&mut out, 1, kind.as_bytes());
    put_bytes(&mut out, 2, &extension);
    out
}

struct Encoder {
    table: &'static Table,
}

impl Encoder {
    fn list(&self, element: u16, list: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(message) = self.table.list_meta() {
            let none = Map::new();
            let metadata = list.get("metadata").and_then(Value::as_object).unwrap_or(&none);
            self.nested(message, 1, metadata, 0, out)?;
        }
        let items = list.get("items").and_then(Value::as_array);
        for item in items.into_iter().flatten() {
            self.nested(element, 2, object(item, "items")?, 0, out)?;
        }
        Ok(())
    }

    fn message(
        &self,
        message: u16,
        from: &Map<String, Value>,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        for field in self.table.fields(message) {
            if let (Label::Inline, Item::Message(inner)) = (field.label, field.item) {
                self.nested(inner, field.number, from, depth, out)?;
                continue;
            }
            match from.get(field.name) {
                None | Some(Value::Null) => {}
                Some(value) => self.field(*field, value, depth, out)?,
            }
        }
        Ok(())
    }

    fn nested(
        &self,
        message: u16,
        number: u16,
        from: &Map<String, Value>,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let mut inner = Vec::new();
        self.message(message, from, depth + 1, &mut inner)?;
        put_bytes(out, number, &inner);
        Ok(())
    }

    fn field(&self, field: Field, value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let Field { number, label, item, name, .. } = field;
        match label {
            Label::One | Label::Inline => self.value(item, number, name, value, depth, out),
            Label::Repeated => {
                let list = value.as_array().ok_or(Error::Value { field: name, what: "is not a list" })?;
                list.iter().try_for_each(|value| self.value(item, number, name, value, depth, out))
            }
            Label::Map => {
                for (key, value) in object(value, name)? {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, key.as_bytes());
                    if !value.is_null() {
                        self.value(item, 2, name, value, depth, &mut entry)?;
                    }
                    put_bytes(out, number, &entry);
                }
                Ok(())
            }
        }
    }

    /// One value with its tag.
    fn value(
        &self,
        item: Item,
        number: u16,
        name: &'static str,
        value: &Value,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let wrong = |what| Error::Value { field: name, what };
        let text = || value.as_str().ok_or(wrong("is not a string"));
        match item {
            Item::String => put_bytes(out, number, text()?.as_bytes()),
            Item::Bytes => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text()?);
                put_bytes(out, number, &bytes.map_err(|_| wrong("is not base64"))?);
            }
            // Negative numbers are ten bytes long, of 32 bits too.
            Item::Int32 | Item::Int64 => {
                let integer = integer(value).ok_or(wrong("is not a whole number"))?;
                put_varint_field(out, number, integer as u64);
            }
            Item::Double => {
                put_varint(out, u64::from(number) << 3 | 1);
                let double = value.as_f64().ok_or(wrong("is not a number"))?;
                out.extend_from_slice(&double.to_le_bytes());
            }
            Item::Bool => {
                let flag = value.as_bool().ok_or(wrong("is not true or false"))?;
                put_varint_field(out, number, flag.into());
            }
            Item::Message(message) => self.nested(message, number, object(value, name)?, depth, out)?,
            Item::Quantity => {
                let mut inner = Vec::new();
                match value {
                    Value::String(text) => put_bytes(&mut inner, 1, text.as_bytes()),
                    Value::Number(plain) => put_bytes(&mut inner, 1, plain.to_string().as_bytes()),
                    _ => return Err(wrong("is not a quantity")),
                }
                put_bytes(out, number, &inner);
            }
            Item::IntOrString => {
                let mut inner = Vec::new();
                if let Value::String(text) = value {
                    put_varint_field(&mut inner, 1, 1);
                    put_varint_field(&mut inner, 2, 0);
                    put_bytes(&mut inner, 3, text.as_bytes());
                } else {
                    let integer = integer(value).ok_or(wrong("is neither a number nor a string"))?;
                    put_varint_field(&mut inner, 1, 0);
                    put_varint_field(&mut inner, 2, integer as u64);
                    put_bytes(&mut inner, 3, b"");
                }
                put_bytes(out, number, &inner);
            }
            Item::Time | Item::MicroTime => {
                let at: Timestamp = text()?.parse().map_err(|_| wrong("is not a time"))?;
                let mut inner = Vec::new();
                put_varint_field(&mut inner, 1, at.as_second() as u64);
                put_varint_field(&mut inner, 2, i64::from(at.subsec_nanosecond()) as u64);
                put_bytes(out, number, &inner);
            }
            Item::RawJson => {
                let mut inner = Vec::new();
                put_bytes(&mut inner, 1, value.to_string().as_bytes());
                put_bytes(out, number, &inner);
            }
            Item::Strings => {
                let mut inner = Vec::new();
                put_strings(&mut inner, 1, name, value)?;
                put_bytes(out, number, &inner);
            }
            Item::SchemaOrBool => {
                let mut inner = Vec::new();
                put_varint_field(&mut inner, 1, value.as_bool().unwrap_or(true).into());
                self.schema(2, value, depth, &mut inner)?;
                put_bytes(out, number, &inner);
            }
            Item::SchemaOrArray => {
                let mut inner = Vec::new();
                self.schema(1, value, depth, &mut inner)?;
                for schema in value.as_array().into_iter().flatten() {
                    self.schema(2, schema, depth, &mut inner)?;
                }
                put_bytes(out, number, &inner);
            }
            Item::SchemaOrStrings => {
                let mut inner = Vec::new();
                self.schema(1, value, depth, &mut inner)?;
                if value.is_array() {
                    put_strings(&mut inner, 2, name, value)?;
                }
                put_bytes(out, number, &inner);
            }
        }
        Ok(())
    }

    /// A CRD's schema, where the value is one.
    fn schema(&self, number: u16, value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let Some(schema) = value.as_object() else { return Ok(()) };
        self.nested(self.table.schema(), number, schema, depth, out)
    }
}

fn object<'a>(value: &'a Value, name: &'static str) -> Result<&'a Map<String, Value>, Error> {
    value.as_object().ok_or(Error::Value { field: name, what: "is not an object" })
}

/// JSON has one kind of number: a whole one may be written with a fraction of zero.
fn integer(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = |number: &f64| number.fract() == 0.0 && number.abs() < EXACT;
    value.as_i64().or_else(|| value.as_f64().filter(whole).map(|number| number as i64))
}

fn put_strings(out: &mut Vec<u8>, number: u16, name: &'static str, value: &Value) -> Result<(), Error> {
    let list = value.as_array().ok_or(Error::Value { field: name, what: "is not a list" })?;
    for value in list {
        let text = value.as_str().ok_or(Error::Value { field: name, what: "is not a string" })?;
        put_bytes(out, number, text.as_bytes());
    }
    Ok(())
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_varint_field(out: &mut Vec<u8>, number: u16, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, number: u16, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
