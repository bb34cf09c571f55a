//! Strings: cel-go's `ext/strings.go` (version 2) and the regular expressions of Kubernetes
//! (`pkg/cel/library/regex.go`). Places in a text are counted in characters.

use std::sync::Arc;

use regex::Regex;

use super::meter::Meter;
use super::value::Value;
use super::{Outcome, Stop, no_overload};

/// A pattern is matched on bytes where it can be: tables of Unicode's classes are not carried around.
pub(super) fn compiled(text: &str) -> Result<Regex, Stop> {
    let ascii = regex::RegexBuilder::new(text).unicode(false).build();
    ascii.or_else(|_| Regex::new(text)).map_err(|error| {
        let error = error.to_string();
        Stop::failed(format!("error parsing regexp: {}", error.lines().last().unwrap_or_default()))
    })
}

pub(super) fn matches(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text), Value::String(regex)] = args else { return no_overload() };
    meter.regex(&args[0], &args[1])?;
    Ok(meter.pattern(regex)?.is_match(text).into())
}

pub(super) fn find(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text), Value::String(regex)] = args else { return no_overload() };
    meter.regex(&args[0], &args[1])?;
    Ok(meter.pattern(regex)?.find(text).map_or("", |found| found.as_str()).into())
}

pub(super) fn find_all(meter: &mut Meter, args: &[Value]) -> Outcome {
    let (text, regex, limit) = match args {
        [Value::String(text), Value::String(regex)] => (text, regex, usize::MAX),
        [Value::String(text), Value::String(regex), Value::Int(limit)] => {
            (text, regex, usize::try_from(*limit).unwrap_or(usize::MAX))
        }
        _ => return no_overload(),
    };
    meter.regex(&args[0], &args[1])?;
    let regex = meter.pattern(regex)?;
    let found: Vec<Value> = regex.find_iter(text).take(limit).map(|found| found.as_str().into()).collect();
    meter.spend(found.len() as u64)?;
    Ok(found.into())
}

pub(super) fn contains(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text), Value::String(part)] = args else { return no_overload() };
    meter.spend(args[0].size().div_ceil(10).saturating_mul(args[1].size().div_ceil(10)))?;
    Ok(text.contains(&**part).into())
}

pub(super) fn starts_with(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text), Value::String(part)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Ok(text.starts_with(&**part).into())
}

pub(super) fn ends_with(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text), Value::String(part)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Ok(text.ends_with(&**part).into())
}

macro_rules! changed {
    ($($name:ident => $change:expr),* $(,)?) => {
        $(pub(super) fn $name(meter: &mut Meter, args: &[Value]) -> Outcome {
            let [Value::String(text)] = args else { return no_overload() };
            meter.traverse(args[0].size(), 1)?;
            let change: fn(&str) -> String = $change;
            Ok(change(text).into())
        })*
    };
}

changed! {
    lower => str::to_ascii_lowercase,
    upper => str::to_ascii_uppercase,
    trim => |text| text.trim().to_owned(),
    quote => quoted,
}

/// In double quotes, with Go's escapes.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            '\\' | '"' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The byte where a character begins; the end of the text counts as one.
fn byte_at(text: &str, place: i64) -> Option<usize> {
    let place = usize::try_from(place).ok()?;
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(place)
}

fn out_of_range(place: i64) -> Stop {
    Stop::failed(format!("index out of range: {place}"))
}

pub(super) fn char_at(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text), Value::Int(place)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    let at = byte_at(text, *place).ok_or_else(|| out_of_range(*place))?;
    Ok(text[at..].chars().next().map(String::from).unwrap_or_default().into())
}

pub(super) fn substring(meter: &mut Meter, args: &[Value]) -> Outcome {
    let (text, from, to) = match args {
        [Value::String(text), Value::Int(from)] => (text, *from, None),
        [Value::String(text), Value::Int(from), Value::Int(to)] => (text, *from, Some(*to)),
        _ => return no_overload(),
    };
    meter.traverse(args[0].size(), 1)?;
    if let Some(to) = to.filter(|to| *to < from) {
        return Err(Stop::failed(format!("invalid substring range. start: {from}, end: {to}")));
    }
    let start = byte_at(text, from).ok_or_else(|| out_of_range(from))?;
    let end = match to {
        Some(to) => byte_at(text, to).ok_or_else(|| out_of_range(to))?,
        None => text.len(),
    };
    Ok(text[start..end].into())
}

