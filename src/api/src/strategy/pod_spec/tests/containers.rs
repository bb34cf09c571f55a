//! Containers: environment, probes, hooks, ports, restart rules.

use super::*;

fn env(variable: Value) -> Value {
    container(json!({ "env": [variable] }))
}

fn field(path: &str) -> Value {
    env(json!({"name": "a", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}))
}

const ENV: &str = "spec.containers[0].env[0]";

#[test]
fn environment() {
    let from = |from: Value| env(json!({"name": "a", "valueFrom": from}));
    let resource = |of: Value| from(json!({ "resourceFieldRef": of }));
    refuses_under(
        ENV,
        vec![
            (env(json!({})), vec![".name: Required value"]),
            (
                env(json!({"name": "a=b"})),
                vec![
                    r#".name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='"#,
                ],
            ),
            (
                from(json!({})),
                vec![
                    r#".valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"#,
                ],
            ),
            (
                field("spec.bogus"),
                vec![
                    r#".valueFrom.fieldRef.fieldPath: Invalid value: "spec.bogus": error converting fieldPath: field label not supported: spec.bogus"#,
                ],
            ),
            (field(""), vec![".valueFrom.fieldRef.fieldPath: Required value"]),
            (
                field("metadata.labels"),
                vec![
                    r#".valueFrom.fieldRef.fieldPath: Unsupported value: "metadata.labels": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs""#,
                ],
            ),
            (
                field("metadata.name['a']"),
                vec![
                    r#".valueFrom.fieldRef.fieldPath: Invalid value: "metadata.name['a']": error converting fieldPath: field label does not support subscript: metadata.name['a']"#,
                ],
            ),
            (
                resource(json!({"resource": "limits.gpu"})),
                vec![
                    r#".valueFrom.resourceFieldRef.resource: Unsupported value: "limits.gpu": supported values: "limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory""#,
                ],
            ),
            (
                resource(json!({"resource": "limits.cpu", "divisor": "2"})),
                vec![
                    r#".valueFrom.resourceFieldRef.divisor: Invalid value: "limits.cpu": only divisor's values 1m and 1 are supported with the cpu resource"#,
                ],
            ),
            (
                from(json!({"configMapKeyRef": {"key": "k"}})),
                vec![
                    r#".valueFrom.configMapKeyRef.name: Invalid value: "": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#,
                ],
            ),
            (
                from(json!({"secretKeyRef": {"name": "s"}})),
                vec![".valueFrom.secretKeyRef.key: Required value"],
            ),
            (
                from(
                    json!({"secretKeyRef": {"name": "s", "key": "k"}, "fieldRef": {"fieldPath": "metadata.name"}}),
                ),
                vec![
                    r#".valueFrom: Invalid value: "": may not have more than one field specified at a time"#,
                ],
            ),
            (
                env(
                    json!({"name": "a", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
                ),
                vec![r#".valueFrom: Invalid value: "": may not be specified when `value` is not empty"#],
            ),
            (
                from(json!({"fileKeyRef": {"volumeName": "v", "path": "a/../b", "key": "k"}})),
                vec![
                    r#".valueFrom.fileKeyRef.path: Invalid value: "a/../b": must not contain '..'"#,
                    r#".valueFrom.fileKeyRef.volumeName: Not found: "v""#,
                ],
            ),
        ],
    );
    let sources = |sources: Value| container(json!({ "envFrom": sources }));
    refuses_under(
        "spec.containers[0].envFrom",
        vec![
            (
                sources(json!([{}])),
                vec![r#": Invalid value: "": must specify one of: `configMapRef` or `secretRef`"#],
            ),
            (
                sources(json!([{"configMapRef": {"name": "c"}, "secretRef": {"name": "s"}}])),
                vec![r#": Invalid value: "": may not have more than one field specified at a time"#],
            ),
            (sources(json!([{"configMapRef": {}}])), vec!["[0].configMapRef.name: Required value"]),
            (
                sources(json!([{"prefix": "a=", "secretRef": {"name": "s"}}])),
                vec![
                    r#"[0].prefix: Invalid value: "a=": a valid environment variable name must consist only of printable ASCII characters other than '='"#,
                ],
            ),
        ],
    );
    accepts([
        field("metadata.annotations['example.com/a']"),
        field("status.hostIPs"),
        field("spec.host"),
        resource(json!({"resource": "requests.hugepages-2Mi", "divisor": "1Mi"})),
        env(json!({"name": "0.a-b c", "value": "$(x)"})),
        sources(
            json!([{"prefix": "p_", "configMapRef": {"name": "c.d"}}, {"secretRef": {"name": "s", "optional": true}}]),
        ),
    ]);
}

#[test]
fn probes() {
    let probe = |kind: &str, probe: Value| container(json!({ kind: probe }));
    let live = |of: Value| probe("livenessProbe", of);
    refuses_under(
        "spec.containers[0].livenessProbe",
        vec![
            (live(json!({})), vec![": Required value: must specify a handler type"]),
            (
                live(json!({"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}})),
                vec![".tcpSocket: Forbidden: may not specify more than 1 handler type"],
            ),
            (live(json!({"exec": {}})), vec![".exec.command: Required value"]),
            (
                live(json!({"tcpSocket": {}})),
                vec![".tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
            (
                live(json!({"grpc": {"port": 70000}})),
                vec![".grpc.port: Invalid value: 70000: must be between 1 and 65535, inclusive"],
            ),
            (
                live(json!({"httpGet": {"port": "80"}})),
                vec![r#".httpGet.port: Invalid value: "80": must contain at least one letter (a-z)"#],
            ),
            (
                live(
                    json!({"httpGet": {"port": 80, "path": "", "scheme": "FTP", "httpHeaders": [{"name": "a b"}]}}),
                ),
                vec![
                    ".httpGet.path: Required value",
                    r#".httpGet.scheme: Unsupported value: "FTP": supported values: "HTTP", "HTTPS""#,
                    r#".httpGet.httpHeaders: Invalid value: "a b": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')"#,
                ],
            ),
            (
                live(
                    json!({"exec": {"command": ["a"]}, "successThreshold": 2, "periodSeconds": -1, "terminationGracePeriodSeconds": 0}),
                ),
                vec![
                    ".periodSeconds: Invalid value: -1: must be greater than or equal to 0",
                    ".terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0",
                    ".successThreshold: Invalid value: 2: must be 1",
                ],
            ),
        ],
    );
    refuses([(
        probe(
            "readinessProbe",
            json!({"exec": {"command": ["a"]}, "terminationGracePeriodSeconds": 5, "successThreshold": 3}),
        ),
        &[
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
        ],
    )]);
    accepts([
        probe(
            "startupProbe",
            json!({"grpc": {"port": 1, "service": ""}, "terminationGracePeriodSeconds": 5, "successThreshold": 1}),
        ),
        live(
            json!({"httpGet": {"port": "http-a", "path": "/", "scheme": "HTTPS", "httpHeaders": [{"name": "X-A1", "value": ""}]}}),
        ),
    ]);
}

#[test]
fn hooks() {
    let hook = |of: Value| container(json!({"lifecycle": { "preStop": of }}));
    refuses_under(
        "spec.containers[0].lifecycle.preStop",
        vec![
            (hook(json!({})), vec![": Required value: must specify a handler type"]),
            (
                hook(json!({"sleep": {"seconds": 31}})),
                vec![
                    ".sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
                ],
            ),
            (hook(json!({"exec": {"command": []}})), vec![".exec.command: Required value"]),
        ],
    );
    accepts([hook(json!({"sleep": {"seconds": 0}})), hook(json!({"sleep": {"seconds": 30}}))]);
}

#[test]
fn init_containers() {
    let init = |fields: Value| {
        let mut init = json!({"name": "b", "image": "i"});
        merge(&mut init, fields);
        spec(json!({ "initContainers": [init] }))
    };
    let handler = json!({"exec": {"command": ["a"]}});
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        assert_eq!(
            check(&init(json!({ field: handler }))),
            [format!(
                "spec.initContainers[0].{field}: Forbidden: may not be set for init containers without restartPolicy=Always"
            )]
        );
        accepts([init(json!({ field: handler, "restartPolicy": "Always" }))]);
    }
    refuses_under(
        "spec.initContainers[0]",
        vec![
            (
                init(json!({"lifecycle": {}})),
                vec![
                    ".lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always",
                ],
            ),
            (init(json!({"name": "a"})), vec![r#".name: Duplicate value: "a""#]),
            (
                init(json!({"restartPolicy": "Foo"})),
                vec![
                    r#".restartPolicy: Unsupported value: "Foo": supported values: "Always", "Never", "OnFailure""#,
                ],
            ),
            (
                init(json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]})),
                vec![
                    r#".resizePolicy[0].restartPolicy: Invalid value: "RestartContainer": must not be set to 'RestartContainer' for non-sidecar initContainers"#,
                ],
            ),
            (
                init(
                    json!({"ports": [{"containerPort": 1, "hostPort": 2}, {"containerPort": 3, "hostPort": 2}]}),
                ),
                vec![r#".ports[1].hostPort: Duplicate value: "//2""#],
            ),
        ],
    );
}

#[test]
fn containers_for_debugging() {
    let debug = |fields: Value| {
        let mut debug =
            json!({"name": "d", "image": "i", "resources": {}, "terminationMessagePolicy": "File"});
        merge(&mut debug, fields);
        let mut spec = spec(json!({ "ephemeralContainers": [debug] }));
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        spec
    };
    refuses_under(
        "spec.ephemeralContainers[0]",
        vec![
            (debug(json!({"name": "a"})), vec![r#".name: Duplicate value: "a""#]),
            (debug(json!({"targetContainerName": "z"})), vec![r#".targetContainerName: Not found: "z""#]),
            (
                debug(json!({"ports": [{"containerPort": 1}]})),
                vec![".ports: Forbidden: cannot be set for an Ephemeral Container"],
            ),
            (
                debug(json!({"resources": {"limits": {"cpu": "1"}}})),
                vec![".resources: Forbidden: cannot be set for an Ephemeral Container"],
            ),
            (
                debug(json!({"lifecycle": {}})),
                vec![".lifecycle: Forbidden: cannot be set for an Ephemeral Container"],
            ),
            (
                debug(json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "y"}]})),
                vec![".volumeMounts[0].subPath: Forbidden: cannot be set for an Ephemeral Container"],
            ),
            (
                debug(json!({"image": " i"})),
                vec![r#".image: Invalid value: " i": must not have leading or trailing whitespace"#],
            ),
        ],
    );
    accepts([debug(json!({"targetContainerName": "a", "tty": true, "stdin": true}))]);
    let mut c = Checks::default();
    validate_new_pod(&mut c, &json!({"spec": debug(json!({}))}));
    assert_eq!(texts(&c.errors), ["spec.ephemeralContainers: Forbidden: cannot be set on create"]);
    c.errors.clear();
    let gated = spec(json!({"nodeName": "n", "schedulingGates": [{"name": "a"}]}));
    validate_new_pod(&mut c, &json!({ "spec": gated }));
    assert_eq!(
        texts(&c.errors),
        ["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"]
    );
}

#[test]
fn what_all_have_in_common() {
    refuses_under(
        "spec.containers",
        vec![
            (spec(json!({"containers": []})), vec![": Required value"]),
            (container(json!({"name": ""})), vec!["[0].name: Required value"]),
            (container(json!({"image": ""})), vec!["[0].image: Required value"]),
            (
                container(json!({"image": "i "})),
                vec![r#"[0].image: Invalid value: "i ": must not have leading or trailing whitespace"#],
            ),
            (
                container(json!({"imagePullPolicy": "Foo"})),
                vec![
                    r#"[0].imagePullPolicy: Unsupported value: "Foo": supported values: "Always", "IfNotPresent", "Never""#,
                ],
            ),
            (
                container(json!({"terminationMessagePolicy": "Foo"})),
                vec![
                    r#"[0].terminationMessagePolicy: Unsupported value: "Foo": supported values: "File", "FallbackToLogsOnError""#,
                ],
            ),
            (
                container(
                    json!({"ports": [{"name": "a", "containerPort": 1}, {"name": "a", "containerPort": 70000},
                    {"hostPort": -1, "protocol": "ICMP"}, {"name": "A--", "containerPort": 2}]}),
                ),
                vec![
                    r#"[0].ports[1].name: Duplicate value: "a""#,
                    "[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "[0].ports[2].containerPort: Required value",
                    "[0].ports[2].hostPort: Invalid value: -1: must be between 1 and 65535, inclusive",
                    r#"[0].ports[2].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP""#,
                    r#"[0].ports[3].name: Invalid value: "A--": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"#,
                    r#"[0].ports[3].name: Invalid value: "A--": must contain at least one letter (a-z)"#,
                    r#"[0].ports[3].name: Invalid value: "A--": must not contain consecutive hyphens"#,
                    r#"[0].ports[3].name: Invalid value: "A--": must not begin or end with a hyphen"#,
                ],
            ),
            (
                spec(
                    json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 1, "hostPort": 9, "protocol": "TCP"}]},
                    {"name": "b", "image": "i", "ports": [{"containerPort": 2, "hostPort": 9, "protocol": "TCP"}]}]}),
                ),
                vec![r#"[1].ports[0].hostPort: Duplicate value: "TCP//9""#],
            ),
            (
                container(
                    json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "cpu", "restartPolicy": "x"}]}),
                ),
                vec![
                    r#"[0].resizePolicy[1]: Duplicate value: "cpu""#,
                    r#"[0].resizePolicy: Unsupported value: "x": supported values: "NotRequired", "RestartContainer""#,
                ],
            ),
        ],
    );
    accepts([spec(
        json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 1, "hostPort": 9, "protocol": "TCP"},
            {"containerPort": 1, "hostPort": 9, "protocol": "UDP"}, {"containerPort": 1, "hostPort": 9, "protocol": "TCP", "hostIP": "1.2.3.4"}]}]}),
    )]);
}

#[test]
fn restart_rules() {
    let rules = |policy: Value, rules: Value| {
        container(json!({ "restartPolicy": policy, "restartPolicyRules": rules }))
    };
    let rule = json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}});
    refuses_under(
        "spec.containers[0]",
        vec![
            (
                rules(Value::Null, json!([rule])),
                vec![
                    ".restartPolicy: Required value: must specify restartPolicy when restart rules are used",
                ],
            ),
            (
                rules(
                    json!("Never"),
                    json!([{"action": "x"}, {"action": "Restart", "exitCodes": {"operator": "x"}}]),
                ),
                vec![
                    r#".restartPolicyRules[0].action: Unsupported value: "x": supported values: "Restart", "RestartAllContainers""#,
                    ".restartPolicyRules[0].exitCodes: Required value: must be specified",
                    r#".restartPolicyRules[1].exitCodes.operator: Unsupported value: "x": supported values: "In", "NotIn""#,
                ],
            ),
            (
                rules(json!("Never"), json!(vec![rule.clone(); 21])),
                vec![".restartPolicyRules: Too many: 21: must have at most 20 items"],
            ),
        ],
    );
    accepts([rules(json!("Never"), json!([rule])), rules(json!("OnFailure"), json!([]))]);
}
