//! Bodies made by hand, field by field, as client-go's encoder would lay them out.

use serde_json::{Value, json};

use super::{ProtobufError, decode, encode, has_message, is_protobuf, watch_frame};

fn varint(mut v: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while v >= 0x80 {
        out.push((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
    out
}

/// A field of a string, bytes or a message.
fn b(number: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut out = varint(number << 3 | 2);
    out.extend(varint(content.len() as u64));
    out.extend_from_slice(content);
    out
}

/// A field of a number.
fn n(number: u64, value: i64) -> Vec<u8> {
    let mut out = varint(number << 3);
    out.extend(varint(value as u64));
    out
}

fn double(number: u64, value: f64) -> Vec<u8> {
    let mut out = varint(number << 3 | 1);
    out.extend(value.to_le_bytes());
    out
}

/// An entry of a map.
fn entry(number: u64, key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    b(number, [b(1, key), b(2, value)].concat())
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [b(1, api_version), b(2, kind)].concat();
    let envelope = [b(1, meta), b(2, raw), b(3, ""), b(4, "")].concat();
    [b"k8s\0".to_vec(), envelope].concat()
}

fn decoded(api_version: &str, kind: &str, raw: &[u8]) -> Value {
    decode(&body(api_version, kind, raw)).unwrap()
}

/// The metadata client-go sends for a new object: every field that is no pointer,
/// the zero time as an empty message.
fn metadata(name: &str) -> Vec<u8> {
    [b(1, name), b(2, ""), b(3, "default"), b(4, ""), b(5, ""), b(6, ""), n(7, 0), b(8, "")].concat()
}

#[test]
fn content_types() {
    for (content_type, want) in [
        ("application/vnd.kubernetes.protobuf", true),
        ("Application/vnd.kubernetes.PROTOBUF ; charset=x", true),
        ("application/vnd.kubernetes.protobuf;stream=watch", true),
        ("application/json", false),
        ("application/vnd.kubernetes.protobufs", false),
        ("", false),
    ] {
        assert_eq!(is_protobuf(content_type), want, "{content_type}");
    }
}

#[test]
fn config_map() {
    let raw = [
        b(1, metadata("c")),
        entry(2, "a", "1"),
        entry(2, "empty", ""),
        b(2, b(1, "no-value")),
        entry(3, "bin", [0_u8, 255]),
        n(4, 1),
        // Unknown fields of every wire type are skipped.
        b(99, "new"),
        n(100, 7),
        double(101, 1.5),
        [varint(102 << 3 | 5), vec![1, 2, 3, 4]].concat(),
    ]
    .concat();
    assert_eq!(
        decoded("v1", "ConfigMap", &raw),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "c", "namespace": "default"},
            "data": {"a": "1", "empty": "", "no-value": ""},
            "binaryData": {"bin": "AP8="},
            "immutable": true,
        })
    );
}

