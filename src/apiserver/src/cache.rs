//! The watch cache: every object's final bytes in memory, ordered, with the recent changes.
//!
//! It is the store's observer: whoever gets a commit acknowledged finds the cache up to date. A
//! bucket holds one resource. Watchers own no queue: each has a cursor into the bucket's ring of
//! recent events, so a slow one costs nothing and is cut off when the ring has moved on.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use imbl::OrdMap;
use kedge_store::{Change, Entry, Key, Observer};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::extract::{Extracted, Paths};

/// Events that a bucket keeps for watchers that resume.
const HISTORY_EVENTS: usize = 4096;
/// Bytes of object versions that a bucket's history may keep alive.
const HISTORY_BYTES: usize = 4 << 20;
/// Snapshots that continue tokens may refer to, per bucket, and for how long.
const SNAPSHOTS: usize = 32;
const SNAPSHOT_AGE: Duration = Duration::from_secs(300);

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
    /// Labels and the resource's selectable fields.
    pub(crate) extracted: Extracted,
}

impl Stored {
    pub(crate) fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub(crate) fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
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
    pub(crate) previous: Option<Arc<Stored>>,
    frame: OnceLock<Bytes>,
}

impl Event {
    /// The line that a plain watcher gets; built by the first one who asks.
    pub(crate) fn frame(&self) -> &Bytes {
        self.frame.get_or_init(|| frame(self.kind, &self.object.bytes))
    }
}

