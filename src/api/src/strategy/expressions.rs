//! Expressions in webhook configurations and admission policies are compiled when they are written, so
//! that a mistake is told to who made it (upstream `pkg/apis/admissionregistration/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::checks::Checks;
use super::util::{list, text};
use crate::cel::{Program, Type};
use crate::field::At;
use crate::names;

/// Upstream's limit of match conditions, policies and webhooks alike.
const MOST_CONDITIONS: usize = 64;

/// MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
pub(super) fn webhooks(c: &mut Checks, obj: &Value) {
    for (index, webhook) in list(obj, "webhooks").iter().enumerate() {
        conditions(c, webhook, At::ROOT.item("webhooks", index));
    }
}

/// ValidatingAdmissionPolicy.
pub(super) fn policy(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    definition(c, spec);
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        let path = At::SPEC.item("validations", index);
        expression(c, validation, "expression", path);
        if validation["messageExpression"].is_string() {
            expression(c, validation, "messageExpression", path);
        }
    }
    for (index, annotation) in list(spec, "auditAnnotations").iter().enumerate() {
        expression(c, annotation, "valueExpression", At::SPEC.item("auditAnnotations", index));
    }
    if list(spec, "validations").is_empty() && list(spec, "auditAnnotations").is_empty() {
        c.required("spec.validations", "validations or auditAnnotations must be non-empty");
    }
}

/// What both kinds of policies have.
fn definition(c: &mut Checks, spec: &Value) {
    conditions(c, spec, At::SPEC);
    for (index, variable) in list(spec, "variables").iter().enumerate() {
        expression(c, variable, "expression", At::SPEC.item("variables", index));
    }
}

/// MutatingAdmissionPolicy (`validateMutatingAdmissionPolicySpec`).
pub(super) fn mutating_policy(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    definition(c, spec);
    if !spec["matchConstraints"].is_object() {
        c.required("spec.matchConstraints", "");
    } else if list(&spec["matchConstraints"], "resourceRules").is_empty() {
        c.required("spec.matchConstraints.resourceRules", "");
    }
    for (index, rule) in list(&spec["matchConstraints"], "resourceRules").iter().enumerate() {
        for (place, operation) in list(rule, "operations").iter().enumerate() {
            if operation == "DELETE" {
                let path = format!("spec.matchConstraints.resourceRules[{index}].operations[{place}]");
                c.unsupported(path, "DELETE", &["*", "CONNECT", "CREATE", "UPDATE"]);
            }
        }
    }
    match spec["reinvocationPolicy"].as_str() {
        Some("Never" | "IfNeeded") => {}
        Some(other) => {
            c.unsupported("spec.reinvocationPolicy", other, &["IfNeeded", "Never"]);
        }
        None => c.required("spec.reinvocationPolicy", ""),
    }
    let mutations = list(spec, "mutations");
    if mutations.is_empty() {
        c.required("spec.mutations", "mutations must contain at least one item");
    }
    for (index, mutation) in mutations.iter().enumerate() {
        let path = At::SPEC.item("mutations", index);
        let (own, other) = match mutation["patchType"].as_str() {
            Some("ApplyConfiguration") => ("applyConfiguration", "jsonPatch"),
            Some("JSONPatch") => ("jsonPatch", "applyConfiguration"),
            Some(unknown) if !unknown.is_empty() => {
                let known = ["ApplyConfiguration", "JSONPatch"];
                c.unsupported(path.child("patchType"), unknown, &known);
                continue;
            }
            _ => {
                c.required(path.child("patchType"), "");
                continue;
            }
        };
        if !mutation[other].is_null() {
            let why = format!("{other} is only allowed with another patchType");
            c.forbidden(path.child(other), why);
        }
        if mutation[own].is_object() {
            expression(c, &mutation[own], "expression", path.child(own));
        } else {
            c.required(path.child(own), "");
        }
    }
}

/// What expressions of new webhook configurations name is there, and has the right type.
pub(super) fn new_webhooks(c: &mut Checks, obj: &Value) {
    for (index, webhook) in list(obj, "webhooks").iter().enumerate() {
        let at = At::ROOT.item("webhooks", index);
        for (place, condition) in list(webhook, "matchConditions").iter().enumerate() {
            fits(c, condition, "expression", at.item("matchConditions", place), &SEEN, BOOL);
        }
    }
}

