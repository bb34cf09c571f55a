//! Encryption of stored objects, as far as the cluster has to agree on it: the file of keys on each
//! control-plane node, the record that says which key is written with, and what follows what.
//!
//! A key is made on one node. The others fetch it over the cluster port and report that they have it; only
//! then is it written with. Then whoever leads rewrites what is stored otherwise, and when nothing is left
//! the matter is settled. Keys are in the file and never in the store: not the disk of a datastore, nor a
//! worker, holds one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::pki::{read_text, write};
use crate::token::hex;
use crate::{Error, NodeId, NodeRecord, Refusal, Role};

/// In the folder of keys.
const FILE: &str = "encryption.json";
const REMEDY: &str = "put the file back as it was: from another control-plane node, or from a snapshot of this \
                      cluster (tar -xOf FILE pki/encryption.json)";
/// So many keys stay in the files when everything is rewritten: the one in use, and the one before for a node
/// that is behind.
const KEPT: usize = 2;

/// The keys on one node. In text: the file.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EncryptionKeys(BTreeMap<String, [u8; 32]>);

impl fmt::Debug for EncryptionKeys {
    // Keys must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    keys: Vec<FileKey>,
}

#[derive(Serialize, Deserialize)]
struct FileKey {
    id: String,
    /// Base64.
    key: String,
}

impl EncryptionKeys {
    /// Where they lie.
    pub fn path(pki_dir: &Path) -> PathBuf {
        pki_dir.join(FILE)
    }

    /// Reads the file; none: no keys.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it cannot be understood.
    pub fn read(pki_dir: &Path) -> Result<Self, Error> {
        let path = Self::path(pki_dir);
        let Some(text) = read_text(&path)? else { return Ok(Self::default()) };
        Self::parse(&text).map_err(|reason| Error::Damaged { path, reason, remedy: REMEDY })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, pki_dir: &Path) -> Result<(), Error> {
        write(&Self::path(pki_dir), &self.text())
    }

    /// What a file says.
    ///
    /// # Errors
    /// Why it is of no use.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut keys = BTreeMap::new();
        for FileKey { id, key } in file.keys {
            let key = STANDARD.decode(key).ok().and_then(|bytes| bytes.try_into().ok());
            let digits = id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            let Some(key) = key.filter(|_| digits) else {
                return Err(format!("the key {id:?} is not 32 bytes under 8 hexadecimal digits"));
            };
            keys.insert(id, key);
        }
        Ok(Self(keys))
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let key = |(id, key): (&String, &[u8; 32])| FileKey { id: id.clone(), key: STANDARD.encode(key) };
        // A list of texts always has a form in JSON.
        serde_json::to_string_pretty(&File { keys: self.0.iter().map(key).collect() }).unwrap_or_default()
    }

    /// Adds a fresh key and names it.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate(&mut self) -> Result<String, Error> {
        let failed = |_| Error::Request("the system has no random numbers".into());
        loop {
            let (mut id, mut key) = ([0; 4], [0; 32]);
            SystemRandom::new().fill(&mut id).map_err(failed)?;
            SystemRandom::new().fill(&mut key).map_err(failed)?;
            let id = hex(&id);
            if !self.0.contains_key(&id) {
                self.0.insert(id.clone(), key);
                return Ok(id);
            }
        }
    }

    /// Each key's id and bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.0.iter().map(|(id, key)| (id.as_str(), key))
    }

    /// The ids.
    pub fn ids(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes over what another node has; what is here stays.
    pub fn add(&mut self, other: Self) {
        for (id, key) in other.0 {
            self.0.entry(id).or_insert(key);
        }
    }

    /// Forgets all others. Returns whether there were any.
    pub fn retain(&mut self, ids: &BTreeSet<String>) -> bool {
        let before = self.0.len();
        self.0.retain(|id, _| ids.contains(id));
        self.0.len() != before
    }
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptionStage {
    /// Every control-plane node is to learn of it and to get the new key.
    Spreading,
    /// New writes are as they are to be; what is stored is rewritten.
    Rewriting,
    /// Everything is as it is to be.
    Settled,
}

/// The cluster's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionState {
    /// How far it is.
    pub stage: EncryptionStage,
    /// What is written with; none: nothing is encrypted.
    pub key: Option<String>,
    /// What is encrypted, by storage key: `secrets`.
    pub resources: BTreeSet<String>,
    /// What follows when everybody knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<EncryptionNext>,
    /// Keys that something may be encrypted with, the newest last.
    pub keys: Vec<String>,
}

