//! Deletes Jobs some time after they have ended, when they say so
//! (`spec.ttlSecondsAfterFinished`; upstream pkg/controller/ttlafterfinished).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kedge_client::{Error, Informer, ObjectKey, Queue};
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};

use crate::context::{Context, ignore_not_found};
use crate::time;

pub(crate) fn start(ctx: &Context) {
    let jobs = ctx.informers.informer::<Job>();
    let queue: Queue<ObjectKey> = Queue::new();
    let adder = queue.clone();
    ctx.on_change(&jobs, move |change| {
        if change.new.as_ref().is_some_and(|job| expires(job).is_some()) {
            adder.add(change.key());
        }
    });
    let (ctx, ready) = (ctx.clone(), jobs.clone());
    let synced = async move { ready.synced().await };
    ctx.clone().run("ttl-after-finished", queue, 1, synced, move |key| {
        let (ctx, jobs) = (ctx.clone(), jobs.clone());
        async move { reconcile(&ctx, &jobs, &key).await }
    });
}

/// When the job is to be deleted, if it has ended and is ever to be.
fn expires(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ended = job.status.as_ref()?.conditions.iter().flatten().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })?;
    Some(time::plus(ended.last_transition_time.as_ref()?.0, i64::from(ttl)))
}

async fn reconcile(ctx: &Context, jobs: &Informer<Job>, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let due = |job: &Job| expires(job).map(|at| time::until(at, Timestamp::now()));
    match jobs.get_key(key).and_then(|job| due(&job)) {
        None => return Ok(None),
        Some(left) if !left.is_zero() => return Ok(Some(left)),
        Some(_) => {}
    }
    // Somebody may have asked for more time a moment ago.
    let api = ctx.api::<Job>(&key.namespace);
    let Some(live) = api.get_opt(&key.name).await? else { return Ok(None) };
    match due(&live) {
        None => return Ok(None),
        Some(left) if !left.is_zero() => return Ok(Some(left)),
        Some(_) => {}
    }
    let params =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() }
            .preconditions(Preconditions {
                uid: live.metadata.uid,
                resource_version: live.metadata.resource_version,
            });
    ignore_not_found(api.delete(&key.name, &params).await)?;
    tracing::info!(job = %key, "job deleted, its time after the end is over");
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};
    use serde_json::json;

    #[test]
    fn only_ended_jobs_with_a_ttl_go() {
        run(async {
            let world = World::new();
            let make = |name: &str, ttl: Option<i32>, condition: &str, at: &str| {
                world.create::<Job>(json!({ "metadata": { "name": name, "namespace": "ns" },
                    "spec": { "ttlSecondsAfterFinished": ttl, "template": {} },
                    "status": { "conditions": [{ "type": condition, "status": "True", "lastTransitionTime": at }] } }));
            };
            make("old", Some(10), "Complete", "2020-01-01T00:00:00Z");
            make("failed", Some(0), "Failed", "2020-01-01T00:00:00Z");
            make("later", Some(10), "Complete", "2999-01-01T00:00:00Z");
            make("kept", None, "Complete", "2020-01-01T00:00:00Z");
            make("running", Some(0), "Suspended", "2020-01-01T00:00:00Z");
            start(&world.ctx);
            world.until("two gone", |w| w.list::<Job>().len() == 3).await;
            world.settle().await;
            let names: Vec<_> = world.list::<Job>().into_iter().filter_map(|job| job.metadata.name).collect();
            assert_eq!(names, ["kept", "later", "running"]);
        });
    }
}