/// One line of a watch stream.
pub(crate) fn frame(kind: EventKind, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 32);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(kind.as_str().as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

/// An ordered, immutable view of a bucket; cloning is cheap.
pub(crate) type Objects = OrdMap<Arc<str>, Arc<Stored>>;

/// One resource.
pub(crate) struct Bucket {
    paths: ArcSwap<Paths>,
    state: RwLock<State>,
    /// The revision of the bucket's last event.
    changed: watch::Sender<u64>,
    snapshots: Mutex<VecDeque<(u64, Instant, Objects)>>,
}

#[derive(Default)]
struct State {
    objects: Objects,
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
    fn new(paths: Paths, floor: u64) -> Self {
        Self {
            paths: ArcSwap::from_pointee(paths),
            state: RwLock::new(State { floor, ..State::default() }),
            changed: watch::Sender::new(floor),
            snapshots: Mutex::default(),
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

    /// Wakes whenever the bucket gets a new event.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The events after `revision`, oldest first, up to `limit`.
    pub(crate) fn events_after(&self, revision: u64, limit: usize) -> Result<Vec<Arc<Event>>, TooOld> {
        let state = self.state.read();
        if revision < state.floor {
            return Err(TooOld { requested: revision, oldest: state.floor });
        }
        let start = state.history.partition_point(|event| event.revision <= revision);
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

    /// Keep a view for the continue tokens of a chunked list.
    pub(crate) fn pin(&self, revision: u64, objects: &Objects) {
        let mut snapshots = self.snapshots.lock();
        snapshots.retain(|(_, at, _)| at.elapsed() < SNAPSHOT_AGE);
        if snapshots.iter().any(|(pinned, _, _)| *pinned == revision) {
            return;
        }
        if snapshots.len() == SNAPSHOTS {
            snapshots.pop_front();
        }
        snapshots.push_back((revision, Instant::now(), objects.clone()));
    }

    /// The view that [`Bucket::pin`] kept, unless it has expired.
    pub(crate) fn pinned(&self, revision: u64) -> Option<Objects> {
        let mut snapshots = self.snapshots.lock();
        snapshots.retain(|(_, at, _)| at.elapsed() < SNAPSHOT_AGE);
        snapshots.iter().find(|(pinned, _, _)| *pinned == revision).map(|(_, _, objects)| objects.clone())
    }

    /// Everything is other than before, as of `revision`: who watches has to list anew.
    fn replace(&self, revision: u64, objects: Objects) {
        *self.state.write() = State { objects, floor: revision, ..State::default() };
        self.snapshots.lock().clear();
    }

    /// Ends all watches: every revision is too old from now on.
    fn close(&self) {
        self.state.write().floor = u64::MAX;
        self.changed.send_replace(u64::MAX);
    }

    fn extract_again(&self, paths: Paths) {
        self.paths.store(Arc::new(paths));
        let paths = self.paths.load();
        let mut state = self.state.write();
        let fresh = state.objects.iter().map(|(key, stored)| {
            let extracted = paths.extract(&stored.bytes);
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

    fn stored(&self, key: Arc<str>, entry: Entry) -> Stored {
        let extracted = self.paths.load().extract(&entry.bytes);
        Stored { key, bytes: entry.bytes, splice: entry.splice, modified: entry.modified, extracted }
    }

    fn apply(&self, key: &str, revision: u64, entry: Option<Entry>) {
        let fresh = entry.map(|entry| self.stored(key.into(), entry));
        let mut state = self.state.write();
        let event = match fresh {
            Some(stored) => {
                let object = Arc::new(stored);
                let previous = state.objects.insert(object.key.clone(), object.clone());
                let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
                Event { kind, revision, object, previous, frame: OnceLock::new() }
            }
            None => {
                let Some(previous) = state.objects.remove(key) else { return };
                let object = Arc::new(previous.at_revision(revision));
                Event {
                    kind: EventKind::Deleted,
                    revision,
                    object,
                    previous: Some(previous),
                    frame: OnceLock::new(),
                }
            }
        };
        state.history_bytes += event.object.bytes.len();
        state.history.push_back(Arc::new(event));
        while state.history.len() > HISTORY_EVENTS
            || (state.history_bytes > HISTORY_BYTES && state.history.len() > 1)
        {
            let Some(oldest) = state.history.pop_front() else { break };
            state.history_bytes -= oldest.object.bytes.len();
            state.floor = oldest.revision;
        }
    }
}

/// All buckets. The API server reads it, the store writes it.
pub(crate) struct Cache {
    buckets: RwLock<HashMap<Box<str>, Arc<Bucket>>>,
    paths: RwLock<HashMap<Box<str>, Paths>>,
    revision: AtomicU64,
    /// The revision of the last replacement of everything; a new bucket's history starts there.
    floor: AtomicU64,
}

impl Cache {
    /// `paths` says for each resource (storage key) which fields a field selector may name.
    pub(crate) fn new(paths: HashMap<Box<str>, Paths>) -> Self {
        Self {
            buckets: RwLock::default(),
            paths: RwLock::new(paths),
            revision: AtomicU64::new(0),
            floor: AtomicU64::new(0),
        }
    }

    /// The revision up to which every bucket is complete.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The bucket of a resource, made when it is not there yet.
    pub(crate) fn bucket(&self, resource: &str) -> Arc<Bucket> {
        if let Some(bucket) = self.buckets.read().get(resource) {
            return bucket.clone();
        }
        let mut buckets = self.buckets.write();
        let make = || {
            let paths = self.paths.read().get(resource).cloned().unwrap_or_default();
            Arc::new(Bucket::new(paths, self.floor.load(Ordering::Acquire)))
        };
        buckets.entry(resource.into()).or_insert_with(make).clone()
    }

    /// Says which fields of a custom resource selectors may name; objects that are there already are
    /// looked at again when that changes.
    pub(crate) fn define(&self, resource: &str, paths: Paths) {
        let before = self.paths.write().insert(resource.into(), paths.clone());
        let same = before.map_or(paths.is_empty(), |before| before == paths);
        let bucket = self.buckets.read().get(resource).cloned();
        if let Some(bucket) = bucket.filter(|_| !same) {
            bucket.extract_again(paths);
        }
    }

    /// Drops what is held for a resource that is no more.
    pub(crate) fn forget(&self, resource: &str) {
        self.paths.write().remove(resource);
        if let Some(bucket) = self.buckets.write().remove(resource) {
            bucket.close();
        }
    }

    /// Buckets and their numbers of objects.
    pub(crate) fn sizes(&self) -> Vec<(String, usize)> {
        self.buckets.read().iter().map(|(name, bucket)| (name.to_string(), bucket.len())).collect()
    }
}

fn split(key: &Key) -> (&str, &str) {
    key.split_once('/').unwrap_or((key, ""))
}

impl Observer for Cache {
    fn reset(&self, revision: u64, entries: &mut dyn Iterator<Item = (Key, Entry)>) {
        self.floor.store(revision, Ordering::Release);
        let mut loaded: HashMap<Box<str>, (Arc<Bucket>, Objects)> = HashMap::new();
        for (key, entry) in entries {
            let (resource, rest) = split(&key);
            if !loaded.contains_key(resource) {
                loaded.insert(resource.into(), (self.bucket(resource), Objects::new()));
            }
            if let Some((bucket, objects)) = loaded.get_mut(resource) {
                let stored = Arc::new(bucket.stored(rest.into(), entry));
                objects.insert(stored.key.clone(), stored);
            }
        }
        // A bucket that watchers hold stays the same one, or they would wait for ever.
        let buckets = self.buckets.read();
        for (name, bucket) in buckets.iter() {
            let objects = loaded.remove(name).map(|(_, objects)| objects).unwrap_or_default();
            bucket.replace(revision, objects);
        }
        self.revision.store(revision, Ordering::Release);
        for bucket in buckets.values() {
            bucket.changed.send_replace(revision);
        }
    }

    fn applied(&self, revision: u64, changes: &[Change]) {
        let mut touched: Vec<Arc<Bucket>> = Vec::with_capacity(1);
        for change in changes {
            let (resource, rest) = split(&change.key);
            let bucket = self.bucket(resource);
            bucket.apply(rest, revision, change.entry.clone());
            if !touched.iter().any(|known| Arc::ptr_eq(known, &bucket)) {
                touched.push(bucket);
            }
        }
        self.revision.store(revision, Ordering::Release);
        for bucket in touched {
            bucket.changed.send_replace(revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, splice: Option<u32>, revision: u64) -> Entry {
        Entry {
            bytes: Bytes::copy_from_slice(text.as_bytes()),
            splice,
            created: revision,
            modified: revision,
        }
    }

    fn put(cache: &Cache, key: &str, revision: u64) {
        let text = format!(r#"{{"metadata":{{"name":"a","resourceVersion":"{revision}"}}}}"#);
        let splice = text.find(&format!("\"{revision}\"")).map(|at| at as u32 + 1);
        let change = Change { key: key.into(), revision, entry: Some(entry(&text, splice, revision)) };
        cache.applied(revision, &[change]);
    }

    #[test]
    fn a_deleted_object_carries_the_revision_of_its_deletion() {
        let cache = Cache::new(HashMap::new());
        put(&cache, "pods/ns/a", 7);
        cache.applied(12, &[Change { key: "pods/ns/a".into(), revision: 12, entry: None }]);
        let events = cache.bucket("pods").events_after(7, 10).expect("still held");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].kind, EventKind::Deleted);
        let text = String::from_utf8(events[0].frame().to_vec()).expect("UTF-8");
        assert_eq!(
            text,
            "{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"12\"}}}\n"
        );
        assert_eq!(cache.bucket("pods").len(), 0);
    }

    #[test]
    fn a_watcher_that_is_too_far_behind_is_told_so() {
        let cache = Cache::new(HashMap::new());
        for revision in 1..=(HISTORY_EVENTS as u64 + 10) {
            put(&cache, "pods/ns/a", revision);
        }
        let bucket = cache.bucket("pods");
        assert_eq!(bucket.events_after(3, 1).expect_err("cut off"), TooOld { requested: 3, oldest: 10 });
        assert_eq!(
            bucket.events_after(10, 2).expect("held").iter().map(|e| e.revision).collect::<Vec<_>>(),
            [11, 12]
        );
    }

    #[test]
    fn after_a_reset_watchers_have_to_list_anew() {
        let cache = Cache::new(HashMap::new());
        put(&cache, "pods/ns/a", 1);
        put(&cache, "secrets/ns/s", 2);
        let (pods, secrets) = (cache.bucket("pods"), cache.bucket("secrets"));
        let mut watcher = secrets.subscribe();
        watcher.mark_unchanged();
        cache.reset(9, &mut [("pods/ns/b".into(), entry("{}", None, 9))].into_iter());
        assert!(watcher.has_changed().expect("the bucket lives"));
        assert_eq!((pods.len(), secrets.len()), (1, 0));
        assert!(pods.get("ns/b").is_some());
        assert_eq!(secrets.events_after(2, 1).expect_err("cut off"), TooOld { requested: 2, oldest: 9 });
        assert_eq!(cache.revision(), 9);
    }

    #[test]
    fn a_pinned_view_does_not_change() {
        let cache = Cache::new(HashMap::new());
        put(&cache, "pods/ns/a", 1);
        let bucket = cache.bucket("pods");
        bucket.pin(1, &bucket.objects());
        put(&cache, "pods/ns/b", 2);
        assert_eq!(bucket.pinned(1).expect("pinned").len(), 1);
        assert_eq!(bucket.objects().len(), 2);
        assert!(bucket.pinned(2).is_none());
    }
}