/// `indexOf` of strings; lists have their own.
pub(super) fn index_of(meter: &mut Meter, args: &[Value]) -> Outcome {
    let (text, part, from) = match args {
        [Value::String(text), Value::String(part)] => (text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, *from),
        _ => return no_overload(),
    };
    meter.traverse(args[0].size(), 1)?;
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    let start = byte_at(text, from).ok_or_else(|| out_of_range(from))?;
    Ok(Value::Int(text[start..].find(&**part).map_or(-1, |at| place_of(text, start + at))))
}

pub(super) fn last_index_of(meter: &mut Meter, args: &[Value]) -> Outcome {
    let (text, part, until) = match args {
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(until)] => (text, part, Some(*until)),
        _ => return no_overload(),
    };
    meter.traverse(args[0].size(), 1)?;
    let last = match until {
        Some(until) => byte_at(text, until).ok_or_else(|| out_of_range(until))?,
        None => text.len(),
    };
    // The last one that begins there or before.
    let end = (last + part.len()).min(text.len());
    let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
    Ok(Value::Int(text[..end].rfind(&**part).map_or(-1, |at| place_of(text, at))))
}

fn place_of(text: &str, byte: usize) -> i64 {
    i64::try_from(text[..byte].chars().count()).unwrap_or(i64::MAX)
}

pub(super) fn replace(meter: &mut Meter, args: &[Value]) -> Outcome {
    let (text, from, to, times) = match args {
        [Value::String(text), Value::String(from), Value::String(to)] => (text, from, to, usize::MAX),
        [Value::String(text), Value::String(from), Value::String(to), Value::Int(times)] => {
            (text, from, to, usize::try_from(*times).unwrap_or(usize::MAX))
        }
        _ => return no_overload(),
    };
    meter.traverse(args[0].size(), 2)?;
    // What comes out may be much longer than what went in.
    let found = text.matches(&**from).take(times).count() as u64;
    let longer = (to.len() as u64).saturating_sub(from.len() as u64);
    meter.traverse(found.saturating_mul(longer), 1)?;
    Ok(text.replacen(&**from, to, times).into())
}

pub(super) fn split(meter: &mut Meter, args: &[Value]) -> Outcome {
    let (text, separator, limit) = match args {
        [Value::String(text), Value::String(separator)] => (text, separator, None),
        [Value::String(text), Value::String(separator), Value::Int(limit)] => {
            (text, separator, usize::try_from(*limit).ok())
        }
        _ => return no_overload(),
    };
    meter.traverse(args[0].size(), 2)?;
    let parts: Vec<Value> = match limit {
        Some(0) => Vec::new(),
        // Go splits at every character by nothing; the empty texts at both ends are Rust's.
        _ if separator.is_empty() => {
            let chars = text.chars().count();
            let pieces = limit.unwrap_or(chars).min(chars);
            let mut rest: &str = text;
            (1..=pieces)
                .map(|piece| {
                    let end =
                        if piece == pieces { rest.len() } else { byte_at(rest, 1).unwrap_or(rest.len()) };
                    let (own, after) = rest.split_at(end);
                    rest = after;
                    own.into()
                })
                .collect()
        }
        Some(limit) => text.splitn(limit, &**separator).map(Value::from).collect(),
        None => text.split(&**separator).map(Value::from).collect(),
    };
    meter.spend(parts.len() as u64 / 10)?;
    Ok(parts.into())
}

pub(super) fn join(meter: &mut Meter, args: &[Value]) -> Outcome {
    let (items, separator) = match args {
        [Value::List(items)] => (items, ""),
        [Value::List(items), Value::String(separator)] => (items, &**separator),
        _ => return no_overload(),
    };
    let texts = items.iter().map(|item| match item {
        Value::String(text) => Ok(&**text),
        _ => Err(Stop::no_overload()),
    });
    let texts = texts.collect::<Result<Vec<&str>, Stop>>()?;
    let size = texts.iter().map(|text| text.len() + separator.len()).sum::<usize>();
    meter.traverse(size as u64, 2)?;
    Ok(texts.join(separator).into())
}

