//! Encryption at rest: chosen resources are encrypted before they enter the store's log and decrypted when
//! they enter the watch cache. So the disk and other nodes' connections see only ciphertext, and reads cost
//! what they always cost. Pure but for the system's random numbers; where keys lie is the caller's business.
//!
//! ```text
//! sealed    = 1 u8, key id u32, nonce [12], AES-256-GCM(plaintext), tag [16]
//! plaintext = splice u32 (all ones: none), JSON without its resource version
//! ```
//!
//! Numbers are little-endian. The head and the object's key in the store are the associated data: what was
//! sealed for one object opens for no other. JSON begins with a brace, so the first byte tells them apart.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use kedge_store::{Check, Condition, Entry, Key, Value};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;

const SEALED: u8 = 1;
const HEAD: usize = 1 + 4;
const NO_SPLICE: u32 = u32::MAX;

/// Names a key; in text 8 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u32::from_str_radix(text, 16).ok().filter(|_| digits);
        id.map(Self).ok_or_else(|| format!("{text:?} is not a key id: 8 hexadecimal digits"))
    }
}

/// How objects are to be written from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writing {
    /// With this key; none: nothing is encrypted any more.
    pub key: Option<KeyId>,
    /// By storage key: `secrets`, `configmaps`, `widgets.example.com`.
    pub resources: BTreeSet<String>,
    /// What is about to be encrypted: still written as before, but under the same condition.
    pub guarded: BTreeSet<String>,
    /// The store's key that says so, and the revision it says so at: a write of another opinion does not
    /// happen, so a key that was given up is used by nobody who has not heard of it.
    pub record: (Key, u64),
}

/// Why a stored object cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The key is not on this node.
    #[error("{object} is encrypted with the key {key}, which this node does not have")]
    NoKey {
        /// Its key in the store.
        object: String,
        /// The key's id.
        key: KeyId,
    },
    /// It was changed, or belongs elsewhere.
    #[error("{object} does not decrypt with the key {key}: it is damaged or was another object's")]
    Damaged {
        /// Its key in the store.
        object: String,
        /// The key's id.
        key: KeyId,
    },
    /// It is not JSON and not in this version's form.
    #[error("{object} is stored in a form that this version of Kedge does not know")]
    Unknown {
        /// Its key in the store.
        object: String,
    },
}

/// The keys of this node and what is written with which. Clones share them.
#[derive(Clone, Default)]
pub struct Sealing(Arc<Inner>);

struct Inner {
    keys: ArcSwap<HashMap<KeyId, LessSafeKey>>,
    writing: ArcSwapOption<Writing>,
    unreadable: watch::Sender<Option<Unreadable>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            keys: ArcSwap::default(),
            writing: ArcSwapOption::default(),
            unreadable: watch::Sender::new(None),
        }
    }
}

impl fmt::Debug for Sealing {
    // Keys must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealing").finish_non_exhaustive()
    }
}

impl Sealing {
    /// These are this node's keys, of 32 bytes each; others are forgotten.
    pub fn set_keys(&self, keys: impl IntoIterator<Item = (KeyId, [u8; 32])>) {
        let bound = |(id, bytes): (KeyId, [u8; 32])| {
            // AES-256 takes any 32 bytes.
            UnboundKey::new(&AES_256_GCM, &bytes).ok().map(|key| (id, LessSafeKey::new(key)))
        };
        self.0.keys.store(Arc::new(keys.into_iter().filter_map(bound).collect()));
    }

    /// From now on objects are written so; `None`: encryption was never asked for.
    pub fn write_as(&self, writing: Option<Writing>) {
        self.0.writing.store(writing.map(Arc::new));
    }

    /// The first object that this node could not read: the cache is not complete without it.
    pub fn unreadable(&self) -> watch::Receiver<Option<Unreadable>> {
        self.0.unreadable.subscribe()
    }

