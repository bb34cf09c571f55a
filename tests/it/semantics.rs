//! What client libraries build on: apply, patches, selectors, chunks, watches, dry runs, finalizers,
//! owners, namespaces, custom resources.

use kedge_tests::{Cluster, Proxy, assert_has, eventually, step};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[test]
fn writing() {
    let cluster = Cluster::start();
    let proxy = cluster.proxy();

    step("server-side apply: owners of fields and their conflicts");
    let manifest = |value: &str| {
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: shared}}, data: {{k: {value}}}}}")
    };
    let apply = |manager: &str, value: &str, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", &manager, "-f", "-"];
        arguments.extend(more);
        cluster.kubectl_with(&arguments, &manifest(value))
    };
    assert_eq!(apply("one", "a", &[]).ok().trim(), "configmap/shared serverside-applied");
    apply("two", "a", &[]).ok();
    assert_has(
        &apply("two", "b", &[]).failed(1),
        &["Apply failed with 1 conflict: conflict with \"one\": .data.k", "--force-conflicts"],
    );
    assert_eq!(cluster.field("configmap/shared", ".data.k"), "a");
    apply("two", "b", &["--force-conflicts"]).ok();
    assert_eq!(cluster.field("configmap/shared", ".data.k"), "b");
    let fields =
        cluster.kubectl(&["get", "configmap", "shared", "--show-managed-fields", "-o", "json"]).json();
    let managers: Vec<&str> = fields["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["fieldsV1"]["f:data"]["f:k"].is_object())
        .map(|entry| entry["manager"].as_str().unwrap())
        .collect();
    assert_eq!(managers, ["two"]);
    let dropped = cluster.kubectl_with(
        &["apply", "--server-side", "--field-manager=two", "-f", "-"],
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: shared}}",
    );
    dropped.ok();
    assert_eq!(
        cluster.field("configmap/shared", ".data.k"),
        "",
        "a field nobody applies any more is removed"
    );

    step("client-side apply removes what the manifest no longer has");
    cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: classic}, data: {a: '1', b: '2'}}");
    cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: classic}, data: {a: '1'}}");
    assert_eq!(cluster.get(&["configmap", "classic"])["data"], json!({ "a": "1" }));

    step("three kinds of patches");
    cluster.kubectl(&["create", "deployment", "d", "--image=kedge.dev/hello:1.0", "--replicas=0"]).ok();
    let patch =
        |kind: &str, patch: &str| cluster.kubectl(&["patch", "deployment", "d", "--type", kind, "-p", patch]);
    patch("strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"x"}]}}}}"#).ok();
    let names = || cluster.field("deployment/d", ".spec.template.spec.containers[*].name");
    assert_eq!(names(), "side hello", "a strategic merge keeps the other container");
    patch(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"$patch":"delete","name":"side"}]}}}}"#,
    )
    .ok();
    assert_eq!(names(), "hello");
    patch("merge", r#"{"spec":{"template":{"spec":{"containers":[{"name":"only","image":"y"}]}}}}"#).ok();
    assert_eq!(names(), "only", "a merge patch replaces a list");
    patch("merge", r#"{"metadata":{"labels":{"app":null,"new":"1"}}}"#).ok();
    assert_eq!(cluster.get(&["deployment", "d"])["metadata"]["labels"], json!({ "new": "1" }));
    patch("json", r#"[{"op":"test","path":"/spec/replicas","value":0},{"op":"add","path":"/metadata/labels/a~1b","value":"c"}]"#).ok();
    assert_eq!(cluster.get(&["deployment", "d"])["metadata"]["labels"]["a/b"], "c");
    let refused = patch("json", r#"[{"op":"test","path":"/spec/replicas","value":5}]"#);
    assert_has(&refused.failed(1), &["the server rejected our request due to an error in our request"]);

    step("generation counts changes of the spec only");
    let generation = || cluster.field("deployment/d", ".metadata.generation").parse::<u64>().unwrap();
    let before = generation();
    cluster.kubectl(&["label", "deployment", "d", "x=y"]).ok();
    assert_eq!(generation(), before);
    cluster.kubectl(&["scale", "deployment", "d", "--replicas=1"]).ok();
    assert_eq!(generation(), before + 1);
    cluster.kubectl(&["delete", "deployment", "d"]).ok();

    step("a dry run stores nothing");
    let out = cluster.kubectl_with(
        &["apply", "--dry-run=server", "-f", "-"],
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: dry}}",
    );
    assert_eq!(out.ok().trim(), "configmap/dry created (server dry run)");
    assert_has(&cluster.kubectl(&["get", "configmap", "dry"]).failed(1), &["not found"]);
    let diff = cluster.kubectl_with(
        &["diff", "-f", "-"],
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: classic}, data: {a: changed}}",
    );
    assert_eq!(diff.code, 1, "{diff}");
    assert_has(&diff.stdout, &["-  a: \"1\"", "+  a: changed"]);

    step("names from a prefix");
    let body = r#"{"metadata":{"generateName":"made-"}}"#;
    let (one, two) = (
        proxy.send("POST", MAPS, "application/json", body),
        proxy.send("POST", MAPS, "application/json", body),
    );
    let (one, two) = (one.json()["metadata"]["name"].clone(), two.json()["metadata"]["name"].clone());
    assert!(one.as_str().unwrap().starts_with("made-") && one != two, "{one} {two}");

    step("update with the wrong revision, delete with the wrong uid");
    let mut object = proxy.get(&format!("{MAPS}/classic")).json();
    object["data"]["a"] = "2".into();
    let path = format!("{MAPS}/classic");
    assert_eq!(proxy.send("PUT", &path, "application/json", &object.to_string()).status, 200);
    let answer = proxy.send("PUT", &path, "application/json", &object.to_string());
    assert_eq!((answer.status, &answer.json()["reason"]), (409, &"Conflict".into()));
    let body = r#"{"preconditions":{"uid":"another"}}"#;
    assert_eq!(proxy.send("DELETE", &path, "application/json", body).status, 409);

    step("a finalizer holds an object until it is taken away");
    cluster
        .apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.com/hold]}}");
    cluster.kubectl(&["delete", "configmap", "held", "--wait=false"]).ok();
    assert!(!cluster.field("configmap/held", ".metadata.deletionTimestamp").is_empty());
    cluster
        .kubectl(&["patch", "configmap", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])
        .ok();
    cluster.wait("configmap/held", "delete");

    step("delete a collection");
    for index in 0..5 {
        cluster.kubectl(&["create", "configmap", &format!("many-{index}")]).ok();
        cluster.kubectl(&["label", "configmap", &format!("many-{index}"), "group=many"]).ok();
    }
    assert_eq!(
        proxy.send("DELETE", &format!("{MAPS}?labelSelector=group%3Dmany"), "application/json", "").status,
        200
    );
    assert!(cluster.get(&["configmaps", "-l", "group=many"])["items"].as_array().unwrap().is_empty());

    step("protobuf is answered with JSON when both are accepted");
    let answer = proxy.send_with(
        "GET",
        &path,
        &[("Accept", "application/vnd.kubernetes.protobuf,application/json")],
        "",
    );
    assert_eq!(answer.status, 200);
}

