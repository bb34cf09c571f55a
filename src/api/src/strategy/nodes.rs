//! Nodes and RuntimeClasses (upstream's `ValidateNode` and `pkg/apis/node/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::checks::{ratchet, required_name, required_one_of, syntax};
use super::meta::{immutable, labels};
use super::util::{list, text};
use super::{ips, pod_spec, resource_names, volumes};
use crate::field::{FieldError, index, join};
use crate::names;
use crate::quantity::Quantity;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn validate(obj: &Value, errors: &mut Vec<FieldError>) {
    taints(list(&obj["spec"], "taints"), errors);
    for field in ["capacity", "allocatable"] {
        for (name, value) in obj["status"][field].as_object().into_iter().flatten() {
            if let Some(q) = Quantity::from_value(value) {
                resource_names::amount(name, q, &format!("status.{field}.{name}"), errors);
            }
        }
    }
    ranges(&obj["spec"], errors);
}

fn taints(taints: &[Value], errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, t) in taints.iter().enumerate() {
        // Upstream's path is of the metadata.
        let at = index("metadata.taints", i);
        let (key, value) = (text(t, "key"), text(t, "value"));
        syntax(names::qualified_name, key, &join(&at, "key"), errors);
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(join(&at, "value"), value, wrong.join(";")));
        }
        required_one_of(t, "effect", &at, &EFFECTS, errors);
        if !seen.insert((key, text(t, "effect"))) {
            let detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(FieldError { detail, ..FieldError::duplicate(at, t.clone()) });
        }
    }
}

fn ranges(spec: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.podCIDRs";
    let ranges = list(spec, "podCIDRs");
    let mut families = HashSet::new();
    for (i, range) in ranges.iter().enumerate() {
        let range = ips::range(range.as_str().unwrap_or_default(), &index(AT, i), errors);
        families.extend(range.map(|r| r.is_ipv4()));
    }
    if ranges.len() > 1 && (families.len() != 2 || ranges.len() > 2) {
        let what = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(AT, ranges.to_vec(), what));
    }
}

/// The ranges of a node, of which older clients name the first only.
fn of_pods(node: &Value) -> Vec<&str> {
    let spec = &node["spec"];
    match (list(spec, "podCIDRs"), text(spec, "podCIDR")) {
        ([], "") => Vec::new(),
        ([], one) => vec![one],
        (many, _) => many.iter().filter_map(Value::as_str).collect(),
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate, new, old, errors);
    let before = of_pods(old);
    if !before.is_empty() && of_pods(new) != before {
        let what = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", what));
    }
    let before = text(&old["spec"], "providerID");
    if !before.is_empty() && text(&new["spec"], "providerID") != before {
        let what = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.providerID", what));
    }
}

pub(super) fn validate_runtime(obj: &Value, errors: &mut Vec<FieldError>) {
    required_name(obj, "handler", names::dns1123_label, "", errors);
    volumes::amounts(&obj["overhead"]["podFixed"], "overhead.limits", errors);
    let scheduling = &obj["scheduling"];
    labels(&scheduling["nodeSelector"], "scheduling.nodeSelector", errors);
    let (tolerations, path) = (list(scheduling, "tolerations"), "scheduling.tolerations");
    pod_spec::validate_tolerations(tolerations, path, errors);
    let mut seen = HashSet::new();
    for (i, t) in tolerations.iter().enumerate() {
        let at = index(path, i);
        if !seen.insert(["key", "operator", "value", "effect"].map(|f| text(t, f))) {
            errors.push(FieldError::duplicate(at, t.clone()));
        }
    }
}

/// Of a RuntimeClass only the handler is fixed.
pub(super) fn update_runtime(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    immutable(new, old, "/handler", errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn nodes() {
        let of = |spec: Value| {
            told(validate, &json!({"spec": spec, "status": {"capacity": {"cpu": "4", "a.b/c": 2}}}))
        };
        for spec in [
            json!({}),
            json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"]}),
            json!({"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "v", "effect": "NoExecute"}]}),
        ] {
            assert_eq!(of(spec.clone()), "", "{spec}");
        }
        for (spec, wanted) in [
            (
                json!({"podCIDRs": ["10.1.0.0"]}),
                "spec.podCIDRs[0]: Invalid value: \"10.1.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
            (
                json!({"podCIDRs": ["10.1.0.0/24", "10.2.0.0/24"]}),
                r#"spec.podCIDRs: Invalid value: ["10.1.0.0/24","10.2.0.0/24"]: may specify no more than one CIDR for each IP family"#,
            ),
            (json!({"taints": [{"key": "a"}]}), "metadata.taints[0].effect: Required value"),
            (
                json!({"taints": [{"key": "a", "effect": "x"}]}),
                r#"metadata.taints[0].effect: Unsupported value: "x": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#,
            ),
            (
                json!({"taints": [{"effect": "NoExecute", "key": "a"}, {"effect": "NoExecute", "key": "a"}]}),
                r#"metadata.taints[1]: Duplicate value: {"effect":"NoExecute","key":"a"}: taints must be unique by key and effect pair"#,
            ),
        ] {
            assert_eq!(of(spec), wanted);
        }
        let node =
            |cidr: &str| json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr], "providerID": "kedge://a"}});
        let mut errors = Vec::new();
        update(&node("10.2.0.0/24"), &json!({"spec": {}}), &mut errors);
        assert_eq!(errors, []);
        update(&node("10.2.0.0/24"), &node("10.1.0.0/24"), &mut errors);
        assert_eq!(
            errors[0].to_string(),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
        );
    }

    #[test]
    fn runtimes() {
        let of = |obj: Value| told(validate_runtime, &obj);
        assert_eq!(
            of(json!({"handler": "runc", "overhead": {"podFixed": {"cpu": "10m"}}, "scheduling":
            {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}})),
            ""
        );
        assert_eq!(of(json!({})), "handler: Required value");
        for (obj, wanted) in [
            (json!({"handler": "A"}), "handler: Invalid value: \"A\": a lowercase RFC 1123 label"),
            (
                json!({"handler": "a", "overhead": {"podFixed": {"cpu": "-1"}}}),
                "overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                json!({"handler": "a", "scheduling": {"tolerations": [{"operator": "Exists"}, {"operator": "Exists"}]}}),
                "scheduling.tolerations[1]: Duplicate value: {\"operator\":\"Exists\"}",
            ),
            (
                json!({"handler": "a", "scheduling": {"tolerations": [{"key": "k", "operator": "x"}]}}),
                r#"scheduling.tolerations[0].operator: Unsupported value: "x": supported values: "Equal", "Exists""#,
            ),
        ] {
            assert!(of(obj.clone()).starts_with(wanted), "{}", of(obj));
        }
        let mut errors = Vec::new();
        update_runtime(&json!({"handler": "b"}), &json!({"handler": "a"}), &mut errors);
        assert_eq!(errors[0].to_string(), "handler: Invalid value: \"b\": field is immutable");
    }
}
