//! CustomResourceDefinitions and their objects.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fixture::{Client, Fixture};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

fn definition() -> Value {
    json!({
        "metadata": { "name": "things.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "things", "kind": "Thing", "shortNames": ["th"], "categories": ["all"] },
            "versions": [
                {
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                        "spec": { "type": "object", "required": ["color"], "properties": {
                            "color": { "type": "string", "enum": ["red", "blue"] },
                            "replicas": { "type": "integer", "minimum": 0, "default": 1 },
                            "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                            "ports": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                                "items": { "type": "object", "required": ["name"], "properties": {
                                    "name": { "type": "string" }, "port": { "type": "integer" } } } },
                        } },
                        "status": { "type": "object", "properties": { "replicas": { "type": "integer" }, "selector": { "type": "string" } } },
                    } } },
                    "subresources": { "status": {}, "scale": {
                        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector" } },
                    "additionalPrinterColumns": [{ "name": "Color", "type": "string", "jsonPath": ".spec.color" }],
                    "selectableFields": [{ "jsonPath": ".spec.color" }],
                },
                { "name": "v1beta1", "served": true, "storage": false,
                    "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } },
            ],
        },
    })
}

fn thing(name: &str, color: &str) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Thing", "metadata": { "name": name }, "spec": { "color": color } })
}

/// Waits until the definition has the condition.
async fn until(client: &Client, name: &str, condition: &str) -> Value {
    let path = format!("{CRDS}?fieldSelector=metadata.name%3D{name}&watch=true");
    let mut watch = client.watch(&path).await;
    loop {
        let event = watch.next().await.expect("an event");
        let list = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if list.iter().any(|c| c["type"] == condition && c["status"] == "True") {
            return event["object"].clone();
        }
    }
}

async fn define(client: &Client, definition: &Value) {
    client.make(CRDS, definition).await;
    until(client, "things.example.com", "Established").await;
    served(client, THINGS, StatusCode::OK).await;
}

