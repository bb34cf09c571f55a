//! All targets by name, with what each begins with.

mod objects;
mod patches;
mod texts;

use kedge_addons::fuzz as addons;
use kedge_apiserver::fuzz as apiserver;
use kedge_cluster::fuzz as cluster;
use kedge_controllers::fuzz as controllers;
use kedge_kubelet::fuzz as kubelet;
use kedge_metrics::fuzz as metrics;
use kedge_network::fuzz as network;
use kedge_store::fuzz as store;

/// One decoder, or several that read the same bytes.
pub struct Target {
    /// What it is called by; also the folder of its findings.
    pub name: &'static str,
    /// Panics when something is wrong.
    pub run: fn(&[u8]),
    /// Inputs that get far into it.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What its format is made of.
    pub words: &'static [&'static str],
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    words: &'static [&'static str],
) -> Target {
    Target { name, run, seeds, words }
}

/// Texts as seeds.
fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "1e400",
    "-0",
    "\\u0000",
    "\\ud800",
    "\"kind\":",
    "\"apiVersion\":",
    "\"metadata\":{",
    "\"labels\":{",
    "\"resourceVersion\":",
];
const YAML: &[&str] = &[
    "\n",
    "  ",
    "- ",
    ": ",
    "&a ",
    "*a",
    "<<: ",
    "|\n",
    ">-\n",
    "!!binary ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "---\n",
    "...\n",
    "#",
    "? ",
    "~",
    "!!map",
    "%YAML 1.2\n",
    "\t",
];
const SELECTOR: &[&str] = &[
    "=",
    "==",
    "!=",
    "!",
    " in ",
    " notin ",
    "(",
    ")",
    ",",
    ">",
    "<",
    "a",
    "b/c",
    "\\,",
    "\\=",
    "metadata.name",
];
const CEL: &[&str] = &[
    "self",
    ".",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "?",
    ":",
    "&&",
    "||",
    "!",
    "==",
    "+",
    "-",
    "*",
    "/",
    "%",
    "'a'",
    "\"b\"",
    "1",
    "1u",
    "1.5",
    "b'x'",
    ".all(x, ",
    ".map(x, ",
    ".exists(x, ",
    ".filter(x, ",
    "x",
    ".size()",
    ".matches('a+')",
    "has(self.a)",
    " in ",
    "duration('1s')",
    "timestamp('2024-01-01T00:00:00Z')",
    "int(",
    "r'\\d'",
    ".split(',')",
    ".join()",
    ".replace('a','b')",
    ".substring(1)",
    "-9223372036854775808",
    ".format([1])",
    "'''",
    "// '\n",
    "'\\q",
    "r'\\'",
    "\\u00e9",
    "optional.of(1)",
    ".orValue(",
    "self.?a",
    ".all(k, v, ",
    ".transformMap(k, v, ",
    ".transformList(i, v, ",
    "quantity('1Gi')",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    "url('https://a/b?c=d')",
    "image('a:b')",
    ".optMap(x, ",
    "semver('1.2.3', true)",
    "format.named('uri')",
    ".validate(",
    ".getHours('+01:00')",
    "sets.contains(",
    "Object{spec: Object.spec{",
    "JSONPatch{op: 'add', path: '/a', value: ",
    ".lastIndexOf('x', 1)",
    ".findAll('a', 2)",
];
const URI: &[&str] = &[
    "GET ",
    "/api/v1/",
    "/apis/",
    "namespaces/",
    "watch/",
    "pods",
    "/status",
    "?",
    "&",
    "=",
    "%2f",
    "%",
    "continue=",
    "limit=",
    "\nAccept:",
    "application/json",
    ";as=Table",
    ";g=meta.k8s.io",
    ";v=v1",
    ",",
    "*/*",
    "\nImpersonate-User:",
    "\nImpersonate-Extra-a:",
    "\nSec-WebSocket-Protocol:",
    "SPDY/3.1+portforward.k8s.io",
    "\nUpgrade:websocket",
    "\nConnection:Upgrade",
];

