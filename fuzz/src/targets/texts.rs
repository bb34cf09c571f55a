//! What is one text: selectors, quantities, expressions; and seeds of targets of other crates.

use kedge_api::cel::{Budget, Program, Scope};
use kedge_api::quantity::{Format, Quantity};
use kedge_api::schema::Pattern;
use kedge_api::selector::{FieldSelector, LabelSelector};
use kedge_api::table::JsonPath;
use serde_json::json;

use super::bytes;

pub(super) fn label_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(selector) = LabelSelector::parse(text) else { return };
    let written = selector.to_string();
    let again = LabelSelector::parse(&written).expect("what was written");
    assert_eq!(again.to_string(), written);
    for labels in [json!({}), json!({ "a": "b" }), json!({ "a": "5", "b/c": "" })] {
        assert_eq!(selector.matches_labels(&labels), again.matches_labels(&labels), "{text:?} {written:?}");
    }
}

pub(super) fn field_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(selector) = FieldSelector::parse(text) else { return };
    let written = selector.to_string();
    let again = FieldSelector::parse(&written).expect("what was written");
    assert_eq!(again.to_string(), written);
    for value in ["", "a", "x,y"] {
        let lookup = |_: &str| Some(value.to_owned());
        assert_eq!(selector.matches(lookup), again.matches(lookup), "{text:?} {written:?}");
    }
}

pub(super) fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(quantity) = text.parse::<Quantity>() else { return };
    let written = quantity.to_string();
    let again: Quantity =
        written.parse().unwrap_or_else(|error| panic!("{text:?} became {written:?}: {error}"));
    // What no binary suffix fits is written without one, which reads as decimal: one more round settles it.
    if quantity.format() != Format::BinarySi || written.ends_with('i') {
        assert_eq!(again.to_string(), written, "{text:?}");
    }
    let settled = again.to_string();
    assert_eq!(settled.parse::<Quantity>().map(|last| last.to_string()).ok(), Some(settled), "{text:?}");
    assert_eq!((again.value(), again.sign()), (quantity.value(), quantity.sign()), "{text:?} {written:?}");
    // Binary suffixes are written in whole units only.
    if quantity.is_integer() || quantity.format() != Format::BinarySi {
        assert_eq!(again.milli_value(), quantity.milli_value(), "{text:?} {written:?}");
        assert!(quantity <= again && again <= quantity, "{text:?} {written:?}");
    }
}

pub(super) fn cel(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(program) = Program::compile(text) else { return };
    let this = json!({ "a": 1, "b": "x", "c": [1, 2, 3, 4], "d": { "e": "f" }, "n": 1.5 });
    let this = kedge_api::cel::dynamic(&this);
    let seen = [("self", this.clone()), ("oldSelf", this)];
    let made = program.evaluate(Scope::new(&seen), &mut Budget::validation());
    // Whatever comes out can be written down, or says that it cannot.
    let _ = made.map(|made| made.to_json());
}

pub(super) fn json_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(path) = JsonPath::parse(text) else { return };
    let object =
        json!({ "a": { "b.c": [1, 2, { "x": "y" }] }, "l": [{ "t": "A" }, { "t": "B" }], "n": null });
    assert!(path.find(&object).len() <= 100);
}

