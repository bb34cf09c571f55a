//! One HTTP GET to a container, as probes and hooks make it: certificates are not verified and
//! redirects count as success (upstream `pkg/probe/http`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::pod;

/// Answers are read up to this size.
const BODY_LIMIT: usize = 10 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    tls: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// `None` when the port is not one of the container's.
    pub(crate) fn of(get: &HTTPGetAction, container: &Container, pod_ip: &str, agent: &str) -> Option<Self> {
        let port = pod::resolve_port(&get.port, container)?;
        let mut headers: Vec<(String, String)> = get
            .http_headers
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect();
        let has = |name: &str, headers: &[(String, String)]| {
            headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
        };
        if !has("user-agent", &headers) {
            let version: Vec<&str> = kedge_base::KUBERNETES_VERSION.split('.').take(2).collect();
            headers.push(("User-Agent".into(), format!("{agent}/{}", version.join("."))));
        }
        if !has("accept", &headers) {
            headers.push(("Accept".into(), "*/*".into()));
        }
        let mut path = get.path.clone().unwrap_or_default();
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        Some(Self {
            tls: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: get.host.clone().filter(|host| !host.is_empty()).unwrap_or(pod_ip.to_owned()),
            port,
            path,
            headers,
        })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// The status code and the start of the body.
pub(crate) async fn get(request: &Request, timeout: Duration) -> Result<(u16, Vec<u8>), String> {
    let url = request.url();
    let work = async {
        let stream = super::connect(&request.host, request.port, timeout).await?;
        if !request.tls {
            return send(request, stream).await;
        }
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config()?));
        let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
        send(request, connector.connect(name, stream).await.map_err(|error| error.to_string())?).await
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result.map_err(|text| format!("Get {url:?}: {text}")),
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn send<S>(request: &Request, stream: S) -> Result<(u16, Vec<u8>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let mut builder = http::Request::builder().method("GET").uri(&request.path);
    let mut host = request.authority();
    for (name, value) in &request.headers {
        if name.eq_ignore_ascii_case("host") {
            host.clone_from(value);
        } else {
            builder = builder.header(name, value);
        }
    }
    let message = builder
        .header("Host", host)
        .header("Connection", "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = sender.send_request(message).await.map_err(|error| error.to_string())?;
        let code = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_LIMIT).collect().await;
        Ok::<_, String>((code, body.map(|body| body.to_bytes().to_vec()).unwrap_or_default()))
    };
    // The connection is driven here, so nothing of it outlives the probe.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

fn config() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))).with_no_client_auth())
}

/// Probes say whether a server answers, not who it is.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
