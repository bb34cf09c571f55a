//! What the validators of all kinds work with: [`Checks`], which gathers what is wrong, and rules of many fields in
//! upstream's words (apimachinery's `api/validation` and `util/validation`). Paths come as [`At`]s, which cost
//! nothing until something is wrong.

use serde_json::Value;

use super::pod_spec::Tolerated;
use super::util::{integer, text};
use crate::field::{At, FieldError, FieldErrorKind};
use crate::names;
use crate::object;
use crate::quantity::Quantity;

/// A rule of a kind: looks at an object and tells what is wrong.
pub(super) type Check = fn(&mut Checks, &Value);
/// A rule of syntax: what is wrong with a string.
pub(super) type Syntax = fn(&str) -> Vec<String>;

pub(super) const NON_NEGATIVE: &str = "must be greater than or equal to 0";
pub(super) const NOT_POSITIVE: &str = "must be greater than zero";
pub(super) const IMMUTABLE: &str = "field is immutable";
const HTTP_PATH: &str = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// What is wrong with an object, in the order in which it was found (`field.ErrorList`).
#[derive(Debug, Default)]
pub struct Checks {
    pub(super) errors: Vec<FieldError>,
    /// So many of the errors are those of the schema and of the metadata.
    general: usize,
    /// What an update may keep of its pods.
    pub(super) tolerated: Tolerated,
    /// The object is a pod itself, no template.
    pub(super) is_pod: bool,
}

impl Checks {
    /// What was found so far is not of the kind's own rules.
    pub(super) fn end_general(&mut self) {
        self.general = self.errors.len();
    }

    /// Something is missing. The schema may have said so already, without the reason.
    pub(super) fn required(&mut self, at: impl Into<String>, detail: impl Into<String>) {
        let (path, detail) = (at.into(), detail.into());
        let is_this = |e: &&mut FieldError| e.kind == FieldErrorKind::Required && e.path == path;
        match self.errors.iter_mut().take(self.general).find(is_this) {
            Some(said) if said.detail.is_empty() => said.detail = detail,
            Some(said) if said.detail == detail => {}
            _ => self.errors.push(FieldError::required(path, detail)),
        }
    }
    pub(super) fn invalid(
        &mut self,
        at: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.errors.push(FieldError::invalid(at, value, detail));
    }
    pub(super) fn forbidden(&mut self, at: impl Into<String>, detail: impl Into<String>) {
        self.errors.push(FieldError::forbidden(at, detail));
    }
    pub(super) fn unsupported(&mut self, at: impl Into<String>, value: impl Into<Value>, supported: &[&str]) {
        self.errors.push(FieldError::not_supported(at, value, supported));
    }
    pub(super) fn duplicate(&mut self, at: impl Into<String>, value: impl Into<Value>) {
        self.errors.push(FieldError::duplicate(at, value));
    }
    pub(super) fn not_found(&mut self, at: impl Into<String>, value: &str) {
        self.errors.push(FieldError::not_found(at, value));
    }
    pub(super) fn too_long(&mut self, at: impl Into<String>, most: usize) {
        self.errors.push(FieldError::too_long(at, most as u64));
    }
    pub(super) fn too_many(&mut self, at: impl Into<String>, count: usize, most: usize) {
        self.errors.push(FieldError::too_many(at, count, most as u64));
    }

