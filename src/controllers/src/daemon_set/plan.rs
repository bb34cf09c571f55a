//! What to create and delete for a DaemonSet, and its counts (upstream controller/daemon:
//! podsShouldBeOnNode, rollingUpdate, updateDaemonSetStatus). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_base::Order as _;

use super::nodes::{should_run, target_node};
use crate::history::REVISION_LABEL;
use crate::percent::resolve;
use crate::pods::{self, is_available};

/// A DaemonSet, its pods by node, and the revision that pods should have.
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) pods: BTreeMap<String, Vec<Arc<Pod>>>,
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Names of nodes.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Failed and succeeded pods: deleted too, but a failed one not too often.
    pub(super) finished: Vec<(String, Arc<Pod>)>,
}

/// The pods by the node they run on or wait for, oldest first; scheduled ones before others.
pub(super) fn by_node(pods: Vec<Arc<Pod>>) -> BTreeMap<String, Vec<Arc<Pod>>> {
    let mut map: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = target_node(&pod) {
            map.entry(node.to_owned()).or_default().push(pod);
        }
    }
    for pods in map.values_mut() {
        pods.order_by_key(|pod| {
            (
                pods::node_name(pod).is_empty(),
                pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
                pod.metadata.name.clone(),
            )
        });
    }
    map
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

