//! Events are deleted when they were not written for a while. Upstream gives each a lease in etcd; here one task looks
//! now and then, and sleeps while there are none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kedge_api::registry::Resource;
use kedge_store::{Check, CommitError, Condition, Key, Op, Store, Txn};
use serde::Deserialize;

use crate::cache::Stored;
use crate::state::State;
use crate::verbs::store_key;

const INTERVAL: Duration = Duration::from_secs(300);
/// So many are deleted by one transaction.
const AT_ONCE: usize = 256;

pub(crate) async fn run(state: Arc<State>) {
    let Some(events) = state.find("", "v1", "events") else { return };
    let bucket = state.cache.bucket(&events.storage_key);
    let mut changed = bucket.subscribe();
    let mut rounds = Rounds::new(Duration::from_secs(state.config.event_ttl_seconds));
    loop {
        if bucket.len() == 0 {
            if changed.changed().await.is_err() {
                return;
            }
            continue;
        }
        tokio::time::sleep(INTERVAL).await;
        rounds.begin(Instant::now(), state.cache.revision());
        expire(&state, &events, &rounds).await;
    }
}

/// How far the store was in the last rounds: an event's revision says when it was written.
struct Rounds {
    life: Duration,
    /// At the front the newest that is as old as an event may get, if there is one.
    past: VecDeque<(Instant, u64)>,
    now: Instant,
}

/// What is known of an event's age.
#[derive(Debug, PartialEq, Eq)]
enum Age {
    Young,
    Old,
    /// Written before the first round: only the event itself says when.
    Unknown,
}

impl Rounds {
    fn new(life: Duration) -> Self {
        Self { life, past: VecDeque::new(), now: Instant::now() }
    }

    fn begin(&mut self, now: Instant, revision: u64) {
        self.now = now;
        self.past.push_back((now, revision));
        while self.past.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= self.life) {
            self.past.pop_front();
        }
    }

    fn age(&self, modified: u64) -> Age {
        match self.past.front() {
            Some((_, revision)) if modified > *revision => Age::Young,
            Some((at, _)) if self.now.duration_since(*at) >= self.life => Age::Old,
            _ => Age::Unknown,
        }
    }
}

async fn expire(state: &State, events: &Resource, rounds: &Rounds) {
    let life = SignedDuration::try_from(rounds.life).unwrap_or(SignedDuration::MAX);
    let Ok(oldest) = Timestamp::now().checked_sub(life) else { return };
    let is_old = |stored: &Stored| match rounds.age(stored.modified) {
        Age::Young => false,
        Age::Old => true,
        Age::Unknown => last_seen(&stored.bytes).is_none_or(|seen| seen < oldest),
    };
    let objects = state.cache.bucket(&events.storage_key).objects();
    let old = objects.values().filter(|stored| is_old(stored));
    let old: Vec<(Key, u64)> = old.map(|stored| (store_key(events, &stored.key), stored.modified)).collect();
    for some in old.chunks(AT_ONCE) {
        if let Err(error) = delete(&state.store, some.to_vec()).await {
            tracing::debug!(%error, "old events not deleted");
            return;
        }
    }
}

/// Deletes what nobody has written since.
async fn delete(store: &Store, mut old: Vec<(Key, u64)>) -> Result<(), CommitError> {
    while !old.is_empty() {
        let condition =
            |(key, modified): &(Key, u64)| Condition { key: key.clone(), check: Check::At(*modified) };
        let txn = Txn {
            conditions: old.iter().map(condition).collect(),
            ops: old.iter().map(|(key, _)| Op::Delete { key: key.clone() }).collect(),
            lazy: true,
        };
        match store.commit(txn).await {
            Err(CommitError::Conflict { key: at, .. }) => old.retain(|(key, _)| *key != at),
            result => return result.map(drop),
        }
    }
    Ok(())
}

