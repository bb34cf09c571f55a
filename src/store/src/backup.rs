//! Copies of the whole state for other places: taken from the running store, read and verified anywhere,
//! and made into the folder of a group of one.
//!
//! A copy is one of the store's own snapshot files ([`snapshot`](crate::snapshot)): made by the disk's
//! thread from exactly the state of one log index, so it is consistent and costs no transaction any time.
//! Everything here streams: no more than one object is in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::{ConfState, HardState};
use tokio::sync::oneshot;

use crate::engine::{Engine, Pair};
use crate::error::Error;
use crate::membership::{self, Member};
use crate::node::Msg;
use crate::recover::{self, Opened, Paths};
use crate::snapshot;
use crate::state::{Meta, decode_object, encode_object};
use crate::types::{Config, Entry, Revision};
use crate::{Store, wal};

/// What is told whoever waits for a copy.
pub(crate) type BackupReply = oneshot::Sender<Result<Backup, Error>>;

/// What a copy holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The last log entry in it.
    pub index: u64,
    pub term: u64,
    pub revision: Revision,
    /// How many keys, the store's own included.
    pub objects: u64,
}

impl Summary {
    fn of(meta: &Meta) -> Self {
        Self { index: meta.applied, term: meta.applied_term, revision: meta.revision, objects: meta.count }
    }
}

/// A copy in the store's folder; removed when this is dropped.
#[derive(Debug)]
pub struct Backup {
    path: PathBuf,
    summary: Summary,
}

impl Backup {
    /// The file, for [`Part::whole`] or to be copied elsewhere.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn summary(&self) -> Summary {
        self.summary
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // The next start removes what is left.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives everyone who waits a name of their own for the snapshot, which the store may remove under its own.
/// Without a snapshot the sender is dropped, or told.
pub(crate) fn answer(waiting: Vec<BackupReply>, dir: &Path, meta: &Meta, made: bool) {
    for reply in waiting {
        let result = if made {
            // Never seen by the store itself; removed at the next start as what was not received completely.
            let path = dir.join(format!("backup-{:016x}.part", Member::new_id()));
            fs::hard_link(snapshot::path(dir, meta.applied), &path)
                .map_err(Error::io("link a snapshot to", &path))
                .map(|()| Backup { path: path.clone(), summary: Summary::of(meta) })
        } else {
            Err(Error::Unavailable("no snapshot could be written; the log says why".into()))
        };
        // Whoever does not wait any more drops the copy and so removes it.
        let _ = reply.send(result);
    }
}

impl Store {
    /// A consistent copy of everything this node has applied: after [`Store::read_barrier`] that is
    /// everything that was acknowledged.
    ///
    /// # Errors
    /// When the disk refuses or the store closes.
    pub async fn backup(&self) -> Result<Backup, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(Msg::Backup(reply))?;
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

/// A copy as a part of a file.
#[derive(Clone, Debug)]
pub struct Part {
    pub path: PathBuf,
    /// Where it begins, and its length, in bytes.
    pub offset: u64,
    pub length: u64,
}

impl Part {
    /// A file that is nothing but a copy.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn whole(path: &Path) -> Result<Self, Error> {
        let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
        Ok(Self { path: path.to_owned(), offset: 0, length })
    }

    fn damaged(&self, what: &str) -> Error {
        Error::DamagedSnapshot { path: self.path.clone(), what: what.into() }
    }

    /// Every object, in the order of keys, checked; then, whether they are all.
    fn read_entries(&self, each: &mut dyn FnMut(&str, Entry) -> Result<(), Error>) -> Result<Summary, Error> {
        let objects = snapshot::open_part(&self.path, self.offset, self.length)?;
        let meta = objects.meta.clone();
        let (mut count, mut sum, mut last) = (0u64, 0u64, String::new());
        for pair in objects {
            let (key, object) = pair?;
            let key = String::from_utf8(key).map_err(|_| self.damaged("a key is damaged"))?;
            let (entry, part) =
                decode_object(&key, &object).ok_or_else(|| self.damaged(&format!("{key} is damaged")))?;
            if count > 0 && key <= last || entry.modified > meta.revision {
                return Err(self.damaged(&format!("{key} is out of order")));
            }
            count += 1;
            sum = sum.wrapping_add(part);
            each(&key, entry)?;
            last = key;
        }
        if count != meta.count || sum != meta.sum {
            return Err(self.damaged(&format!("it holds {count} of {} objects", meta.count)));
        }
        Ok(Summary::of(&meta))
    }

    /// Reads all of it, checks every checksum and the number of objects, and shows each key with its value.
    ///
    /// # Errors
    /// [`Error::DamagedSnapshot`] says what is wrong.
    pub fn read(&self, each: &mut dyn FnMut(&str, &[u8])) -> Result<Summary, Error> {
        self.read_entries(&mut |key, entry| {
            each(key, &entry.bytes);
            Ok(())
        })
    }
}

/// What a folder holds, read without starting it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The last entry of the log; whether the group has committed it is not known here.
    pub last: Summary,
    /// Who is in the group, as far as this folder knows.
    pub members: Vec<Member>,
    /// The values of the keys that were asked for.
    pub values: BTreeMap<String, Vec<u8>>,
}

