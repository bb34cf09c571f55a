//! How the API server reaches what is not part of it: kubelets, pods and Services for streams and proxies, admission
//! webhooks and aggregated API servers by URL or by Service, over TLS that is checked against the authority the user
//! gave.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kedge_base::Tasks;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use crate::state::State;
use crate::verbs::read;

/// An answer larger than this is refused.
const ANSWER_LIMIT: usize = 8 << 20;
/// A destination that does not answer in this time is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection, encrypted or not.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A server that requests go to.
#[derive(Clone)]
pub(crate) struct Server {
    /// What its certificate must be for: `name.namespace.svc`, or the URL's host.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Arc<ClientConfig>,
    /// The Service to look up at each request; otherwise the host is asked itself.
    pub(crate) service: Option<(String, String)>,
}

impl Server {
    /// `namespace/name:port`
    pub(crate) fn of_service(namespace: &str, name: &str, port: u16, tls: Arc<ClientConfig>) -> Self {
        Self {
            host: format!("{name}.{namespace}.svc"),
            port,
            tls,
            service: Some((namespace.to_owned(), name.to_owned())),
        }
    }

    /// The server of an `https` URL.
    pub(crate) fn of_url(url: &str, tls: Arc<ClientConfig>) -> Result<(Self, String), String> {
        let uri: http::Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("{url:?}: 'https' is the only allowed URL scheme"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        Ok((Self { host, port: uri.port_u16().unwrap_or(443), tls, service: None }, path))
    }

    /// The server that a webhook's `clientConfig` names, and the path to ask there.
    pub(crate) fn of_client_config(state: &State, client: &Value) -> Result<(Self, String), String> {
        let tls = tls(state, client["caBundle"].as_str(), false, None)?;
        if let Some(url) = client["url"].as_str() {
            return Self::of_url(url, tls);
        }
        let service = &client["service"];
        let text = |field: &str| service[field].as_str().unwrap_or_default();
        let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
        let path = format!("/{}", text("path").trim_start_matches('/'));
        Ok((Self::of_service(text("namespace"), text("name"), port, tls), path))
    }

    /// Posts JSON and reads the JSON of the answer, which has to be there in this time.
    pub(crate) async fn post(
        &self,
        state: &State,
        path: &str,
        body: &Value,
        patience: Duration,
    ) -> Result<Value, String> {
        let url = format!("https://{}:{}{path}", self.host, self.port);
        let failed = |error: String| format!("Post {url:?}: {error}");
        match tokio::time::timeout(patience, self.posted(state, path, body, &failed)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed("context deadline exceeded".to_owned())),
        }
    }

    async fn posted(
        &self,
        state: &State,
        path: &str,
        body: &Value,
        failed: &(impl Fn(String) -> String + Sync),
    ) -> Result<Value, String> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Body::from(body.to_string()))
            .map_err(|error| failed(error.to_string()))?;
        let response = self.send(state, request).await.map_err(failed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            return Err(format!(
                "the server responded with the status code {}: {}",
                status.as_u16(),
                text.trim()
            ));
        }
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    /// Sends one request over a connection of its own.
    pub(crate) async fn send(&self, state: &State, request: Request<Body>) -> Result<Response<Body>, String> {
        let mut sender = self.connect(state).await?;
        let mut request = request;
        let host = HeaderValue::from_str(&host_port(&self.host, self.port)).map_err(|e| e.to_string())?;
        request.headers_mut().insert(HOST, host);
        let response = sender.send_request(request).await.map_err(|e| kedge_base::Chain(&e).to_string())?;
        Ok(response.map(Body::new))
    }

    async fn connect(&self, state: &State) -> Result<SendRequest<Body>, String> {
        let (address, port) = match &self.service {
            Some((namespace, name)) => {
                let (address, port) = endpoint(state, namespace, name, self.port)?;
                (address.to_string(), port)
            }
            None => (self.host.clone(), self.port),
        };
        connect(&state.tasks, &address, port, Some((&self.host, self.tls.clone()))).await
    }
}

