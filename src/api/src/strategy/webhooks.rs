//! MutatingWebhookConfiguration and ValidatingWebhookConfiguration (upstream
//! `pkg/apis/admissionregistration/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::admission_rules::{FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, client_config, rule};
use super::checks::Checks;
use super::util::{integer, list, strings, text};
use super::{expressions, selectors};
use crate::field::At;
use crate::names;

/// What a webhook may do beside answering: nothing that a dry run must not do.
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const LONGEST: i64 = 30;

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    let mut seen = HashSet::new();
    for (i, one) in list(obj, "webhooks").iter().enumerate() {
        let at = At::ROOT.item("webhooks", i);
        webhook(c, one, at);
        review_versions(c, one, at);
        let name = text(one, "name");
        if !name.is_empty() && !seen.insert(name) {
            c.duplicate(at.child("name"), name);
        }
    }
}

/// What was wrong before may stay.
pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
}

fn webhook(c: &mut Checks, one: &Value, at: At<'_>) {
    full_name(c, one, at);
    for (i, each) in list(one, "rules").iter().enumerate() {
        rule(c, each, at.item("rules", i));
    }
    c.one_of(one, "failurePolicy", at, &FAILURE_POLICIES);
    c.one_of(one, "matchPolicy", at, &MATCH_POLICIES);
    if one["sideEffects"].is_string() {
        c.one_of(one, "sideEffects", at, &SIDE_EFFECTS);
    } else {
        c.required(at.child("sideEffects"), format!("must specify one of {}", SIDE_EFFECTS.join(", ")));
    }
    if let Some(seconds) = integer(one, "timeoutSeconds").filter(|n| !(1..=LONGEST).contains(n)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        c.invalid(at.child("timeoutSeconds"), seconds, why);
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        selectors::label_selector(c, &one[selector], at.child(selector));
    }
    c.one_of(one, "reinvocationPolicy", at, &REINVOCATION_POLICIES);
    client_config(c, &one["clientConfig"], at.child("clientConfig"));
    expressions::conditions(c, one, at);
    expressions::new_conditions(c, one, at);
}

/// `IsFullyQualifiedName`
fn full_name(c: &mut Checks, one: &Value, at: At<'_>) {
    if !c.needs(one, "name", at) {
        return;
    }
    let (name, at) = (text(one, "name"), at.child("name"));
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        c.invalid(at, name, wrong.join(","));
    } else if name.split('.').count() < 3 {
        c.invalid(at, name, "should be a domain with at least three segments separated by dots");
    }
}

fn review_versions(c: &mut Checks, one: &Value, at: At<'_>) {
    let at = at.child("admissionReviewVersions");
    let versions = strings(one, "admissionReviewVersions");
    if versions.clone().next().is_none() {
        return c.required(at, format!("must specify one of {}", REVIEW_VERSIONS.join(", ")));
    }
    let mut seen = HashSet::new();
    for (i, version) in versions.clone().enumerate() {
        if seen.insert(version) {
            c.syntax(at.index(i), version, names::dns1035_label);
        } else {
            c.invalid(at.index(i), version, "duplicate version");
        }
    }
    if !versions.into_iter().any(|version| REVIEW_VERSIONS.contains(&version)) {
        let why = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        c.invalid(at, one["admissionReviewVersions"].clone(), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::{errors, told};
    use serde_json::json;

    fn good() -> Value {
        json!({"name": "a.example.com", "clientConfig": {"url": "https://a"}, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 10, "failurePolicy": "Fail",
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]})
    }

    #[test]
    fn webhooks() {
        assert_eq!(told(validate, &json!({"webhooks": [good()]})), "");
        for (field, value, wanted) in [
            ("name", json!(null), "name: Required value"),
            (
                "name",
                json!("a.b"),
                r#"name: Invalid value: "a.b": should be a domain with at least three segments separated by dots"#,
            ),
            (
                "failurePolicy",
                json!(""),
                r#"failurePolicy: Unsupported value: "": supported values: "Fail", "Ignore""#,
            ),
            (
                "matchPolicy",
                json!("x"),
                r#"matchPolicy: Unsupported value: "x": supported values: "Equivalent", "Exact""#,
            ),
            (
                "sideEffects",
                json!(null),
                "sideEffects: Required value: must specify one of None, NoneOnDryRun",
            ),
            (
                "sideEffects",
                json!("Some"),
                r#"sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#,
            ),
            (
                "timeoutSeconds",
                json!(31),
                "timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                "namespaceSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                "namespaceSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            ),
            (
                "reinvocationPolicy",
                json!("x"),
                r#"reinvocationPolicy: Unsupported value: "x": supported values: "IfNeeded", "Never""#,
            ),
            (
                "clientConfig",
                json!({}),
                "clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                "admissionReviewVersions",
                json!([]),
                "admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ),
            (
                "admissionReviewVersions",
                json!(["v1", "v1"]),
                r#"admissionReviewVersions[1]: Invalid value: "v1": duplicate version"#,
            ),
            (
                "admissionReviewVersions",
                json!(["v2"]),
                r#"admissionReviewVersions: Invalid value: ["v2"]: must include at least one of v1, v1beta1"#,
            ),
            (
                "rules",
                json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"]}]),
                "rules[0].resources: Required value",
            ),
        ] {
            let mut bad = good();
            bad[field] = value;
            assert_eq!(told(validate, &json!({"webhooks": [bad]})), format!("webhooks[0].{wanted}"));
        }
        assert_eq!(
            told(validate, &json!({"webhooks": [good(), good()]})),
            r#"webhooks[1].name: Duplicate value: "a.example.com""#
        );
    }

    #[test]
    fn an_update_answers_for_what_it_changes() {
        let mut old = json!({"webhooks": [good()]});
        old["webhooks"][0]["sideEffects"] = json!("Unknown");
        let mut new = old.clone();
        new["webhooks"][0]["timeoutSeconds"] = json!(0);
        let mut c = Checks::default();
        update(&mut c, &new, &old);
        let told: Vec<String> = c.errors.iter().map(|error| error.path.clone()).collect();
        assert_eq!(told, ["webhooks[0].timeoutSeconds"]);
    }

    #[test]
    fn match_conditions() {
        let with = |conditions: Value| {
            let mut one = good();
            one["matchConditions"] = conditions;
            errors(validate, &json!({"webhooks": [one]}))
        };
        for (conditions, wanted) in [
            (json!([{"name": "a", "expression": "object.metadata.namespace == 'production'"}]), None),
            (json!([{"name": "a", "expression": "... [] bad"}]), Some("compilation failed")),
            (json!([{"name": "a", "expression": "  "}]), Some("Required value")),
            (json!([{"expression": "true"}]), Some("matchConditions[0].name: Required value")),
            (json!([{"name": "a b", "expression": "true"}]), Some("Invalid value: \"a b\"")),
            (
                json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]),
                Some("Duplicate"),
            ),
            (
                json!([{"name": "a", "expression": "variables.a == 1"}, {"name": "b", "expression": "object.x"}]),
                Some("undeclared reference to 'variables'"),
            ),
        ] {
            let found = with(conditions.clone());
            match wanted {
                None => assert!(found.is_empty(), "{found:?}"),
                Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{conditions}: {found:?}"),
            }
        }
    }
}