pub(super) fn pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pattern, text) = text.split_once('\0').unwrap_or((text, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
    let pattern = Pattern::new(pattern);
    if pattern.check().is_ok() {
        let _ = pattern.is_match(text);
    }
}

macro_rules! seeds {
    ($($name:ident: [$($text:expr),* $(,)?];)*) => {
        $(pub(super) fn $name() -> Vec<Vec<u8>> {
            bytes(&[$($text),*])
        })*
    };
}

seeds! {
    label_selectors: ["a=b,c!=d", "x in (a,b),y notin (c),z,!w", "n>5,m<7", "a==", "example.com/a in ()"];
    field_selectors: ["metadata.name=a,spec.nodeName!=b", "a==b\\,c", "status.phase=Running"];
    quantities: ["100m", "1.5Gi", "12e6", "-0.001", "1E3", "123456789012345678901234567890n", "+.5k", "5Ei"];
    expressions: [
        "self.a > 1 && self.b == 'x'", "self.c.all(x, x > 0) || !has(self.z)", "self.c.map(x, x * 2).size() == 4",
        "self.b.matches('^[a-z]+$') ? 1 : 2", "self == oldSelf", "self.d['e'] + \"g\" == 'fg'",
        "duration('1h') < duration('2h')", "[1, 2u, 3.0, b'x', null][0] in {1: 'a'}",
        "self.b.split('').join('-').upperAscii()", "int('5') + -7 % 3",
    ];
    json_paths: [".spec.replicas", "{.a['b.c'][*]}", ".l[?(@.t==\"A\")].t", ".a[-1]", "$.x\\.y"];
    patterns: ["^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "(a|aa)+$", "^.{1,253}$\0x", "\\d{3}-[^/]"];
    requests: [
        "GET /api/v1/namespaces/default/pods/a/log?follow=true\nAccept: application/json;as=Table;g=meta.k8s.io;v=v1, */*",
        "GET /apis/apps/v1/watch/namespaces/x/deployments?limit=5&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhIn0",
        "POST /api/v1/namespaces/a/pods/b/proxy/x//y/?z=1\nImpersonate-User:system:serviceaccount:a:b\nImpersonate-Extra-A%2f:c",
        "PUT /api/v1/namespaces/x/finalize\nSec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.YQ, v5.channel.k8s.io\nUpgrade: websocket\nConnection: Upgrade",
    ];
    tokens: ["eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJhIn0.c2lnbmF0dXJl"];
    yaml: [
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  x: |\n    text\n  y: >-\n    folded\n",
        "a: &x [1, 2.5, .inf, 0x1F, 0o17, ~, yes]\nb: *x\nc: {<<: {d: 1}, ? e : f}\n",
        "--- !!map\n? a\n: !!binary YWJj\n'q': \"\\u00e9\\n\"\n",
    ];
    json: [
        r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","labels":{"x":"y"},"resourceVersion":"5"},"spec":{"nodeName":"n"}}"#,
        r#"{"metadata":{},"a":[1,-2.5e-7,18446744073709551615,null,true,"\u00e9\ud83d\ude00"]}"#,
    ];
    nodes: [
        r#"{"metadata":{"name":"n","annotations":{"flannel.alpha.coreos.com/backend-type":"vxlan","flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/public-ip":"192.0.2.1","flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:01\"}"}},"spec":{"podCIDR":"10.244.0.0/24","podCIDRs":["10.244.0.0/24","fd00::/64"]}}"#,
    ];
    net_confs: [
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/56","Backend":{"Type":"vxlan","VNI":5,"Port":4789,"DirectRouting":true,"MTU":1400}}"#,
        r#"{"network":"10.244.0.1/16","Backend":{"Type":"host-gw"},"EnableNFTables":false}"#,
    ];
    join_strings: [
        "192.0.2.10:25000/0123456789abcdefghjkmnpqrstvwxyz0123456789abcdefghj0/0123456789abcdef0123456789abcdef",
        "kedge join [2001:db8::1]:25000/0000000000000000000000000000000000000000000000000000/0123456789ABCDEF0123456789ABCDEF",
        "node1.example.org:65535", "0123456789abcdef",
    ];
    join_messages: [
        r#"{"id":"0123456789abcdef","name":"n","role":"worker","address":"192.0.2.1:25000","addresses":["192.0.2.1"],"version":{"major":0,"minor":1},"failureDomain":"a"}"#,
        r#"{"token":"0123456789abcdefghjkmnpqrstvwxyz0123456789abcdefghj0","facts":{"name":"n","role":"controlPlane","address":"[::1]:1","addresses":[]},"requests":{}}"#,
    ];
    schedules: ["*/5 1-3,7 * JAN-MAR mon", "@every 1h30m", "TZ=Europe/Rome 0 6 29 2 *", "@daily", "0 0 31 * 0"];
    indexes: ["1,3-5,7", "0-9999", " 2 - 4 ,x"];
    image_names: ["nginx", "quay.io/a/b:1.2", "localhost:5000/x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "A/b"];
    log_lines: ["2024-01-01T00:00:00.000000001Z stdout F text\n2024-01-01T00:00:01Z stderr P half", "x\n\n"];
    queries: ["follow=true&tailLines=5&sinceSeconds=9&timestamps=1&stream=Stdout", "port=80,443&port=8080&command=a&command=b+c", "sinceTime=2024-01-01T00:00:00Z&limitBytes=1"];
    resolv_confs: ["nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:5\n# x\n"];
    registries: [
        "mirrors:\n  docker.io:\n    endpoint: [\"https://mirror.example:5000\", \"http://second.example\"]\n  \"*\":\n    endpoint: [https://all.example/v2/cache]\nconfigs:\n  mirror.example:5000:\n    auth: {username: me, password: secret}\n    tls: {ca_file: /etc/ca.pem}\n  docker.io:\n    auth: {auth: \"aHViOnB3\"}\n",
    ];
    addons: [
        "name: a\nversion: \"1\"\nsummary: words\narguments:\n- name: x\n  type: cidr\n  default: 10.0.0.0/8\n  summary: y\n- {name: l, type: list, default: [a, b], summary: z}\n\0apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\ndata: {x: \"${x}\", l: \"{{ l }}\"}\n",
    ];
    manifests: [
        "# comment\n--- # first\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: n}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: s}}\n",
        "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"a\"}}",
    ];
    metrics: [
        "# HELP x y\nnode_cpu_usage_seconds_total 1.5 1700000000000\nnode_memory_working_set_bytes 5e6\ncontainer_cpu_usage_seconds_total{container=\"c\",namespace=\"n\\\"\",pod=\"p\"} 2\ncontainer_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} NaN\ncontainer_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\",} 1e300\n",
    ];
    dns_names: ["www.example.com.", "example.org=192.0.2.1:53,[2001:db8::1]", "a\\.b.c", "20.0.96.10.in-addr.arpa"];
}

pub(super) fn spdy() -> Vec<Vec<u8>> {
    vec![
        vec![0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 9, 1, 2, 0, 0, 0, 1, 1, 0, 0, 2, 7, 7],
        vec![0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5, 0x80, 3, 0, 7, 0, 0, 0, 0],
    ]
}

pub(super) fn websocket() -> Vec<Vec<u8>> {
    vec![
        vec![0x82, 0x83, 1, 2, 3, 4, 1, 2, 3, 0x88, 0x82, 0, 0, 0, 0, 3, 0xe8],
        vec![0x01, 0x81, 0, 0, 0, 0, b'a', 0x80, 0xfe, 0, 2, 0, 0, 0, 0, b'b', b'c', 0x89, 0x80, 0, 0, 0, 0],
        vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
    ]
}

/// A response with a compressed name, an address and an alias.
pub(super) fn dns_answers() -> Vec<Vec<u8>> {
    let mut message =
        vec![0, 1, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0, 1, b'a', 3, b'c', b'o', b'm', 0, 0, 1, 0, 1];
    message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'b', 0xc0, 14]);
    message.extend([0xc0, 35, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    vec![message]
}

/// gzip and zstd of a few bytes.
pub(super) fn compressed() -> Vec<Vec<u8>> {
    vec![
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b, 0x4c, 0x4a, 6, 0, 0xc2, 0x41, 0x24, 0x35, 3, 0, 0, 0],
        // One raw block of three bytes, without a checksum.
        vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x19, 0, 0, b'a', b'b', b'c'],
        vec![0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9],
    ]
}