/// Every target.
pub const TARGETS: &[Target] = &[
    // The store's files and messages.
    target("log", store::log, store::log_seeds, &["KFR1", "KEDGELOG"]),
    target("snapshot", store::snapshot, store::snapshot_seeds, &["KEDGESNP"]),
    target("stored", store::stored, store::stored_seeds, &[]),
    target("transaction", store::transaction, store::transaction_seeds, &[]),
    target("raft-message", store::message, store::message_seeds, &[]),
    // Requests to the API server.
    target("request", apiserver::request, texts::requests, URI),
    target("credentials", apiserver::credentials, texts::tokens, &[".", "eyJhbGciOiJFUzI1NiJ9"]),
    target("yaml", apiserver::yaml, texts::yaml, YAML),
    target("json", apiserver::json, texts::json, JSON),
    target("object-text", objects::text, objects::text_seeds, JSON),
    target("object", objects::object, objects::seeds, &[]),
    target("protobuf", objects::protobuf, objects::protobuf_seeds, &["k8s\0", "v1", "Pod"]),
    target("custom-resource", objects::custom_resource, objects::seeds, &[]),
    target("json-patch", patches::json, patches::seeds, &[]),
    target("json-patch-text", patches::json_text, patches::json_text_seeds, JSON),
    target("merge-patch", patches::merge, patches::seeds, &[]),
    target("strategic-merge-patch", patches::strategic, patches::seeds, &[]),
    target("apply", patches::apply, patches::seeds, &[]),
    target("managed-fields", patches::managed_fields, patches::managed_fields_seeds, JSON),
    target("label-selector", texts::label_selector, texts::label_selectors, SELECTOR),
    target("field-selector", texts::field_selector, texts::field_selectors, SELECTOR),
    target(
        "quantity",
        texts::quantity,
        texts::quantities,
        &["Ki", "Ei", "m", "n", "e", "E", "-", "+", ".", "9"],
    ),
    target("cel", texts::cel, texts::expressions, CEL),
    target(
        "json-path",
        texts::json_path,
        texts::json_paths,
        &[".", "[", "]", "*", "?(", "@", "==", "'", "\\", "-1"],
    ),
    target(
        "pattern",
        texts::pattern,
        texts::patterns,
        &["(", ")", "[", "]", "{9999}", "*", "+?", "\\p{L}", "|", "^"],
    ),
    // Streams.
    target("spdy", apiserver::spdy, texts::spdy, &["\u{3}"]),
    target("websocket", apiserver::websocket, texts::websocket, &[]),
    target("session", apiserver::session, apiserver::session_seeds, &[]),
    // The network.
    target("dns-question", network::question, network::question_seeds, &["\u{7}cluster", "\u{5}local"]),
    target("dns-answer", network::answer, texts::dns_answers, &["\u{c0}\u{c}"]),
    target(
        "dns-name",
        network::name,
        texts::dns_names,
        &[".", "\\", "\\000", "xn--", "*", "_", ":53", "/", ","],
    ),
    target("netlink", network::netlink, network::netlink_seeds, &[]),
    target("flannel-lease", network::lease, texts::nodes, JSON),
    target("flannel-config", network::net_conf, texts::net_confs, JSON),
    // Nodes.
    target(
        "join-string",
        cluster::join_string,
        texts::join_strings,
        &["/", ":", "[", "]", "::", "kedge join "],
    ),
    target("join-message", cluster::messages, texts::join_messages, JSON),
    target("certificate", cluster::certificate, cluster::certificate_seeds, &[]),
    target("certificate-request", controllers::certificate_request, cluster::certificate_seeds, &[]),
    target(
        "schedule",
        controllers::schedule,
        texts::schedules,
        &["*", "/", "-", ",", "@every ", "TZ=Europe/Rome ", "MON", "L"],
    ),
    target("job-indexes", controllers::indexes, texts::indexes, &["-", ",", "2147483647"]),
    // The kubelet and its neighbours.
    target(
        "image-archive",
        kubelet::archive,
        kubelet::archive_seeds,
        &["ustar", "blobs/sha256/", "manifest.json"],
    ),
    target("compressed-archive", kubelet::compressed, texts::compressed, &["\u{1f}", "(\u{b5}/\u{fd}"]),
    target(
        "image-name",
        kubelet::reference,
        texts::image_names,
        &["/", ":", "@", "sha256:", "localhost", ".", "-", "_"],
    ),
    target("log-line", kubelet::log_line, texts::log_lines, &[" ", "\n", "stdout", "P", "F", ":"]),
    target(
        "kubelet-query",
        kubelet::query,
        texts::queries,
        &["&", "=", "tailLines=", "port=", "%00", "sinceTime="],
    ),
    target(
        "resolv-conf",
        kubelet::resolv_conf,
        texts::resolv_confs,
        &["nameserver ", "search ", "options ", "\n"],
    ),
    target("registries", kubelet::registries, texts::registries, YAML),
    target("addon", addons::addon, texts::addons, YAML),
    target("manifest", addons::manifest, texts::manifests, YAML),
    target(
        "metrics",
        metrics::points,
        texts::metrics,
        &["{", "}", "\"", ",", "=", "\\", "NaN", "+Inf", "\n"],
    ),
];

/// The target of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
