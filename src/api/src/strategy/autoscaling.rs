//! HorizontalPodAutoscalers of both versions (upstream's `pkg/apis/autoscaling/validation`).

use serde_json::Value;

use super::checks::{NOT_POSITIVE, not_negative, number, ratchet, required, required_name, syntax};
use super::resource_names as resources;
use super::util::{list, text};
use crate::field::{FieldError, index, join};
use crate::names;
use crate::quantity::Quantity;

const POSITIVE: &str = "must be greater than 0";
/// (type, member), in the order in which members are looked at.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];
const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

pub(super) fn validate(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let (min, max) = (spec.get("minReplicas").and_then(Value::as_i64), number(spec, "maxReplicas"));
    if let Some(min) = min.filter(|min| *min < 1) {
        errors.push(FieldError::invalid("spec.minReplicas", min, "must be greater than or equal to 1"));
    }
    if max == 0 {
        required("spec.maxReplicas", "must be set and greater than 0", errors);
    } else if max < 0 {
        errors.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than or equal to 1"));
    }
    if min.is_some_and(|min| max < min) {
        let what = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid("spec.maxReplicas", max, what));
    }
    let target = &spec["scaleTargetRef"];
    // The one kind of the core group that scales.
    reference(target, "spec.scaleTargetRef", text(target, "kind") == "ReplicationController", errors);
    // The one metric of the older version is the first of the newer one.
    if let Some(n) = spec.get("targetCPUUtilizationPercentage").and_then(Value::as_i64).filter(|n| *n < 1) {
        let at = "spec.metrics[0].resource.target.averageUtilization";
        errors.push(FieldError::invalid(at, n, POSITIVE));
    }
    for (i, m) in list(spec, "metrics").iter().enumerate() {
        metric(m, &index("spec.metrics", i), errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if rules.is_object() {
            scaling(rules, &format!("spec.behavior.{direction}"), errors);
        }
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate, new, old, errors);
}

/// A `CrossVersionObjectReference`.
fn reference(r: &Value, at: &str, may_be_core: bool, errors: &mut Vec<FieldError>) {
    required_name(r, "kind", names::path_segment, at, errors);
    required_name(r, "name", names::path_segment, at, errors);
    let version = text(r, "apiVersion");
    let what = match version.matches('/').count() {
        0 if !may_be_core => "apiVersion must specify API group".to_owned(),
        2.. => format!("unexpected GroupVersion string: {version}"),
        _ => return,
    };
    errors.push(FieldError::invalid(join(at, "apiVersion"), version, what));
}

fn metric(m: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let kind = text(m, "type");
    if kind.is_empty() {
        required(join(at, "type"), "must specify a metric source type", errors);
    }
    let wanted = SOURCES.iter().find(|(k, _)| *k == kind).map(|(_, member)| *member);
    if wanted.is_none() {
        errors.push(FieldError::not_supported(join(at, "type"), kind, &TYPES));
    }
    let mut present = SOURCES.iter().map(|(_, member)| *member).filter(|f| m[*f].is_object());
    let first = present.next();
    if let Some(first) = first {
        source(&m[first], first, &join(at, first), errors);
    }
    if let Some(wanted) = wanted.filter(|f| !m[*f].is_object()) {
        required(join(at, wanted), "must populate information for the given metric source", errors);
    }
    let others: Vec<&str> = present.collect();
    if !others.is_empty() {
        for other in first.into_iter().chain(others).filter(|f| Some(*f) != wanted) {
            errors.push(FieldError::forbidden(join(at, other), "must populate the given metric source only"));
        }
    }
}

