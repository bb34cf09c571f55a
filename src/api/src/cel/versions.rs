//! Quantities and semantic versions (apiserver `pkg/cel/library`: `quantity.go`, `semverlib.go`).

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use super::meter::Meter;
use super::value::Value;
use super::{Outcome, Stop, no_overload};
use crate::quantity::{Format, Quantity};

pub(super) fn quantity(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    text.parse().map(Value::Quantity).map_err(Stop::failed)
}

pub(super) fn is_quantity(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::String(text)] = args else { return no_overload() };
    meter.traverse(args[0].size(), 1)?;
    Ok(text.parse::<Quantity>().is_ok().into())
}

pub(super) fn sign(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Quantity(quantity)] = args else { return no_overload() };
    Ok(Value::Int(quantity.sign().into()))
}

/// What fits into an int without a rest.
fn integer(quantity: &Quantity) -> Option<i64> {
    (quantity.is_integer() && quantity.value().abs() < i64::MAX).then(|| quantity.value())
}

pub(super) fn is_integer(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Quantity(quantity)] = args else { return no_overload() };
    Ok(integer(quantity).is_some().into())
}

pub(super) fn as_integer(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Quantity(quantity)] = args else { return no_overload() };
    integer(quantity).map(Value::Int).ok_or_else(|| Stop::failed("cannot convert value to integer"))
}

pub(super) fn as_float(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Quantity(quantity)] = args else { return no_overload() };
    Ok(Value::Double(quantity.as_f64()))
}

fn two(args: &[Value]) -> Option<(Quantity, Quantity)> {
    match args {
        [Value::Quantity(a), Value::Quantity(b)] => Some((*a, *b)),
        [Value::Quantity(a), Value::Int(b)] => Some((*a, Quantity::from_units(*b, Format::DecimalSi))),
        _ => None,
    }
}

pub(super) fn add(_: &mut Meter, args: &[Value]) -> Outcome {
    two(args).map_or_else(no_overload, |(a, b)| Ok(Value::Quantity(a + b)))
}

pub(super) fn sub(_: &mut Meter, args: &[Value]) -> Outcome {
    two(args).map_or_else(no_overload, |(a, b)| Ok(Value::Quantity(a - b)))
}

fn order(args: &[Value]) -> Result<Ordering, Stop> {
    match args {
        [Value::Quantity(a), Value::Quantity(b)] => Ok(a.cmp(b)),
        [Value::Semver(a), Value::Semver(b)] => Ok(a.cmp(b)),
        _ => Err(Stop::no_overload()),
    }
}

pub(super) fn is_less(_: &mut Meter, args: &[Value]) -> Outcome {
    Ok((order(args)? == Ordering::Less).into())
}

pub(super) fn is_greater(_: &mut Meter, args: &[Value]) -> Outcome {
    Ok((order(args)? == Ordering::Greater).into())
}

pub(super) fn compare(_: &mut Meter, args: &[Value]) -> Outcome {
    Ok(Value::Int(order(args)? as i64))
}

/// A version as semver.org has it. What is built of it has no place in the order.
#[derive(Debug)]
pub struct Semver {
    numbers: [u64; 3],
    /// Identifiers of a version before this one.
    pre: Vec<Identifier>,
    build: String,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    /// Numbers come before words.
    Number(u64),
    Word(String),
}

impl Semver {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
        let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts[..] else {
            return Err("No Major.Minor.Patch elements found".to_owned());
        };
        let numbers = [number(major)?, number(minor)?, number(patch)?];
        let pre = pre.into_iter().flat_map(|pre| pre.split('.')).map(identifier).collect::<Result<_, _>>()?;
        for part in build.into_iter().flat_map(|build| build.split('.')) {
            if part.is_empty() || !is_word(part) {
                return Err(format!("Invalid character(s) found in build meta data {part:?}"));
            }
        }
        Ok(Self { numbers, pre, build: build.unwrap_or_default().to_owned() })
    }

    /// Without a leading `v` and leading zeros, what is missing filled up.
    fn normalized(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
        if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
        Self::parse(&parts.join("."))
    }

    pub(super) fn cmp(&self, other: &Self) -> Ordering {
        let pre = match (self.pre.is_empty(), other.pre.is_empty()) {
            // A version comes after what was released before it.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => self.pre.cmp(&other.pre),
        };
        self.numbers.cmp(&other.numbers).then(pre)
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        for (index, part) in self.pre.iter().enumerate() {
            f.write_str(if index == 0 { "-" } else { "." })?;
            match part {
                Identifier::Number(number) => write!(f, "{number}")?,
                Identifier::Word(word) => f.write_str(word)?,
            }
        }
        if self.build.is_empty() { Ok(()) } else { write!(f, "+{}", self.build) }
    }
}

fn without_zeros(part: &str) -> String {
    if part.len() < 2 {
        return part.to_owned();
    }
    let rest = part.trim_start_matches('0');
    if rest.starts_with(|c: char| c.is_ascii_digit()) { rest.to_owned() } else { format!("0{rest}") }
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

fn number(text: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in major, minor or patch number {text:?}"));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(format!("Number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| format!("number {text:?} is out of range"))
}

fn identifier(text: &str) -> Result<Identifier, String> {
    if text.is_empty() {
        return Err("Prerelease is empty".to_owned());
    }
    if text.bytes().all(|c| c.is_ascii_digit()) {
        return number(text).map(Identifier::Number);
    }
    if !is_word(text) {
        return Err(format!("Invalid character(s) found in prerelease {text:?}"));
    }
    Ok(Identifier::Word(text.to_owned()))
}

fn parsed(meter: &mut Meter, args: &[Value]) -> Result<Result<Semver, String>, Stop> {
    let (text, normalize) = match args {
        [Value::String(text)] => (text, false),
        [Value::String(text), Value::Bool(normalize)] => (text, *normalize),
        _ => return Err(Stop::no_overload()),
    };
    meter.traverse(args[0].size(), if normalize { 2 } else { 1 })?;
    Ok(if normalize { Semver::normalized(text) } else { Semver::parse(text) })
}

pub(super) fn semver(meter: &mut Meter, args: &[Value]) -> Outcome {
    parsed(meter, args)?.map(|version| Value::Semver(Arc::new(version))).map_err(Stop::failed)
}

pub(super) fn is_semver(meter: &mut Meter, args: &[Value]) -> Outcome {
    Ok(parsed(meter, args)?.is_ok().into())
}

fn part(args: &[Value], index: usize) -> Outcome {
    let [Value::Semver(version)] = args else { return no_overload() };
    i64::try_from(version.numbers[index]).map(Value::Int).map_err(|_| Stop::failed("integer overflow"))
}

pub(super) fn major(_: &mut Meter, args: &[Value]) -> Outcome {
    part(args, 0)
}

pub(super) fn minor(_: &mut Meter, args: &[Value]) -> Outcome {
    part(args, 1)
}

pub(super) fn patch(_: &mut Meter, args: &[Value]) -> Outcome {
    part(args, 2)
}
