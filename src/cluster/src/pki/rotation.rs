//! The folder while the authority is replaced; see [`crate::AuthorityState`] for the stages.
//!
//! ```text
//! ca.crt, ca.key        whom this node trusts, the one it signs with first, and that one's key
//! ca-next.crt, .key     the new authority until this node signs with it
//! ca-cross.crt          the new authority's key, signed by the old one
//! ```
//!
//! The key is replaced before the certificate; where that was cut off, [`complete`] goes on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use rcgen::{KeyPair, PublicKeyData as _};

use super::Pki;
use super::files::{Authority, generate, read_text, write};
use crate::issue::authority_params;
use crate::trust::{authority_hash, blocks, key_hash};
use crate::{AuthorityReport, AuthorityState, AuthorityStep, ControlPlaneKeys, Error, Leaf};

pub(super) const CROSS: &str = "ca-cross.crt";
const NEXT: &str = "ca-next.crt";
pub(super) const NEXT_KEY: &str = "ca-next.key";

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { action: "remove", path: path.into(), source })
        }
        _ => Ok(()),
    }
}

/// The same certificates, this authority first.
fn first(authority: &str, others: &str) -> String {
    let hash = authority_hash(authority);
    let mut all = blocks(authority);
    all.extend(blocks(others).into_iter().filter(|other| authority_hash(other) != hash));
    all.concat()
}

/// A replacement of the key that was cut off before the certificate was replaced.
pub(super) fn complete(dir: &Path) -> Result<(), Error> {
    let (next_key, key) = (read_text(&dir.join(NEXT_KEY))?, read_text(&dir.join("ca.key"))?);
    let (Some(next_key), Some(key), Some(next)) = (next_key, key, read_text(&dir.join(NEXT))?) else {
        return Ok(());
    };
    if key != next_key {
        return Ok(());
    }
    let path = dir.join("ca.crt");
    let before = read_text(&path)?.unwrap_or_default();
    write(&path, &first(&next, &before))?;
    remove(&dir.join(NEXT))?;
    remove(&dir.join(NEXT_KEY))
}

/// What servers show behind their certificates to those who trust the old authority alone: the new one's key
/// with the old one's signature, and for joiners, who know authorities by their hash, the old one itself.
pub(super) fn tail(dir: &Path, authority: &Authority) -> Result<(String, String), Error> {
    let cross = read_text(&dir.join(CROSS))?.unwrap_or_default();
    if authority_hash(&cross) != authority_hash(&authority.pem) {
        return Ok((String::new(), String::new()));
    }
    let trusted = read_text(&dir.join("ca.crt"))?.unwrap_or_default();
    let own = authority_hash(&authority.pem);
    let others: String = blocks(&trusted).into_iter().filter(|other| authority_hash(other) != own).collect();
    Ok((cross, others))
}

