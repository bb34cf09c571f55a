//! From the files to a state: the engine if it can be trusted, else a snapshot, else the whole log.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kedge_base::Chain;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

use crate::command;
use crate::engine::{Engine, Sled, write_overlay};
use crate::error::Error;
use crate::membership::{self, Member};
use crate::raftlog::RaftLog;
use crate::snapshot;
use crate::state::{Meta, State, decode_object};
use crate::stats::Counters;
use crate::types::{Bootstrap, Config, Op, Txn};
use crate::wal::{self, Wal};

/// How many bytes of objects go to the engine in one batch when it is rebuilt.
const REBUILD_BATCH: usize = 1 << 20;

/// An engine and the state it holds.
type Base = (Box<dyn Engine>, State);

/// Where things are in the store's folder.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) dir: PathBuf,
    pub(crate) wal: PathBuf,
    pub(crate) engine: PathBuf,
    pub(crate) aside: PathBuf,
    pub(crate) snapshots: PathBuf,
    pub(crate) lock: PathBuf,
    /// Exists in the folder of a member that did not found its group.
    pub(crate) joined: PathBuf,
}

impl Paths {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            wal: dir.join("wal"),
            engine: dir.join("engine"),
            aside: dir.join("engine.bad"),
            snapshots: dir.join("snapshots"),
            lock: dir.join("lock"),
            joined: dir.join("joined"),
        }
    }

    /// The configuration that a member without any data begins with. One that joins has none: it gets it
    /// with its first snapshot.
    fn first(&self, node_id: u64) -> ConfState {
        let voters = if self.joined.exists() { vec![] } else { vec![node_id] };
        ConfState { voters, ..ConfState::default() }
    }
}

/// All that a node starts with.
pub(crate) struct Opened {
    /// Holds the folder for this process.
    pub(crate) lock: File,
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) state: State,
    pub(crate) wal: Wal,
    pub(crate) log: RaftLog,
    /// Bytes of log that have to be applied again.
    pub(crate) replay_bytes: u64,
    pub(crate) snapshots: usize,
}

pub(crate) fn open(config: &Config, paths: &Paths, counters: &Arc<Counters>) -> Result<Opened, Error> {
    fs::create_dir_all(&paths.dir).map_err(Error::io("create", &paths.dir))?;
    // Everybody's secrets are in it; older versions left it open.
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(&paths.dir, private).map_err(Error::io("restrict", &paths.dir))?;
    let lock = File::create(&paths.lock).map_err(Error::io("create", &paths.lock))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse(paths.dir.clone())),
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", &paths.lock)(error)),
    }
    let has_log = wal::exists(&paths.wal)?;
    let joins = config.cluster.as_ref().is_some_and(|c| matches!(c.bootstrap, Bootstrap::Join { .. }));
    if joins && !has_log && !paths.joined.exists() {
        kedge_base::write_atomic(&paths.joined, b"", 0o600).map_err(Error::io("write", &paths.joined))?;
    }
    finish_install(config, paths, counters)?;
    let snapshots = snapshot::list(&paths.snapshots)?;
    let first = paths.first(config.node_id);
    let usable = usable_engine(config, paths, &first, has_log, !snapshots.is_empty())?;
    let (mut engine, mut state) = match usable {
        Some(found) => found,
        None => rebuild(config, paths, &first)?,
    };
    let newest = snapshots.first().map_or(0, |found| found.index).max(state.meta.applied);
    if !has_log && newest > 0 {
        let what = format!("is gone, but the state reaches entry {newest}");
        return Err(Error::LogLost { path: paths.wal.clone(), what });
    }
    let open_log = |from| Wal::open(&paths.wal, config.node_id, config.segment_bytes, from, counters.clone());
    let (mut wal, mut recovered) = open_log(state.meta.applied)?;
    if recovered.previous_index > state.meta.applied {
        drop(engine);
        let what = format!(
            "it ends at entry {}, the log begins at {}",
            state.meta.applied,
            recovered.previous_index + 1
        );
        set_aside(paths, &what);
        (engine, state) = rebuild(config, paths, &first)?;
        (wal, recovered) = open_log(state.meta.applied)?;
    }
    if recovered.previous_index > state.meta.applied {
        let what = format!(
            "the state engine and the snapshots are gone or damaged and the log begins only at entry {}",
            recovered.previous_index + 1
        );
        return Err(Error::NoState { path: paths.dir.clone(), what });
    }
    if recovered.last_index < newest {
        let what = format!("ends at entry {}, but the state reaches entry {newest}", recovered.last_index);
        return Err(Error::LogLost { path: paths.wal.clone(), what });
    }
    let replay_bytes = recovered.entries.iter().map(|entry| entry.data.len() as u64).sum();
    let log = raft_log(config.node_id, &state.meta, recovered.hard_state, recovered.entries);
    Ok(Opened { lock, engine, state, wal, log, replay_bytes, snapshots: snapshots.len() })
}