impl View<'_> {
    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL));
        !self.hash.is_empty() && label.is_some_and(|label| label == self.hash)
    }

    fn available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready(), self.now)
    }

    /// How many may be too many and too few during an update.
    fn limits(&self) -> (usize, usize) {
        let desired = self.nodes.iter().filter(|node| should_run(node, self.set).0).count();
        let desired = i32::try_from(desired).unwrap_or(i32::MAX);
        let rolling = self
            .set
            .spec
            .as_ref()
            .and_then(|spec| spec.update_strategy.as_ref())
            .and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), desired, true);
        let mut unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), desired, true);
        if desired > 0 && surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        (usize::try_from(surge).unwrap_or(0), usize::try_from(unavailable).unwrap_or(0))
    }

    pub(super) fn is_rolling(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    fn surges(&self) -> bool {
        self.is_rolling() && self.limits().0 > 0
    }

    /// A daemon where one should be, none where none should be.
    pub(super) fn manage(&self) -> Work {
        let surges = self.surges();
        let mut work = Work::default();
        for node in self.nodes {
            let (run, stay) = should_run(node, self.set);
            let there = self.pods.get(name(node)).map(Vec::as_slice).unwrap_or_default();
            if run && there.is_empty() {
                work.create.push(name(node).to_owned());
            } else if stay {
                self.keep_one(name(node), there, run, surges, &mut work);
            } else {
                work.delete.extend(there.iter().filter(|pod| is_staying(pod)).cloned());
            }
        }
        // Pods that wait for a node that is gone: the scheduler will never place them, and the pod
        // garbage collector does not see them.
        for (node, there) in &self.pods {
            if !self.nodes.iter().any(|known| name(known) == node) {
                let waiting = there.iter().filter(|pod| pods::node_name(pod).is_empty() && is_staying(pod));
                work.delete.extend(waiting.cloned());
            }
        }
        work
    }

    fn keep_one(&self, node: &str, there: &[Arc<Pod>], run: bool, surges: bool, work: &mut Work) {
        let mut running = Vec::new();
        for pod in there.iter().filter(|pod| is_staying(pod)) {
            if pods::is_finished(pod) {
                work.finished.push((node.to_owned(), pod.clone()));
            } else {
                running.push(pod);
            }
        }
        if !surges {
            work.delete.extend(running.into_iter().skip(1).cloned());
            return;
        }
        if running.is_empty() && run {
            // Surging: a pod that goes does not count any more.
            work.create.push(node.to_owned());
            return;
        }
        if running.len() <= 1 {
            return;
        }
        // An old and a new one may be there together while the old one works and the new one does
        // not yet.
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| self.is_updated(pod));
        work.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| (*pod).clone()));
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (!pods::is_ready(old) || self.available(new))
        {
            work.delete.push((*old).clone());
        }
    }

    /// The new and the old pod of a node; `None` when there is more than one of either.
    fn pair<'p>(&self, there: &'p [Arc<Pod>]) -> Option<(Option<&'p Arc<Pod>>, Option<&'p Arc<Pod>>)> {
        let (mut new, mut old) = (None, None);
        for pod in there.iter().filter(|pod| is_staying(pod)) {
            let place = if self.is_updated(pod) { &mut new } else { &mut old };
            if place.replace(pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// The next step of a rolling update.
    pub(super) fn roll(&self) -> Work {
        let (max_surge, max_unavailable) = self.limits();
        if max_surge > 0 { self.roll_surging(max_surge) } else { self.roll_in_place(max_unavailable) }
    }

    fn roll_in_place(&self, max_unavailable: usize) -> Work {
        let (mut unavailable, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
        for there in self.pods.values() {
            match self.pair(there) {
                // Managing will create or delete something there.
                None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
                Some((Some(new), None)) => unavailable += usize::from(!self.available(new)),
                Some((None, Some(old))) if !self.available(old) => {
                    broken.push(old.clone());
                    unavailable += 1;
                }
                Some((None, Some(old))) => candidates.push(old.clone()),
            }
        }
        candidates.truncate(max_unavailable.saturating_sub(unavailable));
        broken.extend(candidates);
        Work { delete: broken, ..Work::default() }
    }

    fn roll_surging(&self, max_surge: usize) -> Work {
        let (mut surging, mut work, mut candidates) = (0, Work::default(), Vec::new());
        for (node, there) in &self.pods {
            match self.pair(there) {
                None => surging += 1,
                Some((_, None)) => {}
                Some((None, Some(old))) => {
                    let known = self.nodes.iter().find(|known| name(known) == node);
                    if !known.is_some_and(|known| should_run(known, self.set).0) {
                        continue;
                    }
                    if self.available(old) {
                        candidates.push(node.clone());
                    } else {
                        work.create.push(node.clone());
                    }
                }
                Some((Some(new), Some(old))) => {
                    if !self.available(old) || self.available(new) {
                        work.delete.push(old.clone());
                    } else {
                        surging += 1;
                    }
                }
            }
        }
        candidates.truncate(max_surge.saturating_sub(surging));
        work.create.extend(candidates);
        work
    }

    pub(super) fn status(&self, old: &DaemonSetStatus, collisions: Option<i32>) -> DaemonSetStatus {
        let (mut desired, mut current, mut wrong, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
        for node in self.nodes {
            let first = self.pods.get(name(node)).and_then(|pods| pods.first());
            match (should_run(node, self.set).0, first) {
                (true, first) => {
                    desired += 1;
                    let Some(pod) = first else { continue };
                    current += 1;
                    if pods::is_ready(pod) {
                        ready += 1;
                        available += i32::from(self.available(pod));
                    }
                    updated += i32::from(self.is_updated(pod));
                }
                (false, Some(_)) => wrong += 1,
                (false, None) => {}
            }
        }
        DaemonSetStatus {
            collision_count: collisions,
            conditions: old.conditions.clone(),
            current_number_scheduled: current,
            desired_number_scheduled: desired,
            number_available: pods::nonzero(available),
            number_misscheduled: wrong,
            number_ready: ready,
            number_unavailable: pods::nonzero(desired - available),
            observed_generation: self.set.metadata.generation,
            updated_number_scheduled: pods::nonzero(updated),
        }
    }
}

fn is_staying(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{at, pod};
    use serde_json::json;

    /// Node, name, new or old template, phase, ready since.
    type Row<'a> = (&'a str, &'a str, bool, &'a str, Option<i64>);

    fn view(
        surge: i32,
        unavailable: i32,
        nodes: &[&str],
        rows: &[Row<'_>],
    ) -> (DaemonSet, Vec<Arc<Node>>, Vec<Arc<Pod>>) {
        let set = serde_json::from_value(json!({ "spec": {
            "selector": {}, "template": { "spec": { "containers": [] } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } },
        } }))
        .expect("a set");
        let nodes = nodes.iter().map(|name| {
            Arc::new(serde_json::from_value(json!({ "metadata": { "name": name } })).expect("a node"))
        });
        let pods = rows.iter().map(|(node, name, new, phase, ready)| {
            let mut pod = pod(name, node, phase, *ready);
            pod.metadata.labels =
                Some([(REVISION_LABEL.to_owned(), if *new { "new" } else { "old" }.to_owned())].into());
            Arc::new(pod)
        });
        (set, nodes.collect(), pods.collect())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
    }

    #[test]
    fn pods_that_are_missing_or_too_many() {
        for (what, surge, nodes, rows, create, delete, finished) in [
            ("missing", 0, vec!["a", "b"], vec![("a", "p", true, "Running", Some(1))], vec!["b"], vec![], 0),
            (
                "two on a node",
                0,
                vec!["a"],
                vec![("a", "p", true, "Running", Some(1)), ("a", "q", true, "Running", Some(1))],
                vec![],
                vec!["q"],
                0,
            ),
            ("failed", 0, vec!["a"], vec![("a", "p", true, "Failed", None)], vec![], vec![], 1),
            ("failed, surging", 1, vec!["a"], vec![("a", "p", true, "Failed", None)], vec!["a"], vec![], 1),
            (
                "old works, new does not yet",
                1,
                vec!["a"],
                vec![("a", "o", false, "Running", Some(1)), ("a", "p", true, "Running", None)],
                vec![],
                vec![],
                0,
            ),
            (
                "new works",
                1,
                vec!["a"],
                vec![("a", "o", false, "Running", Some(1)), ("a", "p", true, "Running", Some(1))],
                vec![],
                vec!["o"],
                0,
            ),
            (
                "old is broken",
                1,
                vec!["a"],
                vec![("a", "o", false, "Running", None), ("a", "p", true, "Running", None)],
                vec![],
                vec!["o"],
                0,
            ),
        ] {
            let (set, nodes, pods) = view(surge, 1 - surge, &nodes, &rows);
            let view = View { set: &set, nodes: &nodes, pods: by_node(pods), hash: "new", now: at(100) };
            let work = view.manage();
            assert_eq!(
                (work.create, names(&work.delete), work.finished.len()),
                (create.iter().map(|n| (*n).to_owned()).collect(), delete, finished),
                "{what}"
            );
        }
    }

    #[test]
    fn a_rolling_update_keeps_its_limits() {
        let old = |node, name, ready| (node, name, false, "Running", ready);
        let new = |node, name, ready| (node, name, true, "Running", ready);
        for (what, surge, unavailable, rows, create, delete) in [
            ("one at a time", 0, 1, vec![old("a", "p", Some(1)), old("b", "q", Some(1))], vec![], vec!["p"]),
            (
                "two at a time",
                0,
                2,
                vec![old("a", "p", Some(1)), old("b", "q", Some(1))],
                vec![],
                vec!["p", "q"],
            ),
            (
                "the new one is not ready",
                0,
                1,
                vec![new("a", "p", None), old("b", "q", Some(1))],
                vec![],
                vec![],
            ),
            (
                "broken ones always go",
                0,
                1,
                vec![new("a", "p", None), old("b", "q", None)],
                vec![],
                vec!["q"],
            ),
            (
                "neither given: one",
                0,
                0,
                vec![old("a", "p", Some(1)), old("b", "q", Some(1))],
                vec![],
                vec!["p"],
            ),
            ("surge", 1, 0, vec![old("a", "p", Some(1)), old("b", "q", Some(1))], vec!["a"], vec![]),
            (
                "surge waits",
                1,
                0,
                vec![old("a", "p", Some(1)), new("a", "r", None), old("b", "q", Some(1))],
                vec![],
                vec![],
            ),
            (
                "surge goes on",
                1,
                0,
                vec![old("a", "p", Some(1)), new("a", "r", Some(2)), old("b", "q", Some(1))],
                vec!["b"],
                vec!["p"],
            ),
            ("done", 0, 1, vec![new("a", "p", Some(1)), new("b", "q", Some(1))], vec![], vec![]),
        ] {
            let (set, nodes, pods) = view(surge, unavailable, &["a", "b"], &rows);
            let view = View { set: &set, nodes: &nodes, pods: by_node(pods), hash: "new", now: at(100) };
            let work = view.roll();
            assert_eq!(
                (work.create, names(&work.delete)),
                (create.iter().map(|n: &&str| (*n).to_owned()).collect(), delete),
                "{what}"
            );
        }
    }

    #[test]
    fn counts() {
        let (set, nodes, pods) = view(
            0,
            1,
            &["a", "b", "c"],
            &[("a", "p", true, "Running", Some(1)), ("b", "q", false, "Running", None)],
        );
        let view = View { set: &set, nodes: &nodes, pods: by_node(pods), hash: "new", now: at(100) };
        let status = view.status(&DaemonSetStatus::default(), None);
        assert_eq!(
            (status.desired_number_scheduled, status.current_number_scheduled, status.number_ready),
            (3, 2, 1)
        );
        assert_eq!(
            (status.number_available, status.number_unavailable, status.updated_number_scheduled),
            (Some(1), Some(2), Some(1))
        );
    }
}
