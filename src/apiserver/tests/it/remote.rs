//! Webhooks and aggregated APIs: what other servers have a say in.

use base64::Engine as _;
use http::{Method, StatusCode};
use kedge_apiserver::User;
use serde_json::{Value, json};

use crate::fixture::{Fixture, MAPS, config_map};

fn review(request: &Value, mut response: Value) -> Value {
    response["uid"] = request["request"]["uid"].clone();
    json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response })
}

fn hook(port: u16, path: &str, extra: &Value) -> Value {
    let mut hook = json!({
        "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": format!("https://127.0.0.1:{port}{path}") },
        "rules": [{ "operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"] }],
    });
    for (key, value) in extra.as_object().expect("object") {
        hook[key] = value.clone();
    }
    hook
}

const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1";

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_change_and_refuse() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let port = fixture
        .neighbour(|parts, review_in| {
            let request = &review_in["request"];
            if parts.uri.path() == "/mutate" {
                let patch = json!([{ "op": "add", "path": "/data/by", "value": request["userInfo"]["username"] }]);
                let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
                return review(
                    &review_in,
                    json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["changed"] }),
                );
            }
            let what = if request["operation"] == "DELETE" { &request["oldObject"] } else { &request["object"] };
            let bad = what["data"]["by"] != "admin" || what["data"]["key"] == "bad";
            let status = json!({ "message": "not this one", "code": 403, "reason": "Forbidden" });
            review(&review_in, json!({ "allowed": !bad, "status": status }))
        })
        .await;
    let selector = json!({ "objectSelector": { "matchLabels": { "hook": "yes" } } });
    client
        .make(
            &format!("{HOOKS}/mutatingwebhookconfigurations"),
            &json!({ "metadata": { "name": "a" }, "webhooks": [hook(port, "/mutate", &selector)] }),
        )
        .await;
    client
        .make(
            &format!("{HOOKS}/validatingwebhookconfigurations"),
            &json!({ "metadata": { "name": "a" }, "webhooks": [hook(port, "/validate", &selector)] }),
        )
        .await;
    let plain = client.make(MAPS, &config_map("plain")).await;
    assert_eq!(plain["data"], json!({ "key": "value" }), "not selected");
    let mut map = config_map("hooked");
    map["metadata"]["labels"] = json!({ "hook": "yes" });
    let json_type = [("content-type", "application/json")];
    let response = client.raw(Method::POST, MAPS, &json_type, map.to_string().into_bytes()).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(response.headers()["warning"], "299 - \"changed\"");
    let (_, made) = client.get(&format!("{MAPS}/hooked")).await;
    assert_eq!(made["data"], json!({ "key": "value", "by": "admin" }));
    let bad = json!({ "data": { "key": "bad" } });
    let (status, answer) = client.patch(&format!("{MAPS}/hooked"), "merge", &bad).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::FORBIDDEN,
            Some("admission webhook \"hook.example.com\" denied the request: not this one")
        )
    );
    assert_eq!(client.delete(&format!("{MAPS}/hooked"), &json!({})).await.0, StatusCode::OK);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_stops_writes_unless_it_may() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let port = fixture.neighbour(|_, _| json!({ "kind": "Other" })).await;
    let path = format!("{HOOKS}/validatingwebhookconfigurations");
    let configuration = |policy: &str| {
        let policy = json!({ "failurePolicy": policy });
        json!({ "metadata": { "name": "a" }, "webhooks": [hook(port, "/", &policy)] })
    };
    client.make(&path, &configuration("Fail")).await;
    let (status, answer) = client.post(MAPS, &config_map("a")).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = answer["message"].as_str().expect("message");
    assert!(
        message.starts_with(
            "Internal error occurred: failed calling webhook \"hook.example.com\": failed to call webhook:"
        ),
        "{message}"
    );
    // Its own configuration can always be mended.
    let (_, mut mended) = client.get(&format!("{path}/a")).await;
    mended["webhooks"] = configuration("Ignore")["webhooks"].take();
    assert_eq!(client.put(&format!("{path}/a"), &mended).await.0, StatusCode::OK);
    client.make(MAPS, &config_map("a")).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_answers_for_its_group() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let port = fixture
        .neighbour(|parts, _| {
            if parts.uri.path() == "/apis/metrics.k8s.io/v1beta1" {
                return json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1",
                    "resources": [{ "name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get"] }] });
            }
            let document = "/openapi/v3/apis/metrics.k8s.io/v1beta1";
            match parts.uri.path() {
                "/openapi/v3" => {
                    let url = format!("{document}?hash=AB");
                    return json!({ "paths": {
                        "apis/metrics.k8s.io/v1beta1": { "serverRelativeURL": url }, "apis/other/v1": { "serverRelativeURL": "/x" },
                    }});
                }
                "/openapi/v2" => {
                    return json!({
                        "paths": { "/apis/metrics.k8s.io/v1beta1/nodes": { "get": { "$ref": "#/definitions/N" } }, "/api/v1/x": {} },
                        "definitions": { "N": { "type": "object" }, "Unused": {} },
                    });
                }
                _ => {}
            }
            let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
            json!({ "path": parts.uri.to_string(), "user": header("x-remote-user"), "group": header("x-remote-group"),
                "secret": header("authorization") })
        })
        .await;
    let service =
        json!({ "metadata": { "name": "metrics" }, "spec": { "ports": [{ "name": "https", "port": 443 }] } });
    client.make("/api/v1/namespaces/kube-system/services", &service).await;
    // As an address of its family a loopback address would be refused; a test has no other that is always there.
    let slice = json!({
        "metadata": { "name": "metrics", "labels": { "kubernetes.io/service-name": "metrics" } }, "addressType": "FQDN",
        "endpoints": [{ "addresses": ["127.0.0.1"] }], "ports": [{ "name": "https", "port": port }],
    });
    client.make("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", &slice).await;
    let registration = json!({
        "metadata": { "name": "v1beta1.metrics.k8s.io" },
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": { "namespace": "kube-system", "name": "metrics" },
        },
    });
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    client.make(services, &registration).await;
    let mut watch = client.watch(&format!("{services}?watch=true")).await;
    loop {
        let event = watch.next().await.expect("an event");
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Available" && c["status"] == "True") {
            assert_eq!(conditions[0]["message"], "all checks passed");
            break;
        }
    }
    let ann = fixture.user(User::new("ann", ["system:masters".to_owned()]));
    let headers = [("authorization", "Bearer x"), ("x-remote-user", "eve")];
    let response =
        ann.raw(Method::GET, "/apis/metrics.k8s.io/v1beta1/nodes/a?limit=1", &headers, Vec::new()).await;
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.expect("body").to_bytes();
    let seen: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(
        seen,
        json!({ "path": "/apis/metrics.k8s.io/v1beta1/nodes/a?limit=1", "user": "ann", "group": "system:masters", "secret": null })
    );
    let (_, groups) = client.get("/apis").await;
    let names: Vec<&Value> =
        groups["groups"].as_array().expect("groups").iter().map(|g| &g["name"]).collect();
    assert!(names.contains(&&json!("metrics.k8s.io")), "{names:?}");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let response = client.raw(Method::GET, "/apis", &accept, Vec::new()).await;
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.expect("body").to_bytes();
    let all: Value = serde_json::from_slice(&bytes).expect("JSON");
    let found =
        all["items"].as_array().expect("items").iter().find(|g| g["metadata"]["name"] == "metrics.k8s.io");
    assert_eq!(found.expect("merged")["versions"][0]["resources"][0]["resource"], "nodes");
    // Its documents are looked for right after it was found to be there.
    let root = loop {
        let (_, root) = client.get("/openapi/v3").await;
        if root["paths"]["apis/metrics.k8s.io/v1beta1"].is_object() {
            break root;
        }
        tokio::task::yield_now().await;
    };
    let url = root["paths"]["apis/metrics.k8s.io/v1beta1"]["serverRelativeURL"].as_str().expect("a place");
    assert_eq!(url, "/openapi/v3/apis/metrics.k8s.io/v1beta1?hash=AB");
    assert!(root["paths"]["apis/other/v1"].is_null(), "not its own");
    let (_, passed_on) = client.get(url).await;
    assert_eq!((&passed_on["path"], &passed_on["user"]), (&json!(url), &json!("system:aggregator")));
    let (_, whole) = client.get("/openapi/v2").await;
    assert!(whole["paths"]["/apis/metrics.k8s.io/v1beta1/nodes"].is_object());
    assert!(whole["paths"]["/api/v1/x"].is_null() && whole["definitions"]["Unused"].is_null());
    assert_eq!(whole["definitions"]["N"], json!({ "type": "object" }));
    // It has so long as the client gives it.
    let path = "/apis/metrics.k8s.io/v1beta1/nodes?timeout=50ms";
    let (status, answer) = client.slow(Method::POST, path).await;
    assert_eq!((status, &answer["reason"]), (StatusCode::GATEWAY_TIMEOUT, &json!("Timeout")));
    // Without its Service it is told apart from what does not exist.
    client.delete("/api/v1/namespaces/kube-system/services/metrics", &json!({})).await;
    let change = json!({ "spec": { "versionPriority": 50 } });
    client.patch(&format!("{services}/v1beta1.metrics.k8s.io"), "merge", &change).await;
    while client.get("/apis/metrics.k8s.io/v1beta1/nodes").await.0 != StatusCode::SERVICE_UNAVAILABLE {
        tokio::task::yield_now().await;
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_have_a_say_in_tokens() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    client.post(accounts, &json!({ "metadata": { "name": "default" } })).await;
    let port = fixture
        .neighbour(|_, review_in| {
            let request = &review_in["request"];
            let asked = (&request["kind"]["kind"], &request["subResource"], &request["object"]["kind"]);
            let is_known = asked == (&json!("TokenRequest"), &json!("token"), &json!("TokenRequest"));
            let is_short = request["object"]["spec"]["expirationSeconds"] == 600;
            let status = json!({ "message": "too long", "code": 403, "reason": "Forbidden" });
            review(
                &review_in,
                json!({ "allowed": is_known && is_short, "status": status, "warnings": ["looked at"] }),
            )
        })
        .await;
    let mut hook = hook(port, "/", &json!({}));
    hook["rules"][0]["resources"] = json!(["serviceaccounts/token"]);
    client
        .make(
            &format!("{HOOKS}/validatingwebhookconfigurations"),
            &json!({ "metadata": { "name": "a" }, "webhooks": [hook] }),
        )
        .await;
    let path = format!("{accounts}/default/token");
    let ask = |seconds: i64| json!({ "spec": { "audiences": [], "expirationSeconds": seconds } });
    let (status, answer) = client.post(&path, &ask(7200)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    let json = [("content-type", "application/json")];
    let response = client.raw(Method::POST, &path, &json, ask(600).to_string().into_bytes()).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(response.headers()["warning"], "299 - \"looked at\"");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_ends_when_its_time_is_over_and_changes_nothing() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    // Connections are made, and nobody ever says a word on them.
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
    let port = silent.local_addr().expect("address").port();
    let hook = hook(port, "/", &json!({ "timeoutSeconds": 30 }));
    client
        .make(
            &format!("{HOOKS}/validatingwebhookconfigurations"),
            &json!({ "metadata": { "name": "a" }, "webhooks": [hook] }),
        )
        .await;
    let (status, answer) = client.post(&format!("{MAPS}?timeout=100ms"), &config_map("late")).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{answer}");
    assert_eq!(client.get(&format!("{MAPS}/late")).await.0, StatusCode::NOT_FOUND);
    fixture.stop().await;
}