/// The log as Raft finds it, after the state that `meta` describes. `entries` are all that the disk has.
pub(crate) fn raft_log(
    node_id: u64,
    meta: &Meta,
    mut hard_state: HardState,
    mut entries: Vec<Entry>,
) -> RaftLog {
    entries.retain(|entry| entry.index > meta.applied);
    let last = entries.last().map_or(meta.applied, |entry| entry.index);
    hard_state.commit = hard_state.commit.clamp(meta.applied, last);
    // What a sole voter has on its disk is committed: nobody else has a say.
    let changes = entries.iter().any(|entry| entry.entry_type() != EntryType::EntryNormal);
    if is_sole_voter(&meta.members, node_id) && !changes {
        hard_state.commit = last;
    }
    RaftLog::new(hard_state, meta.members.clone(), (meta.applied, meta.applied_term), entries)
}

/// Whether this node alone decides what is committed.
pub(crate) fn is_sole_voter(members: &ConfState, node_id: u64) -> bool {
    members.voters == [node_id] && members.voters_outgoing.is_empty()
}

/// Opens, reads and verifies the engine. sled may panic on damaged files; that is an error like others.
fn try_engine(config: &Config, paths: &Paths) -> Result<(Box<dyn Engine>, Option<State>), Error> {
    let failed = |what: &str| Error::Engine { path: paths.engine.clone(), what: what.into() };
    let attempt = || -> Result<(Box<dyn Engine>, Option<State>), Error> {
        let engine = Box::new(Sled::open(&paths.engine, config.cache_bytes)?);
        let Some(meta) = engine.meta()? else {
            let has_objects = engine.objects().next().is_some();
            return if has_objects {
                Err(failed("it has objects but no summary"))
            } else {
                Ok((engine, None))
            };
        };
        let mut state = State::loading(meta);
        for pair in engine.objects() {
            let (key, object) = pair?;
            if !state.load(&key, &object) {
                return Err(failed("an object is damaged"));
            }
        }
        if !state.verify() {
            return Err(failed("objects are missing"));
        }
        Ok((engine, Some(state)))
    };
    catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| Err(failed("its files are damaged")))
}

/// The engine's state if it can be trusted; otherwise the engine's folder is out of the way afterwards.
fn usable_engine(
    config: &Config,
    paths: &Paths,
    first: &ConfState,
    has_log: bool,
    has_snapshot: bool,
) -> Result<Option<Base>, Error> {
    if !paths.engine.exists() {
        if has_log {
            tracing::warn!(path = %paths.engine.display(), "the state engine is missing; it is rebuilt");
        }
        return Ok(None);
    }
    match try_engine(config, paths) {
        Ok((engine, Some(state))) => return Ok(Some((engine, state))),
        // Never flushed yet: normal for a young store, unless a snapshot was made from it.
        Ok((engine, None)) if !has_snapshot => return Ok(Some((engine, State::empty(first.clone())))),
        Ok((engine, None)) => {
            drop(engine);
            set_aside(paths, "it is empty");
        }
        // A full disk says nothing against the files.
        Err(error) if error.is_full() => return Err(error),
        Err(error) => set_aside(paths, &Chain(&error).to_string()),
    }
    Ok(None)
}

