//! The replicated state machine. In memory: each key's revisions, and what changed since the engine was
//! last written. Values that rest in the engine are not here: nothing reads them but a snapshot.
//!
//! Applying is deterministic: the same entries give the same state and the same checksum on every node.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use raft::eraftpb::ConfState;

use crate::command::{Command, CommandOp, Reader};
use crate::engine::Engine;
use crate::error::Error;
use crate::membership::{self, Members};
use crate::types::{Change, Check, Entry, Key, Observer, Revision};

/// What is known of a key without reading its value.
#[derive(Clone, Copy, Debug)]
struct Slot {
    created: Revision,
    modified: Revision,
    /// The object's part of [`Meta::sum`].
    sum: u64,
    /// Bytes of the value; a transaction has at most 4 MiB.
    size: u32,
}

fn size_of(value: &[u8]) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}

/// The latest change of each key since the last flush; `None`: deleted.
pub(crate) type Overlay = HashMap<Key, Option<Entry>>;

/// What is stored beside the objects, in the same batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Meta {
    /// The last applied Raft entry.
    pub(crate) applied: u64,
    pub(crate) applied_term: u64,
    pub(crate) revision: Revision,
    /// How many objects there are.
    pub(crate) count: u64,
    /// The sum of all objects' checksums: an engine that lost or kept something shows.
    pub(crate) sum: u64,
    pub(crate) members: ConfState,
}

const META_VERSION: u8 = 1;

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![META_VERSION];
        for n in [self.applied, self.applied_term, self.revision, self.count, self.sum] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&prost11::Message::encode_to_vec(&self.members));
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body).to_le_bytes() != *crc {
            return None;
        }
        let mut input = Reader(body);
        if input.u8().ok()? != META_VERSION {
            return None;
        }
        let mut number = || input.u64().ok();
        let (applied, applied_term, revision) = (number()?, number()?, number()?);
        let (count, sum) = (number()?, number()?);
        let members = prost11::Message::decode(input.0).ok()?;
        Some(Self { applied, applied_term, revision, count, sum, members })
    }
}

const OBJECT_HEADER: usize = 20;

