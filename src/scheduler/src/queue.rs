//! Pods that wait for a node: ready ones by priority and time, ones that back off, and ones that
//! fit nowhere until something changes. Pure data structure; the caller passes the time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::framework::{ALL_EVENTS, Events};
use crate::pod::PodInfo;

const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// After this time an unschedulable pod is tried again whatever happened.
pub(crate) const FLUSH_AFTER: Duration = Duration::from_secs(5 * 60);

type Rank = (Reverse<i32>, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active(Rank),
    Backoff(Instant, u64),
    /// Until one of the events, or FLUSH_AFTER since then.
    Unschedulable(Events, Instant),
    /// Held by spec.schedulingGates.
    Gated,
    /// Taken out by [`Queue::pop`], not decided yet.
    Cycle,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    last_attempt: Instant,
}

/// The scheduling queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeMap<Rank, String>,
    backoff: BTreeMap<(Instant, u64), String>,
    unschedulable: usize,
    /// Union of the events that unschedulable pods wait for.
    wanted: Events,
    sequence: u64,
}

impl Queue {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn leave(&mut self, place: Place) {
        match place {
            Place::Active(rank) => {
                self.active.remove(&rank);
            }
            Place::Backoff(until, sequence) => {
                self.backoff.remove(&(until, sequence));
            }
            Place::Unschedulable(..) => {
                self.unschedulable -= 1;
                if self.unschedulable == 0 {
                    self.wanted = 0;
                }
            }
            Place::Gated | Place::Cycle => {}
        }
    }

    /// Moves a known pod; does nothing for an unknown one.
    fn put(&mut self, uid: &str, make: impl FnOnce(&PodInfo, u64) -> Place) {
        let sequence = self.next();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let before = entry.place;
        let place = make(&entry.pod, sequence);
        entry.place = place;
        self.leave(before);
        match place {
            Place::Active(rank) => {
                self.active.insert(rank, uid.to_owned());
            }
            Place::Backoff(until, sequence) => {
                self.backoff.insert((until, sequence), uid.to_owned());
            }
            Place::Unschedulable(events, _) => {
                self.unschedulable += 1;
                self.wanted |= events;
            }
            Place::Gated | Place::Cycle => {}
        }
    }

    fn activate(&mut self, uid: &str) {
        self.put(uid, |pod, sequence| Place::Active((Reverse(pod.priority), sequence)));
    }

    /// To the back-off queue, or straight to the active one when its back-off is over.
    fn retry(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get(uid) else { return };
        let until = entry.last_attempt + backoff(entry.attempts);
        if until <= now {
            self.activate(uid);
        } else {
            self.put(uid, |_, sequence| Place::Backoff(until, sequence));
        }
    }

    /// A pod appeared or changed. `changed` says whether the change can make it fit (anything but
    /// its status). `gated` pods wait for their next change.
    pub(crate) fn set(&mut self, pod: Arc<PodInfo>, gated: bool, changed: bool, now: Instant) {
        let uid = pod.uid.clone();
        let (place, known_priority) = match self.entries.get_mut(&uid) {
            Some(entry) => {
                let priority = entry.pod.priority;
                entry.pod = pod.clone();
                (Some(entry.place), priority)
            }
            None => (None, pod.priority),
        };
        match place {
            None => {
                let entry = Entry { pod, place: Place::Cycle, attempts: 0, last_attempt: now };
                self.entries.insert(uid.clone(), entry);
                if gated {
                    self.put(&uid, |_, _| Place::Gated);
                } else {
                    self.activate(&uid);
                }
            }
            Some(_) if gated => self.put(&uid, |_, _| Place::Gated),
            Some(Place::Gated) => self.activate(&uid),
            Some(Place::Unschedulable(..)) if changed => self.retry(&uid, now),
            Some(Place::Active(_)) if known_priority != pod.priority => self.activate(&uid),
            Some(_) => {}
        }
    }

