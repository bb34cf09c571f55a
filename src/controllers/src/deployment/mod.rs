//! Deployment: rolls ReplicaSets over (upstream pkg/controller/deployment). The arithmetic is in
//! `math`, the history in `revision`, conditions in `status`; here are the requests.

mod math;
mod revision;
mod rollout;
mod status;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_base::Order as _;
use kedge_client::{
    Change, Error, EventType, Informer, ObjectKey, Queue, Recorder, reference, selector_matches,
};
use kube::api::PostParams;

use self::math::{is_rolling, size, wanted};
use self::revision::{DESIRED_ANNOTATION, int_annotation};
use crate::adoption::{claim, controller_of, owner_reference};
use crate::context::Context;

const WORKERS: usize = 5;

pub(crate) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        deployments: ctx.informers.informer::<Deployment>(),
        sets: ctx.informers.informer::<ReplicaSet>(),
        pods: ctx.informers.informer::<Pod>(),
        recorder: ctx.recorder("deployment-controller"),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let queue = controller.queue.clone();
    ctx.on_change(&controller.deployments, move |change| queue.add(change.key()));
    let this = controller.clone();
    ctx.on_change(&controller.sets, move |change| this.set_changed(change));
    let this = controller.clone();
    ctx.on_change(&controller.pods, move |change| this.pod_changed(change));
    let (deployments, sets, pods) =
        (controller.deployments.clone(), controller.sets.clone(), controller.pods.clone());
    let synced = async move {
        deployments.synced().await;
        sets.synced().await;
        pods.synced().await;
    };
    ctx.run("deployment", controller.queue.clone(), WORKERS, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller {
    ctx: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
    queue: Queue<ObjectKey>,
}

/// The sets of one Deployment, as far as they are ours.
struct Sets {
    /// The one whose template is the Deployment's.
    new: Option<ReplicaSet>,
    /// All others, oldest first.
    old: Vec<ReplicaSet>,
}

impl Controller {
    fn set_changed(&self, change: &Change<ReplicaSet>) {
        for side in [&change.old, &change.new].into_iter().flatten() {
            if let Some(key) = owner_key(&side.metadata, "Deployment") {
                self.queue.add(key);
            } else if change.new.is_some() {
                for deployment in self.deployments.list_namespace(&change.key().namespace) {
                    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
                    if selector.is_some_and(|s| selector_matches(s, &side.metadata.labels)) {
                        self.queue.add(ObjectKey::of(&*deployment));
                    }
                }
            }
        }
    }

    /// With the strategy Recreate the new pods wait until the last old one has gone.
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if change.new.is_some() && !crate::pods::is_finished(pod) {
            return;
        }
        let Some(set) = owner_key(&pod.metadata, "ReplicaSet").and_then(|key| self.sets.get_key(&key)) else {
            return;
        };
        let Some(key) = owner_key(&set.metadata, "Deployment") else { return };
        if self.deployments.get_key(&key).is_some_and(|deployment| !is_rolling(&deployment)) {
            self.queue.add(key);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(cached) = self.deployments.get_key(key) else { return Ok(None) };
        let mut deployment = (*cached).clone();
        let spec = deployment.spec.clone().unwrap_or_default();
        let selects_all = spec.selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty())
            && spec.selector.match_expressions.as_ref().is_none_or(|expressions| expressions.is_empty());
        if selects_all {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(reference(&deployment), EventType::Warning, "SelectingAll", text);
            let mut status = deployment.status.clone().unwrap_or_default();
            status.observed_generation = deployment.metadata.generation;
            self.write_status(&mut deployment, status).await?;
            return Ok(None);
        }
        let mut sets = self.claim_sets(&deployment).await?;
        let paused = spec.paused.unwrap_or(false);
        if deployment.metadata.deletion_timestamp.is_some() {
            let status = status::calculate(&deployment, &sets.old, sets.new.as_ref());
            self.write_status(&mut deployment, status).await?;
            return Ok(None);
        }
        self.note_pause(&mut deployment, paused).await?;
        if paused || is_scaling(&deployment, &sets) {
            self.sync_revision(&mut deployment, &mut sets, false).await?;
            self.scale(&deployment, &mut sets).await?;
            self.clean_up(&deployment, &sets.old).await?;
            let status = status::calculate(&deployment, &sets.old, sets.new.as_ref());
            self.write_status(&mut deployment, status).await?;
            return Ok(None);
        }
        if is_rolling(&deployment) {
            self.roll(&mut deployment, &mut sets).await?;
        } else {
            self.recreate(&mut deployment, &mut sets).await?;
        }
        let now = Timestamp::now();
        let status = status::of_rollout(&deployment, &sets.old, sets.new.as_ref(), now);
        let next = status::next_check(&deployment, &status, now);
        self.write_status(&mut deployment, status).await?;
        Ok(next)
    }

    async fn claim_sets(&self, deployment: &Deployment) -> Result<Sets, Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let spec = deployment.spec.clone().unwrap_or_default();
        let api = self.ctx.api::<Deployment>(namespace);
        let fresh = async { api.get(name).await.map(|live| live.metadata) };
        let mut claimed = claim(
            &self.ctx.client,
            &deployment.metadata,
            &owner_reference(deployment),
            &spec.selector,
            self.sets.list_namespace(namespace),
            fresh,
        )
        .await?;
        claimed.order_by(|a, b| {
            let age = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
            age(a).cmp(&age(b)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        // Two sets with the same template can only be leftovers; the oldest counts as the new one.
        let position = claimed.iter().position(|set| {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            template.is_some_and(|template| crate::template::equal_ignoring_hash(template, &spec.template))
        });
        let new = position.map(|position| (*claimed.remove(position)).clone());
        Ok(Sets { new, old: claimed.iter().map(|set| (**set).clone()).collect() })
    }

    /// Tell the API server about another status, if it is another. `deployment` becomes what the
    /// server answers.
    async fn write_status(&self, deployment: &mut Deployment, status: DeploymentStatus) -> Result<(), Error> {
        if deployment.status.as_ref().is_some_and(|old| same(old, &status)) {
            return Ok(());
        }
        let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
        let name = deployment.metadata.name.clone().unwrap_or_default();
        deployment.status = Some(status);
        let api = self.ctx.api::<Deployment>(&namespace);
        *deployment = api.replace_status(&name, &PostParams::default(), deployment).await?;
        Ok(())
    }

    /// A pause is noted as a condition, so that it does not count as a lack of progress.
    async fn note_pause(&self, deployment: &mut Deployment, paused: bool) -> Result<(), Error> {
        if status::deadline(deployment).is_none() {
            return Ok(());
        }
        let mut status = deployment.status.clone().unwrap_or_default();
        let reason = status::find(&status, status::PROGRESSING).and_then(|c| c.reason.as_deref());
        if reason == Some(status::TIMED_OUT) {
            return Ok(());
        }
        let noted = reason == Some("DeploymentPaused");
        let condition = match (paused, noted) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return Ok(()),
        };
        let condition = status::condition(status::PROGRESSING, "Unknown", condition.0, condition.1);
        status::set(&mut status, condition);
        self.write_status(deployment, status).await
    }
}

/// Equal but for what is written in two ways on the wire (nothing, zero).
fn same(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let plain = |status: &DeploymentStatus| {
        let mut status = status.clone();
        for count in [
            &mut status.replicas,
            &mut status.updated_replicas,
            &mut status.ready_replicas,
            &mut status.available_replicas,
            &mut status.unavailable_replicas,
            &mut status.terminating_replicas,
        ] {
            *count = count.filter(|&count| count != 0);
        }
        status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
        status
    };
    plain(old) == plain(new)
}

/// The key of the managing owner, when it is of this kind.
fn owner_key(meta: &ObjectMeta, kind: &str) -> Option<ObjectKey> {
    let owner = controller_of(meta).filter(|owner| owner.kind == kind)?;
    Some(ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), owner.name.as_str()))
}

/// Whether `spec.replicas` changed since an active set was sized last: then scale, do not roll.
fn is_scaling(deployment: &Deployment, sets: &Sets) -> bool {
    let active = sets.old.iter().chain(&sets.new).filter(|set| size(set) > 0).count();
    if !is_rolling(deployment) && active > 1 {
        // Recreate knows no sizes in between: it first takes all old pods away.
        return false;
    }
    sets.old.iter().chain(&sets.new).filter(|set| size(set) > 0).any(|set| {
        int_annotation(&set.metadata, DESIRED_ANNOTATION).is_some_and(|desired| desired != wanted(deployment))
    })
}
