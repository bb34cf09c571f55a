//! HorizontalPodAutoscalers of both versions (upstream's `pkg/apis/autoscaling/validation`).

use serde_json::Value;

use super::checks::{Checks, NOT_POSITIVE};
use super::resource_names as resources;
use super::util::{list, number, text};
use crate::field::At;
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

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    let (min, max) = (spec.get("minReplicas").and_then(Value::as_i64), number(spec, "maxReplicas"));
    if let Some(min) = min.filter(|min| *min < 1) {
        c.invalid("spec.minReplicas", min, "must be greater than or equal to 1");
    }
    if max == 0 {
        c.required("spec.maxReplicas", "must be set and greater than 0");
    } else if max < 0 {
        c.invalid("spec.maxReplicas", max, "must be greater than or equal to 1");
    }
    if min.is_some_and(|min| max < min) {
        let what = "must be greater than or equal to `minReplicas`";
        c.invalid("spec.maxReplicas", max, what);
    }
    let target = &spec["scaleTargetRef"];
    // The one kind of the core group that scales.
    reference(c, target, At::SPEC.child("scaleTargetRef"), text(target, "kind") == "ReplicationController");
    // The one metric of the older version is the first of the newer one.
    if let Some(n) = spec.get("targetCPUUtilizationPercentage").and_then(Value::as_i64).filter(|n| *n < 1) {
        let at = "spec.metrics[0].resource.target.averageUtilization";
        c.invalid(at, n, POSITIVE);
    }
    for (i, m) in list(spec, "metrics").iter().enumerate() {
        metric(c, m, At::SPEC.item("metrics", i));
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if rules.is_object() {
            scaling(c, rules, At::SPEC.child("behavior").child(direction));
        }
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
}

/// A `CrossVersionObjectReference`.
fn reference(c: &mut Checks, r: &Value, at: At<'_>, may_be_core: bool) {
    c.required_name(r, "kind", at, names::path_segment);
    c.required_name(r, "name", at, names::path_segment);
    let version = text(r, "apiVersion");
    let what = match version.matches('/').count() {
        0 if !may_be_core => "apiVersion must specify API group".to_owned(),
        2.. => format!("unexpected GroupVersion string: {version}"),
        _ => return,
    };
    c.invalid(at.child("apiVersion"), version, what);
}

fn metric(c: &mut Checks, m: &Value, at: At<'_>) {
    let kind = text(m, "type");
    if kind.is_empty() {
        c.required(at.child("type"), "must specify a metric source type");
    }
    let wanted = SOURCES.iter().find(|(k, _)| *k == kind).map(|(_, member)| *member);
    if wanted.is_none() {
        c.unsupported(at.child("type"), kind, &TYPES);
    }
    let mut present = SOURCES.iter().map(|(_, member)| *member).filter(|f| m[*f].is_object());
    let first = present.next();
    if let Some(first) = first {
        source(c, &m[first], first, at.child(first));
    }
    if let Some(wanted) = wanted.filter(|f| !m[*f].is_object()) {
        c.required(at.child(wanted), "must populate information for the given metric source");
    }
    let others: Vec<&str> = present.collect();
    if !others.is_empty() {
        for other in first.into_iter().chain(others).filter(|f| Some(*f) != wanted) {
            c.forbidden(at.child(other), "must populate the given metric source only");
        }
    }
}

