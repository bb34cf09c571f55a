//! Single keys and certificates of the folder: authorities, the token key, the node's key, leaves.

use std::path::Path;

use kedge_base::{Chain, read_optional, write_atomic};
use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::rotation;
use crate::Error;
use crate::identity::Own;
use crate::issue::{Leaf, NodeIdentity, Profile, authority_params};
use crate::tls::Slot;
use crate::token::hex;
use crate::trust::blocks;

const RESTORE: &str = "restore the file from a backup of the folder; every node and kubeconfig trusts this key, \
                       so it is not replaced by itself";
pub(super) const REJOIN: &str =
    "restore the file from a backup of the folder, or run kedge leave --force and join the cluster again";

/// An authority that can sign.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, KeyPair>,
}
impl Authority {
    pub(super) fn open(dir: &Path, stem: &str, common_name: &str, now: u64) -> Result<Self, Error> {
        let key_path = dir.join(format!("{stem}.key"));
        let certificate_path = dir.join(format!("{stem}.crt"));
        let certificate = read_text(&certificate_path)?;
        let key = match read_text(&key_path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|error| damaged(&key_path, &error))?,
            None if certificate.is_some() => {
                return Err(Error::Damaged {
                    path: key_path,
                    reason: "it is missing, but its certificate is there".into(),
                    remedy: RESTORE,
                });
            }
            None => {
                let key = generate(stem)?;
                write(&key_path, &key.serialize_pem())?;
                key
            }
        };
        let pem = match certificate {
            Some(pem) => pem,
            None => {
                let certificate = authority_params(common_name, now)?
                    .self_signed(&key)
                    .map_err(|source| Error::Issue { name: stem.into(), source })?;
                write(&certificate_path, &certificate.pem())?;
                certificate.pem()
            }
        };
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| damaged(&certificate_path, &error))?;
        // Others that are trusted may follow.
        let pem = blocks(&pem).into_iter().next().unwrap_or(pem);
        {
            let (_, parsed) = x509_parser::parse_x509_certificate(&der)
                .map_err(|error| damaged(&certificate_path, &error))?;
            if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
                return Err(Error::Damaged {
                    path: certificate_path,
                    reason: format!("it does not belong to the key in {}", key_path.display()),
                    remedy: RESTORE,
                });
            }
            if parsed.validity().not_after.timestamp() < i64::try_from(now).unwrap_or(i64::MAX) {
                tracing::warn!(file = %certificate_path.display(), "the certificate authority has expired");
            }
        }
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|error| damaged(&certificate_path, &error))?;
        Ok(Self { pem, der, issuer })
    }
}

/// The ServiceAccount key pair.
pub(super) fn token_key(dir: &Path) -> Result<(String, String), Error> {
    let path = dir.join("sa.key");
    let key = match read_text(&path)? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(|error| damaged(&path, &error))?,
        None => {
            let key = generate("sa")?;
            write(&path, &key.serialize_pem())?;
            key
        }
    };
    let public_path = dir.join("sa.pub");
    let public = key.public_key_pem();
    if read_text(&public_path)?.as_deref() != Some(public.as_str()) {
        write(&public_path, &public)?;
    }
    Ok((key.serialize_pem(), public))
}

/// The key that is the node's identity: made once.
pub(crate) fn node_key(dir: &Path) -> Result<KeyPair, Error> {
    let path = dir.join("node.key");
    match read_text(&path)? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(|error| damaged(&path, &error)),
        None if dir.join("node.crt").exists() => Err(Error::Damaged {
            path,
            reason: "it is missing, but its certificate is there".into(),
            remedy: REJOIN,
        }),
        None => {
            let key = generate("node")?;
            write(&path, &key.serialize_pem())?;
            Ok(key)
        }
    }
}

