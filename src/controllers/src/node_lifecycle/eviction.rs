//! Pods leave a node with a NoExecute taint that they do not tolerate, or tolerate for a time
//! (upstream pkg/controller/tainteviction).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, Recorder, reference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use super::taints::leaves_at;
use crate::context::{Context, ignore_not_found};
use crate::{pods, time};

struct Controller {
    ctx: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    recorder: Recorder,
    /// Since when pods with limited patience have been on a tainted node, by their uid. Taints that people
    /// set do not say when they were added.
    waiting: Mutex<HashMap<ObjectKey, (Option<String>, Timestamp)>>,
}

pub(super) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        ctx: ctx.clone(),
        nodes: ctx.informers.informer::<Node>(),
        pods: ctx.informers.informer::<Pod>(),
        recorder: ctx.recorder("taint-eviction-controller"),
        waiting: Mutex::default(),
    });
    let queue: Queue<ObjectKey> = Queue::new();
    let (adder, this) = (queue.clone(), controller.clone());
    ctx.on_change(&controller.pods, move |change| {
        let Some(pod) = &change.new else { return };
        let moved = change.old.as_ref().is_none_or(|old| pods::node_name(old) != pods::node_name(pod));
        let tainted = || this.nodes.get("", pods::node_name(pod)).is_some_and(|node| evicts(&node));
        if moved && !pods::node_name(pod).is_empty() && tainted() {
            adder.add(change.key());
        }
    });
    let (adder, this) = (queue.clone(), controller.clone());
    ctx.on_change(&controller.nodes, move |change| {
        let Some(node) = &change.new else { return };
        let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
        // Without the taint the waiting ends, too.
        let eased = change.old.as_ref().is_some_and(|old| evicts(old));
        if !(evicts(node) || eased) || change.old.as_ref().is_some_and(|old| taints(old) == taints(node)) {
            return;
        }
        let name = change.key().name;
        for pod in this.pods.list() {
            if pods::node_name(&pod) == name {
                adder.add(ObjectKey::of(&*pod));
            }
        }
    });
    let (n, p) = (controller.nodes.clone(), controller.pods.clone());
    let synced = async move {
        n.synced().await;
        p.synced().await;
    };
    ctx.run("taint-eviction", queue, 4, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

fn evicts(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.effect == "NoExecute")
}

impl Controller {
    /// The pod and when it must leave, if it must.
    fn leaving(&self, key: &ObjectKey, now: Timestamp) -> Option<(Arc<Pod>, Timestamp)> {
        let pod = self.pods.get_key(key).filter(|pod| pod.metadata.deletion_timestamp.is_none())?;
        let node = self.nodes.get("", pods::node_name(&pod))?;
        if !evicts(&node) {
            return None;
        }
        let seen = {
            let mut waiting = self.waiting.lock();
            let entry = waiting.entry(key.clone()).or_insert_with(|| (pod.metadata.uid.clone(), now));
            if entry.0 != pod.metadata.uid {
                *entry = (pod.metadata.uid.clone(), now);
            }
            entry.1
        };
        let at = leaves_at(&node, &pod, seen)?;
        Some((pod, at))
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let now = Timestamp::now();
        let Some((pod, at)) = self.leaving(key, now) else {
            self.waiting.lock().remove(key);
            return Ok(None);
        };
        let left = time::until(at, now);
        if !left.is_zero() {
            // Looked at again then: the taint may have gone meanwhile.
            return Ok(Some(left));
        }
        let api = self.ctx.api::<Pod>(&key.namespace);
        if !pods::is_finished(&pod) {
            let text = format!("Marking for deletion Pod {key}");
            self.recorder.event(reference(&*pod), EventType::Normal, "TaintManagerEviction", text);
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": { "conditions": [{
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint",
                    "lastTransitionTime": time::now(), "observedGeneration": pod.metadata.generation,
                }] },
            });
            ignore_not_found(
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await,
            )?;
        }
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        ignore_not_found(api.delete(&key.name, &params).await)?;
        Ok(None)
    }
}