#[test]
fn deployment() {
    let int = |v| [n(1, 0), n(2, v), b(3, "")].concat();
    let text = |v: &str| [n(1, 1), n(2, 0), b(3, v)].concat();
    let http_get = [b(1, "/live"), b(2, text("http")), b(3, ""), b(4, "HTTP")].concat();
    let probe = [b(1, b(2, http_get)), n(2, 0), n(3, 5)].concat();
    let resources = entry(1, "cpu", b(1, "500m"));
    let container =
        [b(1, "main"), b(2, "app:1"), b(8, resources), b(10, probe), b(13, ""), n(16, 0)].concat();
    let template = [
        b(1, [b(1, ""), b(8, ""), entry(11, "app", "x")].concat()),
        b(2, [b(2, container), b(3, "Always"), n(4, 0), b(14, "")].concat()),
    ]
    .concat();
    let rolling = [b(1, text("25%")), b(2, int(-1))].concat();
    let spec = [
        n(1, 0),
        b(2, entry(1, "app", "x")),
        b(3, template),
        b(4, [b(1, "RollingUpdate"), b(2, rolling)].concat()),
        n(5, 0),
    ]
    .concat();
    let raw = [b(1, metadata("d")), b(2, spec), b(3, "")].concat();
    let got = decoded("apps/v1", "Deployment", &raw);
    assert_eq!(
        got["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": -1}})
    );
    // A pointer to zero is said, a plain zero is not.
    assert_eq!(got["spec"]["replicas"], json!(0));
    assert_eq!(got["spec"].get("minReadySeconds"), None);
    assert_eq!(got["spec"]["selector"], json!({"matchLabels": {"app": "x"}}));
    assert_eq!(got["spec"]["template"]["metadata"], json!({"labels": {"app": "x"}}));
    assert_eq!(
        got["spec"]["template"]["spec"]["containers"],
        json!([{
            "name": "main", "image": "app:1",
            "resources": {"limits": {"cpu": "500m"}},
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 5},
        }])
    );
    assert_eq!(got["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], json!(0));
    assert_eq!(got["status"], json!({}));
}

#[test]
fn pod_with_volumes() {
    let empty_dir = [b(1, "Memory"), b(2, b(1, "64Mi"))].concat();
    let secret = [b(1, "s"), n(3, 0o644)].concat();
    // Packed and one by one.
    let groups = [b(4, [varint(5), varint(300)].concat()), n(4, 7)].concat();
    let spec = [
        b(1, [b(1, "tmp"), b(2, b(2, empty_dir))].concat()),
        b(1, [b(1, "plain"), b(2, b(2, ""))].concat()),
        b(1, [b(1, "cert"), b(2, b(6, secret))].concat()),
        b(14, groups),
    ]
    .concat();
    let got = decoded("v1", "Pod", &[b(1, metadata("p")), b(2, spec)].concat());
    assert_eq!(
        got["spec"]["volumes"],
        json!([
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "plain", "emptyDir": {}},
            {"name": "cert", "secret": {"secretName": "s", "defaultMode": 420}},
        ])
    );
    assert_eq!(got["spec"]["securityContext"], json!({"supplementalGroups": [5, 300, 7]}));
}

#[test]
fn token_request() {
    let bound = [b(1, "Pod"), b(2, "v1"), b(3, "p"), b(4, "uid-1")].concat();
    let spec = [b(1, "api"), b(1, "vault"), b(3, bound), n(4, 3600)].concat();
    let raw = [b(1, ""), b(2, spec), b(3, [b(1, ""), b(2, "")].concat())].concat();
    assert_eq!(
        decoded("authentication.k8s.io/v1", "TokenRequest", &raw),
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {},
            "spec": {
                "audiences": ["api", "vault"],
                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "uid-1"},
                "expirationSeconds": 3600,
            },
            "status": {"token": ""},
        })
    );
}

#[test]
fn delete_options_of_any_version() {
    let raw = [n(1, 0), b(2, [b(1, "u"), b(2, "42")].concat()), b(4, "Foreground"), b(5, "All")].concat();
    for api_version in ["v1", "apps/v1", "meta.k8s.io/v1"] {
        assert_eq!(
            decoded(api_version, "DeleteOptions", &raw),
            json!({
                "apiVersion": api_version, "kind": "DeleteOptions",
                "gracePeriodSeconds": 0,
                "preconditions": {"uid": "u", "resourceVersion": "42"},
                "propagationPolicy": "Foreground",
                "dryRun": ["All"],
            })
        );
    }
    assert_eq!(decoded("v1", "DeleteOptions", b""), json!({"apiVersion": "v1", "kind": "DeleteOptions"}));
}

#[test]
fn times() {
    let spec = |at: &[u8]| [b(1, "me"), b(4, at)].concat();
    for (at, want) in [
        (vec![], None),
        (n(1, 0), Some("1970-01-01T00:00:00.000000Z")),
        ([n(1, 1_700_000_000), n(2, 123_456_789)].concat(), Some("2023-11-14T22:13:20.123456Z")),
        (n(1, -62_135_596_800), None),
        (n(1, -1), Some("1969-12-31T23:59:59.000000Z")),
    ] {
        let got = decoded("coordination.k8s.io/v1", "Lease", &b(2, spec(&at)));
        assert_eq!(got["spec"].get("renewTime").and_then(Value::as_str), want);
    }
    let meta = b(1, b(8, [n(1, 1_700_000_000), n(2, 999_999_999)].concat()));
    assert_eq!(
        decoded("v1", "ConfigMap", &meta)["metadata"],
        json!({"creationTimestamp": "2023-11-14T22:13:20Z"})
    );
    for at in [n(1, i64::MAX), n(1, i64::MIN), [n(1, 0), n(2, -1)].concat()] {
        let got = decode(&body("coordination.k8s.io/v1", "Lease", &b(2, spec(&at))));
        assert!(matches!(got, Err(ProtobufError::Value { field: "renewTime", .. })), "{got:?}");
    }
}

