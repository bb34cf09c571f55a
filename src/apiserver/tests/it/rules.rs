//! Rules in CEL: of custom resources, policies and webhooks' match conditions.

use http::StatusCode;
use serde_json::{Value, json};

use crate::fixture::{Client, Fixture, MAPS, config_map};

const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

async fn policy(client: &Client, spec: &Value, binding: &Value) {
    client
        .make(
            &format!("{REGISTRATION}/validatingadmissionpolicies"),
            &json!({ "metadata": { "name": "p" }, "spec": spec }),
        )
        .await;
    client
        .make(
            &format!("{REGISTRATION}/validatingadmissionpolicybindings"),
            &json!({ "metadata": { "name": "b" }, "spec": binding }),
        )
        .await;
}

fn maps() -> Value {
    json!({ "resourceRules": [{ "operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"] }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_refuses_what_its_expressions_do_not_allow() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client.make(MAPS, &json!({ "metadata": { "name": "limits" }, "data": { "most": "1" } })).await;
    let spec = json!({
        "matchConstraints": maps(),
        "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
        "matchConditions": [{ "name": "not-exempt", "expression": "!object.metadata.name.startsWith('free')" }],
        "variables": [{ "name": "count", "expression": "size(object.data)" }],
        "validations": [
            { "expression": "variables.count <= int(params.data.most)",
              "messageExpression": "'at most ' + params.data.most + ' keys, not ' + string(variables.count)" },
            { "expression": "oldObject == null || request.operation == 'CREATE' || object.data.key == oldObject.data.key", "reason": "Forbidden" },
        ],
    });
    let binding = json!({
        "policyName": "p", "validationActions": ["Deny"],
        "paramRef": { "name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny" },
    });
    policy(&client, &spec, &binding).await;
    client.make(MAPS, &config_map("a")).await;
    let mut two = config_map("two");
    two["data"]["more"] = json!("x");
    let (status, answer) = client.post(MAPS, &two).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            Some(
                "configmaps \"two\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: at most 1 keys, not 2"
            )
        )
    );
    two["metadata"]["name"] = json!("free-two");
    client.make(MAPS, &two).await;
    let change = json!({ "data": { "key": "other" } });
    let (status, answer) = client.patch(&format!("{MAPS}/a"), "merge", &change).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    assert!(answer["message"].as_str().expect("message").contains("failed expression: oldObject == null"));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_may_only_warn() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let spec =
        json!({ "matchConstraints": maps(), "validations": [{ "expression": "false", "message": "never" }] });
    policy(&client, &spec, &json!({ "policyName": "p", "validationActions": ["Warn", "Audit"] })).await;
    let headers = [("content-type", "application/json")];
    let body = config_map("a").to_string().into_bytes();
    let response = client.raw(http::Method::POST, MAPS, &headers, body).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(
        response.headers()["warning"],
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': never\""
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_asked_only_when_its_conditions_hold() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let webhook = json!({
        "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        // Nobody listens there.
        "clientConfig": { "url": "https://127.0.0.1:1/" },
        "rules": maps()["resourceRules"],
        "matchConditions": [{ "name": "only-some", "expression": "object.metadata.name == 'asked' && request.userInfo.username != ''" }],
    });
    client
        .make(
            &format!("{REGISTRATION}/validatingwebhookconfigurations"),
            &json!({ "metadata": { "name": "a" }, "webhooks": [webhook] }),
        )
        .await;
    client.make(MAPS, &config_map("not-asked")).await;
    let (status, answer) = client.post(MAPS, &config_map("asked")).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
    fixture.stop().await;
}

/// "ValidatingAdmissionPolicy should type check validation expressions"
#[tokio::test(flavor = "multi_thread")]
async fn expressions_are_checked_against_the_kinds_they_are_for() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let path = format!("{REGISTRATION}/validatingadmissionpolicies");
    let rules = json!({ "resourceRules": [{ "operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"] }] });
    let spec = json!({ "matchConstraints": rules,
        "variables": [{ "name": "n", "expression": "object.spec.replicas" }],
        "validations": [
            { "expression": "object.spec.replicas > '1'" },
            { "expression": "variables.n > 1 && object.metadata.labels['a'] == 'b'", "messageExpression": "'wrong ' + variables.n" },
            { "expression": "object.spec.template.spec.containers.all(c, c.resources.limits.cpu != '1' && has(c.nothing))" },
        ] });
    let made = client.make(&path, &json!({ "metadata": { "name": "p" }, "spec": spec })).await;
    assert_eq!(made["status"]["observedGeneration"], 1, "{made}");
    let warnings = made["status"]["typeChecking"]["expressionWarnings"].as_array().expect("warnings").clone();
    let refs: Vec<&Value> = warnings.iter().map(|warning| &warning["fieldRef"]).collect();
    assert_eq!(
        refs,
        [
            "spec.validations[0].expression",
            "spec.validations[1].messageExpression",
            "spec.validations[2].expression"
        ],
        "{warnings:?}"
    );
    for (index, wanted) in [
        (
            0,
            "apps/v1, Kind=Deployment: ERROR: <input>: found no matching overload for '_>_' applied to '(int, string)'",
        ),
        (1, "found no matching overload for '_+_' applied to '(string, int)'"),
        (2, "undefined field 'nothing'"),
    ] {
        let text = warnings[index]["warning"].as_str().expect("text");
        assert!(text.contains(wanted), "{text}");
    }
    let good = json!([{ "op": "replace", "path": "/spec/validations", "value": [{ "expression": "object.spec.replicas > 1" }] }]);
    let (status, fixed) = client.patch(&format!("{path}/p"), "json", &good).await;
    assert_eq!(status, StatusCode::OK, "{fixed}");
    assert_eq!(fixed["status"], json!({ "observedGeneration": 2, "typeChecking": {} }));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_definitions_are_read_when_they_are_written() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = |rule: &str| {
        json!({ "metadata": { "name": "toys.example.com" }, "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "toys", "kind": "Toy" }, "versions": [{ "name": "v1", "served": true, "storage": true,
            "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": { "type": "object",
                "x-kubernetes-validations": [{ "rule": rule }],
                "properties": { "size": { "type": "string" } } } } } } }] } })
    };
    for (rule, why) in [
        ("self.size ==", "Syntax error"),
        ("self.weight == 'x'", "undefined field 'weight'"),
        ("self.size > 1", "found no matching overload for '_>_' applied to '(string, int)'"),
        ("self.size", "cel expression must evaluate to a bool"),
    ] {
        let (status, answer) = client.post(path, &definition(rule)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{rule}: {answer}");
        let message = answer["message"].as_str().expect("message");
        assert!(
            message.contains(why)
                && message.contains("spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"),
            "{message}"
        );
    }
    client
        .make(path, &definition("isQuantity(self.size) && quantity(self.size).isLessThan(quantity('1Gi'))"))
        .await;
    let toys = "/apis/example.com/v1/namespaces/default/toys";
    let toy = |name: &str, size: &str| json!({ "apiVersion": "example.com/v1", "kind": "Toy", "metadata": { "name": name }, "spec": { "size": size } });
    // It is served a moment after.
    while client.get(toys).await.0 != StatusCode::OK {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    client.make(toys, &toy("small", "1Mi")).await;
    let (status, answer) = client.post(toys, &toy("big", "2Gi")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert!(
        answer["message"].as_str().expect("message").contains("failed rule: isQuantity(self.size)"),
        "{answer}"
    );
    fixture.stop().await;
}
