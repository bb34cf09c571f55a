//! Expressions in webhook configurations and admission policies are compiled when they are written, so
//! that a mistake is told to who made it (upstream `pkg/apis/admissionregistration/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::util::list;
use crate::cel::{Program, Type};
use crate::field::FieldError;
use crate::names;

/// Upstream's limit of match conditions, policies and webhooks alike.
const MOST_CONDITIONS: u64 = 64;

/// MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
pub(super) fn webhooks(obj: &Value, errors: &mut Vec<FieldError>) {
    for (index, webhook) in list(obj, "webhooks").iter().enumerate() {
        conditions(webhook, &format!("webhooks[{index}]"), errors);
    }
}

/// ValidatingAdmissionPolicy.
pub(super) fn policy(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    definition(spec, errors);
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        let path = format!("spec.validations[{index}]");
        expression(validation, "expression", &path, errors);
        if validation["messageExpression"].is_string() {
            expression(validation, "messageExpression", &path, errors);
        }
    }
    for (index, annotation) in list(spec, "auditAnnotations").iter().enumerate() {
        expression(annotation, "valueExpression", &format!("spec.auditAnnotations[{index}]"), errors);
    }
    if list(spec, "validations").is_empty() && list(spec, "auditAnnotations").is_empty() {
        errors.push(FieldError::required(
            "spec.validations",
            "validations or auditAnnotations must be non-empty",
        ));
    }
}

/// What both kinds of policies have.
fn definition(spec: &Value, errors: &mut Vec<FieldError>) {
    conditions(spec, "spec", errors);
    for (index, variable) in list(spec, "variables").iter().enumerate() {
        expression(variable, "expression", &format!("spec.variables[{index}]"), errors);
    }
}

/// MutatingAdmissionPolicy (`validateMutatingAdmissionPolicySpec`).
pub(super) fn mutating_policy(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    definition(spec, errors);
    if !spec["matchConstraints"].is_object() {
        errors.push(FieldError::required("spec.matchConstraints", ""));
    } else if list(&spec["matchConstraints"], "resourceRules").is_empty() {
        errors.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
    }
    for (index, rule) in list(&spec["matchConstraints"], "resourceRules").iter().enumerate() {
        for (place, operation) in list(rule, "operations").iter().enumerate() {
            if operation == "DELETE" {
                let path = format!("spec.matchConstraints.resourceRules[{index}].operations[{place}]");
                errors.push(FieldError::not_supported(
                    &path,
                    "DELETE",
                    &["*", "CONNECT", "CREATE", "UPDATE"],
                ));
            }
        }
    }
    match spec["reinvocationPolicy"].as_str() {
        Some("Never" | "IfNeeded") => {}
        Some(other) => {
            errors.push(FieldError::not_supported("spec.reinvocationPolicy", other, &["IfNeeded", "Never"]));
        }
        None => errors.push(FieldError::required("spec.reinvocationPolicy", "")),
    }
    let mutations = list(spec, "mutations");
    if mutations.is_empty() {
        errors.push(FieldError::required("spec.mutations", "mutations must contain at least one item"));
    }
    for (index, mutation) in mutations.iter().enumerate() {
        let path = format!("spec.mutations[{index}]");
        let (own, other) = match mutation["patchType"].as_str() {
            Some("ApplyConfiguration") => ("applyConfiguration", "jsonPatch"),
            Some("JSONPatch") => ("jsonPatch", "applyConfiguration"),
            Some(unknown) if !unknown.is_empty() => {
                let known = ["ApplyConfiguration", "JSONPatch"];
                errors.push(FieldError::not_supported(format!("{path}.patchType"), unknown, &known));
                continue;
            }
            _ => {
                errors.push(FieldError::required(format!("{path}.patchType"), ""));
                continue;
            }
        };
        if !mutation[other].is_null() {
            let why = format!("{other} is only allowed with another patchType");
            errors.push(FieldError::forbidden(format!("{path}.{other}"), why));
        }
        if mutation[own].is_object() {
            expression(&mutation[own], "expression", &format!("{path}.{own}"), errors);
        } else {
            errors.push(FieldError::required(format!("{path}.{own}"), ""));
        }
    }
}

