//! StatefulSet: pods with names, claims of their own and an order (upstream
//! pkg/controller/statefulset). Names and shapes are in `identity`, requests in `control`, the order
//! of things here.

mod control;
mod identity;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, reference, selector_matches};
use kube::api::PostParams;

use self::control::Control;
use self::identity::{first, in_range, ordinal, replicas, revision_of};
use crate::adoption::{claim, owner_reference};
use crate::context::Context;
use crate::expectations::Expectations;
use crate::history::{History, Owner, name_of, template_of};
use crate::owned::{note_pod, owner_key};
use crate::percent::resolve;
use crate::pods;

const WORKERS: usize = 5;
/// Carries the hash on a StatefulSet's revisions.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

pub(crate) fn start(ctx: &Context) {
    let claims = ctx.informers.informer::<PersistentVolumeClaim>();
    let controller = Arc::new(Controller {
        sets: ctx.informers.informer::<StatefulSet>(),
        pods: ctx.informers.informer::<Pod>(),
        history: History {
            ctx: ctx.clone(),
            revisions: ctx.informers.informer::<ControllerRevision>(),
            hash_label: HASH_LABEL,
        },
        control: Control {
            ctx: ctx.clone(),
            claims: claims.clone(),
            recorder: ctx.recorder("statefulset-controller"),
        },
        // Names say which pod is which, so nothing has to be expected; the shared code counts anyway.
        expectations: Expectations::default(),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let queue = controller.queue.clone();
    ctx.on_change(&controller.sets, move |change| queue.add(change.key()));
    let this = controller.clone();
    ctx.on_change(&controller.pods, move |change| {
        note_pod(change, &this.sets, &this.expectations, &this.queue, |set, labels| {
            set.spec.as_ref().is_some_and(|spec| selector_matches(&spec.selector, labels))
        });
    });
    let this = controller.clone();
    ctx.on_change(&controller.history.revisions, move |change| {
        if let Some(key) = owner_key(&this.sets, &change.object().metadata) {
            this.queue.add(key);
        }
    });
    let this = controller.clone();
    ctx.on_change(&claims, move |change| {
        // A pod may wait until the claim of its forerunner is gone.
        if change.new.is_none() {
            for set in this.sets.list_namespace(&change.key().namespace) {
                let has_claims = set.spec.as_ref().is_some_and(|spec| spec.volume_claim_templates.is_some());
                if has_claims {
                    this.queue.add(ObjectKey::of(&*set));
                }
            }
        }
    });
    let (sets, pods, revisions) =
        (controller.sets.clone(), controller.pods.clone(), controller.history.revisions.clone());
    let synced = async move {
        sets.synced().await;
        pods.synced().await;
        revisions.synced().await;
        claims.synced().await;
    };
    ctx.run("statefulset", controller.queue.clone(), WORKERS, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller {
    ctx: Context,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    history: History,
    control: Control,
    expectations: Expectations,
    queue: Queue<ObjectKey>,
}

/// A set at one moment.
struct View<'a> {
    set: &'a StatefulSet,
    current: (&'a str, PodTemplateSpec),
    update: (&'a str, PodTemplateSpec),
    /// By ordinal.
    pods: BTreeMap<i32, Arc<Pod>>,
    now: Timestamp,
}

/// What is left to do after a step.
#[derive(PartialEq)]
enum Step {
    Done,
    /// Something must happen first; the event that tells of it brings us back.
    Wait,
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

impl View<'_> {
    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_running_and_ready(pod) && pods::is_available(pod, self.min_ready(), self.now)
    }

    /// Neither there and available nor about to go.
    fn is_unavailable(&self, pod: &Pod) -> bool {
        !self.is_available(pod) || is_terminating(pod)
    }

    fn monotonic(&self) -> bool {
        self.set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref()) != Some("Parallel")
    }

    fn rolls(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    /// The partition, and how many may be unavailable during an update.
    fn limits(&self) -> (i32, usize) {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
        let max = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let max = max.map_or(1, |max| resolve(Some(max), replicas(self.set), false));
        (partition, usize::try_from(max).unwrap_or(1).max(1))
    }

    /// The pod to make: below the partition, and while an update without one is under way, it is the
    /// former revision's.
    fn pod(&self, ordinal: i32) -> Pod {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let position = ordinal - first(self.set);
        let current = self.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0);
        let keeps = match rolling {
            Some(rolling) => position < rolling.partition.unwrap_or(0),
            None => self.rolls() && position < current,
        };
        let (revision, template) = if keeps { &self.current } else { &self.update };
        identity::pod(self.set, template, revision, ordinal)
    }

    fn status(&self, collisions: Option<i32>) -> StatefulSetStatus {
        let count = |holds: &dyn Fn(&Pod) -> bool| {
            i32::try_from(self.pods.values().filter(|pod| holds(pod)).count()).unwrap_or(i32::MAX)
        };
        let of = |revision: &str| count(&|pod| !is_terminating(pod) && revision_of(pod) == revision);
        StatefulSetStatus {
            available_replicas: Some(count(&|pod| self.is_available(pod))),
            collision_count: Some(collisions.unwrap_or(0)),
            conditions: self.set.status.as_ref().and_then(|status| status.conditions.clone()),
            current_replicas: pods::nonzero(of(self.current.0)),
            current_revision: Some(self.current.0.to_owned()),
            observed_generation: self.set.metadata.generation,
            ready_replicas: pods::nonzero(count(&is_running_and_ready)),
            replicas: count(&|_| true),
            update_revision: Some(self.update.0.to_owned()),
            updated_replicas: pods::nonzero(of(self.update.0)),
        }
    }

    /// The pods to delete for an update, highest ordinal first. One that is unavailable anyway costs
    /// nothing.
    fn outdated(&self) -> Vec<Arc<Pod>> {
        let (partition, max) = self.limits();
        let inside = || self.pods.iter().rev().filter(|(ordinal, _)| in_range(self.set, **ordinal));
        let missing = usize::try_from(replicas(self.set)).unwrap_or(0).saturating_sub(inside().count());
        let unavailable = missing + inside().filter(|(_, pod)| self.is_unavailable(pod)).count();
        let mut budget = max.saturating_sub(unavailable);
        let mut outdated = Vec::new();
        for (ordinal, pod) in inside() {
            let is_old = revision_of(pod) != self.update.0 && !is_terminating(pod);
            if !is_old || ordinal - first(self.set) < partition {
                continue;
            }
            if !self.is_unavailable(pod) {
                if budget == 0 {
                    continue;
                }
                budget -= 1;
            } else if outdated.len() >= max {
                continue;
            }
            outdated.push(pod.clone());
        }
        outdated
    }
}

/// An update that has reached every pod makes the new revision the current one.
fn complete(set: &StatefulSet, status: &mut StatefulSetStatus, rolls: bool) {
    let all = replicas(set);
    if rolls
        && status.updated_replicas.unwrap_or(0) == all
        && status.ready_replicas.unwrap_or(0) == all
        && status.replicas == all
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get_key(key) else { return Ok(None) };
        let Some(spec) = &set.spec else { return Ok(None) };
        let api = self.ctx.api::<StatefulSet>(&key.namespace);
        let fresh = || async { api.get(&key.name).await.map(|live| live.metadata) };
        let owner = Owner {
            meta: &set.metadata,
            reference: owner_reference(&*set),
            selector: &spec.selector,
            template: &spec.template,
            collisions: set.status.as_ref().and_then(|status| status.collision_count),
        };
        let candidates = self.pods.list_namespace(&key.namespace);
        let candidates = candidates.into_iter().filter(|pod| ordinal(&set, pod).is_some()).collect();
        let client = &self.ctx.client;
        let claimed =
            claim(client, &set.metadata, &owner.reference, &spec.selector, candidates, fresh()).await?;
        let (revisions, update, collisions) = self.history.sync(&owner, fresh()).await?;
        let named = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        let current = revisions.iter().find(|revision| Some(name_of(revision)) == named).unwrap_or(&update);
        let view = View {
            set: &set,
            current: (name_of(current), template_of(current).unwrap_or_else(|| spec.template.clone())),
            update: (name_of(&update), spec.template.clone()),
            pods: claimed.into_iter().filter_map(|pod| Some((ordinal(&set, &pod)?, pod))).collect(),
            now: Timestamp::now(),
        };
        let mut status = view.status(collisions);
        let result =
            if set.metadata.deletion_timestamp.is_none() { self.step(&view).await } else { Ok(Step::Done) };
        complete(&set, &mut status, view.rolls());
        if set.status.as_ref().map(normal) != Some(normal(&status)) {
            let changed = StatefulSet { status: Some(status), ..(*set).clone() };
            match api.replace_status(&key.name, &PostParams::default(), &changed).await {
                Ok(_) => {}
                Err(error) if kedge_client::is_not_found(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        result?;
        let is_live = |revision: &ControllerRevision| {
            let name = name_of(revision);
            name == view.current.0
                || name == view.update.0
                || view.pods.values().any(|pod| revision_of(pod) == name)
        };
        self.history.trim(&revisions, spec.revision_history_limit, is_live).await?;
        let waits = view.pods.values();
        Ok(waits.filter_map(|pod| pods::availability(pod, view.min_ready(), view.now).err().flatten()).min())
    }

    /// Bring the set one step further: first what is missing, then what is too many, then an update.
    async fn step(&self, view: &View<'_>) -> Result<Step, Error> {
        let set = view.set;
        let monotonic = view.monotonic();
        for ordinal in first(set)..first(set).saturating_add(replicas(set)) {
            if self.keep(view, ordinal).await? == Step::Wait && monotonic {
                return Ok(Step::Wait);
            }
        }
        let condemned: Vec<_> =
            view.pods.iter().rev().filter(|(ordinal, _)| !in_range(set, **ordinal)).collect();
        for (ordinal, pod) in &condemned {
            self.control.fix_claims(set, pod, **ordinal).await?;
        }
        let all = view.pods.iter();
        let (inside, outside): (Vec<_>, Vec<_>) = all.partition(|(ordinal, _)| in_range(set, **ordinal));
        let first_unhealthy =
            inside.into_iter().chain(outside).find(|(_, pod)| view.is_unavailable(pod)).map(|(n, _)| *n);
        for (ordinal, pod) in condemned {
            if is_terminating(pod) {
                if monotonic {
                    return Ok(Step::Wait);
                }
                continue;
            }
            if monotonic && !view.is_available(pod) && first_unhealthy != Some(*ordinal) {
                return Ok(Step::Wait);
            }
            self.control.delete(set, pod).await?;
            if monotonic {
                return Ok(Step::Wait);
            }
        }
        if view.rolls() {
            for pod in view.outdated() {
                self.control.delete(set, &pod).await?;
            }
        }
        Ok(Step::Done)
    }

    /// One pod that should be there.
    async fn keep(&self, view: &View<'_>, ordinal: i32) -> Result<Step, Error> {
        let set = view.set;
        let Some(pod) = view.pods.get(&ordinal) else {
            if !self.control.has_stale_claim(set, ordinal) {
                self.control.create(set, &view.pod(ordinal), ordinal).await?;
            }
            return Ok(Step::Wait);
        };
        if pods::is_finished(pod) {
            if !is_terminating(pod) {
                let key = ObjectKey::of(set);
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let (reason, how) = match pods::phase(pod) {
                    "Failed" => ("RecreatingFailedPod", "failed"),
                    _ => ("RecreatingTerminatedPod", "terminated"),
                };
                let text = format!("StatefulSet {key} is recreating {how} Pod {name}");
                self.control.recorder.event(reference(set), EventType::Warning, reason, text);
                self.control.delete(set, pod).await?;
            }
            return Ok(Step::Wait);
        }
        if !is_terminating(pod) && matches!(pods::phase(pod), "" | "Pending") {
            self.control.create_claims(set, ordinal).await?;
        }
        if view.monotonic() && view.is_unavailable(pod) {
            return Ok(Step::Wait);
        }
        self.control.fix(set, pod, ordinal).await?;
        Ok(Step::Done)
    }
}

/// A status with zeros written one way.
fn normal(status: &StatefulSetStatus) -> StatefulSetStatus {
    StatefulSetStatus {
        available_replicas: Some(status.available_replicas.unwrap_or(0)),
        collision_count: Some(status.collision_count.unwrap_or(0)),
        current_replicas: status.current_replicas.and_then(pods::nonzero),
        ready_replicas: status.ready_replicas.and_then(pods::nonzero),
        updated_replicas: status.updated_replicas.and_then(pods::nonzero),
        ..status.clone()
    }
}

#[cfg(test)]
mod tests;