#[test]
fn embedded_json_and_lists() {
    let managed = [b(1, "m"), b(2, "Update"), b(7, b(1, r#"{"f:data":{}}"#))].concat();
    let raw = [b(1, b(17, managed)), b(2, b(1, r#"{"spec":{"a":[1]}}"#)), n(3, i64::MAX)].concat();
    let got = decoded("apps/v1", "ControllerRevision", &raw);
    assert_eq!(got["data"], json!({"spec": {"a": [1]}}));
    assert_eq!(got["revision"], json!(i64::MAX));
    assert_eq!(
        got["metadata"]["managedFields"],
        json!([{"manager": "m", "operation": "Update", "fieldsV1": {"f:data": {}}}])
    );

    let bad = decode(&body("apps/v1", "ControllerRevision", &b(2, b(1, "{"))));
    assert!(matches!(bad, Err(ProtobufError::Json { field: "data", .. })), "{bad:?}");

    let spec = [b(3, "jane"), entry(5, "scopes", [b(1, "a"), b(1, "b")].concat())].concat();
    let got = decoded("authorization.k8s.io/v1", "SubjectAccessReview", &b(2, spec));
    assert_eq!(got["spec"], json!({"user": "jane", "extra": {"scopes": ["a", "b"]}}));
}

#[test]
fn schemas_of_a_crd() {
    let schema = |fields: &[Vec<u8>]| fields.concat();
    let string =
        schema(&[b(1, ""), b(5, "string"), b(8, b(1, "\"x\"")), b(20, b(1, "\"x\"")), b(20, b(1, "null"))]);
    let number = schema(&[b(5, "number"), double(9, 10.0), double(11, 0.5), n(12, 0)]);
    let list = schema(&[b(5, "array"), b(24, b(1, b(5, "integer"))), n(40, 1)]);
    let open = schema(&[b(5, "object"), b(30, n(1, 1)), b(33, n(1, 0)), n(38, 1)]);
    let map = schema(&[b(5, "object"), b(30, [n(1, 1), b(2, b(5, "string"))].concat())]);
    let several = schema(&[
        b(24, [b(2, b(5, "string")), b(2, b(5, "integer"))].concat()),
        entry(32, "a", [b(2, "b"), b(2, "c")].concat()),
        entry(32, "d", b(1, b(5, "object"))),
    ]);
    let top = schema(&[
        b(5, "object"),
        entry(29, "string", string),
        entry(29, "number", number),
        entry(29, "list", list),
        entry(29, "open", open),
        entry(29, "map", map),
        entry(29, "several", several),
    ]);
    let version = [b(1, "v1"), n(2, 1), n(3, 0), b(4, b(1, top))].concat();
    let got = decoded("apiextensions.k8s.io/v1", "CustomResourceDefinition", &b(2, b(7, version)));
    assert_eq!(
        got["spec"]["versions"],
        json!([{
            "name": "v1", "served": true, "storage": false,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "string": {"type": "string", "default": "x", "enum": ["x", null]},
                "number": {"type": "number", "maximum": 10, "minimum": 0.5},
                "list": {"type": "array", "items": {"type": "integer"}, "x-kubernetes-int-or-string": true},
                "open": {"type": "object", "additionalProperties": true, "additionalItems": false,
                         "x-kubernetes-preserve-unknown-fields": true},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "several": {"items": [{"type": "string"}, {"type": "integer"}],
                            "dependencies": {"a": ["b", "c"], "d": {"type": "object"}}},
            }}},
        }])
    );
    let infinite = b(2, b(7, b(4, b(1, double(9, f64::INFINITY)))));
    assert!(decode(&body("apiextensions.k8s.io/v1", "CustomResourceDefinition", &infinite)).is_err());
}

/// A message in two pieces is one, the later scalar wins, and a zero takes back.
#[test]
fn pieces_are_merged() {
    let raw = [
        b(1, [b(1, "first"), b(3, "a"), entry(11, "x", "1")].concat()),
        b(1, [b(1, "second"), b(3, ""), entry(11, "y", "2")].concat()),
    ]
    .concat();
    assert_eq!(
        decoded("v1", "ConfigMap", &raw)["metadata"],
        json!({"name": "second", "labels": {"x": "1", "y": "2"}})
    );
}

#[test]
fn bad_envelopes() {
    let envelope = |fields: &[Vec<u8>]| [b"k8s\0".to_vec(), fields.concat()].concat();
    let meta = b(1, [b(1, "v1"), b(2, "ConfigMap")].concat());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("Prefix", vec![]),
        ("Prefix", b"k8s".to_vec()),
        ("Prefix", b"{\"kind\":\"ConfigMap\"}".to_vec()),
        ("MissingKind", b"k8s\0".to_vec()),
        ("MissingKind", envelope(&[b(1, b(1, "v1"))])),
        ("MissingVersion", envelope(&[b(1, b(2, "ConfigMap"))])),
        ("UnknownKind", body("example.com/v1", "Widget", b"")),
        ("Encoding", envelope(&[meta.clone(), b(3, "gzip")])),
        ("ContentType", envelope(&[meta.clone(), b(4, "application/json")])),
        ("WireType", envelope(&[n(1, 1)])),
        ("Value", envelope(&[b(1, b(2, [0xff_u8]))])),
    ];
    for (want, bytes) in cases {
        let got = decode(&bytes).unwrap_err();
        assert!(format!("{got:?}").starts_with(want), "{want}: {got:?}");
    }
    assert!(decode(&envelope(&[meta, b(4, "application/vnd.kubernetes.protobuf")])).is_ok());
}

#[test]
fn bad_messages() {
    let huge = [varint(2), varint(u64::MAX >> 1)].concat();
    let mut tag = varint(1 << 3 | 2);
    tag.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a length past the end", tag),
        ("a tag alone", varint(1 << 3 | 2)),
        ("field number 0", huge),
        ("an endless varint", [vec![4_u8 << 3], vec![0xff_u8; 11]].concat()),
        ("a varint of more than 64 bits", [vec![4_u8 << 3], vec![0xff_u8; 9], vec![2]].concat()),
        ("a number where a message is due", n(1, 1)),
        ("a message where a bool is due", b(4, "x")),
        ("a group", varint(50 << 3 | 3)),
        ("the end of a group", varint(1 << 3 | 4)),
        ("a wire type that is none", varint(1 << 3 | 7)),
        ("eight bytes cut short", [varint(50 << 3 | 1), vec![1, 2]].concat()),
        ("not UTF-8", b(1, b(1, [0xc3_u8, 0x28]))),
        ("a map entry cut short", b(2, [0x0a, 5, b'x'])),
    ];
    for (what, raw) in cases {
        assert!(decode(&body("v1", "ConfigMap", &raw)).is_err(), "{what}");
    }
    let port = b(2, b(1, b(8, n(1, 2))));
    assert!(decode(&body("v1", "Service", &port)).is_ok(), "an unknown field of a port");
    let port = b(2, b(1, b(4, n(1, 2))));
    assert!(decode(&body("v1", "Service", &port)).is_err(), "an IntOrString of neither type");
}

/// Every prefix of a good body is either good or an error, never a panic.
#[test]
fn every_cut_is_handled() {
    let whole = body("v1", "ConfigMap", &[b(1, metadata("c")), entry(2, "a", "1")].concat());
    for end in 0..whole.len() {
        let _ = decode(&whole[..end]);
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            let _ = decode(&flipped);
        }
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |levels: usize| {
        let mut schema = b(5, "object");
        for _ in 0..levels {
            schema = entry(29, "p", &schema);
        }
        body("apiextensions.k8s.io/v1", "CustomResourceDefinition", &b(2, b(7, b(4, b(1, schema)))))
    };
    assert!(decode(&nested(50)).is_ok());
    assert!(matches!(decode(&nested(70)), Err(ProtobufError::TooDeep)));
    let inverted = (0..2_000).fold(Vec::<u8>::new(), |inner, _| b(28, inner));
    let crd = b(2, b(7, b(4, b(1, inverted))));
    let got = decode(&body("apiextensions.k8s.io/v1", "CustomResourceDefinition", &crd));
    assert!(matches!(got, Err(ProtobufError::TooDeep)));
}

#[test]
fn the_number_of_values_is_bounded() {
    let spec = b(14, b(4, vec![1_u8; (1 << 20) + 1]));
    assert!(matches!(decode(&body("v1", "Pod", &b(2, spec))), Err(ProtobufError::TooMany)));
}

/// What is encoded reads back the same, in every kind of field that the table knows.
#[test]
fn objects_come_back() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "p", "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": { "a": "b", "empty": "" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true }],
            "managedFields": [{ "manager": "m", "fieldsV1": { "f:spec": {} } }],
        },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": "1Gi" } }],
            "securityContext": { "runAsUser": 0, "runAsNonRoot": false },
            "containers": [{
                "name": "c", "image": "i", "args": ["", "x"],
                "resources": { "limits": { "cpu": "100m" } },
                "livenessProbe": { "httpGet": { "port": "web", "path": "/" }, "initialDelaySeconds": -1 },
                "readinessProbe": { "tcpSocket": { "port": 80 } },
            }],
        },
    });
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "l" },
        "spec": { "renewTime": "2026-01-02T03:04:05.000006Z", "leaseTransitions": 0 },
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "data": { "k": "AAH/" }, "type": "Opaque",
    });
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": { "user": "u", "extra": { "k": ["a", "b"] } }, "status": { "allowed": true },
    });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": "d" },
        "spec": { "group": "g", "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
            "type": "object", "additionalProperties": false, "maximum": 1.5,
            "items": { "type": "string" },
            "properties": { "a": { "additionalProperties": { "type": "string" }, "default": { "x": [1, null] } } },
        } } }] },
    });
    let revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": { "name": "c" },
        "data": { "spec": { "deep": [1, "two"] } }, "revision": 7,
    });
    for object in [pod, lease, secret, review, definition, revision] {
        let back = decode(&encode(&object).unwrap()).unwrap();
        // Fields that are no pointers are in Go's JSON even when they are empty.
        assert_contains(&back, &object, "");
    }
}

