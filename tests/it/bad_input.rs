//! What is refused, in upstream's words, and that nothing of it is stored.

use kedge_tests::{Cluster, assert_has, eventually, step};

/// Manifest, and parts of the message that kubectl shows.
const REFUSED: &[(&str, &str, &[&str])] = &[
    (
        "an unknown field",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {replica: 1, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
        &[
            "Error from server (BadRequest)",
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.replica\"",
        ],
    ),
    (
        "an unknown field in a list",
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i, imagePullPolice: Never}]}}",
        &["strict decoding error: unknown field \"spec.containers[0].imagePullPolice\""],
    ),
    (
        "a wrong type",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {replicas: two, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
        &[
            "Error from server (BadRequest)",
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ],
    ),
    (
        "a map of the wrong values",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad}, data: {a: 1}}",
        &[
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ],
    ),
    (
        "missing fields",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
        &["The Deployment \"bad\" is invalid", "spec.selector: Required value"],
    ),
    (
        "no specification at all",
        "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: bad}}",
        &[
            "The ReplicaSet \"bad\" is invalid",
            "spec.selector: Required value",
            "spec.template.spec.containers: Required value",
        ],
    ),
    (
        "a network policy that would isolate nothing",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad}, spec: {podSelector: {}, policyTypes: [ingress]}}",
        &["spec.policyTypes[0]: Unsupported value: \"ingress\""],
    ),
    (
        "no containers",
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: []}}",
        &["The Pod \"bad\" is invalid: spec.containers: Required value"],
    ),
    (
        "a container without an image",
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c}]}}",
        &["spec.containers[0].image: Required value"],
    ),
    (
        "a selector that does not fit the template",
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {selector: {matchLabels: {a: x}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
        &["spec.template.metadata.labels: Invalid value: ", "`selector` does not match template `labels`"],
    ),
    (
        "a port out of range",
        "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: 99999}]}}",
        &[
            "The Service \"bad\" is invalid",
            "spec.ports[0].port: Invalid value: 99999: must be between 1 and 65535, inclusive",
        ],
    ),
    (
        "a bad name",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: Bad_Name}}",
        &[
            "metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'",
        ],
    ),
    (
        "a bad label",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad, labels: {a: 'b c'}}}",
        &["metadata.labels: Invalid value: \"b c\""],
    ),
    (
        "an unsupported value",
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {restartPolicy: Sometimes, containers: [{name: c, image: i}]}}",
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    ),
    (
        "two containers of one name",
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i}, {name: c, image: i}]}}",
        &["spec.containers[1].name: Duplicate value: \"c\""],
    ),
    (
        "a mount without its volume",
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}}",
        &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
    ),
    (
        "a quantity that is none",
        "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i, resources: {limits: {memory: lots}}}]}}",
        &["quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"],
    ),
    (
        "a kind that does not exist",
        "{apiVersion: apps/v1, kind: Deploymint, metadata: {name: bad}}",
        &[
            "resource mapping not found for name: \"bad\" namespace: \"\"",
            "no matches for kind \"Deploymint\" in version \"apps/v1\"",
            "ensure CRDs are installed first",
        ],
    ),
    (
        "a namespace that does not exist",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad, namespace: nowhere}}",
        &["Error from server (NotFound)", "namespaces \"nowhere\" not found"],
    ),
];