/// What expressions of new webhook configurations name is there, and has the right type.
pub(super) fn new_webhooks(obj: &Value, errors: &mut Vec<FieldError>) {
    for (index, webhook) in list(obj, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{index}].matchConditions");
        for (place, condition) in list(webhook, "matchConditions").iter().enumerate() {
            fits(condition, "expression", &format!("{path}[{place}]"), &SEEN, BOOL, errors);
        }
    }
}

/// As [`new_webhooks`], for new policies of both kinds.
pub(super) fn new_policy(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let mut seen = SEEN.to_vec();
    seen.push(("namespaceObject", Type::Dyn));
    if spec["paramKind"].is_object() {
        seen.push(("params", Type::Dyn));
    }
    for (index, condition) in list(spec, "matchConditions").iter().enumerate() {
        fits(condition, "expression", &format!("spec.matchConditions[{index}]"), &seen, BOOL, errors);
    }
    // Each variable sees those before it.
    let mut variables = Vec::new();
    for (index, variable) in list(spec, "variables").iter().enumerate() {
        let mut now = seen.clone();
        now.push(("variables", Type::Variables(variables.clone())));
        let found = fits(variable, "expression", &format!("spec.variables[{index}]"), &now, ANY, errors);
        variables.push((variable["name"].as_str().unwrap_or_default(), found));
    }
    seen.push(("variables", Type::Variables(variables)));
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        let path = format!("spec.validations[{index}]");
        fits(validation, "expression", &path, &seen, BOOL, errors);
        fits(validation, "messageExpression", &path, &seen, STRING, errors);
    }
    for (index, mutation) in list(spec, "mutations").iter().enumerate() {
        let path = format!("spec.mutations[{index}]");
        for (field, wanted) in [("applyConfiguration", OBJECT), ("jsonPatch", PATCH)] {
            fits(&mutation[field], "expression", &format!("{path}.{field}"), &seen, wanted, errors);
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
    holder: &Value,
    field: &str,
    path: &str,
    seen: &[(&str, Type<'a>)],
    (words, is_wanted): Wanted,
    errors: &mut Vec<FieldError>,
) -> Type<'a> {
    let Some(text) = holder[field].as_str() else { return Type::Dyn };
    let Ok(program) = Program::compile(text) else { return Type::Dyn };
    let (found, wrong) = program.check(seen);
    if !wrong.is_empty() {
        let why = format!("compilation failed: {}\n | {text}", wrong.join("\n"));
        errors.push(FieldError::invalid(format!("{path}.{field}"), text, why));
    } else if !matches!(found, Type::Dyn) && !is_wanted(&found) {
        errors.push(FieldError::invalid(
            format!("{path}.{field}"),
            text,
            format!("must evaluate to {words}"),
        ));
    }
    found
}

/// `matchConditions` of whatever has them.
fn conditions(holder: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let all = list(holder, "matchConditions");
    let path = format!("{path}.matchConditions");
    if all.len() as u64 > MOST_CONDITIONS {
        errors.push(FieldError::too_many(&path, all.len(), MOST_CONDITIONS));
    }
    let mut seen = HashSet::new();
    for (index, condition) in all.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = condition["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            let wrong = names::qualified_name(name).into_iter();
            errors.extend(wrong.map(|message| FieldError::invalid(format!("{path}.name"), name, message)));
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        expression(condition, "expression", &path, errors);
    }
}

fn expression(holder: &Value, field: &str, path: &str, errors: &mut Vec<FieldError>) {
    let path = format!("{path}.{field}");
    let text = holder[field].as_str().unwrap_or_default();
    if text.trim().is_empty() {
        errors.push(FieldError::required(path, format!("{field} is not specified")));
    } else if let Err(error) = Program::compile(text) {
        errors.push(FieldError::invalid(path, text, error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(check: fn(&Value, &mut Vec<FieldError>), obj: &Value) -> Vec<String> {
        let mut errors = Vec::new();
        check(obj, &mut errors);
        errors.iter().map(ToString::to_string).collect()
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
