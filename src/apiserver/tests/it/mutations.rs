//! MutatingAdmissionPolicy: what policies change, in which order with webhooks, and what happens when they fail.

use http::StatusCode;
use kedge_apiserver::User;
use serde_json::{Value, json};

use crate::fixture::{Client, Fixture, MAPS, config_map};

const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn rules(group: &str, resource: &str) -> Value {
    json!({ "resourceRules": [{ "operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["v1"],
        "resources": [resource] }] })
}

/// A policy with one mutation of ConfigMaps and its binding, both of this name.
async fn policy(client: &Client, name: &str, expression: &str, more: Value) {
    let mut spec = json!({
        "matchConstraints": rules("", "configmaps"),
        "reinvocationPolicy": "Never",
        "mutations": [{ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": expression } }],
    });
    let mut binding = json!({ "policyName": name });
    for (key, value) in more.as_object().into_iter().flatten() {
        let (into, key) = match key.strip_prefix("binding.") {
            Some(key) => (&mut binding, key),
            None => (&mut spec, key.as_str()),
        };
        into[key] = value.clone();
    }
    let object = |spec: &Value| json!({ "metadata": { "name": name }, "spec": spec });
    client.make(&format!("{REGISTRATION}/mutatingadmissionpolicies"), &object(&spec)).await;
    client.make(&format!("{REGISTRATION}/mutatingadmissionpolicybindings"), &object(&binding)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_change_what_is_created_and_updated() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client.make(MAPS, &json!({ "metadata": { "name": "limits" }, "data": { "team": "red" } })).await;
    policy(
        &client,
        "a-labels",
        "Object{metadata: Object.metadata{labels: {'team': variables.team, 'by': request.userInfo.username}}}",
        json!({
            "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
            "variables": [{ "name": "team", "expression": "params.data.team" }],
            "matchConditions": [{ "name": "some", "expression": "!object.metadata.name.startsWith('free')" }],
            "binding.paramRef": { "name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny" },
        }),
    )
    .await;
    policy(
        &client,
        "b-seen",
        "Object{}",
        json!({ "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression":
            "has(object.metadata.labels) ? [JSONPatch{op: 'add', path: '/data/seen', value: object.metadata.labels['team']}] : []" } }] }),
    )
    .await;
    let made = client.make(MAPS, &config_map("one")).await;
    assert_eq!(made["metadata"]["labels"]["team"], "red", "{made}");
    assert_eq!(made["data"]["seen"], "red", "the second policy sees what the first has done");
    assert_eq!(made["data"]["key"], config_map("one")["data"]["key"]);
    let free = client.make(MAPS, &config_map("free")).await;
    assert_eq!((&free["metadata"]["labels"], &free["data"]["seen"]), (&Value::Null, &Value::Null));
    let (_, updated) = client
        .patch(&format!("{MAPS}/one"), "merge", &json!({ "metadata": { "labels": { "team": "x" } } }))
        .await;
    assert_eq!(updated["metadata"]["labels"]["team"], "red");
    client.delete(&format!("{MAPS}/limits"), &Value::Null).await;
    let (status, answer) = client.post(MAPS, &config_map("two")).await;
    assert_eq!(
        (status, &answer["reason"], answer["message"].as_str()),
        (
            StatusCode::FORBIDDEN,
            &json!("Invalid"),
            Some(
                "policy 'a-labels' with binding 'a-labels' denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
            )
        )
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_get_defaults_after_a_mutation() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    policy(
        &client,
        "sidecar",
        "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{
            initContainers: [Object.spec.template.spec.initContainers{name: 'mesh', image: 'mesh:1', restartPolicy: 'Always'}]}}}}",
        json!({ "matchConstraints": rules("apps", "deployments") }),
    )
    .await;
    let labels = json!({ "app": "web" });
    let deployment = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "matchLabels": labels },
        "template": { "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
    let made = client.make(DEPLOYMENTS, &deployment).await;
    let sidecar = &made["spec"]["template"]["spec"]["initContainers"][0];
    assert_eq!(
        (&sidecar["name"], &sidecar["imagePullPolicy"]),
        (&json!("mesh"), &json!("IfNotPresent")),
        "{made}"
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_refuse_or_are_ignored() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    policy(
        &client,
        "strict",
        "Object{metadata: Object.metadata{labels: {'x': object.data.missing}}}",
        json!({ "matchConditions": [{ "name": "c", "expression": "object.metadata.name == 'strict'" }] }),
    )
    .await;
    policy(
        &client,
        "lax",
        "Object{metadata: Object.metadata{labels: {'x': object.data.missing}}}",
        json!({ "failurePolicy": "Ignore" }),
    )
    .await;
    policy(
        &client,
        "endless",
        "Object{metadata: Object.metadata{labels: {'n': string(variables.n.map(a, variables.n.map(b, variables.n.map(c, a))).size())}}}",
        json!({
            "variables": [{ "name": "n", "expression": "'a'.replace('a', 'aaaaaaaaaa').replace('a', 'aaaaaaaaaa').replace('a', 'aaaaaaaaaa').split('')" }],
            "matchConditions": [{ "name": "c", "expression": "object.metadata.name == 'endless'" }],
        }),
    )
    .await;
    client.make(MAPS, &config_map("other")).await;
    for (name, why) in [
        ("strict", "policy 'strict' with binding 'strict' denied request: expression 'Object{"),
        ("endless", "policy 'endless' with binding 'endless' denied request: expression 'Object{"),
    ] {
        let (status, answer) = client.post(MAPS, &config_map(name)).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
        assert!(message.starts_with(why), "{message}");
    }
    let (_, answer) = client.post(MAPS, &config_map("endless")).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("operation cancelled: actual cost limit exceeded"), "{message}");
    // Their own kinds are never touched, nor is a mistake let in.
    let path = format!("{REGISTRATION}/mutatingadmissionpolicies");
    let bad = json!({ "metadata": { "name": "bad" }, "spec": { "matchConstraints": rules("", "pods"), "reinvocationPolicy": "Never",
        "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression": "nothing(" } }] } });
    let (status, answer) = client.post(&path, &bad).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        answer["message"].as_str().expect("message").contains("spec.mutations[0].jsonPatch.expression"),
        "{answer}"
    );
    fixture.stop().await;
}

