//! PodDisruptionBudget: how many pods may be evicted at the moment (upstream
//! pkg/controller/disruption). The API server takes from `status.disruptionsAllowed` at an eviction.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, Recorder, reference, selector_matches};
use kube::api::PostParams;

use crate::adoption::controller_of;
use crate::context::Context;
use crate::percent::resolve;
use crate::scale::{api_of, scale_of};
use crate::{pods, time};

/// A pod that was evicted counts as gone for so long; then the eviction must have been lost.
const DELETION_TIMEOUT: i64 = 120;
const CONDITION: &str = "DisruptionAllowed";

pub(crate) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        budgets: ctx.informers.informer::<PodDisruptionBudget>(),
        pods: ctx.informers.informer::<Pod>(),
        deployments: ctx.informers.informer::<Deployment>(),
        sets: ctx.informers.informer::<ReplicaSet>(),
        stateful: ctx.informers.informer::<StatefulSet>(),
        controllers: ctx.informers.informer::<ReplicationController>(),
        recorder: ctx.recorder("controllermanager"),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let queue = controller.queue.clone();
    ctx.on_change(&controller.budgets, move |change| queue.add(change.key()));
    let this = controller.clone();
    ctx.on_change(&controller.pods, move |change| {
        for budget in this.budgets.list_namespace(&change.key().namespace) {
            let hit = [&change.old, &change.new].into_iter().flatten().any(|pod| selects(&budget, pod));
            if hit {
                this.queue.add(ObjectKey::of(&*budget));
            }
        }
    });
    let this = controller.clone();
    let synced = async move {
        this.budgets.synced().await;
        this.pods.synced().await;
        this.deployments.synced().await;
        this.sets.synced().await;
        this.stateful.synced().await;
        this.controllers.synced().await;
    };
    ctx.run("disruption", controller.queue.clone(), 1, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

/// No selector selects nothing, an empty one everything.
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector_matches(selector, &pod.metadata.labels))
}

struct Controller {
    ctx: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    recorder: Recorder,
    queue: Queue<ObjectKey>,
}

/// Expected and desired numbers of pods. `scale`: what the pods' controllers want together.
fn wanted(spec: &PodDisruptionBudgetSpec, pods: usize, scale: i32) -> (i32, i32) {
    if let Some(max) = &spec.max_unavailable {
        return (scale, (scale - resolve(Some(max), scale, true)).max(0));
    }
    match &spec.min_available {
        Some(IntOrString::Int(min)) => (i32::try_from(pods).unwrap_or(i32::MAX), *min),
        Some(percent) => (scale, resolve(Some(percent), scale, true)),
        None => (i32::try_from(pods).unwrap_or(i32::MAX), 0),
    }
}

fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// The evicted pods that still count as gone, those that were not deleted after all, and when to
/// look at the former again.
fn disrupted<'a>(
    pods: &'a [Arc<Pod>],
    listed: &BTreeMap<String, Time>,
    now: Timestamp,
) -> (BTreeMap<String, Time>, Vec<&'a Arc<Pod>>, Option<Duration>) {
    let (mut kept, mut lost, mut again) = (BTreeMap::new(), Vec::new(), None::<Duration>);
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(at) = listed.get(name).filter(|_| pod.metadata.deletion_timestamp.is_none()) else {
            continue;
        };
        let left = time::until(time::plus(at.0, DELETION_TIMEOUT), now);
        if left.is_zero() {
            lost.push(pod);
        } else {
            again = Some(again.map_or(left, |other| other.min(left)));
            kept.insert(name.to_owned(), at.clone());
        }
    }
    (kept, lost, again)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    generation: Option<i64>,
    allowed: bool,
    why: Option<&str>,
) {
    let (reason, text) = match why {
        Some(text) => ("SyncFailed", text),
        None if allowed => ("SufficientPods", ""),
        None => ("InsufficientPods", ""),
    };
    let value = if allowed { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().position(|condition| condition.type_ == CONDITION);
    let since = old.map(|index| &conditions[index]).filter(|old| old.status == value);
    let new = Condition {
        type_: CONDITION.into(),
        status: value.into(),
        reason: reason.into(),
        message: text.into(),
        observed_generation: generation,
        last_transition_time: since.map_or_else(time::now, |old| old.last_transition_time.clone()),
    };
    match old {
        Some(index) => conditions[index] = new,
        None => conditions.push(new),
    }
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(budget) = self.budgets.get_key(key) else { return Ok(None) };
        match self.update(key, &budget).await {
            Err(Error::Other(why)) => {
                // Nothing is evicted while the numbers are not known.
                let text = format!("Failed to calculate the number of expected pods: {why}");
                self.recorder.event(
                    reference(&*budget),
                    EventType::Warning,
                    "CalculateExpectedPodCountFailed",
                    text,
                );
                let mut status = budget.status.clone().unwrap_or_default();
                status.disruptions_allowed = Some(0);
                status.observed_generation = budget.metadata.generation;
                set_condition(&mut status, budget.metadata.generation, false, Some(&why));
                self.write(key, &budget, status).await?;
                Err(Error::Other(why))
            }
            result => result,
        }
    }

    async fn update(&self, key: &ObjectKey, budget: &PodDisruptionBudget) -> Result<Option<Duration>, Error> {
        let spec = budget.spec.clone().unwrap_or_default();
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selects(budget, pod));
        if pods.is_empty() {
            self.recorder.event(reference(budget), EventType::Normal, "NoPods", "No matching pods found");
        }
        let scale = if needs_scale(&spec) { self.scale(budget, &pods).await? } else { 0 };
        let (expected, desired) = wanted(&spec, pods.len(), scale);
        let now = Timestamp::now();
        let old = budget.status.clone().unwrap_or_default();
        let listed = old.disrupted_pods.clone().unwrap_or_default();
        let (disrupted, lost, again) = disrupted(&pods, &listed, now);
        for pod in lost {
            let text = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.event(reference(&**pod), EventType::Warning, "NotDeleted", text);
        }
        let healthy = pods.iter().filter(|pod| {
            pod.metadata.deletion_timestamp.is_none()
                && !disrupted.contains_key(pod.metadata.name.as_deref().unwrap_or_default())
                && pods::is_ready(pod)
        });
        let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
        let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
        let mut status = PodDisruptionBudgetStatus {
            conditions: old.conditions.clone(),
            current_healthy: Some(healthy),
            desired_healthy: Some(desired),
            disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
            disruptions_allowed: Some(allowed),
            expected_pods: Some(expected),
            observed_generation: budget.metadata.generation,
        };
        set_condition(&mut status, budget.metadata.generation, allowed > 0, None);
        self.write(key, budget, status).await?;
        Ok(again)
    }

    async fn write(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api = self.ctx.api::<PodDisruptionBudget>(&key.namespace);
        // With the version that was read: an eviction in between must not be lost.
        let changed = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        match api.replace_status(&key.name, &PostParams::default(), &changed).await {
            Err(error) if !kedge_client::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What all controllers of the pods want together.
    async fn scale(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<i32, Error> {
        let mut scales: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else {
                unmanaged = true;
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            let (uid, scale) = self.scale_of(pod, owner).await?;
            scales.insert(owner.uid.clone(), 0);
            // Sets of one Deployment count once.
            scales.insert(uid, scale);
        }
        if unmanaged {
            let text = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status \
                of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for \
                these pods please set \".spec.minAvailable\" field of the PDB to an integer value.";
            self.recorder.event(reference(budget), EventType::Warning, "UnmanagedPods", text);
        }
        Ok(scales.values().sum())
    }

    async fn scale_of(&self, pod: &Pod, owner: &OwnerReference) -> Result<(String, i32), Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let name = owner.name.as_str();
        let known = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => self.sets.get(namespace, name).map(|set| {
                let parent = controller_of(&set.metadata).filter(|parent| parent.kind == "Deployment");
                let deployment = parent
                    .and_then(|parent| self.deployments.get(namespace, &parent.name))
                    .filter(|found| found.metadata.uid.as_ref() == parent.map(|parent| &parent.uid));
                match deployment {
                    Some(found) => {
                        (found.metadata.uid.clone(), found.spec.as_ref().and_then(|spec| spec.replicas))
                    }
                    None => (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas)),
                }
            }),
            ("apps", "StatefulSet") => self
                .stateful
                .get(namespace, name)
                .map(|set| (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas))),
            ("", "ReplicationController") => self
                .controllers
                .get(namespace, name)
                .map(|set| (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas))),
            _ => {
                let (api, resource) =
                    api_of(&self.ctx.client, &owner.api_version, &owner.kind, namespace).await?;
                let scale = scale_of(&api, name).await.map_err(|error| match error {
                    error if error.is_not_found() => Error::other(format!(
                        "{}.{} does not implement the scale subresource",
                        resource.plural, resource.group
                    )),
                    error => error,
                })?;
                Some((scale.metadata.uid, Some(scale.spec.and_then(|spec| spec.replicas).unwrap_or(0))))
            }
        };
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        let (uid, replicas) =
            known.ok_or_else(|| Error::other(format!("found no controllers for pod \"{pod}\"")))?;
        Ok((uid.unwrap_or_else(|| owner.uid.clone()), replicas.unwrap_or(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};
    use serde_json::{Value, json};

    #[test]
    fn numbers_of_a_budget() {
        for (spec, pods, scale, expected) in [
            (json!({ "minAvailable": 2 }), 3, 0, (3, 2)),
            (json!({ "minAvailable": "50%" }), 3, 5, (5, 3)),
            (json!({ "maxUnavailable": 1 }), 3, 5, (5, 4)),
            (json!({ "maxUnavailable": "30%" }), 3, 5, (5, 3)),
            (json!({ "maxUnavailable": 9 }), 3, 5, (5, 0)),
            (json!({}), 3, 0, (3, 0)),
        ] {
            let spec_: PodDisruptionBudgetSpec = serde_json::from_value(spec.clone()).expect("a spec");
            assert_eq!(wanted(&spec_, pods, scale), expected, "{spec}");
        }
    }

    fn status(world: &World) -> PodDisruptionBudgetStatus {
        world.get::<PodDisruptionBudget>("ns", "b").and_then(|budget| budget.status).unwrap_or_default()
    }

    fn world(spec: Value) -> World {
        let world = World::new();
        let deployment = world.create::<Deployment>(json!({ "metadata": { "name": "d", "namespace": "ns" },
            "spec": { "replicas": 4, "selector": {}, "template": {} } }));
        for set in ["old", "new"] {
            let set = world.create::<ReplicaSet>(json!({ "metadata": { "name": set, "namespace": "ns",
                "ownerReferences": [crate::adoption::owner_reference(&deployment)] }, "spec": { "replicas": 2, "selector": {} } }));
            for number in 0..2 {
                let name = format!("{}-{number}", set.metadata.name.as_deref().unwrap_or_default());
                world.create::<Pod>(json!({ "metadata": { "name": name, "namespace": "ns", "labels": { "app": "web" },
                    "ownerReferences": [crate::adoption::owner_reference(&set)] },
                    "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } }));
            }
        }
        let mut spec = spec;
        spec["selector"] = json!({ "matchLabels": { "app": "web" } });
        world.create::<PodDisruptionBudget>(
            json!({ "metadata": { "name": "b", "namespace": "ns" }, "spec": spec }),
        );
        start(&world.ctx);
        world
    }

    #[test]
    fn a_budget_follows_its_pods() {
        run(async {
            let world = world(json!({ "maxUnavailable": 1 }));
            world.until("one allowed", |w| status(w).disruptions_allowed == Some(1)).await;
            let first = status(&world);
            assert_eq!(
                (first.expected_pods, first.desired_healthy, first.current_healthy),
                (Some(4), Some(3), Some(4))
            );
            // As the API server notes an eviction.
            let budget = world.get::<PodDisruptionBudget>("ns", "b").expect("there");
            world.edit(&budget, |budget| {
                budget["status"]["disruptionsAllowed"] = json!(0);
                budget["status"]["disruptedPods"] = json!({ "old-0": time::now(), "gone": time::now() });
            });
            world.until("the evicted one does not count", |w| status(w).current_healthy == Some(3)).await;
            assert_eq!(status(&world).disrupted_pods.map(|pods| pods.len()), Some(1));
            assert_eq!(status(&world).disruptions_allowed, Some(0));
            world.delete(&world.get::<Pod>("ns", "old-0").expect("there"));
            world.until("forgotten", |w| status(w).disrupted_pods.is_none()).await;
        });
    }

    #[test]
    fn pods_without_a_known_controller_allow_nothing() {
        run(async {
            let world = world(json!({ "minAvailable": "50%" }));
            world.until("two allowed", |w| status(w).disruptions_allowed == Some(2)).await;
            for set in world.list::<ReplicaSet>() {
                world.delete(&set);
            }
            let pod = world.get::<Pod>("ns", "new-0").expect("there");
            world.edit(&pod, |pod| pod["metadata"]["labels"]["x"] = json!("y"));
            world.until("nothing allowed", |w| status(w).disruptions_allowed == Some(0)).await;
            let conditions = status(&world).conditions.expect("a condition");
            assert_eq!(conditions[0].reason, "SyncFailed");
        });
    }
}
