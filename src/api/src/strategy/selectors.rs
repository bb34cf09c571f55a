//! Selectors: of labels (apimachinery's `ValidateLabelSelector`) and of nodes (core `ValidateNodeSelector`).

use serde_json::Value;

use super::checks::Checks;
use super::meta::labels;
use super::util::{list, strings, text};
use crate::field::At;
use crate::names;

pub(super) const OPERATOR: &str = "not a valid selector operator";
const SET_VALUES: &str = "must be specified when `operator` is 'In' or 'NotIn'";
const NO_VALUES: &str = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
const ONE_VALUE: &str = "must be specified single value when `operator` is 'Lt' or 'Gt'";
const ONE_NAME: &str = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";

/// A `metav1.LabelSelector`; none at all is valid.
pub(super) fn label_selector(c: &mut Checks, selector: &Value, at: At<'_>) {
    label_selector_with(c, selector, false, at);
}

/// The same, with `any_value` where values need not be those that a label can have.
pub(super) fn label_selector_with(c: &mut Checks, selector: &Value, any_value: bool, at: At<'_>) {
    labels(c, &selector["matchLabels"], at.child("matchLabels"));
    for (i, requirement) in list(selector, "matchExpressions").iter().enumerate() {
        let at = at.item("matchExpressions", i);
        operator_and_values(c, requirement, at);
        key_and_values(c, requirement, any_value, at);
    }
}

/// A `core/v1.NodeSelector`.
pub(super) fn node_selector(c: &mut Checks, selector: &Value, any_value: bool, at: At<'_>) {
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        c.required(at.child("nodeSelectorTerms"), "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(c, term, any_value, at.item("nodeSelectorTerms", i));
    }
}

pub(super) fn node_term(c: &mut Checks, term: &Value, any_value: bool, at: At<'_>) {
    for (i, requirement) in list(term, "matchExpressions").iter().enumerate() {
        let at = at.item("matchExpressions", i);
        match text(requirement, "operator") {
            "Gt" | "Lt" if list(requirement, "values").len() == 1 => {}
            "Gt" | "Lt" => c.required(at.child("values"), ONE_VALUE),
            _ => operator_and_values(c, requirement, at),
        }
        key_and_values(c, requirement, any_value, at);
    }
    for (i, requirement) in list(term, "matchFields").iter().enumerate() {
        node_field(c, requirement, at.item("matchFields", i));
    }
}

fn node_field(c: &mut Checks, requirement: &Value, at: At<'_>) {
    match text(requirement, "operator") {
        "In" | "NotIn" if list(requirement, "values").len() != 1 => c.required(at.child("values"), ONE_NAME),
        "In" | "NotIn" => {}
        other => c.invalid(at.child("operator"), other, OPERATOR),
    }
    let key = text(requirement, "key");
    if key != "metadata.name" {
        return c.invalid(at.child("key"), key, "not a valid field selector key");
    }
    for (i, value) in strings(requirement, "values").enumerate() {
        c.syntax(at.item("values", i), value, names::dns1123_subdomain);
    }
}

fn operator_and_values(c: &mut Checks, requirement: &Value, at: At<'_>) {
    let has_values = !list(requirement, "values").is_empty();
    match text(requirement, "operator") {
        "In" | "NotIn" if !has_values => c.required(at.child("values"), SET_VALUES),
        "Exists" | "DoesNotExist" if has_values => c.forbidden(at.child("values"), NO_VALUES),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => c.invalid(at.child("operator"), other, OPERATOR),
    }
}

fn key_and_values(c: &mut Checks, requirement: &Value, any_value: bool, at: At<'_>) {
    c.syntax(at.child("key"), text(requirement, "key"), names::qualified_name);
    if any_value {
        return;
    }
    for (i, value) in strings(requirement, "values").enumerate() {
        c.syntax(at.item("values", i), value, names::label_value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn selectors_of_labels() {
        fn check(c: &mut Checks, selector: &Value) {
            label_selector(c, selector, At::root("s"));
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
}
