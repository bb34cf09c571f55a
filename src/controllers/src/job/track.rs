//! Counting the pods that have ended, each exactly once: uids go into
//! `status.uncountedTerminatedPods`, then the finalizer is taken off, then the numbers grow
//! (KEP-2307; upstream controller/job: trackJobStatusAndRemoveFinalizers). Pure.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use kedge_base::Order as _;

use super::indexes::{self, Indexes};
use super::policy::{self, Finish, Verdict, is_indexed, is_pod_failed};
use crate::pods;

/// At most so many uids stand in a status.
const MAX_UNCOUNTED: usize = 500;

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn has(list: Option<&Vec<String>>, uid: &str) -> bool {
    list.is_some_and(|list| list.iter().any(|known| known == uid))
}

pub(super) fn is_uncounted(status: &JobStatus, uid: &str) -> (bool, bool) {
    let lists = status.uncounted_terminated_pods.as_ref();
    (
        has(lists.and_then(|lists| lists.succeeded.as_ref()), uid),
        has(lists.and_then(|lists| lists.failed.as_ref()), uid),
    )
}

/// What of a pod's end is not in the status yet.
pub(super) struct Ended<'a> {
    pub(super) succeeded: Vec<&'a Pod>,
    pub(super) failed: Vec<&'a Pod>,
}

/// Among `tracked` (pods with the finalizer).
pub(super) fn ended<'a>(spec: &JobSpec, status: &JobStatus, tracked: &'a [Arc<Pod>]) -> Ended<'a> {
    let mut ended = Ended { succeeded: Vec::new(), failed: Vec::new() };
    for pod in tracked {
        if is_uncounted(status, uid(pod)) != (false, false) {
            continue;
        }
        if pods::phase(pod) == "Succeeded" {
            ended.succeeded.push(pod);
        } else if is_pod_failed(spec, pod) {
            ended.failed.push(pod);
        }
    }
    ended
}

/// Whether a failed pod counts.
pub(super) fn counts(spec: &JobSpec, pod: &Pod) -> bool {
    policy::judge(spec, pod) != Verdict::Ignore
}

/// Those listed whose finalizer is gone are counted now. Returns whether there were any.
pub(super) fn count_released(status: &mut JobStatus, with_finalizer: &HashSet<String>) -> bool {
    let lists = status.uncounted_terminated_pods.get_or_insert_default();
    let release = |list: &mut Option<Vec<String>>| {
        let before = list.as_ref().map_or(0, Vec::len);
        let kept: Vec<String> =
            list.take().into_iter().flatten().filter(|uid| with_finalizer.contains(uid)).collect();
        let released = before - kept.len();
        *list = (!kept.is_empty()).then_some(kept);
        i32::try_from(released).unwrap_or(i32::MAX)
    };
    let (succeeded, failed) = (release(&mut lists.succeeded), release(&mut lists.failed));
    status.succeeded = pods::nonzero(status.succeeded.unwrap_or(0) + succeeded);
    status.failed = pods::nonzero(status.failed.unwrap_or(0) + failed);
    succeeded + failed > 0
}

/// What a round of counting found.
pub(super) struct Round {
    /// The finalizer can go once the status is written.
    pub(super) release: Vec<Arc<Pod>>,
    /// There are more to count.
    pub(super) full: bool,
    pub(super) changed: bool,
}