    /// One error for each message.
    pub(super) fn each(&mut self, at: At<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(at, value, message);
        }
    }

    /// A string that follows a rule of syntax.
    pub(super) fn syntax(&mut self, at: At<'_>, value: &str, rule: Syntax) {
        self.each(at, value, rule(value));
    }

    /// A string that must be there and follow a rule of syntax.
    pub(super) fn required_name(&mut self, of: &Value, field: &str, at: At<'_>, rule: Syntax) {
        if self.needs(of, field, at) {
            self.syntax(at.child(field), text(of, field), rule);
        }
    }

    /// A string that follows a rule of syntax where it is set, to nothing even (a pointer in Go).
    pub(super) fn set_name(&mut self, of: &Value, field: &str, at: At<'_>, rule: Syntax) {
        if let Some(value) = of.get(field).and_then(Value::as_str) {
            self.syntax(at.child(field), value, rule);
        }
    }

    /// A string that follows a rule of syntax unless it is empty.
    pub(super) fn optional_name(&mut self, of: &Value, field: &str, at: At<'_>, rule: Syntax) {
        let value = text(of, field);
        if !value.is_empty() {
            self.syntax(at.child(field), value, rule);
        }
    }

    /// A string that must not be empty; true if it is not.
    pub(super) fn needs(&mut self, of: &Value, field: &str, at: At<'_>) -> bool {
        let is_there = !text(of, field).is_empty();
        if !is_there {
            self.required(at.child(field), "");
        }
        is_there
    }

    /// A string that is set is one of these. Whether it is there is the defaults' business.
    pub(super) fn one_of(&mut self, of: &Value, field: &str, at: At<'_>, supported: &[&str]) {
        if let Some(value) = of.get(field).and_then(Value::as_str)
            && !supported.contains(&value)
        {
            self.unsupported(at.child(field), value, supported);
        }
    }

    /// A string that is one of these, which may be the empty one; nothing at all is empty too.
    pub(super) fn only(&mut self, of: &Value, field: &str, at: At<'_>, supported: &[&str]) {
        let value = text(of, field);
        if !supported.contains(&value) {
            self.unsupported(at.child(field), value, supported);
        }
    }

    /// A string that must be there and be one of these.
    pub(super) fn required_one_of(&mut self, of: &Value, field: &str, at: At<'_>, supported: &[&str]) {
        if self.needs(of, field, at) {
            self.one_of(of, field, at, supported);
        }
    }

    pub(super) fn non_negative(&mut self, of: &Value, field: &str, at: At<'_>) {
        if let Some(n) = integer(of, field).filter(|n| *n < 0) {
            self.invalid(at.child(field), n, NON_NEGATIVE);
        }
    }

    /// A number in a range that both ends belong to.
    pub(super) fn in_range(&mut self, of: &Value, field: &str, at: At<'_>, low: i64, high: i64) {
        if let Some(n) = integer(of, field).filter(|n| !(low..=high).contains(n)) {
            self.invalid(at.child(field), n, format!("must be between {low} and {high}, inclusive"));
        }
    }

    pub(super) fn port(&mut self, at: At<'_>, n: i64) {
        for message in names::port_number(n) {
            self.invalid(at, n, message);
        }
    }

    /// A port's number, or its name; nothing at all is zero in Go.
    pub(super) fn port_or_name(&mut self, at: At<'_>, port: &Value) {
        match port {
            Value::String(name) => self.syntax(at, name, names::port_name),
            number => self.port(at, number.as_i64().unwrap_or(0)),
        }
    }

    /// A quantity that is not below zero.
    pub(super) fn non_negative_quantity(&mut self, at: At<'_>, value: &Value) {
        if let Some(q) = Quantity::from_value(value).filter(|q| q.sign() < 0) {
            self.invalid(at, q.to_string(), NON_NEGATIVE);
        }
    }

    /// A number or percentage that is not negative; what it says, if it is one (`ValidatePositiveIntOrPercent`).
    pub(super) fn count_or_percent(&mut self, at: At<'_>, value: &Value) -> Option<i64> {
        match value {
            Value::Number(n) => {
                let n = n.as_i64().unwrap_or(0);
                if n < 0 {
                    self.invalid(at, n, NON_NEGATIVE);
                }
                Some(n)
            }
            Value::String(s) => {
                let n = percentage(s);
                if n.is_none() {
                    self.invalid(at, s.as_str(), PERCENT);
                }
                n
            }
            _ => None,
        }
    }

    /// `IsNotMoreThan100Percent`
    pub(super) fn at_most_all(&mut self, at: At<'_>, value: &Value) {
        if let Some(s) = value.as_str().filter(|s| percentage(s).is_some_and(|n| n > 100)) {
            self.invalid(at, s, "must not be greater than 100%");
        }
    }

    /// `acme.io/foo`: what names a controller or a signer.
    pub(super) fn domain_prefixed_path(&mut self, at: At<'_>, value: &str) {
        if value.is_empty() {
            return self.required(at, "");
        }
        let Some((host, rest)) = value.split_once('/').filter(|(h, r)| !h.is_empty() && !r.is_empty()) else {
            let what = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            return self.invalid(at, value, what);
        };
        self.syntax(at, host, names::dns1123_subdomain);
        if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
            self.invalid(at, rest, HTTP_PATH);
        }
    }

    /// `validatePathNoBacksteps`
    pub(super) fn no_backsteps(&mut self, at: At<'_>, path: &str) {
        if has_backsteps(path) {
            self.invalid(at, path, "must not contain '..'");
        }
    }

    /// `validateLocalDescendingPath`
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

    /// Reports a change of the value at `path` (`/spec/selector`).
    pub(super) fn immutable(&mut self, new: &Value, old: &Value, path: &str) {
        let value = object::get(new, path);
        if value != object::get(old, path) {
            self.invalid(path[1..].replace('/', "."), value.clone(), IMMUTABLE);
        }
    }

    /// Holds only against an update what was not wrong before: objects of earlier, laxer days stay
    /// updatable.
    pub(super) fn ratchet(&mut self, check: Check, new: &Value, old: &Value) {
        let mut found = Checks::default();
        check(&mut found, new);
        if found.errors.is_empty() {
            return;
        }
        let mut before = Checks::default();
        check(&mut before, old);
        for error in found.errors {
            if before.errors.iter().any(|b| same(b, &error)) {
                continue;
            }
            match error.kind {
                FieldErrorKind::Required => self.required(error.path, error.detail),
                _ => self.errors.push(error),
            }
        }
    }
}

