//! Checks that the validators of several kinds share, with upstream's words
//! (apimachinery's `api/validation`, `meta/v1/validation`, `util/validation`).

use serde_json::Value;

use super::util::{list, text};
use crate::field::{FieldError, FieldErrorKind, index, join};
use crate::names;
use crate::quantity::Quantity;

/// A rule of a kind: looks at an object and tells what is wrong.
pub(super) type Check = fn(&Value, &mut Vec<FieldError>);

pub(super) const NOT_POSITIVE: &str = "must be greater than zero";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const HTTP_PATH: &str = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

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

/// Holds only against an update what was not wrong before: objects of earlier, laxer days stay
/// updatable.
pub(super) fn ratchet(check: Check, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut found = Vec::new();
    check(new, &mut found);
    if found.is_empty() {
        return;
    }
    let mut before = Vec::new();
    check(old, &mut before);
    for error in found {
        if before.iter().any(|b| same(b, &error)) {
            continue;
        }
        match error.kind {
            FieldErrorKind::Required => required(error.path, &error.detail, errors),
            _ => errors.push(error),
        }
    }
}

/// Something is missing. The schema may have said so already, without the reason.
pub(super) fn required(path: impl Into<String>, detail: &str, errors: &mut Vec<FieldError>) {
    let path = path.into();
    match errors.iter_mut().find(|e| e.kind == FieldErrorKind::Required && e.path == path) {
        Some(said) if said.detail.is_empty() => said.detail = detail.to_owned(),
        Some(_) => {}
        None => errors.push(FieldError::required(path, detail)),
    }
}

/// Every message of a rule of syntax.
pub(super) fn syntax(rule: fn(&str) -> Vec<String>, value: &str, path: &str, errors: &mut Vec<FieldError>) {
    errors.extend(rule(value).into_iter().map(|m| FieldError::invalid(path, value, m)));
}

/// A string that must be there and follow a rule of syntax.
pub(super) fn required_name(
    holder: &Value,
    field: &str,
    rule: fn(&str) -> Vec<String>,
    at: &str,
    errors: &mut Vec<FieldError>,
) {
    let (path, value) = (join(at, field), text(holder, field));
    if value.is_empty() { required(path, "", errors) } else { syntax(rule, value, &path, errors) }
}

/// A string that follows a rule of syntax where it is given.
pub(super) fn optional_name(
    holder: &Value,
    field: &str,
    rule: fn(&str) -> Vec<String>,
    at: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(value) = holder.get(field).and_then(Value::as_str) {
        syntax(rule, value, &join(at, field), errors);
    }
}

/// A string that must be there and be one of these.
pub(super) fn required_one_of(
    holder: &Value,
    field: &str,
    at: &str,
    allowed: &[&str],
    errors: &mut Vec<FieldError>,
) {
    match text(holder, field) {
        "" => required(join(at, field), "", errors),
        value if allowed.contains(&value) => {}
        value => errors.push(FieldError::not_supported(join(at, field), value, allowed)),
    }
}

/// A number of a field, zero if it is not there, as Go reads it.
pub(super) fn number(holder: &Value, field: &str) -> i64 {
    holder.get(field).and_then(Value::as_i64).unwrap_or(0)
}

pub(super) fn port(n: i64, path: &str, errors: &mut Vec<FieldError>) {
    errors.extend(names::port_number(n).into_iter().map(|m| FieldError::invalid(path, n, m)));
}

/// A quantity below zero.
pub(super) fn not_negative(quantity: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if Quantity::from_value(quantity).is_some_and(|q| q.sign() < 0) {
        errors.push(FieldError::invalid(path, quantity.clone(), super::util::NON_NEGATIVE));
    }
}

