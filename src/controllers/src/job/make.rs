//! Which pods of a Job to create and delete, and what a new one looks like (upstream
//! controller/job: manageJob, firstPendingIndexes, activePodsForRemoval). Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kedge_base::Order as _;

use super::indexes::{self, INDEX, Indexes};
use super::policy::{self, Verdict, is_indexed};
use crate::adoption::owner_reference;
use crate::pod_control::pod_from_template;
use crate::pods;

/// Keeps a pod until its end has been counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

fn count(pod: &Pod, annotation: &str) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(annotation)).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// How often the pod's index has failed, counted and ignored, this pod included.
pub(super) fn failures_with(spec: &JobSpec, pod: &Pod) -> (i32, i32) {
    let (counted, ignored) = (count(pod, FAILURES), count(pod, IGNORED));
    match policy::judge(spec, pod) {
        Verdict::Ignore => (counted, ignored + 1),
        _ => (counted + 1, ignored),
    }
}

/// Whether this failed pod was its index's last chance.
pub(super) fn fails_index(spec: &JobSpec, pod: &Pod) -> bool {
    let Some(limit) = spec.backoff_limit_per_index else { return false };
    match policy::judge(spec, pod) {
        Verdict::Ignore => false,
        Verdict::FailIndex => true,
        _ => count(pod, FAILURES) >= limit,
    }
}

/// The failed pod of each index that may be tried again and has no new pod yet. It keeps its
/// finalizer until then: its successor is made from what it says.
pub(super) fn to_be_replaced(
    spec: &JobSpec,
    failed: &[Arc<Pod>],
    active: &[Arc<Pod>],
    succeeded: &Indexes,
    failed_indexes: &Indexes,
) -> HashMap<i32, Arc<Pod>> {
    let mut latest: HashMap<i32, Arc<Pod>> = HashMap::new();
    if spec.backoff_limit_per_index.is_none() {
        return latest;
    }
    let done: BTreeSet<i32> = active.iter().filter_map(|pod| indexes::of(pod)).collect();
    for pod in failed {
        let Some(index) = indexes::of(pod).filter(|index| *index < spec.completions.unwrap_or(0)) else {
            continue;
        };
        if done.contains(&index) || succeeded.has(index) || failed_indexes.has(index) {
            continue;
        }
        let newer =
            latest.get(&index).is_none_or(|other| failures_with(spec, pod) > failures_with(spec, other));
        if newer {
            latest.insert(index, pod.clone());
        }
    }
    latest
}

/// The lowest `count` indexes of which nothing is known yet.
pub(super) fn pending(count: usize, completions: i32, busy: &BTreeSet<i32>, done: &[&Indexes]) -> Vec<i32> {
    (0..completions)
        .filter(|index| !busy.contains(index) && done.iter().all(|set| !set.has(*index)))
        .take(count)
        .collect()
}

/// At least `count` pods to delete; of an indexed job also those whose index is out of range or
/// taken twice.
pub(super) fn surplus(spec: &JobSpec, active: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut order = active.to_vec();
    order.order_by(|a, b| pods::deletion_order((a, 0), (b, 0), now));
    if !is_indexed(spec) {
        order.truncate(count);
        return order;
    }
    let (mut surplus, mut kept, mut taken) = (Vec::new(), Vec::new(), BTreeSet::new());
    // The best of each index is the last in the order of deletion.
    for pod in order.into_iter().rev() {
        let index = indexes::of(&pod).filter(|index| *index < spec.completions.unwrap_or(0));
        match index {
            Some(index) if taken.insert(index) => kept.push(pod),
            _ => surplus.push(pod),
        }
    }
    while surplus.len() < count {
        let Some(pod) = kept.pop() else { break };
        surplus.push(pod);
    }
    surplus
}

