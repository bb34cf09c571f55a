//! Affinity, spread constraints, tolerations, gates, names and networks.

use super::*;

const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

#[track_caller]
fn refuses_at<const N: usize>(at: &str, cases: [(Value, &[&str]); N]) {
    for (spec, wanted) in cases {
        let wanted: Vec<String> = wanted
            .iter()
            .map(|rest| format!("{at}{}", rest.replace("QUALIFIED", QUALIFIED).replace("LABEL", LABEL)))
            .collect();
        assert_eq!(check(&spec), wanted, "{spec}");
    }
}

fn required(requirement: Value) -> Value {
    spec(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{ "matchExpressions": [requirement] }]}}}}))
}

#[test]
fn affinity_to_nodes() {
    let field = |requirement: Value| {
        spec(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{ "matchFields": [requirement] }]}}}}))
    };
    let preferred = |weight: i64| {
        spec(json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": weight, "preference": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["-"]}]}}]}}}))
    };
    refuses_at(
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
        [
            (
                spec(
                    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
                ),
                &[": Required value: must have at least one node selector term"],
            ),
            (
                required(json!({"key": "a", "operator": "in", "values": ["b"]})),
                &[r#"[0].matchExpressions[0].operator: Invalid value: "in": not a valid selector operator"#],
            ),
            (
                required(json!({"key": "a", "operator": "In"})),
                &[
                    "[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                ],
            ),
            (
                required(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
                &[
                    "[0].matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ],
            ),
            (
                required(json!({"key": "a", "operator": "Gt", "values": ["1", "2"]})),
                &[
                    "[0].matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'",
                ],
            ),
            (
                required(json!({"key": "a b", "operator": "In", "values": ["-"]})),
                &[
                    r#"[0].matchExpressions[0].key: Invalid value: "a b": QUALIFIED"#,
                    r#"[0].matchExpressions[0].values[0]: Invalid value: "-": LABEL"#,
                ],
            ),
            (
                field(json!({"key": "metadata.namespace", "operator": "In", "values": ["a", "b"]})),
                &[
                    "[0].matchFields[0].values: Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                    r#"[0].matchFields[0].key: Invalid value: "metadata.namespace": not a valid field selector key"#,
                ],
            ),
            (
                field(json!({"key": "metadata.name", "operator": "Exists"})),
                &[r#"[0].matchFields[0].operator: Invalid value: "Exists": not a valid selector operator"#],
            ),
        ],
    );
    for weight in [0, 101, -1] {
        assert_eq!(
            check(&preferred(weight)),
            [format!(
                "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: {weight}: must be in the range 1-100"
            )]
        );
    }
    accepts([
        preferred(1),
        preferred(100),
        required(json!({"key": "example.com/a", "operator": "NotIn", "values": ["", "b"]})),
        required(json!({"key": "a", "operator": "Lt", "values": ["5"]})),
        required(json!({"key": "a", "operator": "DoesNotExist"})),
        field(json!({"key": "metadata.name", "operator": "NotIn", "values": ["n.1"]})),
    ]);
}

#[test]
fn affinity_to_pods() {
    let term = |kind: &str, term: Value| {
        spec(json!({"affinity": { kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}))
    };
    let near = |fields: Value| {
        let mut fields_of = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}});
        merge(&mut fields_of, fields);
        term("podAffinity", fields_of)
    };
    refuses_at(
        "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]",
        [
            (
                near(json!({"topologyKey": ""})),
                &[
                    ".topologyKey: Required value: can not be empty",
                    r#".topologyKey: Invalid value: "": name part must be non-empty"#,
                    r#".topologyKey: Invalid value: "": QUALIFIED"#,
                ],
            ),
            (
                near(
                    json!({"labelSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
                ),
                &[
                    r#".labelSelector.matchExpressions[0].operator: Invalid value: "Gt": not a valid selector operator"#,
                ],
            ),
            (
                near(json!({"namespaceSelector": {"matchLabels": {"a": "-"}}})),
                &[r#".namespaceSelector.matchLabels: Invalid value: "-": LABEL"#],
            ),
            (
                near(json!({"matchLabelKeys": ["k"], "labelSelector": null})),
                &[".matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"],
            ),
            (
                near(json!({"matchLabelKeys": ["k"], "mismatchLabelKeys": ["k"]})),
                &[
                    r#".matchLabelKeys[0]: Invalid value: "k": exists in both matchLabelKeys and mismatchLabelKeys"#,
                ],
            ),
            (
                near(json!({"matchLabelKeys": ["a"], "labelSelector": {"matchLabels": {"a": "b"},
                    "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}})),
                &[r#"[0]: Invalid value: "a": exists in both matchLabelKeys and labelSelector"#],
            ),
        ],
    );
    let weighted = |weight: i64| {
        spec(json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": weight, "podAffinityTerm": {"topologyKey": "zone", "namespaces": ["n"]}}]}}}))
    };
    assert_eq!(
        check(&weighted(0)),
        [
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100"
        ]
    );
    accepts([
        weighted(5),
        near(json!({"matchLabelKeys": ["k"], "mismatchLabelKeys": ["l"], "namespaceSelector": {}})),
        // What a matchLabelKey has become.
        near(
            json!({"matchLabelKeys": ["k"], "labelSelector": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}}),
        ),
        term("podAntiAffinity", json!({"topologyKey": "kubernetes.io/hostname"})),
    ]);
}

#[test]
fn spread() {
    let one = |fields: Value| {
        let mut one = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"a": "b"}}});
        merge(&mut one, fields);
        one
    };
    let with = |constraints: Vec<Value>| spec(json!({ "topologySpreadConstraints": constraints }));
    refuses_at(
        "spec.topologySpreadConstraints",
        [
            (
                with(vec![one(json!({"maxSkew": 0}))]),
                &["[0].maxSkew: Invalid value: 0: must be greater than zero"],
            ),
            (
                with(vec![one(json!({"topologyKey": ""}))]),
                &["[0].topologyKey: Required value: can not be empty"],
            ),
            (
                with(vec![json!({"maxSkew": 1, "topologyKey": "zone"})]),
                &[
                    r#"[0].whenUnsatisfiable: Unsupported value: "": supported values: "DoNotSchedule", "ScheduleAnyway""#,
                ],
            ),
            (
                with(vec![one(json!({"whenUnsatisfiable": "Foo"}))]),
                &[
                    r#"[0].whenUnsatisfiable: Unsupported value: "Foo": supported values: "DoNotSchedule", "ScheduleAnyway""#,
                ],
            ),
            (
                with(vec![one(json!({})), one(json!({"maxSkew": 2}))]),
                &[r#"[0].{topologyKey, whenUnsatisfiable}: Duplicate value: "{zone, DoNotSchedule}""#],
            ),
            (
                with(vec![one(json!({"minDomains": 0, "whenUnsatisfiable": "ScheduleAnyway"}))]),
                &[
                    "[0].minDomains: Invalid value: 0: must be greater than zero",
                    "[0].minDomains: Invalid value: 0: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
                ],
            ),
            (
                with(vec![one(json!({"nodeAffinityPolicy": "x", "nodeTaintsPolicy": "y"}))]),
                &[
                    r#"[0].nodeAffinityPolicy: Unsupported value: "x": supported values: "Honor", "Ignore""#,
                    r#"[0].nodeTaintsPolicy: Unsupported value: "y": supported values: "Honor", "Ignore""#,
                ],
            ),
            (
                with(vec![one(json!({"matchLabelKeys": ["k"], "labelSelector": null}))]),
                &["[0].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"],
            ),
            (
                with(vec![one(
                    json!({"labelSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}}),
                )]),
                &[
                    "[0].labelSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                ],
            ),
        ],
    );
    accepts([with(vec![
        one(json!({"minDomains": 3, "matchLabelKeys": ["k"], "nodeTaintsPolicy": "Honor"})),
        one(json!({"whenUnsatisfiable": "ScheduleAnyway"})),
        one(json!({"topologyKey": "host"})),
    ])]);
}

#[test]
fn tolerations() {
    let one = |toleration: Value| spec(json!({ "tolerations": [toleration] }));
    refuses_at(
        "spec.tolerations[0]",
        [
            (one(json!({"key": "a b", "operator": "Exists"})), &[r#".key: Invalid value: "a b": QUALIFIED"#]),
            (
                one(json!({"operator": "Equal", "value": "x"})),
                &[
                    r#".operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys""#,
                ],
            ),
            (
                one(json!({"key": "a", "operator": "Exists", "value": "x"})),
                &[r#".operator: Invalid value: "x": value must be empty when `operator` is 'Exists'"#],
            ),
            (
                one(json!({"key": "a", "operator": "In"})),
                &[r#".operator: Unsupported value: "In": supported values: "Equal", "Exists""#],
            ),
            (
                one(json!({"key": "a", "operator": "Gt", "value": "1"})),
                &[r#".operator: Unsupported value: "Gt": supported values: "Equal", "Exists", "Lt", "Gt""#],
            ),
            (
                one(
                    json!({"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 20}),
                ),
                &[
                    r#".effect: Invalid value: "NoSchedule": effect must be 'NoExecute' when `tolerationSeconds` is set"#,
                ],
            ),
            (
                one(json!({"key": "a", "operator": "Exists", "effect": "Foo"})),
                &[
                    r#".effect: Unsupported value: "Foo": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#,
                ],
            ),
            (one(json!({"key": "a", "value": "-"})), &[r#".operator: Invalid value: "-": LABEL"#]),
        ],
    );
    accepts([
        one(json!({"operator": "Exists"})),
        one(json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": -5})),
        one(json!({"key": "example.com/a", "value": "", "effect": "PreferNoSchedule"})),
    ]);
}

#[test]
fn gates() {
    refuses([
        (
            spec(json!({"schedulingGates": [{"name": "foo"}, {"name": "foo"}]})),
            &[r#"spec.schedulingGates[1]: Duplicate value: "foo""#],
        ),
        (
            spec(json!({"readinessGates": [{"conditionType": "/a"}]})),
            &[r#"spec.readinessGates[0].conditionType: Invalid value: "/a": prefix part must be non-empty"#],
        ),
    ]);
    refuses_at(
        "spec.schedulingGates[0]",
        [(spec(json!({"schedulingGates": [{"name": "a b"}]})), &[r#": Invalid value: "a b": QUALIFIED"#])],
    );
}

#[test]
fn dns() {
    let config = |config: Value| spec(json!({ "dnsConfig": config }));
    let many: Vec<String> = (0..33).map(|n| format!("d{n}")).collect();
    let long = vec!["a".repeat(60); 32];
    let quoted = |list: &[String]| serde_json::to_string(list).unwrap();
    refuses([
        (
            spec(json!({"dnsPolicy": "None"})),
            &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        (
            spec(json!({"dnsPolicy": "None", "dnsConfig": {"searches": ["a"]}})),
            &[
                "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
            ],
        ),
        (
            config(json!({"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "x"]})),
            &[
                r#"spec.dnsConfig.nameservers: Invalid value: ["1.1.1.1","2.2.2.2","3.3.3.3","x"]: must not have more than 3 nameservers"#,
                r#"spec.dnsConfig.nameservers[3]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
            ],
        ),
        (
            config(json!({ "searches": many })),
            &[&format!(
                "spec.dnsConfig.searches: Invalid value: {}: must not have more than 32 search paths",
                quoted(&many)
            )],
        ),
        (
            config(json!({"options": [{"value": "x"}]})),
            &["spec.dnsConfig.options[0]: Required value: must not be empty"],
        ),
        (
            config(json!({"searches": ["a b"]})),
            &[
                r#"spec.dnsConfig.searches[0]: Invalid value: "a b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')"#,
            ],
        ),
    ]);
    accepts([
        config(
            json!({"nameservers": ["1.1.1.1", "FE80::1"], "searches": [".", "_sip._tcp.a_b.c.", "x"], "options": [{"name": "ndots", "value": "1"}]}),
        ),
        config(json!({ "searches": long })),
        spec(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["::1"]}})),
    ]);
}

#[test]
fn hosts() {
    refuses([
        (
            spec(
                json!({"hostAliases": [{"ip": "x", "hostnames": ["a"]}, {"ip": "::ffff:1.2.3.4"}, {"ip": "01.2.3.4"}]}),
            ),
            &[
                r#"spec.hostAliases[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
                r#"spec.hostAliases[1].ip: Invalid value: "::ffff:1.2.3.4": must not be an IPv4-mapped IPv6 address"#,
                r#"spec.hostAliases[2].ip: Invalid value: "01.2.3.4": must not have leading 0s"#,
            ],
        ),
        (
            spec(
                json!({"hostNetwork": true, "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]}),
            ),
            &[
                "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
            ],
        ),
        (
            spec(json!({"hostnameOverride": "a", "setHostnameAsFQDN": true, "hostNetwork": true})),
            &[
                "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
                "spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true",
            ],
        ),
        (
            spec(json!({"hostnameOverride": "a".repeat(65)})),
            &["spec.hostnameOverride: Too long: may not be more than 64 bytes"],
        ),
        (
            spec(json!({"activeDeadlineSeconds": 0})),
            &["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
        ),
        (spec(json!({"preemptionPolicy": ""})), &["spec.preemptionPolicy: Required value"]),
        (
            spec(json!({"preemptionPolicy": "Foo"})),
            &[
                r#"spec.preemptionPolicy: Unsupported value: "Foo": supported values: "PreemptLowerPriority", "Never""#,
            ],
        ),
        (
            spec(json!({"restartPolicy": "Foo"})),
            &[
                r#"spec.restartPolicy: Unsupported value: "Foo": supported values: "Always", "OnFailure", "Never""#,
            ],
        ),
    ]);
    let labels = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    for field in ["hostname", "subdomain"] {
        assert_eq!(
            check(&spec(json!({ field: "a.b" }))),
            [format!(r#"spec.{field}: Invalid value: "a.b": {labels}"#)]
        );
    }
    for field in ["nodeName", "serviceAccountName", "priorityClassName", "runtimeClassName"] {
        assert_eq!(check(&spec(json!({ field: "A" }))).len(), 1, "{field}");
        accepts([spec(json!({ field: "a.b" }))]);
    }
    accepts([
        spec(json!({"hostAliases": [{"ip": "2001:DB8::1", "hostnames": ["a.b"]}]})),
        spec(
            json!({"hostNetwork": true, "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        ),
    ]);
}
