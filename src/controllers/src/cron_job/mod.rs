//! CronJob: a Job at set times (upstream pkg/controller/cronjob). When is in `schedule`.

#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kedge_base::Order as _;
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, Recorder, reference};
use kube::api::{DeleteParams, PostParams, PropagationPolicy};

use self::schedule::Schedule;
use crate::adoption::{is_controlled_by, owner_reference};
use crate::context::{Context, ignore_not_found, message, namespace_is_terminating};
use crate::job::is_finished;
use crate::owned::owner_key;
use crate::time;

const WORKERS: usize = 2;
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// A little after the time, so that it has certainly come.
const DELTA: Duration = Duration::from_millis(100);

pub(crate) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        crons: ctx.informers.informer::<CronJob>(),
        jobs: ctx.informers.informer::<Job>(),
        recorder: ctx.recorder("cronjob-controller"),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let queue = controller.queue.clone();
    ctx.on_change(&controller.crons, move |change| queue.add(change.key()));
    let this = controller.clone();
    ctx.on_change(&controller.jobs, move |change| {
        for side in [&change.old, &change.new].into_iter().flatten() {
            if let Some(key) = owner_key(&this.crons, &side.metadata) {
                this.queue.add(key);
            }
        }
    });
    let (crons, jobs) = (controller.crons.clone(), controller.jobs.clone());
    let synced = async move {
        crons.synced().await;
        jobs.synced().await;
    };
    ctx.run("cronjob", controller.queue.clone(), WORKERS, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller {
    ctx: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    recorder: Recorder,
    queue: Queue<ObjectKey>,
}

/// The times since the last start.
#[derive(Debug, PartialEq, Eq)]
struct Missed {
    earliest: Timestamp,
    /// The latest that has come.
    latest: Option<Timestamp>,
    too_many: bool,
}

fn missed(cron: &CronJob, schedule: &Schedule, now: Timestamp, with_deadline: bool) -> Option<Missed> {
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let mut earliest = last.map_or(created, |time| time.0);
    let deadline = cron.spec.starting_deadline_seconds;
    if let Some(seconds) = deadline.filter(|_| with_deadline) {
        earliest = earliest.max(time::plus(now, -seconds));
    }
    let first = schedule.next(earliest)?;
    let mut found = Missed { earliest, latest: None, too_many: false };
    if now < first {
        return Some(found);
    }
    found.latest = Some(first);
    let Some(second) = schedule.next(first).filter(|second| *second <= now) else { return Some(found) };
    // Not one by one: there may have been very many.
    let between = second.duration_since(first).as_secs().max(1);
    let count = now.duration_since(first).as_secs() / between + 1;
    let mut at = time::plus(first, (count - 2) * between);
    while let Some(next) = schedule.next(at).filter(|next| *next <= now) {
        found.latest = Some(next);
        at = next;
    }
    found.too_many = count > 100;
    Some(found)
}

/// How long until the next time.
fn until_next(cron: &CronJob, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let base = missed(cron, schedule, now, false).map_or(now, |found| found.latest.unwrap_or(found.earliest));
    // A time that has come and was not used is not waited for.
    let mut next = schedule.next(base)?;
    if next <= now {
        next = schedule.next(now)?;
    }
    Some(time::until(next, now) + DELTA)
}

fn ended_as(job: &Job, kind: &str) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default().iter().any(|c| c.type_ == kind && c.status == "True")
}

/// The job for one time. Its name says which time it is, so it cannot be made twice.
fn job_at(cron: &CronJob, at: Timestamp, zone: &TimeZone) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let local = at.to_zoned(zone.clone());
    let stamp = match zone.iana_name() {
        Some("UTC") | None => at.to_string(),
        Some(_) => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    };
    annotations.insert(SCHEDULED.to_owned(), stamp);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn job_name(cron: &CronJob, at: Timestamp) -> String {
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", at.as_second().div_euclid(60))
}