#[test]
fn refused_with_the_right_words() {
    let cluster = Cluster::start();
    for (what, manifest, parts) in REFUSED {
        step(what);
        let out = cluster.kubectl_with(&["apply", "-f", "-"], manifest);
        assert_ne!(out.code, 0, "{what} was accepted: {out}");
        assert_has(&out.stderr, parts);
    }

    step("nothing of it is stored");
    let left = cluster
        .kubectl(&[
            "get",
            "deployments,replicasets,pods,services,configmaps,networkpolicies",
            "-A",
            "-o",
            "name",
        ])
        .ok();
    assert!(!left.lines().any(|name| name.to_lowercase().contains("/bad")), "{left}");

    step("a field given twice");
    let proxy = cluster.proxy();
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad"},"data":{"a":"1","a":"2"}}"#;
    let path = "/api/v1/namespaces/default/configmaps?fieldValidation=Strict";
    let answer = proxy.send("POST", path, "application/json", body);
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_has(&answer.body, &["strict decoding error: duplicate field \\\"data.a\\\"", "BadRequest"]);

    step("the default of the API is to warn");
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"warned"},"datum":{}}"#;
    let answer = proxy.send("POST", "/api/v1/namespaces/default/configmaps", "application/json", body);
    assert_eq!(answer.status, 201, "{}", answer.body);
    assert_has(&answer.head.to_lowercase(), &["warning: 299", "unknown field \\\"datum\\\""]);

    step("requests that are no requests");
    for (method, path, content_type, body, status, part) in [
        ("POST", "/api/v1/namespaces/default/configmaps", "application/json", "{", 400, "BadRequest"),
        ("POST", "/api/v1/namespaces/default/configmaps", "text/plain", "x", 415, "UnsupportedMediaType"),
        (
            "PATCH",
            "/api/v1/namespaces/default/configmaps/warned",
            "application/json",
            "{}",
            415,
            "UnsupportedMediaType",
        ),
        ("PUT", "/api/v1/namespaces/default/configmaps", "application/json", "{}", 405, "MethodNotAllowed"),
        ("GET", "/api/v1/namespaces/default/configmaps?labelSelector=a%20b%20c", "", "", 400, "BadRequest"),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?fieldSelector=data.a%3Db",
            "",
            "",
            400,
            "is not a known field selector",
        ),
        ("GET", "/api/v1/namespaces/default/configmaps?limit=many", "", "", 400, "BadRequest"),
        ("GET", "/api/v1/namespaces/default/configmaps?continue=x", "", "", 400, "continue key is not valid"),
    ] {
        let answer = proxy.send(method, path, content_type, body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert_has(&answer.body, &[part]);
        let object = answer.json();
        assert_eq!((&object["kind"], &object["code"]), (&"Status".into(), &status.into()), "{}", answer.body);
    }

    step("what is not there, what is there already, what may not change");
    assert_has(
        &cluster.kubectl(&["get", "pod", "none"]).failed(1),
        &["Error from server (NotFound): pods \"none\" not found"],
    );
    cluster.kubectl(&["create", "configmap", "twice"]).ok();
    assert_has(
        &cluster.kubectl(&["create", "configmap", "twice"]).failed(1),
        &["error: failed to create configmap: configmaps \"twice\" already exists"],
    );
    cluster.kubectl(&["create", "deployment", "d", "--image=kedge.dev/hello:1.0", "--replicas=0"]).ok();
    let patch = r#"[{"op":"replace","path":"/spec/selector","value":{"matchLabels":{"x":"y"}}},{"op":"replace","path":"/spec/template/metadata/labels","value":{"x":"y"}}]"#;
    assert_has(
        &cluster.kubectl(&["patch", "deployment", "d", "--type=json", "-p", patch]).failed(1),
        &["spec.selector: Invalid value: ", "field is immutable"],
    );
    assert_has(
        &cluster.kubectl(&["patch", "deployment", "d", "-p", r#"{"spec":{"replicas":"two"}}"#]).failed(1),
        &[
            r#"The request is invalid: patch: Invalid value: "map[spec:map[replicas:two]]": unrecognized type: int32"#,
        ],
    );
    cluster.kubectl(&["create", "service", "clusterip", "s", "--tcp=80"]).ok();
    let old = cluster.get(&["service", "s"]);
    let mut stale = old;
    stale["metadata"]["resourceVersion"] = "1".into();
    let out = cluster.kubectl_with(&["replace", "-f", "-"], &stale.to_string());
    assert_has(
        &out.failed(1),
        &[
            "Error from server (Conflict)",
            "Operation cannot be fulfilled on services \"s\": the object has been modified; please apply your changes to the latest version and try again",
        ],
    );
}

#[test]
fn an_image_that_does_not_exist() {
    let cluster = Cluster::start();
    // No name server is asked and nobody listens there: the answer comes at once and offline.
    let image = "127.0.0.1:9/none/such:1";
    cluster.kubectl(&["run", "lost", &format!("--image={image}")]).ok();
    step("ErrImagePull, then ImagePullBackOff");
    assert_has(&cluster.event("Pod/lost", "Pulling"), &[&format!("Pulling image \"{image}\"")]);
    cluster.wait("pod/lost", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ImagePullBackOff");
    for part in [
        &format!("Failed to pull image \"{image}\": "),
        "Error: ErrImagePull",
        &format!("Back-off pulling image \"{image}\""),
        "Error: ImagePullBackOff",
    ] {
        // Events come a moment after what they tell of.
        eventually(&format!("an event that says {part:?}"), || {
            let events = cluster.get(&["events", "--field-selector=involvedObject.name=lost"]);
            let events = events["items"].as_array()?;
            events
                .iter()
                .find(|event| event["message"].as_str().is_some_and(|text| text.contains(part)))
                .map(drop)
        });
    }
    assert_has(&cluster.kubectl(&["get", "pod", "lost"]).ok(), &["0/1", "Pull"]);

    step("imagePullPolicy Never: ErrImageNeverPull");
    cluster
        .kubectl(&["run", "never", "--image=docker.io/library/absent:1", "--image-pull-policy=Never"])
        .ok();
    cluster
        .wait("pod/never", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull");
    assert_has(
        &cluster.event("Pod/never", "ErrImageNeverPull"),
        &["Container image \"docker.io/library/absent:1\" is not present with pull policy of Never"],
    );

    step("a name that is none: InvalidImageName");
    // `kubectl run` would refuse it itself.
    cluster.apply("{apiVersion: v1, kind: Pod, metadata: {name: invalid}, spec: {containers: [{name: c, image: UPPER/Case}]}}");
    cluster
        .wait("pod/invalid", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=InvalidImageName");

    step("a node without room: FailedScheduling says why");
    let overrides = r#"{"spec":{"containers":[{"name":"big","image":"kedge.dev/hello:1.0","resources":{"requests":{"cpu":"9999"}}}]}}"#;
    cluster.kubectl(&["run", "big", "--image=kedge.dev/hello:1.0", &format!("--overrides={overrides}")]).ok();
    assert_has(
        &cluster.event("Pod/big", "FailedScheduling"),
        &["0/1 nodes are available: 1 Insufficient cpu."],
    );
    // The scheduler writes it after the event.
    eventually("the condition", || {
        let reason = cluster.field("pod/big", ".status.conditions[?(@.type==\"PodScheduled\")].reason");
        (reason == "Unschedulable").then_some(())
    });
    cluster.kubectl(&["delete", "pod", "lost", "never", "invalid", "big", "--timeout=300s"]).ok();
}
