//! ResourceQuotas (upstream's `ValidateResourceQuota`).

use serde_json::Value;

use super::checks::{Checks, IMMUTABLE};
use super::resource_names as resources;
use super::util::{list, text};
use crate::field::At;

const SCOPES: &str = "spec.scopes";
/// Scopes that exclude each other.
const PAIRS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

fn is_scope(scope: &str) -> bool {
    matches!(
        scope,
        "Terminating"
            | "NotTerminating"
            | "BestEffort"
            | "NotBestEffort"
            | "PriorityClass"
            | "VolumeAttributesClass"
            | "CrossNamespacePodAffinity"
    )
}

/// A quota of this scope can limit the resource.
fn reaches(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        scope if is_scope(scope) => matches!(
            resource,
            "pods" | "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory"
        ),
        _ => true,
    }
}

fn limited(obj: &Value) -> impl Iterator<Item = (&String, &Value)> {
    obj["spec"]["hard"].as_object().into_iter().flatten()
}

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    const HARD: At<'_> = At::root("spec.hard");
    for (name, value) in limited(obj) {
        let at = HARD.key(name);
        resources::of_quota(c, name, at);
        resources::amount(c, name, value, at);
    }
    let spec = &obj["spec"];
    let scopes = list(spec, "scopes");
    let mut say = |what: &str| c.invalid(SCOPES, scopes.to_vec(), what);
    for scope in scopes.iter().map(|s| s.as_str().unwrap_or_default()) {
        if !is_scope(scope) {
            say("unsupported scope");
        }
        for _ in limited(obj).filter(|(k, _)| resources::is_quota(k) && !reaches(scope, k)) {
            say("unsupported scope applied to resource");
        }
    }
    for _ in PAIRS.iter().filter(|pair| pair.iter().all(|p| scopes.iter().any(|s| s == p))) {
        say("conflicting scopes");
    }
    if spec["scopeSelector"].is_object() {
        selector(c, obj);
    }
}

fn selector(c: &mut Checks, obj: &Value) {
    const AT: At<'_> = At::root("spec.scopeSelector.matchExpressions");
    let spec = &obj["spec"];
    let terms = list(&spec["scopeSelector"], "matchExpressions");
    for term in terms {
        let (scope, operator, values) =
            (text(term, "scopeName"), text(term, "operator"), list(term, "values"));
        if !is_scope(scope) {
            c.invalid(AT.child("scopeName"), scope, "unsupported scope");
        }
        for _ in limited(obj).filter(|(k, _)| resources::is_quota(k) && !reaches(scope, k)) {
            let what = "unsupported scope applied to resource";
            c.invalid(AT, spec["scopeSelector"].clone(), what);
        }
        let has_no_values = is_scope(scope) && !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if has_no_values && operator != "Exists" {
            let what = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            c.invalid(AT.child("operator"), operator, what);
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => c.required(
                AT.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => c.invalid(
                AT.child("values"),
                values.to_vec(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                c.invalid(AT.child("operator"), other, "not a valid selector operator");
            }
        }
    }
    for _ in PAIRS.iter().filter(|pair| pair.iter().all(|p| terms.iter().any(|t| text(t, "scopeName") == *p)))
    {
        c.invalid(AT, spec["scopes"].clone(), "conflicting scopes");
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
    let (new, old) = (list(&new["spec"], "scopes"), list(&old["spec"], "scopes"));
    if new.iter().any(|s| !old.contains(s)) || old.iter().any(|s| !new.contains(s)) {
        c.invalid(SCOPES, new.to_vec(), IMMUTABLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    fn of(spec: Value) -> String {
        told(validate, &json!({ "spec": spec }))
    }

    #[test]
    fn amounts() {
        let fine = json!({"hard": {"cpu": "1500m", "requests.nvidia.com/gpu": 4, "pods": "10", "count/jobs.batch": "5",
            "gold.storageclass.storage.k8s.io/requests.storage": "5Gi", "requests.hugepages-2Mi": "1Gi", "limits.memory": 0}});
        assert_eq!(of(fine), "");
        assert_eq!(of(json!({})), "");
        for (hard, wanted) in [
            (
                json!({"pods": "-1"}),
                "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (json!({"pods": "1500m"}), "spec.hard[pods]: Invalid value: \"1500m\": must be an integer"),
            (
                json!({"example.com/x": "1500m"}),
                "spec.hard[example.com/x]: Invalid value: \"1500m\": must be an integer",
            ),
            (
                json!({"storage": "1"}),
                "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota",
            ),
            (
                json!({"foo": "1"}),
                "spec.hard[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified; spec.hard[foo]: Invalid value: \"foo\": must be a standard resource for quota",
            ),
        ] {
            assert_eq!(of(json!({ "hard": hard })), wanted);
        }
    }

    #[test]
    fn scopes() {
        assert_eq!(of(json!({"hard": {"pods": 1}, "scopes": ["BestEffort", "Terminating"]})), "");
        let selector =
            |terms: Value| json!({"hard": {"pods": 1}, "scopeSelector": {"matchExpressions": [terms]}});
        assert_eq!(
            of(selector(json!({"scopeName": "PriorityClass", "operator": "In", "values": ["a"]}))),
            ""
        );
        for (spec, wanted) in [
            (json!({"scopes": ["x"]}), r#"spec.scopes: Invalid value: ["x"]: unsupported scope"#),
            (
                json!({"hard": {"cpu": 1}, "scopes": ["BestEffort"]}),
                r#"spec.scopes: Invalid value: ["BestEffort"]: unsupported scope applied to resource"#,
            ),
            (
                json!({"scopes": ["BestEffort", "NotBestEffort"]}),
                r#"spec.scopes: Invalid value: ["BestEffort","NotBestEffort"]: conflicting scopes"#,
            ),
            (
                selector(json!({"scopeName": "PriorityClass", "operator": "In"})),
                "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            (
                selector(json!({"scopeName": "PriorityClass", "operator": "Exists", "values": ["a"]})),
                r#"spec.scopeSelector.matchExpressions.values: Invalid value: ["a"]: must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"#,
            ),
            (
                selector(json!({"scopeName": "PriorityClass", "operator": "in", "values": ["a"]})),
                r#"spec.scopeSelector.matchExpressions.operator: Invalid value: "in": not a valid selector operator"#,
            ),
            (
                selector(json!({"scopeName": "BestEffort", "operator": "DoesNotExist"})),
                r#"spec.scopeSelector.matchExpressions.operator: Invalid value: "DoesNotExist": must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"#,
            ),
            (
                selector(json!({"scopeName": "x", "operator": "Exists"})),
                r#"spec.scopeSelector.matchExpressions.scopeName: Invalid value: "x": unsupported scope"#,
            ),
        ] {
            assert_eq!(of(spec), wanted);
        }
        let term = json!({"scopeName": "PriorityClass", "operator": "In"});
        let twice = of(json!({"scopeSelector": {"matchExpressions": [term, term]}}));
        assert_eq!(
            twice.matches("matchExpressions.values: Required value").count(),
            2,
            "each is told: {twice}"
        );
        let mut c = Checks::default();
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        update(&mut c, &quota(json!(["BestEffort"])), &quota(json!([])));
        assert_eq!(
            c.errors[0].to_string(),
            r#"spec.scopes: Invalid value: ["BestEffort"]: field is immutable"#
        );
    }
}
