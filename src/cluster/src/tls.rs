//! rustls configurations whose certificate can be swapped while they are in use.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use kedge_base::Order as _;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Error, Leaf, Pki};

impl Pki {
    /// A listener's configuration: HTTP/2 and HTTP/1.1, presenting `leaf`. With `client_ca_pem` (one or
    /// more certificates) a client may show a certificate of these authorities, but need not.
    ///
    /// # Errors
    /// When `client_ca_pem` holds no usable certificate.
    pub fn server_config(&self, leaf: Leaf, client_ca_pem: Option<&str>) -> Result<Arc<ServerConfig>, Error> {
        let verifier: Arc<dyn ClientCertVerifier> = match client_ca_pem {
            None => Arc::new(NoClientAuth),
            Some(pem) => WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), provider())
                .allow_unauthenticated()
                .build()?,
        };
        Ok(Arc::new(self.serving(leaf, verifier)?))
    }

    /// The same for clients with certificates of the cluster's authority, whichever that is at the moment of
    /// the handshake.
    ///
    /// # Errors
    /// When this node does not have the certificate.
    pub fn cluster_server_config(&self, leaf: Leaf) -> Result<Arc<ServerConfig>, Error> {
        let mut config = self.serving(leaf, self.trust.clone())?;
        config.session_storage = self.trust.clone();
        Ok(Arc::new(config))
    }

    fn serving(&self, leaf: Leaf, clients: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_details(provider(), self.clock.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.slot(leaf)?.clone());
        config.ignore_client_order = aes_in_hardware();
        config.alpn_protocols = alpn();
        Ok(config)
    }

    /// A client's configuration: trusts the cluster's authority, whichever that is at the moment of the
    /// handshake, and shows `leaf` when there is one.
    ///
    /// # Errors
    /// When this node does not have the certificate.
    pub fn cluster_client_config(&self, leaf: Option<Leaf>) -> Result<Arc<ClientConfig>, Error> {
        let builder = ClientConfig::builder_with_details(provider(), self.clock.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(self.trust.clone());
        let mut config = match leaf {
            Some(leaf) => builder.with_client_cert_resolver(self.slot(leaf)?.clone()),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn();
        Ok(Arc::new(config))
    }

    /// A client's configuration: trusts `server_ca_pem`, shows `leaf` when there is one.
    ///
    /// # Errors
    /// When `server_ca_pem` holds no usable certificate.
    pub fn client_config(&self, leaf: Option<Leaf>, server_ca_pem: &str) -> Result<Arc<ClientConfig>, Error> {
        let builder = ClientConfig::builder_with_details(provider(), self.clock.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(server_ca_pem)?);
        let mut config = match leaf {
            Some(leaf) => builder.with_client_cert_resolver(self.slot(leaf)?.clone()),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn();
        Ok(Arc::new(config))
    }
}

/// A certificate with its key that can be replaced; handshakes take what is there at that moment.
pub(crate) struct Slot {
    current: RwLock<Loaded>,
}

#[derive(Clone)]
struct Loaded {
    certificate_pem: String,
    key_pem: String,
    certified: Arc<CertifiedKey>,
    /// Unix seconds.
    renew_at: u64,
}

impl Slot {
    pub(crate) fn new(certificate_pem: String, key_pem: String) -> Result<Self, Error> {
        let certificates = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let certified = CertifiedKey::from_der(certificates, key, &provider())?;
        let renew_at = renew_at(certified.end_entity_cert()?)?;
        Ok(Self {
            current: RwLock::new(Loaded {
                certificate_pem,
                key_pem,
                certified: Arc::new(certified),
                renew_at,
            }),
        })
    }

    /// Certificate and key.
    pub(crate) fn pem(&self) -> (String, String) {
        let current = self.current();
        (current.certificate_pem, current.key_pem)
    }

    /// Unix seconds.
    pub(crate) fn renew_at(&self) -> u64 {
        self.current().renew_at
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        // `new` refuses an empty chain.
        self.current().certified.cert[0].clone()
    }

    pub(crate) fn replace(&self, fresh: Self) {
        let fresh = fresh.current.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    fn current(&self) -> Loaded {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).certified.clone()
    }
}

impl fmt::Debug for Slot {
    // The key must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Slot {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Slot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The point at two thirds of a certificate's life, in Unix seconds.
fn renew_at(certificate: &CertificateDer<'_>) -> Result<u64, Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    Ok(u64::try_from(from + (to - from) / 3 * 2).unwrap_or(0))
}

pub(crate) fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| rustls::Error::General(error.to_string()))?;
        store.add(certificate)?;
    }
    Ok(store)
}

