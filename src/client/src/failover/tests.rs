//! Real API servers in little: TLS listeners that answer one object and count what reaches them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1::ConfigMap;
use kedge_base::Backoff;
use kube::api::{Api, ListParams, PostParams};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::connect::Executor;

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn leaf(
        &self,
        name: &str,
        purpose: ExtendedKeyUsagePurpose,
    ) -> (Vec<rustls_pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn client(&self) -> Arc<ClientConfig> {
        let (chain, key) = self.leaf("n1", ExtendedKeyUsagePurpose::ClientAuth);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_root_certificates(self.roots()).with_client_auth_cert(chain, key).unwrap())
    }

    fn server(&self) -> TlsAcceptor {
        let (chain, key) = self.leaf("kubernetes.default.svc", ExtendedKeyUsagePurpose::ServerAuth);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(self.roots(), provider.clone()).build().unwrap();
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_client_cert_verifier(clients).with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Answers 200 with a ConfigMap that has the server's address as its name, or a status it is told; 0: it
/// breaks the connection once it has read the request.
struct Server {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    status: Arc<AtomicU16>,
    tasks: Tasks,
}

impl Server {
    async fn start(ca: &Ca) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            status: Arc::new(AtomicU16::new(200)),
            tasks: Tasks::new("server"),
        };
        let (tls, tasks, address) = (ca.server(), server.tasks.clone(), server.address);
        let (requests, status) = (server.requests.clone(), server.status.clone());
        server.tasks.spawn_until_stopped("accept", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, executor) = (tls.clone(), Executor(tasks.clone()));
                let (requests, status) = (requests.clone(), status.clone());
                tasks.spawn_until_stopped("connection", async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let answer = service_fn(move |request: Request<Incoming>| {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let status = status.load(Ordering::SeqCst);
                        let watch = request.uri().query().is_some_and(|query| query.contains("watch="));
                        let list = request.uri().path().ends_with("/configmaps");
                        let list = list && request.method() == Method::GET;
                        async move {
                            if watch {
                                return Ok(watched(address));
                            }
                            request.into_body().collect().await.map_err(std::io::Error::other)?;
                            answer(status, list, address)
                        }
                    });
                    let _ = auto::Builder::new(executor).serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        server
    }

    fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    async fn kill(&self) {
        assert!(self.tasks.shutdown(Duration::from_secs(60)).await.is_empty());
    }
}

type AnswerBody = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

/// One event, then silence.
fn watched(address: SocketAddr) -> Response<AnswerBody> {
    let event = format!(
        r#"{{"type":"ADDED","object":{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{address}","resourceVersion":"2"}}}}}}"#
    );
    let event = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(event + "\n"))]);
    let open = event.chain(futures::stream::pending()).map(|bytes| bytes.map(hyper::body::Frame::data));
    Response::new(http_body_util::StreamBody::new(open).boxed_unsync())
}

fn answer(status: u16, list: bool, address: SocketAddr) -> std::io::Result<Response<AnswerBody>> {
    let body = match status {
        0 => return Err(std::io::Error::other("broken")),
        200 if list => {
            r#"{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"1"},"items":[]}"#
                .to_owned()
        }
        200 => format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{address}","resourceVersion":"1"}}}}"#
        ),
        code => format!(
            r#"{{"apiVersion":"v1","kind":"Status","status":"Failure","message":"no","reason":"ServiceUnavailable","code":{code}}}"#
        ),
    };
    let body = Full::new(Bytes::from(body)).map_err(std::io::Error::other).boxed_unsync();
    Ok(Response::builder().status(status).body(body).unwrap())
}

/// Two servers, the preferred one first, and a client.
async fn pair() -> (Server, Server, Api<ConfigMap>, Servers, Tasks) {
    let ca = Ca::new();
    let (one, two) = (Server::start(&ca).await, Server::start(&ca).await);
    let addresses = [one.address.to_string(), two.address.to_string()];
    let servers = Servers::open("n1", None, &addresses).unwrap();
    let tasks = Tasks::new("client");
    let api = Api::default_namespaced(client(&servers, ca.client(), "default", &tasks));
    if servers.addresses()[0] == addresses[0] {
        (one, two, api, servers, tasks)
    } else {
        (two, one, api, servers, tasks)
    }
}

fn name(object: &ConfigMap) -> &str {
    object.metadata.name.as_deref().unwrap()
}