impl Controller {
    fn say(&self, cron: &CronJob, warning: bool, reason: &str, text: String) {
        let kind = if warning { EventType::Warning } else { EventType::Normal };
        self.recorder.event(reference(cron), kind, reason, text);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(cached) = self.crons.get_key(key) else { return Ok(None) };
        let mut cron = (*cached).clone();
        let uid = cron.metadata.uid.clone().unwrap_or_default();
        let mut jobs = self.jobs.list_namespace(&key.namespace);
        jobs.retain(|job| is_controlled_by(&job.metadata, &uid));
        self.trim(&cron, &jobs).await?;
        let mut status = cron.status.clone().unwrap_or_default();
        self.note_jobs(&cron, &jobs, &mut status).await?;
        let again = if cron.metadata.deletion_timestamp.is_none() {
            self.run_if_due(&cron, &mut status).await
        } else {
            Ok(None)
        };
        if cached.status.clone().unwrap_or_default() != status {
            cron.status = Some(status);
            let api = self.ctx.api::<CronJob>(&key.namespace);
            match api.replace_status(&key.name, &PostParams::default(), &cron).await {
                Err(error) if kedge_client::is_not_found(&error) => return Ok(None),
                result => result?,
            };
        }
        again
    }

    /// Keep the list of active jobs.
    async fn note_jobs(
        &self,
        cron: &CronJob,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<(), Error> {
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let position = active.iter().position(|known| known.uid == job.metadata.uid);
            match (position, is_finished(job)) {
                (None, false) => {
                    // It may be one of ours that the cached list does not show yet.
                    let api = self.ctx.api::<CronJob>(cron.metadata.namespace.as_deref().unwrap_or_default());
                    let live = api.get_opt(cron.metadata.name.as_deref().unwrap_or_default()).await?;
                    let listed = live.and_then(|live| live.status?.active).unwrap_or_default();
                    if let Some(known) = listed.iter().find(|known| known.uid == job.metadata.uid) {
                        active.push(known.clone());
                    } else {
                        let text = format!("Saw a job that the controller did not create or forgot: {name}");
                        self.say(cron, true, "UnexpectedJob", text);
                    }
                }
                (Some(position), true) => {
                    active.remove(position);
                    let how = if ended_as(job, "Complete") { "Complete" } else { "Failed" };
                    let text = format!("Saw completed job: {name}, condition: {how}");
                    self.say(cron, false, "SawCompletedJob", text);
                }
                _ => {}
            }
            if ended_as(job, "Complete") {
                let at = job.status.as_ref().and_then(|status| status.completion_time.clone());
                if at > status.last_successful_time {
                    status.last_successful_time = at;
                }
            }
        }
        let mut kept = Vec::with_capacity(active.len());
        for known in active {
            if jobs.iter().any(|job| job.metadata.uid == known.uid) {
                kept.push(known);
                continue;
            }
            // The cache may be behind.
            let name = known.name.clone().unwrap_or_default();
            let api = self.ctx.api::<Job>(cron.metadata.namespace.as_deref().unwrap_or_default());
            match api.get_opt(&name).await? {
                Some(job) if job.metadata.uid == known.uid => kept.push(known),
                _ => self.say(cron, false, "MissingJob", format!("Active job went missing: {name}")),
            }
        }
        status.active = (!kept.is_empty()).then_some(kept);
        Ok(())
    }

