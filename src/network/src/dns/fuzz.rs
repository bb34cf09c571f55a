//! Questions of clients and answers of other servers, for fuzz/.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler as _, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use serde_json::json;

use super::cache::{Cache, Question, Reply};
use super::forward::{self, Forwarder, Source};
use super::handler::{Handler, Shared};
use super::metrics::Metrics;
use super::name::parse_name;
use super::records::Index;
use super::zone::Zone;

/// Takes the answer and reads it again.
#[derive(Clone)]
struct Reader(u16);

#[async_trait::async_trait]
impl ResponseHandler for Reader {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        let info = response.destructive_emit(&mut encoder)?;
        assert!(bytes.len() <= usize::from(self.0), "{} bytes", bytes.len());
        Message::from_vec(&bytes).expect("an answer that can be read");
        Ok(info)
    }
}

fn handler() -> Handler {
    let index = Index::default();
    index.set_namespace("default");
    for (name, spec) in [
        ("web", json!({ "clusterIP": "10.96.0.20", "ports": [{ "name": "http", "port": 80 }] })),
        ("many", json!({ "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] })),
        ("out", json!({ "type": "ExternalName", "externalName": "www.example.com" })),
    ] {
        let object = json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec });
        index.set_service(&serde_json::from_value(object).expect("a Service"));
    }
    let endpoints: Vec<_> = (1..=100)
        .map(|n| json!({ "addresses": [format!("10.244.1.{n}")], "conditions": { "ready": true } }))
        .collect();
    let slice = json!({
        "metadata": { "namespace": "default", "name": "many-1", "labels": { "kubernetes.io/service-name": "many" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
        "endpoints": endpoints,
    });
    index.set_slice(&serde_json::from_value(slice).expect("a slice"));
    let zone = Zone::new("cluster.local", 30, ("kube-system".into(), "kube-dns".into()), Vec::new());
    let forwarder = Forwarder::new(Source::Given(Vec::new()), &[], 16, 16, Duration::from_secs(1));
    Handler(Arc::new(Shared {
        zone: zone.expect("a domain"),
        index: Arc::new(index),
        forwarder: forwarder.expect("no servers"),
        metrics: Metrics::new(53),
        synced: Box::new(|| true),
        active: Default::default(),
        turn: Default::default(),
    }))
}

/// A client's message; the first byte says by which protocol.
pub fn question(data: &[u8]) {
    thread_local! {
        static HANDLER: Handler = handler();
    }
    let Some((kind, bytes)) = data.split_first() else { return };
    let (protocol, limit) = if kind % 2 == 0 { (Protocol::Udp, 1232) } else { (Protocol::Tcp, u16::MAX) };
    let client = SocketAddr::from(([192, 0, 2, 1], 5353));
    let Ok(request) = Request::from_bytes(bytes.to_vec(), client, protocol) else { return };
    HANDLER.with(|handler| {
        futures_now(handler.handle_request::<_, TokioTime>(&request, Reader(limit)));
    });
}

/// Polls once: nobody is asked, so there is nothing to wait for.
fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("an answer that waits"),
    }
}

/// Questions for everything in the zone.
pub fn question_seeds() -> Vec<Vec<u8>> {
    let names = [
        "web.default.svc.cluster.local.",
        "many.default.svc.cluster.local.",
        "_http._tcp.many.default.svc.cluster.local.",
        "out.default.svc.cluster.local.",
        "20.0.96.10.in-addr.arpa.",
        "10-244-1-7.default.pod.cluster.local.",
        "dns-version.cluster.local.",
        "www.example.com.",
    ];
    let kinds = [RecordType::A, RecordType::SRV, RecordType::PTR, RecordType::ANY, RecordType::TXT];
    let mut seeds = Vec::new();
    for name in names {
        for kind in kinds {
            let mut message = Message::query();
            message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
            if kind == RecordType::SRV {
                message.set_edns(Edns::new());
            }
            let mut bytes = vec![u8::from(kind == RecordType::ANY)];
            bytes.extend(message.to_vec().expect("bytes"));
            seeds.push(bytes);
        }
    }
    seeds
}

/// Another server's message: what is kept of it.
pub fn answer(data: &[u8]) {
    let Ok(message) = Message::from_vec(data) else { return };
    let _ = forward::answers(&message, &Message::query());
    let name = message.queries.first().map_or_else(Name::root, |query| query.name.clone());
    let question = Question {
        name,
        kind: RecordType::A,
        class: hickory_proto::rr::DNSClass::IN,
        dnssec_ok: false,
        checking_disabled: false,
    };
    let reply = Reply {
        code: message.metadata.response_code,
        authentic: false,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    };
    let cache = Cache::new(16);
    let now = Instant::now();
    cache.put(&question, &reply, now);
    let _ = cache.get(&question, now + Duration::from_secs(5));
    let _ = reply.limited(RecordType::A);
}

/// A domain's name.
pub fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Other bytes are taken as they are, but written with a backslash.
    let is_plain = data.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(byte));
    if let Some(name) = parse_name(text).filter(|_| is_plain) {
        assert_eq!(parse_name(&name.to_ascii()), Some(name));
    }
    let _ = super::servers::parse_servers(text);
    let _ = super::servers::parse_stub_domains(text);
    let _ = text.parse::<super::StubDomain>();
    let labels: Vec<&[u8]> = data.split(|byte| *byte == b'.').collect();
    let _ = super::name::reverse_address(&labels);
    let _ = super::name::is_private_reverse(&labels);
}
