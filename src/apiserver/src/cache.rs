//! The watch cache: every object's final bytes in memory, ordered, with the recent changes.
//!
//! It is the store's observer: whoever gets a commit acknowledged finds the cache up to date. A
//! bucket holds one resource. Watchers own no queue: each has a cursor into the bucket's ring of
//! recent events, so a slow one costs nothing and is cut off when the ring has moved on.

mod bucket;
mod derived;
mod pins;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kedge_store::{Change, Entry, Key, Observer};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

pub(crate) use self::bucket::{Bucket, Event, EventKind, Objects, Stored, TooOld, line};
pub(crate) use self::derived::Derived;
use crate::extract::Paths;
use crate::sealing::{KeyId, Sealing, Writing};

/// The bytes of object versions that all buckets' histories together may keep alive; then the oldest events go
/// first, wherever they are.
const HISTORY_TOTAL: usize = 8 << 20;
/// How much goes at once then: looking for the oldest costs a look at every bucket.
const HISTORY_STEP: usize = 1 << 20;
/// Events older than this leave, as etcd's compaction has it upstream: after a load memory comes back.
const HISTORY_AGE: Duration = Duration::from_secs(300);
/// How often age is looked at, on the next write: an idle node renews its Lease all the time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// All buckets. The API server reads it, the store writes it.
pub(crate) struct Cache {
    buckets: RwLock<HashMap<Box<str>, Arc<Bucket>>>,
    paths: RwLock<HashMap<Box<str>, Paths>>,
    revision: AtomicU64,
    /// Wakes who waits for a revision of the future.
    grown: Notify,
    /// The revision of the last replacement of everything; a new bucket's history starts there.
    floor: AtomicU64,
    /// The bytes of all histories.
    total: Arc<AtomicUsize>,
    /// Revisions and when they were reached, about one each [`SWEEP_INTERVAL`].
    marks: Mutex<VecDeque<(Instant, u64)>>,
    /// Reads what is stored encrypted.
    sealing: Sealing,
}

impl Cache {
    /// `paths` says for each resource (storage key) which fields a field selector may name.
    pub(crate) fn new(paths: HashMap<Box<str>, Paths>, sealing: Sealing) -> Self {
        Self {
            sealing,
            buckets: RwLock::default(),
            paths: RwLock::new(paths),
            revision: AtomicU64::new(0),
            grown: Notify::new(),
            floor: AtomicU64::new(0),
            total: Arc::default(),
            marks: Mutex::default(),
        }
    }

    /// The revision up to which every bucket is complete.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Returns when this revision is there.
    pub(crate) async fn reached(&self, revision: u64) {
        loop {
            let mut grown = std::pin::pin!(self.grown.notified());
            // From here on no growth is missed.
            grown.as_mut().enable();
            if self.revision() >= revision {
                return;
            }
            grown.await;
        }
    }

    /// The bucket of a resource, made when it is not there yet.
    pub(crate) fn bucket(&self, resource: &str) -> Arc<Bucket> {
        if let Some(bucket) = self.buckets.read().get(resource) {
            return bucket.clone();
        }
        let mut buckets = self.buckets.write();
        let make = || {
            let paths = self.paths.read().get(resource).cloned().unwrap_or_default();
            Arc::new(Bucket::new(paths, self.floor.load(Ordering::Acquire), self.total.clone()))
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
            bucket.shrink(|_, _| true);
        }
    }

    /// While there is too much history, the oldest events go.
    fn limit_history(&self) {
        while self.total.load(Ordering::Relaxed) > HISTORY_TOTAL {
            let buckets = self.buckets.read();
            let oldest = buckets.values().filter_map(|bucket| Some((bucket.oldest()?, bucket)));
            let Some((_, bucket)) = oldest.min_by_key(|(revision, _)| *revision) else { return };
            let bytes = bucket.history_bytes();
            let enough = bytes.saturating_sub(HISTORY_STEP).max(bucket::HISTORY_SHARE);
            bucket.shrink(|bytes, _| bytes > enough);
        }
    }

    /// Forgets what has become too old, now and then.
    fn age(&self, now: Instant, revision: u64) {
        let mut marks = self.marks.lock();
        if marks.back().is_some_and(|(at, _)| now.duration_since(*at) < SWEEP_INTERVAL) {
            return;
        }
        let mut old = None;
        while let Some((_, revision)) = marks.pop_front_if(|(at, _)| now.duration_since(*at) >= HISTORY_AGE) {
            old = Some(revision);
        }
        marks.push_back((now, revision));
        drop(marks);
        for bucket in self.buckets.read().values() {
            bucket.sweep(old.unwrap_or(0));
        }
    }