/// As [`new_webhooks`], for new policies of both kinds.
pub(super) fn new_policy(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    let mut seen = SEEN.to_vec();
    seen.push(("namespaceObject", Type::Dyn));
    if spec["paramKind"].is_object() {
        seen.push(("params", Type::Dyn));
    }
    for (index, condition) in list(spec, "matchConditions").iter().enumerate() {
        fits(c, condition, "expression", At::SPEC.item("matchConditions", index), &seen, BOOL);
    }
    // Each variable sees those before it.
    let mut variables = Vec::new();
    for (index, variable) in list(spec, "variables").iter().enumerate() {
        let mut now = seen.clone();
        now.push(("variables", Type::Variables(variables.clone())));
        let found = fits(c, variable, "expression", At::SPEC.item("variables", index), &now, ANY);
        variables.push((variable["name"].as_str().unwrap_or_default(), found));
    }
    seen.push(("variables", Type::Variables(variables)));
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        let path = At::SPEC.item("validations", index);
        fits(c, validation, "expression", path, &seen, BOOL);
        fits(c, validation, "messageExpression", path, &seen, STRING);
    }
    for (index, mutation) in list(spec, "mutations").iter().enumerate() {
        let path = At::SPEC.item("mutations", index);
        for (field, wanted) in [("applyConfiguration", OBJECT), ("jsonPatch", PATCH)] {
            fits(c, &mutation[field], "expression", path.child(field), &seen, wanted);
        }
    }
}

