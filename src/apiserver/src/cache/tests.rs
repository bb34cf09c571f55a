use bytes::Bytes;

use super::bucket::{CHUNK_BYTES, CHUNKS, HISTORY_EVENTS, HISTORY_SHARE};
use super::*;

fn entry(text: &str, splice: Option<u32>, revision: u64) -> Entry {
    Entry { bytes: Bytes::copy_from_slice(text.as_bytes()), splice, created: revision, modified: revision }
}

fn put(cache: &Cache, key: &str, revision: u64) {
    let text = format!(r#"{{"metadata":{{"name":"a","resourceVersion":"{revision}"}}}}"#);
    let splice = text.find(&format!("\"{revision}\"")).map(|at| at as u32 + 1);
    let change = Change { key: key.into(), revision, entry: Some(entry(&text, splice, revision)) };
    cache.applied(revision, &[change]);
}

#[test]
fn a_deleted_object_carries_the_revision_of_its_deletion() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
    put(&cache, "pods/ns/a", 7);
    cache.applied(12, &[Change { key: "pods/ns/a".into(), revision: 12, entry: None }]);
    let events = cache.bucket("pods").events_after(7, 10).expect("still held");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, EventKind::Deleted);
    let mut text = Vec::new();
    line(&mut text, events[0].kind, &events[0].object.bytes);
    let text = String::from_utf8(text).expect("UTF-8");
    assert_eq!(
        text,
        "{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"12\"}}}\n"
    );
    assert_eq!(cache.bucket("pods").len(), 0);
}

#[test]
fn a_watcher_that_is_too_far_behind_is_told_so() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
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
    let cache = Cache::new(HashMap::new(), Sealing::default());
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
    let cache = Cache::new(HashMap::new(), Sealing::default());
    put(&cache, "pods/ns/a", 1);
    let bucket = cache.bucket("pods");
    let rest: Vec<_> = bucket.objects().values().cloned().collect();
    bucket.pin(1, "", &rest);
    put(&cache, "pods/ns/b", 2);
    assert_eq!(bucket.pinned(1, "").expect("pinned").len(), 1);
    assert_eq!(bucket.objects().len(), 2);
    assert!(bucket.pinned(2, "").is_none());
    assert!(bucket.pinned(1, "ns/").is_none());
    // The smaller rest does not take the larger one's place.
    bucket.pin(1, "", &[]);
    assert_eq!(bucket.pinned(1, "").expect("pinned").len(), 1);
}

fn put_large(cache: &Cache, key: &str, revision: u64) {
    let text = format!(r#"{{"metadata":{{"name":"a"}},"x":"{}"}}"#, "x".repeat(64 << 10));
    let change = Change { key: key.into(), revision, entry: Some(entry(&text, None, revision)) };
    cache.applied(revision, &[change]);
}

#[test]
fn all_histories_together_are_bounded_and_the_oldest_events_go_first() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
    let mut revision = 0;
    for resource in ["a", "b", "c", "d"] {
        for _ in 0..60 {
            revision += 1;
            put_large(&cache, &format!("{resource}/ns/x"), revision);
        }
    }
    assert!(cache.total.load(Ordering::Relaxed) <= HISTORY_TOTAL);
    let bytes = |name: &str| cache.bucket(name).history_bytes();
    let sum: usize = ["a", "b", "c", "d"].into_iter().map(bytes).sum();
    assert_eq!(sum, cache.total.load(Ordering::Relaxed));
    assert!(bytes("a") <= HISTORY_SHARE + (65 << 10) && bytes("d") > (3 << 20));
    assert!(cache.bucket("a").events_after(1, 10).is_err());
    assert!(cache.bucket("d").events_after(200, 10).is_ok());
}

#[test]
fn old_events_leave_when_time_has_passed() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
    let start = Instant::now();
    put(&cache, "pods/ns/a", 1);
    put(&cache, "pods/ns/b", 2);
    let minutes = |minutes: u64| start + Duration::from_secs(minutes * 60 + 30);
    put(&cache, "leases/ns/l", 3);
    cache.age(minutes(2), 3);
    assert!(cache.bucket("pods").events_after(0, 10).is_ok());
    cache.age(minutes(8), 3);
    assert_eq!(cache.bucket("pods").events_after(0, 10).expect_err("old").oldest, 2);
    assert_eq!(cache.bucket("pods").events_after(2, 10).expect("nothing new").len(), 0);
    assert_eq!(cache.total.load(Ordering::Relaxed), 0);
}