/// `text.format(list)`: `%s`, `%d`, `%f`, `%e`, `%b`, `%o`, `%x`, `%X`, each with the next item.
pub(super) fn format(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text), Value::List(items)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    let (mut out, mut rest, mut next) = (String::new(), &**text, items.iter());
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let (precision, after) = match rest.strip_prefix('.') {
            Some(digits) => {
                let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                let precision = digits[..end].parse::<usize>().ok().filter(|precision| *precision <= 100);
                (precision.ok_or_else(|| Stop::failed("error while parsing precision"))?, &digits[end..])
            }
            None => (6, rest),
        };
        let verb = after
            .chars()
            .next()
            .ok_or_else(|| Stop::failed("could not parse formatting clause: unexpected end of string"))?;
        let item =
            next.next().ok_or_else(|| Stop::failed("index out of range: too few arguments to format"))?;
        let piece = clause(verb, precision, item).ok_or_else(|| {
            Stop::failed(format!("error during formatting: %{verb} cannot be used on {}", item.type_name()))
        })?;
        meter.traverse(piece.len() as u64, 1)?;
        out.push_str(&piece);
        rest = &after[verb.len_utf8()..];
    }
    out.push_str(rest);
    Ok(out.into())
}

fn clause(verb: char, precision: usize, item: &Value) -> Option<String> {
    Some(match (verb, item) {
        ('s', _) => shown(item)?,
        ('d', Value::Int(_) | Value::Uint(_) | Value::Double(_)) => shown(item)?,
        ('f' | 'e', _) => {
            let number = match item {
                Value::Double(number) => *number,
                Value::Int(number) => *number as f64,
                Value::Uint(number) => *number as f64,
                _ => return None,
            };
            if verb == 'f' { format!("{number:.precision$}") } else { scientific(number, precision) }
        }
        ('b', Value::Bool(truth)) => u8::from(*truth).to_string(),
        ('b', Value::Int(number)) => format!("{}{:b}", minus(*number), number.unsigned_abs()),
        ('b', Value::Uint(number)) => format!("{number:b}"),
        ('o', Value::Int(number)) => format!("{}{:o}", minus(*number), number.unsigned_abs()),
        ('o', Value::Uint(number)) => format!("{number:o}"),
        ('x' | 'X', _) => {
            let text = match item {
                Value::Int(number) => format!("{}{:x}", minus(*number), number.unsigned_abs()),
                Value::Uint(number) => format!("{number:x}"),
                Value::String(text) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
                Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                _ => return None,
            };
            if verb == 'X' { text.to_ascii_uppercase() } else { text }
        }
        _ => return None,
    })
}

fn minus(number: i64) -> &'static str {
    if number < 0 { "-" } else { "" }
}

/// As C writes it: at least two digits of an exponent with its sign.
fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

/// What `%s` and `string()` make of a value.
pub(super) fn shown(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => double_text(*number),
        Value::String(text) => text.to_string(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Duration(nanos) => super::time::duration_text(*nanos),
        Value::Timestamp(time) => super::time::timestamp_text(*time),
        Value::Type(name) => name.to_string(),
        Value::Quantity(quantity) => quantity.to_string(),
        Value::Ip(address) => address.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        Value::Url(url) => url.text.to_string(),
        Value::Semver(version) => version.to_string(),
        Value::List(items) => {
            let items = items.iter().map(shown).collect::<Option<Vec<String>>>()?;
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => {
            let entry = |(key, value): (&super::value::Key, &Value)| {
                Some(format!("{}: {}", shown(&key.clone().into())?, shown(value)?))
            };
            format!("{{{}}}", map.iter().map(entry).collect::<Option<Vec<String>>>()?.join(", "))
        }
        _ => return None,
    })
}

/// The shortest text that is this number; whole ones have no point.
pub(super) fn double_text(number: f64) -> String {
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else if number != 0.0 && !(1e-4..1e21).contains(&number.abs()) {
        scientific_shortest(number)
    } else {
        number.to_string()
    }
}

fn scientific_shortest(number: f64) -> String {
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

/// `jsonpatch.escapeKey(text)` (`pkg/cel/library/jsonpatch.go`)
pub(super) fn escape_key(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 2)?;
    Ok(Value::String(Arc::from(text.replace('~', "~0").replace('/', "~1"))))
}