/// One connection for one request: streams live long, and the others are rare. With TLS the server shows a
/// certificate for that name.
pub(crate) async fn connect(
    tasks: &Tasks,
    address: &str,
    port: u16,
    tls: Option<(&str, Arc<ClientConfig>)>,
) -> Result<SendRequest<Body>, String> {
    let dial = async {
        let stream = TcpStream::connect((address, port)).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let Some((name, config)) = tls else { return Ok(Box::new(stream) as Box<dyn Io>) };
        let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        Ok::<_, String>(Box::new(stream.map_err(|error| format!("tls: {error}"))?) as Box<dyn Io>)
    };
    let dialled = tokio::time::timeout(PATIENCE, dial).await;
    let stream = dialled
        .unwrap_or_else(|_| Err("i/o timeout".to_owned()))
        .map_err(|error| format!("dial tcp {}: {error}", host_port(address, port)))?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tasks.spawn_until_stopped("outbound connection", async move {
        // The answer tells of a failure.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// `address:port`, with brackets where it needs them.
pub(crate) fn host_port(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Passes bytes between a client and the server that has just switched protocols for it.
pub(crate) fn join<B>(tasks: &Tasks, client: OnUpgrade, response: &mut Response<B>) {
    let server = hyper::upgrade::on(response);
    tasks.spawn_until_stopped("proxy stream", async move {
        let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
        kedge_base::pass_bytes(TokioIo::new(client), TokioIo::new(server)).await;
    });
}

/// A ready endpoint behind a Service's port.
pub(crate) fn endpoint(
    state: &State,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(IpAddr, u16), String> {
    let stored = state.cache.bucket("services").get(&format!("{namespace}/{name}"));
    let stored = stored.ok_or_else(|| format!("service {name:?} not found"))?;
    let service = read::parse(&stored.bytes).map_err(|status| status.message)?;
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let wanted = ports
        .iter()
        .find(|own| own["port"].as_u64() == Some(u64::from(port)))
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let wanted = wanted["name"].as_str().unwrap_or_default();
    ready_endpoint(state, namespace, name, wanted, |_, _| true)
}

/// Any of the ready endpoints behind the port of that name that `takes` accepts, with its address.
pub(crate) fn ready_endpoint(
    state: &State,
    namespace: &str,
    name: &str,
    port_name: &str,
    takes: impl Fn(&Value, &str) -> bool,
) -> Result<(IpAddr, u16), String> {
    let mut found: Vec<(IpAddr, u16)> = Vec::new();
    for stored in crate::admission::objects_in(state, "endpointslices.discovery.k8s.io", namespace) {
        if stored.extracted.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let slice = read::parse(&stored.bytes).map_err(|status| status.message)?;
        let list = |field: &str| slice[field].as_array().map(Vec::as_slice).unwrap_or_default();
        let port = list("ports")
            .iter()
            .find(|port| port["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|port| port["port"].as_u64())
            .and_then(|port| u16::try_from(port).ok());
        let Some(port) = port else { continue };
        for endpoint in list("endpoints").iter().filter(|own| own["conditions"]["ready"] != false) {
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            let taken = addresses.filter_map(Value::as_str).filter(|address| takes(endpoint, address));
            let parsed = taken.filter_map(|text| text.parse().ok());
            found.extend(parsed.map(|address| (address, port)));
        }
    }
    if found.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    let pick = crate::random::below(found.len() as u64);
    Ok(found[usize::try_from(pick).unwrap_or(0)])
}

/// TLS towards a server whose authority is in `bundle` (base64 of PEM; empty: the cluster's own, also after it was
/// replaced).
/// `client` shows its certificate where the server asks for one.
pub(crate) fn tls(
    state: &State,
    bundle: Option<&str>,
    insecure: bool,
    client: Option<&ClientConfig>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = state.config.kubelet_client.crypto_provider().clone();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let trust = match bundle {
        _ if insecure => Trust::Any,
        Some(bundle) if !bundle.is_empty() => {
            let pem = base64::engine::general_purpose::STANDARD.decode(bundle);
            let pem = pem.map_err(|error| format!("caBundle: {error}"))?;
            Trust::Given(Authorities::read(&pem, &provider).map_err(|error| format!("caBundle: {error}"))?)
        }
        _ => Trust::Cluster(state.config.cluster_ca.clone()),
    };
    let verifier = Arc::new(Verifier { provider, trust });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let config = match client {
        Some(client) => builder.with_client_cert_resolver(client.client_auth_cert_resolver.clone()),
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Trust,
}

/// Whose certificates are taken.
#[derive(Debug)]
enum Trust {
    /// With `insecureSkipTLSVerify`: the user has said that any certificate will do.
    Any,
    Given(Authorities),
    /// The cluster's authority, whichever that is at the moment of the handshake.
    Cluster(watch::Receiver<String>),
}

#[derive(Debug)]
struct Authorities {
    verifier: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Authorities {
    fn read(pem: &[u8], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let trusted = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        if trusted.is_empty() {
            return Err("no certificate found".to_owned());
        }
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        Ok(Self { verifier: verifier.build().map_err(|error| error.to_string())?, trusted })
    }

    /// The usual checks, and Go's: a certificate that is itself among the trusted ones may serve, also when
    /// it is an authority's. `openssl req -x509` makes such, and many a webhook has one.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.verifier.verify_server_cert(certificate, more, name, ocsp, now) {
            // Its time was checked before this was noticed; the name is still to be checked.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(error)))
                if error.0.to_string() == "CaUsedAsEndEntity" && self.trusted.contains(certificate) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.trust {
            Trust::Any => Ok(ServerCertVerified::assertion()),
            Trust::Given(authorities) => authorities.verify(certificate, more, name, ocsp, now),
            Trust::Cluster(pem) => {
                let pem = pem.borrow().clone();
                let authorities = Authorities::read(pem.as_bytes(), &self.provider)
                    .map_err(|error| rustls::Error::General(format!("the cluster's authority: {error}")))?;
                authorities.verify(certificate, more, name, ocsp, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_given_up() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config =
            config.expect("TLS").with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let tls = Some(("webhook.default.svc", Arc::new(config)));
        let answer = connect(&Tasks::new("test"), "127.0.0.1", port, tls).await.map(drop);
        assert_eq!(answer, Err(format!("dial tcp 127.0.0.1:{port}: i/o timeout")));
    }

    #[test]
    fn without_a_bundle_the_clusters_authority_of_the_moment_counts() {
        let dir = tempfile::tempdir().expect("folder");
        let keys = |name: &str| {
            let node = kedge_cluster::NodeIdentity {
                name: name.into(),
                addresses: Vec::new(),
                service_addresses: Vec::new(),
                cluster_domain: "cluster.local".into(),
            };
            let pki = kedge_cluster::Pki::open(&dir.path().join(name), &node).expect("keys");
            let (certificate, _) = pki.pem(kedge_cluster::Leaf::Apiserver);
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
            (pki.ca_pem(), certificate)
        };
        let ((old, certificate), (new, renewed)) = (keys("old"), keys("new"));
        let authority = watch::Sender::new(old);
        let verifier = Verifier {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            trust: Trust::Cluster(authority.subscribe()),
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let trusts = |certificate: &CertificateDer<'_>| {
            verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(trusts(&certificate) && !trusts(&renewed));
        authority.send_replace(new);
        assert!(!trusts(&certificate) && trusts(&renewed));
    }

    #[test]
    fn addresses_with_colons_have_brackets() {
        assert_eq!(host_port("fd00::1", 443), "[fd00::1]:443");
        assert_eq!(host_port("10.0.0.1", 80), "10.0.0.1:80");
    }
}
