//! The folder of keys and certificates: made on first use, completed when half made, renewed in place.
//!
//! A control-plane node has the authorities' keys and issues its certificates itself; a worker has none and
//! gets them signed by a control-plane node.
//!
//! Rules: a private key is written before its certificate, so a certificate is never without its key;
//! what can be derived again (leaf certificates, the public half of a key) is replaced with a warning,
//! what cannot (the authorities, the token key) is never overwritten.

mod files;
mod rotation;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kedge_base::Chain;
use rcgen::{IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
#[cfg(test)]
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::watch;

use self::files::{Authority, REJOIN, chained, issue, load, outdated, token_key};
pub(crate) use self::files::{
    generate, node_key, parse_request, public_key_hash, read_text, request, signed_by, write,
};
use crate::identity::Own;
use crate::issue::{BACK_DATED, Leaf, NodeIdentity, Profile, Usage, seal};
use crate::tls::Slot;
use crate::trust::{Trust, authority_hash};
use crate::wire::ControlPlaneKeys;
use crate::{Clock, EncryptionKeys, Error, NodeId, Role};

/// The cluster's authorities, the token key and this node's certificates.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    pub(crate) clock: Arc<Clock>,
    node: RwLock<NodeIdentity>,
    own: Own,
    pub(crate) trust: Arc<Trust>,
    authorities: Option<Authorities>,
    slots: BTreeMap<Leaf, Arc<Slot>>,
}

/// What only control-plane nodes have.
#[derive(Debug)]
struct Authorities {
    ca: RwLock<Arc<Authority>>,
    front_proxy_ca: Arc<Authority>,
    service_account_key: String,
    service_account_public: String,
}

impl Authorities {
    fn of(&self, leaf: Leaf) -> Arc<Authority> {
        if leaf == Leaf::FrontProxyClient { self.front_proxy_ca.clone() } else { self.ca() }
    }

