//! Job: pods that run to their end, counted (upstream pkg/controller/job). Limits and policies are in
//! `policy`, pods to make in `make`, the counting in `track`; here are the requests.

mod backoff;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod indexes;
mod make;
mod orphans;
mod policy;
mod sync;
mod track;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kedge_client::{Informer, ObjectKey, Queue, Recorder, selector_matches};
use parking_lot::Mutex;

use self::backoff::Record;
pub(crate) use self::policy::is_finished;
use crate::context::Context;
use crate::expectations::Expectations;
use crate::owned::note_pod;
use crate::pod_control::PodControl;

const WORKERS: usize = 5;

/// Whether a Job with this `managedBy` is ours.
fn manages(by: &str) -> bool {
    by == "kubernetes.io/job-controller"
}

pub(crate) fn start(ctx: &Context) {
    let recorder = ctx.recorder("job-controller");
    let controller = Arc::new(Controller {
        jobs: ctx.informers.informer::<Job>(),
        pods: ctx.informers.informer::<Pod>(),
        control: PodControl { client: ctx.client.clone(), recorder: recorder.clone() },
        recorder,
        expectations: Expectations::default(),
        memory: Mutex::default(),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let this = controller.clone();
    ctx.on_change(&controller.jobs, move |change| {
        if change.new.is_none() {
            this.forget(&change.key());
        }
        this.queue.add(change.key());
    });
    let this = controller.clone();
    ctx.on_change(&controller.pods, move |change| {
        if let Some(pod) = change
            .new
            .as_ref()
            .filter(|pod| !make::has_finalizer(pod))
            .or(change.old.as_ref().filter(|_| change.new.is_none()))
        {
            this.finalizer_gone(pod);
        }
        note_pod(change, &this.jobs, &this.expectations, &this.queue, |job, labels| {
            let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.is_some_and(|selector| selector_matches(selector, labels))
        });
    });
    orphans::start(ctx, &controller.jobs, &controller.pods);
    let (jobs, pods) = (controller.jobs.clone(), controller.pods.clone());
    let synced = async move {
        jobs.synced().await;
        pods.synced().await;
    };
    ctx.run("job", controller.queue.clone(), WORKERS, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller {
    ctx: Context,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    control: PodControl,
    recorder: Recorder,
    expectations: Expectations,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
    queue: Queue<ObjectKey>,
}

/// What is known of a job that no object says.
#[derive(Default)]
struct Memory {
    failures: Record,
    /// Pods whose finalizer was taken and whose copy in the cache still has it.
    released: HashSet<String>,
    /// The version that was written last: an older one in the cache has not counted what we have.
    written: u64,
}

fn version(job: &Job) -> u64 {
    job.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl Controller {
    fn forget(&self, key: &ObjectKey) {
        self.expectations.forget(key);
        self.memory.lock().remove(key);
    }

    fn remember<T>(&self, key: &ObjectKey, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(self.memory.lock().entry(key.clone()).or_default())
    }

    fn finalizer_gone(&self, pod: &Pod) {
        if let Some(key) = crate::owned::owner_key(&self.jobs, &pod.metadata)
            && let Some(memory) = self.memory.lock().get_mut(&key)
        {
            memory.released.remove(track::uid(pod));
        }
    }
}

#[cfg(test)]
mod tests;
