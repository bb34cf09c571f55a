//! Events are deleted when they are old. Upstream gives each a lease in etcd; here one task looks
//! at the oldest now and then, and sleeps while there are none.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kedge_api::registry::Resource;
use serde_json::Value;

use crate::authn::User;
use crate::state::State;
use crate::verbs::delete::Deletion;
use crate::verbs::options::DeleteOptions;

const INTERVAL: Duration = Duration::from_secs(300);

pub(crate) async fn run(state: Arc<State>) {
    let Some(events) = state.find("", "v1", "events") else { return };
    let bucket = state.cache.bucket(&events.storage_key);
    let mut changed = bucket.subscribe();
    loop {
        if bucket.len() == 0 {
            if changed.changed().await.is_err() {
                return;
            }
            continue;
        }
        tokio::time::sleep(INTERVAL).await;
        expire(&state, &events).await;
    }
}

async fn expire(state: &Arc<State>, events: &Arc<Resource>) {
    let life = i64::try_from(state.config.event_ttl_seconds).unwrap_or(i64::MAX);
    let Ok(oldest) = Timestamp::now().checked_sub(SignedDuration::from_secs(life)) else { return };
    let user = User::component("system:apiserver");
    let deletion = Deletion { state, user: &user, resource: events };
    for stored in state.cache.bucket(&events.storage_key).objects().values() {
        if last_seen(&stored.bytes).is_none_or(|seen| seen < oldest)
            && let Err(status) =
                deletion.run(stored.namespace(), stored.name(), &DeleteOptions::default()).await
        {
            tracing::debug!(event = %stored.key, %status, "old event not deleted");
        }
    }
}

fn last_seen(bytes: &[u8]) -> Option<Timestamp> {
    let event: Value = serde_json::from_slice(bytes).ok()?;
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .iter()
        .find_map(|path| event.pointer(path)?.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_as_old_as_its_last_sighting() {
        let at = |json: &str| last_seen(json.as_bytes()).map(|at| at.to_string());
        let json = r#"{"metadata":{"creationTimestamp":"2024-01-01T00:00:00Z"},"lastTimestamp":"2024-01-02T00:00:00Z"}"#;
        assert_eq!(at(json).as_deref(), Some("2024-01-02T00:00:00Z"));
        let json = r#"{"metadata":{"creationTimestamp":"2024-01-01T00:00:00Z"},"lastTimestamp":null}"#;
        assert_eq!(at(json).as_deref(), Some("2024-01-01T00:00:00Z"));
        assert_eq!(at("{}"), None);
    }
}