/// A path without its list indices: what an error of a list's item is about when items move.
fn without_indices(path: &str) -> impl Iterator<Item = u8> + '_ {
    path.bytes().filter(|b| !b.is_ascii_digit())
}

fn same(a: &FieldError, b: &FieldError) -> bool {
    let placed = matches!(a.kind, FieldErrorKind::Required | FieldErrorKind::Forbidden);
    a.kind == b.kind
        && a.value == b.value
        && a.detail == b.detail
        && if placed { a.path == b.path } else { without_indices(&a.path).eq(without_indices(&b.path)) }
}

/// What `50%` says.
fn percentage(s: &str) -> Option<i64> {
    let digits = s.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
    Some(digits.parse().unwrap_or(i64::MAX))
}

pub(super) fn has_backsteps(path: &str) -> bool {
    path.contains("..") && path.split('/').any(|part| part == "..")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::strategy::util::strings;
    use serde_json::json;

    /// What a check says of an object.
    pub(in super::super) fn errors(check: Check, obj: &Value) -> Vec<String> {
        let mut c = Checks::default();
        check(&mut c, obj);
        c.errors.iter().map(ToString::to_string).collect()
    }

    /// The same, joined.
    pub(in super::super) fn told(check: Check, obj: &Value) -> String {
        errors(check, obj).join("; ")
    }

    #[test]
    fn names_of_controllers() {
        fn check(c: &mut Checks, v: &Value) {
            c.domain_prefixed_path(At::root("c"), v.as_str().unwrap_or_default());
        }
        for (value, wanted) in [
            ("acme.io/foo", ""),
            ("acme.io/foo/bar:baz", ""),
            ("", "c: Required value"),
            ("acme.io", "must be a domain-prefixed path"),
            ("A/foo", "c: Invalid value: \"A\": a lowercase RFC 1123 subdomain"),
            ("a.b/f?", "c: Invalid value: \"f?\": Invalid path (regex"),
        ] {
            let got = told(check, &json!(value));
            assert!(if wanted.is_empty() { got.is_empty() } else { got.contains(wanted) }, "{value}: {got}");
        }
    }

    #[test]
    fn an_update_answers_for_what_it_breaks_only() {
        fn check(c: &mut Checks, obj: &Value) {
            for (i, value) in strings(obj, "l").enumerate() {
                c.syntax(At::ROOT.item("l", i), value, names::dns1123_label);
            }
        }
        let mut c = Checks::default();
        c.ratchet(check, &json!({"l": ["a", "A"]}), &json!({"l": ["A"]}));
        assert_eq!(c.errors, []);
        c.ratchet(check, &json!({"l": ["A", "B"]}), &json!({"l": ["A"]}));
        assert_eq!(c.errors.len(), 1);
        assert_eq!(c.errors[0].path, "l[1]");
    }
}