/// The leaf on disk, unless it is missing, damaged or another authority's.
pub(super) fn load(
    dir: &Path,
    leaf: Leaf,
    signed: impl Fn(&CertificateDer<'_>) -> bool,
) -> Result<Option<Slot>, Error> {
    let stem = leaf.file_stem();
    let certificate = read_text(&dir.join(format!("{stem}.crt")))?;
    let key = read_text(&dir.join(format!("{stem}.key")))?;
    let (Some(certificate), Some(key)) = (certificate, key) else {
        return Ok(None);
    };
    match Slot::new(certificate, key) {
        Ok(slot) if signed(&slot.certificate()) => Ok(Some(slot)),
        Ok(_) => {
            tracing::info!(certificate = stem, "the certificate was signed by another authority");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(certificate = stem, error = %Chain(&error), "the certificate is damaged");
            Ok(None)
        }
    }
}

/// Why a certificate has to be issued again.
pub(super) fn outdated(slot: &Slot, profile: &Profile, now: u64) -> Option<&'static str> {
    let der = slot.certificate();
    match x509_parser::parse_x509_certificate(&der) {
        Err(_) => Some("it cannot be read"),
        Ok(_) if now >= slot.renew_at() => Some("it is past two thirds of its life"),
        Ok((_, parsed)) if !profile.matches(&parsed) => Some("the node's name or addresses changed"),
        Ok(_) => None,
    }
}

pub(crate) fn signed_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    let authority = x509_parser::parse_x509_certificate(authority);
    match (parsed, authority) {
        (Ok((_, parsed)), Ok((_, authority))) => {
            parsed.verify_signature(Some(authority.public_key())).is_ok()
        }
        _ => false,
    }
}

/// SHA-256 over a certificate's SubjectPublicKeyInfo, in hexadecimal.
pub(crate) fn public_key_hash(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(hex(ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw).as_ref()))
}

pub(crate) fn parse_request(csr_pem: &str) -> Result<CertificateSigningRequestParams, Error> {
    CertificateSigningRequestParams::from_pem(csr_pem).map_err(|error| Error::Request(error.to_string()))
}

/// A certificate signing request (PEM) for what the profile says.
pub(crate) fn request(profile: &Profile, key: &KeyPair) -> Result<String, Error> {
    let issue = |source| Error::Issue { name: profile.common_name.clone(), source };
    profile.request_params()?.serialize_request(key).and_then(|request| request.pem()).map_err(issue)
}

/// A node's certificate is followed by its authority's, because a joiner knows that one only by its hash. While
/// the authority is replaced, what servers show leads to the old one too.
pub(super) fn chained(
    dir: &Path,
    leaf: Leaf,
    certificate: String,
    authority: &Authority,
) -> Result<String, Error> {
    Ok(match leaf {
        Leaf::Node => {
            let (cross, others) = rotation::tail(dir, authority)?;
            [certificate, authority.pem.clone(), cross, others].concat()
        }
        Leaf::Apiserver | Leaf::Kubelet => certificate + &rotation::tail(dir, authority)?.0,
        Leaf::KubeletClient | Leaf::Admin | Leaf::ApiserverKubeletClient | Leaf::FrontProxyClient => {
            certificate
        }
    })
}

pub(super) fn issue(
    dir: &Path,
    leaf: Leaf,
    node: &NodeIdentity,
    own: Own,
    authority: &Authority,
    now: u64,
) -> Result<Slot, Error> {
    let stem = leaf.file_stem();
    let key = if leaf == Leaf::Node { node_key(dir)? } else { generate(stem)? };
    let certificate = Profile::of(leaf, node, own)
        .params(now)?
        .signed_by(&key, &authority.issuer)
        .map_err(|source| Error::Issue { name: stem.into(), source })?;
    let (certificate, key) = (chained(dir, leaf, certificate.pem(), authority)?, key.serialize_pem());
    if leaf != Leaf::Node {
        write(&dir.join(format!("{stem}.key")), &key)?;
    }
    write(&dir.join(format!("{stem}.crt")), &certificate)?;
    Slot::new(certificate, key)
}

pub(crate) fn generate(name: &str) -> Result<KeyPair, Error> {
    KeyPair::generate().map_err(|source| Error::Issue { name: name.into(), source })
}

pub(crate) fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let bytes =
        read_optional(path).map_err(|source| Error::File { action: "read", path: path.into(), source })?;
    // A file that is not text will not parse as PEM either, which gives the better message.
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    write_atomic(path, text.as_bytes(), 0o600).map_err(|source| Error::File {
        action: "write",
        path: path.into(),
        source,
    })
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Damaged { path: path.into(), reason: error.to_string(), remedy: RESTORE }
}