fn source(c: &mut Checks, s: &Value, kind: &str, at: At<'_>) {
    match kind {
        "object" => reference(c, &s["describedObject"], at.child("describedObject"), true),
        "resource" | "containerResource" => {
            let (path, name) = (at.child("name"), text(s, "name"));
            if name.is_empty() {
                c.required(path, "must specify a resource name");
            } else if kind == "containerResource" {
                resources::of_container(c, name, path);
            }
        }
        _ => {}
    }
    if kind == "containerResource" {
        let path = at.child("container");
        match text(s, "container") {
            "" => c.required(path, "must specify a container"),
            name => c.syntax(path, name, names::dns1123_label),
        }
    }
    if matches!(kind, "object" | "external" | "pods") {
        let path = at.child("metric.name");
        match text(&s["metric"], "name") {
            "" => c.required(path, "must specify a metric name"),
            name => c.syntax(path, name, names::path_segment),
        }
    }
    let (target, at) = (&s["target"], at.child("target"));
    let has = |field: &str| !target[field].is_null();
    amounts(c, target, at);
    let mut forbid = |field: &str, what: &str| c.forbidden(at.child(field), what);
    let (value, average, utilization) = (has("value"), has("averageValue"), has("averageUtilization"));
    match kind {
        "external" if value && average => {
            forbid("value", "may not set both a target value for metric and a per-pod target");
        }
        "resource" | "containerResource" if utilization && average => {
            forbid("averageValue", "may not set both a target raw value and a target utilization");
        }
        "object" if !value && !average => {
            c.required(at.child("averageValue"), "must set either a target value or averageValue");
        }
        "external" if !value && !average => {
            let what = "must set either a target value for metric or a per-pod target";
            c.required(at.child("averageValue"), what);
        }
        "pods" if !average => {
            c.required(at.child("averageValue"), "must specify a positive target averageValue");
        }
        "resource" | "containerResource" if !utilization && !average => {
            let what = "must set either a target raw value or a target utilization";
            c.required(at.child("averageUtilization"), what);
        }
        _ => {}
    }
}

fn amounts(c: &mut Checks, target: &Value, at: At<'_>) {
    let kind = text(target, "type");
    if kind.is_empty() {
        c.required(at.child("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let what = "must be either Utilization, Value, or AverageValue";
        c.invalid(at.child("type"), kind, what);
    }
    for field in ["value", "averageValue"] {
        if let Some(q) = Quantity::from_value(&target[field]).filter(|q| q.sign() <= 0) {
            c.invalid(at.child(field), q.to_string(), "must be positive");
        }
    }
    if let Some(n) = target["averageUtilization"].as_i64().filter(|n| *n < 1) {
        c.invalid(at.child("averageUtilization"), n, POSITIVE);
    }
}

fn scaling(c: &mut Checks, rules: &Value, at: At<'_>) {
    let window = number(rules, "stabilizationWindowSeconds");
    let what = match window {
        ..0 => Some("must be greater than or equal to zero"),
        3601.. => Some("must be less than or equal to 3600"),
        _ => None,
    };
    if let Some(what) = what {
        c.invalid(at.child("stabilizationWindowSeconds"), window, what);
    }
    c.one_of(rules, "selectPolicy", at, &["Disabled", "Max", "Min"]);
    let policies = list(rules, "policies");
    if policies.is_empty() {
        c.required(at.child("policies"), "must specify at least one Policy");
    }
    for (i, p) in policies.iter().enumerate() {
        let at = at.item("policies", i);
        if !matches!(text(p, "type"), "Pods" | "Percent") {
            c.unsupported(at.child("type"), text(p, "type"), &["Percent", "Pods"]);
        }
        let (value, period) = (number(p, "value"), number(p, "periodSeconds"));
        if value <= 0 {
            c.invalid(at.child("value"), value, NOT_POSITIVE);
        }
        if period <= 0 {
            c.invalid(at.child("periodSeconds"), period, NOT_POSITIVE);
        }
        if period > 1800 {
            let what = "must be less than or equal to 1800";
            c.invalid(at.child("periodSeconds"), period, what);
        }
    }
    c.non_negative_quantity(at.child("tolerance"), &rules["tolerance"]);
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
            (
                json!({"behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1}], "tolerance": "-0.5"}}}),
                "behavior.scaleUp.tolerance: Invalid value: \"-500m\": must be greater than or equal to 0",
            ),
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