/// Opens the folder of a closed store, repairs it as a start would, and says what it holds; with
/// the values of the keys that `wants` says.
///
/// # Errors
/// The folder is in use, empty or damaged.
pub fn inspect(config: &Config, wants: &dyn Fn(&str) -> bool) -> Result<Inspected, Error> {
    let paths = Paths::new(&config.dir);
    if !wal::exists(&paths.wal)? {
        return Err(Error::NoState { path: paths.dir, what: "there is no store in it".into() });
    }
    let Opened { lock: _lock, engine, mut state, wal, .. } = recover::open(config, &paths, &Arc::default())?;
    let (_, entries) = wal.reread(state.meta.applied)?;
    recover::replay(&mut state, entries)?;
    Ok(Inspected {
        last: Summary::of(&state.meta),
        members: state.members().values().cloned().collect(),
        values: recover::values(&state, engine.as_ref(), wants)?,
    })
}

/// Makes the empty folder `config.dir` the store of a group of this node alone, with what `keep` keeps of
/// the copy. Every object gets the same new revision, one above `above` and above the copy's: no client can
/// have seen a later one, so nobody's view goes backwards. The records of the group's members are not
/// kept: the group is a new one, and its member announces itself.
///
/// # Errors
/// The copy is damaged, or the folder cannot be written; the folder is then of no use.
pub fn restore(
    config: &Config,
    part: &Part,
    above: Revision,
    keep: &(dyn Fn(&str, &[u8]) -> bool + Sync),
) -> Result<Summary, Error> {
    let config = Config { cluster: None, ..config.clone() };
    let paths = Paths::new(&config.dir);
    if wal::exists(&paths.wal)? {
        return Err(Error::Config(format!("{} is not empty", paths.dir.display())));
    }
    let copied = part.read_entries(&mut |_, _| Ok(()))?;
    let mut raised = Raised { part, revision: copied.revision.max(above) + 1, keep };
    let meta = raised.summarize(copied, config.node_id)?;
    let Opened { lock: _lock, engine, mut wal, .. } = recover::open(&config, &paths, &Arc::default())?;
    drop(engine);
    // The same way as a snapshot from another member.
    snapshot::write_received(&paths.snapshots, &raised, &meta)?;
    let hard_state = HardState { term: meta.applied_term, vote: config.node_id, commit: meta.applied };
    let (mut engine, state) =
        recover::install_with(&config, &paths, &mut wal, meta.applied, meta.applied_term, &hard_state)?;
    engine.flush()?;
    let restored = Summary::of(&state.meta);
    if restored != Summary::of(&meta) {
        return Err(part.damaged("what was restored is not what it holds"));
    }
    Ok(restored)
}

/// A copy's objects at a new revision, as an engine that is only read.
struct Raised<'a> {
    part: &'a Part,
    revision: Revision,
    keep: &'a (dyn Fn(&str, &[u8]) -> bool + Sync),
}

impl Raised<'_> {
    /// Counts and sums up what is kept.
    fn summarize(&mut self, copied: Summary, node_id: u64) -> Result<Meta, Error> {
        let (mut count, mut sum) = (0u64, 0u64);
        for pair in self.objects() {
            let (key, object) = pair?;
            let key = String::from_utf8(key).map_err(|_| self.part.damaged("a key is damaged"))?;
            let (_, part) = decode_object(&key, &object).ok_or_else(|| self.part.damaged(&key))?;
            count += 1;
            sum = sum.wrapping_add(part);
        }
        Ok(Meta {
            applied: copied.index + 1,
            applied_term: copied.term + 1,
            revision: self.revision,
            count,
            sum,
            members: ConfState { voters: vec![node_id], ..ConfState::default() },
        })
    }

    fn raise(&self, pair: Pair) -> Result<Option<Pair>, Error> {
        let (key, object) = pair;
        let key = String::from_utf8(key).map_err(|_| self.part.damaged("a key is damaged"))?;
        let damaged = || self.part.damaged(&format!("{key} is damaged"));
        let (mut entry, _) = decode_object(&key, &object).ok_or_else(damaged)?;
        if membership::is_reserved(&key) || !(self.keep)(&key, &entry.bytes) {
            return Ok(None);
        }
        if let Some(at) = entry.splice {
            let old = entry.modified.to_string();
            let (head, tail) = entry.bytes.split_at_checked(at as usize).ok_or_else(damaged)?;
            let tail = tail.strip_prefix(old.as_bytes()).ok_or_else(damaged)?;
            entry.bytes = [head, self.revision.to_string().as_bytes(), tail].concat().into();
        }
        entry.modified = self.revision;
        let object = encode_object(&key, &entry);
        Ok(Some((key.into_bytes(), object)))
    }
}

