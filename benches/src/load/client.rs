//! A small HTTP/1.1 client over mutual TLS: one connection a client, no retries, no hidden work, so that
//! what is measured is the server. It reads all bytes of every answer. Events that are only counted: `stream.rs`.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kedge_base::Tasks;
use kedge_tests::Cluster;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::stream::Stream;

pub(crate) const JSON: &str = "application/json";
pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";

/// What is read from a socket at once. The TLS library alone asks the kernel for 4 KiB at a time, which
/// costs more than all else that a client of long answers does.
const READ: usize = 64 << 10;

/// The API server and who calls it.
#[derive(Clone)]
pub(crate) struct Target {
    port: u16,
    /// The server's process.
    pub(crate) pid: u32,
    tls: Arc<rustls::ClientConfig>,
    connector: TlsConnector,
    tasks: Tasks,
}

impl Target {
    /// The administrator of a node that has a kubeconfig.
    pub(crate) fn of(cluster: &Cluster, tasks: Tasks) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(cluster.kubeconfig()).context("read the kubeconfig")?;
        Self::from_kubeconfig(&text, cluster.port, cluster.pid(), tasks)
    }

    /// The same from a kubeconfig's text.
    pub(crate) fn from_kubeconfig(text: &str, port: u16, pid: u32, tasks: Tasks) -> anyhow::Result<Self> {
        let config: Value = serde_saphyr::from_str(text).context("parse the kubeconfig")?;
        let pem = |part: &Value| -> anyhow::Result<Vec<u8>> {
            let text = part.as_str().context("the kubeconfig lacks a certificate or a key")?;
            base64::engine::general_purpose::STANDARD.decode(text).context("decode the kubeconfig")
        };
        let user = &config["users"][0]["user"];
        let authority = pem(&config["clusters"][0]["cluster"]["certificate-authority-data"])?;
        let certificate = pem(&user["client-certificate-data"])?;
        let key = pem(&user["client-key-data"])?;
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&authority) {
            roots
                .add(root.context("read the cluster's authority")?)
                .context("use the cluster's authority")?;
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<_, _>>()
            .context("read the client's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&key).context("read the client's key")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("set up TLS")?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .context("use the client's certificate")?;
        let tls = Arc::new(tls);
        Ok(Self { port, pid, connector: TlsConnector::from(tls.clone()), tls, tasks })
    }

    /// Where the driver's own tasks live.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Opens a watch of which the events are only counted, over a connection of its own.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Stream> {
        Stream::open(self.tls.clone(), self.port, path).await.with_context(|| format!("watch {path}"))
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.context("connect")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let name = ServerName::try_from("127.0.0.1").context("the server's name")?;
        let stream = BufReader::with_capacity(READ, stream);
        let stream = self.connector.connect(name, stream).await.context("TLS")?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("HTTP")?;
        self.tasks.spawn_until_stopped("connection", async move {
            // Its end shows at the next request.
            let _ = connection.await;
        });
        Ok(Client { sender })
    }
}

/// One connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Sends a request and reads the whole answer; any status is an answer.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(u16, Bytes)> {
        let response = self.send(method, path, content_type, body.into()).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.with_context(|| format!("read {path}"))?.to_bytes();
        Ok((status, body))
    }

    /// The same, but only success is an answer.
    pub(crate) async fn must(
        &mut self,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Bytes> {
        let (status, body) = self.call(method, path, content_type, body).await?;
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    /// Sends a GET whose long answer is read to its end piece by piece and not kept: how many bytes it had.
    pub(crate) async fn drain(&mut self, path: &str) -> anyhow::Result<u64> {
        let response = self.send("GET", path, JSON, Bytes::new()).await?;
        if !response.status().is_success() {
            bail!("GET {path}: {}", response.status());
        }
        let (mut body, mut length) = (response.into_body(), 0);
        // A body that ends before its announced length is an error of its last frame.
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("read {path}"))?;
            length += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(length)
    }

    /// GETs JSON.
    pub(crate) async fn json(&mut self, path: &str) -> anyhow::Result<Value> {
        let body = self.must("GET", path, JSON, "").await?;
        serde_json::from_slice(&body).with_context(|| format!("parse {path}"))
    }

    /// Opens a watch. The connection is the watch's from now on.
    pub(crate) async fn watch(mut self, path: &str) -> anyhow::Result<Watch> {
        let response = self.send("GET", path, JSON, Bytes::new()).await?;
        if !response.status().is_success() {
            bail!("watch {path}: {}", response.status());
        }
        Ok(Watch { body: response.into_body(), buffer: Vec::new(), _client: self })
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("accept", JSON)
            .header("content-type", content_type)
            .body(Full::new(body))
            .context("make a request")?;
        self.sender.ready().await.context("the connection")?;
        self.sender.send_request(request).await.with_context(|| format!("{method} {path}"))
    }
}

/// A running watch.
pub(crate) struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
    /// Dropping the sender would let the connection end.
    _client: Client,
}

impl Watch {
    /// The next event, parsed.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).context("parse an event");
            }
            let frame = self.body.frame().await.context("the watch ended")?.context("read the watch")?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// Makes a namespace and waits until pods can be created in it.
pub(crate) async fn namespace(client: &mut Client, name: &str) -> anyhow::Result<()> {
    let body = serde_json::json!({ "metadata": { "name": name } }).to_string();
    client.must("POST", "/api/v1/namespaces", JSON, body).await?;
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    while client.call("GET", &account, JSON, "").await?.0 != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}
