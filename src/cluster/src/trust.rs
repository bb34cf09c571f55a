//! Whom this node trusts: the cluster's authority, or two of them while one takes the other's place. What is
//! trusted is swapped under running listeners and clients, as certificates are.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::watch;

use crate::pki::{public_key_hash, signed_by};
use crate::tls::{provider, roots};
use crate::{Error, token};

/// As many as rustls keeps by itself.
const SESSIONS: usize = 256;

/// The certificates in PEM texts, each as a text of its own.
pub(crate) fn blocks(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some(begin) = rest.find("-----BEGIN CERTIFICATE-----")
        && let Some(length) = rest[begin..].find(END)
    {
        let end = begin + length + END.len();
        found.push(format!("{}\n", &rest[begin..end]));
        rest = &rest[end..];
    }
    found
}

/// SHA-256 over the public key of the first certificate, in hexadecimal; empty: there is none.
pub(crate) fn authority_hash(pem: &str) -> String {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok();
    der.and_then(|der| public_key_hash(&der)).unwrap_or_default()
}

/// SHA-256 over a public key, in hexadecimal.
pub(crate) fn key_hash(subject_public_key_info: &[u8]) -> String {
    token::hex(ring::digest::digest(&ring::digest::SHA256, subject_public_key_info).as_ref())
}

/// The authorities that are trusted now.
pub(crate) struct Trust {
    current: RwLock<Arc<Trusted>>,
    pem: watch::Sender<String>,
}

struct Trusted {
    authorities: Vec<CertificateDer<'static>>,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    /// Whoever resumes a session shows no certificate again, so these end with the trust they began in.
    sessions: Arc<ServerSessionMemoryCache>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

impl Trusted {
    fn new(pem: &str) -> Result<Self, Error> {
        let authorities = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let roots = Arc::new(roots(pem)?);
        Ok(Self {
            authorities,
            servers: WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build()?,
            // No list of authorities is sent: clients show the certificate that they have.
            clients: WebPkiClientVerifier::builder_with_provider(roots, provider())
                .allow_unauthenticated()
                .clear_root_hint_subjects()
                .build()?,
            sessions: ServerSessionMemoryCache::new(SESSIONS),
        })
    }
}

impl Trust {
    /// The authorities in these texts.
    pub(crate) fn new(pem: &str) -> Result<Arc<Self>, Error> {
        let current = RwLock::new(Arc::new(Trusted::new(pem)?));
        Ok(Arc::new(Self { current, pem: watch::Sender::new(pem.to_owned()) }))
    }

    /// From the next handshake on these are trusted and no others.
    pub(crate) fn replace(&self, pem: &str) -> Result<(), Error> {
        let fresh = Arc::new(Trusted::new(pem)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.pem.send_replace(pem.to_owned());
        Ok(())
    }

    fn now(&self) -> Arc<Trusted> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<String> {
        self.pem.subscribe()
    }

    /// Did one of them sign this?
    pub(crate) fn signed(&self, certificate: &CertificateDer<'_>) -> bool {
        self.now().authorities.iter().any(|authority| signed_by(certificate, authority))
    }

    /// The hash of the one that signed this.
    pub(crate) fn issuer(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        let now = self.now();
        let issuer = now.authorities.iter().find(|authority| signed_by(certificate, authority))?;
        public_key_hash(issuer)
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.now().servers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.now().clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().clients.supported_verify_schemes()
    }
}

impl StoresServerSessions for Trust {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.now().sessions.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.now().sessions.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.now().sessions.take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}
