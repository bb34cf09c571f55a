//! The status that a ReplicaSet should have (upstream replica_set_utils.go).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::kind::View;
use crate::{pods, time};

const FAILURE: &str = "ReplicaFailure";

/// `failure`: reason and text, when creating or deleting failed in this round.
pub(super) fn calculate(
    view: &View,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<(&'static str, &str)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let template_labels = view
        .template
        .as_ref()
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    let fully_labelled = count(&|pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    });
    let mut conditions = view.status.conditions.clone().unwrap_or_default();
    let known = conditions.iter().any(|condition| condition.type_ == FAILURE);
    match failure {
        Some((reason, text)) if !known => conditions.push(ReplicaSetCondition {
            type_: FAILURE.into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(text.into()),
            last_transition_time: Some(time::now()),
        }),
        None => conditions.retain(|condition| condition.type_ != FAILURE),
        Some(_) => {}
    }
    ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: pods::nonzero(fully_labelled),
        ready_replicas: pods::nonzero(count(&pods::is_ready)),
        available_replicas: pods::nonzero(count(&|pod| pods::is_available(pod, view.min_ready_seconds, now))),
        terminating_replicas: view.counts_terminating.then(|| i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: Some(view.generation),
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

/// Whether the API server must be told. A count that is missing is zero on the wire.
pub(super) fn differs(old: &ReplicaSetStatus, new: &ReplicaSetStatus) -> bool {
    let counts = |s: &ReplicaSetStatus| {
        [
            s.replicas,
            s.fully_labeled_replicas.unwrap_or(0),
            s.ready_replicas.unwrap_or(0),
            s.available_replicas.unwrap_or(0),
            s.terminating_replicas.unwrap_or(0),
        ]
    };
    counts(old) != counts(new)
        || old.observed_generation != new.observed_generation
        || old.conditions.as_deref().unwrap_or_default() != new.conditions.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{at, pod};
    use crate::replica_set::kind::Replicated;
    use k8s_openapi::api::apps::v1::ReplicaSet;

    #[test]
    fn counts_and_the_failure_condition() {
        let set = ReplicaSet::default();
        let mut view = set.view();
        view.min_ready_seconds = 10;
        let active: Vec<Arc<Pod>> = [
            pod("a", "n", "Running", Some(100)),
            pod("b", "n", "Running", Some(195)),
            pod("c", "n", "Pending", None),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let status = calculate(&view, &active, 1, Some(("FailedCreate", "quota")), at(200));
        assert_eq!(
            (status.replicas, status.ready_replicas, status.available_replicas, status.terminating_replicas),
            (3, Some(2), Some(1), Some(1))
        );
        let condition = &status.conditions.as_ref().expect("failed")[0];
        assert_eq!((condition.type_.as_str(), condition.message.as_deref()), (FAILURE, Some("quota")));
        assert!(differs(&view.status, &status));
        view.status = status.clone();
        let again = calculate(&view, &active, 1, Some(("FailedCreate", "other")), at(200));
        assert!(!differs(&status, &again), "the first failure stands");
        let healed = calculate(&view, &active, 1, None, at(200));
        assert!(differs(&status, &healed) && healed.conditions.is_none());
    }
}