fn set_aside(paths: &Paths, why: &str) {
    tracing::warn!(
        path = %paths.engine.display(),
        aside = %paths.aside.display(),
        why,
        "the state engine cannot be used; it is set aside and rebuilt from snapshot and log"
    );
    let _ = fs::remove_dir_all(&paths.aside);
    if fs::rename(&paths.engine, &paths.aside).is_err() {
        let _ = fs::remove_dir_all(&paths.engine);
    }
}

/// A new engine from the newest snapshot that is whole; without any, an empty one.
fn rebuild(config: &Config, paths: &Paths, first: &ConfState) -> Result<Base, Error> {
    for found in snapshot::list(&paths.snapshots)? {
        match load_snapshot(config, paths, &found.path) {
            Ok(loaded) => return Ok(loaded),
            Err(error @ Error::DamagedSnapshot { .. }) => {
                tracing::warn!(error = %Chain(&error), "a snapshot cannot be used; an older one is tried");
            }
            Err(error) => return Err(error),
        }
    }
    let engine = Sled::open(&paths.engine, config.cache_bytes)?;
    Ok((Box::new(engine), State::empty(first.clone())))
}

fn load_snapshot(config: &Config, paths: &Paths, path: &Path) -> Result<Base, Error> {
    let damaged = |what: &str| Error::DamagedSnapshot { path: path.to_owned(), what: what.into() };
    let mut snapshot = snapshot::open(path)?;
    // A rebuild that was interrupted, or the attempt with a newer snapshot.
    if paths.engine.exists() {
        fs::remove_dir_all(&paths.engine).map_err(Error::io("remove", &paths.engine))?;
    }
    let mut engine = Sled::open(&paths.engine, config.cache_bytes)?;
    let mut state = State::loading(snapshot.meta.clone());
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < REBUILD_BATCH {
            let Some(pair) = snapshot.next() else { break };
            let (key, object) = pair?;
            if !state.load(&key, &object) {
                return Err(damaged("an object is damaged"));
            }
            bytes += key.len() + object.len();
            batch.push((key, Some(object)));
        }
        if batch.is_empty() {
            break;
        }
        engine.write(&mut batch.into_iter(), None)?;
        // Keeps sled's buffers small.
        engine.flush()?;
    }
    if !state.verify() {
        return Err(damaged("objects are missing"));
    }
    engine.write(&mut std::iter::empty(), Some(&state.meta))?;
    engine.flush()?;
    Ok((Box::new(engine), state))
}

/// Replaces state and log by a snapshot that was received from another member: see
/// [`snapshot::received`]. From the first rename on it is finished by [`finish_install`], should the
/// process end in between.
pub(crate) fn install(
    config: &Config,
    paths: &Paths,
    wal: &mut Wal,
    index: u64,
    term: u64,
) -> Result<Base, Error> {
    let hard_state = HardState { commit: index, ..wal.hard_state().clone() };
    install_with(config, paths, wal, index, term, &hard_state)
}

pub(crate) fn install_with(
    config: &Config,
    paths: &Paths,
    wal: &mut Wal,
    index: u64,
    term: u64,
    hard_state: &HardState,
) -> Result<Base, Error> {
    let received = snapshot::received(&paths.snapshots, index, term);
    let installing = snapshot::installing(&paths.snapshots, index, term);
    // The receiver has verified it; this is about the disk.
    let meta = snapshot::open(&received)?.meta;
    if (meta.applied, meta.applied_term) != (index, term) {
        let what = format!("it reaches to entry {} and not to {index}", meta.applied);
        return Err(Error::DamagedSnapshot { path: received, what });
    }
    fs::rename(&received, &installing).map_err(Error::io("rename", &received))?;
    kedge_base::sync_dir(&paths.snapshots).map_err(Error::io("sync", &paths.snapshots))?;
    switch_over(paths, wal, index, term, hard_state)?;
    rebuild(config, paths, &paths.first(config.node_id))
}

fn finish_install(config: &Config, paths: &Paths, counters: &Arc<Counters>) -> Result<(), Error> {
    let Some((index, term)) = snapshot::interrupted(&paths.snapshots)? else { return Ok(()) };
    tracing::info!(index, "a snapshot from another member was about to be installed; that is finished now");
    let (mut wal, _) =
        Wal::open(&paths.wal, config.node_id, config.segment_bytes, u64::MAX, counters.clone())?;
    let known = wal.hard_state();
    // Never below the snapshot's term: that of a recovered group is new.
    let hard_state = HardState { term: known.term.max(term), commit: index, ..known.clone() };
    switch_over(paths, &mut wal, index, term, &hard_state)
}

