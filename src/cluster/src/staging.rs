//! The folder in which a join is prepared. What this node had stays as it is until [`Staging::install`];
//! a join that is killed anywhere goes on from here.
//!
//! ```text
//! join/pki/            keys made before asking, certificates written with the answer
//! join/admitted.json   the answer without private keys, written last: with it the join can be finished
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kedge_base::{read_optional, sync_dir, write_atomic};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::identity::Own;
use crate::issue::Profile;
use crate::pki::{generate, node_key, public_key_hash, read_text, request, write};
use crate::trust::{Trust, authority_hash, blocks};
use crate::wire::{Admitted, NodeFacts};
use crate::{EncryptionKeys, Error, Leaf, NodeId, NodeIdentity, Role};

/// Beside the keys, see [`crate::Clock`].
const TIME_FLOOR: &str = "time-floor";

/// Beside the keys: the answer without private keys.
const MEMBERSHIP: &str = "membership.json";

/// A join under way.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// The folder; it is made when it is first written to.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The answer of a join that has not been finished.
    ///
    /// # Errors
    /// When the file cannot be read. One that is damaged counts as none.
    pub fn admitted(&self) -> Result<Option<Admitted>, Error> {
        let text = read_text(&self.answer())?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Is the prepared folder for the cluster whose authority's hash begins so?
    pub(crate) fn belongs_to(&self, ca_hash: &str) -> Result<bool, Error> {
        let Some(admitted) = self.admitted()? else { return Ok(false) };
        Ok(blocks(&admitted.ca).iter().any(|ca| authority_hash(ca).starts_with(ca_hash)))
    }

    /// Certificate signing requests for this node's keys, which are made now or were at a former attempt.
    pub(crate) fn requests(&self, facts: &NodeFacts) -> Result<BTreeMap<Leaf, String>, Error> {
        let pki = self.pki();
        fs::create_dir_all(&pki).map_err(|source| self.failed("create", source))?;
        // An answer from another cluster, or for another name: nothing of it may stay.
        self.forget_answer(&pki).map_err(|source| self.failed("clear", source))?;
        let node = node_key(&pki)?;
        let own = Own { id: NodeId::of_public_key(&node.subject_public_key_info()), role: facts.role };
        let identity = NodeIdentity {
            name: facts.name.clone(),
            addresses: facts.addresses.clone(),
            service_addresses: Vec::new(),
            cluster_domain: String::new(),
        };
        let mut requests = BTreeMap::new();
        for leaf in Leaf::WORKER {
            let key = if leaf == Leaf::Node { node_key(&pki)? } else { key(&pki, leaf)? };
            requests.insert(leaf, request(&Profile::of(leaf, &identity, own), &key)?);
        }
        Ok(requests)
    }

    /// Check the answer and write it down.
    pub(crate) fn save(&self, admitted: &Admitted, ca_hash: &str) -> Result<(), Error> {
        let bad = |reason: &str| Error::Request(format!("the cluster's answer is of no use: {reason}"));
        let pki = self.pki();
        // Two while one takes the other's place; the join string may name either.
        let trust = Trust::new(&admitted.ca).map_err(|_| bad("no authority"))?;
        if !blocks(&admitted.ca).iter().any(|ca| authority_hash(ca).starts_with(ca_hash)) {
            return Err(bad("it names another authority"));
        }
        for leaf in Leaf::WORKER {
            let certificate =
                admitted.certificates.get(&leaf).ok_or_else(|| bad("a certificate is missing"))?;
            let der = CertificateDer::from_pem_slice(certificate.as_bytes())
                .map_err(|_| bad("a certificate cannot be read"))?;
            let key = if leaf == Leaf::Node { node_key(&pki)? } else { key(&pki, leaf)? };
            let own = public_key_hash(&der).is_some_and(|hash| {
                let spki = key.subject_public_key_info();
                hash == crate::token::hex(ring::digest::digest(&ring::digest::SHA256, &spki).as_ref())
            });
            if !own || !trust.signed(&der) {
                return Err(bad("a certificate is not for this node's key"));
            }
        }
        match (&admitted.control_plane, admitted.facts.role) {
            (Some(keys), Role::ControlPlane) => {
                write(&pki.join("ca.key"), &keys.ca_key)?;
                write(&pki.join("front-proxy-ca.key"), &keys.front_proxy_ca_key)?;
                write(&pki.join("front-proxy-ca.crt"), &keys.front_proxy_ca)?;
                write(&pki.join("sa.key"), &keys.service_account_key)?;
                if !keys.encryption.is_empty() {
                    EncryptionKeys::parse(&keys.encryption)
                        .map_err(|_| bad("its encryption keys"))?
                        .write(&pki)?;
                }
            }
            (None, Role::Worker) => {}
            _ => return Err(bad("the keys in it do not go with the role")),
        }
        write(&pki.join("ca.crt"), &admitted.ca)?;
        for (leaf, certificate) in &admitted.certificates {
            if Leaf::WORKER.contains(leaf) {
                write(&pki.join(format!("{}.crt", leaf.file_stem())), certificate)?;
            }
        }
        admitted.write(&pki)?;
        write(&self.answer(), &admitted.public()?)
    }

    /// Put the prepared keys where the node's were; those are kept beside it, as `NAME.before-join`. It
    /// can be repeated after being cut off at any point.
    ///
    /// # Errors
    /// When there is no complete answer, or a folder cannot be moved.
    pub fn install(&self, pki_dir: &Path) -> Result<(), Error> {
        let prepared = self.pki();
        if self.admitted()?.is_none() {
            return Err(Error::Request("there is no join to finish; run kedge join".into()));
        }
        if !prepared.exists() && pki_dir.exists() {
            return Ok(());
        }
        let before = beside(pki_dir);
        let run = || -> io::Result<()> {
            if pki_dir.exists() {
                // Boards without a clock need it at the next start.
                if let Some(floor) = read_optional(&pki_dir.join(TIME_FLOOR))? {
                    write_atomic(&prepared.join(TIME_FLOOR), &floor, 0o600)?;
                }
                remove_folder(&before)?;
                fs::rename(pki_dir, &before)?;
            }
            fs::rename(&prepared, pki_dir)?;
            sync_dir(pki_dir.parent().unwrap_or(Path::new("/")))
        };
        run().map_err(|source| Error::File { action: "replace", path: pki_dir.into(), source })
    }

    /// [`Self::install`] has put the prepared keys in place.
    pub fn is_installed(&self) -> bool {
        !self.pki().exists()
    }

    /// The join is done (or given up): forget the folder, and the keys that the node had before.
    ///
    /// # Errors
    /// When a folder cannot be removed.
    pub fn finish(&self, pki_dir: &Path) -> Result<(), Error> {
        remove_folder(&self.dir).map_err(|source| self.failed("remove", source))?;
        remove_folder(&beside(pki_dir)).map_err(|source| self.failed("remove", source))
    }

    /// Forget the keys made for former attempts.
    pub(crate) fn forget_keys(&self) -> Result<(), Error> {
        remove_folder(&self.dir).map_err(|source| self.failed("clear", source))
    }

    fn forget_answer(&self, pki: &Path) -> io::Result<()> {
        remove(&self.answer())?;
        let own: Vec<String> = Leaf::WORKER.iter().map(|leaf| format!("{}.key", leaf.file_stem())).collect();
        for entry in fs::read_dir(pki)? {
            let entry = entry?;
            if !own.iter().any(|name| entry.file_name() == name.as_str()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    fn answer(&self) -> PathBuf {
        self.dir.join("admitted.json")
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::File { action, path: self.dir.clone(), source }
    }
}

impl Admitted {
    /// What joining wrote beside the node's keys; `None` on a node that never joined: the founder of a
    /// cluster. It says as what to start ([`NodeFacts::role`]) and whom to ask.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn read(pki_dir: &Path) -> Result<Option<Self>, Error> {
        let path = pki_dir.join(MEMBERSHIP);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|error| Error::Damaged {
            path,
            reason: error.to_string(),
            remedy: "restore the file from a backup, or run kedge leave --force and join the cluster again",
        })
    }

    /// Write it again, with other peers or API servers.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, pki_dir: &Path) -> Result<(), Error> {
        write(&pki_dir.join(MEMBERSHIP), &self.public()?)
    }

    /// JSON without private keys.
    fn public(&self) -> Result<String, Error> {
        let public = Self { control_plane: None, ..self.clone() };
        serde_json::to_string(&public).map_err(|error| Error::Request(error.to_string()))
    }
}

fn beside(pki_dir: &Path) -> PathBuf {
    let mut name = pki_dir.file_name().unwrap_or_default().to_owned();
    name.push(".before-join");
    pki_dir.with_file_name(name)
}

fn key(pki: &Path, leaf: Leaf) -> Result<KeyPair, Error> {
    let path = pki.join(format!("{}.key", leaf.file_stem()));
    if let Some(key) = read_text(&path)?.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        return Ok(key);
    }
    let key = generate(leaf.file_stem())?;
    write(&path, &key.serialize_pem())?;
    Ok(key)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