fn assert_contains(got: &Value, want: &Value, path: &str) {
    match (got, want) {
        (Value::Object(got), Value::Object(want)) => {
            for (key, want) in want {
                assert_contains(got.get(key).unwrap_or(&Value::Null), want, &format!("{path}.{key}"));
            }
        }
        (Value::Array(got), Value::Array(want)) if got.len() == want.len() => {
            got.iter().zip(want).for_each(|(got, want)| assert_contains(got, want, path));
        }
        _ => assert_eq!(got, want, "{path}"),
    }
}

/// Byte for byte what Go's encoder makes of it, without the zero values that it spells out.
#[test]
fn lists_statuses_and_events() {
    let list = json!({
        "apiVersion": "v1", "kind": "ConfigMapList",
        "metadata": { "resourceVersion": "9" },
        "items": [{ "metadata": { "name": "a" }, "data": { "k": "v" } }, { "metadata": { "name": "b" } }],
    });
    let item = |name: &str, rest: Vec<u8>| b(2, [b(1, b(1, name)), rest].concat());
    let raw = [b(1, b(2, "9")), item("a", entry(2, "k", "v")), item("b", Vec::new())].concat();
    assert_eq!(encode(&list).unwrap(), body("v1", "ConfigMapList", &raw));

    let status =
        json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404 });
    let encoded = encode(&status).unwrap();
    assert_eq!(encoded, body("v1", "Status", &[b(1, ""), b(2, "Failure"), n(6, 404)].concat()));

    let event = [b(1, "ERROR"), b(2, b(1, &encoded))].concat();
    let frame = watch_frame("ERROR", &encoded);
    assert_eq!(frame[..4], u32::try_from(event.len()).unwrap().to_be_bytes());
    assert_eq!(frame[4..], event);
}

#[test]
fn what_has_no_message_is_refused() {
    assert!(has_message("v1", "Pod") && has_message("apps/v1", "DeploymentList"));
    assert!(has_message("meta.k8s.io/v1", "PartialObjectMetadataList"));
    for (api_version, kind) in
        [("example.com/v1", "Toy"), ("meta.k8s.io/v1", "Table"), ("v1", "ToyList"), ("v1", "List")]
    {
        assert!(!has_message(api_version, kind), "{api_version} {kind}");
        let refused = encode(&json!({ "apiVersion": api_version, "kind": kind }));
        assert!(matches!(refused, Err(ProtobufError::UnknownKind { .. })), "{refused:?}");
    }
    let wrong = encode(&json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "hostNetwork": "yes" } }));
    assert!(matches!(wrong, Err(ProtobufError::Value { field: "hostNetwork", .. })), "{wrong:?}");
    let empty = encode(&json!({ "kind": "Pod" }));
    assert!(matches!(empty, Err(ProtobufError::MissingVersion)), "{empty:?}");
}