/// Where the processor has AES, the suites of 128 bits come first, as in Go's `crypto/tls` and so in stock
/// Kubernetes: they cost a quarter less. Elsewhere the client's order counts: it may want ChaCha20.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    if aes_in_hardware() {
        use rustls::CipherSuite::{
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            TLS13_AES_128_GCM_SHA256,
        };
        let first = [
            TLS13_AES_128_GCM_SHA256,
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ];
        provider.cipher_suites.order_by_key(|suite| !first.contains(&suite.suite()));
    }
    Arc::new(provider)
}

fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::NodeIdentity;
    use rustls::{ClientConnection, ServerConnection};
    use rustls_pki_types::ServerName;

    fn node() -> NodeIdentity {
        NodeIdentity {
            name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            service_addresses: vec!["10.96.0.1".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
        }
    }

    /// Runs a handshake in memory; returns how many certificates the server saw.
    pub(crate) fn handshake(
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: &str,
    ) -> Result<usize, rustls::Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(client, name)?;
        let mut server = ServerConnection::new(server)?;
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
            if !client.is_handshaking() && !server.is_handshaking() {
                break;
            }
        }
        assert!(!server.is_handshaking(), "the handshake did not end");
        Ok(server.peer_certificates().map_or(0, <[_]>::len))
    }

    #[test]
    fn peers_meet_by_service_name_and_address() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &node()).unwrap();
        let server = pki.server_config(Leaf::Apiserver, Some(&pki.ca_pem())).unwrap();
        let anonymous = pki.client_config(None, &pki.ca_pem()).unwrap();
        for name in ["kubernetes.default.svc", "10.96.0.1", "192.0.2.1", "127.0.0.1", "localhost"] {
            assert_eq!(handshake(server.clone(), anonymous.clone(), name), Ok(0), "{name}");
        }
        let admin = pki.client_config(Some(Leaf::Admin), &pki.ca_pem()).unwrap();
        assert_eq!(handshake(server.clone(), admin, "localhost"), Ok(1));
        assert!(handshake(server, anonymous, "example.org").is_err());
    }

    #[test]
    fn strangers_are_refused_on_both_sides() {
        let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pki = Pki::open(dir.path(), &node()).unwrap();
        let other = Pki::open(other_dir.path(), &node()).unwrap();
        let server = pki.server_config(Leaf::Apiserver, Some(&pki.ca_pem())).unwrap();
        let trusts_other = other.client_config(None, &other.ca_pem()).unwrap();
        assert!(handshake(server.clone(), trusts_other, "localhost").is_err());
        let shows_other = other.client_config(Some(Leaf::Admin), &pki.ca_pem()).unwrap();
        assert!(handshake(server, shows_other, "localhost").is_err());
    }

    #[test]
    fn a_renewed_certificate_is_used_without_a_new_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &node()).unwrap();
        let server = pki.server_config(Leaf::Kubelet, None).unwrap();
        let client = pki.client_config(None, &pki.ca_pem()).unwrap();
        assert!(handshake(server.clone(), client.clone(), "203.0.113.9").is_err());
        pki.set_addresses(&["203.0.113.9".parse().unwrap()]).unwrap();
        assert_eq!(handshake(server, client, "203.0.113.9"), Ok(0));
    }

    #[test]
    fn an_empty_bundle_of_authorities_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &node()).unwrap();
        assert!(pki.server_config(Leaf::Apiserver, Some("")).is_err());
    }
}