/// A number or percentage that is not negative and at most 100%.
pub(super) fn count_or_percent(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => {
            errors.push(FieldError::invalid(path, value.clone(), super::util::NON_NEGATIVE));
        }
        Value::String(s) => {
            let digits =
                s.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
            match digits {
                None => errors.push(FieldError::invalid(path, s.as_str(), PERCENT)),
                Some(d) if d.parse::<u64>().map_or(true, |n| n > 100) => {
                    errors.push(FieldError::invalid(path, s.as_str(), "must not be greater than 100%"));
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

/// A `metav1.LabelSelector`.
pub(super) fn label_selector(selector: &Value, path: &str, errors: &mut Vec<FieldError>) {
    super::meta::labels(&selector["matchLabels"], &join(path, "matchLabels"), errors);
    for (i, e) in list(selector, "matchExpressions").iter().enumerate() {
        let at = index(&join(path, "matchExpressions"), i);
        let values = list(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                required(join(&at, "values"), "must be specified when `operator` is 'In' or 'NotIn'", errors);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                join(&at, "values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(
                    join(&at, "operator"),
                    other,
                    "not a valid selector operator",
                ));
            }
        }
        syntax(names::qualified_name, text(e, "key"), &join(&at, "key"), errors);
        for (j, v) in values.iter().enumerate() {
            let v = v.as_str().unwrap_or_default();
            syntax(names::label_value, v, &index(&join(&at, "values"), j), errors);
        }
    }
}

/// A subdomain with `*.` before it.
pub(super) fn wildcard_subdomain(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push("must be no more than 253 bytes".to_owned());
    }
    let rest = s.strip_prefix("*.").unwrap_or_default();
    if rest.is_empty() || rest.len() <= 253 && !names::dns1123_subdomain(rest).is_empty() {
        out.push(WILDCARD.to_owned());
    }
    out
}

/// `acme.io/foo`: what names a controller or a signer.
pub(super) fn domain_prefixed_path(value: &str, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_empty() {
        return required(path, "", errors);
    }
    let Some((host, rest)) = value.split_once('/').filter(|(h, r)| !h.is_empty() && !r.is_empty()) else {
        let what = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return errors.push(FieldError::invalid(path, value, what));
    };
    syntax(names::dns1123_subdomain, host, path, errors);
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        errors.push(FieldError::invalid(path, rest, HTTP_PATH));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// What a check says of an object, joined.
    pub(in super::super) fn told(check: Check, obj: &Value) -> String {
        let mut errors = Vec::new();
        check(obj, &mut errors);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn selectors() {
        fn check(selector: &Value, errors: &mut Vec<FieldError>) {
            label_selector(selector, "s", errors);
        }
        let of = |operator: &str, values: Value| {
            told(check, &json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}))
        };
        assert_eq!(of("In", json!(["a", ""])), "");
        assert_eq!(of("Exists", Value::Null), "");
        let at = "s.matchExpressions[0]";
        assert_eq!(
            of("In", json!([])),
            format!("{at}.values: Required value: must be specified when `operator` is 'In' or 'NotIn'")
        );
        assert_eq!(
            of("Exists", json!(["a"])),
            format!(
                "{at}.values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            )
        );
        assert_eq!(
            of("in", json!(["a"])),
            format!("{at}.operator: Invalid value: \"in\": not a valid selector operator")
        );
        assert!(of("In", json!(["a b"])).starts_with(&format!("{at}.values[0]: Invalid value: \"a b\"")));
        assert!(
            told(check, &json!({"matchLabels": {"a b": "c"}})).starts_with("s.matchLabels: Invalid value")
        );
    }

    #[test]
    fn names_of_controllers() {
        fn check(v: &Value, errors: &mut Vec<FieldError>) {
            domain_prefixed_path(v.as_str().unwrap_or_default(), "c", errors);
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
        assert!(wildcard_subdomain("*.a.b").is_empty());
        assert!(!wildcard_subdomain("*.").is_empty() && !wildcard_subdomain("a.*.b").is_empty());
    }

    #[test]
    fn an_update_answers_for_what_it_breaks_only() {
        fn check(obj: &Value, errors: &mut Vec<FieldError>) {
            for (i, v) in list(obj, "l").iter().enumerate() {
                syntax(names::dns1123_label, v.as_str().unwrap_or_default(), &index("l", i), errors);
            }
        }
        let mut errors = Vec::new();
        ratchet(check, &json!({"l": ["a", "A"]}), &json!({"l": ["A"]}), &mut errors);
        assert_eq!(errors, []);
        ratchet(check, &json!({"l": ["A", "B"]}), &json!({"l": ["A"]}), &mut errors);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].path, "l[1]");
    }
}
