//! Who has proven a right to an image that is on this machine: a private image that one pod pulled with its
//! Secret is no gift to every other pod with `imagePullPolicy: IfNotPresent` (KEP-2535, upstream
//! `pkg/kubelet/images/pullmanager`). Images that were there without a pull are free for all, which is
//! upstream's default policy `NeverVerifyPreloadedImages`.
//!
//! The records are upstream's `ImagePulledRecord` files, one an image, so that they survive a restart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::reference;

/// The Secret that an image was pulled with. Of its login only a hash is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecretUse {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) credential_hash: String,
}

/// What a pull succeeded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// No login or the node's own: every pod of the node may use the image.
    Node,
    Secret(SecretUse),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Credentials {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<SecretUse>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    kind: String,
    api_version: String,
    last_updated_time: String,
    /// The image's id.
    image_ref: String,
    /// By the image's name without tag and digest.
    credential_mapping: BTreeMap<String, Credentials>,
}

/// Clones share.
#[derive(Clone, Debug)]
pub(super) struct Records {
    dir: PathBuf,
    known: Arc<Mutex<BTreeMap<String, Record>>>,
}

impl Records {
    /// Reads what an earlier process wrote; a file that cannot be read counts as no right at all.
    pub(super) fn open(dir: PathBuf) -> Self {
        let mut known = BTreeMap::new();
        for file in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let text = std::fs::read(file.path()).unwrap_or_default();
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) => drop(known.insert(record.image_ref.clone(), record)),
                Err(error) => {
                    tracing::warn!(file = %file.path().display(), %error, "a record of an image's pull is not readable");
                }
            }
        }
        Self { dir, known: Arc::new(Mutex::new(known)) }
    }

    /// May a pod with these logins use the image that is here without asking the registry?
    pub(super) fn allows(&self, image: &str, id: &str, logins: &[SecretUse]) -> bool {
        let mut known = self.known.lock();
        let Some(record) = known.get_mut(id) else { return true };
        let Some(credentials) = record.credential_mapping.get_mut(&repository(image)) else { return false };
        if credentials.node_pods_accessible {
            return true;
        }
        let fits = |a: &SecretUse, b: &SecretUse| {
            a.credential_hash == b.credential_hash
                || (&a.uid, &a.namespace, &a.name) == (&b.uid, &b.namespace, &b.name)
        };
        credentials.kubernetes_secrets.iter().any(|used| logins.iter().any(|login| fits(used, login)))
    }

    /// The image was pulled with this.
    pub(super) fn pulled(&self, image: &str, id: &str, proof: &Proof) {
        let mut known = self.known.lock();
        let record = known.entry(id.to_owned()).or_default();
        let before = record.clone();
        let credentials = record.credential_mapping.entry(repository(image)).or_default();
        match proof {
            Proof::Node => {
                *credentials = Credentials { node_pods_accessible: true, ..Credentials::default() }
            }
            Proof::Secret(used) if !credentials.node_pods_accessible => {
                let same = |old: &SecretUse| {
                    (&old.uid, &old.namespace, &old.name) == (&used.uid, &used.namespace, &used.name)
                };
                credentials.kubernetes_secrets.retain(|old| !same(old));
                credentials.kubernetes_secrets.push(used.clone());
            }
            Proof::Secret(_) => {}
        }
        if *record == before {
            return;
        }
        "ImagePulledRecord".clone_into(&mut record.kind);
        "kubelet.config.k8s.io/v1beta1".clone_into(&mut record.api_version);
        id.clone_into(&mut record.image_ref);
        record.last_updated_time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let written = std::fs::create_dir_all(&self.dir).and_then(|()| {
            let text = serde_json::to_vec(record).map_err(std::io::Error::other)?;
            kedge_base::write_atomic(&self.file(id), &text, 0o600)
        });
        if let Err(error) = written {
            tracing::warn!(image, %error, "who may use the image is forgotten at the next start");
        }
    }

    /// The image is gone.
    pub(super) fn forget(&self, id: &str) {
        if self.known.lock().remove(id).is_some() {
            let _ = std::fs::remove_file(self.file(id));
        }
    }

    /// Images that somebody pulled.
    pub(super) fn ids(&self) -> Vec<String> {
        self.known.lock().keys().cloned().collect()
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("sha256-{}", hash(id.as_bytes())))
    }
}

fn repository(image: &str) -> String {
    reference::registry_and_path(image).1
}

pub(super) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(name: &str, hash: &str) -> SecretUse {
        SecretUse {
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            credential_hash: hash.to_owned(),
        }
    }

    #[test]
    fn a_private_image_is_for_those_who_can_pull_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path().join("pulled"));
        let (image, other) = ("private.example/app:1", "private.example/other:1");
        assert!(records.allows(image, "id", &[]), "an image that was here before any pull is for all");
        records.pulled(image, "id", &Proof::Secret(login("a", "1")));
        // A new process knows it too.
        let records = Records::open(dir.path().join("pulled"));
        for (image, logins, allowed) in [
            (image, vec![], false),
            (image, vec![login("b", "2")], false),
            (image, vec![login("a", "changed")], true),
            (image, vec![login("copy in another namespace", "1")], true),
            ("private.example/app:2", vec![login("a", "1")], true),
            (other, vec![login("a", "1")], false),
        ] {
            assert_eq!(records.allows(image, "id", &logins), allowed, "{image} {logins:?}");
        }
        records.pulled(image, "id", &Proof::Secret(login("b", "2")));
        assert!(
            records.allows(image, "id", &[login("b", "2")])
                && records.allows(image, "id", &[login("a", "1")])
        );
        records.pulled(image, "id", &Proof::Node);
        records.pulled(image, "id", &Proof::Secret(login("a", "1")));
        assert!(records.allows(image, "id", &[]), "once public, always public");
        assert_eq!(records.ids(), ["id"]);
        records.forget("id");
        assert_eq!(std::fs::read_dir(dir.path().join("pulled")).expect("a folder").count(), 0);
        assert!(records.allows(other, "id", &[]));
    }
}
