//! One HTTP GET to a container, as probes and hooks make it: certificates are not verified and
//! redirects are followed on the same host only, others count as success with a warning (upstream
//! `pkg/probe/http`).

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
/// As many answers in a row may redirect, the last of them is an error.
const REDIRECTS: usize = 10;

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

    /// Where an answer's `Location` leads; `None` to another host.
    fn redirected(&self, location: &str) -> Result<Option<Self>, String> {
        let location = location.split('#').next().unwrap_or_default();
        let mut next = self.clone();
        let (scheme, rest) = match location.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?']) => (Some(scheme), Some(rest)),
            _ => (None, location.strip_prefix("//")),
        };
        if let Some(rest) = rest {
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            let authority: http::uri::Authority = authority
                .parse()
                .map_err(|error| format!("failed to parse Location header {location:?}: {error}"))?;
            if !authority.host().trim_matches(['[', ']']).eq_ignore_ascii_case(&self.host) {
                return Ok(None);
            }
            next.tls = match scheme.map(str::to_ascii_lowercase).as_deref() {
                None => self.tls,
                Some("http") => false,
                Some("https") => true,
                Some(other) => return Err(format!("unsupported protocol scheme {other:?}")),
            };
            next.port = authority.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
            next.path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            next.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
        } else if location.starts_with('/') {
            location.clone_into(&mut next.path);
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let kept =
                if location.starts_with('?') { path.len() } else { path.rfind('/').map_or(0, |at| at + 1) };
            next.path = format!("{}{location}", &path[..kept]);
        }
        Ok(Some(next))
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// The status code and the start of the body.
pub(crate) async fn get(request: &Request, timeout: Duration) -> Result<(u16, Vec<u8>), String> {
    let url = request.url();
    let work = async {
        let mut request = request.clone();
        for _ in 0..REDIRECTS {
            let (code, body, location) = once(&request, timeout).await?;
            let leads = matches!(code, 301 | 302 | 303 | 307 | 308);
            let next = match location.filter(|location| leads && !location.is_empty()) {
                Some(location) => request.redirected(&location)?,
                None => None,
            };
            let Some(next) = next else { return Ok((code, body)) };
            request = next;
        }
        Err(format!("stopped after {REDIRECTS} redirects"))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result.map_err(|text| format!("Get {url:?}: {text}")),
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// Code, start of the body, and the header `Location`.
type Reply = (u16, Vec<u8>, Option<String>);

async fn once(request: &Request, timeout: Duration) -> Result<Reply, String> {
    let stream = super::connect(&request.host, request.port, timeout).await?;
    if !request.tls {
        return send(request, stream).await;
    }
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config()?));
    let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
    send(request, connector.connect(name, stream).await.map_err(|error| error.to_string())?).await
}

async fn send<S>(request: &Request, stream: S) -> Result<Reply, String>
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
        let location =
            answer.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = Limited::new(answer.into_body(), BODY_LIMIT).collect().await;
        Ok::<_, String>((code, body.map(|body| body.to_bytes().to_vec()).unwrap_or_default(), location))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        let request = Request {
            tls: false,
            host: "10.0.0.7".into(),
            port: 8080,
            path: "/a/b?c=d".into(),
            headers: vec![("Host".into(), "name".into())],
        };
        for (location, expected) in [
            ("/healthz", Some("http://10.0.0.7:8080/healthz")),
            ("healthz#top", Some("http://10.0.0.7:8080/a/healthz")),
            ("?e=f", Some("http://10.0.0.7:8080/a/b?e=f")),
            ("http://10.0.0.7:8080?loc=x://y", Some("http://10.0.0.7:8080/?loc=x://y")),
            ("/go?loc=http://0.0.0.0/", Some("http://10.0.0.7:8080/go?loc=http://0.0.0.0/")),
            ("https://10.0.0.7/x", Some("https://10.0.0.7:443/x")),
            ("//10.0.0.7/x", Some("http://10.0.0.7:80/x")),
            ("http://0.0.0.0/", None),
        ] {
            let next = request.redirected(location).expect("parses");
            assert_eq!(next.map(|next| next.url()).as_deref(), expected, "{location}");
        }
        assert!(request.redirected("ftp://10.0.0.7/").is_err());
        let host = |location| request.redirected(location).expect("parses").map(|next| next.headers.len());
        assert_eq!(
            (host("/x"), host("http://10.0.0.7/x")),
            (Some(1), Some(0)),
            "a new authority has its own name"
        );
    }
}
