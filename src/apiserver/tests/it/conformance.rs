//! What Kubernetes' conformance suite does to an API server (test/e2e/apimachinery and others), as far as
//! it needs no node: webhooks of all kinds, status subresources, defaults from storage.

use base64::Engine as _;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fixture::{Client, Fixture, MAPS, config_map};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn definition(group: &str, versions: &Value, conversion: &Value) -> Value {
    json!({ "metadata": { "name": format!("tests.{group}") }, "spec": {
        "group": group, "scope": "Namespaced", "names": { "plural": "tests", "kind": "Test" },
        "versions": versions, "conversion": conversion,
    } })
}

fn open(name: &str, storage: bool) -> Value {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({ "name": name, "served": true, "storage": storage, "schema": { "openAPIV3Schema": schema } })
}

async fn served(client: &Client, path: &str) {
    while client.get(path).await.0 != StatusCode::OK {
        tokio::task::yield_now().await;
    }
}

/// v1 has `hostPort`, v2 has `host` and `port`.
fn convert(review: &Value) -> Value {
    let wanted = review["request"]["desiredAPIVersion"].as_str().expect("a version");
    let objects = review["request"]["objects"].as_array().expect("objects");
    let converted: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut object = object.clone();
            let map = object.as_object_mut().expect("an object");
            if wanted.ends_with("/v2") {
                let both = map.remove("hostPort").expect("hostPort");
                let (host, port) = both.as_str().expect("text").split_once(':').expect("host:port");
                map.insert("host".into(), json!(host));
                map.insert("port".into(), json!(port));
            } else {
                let text = |value: Option<Value>| value.expect("field").as_str().expect("text").to_owned();
                let both = format!("{}:{}", text(map.remove("host")), text(map.remove("port")));
                map.insert("hostPort".into(), json!(both));
            }
            map.insert("apiVersion".into(), json!(wanted));
            object
        })
        .collect();
    json!({ "kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": {
        "uid": review["request"]["uid"], "result": { "status": "Success" }, "convertedObjects": converted } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_custom_resources() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let port = fixture.neighbour(|_, review| convert(&review)).await;
    let conversion = json!({ "strategy": "Webhook", "webhook": { "conversionReviewVersions": ["v1", "v1beta1"],
        "clientConfig": { "url": format!("https://127.0.0.1:{port}/crdconvert") } } });
    let versions = json!([open("v1", true), open("v2", false)]);
    client.make(CRDS, &definition("conv.io", &versions, &conversion)).await;
    let path = |version: &str| format!("/apis/conv.io/{version}/namespaces/default/tests");
    served(&client, &path("v2")).await;
    let one = json!({ "apiVersion": "conv.io/v1", "kind": "Test", "metadata": { "name": "one" }, "hostPort": "localhost:8080" });
    client.make(&path("v1"), &one).await;
    let (_, seen) = client.get(&format!("{}/one", path("v2"))).await;
    assert_eq!((&seen["host"], &seen["port"]), (&json!("localhost"), &json!("8080")), "{seen}");
    assert_eq!(seen["apiVersion"], "conv.io/v2");
    // Both versions in the store: lists, watches and writes see one.
    let swapped = json!({ "spec": { "versions": [open("v1", false), open("v2", true)] } });
    assert_eq!(client.patch(&format!("{CRDS}/tests.conv.io"), "merge", &swapped).await.0, StatusCode::OK);
    let two = json!({ "apiVersion": "conv.io/v2", "kind": "Test", "metadata": { "name": "two" }, "host": "h", "port": "1" });
    loop {
        // The new storage version follows the definition at once, but not in the same moment.
        let (_, definition) = client.get(&format!("{CRDS}/tests.conv.io")).await;
        if definition["status"]["storedVersions"] == json!(["v1", "v2"]) {
            break;
        }
    }
    client.make(&path("v2"), &two).await;
    for (version, field, wanted) in
        [("v1", "hostPort", ["localhost:8080", "h:1"]), ("v2", "host", ["localhost", "h"])]
    {
        let (_, list) = client.get(&path(version)).await;
        let items = list["items"].as_array().expect("items");
        let found: Vec<&str> = items.iter().filter_map(|item| item[field].as_str()).collect();
        assert_eq!(found, wanted, "{list}");
        let mut watch = client.watch(&format!("{}?watch=true", path(version))).await;
        for wanted in wanted {
            let event = watch.next().await.expect("an event");
            assert_eq!((&event["type"], &event["object"][field]), (&json!("ADDED"), &json!(wanted)));
        }
    }
    let change = json!({ "host": "other" });
    let (status, changed) = client.patch(&format!("{}/one", path("v2")), "merge", &change).await;
    assert_eq!((status, &changed["host"]), (StatusCode::OK, &json!("other")), "{changed}");
    let (_, old) = client.get(&format!("{}/one", path("v1"))).await;
    assert_eq!(old["hostPort"], "other:8080");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_conversion_is_told() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let port = fixture
        .neighbour(|_, review| {
            json!({ "kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": {
                "uid": review["request"]["uid"], "result": { "status": "Failure", "message": "no way" } } })
        })
        .await;
    let conversion = json!({ "strategy": "Webhook", "webhook": { "conversionReviewVersions": ["v1"],
        "clientConfig": { "url": format!("https://127.0.0.1:{port}/") } } });
    client
        .make(CRDS, &definition("conv.io", &json!([open("v1", true), open("v2", false)]), &conversion))
        .await;
    let path = |version: &str| format!("/apis/conv.io/{version}/namespaces/default/tests");
    served(&client, &path("v2")).await;
    let one = json!({ "apiVersion": "conv.io/v1", "kind": "Test", "metadata": { "name": "one" } });
    client.make(&path("v1"), &one).await;
    let (status, answer) = client.get(&format!("{}/one", path("v2"))).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = answer["message"].as_str().expect("message");
    assert!(message.contains("conversion webhook for conv.io/v1, Kind=Test failed: no way"), "{message}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_reach_stored_objects_and_webhooks_are_pruned() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let version = |a: Value| {
        json!([{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object",
            "properties": { "a": a, "data": { "type": "object", "properties": { "known": { "type": "string" } } } } } } }])
    };
    let none = json!({ "strategy": "None" });
    client.make(CRDS, &definition("def.io", &version(json!({ "type": "string" })), &none)).await;
    let path = "/apis/def.io/v1/namespaces/default/tests";
    served(&client, path).await;
    let object = |name: &str| json!({ "apiVersion": "def.io/v1", "kind": "Test", "metadata": { "name": name }, "data": {} });
    client.make(path, &object("old")).await;
    let with_default =
        json!({ "spec": { "versions": version(json!({ "type": "string", "default": "A" })) } });
    client.patch(&format!("{CRDS}/tests.def.io"), "merge", &with_default).await;
    while client.get(&format!("{path}/old")).await.1["a"] != "A" {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.get(path).await.1["items"][0]["a"], "A", "in lists too");
    let port = fixture
        .neighbour(|_, review| {
            let patch = json!([{ "op": "add", "path": "/data/known", "value": "1" },
                { "op": "add", "path": "/data/unknown", "value": "2" }]);
            let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
            json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {
                "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch } })
        })
        .await;
    let hook = json!({
        "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": format!("https://127.0.0.1:{port}/") },
        "rules": [{ "operations": ["CREATE"], "apiGroups": ["def.io"], "apiVersions": ["*"], "resources": ["tests"] }],
    });
    let configuration = json!({ "metadata": { "name": "a" }, "webhooks": [hook] });
    client.make(&format!("{HOOKS}/mutatingwebhookconfigurations"), &configuration).await;
    let made = client.make(path, &object("new")).await;
    assert_eq!((&made["data"], &made["a"]), (&json!({ "known": "1" }), &json!("A")));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_proxies_are_admitted() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let port = fixture
        .neighbour(|_, review| {
            let asked = &review["request"];
            let right = asked["operation"] == "CONNECT"
                && asked["subResource"] == "attach"
                && asked["object"] == json!({ "kind": "PodAttachOptions", "apiVersion": "v1", "stdin": true, "container": "c" })
                && asked["kind"]["kind"] == "PodAttachOptions"
                && asked["name"] == "p";
            let message = if right { "attaching is not allowed".to_owned() } else { asked.to_string() };
            json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {
                "uid": asked["uid"], "allowed": false, "status": { "message": message } } })
        })
        .await;
    let hook = json!({
        "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": format!("https://127.0.0.1:{port}/") },
        "rules": [{ "operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/attach"] }],
    });
    let configuration = json!({ "metadata": { "name": "a" }, "webhooks": [hook] });
    client.make(&format!("{HOOKS}/validatingwebhookconfigurations"), &configuration).await;
    let (status, answer) = client.post(&format!("{PODS}/p/attach?container=c&stdin=true"), &json!({})).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::BAD_REQUEST,
            Some("admission webhook \"hook.example.com\" denied the request: attaching is not allowed")
        )
    );
    // Other streams are not its business.
    let (_, answer) = client.post(&format!("{PODS}/p/exec?command=ls"), &json!({})).await;
    assert_eq!(answer["message"], "Upgrade request required");
    // The root of a proxy ends with a slash.
    let response = client.raw(Method::GET, &format!("{PODS}/p/proxy?x=1"), &[], Vec::new()).await;
    assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(response.headers()["location"], format!("{PODS}/p/proxy/?x=1"));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_expressions_are_told_at_once() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let bad = json!([{ "name": "invalid", "expression": "... [] bad expression" }]);
    let hook = json!({ "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": "https://127.0.0.1:1/" }, "matchConditions": bad });
    let rules = json!({ "resourceRules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"] }] });
    let configuration = json!({ "metadata": { "name": "a" }, "webhooks": [hook] });
    let policy = json!({ "metadata": { "name": "a" }, "spec": { "matchConstraints": rules,
        "validations": [{ "expression": "object.data >" }] } });
    for (path, object) in [
        ("mutatingwebhookconfigurations", &configuration),
        ("validatingwebhookconfigurations", &configuration),
        ("validatingadmissionpolicies", &policy),
    ] {
        let (status, answer) = client.post(&format!("{HOOKS}/{path}"), object).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {answer}");
        assert!(answer["message"].as_str().expect("message").contains("compilation failed"), "{answer}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_may_come_with_metadata() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let selector = json!({ "matchLabels": { "a": "b" } });
    let workload = json!({ "selector": selector, "template": template });
    for (path, object, labels_too) in [
        ("/apis/apps/v1/namespaces/default/deployments", json!({ "spec": workload }), false),
        ("/apis/apps/v1/namespaces/default/replicasets", json!({ "spec": workload }), true),
        ("/api/v1/namespaces/default/services", json!({ "spec": { "ports": [{ "port": 80 }] } }), true),
        ("/api/v1/namespaces", json!({}), true),
        (
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            json!({ "spec": { "minAvailable": 1, "selector": selector } }),
            true,
        ),
    ] {
        let mut object = object;
        object["metadata"] = json!({ "name": "x" });
        client.make(path, &object).await;
        let change = json!({ "metadata": { "annotations": { "patched": "true" }, "labels": { "l": "1" } }, "spec": {} });
        let (status, answer) = client.patch(&format!("{path}/x/status"), "merge", &change).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        assert_eq!(answer["metadata"]["annotations"]["patched"], "true", "{path}: {answer}");
        assert_eq!(answer["metadata"]["labels"]["l"] == "1", labels_too, "{path}: {answer}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runtime_classes_shape_their_pods() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client
        .make("/api/v1/namespaces/default/serviceaccounts", &json!({ "metadata": { "name": "default" } }))
        .await;
    let pod = |name: &str, class: &str| json!({ "metadata": { "name": name }, "spec": { "runtimeClassName": class, "containers": [{ "name": "c", "image": "i" }] } });
    let (status, answer) = client.post(PODS, &pod("a", "missing")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        answer["message"],
        "pods \"a\" is forbidden: pod rejected: RuntimeClass \"missing\" not found"
    );
    let class = json!({ "metadata": { "name": "fat" }, "handler": "h", "overhead": { "podFixed": { "cpu": "10m" } },
        "scheduling": { "nodeSelector": { "fat": "yes" }, "tolerations": [{ "key": "fat", "operator": "Exists" }] } });
    client.make("/apis/node.k8s.io/v1/runtimeclasses", &class).await;
    let made = client.make(PODS, &pod("a", "fat")).await;
    assert_eq!(made["spec"]["overhead"], json!({ "cpu": "10m" }));
    assert_eq!(made["spec"]["nodeSelector"], json!({ "fat": "yes" }));
    let tolerations = made["spec"]["tolerations"].as_array().expect("tolerations");
    assert!(tolerations.contains(&json!({ "key": "fat", "operator": "Exists" })), "{made}");
    let mut other = pod("b", "fat");
    other["spec"]["nodeSelector"] = json!({ "fat": "no" });
    assert_eq!(client.post(PODS, &other).await.0, StatusCode::FORBIDDEN);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_answered_has_no_table() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let review = json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let headers =
        [("content-type", "application/json"), ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let response = client.raw(Method::POST, path, &headers, review.to_string().into_bytes()).await;
    assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE);
    assert_eq!(client.post(path, &review).await.0, StatusCode::CREATED);
    // Unknown fields are told once each.
    let twice = r#"{"metadata":{"name":"a"},"unknown":1,"unknown":2}"#;
    let json_type = [("content-type", "application/json")];
    let path = format!("{MAPS}?fieldValidation=Strict");
    let response = client.raw(Method::POST, &path, &json_type, twice.as_bytes().to_vec()).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.expect("body").to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert_eq!(text.matches("unknown field").count(), 1, "{text}");
    client.make(MAPS, &config_map("a")).await;
    fixture.stop().await;
}
