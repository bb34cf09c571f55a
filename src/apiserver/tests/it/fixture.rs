//! An API server on a store of its own in a temporary folder.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use kedge_apiserver::{ApiServer, Config, FrontProxy, User};
use kedge_base::Tasks;
use kedge_cluster::{Leaf, NodeIdentity, Pki};
use kedge_store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;

pub(crate) struct Fixture {
    pub(crate) server: ApiServer,
    tasks: Tasks,
    serving: Arc<rustls::ServerConfig>,
    /// Of the API servers; they are told as long as somebody can change them.
    _addresses: tokio::sync::watch::Sender<Vec<std::net::IpAddr>>,
    _dir: TempDir,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::with_ranges(vec![([10, 96, 0, 0].into(), 24)]).await
    }

    pub(crate) async fn with_ranges(service_ranges: Vec<(std::net::IpAddr, u8)>) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let node = NodeIdentity {
            name: "node1".into(),
            addresses: vec![[127, 0, 0, 1].into()],
            service_addresses: vec![[10, 96, 0, 1].into()],
            cluster_domain: "cluster.local".into(),
        };
        let pki = Pki::open(&dir.path().join("pki"), &node).expect("keys");
        let tasks = Tasks::new("test");
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            tls: pki.server_config(Leaf::Apiserver, Some(&pki.ca_pem())).expect("TLS"),
            kubelet_client: pki
                .client_config(Some(Leaf::ApiserverKubeletClient), &pki.ca_pem())
                .expect("TLS"),
            advertise_address: [127, 0, 0, 1].into(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            service_account_key: pki.service_account_key_pem().to_owned(),
            cluster_ca: pki.follow_ca_pem(),
            front_proxy: Some(FrontProxy {
                client: pki.client_config(Some(Leaf::FrontProxyClient), &pki.ca_pem()).expect("TLS"),
                ca: pki.front_proxy_ca_pem().to_owned(),
            }),
            service_ranges,
            node_ports: (30000, 30100),
            event_ttl_seconds: 3600,
            sealing: kedge_apiserver::Sealing::default(),
        };
        let store = kedge_store::Config::new(dir.path().join("store"));
        let serving = pki.server_config(Leaf::Apiserver, None).expect("TLS");
        let prepared = ApiServer::prepare(config).await.expect("a free port");
        let store = Store::open(store, prepared.observer(), &tasks).await.expect("the store opens");
        let server = prepared.start(store, &tasks);
        server.ready().await;
        // Endpoints are never loopback addresses.
        let addresses = tokio::sync::watch::Sender::new(vec![[192, 0, 2, 1].into()]);
        server.lead(addresses.subscribe(), &tasks);
        Self { server, tasks, serving, _addresses: addresses, _dir: dir }
    }

    pub(crate) async fn stop(self) {
        let late = self.tasks.shutdown(std::time::Duration::from_secs(60)).await;
        assert!(late.is_empty(), "still running: {late:?}");
    }

    /// Another HTTPS server on this machine, with a certificate of the cluster's for 127.0.0.1. The
    /// answer is JSON. Returns its port.
    pub(crate) async fn neighbour<F>(&self, answer: F) -> u16
    where
        F: Fn(http::request::Parts, Value) -> Value + Clone + Send + Sync + 'static,
    {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        let acceptor = tokio_rustls::TlsAcceptor::from(self.serving.clone());
        let connections = self.tasks.child("neighbour");
        self.tasks.spawn_until_stopped("neighbour", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                connections.spawn_until_stopped("connection", async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service =
                        hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                            let answer = answer.clone();
                            async move {
                                let (parts, body) = request.into_parts();
                                let bytes = body.collect().await?.to_bytes();
                                let body = serde_json::from_slice(&bytes).unwrap_or_default();
                                let text = answer(parts, body).to_string();
                                Ok::<_, hyper::Error>(http::Response::new(http_body_util::Full::new(
                                    bytes::Bytes::from(text),
                                )))
                            }
                        });
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
                });
            }
        });
        port
    }

    pub(crate) fn admin(&self) -> Client {
        self.user(User::component("admin"))
    }

    pub(crate) fn user(&self, user: User) -> Client {
        Client { server: self.server.clone(), user }
    }
}

/// Sends requests as one user.
#[derive(Clone)]
pub(crate) struct Client {
    server: ApiServer,
    user: User,
}

impl Client {
    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).expect("request");
        self.server.local(self.user.clone()).oneshot(request).await.expect("infallible")
    }

    /// A request with one header, whose value need not be text.
    pub(crate) async fn with_header(
        &self,
        method: Method,
        path: &str,
        name: &'static str,
        value: http::HeaderValue,
    ) -> http::Response<Body> {
        let request = Request::builder().method(method).uri(path).header(name, value);
        let request = request.body(Body::empty()).expect("request");
        self.server.local(self.user.clone()).oneshot(request).await.expect("infallible")
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> (StatusCode, Value) {
        let response =
            self.raw(method, path, &[("content-type", content_type), ("user-agent", "test/1")], body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        (status, value)
    }

    /// A request whose body never ends.
    pub(crate) async fn slow(&self, method: Method, path: &str) -> (StatusCode, Value) {
        let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let response = self.raw(method, path, &[], body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        (status, serde_json::from_slice(&bytes).expect("JSON"))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, "application/json", Vec::new()).await
    }

    /// The names of the columns that kubectl prints, and the cells of the first row.
    pub(crate) async fn table(&self, path: &str) -> (Vec<String>, Vec<Value>) {
        let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
        let response = self.raw(Method::GET, path, &accept, Vec::new()).await;
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        let table: Value = serde_json::from_slice(&bytes).expect("JSON");
        let columns = table["columnDefinitions"].as_array().expect("columns").iter();
        let names = columns.map(|column| column["name"].as_str().expect("name").to_owned()).collect();
        (names, table["rows"][0]["cells"].as_array().cloned().unwrap_or_default())
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, "application/json", object.to_string().into_bytes()).await
    }

    pub(crate) async fn put(&self, path: &str, object: &Value) -> (StatusCode, Value) {
        self.send(Method::PUT, path, "application/json", object.to_string().into_bytes()).await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> (StatusCode, Value) {
        self.send(Method::DELETE, path, "application/json", options.to_string().into_bytes()).await
    }

    /// `kind` is `json`, `merge`, `strategic-merge` or `apply`.
    pub(crate) async fn patch(&self, path: &str, kind: &str, patch: &Value) -> (StatusCode, Value) {
        let content_type = if kind == "apply" {
            "application/apply-patch+yaml".to_owned()
        } else {
            format!("application/{kind}-patch+json")
        };
        self.send(Method::PATCH, path, &content_type, patch.to_string().into_bytes()).await
    }

    /// Create and expect that it works.
    pub(crate) async fn make(&self, path: &str, object: &Value) -> Value {
        let (status, made) = self.post(path, object).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made
    }

    /// A stream of watch events.
    pub(crate) async fn watch(&self, path: &str) -> Watch {
        let response = self.raw(Method::GET, path, &[], Vec::new()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }
}

pub(crate) struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None` at the end of the watch.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line is JSON"));
            }
            let frame = self.body.frame().await?.expect("the stream is whole");
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Type and name of the next event.
    pub(crate) async fn next_short(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

pub(crate) fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "key": "value" } })
}

pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";