#[test]
fn reading() {
    let cluster = Cluster::start();
    let proxy = cluster.proxy();
    for index in 0..25 {
        let body = json!({ "metadata": { "name": format!("m-{index:02}"), "labels": { "parity": if index % 2 == 0 { "even" } else { "odd" }, "all": "yes" } } });
        assert_eq!(proxy.send("POST", MAPS, "application/json", &body.to_string()).status, 201);
    }

    step("label and field selectors");
    for (selector, count) in [
        ("parity=even", 13),
        ("parity!=even,all", 12),
        ("parity in (even,odd)", 25),
        ("parity notin (even),all=yes", 12),
        ("!parity,all", 0),
    ] {
        let list = cluster.get(&["configmaps", "-l", selector]);
        assert_eq!(list["items"].as_array().unwrap().len(), count, "{selector}");
    }
    let list = cluster.get(&["configmaps", "--field-selector=metadata.name=m-07"]);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);

    step("the components say how they are");
    let list = cluster.get(&["componentstatuses"]);
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{list}");
    assert!(items.iter().all(|item| item["conditions"][0]["status"] == "True"), "{list}");

    step("a list in chunks is one point in time");
    let (mut names, mut next, mut revisions) = (Vec::new(), String::new(), Vec::new());
    loop {
        let path = format!("{MAPS}?limit=10&labelSelector=all%3Dyes&continue={next}");
        let page = proxy.get(&path).json();
        for item in page["items"].as_array().unwrap() {
            names.push(item["metadata"]["name"].as_str().unwrap().to_owned());
        }
        revisions.push(page["metadata"]["resourceVersion"].clone());
        // Written between two chunks: it belongs to neither.
        proxy.send(
            "POST",
            MAPS,
            "application/json",
            &json!({ "metadata": { "name": format!("n-{}", names.len()), "labels": { "all": "yes" } } })
                .to_string(),
        );
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => next = token.to_owned(),
            _ => break,
        }
    }
    let expected: Vec<String> = (0..25).map(|index| format!("m-{index:02}")).collect();
    assert_eq!(names, expected);
    revisions.dedup();
    assert_eq!(revisions.len(), 1, "the chunks are of different revisions");
    let page = proxy.get(&format!("{MAPS}?limit=10")).json();
    assert!(
        page["metadata"]["remainingItemCount"].as_u64().is_some_and(|left| left > 10),
        "{}",
        page["metadata"]
    );

    step("a watch from a list's revision shows what came after, in order");
    let revision = proxy.get(MAPS).json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    proxy.send("PATCH", &format!("{MAPS}/m-00"), "application/merge-patch+json", r#"{"data":{"x":"1"}}"#);
    proxy.send(
        "PATCH",
        &format!("{MAPS}/m-00"),
        "application/merge-patch+json",
        r#"{"metadata":{"labels":{"parity":"odd"}}}"#,
    );
    proxy.send("DELETE", &format!("{MAPS}/m-02"), "application/json", "");
    let watch = |query: &str| proxy.get(&format!("{MAPS}?watch=1&timeoutSeconds=2&{query}")).events();
    let seen = |events: &[Value]| -> Vec<String> {
        events
            .iter()
            .filter(|event| event["type"] != "BOOKMARK")
            .map(|event| {
                format!(
                    "{} {}",
                    event["type"].as_str().unwrap(),
                    event["object"]["metadata"]["name"].as_str().unwrap()
                )
            })
            .collect()
    };
    assert_eq!(
        seen(&watch(&format!("resourceVersion={revision}"))),
        ["MODIFIED m-00", "MODIFIED m-00", "DELETED m-02"]
    );
    // Under a selector, an object that no longer fits is deleted.
    assert_eq!(
        seen(&watch(&format!("resourceVersion={revision}&labelSelector=parity%3Deven"))),
        ["MODIFIED m-00", "DELETED m-00", "DELETED m-02"]
    );
    assert_eq!(
        seen(&watch(&format!("resourceVersion={revision}&labelSelector=parity%3Dodd,all%3Dyes"))),
        ["ADDED m-00"]
    );

    step("initial events and the bookmark that ends them");
    let events = watch(
        "allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&labelSelector=parity",
    );
    let end = events.iter().position(|event| event["type"] == "BOOKMARK").expect("a bookmark");
    assert_eq!(end, 24, "the objects come first");
    assert!(events[..end].iter().all(|event| event["type"] == "ADDED"));
    assert_eq!(events[end]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(
        events[end]["object"]["metadata"]["resourceVersion"]
            .as_str()
            .is_some_and(|version| !version.is_empty())
    );
    let answer = proxy.get(&format!("{MAPS}?watch=1&sendInitialEvents=true&timeoutSeconds=1"));
    assert_eq!(answer.status, 422, "sendInitialEvents without resourceVersionMatch: {}", answer.body);

    step("revisions that cannot be served");
    let answer = proxy.get(&format!("{MAPS}?watch=1&resourceVersion=many"));
    assert_eq!(answer.status, 400, "{}", answer.body);
    let answer = proxy.get(&format!("{MAPS}?resourceVersion=99999999999&resourceVersionMatch=NotOlderThan"));
    assert_eq!(answer.status, 504, "a revision of the future: {}", answer.body);
    assert_has(&answer.body, &["Too large resource version"]);

    step("tables and partial metadata");
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = proxy.send_with("GET", MAPS, &[("Accept", accept)], "").json();
    assert_eq!(table["kind"], "Table");
    let columns: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = proxy.send_with("GET", MAPS, &[("Accept", accept)], "").json();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0]["data"].is_null());

    step("protobuf for clients that accept nothing else");
    let only = "application/vnd.kubernetes.protobuf";
    let ask = |path: &str, accept: &str| proxy.send_with("GET", path, &[("Accept", accept)], "");
    let list = ask(MAPS, only);
    assert_has(&list.head.to_lowercase(), &["200", "content-type: application/vnd.kubernetes.protobuf"]);
    assert!(list.body.starts_with("k8s\0") && list.body.contains("ConfigMapList"), "{:?}", list.body);
    let events = ask(&format!("{MAPS}?watch=1&timeoutSeconds=1"), only);
    assert_has(
        &events.head.to_lowercase(),
        &["content-type: application/vnd.kubernetes.protobuf;stream=watch"],
    );
    assert!(events.body.contains("ADDED") && events.body.contains("k8s\0"), "{:?}", events.body);
    let missing = ask(&format!("{MAPS}/none"), only);
    assert_eq!(missing.status, 404);
    assert!(missing.body.starts_with("k8s\0") && missing.body.contains("NotFound"), "{:?}", missing.body);
    assert_eq!(ask(MAPS, &format!("{only};as=Table;g=meta.k8s.io;v=v1")).status, 406);
    assert_eq!(
        ask(MAPS, "application/vnd.kubernetes.protobuf,application/json").json()["kind"],
        "ConfigMapList"
    );
}

