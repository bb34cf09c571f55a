//! Pods leave a node with a NoExecute taint that they do not tolerate, or tolerate for a time
//! (upstream pkg/controller/tainteviction).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, Recorder, reference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::taints::leaves_at;
use crate::context::{Context, ignore_not_found};
use crate::{pods, time};

struct Controller {
    ctx: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    recorder: Recorder,
}

pub(super) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        ctx: ctx.clone(),
        nodes: ctx.informers.informer::<Node>(),
        pods: ctx.informers.informer::<Pod>(),
        recorder: ctx.recorder("taint-eviction-controller"),
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
        if !evicts(node) || change.old.as_ref().is_some_and(|old| taints(old) == taints(node)) {
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
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get_key(key) else { return Ok(None) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let Some(node) = self.nodes.get("", pods::node_name(&pod)) else { return Ok(None) };
        let now = Timestamp::now();
        let Some(at) = leaves_at(&node, &pod, now) else { return Ok(None) };
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
                    "lastTransitionTime": time::now(),
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