/// The row follows the definition at once, but not in the same moment.
async fn served(client: &Client, path: &str, expected: StatusCode) {
    while client.get(path).await.0 != expected {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_makes_a_kind() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    define(&client, &definition()).await;
    let (_, found) = client.get("/apis/example.com/v1").await;
    let names: Vec<&str> =
        found["resources"].as_array().expect("list").iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["things", "things/scale", "things/status"]);
    assert_eq!(found["resources"][0]["shortNames"], json!(["th"]));
    let (_, groups) = client.get("/apis/example.com").await;
    assert_eq!(groups["preferredVersion"]["version"], "v1");

    // Defaults, pruning, generation.
    let mut first = thing("a", "red");
    first["spec"]["unknown"] = json!(1);
    first["spec"]["free"] = json!({ "any": { "thing": 1 } });
    first["status"] = json!({ "replicas": 9 });
    let made = client.make(THINGS, &first).await;
    assert_eq!(made["spec"], json!({ "color": "red", "free": { "any": { "thing": 1 } }, "replicas": 1 }));
    assert_eq!((&made["metadata"]["generation"], &made["status"]), (&json!(1), &Value::Null));
    let (_, changed) =
        client.patch(&format!("{THINGS}/a"), "merge", &json!({ "spec": { "color": "blue" } })).await;
    assert_eq!(changed["metadata"]["generation"], 2);

    // Validation.
    let (status, answer) = client.post(THINGS, &thing("b", "green")).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            Some(
                "Thing.example.com \"b\" is invalid: spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\""
            )
        )
    );
    let (status, answer) =
        client.patch(&format!("{THINGS}/a"), "strategic-merge", &json!({ "spec": { "color": "red" } })).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(
        answer["message"].as_str().is_some_and(|text| text.ends_with(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        )),
        "{answer}"
    );

    // Status and scale.
    let status = json!({ "status": { "replicas": 3, "selector": "a=b" }, "spec": { "color": "red" } });
    let (_, shown) = client.patch(&format!("{THINGS}/a/status"), "merge", &status).await;
    assert_eq!((&shown["spec"]["color"], &shown["status"]["replicas"]), (&json!("blue"), &json!(3)));
    let (_, scale) = client.get(&format!("{THINGS}/a/scale")).await;
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({ "replicas": 1 }), &json!({ "replicas": 3, "selector": "a=b" }))
    );
    let table = client.table(&format!("{THINGS}/a/scale")).await;
    assert_eq!(table.0, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(table.1[..3], [json!("a"), json!(1), json!(3)]);
    let (code, _) =
        client.patch(&format!("{THINGS}/a/scale"), "merge", &json!({ "spec": { "replicas": 5 } })).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(client.get(&format!("{THINGS}/a")).await.1["spec"]["replicas"], 5);

    // Field selectors, columns, another version.
    client.make(THINGS, &thing("red", "red")).await;
    let (_, list) = client.get(&format!("{THINGS}?fieldSelector=spec.color%3Dred")).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    let (_, old) = client.get("/apis/example.com/v1beta1/namespaces/default/things/a").await;
    assert_eq!((&old["apiVersion"], &old["spec"]["replicas"]), (&json!("example.com/v1beta1"), &json!(5)));
    let table = client.table(THINGS).await;
    assert_eq!((table.0[1].as_str(), table.1), ("Color", vec![json!("a"), json!("blue")]));

    // What kubectl explain asks for.
    let (status, document) = client.get("/openapi/v3/apis/example.com/v1").await;
    assert_eq!(status, StatusCode::OK, "{document}");
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.contains_key("/apis/example.com/v1/namespaces/{namespace}/things/{name}"), "{paths:?}");
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let thing =
        schemas.values().find(|s| s["x-kubernetes-group-version-kind"][0]["kind"] == "Thing").expect("Thing");
    assert!(thing.to_string().contains("color") || schemas.len() > 1, "{thing}");

    // Apply merges lists by key.
    let apply = |ports: Value| json!({ "apiVersion": "example.com/v1", "kind": "Thing", "spec": { "color": "red", "ports": ports } });
    let path = |manager: &str| format!("{THINGS}/red?fieldManager={manager}&force=true");
    client.patch(&path("one"), "apply", &apply(json!([{ "name": "a", "port": 1 }]))).await;
    let (_, both) = client.patch(&path("two"), "apply", &apply(json!([{ "name": "b", "port": 2 }]))).await;
    assert_eq!(both["spec"]["ports"], json!([{ "name": "a", "port": 1 }, { "name": "b", "port": 2 }]));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_follow_definitions() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let url = async || {
        let (_, root) = client.get("/openapi/v3").await;
        root["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().map(str::to_owned)
    };
    assert_eq!(url().await, None);
    let etag = async || {
        let response = client.raw(Method::GET, "/openapi/v2", &[], Vec::new()).await;
        response.headers()["etag"].to_str().expect("text").to_owned()
    };
    let before = etag().await;
    define(&client, &definition()).await;
    let first = url().await.expect("a document");
    assert_eq!(url().await.as_ref(), Some(&first), "the same as long as nothing changes");
    let defined = etag().await;
    assert_ne!(defined, before);
    let response = client.raw(Method::GET, &first, &[], Vec::new()).await;
    assert!(response.headers()["cache-control"].to_str().expect("text").contains("immutable"));

    let path = format!("{CRDS}/things.example.com");
    let (_, mut changed) = client.get(&path).await;
    let fields = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    changed.pointer_mut(fields).expect("fields")["weight"] = json!({ "type": "integer" });
    assert_eq!(client.put(&path, &changed).await.0, StatusCode::OK);
    let second = loop {
        match url().await {
            Some(second) if second != first => break second,
            _ => tokio::task::yield_now().await,
        }
    };
    let (_, document) = client.get(&second).await;
    assert!(document.to_string().contains("weight"));
    let old = client.raw(Method::GET, &first, &[], Vec::new()).await;
    assert_eq!(
        (old.status(), old.headers()["location"].to_str().ok()),
        (StatusCode::MOVED_PERMANENTLY, Some(&*second))
    );
    assert_ne!(etag().await, defined);

    client.delete(&path, &json!({})).await;
    served(&client, "/openapi/v3/apis/example.com/v1", StatusCode::NOT_FOUND).await;
    assert_eq!(url().await, None);
    assert_eq!(etag().await, before);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_defines_kinds_in_kedges_own_group() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let mut own = definition();
    own["metadata"]["name"] = json!("tokens.cluster.kedge.internal");
    own["spec"]["group"] = json!("cluster.kedge.internal");
    own["spec"]["names"]["plural"] = json!("tokens");
    let (status, answer) = client.post(CRDS, &own).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert!(answer["message"].as_str().expect("words").contains("Kedge's own"), "{answer}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_want_one_kind_one_gets_it() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let all = (0..8).map(|index| {
        let mut definition = definition();
        let plural = format!("things{index}");
        definition["metadata"]["name"] = json!(format!("{plural}.example.com"));
        definition["spec"]["names"] = json!({ "plural": plural, "kind": "Thing" });
        let client = client.clone();
        async move { client.make(CRDS, &definition).await }
    });
    futures::future::join_all(all).await;
    let mut watch = client.watch(&format!("{CRDS}?watch=true")).await;
    let mut decided = std::collections::HashMap::new();
    while decided.len() < 8 {
        let event = watch.next().await.expect("an event");
        let conditions = event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(condition) = conditions.iter().find(|condition| condition["type"] == "NamesAccepted") {
            let name = event["object"]["metadata"]["name"].to_string();
            decided.insert(name, condition["status"] == "True");
        }
    }
    assert_eq!(decided.values().filter(|accepted| **accepted).count(), 1, "{decided:?}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_go_with_their_definition() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    define(&client, &definition()).await;
    let mut held = thing("held", "red");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    client.make(THINGS, &held).await;
    client.make(THINGS, &thing("free", "red")).await;
    let path = format!("{CRDS}/things.example.com");
    let (_, marked) = client.delete(&path, &json!({})).await;
    assert_eq!(marked["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    served(&client, &format!("{THINGS}/free"), StatusCode::NOT_FOUND).await;
    while client.post(THINGS, &thing("late", "red")).await.0 != StatusCode::METHOD_NOT_ALLOWED {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.get(&path).await.0, StatusCode::OK, "an object is still held");
    let release = json!({ "metadata": { "finalizers": null } });
    assert_eq!(client.patch(&format!("{THINGS}/held"), "merge", &release).await.0, StatusCode::OK);
    served(&client, &path, StatusCode::NOT_FOUND).await;
    served(&client, "/apis/example.com/v1", StatusCode::NOT_FOUND).await;
    // The same name again starts from nothing.
    define(&client, &definition()).await;
    let (_, list) = client.get(THINGS).await;
    assert_eq!(list["items"], json!([]));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_storage_version_leaves_old_objects_readable() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    define(&client, &definition()).await;
    client.make(THINGS, &thing("old", "red")).await;
    let path = format!("{CRDS}/things.example.com");
    let (_, mut current) = client.get(&path).await;
    current["spec"]["versions"][0]["storage"] = json!(false);
    current["spec"]["versions"][1]["storage"] = json!(true);
    let (status, changed) = client.put(&path, &current).await;
    assert_eq!((status, &changed["status"]["storedVersions"]), (StatusCode::OK, &json!(["v1", "v1beta1"])));
    client.make(THINGS, &thing("new", "blue")).await;
    let (_, list) = client.get(THINGS).await;
    let versions: Vec<_> =
        list["items"].as_array().expect("items").iter().map(|i| i["apiVersion"].clone()).collect();
    assert_eq!(versions, ["example.com/v1", "example.com/v1"]);
    let (_, list) = client.get("/apis/example.com/v1beta1/things").await;
    let versions: Vec<_> =
        list["items"].as_array().expect("items").iter().map(|i| i["apiVersion"].clone()).collect();
    assert_eq!(versions, ["example.com/v1beta1", "example.com/v1beta1"]);
    // What cannot be done is said when the definition is written.
    let mut webhook = definition();
    webhook["spec"]["conversion"] =
        json!({ "strategy": "Webhook", "webhook": { "conversionReviewVersions": ["v1"] } });
    webhook["metadata"]["name"] = json!("others.example.com");
    webhook["spec"]["names"] = json!({ "plural": "others", "kind": "Other" });
    let (status, answer) = client.post(CRDS, &webhook).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        answer["message"].as_str().expect("message").contains("clientConfig: Required value"),
        "{answer}"
    );
    fixture.stop().await;
}
