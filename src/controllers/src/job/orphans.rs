//! Takes the tracking finalizer off pods that no Job will count any more: their Job is gone or has
//! ended (upstream controller/job: syncOrphanPod).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kedge_client::{Error, Informer, ObjectKey, Queue};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::make::{FINALIZER, has_finalizer};
use super::policy::is_finished;
use crate::adoption::controller_of;
use crate::context::{Context, ignore_not_found};

pub(super) fn start(ctx: &Context, jobs: &Informer<Job>, all: &Informer<Pod>) {
    let queue: Queue<ObjectKey> = Queue::new();
    let (adder, known) = (queue.clone(), jobs.clone());
    ctx.on_change(all, move |change| {
        if let Some(pod) = &change.new
            && has_finalizer(pod)
            && !is_counted(&known, pod)
        {
            adder.add(change.key());
        }
    });
    let (adder, pods) = (queue.clone(), all.clone());
    ctx.on_change(jobs, move |change| {
        if change.new.as_ref().is_some_and(|job| !is_finished(job)) {
            return;
        }
        let uid = change.object().metadata.uid.clone().unwrap_or_default();
        for pod in pods.list_namespace(&change.key().namespace) {
            if has_finalizer(&pod) && crate::adoption::is_controlled_by(&pod.metadata, &uid) {
                adder.add(ObjectKey::of(&*pod));
            }
        }
    });
    let (jobs, all, ctx) = (jobs.clone(), all.clone(), ctx.clone());
    let (j, p) = (jobs.clone(), all.clone());
    let synced = async move {
        j.synced().await;
        p.synced().await;
    };
    ctx.clone().run("job-orphans", queue, 1, synced, move |key| {
        let (ctx, jobs, all) = (ctx.clone(), jobs.clone(), all.clone());
        async move { release(&ctx, &jobs, all.get_key(&key)).await }
    });
}

fn job_of(jobs: &Informer<Job>, pod: &Pod) -> Option<Arc<Job>> {
    let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job")?;
    let job = jobs.get(pod.metadata.namespace.as_deref().unwrap_or_default(), &owner.name)?;
    (job.metadata.uid.as_deref() == Some(owner.uid.as_str())).then_some(job)
}

/// Whether a Job that is at work will count the pod.
fn is_counted(jobs: &Informer<Job>, pod: &Pod) -> bool {
    job_of(jobs, pod).is_some_and(|job| !is_finished(&job))
}

async fn release(
    ctx: &Context,
    jobs: &Informer<Job>,
    pod: Option<Arc<Pod>>,
) -> Result<Option<Duration>, Error> {
    let Some(pod) = pod.filter(|pod| has_finalizer(pod)) else { return Ok(None) };
    if is_counted(jobs, &pod) {
        return Ok(None);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job") {
        // The pod may be known before its Job: only the server can say that there is none.
        let live = ctx.api::<Job>(namespace).get_opt(&owner.name).await?;
        let works = live.is_some_and(|job| {
            job.metadata.uid.as_deref() == Some(owner.uid.as_str())
                && !is_finished(&job)
                && job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_none_or(super::manages)
        });
        if works {
            return Ok(None);
        }
    }
    take_finalizer(ctx, &pod).await?;
    Ok(None)
}

/// Without it the pod can go.
pub(super) async fn take_finalizer(ctx: &Context, pod: &Pod) -> Result<(), kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({ "metadata": {
        "uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
    let result =
        ctx.api::<Pod>(namespace).patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    match result {
        // Another pod has the name now.
        Err(error) if kedge_client::is_conflict(&error) => Ok(()),
        result => ignore_not_found(result),
    }
}
