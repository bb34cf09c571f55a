//! A `kube::Client` over HTTPS to one API server, with a ServiceAccount's token (a pod) or a client
//! certificate (the command line). Touches the network and the files it is given.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use kedge_base::Tasks;
use kube::client::Body;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsConnector;

use crate::Error;
use crate::connect::{Connector, http_client};
use crate::mounted::{Mounted, roots};

/// Where a pod finds its identity.
const MOUNTED: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The kubelet replaces tokens before they end; they are read again after this time.
const TOKEN_AGE: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Who the client is.
pub enum Identity {
    /// A bearer token, read from this file again and again.
    TokenFile(PathBuf),
    /// A certificate chain and its key, both PEM.
    Certificate { chain: String, key: String },
}

/// A client for the server at `url` (`https://HOST:PORT`, HOST an IP address), whose certificate must
/// come from `ca_pem`.
///
/// # Errors
/// When the URL, a certificate or the key is not usable.
pub fn client(url: &str, ca_pem: &str, identity: Identity, namespace: &str) -> Result<kube::Client, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider.clone())
        .build()
        .map_err(|error| Error::other(format!("the authority's certificate is unusable: {error}")))?;
    trusting(url, provider, verifier, identity, namespace)
}

fn trusting(
    url: &str,
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Identity,
    namespace: &str,
) -> Result<kube::Client, Error> {
    let unusable =
        |what: &str, why: &dyn std::fmt::Display| Error::other(format!("{what} is unusable: {why}"));
    let base: Uri = url.parse().map_err(|error| unusable("the server's URL", &error))?;
    let authority =
        base.authority().cloned().ok_or_else(|| unusable("the server's URL", &"it has no host"))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("TLS", &error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let (config, token) = match identity {
        Identity::TokenFile(file) => (builder.with_no_client_auth(), Some(Arc::new(Token::new(file)))),
        Identity::Certificate { chain, key } => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| unusable("the client certificate", &error))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|error| unusable("the client's key", &error))?;
            let config = builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable("the client certificate", &error))?;
            (config, None)
        }
    };
    // Names are not resolved.
    let tls = TlsConnector::from(Arc::new(config));
    let connector = Connector { tls, name: None, limits: [CONNECT_LIMIT; 2] };
    let client = http_client(connector, &Tasks::new("connections to an API server"));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, authority, token) = (client.clone(), authority.clone(), token.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            parts.uri = Uri::builder()
                .scheme("https")
                .authority(authority)
                .path_and_query(path)
                .build()
                .map_err(tower::BoxError::from)?;
            if let Some(token) = token {
                parts.headers.insert(AUTHORIZATION, token.header()?);
            }
            let body = Full::new(body.collect().await?.to_bytes());
            client.request(Request::from_parts(parts, body)).await.map_err(tower::BoxError::from)
        }
    });
    Ok(kube::Client::new(service, namespace))
}

/// The client of a pod: address from the environment, token and authority from the mounted folder.
///
/// # Errors
/// When this is not a pod with a ServiceAccount's token.
pub fn in_cluster() -> Result<kube::Client, Error> {
    let variable = |name: &str| {
        std::env::var(name)
            .map_err(|_| Error::other(format!("{name} is not set; this does not run in a pod")))
    };
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let mounted = Path::new(MOUNTED);
    let read = |name: &str| {
        let path = mounted.join(name);
        std::fs::read_to_string(&path)
            .map_err(|error| Error::other(format!("{} cannot be read: {error}", path.display())))
    };
    let namespace = read("namespace").unwrap_or_else(|_| "default".to_owned());
    let identity = Identity::TokenFile(mounted.join("token"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Mounted::new(mounted.join("ca.crt"), provider.clone())?;
    trusting(&format!("https://{host}:{port}"), provider, verifier, identity, namespace.trim())
}

struct Token {
    file: PathBuf,
    known: Mutex<Option<(Instant, HeaderValue)>>,
}

impl Token {
    fn new(file: PathBuf) -> Self {
        Self { file, known: Mutex::new(None) }
    }

    /// The file is small and in memory (tmpfs), so reading it does not block.
    fn header(&self) -> Result<HeaderValue, tower::BoxError> {
        let mut known = self.known.lock();
        if let Some((read, header)) = known.as_ref()
            && read.elapsed() < TOKEN_AGE
        {
            return Ok(header.clone());
        }
        let text = std::fs::read_to_string(&self.file)?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim()))?;
        header.set_sensitive(true);
        *known = Some((Instant::now(), header.clone()));
        Ok(header)
    }
}
