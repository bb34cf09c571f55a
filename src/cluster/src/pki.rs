//! The folder of keys and certificates: made on first use, completed when half made, renewed in place.
//!
//! Rules: a private key is written before its certificate, so a certificate is never without its key;
//! what can be derived again (leaf certificates, the public half of a key) is replaced with a warning,
//! what cannot (the authorities, the token key) is never overwritten.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kedge_base::{Chain, read_optional, write_atomic};
use rcgen::{CertificateSigningRequestParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::issue::{Leaf, NodeIdentity, Profile, Usage, authority_params, seal};
use crate::tls::Slot;
use crate::{Clock, Error};

const RESTORE: &str = "restore the file from a backup of the folder; every node and kubeconfig trusts this key, \
                       so it is not replaced by itself";

/// The cluster's authorities, the token key and this node's certificates.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    pub(crate) clock: Arc<Clock>,
    node: RwLock<NodeIdentity>,
    ca: Authority,
    front_proxy_ca: Authority,
    service_account_key: String,
    service_account_public: String,
    slots: BTreeMap<Leaf, Arc<Slot>>,
}

/// An authority that can sign.
#[derive(Debug)]
struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Open the folder for this node: make what is missing, renew what is past two thirds of its life or
    /// names other addresses than `node`. The folder's own time floor (`time-floor`) stands in for a
    /// clock that is behind.
    ///
    /// # Errors
    /// [`Error::Damaged`] names a file that only the operator can bring back; other errors come from
    /// the file system.
    pub fn open(dir: &Path, node: &NodeIdentity) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::File {
            action: "create",
            path: dir.into(),
            source,
        })?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(|source| Error::File {
            action: "restrict",
            path: dir.into(),
            source,
        })?;
        let clock = Arc::new(Clock::open(&dir.join("time-floor"))?);
        let now = clock.now();
        let ca = Authority::open(dir, "ca", "kedge-ca", now)?;
        let front_proxy_ca = Authority::open(dir, "front-proxy-ca", "kedge-front-proxy-ca", now)?;
        let (service_account_key, service_account_public) = token_key(dir)?;
        let mut slots = BTreeMap::new();
        for leaf in Leaf::ALL {
            let authority = if leaf == Leaf::FrontProxyClient { &front_proxy_ca } else { &ca };
            let slot = match load(dir, leaf, node, authority, now)? {
                Some(slot) => slot,
                None => issue(dir, leaf, node, authority, now)?,
            };
            slots.insert(leaf, Arc::new(slot));
        }
        clock.record()?;
        Ok(Self {
            dir: dir.into(),
            clock,
            node: RwLock::new(node.clone()),
            ca,
            front_proxy_ca,
            service_account_key,
            service_account_public,
            slots,
        })
    }

    /// The time that certificates and tokens go by.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// The cluster authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca.pem
    }

    /// The front-proxy authority's certificate: aggregated API servers trust it for user headers.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy_ca.pem
    }

    /// The private key that signs ServiceAccount tokens (ES256, PKCS#8 PEM).
    pub fn service_account_key_pem(&self) -> &str {
        &self.service_account_key
    }

    /// The public half of [`Pki::service_account_key_pem`].
    pub fn service_account_public_pem(&self) -> &str {
        &self.service_account_public
    }

    /// The certificate's file; it changes when the certificate is renewed.
    pub fn certificate_path(&self, leaf: Leaf) -> PathBuf {
        self.dir.join(format!("{}.crt", leaf.file_stem()))
    }

    /// Certificate and private key as they are now, in PEM.
    pub fn pem(&self, leaf: Leaf) -> (String, String) {
        self.slot(leaf).pem()
    }

    /// SHA-256 over the cluster authority's SubjectPublicKeyInfo, in hexadecimal: what join strings pin.
    pub fn ca_hash(&self) -> String {
        let spki = self.ca.issuer.key().subject_public_key_info();
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The certificates that are past two thirds of their life at `now`.
    pub fn renew_due(&self, now: SystemTime) -> Vec<Leaf> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        self.slots.iter().filter(|(_, slot)| now >= slot.renew_at()).map(|(leaf, _)| *leaf).collect()
    }

    /// When the first certificate will be due: sleep until then, then call [`Pki::renew`].
    pub fn next_renewal(&self) -> SystemTime {
        let seconds = self.slots.values().map(|slot| slot.renew_at()).min().unwrap_or(u64::MAX >> 2);
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Issue again what is due; listeners and clients made from this `Pki` use it from the next
    /// handshake on. Call it once a day as well: it records the time floor.
    ///
    /// # Errors
    /// When a file cannot be written; the old certificate then stays in use.
    pub fn renew(&self) -> Result<Vec<Leaf>, Error> {
        let due = self.renew_due(self.clock.system_time());
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        for leaf in &due {
            self.reissue(*leaf, &node)?;
        }
        self.clock.record()?;
        Ok(due)
    }

    /// The node's addresses changed: certificates that name them are issued again, in place.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn set_addresses(&self, addresses: &[std::net::IpAddr]) -> Result<Vec<Leaf>, Error> {
        let (before, node) = {
            let mut node = self.node.write().unwrap_or_else(PoisonError::into_inner);
            let before = node.clone();
            node.addresses = addresses.to_vec();
            (before, node.clone())
        };
        let mut changed = Vec::new();
        for leaf in Leaf::ALL {
            if Profile::of(leaf, &before) != Profile::of(leaf, &node) {
                self.reissue(leaf, &node)?;
                changed.push(leaf);
            }
        }
        Ok(changed)
    }

    /// Sign a certificate signing request (PEM) with the cluster authority. Subject and names are the
    /// request's: the caller has decided that the requester may have them. Whatever the request says
    /// of authorities and usages is replaced.
    ///
    /// # Errors
    /// [`Error::Request`] for a request that is not valid or asks for an unknown extension.
    pub fn sign_csr(&self, csr_pem: &str, usages: &[Usage], ttl: Duration) -> Result<String, Error> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| Error::Request(error.to_string()))?;
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        request.params.extended_key_usages = usages.iter().map(|usage| usage.purpose()).collect();
        seal(&mut request.params, self.clock.now(), ttl)?;
        let certificate =
            request.signed_by(&self.ca.issuer).map_err(|error| Error::Request(error.to_string()))?;
        Ok(certificate.pem())
    }

    pub(crate) fn slot(&self, leaf: Leaf) -> &Arc<Slot> {
        // `open` made one for every variant.
        &self.slots[&leaf]
    }

    fn reissue(&self, leaf: Leaf, node: &NodeIdentity) -> Result<(), Error> {
        let authority = if leaf == Leaf::FrontProxyClient { &self.front_proxy_ca } else { &self.ca };
        let fresh = issue(&self.dir, leaf, node, authority, self.clock.now())?;
        tracing::info!(certificate = leaf.file_stem(), "certificate issued again");
        self.slot(leaf).replace(fresh);
        Ok(())
    }
}