/// What admission gives every pod it gives to what was added, too.
#[tokio::test(flavor = "multi_thread")]
async fn built_in_plugins_look_again_after_a_mutation() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let default = json!({ "metadata": { "name": "default" } });
    client.post("/api/v1/namespaces/default/serviceaccounts", &default).await;
    let class = json!({ "metadata": { "name": "vm" }, "handler": "vm", "overhead": { "podFixed": { "memory": "64Mi" } },
        "scheduling": { "nodeSelector": { "vm": "yes" } } });
    client.make("/apis/node.k8s.io/v1/runtimeclasses", &class).await;
    policy(
        &client,
        "sidecar",
        "Object{spec: Object.spec{runtimeClassName: object.metadata.name == 'wrong' ? 'none' : 'vm',
            containers: [Object.spec.containers{name: 'mesh', image: 'mesh:1'}]}}",
        json!({ "matchConstraints": rules("", "pods") }),
    )
    .await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let made = client.make(pods, &pod("right")).await;
    let spec = &made["spec"];
    let containers = spec["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 2, "{made}");
    for container in containers {
        assert_eq!(container["volumeMounts"][0]["name"], spec["volumes"][0]["name"], "{made}");
    }
    assert_eq!(spec["volumes"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&spec["overhead"]["memory"], &spec["nodeSelector"]["vm"]),
        (&json!("64Mi"), &json!("yes")),
        "{made}"
    );
    let (status, answer) = client.post(pods, &pod("wrong")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    assert!(answer["message"].as_str().is_some_and(|said| said.contains("RuntimeClass \"none\" not found")));
    fixture.stop().await;
}

/// Policies come before webhooks; one that wants it is asked again after a webhook has changed the object.
#[tokio::test(flavor = "multi_thread")]
async fn policies_are_asked_again_after_webhooks() {
    use base64::Engine as _;
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let port = fixture
        .neighbour(|_, review| {
            let before = review["request"]["object"]["data"]["count"].clone();
            let patch = json!([{ "op": "add", "path": "/data/hook", "value": before }]);
            let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
            json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {
                "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch } })
        })
        .await;
    let count = "Object{data: {'count': string(has(object.data.count) ? int(object.data.count) + 1 : 1)}}";
    policy(&client, "counts", count, json!({ "reinvocationPolicy": "IfNeeded" })).await;
    let once = "Object{data: {'once': string(has(object.data.once) ? int(object.data.once) + 1 : 1)}}";
    policy(&client, "once", once, json!({})).await;
    let made = client.make(MAPS, &config_map("before")).await;
    assert_eq!((&made["data"]["count"], &made["data"]["once"]), (&json!("2"), &json!("1")), "{made}");
    let hook = json!({ "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": format!("https://127.0.0.1:{port}/") },
        "rules": rules("", "configmaps")["resourceRules"] });
    let hooks = json!({ "metadata": { "name": "a" }, "webhooks": [hook] });
    client.make(&format!("{REGISTRATION}/mutatingwebhookconfigurations"), &hooks).await;
    let made = client.make(MAPS, &config_map("after")).await;
    assert_eq!(made["data"]["hook"], "1", "the policy was there before the webhook: {made}");
    assert_eq!((&made["data"]["count"], &made["data"]["once"]), (&json!("2"), &json!("1")), "{made}");
    fixture.stop().await;
}

/// `authorizer` knows what the sender may do.
#[tokio::test(flavor = "multi_thread")]
async fn expressions_ask_what_users_may_do() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    policy(
        &client,
        "may",
        "Object{data: {'may': string(authorizer.group('apps').resource('deployments').namespace('default').check('create').allowed()),
            'own': string(authorizer.requestResource.check('delete').allowed())}}",
        json!({}),
    )
    .await;
    let made = client.make(MAPS, &config_map("admin")).await;
    assert_eq!((&made["data"]["may"], &made["data"]["own"]), (&json!("true"), &json!("true")));
    let role = json!({ "metadata": { "name": "maps" }, "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"] }] });
    client.make("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let binding = json!({ "metadata": { "name": "maps" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maps" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve" }] });
    client.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let eve = fixture.user(User::new("eve", []));
    let made = eve.make(MAPS, &config_map("eve")).await;
    assert_eq!((&made["data"]["may"], &made["data"]["own"]), (&json!("false"), &json!("false")));
    fixture.stop().await;
}