    /// The objects that are stored in another form than `writing` says.
    pub(crate) fn to_be_rewritten(&self, writing: &Writing) -> Vec<(Box<str>, Vec<Arc<Stored>>)> {
        let buckets = self.buckets.read();
        let of = |name: &str, bucket: &Bucket| {
            let wanted = writing.key.filter(|_| writing.resources.contains(name));
            // Most resources are never encrypted, and nothing of them is looked at.
            let objects = match wanted {
                None if bucket.sealed() == 0 => return None,
                wanted => bucket.sealed_otherwise(wanted),
            };
            (!objects.is_empty()).then(|| (name.into(), objects))
        };
        buckets.iter().filter_map(|(name, bucket)| of(name, bucket)).collect()
    }

    /// Of each resource that is, or is to be, encrypted: how many objects, and how many are.
    pub(crate) fn sealed(&self, writing: Option<&Writing>) -> Vec<(String, usize, usize)> {
        let wanted = |name: &str| writing.is_some_and(|writing| writing.resources.contains(name));
        let buckets = self.buckets.read();
        let mut found: Vec<(String, usize, usize)> = buckets
            .iter()
            .map(|(name, bucket)| (name.to_string(), bucket.len(), bucket.sealed()))
            .filter(|(name, _, sealed)| *sealed > 0 || wanted(name))
            .collect();
        found.sort_unstable();
        found
    }

    /// Buckets and their numbers of objects.
    pub(crate) fn sizes(&self) -> Vec<(String, usize)> {
        self.buckets.read().iter().map(|(name, bucket)| (name.to_string(), bucket.len())).collect()
    }
}

/// What a bucket gets when everything is replaced.
struct Loaded {
    bucket: Arc<Bucket>,
    objects: Objects,
    sealed: HashMap<Arc<str>, KeyId>,
}

fn split(key: &Key) -> (&str, &str) {
    key.split_once('/').unwrap_or((key, ""))
}

impl Observer for Cache {
    fn reset(&self, revision: u64, entries: &mut dyn Iterator<Item = (Key, Entry)>) {
        self.floor.store(revision, Ordering::Release);
        let mut loaded: HashMap<Box<str>, Loaded> = HashMap::new();
        for (key, entry) in entries {
            let Some((entry, id)) = self.sealing.open(&key, entry) else { continue };
            let (resource, rest) = split(&key);
            if !loaded.contains_key(resource) {
                let fresh =
                    Loaded { bucket: self.bucket(resource), objects: Objects::new(), sealed: HashMap::new() };
                loaded.insert(resource.into(), fresh);
            }
            if let Some(loaded) = loaded.get_mut(resource) {
                let stored = Arc::new(loaded.bucket.stored(rest.into(), entry));
                if let Some(id) = id {
                    loaded.sealed.insert(stored.key.clone(), id);
                }
                loaded.objects.insert(stored.key.clone(), stored);
            }
        }
        // A bucket that watchers hold stays the same one, or they would wait for ever.
        let buckets = self.buckets.read();
        for (name, bucket) in buckets.iter() {
            let (objects, sealed) =
                loaded.remove(name).map(|loaded| (loaded.objects, loaded.sealed)).unwrap_or_default();
            bucket.replace(revision, objects, sealed);
        }
        self.revision.store(revision, Ordering::Release);
        self.grown.notify_waiters();
        for bucket in buckets.values() {
            bucket.announce(revision);
        }
    }

    fn applied(&self, revision: u64, changes: &[Change]) {
        let mut touched: Vec<Arc<Bucket>> = Vec::with_capacity(1);
        for change in changes {
            let (resource, rest) = split(&change.key);
            let bucket = self.bucket(resource);
            let (entry, sealed) =
                match change.entry.clone().map(|entry| self.sealing.open(&change.key, entry)) {
                    // What cannot be read ends the process, which hears of it from `sealing`.
                    Some(None) => continue,
                    Some(Some((entry, sealed))) => (Some(entry), sealed),
                    None => (None, None),
                };
            bucket.apply(rest, revision, entry, sealed);
            if !touched.iter().any(|known| Arc::ptr_eq(known, &bucket)) {
                touched.push(bucket);
            }
        }
        self.revision.store(revision, Ordering::Release);
        self.grown.notify_waiters();
        for bucket in touched {
            bucket.announce(revision);
        }
        self.limit_history();
        self.age(Instant::now(), revision);
    }
}

#[cfg(test)]
mod tests;