    /// The pod was placed or deleted.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let entry = self.entries.remove(uid)?;
        self.leave(entry.place);
        Some(entry.pod)
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.entries.get(uid).map(|entry| &entry.pod)
    }

    /// The next pod to place: highest priority, then longest waiting. It stays known until it is
    /// removed or comes back by `failed` or `unschedulable`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.release(now);
        let (_, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::Cycle;
        entry.attempts += 1;
        entry.last_attempt = now;
        Some(entry.pod.clone())
    }

    /// Something went wrong that has nothing to do with the cluster's state: again after back-off.
    pub(crate) fn failed(&mut self, uid: &str, now: Instant) {
        self.retry(uid, now);
    }

    /// It fits nowhere until one of `events` happens.
    pub(crate) fn unschedulable(&mut self, uid: &str, events: Events, now: Instant) {
        self.put(uid, |_, _| Place::Unschedulable(events, now));
    }

    /// Something changed: those that wait for it are tried again.
    pub(crate) fn wake(&mut self, events: Events, now: Instant) {
        if self.unschedulable == 0 || self.wanted & events == 0 {
            return;
        }
        let mut woken: Vec<(u32, Instant, String)> = Vec::new();
        self.wanted = 0;
        for (uid, entry) in &self.entries {
            if let Place::Unschedulable(wanted, since) = entry.place {
                if wanted & events != 0 {
                    woken.push((entry.attempts, since, uid.clone()));
                } else {
                    self.wanted |= wanted;
                }
            }
        }
        woken.sort_by_key(|(_, since, _)| *since);
        for (_, _, uid) in woken {
            self.retry(&uid, now);
        }
    }

    /// Tries again what has been unschedulable for [`FLUSH_AFTER`].
    pub(crate) fn flush(&mut self, now: Instant) {
        let stale: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.place, Place::Unschedulable(_, since) if since + FLUSH_AFTER <= now))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in stale {
            self.retry(&uid, now);
        }
    }

    /// Pods whose back-off is over become active.
    fn release(&mut self, now: Instant) {
        while let Some((&(until, sequence), _)) = self.backoff.first_key_value() {
            if until > now {
                break;
            }
            if let Some(uid) = self.backoff.remove(&(until, sequence)) {
                self.activate(&uid);
            }
        }
    }

    /// Whether a pod can be popped without waiting.
    pub(crate) fn has_active(&self, now: Instant) -> bool {
        !self.active.is_empty() || self.backoff.first_key_value().is_some_and(|((until, _), _)| *until <= now)
    }

    /// When the next back-off ends.
    pub(crate) fn next_backoff(&self) -> Option<Instant> {
        self.backoff.first_key_value().map(|((until, _), _)| *until)
    }

    pub(crate) fn has_unschedulable(&self) -> bool {
        self.unschedulable > 0
    }

    /// Everything is tried again, e.g. after a node's pods expired.
    pub(crate) fn wake_all(&mut self, now: Instant) {
        self.wake(ALL_EVENTS, now);
    }
}

fn backoff(attempts: u32) -> Duration {
    let doubled = INITIAL_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(8));
    doubled.min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{NODE_ADDED, POD_DELETED};
    use crate::testing;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn name(pod: Option<Arc<PodInfo>>) -> Option<String> {
        pod.map(|pod| pod.name.clone())
    }

    #[test]
    fn priority_then_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 0), ("c", 10)] {
            queue.set(testing::pod(name).priority(priority).info(), false, true, now);
        }
        let order: Vec<_> = std::iter::from_fn(|| name(queue.pop(now))).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn unschedulable_pods_wait_for_their_event_and_back_off() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let pod = testing::pod("a").info();
        queue.set(pod.clone(), false, true, now);
        assert!(queue.pop(now).is_some());
        queue.unschedulable(&pod.uid, NODE_ADDED, now);
        queue.wake(POD_DELETED, now);
        assert!(queue.has_unschedulable() && queue.next_backoff().is_none());
        queue.wake(NODE_ADDED, now);
        assert_eq!(queue.next_backoff(), Some(now + second(1)));
        assert!(queue.pop(now).is_none());
        assert!(queue.has_active(now + second(1)));
        assert_eq!(name(queue.pop(now + second(1))).as_deref(), Some("a"));
        queue.unschedulable(&pod.uid, NODE_ADDED, now + second(1));
        queue.wake(NODE_ADDED, now + second(30));
        assert!(!queue.active.is_empty(), "the back-off is over");
    }

    #[test]
    fn a_change_of_the_pod_itself_moves_it_but_a_status_does_not() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let pod = testing::pod("a").info();
        queue.set(pod.clone(), false, true, now);
        queue.pop(now);
        queue.unschedulable(&pod.uid, NODE_ADDED, now);
        queue.set(pod.clone(), false, false, now);
        assert!(queue.has_unschedulable());
        queue.set(pod, false, true, now);
        assert!(!queue.has_unschedulable() && queue.next_backoff().is_some());
    }

    #[test]
    fn gates_hold_a_pod() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let pod = testing::pod("a").info();
        queue.set(pod.clone(), true, true, now);
        assert!(queue.pop(now).is_none());
        queue.wake_all(now);
        assert!(queue.pop(now).is_none());
        queue.set(pod, false, true, now);
        assert!(queue.pop(now).is_some());
    }

    #[test]
    fn failures_back_off_longer_and_longer() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let pod = testing::pod("a").info();
        queue.set(pod.clone(), false, true, now);
        let mut at = now;
        let mut delays = Vec::new();
        for _ in 0..6 {
            assert!(queue.pop(at).is_some());
            queue.failed(&pod.uid, at);
            let next = queue.next_backoff().expect("it backs off");
            delays.push(next.duration_since(at).as_secs());
            at = next;
        }
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn flush_and_remove() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let pod = testing::pod("a").info();
        queue.set(pod.clone(), false, true, now);
        queue.pop(now);
        queue.unschedulable(&pod.uid, NODE_ADDED, now);
        queue.flush(now + FLUSH_AFTER - second(1));
        assert!(queue.has_unschedulable());
        queue.flush(now + FLUSH_AFTER);
        assert!(queue.has_active(now + FLUSH_AFTER));
        assert!(queue.remove(&pod.uid).is_some());
        assert!(queue.pop(now + FLUSH_AFTER).is_none() && queue.get(&pod.uid).is_none());
    }
}
