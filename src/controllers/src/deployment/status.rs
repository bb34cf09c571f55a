//! The status of a Deployment and its conditions (upstream deployment_util.go and progress.go).

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::math::{available, max_unavailable, size, sum, wanted};
use crate::pods::nonzero;
use crate::time;

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const SET_UPDATED: &str = "ReplicaSetUpdated";

pub(super) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(time::now()),
        last_transition_time: Some(time::now()),
    }
}

pub(super) fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_deref()?.iter().find(|condition| condition.type_ == kind)
}

/// Put the condition in, unless there is one with the same status and reason. Whether it changed.
pub(super) fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) -> bool {
    if let Some(old) = find(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return false;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
    true
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// The largest number means "no deadline".
pub(super) fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|&seconds| seconds != i32::MAX)
}

/// Everything but the progress: counts, Available, and the conditions that were there.
pub(super) fn calculate(
    deployment: &Deployment,
    old: &[ReplicaSet],
    new: Option<&ReplicaSet>,
) -> DeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let all = || old.iter().chain(new);
    let available_now = sum(all(), available);
    let replicas = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let terminating: Option<i32> =
        all().map(|set| set.status.as_ref().and_then(|status| status.terminating_replicas)).sum();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(all(), replicas)),
        updated_replicas: nonzero(sum(new, replicas)),
        ready_replicas: nonzero(sum(all(), ready)),
        available_replicas: nonzero(available_now),
        unavailable_replicas: nonzero((sum(all(), size) - available_now).max(0)),
        terminating_replicas: terminating,
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let minimum = if available_now >= wanted(deployment) - max_unavailable(deployment) {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set(&mut status, minimum);
    status
}

/// Whether the rollout has reached what was asked for.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(wanted(deployment));
    let count = |value: Option<i32>| Some(value.unwrap_or(0));
    count(status.updated_replicas) == wanted
        && count(status.replicas) == wanted
        && count(status.available_replicas) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(progress)) = (deadline(deployment), find(status, PROGRESSING)) else {
        return false;
    };
    match progress.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => progress
            .last_update_time
            .as_ref()
            .is_some_and(|updated| time::plus(updated.0, i64::from(deadline)) < now),
    }
}

/// The status with the progress of a rollout and the failures of the sets.
pub(super) fn of_rollout(
    deployment: &Deployment,
    old: &[ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = calculate(deployment, old, new);
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let subject = match new.and_then(|set| set.metadata.name.as_deref()) {
        Some(set) => format!("ReplicaSet \"{set}\""),
        None => format!("Deployment \"{name}\""),
    };
    if deadline(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    } else {
        let current = find(&before, PROGRESSING);
        let was_complete = status.replicas == status.updated_replicas
            && current.is_some_and(|c| c.reason.as_deref() == Some(NEW_SET_AVAILABLE));
        if was_complete {
            // Nothing is being rolled out.
        } else if is_complete(deployment, &status) {
            let text = format!("{subject} has successfully progressed.");
            set(&mut status, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, text));
        } else if is_progressing(&before, &status) {
            let mut progress =
                condition(PROGRESSING, "True", SET_UPDATED, format!("{subject} is progressing."));
            if let Some(current) = current
                && current.status == "True"
            {
                progress.last_transition_time = current.last_transition_time.clone();
            }
            // Also with the same reason: the time of the last progress is what the deadline counts from.
            remove(&mut status, PROGRESSING);
            set(&mut status, progress);
        } else if has_timed_out(deployment, &status, now) {
            let text = format!("{subject} has timed out progressing.");
            set(&mut status, condition(PROGRESSING, "False", TIMED_OUT, text));
        }
    }
    match new.into_iter().chain(old).find_map(failure) {
        Some(failure) => {
            set(&mut status, failure);
        }
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

/// A set's failure as a Deployment's condition.
fn failure(set: &ReplicaSet) -> Option<DeploymentCondition> {
    let conditions = set.status.as_ref()?.conditions.as_deref()?;
    let failed = conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)?;
    Some(DeploymentCondition {
        type_: REPLICA_FAILURE.into(),
        status: failed.status.clone(),
        reason: failed.reason.clone(),
        message: failed.message.clone(),
        last_transition_time: failed.last_transition_time.clone(),
        last_update_time: failed.last_transition_time.clone(),
    })
}

/// When to look at a rollout again that has a deadline and stands still.
pub(super) fn next_check(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<std::time::Duration> {
    let seconds = deadline(deployment)?;
    let progress = find(status, PROGRESSING)?;
    if is_complete(deployment, status) || progress.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let updated = progress.last_update_time.as_ref()?;
    let left = time::until(time::plus(updated.0, i64::from(seconds)), now);
    Some(left + std::time::Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::at;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec, ReplicaSetStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn set_of(size: i32, available: i32) -> ReplicaSet {
        let mut set = ReplicaSet {
            spec: Some(ReplicaSetSpec { replicas: Some(size), ..ReplicaSetSpec::default() }),
            status: Some(ReplicaSetStatus {
                replicas: size,
                ready_replicas: Some(available),
                available_replicas: Some(available),
                ..ReplicaSetStatus::default()
            }),
            ..ReplicaSet::default()
        };
        set.metadata.name = Some("web-1".into());
        set
    }

    fn progress(status: &DeploymentStatus) -> (String, String) {
        let found = find(status, PROGRESSING).expect("progress");
        (found.status.clone(), found.reason.clone().unwrap_or_default())
    }

    #[test]
    fn a_rollout_progresses_times_out_and_completes() {
        let mut deployment = Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(2),
                progress_deadline_seconds: Some(60),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        deployment.metadata.generation = Some(1);
        let status = of_rollout(&deployment, &[], Some(&set_of(2, 0)), at(100));
        assert_eq!(progress(&status), ("True".into(), SET_UPDATED.into()));
        assert_eq!(find(&status, AVAILABLE).expect("there").status, "False");
        assert_eq!(status.unavailable_replicas, Some(2));
        deployment.status = Some(status);
        let conditions = deployment.status.as_mut().and_then(|s| s.conditions.as_mut()).expect("there");
        for condition in conditions.iter_mut() {
            condition.last_update_time = Some(Time(at(100)));
        }
        let waiting = of_rollout(&deployment, &[], Some(&set_of(2, 0)), at(150));
        assert_eq!(waiting, deployment.status.clone().expect("there"), "nothing new before the deadline");
        assert_eq!(next_check(&deployment, &waiting, at(150)), Some(std::time::Duration::from_secs(11)));
        let late = of_rollout(&deployment, &[], Some(&set_of(2, 0)), at(161));
        assert_eq!(progress(&late), ("False".into(), TIMED_OUT.into()));
        assert_eq!(next_check(&deployment, &late, at(161)), None);
        deployment.status = Some(late);
        let done = of_rollout(&deployment, &[], Some(&set_of(2, 2)), at(170));
        assert_eq!(progress(&done), ("True".into(), NEW_SET_AVAILABLE.into()));
        assert!(is_complete(&deployment, &done));
        assert_eq!(find(&done, AVAILABLE).expect("there").status, "True");
    }
}