/// The next key and resources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionNext {
    /// May be the key that is in use already.
    pub key: String,
    /// What it will be used for.
    pub resources: BTreeSet<String>,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Held {
    /// The keys in its file.
    pub(crate) keys: BTreeSet<String>,
    /// What it writes under the record's condition.
    pub(crate) resources: BTreeSet<String>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptionWish {
    /// Encrypt these resources.
    Enable(BTreeSet<String>),
    /// Encrypt with a new key.
    Rotate,
    /// Encrypt nothing any more.
    Disable,
}

impl EncryptionState {
    /// The record with a wish in it; `None`: it is so already. `fresh` names a new key that lies in the file
    /// of the node that asks.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when it does not make sense now.
    pub fn wish(before: Option<&Self>, wish: &EncryptionWish, fresh: &str) -> Result<Option<Self>, Refusal> {
        let invalid = |message: &str| Err(Refusal::Invalid { message: message.to_owned() });
        let off = Self {
            stage: EncryptionStage::Settled,
            key: None,
            resources: BTreeSet::new(),
            next: None,
            keys: Vec::new(),
        };
        let before = before.cloned().unwrap_or(off);
        let spreading = |key: &str, resources: BTreeSet<String>| Self {
            stage: EncryptionStage::Spreading,
            next: Some(EncryptionNext { key: key.to_owned(), resources }),
            ..before.clone()
        };
        if before.stage == EncryptionStage::Rewriting {
            let same = match wish {
                EncryptionWish::Enable(resources) => before.key.is_some() && before.resources == *resources,
                EncryptionWish::Disable => before.key.is_none(),
                EncryptionWish::Rotate => false,
            };
            return if same {
                Ok(None)
            } else {
                invalid(
                    "what is stored is being rewritten; wait until that is done (kedge secrets-encryption status)",
                )
            };
        }
        Ok(match wish {
            EncryptionWish::Enable(resources) if resources.is_empty() => {
                return invalid("name at least one resource to be encrypted");
            }
            EncryptionWish::Enable(resources) => match (&before.key, &before.next) {
                (_, Some(next)) if next.resources == *resources => None,
                (Some(_), None) if before.resources == *resources => None,
                (Some(key), _) => Some(spreading(key, resources.clone())),
                (None, _) => Some(spreading(fresh, resources.clone())),
            },
            EncryptionWish::Rotate if before.key.is_none() && before.next.is_none() => {
                return invalid("nothing is encrypted; kedge secrets-encryption enable begins with it");
            }
            EncryptionWish::Rotate => {
                let resources = before.next.as_ref().map_or(&before.resources, |next| &next.resources);
                Some(spreading(fresh, resources.clone()))
            }
            EncryptionWish::Disable if before.key.is_none() && before.next.is_none() => None,
            EncryptionWish::Disable => {
                // Before the first key was written with, nothing has to be rewritten; it is looked at though.
                let stage = EncryptionStage::Rewriting;
                Some(Self { stage, key: None, resources: BTreeSet::new(), next: None, ..before.clone() })
            }
        })
    }

    /// Everybody has the next key: from now on it is written with. `None`: there is none.
    pub fn spread(&self) -> Option<Self> {
        let next = self.next.clone().filter(|_| self.stage == EncryptionStage::Spreading)?;
        let mut keys = self.keys.clone();
        if keys.last() != Some(&next.key) {
            keys.push(next.key.clone());
        }
        Some(Self {
            stage: EncryptionStage::Rewriting,
            key: Some(next.key),
            resources: next.resources,
            next: None,
            keys,
        })
    }

    /// Everything is rewritten: older keys are of no use. `None`: nothing was to be rewritten.
    pub fn settled(&self) -> Option<Self> {
        let keys = self.keys[self.keys.len().saturating_sub(KEPT)..].to_vec();
        (self.stage == EncryptionStage::Rewriting).then(|| Self {
            stage: EncryptionStage::Settled,
            keys,
            ..self.clone()
        })
    }

    /// The keys that every control-plane node must have.
    pub fn needed(&self) -> BTreeSet<String> {
        let next = self.next.as_ref().map(|next| next.key.clone());
        self.keys.iter().cloned().chain(next).collect()
    }

    /// What is about to be encrypted.
    pub fn guarded(&self) -> BTreeSet<String> {
        self.next.as_ref().map(|next| next.resources.clone()).unwrap_or_default()
    }

    /// The names of control-plane nodes that have not reported the next key.
    pub(crate) fn lacking(&self, nodes: &[NodeRecord], held: &BTreeMap<NodeId, Held>) -> Vec<String> {
        let Some(next) = &self.next else { return Vec::new() };
        let has = |node: &&NodeRecord| {
            held.get(&node.id)
                .is_some_and(|held| held.keys.contains(&next.key) && held.resources == next.resources)
        };
        let nodes = nodes.iter().filter(|node| node.role == Role::ControlPlane);
        nodes.filter(|node| !has(node)).map(|node| node.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostPort;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn node(id: u64, role: Role) -> NodeRecord {
        NodeRecord {
            id: NodeId::new(id),
            name: format!("n{id}"),
            role,
            address: HostPort { host: format!("192.0.2.{id}"), port: 25000 },
            addresses: Vec::new(),
            failure_domain: None,
            joined: jiff::Timestamp::UNIX_EPOCH,
            token: None,
        }
    }

    fn wish(before: &EncryptionState, wish: &EncryptionWish, fresh: &str) -> Option<EncryptionState> {
        EncryptionState::wish(Some(before), wish, fresh).unwrap()
    }

    #[test]
    fn keys_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(EncryptionKeys::read(dir.path()).unwrap().is_empty());
        let mut keys = EncryptionKeys::default();
        let (one, two) = (keys.generate().unwrap(), keys.generate().unwrap());
        keys.write(dir.path()).unwrap();
        assert_eq!(EncryptionKeys::read(dir.path()).unwrap(), keys);
        assert!(!format!("{keys:?}").contains(&STANDARD.encode(keys.0[&one])));
        let mut other = EncryptionKeys::default();
        let third = other.generate().unwrap();
        other.add(keys.clone());
        assert_eq!(other.ids(), [one, two.clone(), third].into());
        assert!(other.retain(&[two.clone()].into()) && !other.retain(&[two].into()));
        for text in
            ["", "{}", r#"{"keys":[{"id":"0011aabb","key":"AAAA"}]}"#, r#"{"keys":[{"id":"x","key":""}]}"#]
        {
            std::fs::write(EncryptionKeys::path(dir.path()), text).unwrap();
            let error = EncryptionKeys::read(dir.path()).unwrap_err();
            assert!(error.to_string().contains("encryption.json"), "{error}");
        }
    }

    #[test]
    fn from_nothing_through_two_keys_to_nothing() {
        let enable = EncryptionWish::Enable(set(&["secrets"]));
        let state = EncryptionState::wish(None, &enable, "k1").unwrap().unwrap();
        assert_eq!((state.stage, &state.key), (EncryptionStage::Spreading, &None));
        assert_eq!((state.needed(), state.guarded()), (set(&["k1"]), set(&["secrets"])));
        assert_eq!(wish(&state, &enable, "k2"), None, "it is under way");
        let again = wish(&state, &EncryptionWish::Rotate, "k2").unwrap();
        assert_eq!(again.needed(), set(&["k2"]), "a key that did not come through is replaced");

        let state = state.spread().unwrap();
        assert_eq!((state.stage, state.key.as_deref()), (EncryptionStage::Rewriting, Some("k1")));
        assert!(state.spread().is_none());
        let refused = EncryptionState::wish(Some(&state), &EncryptionWish::Rotate, "k2");
        assert!(refused.unwrap_err().to_string().contains("being rewritten"));
        let state = state.settled().unwrap();
        assert!(state.settled().is_none());
        assert_eq!(wish(&state, &enable, "k2"), None);

        // More resources: the same key, but everybody has to know first.
        let more = wish(&state, &EncryptionWish::Enable(set(&["configmaps", "secrets"])), "k2").unwrap();
        assert_eq!((more.stage, more.needed()), (EncryptionStage::Spreading, set(&["k1"])));
        let more = more.spread().unwrap();
        assert_eq!((more.keys.len(), more.resources.len()), (1, 2));

        let mut state = more.settled().unwrap();
        for (key, keys) in [("k2", vec!["k1", "k2"]), ("k3", vec!["k2", "k3"])] {
            state = wish(&state, &EncryptionWish::Rotate, key).unwrap().spread().unwrap();
            assert!(state.needed().is_superset(&set(&keys)));
            state = state.settled().unwrap();
            assert_eq!(state.keys, keys);
        }
        let state = wish(&state, &EncryptionWish::Disable, "k4").unwrap();
        assert_eq!((state.stage, &state.key, state.keys.len()), (EncryptionStage::Rewriting, &None, 2));
        assert_eq!(wish(&state, &EncryptionWish::Disable, "k4"), None);
        let state = state.settled().unwrap();
        assert_eq!(wish(&state, &EncryptionWish::Disable, "k4"), None);
        assert!(EncryptionState::wish(Some(&state), &EncryptionWish::Rotate, "k4").is_err());
        assert_eq!(wish(&state, &enable, "k4").unwrap().needed(), set(&["k2", "k3", "k4"]));
    }

    #[test]
    fn every_control_plane_node_must_have_the_key() {
        let enable = EncryptionWish::Enable(set(&["secrets"]));
        let state = EncryptionState::wish(None, &enable, "k1").unwrap().unwrap();
        let nodes = [node(1, Role::ControlPlane), node(2, Role::ControlPlane), node(3, Role::Worker)];
        let held = |keys: &[&str], resources: &[&str]| Held { keys: set(keys), resources: set(resources) };
        let mut all = BTreeMap::new();
        assert_eq!(state.lacking(&nodes, &all), ["n1", "n2"]);
        all.insert(NodeId::new(1), held(&["k1"], &["secrets"]));
        all.insert(NodeId::new(2), held(&["k1"], &[]));
        assert_eq!(state.lacking(&nodes, &all), ["n2"], "it has the key but writes as before");
        all.insert(NodeId::new(2), held(&["k0", "k1"], &["secrets"]));
        assert!(state.lacking(&nodes, &all).is_empty());
        assert!(state.spread().unwrap().lacking(&nodes, &BTreeMap::new()).is_empty());
    }
}