impl Engine for Raised<'_> {
    fn meta(&self) -> Result<Option<Meta>, Error> {
        Ok(None)
    }

    fn objects(&self) -> Box<dyn Iterator<Item = Result<Pair, Error>> + '_> {
        match snapshot::open_part(&self.part.path, self.part.offset, self.part.length) {
            Ok(objects) => {
                Box::new(objects.filter_map(|pair| pair.and_then(|pair| self.raise(pair)).transpose()))
            }
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn write(
        &mut self,
        _batch: &mut dyn Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
        _meta: Option<&Meta>,
    ) -> Result<u64, Error> {
        Err(self.part.damaged("a copy is only read"))
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// How many objects there are of each resource: what stands before the first slash of a key.
///
/// # Errors
/// See [`Part::read`].
pub fn count(part: &Part) -> Result<(Summary, BTreeMap<String, u64>), Error> {
    let mut counts = BTreeMap::new();
    let summary = part.read(&mut |key, _| {
        let resource = key.split('/').next().unwrap_or_default();
        match counts.get_mut(resource) {
            Some(count) => *count += 1,
            None => drop(counts.insert(resource.to_owned(), 1)),
        }
    })?;
    Ok((summary, counts))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kedge_base::Tasks;
    use parking_lot::Mutex;

    use super::*;
    use crate::types::{Change, Key, Observer, Op, Txn, Value};

    #[derive(Default)]
    struct Seen(Mutex<BTreeMap<String, Entry>>);

    impl Observer for Seen {
        fn reset(&self, _: Revision, entries: &mut dyn Iterator<Item = (Key, Entry)>) {
            *self.0.lock() = entries.map(|(key, entry)| (key.to_string(), entry)).collect();
        }

        fn applied(&self, _: Revision, changes: &[Change]) {
            let mut seen = self.0.lock();
            for change in changes {
                match &change.entry {
                    Some(entry) => drop(seen.insert(change.key.to_string(), entry.clone())),
                    None => drop(seen.remove(&*change.key)),
                }
            }
        }
    }

    fn put(key: &str) -> Txn {
        let value = Value { bytes: br#"{"v":"","d":"x"}"#.as_slice().into(), splice: Some(6) };
        Txn { ops: vec![Op::Put { key: key.into(), value }], ..Txn::default() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_becomes_a_store_whose_revisions_go_on() {
        let (dir, tasks, seen) =
            (tempfile::tempdir().unwrap(), Tasks::new("test"), Arc::new(Seen::default()));
        let config = Config::new(dir.path().join("one"));
        let store = Store::open(config.clone(), seen.clone(), &tasks).await.unwrap();
        for i in 0..50 {
            store.commit(put(&format!("a.x/n/{i}"))).await.unwrap();
        }
        store.commit(put("b.x/n/1")).await.unwrap();
        let backup = store.backup().await.unwrap();
        let saved = dir.path().join("saved");
        fs::copy(backup.path(), &saved).unwrap();
        let linked = backup.path().to_owned();
        assert!(linked.exists());
        let summary = backup.summary();
        drop(backup);
        assert!(!linked.exists());
        assert_eq!((summary.revision, summary.objects), (store.revision(), 51));
        // Later changes are not in it.
        let later = store.commit(put("a.x/n/1")).await.unwrap();
        store.close().await.unwrap();
        let inspected = inspect(&config, &|key| key.starts_with("b.x")).unwrap();
        assert_eq!((inspected.last.revision, inspected.last.objects), (later, 51));
        assert_eq!(inspected.values.keys().collect::<Vec<_>>(), ["b.x/n/1"]);

        let part = Part::whole(&saved).unwrap();
        let (read, counts) = count(&part).unwrap();
        assert_eq!((read, counts["a.x"], counts["b.x"]), (summary, 50, 1));

        let other = Config { node_id: 7, ..Config::new(dir.path().join("two")) };
        let restored = restore(&other, &part, later, &|key, _| !key.starts_with("b.x")).unwrap();
        assert_eq!((restored.revision, restored.objects), (later + 1, 50));
        assert!(matches!(restore(&other, &part, later, &|_, _| true), Err(Error::Config(_))));
        let store = Store::open(other, seen.clone(), &tasks).await.unwrap();
        assert_eq!(store.revision(), later + 1);
        {
            let seen = seen.0.lock();
            assert_eq!(seen.len(), 50);
            let entry = &seen["a.x/n/1"];
            assert_eq!(entry.modified, later + 1);
            assert_eq!(entry.bytes, format!(r#"{{"v":"{}","d":"x"}}"#, later + 1));
            assert!(entry.created < summary.revision);
        }
        assert_eq!(store.commit(put("c.x/n/1")).await.unwrap(), later + 2);
        store.close().await.unwrap();

        let mut bytes = fs::read(&saved).unwrap();
        for at in (0..bytes.len()).step_by(37) {
            bytes[at] ^= 1;
            fs::write(&saved, &bytes).unwrap();
            assert!(matches!(count(&part), Err(Error::DamagedSnapshot { .. })), "byte {at}");
            bytes[at] ^= 1;
        }
        fs::write(&saved, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(count(&part), Err(Error::DamagedSnapshot { .. })));
    }
}
