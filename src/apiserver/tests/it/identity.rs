//! Who a request comes from and how far it reaches: paths that say one thing and mean another, what a node may do,
//! impersonation, and questions about rights.

use http::{Method, StatusCode};
use kedge_apiserver::User;
use serde_json::{Value, json};

use crate::fixture::{Client, Fixture, MAPS, config_map};

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// What `rules` allow in the namespace default, and nothing else.
async fn limited(fixture: &Fixture, name: &str, rules: Value) -> Client {
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let (kind, version) = ("Role", "rbac.authorization.k8s.io/v1");
    let role = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name }, "rules": rules });
    let binding = json!({
        "apiVersion": version, "kind": "RoleBinding", "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name }],
    });
    fixture.admin().make(&format!("{rbac}/roles"), &role).await;
    fixture.admin().make(&format!("{rbac}/rolebindings"), &binding).await;
    fixture.user(User::new(name, []))
}

fn node_user(fixture: &Fixture, node: &str) -> Client {
    fixture.user(User::new(format!("system:node:{node}"), ["system:nodes".to_owned()]))
}

fn secret(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name } })
}

fn pod(name: &str, node: &str, volumes: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }], "volumes": volumes },
    })
}

async fn account(admin: &Client) {
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let default = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    admin.post(path, &default).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_to_one_name_reaches_one_name() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    for name in ["a", "b"] {
        admin.make(SECRETS, &secret(name)).await;
    }
    let rules =
        json!([{ "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["*"] }]);
    let user = limited(&fixture, "one", rules).await;

    let mut watch = user.watch("/api/v1/watch/namespaces/default/secrets/a?resourceVersion=0").await;
    assert_eq!(watch.next_short().await, ("ADDED".into(), "a".into()));
    for name in ["c", "a"] {
        let change = json!({ "metadata": { "labels": { "seen": name } } });
        admin.post(SECRETS, &secret(name)).await;
        admin.patch(&format!("{SECRETS}/{name}"), "merge", &change).await;
    }
    assert_eq!(watch.next_short().await, ("MODIFIED".into(), "a".into()), "nothing of b and c");

    let (status, answer) = user.post(&format!("{SECRETS}/a"), &secret("d")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{answer}");
    assert_eq!(admin.get(&format!("{SECRETS}/d")).await.0, StatusCode::NOT_FOUND);
    drop(watch);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_in_one_namespace_reaches_no_other() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "prod" } });
    admin.make("/api/v1/namespaces", &namespace).await;
    let all = json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }]);
    let user = limited(&fixture, "owner", all).await;

    assert_eq!(user.get("/api/v1/namespaces/default").await.0, StatusCode::OK);
    let inside = "/api/v1/namespaces/default/namespaces";
    assert_eq!(user.get(inside).await.0, StatusCode::NOT_FOUND);
    assert_eq!(user.delete(&format!("{inside}/prod"), &json!({})).await.0, StatusCode::NOT_FOUND);
    assert_eq!(user.put(&format!("{inside}/prod/finalize"), &namespace).await.0, StatusCode::NOT_FOUND);
    let (status, answer) = user.post("/api/v1/namespaces/default", &namespace).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{answer}");
    let prod = admin.get("/api/v1/namespaces/prod").await.1;
    assert!(prod["metadata"]["deletionTimestamp"].is_null(), "{prod}");

    let reviews = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    let ask = |spec: Value| json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview", "spec": spec });
    let about = |namespace: &str| json!({ "user": "eve", "resourceAttributes": { "verb": "get", "resource": "pods", "namespace": namespace } });
    assert_eq!(user.post(reviews, &ask(about("default"))).await.0, StatusCode::CREATED);
    for spec in [
        about("prod"),
        json!({ "user": "eve", "nonResourceAttributes": { "verb": "get", "path": "/metrics" } }),
    ] {
        let (status, answer) = user.post(reviews, &ask(spec)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_cannot_be_read_is_not_the_sender() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    for (header, value, expected) in [
        ("impersonate-user", "jörg".as_bytes(), StatusCode::FORBIDDEN),
        ("impersonate-user", b"j\xf6rg", StatusCode::BAD_REQUEST),
        ("impersonate-group", b"\xff", StatusCode::BAD_REQUEST),
        ("impersonate-extra-x", b"\xff", StatusCode::BAD_REQUEST),
    ] {
        let value = http::HeaderValue::from_bytes(value).expect("a header");
        let answer = admin.with_header(Method::GET, MAPS, header, value).await;
        assert_eq!(answer.status(), expected, "{header}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_led_to_no_object_by_its_own_words() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    account(&admin).await;
    admin.make(SECRETS, &secret("s")).await;
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
    let uid = admin.make(NODES, &node).await["metadata"]["uid"].clone();
    let user = node_user(&fixture, "n1");

    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid, "controller": true }]);
    let mirror = |owners: &Value, volumes: Value| {
        let mut pod = pod("static-n1", "n1", volumes);
        pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "1" });
        pod["metadata"]["ownerReferences"] = owners.clone();
        pod
    };
    let of_secret = json!([{ "name": "v", "secret": { "secretName": "s" } }]);
    for (refused, words) in [
        (mirror(&owner, of_secret), "can not create pods that reference secrets"),
        (mirror(&json!([]), json!([])), "with an owner reference set to itself"),
        (
            mirror(
                &json!([owner[0], { "apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y" }]),
                json!([]),
            ),
            "with a single owner reference set to itself",
        ),
    ] {
        let (status, answer) = user.post(PODS, &refused).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(words), "{answer}");
    }
    let (status, answer) = user.post(PODS, &mirror(&owner, json!([]))).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(user.get(&format!("{SECRETS}/s")).await.0, StatusCode::FORBIDDEN);

    let owned = json!({ "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y" }] } });
    let (status, answer) = user.patch(&format!("{NODES}/n1"), "merge", &owned).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_what_its_pods_use() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    account(&admin).await;
    for name in ["n1", "n2"] {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        admin.make(NODES, &node).await;
    }
    let volumes = json!([
        { "name": "a", "secret": { "secretName": "s" } },
        { "name": "b", "persistentVolumeClaim": { "claimName": "c" } },
        { "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "t", "audience": "vault" } }] } },
    ]);
    for name in ["s", "stage", "controller"] {
        admin.make(SECRETS, &secret(name)).await;
    }
    let claim = json!({ "metadata": { "name": "c" }, "spec": { "accessModes": ["ReadWriteOnce"], "volumeName": "v",
        "storageClassName": "", "resources": { "requests": { "storage": "1Gi" } } } });
    admin.make("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
    for (name, audience) in [("driver", "cloud"), ("stranger", "bank")] {
        let driver =
            json!({ "metadata": { "name": name }, "spec": { "tokenRequests": [{ "audience": audience }] } });
        admin.make("/apis/storage.k8s.io/v1/csidrivers", &driver).await;
    }
    let uid = admin.make(PODS, &pod("p", "n1", volumes)).await["metadata"]["uid"].clone();
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "v" },
        "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"],
            "csi": { "driver": "driver", "volumeHandle": "h",
                "nodeStageSecretRef": { "namespace": "default", "name": "stage" },
                "controllerPublishSecretRef": { "namespace": "default", "name": "controller" } },
            "claimRef": { "namespace": "default", "name": "c" },
        },
    });
    admin.make("/api/v1/persistentvolumes", &volume).await;

    let (here, elsewhere) = (node_user(&fixture, "n1"), node_user(&fixture, "n2"));
    let account = "/api/v1/namespaces/default/serviceaccounts/default".to_owned();
    let volume = "/api/v1/persistentvolumes/v".to_owned();
    for path in [format!("{SECRETS}/s"), format!("{SECRETS}/stage"), volume, account] {
        assert_eq!(here.get(&path).await.0, StatusCode::OK, "{path}");
        assert_eq!(elsewhere.get(&path).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(here.get(&format!("{SECRETS}/controller")).await.0, StatusCode::FORBIDDEN);

    let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let ask = |name: &str, uid: &Value, audience: &str| {
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": [audience], "expirationSeconds": 3607,
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid },
        } })
    };
    let (status, answer) = here.post(tokens, &ask("p", &uid, "cloud")).await;
    assert_eq!(status, StatusCode::CREATED, "the driver of its volume asks for it: {answer}");
    let (status, answer) = here.post(tokens, &ask("p", &uid, "vault")).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let payload =
        answer["status"]["token"].as_str().and_then(|token| token.split('.').nth(1)).expect("a token");
    let claims: Value = serde_json::from_slice(
        &base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload).expect("base64"),
    )
    .expect("claims");
    let life = claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(end, begin)| end - begin);
    assert_eq!(life, Some(3607), "only this API server's own tokens live longer: {claims}");
    for (refused, words) in [
        (ask("p", &uid, "other"), "audience \"other\" not found in pod spec volume"),
        (ask("p", &uid, "bank"), "audience \"bank\" not found in pod spec volume"),
        (
            ask("p", &json!("00000000-0000-0000-0000-000000000000"), "vault"),
            "does not match the UID in record",
        ),
        (json!({ "spec": { "audiences": ["vault"] } }), "not bound to a pod"),
    ] {
        let (status, answer) = here.post(tokens, &refused).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(words), "{answer}");
    }
    assert_eq!(elsewhere.post(tokens, &ask("p", &uid, "vault")).await.0, StatusCode::FORBIDDEN);
    let (status, _) =
        admin.post(tokens, &json!({ "spec": { "audiences": [], "expirationSeconds": -1 } })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    for (metadata, expected) in [
        (json!({ "name": "other" }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "namespace": "other" }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "uid": "00000000-0000-0000-0000-000000000000" }), StatusCode::CONFLICT),
        (json!({ "name": "default" }), StatusCode::CREATED),
    ] {
        let (status, answer) = admin.post(tokens, &json!({ "metadata": metadata, "spec": {} })).await;
        assert_eq!(status, expected, "{answer}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_writes_what_a_kubelet_has_to_write() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    account(&admin).await;
    admin.make(NODES, &json!({ "metadata": { "name": "n1" } })).await;
    let volumes = json!([{ "name": "b", "persistentVolumeClaim": { "claimName": "c" } }]);
    admin.make(PODS, &pod("p", "n1", volumes)).await;
    let claim = json!({ "metadata": { "name": "c" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": "1Gi" } } } });
    admin.make("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
    let node = node_user(&fixture, "n1");
    let claim = "/api/v1/namespaces/default/persistentvolumeclaims/c/status";
    let pod = format!("{PODS}/p/status");
    let (status, answer) =
        node.patch(claim, "merge", &json!({ "status": { "capacity": { "storage": "2Gi" } } })).await;
    assert_eq!(
        (status, &answer["status"]["capacity"]["storage"]),
        (StatusCode::OK, &json!("2Gi")),
        "{answer}"
    );
    let (status, answer) = node.patch(&pod, "merge", &json!({ "status": { "phase": "Running" } })).await;
    assert_eq!((status, &answer["status"]["phase"]), (StatusCode::OK, &json!("Running")), "{answer}");
    for (path, patch, words) in [
        (claim, json!({ "metadata": { "annotations": { "a": "b" } } }), "fields other than status.quantity"),
        (claim, json!({ "status": { "phase": "Lost" } }), "fields other than status.quantity"),
        (&pod, json!({ "metadata": { "labels": { "app": "bank" } } }), "cannot update labels"),
        (
            &pod,
            json!({ "status": { "resourceClaimStatuses": [{ "name": "a", "resourceClaimName": "other" }] } }),
            "cannot update resource claim",
        ),
    ] {
        let (status, answer) = node.patch(path, "merge", &patch).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{patch}: {answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(words), "{answer}");
    }
    let nodes = "/apis/storage.k8s.io/v1/csinodes";
    let slices = "/apis/resource.k8s.io/v1/resourceslices";
    let csi = |name: &str| json!({ "metadata": { "name": name }, "spec": { "drivers": [] } });
    let slice = |node: &str| {
        json!({ "metadata": { "name": format!("s-{node}") }, "spec": { "driver": "d.example.com", "nodeName": node,
            "pool": { "name": "p", "generation": 1, "resourceSliceCount": 1 } } })
    };
    for (path, own, other) in [(nodes, csi("n1"), csi("n2")), (slices, slice("n1"), slice("n2"))] {
        let (status, answer) = node.post(path, &other).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
        let made = node.make(path, &own).await;
        let at = format!("{path}/{}", made["metadata"]["name"].as_str().expect("a name"));
        assert_eq!(node.get(&at).await.0, StatusCode::OK);
        let other = admin.make(path, &other).await;
        let at = format!("{path}/{}", other["metadata"]["name"].as_str().expect("a name"));
        assert_eq!(node.get(&at).await.0, StatusCode::FORBIDDEN);
        assert_eq!(node.delete(&at, &Value::Null).await.0, StatusCode::FORBIDDEN);
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_clock_reaches_and_no_field_holds() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    account(&admin).await;
    let mut endless = pod("endless", "n1", json!([]));
    endless["spec"]["terminationGracePeriodSeconds"] = json!(9_000_000_000_000_i64);
    admin.make(PODS, &endless).await;
    let (status, answer) = admin.delete(&format!("{PODS}/endless"), &json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(answer["metadata"]["deletionTimestamp"].is_string(), "{answer}");
    let (status, answer) = admin
        .delete(&format!("{PODS}/endless"), &json!({ "gracePeriodSeconds": 9_000_000_000_000_i64 }))
        .await;
    assert_eq!(status, StatusCode::OK, "{answer}");

    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": {
            "selector": { "matchLabels": { "a": "d" } },
            "template": { "metadata": { "labels": { "a": "d" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
        },
    });
    admin.make(deployments, &deployment).await;
    let scale = format!("{deployments}/d/scale");
    let (status, answer) =
        admin.patch(&scale, "merge", &json!({ "spec": { "replicas": 3_000_000_000_i64 } })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    let (status, answer) = admin.patch(&scale, "merge", &json!({ "spec": { "replicas": 3 } })).await;
    assert_eq!((status, &answer["spec"]["replicas"]), (StatusCode::OK, &json!(3)), "{answer}");

    admin
        .make(PODS, &{
            let mut pod = pod("waiting", "", json!([]));
            pod["spec"].as_object_mut().expect("a spec").remove("nodeName");
            pod
        })
        .await;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "waiting", "labels": { "a": 1 } },
        "target": { "kind": "Node", "name": "n1" },
    });
    let (status, answer) = admin.post(&format!("{PODS}/waiting/binding"), &binding).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    admin.make(MAPS, &config_map("still-here")).await;
    fixture.stop().await;
}
