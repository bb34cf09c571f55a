//! What the tests compare the store with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kedge_base::Tasks;
use kedge_store::{
    Change, Check, CommitError, Condition, Config, Entry, Error, Key, Observer, Op, Revision, Store, Txn,
    Value,
};

/// Key to (value, created, modified).
pub(crate) type Content = BTreeMap<String, (Vec<u8>, Revision, Revision)>;

/// An observer that keeps everything, and checks the order of what it is told.
#[derive(Default)]
pub(crate) struct Mirror(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    revision: Revision,
    resets: usize,
    content: Content,
}

impl Mirror {
    pub(crate) fn content(&self) -> Content {
        self.0.lock().unwrap().content.clone()
    }

    pub(crate) fn revision(&self) -> Revision {
        self.0.lock().unwrap().revision
    }

    pub(crate) fn resets(&self) -> usize {
        self.0.lock().unwrap().resets
    }
}

fn row(entry: &Entry) -> (Vec<u8>, Revision, Revision) {
    (entry.bytes.to_vec(), entry.created, entry.modified)
}

impl Observer for Mirror {
    fn reset(&self, revision: Revision, entries: &mut dyn Iterator<Item = (Key, Entry)>) {
        let mut inner = self.0.lock().unwrap();
        inner.revision = revision;
        inner.resets += 1;
        inner.content.clear();
        for (key, entry) in entries {
            assert!(inner.content.insert(key.to_string(), row(&entry)).is_none(), "{key} is shown twice");
        }
    }

    fn applied(&self, revision: Revision, changes: &[Change]) {
        let mut inner = self.0.lock().unwrap();
        assert!(inner.resets > 0, "nothing comes before the first reset");
        assert_eq!(revision, inner.revision + 1, "revisions have no gaps");
        inner.revision = revision;
        for change in changes {
            assert_eq!(change.revision, revision);
            match &change.entry {
                Some(entry) => inner.content.insert(change.key.to_string(), row(entry)),
                None => inner.content.remove(&*change.key),
            };
        }
    }
}

/// Small limits, so that a short test rolls segments, flushes and makes snapshots.
pub(crate) fn config(dir: &Path) -> Config {
    Config {
        segment_bytes: 32 << 10,
        snapshot_after_bytes: 64 << 10,
        cache_bytes: 1 << 20,
        ..Config::new(dir)
    }
}

pub(crate) async fn open(dir: &Path) -> Result<(Store, Arc<Mirror>), Error> {
    let mirror = Arc::new(Mirror::default());
    let store = Store::open(config(dir), mirror.clone(), &Tasks::new("test")).await?;
    assert_eq!(mirror.resets(), 1);
    assert_eq!(mirror.revision(), store.revision());
    Ok((store, mirror))
}

pub(crate) fn put(key: &str, value: &[u8]) -> Op {
    Op::Put { key: key.into(), value: Value { bytes: Bytes::copy_from_slice(value), splice: None } }
}

pub(crate) fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

pub(crate) fn txn(conditions: &[(&str, Check)], ops: Vec<Op>) -> Txn {
    let conditions = conditions.iter().map(|(key, check)| Condition { key: (*key).into(), check: *check });
    Txn { conditions: conditions.collect(), ops, lazy: false }
}

/// The same as the store, in a few lines.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) revision: Revision,
    pub(crate) content: Content,
}

impl Default for Model {
    fn default() -> Self {
        Self { revision: 1, content: Content::new() }
    }
}

impl Model {
    pub(crate) fn apply(&mut self, txn: &Txn) -> Result<Revision, CommitError> {
        for condition in &txn.conditions {
            let current = self.content.get(&*condition.key).map(|row| row.2);
            let holds = match condition.check {
                Check::Absent => current.is_none(),
                Check::At(revision) => current == Some(revision),
                Check::Any => current.is_some(),
            };
            if !holds {
                return Err(CommitError::Conflict { key: condition.key.clone(), current });
            }
        }
        let revision = self.revision + 1;
        let mut changed = false;
        for op in &txn.ops {
            match op {
                Op::Put { key, value } => {
                    let created = self.content.get(&**key).map_or(revision, |row| row.1);
                    let mut bytes = value.bytes.to_vec();
                    if let Some(at) = value.splice {
                        bytes.splice(at as usize..at as usize, revision.to_string().into_bytes());
                    }
                    self.content.insert(key.to_string(), (bytes, created, revision));
                    changed = true;
                }
                Op::Delete { key } => changed |= self.content.remove(&**key).is_some(),
            }
        }
        if changed {
            self.revision = revision;
        }
        Ok(self.revision)
    }
}

/// A small generator (splitmix64), so that a failure names a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Something that may happen, and may not.
    pub(crate) fn txn(&mut self, model: &Model) -> Txn {
        let mut keys: Vec<String> = (0..=self.below(3)).map(|_| format!("k/{}", self.below(40))).collect();
        keys.sort();
        keys.dedup();
        let mut conditions = Vec::new();
        for key in &keys {
            if self.below(2) == 0 {
                continue;
            }
            let current = model.content.get(key).map(|row| row.2);
            let check = match (self.below(8), current) {
                (0, _) => Check::Absent,
                (1, _) => Check::Any,
                (_, None) => Check::Absent,
                (_, Some(revision)) => Check::At(revision),
            };
            conditions.push(Condition { key: key.as_str().into(), check });
        }
        let ops = keys
            .iter()
            .map(|key| {
                if self.below(4) == 0 {
                    return delete(key);
                }
                let longest = if self.below(50) == 0 { 20_000 } else { 800 };
                let length = self.below(longest) as usize;
                let fill = self.next() as u8;
                let bytes = (0..length).map(|i| fill.wrapping_add((i * i) as u8)).collect::<Vec<_>>();
                let splice = Some((self.below(length as u64 + 1)) as u32).filter(|at| at % 2 == 0);
                Op::Put { key: key.as_str().into(), value: Value { bytes: bytes.into(), splice } }
            })
            .collect();
        Txn { conditions, ops, lazy: false }
    }
}

/// Copies a folder as it is right now, the way a crash would leave it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else if let Err(error) = std::fs::copy(&path, &target) {
            // Files may vanish while the store works.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}

/// The files in a folder, by name.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}
