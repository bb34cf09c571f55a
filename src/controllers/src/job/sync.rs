//! One look at one Job: decide, create and delete, count, write (upstream syncJob).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kedge_client::{Error, EventType, ObjectKey, reference};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::backoff::{finished_at, index_time_left};
use super::indexes::{self, Indexes};
use super::make::{self, FINALIZER, fails_index, has_finalizer};
use super::policy::{
    self, Finish, is_finished, is_indexed, is_pod_failed, is_suspended, replaces_only_failed,
};
use super::track::{self, uid};
use super::{Controller, manages, orphans, version};
use crate::adoption::{claim, is_controlled_by, owner_reference};
use crate::context::namespace_is_terminating;
use crate::expectations::EXPIRES;
use crate::pod_control::{slow_start, tried};
use crate::{pods, time};

/// At most so many pods are created or deleted in one go.
const BURST: usize = 500;

/// The pods of a job at one moment.
struct Pods {
    all: Vec<Arc<Pod>>,
    active: Vec<Arc<Pod>>,
    /// With the finalizer.
    tracked: Vec<Arc<Pod>>,
    terminating: usize,
    ready: usize,
}

/// What is known of the indexes of an indexed job.
#[derive(Default)]
struct Known {
    succeeded: Indexes,
    failed: Indexes,
    /// The failed pods that wait for their successors.
    replaced: HashMap<i32, Arc<Pod>>,
}

/// What managing the pods has come to.
#[derive(Default)]
struct Managed {
    active: usize,
    again: Option<Duration>,
    error: Option<kube::Error>,
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn size(count: i32) -> usize {
    usize::try_from(count).unwrap_or(0)
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !pods::is_finished(pod)
}

impl Controller {
    pub(super) async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(cached) = self.jobs.get_key(key) else {
            self.forget(key);
            return Ok(None);
        };
        let by = cached.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
        if by.is_some_and(|by| !manages(by)) {
            return Ok(None);
        }
        if is_finished(&cached) {
            self.forget(key);
            return Ok(None);
        }
        // The cache is behind what was written: it will tell when it has caught up.
        if self.remember(key, |memory| version(&cached) < memory.written) {
            return Ok(None);
        }
        let mut job = (*cached).clone();
        let spec = policy::spec(&job);
        let caught_up = self.expectations.satisfied(key);
        let pods = self.claim_pods(key, &job, &spec).await?;
        let now = Timestamp::now();
        let status = job.status.get_or_insert_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        let before = cached.status.clone().unwrap_or_default();
        if status.start_time.is_none() && !is_suspended(&spec) {
            status.start_time = Some(time::now());
        }
        let status = status.clone();
        let ended = track::ended(&spec, &status, &pods.tracked);
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let listed = |list: Option<Vec<String>>| list.map_or(0, |list| list.len());
        let mut succeeded =
            status.succeeded.unwrap_or(0) + number(ended.succeeded.len() + listed(uncounted.succeeded));
        let failed_now = ended.failed.iter().filter(|pod| track::counts(&spec, pod)).count();
        let failed = status.failed.unwrap_or(0) + number(failed_now + listed(uncounted.failed));
        let record = self.remember(key, |memory| memory.failures).with(&ended.succeeded, &ended.failed, now);