/// An object as the engine and snapshots hold it: created u64, modified u64, splice u32 (all ones: none),
/// bytes, CRC32 u32 of key and all before.
pub(crate) fn encode_object(key: &str, entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(OBJECT_HEADER + entry.bytes.len() + 4);
    out.extend_from_slice(&object_header(entry));
    out.extend_from_slice(&entry.bytes);
    let crc = object_crc(key, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn object_header(entry: &Entry) -> [u8; OBJECT_HEADER] {
    let mut header = [0; OBJECT_HEADER];
    header[..8].copy_from_slice(&entry.created.to_le_bytes());
    header[8..16].copy_from_slice(&entry.modified.to_le_bytes());
    header[16..].copy_from_slice(&entry.splice.unwrap_or(u32::MAX).to_le_bytes());
    header
}

fn object_crc(key: &str, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// The object, and its part of the state's sum.
pub(crate) fn decode_object(key: &str, bytes: &[u8]) -> Option<(Entry, u64)> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let crc = u32::from_le_bytes(*crc);
    if object_crc(key, body) != crc {
        return None;
    }
    let mut input = Reader(body);
    let (created, modified) = (input.u64().ok()?, input.u64().ok()?);
    let splice = Some(input.u32().ok()?).filter(|&at| at != u32::MAX);
    let entry = Entry { bytes: Bytes::copy_from_slice(input.0), splice, created, modified };
    let sum = mix(crc, &entry);
    Some((entry, sum))
}

/// Spreads a checksum over 64 bits, so that sums of many of them do not cancel out.
fn mix(crc: u32, entry: &Entry) -> u64 {
    let mut z = (u64::from(crc) << 32) ^ entry.modified.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn sum_of(key: &str, entry: &Entry) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(&object_header(entry));
    hasher.update(&entry.bytes);
    mix(hasher.finalize(), entry)
}

/// What came of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It happened, at the state's new revision.
    Done,
    /// It changed nothing and took no revision.
    Nothing,
    Conflict {
        key: Key,
        current: Option<Revision>,
    },
}

#[derive(Clone)]
pub(crate) struct State {
    pub(crate) meta: Meta,
    index: HashMap<Key, Slot>,
    /// Bytes of all keys and values.
    bytes: u64,
    overlay: Overlay,
    /// What the records of the store's own say.
    members: Members,
    /// Those that are about to be removed.
    leaving: BTreeSet<u64>,
    /// Grows with each change of the two.
    members_version: u64,
}

impl State {
    /// The empty state of a group that begins with these members. It is at revision 1, so that a list of
    /// nothing has a revision too.
    pub(crate) fn empty(members: ConfState) -> Self {
        Self { meta: Meta { revision: 1, members, ..Meta::default() }, ..Self::loading(Meta::default()) }
    }

    /// The state that `meta` describes; [`State::load`] every object, then [`State::verify`].
    pub(crate) fn loading(meta: Meta) -> Self {
        Self {
            meta,
            index: HashMap::new(),
            bytes: 0,
            overlay: Overlay::new(),
            members: Members::new(),
            leaving: BTreeSet::new(),
            members_version: 0,
        }
    }

    /// Returns false for an object that cannot be right.
    pub(crate) fn load(&mut self, key: &[u8], value: &[u8]) -> bool {
        let Ok(key) = std::str::from_utf8(key) else { return false };
        let Some((entry, sum)) = decode_object(key, value) else { return false };
        let size = size_of(&entry.bytes);
        let slot = Slot { created: entry.created, modified: entry.modified, sum, size };
        self.bytes += key.len() as u64 + u64::from(size);
        self.note_member(key, Some(&entry.bytes));
        entry.modified <= self.meta.revision && self.index.insert(key.into(), slot).is_none()
    }

    /// Whether the loaded objects are those that `meta` counted.
    pub(crate) fn verify(&self) -> bool {
        let sum = self.index.values().fold(0u64, |sum, slot| sum.wrapping_add(slot.sum));
        self.meta.count == self.index.len() as u64 && self.meta.sum == sum
    }

    /// The key as the index holds it, so that all share one allocation.
    pub(crate) fn shared_key(&self, key: &str) -> Option<Key> {
        self.index.get_key_value(key).map(|(key, _)| key.clone())
    }

    /// What all objects take: their keys and values, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many objects and bytes a command would add to the state as it is now; it may be less than none.
    pub(crate) fn growth(&self, command: &Command<'_>) -> (i64, i64) {
        command.ops.iter().fold((0, 0), |(objects, bytes), op| {
            let (CommandOp::Put { key, .. } | CommandOp::Delete { key }) = *op;
            let old = self.index.get(key).map(|slot| (key.len() + slot.size as usize) as i64);
            let new = match op {
                // The revision's digits come to it.
                CommandOp::Put { bytes, splice, .. } => {
                    Some((key.len() + bytes.len() + splice.map_or(0, |_| digits(self.meta.revision))) as i64)
                }
                CommandOp::Delete { .. } => None,
            };
            let objects = objects + i64::from(new.is_some()) - i64::from(old.is_some());
            (objects, bytes + new.unwrap_or(0) - old.unwrap_or(0))
        })
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn members_version(&self) -> u64 {
        self.members_version
    }

    /// Members that are about to be removed: they get no vote any more.
    pub(crate) fn leaving(&self) -> &BTreeSet<u64> {
        &self.leaving
    }

    fn note_member(&mut self, key: &str, value: Option<&[u8]>) {
        if let Some(id) = membership::parse_leaving(key) {
            self.members_version += 1;
            let _ = if value.is_some() { self.leaving.insert(id) } else { self.leaving.remove(&id) };
            return;
        }
        let Some(id) = membership::parse_key(key) else { return };
        self.members_version += 1;
        // A record that a later version wrote differently is as good as none here.
        match value.and_then(membership::decode).filter(|member| member.id == id) {
            Some(member) => self.members.insert(id, member),
            None => self.members.remove(&id),
        };
    }

    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// What the engine does not have yet; from here on it counts as handed over.
    pub(crate) fn take_overlay(&mut self) -> Overlay {
        std::mem::take(&mut self.overlay)
    }

    /// Puts back what could not be written. Newer changes stay.
    pub(crate) fn restore_overlay(&mut self, older: &Overlay) {
        for (key, entry) in older {
            self.overlay.entry(key.clone()).or_insert_with(|| entry.clone());
        }
    }

    pub(crate) fn check<'a>(
        &self,
        conditions: impl IntoIterator<Item = (&'a str, Check)>,
    ) -> Result<(), (Key, Option<Revision>)> {
        for (key, check) in conditions {
            let current = self.index.get(key).map(|slot| slot.modified);
            let holds = match check {
                Check::Absent => current.is_none(),
                Check::At(revision) => current == Some(revision),
                Check::Any => current.is_some(),
            };
            if !holds {
                return Err((key.into(), current));
            }
        }
        Ok(())
    }

    /// Applies one transaction; what it did is appended to `changes`.
    pub(crate) fn apply(&mut self, command: &Command<'_>, changes: &mut Vec<Change>) -> Outcome {
        if let Err((key, current)) = self.check(command.conditions.iter().copied()) {
            return Outcome::Conflict { key, current };
        }
        let revision = self.meta.revision + 1;
        let before = changes.len();
        for op in &command.ops {
            match *op {
                CommandOp::Put { key, splice, bytes } => {
                    let known = self.index.get_key_value(key).map(|(key, slot)| (key.clone(), *slot));
                    let (key, old) = match known {
                        Some((key, slot)) => (key, Some(slot)),
                        None => (Key::from(key), None),
                    };
                    let entry = Entry {
                        bytes: splice_in(bytes, splice, revision),
                        splice,
                        created: old.map_or(revision, |slot| slot.created),
                        modified: revision,
                    };
                    let sum = sum_of(&key, &entry);
                    let size = size_of(&entry.bytes);
                    let slot = Slot { created: entry.created, modified: revision, sum, size };
                    self.bytes += u64::from(size);
                    self.bytes -= old.map_or(0, |slot| u64::from(slot.size));
                    self.bytes += if old.is_none() { key.len() as u64 } else { 0 };
                    self.meta.sum =
                        self.meta.sum.wrapping_sub(old.map_or(0, |slot| slot.sum)).wrapping_add(sum);
                    self.index.insert(key.clone(), slot);
                    self.note_member(&key, Some(&entry.bytes));
                    changes.push(Change { key, revision, entry: Some(entry) });
                }
                CommandOp::Delete { key } => {
                    if let Some((key, slot)) = self.index.remove_entry(key) {
                        self.meta.sum = self.meta.sum.wrapping_sub(slot.sum);
                        self.bytes -= key.len() as u64 + u64::from(slot.size);
                        self.note_member(&key, None);
                        changes.push(Change { key, revision, entry: None });
                    }
                }
            }
        }
        if changes.len() == before {
            return Outcome::Nothing;
        }
        self.meta.revision = revision;
        self.meta.count = self.index.len() as u64;
        for change in &changes[before..] {
            self.overlay.insert(change.key.clone(), change.entry.clone());
        }
        Outcome::Done
    }
}

fn digits(revision: Revision) -> usize {
    revision.checked_ilog10().unwrap_or(0) as usize + 1
}

fn splice_in(bytes: &[u8], splice: Option<u32>, revision: Revision) -> Bytes {
    let Some(at) = splice else { return Bytes::copy_from_slice(bytes) };
    let digits = revision.to_string();
    // The decoder has checked the offset.
    let (head, tail) = bytes.split_at((at as usize).min(bytes.len()));
    let mut out = BytesMut::with_capacity(bytes.len() + digits.len());
    out.put_slice(head);
    out.put_slice(digits.as_bytes());
    out.put_slice(tail);
    out.freeze()
}

/// Objects of the engine with the overlay on top, for [`crate::Observer::reset`].
pub(crate) fn merged<'a>(
    state: &'a State,
    engine: impl Iterator<Item = (Arc<str>, Entry)> + 'a,
) -> impl Iterator<Item = (Key, Entry)> + 'a {
    let resting = engine.filter(|(key, _)| !state.overlay.contains_key(key));
    let changed =
        state.overlay.iter().filter_map(|(key, entry)| entry.as_ref().map(|e| (key.clone(), e.clone())));
    resting.chain(changed)
}