    fn ca(&self) -> Arc<Authority> {
        self.ca.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_ca(&self, fresh: Authority) {
        *self.ca.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
    }
}

/// A new key and the request for its certificate.
#[derive(Clone)]
pub struct Pending {
    /// Which certificate.
    pub leaf: Leaf,
    /// The certificate signing request, PEM.
    pub request: String,
    key: String,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("leaf", &self.leaf).finish_non_exhaustive()
    }
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
        let clock = Self::prepare(dir)?;
        let now = clock.now();
        rotation::complete(dir)?;
        let ca = RwLock::new(Arc::new(Authority::open(dir, "ca", "kedge-ca", now)?));
        let front_proxy_ca = Arc::new(Authority::open(dir, "front-proxy-ca", "kedge-front-proxy-ca", now)?);
        let trust = Trust::new(&read_text(&dir.join("ca.crt"))?.unwrap_or_default())?;
        let (service_account_key, service_account_public) = token_key(dir)?;
        let authorities = Authorities { ca, front_proxy_ca, service_account_key, service_account_public };
        let key = node_key(dir)?;
        let own = Own { id: NodeId::of_public_key(&key.subject_public_key_info()), role: Role::ControlPlane };
        let mut slots = BTreeMap::new();
        for leaf in Leaf::ALL {
            let authority = &authorities.of(leaf);
            let signed = |certificate: &CertificateDer<'_>| {
                signed_by(certificate, &authority.der)
                    || leaf != Leaf::FrontProxyClient && trust.signed(certificate)
            };
            let slot = match load(dir, leaf, signed)? {
                Some(slot) => match outdated(&slot, &Profile::of(leaf, node, own), now) {
                    None => slot,
                    Some(reason) => {
                        tracing::info!(certificate = leaf.file_stem(), reason, "certificate is issued again");
                        issue(dir, leaf, node, own, authority, now)?
                    }
                },
                None => issue(dir, leaf, node, own, authority, now)?,
            };
            slots.insert(leaf, Arc::new(slot));
        }
        clock.record()?;
        Ok(Self {
            dir: dir.into(),
            clock,
            node: RwLock::new(node.clone()),
            own,
            trust,
            authorities: Some(authorities),
            slots,
        })
    }

    /// Open the folder of a worker: it holds the cluster's certificate and the node's own keys and
    /// certificates, as joining wrote them. What is due is told by [`Pki::renew_due`] and asked for from the
    /// control plane; nothing is issued here.
    ///
    /// # Errors
    /// [`Error::Damaged`] names a file that is missing or of no use.
    pub fn open_worker(dir: &Path, node: &NodeIdentity) -> Result<Self, Error> {
        let clock = Self::prepare(dir)?;
        let lost = |path: PathBuf, reason: String| Error::Damaged { path, reason, remedy: REJOIN };
        let ca_path = dir.join("ca.crt");
        let ca_pem = read_text(&ca_path)?.ok_or_else(|| lost(ca_path.clone(), "it is missing".into()))?;
        let trust = Trust::new(&ca_pem).map_err(|error| lost(ca_path, Chain(&error).to_string()))?;
        let key_path = dir.join("node.key");
        let key = read_text(&key_path)?.ok_or_else(|| lost(key_path.clone(), "it is missing".into()))?;
        let key = KeyPair::from_pem(&key).map_err(|error| lost(key_path, error.to_string()))?;
        let own = Own { id: NodeId::of_public_key(&key.subject_public_key_info()), role: Role::Worker };
        let mut slots = BTreeMap::new();
        for leaf in Leaf::WORKER {
            let signed = |certificate: &CertificateDer<'_>| trust.signed(certificate);
            let slot = load(dir, leaf, signed)?.ok_or_else(|| {
                let path = dir.join(format!("{}.crt", leaf.file_stem()));
                lost(path, "it is missing, damaged or of another cluster".into())
            })?;
            slots.insert(leaf, Arc::new(slot));
        }
        clock.record()?;
        Ok(Self {
            dir: dir.into(),
            clock,
            node: RwLock::new(node.clone()),
            own,
            trust,
            authorities: None,
            slots,
        })
    }

    /// The id of the node whose keys are in this folder; nothing is made or changed there. `None`: it has none.
    ///
    /// # Errors
    /// The key cannot be read, or is damaged.
    pub fn id_in(dir: &Path) -> Result<Option<NodeId>, Error> {
        let path = dir.join("node.key");
        let Some(pem) = read_text(&path)? else { return Ok(None) };
        let key = KeyPair::from_pem(&pem).map_err(|error| Error::Damaged {
            path,
            reason: error.to_string(),
            remedy: REJOIN,
        })?;
        Ok(Some(NodeId::of_public_key(&key.subject_public_key_info())))
    }

    fn prepare(dir: &Path) -> Result<Arc<Clock>, Error> {
        let failed = |action| move |source| Error::File { action, path: dir.into(), source };
        fs::create_dir_all(dir).map_err(failed("create"))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed("restrict"))?;
        Ok(Arc::new(Clock::open(&dir.join("time-floor"))?))
    }

    /// The time that certificates and tokens go by.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// This node's id: its key's hash.
    pub fn node_id(&self) -> NodeId {
        self.own.id
    }

    /// What this node is.
    pub fn role(&self) -> Role {
        self.own.role
    }

    /// What the certificates of this node name.
    pub fn identity(&self) -> NodeIdentity {
        self.node.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cluster authority's certificate; two while it is replaced, the one that signs here first.
    pub fn ca_pem(&self) -> String {
        self.trust.pem()
    }

    /// The same, and its changes.
    pub fn follow_ca_pem(&self) -> watch::Receiver<String> {
        self.trust.subscribe()
    }

    #[cfg(test)]
    pub(crate) fn ca_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.ca_pem().as_bytes()).unwrap()
    }

    /// The front-proxy authority's certificate: aggregated API servers trust it for user headers. Empty on
    /// a worker, which has none.
    pub fn front_proxy_ca_pem(&self) -> &str {
        self.authorities.as_ref().map_or("", |authorities| &authorities.front_proxy_ca.pem)
    }

    /// The private key that signs ServiceAccount tokens (ES256, PKCS#8 PEM). Empty on a worker.
    pub fn service_account_key_pem(&self) -> &str {
        self.authorities.as_ref().map_or("", |authorities| &authorities.service_account_key)
    }

    /// The public half of [`Pki::service_account_key_pem`]. Empty on a worker.
    pub fn service_account_public_pem(&self) -> &str {
        self.authorities.as_ref().map_or("", |authorities| &authorities.service_account_public)
    }

    /// What a new control-plane node gets.
    pub(crate) fn shared_keys(&self) -> Result<ControlPlaneKeys, Error> {
        let authorities = self.authorities()?;
        Ok(ControlPlaneKeys {
            ca_key: authorities.ca().issuer.key().serialize_pem(),
            next_ca_key: read_text(&self.dir.join(rotation::NEXT_KEY))?.unwrap_or_default(),
            front_proxy_ca: authorities.front_proxy_ca.pem.clone(),
            front_proxy_ca_key: authorities.front_proxy_ca.issuer.key().serialize_pem(),
            service_account_key: authorities.service_account_key.clone(),
            encryption: read_text(&EncryptionKeys::path(&self.dir))?.unwrap_or_default(),
        })
    }

    /// The certificate's file; it changes when the certificate is renewed.
    pub fn certificate_path(&self, leaf: Leaf) -> PathBuf {
        self.dir.join(format!("{}.crt", leaf.file_stem()))
    }

    /// Certificate and private key as they are now, in PEM.
    /// Empty for what a worker does not have.
    pub fn pem(&self, leaf: Leaf) -> (String, String) {
        self.slots.get(&leaf).map(|slot| slot.pem()).unwrap_or_default()
    }

    /// SHA-256 over the cluster authority's SubjectPublicKeyInfo, in hexadecimal: what join strings pin.
    pub fn ca_hash(&self) -> String {
        authority_hash(&self.ca_pem())
    }

    /// The certificates that are past two thirds of their life at `now`, or name other addresses than the
    /// node has.
    pub fn renew_due(&self, now: SystemTime) -> Vec<Leaf> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        let node = self.identity();
        let due = |(leaf, slot): &(&Leaf, &Arc<Slot>)| {
            outdated(slot, &Profile::of(**leaf, &node, self.own), now).is_some()
        };
        self.slots.iter().filter(due).map(|(leaf, _)| *leaf).collect()
    }

    /// When the first certificate will be due: sleep until then, then call [`Pki::renew`].
    pub fn next_renewal(&self) -> SystemTime {
        let seconds = self.slots.values().map(|slot| slot.renew_at()).min().unwrap_or(u64::MAX >> 2);
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Issue again what is due; listeners and clients made from this `Pki` use it from the next
    /// handshake on. Call it once a day as well: it records the time floor. On a worker nothing is issued:
    /// what is due there goes through [`Pki::pending`] and [`Pki::install`].
    ///
    /// # Errors
    /// When a file cannot be written; the old certificate then stays in use.
    pub fn renew(&self) -> Result<Vec<Leaf>, Error> {
        self.clock.record()?;
        if self.authorities.is_none() {
            return Ok(Vec::new());
        }
        let due = self.renew_due(self.clock.system_time());
        self.rotate(&due)?;
        Ok(due)
    }

    /// Issue these certificates again, due or not.
    ///
    /// # Errors
    /// [`Error::NoAuthority`] on a worker; when a file cannot be written.
    pub fn rotate(&self, leaves: &[Leaf]) -> Result<(), Error> {
        let authorities = self.authorities()?;
        let node = self.identity();
        for &leaf in leaves {
            let fresh = issue(&self.dir, leaf, &node, self.own, &authorities.of(leaf), self.clock.now())?;
            tracing::info!(certificate = leaf.file_stem(), "certificate issued again");
            self.slot(leaf)?.replace(fresh);
        }
        Ok(())
    }

    /// The node's addresses changed: certificates that name them are issued again, in place. Returns which;
    /// on a worker these are due now ([`Pki::renew_due`]) and wait for the control plane.
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
        let differs =
            |leaf: &Leaf| Profile::of(*leaf, &before, self.own) != Profile::of(*leaf, &node, self.own);
        let changed: Vec<Leaf> = self.slots.keys().copied().filter(differs).collect();
        if self.authorities.is_some() {
            self.rotate(&changed)?;
        }
        Ok(changed)
    }

    /// A request for a certificate of this node. The key is new, except for [`Leaf::Node`], whose key is
    /// the node's identity.
    ///
    /// # Errors
    /// When a key cannot be made or read.
    pub fn pending(&self, leaf: Leaf) -> Result<Pending, Error> {
        self.slot(leaf)?;
        let key = if leaf == Leaf::Node { node_key(&self.dir)? } else { generate(leaf.file_stem())? };
        let profile = Profile::of(leaf, &self.identity(), self.own);
        Ok(Pending { leaf, request: request(&profile, &key)?, key: key.serialize_pem() })
    }

    /// Put a signed certificate in place of the one in use.
    ///
    /// # Errors
    /// [`Error::Request`] when it is not the one that was asked for; the old one then stays in use.
    pub fn install(&self, pending: &Pending, certificate: &str) -> Result<(), Error> {
        let (leaf, stem) = (pending.leaf, pending.leaf.file_stem());
        let slot = Slot::new(certificate.to_owned(), pending.key.clone()).map_err(|error| {
            Error::Request(format!("the certificate that came back is of no use: {error}"))
        })?;
        let reason = if self.trust.signed(&slot.certificate()) {
            outdated(&slot, &Profile::of(leaf, &self.identity(), self.own), self.clock.now())
        } else {
            Some("it was signed by another authority")
        };
        if let Some(reason) = reason {
            return Err(Error::Request(format!("the certificate that came back is of no use: {reason}")));
        }
        if leaf != Leaf::Node {
            write(&self.dir.join(format!("{stem}.key")), &pending.key)?;
        }
        write(&self.dir.join(format!("{stem}.crt")), certificate)?;
        tracing::info!(certificate = stem, "certificate renewed");
        self.slot(leaf)?.replace(slot);
        Ok(())
    }

    /// Sign a node's request for one of its certificates. Only the request's public key counts: what the
    /// certificate says follows from who the node is.
    ///
    /// # Errors
    /// [`Error::Request`] for a request that is not valid, [`Error::NoAuthority`] on a worker.
    pub(crate) fn sign_leaf(
        &self,
        leaf: Leaf,
        csr_pem: &str,
        node: &NodeIdentity,
        own: Own,
    ) -> Result<String, Error> {
        let authority = self.authorities()?.of(leaf);
        let mut request = parse_request(csr_pem)?;
        request.params = Profile::of(leaf, node, own).params(self.clock.now())?;
        let certificate =
            request.signed_by(&authority.issuer).map_err(|error| Error::Request(error.to_string()))?;
        chained(&self.dir, leaf, certificate.pem(), &authority)
    }

    /// Sign a certificate signing request (PEM) with the cluster authority. Subject and names are the
    /// request's: the caller has decided that the requester may have them. Whatever the request says
    /// of authorities and usages is replaced.
    ///
    /// # Errors
    /// [`Error::Request`] for a request that is not valid or asks for an unknown extension.
    pub fn sign_csr(&self, csr_pem: &str, usages: &[Usage], ttl: Duration) -> Result<String, Error> {
        let mut request = parse_request(csr_pem)?;
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        request.params.extended_key_usages = usages.iter().map(|usage| usage.purpose()).collect();
        let now = self.clock.now();
        seal(&mut request.params, now, ttl)?;
        // What was asked to be short-lived is not a day longer for it.
        let back_dated = BACK_DATED.min(ttl.as_secs() / 12);
        request.params.not_before =
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.saturating_sub(back_dated));
        let certificate = request
            .signed_by(&self.authorities()?.ca().issuer)
            .map_err(|error| Error::Request(error.to_string()))?;
        Ok(certificate.pem())
    }

    pub(crate) fn slot(&self, leaf: Leaf) -> Result<&Arc<Slot>, Error> {
        self.slots.get(&leaf).ok_or(Error::NoAuthority("have this certificate"))
    }

    #[cfg(test)]
    pub(crate) fn front_proxy_ca_der(&self) -> Option<&CertificateDer<'static>> {
        self.authorities.as_ref().map(|authorities| &authorities.front_proxy_ca.der)
    }

    fn authorities(&self) -> Result<&Authorities, Error> {
        self.authorities.as_ref().ok_or(Error::NoAuthority("sign certificates"))
    }
}

#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod tests;