fn source(s: &Value, kind: &str, at: &str, errors: &mut Vec<FieldError>) {
    match kind {
        "object" => reference(&s["describedObject"], &join(at, "describedObject"), true, errors),
        "resource" | "containerResource" => {
            let (path, name) = (join(at, "name"), text(s, "name"));
            if name.is_empty() {
                required(path, "must specify a resource name", errors);
            } else if kind == "containerResource" {
                resources::of_container(name, &path, errors);
            }
        }
        _ => {}
    }
    if kind == "containerResource" {
        let path = join(at, "container");
        match text(s, "container") {
            "" => required(path, "must specify a container", errors),
            name => syntax(names::dns1123_label, name, &path, errors),
        }
    }
    if matches!(kind, "object" | "external" | "pods") {
        let path = join(at, "metric.name");
        match text(&s["metric"], "name") {
            "" => required(path, "must specify a metric name", errors),
            name => syntax(names::path_segment, name, &path, errors),
        }
    }
    let (target, at) = (&s["target"], join(at, "target"));
    let has = |field: &str| !target[field].is_null();
    amounts(target, &at, errors);
    let mut forbid = |field: &str, what: &str| errors.push(FieldError::forbidden(join(&at, field), what));
    let (value, average, utilization) = (has("value"), has("averageValue"), has("averageUtilization"));
    match kind {
        "external" if value && average => {
            forbid("value", "may not set both a target value for metric and a per-pod target");
        }
        "resource" | "containerResource" if utilization && average => {
            forbid("averageValue", "may not set both a target raw value and a target utilization");
        }
        "object" if !value && !average => {
            required(join(&at, "averageValue"), "must set either a target value or averageValue", errors);
        }
        "external" if !value && !average => {
            let what = "must set either a target value for metric or a per-pod target";
            required(join(&at, "averageValue"), what, errors);
        }
        "pods" if !average => {
            required(join(&at, "averageValue"), "must specify a positive target averageValue", errors);
        }
        "resource" | "containerResource" if !utilization && !average => {
            let what = "must set either a target raw value or a target utilization";
            required(join(&at, "averageUtilization"), what, errors);
        }
        _ => {}
    }
}

fn amounts(target: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let kind = text(target, "type");
    if kind.is_empty() {
        required(join(at, "type"), "must specify a metric target type", errors);
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let what = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(join(at, "type"), kind, what));
    }
    for field in ["value", "averageValue"] {
        if let Some(q) = Quantity::from_value(&target[field]).filter(|q| q.sign() <= 0) {
            errors.push(FieldError::invalid(join(at, field), q.to_string(), "must be positive"));
        }
    }
    if let Some(n) = target["averageUtilization"].as_i64().filter(|n| *n < 1) {
        errors.push(FieldError::invalid(join(at, "averageUtilization"), n, POSITIVE));
    }
}

