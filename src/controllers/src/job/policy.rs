//! When a Job has failed or succeeded (upstream controller/job: pod_failure_policy.go,
//! success_policy.go and the limits in job_controller.go). Pure.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, PodFailurePolicyOnExitCodesRequirement};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;
use crate::{pods, time};

/// What becomes of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finish {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Finish {
    fn new(success: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { success, reason: reason.to_owned(), message: message.into() }
    }

    pub(super) fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self::new(false, reason, message)
    }

    pub(super) fn completed() -> Self {
        Self::new(true, "CompletionsReached", "Reached expected number of succeeded pods")
    }

    /// The condition that says so before the last pod has ended, and the one after that.
    pub(super) fn types(&self) -> (&'static str, &'static str) {
        if self.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }
}

pub(super) fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn holds(job: &Job, kind: &str) -> bool {
    condition(job, kind).is_some_and(|condition| condition.status == "True")
}

/// Complete or Failed.
pub(crate) fn is_finished(job: &Job) -> bool {
    holds(job, "Complete") || holds(job, "Failed")
}

pub(super) fn spec(job: &Job) -> JobSpec {
    job.spec.clone().unwrap_or_default()
}

pub(super) fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend.unwrap_or(false)
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether a pod that is being deleted is replaced only when it has ended.
pub(super) fn replaces_only_failed(spec: &JobSpec) -> bool {
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

/// Whether the pod counts as failed. One that is being deleted may never get to say so.
pub(super) fn is_pod_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.metadata.deletion_timestamp.is_some() && !replaces_only_failed(spec),
    }
}

/// What the first matching rule of the failure policy says about a failed pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

fn container_matching<'a>(
    pod: &'a Pod,
    wanted: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a ContainerStatus, i32)> {
    let status = pod.status.as_ref()?;
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    all.filter(|container| wanted.container_name.as_ref().is_none_or(|name| *name == container.name))
        .find_map(|container| {
            let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
            let listed = wanted.values.contains(&code);
            let matches = match wanted.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            (code != 0 && matches).then_some((container, code))
        })
}