/// A pod of the job, for an index when it is an indexed one, after `former` when that index failed.
pub(super) fn pod(job: &Job, index: Option<i32>, former: Option<&Pod>) -> Pod {
    let spec = policy::spec(job);
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod_from_template(&spec.template, namespace, &owner_reference(job));
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let Some(index) = index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations: &mut BTreeMap<_, _> = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (counted, ignored) = former.map_or((0, 0), |former| failures_with(&spec, former));
        annotations.insert(FAILURES.into(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED.into(), ignored.to_string());
        }
    }
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(format!("{name}-{index}"));
        for container in pod_spec.init_containers.iter_mut().flatten().chain(&mut pod_spec.containers) {
            add_variable(container);
        }
    }
    pod
}

fn add_variable(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.into(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{at, pod as some_pod};

    fn indexed(name: &str, index: &str, phase: &str, failures: i32) -> Arc<Pod> {
        let mut pod = some_pod(name, "n", phase, (phase == "Running").then_some(1));
        pod.metadata.annotations =
            Some([(INDEX.to_owned(), index.to_owned()), (FAILURES.to_owned(), failures.to_string())].into());
        Arc::new(pod)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        let mut names: Vec<_> = pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
        names.sort_unstable();
        names
    }

    fn spec(completions: i32) -> JobSpec {
        JobSpec {
            completion_mode: Some("Indexed".into()),
            completions: Some(completions),
            backoff_limit_per_index: Some(1),
            ..JobSpec::default()
        }
    }

    #[test]
    fn surplus_pods() {
        let pods = [
            indexed("a", "0", "Running", 0),
            indexed("b", "0", "Pending", 0),
            indexed("c", "1", "Pending", 0),
            indexed("d", "9", "Running", 0),
            indexed("e", "x", "Running", 0),
        ];
        for (count, expected) in [(0, vec!["b", "d", "e"]), (4, vec!["b", "c", "d", "e"])] {
            assert_eq!(names(&surplus(&spec(3), &pods, count, at(10))), expected, "{count}");
        }
        let plain = JobSpec { completion_mode: None, ..spec(3) };
        assert_eq!(surplus(&plain, &pods, 1, at(10)).len(), 1);
    }

    #[test]
    fn an_index_is_tried_again_from_its_last_pod() {
        let spec = spec(4);
        let failed = [
            indexed("a", "0", "Failed", 0),
            indexed("b", "0", "Failed", 1),
            indexed("c", "1", "Failed", 0),
            indexed("d", "2", "Failed", 0),
            indexed("e", "7", "Failed", 0),
        ];
        let active = [indexed("n", "2", "Running", 1)];
        let none = Indexes::default();
        let replaced = to_be_replaced(&spec, &failed, &active, &none, &none);
        let mut found: Vec<_> = replaced.iter().map(|(i, pod)| (*i, pod.metadata.name.as_deref())).collect();
        found.sort();
        assert_eq!(found, [(0, Some("b")), (1, Some("c"))]);
        assert!(fails_index(&spec, &failed[1]) && !fails_index(&spec, &failed[0]));
        assert_eq!(pending(2, 4, &BTreeSet::from([2]), &[&Indexes::parse("0", 4)]), [1, 3]);
    }

    #[test]
    fn an_indexed_pod_knows_its_index() {
        let job: Job = serde_json::from_value(
            serde_json::json!({ "metadata": { "name": "j", "namespace": "ns" }, "spec": {
            "completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 2,
            "template": { "spec": { "containers": [{ "name": "c" }] } } } }),
        )
        .expect("a job");
        let made = pod(&job, Some(2), Some(&indexed("f", "2", "Failed", 0)));
        assert!(has_finalizer(&made));
        let annotations = made.metadata.annotations.expect("annotations");
        assert_eq!((annotations[INDEX].as_str(), annotations[FAILURES].as_str()), ("2", "1"));
        assert_eq!(made.metadata.generate_name.as_deref(), Some("j-2-"));
        let spec = made.spec.expect("a spec");
        assert_eq!(spec.hostname.as_deref(), Some("j-2"));
        assert_eq!(spec.containers[0].env.as_ref().map(|env| env[0].name.as_str()), Some(INDEX_VARIABLE));
    }
}
