//! DaemonSet: one pod on every node that fits (upstream pkg/controller/daemon). Which nodes fit is in
//! `nodes`, what to do in `plan`; here are the requests.

mod nodes;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::{
    Change, Error, EventType, Informer, ObjectKey, Queue, Recorder, reference, selector_matches,
};
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::nodes::{should_run, template_for};
use self::plan::{View, Work, by_node};
use crate::adoption::{claim, owner_reference};
use crate::context::{Context, namespace_is_terminating};
use crate::expectations::{EXPIRES, Expectations};
use crate::history::{History, Owner, REVISION_LABEL};
use crate::owned::note_pod;
use crate::pod_control::{PodControl, pod_from_template, slow_start, tried};
use crate::pods;

/// At most so many pods are created or deleted in one go.
const BURST: usize = 250;
const WORKERS: usize = 2;
/// How long a failed pod stays before it is replaced; doubles with every failure on the node.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15 * 60);

pub(crate) fn start(ctx: &Context) {
    let recorder = ctx.recorder("daemonset-controller");
    let controller = Arc::new(Controller {
        sets: ctx.informers.informer::<DaemonSet>(),
        pods: ctx.informers.informer::<Pod>(),
        nodes: ctx.informers.informer::<Node>(),
        history: History {
            ctx: ctx.clone(),
            revisions: ctx.informers.informer::<ControllerRevision>(),
            hash_label: REVISION_LABEL,
        },
        control: PodControl { client: ctx.client.clone(), recorder: recorder.clone() },
        recorder,
        expectations: Expectations::default(),
        backoff: Mutex::default(),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let this = controller.clone();
    ctx.on_change(&controller.sets, move |change| {
        if change.new.is_none() {
            this.expectations.forget(&change.key());
            let uid = change.object().metadata.uid.clone().unwrap_or_default();
            this.backoff.lock().retain(|(set, _), _| *set != uid);
        }
        this.queue.add(change.key());
    });
    let this = controller.clone();
    ctx.on_change(&controller.pods, move |change| {
        note_pod(change, &this.sets, &this.expectations, &this.queue, |set, labels| {
            set.spec.as_ref().is_some_and(|spec| selector_matches(&spec.selector, labels))
        });
    });
    let this = controller.clone();
    ctx.on_change(&controller.nodes, move |change| this.node_changed(change));
    let this = controller.clone();
    ctx.on_change(&controller.history.revisions, move |change| {
        // Somebody who deletes or edits a revision gets it back.
        if let Some(key) = crate::owned::owner_key(&this.sets, &change.object().metadata) {
            this.queue.add(key);
        }
    });
    let (sets, pods, nodes, revisions) = (
        controller.sets.clone(),
        controller.pods.clone(),
        controller.nodes.clone(),
        controller.history.revisions.clone(),
    );
    let synced = async move {
        sets.synced().await;
        pods.synced().await;
        nodes.synced().await;
        revisions.synced().await;
    };
    ctx.run("daemonset", controller.queue.clone(), WORKERS, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller {
    ctx: Context,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    history: History,
    control: PodControl,
    recorder: Recorder,
    expectations: Expectations,
    /// By set's uid and node: when a failed pod was last deleted, and the wait after that.
    backoff: Mutex<HashMap<(String, String), (Instant, Duration)>>,
    queue: Queue<ObjectKey>,
}

impl Controller {
    /// A heartbeat changes nothing for daemons; labels and taints do.
    fn node_changed(&self, change: &Change<Node>) {
        if let (Some(old), Some(new)) = (&change.old, &change.new) {
            let taints =
                |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
            if old.metadata.labels == new.metadata.labels && taints(old) == taints(new) {
                return;
            }
        }
        for set in self.sets.list() {
            let side = |node: &Option<Arc<Node>>| {
                node.as_ref().map_or((false, false), |node| should_run(node, &set))
            };
            if side(&change.old) != side(&change.new) {
                self.queue.add(ObjectKey::of(&*set));
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get_key(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let Some(spec) = &set.spec else { return Ok(None) };
        let selects_all = spec.selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty())
            && spec.selector.match_expressions.as_ref().is_none_or(|expressions| expressions.is_empty());
        if selects_all {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.event(reference(&*set), EventType::Warning, "SelectingAll", text);
            return Ok(None);
        }
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let api = self.ctx.api::<DaemonSet>(&key.namespace);
        let fresh = || async { api.get(&key.name).await.map(|live| live.metadata) };
        let old_status = set.status.clone().unwrap_or_default();
        let owner = Owner {
            meta: &set.metadata,
            reference: owner_reference(&*set),
            selector: &spec.selector,
            template: &spec.template,
            collisions: old_status.collision_count,
        };
        let (revisions, current, collisions) = self.history.sync(&owner, fresh()).await?;
        let hash = current.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL));
        let hash = hash.map(String::as_str).unwrap_or_default();
        let nodes = self.nodes.list();
        // Asked before the pods are listed: what is seen in between must not make an older list count.
        let caught_up = self.expectations.satisfied(key);
        let pods = claim(
            &self.ctx.client,
            &set.metadata,
            &owner.reference,
            &spec.selector,
            self.pods.list_namespace(&key.namespace),
            fresh(),
        )
        .await?;
        let now = Timestamp::now();
        let view = View { set: &set, nodes: &nodes, pods: by_node(pods.clone()), hash, now };
        let (mut again, mut failure) = (None, None);
        if caught_up {
            let result = self.work(key, &set, &view).await;
            match result {
                Ok(delay) => again = delay,
                Err(error) => failure = Some(error),
            }
            if failure.is_none() {
                let live = |name: &str| {
                    pods.iter().any(|pod| {
                        pod.metadata
                            .labels
                            .as_ref()
                            .and_then(|l| l.get(REVISION_LABEL))
                            .is_some_and(|l| l == name)
                    })
                };
                let is_live = |revision: &ControllerRevision| {
                    let labels = revision.metadata.labels.as_ref();
                    revision.metadata.uid == current.metadata.uid
                        || labels.and_then(|labels| labels.get(REVISION_LABEL)).is_some_and(|hash| live(hash))
                };
                self.history.trim(&revisions, spec.revision_history_limit, is_live).await?;
            }
        } else {
            again = Some(EXPIRES + Duration::from_secs(1));
        }
        let status = view.status(&old_status, collisions);
        if status != normal(old_status) {
            let changed = DaemonSet { status: Some(status), ..(*set).clone() };
            match api.replace_status(&key.name, &PostParams::default(), &changed).await {
                Ok(_) => {}
                Err(error) if kedge_client::is_not_found(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let ripe =
            pods.iter().filter_map(|pod| pods::availability(pod, min_ready, now).err().flatten()).min();
        Ok(again.into_iter().chain(ripe).min())
    }

    /// Create and delete. Returns when to look again, when a failed pod has to wait.
    async fn work(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        view: &View<'_>,
    ) -> Result<Option<Duration>, Error> {
        let mut work = view.manage();
        let wait = self.finish(set, &mut work);
        // The view does not know what is created and deleted now: a node whose pod has just been made
        // would not count as unavailable. The update goes on when those pods are seen.
        let is_settled = work == Work::default();
        self.apply(key, set, view.hash, work).await?;
        if is_settled && view.is_rolling() {
            self.apply(key, set, view.hash, view.roll()).await?;
        }
        Ok(wait)
    }

    /// Finished daemons are replaced, failed ones with a growing delay: a kubelet that rejects a pod
    /// rejects the next one too.
    fn finish(&self, set: &DaemonSet, work: &mut Work) -> Option<Duration> {
        let mut wait: Option<Duration> = None;
        let uid = set.metadata.uid.clone().unwrap_or_default();
        for (node, pod) in std::mem::take(&mut work.finished) {
            let key = ObjectKey::of(&*pod);
            if pods::phase(&pod) == "Failed" {
                let now = Instant::now();
                let mut backoff = self.backoff.lock();
                let entry = backoff.entry((uid.clone(), node.clone()));
                let (last, delay) = *entry.or_insert((now, Duration::ZERO));
                let waited = now.duration_since(last);
                if waited < delay {
                    let left = delay.saturating_sub(waited);
                    wait = Some(wait.map_or(left, |other| other.min(left)));
                    continue;
                }
                // After a long quiet time it starts again from the beginning.
                let next = if waited > LONGEST_BACKOFF * 2 { Duration::ZERO } else { delay };
                let next = (next * 2).clamp(FIRST_BACKOFF, LONGEST_BACKOFF);
                backoff.insert((uid.clone(), node.clone()), (now, next));
                drop(backoff);
                let text = format!("Found failed daemon pod {key} on node {node}, will try to kill it");
                self.recorder.event(reference(set), EventType::Warning, "FailedDaemonPod", text);
            } else {
                let text = format!("Found succeeded daemon pod {key} on node {node}, will try to delete it");
                self.recorder.event(reference(set), EventType::Normal, "SucceededDaemonPod", text);
            }
            work.delete.push(pod);
        }
        wait
    }

    async fn apply(&self, key: &ObjectKey, set: &DaemonSet, hash: &str, mut work: Work) -> Result<(), Error> {
        work.create.truncate(BURST);
        work.delete.truncate(BURST);
        if work == Work::default() {
            return Ok(());
        }
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        self.expectations.expect(key, work.create.len(), work.delete.iter().map(|pod| uid(pod)));
        let regarding = reference(set);
        let owner = owner_reference(set);
        let Some(spec) = &set.spec else { return Ok(()) };
        let (this, regarding, owner, nodes) = (self, &regarding, &owner, &work.create);
        let count = nodes.len();
        let (done, mut error) = slow_start(count, |index| async move {
            let template = template_for(&spec.template, &nodes[index], hash);
            let pod = pod_from_template(&template, &key.namespace, owner);
            let result = this.control.create(regarding, &pod).await;
            if result.is_err() {
                this.expectations.created(key);
            }
            result.map(|_| ())
        })
        .await;
        if error.is_some() {
            for _ in tried(count, done)..count {
                self.expectations.created(key);
            }
        }
        error = error.filter(|error| !namespace_is_terminating(error));
        let deletions = work.delete.iter().map(|pod| async move {
            let result = this.control.delete(regarding, pod).await;
            if result.is_err() {
                this.expectations.deleted(key, pod.metadata.uid.as_deref().unwrap_or_default());
            }
            result
        });
        for result in futures::future::join_all(deletions).await {
            if let Err(failed) = result
                && !kedge_client::is_not_found(&failed)
                && !kedge_client::is_conflict(&failed)
            {
                error.get_or_insert(failed);
            }
        }
        error.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// A status with zeros written as the controller writes them.
fn normal(status: DaemonSetStatus) -> DaemonSetStatus {
    DaemonSetStatus {
        number_available: status.number_available.and_then(pods::nonzero),
        number_unavailable: status.number_unavailable.and_then(pods::nonzero),
        updated_number_scheduled: status.updated_number_scheduled.and_then(pods::nonzero),
        ..status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};
    use serde_json::json;

    fn template(image: &str) -> serde_json::Value {
        json!({ "metadata": { "labels": { "app": "d" } }, "spec": { "containers": [{ "name": "c", "image": image }] } })
    }

    fn world(nodes: &[&str]) -> (World, DaemonSet) {
        let world = World::new();
        for node in nodes {
            world.create::<Node>(json!({ "metadata": { "name": node } }));
        }
        let set = world.create::<DaemonSet>(json!({
            "metadata": { "name": "d", "namespace": "ns" },
            "spec": { "selector": { "matchLabels": { "app": "d" } }, "template": template("a"),
                      "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } } },
        }));
        start(&world.ctx);
        (world, set)
    }

    fn make_ready(world: &World) {
        for pod in world.list::<Pod>() {
            let node = super::nodes::target_node(&pod).map(ToOwned::to_owned);
            world.edit(&pod, |pod| {
                pod["spec"]["nodeName"] = json!(node);
                pod["status"] = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True",
                    "lastTransitionTime": "2020-01-01T00:00:00Z" }] });
            });
        }
    }

    fn images(world: &World) -> Vec<String> {
        let pods = world.list::<Pod>();
        pods.iter()
            .map(|pod| pod.spec.as_ref().expect("spec").containers[0].image.clone().unwrap_or_default())
            .collect()
    }

    #[test]
    fn nodes_get_pods_updates_roll_and_rollbacks_reuse_a_revision() {
        run(async {
            let (world, set) = world(&["n1", "n2"]);
            world.until("two pods", |w| w.list::<Pod>().len() == 2).await;
            make_ready(&world);
            let ready = |w: &World| {
                w.get::<DaemonSet>("ns", "d").and_then(|set| set.status).unwrap_or_default().number_ready
            };
            world.until("ready", |w| ready(w) == 2).await;
            world.create::<Node>(json!({ "metadata": { "name": "n3" } }));
            world.until("a third pod", |w| w.list::<Pod>().len() == 3).await;
            make_ready(&world);
            world.until("three ready", |w| ready(w) == 3).await;
            // An update, one node at a time.
            world.edit(&set, |set| set["spec"]["template"] = template("b"));
            for done in 1..=3 {
                world
                    .until("the next pod", |w| {
                        images(w).len() == 3 && images(w).iter().filter(|image| *image == "b").count() == done
                    })
                    .await;
                world.settle().await;
                assert_eq!(
                    images(&world).iter().filter(|image| *image == "b").count(),
                    done,
                    "not more than one"
                );
                make_ready(&world);
            }
            assert_eq!(world.list::<ControllerRevision>().len(), 2);
            world.edit(&set, |set| set["spec"]["template"] = template("a"));
            world
                .until("the old revision comes to the front", |w| {
                    let mut numbers: Vec<i64> =
                        w.list::<ControllerRevision>().iter().map(|r| r.revision).collect();
                    numbers.sort_unstable();
                    numbers == [2, 3]
                })
                .await;
        });
    }

    #[test]
    fn pods_leave_with_the_label_and_failed_ones_are_replaced() {
        run(async {
            let (world, set) = world(&["n1"]);
            world.until("a pod", |w| w.list::<Pod>().len() == 1).await;
            make_ready(&world);
            let first = world.list::<Pod>().remove(0);
            world.edit(&first, |pod| pod["status"]["phase"] = json!("Failed"));
            let name = first.metadata.name.clone();
            world
                .until("another pod", |w| {
                    let pods = w.list::<Pod>();
                    pods.len() == 1 && pods[0].metadata.name != name
                })
                .await;
            world.until("an event", |w| w.events().contains(&"FailedDaemonPod".to_owned())).await;
            world.edit(&set, |set| set["spec"]["template"]["spec"]["nodeSelector"] = json!({ "a": "b" }));
            world.until("no pod", |w| w.list::<Pod>().is_empty()).await;
        });
    }

    #[test]
    fn a_refused_pod_is_tried_again() {
        run(async {
            let (world, set) = world(&[]);
            world.refuse::<Pod>(Some((403, "Forbidden", "exceeded quota")));
            for node in ["n1", "n2", "n3"] {
                world.create::<Node>(json!({ "metadata": { "name": node } }));
            }
            world.until("an event", |w| w.events().contains(&"FailedCreate".to_owned())).await;
            assert!(world.list::<Pod>().is_empty());
            world.refuse::<Pod>(None);
            world.until("three pods", |w| w.list::<Pod>().len() == 3).await;
            world.delete(&set);
        });
    }
}