impl Authority {
    fn open(dir: &Path, stem: &str, common_name: &str, now: u64) -> Result<Self, Error> {
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
fn token_key(dir: &Path) -> Result<(String, String), Error> {
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

/// The leaf on disk, unless it has to be issued (again).
fn load(
    dir: &Path,
    leaf: Leaf,
    node: &NodeIdentity,
    authority: &Authority,
    now: u64,
) -> Result<Option<Slot>, Error> {
    let stem = leaf.file_stem();
    let certificate = read_text(&dir.join(format!("{stem}.crt")))?;
    let key = read_text(&dir.join(format!("{stem}.key")))?;
    let (Some(certificate), Some(key)) = (certificate, key) else {
        return Ok(None);
    };
    let slot = match Slot::new(certificate, key) {
        Ok(slot) => slot,
        Err(error) => {
            tracing::warn!(certificate = stem, error = %Chain(&error), "damaged; it is issued again");
            return Ok(None);
        }
    };
    let reason = {
        let der = slot.certificate();
        match x509_parser::parse_x509_certificate(&der) {
            Err(error) => Some(error.to_string()),
            Ok((_, parsed)) => {
                if !signed_by(&parsed, authority) {
                    Some("it was signed by another authority".to_owned())
                } else if now >= slot.renew_at() {
                    Some("it is past two thirds of its life".to_owned())
                } else if !Profile::of(leaf, node).matches(&parsed) {
                    Some("the node's name or addresses changed".to_owned())
                } else {
                    None
                }
            }
        }
    };
    match reason {
        None => Ok(Some(slot)),
        Some(reason) => {
            tracing::info!(certificate = stem, reason, "certificate is issued again");
            Ok(None)
        }
    }
}

fn signed_by(certificate: &x509_parser::certificate::X509Certificate<'_>, authority: &Authority) -> bool {
    match x509_parser::parse_x509_certificate(&authority.der) {
        Ok((_, parsed)) => certificate.verify_signature(Some(parsed.public_key())).is_ok(),
        Err(_) => false,
    }
}

fn issue(
    dir: &Path,
    leaf: Leaf,
    node: &NodeIdentity,
    authority: &Authority,
    now: u64,
) -> Result<Slot, Error> {
    let stem = leaf.file_stem();
    let key = generate(stem)?;
    let certificate = Profile::of(leaf, node)
        .params(now)?
        .signed_by(&key, &authority.issuer)
        .map_err(|source| Error::Issue { name: stem.into(), source })?;
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    write(&dir.join(format!("{stem}.key")), &key)?;
    write(&dir.join(format!("{stem}.crt")), &certificate)?;
    Slot::new(certificate, key)
}

fn generate(name: &str) -> Result<KeyPair, Error> {
    KeyPair::generate().map_err(|source| Error::Issue { name: name.into(), source })
}

fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let bytes =
        read_optional(path).map_err(|source| Error::File { action: "read", path: path.into(), source })?;
    // A file that is not text will not parse as PEM either, which gives the better message.
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    write_atomic(path, text.as_bytes(), 0o600).map_err(|source| Error::File {
        action: "write",
        path: path.into(),
        source,
    })
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Damaged { path: path.into(), reason: error.to_string(), remedy: RESTORE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::{LEAF_LIFE, alternative_names};

    fn node() -> NodeIdentity {
        NodeIdentity {
            name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            service_addresses: vec!["10.96.0.1".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
        }
    }

    fn names(pem: &str) -> std::collections::BTreeSet<String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        alternative_names(&parsed)
    }

    #[test]
    fn opens_again_without_changing_anything() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &node()).unwrap();
        let second = Pki::open(dir.path(), &node()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.ca_hash(), second.ca_hash());
        assert_eq!(first.ca_hash().len(), 64);
        assert_eq!(first.service_account_key_pem(), second.service_account_key_pem());
        for leaf in Leaf::ALL {
            assert_eq!(first.pem(leaf), second.pem(leaf), "{leaf:?}");
        }
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        }
    }