pub(super) fn judge(spec: &JobSpec, pod: &Pod) -> Verdict {
    let Some(policy) = &spec.pod_failure_policy else { return Verdict::Count };
    let key = kedge_client::ObjectKey::of(pod);
    for (index, rule) in policy.rules.iter().enumerate() {
        let action = &rule.action;
        let why = if let Some(wanted) = &rule.on_exit_codes {
            container_matching(pod, wanted).map(|(container, code)| {
                format!(
                    "Container {} for pod {key} failed with exit code {code} matching {action} rule at index {index}",
                    container.name
                )
            })
        } else {
            rule.on_pod_conditions.iter().flatten().find_map(|pattern| {
                let wanted = pattern.status.as_deref().unwrap_or("True");
                let found = pods::condition(pod, &pattern.type_)?;
                (found.status == wanted).then(|| {
                    format!(
                        "Pod {key} has condition {} matching {action} rule at index {index}",
                        pattern.type_
                    )
                })
            })
        };
        let Some(why) = why else { continue };
        return match action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailJob" => Verdict::FailJob(why),
            "FailIndex" if spec.backoff_limit_per_index.is_some() => Verdict::FailIndex,
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// Restarts in place count against the limit when the kubelet restarts containers.
fn restarts_exceed(spec: &JobSpec, pods: &[impl AsRef<Pod>]) -> bool {
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts: i32 = pods
        .iter()
        .map(AsRef::as_ref)
        .filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"))
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| {
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
        })
        .map(|container| container.restart_count)
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// How long the job may still be active: `None` without a deadline or while it is suspended.
pub(super) fn time_left(job: &Job, now: Timestamp) -> Option<std::time::Duration> {
    let spec = job.spec.as_ref()?;
    let started = job.status.as_ref()?.start_time.as_ref()?.0;
    let seconds = spec.active_deadline_seconds?;
    (!is_suspended(spec)).then(|| time::until(time::plus(started, seconds), now))
}

/// The limits of the whole job. A decision that was made before stands.
pub(super) fn limits(job: &Job, pods: &[impl AsRef<Pod>], failed: i32, now: Timestamp) -> Option<Finish> {
    for (kind, success) in [("SuccessCriteriaMet", true), ("FailureTarget", false)] {
        if let Some(made) = condition(job, kind).filter(|condition| condition.status == "True") {
            let reason = made.reason.as_deref().unwrap_or_default();
            return Some(Finish::new(success, reason, made.message.clone().unwrap_or_default()));
        }
    }
    let spec = spec(job);
    let broken = pods.iter().map(AsRef::as_ref).filter(|pod| is_pod_failed(&spec, pod)).find_map(|pod| {
        match judge(&spec, pod) {
            Verdict::FailJob(why) => Some(why),
            _ => None,
        }
    });
    if let Some(why) = broken {
        return Some(Finish::failed("PodFailurePolicy", why));
    }
    if failed > spec.backoff_limit.unwrap_or(6) || restarts_exceed(&spec, pods) {
        return Some(Finish::failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    if time_left(job, now).is_some_and(|left| left.is_zero()) {
        return Some(Finish::failed("DeadlineExceeded", "Job was active longer than specified deadline"));
    }
    None
}

/// What the failed and succeeded indexes of an indexed job mean for all of it.
pub(super) fn index_limits(spec: &JobSpec, succeeded: &Indexes, failed: &Indexes) -> Option<Finish> {
    let completions = spec.completions.unwrap_or(0);
    if spec.backoff_limit_per_index.is_some() {
        if spec.max_failed_indexes.is_some_and(|max| failed.total() > max) {
            return Some(Finish::failed(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            ));
        }
        if failed.total() > 0 && failed.total() + succeeded.total() >= completions {
            return Some(Finish::failed("FailedIndexes", "Job has failed indexes"));
        }
    }
    let rules = spec.success_policy.as_ref().map(|policy| policy.rules.as_slice()).unwrap_or_default();
    let met = rules.iter().position(|rule| {
        let listed = rule.succeeded_indexes.as_ref().map(|text| Indexes::parse(text, completions));
        let count = match &listed {
            Some(listed) => i32::try_from(listed.0.intersection(&succeeded.0).count()).unwrap_or(i32::MAX),
            None => succeeded.total(),
        };
        match (rule.succeeded_count, &listed) {
            (Some(wanted), _) => count >= wanted,
            (None, Some(listed)) => count == listed.total() && count > 0,
            (None, None) => false,
        }
    });
    met.map(|index| Finish::new(true, "SuccessPolicy", format!("Matched rules at index {index}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::at;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn job(spec: Value, status: Value) -> Job {
        let mut spec = spec;
        if spec["template"].is_null() {
            spec["template"] = json!({ "spec": { "containers": [] } });
        }
        serde_json::from_value(json!({ "spec": spec, "status": status })).expect("a job")
    }

    fn pod(status: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(
                json!({ "metadata": { "name": "p", "namespace": "ns" }, "status": status }),
            )
            .expect("a pod"),
        )
    }

    fn exited(container: &str, code: i32) -> Value {
        json!({ "phase": "Failed", "containerStatuses": [{ "name": container, "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": { "terminated": { "exitCode": code } } }] })
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policy = json!({ "backoffLimitPerIndex": 1, "podFailurePolicy": { "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget" }] },
            { "action": "FailJob", "onExitCodes": { "containerName": "main", "operator": "In", "values": [42] } },
            { "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [43] } },
            { "action": "FailJob", "onExitCodes": { "operator": "NotIn", "values": [1, 2, 42] } },
        ] } });
        let message = "Container other for pod ns/p failed with exit code 9 matching FailJob rule at index 3";
        let first = "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        let mut disrupted = exited("main", 42);
        disrupted["conditions"] = json!([{ "type": "DisruptionTarget", "status": "True" }]);
        for (status, expected) in [
            (exited("main", 42), Verdict::FailJob(first.into())),
            (exited("other", 42), Verdict::Count),
            (exited("other", 43), Verdict::FailIndex),
            (exited("main", 1), Verdict::Count),
            (exited("other", 9), Verdict::FailJob(message.into())),
            (exited("main", 0), Verdict::Count),
            (disrupted, Verdict::Ignore),
        ] {
            assert_eq!(
                judge(&spec(&job(policy.clone(), json!({}))), &pod(status.clone())),
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn limits_of_a_job() {
        let started = json!({ "startTime": "1970-01-01T00:00:10Z" });
        let restarted = |count: i32| {
            pod(json!({ "phase": "Running", "containerStatuses": [
                { "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": count }] }))
        };
        let in_place = json!({ "backoffLimit": 2, "template": { "spec": { "restartPolicy": "OnFailure", "containers": [] } } });
        for (spec, status, pods, failed, expected) in [
            (json!({ "backoffLimit": 1 }), json!({}), vec![], 1, None),
            (json!({ "backoffLimit": 1 }), json!({}), vec![], 2, Some("BackoffLimitExceeded")),
            (in_place.clone(), json!({}), vec![restarted(1)], 0, None),
            (in_place, json!({}), vec![restarted(1), restarted(1)], 0, Some("BackoffLimitExceeded")),
            (json!({ "activeDeadlineSeconds": 90 }), started.clone(), vec![], 0, Some("DeadlineExceeded")),
            (json!({ "activeDeadlineSeconds": 91 }), started.clone(), vec![], 0, None),
            (json!({ "activeDeadlineSeconds": 1, "suspend": true }), started, vec![], 0, None),
            (
                json!({}),
                json!({ "conditions": [{ "type": "FailureTarget", "status": "True", "reason": "Before" }] }),
                vec![],
                0,
                Some("Before"),
            ),
        ] {
            let job = job(spec.clone(), status);
            let finish = limits(&job, &pods, failed, at(100));
            assert_eq!(finish.as_ref().map(|finish| finish.reason.as_str()), expected, "{spec}");
        }
    }

    #[test]
    fn indexes_decide() {
        let set = |text: &str| Indexes::parse(text, 10);
        for (more, succeeded, failed, expected) in [
            (json!({}), "0-8", "", None),
            (json!({ "backoffLimitPerIndex": 1 }), "0-7", "8", None),
            (json!({ "backoffLimitPerIndex": 1 }), "0-8", "9", Some("FailedIndexes")),
            (
                json!({ "backoffLimitPerIndex": 1, "maxFailedIndexes": 1 }),
                "",
                "1,2",
                Some("MaxFailedIndexesExceeded"),
            ),
            (json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0-2" }] } }), "0,1", "", None),
            (
                json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0-2" }] } }),
                "0-2",
                "",
                Some("SuccessPolicy"),
            ),
            (
                json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0-2", "succeededCount": 1 }] } }),
                "2",
                "",
                Some("SuccessPolicy"),
            ),
            (
                json!({ "successPolicy": { "rules": [{ "succeededCount": 3 }] } }),
                "4,6,8",
                "",
                Some("SuccessPolicy"),
            ),
        ] {
            let mut spec_json = more.clone();
            spec_json["completions"] = json!(10);
            let job = job(spec_json, json!({}));
            let finish = index_limits(&spec(&job), &set(succeeded), &set(failed));
            assert_eq!(finish.as_ref().map(|finish| finish.reason.as_str()), expected, "{more}");
        }
    }
}