fn switch_over(
    paths: &Paths,
    wal: &mut Wal,
    index: u64,
    term: u64,
    hard_state: &HardState,
) -> Result<(), Error> {
    wal.reset(index, term, hard_state)?;
    if paths.engine.exists() {
        fs::remove_dir_all(&paths.engine).map_err(Error::io("remove", &paths.engine))?;
    }
    for old in snapshot::list(&paths.snapshots)? {
        fs::remove_file(&old.path).map_err(Error::io("remove", &old.path))?;
    }
    snapshot::remove_received(&paths.snapshots, index)?;
    snapshot::keep(&paths.snapshots, index, term)
}

/// Opens the engine after it was closed in good order; it must say what it said then.
pub(crate) fn open_closed_engine(config: &Config, paths: &Paths, last: &Meta) -> Option<Box<dyn Engine>> {
    // sled's own threads may hold the file's lock a little longer than its handle.
    for wait in [0, 50, 500] {
        std::thread::sleep(Duration::from_millis(wait));
        let Ok(engine) = Sled::open(&paths.engine, config.cache_bytes) else { continue };
        return match engine.meta() {
            Ok(Some(meta)) if meta == *last => Some(Box::new(engine)),
            Ok(None) if last.applied == 0 => Some(Box::new(engine)),
            _ => None,
        };
    }
    None
}

/// After the engine failed while running: open it again, or rebuild it, so that it holds at least what
/// `last`, the last batch that succeeded, said. Everything later is still in memory.
pub(crate) fn reopen_engine(config: &Config, paths: &Paths, last: &Meta) -> Result<Box<dyn Engine>, Error> {
    match try_engine(config, paths) {
        Ok((engine, Some(state))) if state.meta.applied >= last.applied => return Ok(engine),
        Ok((engine, None)) if last.applied == 0 => return Ok(engine),
        Ok(_) => set_aside(paths, "it lost what was flushed"),
        Err(error) if error.is_full() => return Err(error),
        Err(error) => set_aside(paths, &Chain(&error).to_string()),
    }
    let first = paths.first(config.node_id);
    let (mut engine, mut state) = rebuild(config, paths, &first)?;
    let entries = wal::read(&paths.wal, config.node_id, state.meta.applied, last.applied)?;
    replay(&mut state, entries)?;
    if state.meta.revision != last.revision || state.meta.sum != last.sum {
        let what = "rebuilt from snapshot and log it differs from what it was".into();
        return Err(Error::Engine { path: paths.engine.clone(), what });
    }
    write_overlay(engine.as_mut(), &state.take_overlay(), last)?;
    Ok(engine)
}

/// What a recovery does to keys that the store knows nothing of.
pub trait Book: Send + 'static {
    /// Whether the key's value is needed.
    fn wants(&self, key: &str) -> bool;
    /// The changes that go with the removal of these members. No key may occur twice.
    fn rewrite(&self, removed: &[Member], values: &BTreeMap<String, Vec<u8>>) -> Vec<Op>;
}

/// The values of the keys that are wanted.
pub(crate) fn values(
    state: &State,
    engine: &dyn Engine,
    wants: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut values = BTreeMap::new();
    for pair in engine.objects() {
        let (key, object) = pair?;
        let Ok(key) = std::str::from_utf8(&key) else { continue };
        if wants(key)
            && let Some((entry, _)) = decode_object(key, &object)
        {
            values.insert(key.to_owned(), entry.bytes.to_vec());
        }
    }
    for (key, entry) in state.overlay().iter().filter(|(key, _)| wants(key)) {
        match entry {
            Some(entry) => values.insert(key.to_string(), entry.bytes.to_vec()),
            None => values.remove(&**key),
        };
    }
    Ok(values)
}