fn last_seen(bytes: &[u8]) -> Option<Timestamp> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Event {
        series: Option<Series>,
        last_timestamp: Option<String>,
        event_time: Option<String>,
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Series {
        last_observed_time: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        creation_timestamp: Option<String>,
    }
    let event: Event = serde_json::from_slice(bytes).ok()?;
    let series = event.series.and_then(|series| series.last_observed_time);
    [series, event.last_timestamp, event.event_time, event.metadata.creation_timestamp]
        .into_iter()
        .find_map(|text| text?.parse().ok())
}

#[cfg(test)]
mod tests {
    use kedge_base::Tasks;
    use kedge_store::{Change, Entry, Observer, Value};

    use super::*;

    #[test]
    fn an_event_is_as_old_as_its_last_sighting() {
        let at = |json: &str| last_seen(json.as_bytes()).map(|at| at.to_string());
        let json = r#"{"metadata":{"creationTimestamp":"2024-01-01T00:00:00Z"},"lastTimestamp":"2024-01-02T00:00:00Z"}"#;
        assert_eq!(at(json).as_deref(), Some("2024-01-02T00:00:00Z"));
        let json = r#"{"metadata":{"creationTimestamp":"2024-01-01T00:00:00Z"},"lastTimestamp":null}"#;
        assert_eq!(at(json).as_deref(), Some("2024-01-01T00:00:00Z"));
        let json =
            r#"{"metadata":{},"series":{"lastObservedTime":"2024-01-03T00:00:00.5Z"},"eventTime":null}"#;
        assert_eq!(at(json).as_deref(), Some("2024-01-03T00:00:00.5Z"));
        assert_eq!(at("{}"), None);
    }

    #[test]
    fn the_revision_tells_the_age_of_what_was_written_since_the_start() {
        let start = Instant::now();
        let mut rounds = Rounds::new(Duration::from_secs(3600));
        for round in 0..30 {
            rounds.begin(start + INTERVAL * round, 100 + u64::from(round));
            let oldest = rounds.age(100);
            assert_eq!(oldest, if round < 12 { Age::Unknown } else { Age::Old }, "round {round}");
            assert_eq!(rounds.age(101 + u64::from(round)), Age::Young);
            if round >= 12 {
                let written = 100 + u64::from(round) - 12;
                assert_eq!((rounds.age(written), rounds.age(written + 1)), (Age::Old, Age::Young));
                assert_eq!(rounds.past.len(), 13);
            }
        }
    }

    #[derive(Default)]
    struct Deleted(parking_lot::Mutex<Vec<Vec<String>>>);

    impl Observer for Deleted {
        fn reset(&self, _: u64, _: &mut dyn Iterator<Item = (Key, Entry)>) {}

        fn applied(&self, _: u64, changes: &[Change]) {
            let gone = changes.iter().filter(|change| change.entry.is_none());
            let gone: Vec<String> = gone.map(|change| change.key.to_string()).collect();
            if !gone.is_empty() {
                self.0.lock().push(gone);
            }
        }
    }

    #[tokio::test]
    async fn old_ones_go_together_and_those_that_were_written_again_stay() {
        let dir = tempfile::tempdir().expect("folder");
        let (tasks, deleted) = (Tasks::new("test"), Arc::new(Deleted::default()));
        let store = Store::open(kedge_store::Config::new(dir.path()), deleted.clone(), &tasks).await;
        let store = store.expect("the store opens");
        let put = async |name: &str| {
            let key: Key = format!("events/a/{name}").into();
            let value = Value { bytes: "{}".into(), splice: None };
            let ops = vec![Op::Put { key: key.clone(), value }];
            (key, store.commit(Txn { conditions: Vec::new(), ops, lazy: false }).await.expect("written"))
        };
        let old = vec![put("a").await, put("b").await, put("c").await];
        put("b").await;
        delete(&store, old).await.expect("deleted");
        let deleted = deleted.0.lock().clone();
        assert_eq!(deleted, [["events/a/a", "events/a/c"]]);
        assert!(tasks.shutdown(Duration::from_secs(60)).await.is_empty());
    }
}
