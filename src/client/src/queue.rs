//! The work queue of controllers: an item is in it at most once, is handled by one worker at a
//! time, and comes back after its handling when it was added meanwhile
//! (client-go `util/workqueue`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay after a failure (client-go `DefaultTypedControllerRateLimiter`).
const FIRST_DELAY: Duration = Duration::from_millis(5);
/// Longest delay after a failure; upstream's 1000 s.
const LONGEST_DELAY: Duration = Duration::from_secs(1000);

/// Clones share one queue.
pub struct Queue<T>(Arc<Shared<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// One permit per ready item or change of the earliest deadline.
    changed: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Waiting or being handled and to be handled again.
    dirty: HashSet<T>,
    processing: HashSet<T>,
    delayed: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                delayed: HashMap::new(),
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }))
    }

    /// Handle `item` as soon as a worker is free.
    pub fn add(&self, item: T) {
        let mut state = self.0.state.lock();
        state.delayed.remove(&item);
        state.enqueue(item);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Handle `item` after `delay`; an earlier deadline that it already has stays.
    pub fn add_after(&self, item: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(item);
        }
        let at = Instant::now() + delay;
        let mut state = self.0.state.lock();
        let entry = state.delayed.entry(item).or_insert(at);
        *entry = (*entry).min(at);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Handle `item` after a delay that doubles with each failure.
    pub fn add_rate_limited(&self, item: T) {
        let failures = {
            let mut state = self.0.state.lock();
            let failures = state.failures.entry(item.clone()).or_insert(0);
            *failures += 1;
            *failures - 1
        };
        let delay = FIRST_DELAY.saturating_mul(1 << failures.min(20)).min(LONGEST_DELAY);
        self.add_after(item, delay);
    }

    /// The item was handled well: its next failure waits only shortly.
    pub fn forget(&self, item: &T) {
        self.0.state.lock().failures.remove(item);
    }

    /// How often the item has failed since it was last forgotten.
    pub fn requeues(&self, item: &T) -> u32 {
        self.0.state.lock().failures.get(item).copied().unwrap_or(0)
    }

    /// How many items wait for a worker.
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    /// Whether no item waits for a worker.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next item; the caller says [`Queue::done`] when it has handled it.
    pub(crate) async fn next(&self) -> T {
        loop {
            let wait = {
                let mut state = self.0.state.lock();
                state.release_due();
                if let Some(item) = state.ready.pop_front() {
                    state.dirty.remove(&item);
                    state.processing.insert(item.clone());
                    // Another worker may have slept through the notification of the next item.
                    if !state.ready.is_empty() {
                        self.0.changed.notify_one();
                    }
                    return item;
                }
                state.delayed.values().min().copied()
            };
            match wait {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, self.0.changed.notified()).await;
                }
                None => self.0.changed.notified().await,
            }
        }
    }

    /// The item's handling ended; it is queued again when it was added meanwhile.
    pub(crate) fn done(&self, item: &T) {
        let mut state = self.0.state.lock();
        state.processing.remove(item);
        if state.dirty.contains(item) {
            state.ready.push_back(item.clone());
        }
        drop(state);
        self.0.changed.notify_one();
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn enqueue(&mut self, item: T) {
        if self.dirty.insert(item.clone()) && !self.processing.contains(&item) {
            self.ready.push_back(item);
        }
    }

    fn release_due(&mut self) {
        if self.delayed.is_empty() {
            return;
        }
        let now = Instant::now();
        let due: Vec<T> = self.delayed.iter().filter(|(_, at)| **at <= now).map(|(i, _)| i.clone()).collect();
        for item in due {
            self.delayed.remove(&item);
            self.enqueue(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_item_is_queued_once_and_again_when_added_while_handled() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        assert!(queue.is_empty());
        queue.add("a");
        assert!(queue.is_empty(), "one worker at a time");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_keep_the_earliest_and_failures_double() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(60));
        queue.add_after("late", Duration::from_secs(30));
        queue.add_after("late", Duration::from_secs(90));
        assert_eq!(queue.next().await, "late");
        assert_eq!(start.elapsed().as_secs(), 30);
        queue.done(&"late");
        for _ in 0..3 {
            queue.add_rate_limited("late");
            assert_eq!(queue.next().await, "late");
            queue.done(&"late");
        }
        assert_eq!(queue.requeues(&"late"), 3);
        assert_eq!((start.elapsed() - Duration::from_secs(30)).as_millis(), 5 + 10 + 20);
        queue.forget(&"late");
        assert_eq!(queue.requeues(&"late"), 0);
    }
}