    /// The caller has found something that it cannot go on with; see [`Sealing::unreadable`].
    pub fn give_up(&self, error: Unreadable) {
        tracing::error!(%error, "what is stored cannot be read");
        self.0.unreadable.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(error);
            is_first
        });
    }

    pub(crate) fn writing(&self) -> Option<Arc<Writing>> {
        self.0.writing.load_full()
    }

    /// Whether this is the key whose value says how objects are written.
    pub(crate) fn is_record(&self, key: &Key) -> bool {
        self.0.writing.load().as_ref().is_some_and(|writing| writing.record.0 == *key)
    }

    /// The value as it goes into the log; encrypted when its resource is. A write that depends on how
    /// objects are written now gets a condition more.
    pub(crate) fn seal(
        &self,
        resource: &str,
        key: &Key,
        value: Value,
        conditions: &mut Vec<Condition>,
    ) -> Result<Value, String> {
        let writing = self.0.writing.load();
        let Some(writing) = writing.as_ref() else { return Ok(value) };
        let id = writing.key.filter(|_| writing.resources.contains(resource));
        if id.is_some() || writing.guarded.contains(resource) {
            let (record, revision) = &writing.record;
            conditions.push(Condition { key: record.clone(), check: Check::At(*revision) });
        }
        let Some(id) = id else { return Ok(value) };
        let keys = self.0.keys.load();
        let with = keys.get(&id).ok_or_else(|| {
            format!("objects are encrypted with the key {id}, which this node does not have")
        })?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| "the system has no random numbers".to_owned())?;
        Ok(Value { bytes: sealed(with, id, nonce, key, &value)?, splice: None })
    }

    /// The entry as it goes into the cache, and the key it was encrypted with. `None`: it cannot be read,
    /// and whoever follows [`Sealing::unreadable`] hears why.
    pub(crate) fn open(&self, key: &Key, entry: Entry) -> Option<(Entry, Option<KeyId>)> {
        if entry.bytes.first() == Some(&b'{') {
            return Some((entry, None));
        }
        match self.opened(key, &entry) {
            Ok((entry, id)) => Some((entry, Some(id))),
            Err(error) => {
                self.give_up(error);
                None
            }
        }
    }

    fn opened(&self, key: &Key, entry: &Entry) -> Result<(Entry, KeyId), Unreadable> {
        let unknown = || Unreadable::Unknown { object: key.to_string() };
        let (head, rest) = entry.bytes.split_first_chunk::<HEAD>().ok_or_else(unknown)?;
        let [SEALED, id @ ..] = *head else { return Err(unknown()) };
        let id = KeyId(u32::from_le_bytes(id));
        let damaged = || Unreadable::Damaged { object: key.to_string(), key: id };
        let keys = self.0.keys.load();
        let with = keys.get(&id).ok_or_else(|| Unreadable::NoKey { object: key.to_string(), key: id })?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut buffer = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = with
            .open_in_place(nonce, Aad::from(associated(head, key)), &mut buffer)
            .map_err(|_| damaged())?;
        let (splice, json) = plain.split_first_chunk::<4>().ok_or_else(damaged)?;
        let splice = Some(u32::from_le_bytes(*splice)).filter(|&at| at != NO_SPLICE);
        if splice.is_some_and(|at| at as usize > json.len()) {
            return Err(damaged());
        }
        let json = 4..4 + json.len();
        let value = Value { bytes: Bytes::from(buffer).slice(json), splice };
        let bytes = crate::encode::spliced(&value, entry.modified);
        Ok((Entry { bytes, splice, created: entry.created, modified: entry.modified }, id))
    }
}

fn head(id: KeyId) -> [u8; HEAD] {
    let [a, b, c, d] = id.0.to_le_bytes();
    [SEALED, a, b, c, d]
}

fn associated(head: &[u8; HEAD], key: &Key) -> Vec<u8> {
    [head, key.as_bytes()].concat()
}

