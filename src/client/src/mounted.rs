//! The authority in a pod's mounted folder, which the kubelet replaces while the pod runs: a cluster may get
//! another one, and whoever has read the file at its start only would be cut off then.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::Error;

/// A connection that begins later reads the file again.
const AGE: Duration = Duration::from_secs(60);

/// Verifies servers by the authorities that the file holds now.
pub(crate) struct Mounted {
    file: PathBuf,
    provider: Arc<CryptoProvider>,
    known: Mutex<(Instant, Arc<WebPkiServerVerifier>)>,
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").field("file", &self.file).finish_non_exhaustive()
    }
}

/// The authorities in a PEM text.
pub(crate) fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let unusable =
        |why: &dyn fmt::Display| Error::other(format!("the authority's certificate is unusable: {why}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
    }
    Ok(roots)
}

fn read(file: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    // Small and in memory (tmpfs), so reading it does not block.
    let pem = std::fs::read_to_string(file)
        .map_err(|error| Error::other(format!("{} cannot be read: {error}", file.display())))?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&pem)?), provider.clone())
        .build()
        .map_err(|error| Error::other(format!("{} is unusable: {error}", file.display())))
}

impl Mounted {
    pub(crate) fn new(file: PathBuf, provider: Arc<CryptoProvider>) -> Result<Arc<Self>, Error> {
        let known = Mutex::new((Instant::now(), read(&file, &provider)?));
        Ok(Arc::new(Self { file, provider, known }))
    }

    fn now(&self) -> Arc<WebPkiServerVerifier> {
        self.known.lock().1.clone()
    }

    /// Reads the file again if it was read longer ago than this. What is unusable changes nothing.
    fn refresh(&self, age: Duration) -> Arc<WebPkiServerVerifier> {
        let mut known = self.known.lock();
        if known.0.elapsed() >= age
            && let Ok(fresh) = read(&self.file, &self.provider)
        {
            *known = (Instant::now(), fresh);
        }
        known.1.clone()
    }
}

impl ServerCertVerifier for Mounted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |verifier: Arc<WebPkiServerVerifier>| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        // What does not fit may fit what the file says by now.
        verify(self.refresh(AGE)).or_else(|_| verify(self.refresh(Duration::ZERO)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().supported_verify_schemes()
    }
}
