//! The work queue of controllers: an item is in it at most once, is handled by one worker at a
//! time, and comes back after its handling when it was added meanwhile
//! (client-go `util/workqueue`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
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
    /// Deadlines and the numbers that tell equal ones apart.
    delayed: HashMap<T, (Instant, u64)>,
    /// The same, the earliest first.
    deadlines: BTreeMap<(Instant, u64), T>,
    last_number: u64,
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
                deadlines: BTreeMap::new(),
                last_number: 0,
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }))
    }

    /// Handle `item` as soon as a worker is free.
    pub fn add(&self, item: T) {
        let mut state = self.0.state.lock();
        state.no_longer_delayed(&item);
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
        // Whoever waits for the earliest deadline learns of an earlier one only.
        if self.0.state.lock().delay(item, at) {
            self.0.changed.notify_one();
        }
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
                    // Another worker may have slept through the notification of the next item, or knows
                    // nothing of the deadline that comes next.
                    if !state.ready.is_empty() || !state.deadlines.is_empty() {
                        self.0.changed.notify_one();
                    }
                    return item;
                }
                state.earliest()
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

    /// Keeps the earlier deadline; true when it is the earliest of all.
    fn delay(&mut self, item: T, at: Instant) -> bool {
        if self.delayed.get(&item).is_some_and(|(known, _)| *known <= at) {
            return false;
        }
        self.no_longer_delayed(&item);
        self.last_number += 1;
        let deadline = (at, self.last_number);
        self.delayed.insert(item.clone(), deadline);
        self.deadlines.insert(deadline, item);
        self.earliest() == Some(at)
    }

    fn no_longer_delayed(&mut self, item: &T) {
        if let Some(deadline) = self.delayed.remove(item) {
            self.deadlines.remove(&deadline);
        }
    }

    fn earliest(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    fn release_due(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(first) = self.deadlines.first_entry().filter(|first| first.key().0 <= now) {
            let item = first.remove();
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

    #[tokio::test(start_paused = true)]
    async fn deadlines_pass_in_order_whoever_is_busy() {
        let queue = Queue::new();
        let start = Instant::now();
        let taken = Arc::new(Mutex::new(Vec::new()));
        // Each worker takes one item and is busy with it for ever.
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (queue, taken) = (queue.clone(), taken.clone());
                async move {
                    let item = queue.next().await;
                    taken.lock().push((item, start.elapsed().as_secs()));
                }
            })
            .collect();
        let orders = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for (item, seconds) in
                [("d", 60), ("b", 20), ("x", 5), ("c", 40), ("a", 10), ("a", 30), ("d", 50)]
            {
                queue.add_after(item, Duration::from_secs(seconds - 1));
            }
            queue.add("x");
            let mut state = queue.0.state.lock();
            assert_eq!((state.delayed.len(), state.deadlines.len()), (4, 4), "one deadline an item");
            state.ready.clear();
            state.dirty.clear();
        };
        futures::join!(futures::future::join_all(workers), orders);
        assert_eq!(*taken.lock(), [("a", 10), ("b", 20), ("c", 40), ("d", 50)]);
        assert_eq!(queue.0.state.lock().deadlines.len(), 0);
    }
}
