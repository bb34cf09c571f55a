//! Formats of strings by name (apiserver `pkg/cel/library/format.go`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::meter::{Meter, tenth};
use super::network::Url;
use super::value::Value;
use super::{Outcome, no_overload, time};
use crate::names;

/// One of the formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format(&'static Entry);

type Check = fn(&str) -> Vec<String>;

#[derive(Debug)]
struct Entry {
    name: &'static str,
    check: Check,
    /// How large the regular expression for it would be, for its costs.
    size: u64,
}

/// Entries are told apart by their names.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Entry {}

const fn entry(name: &'static str, size: u64, check: Check) -> Entry {
    Entry { name, check, size }
}

static FORMATS: [Entry; 13] = [
    entry("dns1123Label", 30, names::dns1123_label),
    entry("dns1123Subdomain", 60, names::dns1123_subdomain),
    entry("dns1035Label", 30, names::dns1035_label),
    entry("qualifiedName", 60, names::qualified_name),
    entry("dns1123LabelPrefix", 30, |text| names::dns1123_label(&masked(text))),
    entry("dns1123SubdomainPrefix", 60, |text| names::dns1123_subdomain(&masked(text))),
    entry("dns1035LabelPrefix", 30, |text| names::dns1035_label(&masked(text))),
    entry("labelValue", 40, names::label_value),
    entry("uri", 200, |text| Url::parse(text).err().into_iter().collect()),
    entry("uuid", 70, |text| wrong(!is_uuid(text), "does not match the UUID format")),
    entry("byte", 80, |text| wrong(!is_base64(text), "invalid base64")),
    entry("date", 120, |text| wrong(!is_date(text), "invalid date")),
    entry("datetime", 120, |text| wrong(time::parse_timestamp(text).is_none(), "invalid datetime")),
];

fn wrong(is_wrong: bool, message: &str) -> Vec<String> {
    if is_wrong { vec![message.to_owned()] } else { Vec::new() }
}

/// A prefix may end with a dash: what a generated name goes on with makes it whole (`maskTrailingDash`).
fn masked(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => text.to_owned(),
    }
}

fn is_uuid(text: &str) -> bool {
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'-').collect();
    let dashes: Vec<usize> = text.bytes().enumerate().filter(|(_, c)| *c == b'-').map(|(at, _)| at).collect();
    digits.len() == 32
        && digits.iter().all(u8::is_ascii_hexdigit)
        && (dashes.is_empty() || dashes == [8, 13, 18, 23])
}

fn is_base64(text: &str) -> bool {
    STANDARD.decode(text).is_ok()
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

impl Format {
    /// The format of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        FORMATS.iter().find(|entry| entry.name == name).map(Self)
    }
}

/// `format.named(name)`
pub(super) fn named(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(name)] = args else { return no_overload() };
    Ok(Format::named(name).map_or(Value::Optional(None), |format| Value::some(Value::Format(format))))
}

/// `format.validate(text)`: what is wrong, or nothing.
pub(super) fn validate(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Format(format), Value::String(text)] = args else { return no_overload() };
    let cost = tenth(args[1].size() + 1).saturating_mul(format.0.size.div_ceil(4));
    meter.spend(cost)?;
    let wrong: Vec<Value> = (format.0.check)(text).into_iter().map(Value::from).collect();
    Ok(if wrong.is_empty() { Value::Optional(None) } else { Value::some(wrong.into()) })
}
