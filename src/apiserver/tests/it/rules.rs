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