#[test]
fn watchers_at_the_same_place_share_their_lines() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
    let bucket = cache.bucket("pods");
    let _watchers = (bucket.subscribe(), bucket.subscribe());
    put(&cache, "pods/ns/a", 1);
    put(&cache, "pods/other/b", 2);
    let first = bucket.chunk_after(0, "ns/").expect("held").expect("an event");
    put(&cache, "pods/ns/a", 3);
    let second = bucket.chunk_after(0, "ns/").expect("held").expect("the same");
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!((first.to, first.newest), (2, true));
    assert_eq!(first.lines.iter().filter(|byte| **byte == b'\n').count(), 1);
    let all = bucket.chunk_after(0, "").expect("held").expect("all namespaces");
    assert_eq!((all.to, all.lines.iter().filter(|byte| **byte == b'\n').count()), (3, 3));
    assert!(bucket.chunk_after(3, "ns/").expect("held").is_none());
}

#[test]
fn watchers_of_several_kinds_do_not_take_each_others_lines_away() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
    let bucket = cache.bucket("pods");
    let _watchers = (bucket.subscribe(), bucket.subscribe());
    put(&cache, "pods/ns/a", 1);
    let take = |from, prefix| bucket.chunk_after(from, prefix).expect("held").expect("an event");
    let own = take(0, "ns/");
    let all = take(0, "");
    put(&cache, "pods/ns/a", 2);
    let late = take(1, "ns/");
    assert!(Arc::ptr_eq(&own, &take(0, "ns/")) && Arc::ptr_eq(&all, &take(0, "")));
    assert!(Arc::ptr_eq(&late, &take(1, "ns/")));
    for revision in 3..20 {
        put(&cache, "pods/ns/a", revision);
        take(revision - 1, "ns/");
    }
    assert_eq!(bucket.kept_chunks(), CHUNKS);
    // What is not kept any more is built anew, with all that has come since.
    assert_eq!(take(0, "ns/").to, 19);
}

#[test]
fn a_chunk_stays_below_its_limit_unless_a_line_is_larger() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
    let bucket = cache.bucket("pods");
    for revision in 1..=7 {
        let size = if revision == 7 { CHUNK_BYTES } else { CHUNK_BYTES / 3 - 20 };
        let text = format!(r#"{{"x":"{}"}}"#, "x".repeat(size));
        let change = Change { key: "pods/ns/a".into(), revision, entry: Some(entry(&text, None, revision)) };
        cache.applied(revision, &[change]);
    }
    let mut from = 0;
    let mut sizes = Vec::new();
    while let Some(chunk) = bucket.chunk_after(from, "ns/").expect("held") {
        let lines = chunk.lines.iter().filter(|byte| **byte == b'\n').count();
        sizes.push((lines, chunk.lines.len() <= CHUNK_BYTES));
        assert_eq!(chunk.newest, chunk.to == 7);
        from = chunk.to;
    }
    assert_eq!(sizes, [(2, true), (2, true), (2, true), (1, false)]);
}

#[test]
fn what_is_made_from_buckets_is_made_anew_when_one_changes() {
    let cache = Cache::new(HashMap::new(), Sealing::default());
    let derived = Derived::default();
    let made = std::cell::Cell::new(0);
    let count = || {
        let make = || {
            made.set(made.get() + 1);
            cache.bucket("pods").len() + cache.bucket("nodes").len()
        };
        (*derived.get(&cache, ["pods", "nodes"], make), made.get())
    };
    assert_eq!(derived.last(), None);
    assert_eq!([count(), count()], [(0, 1), (0, 1)]);
    put(&cache, "nodes//a", 1);
    assert_eq!(derived.last().as_deref(), Some(&0));
    assert_eq!([count(), count()], [(1, 2), (1, 2)]);
    put(&cache, "secrets/ns/s", 2);
    assert_eq!(count(), (1, 2), "that is not of its buckets");
    put(&cache, "pods/ns/a", 3);
    assert_eq!(count(), (2, 3));
}
