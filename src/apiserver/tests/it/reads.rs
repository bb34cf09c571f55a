//! GET, LIST, WATCH, tables, discovery.

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use kedge_apiserver::User;
use serde_json::{Value, json};

use crate::fixture::{Fixture, MAPS, config_map};

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_list_is_of_one_revision() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    for index in 0..7 {
        client.make(MAPS, &config_map(&format!("m{index}"))).await;
    }
    let (_, first) = client.get(&format!("{MAPS}?limit=3")).await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().expect("items");
        items.iter().map(|item| item["metadata"]["name"].as_str().expect("name").to_owned()).collect()
    };
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    client.delete(&format!("{MAPS}/m5"), &Value::Null).await;
    client.make(MAPS, &config_map("m9")).await;
    let mut all = names(&first);
    let mut next = first["metadata"]["continue"].as_str().expect("continue").to_owned();
    loop {
        let (status, page) = client.get(&format!("{MAPS}?limit=3&continue={next}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        all.extend(names(&page));
        match page["metadata"]["continue"].as_str() {
            Some(token) => next = token.to_owned(),
            None => break,
        }
    }
    assert_eq!(all, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"], "what changed meanwhile is not seen");
    let (status, bad) = client.get(&format!("{MAPS}?limit=3&continue=nonsense")).await;
    assert_eq!((status, &bad["reason"]), (StatusCode::BAD_REQUEST, &"BadRequest".into()));
    fixture.stop().await;
}

/// "chunking ... should support continue listing from the last key if the original version has been compacted
/// away, though the list is inconsistent".
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_list_goes_on_as_of_now() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    for index in 0..6 {
        client.make(MAPS, &config_map(&format!("m{index}"))).await;
    }
    let (_, first) = client.get(&format!("{MAPS}?limit=2")).await;
    let token = first["metadata"]["continue"].as_str().expect("continue").to_owned();
    client.delete(&format!("{MAPS}/m3"), &Value::Null).await;
    // Lists that began later take the place of this one.
    for index in 0..40 {
        client.make(MAPS, &config_map(&format!("z{index}"))).await;
        client.get(&format!("{MAPS}?limit=1")).await;
    }
    let (status, expired) = client.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((status, &expired["reason"]), (StatusCode::GONE, &"Expired".into()), "{expired}");
    let next = expired["metadata"]["continue"].as_str().expect("a token to go on with").to_owned();
    let (status, page) = client.get(&format!("{MAPS}?limit=2&continue={next}")).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert_ne!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let names: Vec<&Value> =
        page["items"].as_array().expect("items").iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["m2", "m4"], "it goes on where it was, with what there is now");
    // From here on the list is of one revision again.
    client.delete(&format!("{MAPS}/m5"), &Value::Null).await;
    let next = page["metadata"]["continue"].as_str().expect("continue");
    let (_, last) = client.get(&format!("{MAPS}?limit=1&continue={next}")).await;
    assert_eq!(last["items"][0]["metadata"]["name"], "m5", "{last}");
    assert_eq!(last["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
    fixture.stop().await;
}

/// Read-only, deprecated, and still what people look at first.
#[tokio::test(flavor = "multi_thread")]
async fn component_statuses() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let (status, list) = client.get("/api/v1/componentstatuses").await;
    assert_eq!((status, &list["kind"]), (StatusCode::OK, &"ComponentStatusList".into()), "{list}");
    let items = list["items"].as_array().expect("items");
    let names: Vec<&Value> = items.iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["scheduler", "controller-manager", "etcd-0"]);
    let etcd = &items[2]["conditions"][0];
    assert_eq!(
        (&etcd["type"], &etcd["status"], &etcd["message"]),
        (&"Healthy".into(), &"True".into(), &"ok".into())
    );
    // Nobody has said of the others that they run: this is an API server alone.
    assert_eq!(items[0]["conditions"][0]["status"], "False");
    fixture
        .server
        .components(|name| if name == "scheduler" { Ok(()) } else { Err("it is stopped".to_owned()) });
    let (_, one) = client.get("/api/v1/componentstatuses/scheduler").await;
    assert_eq!(
        (&one["kind"], &one["conditions"][0]["status"]),
        (&"ComponentStatus".into(), &"True".into()),
        "{one}"
    );
    let (_, one) = client.get("/api/v1/componentstatuses/controller-manager").await;
    assert_eq!(one["conditions"][0]["error"], "it is stopped");
    assert_eq!(client.get("/api/v1/componentstatuses/nothing").await.0, StatusCode::NOT_FOUND);
    let (status, _) = client.post("/api/v1/componentstatuses", &one).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = client.raw(Method::GET, "/api/v1/componentstatuses", &accept, Vec::new()).await;
    assert!(table.headers()["warning"].to_str().expect("text").contains("deprecated"));
    let table = table.into_body().collect().await.expect("body").to_bytes();
    let table: Value = serde_json::from_slice(&table).expect("JSON");
    assert_eq!(table["rows"][2]["cells"], serde_json::json!(["etcd-0", "Healthy", "ok", ""]), "{table}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_every_change_once_and_in_order() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client.make(MAPS, &config_map("before")).await;
    let path = "/api/v1/namespaces/default/configmaps?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut streaming = client.watch(path).await;
    assert_eq!(streaming.next_short().await, ("ADDED".into(), "before".into()));
    let bookmark = streaming.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let version = bookmark["object"]["metadata"]["resourceVersion"].as_str().expect("version").to_owned();

    let mut selective =
        client.watch(&format!("{MAPS}?watch=1&labelSelector=app%3Dweb&resourceVersion={version}")).await;
    client.make(MAPS, &config_map("a")).await;
    let set = |value: Value| serde_json::json!({ "metadata": { "labels": { "app": value } } });
    client.patch(&format!("{MAPS}/a"), "merge", &set("web".into())).await;
    client.patch(&format!("{MAPS}/a"), "merge", &set("db".into())).await;
    client.delete(&format!("{MAPS}/a"), &Value::Null).await;
    for expected in ["ADDED", "MODIFIED", "MODIFIED", "DELETED"] {
        assert_eq!(streaming.next_short().await, (expected.into(), "a".into()));
    }
    // Entering and leaving the selection look like creation and deletion.
    assert_eq!(selective.next_short().await, ("ADDED".into(), "a".into()));
    assert_eq!(selective.next_short().await, ("DELETED".into(), "a".into()));

    let mut resumed = client.watch(&format!("{MAPS}?watch=1&resourceVersion={version}")).await;
    assert_eq!(resumed.next_short().await, ("ADDED".into(), "a".into()));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_is_too_old_is_told_by_an_event() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let first = client.make(MAPS, &config_map("first")).await;
    let version = first["metadata"]["resourceVersion"].as_str().expect("version").to_owned();
    // More than the history keeps.
    for name in ["a", "b", "c", "d", "e", "f"] {
        let mut large = config_map(name);
        large["data"] = serde_json::json!({ "text": "x".repeat(900_000) });
        client.make(MAPS, &large).await;
    }
    // Not by an answer of 410: watchers come back with the same revision after that, for ever.
    let mut watch = client.watch(&format!("{MAPS}?watch=1&resourceVersion={version}")).await;
    let event = watch.next().await.expect("an event");
    assert_eq!(event["type"], "ERROR");
    assert_eq!((&event["object"]["code"], &event["object"]["reason"]), (&410.into(), &"Expired".into()));
    assert_eq!(watch.next().await, None, "the watch ends");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_may_not_read_is_forbidden_in_upstreams_words() {
    let fixture = Fixture::start().await;
    let nobody = fixture.user(User::new("jane", ["dev".to_owned()]));
    let (status, answer) = nobody.get("/api/v1/namespaces/default/secrets/x").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        answer["message"],
        "secrets \"x\" is forbidden: User \"jane\" cannot get resource \"secrets\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(nobody.get("/apis").await.0, StatusCode::OK, "system:discovery is for everybody");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_gets_tables_and_unknown_paths_are_404() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client.make(MAPS, &config_map("shown")).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let response = client
        .raw(
            Method::GET,
            &format!("{MAPS}?fieldSelector=metadata.name%3Dshown"),
            &[("accept", accept)],
            Vec::new(),
        )
        .await;
    let table: Value =
        serde_json::from_slice(&response.into_body().collect().await.expect("body").to_bytes())
            .expect("JSON");
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "shown");
    assert_eq!(table["rows"][0]["cells"][1], 1, "a ConfigMap's second column counts its data");
    assert_eq!(client.get("/apis/none/v1/things").await.0, StatusCode::NOT_FOUND);
    assert_eq!(client.get("/api/v1/nodes/none").await.1["message"], "nodes \"none\" not found");
    let (status, answer) = client.get("/api/v1/pods?fieldSelector=spec.nothing%3Dx").await;
    assert_eq!(
        (status, &answer["message"]),
        (StatusCode::BAD_REQUEST, &"field label not supported: spec.nothing".into())
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_v2_comes_as_json_and_as_protobuf_and_only_once() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    for (asked, answered, first) in [
        ("application/json", "application/json", &b"{"[..]),
        (
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            // Field 1, a text of three bytes.
            &b"\x0a\x032.0"[..],
        ),
    ] {
        let get = |more: Vec<(&'static str, String)>| {
            let client = client.clone();
            async move {
                let mut headers = vec![("accept", asked)];
                headers.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
                let response = client.raw(Method::GET, "/openapi/v2", &headers, Vec::new()).await;
                let (parts, body) = response.into_parts();
                (parts, body.collect().await.expect("body").to_bytes())
            }
        };
        let (parts, plain) = get(Vec::new()).await;
        assert_eq!(
            (parts.status, &parts.headers["content-type"]),
            (StatusCode::OK, &answered.parse().expect("header"))
        );
        assert!(plain.starts_with(first), "{asked}");
        assert!(parts.headers.contains_key("last-modified"));
        let etag = parts.headers["etag"].to_str().expect("text").to_owned();
        let (parts, packed) = get(vec![("accept-encoding", "gzip".to_owned())]).await;
        assert_eq!(parts.headers["content-encoding"], "gzip");
        assert_eq!(parts.headers["etag"], etag.as_str());
        assert!(packed.starts_with(b"\x1f\x8b") && packed.len() * 4 < plain.len());
        let (parts, nothing) = get(vec![("if-none-match", etag)]).await;
        assert_eq!((parts.status, nothing.len()), (StatusCode::NOT_MODIFIED, 0));
    }
    let refused = client.raw(Method::GET, "/openapi/v2", &[("accept", "text/html")], Vec::new()).await;
    assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_into_a_pod_need_create_and_an_upgrade() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "reader" },
        "rules": [{ "apiGroups": [""], "resources": ["*"], "verbs": ["get", "list"] }],
    });
    admin.make("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "jane" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane" }],
    });
    admin.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let jane = fixture.user(User::new("jane", []));
    for stream in ["exec", "attach", "portforward"] {
        let path = format!("/api/v1/namespaces/default/pods/p/{stream}");
        let (status, answer) = jane.get(&path).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_eq!(
            answer["message"],
            format!(
                "pods \"p\" is forbidden: User \"jane\" cannot create resource \"pods/{stream}\" in API group \"\" in the namespace \"default\""
            )
        );
        let (status, answer) = admin.get(&path).await;
        assert_eq!(
            (status, &answer["message"]),
            (StatusCode::BAD_REQUEST, &"Upgrade request required".into())
        );
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_of_the_future_is_waited_for_and_then_refused() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let made = client.make(MAPS, &config_map("a")).await;
    let now: u64 = made["metadata"]["resourceVersion"].as_str().expect("version").parse().expect("number");

    // What is there soon enough is served.
    let soon = now + 3;
    let path = format!("{MAPS}?resourceVersion={soon}&resourceVersionMatch=NotOlderThan");
    let writes = async {
        for name in ["b", "c", "d", "e"] {
            client.make(MAPS, &config_map(name)).await;
        }
    };
    let (listed, ()) = futures::join!(client.get(&path), writes);
    assert_eq!(listed.0, StatusCode::OK, "{}", listed.1);
    let version = listed.1["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
    assert!(version >= Some(soon), "{}", listed.1);

    // Each of the three by which client-go's reflectors know it.
    let never = now + 1_000_000;
    let streaming = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion={never}"
    );
    let paths =
        [format!("{MAPS}?resourceVersion={never}"), format!("{MAPS}/a?resourceVersion={never}"), streaming];
    for (status, body) in futures::future::join_all(paths.iter().map(|path| client.get(path))).await {
        assert_eq!((status, &body["reason"]), (StatusCode::GATEWAY_TIMEOUT, &"Timeout".into()), "{body}");
        assert_eq!(body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge", "{body}");
        assert_eq!(body["details"]["retryAfterSeconds"], 1, "{body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.starts_with(&format!("Timeout: Too large resource version: {never}, current: ")));
    }

    // kube-runtime begins anew on an event of 410 only, client-go on that as well.
    let mut watch = client.watch(&format!("{MAPS}?watch=1&resourceVersion={never}")).await;
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["code"]), (&"ERROR".into(), &410.into()), "{event}");
    assert_eq!(event["object"]["reason"], "Expired", "{event}");
    assert!(watch.next().await.is_none(), "the watch ends");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_of_the_api_comes_back() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    let service = "/api/v1/namespaces/default/services/kubernetes";
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let there = async |path: &str| loop {
        let (status, found) = client.get(path).await;
        if status == StatusCode::OK {
            return found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let before = there(service).await;
    there(slice).await;
    for path in [service, slice] {
        let (status, answer) = client.delete(path, &serde_json::json!({})).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let after = there(service).await;
    assert_eq!(after["spec"]["clusterIP"], before["spec"]["clusterIP"]);
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(there(slice).await["endpoints"][0]["addresses"][0], "192.0.2.1");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_exactly_one_revision_is_that_or_none() {
    let fixture = Fixture::start().await;
    let client = fixture.admin();
    client.make(MAPS, &config_map("a")).await;
    let exactly = async |version: &str| {
        client.get(&format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={version}")).await
    };
    let (_, list) = client.get(MAPS).await;
    let version = list["metadata"]["resourceVersion"].as_str().expect("version").to_owned();
    let (status, same) = exactly(&version).await;
    assert_eq!((status, &same), (StatusCode::OK, &list));
    client.make(MAPS, &config_map("b")).await;
    let (status, answer) = exactly(&version).await;
    assert_eq!((status, &answer["reason"]), (StatusCode::GONE, &"Expired".into()), "{answer}");
    assert_eq!(exactly("0").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    fixture.stop().await;
}