    #[test]
    fn every_leaf_is_signed_by_its_authority() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &node()).unwrap();
        for leaf in Leaf::ALL {
            let (own, other) = if leaf == Leaf::FrontProxyClient {
                (&pki.front_proxy_ca, &pki.ca)
            } else {
                (&pki.ca, &pki.front_proxy_ca)
            };
            let der = pki.slot(leaf).certificate();
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert!(signed_by(&parsed, own), "{leaf:?}");
            assert!(!signed_by(&parsed, other), "{leaf:?}");
        }
    }

    #[test]
    fn a_new_address_issues_only_what_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let before = Pki::open(dir.path(), &node()).unwrap();
        let mut moved = node();
        moved.addresses.push("198.51.100.7".parse().unwrap());
        let after = Pki::open(dir.path(), &moved).unwrap();
        assert!(names(&after.pem(Leaf::Apiserver).0).contains("198.51.100.7"));
        assert_ne!(before.pem(Leaf::Kubelet), after.pem(Leaf::Kubelet));
        assert_eq!(before.pem(Leaf::Admin), after.pem(Leaf::Admin));
        let changed = after.set_addresses(&["203.0.113.9".parse().unwrap()]).unwrap();
        assert_eq!(changed, [Leaf::Apiserver, Leaf::Kubelet]);
        assert!(names(&after.pem(Leaf::Apiserver).0).contains("203.0.113.9"));
    }

    #[test]
    fn a_half_made_folder_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &node()).unwrap();
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        fs::remove_file(dir.path().join("admin.crt")).unwrap();
        fs::remove_file(dir.path().join("sa.pub")).unwrap();
        fs::write(dir.path().join("kubelet.key"), "cut short").unwrap();
        let second = Pki::open(dir.path(), &node()).unwrap();
        assert_eq!(first.ca_hash(), second.ca_hash(), "the authority's key was kept");
        assert_eq!(first.service_account_public_pem(), second.service_account_public_pem());
        assert!(dir.path().join("admin.crt").exists());
        assert_ne!(first.pem(Leaf::Kubelet), second.pem(Leaf::Kubelet));
    }

    #[test]
    fn what_cannot_be_made_again_is_named_and_kept() {
        for (file, content) in
            [("ca.key", Some("garbage")), ("ca.crt", Some("garbage")), ("sa.key", Some("")), ("ca.key", None)]
        {
            let dir = tempfile::tempdir().unwrap();
            drop(Pki::open(dir.path(), &node()).unwrap());
            let path = dir.path().join(file);
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let error = Pki::open(dir.path(), &node()).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains("restore"), "{error}");
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), content);
        }
    }

    #[test]
    fn leaves_are_due_at_two_thirds_of_their_life() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &node()).unwrap();
        let now = pki.clock().system_time();
        assert!(pki.renew_due(now).is_empty());
        assert!(pki.renew_due(now + Duration::from_secs(LEAF_LIFE / 2)).is_empty());
        assert_eq!(pki.renew_due(now + Duration::from_secs(LEAF_LIFE * 2 / 3)), Leaf::ALL);
        assert!(pki.next_renewal() > now);
    }

    #[test]
    fn a_request_gets_the_usages_it_is_given_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &node()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["n2".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n2");
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let signed = pki.sign_csr(&request, &[Usage::Client], Duration::from_secs(3600)).unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(signed_by(&parsed, &pki.ca));
        assert!(!parsed.is_ca());
        let usages = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.client_auth && !usages.server_auth);
        assert!(pki.sign_csr("no request", &[], Duration::from_secs(1)).is_err());
    }
}
