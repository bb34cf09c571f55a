use std::net::IpAddr;

use hickory_proto::rr::{RData, Record, RecordType};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::super::name::parse_name;
use super::super::records::Index;
use super::{Lookup, Zone};

fn service(namespace: &str, name: &str, spec: Value) -> core::Service {
    let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    serde_json::from_value(object).unwrap()
}

fn slice(namespace: &str, name: &str, service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": { "namespace": namespace, "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }))
    .unwrap()
}

fn web_port() -> Value {
    json!([{ "name": "http", "port": 80, "protocol": "TCP" }])
}

fn cluster() -> Index {
    let index = Index::default();
    for namespace in ["default", "kube-system", "empty"] {
        index.set_namespace(namespace);
    }
    let dns_ports = json!([
        { "name": "dns", "port": 53, "protocol": "UDP" },
        { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
    ]);
    index.set_service(&service(
        "kube-system",
        "kube-dns",
        json!({ "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": dns_ports }),
    ));
    index.set_service(&service(
        "default",
        "dual",
        json!({ "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00::20"], "ports": web_port() }),
    ));
    index.set_service(&service(
        "default",
        "plain",
        json!({ "clusterIP": "10.96.0.21", "ports": [{ "port": 8080 }] }),
    ));
    index.set_service(&service("default", "pending", json!({ "ports": [{ "port": 80 }] })));
    index.set_slice(&slice(
        "default",
        "plain-1",
        "plain",
        json!([{ "name": "", "port": 8080, "protocol": "TCP" }]),
        json!([{ "addresses": ["10.244.0.30"], "hostname": "named", "conditions": { "ready": true } }]),
    ));
    // Headless: two slices, one address in both, one endpoint that is not ready, one with IPv6.
    index.set_service(&service("default", "db", json!({ "clusterIP": "None", "ports": web_port() })));
    index.set_slice(&slice(
        "default",
        "db-1",
        "db",
        web_port(),
        json!([
            { "addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": { "ready": true } },
            { "addresses": ["10.244.0.6"], "hostname": "db-1", "conditions": { "ready": false } },
            { "addresses": ["10.244.0.7"], "conditions": {} },
        ]),
    ));
    index.set_slice(&slice(
        "default",
        "db-2",
        "db",
        web_port(),
        json!([
            { "addresses": ["10.244.0.7"], "conditions": { "ready": true } },
            { "addresses": ["fd00::8"], "conditions": { "ready": true } },
        ]),
    ));
    index.set_service(&service("default", "portless", json!({ "clusterIP": "None" })));
    index.set_slice(&slice(
        "default",
        "portless-1",
        "portless",
        Value::Null,
        json!([{ "addresses": ["10.244.0.40"], "conditions": { "ready": true } }]),
    ));
    index.set_service(&service("default", "none-ready", json!({ "clusterIP": "None", "ports": web_port() })));
    index.set_slice(&slice(
        "default",
        "none-ready-1",
        "none-ready",
        web_port(),
        json!([{ "addresses": ["10.244.0.50"], "conditions": { "ready": false } }]),
    ));
    let external = |name: &str, target: &str| {
        service("default", name, json!({ "type": "ExternalName", "externalName": target }))
    };
    index.set_service(&external("out", "www.example.com"));
    index.set_service(&external("in", "Plain.default.svc.cluster.local."));
    index.set_service(&external("twice", "out.default.svc.cluster.local"));
    index.set_service(&external("nowhere", "missing.default.svc.cluster.local"));
    index.set_service(&external("circle", "circle.default.svc.cluster.local"));
    index.set_service(&external("address", "192.0.2.1"));
    index
}

fn zone() -> Zone {
    let own = ("kube-system".to_owned(), "kube-dns".to_owned());
    Zone::new("cluster.local", 5, own, vec!["10.244.0.2".parse::<IpAddr>().unwrap()]).unwrap()
}

fn show(record: &Record) -> String {
    let data = match &record.data {
        RData::SOA(soa) => format!("{} {} min {}", soa.mname, soa.rname, soa.minimum),
        RData::TXT(txt) => {
            txt.txt_data.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect()
        }
        data => data.to_string(),
    };
    format!("{} {} {} {data}", record.name.to_ascii(), record.ttl, record.record_type())
}