/// List the pods that have ended in the job's status. `keep` says which pods keep their finalizer
/// although they have failed.
pub(super) fn list_ended(
    job: &mut Job,
    tracked: &[Arc<Pod>],
    finish: Option<&Finish>,
    keep: impl Fn(&Pod) -> bool,
) -> Round {
    let spec = policy::spec(job);
    let indexed = is_indexed(&spec);
    let completions = spec.completions.unwrap_or(0);
    let going = job.metadata.deletion_timestamp.is_some();
    let failing = finish.is_some_and(|finish| !finish.success);
    let status = job.status.get_or_insert_default();
    let mut round = Round { release: Vec::new(), full: false, changed: false };
    let mut done = Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
    let mut listed = status.uncounted_terminated_pods.get_or_insert_default().clone();
    let mut new_indexes = 0;
    let mut order: Vec<_> = tracked.iter().collect();
    order.order_by_key(|pod| indexes::of(pod));
    for pod in order {
        let failed = is_pod_failed(&spec, pod);
        let succeeded = pods::phase(pod) == "Succeeded";
        if !(going || failed || succeeded) || (keep(pod) && !going) {
            continue;
        }
        round.release.push(pod.clone());
        let (known_good, known_bad) =
            (has(listed.succeeded.as_ref(), uid(pod)), has(listed.failed.as_ref(), uid(pod)));
        let index = indexes::of(pod).filter(|index| *index < completions);
        if succeeded && !known_bad {
            if indexed {
                if index.is_some_and(|index| done.0.insert(index)) {
                    new_indexes += 1;
                    round.changed = true;
                }
            } else if !known_good {
                listed.succeeded.get_or_insert_default().push(uid(pod).to_owned());
                round.changed = true;
            }
        } else if (failed || failing)
            && !known_bad
            && !known_good
            && (!indexed || index.is_some())
            && counts(&spec, pod)
        {
            listed.failed.get_or_insert_default().push(uid(pod).to_owned());
            round.changed = true;
        }
        let size = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        if new_indexes + size(&listed.succeeded) + size(&listed.failed) >= MAX_UNCOUNTED {
            round.full = true;
            break;
        }
    }
    if indexed {
        let text = done.to_string();
        status.succeeded = pods::nonzero(done.total());
        let text = (!text.is_empty()).then_some(text);
        round.changed |=
            status.completed_indexes.as_deref().unwrap_or_default() != text.as_deref().unwrap_or_default();
        status.completed_indexes = text;
    }
    status.uncounted_terminated_pods = Some(listed);
    round
}

/// Whether everything that ended has been counted.
pub(super) fn all_counted(status: &JobStatus) -> bool {
    let empty = UncountedTerminatedPods::default();
    let lists = status.uncounted_terminated_pods.as_ref().unwrap_or(&empty);
    lists.succeeded.as_ref().is_none_or(Vec::is_empty) && lists.failed.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::super::make::FINALIZER;
    use super::*;
    use crate::pods::tests::pod;
    use serde_json::json;

    fn ending(name: &str, phase: &str, index: Option<i32>) -> Arc<Pod> {
        let mut pod = pod(name, "n", phase, None);
        pod.metadata.finalizers = Some(vec![FINALIZER.into()]);
        pod.metadata.annotations = index.map(|index| [(indexes::INDEX.to_owned(), index.to_string())].into());
        Arc::new(pod)
    }

    #[test]
    fn each_end_is_counted_once() {
        let mut job: Job =
            serde_json::from_value(json!({ "spec": { "completions": 2, "template": {} } })).expect("a job");
        let pods =
            [ending("a", "Succeeded", None), ending("b", "Failed", None), ending("c", "Running", None)];
        let round = list_ended(&mut job, &pods, None, |_| false);
        assert_eq!((round.release.len(), round.changed), (2, true));
        let round = list_ended(&mut job, &pods, None, |_| false);
        assert_eq!((round.release.len(), round.changed), (2, false), "listed already");
        let status = job.status.as_mut().expect("a status");
        assert!(!count_released(status, &HashSet::from(["a".to_owned(), "b".to_owned()])), "still held");
        assert!(count_released(status, &HashSet::from(["b".to_owned()])));
        assert_eq!((status.succeeded, status.failed, all_counted(status)), (Some(1), None, false));
        assert!(count_released(status, &HashSet::new()));
        assert_eq!((status.succeeded, status.failed, all_counted(status)), (Some(1), Some(1), true));
    }

    #[test]
    fn indexes_are_counted_by_number() {
        let mut job: Job = serde_json::from_value(json!({
            "spec": { "completions": 3, "completionMode": "Indexed", "template": {} }, "status": { "completedIndexes": "0" } }))
        .expect("a job");
        let pods = [
            ending("a", "Succeeded", Some(2)),
            ending("b", "Succeeded", Some(0)),
            ending("c", "Succeeded", Some(7)),
            ending("d", "Failed", Some(1)),
            ending("e", "Failed", Some(9)),
        ];
        let round = list_ended(&mut job, &pods, None, |pod| uid(pod) == "d");
        assert_eq!((round.release.len(), round.changed), (4, true));
        let status = job.status.expect("a status");
        assert_eq!((status.completed_indexes.as_deref(), status.succeeded), (Some("0,2"), Some(2)));
        assert_eq!(is_uncounted(&status, "e"), (false, false), "no such index");
    }
}