impl Pki {
    /// What this node has.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn authority_report(&self) -> Result<AuthorityReport, Error> {
        let signs = self.authorities.as_ref().map(|authorities| authority_hash(&authorities.ca().pem));
        let mut keys: BTreeSet<String> = signs.iter().cloned().collect();
        if self.authorities.is_some()
            && let Some(key) =
                read_text(&self.dir.join(NEXT_KEY))?.and_then(|pem| KeyPair::from_pem(&pem).ok())
        {
            keys.insert(key_hash(&key.subject_public_key_info()));
        }
        let of_cluster = self.slots.iter().filter(|(leaf, _)| **leaf != Leaf::FrontProxyClient);
        Ok(AuthorityReport {
            trusts: blocks(&self.ca_pem()).iter().map(|pem| authority_hash(pem)).collect(),
            keys,
            signs,
            // One that is nobody's is not the new one's either.
            issuers: of_cluster
                .map(|(_, slot)| self.trust.issuer(&slot.certificate()).unwrap_or_default())
                .collect(),
        })
    }

    /// Makes a new authority, which signs nothing yet, and says how its replacement begins.
    ///
    /// # Errors
    /// [`Error::NoAuthority`] on a worker; when a file cannot be written.
    pub fn new_authority(&self) -> Result<AuthorityState, Error> {
        let authorities = self.authorities()?;
        let old = authorities.ca();
        let issue = |source| Error::Issue { name: "ca".into(), source };
        let key = generate("ca")?;
        let hash = key_hash(&key.subject_public_key_info());
        let params = authority_params(&format!("kedge-ca-{}", &hash[..8]), self.clock.now())?;
        let new = params.self_signed(&key).map_err(issue)?.pem();
        let mut params = params;
        params.serial_number = None;
        let cross = params.signed_by(&key, &old.issuer).map_err(issue)?.pem();
        write(&self.dir.join(NEXT_KEY), &key.serialize_pem())?;
        write(&self.dir.join(NEXT), &new)?;
        let since = jiff::Timestamp::from_second(i64::try_from(self.clock.now()).unwrap_or(i64::MAX));
        Ok(AuthorityState {
            stage: crate::AuthorityStage::Trusting,
            old: old.pem.clone(),
            new,
            cross,
            since: since.unwrap_or(jiff::Timestamp::MAX),
        })
    }

    /// Does what [`AuthorityState::next_step`] says, all but getting the key ([`Pki::take_authority_key`]) and,
    /// on a worker, new certificates, which others sign.
    ///
    /// # Errors
    /// When a file cannot be written; it can be repeated.
    pub fn authority_step(&self, state: &AuthorityState, step: AuthorityStep) -> Result<(), Error> {
        match step {
            AuthorityStep::Trust => {
                write(&self.dir.join(CROSS), &state.cross)?;
                let added = [self.ca_pem(), state.old.clone(), state.new.clone()].concat();
                // The one that signs, or did before, stays the first one.
                let bundle = match blocks(&self.ca_pem()).first() {
                    Some(own) => first(own, &dedup(&added)),
                    None => dedup(&added),
                };
                let wanted: BTreeSet<String> =
                    [Some(state.new_hash()), state.old_hash()].into_iter().flatten().collect();
                let own = self.authorities.as_ref().map(|authorities| authority_hash(&authorities.ca().pem));
                let kept = blocks(&bundle).into_iter().filter(|pem| {
                    let hash = authority_hash(pem);
                    wanted.contains(&hash) || own.as_ref() == Some(&hash)
                });
                self.trust_in(&kept.collect::<String>())
            }
            AuthorityStep::Sign => {
                let key = read_text(&self.dir.join(NEXT_KEY))?;
                let key = key.ok_or_else(|| Error::Request("the new authority's key is not here".into()))?;
                write(&self.dir.join(NEXT), &state.new)?;
                write(&self.dir.join("ca.key"), &key)?;
                complete(&self.dir)?;
                let fresh = Authority::open(&self.dir, "ca", "kedge-ca", self.clock.now())?;
                self.authorities()?.replace_ca(fresh);
                let bundle = read_text(&self.dir.join("ca.crt"))?.unwrap_or_default();
                self.trust.replace(&bundle)
            }
            AuthorityStep::Reissue if self.authorities.is_some() => self.rotate(&OF_CLUSTER),
            AuthorityStep::Forget => {
                remove(&self.dir.join(CROSS))?;
                let wanted = state.new_hash();
                let trusted = blocks(&self.ca_pem()).into_iter().filter(|pem| authority_hash(pem) == wanted);
                self.trust_in(&trusted.collect::<String>())?;
                remove(&self.dir.join(NEXT_KEY))?;
                remove(&self.dir.join(NEXT))?;
                // Without what they showed along for those who knew only the old one.
                if self.authorities.is_some() { self.rotate(&SHOWN) } else { Ok(()) }
            }
            AuthorityStep::GetKey | AuthorityStep::Reissue => {
                Err(Error::NoAuthority("do this step by itself"))
            }
        }
    }

    /// What servers show behind their certificates while the authority is replaced, PEM; empty otherwise.
    pub(crate) fn cross(&self) -> Result<String, Error> {
        Ok(tail(&self.dir, &self.authorities()?.ca())?.0)
    }

    fn trust_in(&self, bundle: &str) -> Result<(), Error> {
        write(&self.dir.join("ca.crt"), bundle)?;
        self.trust.replace(bundle)?;
        tracing::info!(authorities = blocks(bundle).len(), "the authorities that this node trusts changed");
        Ok(())
    }

    /// Keeps the new authority's key, which another control-plane node gave.
    ///
    /// # Errors
    /// [`Error::Request`] when it is not among these.
    pub fn take_authority_key(&self, state: &AuthorityState, keys: &ControlPlaneKeys) -> Result<(), Error> {
        let key = keys.authority_key(&state.new_hash());
        let key =
            key.ok_or_else(|| Error::Request("that node does not have the new authority's key".into()))?;
        write(&self.dir.join(NEXT), &state.new)?;
        write(&self.dir.join(NEXT_KEY), key)
    }
}

/// All that the cluster's authority issues.
const OF_CLUSTER: [Leaf; 6] = [
    Leaf::Apiserver,
    Leaf::Kubelet,
    Leaf::KubeletClient,
    Leaf::Admin,
    Leaf::ApiserverKubeletClient,
    Leaf::Node,
];
/// What servers show.
const SHOWN: [Leaf; 3] = [Leaf::Apiserver, Leaf::Kubelet, Leaf::Node];

fn dedup(pem: &str) -> String {
    let mut seen = BTreeSet::new();
    blocks(pem).into_iter().filter(|pem| seen.insert(authority_hash(pem))).collect()
}

impl ControlPlaneKeys {
    /// The private key of the authority with this hash, PEM, if it is here.
    pub fn authority_key(&self, hash: &str) -> Option<&str> {
        let is = |pem: &&str| {
            KeyPair::from_pem(pem).is_ok_and(|key| key_hash(&key.subject_public_key_info()) == hash)
        };
        [self.ca_key.as_str(), self.next_ca_key.as_str()].into_iter().find(is)
    }
}
