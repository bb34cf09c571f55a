use super::*;
use crate::fake::{World, run};
use k8s_openapi::api::batch::v1::JobStatus;
use serde_json::{Value, json};

fn world(spec: Value) -> (World, Job) {
    let world = World::new();
    let mut spec = spec;
    spec["selector"] = json!({ "matchLabels": { "job": "j" } });
    spec["template"] = json!({ "metadata": { "labels": { "job": "j" } },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "a" }] } });
    let job = world.create::<Job>(json!({ "metadata": { "name": "j", "namespace": "ns" }, "spec": spec }));
    start(&world.ctx);
    (world, job)
}

fn end(world: &World, pod: &Pod, phase: &str) {
    let code = i32::from(phase == "Failed");
    world.edit(pod, |pod| {
        pod["status"] = json!({ "phase": phase, "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": { "terminated": { "exitCode": code, "finishedAt": "2020-01-01T00:00:00Z" } } }] });
    });
}

fn running(world: &World) -> Vec<Pod> {
    let mut pods = world.list::<Pod>();
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none() && !crate::pods::is_finished(pod));
    pods
}

fn status(world: &World) -> JobStatus {
    world.get::<Job>("ns", "j").and_then(|job| job.status).unwrap_or_default()
}

fn has(world: &World, kind: &str, reason: &str) -> bool {
    let conditions = status(world).conditions.unwrap_or_default();
    conditions.iter().any(|c| c.type_ == kind && c.status == "True" && c.reason.as_deref() == Some(reason))
}

#[test]
fn a_job_completes_and_counts_each_pod_once() {
    run(async {
        let (world, _) = world(json!({ "completions": 3, "parallelism": 2 }));
        world.until("two pods", |w| running(w).len() == 2).await;
        assert_eq!(world.list::<Pod>()[0].metadata.finalizers, Some(vec![make::FINALIZER.to_owned()]));
        for pod in running(&world) {
            end(&world, &pod, "Succeeded");
        }
        world.until("the last pod", |w| running(w).len() == 1 && status(w).succeeded == Some(2)).await;
        end(&world, &running(&world)[0], "Succeeded");
        world.until("complete", |w| has(w, "Complete", "CompletionsReached")).await;
        let status = status(&world);
        assert_eq!((status.succeeded, status.failed, status.active), (Some(3), None, None));
        assert!(status.completion_time.is_some() && track::all_counted(&status));
        world.settle().await;
        let pods = world.list::<Pod>();
        assert!(pods.len() == 3 && pods.iter().all(|pod| !make::has_finalizer(pod)));
    });
}

#[test]
fn failures_above_the_limit_end_the_job_and_its_other_pods() {
    run(async {
        let (world, _) = world(json!({ "completions": 2, "parallelism": 2, "backoffLimit": 1 }));
        world.until("two pods", |w| running(w).len() == 2).await;
        end(&world, &running(&world)[0], "Failed");
        world.until("a new pod", |w| running(w).len() == 2 && status(w).failed == Some(1)).await;
        end(&world, &running(&world)[0], "Failed");
        world.until("failed", |w| has(w, "Failed", "BackoffLimitExceeded")).await;
        assert!(running(&world).is_empty() && has(&world, "FailureTarget", "BackoffLimitExceeded"));
        world.until("an event", |w| w.events().contains(&"BackoffLimitExceeded".to_owned())).await;
    });
}

#[test]
fn indexes_fail_on_their_own() {
    run(async {
        let (world, _) = world(
            json!({ "completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
            "backoffLimit": 100 }),
        );
        world.until("two pods", |w| running(w).len() == 2).await;
        let of = |w: &World, index: i32| running(w).into_iter().find(|pod| indexes::of(pod) == Some(index));
        end(&world, &of(&world, 1).expect("there"), "Succeeded");
        end(&world, &of(&world, 0).expect("there"), "Failed");
        world.until("another try", |w| of(w, 0).is_some()).await;
        end(&world, &of(&world, 0).expect("there"), "Failed");
        world.until("failed", |w| has(w, "Failed", "FailedIndexes")).await;
        let status = status(&world);
        assert_eq!(
            (status.completed_indexes.as_deref(), status.failed_indexes.as_deref()),
            (Some("1"), Some("0"))
        );
        assert_eq!(status.failed, Some(2));
    });
}

#[test]
fn a_suspended_job_has_no_pods_and_its_clock_starts_again() {
    run(async {
        let (world, job) = world(json!({ "suspend": true, "completions": 1, "parallelism": 1 }));
        world.until("suspended", |w| has(w, "Suspended", "JobSuspended")).await;
        assert!(running(&world).is_empty() && status(&world).start_time.is_none());
        world.edit(&job, |job| job["spec"]["suspend"] = json!(false));
        world.until("a pod", |w| running(w).len() == 1).await;
        assert!(status(&world).start_time.is_some());
        world.edit(&job, |job| job["spec"]["suspend"] = json!(true));
        world.until("no pod", |w| running(w).is_empty() && has(w, "Suspended", "JobSuspended")).await;
    });
}

#[test]
fn a_deadline_and_a_rule_end_a_job() {
    run(async {
        let (deadline, job) =
            world(json!({ "completions": 1, "parallelism": 1, "activeDeadlineSeconds": 60 }));
        deadline.until("a pod", |w| running(w).len() == 1).await;
        deadline.edit(&job, |job| job["status"]["startTime"] = json!("2020-01-01T00:00:00Z"));
        deadline.until("too late", |w| has(w, "Failed", "DeadlineExceeded")).await;
        let (rule, _) = world(json!({ "completions": 1, "parallelism": 1, "podFailurePolicy": { "rules": [
            { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [1] } }] } }));
        rule.until("a pod", |w| running(w).len() == 1).await;
        end(&rule, &running(&rule)[0], "Failed");
        rule.until("failed", |w| has(w, "Failed", "PodFailurePolicy")).await;
    });
}

#[test]
fn pods_of_a_deleted_job_are_let_go() {
    run(async {
        let (world, job) = world(json!({ "completions": 1, "parallelism": 1 }));
        world.until("a pod", |w| running(w).len() == 1).await;
        world.delete(&job);
        world.until("no finalizer", |w| w.list::<Pod>().iter().all(|pod| !make::has_finalizer(pod))).await;
    });
}
