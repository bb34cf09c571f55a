//! A bucket: the objects of one resource, its recent events, and what watchers and chunked lists share of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use imbl::OrdMap;
use kedge_store::Entry;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::pins::Pins;
use crate::extract::{Extracted, Paths};
use crate::sealing::KeyId;

/// Events that a bucket keeps for watchers that resume.
pub(super) const HISTORY_EVENTS: usize = 4096;
/// Bytes of object versions that a bucket's history may keep alive.
const HISTORY_BYTES: usize = 4 << 20;
/// What a bucket keeps however much the others hold.
pub(super) const HISTORY_SHARE: usize = 64 << 10;
/// The lines of a watch that are written at once, in bytes, unless a single one is larger. With what HTTP and
/// TLS put around them that is one call of the kernel: [`crate::server`] lets TLS take so much at once.
pub(super) const CHUNK_BYTES: usize = (128 << 10) - 512;
/// How many chunks are kept for others: of this many kinds of watchers (all namespaces, one of them, those
/// who lag behind) each finds its own.
pub(super) const CHUNKS: usize = 4;

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Stored {
    /// `namespace/name`; the namespace is empty for cluster scope.
    pub(crate) key: Arc<str>,
    /// The final JSON.
    pub(crate) bytes: Bytes,
    /// Where the digits of `metadata.resourceVersion` start.
    splice: Option<u32>,
    pub(crate) modified: u64,
    /// Labels and the resource's selectable fields; shared by versions that do not differ in them.
    pub(crate) extracted: Arc<Extracted>,
}

impl Stored {
    pub(crate) fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub(crate) fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// The object as it was handed to the store: without its revision.
    pub(crate) fn unspliced(&self) -> kedge_store::Value {
        let bytes = match self.splice {
            Some(at) => {
                let (head, tail) = self.bytes.split_at(at as usize);
                let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
                [head, &tail[digits..]].concat().into()
            }
            None => self.bytes.clone(),
        };
        kedge_store::Value { bytes, splice: self.splice }
    }

    #[cfg(test)]
    pub(crate) fn for_test(key: &str, bytes: Bytes, extracted: Arc<Extracted>) -> Self {
        Self { key: key.into(), bytes, splice: None, modified: 1, extracted }
    }

    /// The same object under another revision: what a DELETED event carries.
    fn at_revision(&self, revision: u64) -> Self {
        let bytes = match self.splice {
            Some(at) => {
                let (head, tail) = self.bytes.split_at(at as usize);
                let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
                [head, revision.to_string().as_bytes(), &tail[digits..]].concat().into()
            }
            None => self.bytes.clone(),
        };
        Self {
            key: self.key.clone(),
            bytes,
            splice: self.splice,
            modified: revision,
            extracted: self.extracted.clone(),
        }
    }
}

/// The type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change of one object, shared by all watchers.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) kind: EventKind,
    pub(crate) revision: u64,
    pub(crate) object: Arc<Stored>,
    /// What selectors see of the version before: nothing else of it is kept.
    pub(crate) previous: Option<Arc<Extracted>>,
}

/// What [`line`] puts around an object, at most.
const AROUND: usize = 40;

/// Appends one line of a watch stream.
pub(crate) fn line(out: &mut Vec<u8>, kind: EventKind, object: &[u8]) {
    out.reserve(object.len() + AROUND);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_str().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

/// Events as plain watchers of the same namespace get them, built by the first one who asks.
#[derive(Debug)]
pub(crate) struct Chunk {
    prefix: Box<str>,
    /// The revision before the first event, and that of the last one.
    from: u64,
    pub(crate) to: u64,
    /// Nothing newer was there when it was built.
    pub(crate) newest: bool,
    /// May be empty: all events were of other namespaces.
    pub(crate) lines: Bytes,
}

/// An ordered, immutable view of a bucket; cloning is cheap.
pub(crate) type Objects = OrdMap<Arc<str>, Arc<Stored>>;

/// One resource.
pub(crate) struct Bucket {
    paths: ArcSwap<Paths>,
    state: RwLock<State>,
    /// The revision of the bucket's last event.
    changed: watch::Sender<u64>,
    pins: Pins,
    /// The last chunks that were built, the newest at the end.
    chunks: Mutex<VecDeque<Arc<Chunk>>>,
    /// The bytes of all buckets' histories.
    total: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    objects: Objects,
    /// With which keys those are encrypted in the store that are.
    sealed: HashMap<Arc<str>, KeyId>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// A watch may resume after this revision: every later change is in the history.
    floor: u64,
}

/// Why a watch cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooOld {
    pub(crate) requested: u64,
    pub(crate) oldest: u64,
}

impl Bucket {
    pub(super) fn new(paths: Paths, floor: u64, total: Arc<AtomicUsize>) -> Self {
        Self {
            paths: ArcSwap::from_pointee(paths),
            state: RwLock::new(State { floor, ..State::default() }),
            changed: watch::Sender::new(floor),
            pins: Pins::default(),
            chunks: Mutex::default(),
            total,
        }
    }

