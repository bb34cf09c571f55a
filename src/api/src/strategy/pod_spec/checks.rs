//! What the checks of a pod share: where they are ([`At`], which costs nothing until something is wrong), and
//! where they say what they found ([`Checks`]).

use std::fmt;

use serde_json::{Map, Value};

use super::tolerated::Tolerated;
use crate::field::FieldError;
use crate::names;
use crate::quantity::Quantity;
use crate::strategy::util::NON_NEGATIVE;

/// The path of a field, written out only for an error: creating pods is a hot path.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    parent: Option<&'a At<'a>>,
    part: Part<'a>,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> At<'a> {
    pub(super) fn root(path: &'a str) -> Self {
        Self { parent: None, part: Part::Name(path) }
    }
    pub(super) fn child(&'a self, name: &'a str) -> At<'a> {
        At { parent: Some(self), part: Part::Name(name) }
    }
    pub(super) fn index(&'a self, index: usize) -> At<'a> {
        At { parent: Some(self), part: Part::Index(index) }
    }
    pub(super) fn key(&'a self, key: &'a str) -> At<'a> {
        At { parent: Some(self), part: Part::Key(key) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match (self.part, self.parent) {
            (Part::Name(name), None) => f.write_str(name),
            (Part::Name(name), Some(_)) => write!(f, ".{name}"),
            (Part::Index(index), _) => write!(f, "[{index}]"),
            (Part::Key(key), _) => write!(f, "[{key}]"),
        }
    }
}

impl From<At<'_>> for String {
    fn from(at: At<'_>) -> Self {
        at.to_string()
    }
}

/// What is checked and what was found.
pub(super) struct Checks<'e> {
    pub(super) errors: &'e mut Vec<FieldError>,
    pub(super) tolerated: Tolerated,
    /// A pod itself, not a template.
    pub(super) is_pod: bool,
}

impl Checks<'_> {
    pub(super) fn required(&mut self, at: At<'_>, detail: &str) {
        self.errors.push(FieldError::required(at, detail));
    }
    pub(super) fn invalid(&mut self, at: At<'_>, value: impl Into<Value>, detail: impl Into<String>) {
        self.errors.push(FieldError::invalid(at, value, detail));
    }
    pub(super) fn forbidden(&mut self, at: At<'_>, detail: &str) {
        self.errors.push(FieldError::forbidden(at, detail));
    }
    pub(super) fn unsupported(&mut self, at: At<'_>, value: &str, supported: &[&str]) {
        self.errors.push(FieldError::not_supported(at, value, supported));
    }
    pub(super) fn duplicate(&mut self, at: At<'_>, value: impl Into<Value>) {
        self.errors.push(FieldError::duplicate(at, value));
    }
    pub(super) fn not_found(&mut self, at: At<'_>, value: &str) {
        self.errors.push(FieldError::not_found(at, value));
    }

    /// One error for each message.
    pub(super) fn each(&mut self, at: At<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(at, value, message);
        }
    }

    /// A string that is set is one of these. Strings with a default are checked so: whether they are there
    /// is the defaults' business.
    pub(super) fn one_of(&mut self, of: &Value, field: &str, at: At<'_>, supported: &[&str]) {
        if let Some(value) = of.get(field).and_then(Value::as_str)
            && !supported.contains(&value)
        {
            if value.is_empty() {
                self.required(at.child(field), "");
            } else {
                self.unsupported(at.child(field), value, supported);
            }
        }
    }

    /// A string that must not be empty; true if it is not.
    pub(super) fn needs(&mut self, of: &Value, field: &str, at: At<'_>) -> bool {
        let is_there = of.get(field).and_then(Value::as_str).is_some_and(|value| !value.is_empty());
        if !is_there {
            self.required(at.child(field), "");
        }
        is_there
    }

    pub(super) fn non_negative(&mut self, of: &Value, field: &str, at: At<'_>) {
        if let Some(n) = number(of, field).filter(|n| *n < 0) {
            self.invalid(at.child(field), n, NON_NEGATIVE);
        }
    }

    /// A number in a range that both ends belong to.
    pub(super) fn in_range(&mut self, of: &Value, field: &str, at: At<'_>, low: i64, high: i64) {
        if let Some(n) = number(of, field).filter(|n| !(low..=high).contains(n)) {
            self.invalid(at.child(field), n, format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// `ValidateLabels`.
    pub(super) fn labels(&mut self, labels: &Value, at: At<'_>) {
        for (key, value) in entries(labels) {
            self.each(at, key, names::qualified_name(key));
            let value = value.as_str().unwrap_or_default();
            self.each(at, value, names::label_value(value));
        }
    }

    /// `IsValidIPForLegacyField`, strict: any form of an address that cannot be misread.
    pub(super) fn address(&mut self, at: At<'_>, value: &str) {
        match value.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
                self.invalid(at, value, "must not be an IPv4-mapped IPv6 address");
            }
            Ok(_) => {}
            Err(_) if has_leading_zeros(value) => self.invalid(at, value, "must not have leading 0s"),
            Err(_) => {
                self.invalid(at, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
            }
        }
    }

    /// `validatePathNoBacksteps`.
    pub(super) fn no_backsteps(&mut self, at: At<'_>, path: &str) {
        if has_backsteps(path) {
            self.invalid(at, path, "must not contain '..'");
        }
    }

    /// `validateLocalDescendingPath`.
    pub(super) fn descending_path(&mut self, at: At<'_>, path: &str) {
        if path.starts_with('/') {
            self.invalid(at, path, "must be a relative path");
        }
        self.no_backsteps(at, path);
    }

    /// `ValidateLocalNonReservedPath`: names that begin with two dots are the writer's own.
    pub(super) fn local_path(&mut self, at: At<'_>, path: &str) {
        self.descending_path(at, path);
        if path.starts_with("..") && !path.starts_with("../") {
            self.invalid(at, path, "must not start with '..'");
        }
    }
}

pub(super) fn has_backsteps(path: &str) -> bool {
    path.contains("..") && path.split('/').any(|part| part == "..")
}

/// An IPv4 address but for zeros in front of its numbers.
fn has_leading_zeros(value: &str) -> bool {
    let parts = || value.split('.');
    parts().count() == 4
        && parts().all(|part| {
            let digits = part.trim_start_matches('0');
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_digit())
                && (digits.is_empty() || digits.parse::<u8>().is_ok())
        })
}

/// The fields of an object, none if it is none.
pub(super) fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(key, value)| (key.as_str(), value))
}

pub(super) fn number(of: &Value, field: &str) -> Option<i64> {
    of.get(field).and_then(Value::as_i64)
}

pub(super) fn flag(of: &Value, field: &str) -> Option<bool> {
    of.get(field).and_then(Value::as_bool)
}

pub(super) fn is_set(of: &Value, field: &str) -> bool {
    of.get(field).is_some_and(|value| !value.is_null())
}

/// The strings of a list.
pub(super) fn strings<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = &'a str> + Clone {
    super::list(of, field).iter().map(|value| value.as_str().unwrap_or_default())
}

pub(super) fn quantity(of: &Value) -> Option<Quantity> {
    Quantity::from_value(of)
}

/// The containers of all kinds with their paths, as upstream visits them.
pub(super) fn each_container(spec: &Value, at: At<'_>, mut visit: impl FnMut(&Value, At<'_>)) {
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        let at = at.child(kind);
        for (i, container) in super::list(spec, kind).iter().enumerate() {
            visit(container, at.index(i));
        }
    }
}