/// Makes this member the only one of its group. All that its log holds is kept: part of it may not have
/// been committed, but nobody else can say so any more. What `book` makes of the values of its own keys goes
/// into the same new state.
pub(crate) fn alone(
    config: &Config,
    book: &dyn Book,
    counters: &Arc<Counters>,
) -> Result<crate::Recovered, Error> {
    let paths = Paths::new(&config.dir);
    if !wal::exists(&paths.wal)? {
        return Err(Error::NoState { path: paths.dir, what: "there is no store in it".into() });
    }
    let Opened { lock: _lock, engine, mut state, mut wal, .. } = open(config, &paths, counters)?;
    let (hard_state, entries) = wal.reread(state.meta.applied)?;
    replay(&mut state, entries)?;
    if state.meta.applied == 0 {
        let what = "this node has received nothing from its group yet".into();
        return Err(Error::NoState { path: paths.dir, what });
    }
    let removed: Vec<Member> =
        state.members().values().filter(|member| member.id != config.node_id).cloned().collect();
    let keys = removed.iter().flat_map(|member| {
        [
            membership::key(member.id),
            membership::name_key(&member.name),
            membership::address_key(&member.address),
        ]
    });
    let keys = keys.chain(state.leaving().iter().map(|&id| membership::leaving_key(id)));
    let mut ops: Vec<Op> = keys.map(|key| Op::Delete { key }).collect();
    ops.extend(book.rewrite(&removed, &values(&state, engine.as_ref(), &|key| book.wants(key))?));
    let txn = command::encode(&Txn { ops, ..Txn::default() });
    let command = command::decode(&txn).map_err(|source| Error::Entry { index: 0, source })?;
    state.apply(&command, &mut Vec::new());
    // An entry of its own, so that nobody else's entry can be taken for it.
    state.meta.applied += 1;
    state.meta.applied_term = hard_state.term.max(state.meta.applied_term) + 1;
    state.meta.members = ConfState { voters: vec![config.node_id], ..ConfState::default() };
    let meta = state.meta.clone();
    let (index, term) = (meta.applied, meta.applied_term);
    // The same way as a snapshot from another member: whole and synced first, then in one rename. What is
    // there stays untouched until then.
    let copy = paths.dir.join("engine.recover");
    if copy.exists() {
        fs::remove_dir_all(&copy).map_err(Error::io("remove", &copy))?;
    }
    let mut target = Sled::open(&copy, config.cache_bytes)?;
    let mut failure = None;
    let mut objects = engine.objects().map_while(|pair| match pair {
        Ok((key, object)) => Some((key, Some(object))),
        Err(error) => {
            failure = Some(error);
            None
        }
    });
    target.write(&mut objects, None)?;
    drop(objects);
    if let Some(error) = failure {
        return Err(error);
    }
    write_overlay(&mut target, &state.take_overlay(), &meta)?;
    snapshot::write_received(&paths.snapshots, &target, &meta)?;
    drop((engine, target));
    fs::remove_dir_all(&copy).map_err(Error::io("remove", &copy))?;
    let hard_state = HardState { term, vote: config.node_id, commit: index };
    let (_engine, state) = install_with(config, &paths, &mut wal, index, term, &hard_state)?;
    Ok(crate::Recovered { index, term, revision: state.meta.revision, removed })
}

/// Brings the state to where the log's entries lead; nobody is told of the changes.
pub(crate) fn replay(state: &mut State, entries: impl IntoIterator<Item = Entry>) -> Result<(), Error> {
    let mut changes = Vec::new();
    for entry in entries {
        if let Some(command) = command_of(&entry)? {
            state.apply(&command, &mut changes);
            changes.clear();
        }
        (state.meta.applied, state.meta.applied_term) = (entry.index, entry.term);
    }
    Ok(())
}

/// The transaction in an entry; Raft's own entries have none.
pub(crate) fn command_of(entry: &Entry) -> Result<Option<command::Command<'_>>, Error> {
    if entry.data.is_empty() || entry.entry_type() != EntryType::EntryNormal {
        return Ok(None);
    }
    match command::decode(&entry.data) {
        Ok(command) => Ok(Some(command)),
        Err(source) => Err(Error::Entry { index: entry.index, source }),
    }
}