    /// Where a selectable field is found in [`Extracted::fields`].
    pub(crate) fn field(&self, path: &str) -> Option<usize> {
        self.paths.load().index(path)
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.state.read().objects.get(key).cloned()
    }

    pub(crate) fn objects(&self) -> Objects {
        self.state.read().objects.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// How many are stored encrypted, with whatever key.
    pub(crate) fn sealed(&self) -> usize {
        self.state.read().sealed.len()
    }

    /// The objects that are not stored with this key, or (`None`) are stored encrypted.
    pub(crate) fn sealed_otherwise(&self, wanted: Option<KeyId>) -> Vec<Arc<Stored>> {
        let state = self.state.read();
        match wanted {
            None => state.sealed.keys().filter_map(|key| state.objects.get(key).cloned()).collect(),
            Some(_) => {
                let differs =
                    |(key, _): &(&Arc<str>, &Arc<Stored>)| state.sealed.get(*key).copied() != wanted;
                state.objects.iter().filter(differs).map(|(_, stored)| stored.clone()).collect()
            }
        }
    }

    /// The revision of the last event.
    pub(crate) fn revision(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Wakes whenever the bucket gets a new event.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The events after `revision`, oldest first, up to `limit`.
    pub(crate) fn events_after(&self, revision: u64, limit: usize) -> Result<Vec<Arc<Event>>, TooOld> {
        let state = self.state.read();
        let start = state.after(revision)?;
        // All events of one transaction share a revision and must not be torn apart by the limit.
        let mut end = (start + limit).min(state.history.len());
        while end > start
            && end < state.history.len()
            && state.history[end].revision == state.history[end - 1].revision
        {
            end += 1;
        }
        Ok(state.history.range(start..end).cloned().collect())
    }

    /// The lines of the events after `revision` of the namespace `prefix` ("": all; else with its slash).
    /// Whoever is at the same place gets the same bytes, even when there are newer events by now: so those
    /// who follow a busy bucket stay together and the bytes are joined once for all of them.
    pub(crate) fn chunk_after(&self, revision: u64, prefix: &str) -> Result<Option<Arc<Chunk>>, TooOld> {
        let mut chunks = self.chunks.lock();
        if let Some(chunk) = chunks.iter().rfind(|chunk| chunk.from == revision && *chunk.prefix == *prefix) {
            return Ok(Some(chunk.clone()));
        }
        let state = self.state.read();
        let start = state.after(revision)?;
        let (mut lines, mut to, mut newest) = (Vec::new(), revision, true);
        for event in state.history.range(start..) {
            let ours = event.object.key.starts_with(prefix);
            let more = if ours { event.object.bytes.len() + AROUND } else { 0 };
            // All events of one transaction share a revision and must not be torn apart.
            if lines.len() + more > CHUNK_BYTES && !lines.is_empty() && event.revision != to {
                newest = false;
                break;
            }
            if ours {
                if lines.is_empty() {
                    lines.reserve_exact(more);
                }
                line(&mut lines, event.kind, &event.object.bytes);
            }
            to = event.revision;
        }
        drop(state);
        if to == revision {
            return Ok(None);
        }
        let chunk =
            Arc::new(Chunk { prefix: prefix.into(), from: revision, to, newest, lines: lines.into() });
        if self.watchers() > 1 {
            if chunks.len() == CHUNKS {
                chunks.pop_front();
            }
            chunks.push_back(chunk.clone());
        }
        Ok(Some(chunk))
    }

    #[cfg(test)]
    pub(super) fn kept_chunks(&self) -> usize {
        self.chunks.lock().len()
    }

    /// How many wait for events.
    pub(crate) fn watchers(&self) -> usize {
        self.changed.receiver_count()
    }

    /// Keep what follows the first chunk of a list for its continue tokens.
    pub(crate) fn pin(&self, revision: u64, prefix: &str, rest: &[Arc<Stored>]) {
        self.pins.begin(Instant::now(), revision, prefix, rest, &self.objects());
    }

    /// What [`Bucket::pin`] kept, unless it has expired.
    pub(crate) fn pinned(&self, revision: u64, prefix: &str) -> Option<Arc<[Arc<Stored>]>> {
        self.pins.get(Instant::now(), revision, prefix)
    }

    /// A list that was pinned is at its end.
    pub(crate) fn unpin(&self, revision: u64, prefix: &str) {
        self.pins.end(Instant::now(), revision, prefix);
    }

    /// Everything is other than before, as of `revision`: who watches has to list anew.
    pub(super) fn replace(&self, revision: u64, objects: Objects, sealed: HashMap<Arc<str>, KeyId>) {
        let before = std::mem::replace(
            &mut *self.state.write(),
            State { objects, sealed, floor: revision, ..State::default() },
        );
        self.total.fetch_sub(before.history_bytes, Ordering::Relaxed);
        self.pins.clear();
        *self.chunks.lock() = VecDeque::new();
    }

    /// Ends all watches: every revision is too old from now on.
    pub(super) fn close(&self) {
        self.state.write().floor = u64::MAX;
        *self.chunks.lock() = VecDeque::new();
        self.announce(u64::MAX);
    }

    pub(super) fn extract_again(&self, paths: Paths) {
        self.paths.store(Arc::new(paths));
        let paths = self.paths.load();
        let mut state = self.state.write();
        let fresh = state.objects.iter().map(|(key, stored)| {
            let extracted = Arc::new(paths.extract(&stored.bytes));
            let (key, bytes) = (key.clone(), stored.bytes.clone());
            let stored = Stored {
                key: key.clone(),
                bytes,
                splice: stored.splice,
                modified: stored.modified,
                extracted,
            };
            (key, Arc::new(stored))
        });
        state.objects = fresh.collect();
    }

    pub(super) fn stored(&self, key: Arc<str>, entry: Entry) -> Stored {
        let extracted = Arc::new(self.paths.load().extract(&entry.bytes));
        Stored { key, bytes: entry.bytes, splice: entry.splice, modified: entry.modified, extracted }
    }

    pub(super) fn apply(&self, key: &str, revision: u64, entry: Option<Entry>, sealed: Option<KeyId>) {
        let fresh = entry.map(|entry| self.stored(key.into(), entry));
        let mut state = self.state.write();
        match sealed {
            Some(id) => {
                state.sealed.insert(key.into(), id);
            }
            None if !state.sealed.is_empty() => {
                state.sealed.remove(key);
            }
            None => {}
        }
        let event = match fresh {
            Some(mut stored) => {
                let before = state.objects.get(key);
                if let Some(before) = before {
                    stored.key = before.key.clone();
                    if before.extracted == stored.extracted {
                        stored.extracted = before.extracted.clone();
                    }
                }
                let object = Arc::new(stored);
                let previous = state.objects.insert(object.key.clone(), object.clone());
                let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
                Event { kind, revision, object, previous: previous.map(|stored| stored.extracted.clone()) }
            }
            None => {
                let Some(previous) = state.objects.remove(key) else { return };
                let object = Arc::new(previous.at_revision(revision));
                let previous = Some(object.extracted.clone());
                Event { kind: EventKind::Deleted, revision, object, previous }
            }
        };
        let size = size(&event);
        state.history_bytes += size;
        state.history.push_back(Arc::new(event));
        let mut gone = 0;
        while state.history.len() > HISTORY_EVENTS || state.history_bytes > HISTORY_BYTES {
            let Some(bytes) = state.drop_oldest() else { break };
            gone += bytes;
        }
        drop(state);
        self.total.fetch_add(size, Ordering::Relaxed);
        self.total.fetch_sub(gone, Ordering::Relaxed);
    }

    /// What the history keeps alive, in bytes.
    pub(super) fn history_bytes(&self) -> usize {
        self.state.read().history_bytes
    }

    /// Tells watchers how far the bucket is.
    pub(super) fn announce(&self, revision: u64) {
        self.changed.send_replace(revision);
    }

    /// The revision of the oldest event, when there is more than everybody's share.
    pub(super) fn oldest(&self) -> Option<u64> {
        let state = self.state.read();
        let event = state.history.front()?;
        (state.history_bytes > HISTORY_SHARE).then_some(event.revision)
    }

    /// Forgets the oldest events while `goes` says so of the history's bytes and the oldest revision.
    pub(super) fn shrink(&self, goes: impl Fn(usize, u64) -> bool) {
        let (mut state, mut gone) = (self.state.write(), 0);
        while state.history.front().is_some_and(|oldest| goes(state.history_bytes, oldest.revision)) {
            let Some(bytes) = state.drop_oldest() else { break };
            gone += bytes;
        }
        if gone > 0 && state.history.capacity() > 64 && state.history.len() < state.history.capacity() / 4 {
            state.history.shrink_to_fit();
        }
        drop(state);
        self.total.fetch_sub(gone, Ordering::Relaxed);
    }

    /// Forgets what is older than any client may come back for.
    pub(super) fn sweep(&self, revision: u64) {
        self.shrink(|_, oldest| oldest <= revision);
        self.pins.sweep(Instant::now(), &self.objects());
        *self.chunks.lock() = VecDeque::new();
    }
}

/// What an event keeps alive, in bytes.
fn size(event: &Event) -> usize {
    event.object.bytes.len() + size_of::<Event>() + size_of::<Stored>()
}

impl State {
    /// Where the events after `revision` begin in the history.
    fn after(&self, revision: u64) -> Result<usize, TooOld> {
        if revision < self.floor {
            return Err(TooOld { requested: revision, oldest: self.floor });
        }
        Ok(self.history.partition_point(|event| event.revision <= revision))
    }

    /// The bytes that it held.
    fn drop_oldest(&mut self) -> Option<usize> {
        let oldest = self.history.pop_front()?;
        self.floor = self.floor.max(oldest.revision);
        let size = size(&oldest);
        self.history_bytes -= size;
        Some(size)
    }
}