        let mut finish = policy::limits(&job, &pods.all, failed, now);
        let known = if is_indexed(&spec) { known_indexes(&spec, &status, &pods) } else { Known::default() };
        if is_indexed(&spec) {
            succeeded = known.succeeded.total();
            finish = finish.or_else(|| policy::index_limits(&spec, &known.succeeded, &known.failed));
        }
        let mut managed = Managed { active: pods.active.len(), ..Managed::default() };
        let (mut ready, mut terminating) = (pods.ready, pods.terminating);
        let mut suspension = None;
        if finish.is_some() {
            let (gone, error) = self.delete(key, &job, &pods.active).await;
            managed.active -= gone.len();
            managed.error = error;
            ready -= gone.iter().filter(|pod| pods::is_ready(pod)).count();
            terminating += gone.len();
        } else {
            let manages = caught_up && job.metadata.deletion_timestamp.is_none();
            if manages {
                let wait = record.time_left(now);
                managed = self.manage(key, &job, &spec, &pods, &known, succeeded, wait).await;
            }
            let complete = match spec.completions {
                None => succeeded > 0 && managed.active == 0,
                Some(completions) => succeeded >= completions && managed.active == 0,
            };
            if complete {
                finish = Some(Finish::completed());
            } else if manages {
                suspension = self.note_suspension(&mut job, &spec);
            }
        }
        let status = job.status.get_or_insert_default();
        status.active = pods::nonzero(number(managed.active));
        status.ready = Some(number(ready));
        status.terminating = Some(number(terminating));
        if is_indexed(&spec) && spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(known.failed.to_string());
        }
        let settled = caught_up && managed.active == 0 && terminating == 0;
        self.count(key, &mut job, &before, &pods, finish.as_ref(), &known, settled).await?;
        self.remember(key, |memory| memory.failures = record);
        if let Some((reason, text)) = suspension {
            self.recorder.event(reference(&job), EventType::Normal, reason, text);
        }
        if let Some(error) = managed.error {
            return Err(error.into());
        }
        let deadline = policy::time_left(&job, now).filter(|_| finish.is_none());
        let expiry = (!caught_up).then_some(EXPIRES + Duration::from_secs(1));
        Ok(managed.again.into_iter().chain(deadline).chain(expiry).min())
    }

    async fn claim_pods(&self, key: &ObjectKey, job: &Job, spec: &JobSpec) -> Result<Pods, Error> {
        let api = self.ctx.api::<Job>(&key.namespace);
        let fresh = async { api.get(&key.name).await.map(|live| live.metadata) };
        let owner = owner_reference(job);
        let selector = spec.selector.clone().unwrap_or_default();
        let candidates = self.pods.list_namespace(&key.namespace);
        let orphans: HashSet<String> = candidates
            .iter()
            .filter(|pod| !is_controlled_by(&pod.metadata, &owner.uid))
            .map(|pod| uid(pod).to_owned())
            .collect();
        let client = &self.ctx.client;
        let mut all = claim(client, &job.metadata, &owner, &selector, candidates, fresh).await?;
        for pod in &mut all {
            // An adopted pod is counted like the others.
            if orphans.contains(uid(pod)) && !has_finalizer(pod) && !pods::is_finished(pod) {
                let patch = json!({ "metadata": { "uid": pod.metadata.uid, "finalizers": [FINALIZER] } });
                let name = pod.metadata.name.clone().unwrap_or_default();
                let api = self.ctx.api::<Pod>(&key.namespace);
                *pod = Arc::new(api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await?);
            }
        }
        let released = self.remember(key, |memory| memory.released.clone());
        let tracked: Vec<_> =
            all.iter().filter(|pod| has_finalizer(pod) && !released.contains(uid(pod))).cloned().collect();
        let active: Vec<_> = all.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        Ok(Pods {
            ready: active.iter().filter(|pod| pods::is_ready(pod)).count(),
            terminating: all.iter().filter(|pod| is_terminating(pod)).count(),
            tracked,
            active,
            all,
        })
    }

    /// Suspend, scale down or up.
    #[allow(clippy::too_many_arguments)]
    async fn manage(
        &self,
        key: &ObjectKey,
        job: &Job,
        spec: &JobSpec,
        pods: &Pods,
        known: &Known,
        succeeded: i32,
        wait: Duration,
    ) -> Managed {
        let active = pods.active.len();
        let parallelism = spec.parallelism.unwrap_or(1);
        let wanted = if is_suspended(spec) {
            0
        } else {
            match spec.completions {
                None if succeeded > 0 => active,
                None => size(parallelism),
                Some(completions) => size((completions - succeeded).min(parallelism)),
            }
        };
        let now = Timestamp::now();
        let mut surplus = make::surplus(spec, &pods.active, active.saturating_sub(wanted), now);
        surplus.truncate(BURST);
        if !surplus.is_empty() {
            let (gone, error) = self.delete(key, job, &surplus).await;
            return Managed { active: active - gone.len(), again: None, error };
        }
        let leaving = if replaces_only_failed(spec) { pods.terminating } else { 0 };
        let mut missing = wanted.saturating_sub(active + leaving).min(BURST);
        let mut managed = Managed { active, ..Managed::default() };
        if missing == 0 {
            return managed;
        }
        if spec.backoff_limit_per_index.is_none() && !wait.is_zero() {
            managed.again = Some(wait);
            return managed;
        }
        let mut indexes: Vec<Option<i32>> = Vec::new();
        if is_indexed(spec) {
            let completions = spec.completions.unwrap_or(0);
            let mut busy: BTreeSet<i32> = pods.active.iter().filter_map(|pod| indexes::of(pod)).collect();
            if replaces_only_failed(spec) {
                busy.extend(
                    pods.all.iter().filter(|pod| is_terminating(pod)).filter_map(|pod| indexes::of(pod)),
                );
            }
            // An index that failed a moment ago waits; the others do not wait for it.
            for (index, former) in &known.replaced {
                let (counted, ignored) = make::failures_with(spec, former);
                let failures = u32::try_from(counted + ignored).unwrap_or(1);
                let left = index_time_left(failures, finished_at(former, now), now);
                if !left.is_zero() {
                    busy.insert(*index);
                    managed.again = Some(managed.again.map_or(left, |other| other.min(left)));
                }
            }
            let found = make::pending(missing, completions, &busy, &[&known.succeeded, &known.failed]);
            missing = found.len();
            indexes = found.into_iter().map(Some).collect();
        } else {
            indexes.resize(missing, None);
        }
        self.create(key, job, known, &indexes, missing, &mut managed).await;
        managed
    }

    async fn create(
        &self,
        key: &ObjectKey,
        job: &Job,
        known: &Known,
        indexes: &[Option<i32>],
        missing: usize,
        managed: &mut Managed,
    ) {
        if missing == 0 {
            return;
        }
        self.expectations.expect(key, missing, []);
        let (this, regarding) = (self, &reference(job));
        let (done, error) = slow_start(missing, |position| async move {
            let index = indexes[position];
            let former = index.and_then(|index| known.replaced.get(&index));
            let pod = make::pod(job, index, former.map(|pod| &**pod));
            let result = this.control.create(regarding, &pod).await;
            if result.is_err() {
                this.expectations.created(key);
            }
            result.map(|_| ())
        })
        .await;
        managed.active += done;
        if let Some(error) = error {
            for _ in tried(missing, done)..missing {
                self.expectations.created(key);
            }
            managed.error = Some(error).filter(|error| !namespace_is_terminating(error));
        }
    }

    /// Returns the pods that are going now.
    async fn delete(
        &self,
        key: &ObjectKey,
        job: &Job,
        pods: &[Arc<Pod>],
    ) -> (Vec<Arc<Pod>>, Option<kube::Error>) {
        if pods.is_empty() {
            return (Vec::new(), None);
        }
        self.expectations.expect(key, 0, pods.iter().map(|pod| uid(pod).to_owned()));
        let (this, regarding) = (self, &reference(job));
        let calls = pods.iter().map(|pod| async move {
            let result = this.control.delete(regarding, pod).await;
            if result.is_err() {
                this.expectations.deleted(key, uid(pod));
            }
            (pod.clone(), result)
        });
        let (mut gone, mut failure) = (Vec::new(), None);
        for (pod, result) in join_all(calls).await {
            match result {
                Ok(()) => gone.push(pod),
                Err(error) if kedge_client::is_not_found(&error) || kedge_client::is_conflict(&error) => {
                    gone.push(pod);
                }
                Err(error) => failure = Some(error),
            }
        }
        (gone, failure)
    }

    /// Tell of a suspension and of its end; the clock of a resumed job starts again.
    fn note_suspension(&self, job: &mut Job, spec: &JobSpec) -> Option<(&'static str, &'static str)> {
        let old = policy::condition(job, "Suspended").map(|condition| condition.status == "True");
        let (suspended, status) = (is_suspended(spec), job.status.get_or_insert_default());
        if old == Some(suspended) || (old.is_none() && !suspended) {
            return None;
        }
        let (value, reason, text) = if suspended {
            ("True", "JobSuspended", "Job suspended")
        } else {
            status.start_time = Some(time::now());
            ("False", "JobResumed", "Job resumed")
        };
        set_condition(status, "Suspended", value, reason, text);
        Some((if suspended { "Suspended" } else { "Resumed" }, text))
    }

    /// Count what has ended and write the status, in the order that loses nothing: list, take the
    /// finalizers, count.
    #[allow(clippy::too_many_arguments)]
    async fn count(
        &self,
        key: &ObjectKey,
        job: &mut Job,
        before: &JobStatus,
        pods: &Pods,
        finish: Option<&Finish>,
        known: &Known,
        settled: bool,
    ) -> Result<(), Error> {
        let mut held: HashSet<String> = pods.tracked.iter().map(|pod| uid(pod).to_owned()).collect();
        track::count_released(job.status.get_or_insert_default(), &held);
        let waiting: HashSet<&str> = match finish {
            None => known.replaced.values().map(|pod| uid(pod)).collect(),
            Some(_) => HashSet::new(),
        };
        let round = track::list_ended(job, &pods.tracked, finish, |pod| waiting.contains(uid(pod)));
        if let Some(finish) = finish {
            let status = job.status.get_or_insert_default();
            set_condition(status, finish.types().0, "True", &finish.reason, &finish.message);
        }
        self.write(key, job, before).await?;
        let calls = round.release.iter().map(|pod| async move {
            self.remember(key, |memory| memory.released.insert(uid(pod).to_owned()));
            let result = orphans::take_finalizer(&self.ctx, pod).await;
            if result.is_err() {
                self.remember(key, |memory| memory.released.remove(uid(pod)));
            }
            (uid(pod), result)
        });
        let mut failure = None;
        for (uid, result) in join_all(calls).await {
            match result {
                Ok(()) => {
                    held.remove(uid);
                }
                Err(error) => failure = Some(error),
            }
        }
        let written = job.status.clone().unwrap_or_default();
        let status = job.status.get_or_insert_default();
        track::count_released(status, &held);
        let ends =
            finish.filter(|_| settled && !round.full && failure.is_none() && track::all_counted(status));
        if let Some(finish) = ends {
            set_condition(status, finish.types().1, "True", &finish.reason, &finish.message);
            if finish.success {
                status.completion_time = Some(time::now());
            }
        }
        self.write(key, job, &written).await?;
        if let Some(finish) = ends {
            let (kind, reason, text) = match finish.success {
                true => (EventType::Normal, "Completed", "Job completed"),
                false => (EventType::Warning, finish.reason.as_str(), finish.message.as_str()),
            };
            self.recorder.event(reference(&*job), kind, reason, text);
        }
        if round.full {
            self.queue.add(key.clone());
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// `job` becomes what the server answers.
    async fn write(&self, key: &ObjectKey, job: &mut Job, before: &JobStatus) -> Result<(), Error> {
        if job.status.as_ref() == Some(before) {
            return Ok(());
        }
        let api = self.ctx.api::<Job>(&key.namespace);
        *job = api.replace_status(&key.name, &PostParams::default(), job).await?;
        job.status.get_or_insert_default().uncounted_terminated_pods.get_or_insert_default();
        self.remember(key, |memory| memory.written = version(job));
        Ok(())
    }
}

fn set_condition(status: &mut JobStatus, kind: &str, value: &str, reason: &str, text: &str) {
    let conditions = status.conditions.get_or_insert_default();
    let now = Some(time::now());
    let new = JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(text.to_owned()),
        last_probe_time: now.clone(),
        last_transition_time: now,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(old) if old.status == value => {}
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

fn known_indexes(spec: &JobSpec, status: &JobStatus, pods: &Pods) -> Known {
    let completions = spec.completions.unwrap_or(0);
    let parse = |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), completions);
    let mut known = Known {
        succeeded: parse(&status.completed_indexes),
        failed: parse(&status.failed_indexes),
        ..Known::default()
    };
    let failed: Vec<_> = pods.tracked.iter().filter(|pod| is_pod_failed(spec, pod)).cloned().collect();
    for pod in pods.tracked.iter().filter(|pod| pods::phase(pod) == "Succeeded") {
        known.succeeded.0.extend(indexes::of(pod).filter(|index| *index < completions));
    }
    for pod in failed.iter().filter(|pod| fails_index(spec, pod)) {
        let index = indexes::of(pod).filter(|index| *index < completions && !known.succeeded.has(*index));
        known.failed.0.extend(index);
    }
    known.replaced = make::to_be_replaced(spec, &failed, &pods.active, &known.succeeded, &known.failed);
    known
}
