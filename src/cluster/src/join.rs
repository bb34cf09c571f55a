//! The joining side: a node without a cluster asks one to admit it, trusting only the authority whose hash
//! is in the join string. Nothing on this node changes until the answer is complete; see [`Staging`].

use std::fmt;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::call::{connect, exchange, secure};
use crate::pki::public_key_hash;
use crate::tls::provider;
use crate::wire::{Admitted, JoinRequest, NodeFacts, Version};
use crate::{Clock, Error, JoinString, PeerIdentity, Refusal, Role, Staging};

/// What joining would replace on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalState {
    /// The names of other nodes of the cluster this node is in; empty for a single node.
    pub other_nodes: Vec<String>,
    /// What users have made, in words: `ConfigMap default/web`.
    pub objects: Vec<String>,
}

impl LocalState {
    /// May this node join a cluster?
    ///
    /// # Errors
    /// [`Error::AlreadyInCluster`], with or without `force`; [`Error::Holds`] without.
    pub fn check(&self, force: bool) -> Result<(), Error> {
        if !self.other_nodes.is_empty() {
            return Err(Error::AlreadyInCluster { cluster: format!("with {}", self.other_nodes.join(", ")) });
        }
        if !force && !self.objects.is_empty() {
            return Err(Error::Holds(self.objects.clone()));
        }
        Ok(())
    }
}

/// Ask to be admitted. When a former attempt with the same cluster came as far as the answer, that answer
/// is given again without a request; when it was cut off before, the request is repeated with the same keys
/// and the cluster gives the same answer.
///
/// # Errors
/// Each reason is its own variant: [`Error::Unreachable`], [`Error::WrongAuthority`],
/// [`Error::ClockApart`], [`Error::Refused`] with the control plane's reason.
pub async fn join(
    string: &JoinString,
    facts: &NodeFacts,
    staging: &Staging,
    clock: &Arc<Clock>,
) -> Result<Admitted, Error> {
    if let Some(admitted) = staging.admitted()?
        && staging.belongs_to(&string.ca_hash)?
        && admitted.facts.name == facts.name
        && admitted.facts.role == facts.role
    {
        return Ok(admitted);
    }
    let admitted = match ask(string, facts, staging, clock).await {
        // An attempt before came through but its answer did not, and then the node was taken off again. The
        // token is a new invitation, so the node comes with a new key.
        Err(Error::Refused(Refusal::Removed { .. })) => {
            staging.forget_keys()?;
            ask(string, facts, staging, clock).await?
        }
        asked => asked?,
    };
    staging.save(&admitted, &string.ca_hash)?;
    Ok(admitted)
}

async fn ask(
    string: &JoinString,
    facts: &NodeFacts,
    staging: &Staging,
    clock: &Arc<Clock>,
) -> Result<Admitted, Error> {
    let address = string.server.to_string();
    let pin = Arc::new(Pin::new(&string.ca_hash));
    let mut config = ClientConfig::builder_with_details(provider(), clock.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(pin.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = connect(&string.server).await?;
    // The name is sent but not checked: the authority's hash is what counts.
    let stream = secure(stream, "join.kedge.internal", Arc::new(config))
        .await
        .map_err(|error| explain(&error, &address, &pin))?;
    let now = i64::try_from(clock.now()).ok().and_then(|now| Timestamp::from_second(now).ok());
    let request = JoinRequest {
        token: string.token.to_string(),
        facts: facts.clone(),
        version: Version::own(),
        clock: now.unwrap_or(Timestamp::MAX),
        requests: staging.requests(facts)?,
    };
    exchange(stream, &address, &request).await
}

/// What a failed handshake means.
fn explain(error: &io::Error, address: &str, pin: &Pin) -> Error {
    let time = |time: UnixTime| {
        i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok())
    };
    if let Some(found) = pin.mismatch.lock().take() {
        return Error::WrongAuthority {
            address: address.to_owned(),
            expected: pin.expected.clone(),
            found: found.map(|found| found.chars().take(pin.expected.len()).collect()),
        };
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let apart = |now, not_before, not_after| Error::ClockApart {
        address: address.to_owned(),
        now: time(now).unwrap_or(Timestamp::MAX),
        not_before,
        not_after,
    };
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time: now,
            not_before,
        })) => apart(*now, time(*not_before), None),
        Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            time: now,
            not_after,
        })) => apart(*now, None, time(*not_after)),
        _ => Error::Exchange {
            address: address.to_owned(),
            reason: format!("no secure connection ({error}); is this the cluster port of a Kedge node?"),
        },
    }
}

/// Trusts the authority whose public key has the given hash, and control-plane nodes it signed for.
struct Pin {
    /// Lower-case hexadecimal digits, 32 to 64 of them.
    expected: String,
    /// Set when the authority is another one, to its hash if one was shown.
    mismatch: Mutex<Option<Option<String>>>,
    provider: Arc<CryptoProvider>,
}

impl Pin {
    fn new(expected: &str) -> Self {
        Self { expected: expected.to_owned(), mismatch: Mutex::new(None), provider: provider() }
    }

    fn refuse(&self, found: Option<String>) -> rustls::Error {
        *self.mismatch.lock() = Some(found);
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let matches = |hash: &String| hash.starts_with(&self.expected);
        let Some(authority) = intermediates
            .iter()
            .find(|certificate| public_key_hash(certificate).as_ref().is_some_and(matches))
        else {
            return Err(self.refuse(intermediates.last().and_then(public_key_hash)));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, intermediates, now, algorithms)
            .map_err(|error| {
                match error {
                    // The right authority is shown, but it did not sign for this server.
                    rustls::Error::InvalidCertificate(
                        CertificateError::UnknownIssuer
                        | CertificateError::BadSignature
                        | CertificateError::NotValidForName,
                    ) => self.refuse(None),
                    other => other,
                }
            })?;
        // A worker's certificate comes from the same authority: it must not pass for the control plane.
        match PeerIdentity::of(end_entity) {
            Some(peer) if peer.role == Role::ControlPlane => Ok(ServerCertVerified::assertion()),
            _ => Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
