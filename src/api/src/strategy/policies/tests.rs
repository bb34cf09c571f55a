use serde_json::json;

use super::*;
use crate::strategy::checks::tests::{errors, told};

fn rules() -> Value {
    json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}])
}

/// A ValidatingAdmissionPolicy that is good but for `spec`.
fn validating_with(spec: Value) -> Value {
    let mut policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": rules()}, "validations": [{"expression": "true"}]}});
    for (field, value) in spec.as_object().unwrap() {
        policy["spec"][field] = value.clone();
    }
    policy
}

fn mutating_with(spec: Value) -> Value {
    let mut policy = validating_with(json!({
        "reinvocationPolicy": "Never", "validations": null,
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/x'}]"}},
        ],
    }));
    for (field, value) in spec.as_object().unwrap() {
        policy["spec"][field] = value.clone();
    }
    policy
}

#[test]
fn expressions_that_cannot_be_read() {
    let good = validating_with(json!({
        "variables": [{"name": "n", "expression": "object.spec.replicas"}],
        "validations": [{"expression": "variables.n > 1", "messageExpression": "'got ' + string(variables.n)"}],
    }));
    assert_eq!(told(validating, &good), "");
    for (pointer, part) in [
        ("/spec/variables/0/expression", "spec.variables[0].expression: Invalid value"),
        ("/spec/validations/0/expression", "spec.validations[0].expression: Invalid value"),
        ("/spec/validations/0/messageExpression", "spec.validations[0].messageExpression: Invalid value"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = json!("object.spec.replicas >");
        let found = errors(validating, &bad);
        assert!(
            found.len() == 1 && found[0].contains(part) && found[0].contains("compilation failed"),
            "{found:?}"
        );
    }
}

#[test]
fn validating_policies() {
    let many: Vec<Value> =
        (0..21).map(|i| json!({"key": format!("k{i}"), "valueExpression": "'a'"})).collect();
    for (spec, wanted) in [
        (
            json!({"failurePolicy": "x"}),
            r#"spec.failurePolicy: Unsupported value: "x": supported values: "Fail", "Ignore""#,
        ),
        (json!({"matchConstraints": null}), "spec.matchConstraints: Required value"),
        (json!({"matchConstraints": {}}), "spec.matchConstraints.resourceRules: Required value"),
        (
            json!({"matchConstraints": {"resourceRules": [{}]}}),
            "spec.matchConstraints.resourceRules[0].operations: Required value; spec.matchConstraints.resourceRules[0].apiGroups: Required value; spec.matchConstraints.resourceRules[0].apiVersions: Required value; spec.matchConstraints.resourceRules[0].resources: Required value",
        ),
        (
            json!({"validations": []}),
            "spec.validations: Required value: validations or auditAnnotations must contain at least one item; spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
        ),
        (
            json!({"validations": [{}]}),
            "spec.validations[0].expression: Required value: expression is not specified",
        ),
        (
            json!({"validations": [{"expression": "true", "message": " ", "messageExpression": " ", "reason": "Bad"}]}),
            r#"spec.validations[0].messageExpression: Invalid value: " ": must be non-empty if specified; spec.validations[0].message: Invalid value: " ": must be non-empty if specified; spec.validations[0].reason: Unsupported value: "Bad": supported values: "Forbidden", "Invalid", "RequestEntityTooLarge""#,
        ),
        (
            json!({"validations": [{"expression": "true", "message": "a\nb"}]}),
            r#"spec.validations[0].message: Invalid value: "a\nb": must not contain line breaks"#,
        ),
        (
            json!({"variables": [{"expression": "1"}, {"name": "for", "expression": "1"}]}),
            r#"spec.variables[0].name: Required value: name is not specified; spec.variables[1].name: Invalid value: "for": must be a valid CEL identifier"#,
        ),
        (
            json!({"auditAnnotations": [{"key": "a", "valueExpression": "'a'"}, {"key": "a"}]}),
            r#"spec.auditAnnotations[1].valueExpression: Required value: valueExpression is not specified; spec.auditAnnotations[1].key: Duplicate value: "a""#,
        ),
        (json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}), ""),
        (
            json!({"paramKind": {}}),
            "spec.paramKind.apiVersion: Required value; spec.paramKind.kind: Required value",
        ),
        (
            json!({"paramKind": {"apiVersion": "a/b/c", "kind": "A"}}),
            r#"spec.paramKind.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
        ),
        (
            json!({"paramKind": {"apiVersion": "a/", "kind": "A"}}),
            r#"spec.paramKind.apiVersion: Invalid value: "a/": version must be specified"#,
        ),
    ] {
        assert_eq!(told(validating, &validating_with(spec.clone())), wanted, "{spec}");
    }
    let told = told(validating, &validating_with(json!({"auditAnnotations": many})));
    assert!(told.ends_with("must not have more than 20 auditAnnotations"), "{told}");
}