#[test]
fn owners_and_namespaces() {
    let cluster = Cluster::start();
    let proxy = cluster.proxy();
    let new = |name: &str| {
        cluster.kubectl(&["create", "deployment", name, "--image=kedge.dev/hello:1.0"]).ok();
        cluster.rolled_out(&format!("deployment/{name}"));
        let sets = cluster.get(&["replicasets", "-l", &format!("app={name}")]);
        sets["items"][0]["metadata"]["name"].as_str().unwrap().to_owned()
    };
    let gone = |name: &str| {
        eventually(&format!("what {name} owned to go"), || {
            let left = cluster.get(&["replicasets,pods", "-l", &format!("app={name}")]);
            left["items"].as_array().unwrap().is_empty().then_some(())
        });
    };

    step("background: the owner first");
    new("behind");
    cluster.kubectl(&["delete", "deployment", "behind", "--cascade=background"]).ok();
    gone("behind");

    step("foreground: the owned first");
    new("front");
    cluster.kubectl(&["delete", "deployment", "front", "--cascade=foreground", "--timeout=300s"]).ok();
    let left = cluster.get(&["replicasets,pods", "-l", "app=front"]);
    assert!(left["items"].as_array().unwrap().is_empty(), "{left}");

    step("orphan: the owned stay, without an owner, and a new owner adopts them");
    let set = new("alone");
    let pods = cluster.kubectl(&["get", "pods", "-l", "app=alone", "-o", "name"]).ok();
    cluster.kubectl(&["delete", "deployment", "alone", "--cascade=orphan"]).ok();
    eventually("the owner reference to go", || {
        cluster.field(&format!("replicaset/{set}"), ".metadata.ownerReferences").is_empty().then_some(())
    });
    cluster.kubectl(&["create", "deployment", "alone", "--image=kedge.dev/hello:1.0"]).ok();
    cluster.rolled_out("deployment/alone");
    assert_eq!(cluster.field(&format!("replicaset/{set}"), ".metadata.ownerReferences[0].name"), "alone");
    assert_eq!(cluster.kubectl(&["get", "pods", "-l", "app=alone", "-o", "name"]).ok(), pods);

    step("a pod that is deleted comes again");
    cluster.kubectl(&["delete", pods.trim(), "--timeout=300s"]).ok();
    cluster.rolled_out("deployment/alone");
    assert_ne!(cluster.kubectl(&["get", "pods", "-l", "app=alone", "-o", "name"]).ok(), pods);

    step("an owner that does not exist: the object goes");
    cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: lost, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: nobody, uid: 00000000-0000-0000-0000-000000000000}]}}");
    cluster.wait("configmap/lost", "delete");

    step("a namespace goes with all that is in it");
    cluster.kubectl(&["create", "namespace", "team"]).ok();
    eventually("the service account", || {
        (cluster.kubectl(&["get", "serviceaccount", "default", "-n", "team"]).code == 0).then_some(())
    });
    cluster.kubectl(&["create", "deployment", "web", "--image=kedge.dev/hello:1.0", "-n", "team"]).ok();
    cluster.kubectl(&["create", "configmap", "c", "-n", "team"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "-n", "team", "--timeout=300s"]).ok();
    cluster.kubectl(&["delete", "namespace", "team", "--wait=false"]).ok();
    let refused = cluster.kubectl(&["create", "configmap", "late", "-n", "team"]);
    if refused.code != 0 {
        // Unless it is gone already.
        assert!(
            refused.stderr.contains("because it is being terminated") || refused.stderr.contains("not found"),
            "{refused}"
        );
    }
    cluster.wait("namespace/team", "delete");
    cluster.kubectl(&["create", "namespace", "team"]).ok();
    let left = cluster.kubectl(&["get", "deployments,pods,services", "-n", "team", "-o", "name"]).ok();
    assert_eq!(left, "", "the new namespace is empty");
    assert_has(
        &cluster.kubectl(&["delete", "namespace", "kube-system"]).failed(1),
        &["Forbidden", "this namespace may not be deleted"],
    );

    step("endpoints of a Service without a selector are the user's");
    cluster.apply("{apiVersion: v1, kind: Service, metadata: {name: outside}, spec: {ports: [{port: 80}]}}");
    cluster.apply("{apiVersion: v1, kind: Endpoints, metadata: {name: outside}, subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 80}]}]}");
    eventually("the mirrored slice or the user's endpoints", || {
        (cluster.field("endpoints/outside", ".subsets[0].addresses[0].ip") == "192.0.2.1").then_some(())
    });
    cluster_ips(&cluster, &proxy);
}

/// A cluster IP is given once.
fn cluster_ips(cluster: &Cluster, proxy: &Proxy) {
    step("a cluster IP is given once, and comes back");
    let ip = cluster.field("service/outside", ".spec.clusterIP");
    let body =
        json!({ "metadata": { "name": "thief" }, "spec": { "clusterIP": ip, "ports": [{ "port": 80 }] } });
    let path = "/api/v1/namespaces/default/services";
    let answer = proxy.send("POST", path, "application/json", &body.to_string());
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert_has(&answer.body, &["failed to allocate IP", "provided IP is already allocated"]);
    cluster.kubectl(&["delete", "service", "outside"]).ok();
    let answer = proxy.send("POST", path, "application/json", &body.to_string());
    assert_eq!(answer.status, 201, "{}", answer.body);
}