fn sealed(
    with: &LessSafeKey,
    id: KeyId,
    nonce: [u8; NONCE_LEN],
    key: &Key,
    value: &Value,
) -> Result<Bytes, String> {
    let head = head(id);
    let begin = HEAD + NONCE_LEN;
    let mut out = Vec::with_capacity(begin + 4 + value.bytes.len() + AES_256_GCM.tag_len());
    out.extend_from_slice(&head);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&value.splice.unwrap_or(NO_SPLICE).to_le_bytes());
    out.extend_from_slice(&value.bytes);
    let tag = with
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated(&head, key)),
            &mut out[begin..],
        )
        .map_err(|_| "the object is too large to be encrypted".to_owned())?;
    out.extend_from_slice(tag.as_ref());
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: KeyId = KeyId(0xa1b2_c3d4);

    fn sealing() -> Sealing {
        let sealing = Sealing::default();
        sealing.set_keys([(ID, [7; 32])]);
        sealing.write_as(Some(Writing {
            key: Some(ID),
            resources: ["secrets".to_owned()].into(),
            guarded: ["widgets.example.com".to_owned()].into(),
            record: ("state".into(), 4),
        }));
        sealing
    }

    fn value() -> Value {
        let text = r#"{"metadata":{"resourceVersion":""},"data":{"p":"cGxhaW4="}}"#;
        Value { bytes: text.into(), splice: Some(32) }
    }

    fn entry(bytes: Bytes) -> Entry {
        Entry { bytes, splice: None, created: 5, modified: 12 }
    }

    #[test]
    fn what_was_sealed_opens_with_its_revision_in_it() {
        let (sealing, mut conditions) = (sealing(), Vec::new());
        let key: Key = "secrets/ns/a".into();
        let sealed = sealing.seal("secrets", &key, value(), &mut conditions).unwrap();
        assert_eq!(conditions, [Condition { key: "state".into(), check: Check::At(4) }]);
        assert_eq!((sealed.bytes[0], sealed.splice), (SEALED, None));
        assert!(!sealed.bytes.windows(8).any(|window| window == b"cGxhaW4="));
        let again = sealing.seal("secrets", &key, value(), &mut conditions).unwrap();
        assert_ne!(sealed.bytes, again.bytes, "each has a nonce of its own");
        let (opened, id) = sealing.open(&key, entry(sealed.bytes)).unwrap();
        assert_eq!(id, Some(ID));
        let text = r#"{"metadata":{"resourceVersion":"12"},"data":{"p":"cGxhaW4="}}"#;
        assert_eq!((&opened.bytes[..], opened.splice), (text.as_bytes(), Some(32)));
        assert_eq!((opened.created, opened.modified), (5, 12));
    }

    #[test]
    fn other_resources_are_left_alone() {
        let (sealing, mut conditions) = (sealing(), Vec::new());
        let sealed = sealing.seal("configmaps", &"configmaps/ns/a".into(), value(), &mut conditions).unwrap();
        assert_eq!(sealed, value());
        assert!(conditions.is_empty());
        let key: Key = "widgets.example.com/ns/a".into();
        let guarded = sealing.seal("widgets.example.com", &key, value(), &mut conditions).unwrap();
        assert_eq!((guarded, conditions.len()), (value(), 1), "in the clear, while that is right");
        conditions.clear();
        sealing.write_as(None);
        let sealed = sealing.seal("secrets", &"secrets/ns/a".into(), value(), &mut conditions).unwrap();
        assert_eq!(sealed, value());
        assert!(conditions.is_empty());
        let plain = entry(value().bytes);
        assert_eq!(sealing.open(&"configmaps/ns/a".into(), plain.clone()), Some((plain, None)));
    }

    #[test]
    fn tampered_swapped_and_foreign_objects_are_refused() {
        let sealing = sealing();
        let key: Key = "secrets/ns/a".into();
        let sealed = sealing.seal("secrets", &key, value(), &mut Vec::new()).unwrap().bytes;
        let reason = |sealing: &Sealing, key: &str, bytes: &[u8]| {
            let entry = entry(Bytes::copy_from_slice(bytes));
            sealing.opened(&key.into(), &entry).map(drop).unwrap_err()
        };
        for at in HEAD..sealed.len() {
            let mut other = sealed.to_vec();
            other[at] ^= 1;
            assert!(matches!(reason(&sealing, &key, &other), Unreadable::Damaged { .. }), "byte {at}");
        }
        for length in HEAD..sealed.len() {
            assert!(matches!(reason(&sealing, &key, &sealed[..length]), Unreadable::Damaged { .. }));
        }
        assert!(matches!(reason(&sealing, "secrets/ns/b", &sealed), Unreadable::Damaged { .. }));
        for bytes in [&[][..], b"\x01abc", b"\x02abcdefgh"] {
            assert!(matches!(reason(&sealing, &key, bytes), Unreadable::Unknown { .. }), "{bytes:?}");
        }
        let other = Sealing::default();
        other.set_keys([(ID, [8; 32])]);
        assert!(
            matches!(reason(&other, &key, &sealed), Unreadable::Damaged { .. }),
            "another key of that id"
        );
        other.set_keys([]);
        assert!(matches!(reason(&other, &key, &sealed), Unreadable::NoKey { .. }));
        assert_eq!(other.open(&key, entry(sealed)), None);
        assert!(other.unreadable().borrow().as_ref().unwrap().to_string().contains("key a1b2c3d4"));
    }

    #[test]
    fn without_the_key_nothing_is_written_in_the_clear() {
        let sealing = sealing();
        sealing.set_keys([]);
        assert!(sealing.seal("secrets", &"secrets/ns/a".into(), value(), &mut Vec::new()).is_err());
    }

    #[test]
    fn key_ids_in_text() {
        assert_eq!("0000000f".parse(), Ok(KeyId(15)));
        assert_eq!(KeyId(15).to_string(), "0000000f");
        for text in ["f", "0000000g", "000000000f", "+000000f"] {
            assert!(text.parse::<KeyId>().is_err(), "{text}");
        }
    }
}