    async fn run_if_due(
        &self,
        cron: &CronJob,
        status: &mut CronJobStatus,
    ) -> Result<Option<Duration>, Error> {
        let spec = &cron.spec;
        let zone = match &spec.time_zone {
            None => TimeZone::system(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(error) => {
                    let text = format!("invalid timeZone: \"{name}\": {error}");
                    self.say(cron, true, "UnknownTimeZone", text);
                    return Ok(None);
                }
            },
        };
        if spec.suspend.unwrap_or(false) {
            return Ok(None);
        }
        let schedule = match Schedule::parse(&spec.schedule, zone.clone()) {
            Ok(schedule) => schedule,
            Err(error) => {
                let text = format!("unparseable schedule: \"{}\" : {error}", spec.schedule);
                self.say(cron, true, "UnparseableSchedule", text);
                return Ok(None);
            }
        };
        let now = Timestamp::now();
        let next = until_next(cron, &schedule, now);
        let Some(found) = missed(cron, &schedule, now, true) else { return Ok(next) };
        if found.too_many {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.say(cron, true, "TooManyMissedTimes", text.into());
        }
        let Some(at) = found.latest else { return Ok(next) };
        let late = spec.starting_deadline_seconds.is_some_and(|seconds| time::plus(at, seconds) < now);
        if late {
            self.say(cron, true, "MissSchedule", format!("Missed scheduled time to start a job: {at}"));
            return Ok(next);
        }
        let name = job_name(cron, at);
        let active = status.active.clone().unwrap_or_default();
        let made = active.iter().any(|job| job.name.as_deref() == Some(name.as_str()));
        if made || status.last_schedule_time.as_ref().is_some_and(|last| last.0 == at) {
            return Ok(next);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.say(cron, false, "JobAlreadyActive", text.into());
                return Ok(next);
            }
            Some("Replace") => {
                for job in &active {
                    self.delete(cron, job.name.as_deref().unwrap_or_default()).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        let namespace = cron.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.ctx.api::<Job>(namespace);
        let job = match api.create(&PostParams::default(), &job_at(cron, at, &zone)).await {
            Ok(job) => {
                self.say(cron, false, "SuccessfulCreate", format!("Created job {name}"));
                job
            }
            Err(error) if namespace_is_terminating(&error) => return Ok(None),
            Err(error) if kedge_client::is_already_exists(&error) => {
                let job = api.get(&name).await?;
                if !is_controlled_by(&job.metadata, cron.metadata.uid.as_deref().unwrap_or_default()) {
                    let text = format!("Error creating job: {name} exists and belongs to somebody else");
                    self.say(cron, true, "FailedCreate", text);
                    return Ok(next);
                }
                job
            }
            Err(error) => {
                self.say(cron, true, "FailedCreate", format!("Error creating job: {}", message(&error)));
                return Err(error.into());
            }
        };
        if !is_finished(&job) {
            status.active.get_or_insert_default().push(ObjectReference {
                resource_version: job.metadata.resource_version.clone(),
                ..reference(&job)
            });
        }
        status.last_schedule_time = Some(Time(at));
        Ok(next)
    }

    async fn delete(&self, cron: &CronJob, name: &str) -> Result<(), Error> {
        let api = self.ctx.api::<Job>(cron.metadata.namespace.as_deref().unwrap_or_default());
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match ignore_not_found(api.delete(name, &params).await) {
            Ok(()) => {
                self.say(cron, false, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
            Err(error) => {
                self.say(cron, true, "FailedDelete", format!("Deleted job: {}", message(&error)));
                Err(error.into())
            }
        }
    }

    /// Delete the oldest ended jobs above the limits.
    async fn trim(&self, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<(), Error> {
        let spec = &cron.spec;
        let limits =
            [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
        for (kind, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let mut ended: Vec<_> = jobs.iter().filter(|job| ended_as(job, kind)).collect();
            ended.order_by_key(|job| {
                let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
                (started.is_none(), started.map(|time| time.0), job.metadata.name.clone())
            });
            for job in &ended[..ended.len().saturating_sub(limit)] {
                if job.metadata.deletion_timestamp.is_none() {
                    self.delete(cron, job.metadata.name.as_deref().unwrap_or_default()).await?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};
    use serde_json::{Value, json};

    fn world(spec: Value) -> (World, CronJob) {
        let world = World::new();
        let mut spec = spec;
        spec["jobTemplate"] = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "template": {} } });
        let cron = world.create::<CronJob>(json!({
            "metadata": { "name": "c", "namespace": "ns", "creationTimestamp": "2026-01-01T00:00:30Z" }, "spec": spec }));
        start(&world.ctx);
        (world, cron)
    }

    fn end(world: &World, job: &Job, kind: &str) {
        world.edit(job, |job| {
            job["status"] = json!({ "startTime": "2020-01-01T00:00:00Z", "completionTime": "2020-01-01T00:00:01Z",
                "conditions": [{ "type": kind, "status": "True" }] });
        });
    }

    #[test]
    fn times_that_were_missed() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        for (what, schedule, last, deadline, now, latest, too_many) in [
            ("not yet", "0 * * * *", None, None, "2026-01-01T00:59:00Z", None, false),
            ("one", "0 * * * *", None, None, "2026-01-01T01:00:00Z", Some("2026-01-01T01:00:00Z"), false),
            (
                "the latest of many",
                "0 * * * *",
                None,
                None,
                "2026-01-01T05:30:00Z",
                Some("2026-01-01T05:00:00Z"),
                false,
            ),
            (
                "since the last",
                "0 * * * *",
                Some("2026-01-01T05:00:00Z"),
                None,
                "2026-01-01T05:30:00Z",
                None,
                false,
            ),
            (
                "very many",
                "* * * * *",
                None,
                None,
                "2026-01-03T05:30:30Z",
                Some("2026-01-03T05:30:00Z"),
                true,
            ),
            ("within the deadline", "0 * * * *", None, Some(60), "2026-01-01T05:30:00Z", None, false),
            (
                "irregular",
                "30 6-16/4 * * 1-5",
                None,
                None,
                "2026-01-02T15:00:00Z",
                Some("2026-01-02T14:30:00Z"),
                false,
            ),
        ] {
            let cron: CronJob = serde_json::from_value(json!({
                "metadata": { "creationTimestamp": "2026-01-01T00:00:30Z" },
                "spec": { "schedule": schedule, "startingDeadlineSeconds": deadline, "jobTemplate": {} },
                "status": { "lastScheduleTime": last },
            }))
            .expect("a cron job");
            let parsed = Schedule::parse(schedule, TimeZone::UTC).expect("a schedule");
            let found = missed(&cron, &parsed, at(now), true).expect("a next time");
            assert_eq!((found.latest, found.too_many), (latest.map(at), too_many), "{what}");
        }
    }

    #[test]
    fn a_job_is_made_once_for_a_time_and_noted() {
        run(async {
            let (world, _) = world(json!({ "schedule": "0 0 1 1 *", "timeZone": "Europe/Rome" }));
            // The last New Year's Day in Rome, whichever that is.
            world.edit(&world.get::<CronJob>("ns", "c").expect("there"), |cron| {
                cron["metadata"]["labels"] = json!({ "touched": "yes" });
            });
            world.settle().await;
            let before = world.list::<Job>().len();
            assert!(before <= 1);
            let status = |w: &World| w.get::<CronJob>("ns", "c").and_then(|c| c.status).unwrap_or_default();
            assert_eq!(status(&world).active.map_or(0, |list| list.len()), before);
        });
    }

    #[test]
    fn policies_for_jobs_that_overlap() {
        for (policy, expected, active) in [("Allow", 2, 2), ("Forbid", 1, 1), ("Replace", 1, 1)] {
            run(async move {
                let (world, cron) = world(json!({ "schedule": "* * * * *", "concurrencyPolicy": policy }));
                world.until("the first job", |w| w.list::<Job>().len() == 1).await;
                let first = world.list::<Job>().remove(0);
                let status =
                    |w: &World| w.get::<CronJob>("ns", "c").and_then(|c| c.status).unwrap_or_default();
                world.until("noted", |w| status(w).active.is_some()).await;
                // As if the first had been for an earlier time.
                world.delete(&first);
                let mut earlier = serde_json::to_value(&first).expect("JSON");
                earlier["metadata"]["name"] = json!("c-1");
                let earlier = world.create::<Job>(earlier);
                world.edit(&cron, |cron| {
                    cron["status"] = json!({ "lastScheduleTime": "2026-01-01T00:01:00Z", "active": [
                        { "kind": "Job", "name": "c-1", "namespace": "ns", "uid": earlier.metadata.uid }] });
                });
                world.settle().await;
                assert_eq!(world.list::<Job>().len(), expected, "{policy}");
                assert_eq!(status(&world).active.map_or(0, |list| list.len()), active, "{policy}");
                assert_eq!(world.get::<Job>("ns", "c-1").is_some(), policy != "Replace");
            });
        }
    }

    #[test]
    fn ended_jobs_leave_the_list_and_old_ones_go() {
        run(async {
            let (world, cron) = world(json!({ "schedule": "* * * * *", "successfulJobsHistoryLimit": 1,
                "failedJobsHistoryLimit": 0 }));
            world.until("a job", |w| w.list::<Job>().len() == 1).await;
            end(&world, &world.list::<Job>()[0], "Complete");
            let status = |w: &World| w.get::<CronJob>("ns", "c").and_then(|c| c.status).unwrap_or_default();
            world
                .until("noted", |w| status(w).active.is_none() && status(w).last_successful_time.is_some())
                .await;
            world.edit(&cron, |cron| cron["spec"]["suspend"] = json!(true));
            let owners = world.list::<Job>()[0].metadata.owner_references.clone();
            for (name, kind) in [("c-0", "Complete"), ("c-1", "Failed")] {
                let job = world.create::<Job>(
                    json!({ "metadata": { "name": name, "namespace": "ns", "ownerReferences": owners },
                    "spec": { "template": {} } }),
                );
                end(&world, &job, kind);
            }
            world.until("one left", |w| w.list::<Job>().len() == 1).await;
        });
    }

    #[test]
    fn bad_schedules_and_zones_are_told() {
        for (spec, reason) in [
            (json!({ "schedule": "x" }), "UnparseableSchedule"),
            (json!({ "schedule": "* * * * *", "timeZone": "No/Where" }), "UnknownTimeZone"),
        ] {
            run(async move {
                let (world, _) = world(spec);
                world.until(reason, |w| w.events().contains(&reason.to_owned())).await;
                assert!(world.list::<Job>().is_empty());
            });
        }
    }
}