fn scaling(rules: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let window = number(rules, "stabilizationWindowSeconds");
    let what = match window {
        ..0 => Some("must be greater than or equal to zero"),
        3601.. => Some("must be less than or equal to 3600"),
        _ => None,
    };
    if let Some(what) = what {
        errors.push(FieldError::invalid(join(at, "stabilizationWindowSeconds"), window, what));
    }
    super::util::one_of(rules, "selectPolicy", at, &["Disabled", "Max", "Min"], errors);
    let policies = list(rules, "policies");
    if policies.is_empty() {
        required(join(at, "policies"), "must specify at least one Policy", errors);
    }
    for (i, p) in policies.iter().enumerate() {
        let at = index(&join(at, "policies"), i);
        if !matches!(text(p, "type"), "Pods" | "Percent") {
            errors.push(FieldError::not_supported(join(&at, "type"), text(p, "type"), &["Percent", "Pods"]));
        }
        let (value, period) = (number(p, "value"), number(p, "periodSeconds"));
        if value <= 0 {
            errors.push(FieldError::invalid(join(&at, "value"), value, NOT_POSITIVE));
        }
        if period <= 0 {
            errors.push(FieldError::invalid(join(&at, "periodSeconds"), period, NOT_POSITIVE));
        }
        if period > 1800 {
            let what = "must be less than or equal to 1800";
            errors.push(FieldError::invalid(join(&at, "periodSeconds"), period, what));
        }
    }
    not_negative(&rules["tolerance"], &join(at, "tolerance"), errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    fn of(with: Value) -> String {
        let mut spec = json!({"minReplicas": 1, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
        for (k, v) in with.as_object().unwrap() {
            spec[k] = v.clone();
        }
        told(validate, &json!({ "spec": spec }))
    }

    #[test]
    fn good_autoscalers() {
        for spec in [
            json!({}),
            json!({"targetCPUUtilizationPercentage": 70}),
            json!({"scaleTargetRef": {"apiVersion": "v1", "kind": "ReplicationController", "name": "r"}}),
            json!({"metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": 1}}},
                {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"}, "metric": {"name": "m"}, "target": {"type": "Value", "value": "300m"}}},
                {"type": "External", "external": {"metric": {"name": "m", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": 1}}},
            ]}),
            json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 3600, "selectPolicy": "Disabled",
                "policies": [{"type": "Percent", "value": 10, "periodSeconds": 1800}], "tolerance": "50m"}}}),
        ] {
            assert_eq!(of(spec.clone()), "", "{spec}");
        }
    }

    #[test]
    fn bad_autoscalers() {
        for (spec, wanted) in [
            (json!({"minReplicas": 0}), "minReplicas: Invalid value: 0: must be greater than or equal to 1"),
            (
                json!({"minReplicas": null, "maxReplicas": 0}),
                "maxReplicas: Required value: must be set and greater than 0",
            ),
            (
                json!({"minReplicas": 3, "maxReplicas": 2}),
                "maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
            ),
            (
                json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "a/b", "name": "d"}}),
                "scaleTargetRef.kind: Invalid value: \"a/b\": may not contain '/'",
            ),
            (
                json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment"}}),
                "scaleTargetRef.name: Required value",
            ),
            (
                json!({"scaleTargetRef": {"apiVersion": "a/b/c", "kind": "Deployment", "name": "d"}}),
                "scaleTargetRef.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
            ),
            (
                json!({"targetCPUUtilizationPercentage": 0}),
                "metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
            ),
        ] {
            assert_eq!(of(spec), format!("spec.{wanted}"));
        }
    }

    #[test]
    fn bad_metrics() {
        let target = json!({"type": "AverageValue", "averageValue": 1});
        for (metric, wanted) in [
            (
                json!({"type": "Resource"}),
                "resource: Required value: must populate information for the given metric source",
            ),
            (
                json!({"type": "Resource", "resource": {"target": target}}),
                "resource.name: Required value: must specify a resource name",
            ),
            (
                json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}),
                "resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
            ),
            (
                json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "x", "averageValue": "-1"}}}),
                "resource.target.type: Invalid value: \"x\": must be either Utilization, Value, or AverageValue; spec.metrics[0].resource.target.averageValue: Invalid value: \"-1\": must be positive",
            ),
            (
                json!({"type": "Resource", "resource": {"name": "cpu", "target": target}, "containerResource": {}}),
                "containerResource: Forbidden: must populate the given metric source only",
            ),
            (
                json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "Value", "value": 1}}}),
                "pods.target.averageValue: Required value: must specify a positive target averageValue",
            ),
            (
                json!({"type": "External", "external": {"metric": {"name": "m"}, "target": {"type": "Value", "value": 1, "averageValue": 1}}}),
                "external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
            ),
            (
                json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "target": target}}),
                "containerResource.container: Required value: must specify a container",
            ),
            (
                json!({"type": "x"}),
                r#"type: Unsupported value: "x": supported values: "ContainerResource", "External", "Object", "Pods", "Resource""#,
            ),
        ] {
            let got = of(json!({"metrics": [metric]}));
            // What the second source lacks is not looked at.
            assert_eq!(got, format!("spec.metrics[0].{wanted}"));
        }
    }

    #[test]
    fn bad_behavior() {
        let policy = json!([{"type": "Pods", "value": 1, "periodSeconds": 1}]);
        for (rules, wanted) in [
            (
                json!({"stabilizationWindowSeconds": 3601, "policies": policy}),
                "stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
            ),
            (
                json!({"selectPolicy": "x", "policies": policy}),
                r#"selectPolicy: Unsupported value: "x": supported values: "Disabled", "Max", "Min""#,
            ),
            (json!({}), "policies: Required value: must specify at least one Policy"),
            (
                json!({"policies": [{"type": "Pods", "value": 0, "periodSeconds": 1801}]}),
                "policies[0].value: Invalid value: 0: must be greater than zero; spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
            ),
            (
                json!({"policies": policy, "tolerance": "-1"}),
                "tolerance: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
        ] {
            assert_eq!(
                of(json!({"behavior": {"scaleUp": rules}})),
                format!("spec.behavior.scaleUp.{wanted}")
            );
        }
    }
}