/// What every expression sees.
const SEEN: [(&str, Type<'static>); 4] =
    [("object", Type::Dyn), ("oldObject", Type::Dyn), ("request", Type::Dyn), ("authorizer", Type::Dyn)];

/// What an expression may come to: words for it, and whether a type is it.
type Wanted = (&'static str, fn(&Type<'_>) -> bool);

const ANY: Wanted = ("anything", |_| true);
const BOOL: Wanted = ("bool", |found| matches!(found, Type::Bool));
const STRING: Wanted = ("string", |found| matches!(found, Type::String));
const OBJECT: Wanted = ("Object", |found| matches!(found, Type::Own("Object")));
const PATCH: Wanted = ("list(JSONPatch)", |found| match found {
    Type::List(item) => matches!(**item, Type::Own("JSONPatch") | Type::Dyn),
    _ => false,
});

/// The type of an expression that can be read; what is wrong with it is told.
fn fits<'a>(
    c: &mut Checks,
    holder: &Value,
    field: &str,
    path: At<'_>,
    seen: &[(&str, Type<'a>)],
    (words, is_wanted): Wanted,
) -> Type<'a> {
    let Some(text) = holder[field].as_str() else { return Type::Dyn };
    let Ok(program) = Program::compile(text) else { return Type::Dyn };
    let (found, wrong) = program.check(seen);
    if !wrong.is_empty() {
        let why = format!("compilation failed: {}\n | {text}", wrong.join("\n"));
        c.invalid(path.child(field), text, why);
    } else if !matches!(found, Type::Dyn) && !is_wanted(&found) {
        c.invalid(path.child(field), text, format!("must evaluate to {words}"));
    }
    found
}

/// `matchConditions` of whatever has them.
fn conditions(c: &mut Checks, holder: &Value, at: At<'_>) {
    let all = list(holder, "matchConditions");
    if all.len() > MOST_CONDITIONS {
        c.too_many(at.child("matchConditions"), all.len(), MOST_CONDITIONS);
    }
    let mut seen = HashSet::new();
    for (index, condition) in all.iter().enumerate() {
        let path = at.item("matchConditions", index);
        c.required_name(condition, "name", path, names::qualified_name);
        let name = text(condition, "name");
        if !name.is_empty() && !seen.insert(name) {
            c.duplicate(path.child("name"), name);
        }
        expression(c, condition, "expression", path);
    }
}

fn expression(c: &mut Checks, holder: &Value, field: &str, path: At<'_>) {
    let path = path.child(field);
    let code = text(holder, field);
    if code.trim().is_empty() {
        c.required(path, format!("{field} is not specified"));
    } else if let Err(error) = Program::compile(code) {
        c.invalid(path, code, error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(check: fn(&mut Checks, &Value), obj: &Value) -> Vec<String> {
        let mut c = Checks::default();
        check(&mut c, obj);
        c.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn match_conditions_of_webhooks() {
        let with = |conditions: Value| json!({"webhooks": [{"matchConditions": conditions}]});
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
        ] {
            let found = paths(webhooks, &with(conditions.clone()));
            match wanted {
                None => assert!(found.is_empty(), "{found:?}"),
                Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{conditions}: {found:?}"),
            }
        }
    }

    #[test]
    fn expressions_of_policies() {
        let good = json!({"spec": {
            "variables": [{"name": "n", "expression": "object.spec.replicas"}],
            "validations": [{"expression": "variables.n > 1", "messageExpression": "'got ' + string(variables.n)"}],
        }});
        assert!(paths(policy, &good).is_empty());
        for (pointer, part) in [
            ("/spec/variables/0/expression", "spec.variables[0].expression: Invalid value"),
            ("/spec/validations/0/expression", "spec.validations[0].expression: Invalid value"),
            ("/spec/validations/0/messageExpression", "spec.validations[0].messageExpression: Invalid value"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = json!("object.spec.replicas >");
            let found = paths(policy, &bad);
            assert!(
                found.len() == 1 && found[0].contains(part) && found[0].contains("compilation failed"),
                "{found:?}"
            );
        }
        let empty = paths(policy, &json!({"spec": {"validations": []}}));
        assert_eq!(
            empty,
            ["spec.validations: Required value: validations or auditAnnotations must be non-empty"]
        );
    }

    #[test]
    fn mutations_of_policies() {
        let good = json!({"spec": {
            "reinvocationPolicy": "Never", "matchConstraints": {"resourceRules": [{"operations": ["CREATE"]}]},
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}},
                {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/x'}]"}},
            ],
        }});
        assert_eq!(paths(mutating_policy, &good), [""; 0]);
        for (pointer, value, wanted) in [
            ("/spec/mutations", json!([]), "spec.mutations: Required value"),
            ("/spec/mutations/0/patchType", json!("Other"), "spec.mutations[0].patchType: Unsupported value"),
            (
                "/spec/mutations/0/patchType",
                json!("JSONPatch"),
                "spec.mutations[0].applyConfiguration: Forbidden",
            ),
            (
                "/spec/mutations/1/jsonPatch/expression",
                json!("x y"),
                "spec.mutations[1].jsonPatch.expression: Invalid value",
            ),
            ("/spec/reinvocationPolicy", json!("Often"), "spec.reinvocationPolicy: Unsupported value"),
            ("/spec/matchConstraints", json!(null), "spec.matchConstraints: Required value"),
            (
                "/spec/matchConstraints/resourceRules/0/operations/0",
                json!("DELETE"),
                "spec.matchConstraints.resourceRules[0].operations[0]: Unsupported value",
            ),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let found = paths(mutating_policy, &bad);
            assert!(found.iter().any(|error| error.starts_with(wanted)), "{pointer}: {found:?}");
        }
    }

    #[test]
    fn what_new_expressions_name_is_there() {
        let policy = |spec: Value| paths(new_policy, &json!({ "spec": spec }));
        for (spec, wanted) in [
            (
                json!({"validations": [{"expression": "object.a == 1 && request.x != '' && authorizer.path('/').check('get').allowed()"}]}),
                None,
            ),
            (
                json!({"variables": [{"name": "a", "expression": "1"}, {"name": "b", "expression": "variables.a + 1"}],
                "validations": [{"expression": "variables.b > 1", "messageExpression": "'x' + string(variables.a)"}]}),
                None,
            ),
            (json!({"paramKind": {}, "validations": [{"expression": "params == null"}]}), None),
            (
                json!({"mutations": [{"applyConfiguration": {"expression": "Object{}"}},
                {"jsonPatch": {"expression": "has(object.a) ? [JSONPatch{op: 'remove', path: '/a'}] : []"}}]}),
                None,
            ),
            (
                json!({"validations": [{"expression": "params == null"}]}),
                Some("undeclared reference to 'params'"),
            ),
            (
                json!({"validations": [{"expression": "objct.a == 1"}]}),
                Some("undeclared reference to 'objct'"),
            ),
            (
                json!({"variables": [{"name": "a", "expression": "variables.b"}]}),
                Some("spec.variables[0].expression: Invalid value"),
            ),
            (json!({"validations": [{"expression": "1 + 1"}]}), Some("must evaluate to bool")),
            (
                json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
                Some("must evaluate to string"),
            ),
            (
                json!({"mutations": [{"applyConfiguration": {"expression": "{'a': 1}"}}]}),
                Some("must evaluate to Object"),
            ),
            (
                json!({"mutations": [{"jsonPatch": {"expression": "Object{}"}}]}),
                Some("must evaluate to list(JSONPatch)"),
            ),
        ] {
            let found = policy(spec.clone());
            match wanted {
                None => assert!(found.is_empty(), "{spec}: {found:?}"),
                Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{spec}: {found:?}"),
            }
        }
        let hooks = json!({"webhooks": [{"matchConditions": [{"expression": "variables.a == 1"}, {"expression": "object.x"}]}]});
        let found = paths(new_webhooks, &hooks);
        assert!(found.len() == 1 && found[0].contains("undeclared reference to 'variables'"), "{found:?}");
    }
}