fn all(records: &[Record]) -> Vec<String> {
    records.iter().map(show).collect()
}

/// The outcome on one line: what it is, then the answers without the name and time that are the same
/// for all, then `+` and the additional records.
fn ask(index: &Index, name: &str, kind: RecordType) -> String {
    let lookup = zone().lookup(&index.records(), &parse_name(name).unwrap(), kind);
    let brief = |records: &[Record]| {
        records
            .iter()
            .map(|record| format!("{} {}", record.record_type(), data(record)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match &lookup {
        Lookup::Found { answers, additionals } if additionals.is_empty() => brief(answers),
        Lookup::Found { answers, additionals } => format!("{} + {}", brief(answers), brief(additionals)),
        Lookup::Alias { answers, target } => format!("{} > {target}", brief(answers)),
        Lookup::NoData { answers, .. } => format!("nodata {}", brief(answers)).trim_end().to_owned(),
        Lookup::NoName { answers, .. } => format!("noname {}", brief(answers)).trim_end().to_owned(),
        Lookup::NoAddress { private } => format!("noaddress private={private}"),
        Lookup::Foreign => "foreign".to_owned(),
    }
}

fn data(record: &Record) -> String {
    show(record).splitn(4, ' ').nth(3).unwrap_or_default().to_owned()
}

fn check(cases: &[(&str, RecordType, &str)]) {
    let index = cluster();
    for (name, kind, expected) in cases {
        assert_eq!(ask(&index, name, *kind), *expected, "{name} {kind}");
    }
}

#[test]
fn services_with_a_cluster_address() {
    use RecordType::{A, AAAA, ANY, CNAME, HTTPS, MX, PTR, SRV, TXT};
    let dual = "dual.default.svc.cluster.local";
    let port = "_http._tcp.dual.default.svc.cluster.local";
    let target = "SRV 0 100 80 dual.default.svc.cluster.local. + A 10.96.0.20, AAAA fd00::20";
    check(&[
        (dual, A, "A 10.96.0.20"),
        (dual, AAAA, "AAAA fd00::20"),
        ("DUAL.Default.SVC.Cluster.LOCAL", A, "A 10.96.0.20"),
        (dual, SRV, target),
        (port, SRV, target),
        ("_HTTP._Tcp.dual.default.svc.cluster.local", SRV, target),
        (port, A, "nodata"),
        ("_tcp.dual.default.svc.cluster.local", SRV, "nodata"),
        ("_udp.dual.default.svc.cluster.local", SRV, "noname"),
        ("_http._udp.dual.default.svc.cluster.local", SRV, "noname"),
        ("http.tcp.dual.default.svc.cluster.local", SRV, "noname"),
        ("_https._tcp.dual.default.svc.cluster.local", SRV, "noname"),
        ("x._http._tcp.dual.default.svc.cluster.local", SRV, "noname"),
        ("plain.default.svc.cluster.local", A, "A 10.96.0.21"),
        ("plain.default.svc.cluster.local", AAAA, "nodata"),
        ("plain.default.svc.cluster.local", TXT, "nodata"),
        ("plain.default.svc.cluster.local", MX, "nodata"),
        ("plain.default.svc.cluster.local", CNAME, "nodata"),
        ("plain.default.svc.cluster.local", PTR, "nodata"),
        ("plain.default.svc.cluster.local", HTTPS, "nodata"),
        ("plain.default.svc.cluster.local", ANY, "nodata"),
        // Unnamed ports have no name of their own.
        ("_._tcp.plain.default.svc.cluster.local", SRV, "noname"),
        ("_tcp.plain.default.svc.cluster.local", SRV, "noname"),
        // Endpoints with a hostname have a name below any Service (CoreDNS).
        ("named.plain.default.svc.cluster.local", A, "A 10.244.0.30"),
        ("10-244-0-30.plain.default.svc.cluster.local", A, "noname"),
        ("pending.default.svc.cluster.local", A, "nodata"),
        ("pending.default.svc.cluster.local", SRV, "nodata"),
        ("missing.default.svc.cluster.local", A, "noname"),
        ("missing.default.svc.cluster.local", TXT, "noname"),
        ("*.default.svc.cluster.local", A, "noname"),
        ("dual.*.svc.cluster.local", A, "noname"),
        ("any.default.svc.cluster.local", A, "noname"),
    ]);
}

#[test]
fn headless_services() {
    use RecordType::{A, AAAA, SRV};
    let all = "SRV 0 33 80 db-0.db.default.svc.cluster.local., SRV 0 33 80 10-244-0-7.db.default.svc.cluster.local., \
               SRV 0 33 80 fd00--8.db.default.svc.cluster.local. + A 10.244.0.5, A 10.244.0.7, AAAA fd00::8";
    check(&[
        ("db.default.svc.cluster.local", A, "A 10.244.0.5, A 10.244.0.7"),
        ("db.default.svc.cluster.local", AAAA, "AAAA fd00::8"),
        ("db-0.db.default.svc.cluster.local", A, "A 10.244.0.5"),
        ("DB-0.db.default.svc.cluster.local", A, "A 10.244.0.5"),
        ("db-0.db.default.svc.cluster.local", AAAA, "nodata"),
        ("db-1.db.default.svc.cluster.local", A, "noname"),
        ("10-244-0-7.db.default.svc.cluster.local", A, "A 10.244.0.7"),
        ("10-244-0-5.db.default.svc.cluster.local", A, "noname"),
        ("fd00--8.db.default.svc.cluster.local", AAAA, "AAAA fd00::8"),
        ("_http._tcp.db.default.svc.cluster.local", SRV, all),
        ("db.default.svc.cluster.local", SRV, all),
        (
            "db-0.db.default.svc.cluster.local",
            SRV,
            "SRV 0 100 80 db-0.db.default.svc.cluster.local. + A 10.244.0.5",
        ),
        ("_tcp.db.default.svc.cluster.local", A, "nodata"),
        ("x.db-0.db.default.svc.cluster.local", A, "noname"),
        ("portless.default.svc.cluster.local", A, "A 10.244.0.40"),
        ("portless.default.svc.cluster.local", SRV, "nodata"),
        // The specification: without a ready endpoint there is no such name.
        ("none-ready.default.svc.cluster.local", A, "noname"),
        ("_http._tcp.none-ready.default.svc.cluster.local", SRV, "noname"),
    ]);
}

#[test]
fn external_names() {
    use RecordType::{A, AAAA, CNAME, SRV, TXT};
    let out = "CNAME www.example.com. > www.example.com.";
    check(&[
        ("out.default.svc.cluster.local", A, out),
        ("out.default.svc.cluster.local", AAAA, out),
        ("out.default.svc.cluster.local", TXT, out),
        ("out.default.svc.cluster.local", CNAME, "CNAME www.example.com."),
        ("x.out.default.svc.cluster.local", A, "noname"),
        ("_a._tcp.out.default.svc.cluster.local", SRV, "noname"),
        ("in.default.svc.cluster.local", A, "CNAME Plain.default.svc.cluster.local., A 10.96.0.21"),
        ("in.default.svc.cluster.local", AAAA, "nodata CNAME Plain.default.svc.cluster.local."),
        (
            "twice.default.svc.cluster.local",
            A,
            "CNAME out.default.svc.cluster.local., CNAME www.example.com. > www.example.com.",
        ),
        ("nowhere.default.svc.cluster.local", A, "noname CNAME missing.default.svc.cluster.local."),
        ("address.default.svc.cluster.local", A, "noname"),
    ]);
    let circle = ask(&cluster(), "circle.default.svc.cluster.local", A);
    assert_eq!(circle.matches("CNAME").count(), super::MAX_ALIASES, "{circle}");
}

#[test]
fn names_of_the_zone_itself() {
    use RecordType::{A, AAAA, NS, SOA, SRV, TXT};
    check(&[
        ("cluster.local", SOA, "SOA ns.dns.cluster.local. hostmaster.cluster.local. min 5"),
        ("cluster.local", NS, "NS ns.dns.cluster.local. + A 10.96.0.10"),
        ("cluster.local", A, "nodata"),
        ("ns.dns.cluster.local", A, "A 10.96.0.10"),
        ("ns.dns.cluster.local", AAAA, "nodata"),
        ("ns.dns.cluster.local", NS, "nodata"),
        ("dns.cluster.local", A, "nodata"),
        ("x.dns.cluster.local", A, "noname"),
        ("dns-version.cluster.local", TXT, "TXT 1.1.0"),
        ("DNS-Version.cluster.local", TXT, "TXT 1.1.0"),
        ("dns-version.cluster.local", A, "nodata"),
        ("svc.cluster.local", A, "nodata"),
        ("svc.cluster.local", SOA, "nodata"),
        ("pod.cluster.local", A, "nodata"),
        ("default.svc.cluster.local", A, "nodata"),
        ("empty.svc.cluster.local", SRV, "nodata"),
        ("gone.svc.cluster.local", A, "noname"),
        ("x.gone.svc.cluster.local", A, "noname"),
        ("other.cluster.local", A, "noname"),
        ("a.b.c.other.cluster.local", A, "noname"),
        ("example.com", A, "foreign"),
        ("notcluster.local", A, "foreign"),
        ("local", A, "foreign"),
        ("", NS, "foreign"),
    ]);
}

#[test]
fn pods() {
    use RecordType::{A, AAAA, SRV};
    check(&[
        ("10-244-0-9.default.pod.cluster.local", A, "A 10.244.0.9"),
        ("10-244-0-9.default.pod.cluster.local", AAAA, "nodata"),
        ("10-244-0-9.default.pod.cluster.local", SRV, "nodata"),
        ("fd00--9.default.pod.cluster.local", AAAA, "AAAA fd00::9"),
        ("1-2-3--4.default.pod.cluster.local", AAAA, "AAAA 1:2:3::4"),
        ("10-244-0-9.gone.pod.cluster.local", A, "noname"),
        ("default.pod.cluster.local", A, "nodata"),
        ("gone.pod.cluster.local", A, "noname"),
        ("10-244-0.default.pod.cluster.local", A, "noname"),
        ("10-244-0-256.default.pod.cluster.local", A, "noname"),
        ("x.10-244-0-9.default.pod.cluster.local", A, "noname"),
    ]);
}

#[test]
fn addresses_to_names() {
    use RecordType::{A, PTR, SOA};
    let six = "8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    check(&[
        ("20.0.96.10.in-addr.arpa", PTR, "PTR dual.default.svc.cluster.local."),
        ("20.0.96.10.IN-ADDR.ARPA", PTR, "PTR dual.default.svc.cluster.local."),
        ("20.0.96.10.in-addr.arpa", A, "nodata"),
        ("5.0.244.10.in-addr.arpa", PTR, "PTR db-0.db.default.svc.cluster.local."),
        ("7.0.244.10.in-addr.arpa", PTR, "PTR 10-244-0-7.db.default.svc.cluster.local."),
        ("30.0.244.10.in-addr.arpa", PTR, "PTR named.plain.default.svc.cluster.local."),
        (six, PTR, "PTR fd00--8.db.default.svc.cluster.local."),
        ("6.0.244.10.in-addr.arpa", PTR, "noaddress private=true"),
        ("0.96.10.in-addr.arpa", PTR, "noaddress private=true"),
        ("8.8.8.8.in-addr.arpa", PTR, "noaddress private=false"),
        ("in-addr.arpa", SOA, "noaddress private=false"),
        ("arpa", SOA, "foreign"),
    ]);
}

#[test]
fn owners_and_times_of_records() {
    let index = cluster();
    let lookup = |name: &str, kind| zone().lookup(&index.records(), &parse_name(name).unwrap(), kind);
    let Lookup::Found { answers, .. } = lookup("Plain.DEFAULT.svc.cluster.local", RecordType::A) else {
        panic!("there is such a Service")
    };
    assert_eq!(all(&answers), ["Plain.DEFAULT.svc.cluster.local. 5 A 10.96.0.21"]);
    let Lookup::Found { answers, .. } = lookup("dns-version.cluster.local", RecordType::TXT) else {
        panic!("there is a version")
    };
    assert_eq!(all(&answers), ["dns-version.cluster.local. 28800 TXT 1.1.0"]);
    let Lookup::NoName { soa, .. } = lookup("x.default.svc.cluster.local", RecordType::A) else {
        panic!("there is no such Service")
    };
    assert_eq!(show(&soa), "cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. min 5");
    let Lookup::NoData { soa, .. } = lookup("20.0.96.10.in-addr.arpa", RecordType::A) else {
        panic!("the name has other records")
    };
    assert_eq!(soa.name.to_ascii(), "in-addr.arpa.");
    let Lookup::Found { answers, .. } = lookup("in.default.svc.cluster.local", RecordType::A) else {
        panic!("the alias leads to a Service")
    };
    assert_eq!(answers[1].name.to_ascii(), "Plain.default.svc.cluster.local.");
}

#[test]
fn changes_of_objects_change_names() {
    use RecordType::{A, PTR};
    let index = cluster();
    let db = "db.default.svc.cluster.local";
    // A slice that moves to another Service, then goes.
    let moved = slice(
        "default",
        "db-1",
        "plain",
        web_port(),
        json!([{ "addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": { "ready": true } }]),
    );
    index.set_slice(&moved);
    assert_eq!(ask(&index, db, A), "A 10.244.0.7");
    assert_eq!(ask(&index, "db-0.plain.default.svc.cluster.local", A), "A 10.244.0.5");
    assert_eq!(ask(&index, "5.0.244.10.in-addr.arpa", PTR), "PTR db-0.plain.default.svc.cluster.local.");
    index.remove_slice(&moved);
    assert_eq!(ask(&index, "5.0.244.10.in-addr.arpa", PTR), "noaddress private=true");
    // A Service whose kind changes.
    let headless = service("default", "dual", json!({ "clusterIP": "None" }));
    index.set_service(&headless);
    assert_eq!(ask(&index, "dual.default.svc.cluster.local", A), "noname");
    assert_eq!(ask(&index, "20.0.96.10.in-addr.arpa", PTR), "noaddress private=true");
    // A slice before its Service.
    let early = slice(
        "default",
        "late-1",
        "late",
        web_port(),
        json!([{ "addresses": ["10.244.0.60"], "conditions": { "ready": true } }]),
    );
    index.set_slice(&early);
    assert_eq!(ask(&index, "late.default.svc.cluster.local", A), "noname");
    index.set_service(&service("default", "late", json!({ "clusterIP": "None" })));
    assert_eq!(ask(&index, "late.default.svc.cluster.local", A), "A 10.244.0.60");
    index.remove_service(&service("default", "late", json!({})));
    assert_eq!(ask(&index, "late.default.svc.cluster.local", A), "noname");
    // A Namespace that goes takes its names along.
    index.remove_namespace("default");
    assert_eq!(ask(&index, db, A), "noname");
    index.remove_service(&service("kube-system", "kube-dns", json!({})));
    assert_eq!(ask(&index, "ns.dns.cluster.local", A), "A 10.244.0.2");
}

#[test]
fn nothing_that_matters_makes_no_new_snapshot() {
    let index = cluster();
    let before = std::sync::Arc::clone(&index.records());
    index.set_namespace("default");
    index.set_service(&service(
        "default",
        "plain",
        json!({ "clusterIP": "10.96.0.21", "ports": [{ "port": 8080 }], "selector": { "a": "b" } }),
    ));
    assert!(std::sync::Arc::ptr_eq(&before, &index.records()));
    index.set_service(&service("default", "new", json!({ "clusterIP": "10.96.0.99" })));
    assert!(!std::sync::Arc::ptr_eq(&before, &index.records()));
    assert!(before.service("default", "new").is_none());
}

#[test]
fn domains_of_other_depths() {
    let own = ("kube-system".to_owned(), "kube-dns".to_owned());
    let index = cluster();
    for (domain, name, found) in [
        ("k", "plain.default.svc.k", true),
        ("a.b.Example.com.", "plain.default.svc.a.b.example.com", true),
        ("a.b.example.com", "plain.default.svc.b.example.com", false),
    ] {
        let zone = Zone::new(domain, 5, own.clone(), Vec::new()).unwrap();
        let lookup = zone.lookup(&index.records(), &parse_name(name).unwrap(), RecordType::A);
        assert_eq!(matches!(lookup, Lookup::Found { .. }), found, "{domain}");
    }
    for domain in ["", ".", "a..b"] {
        assert!(Zone::new(domain, 5, own.clone(), Vec::new()).is_err(), "{domain}");
    }
}