/// Shows the observer everything that exists but the store's own keys. `engine` and the overlay are
/// the whole state.
pub(crate) fn show_all(state: &State, engine: &dyn Engine, observer: &dyn Observer) -> Result<(), Error> {
    let mut failure = None;
    let mut shown = 0;
    {
        let mut objects = engine.objects();
        let failure = &mut failure;
        let resting = std::iter::from_fn(|| {
            loop {
                let (key, object) = match objects.next()? {
                    Ok(pair) => pair,
                    Err(error) => {
                        *failure = Some(error);
                        return None;
                    }
                };
                let Ok(key) = std::str::from_utf8(&key) else { continue };
                // Deleted since: the overlay says so, or will have said so.
                let Some(shared) = state.shared_key(key) else { continue };
                if let Some((entry, _)) = decode_object(key, &object) {
                    return Some((shared, entry));
                }
            }
        });
        let all = merged(state, resting).inspect(|_: &(Key, _)| shown += 1);
        let mut visible = all.filter(|(key, _)| !membership::is_reserved(key));
        observer.reset(state.meta.revision, &mut visible);
        // An observer may stop early; the count must be that of all.
        visible.for_each(drop);
    }
    match failure {
        Some(error) => Err(error),
        None if shown == state.meta.count => Ok(()),
        None => {
            let what = format!("it shows {shown} of {} objects", state.meta.count);
            Err(Error::Engine { path: "engine".into(), what })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{decode, encode};
    use crate::types::{Condition, Op, Txn, Value};

    fn put(key: &str, value: &'static str, splice: Option<u32>) -> Op {
        Op::Put { key: key.into(), value: Value { bytes: Bytes::from_static(value.as_bytes()), splice } }
    }

    fn apply(state: &mut State, conditions: &[(&str, Check)], ops: Vec<Op>) -> (Outcome, Vec<Change>) {
        let conditions =
            conditions.iter().map(|(key, check)| Condition { key: (*key).into(), check: *check }).collect();
        let bytes = encode(&Txn { conditions, ops, lazy: false });
        let mut changes = Vec::new();
        let outcome = state.apply(&decode(&bytes).unwrap(), &mut changes);
        (outcome, changes)
    }

    #[test]
    fn checks_creates_replaces_and_deletes() {
        let mut state = State::empty(ConfState::default());
        assert_eq!(state.meta.revision, 1);
        let (outcome, changes) =
            apply(&mut state, &[("a", Check::Absent)], vec![put("a", r#"{"v":""}"#, Some(6))]);
        assert_eq!(outcome, Outcome::Done);
        let entry = changes[0].entry.clone().unwrap();
        assert_eq!((&entry.bytes[..], entry.created, entry.modified), (&br#"{"v":"2"}"#[..], 2, 2));

        let conflict = |current| Outcome::Conflict { key: "a".into(), current };
        for (check, outcome) in [
            (Check::Absent, conflict(Some(2))),
            (Check::At(1), conflict(Some(2))),
            (Check::Any, Outcome::Nothing),
            (Check::At(2), Outcome::Nothing),
        ] {
            assert_eq!(apply(&mut state, &[("a", check)], vec![]).0, outcome, "{check:?}");
        }
        assert_eq!(state.meta.revision, 2, "no change, no revision");

        let (_, changes) = apply(&mut state, &[("a", Check::At(2))], vec![put("a", "x", None)]);
        assert_eq!(changes[0].entry.as_ref().map(|e| (e.created, e.modified)), Some((2, 3)));
        let ops = vec![Op::Delete { key: "a".into() }, Op::Delete { key: "none".into() }];
        let (outcome, changes) = apply(&mut state, &[("none", Check::Absent)], ops);
        assert_eq!((outcome, changes.len(), state.meta.revision), (Outcome::Done, 1, 4));
        assert_eq!((state.meta.count, state.meta.sum), (0, 0), "an empty state sums to nothing");
        assert_eq!(apply(&mut state, &[("a", Check::Any)], vec![]).0, conflict(None));
        assert_eq!(apply(&mut state, &[], vec![Op::Delete { key: "a".into() }]).0, Outcome::Nothing);
    }

    #[test]
    fn bytes_are_counted_and_growth_is_foreseen() {
        let mut state = State::empty(ConfState::default());
        let foreseen = |state: &State, ops: Vec<Op>| {
            let bytes = encode(&Txn { ops, ..Txn::default() });
            state.growth(&decode(&bytes).unwrap())
        };
        let mut last = 0;
        for (ops, growth, bytes) in [
            (vec![put("a", "12345", None), put("bc", r#"{"v":""}"#, Some(6))], (2, 17), 17),
            (vec![put("a", "123", None)], (0, -2), 15),
            (vec![put("a", "123456", None), Op::Delete { key: "bc".into() }], (-1, -8), 7),
            (vec![Op::Delete { key: "a".into() }, Op::Delete { key: "none".into() }], (-1, -7), 0),
        ] {
            assert_eq!(foreseen(&state, ops.clone()), growth, "{ops:?}");
            apply(&mut state, &[], ops);
            assert_eq!(state.bytes(), bytes);
            assert_eq!(bytes as i64 - last, growth.1);
            last = bytes as i64;
        }
    }

    #[test]
    fn a_loaded_state_verifies_and_a_wrong_one_does_not() {
        let mut state = State::empty(ConfState { voters: vec![1], ..ConfState::default() });
        apply(&mut state, &[], vec![put("a", "1", None), put("b", "2", None)]);
        let meta = Meta::decode(&state.meta.encode()).unwrap();
        assert_eq!(meta, state.meta);
        let objects: Vec<(Key, Vec<u8>)> = state
            .overlay()
            .iter()
            .map(|(key, entry)| (key.clone(), encode_object(key, entry.as_ref().unwrap())))
            .collect();
        let load = |objects: &[(Key, Vec<u8>)]| {
            let mut state = State::loading(meta.clone());
            objects.iter().all(|(key, value)| state.load(key.as_bytes(), value)) && state.verify()
        };
        assert!(load(&objects));
        assert!(!load(&objects[..1]), "one is missing");
        let mut swapped = objects.clone();
        swapped[0].1 = objects[1].1.clone();
        assert!(!load(&swapped), "a value under the wrong key");
        let mut flipped = meta.encode();
        flipped[3] ^= 1;
        assert!(Meta::decode(&flipped).is_none());
    }
}
