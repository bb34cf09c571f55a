//! PriorityClasses and PodDisruptionBudgets (upstream's `scheduling` and `policy` validation).

use serde_json::Value;

use super::checks::Checks;
use super::selectors;
use super::util::{number, text};
use crate::field::At;
use crate::object;

/// The most that users may give.
const HIGHEST: i64 = 1_000_000_000;
const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", 2 * HIGHEST + 1000), ("system-cluster-critical", 2 * HIGHEST)];

pub(super) fn validate_priority_class(c: &mut Checks, obj: &Value) {
    let (name, value) = (object::name(obj), number(obj, "value"));
    if name.starts_with("system-") {
        let wrong = match SYSTEM.iter().find(|(known, _)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, right)) if *right != value => {
                Some(format!("value of {name} PriorityClass must be {right}"))
            }
            Some(_) if obj["globalDefault"] == true => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(wrong) = wrong {
            let what = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {wrong}"
            );
            c.forbidden("metadata.name", what);
        }
    } else if value > HIGHEST {
        let what = format!("maximum allowed value of a user defined priority is {HIGHEST}");
        c.forbidden("value", what);
    }
    // Defaults fill in what is left out, not what is empty.
    if obj["preemptionPolicy"].is_string() {
        c.required_one_of(obj, "preemptionPolicy", At::ROOT, &["PreemptLowerPriority", "Never"]);
    }
}

pub(super) fn update_priority_class(c: &mut Checks, new: &Value, old: &Value) {
    if number(new, "value") != number(old, "value") {
        c.forbidden("value", "may not be changed in an update.");
    }
    c.immutable(new, old, "/preemptionPolicy");
}

pub(super) fn validate_budget(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    let (least, most) = (&spec["minAvailable"], &spec["maxUnavailable"]);
    if !least.is_null() && !most.is_null() {
        let what = "minAvailable and maxUnavailable cannot be both set";
        c.invalid("spec", spec.clone(), what);
    }
    for (field, value) in [("minAvailable", least), ("maxUnavailable", most)] {
        c.count_or_percent(At::SPEC.child(field), value);
        c.at_most_all(At::SPEC.child(field), value);
    }
    selectors::label_selector(c, &spec["selector"], At::SPEC.child("selector"));
    if !text(spec, "unhealthyPodEvictionPolicy").is_empty() {
        c.one_of(spec, "unhealthyPodEvictionPolicy", At::SPEC, &["AlwaysAllow", "IfHealthyBudget"]);
    }
}

pub(super) fn update_budget(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_budget, new, old);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn priorities() {
        let of = |name: &str, value: i64| {
            told(validate_priority_class, &json!({"metadata": {"name": name}, "value": value}))
        };
        assert_eq!(of("a", 1_000_000_000), "");
        assert_eq!(of("a", -2_000_000_000), "");
        assert_eq!(of("system-cluster-critical", 2_000_000_000), "");
        assert_eq!(of("system-node-critical", 2_000_001_000), "");
        assert_eq!(
            of("a", 1_000_000_001),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"
        );
        let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: ";
        assert_eq!(of("system-x", 1), format!("{reserved}system-x is not a known system priority class"));
        assert_eq!(
            of("system-node-critical", 1),
            format!("{reserved}value of system-node-critical PriorityClass must be 2000001000")
        );
        assert_eq!(
            told(validate_priority_class, &json!({"metadata": {"name": "a"}, "preemptionPolicy": "x"})),
            r#"preemptionPolicy: Unsupported value: "x": supported values: "PreemptLowerPriority", "Never""#
        );
        assert_eq!(
            told(validate_priority_class, &json!({"metadata": {"name": "a"}, "preemptionPolicy": ""})),
            "preemptionPolicy: Required value"
        );
        let mut c = Checks::default();
        update_priority_class(&mut c, &json!({"value": 1}), &json!({"preemptionPolicy": "Never"}));
        let told: Vec<String> = c.errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "value: Forbidden: may not be changed in an update.",
                "preemptionPolicy: Invalid value: null: field is immutable"
            ]
        );
    }

    #[test]
    fn budgets() {
        let of = |spec: Value| told(validate_budget, &json!({ "spec": spec }));
        for spec in [
            json!({}),
            json!({"minAvailable": "100%", "selector": {"matchLabels": {"a": "b"}}}),
            json!({"maxUnavailable": 3, "unhealthyPodEvictionPolicy": "AlwaysAllow"}),
        ] {
            assert_eq!(of(spec.clone()), "", "{spec}");
        }
        for (spec, wanted) in [
            (
                json!({"minAvailable": 1, "maxUnavailable": 1}),
                r#"spec: Invalid value: {"maxUnavailable":1,"minAvailable":1}: minAvailable and maxUnavailable cannot be both set"#,
            ),
            (
                json!({"maxUnavailable": "120%"}),
                r#"spec.maxUnavailable: Invalid value: "120%": must not be greater than 100%"#,
            ),
            (
                json!({"minAvailable": -1}),
                "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                json!({"minAvailable": "x"}),
                "spec.minAvailable: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
            ),
            (
                json!({"unhealthyPodEvictionPolicy": "x"}),
                r#"spec.unhealthyPodEvictionPolicy: Unsupported value: "x": supported values: "AlwaysAllow", "IfHealthyBudget""#,
            ),
            (
                json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
                "spec.selector.matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
        ] {
            // The order of a specification's fields is the one they came in.
            let got = of(spec);
            assert_eq!(
                got.replace(
                    r#"{"minAvailable":1,"maxUnavailable":1}"#,
                    r#"{"maxUnavailable":1,"minAvailable":1}"#
                ),
                wanted
            );
        }
    }
}