#[tokio::test]
async fn requests_stay_with_one_server_until_it_is_gone() {
    let (first, second, api, _, _tasks) = pair().await;
    for _ in 0..5 {
        assert_eq!(name(&api.get("x").await.unwrap()), first.address.to_string());
    }
    assert_eq!((first.count(), second.count()), (5, 0));
    first.kill().await;
    for _ in 0..5 {
        assert_eq!(name(&api.get("x").await.unwrap()), second.address.to_string());
    }
    second.kill().await;
    let error = api.get("x").await.unwrap_err();
    let text = Chain(&error).to_string();
    assert!(
        text.contains(&first.address.to_string()) && text.contains(&second.address.to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn a_write_is_repeated_only_when_nobody_saw_it() {
    let (first, second, api, _, _tasks) = pair().await;
    first.answers(0);
    assert!(api.create(&PostParams::default(), &ConfigMap::default()).await.is_err());
    assert_eq!((first.count(), second.count()), (1, 0), "it may have been done");
    assert_eq!(name(&api.get("x").await.unwrap()), second.address.to_string());
    // Nothing listens at the first one any more: the write cannot have reached it.
    let (first, second, api, _, _tasks) = pair().await;
    first.kill().await;
    let created = api.create(&PostParams::default(), &ConfigMap::default()).await.unwrap();
    assert_eq!(name(&created), second.address.to_string());
    assert_eq!(second.count(), 1);
}

#[tokio::test]
async fn a_server_without_a_leader_is_passed_over_for_reads() {
    let (first, second, api, _, _tasks) = pair().await;
    first.answers(503);
    assert_eq!(name(&api.get("x").await.unwrap()), second.address.to_string());
    second.answers(503);
    match api.get("x").await {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 503),
        other => panic!("{other:?}"),
    }
    match api.create(&PostParams::default(), &ConfigMap::default()).await {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 503),
        other => panic!("{other:?}"),
    }
    // What is the request's own fault stays so.
    first.answers(404);
    second.answers(404);
    let before = first.count() + second.count();
    assert!(api.list(&ListParams::default()).await.is_err());
    assert_eq!(first.count() + second.count(), before + 1);
}

#[tokio::test]
async fn strangers_are_not_trusted_and_new_servers_are_used() {
    let (first, second, api, servers, _tasks) = pair().await;
    let stranger = Server::start(&Ca::new()).await;
    servers.update(&[stranger.address.to_string()]).unwrap();
    assert!(api.get("x").await.is_err());
    assert_eq!(stranger.count(), 0, "no request is sent to it");
    servers.update(&[stranger.address.to_string(), second.address.to_string()]).unwrap();
    servers.reconnect();
    assert_eq!(name(&api.get("x").await.unwrap()), second.address.to_string());
    assert_eq!(first.count(), 0);
}

#[tokio::test]
async fn a_watch_goes_on_at_another_server() {
    let (first, second, api, _, _tasks) = pair().await;
    let path = api.resource_url().to_owned();
    let mut seen = Watch::<ConfigMap>::new(api.into_client(), path, "metadata.name=x", "");
    assert_eq!(name(&seen.next_object().await), first.address.to_string());
    first.kill().await;
    assert_eq!(name(&seen.next_object().await), second.address.to_string());
}

#[test]
fn addresses_come_from_ready_endpoints() {
    let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes"},
        "endpoints": [
            {"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
            {"addresses": ["192.0.2.2"], "conditions": {"ready": false}},
            {"addresses": ["2001:db8::3"]},
        ],
        "ports": [{"name": "other", "port": 1}, {"name": "https", "port": 6443}],
    }))
    .unwrap();
    assert_eq!(addresses(&slice), ["192.0.2.1:6443", "[2001:db8::3]:6443"]);
}

#[tokio::test]
async fn a_local_address_leads_to_whoever_answers() {
    let ca = Ca::new();
    let (one, two) = (Server::start(&ca).await, Server::start(&ca).await);
    let servers = Servers::open("n1", None, &[one.address.to_string(), two.address.to_string()]).unwrap();
    let tasks = Tasks::new("client");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = [listener.local_addr().unwrap().to_string()];
    forward(&servers, listener, &tasks);
    let local = Servers::open("tool", None, &local).unwrap();
    let api: Api<ConfigMap> = Api::default_namespaced(client(&local, ca.client(), "default", &tasks));
    let before = api.get("x").await.unwrap();
    let (dead, alive) = if name(&before) == one.address.to_string() { (one, two) } else { (two, one) };
    dead.kill().await;
    local.reconnect();
    assert_eq!(name(&api.get("x").await.unwrap()), alive.address.to_string());
}

/// A slice with these addresses.
fn slice(revision: u32, addresses: &[&str]) -> serde_json::Value {
    let endpoints: Vec<_> = addresses.iter().map(|one| serde_json::json!({"addresses": [one]})).collect();
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes", "namespace": "default", "resourceVersion": revision.to_string()},
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": 6443}],
    })
}

#[tokio::test]
async fn servers_are_learned_from_the_cluster_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("servers.json");
    let servers = Servers::open("n1", Some(file.clone()), &["192.0.2.1:6443".to_owned()]).unwrap();
    // What there is, then one change; the watch stays open.
    let service = tower::service_fn(|request: Request<kube::client::Body>| async move {
        let query = request.uri().query().unwrap_or_default().to_owned();
        assert!(query.contains("watch=") && query.contains("labelSelector="), "{query}");
        let events = [
            serde_json::json!({ "type": "ADDED", "object": slice(1, &["192.0.2.1", "192.0.2.2"]) }),
            serde_json::json!({ "type": "BOOKMARK", "object": { "metadata": {
                "resourceVersion": "1", "annotations": { "k8s.io/initial-events-end": "true" } } } }),
            serde_json::json!({
                "type": "MODIFIED", "object": slice(2, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]),
            }),
        ];
        let events = events.map(|event| Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))));
        let open = futures::stream::iter(events).chain(futures::stream::pending());
        let open = open.map(|bytes| bytes.map(hyper::body::Frame::data));
        let body = http_body_util::StreamBody::new(open).boxed_unsync();
        Ok::<_, std::io::Error>(Response::new(body))
    });
    let tasks = Tasks::new("client");
    follow(&servers, kube::Client::new(service, "default"), &tasks);
    let mut waits = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
    while servers.addresses().len() < 3 || !file.exists() {
        tokio::time::sleep(waits.next_delay()).await;
    }
    let written = loop {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("192.0.2.3") {
            break text;
        }
        tokio::time::sleep(waits.next_delay()).await;
    };
    assert_eq!(written, r#"{"servers":["192.0.2.1:6443","192.0.2.2:6443","192.0.2.3:6443"]}"#);
}
