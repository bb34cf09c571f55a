//! CREATE, UPDATE, PATCH, DELETE and the subresources.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fixture::{Client, Fixture, MAPS, config_map};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn account(client: &Client) {
    // The controllers would make it.
    client
        .make("/api/v1/namespaces/default/serviceaccounts", &json!({ "metadata": { "name": "default" } }))
        .await;
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "kedge.dev/pause:1" }] },
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "replicas": 2, "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "a:1" }] },
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_update_is_refused_and_an_unversioned_one_is_not() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let first = client.make(MAPS, &config_map("a")).await;
    let path = format!("{MAPS}/a");
    let (_, second) = client.patch(&path, "merge", &json!({ "data": { "key": "two" } })).await;
    assert_ne!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let (status, answer) = client.put(&path, &first).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(
        answer["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let (status, third) = client.put(&path, &config_map("a")).await;
    assert_eq!((status, &third["data"]["key"]), (StatusCode::OK, &"value".into()));
    let (_, same) = client.put(&path, &config_map("a")).await;
    assert_eq!(
        same["metadata"]["resourceVersion"], third["metadata"]["resourceVersion"],
        "no change, no write"
    );
    let (status, answer) = client.post(MAPS, &config_map("a")).await;
    assert_eq!((status, &answer["reason"]), (StatusCode::CONFLICT, &"AlreadyExists".into()));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_moves_no_object() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let made = client.make(MAPS, &config_map("a")).await;
    let path = format!("{MAPS}/a");
    let mut elsewhere = config_map("a");
    elsewhere["metadata"]["namespace"] = json!("other");
    let request = "the namespace of the provided object does not match the namespace sent on the request";
    let object = "the namespace of the object (other) does not match the namespace on the request (default)";
    let name = "the name of the object (b) does not match the name on the URL (a)";
    let named = json!({ "metadata": { "name": "b" } });
    for (answer, expected) in [
        (client.put(&path, &elsewhere).await, request),
        (client.put(&path, &config_map("b")).await, name),
        (client.patch(&path, "merge", &elsewhere).await, object),
        (client.patch(&path, "strategic-merge", &elsewhere).await, object),
        (client.patch(&path, "merge", &named).await, name),
        (client.patch(&format!("{path}?fieldManager=m"), "apply", &elsewhere).await, request),
    ] {
        assert_eq!((answer.0, &answer.1["message"]), (StatusCode::BAD_REQUEST, &expected.into()));
    }
    assert_eq!(client.get(&path).await.1, made);
    fixture.stop().await;
}

/// Charts name a namespace everywhere, and nothing takes it out on the way here.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_means_nothing_for_what_has_none() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = |verb: &str| {
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "r", "namespace": "monitoring" },
            "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": [verb] }] })
    };
    let path = format!("{roles}/r");
    for (answer, expected) in [
        (client.post(roles, &role("get")).await, StatusCode::CREATED),
        (client.put(&path, &role("list")).await, StatusCode::OK),
        (client.patch(&path, "merge", &role("watch")).await, StatusCode::OK),
        (
            client.patch(&format!("{path}?fieldManager=m&force=true"), "apply", &role("update")).await,
            StatusCode::OK,
        ),
    ] {
        assert_eq!((answer.0, &answer.1["metadata"]["namespace"]), (expected, &Value::Null), "{}", answer.1);
    }
    let review = json!({ "metadata": { "namespace": "monitoring" }, "spec": { "user": "eve",
        "resourceAttributes": { "verb": "get", "resource": "pods" } } });
    let (status, answer) = client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_object_lose_nothing() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client.make(MAPS, &config_map("a")).await;
    let writers = (0..16).map(|index| {
        let client = client.clone();
        async move {
            let patch = json!({ "data": { format!("k{index}"): "v" } });
            let (status, answer) = client.patch(&format!("{MAPS}/a"), "merge", &patch).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
        }
    });
    futures::future::join_all(writers).await;
    let (_, object) = client.get(&format!("{MAPS}/a")).await;
    assert_eq!(object["data"].as_object().map(serde_json::Map::len), Some(17));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_finds_conflicts_and_force_takes_over() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let path = format!("{DEPLOYMENTS}/web");
    let (status, made) = client.patch(&format!("{path}?fieldManager=one"), "apply", &deployment()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["spec"]["strategy"]["type"], "RollingUpdate", "defaults are there");
    let mut other = deployment();
    other["spec"]["replicas"] = json!(5);
    let (status, conflict) = client.patch(&format!("{path}?fieldManager=two"), "apply", &other).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(conflict["details"]["causes"][0]["reason"], "FieldManagerConflict");
    assert_eq!(conflict["details"]["causes"][0]["field"], ".spec.replicas");
    let (status, forced) =
        client.patch(&format!("{path}?fieldManager=two&force=true"), "apply", &other).await;
    assert_eq!((status, &forced["spec"]["replicas"]), (StatusCode::OK, &json!(5)));
    let (status, _) = client.patch(&path, "apply", &other).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "apply needs a field manager");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_manifests_get_upstreams_words_and_change_nothing() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let with = |path: &str, value: Value| {
        let mut object = deployment();
        *object.pointer_mut(path).expect("path") = value;
        object
    };
    let mut unknown = deployment();
    unknown["spec"]["replicaz"] = json!(1);
    let strict = format!("{DEPLOYMENTS}?fieldValidation=Strict");
    for (object, code, text) in [
        (unknown, 400, "strict decoding error: unknown field \"spec.replicaz\""),
        (
            with("/spec/replicas", json!("two")),
            400,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (with("/spec/selector", Value::Null), 422, "spec.selector: Required value"),
        (
            with("/spec/template/metadata/labels", json!({ "app": "x" })),
            422,
            "`selector` does not match template `labels`",
        ),
        (
            with("/spec/template/spec/containers", json!([])),
            422,
            "spec.template.spec.containers: Required value",
        ),
        (with("/metadata/name", json!("Web")), 422, "metadata.name: Invalid value: \"Web\""),
        (with("/apiVersion", json!("apps/v2")), 400, "does not match the expected API version"),
    ] {
        let (status, answer) = client.post(&strict, &object).await;
        assert_eq!(status.as_u16(), code, "{answer}");
        assert!(
            answer["message"].as_str().expect("message").contains(text),
            "{} lacks {text}",
            answer["message"]
        );
    }
    let (_, list) = client.get(DEPLOYMENTS).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(0));
    let (status, answer) = client.post("/api/v1/namespaces/none/configmaps", &config_map("a")).await;
    assert_eq!(
        (status, &answer["message"]),
        (StatusCode::NOT_FOUND, &"namespaces \"none\" not found".into())
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_end_is_given_up() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    for (method, path) in [(Method::POST, MAPS.to_owned()), (Method::DELETE, format!("{MAPS}/a"))] {
        let (status, answer) = client.slow(method, &format!("{path}?timeout=50ms")).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{answer}");
        assert_eq!(answer["reason"], "Timeout");
        assert_eq!(answer["message"], "Timeout: request did not complete within the allotted timeout");
    }
    let (status, answer) = client.get(&format!("{MAPS}?timeout=soon")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    // It is the time for one request, not for a watch.
    client.watch(&format!("{MAPS}?watch=true&timeout=soon")).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_a_node_ends_gracefully_and_one_without_at_once() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    account(&client).await;
    let made = client.make(PODS, &pod("waiting")).await;
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(
        made["spec"]["containers"][0]["volumeMounts"][0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(made["status"]["phase"], "Pending");
    client.delete(&format!("{PODS}/waiting"), &Value::Null).await;
    assert_eq!(client.get(&format!("{PODS}/waiting")).await.0, StatusCode::NOT_FOUND);

    let zone = "topology.kubernetes.io/zone";
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1", "labels": { zone: "z1", "other": "o" } } });
    client.make("/api/v1/nodes", &node).await;
    client.make(PODS, &pod("bound")).await;
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "bound" }, "target": { "kind": "Node", "name": "node1" } });
    let (status, answer) = client.post(&format!("{PODS}/bound/binding"), &binding).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let (status, _) = client.post(&format!("{PODS}/bound/binding"), &binding).await;
    assert_eq!(status, StatusCode::CONFLICT, "a pod is bound once");
    let (_, bound) = client.get(&format!("{PODS}/bound")).await;
    let labels = &bound["metadata"]["labels"];
    assert_eq!((&labels[zone], &labels["other"]), (&"z1".into(), &Value::Null), "where the pod is");
    let (_, answer) = client.delete(&format!("{PODS}/bound"), &Value::Null).await;
    assert_eq!(answer["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(client.get(&format!("{PODS}/bound")).await.0, StatusCode::OK);
    let uid = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": "another" } });
    assert_eq!(client.delete(&format!("{PODS}/bound"), &uid).await.0, StatusCode::CONFLICT);
    client.delete(&format!("{PODS}/bound"), &json!({ "gracePeriodSeconds": 0 })).await;
    assert_eq!(client.get(&format!("{PODS}/bound")).await.0, StatusCode::NOT_FOUND);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let mut object = config_map("held");
    object["metadata"]["finalizers"] = json!(["example.com/a"]);
    client.make(MAPS, &object).await;
    let path = format!("{MAPS}/held");
    client.delete(&path, &Value::Null).await;
    let (_, marked) = client.get(&path).await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    client.patch(&path, "merge", &json!({ "metadata": { "finalizers": null } })).await;
    assert_eq!(client.get(&path).await.0, StatusCode::NOT_FOUND);
    client.make(MAPS, &config_map("orphans")).await;
    client.delete(&format!("{MAPS}/orphans"), &json!({ "propagationPolicy": "Foreground" })).await;
    let (_, waiting) = client.get(&format!("{MAPS}/orphans")).await;
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_gets_an_address_of_its_own() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let service = |name: &str, spec: Value| {
        let mut service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
        for (key, value) in spec.as_object().expect("map") {
            service["spec"][key] = value.clone();
        }
        service
    };
    let made = futures::future::join_all((0..32).map(|index| {
        let (client, object) = (client.clone(), service(&format!("s{index}"), json!({ "type": "NodePort" })));
        async move { client.post(SERVICES, &object).await.1 }
    }))
    .await;
    let addresses: std::collections::BTreeSet<&str> =
        made.iter().filter_map(|s| s["spec"]["clusterIP"].as_str()).collect();
    let ports: std::collections::BTreeSet<u64> =
        made.iter().filter_map(|s| s["spec"]["ports"][0]["nodePort"].as_u64()).collect();
    assert_eq!(addresses.len(), made.iter().filter(|s| s["kind"] == "Service").count());
    assert_eq!(ports.len(), addresses.len());
    assert!(addresses.len() >= 30, "a clash of two random choices is rare: {}", addresses.len());

    let taken = *addresses.first().expect("one");
    let (status, answer) = client.post(SERVICES, &service("clash", json!({ "clusterIP": taken }))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        answer["message"].as_str().expect("text").contains("provided IP is already allocated"),
        "{answer}"
    );
    let owner = made.iter().find(|s| s["spec"]["clusterIP"] == taken).expect("owner")["metadata"]["name"]
        .as_str()
        .expect("name")
        .to_owned();
    client.delete(&format!("{SERVICES}/{owner}"), &Value::Null).await;
    client.make(SERVICES, &service("clash", json!({ "clusterIP": taken }))).await;
    let headless = client.make(SERVICES, &service("headless", json!({ "clusterIP": "None" }))).await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_addresses_of_both_families_and_gives_one_back() {
    let v6 = "fd00:10:96::".parse().expect("address");
    let fixture = Fixture::with_ranges(vec![([10, 96, 0, 0].into(), 24), (v6, 112)]).await;
    let client = fixture.admin();
    let (_, cidr) = client.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await;
    assert_eq!(cidr["spec"]["cidrs"], json!(["10.96.0.0/24", "fd00:10:96::/112"]));
    let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "both" },
        "spec": { "ports": [{ "port": 80 }], "selector": { "a": "b" }, "ipFamilyPolicy": "RequireDualStack" } });
    let made = client.make(SERVICES, &object).await;
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]), "{made}");
    let addresses: Vec<String> = serde_json::from_value(made["spec"]["clusterIPs"].clone()).expect("texts");
    assert!(addresses[0].starts_with("10.96.0.") && addresses[1].starts_with("fd00:10:96::"), "{made}");
    assert_eq!(made["spec"]["clusterIP"], *addresses[0]);
    let path = |address: &str| format!("/apis/networking.k8s.io/v1/ipaddresses/{address}");
    for address in &addresses {
        assert_eq!(client.get(&path(address)).await.0, StatusCode::OK, "{address}");
    }
    let both = format!("{SERVICES}/both");
    let change = json!({ "spec": { "ipFamilyPolicy": "SingleStack" } });
    let (status, single) = client.patch(&both, "merge", &change).await;
    assert_eq!(status, StatusCode::OK, "{single}");
    assert_eq!(single["spec"]["clusterIPs"], json!([addresses[0]]));
    assert_eq!(client.get(&path(&addresses[1])).await.0, StatusCode::NOT_FOUND, "the address is free again");
    let change = json!({ "spec": { "ipFamilyPolicy": "PreferDualStack" } });
    let (_, again) = client.patch(&both, "merge", &change).await;
    assert_eq!(again["spec"]["clusterIPs"].as_array().map(Vec::len), Some(2), "{again}");
    let change = json!({ "spec": { "clusterIP": "10.96.0.200", "clusterIPs": ["10.96.0.200", again["spec"]["clusterIPs"][1]] } });
    let (status, answer) = client.patch(&both, "merge", &change).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer["message"].as_str().expect("text").contains("may not change once set"), "{answer}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_scale_change_their_part_only() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let made = client.make(DEPLOYMENTS, &deployment()).await;
    assert_eq!(made["metadata"]["generation"], 1);
    let path = format!("{DEPLOYMENTS}/web");
    let (_, scaled) =
        client.patch(&format!("{path}/scale"), "merge", &json!({ "spec": { "replicas": 4 } })).await;
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&"Scale".into(), &json!(4)));
    let table = client.table(&format!("{path}/scale")).await;
    assert_eq!(table.0, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(table.1[..3], [json!("web"), json!(4), json!(0)]);
    let (_, object) = client.get(&path).await;
    assert_eq!((&object["metadata"]["generation"], &object["spec"]["replicas"]), (&json!(2), &json!(4)));
    let mut status = object.clone();
    status["status"] = json!({ "replicas": 3, "observedGeneration": 2 });
    status["spec"]["replicas"] = json!(9);
    let (code, answer) = client.put(&format!("{path}/status"), &status).await;
    assert_eq!(code, StatusCode::OK, "{answer}");
    assert_eq!((&answer["spec"]["replicas"], &answer["status"]["replicas"]), (&json!(4), &json!(3)));
    assert_eq!(answer["metadata"]["generation"], 2, "a status is no change of what is wanted");
    let mut main = answer.clone();
    main["status"]["replicas"] = json!(0);
    main["metadata"]["labels"] = json!({ "a": "b" });
    let (_, answer) = client.put(&path, &main).await;
    assert_eq!((&answer["status"]["replicas"], &answer["metadata"]["labels"]["a"]), (&json!(3), &"b".into()));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_named_is_looked_at() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    let ports = |port: Value| json!([{ "port": 80, "nodePort": port }]);
    client
        .make(services, &service("first", json!({ "type": "NodePort", "ports": ports(json!(30060)) })))
        .await;
    // No ports are chosen for this one; those that it names are claimed all the same.
    let bare = |port: Value| json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports(port) });
    let checked = |port: Value| {
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
            "ports": [{ "port": 80 }] })
    };
    let outside = "provided port is not in the valid range. The range of valid ports is 30000-30100";
    let taken = "provided port is already allocated";
    for (spec, field, wanted) in [
        (bare(json!(6443)), "spec.ports[0].nodePort: Invalid value: 6443", outside),
        (bare(json!(30060)), "spec.ports[0].nodePort: Invalid value: 30060", taken),
        (
            json!({ "type": "NodePort", "ports": ports(json!(70000)) }),
            "nodePort: Invalid value: 70000",
            outside,
        ),
        (checked(json!(10250)), "spec.healthCheckNodePort: Invalid value: 10250", outside),
        (checked(json!(30060)), "spec.healthCheckNodePort: Invalid value: 30060", taken),
    ] {
        let (status, answer) = client.post(services, &service("s", spec)).await;
        assert_eq!(status, 422, "{answer}");
        assert!(answer.to_string().contains(field) && answer.to_string().contains(wanted), "{answer}");
    }
    let made = client.make(services, &service("bare", bare(json!(30061)))).await;
    assert_eq!(made["spec"]["ports"][0]["nodePort"], 30061);
    let (status, answer) = client.post(services, &service("late", bare(json!(30061)))).await;
    assert_eq!(status, 422, "{answer}");
    let none = client.make(services, &service("none", bare(Value::Null))).await;
    assert!(none["spec"]["ports"][0].get("nodePort").is_none(), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ports_are_for_types_that_have_them() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let services = "/api/v1/namespaces/default/services";
    let service = |kind: &str| {
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
            "spec": { "type": kind, "ports": [{ "port": 80, "nodePort": 30050 }] } })
    };
    let (status, answer) = client.post(services, &service("ClusterIP")).await;
    let wanted = "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'";
    assert_eq!(status, 422, "{answer}");
    assert!(answer.to_string().contains(wanted), "{answer}");
    // Of another type it gives them back, with all else that only the former has.
    let mut made = client.make(services, &service("LoadBalancer")).await;
    assert_eq!(made["spec"]["allocateLoadBalancerNodePorts"], true, "{made}");
    made["spec"]["type"] = json!("ClusterIP");
    let (status, changed) = client.put(&format!("{services}/s"), &made).await;
    assert_eq!(status, 200, "{changed}");
    for field in
        ["/spec/ports/0/nodePort", "/spec/allocateLoadBalancerNodePorts", "/spec/externalTrafficPolicy"]
    {
        assert!(changed.pointer(field).is_none(), "{field}: {changed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_creates_some_kinds() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases/a";
    let object =
        json!({ "metadata": { "name": "a", "resourceVersion": "7" }, "spec": { "holderIdentity": "x" } });
    let (status, made) = client.put(lease, &object).await;
    assert_eq!((status, &made["spec"]["holderIdentity"]), (StatusCode::CREATED, &"x".into()), "{made}");
    let (status, again) = client.put(lease, &object).await;
    assert_eq!(status, StatusCode::CONFLICT, "it is there now, in another version: {again}");
    let (status, again) = client.put(lease, &json!({ "metadata": { "name": "a" } })).await;
    assert_eq!(
        (status, again["message"].as_str()),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            Some(
                "leases.coordination.k8s.io \"a\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
            )
        )
    );
    let map = "/api/v1/namespaces/default/configmaps/a";
    let (status, _) = client.put(map, &json!({ "metadata": { "name": "a" } })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) =
        client.put(&format!("{lease}b"), &json!({ "metadata": { "name": "ab", "uid": "x" } })).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "the one that is meant is gone");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_is_applied() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client.make(DEPLOYMENTS, &deployment()).await;
    let path = format!("{DEPLOYMENTS}/web");
    let scale = |replicas: i64| json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": { "name": "web" }, "spec": { "replicas": replicas } });
    let (status, _) = client.patch(&format!("{path}/scale"), "apply", &scale(3)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "nobody applies it");
    let by = |manager: &str| format!("{path}/scale?fieldManager={manager}");
    let (status, applied) = client.patch(&format!("{}&force=true", by("one")), "apply", &scale(3)).await;
    assert_eq!(
        (status, &applied["kind"], &applied["spec"]["replicas"]),
        (StatusCode::OK, &"Scale".into(), &json!(3))
    );
    let (status, refused) = client.patch(&by("two"), "apply", &scale(4)).await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains(".spec.replicas")), "{refused}");
    let (_, object) = client.get(&path).await;
    let entries = object["metadata"]["managedFields"].as_array().expect("entries");
    let entry = entries.iter().find(|entry| entry["manager"] == "one").expect("the applier's");
    assert_eq!(
        (&entry["operation"], &entry["subresource"], &entry["apiVersion"], &entry["fieldsV1"]),
        (&"Apply".into(), &"scale".into(), &"apps/v1".into(), &json!({ "f:spec": { "f:replicas": {} } }))
    );
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(3), &json!(2)));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_named_twice_is_named_once() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let owner = |uid: &str| json!({ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": uid });
    let map = json!({ "metadata": { "name": "a", "ownerReferences": [owner("x"), owner("y"), owner("x")] } });
    let body = map.to_string().into_bytes();
    let maps = "/api/v1/namespaces/default/configmaps";
    let response = client.raw(Method::POST, maps, &[("content-type", "application/json")], body).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let warning = response.headers()["warning"].to_str().expect("text");
    assert!(warning.contains("contains duplicate entries; ") && warning.contains("observed: x"), "{warning}");
    let path = format!("{maps}/a");
    let (_, object) = client.get(&path).await;
    assert_eq!(object["metadata"]["ownerReferences"], json!([owner("x"), owner("y")]));
    let more = json!([{ "op": "add", "path": "/metadata/ownerReferences/-", "value": owner("y") }]);
    let (status, object) = client.patch(&path, "json", &more).await;
    assert_eq!(status, StatusCode::OK, "{object}");
    assert_eq!(object["metadata"]["ownerReferences"], json!([owner("x"), owner("y")]));
    fixture.stop().await;
}
