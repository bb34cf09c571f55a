//! Nodes and RuntimeClasses (upstream's `ValidateNode` and `pkg/apis/node/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::checks::Checks;
use super::meta::labels;
use super::util::{entries, list, strings, text};
use super::{ips, pod_spec, resource_names};
use crate::field::{At, FieldError};
use crate::names;

const METADATA: At<'_> = At::root("metadata");

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    taints(c, list(&obj["spec"], "taints"));
    for field in ["capacity", "allocatable"] {
        for (name, value) in entries(&obj["status"][field]) {
            resource_names::amount(c, name, value, At::root("status").child(field).child(name));
        }
    }
    ranges(c, &obj["spec"]);
}

fn taints(c: &mut Checks, taints: &[Value]) {
    let mut seen = HashSet::new();
    for (i, t) in taints.iter().enumerate() {
        // Upstream's path is of the metadata.
        let at = METADATA.item("taints", i);
        let (key, value) = (text(t, "key"), text(t, "value"));
        c.syntax(at.child("key"), key, names::qualified_name);
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            c.invalid(at.child("value"), value, wrong.join(";"));
        }
        c.required_one_of(t, "effect", at, &pod_spec::EFFECTS);
        if !seen.insert((key, text(t, "effect"))) {
            let detail = "taints must be unique by key and effect pair".to_owned();
            c.errors.push(FieldError { detail, ..FieldError::duplicate(at, t.clone()) });
        }
    }
}

fn ranges(c: &mut Checks, spec: &Value) {
    const AT: At<'_> = At::root("spec.podCIDRs");
    let ranges = list(spec, "podCIDRs");
    let mut families = HashSet::new();
    for (i, range) in strings(spec, "podCIDRs").enumerate() {
        let range = ips::range(c, range, AT.index(i));
        families.extend(range.map(|r| r.is_ipv4()));
    }
    if ranges.len() > 1 && (families.len() != 2 || ranges.len() > 2) {
        let what = "may specify no more than one CIDR for each IP family";
        c.invalid(AT, ranges.to_vec(), what);
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

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
    let before = of_pods(old);
    if !before.is_empty() && of_pods(new) != before {
        let what = "node updates may not change podCIDR except from \"\" to valid";
        c.forbidden("spec.podCIDRs", what);
    }
    let before = text(&old["spec"], "providerID");
    if !before.is_empty() && text(&new["spec"], "providerID") != before {
        let what = "node updates may not change providerID except from \"\" to valid";
        c.forbidden("spec.providerID", what);
    }
}

pub(super) fn validate_runtime(c: &mut Checks, obj: &Value) {
    c.required_name(obj, "handler", At::ROOT, names::dns1123_label);
    pod_spec::overhead(c, &obj["overhead"]["podFixed"], At::root("overhead"));
    let scheduling = &obj["scheduling"];
    labels(c, &scheduling["nodeSelector"], At::root("scheduling.nodeSelector"));
    let (tolerations, at) = (list(scheduling, "tolerations"), At::root("scheduling.tolerations"));
    pod_spec::tolerations(c, tolerations, at);
    let mut seen = HashSet::new();
    for (i, t) in tolerations.iter().enumerate() {
        let at = at.index(i);
        if !seen.insert(["key", "operator", "value", "effect"].map(|f| text(t, f))) {
            c.duplicate(at, t.clone());
        }
    }
}

/// Of a RuntimeClass only the handler is fixed.
pub(super) fn update_runtime(c: &mut Checks, new: &Value, old: &Value) {
    c.immutable(new, old, "/handler");
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
        let mut c = Checks::default();
        update(&mut c, &node("10.2.0.0/24"), &json!({"spec": {}}));
        assert_eq!(c.errors, []);
        update(&mut c, &node("10.2.0.0/24"), &node("10.1.0.0/24"));
        assert_eq!(
            c.errors[0].to_string(),
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
                json!({"handler": "a", "overhead": {"podFixed": {"hugepages-2Mi": "2Mi"}}}),
                "overhead: Forbidden: HugePages require cpu or memory",
            ),
            (
                json!({"handler": "a", "overhead": {"podFixed": {"cpu": 1, "hugepages-2Mi": "1Mi"}}}),
                "overhead.limits[hugepages-2Mi]: Invalid value: \"1Mi\": 1Mi is not positive integer multiple of hugepages-2Mi",
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
        let mut c = Checks::default();
        update_runtime(&mut c, &json!({"handler": "b"}), &json!({"handler": "a"}));
        assert_eq!(c.errors[0].to_string(), "handler: Invalid value: \"b\": field is immutable");
    }
}
