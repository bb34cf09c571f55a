//! The server over real sockets on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use kedge_base::Tasks;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::records::Index;
use super::test_upstream::{Answers, Upstream, address, loopback, name};
use super::{Config, Server, StubDomain, serve_index};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const MANY: usize = 120;
/// So many that their SRV records fit into a packet, but not the addresses that go with them.
const FEW: usize = 15;

/// One Service with an address, one headless with many endpoints, one alias to the outside.
fn index() -> Arc<Index> {
    let index = Index::default();
    index.set_namespace("default");
    let service = |name: &str, spec: serde_json::Value| {
        let object = json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec });
        index.set_service(&serde_json::from_value(object).unwrap());
    };
    service("web", json!({ "clusterIP": "10.96.0.20", "ports": [{ "name": "http", "port": 80 }] }));
    service("many", json!({ "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] }));
    service("out", json!({ "type": "ExternalName", "externalName": "www.example.com" }));
    service("few", json!({ "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] }));
    service("own", json!({ "clusterIP": "127.0.0.1", "ports": [{ "name": "dns", "port": 53 }] }));
    let endpoint = |number: usize| json!({ "addresses": [format!("10.244.1.{number}")], "conditions": { "ready": true } });
    for (service, count) in [("many", MANY), ("few", FEW)] {
        let slice = json!({
            "metadata": {
                "namespace": "default", "name": format!("{service}-1"),
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
            "endpoints": (1..=count).map(endpoint).collect::<Vec<_>>(),
        });
        index.set_slice(&serde_json::from_value(slice).unwrap());
    }
    Arc::new(index)
}

struct Running {
    server: Server,
    tasks: Tasks,
    synced: Arc<AtomicBool>,
}

impl Running {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: vec![loopback()],
            health: Some(loopback()),
            ready: Some(loopback()),
            metrics: Some(loopback()),
            resolv_conf: Vec::new(),
            lameduck: Duration::ZERO,
            timeout: PATIENCE,
            ..Config::default()
        };
        change(&mut config);
        let tasks = Tasks::new("test");
        let synced = Arc::new(AtomicBool::new(true));
        let known = synced.clone();
        let known = Box::new(move || known.load(Ordering::SeqCst));
        let server = serve_index(config, index(), known, &tasks).await.unwrap();
        Self { server, tasks, synced }
    }

    async fn udp(&self, request: &Message) -> Message {
        Message::from_vec(&ask_udp(self.server.bound().udp[0], &request.to_vec().unwrap()).await).unwrap()
    }

    async fn tcp(&self, request: &Message) -> Message {
        let mut stream = TcpStream::connect(self.server.bound().tcp[0]).await.unwrap();
        Message::from_vec(&ask_tcp(&mut stream, &request.to_vec().unwrap()).await).unwrap()
    }

    async fn ask(&self, question: &str, kind: RecordType) -> Message {
        self.udp(&query(question, kind)).await
    }

    async fn page(&self, address: Option<SocketAddr>, request: &str) -> String {
        let mut stream = TcpStream::connect(address.unwrap()).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn end(self) {
        self.server.stop().await;
        assert!(self.tasks.shutdown(PATIENCE).await.is_empty());
    }
}

fn query(question: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(question), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(0);
    message.set_edns(edns);
    message
}

async fn ask_udp(server: SocketAddr, request: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(request).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer.truncate(length);
    buffer
}

async fn ask_tcp(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
    stream.write_all(&u16::try_from(request.len()).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await.unwrap();
    buffer
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| format!("{} {}", record.name.to_ascii(), record.data)).collect()
}

fn www() -> (&'static str, (ResponseCode, Vec<Record>)) {
    let alias = RData::CNAME(CNAME(name("host.example.com")));
    let records =
        vec![Record::from_rdata(name("www.example.com"), 300, alias), address("host.example.com", 7)];
    ("www.example.com.", (ResponseCode::NoError, records))
}

/// Nothing listens there.
async fn dead() -> SocketAddr {
    UdpSocket::bind(loopback()).await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn own_names_by_udp_and_tcp() {
    let running = Running::start(|_| {}).await;
    let request = query("Web.Default.svc.CLUSTER.local", RecordType::A);
    for response in [running.udp(&request).await, running.tcp(&request).await] {
        assert_eq!(response.metadata.id, request.metadata.id);
        assert_eq!(response.metadata.message_type, MessageType::Response);
        assert_eq!(response.metadata.response_code, ResponseCode::NoError);
        let flags = response.metadata;
        assert!(
            flags.authoritative && flags.recursion_desired && flags.recursion_available && !flags.truncation
        );
        assert_eq!(response.queries[0].name.to_ascii(), "Web.Default.svc.CLUSTER.local.");
        assert_eq!(texts(&response.answers), ["Web.Default.svc.CLUSTER.local. 10.96.0.20"]);
        assert!(response.edns.is_none(), "the client has not used it");
    }
    let missing = running.ask("nobody.default.svc.cluster.local", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert!(missing.metadata.authoritative);
    assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);
    let other = running.ask("web.default.svc.cluster.local", RecordType::AAAA).await;
    assert_eq!((other.metadata.response_code, other.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!((other.authorities[0].record_type(), other.authorities[0].ttl), (RecordType::SOA, 5));
    // Several questions on one connection.
    let mut stream = TcpStream::connect(running.server.bound().tcp[0]).await.unwrap();
    for _ in 0..3 {
        let response = ask_tcp(&mut stream, &request.to_vec().unwrap()).await;
        assert_eq!(Message::from_vec(&response).unwrap().answers.len(), 1);
    }
    drop(stream);
    running.end().await;
}

#[tokio::test]
async fn answers_are_cut_to_what_the_client_takes() {
    let running = Running::start(|_| {}).await;
    let many = "many.default.svc.cluster.local";
    let size =
        async |request: &Message| ask_udp(running.server.bound().udp[0], &request.to_vec().unwrap()).await;
    for (payload, limit) in
        [(None, 512), (Some(400), 512), (Some(900), 900), (Some(1232), 1232), (Some(4096), 1232)]
    {
        let request = query(many, RecordType::A);
        let request = if let Some(payload) = payload { with_edns(request, payload) } else { request };
        let bytes = size(&request).await;
        let response = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= limit && bytes.len() > limit - 40, "{payload:?}: {} bytes", bytes.len());
        assert!(response.metadata.truncation, "{payload:?}");
        assert!(
            !response.answers.is_empty() && response.answers.len() < MANY,
            "some clients never ask by TCP"
        );
        assert_eq!(response.edns.is_some(), payload.is_some(), "{payload:?}");
    }
    // Addresses that nobody has asked for are left out silently.
    let few = with_edns(query("_http._tcp.few.default.svc.cluster.local", RecordType::SRV), 1232);
    let response = running.udp(&few).await;
    assert_eq!((response.answers.len(), response.metadata.truncation), (FEW, false));
    assert!((1..FEW).contains(&response.additionals.len()), "{} addresses", response.additionals.len());
    assert!(response.edns.is_some());
    let whole = running.tcp(&query(many, RecordType::A)).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (MANY, false));
    let whole = running.tcp(&query("_http._tcp.many.default.svc.cluster.local", RecordType::SRV)).await;
    assert_eq!((whole.answers.len(), whole.additionals.len()), (MANY, MANY));
    running.end().await;
}

#[tokio::test]
async fn addresses_take_turns() {
    let running = Running::start(|_| {}).await;
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let response = running.ask("many.default.svc.cluster.local", RecordType::A).await;
        first.insert(texts(&response.answers)[0].clone());
    }
    assert_eq!(first.len(), 10);
    running.end().await;
}

#[tokio::test]
async fn questions_that_are_none() {
    let running = Running::start(|_| {}).await;
    let web = "web.default.svc.cluster.local";
    let mut update = query(web, RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    let mut two = query(web, RecordType::A);
    two.add_query(Query::query(name(web), RecordType::AAAA));
    let mut none = query(web, RecordType::A);
    none.queries.clear();
    let mut version = with_edns(query(web, RecordType::A), 1232);
    version.edns.as_mut().unwrap().set_version(1);
    let mut chaos = query("version.bind", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    for (request, expected) in [
        (update, 4),
        (two, 1),
        (none, 1),
        (version, 16),
        (chaos, 5),
        (query("cluster.local", RecordType::AXFR), 5),
        (query("example.com", RecordType::IXFR), 5),
    ] {
        let response = running.udp(&request).await;
        assert_eq!(u16::from(response.metadata.response_code), expected, "{request:?}");
        assert!(response.answers.is_empty());
    }
    // Rubbish is passed over, and an answer is not answered.
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(running.server.bound().udp[0]).await.unwrap();
    let mut answer = query(web, RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    for bytes in [vec![], vec![1], vec![0xff; 11], answer.to_vec().unwrap()] {
        socket.send(&bytes).await.unwrap();
    }
    let good = query(web, RecordType::A);
    socket.send(&good.to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, good.metadata.id);
    running.end().await;
}

#[tokio::test]
async fn other_names_are_asked_for_once() {
    let mut answers = Answers::from([www()]);
    let many = (0..100).map(|last| address("big.example.com", last)).collect();
    answers.insert("big.example.com.", (ResponseCode::NoError, many));
    let upstream = Upstream::start(answers).await;
    let running = Running::start(|config| config.upstreams = vec![upstream.address]).await;
    for question in ["www.example.com", "WWW.Example.COM", "www.example.com"] {
        let response = running.ask(question, RecordType::A).await;
        assert!(!response.metadata.authoritative && response.metadata.recursion_available);
        let alias = format!("{question}. host.example.com.");
        assert_eq!(texts(&response.answers), [alias, "host.example.com. 192.0.2.7".to_owned()]);
        assert_eq!(upstream.asked(), 1);
    }
    for _ in 0..2 {
        let response = running.ask("missing.example.com", RecordType::A).await;
        assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
        let soa = &response.authorities[0];
        assert!(soa.record_type() == RecordType::SOA && soa.ttl <= 30);
        assert_eq!(upstream.asked(), 2);
    }
    let alias = running.ask("out.default.svc.cluster.local", RecordType::A).await;
    assert!(alias.metadata.authoritative);
    assert_eq!(
        texts(&alias.answers),
        [
            "out.default.svc.cluster.local. www.example.com.",
            "www.example.com. host.example.com.",
            "host.example.com. 192.0.2.7"
        ]
    );
    assert_eq!(upstream.asked(), 2, "the target is known already");
    // An answer that did not fit by UDP was fetched by TCP.
    let big = running.tcp(&query("big.example.com", RecordType::A)).await;
    assert_eq!(big.answers.len(), 100);
    // Reverse names that are not the cluster's.
    let reverse = running.ask("4.3.2.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!((reverse.metadata.response_code, upstream.asked()), (ResponseCode::NXDomain, 4));
    let own = running.ask("20.0.96.10.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(texts(&own.answers), ["20.0.96.10.in-addr.arpa. web.default.svc.cluster.local."]);
    assert_eq!(upstream.asked(), 4);
    running.end().await;
}

#[tokio::test]
async fn another_server_helps_out() {
    let refusing =
        Upstream::start(Answers::from([("www.example.com.", (ResponseCode::ServFail, vec![]))])).await;
    let good = Upstream::start(Answers::from([www()])).await;
    let closed = dead().await;
    let servers = vec![closed, refusing.address, good.address];
    let running = Running::start(|config| config.upstreams = servers).await;
    let response = running.ask("www.example.com", RecordType::A).await;
    assert_eq!((response.metadata.response_code, response.answers.len()), (ResponseCode::NoError, 2));
    assert_eq!((refusing.asked(), good.asked()), (1, 1));
    running.end().await;
    // Nobody answers at all: the client is told before it gives up.
    let running = Running::start(|config| config.upstreams = vec![closed]).await;
    let response = running.ask("www.example.com", RecordType::A).await;
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    let alias = running.ask("out.default.svc.cluster.local", RecordType::A).await;
    assert_eq!(alias.metadata.response_code, ResponseCode::ServFail);
    running.end().await;
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without_it() {
    let old = Upstream::start_as(Answers::from([www()]), true).await;
    let running = Running::start(|config| config.upstreams = vec![old.address]).await;
    let response = running.udp(&with_edns(query("www.example.com", RecordType::A), 1232)).await;
    assert_eq!((response.answers.len(), response.edns.is_some(), old.asked()), (2, true, 2));
    running.end().await;
}

#[tokio::test]
async fn stub_domains_have_servers_of_their_own() {
    let general = Upstream::start(Answers::new()).await;
    let corp = Upstream::start(Answers::from([(
        "a.corp.example.",
        (ResponseCode::NoError, vec![address("a.corp.example", 1)]),
    )]))
    .await;
    let deep = Upstream::start(Answers::from([(
        "a.deep.corp.example.",
        (ResponseCode::NoError, vec![address("a.deep.corp.example", 2)]),
    )]))
    .await;
    let running = Running::start(|config| {
        let stub = |domain: &str, server: &Upstream| StubDomain {
            domain: domain.into(),
            servers: vec![server.address],
        };
        config.upstreams = vec![general.address];
        config.stub_domains = vec![stub("Corp.example", &corp), stub("deep.corp.example", &deep)];
    })
    .await;
    for (question, answers) in [("a.corp.example", 1), ("A.Deep.Corp.example", 1), ("notcorp.example", 0)] {
        assert_eq!(running.ask(question, RecordType::A).await.answers.len(), answers, "{question}");
    }
    assert_eq!((general.asked(), corp.asked(), deep.asked()), (1, 1, 1));
    running.end().await;
}

#[tokio::test]
async fn without_another_server() {
    let running = Running::start(|_| {}).await;
    for (question, kind, expected) in [
        ("example.com", RecordType::A, ResponseCode::ServFail),
        ("out.default.svc.cluster.local", RecordType::A, ResponseCode::ServFail),
        ("8.8.8.8.in-addr.arpa", RecordType::PTR, ResponseCode::ServFail),
        ("9.9.244.10.in-addr.arpa", RecordType::PTR, ResponseCode::NXDomain),
        ("web.default.svc.cluster.local", RecordType::A, ResponseCode::NoError),
    ] {
        let response = running.ask(question, kind).await;
        assert_eq!(response.metadata.response_code, expected, "{question}");
    }
    running.end().await;
}

#[tokio::test]
async fn the_server_never_asks_itself() {
    let upstream = Upstream::start(Answers::from([www()])).await;
    // "own" has the upstream's address here.
    let running = Running::start(|config| {
        config.upstreams = vec![upstream.address];
        config.service = ("default".into(), "own".into());
    })
    .await;
    let response = running.ask("www.example.com", RecordType::A).await;
    assert_eq!((response.metadata.response_code, upstream.asked()), (ResponseCode::ServFail, 0));
    running.end().await;
}

#[test]
fn machines_without_ipv6() {
    use super::without_ipv6;
    use nix::errno::Errno;
    let error = |errno: Errno| std::io::Error::from_raw_os_error(errno as i32);
    let any: SocketAddr = "[::]:53".parse().unwrap();
    assert_eq!(without_ipv6(any, &error(Errno::EAFNOSUPPORT)), Some("0.0.0.0:53".parse().unwrap()));
    assert_eq!(without_ipv6(any, &error(Errno::EADDRINUSE)), None);
    assert_eq!(without_ipv6("[::1]:53".parse().unwrap(), &error(Errno::EADDRNOTAVAIL)), None);
}

#[tokio::test]
async fn nothing_is_denied_before_everything_is_known() {
    let running = Running::start(|_| {}).await;
    running.synced.store(false, Ordering::SeqCst);
    let (web, missing) = ("web.default.svc.cluster.local", "nobody.default.svc.cluster.local");
    let code = async |question| running.ask(question, RecordType::A).await.metadata.response_code;
    assert_eq!(code(web).await, ResponseCode::NoError);
    assert_eq!(code(missing).await, ResponseCode::ServFail);
    let ready = running.server.bound().ready;
    assert!(running.page(ready, "GET /ready").await.starts_with("HTTP/1.1 503 "));
    assert!(!running.server.is_ready());
    running.synced.store(true, Ordering::SeqCst);
    assert_eq!(code(missing).await, ResponseCode::NXDomain);
    assert!(running.page(ready, "GET /ready").await.starts_with("HTTP/1.1 200 "));
    running.end().await;
}

#[tokio::test]
async fn health_and_figures() {
    let upstream = Upstream::start(Answers::from([www()])).await;
    let running = Running::start(|config| config.upstreams = vec![upstream.address]).await;
    let bound = running.server.bound().clone();
    let health = running.page(bound.health, "GET /health").await;
    assert!(health.starts_with("HTTP/1.1 200 ") && health.ends_with("\r\n\r\nOK"), "{health}");
    assert!(running.page(bound.health, "GET /other").await.starts_with("HTTP/1.1 404 "));
    assert!(running.page(bound.health, "POST /health").await.starts_with("HTTP/1.1 405 "));
    running.ask("web.default.svc.cluster.local", RecordType::A).await;
    running.ask("nobody.default.svc.cluster.local", RecordType::AAAA).await;
    running.tcp(&with_edns(query("www.example.com", RecordType::A), 1232)).await;
    running.ask("www.example.com", RecordType::A).await;
    let page = running.page(bound.metrics, "GET /metrics").await;
    let base = "server=\"dns://:0\",zone=\".\",view=\"\"";
    for line in [
        format!("coredns_dns_requests_total{{{base},proto=\"udp\",family=\"1\",type=\"A\"}} 2\n"),
        format!("coredns_dns_requests_total{{{base},proto=\"udp\",family=\"1\",type=\"AAAA\"}} 1\n"),
        format!("coredns_dns_requests_total{{{base},proto=\"tcp\",family=\"1\",type=\"A\"}} 1\n"),
        format!("coredns_dns_responses_total{{{base},rcode=\"NOERROR\",plugin=\"kubernetes\"}} 1\n"),
        format!("coredns_dns_responses_total{{{base},rcode=\"NXDOMAIN\",plugin=\"kubernetes\"}} 1\n"),
        format!("coredns_dns_responses_total{{{base},rcode=\"NOERROR\",plugin=\"forward\"}} 2\n"),
        format!("coredns_dns_request_duration_seconds_count{{{base}}} 4\n"),
        format!("coredns_dns_response_size_bytes_count{{{base},proto=\"udp\"}} 3\n"),
        "coredns_cache_hits_total{server=\"dns://:0\",zones=\".\",view=\"\",type=\"success\"} 1\n".to_owned(),
        "coredns_cache_misses_total{server=\"dns://:0\",zones=\".\",view=\"\"} 1\n".to_owned(),
        format!("to=\"{}\",rcode=\"NOERROR\"}} 1\n", upstream.address),
        "process_resident_memory_bytes ".to_owned(),
    ] {
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
    // What Prometheus would refuse: a line that is neither a comment nor a name with a value.
    for line in page.split("\r\n\r\n").nth(1).unwrap().lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(
            value.parse::<f64>().is_ok() && series.starts_with(|c: char| c.is_ascii_alphabetic()),
            "{line}"
        );
    }
    running.end().await;
}

#[tokio::test]
async fn the_end_is_announced() {
    let running = Running::start(|config| config.lameduck = Duration::from_secs(3600)).await;
    let bound = running.server.bound().clone();
    let running = Arc::new(running);
    let stopping = running.clone();
    let stop = running.tasks.spawn("stop", async move { stopping.server.stop().await });
    // Not ready any more, but still answering.
    while !running.page(bound.ready, "GET /ready").await.starts_with("HTTP/1.1 503 ") {
        tokio::task::yield_now().await;
    }
    let response = running.ask("web.default.svc.cluster.local", RecordType::A).await;
    assert_eq!(response.answers.len(), 1);
    // Whoever is in a hurry stops the tasks.
    running.tasks.token().cancel();
    stop.await.unwrap();
    assert!(TcpStream::connect(bound.tcp[0]).await.is_err());
    assert!(UdpSocket::bind(bound.udp[0]).await.is_ok(), "the port is free again");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = UdpSocket::bind(loopback()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let config = Config {
        listen: vec![address],
        health: None,
        ready: None,
        metrics: None,
        resolv_conf: Vec::new(),
        ..Config::default()
    };
    let error = serve_index(config, index(), Box::new(|| true), &Tasks::new("test")).await.err().unwrap();
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("another program"), "{text}");
}