#[test]
fn mutating_policies() {
    assert_eq!(told(mutating, &mutating_with(json!({}))), "");
    for (pointer, value, wanted) in [
        (
            "/spec/mutations",
            json!([]),
            "spec.mutations: Required value: mutations must contain at least one item",
        ),
        (
            "/spec/mutations/0/patchType",
            json!("Other"),
            r#"spec.mutations[0].patchType: Unsupported value: "Other": supported values: "ApplyConfiguration", "JSONPatch""#,
        ),
        (
            "/spec/mutations/0/patchType",
            json!("JSONPatch"),
            r#"spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch; spec.mutations[0].applyConfiguration: Invalid value: "{applyConfiguration}": must not be specified when patchType is JSONPatch"#,
        ),
        (
            "/spec/reinvocationPolicy",
            json!("Often"),
            r#"spec.reinvocationPolicy: Unsupported value: "Often": supported values: "IfNeeded", "Never""#,
        ),
        ("/spec/matchConstraints", json!(null), "spec.matchConstraints: Required value"),
        (
            "/spec/matchConstraints/resourceRules/0/operations/0",
            json!("DELETE"),
            r#"spec.matchConstraints.resourceRules.operations: Unsupported value: "DELETE": supported values: "*", "CONNECT", "CREATE", "UPDATE""#,
        ),
    ] {
        let mut bad = mutating_with(json!({}));
        *bad.pointer_mut(pointer).unwrap() = value;
        assert_eq!(told(mutating, &bad), wanted, "{pointer}");
    }
    let mut bad = mutating_with(json!({}));
    bad["spec"]["mutations"][1]["jsonPatch"]["expression"] = json!("x y");
    let found = errors(mutating, &bad);
    assert!(
        found.len() == 1 && found[0].starts_with("spec.mutations[1].jsonPatch.expression: Invalid value"),
        "{found:?}"
    );
}

#[test]
fn bindings() {
    let of = |check: fn(&mut Checks, &Value), spec: Value| {
        let mut binding = json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}});
        for (field, value) in spec.as_object().unwrap() {
            binding["spec"][field] = value.clone();
        }
        told(check, &binding)
    };
    for (spec, wanted) in [
        (json!({}), ""),
        (json!({"policyName": ""}), "spec.policyName: Required value"),
        (
            json!({"validationActions": []}),
            "spec.validationActions: Required value: at least one validation action is required",
        ),
        (
            json!({"validationActions": ["Audit", "Audit", "Tell"]}),
            r#"spec.validationActions[1]: Duplicate value: "Audit"; spec.validationActions[2]: Unsupported value: "Tell": supported values: "Audit", "Deny", "Warn""#,
        ),
        (
            json!({"validationActions": ["Deny", "Warn"]}),
            r#"spec.validationActions: Invalid value: ["Deny","Warn"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"#,
        ),
        (json!({"paramRef": {"name": "a", "parameterNotFoundAction": "Allow"}}), ""),
        (
            json!({"paramRef": {}}),
            "spec.paramRef: Required value: one of name or selector must be specified; spec.paramRef.parameterNotFoundAction: Required value",
        ),
        (
            json!({"paramRef": {"name": "a", "selector": {}, "parameterNotFoundAction": "x"}}),
            r#"spec.paramRef.name: Forbidden: name and selector are mutually exclusive; spec.paramRef.selector: Forbidden: name and selector are mutually exclusive; spec.paramRef.parameterNotFoundAction: Unsupported value: "x": supported values: "Deny", "Allow""#,
        ),
        (
            json!({"matchResources": {"objectSelector": {"matchLabels": {"a b": "c"}}}}),
            r#"spec.matchResources.objectSelector.matchLabels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"#,
        ),
    ] {
        assert_eq!(of(validating_binding, spec.clone()), wanted, "{spec}");
    }
    let mut delete = rules();
    delete[0]["operations"] = json!(["DELETE"]);
    assert_eq!(
        of(mutating_binding, json!({"matchResources": {"resourceRules": delete}})),
        r#"spec.matchResources.resourceRules.operations: Unsupported value: "DELETE": supported values: "*", "CONNECT", "CREATE", "UPDATE""#
    );
}

#[test]
fn what_expressions_name_is_there() {
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
        (
            json!({"paramKind": {"apiVersion": "v1", "kind": "A"}, "validations": [{"expression": "params == null"}]}),
            None,
        ),
        (
            json!({"validations": [{"expression": "params == null"}]}),
            Some("undeclared reference to 'params'"),
        ),
        (json!({"validations": [{"expression": "objct.a == 1"}]}), Some("undeclared reference to 'objct'")),
        (
            json!({"variables": [{"name": "a", "expression": "variables.b"}]}),
            Some("spec.variables[0].expression: Invalid value"),
        ),
        (json!({"validations": [{"expression": "1 + 1"}]}), Some("must evaluate to bool")),
        (
            json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
            Some("must evaluate to string"),
        ),
    ] {
        let found = errors(validating, &validating_with(spec.clone()));
        match wanted {
            None => assert!(found.is_empty(), "{spec}: {found:?}"),
            Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{spec}: {found:?}"),
        }
    }
    for (field, expression, wanted) in [
        ("applyConfiguration", "{'a': 1}", Some("must evaluate to Object")),
        ("jsonPatch", "Object{}", Some("must evaluate to list(JSONPatch)")),
        ("jsonPatch", "has(object.a) ? [JSONPatch{op: 'remove', path: '/a'}] : []", None),
    ] {
        let kind = if field == "jsonPatch" { "JSONPatch" } else { "ApplyConfiguration" };
        let mutation = json!([{"patchType": kind, field: {"expression": expression}}]);
        let found = errors(mutating, &mutating_with(json!({ "mutations": mutation })));
        match wanted {
            None => assert!(found.is_empty(), "{found:?}"),
            Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{found:?}"),
        }
    }
}
