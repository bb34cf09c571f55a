//! What a controller has asked for and not yet seen in its cache: until then it must not count,
//! or it would create and delete twice (upstream pkg/controller, ControllerExpectations).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use kedge_client::ObjectKey;
use parking_lot::Mutex;

/// After this time an event must have been missed; count again.
pub(crate) const EXPIRES: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<ObjectKey, Expected>>);

struct Expected {
    creations: usize,
    /// By uid: a pod's deletion is seen more than once.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// Whether the cache has caught up with what was asked for.
    pub(crate) fn satisfied(&self, key: &ObjectKey) -> bool {
        self.0.lock().get(key).is_none_or(|expected| {
            (expected.creations == 0 && expected.deletions.is_empty()) || expected.since.elapsed() > EXPIRES
        })
    }

    /// To be called before the requests are sent.
    pub(crate) fn expect(
        &self,
        key: &ObjectKey,
        creations: usize,
        deletions: impl IntoIterator<Item = String>,
    ) {
        let expected =
            Expected { creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.0.lock().insert(key.clone(), expected);
    }

    /// A creation was seen, or its request failed.
    pub(crate) fn created(&self, key: &ObjectKey) {
        if let Some(expected) = self.0.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    /// A deletion was seen, or its request failed.
    pub(crate) fn deleted(&self, key: &ObjectKey, uid: &str) {
        if let Some(expected) = self.0.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creations_and_deletions_must_be_seen() {
        let expectations = Expectations::default();
        let key = ObjectKey::new("ns", "rs");
        assert!(expectations.satisfied(&key), "nothing was asked for");
        expectations.expect(&key, 2, []);
        expectations.created(&key);
        assert!(!expectations.satisfied(&key));
        expectations.created(&key);
        assert!(expectations.satisfied(&key));
        expectations.created(&key);
        assert!(expectations.satisfied(&key), "more than expected is no debt");
        expectations.expect(&key, 0, ["a".to_owned(), "b".to_owned()]);
        expectations.deleted(&key, "a");
        expectations.deleted(&key, "a");
        assert!(!expectations.satisfied(&key), "one deletion seen twice is one deletion");
        expectations.deleted(&key, "b");
        assert!(expectations.satisfied(&key));
        expectations.expect(&key, 1, []);
        expectations.forget(&key);
        assert!(expectations.satisfied(&key));
    }
}
