//! Watches over nodes: one that is not heard of becomes Unknown, is tainted, and its pods leave
//! (upstream pkg/controller/nodelifecycle and pkg/controller/tainteviction).

mod eviction;
mod taints;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::{Error, EventType, Informer, Queue, Recorder, reference};
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, ignore_not_found};
use crate::{pods, time};

/// A node that is not heard of for so long is Unknown.
const GRACE: Duration = Duration::from_secs(40);
/// A new node may take longer until it is first heard of.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// Nodes of one zone start to lose their pods one after the other, at this distance
/// (upstream: 0.1 nodes a second).
const EVICTION_DISTANCE: Duration = Duration::from_secs(10);
/// The same in a large zone of which most nodes are not ready (upstream: 0.01 a second).
const SLOW_EVICTION_DISTANCE: Duration = Duration::from_secs(100);
/// A zone with more nodes is large.
const LARGE_ZONE: usize = 50;
const LEASES: &str = "kube-node-lease";

/// When a node was heard of, by our own clock: its clock does not matter.
struct Heard {
    at: Instant,
    /// Whether by a heartbeat, or only because we began to look.
    alive: bool,
}

struct Controller {
    ctx: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    recorder: Recorder,
    queue: Queue<String>,
    heard: Mutex<HashMap<String, Heard>>,
    /// When a node of the zone last began to lose its pods.
    evicted: Mutex<HashMap<String, Instant>>,
    /// Nodes that are not ready and whose pods were told so, with the status it was for. It is said once for
    /// each (upstream: at the change): a kubelet that still answers writes what is true again, and the two would
    /// take turns; one that then is not heard of any more does not.
    marked: Mutex<HashMap<String, String>>,
}

pub(crate) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        nodes: ctx.informers.informer::<Node>(),
        pods: ctx.informers.informer::<Pod>(),
        recorder: ctx.recorder("node-controller"),
        queue: Queue::new(),
        heard: Mutex::default(),
        evicted: Mutex::default(),
        marked: Mutex::default(),
        ctx: ctx.clone(),
    });
    let leases = ctx.informers.informer::<Lease>();
    let this = controller.clone();
    ctx.on_change(&leases, move |change| {
        let key = change.key();
        let renewed = |side: &Option<Arc<Lease>>| {
            side.as_ref().and_then(|lease| lease.spec.as_ref()?.renew_time.clone())
        };
        if key.namespace == LEASES && change.new.is_some() && renewed(&change.old) != renewed(&change.new) {
            this.hear(&key.name);
        }
    });
    let this = controller.clone();
    ctx.on_change(&controller.nodes, move |change| {
        let name = change.key().name;
        let Some(new) = &change.new else {
            this.heard.lock().remove(&name);
            this.marked.lock().remove(&name);
            return;
        };
        let beat = |node: &Node| taints::condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        match &change.old {
            Some(old) if beat(old) != beat(new) => this.hear(&name),
            _ => {
                let start = || Heard { at: Instant::now(), alive: taints::condition(new, "Ready").is_some() };
                this.heard.lock().entry(name.clone()).or_insert_with(start);
            }
        }
        let flipped = change.old.as_ref().is_some_and(|old| taints::is_ready(old) != taints::is_ready(new));
        if flipped {
            // Whether pods may be evicted depends on how many nodes are ready.
            for node in this.nodes.list() {
                this.queue.add(node.metadata.name.clone().unwrap_or_default());
            }
        }
        let shown = |node: &Node| {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            let states: Vec<_> = conditions.iter().map(|c| (c.type_.clone(), c.status.clone())).collect();
            (states, node.spec.clone())
        };
        if change.old.as_ref().is_none_or(|old| shown(old) != shown(new)) {
            this.queue.add(name);
        }
    });
    let (n, p) = (controller.nodes.clone(), controller.pods.clone());
    let synced = async move {
        n.synced().await;
        p.synced().await;
        leases.synced().await;
    };
    eviction::start(ctx);
    ctx.run("node-lifecycle", controller.queue.clone(), 2, synced, move |name: String| {
        let this = controller.clone();
        async move { this.reconcile(&name).await }
    });
}

impl Controller {
    fn hear(&self, name: &str) {
        let mut heard = self.heard.lock();
        let was_silent = heard.get(name).is_some_and(|heard| heard.at.elapsed() >= GRACE);
        heard.insert(name.to_owned(), Heard { at: Instant::now(), alive: true });
        drop(heard);
        if was_silent {
            self.queue.add(name.to_owned());
        }
    }

    async fn reconcile(&self, name: &str) -> Result<Option<Duration>, Error> {
        let Some(mut node) = self.nodes.get("", name) else { return Ok(None) };
        let (silent, grace) = {
            let mut heard = self.heard.lock();
            let heard =
                heard.entry(name.to_owned()).or_insert_with(|| Heard { at: Instant::now(), alive: false });
            (heard.at.elapsed(), if heard.alive { GRACE } else { STARTUP_GRACE })
        };
        let mut next = grace.saturating_sub(silent);
        if next.is_zero() {
            let unknown = taints::condition(&node, "Ready").is_some_and(|c| c.status == "Unknown");
            if !unknown {
                node = self.mark_unknown(&node).await?;
            }
            // Heard of again, it comes back by itself.
            next = Duration::MAX;
        }
        let ready = taints::condition(&node, "Ready").map(|ready| ready.status.clone()).unwrap_or_default();
        if ready == "True" {
            self.marked.lock().remove(name);
        } else if self.marked.lock().get(name) != Some(&ready) {
            self.mark_pods(&node).await?;
            self.marked.lock().insert(name.to_owned(), ready);
        }
        let (evict, distance) = self.disruption(&node);
        let mut wanted = taints::wanted(&node, evict);
        if taints::adds_eviction(&node, &wanted) {
            let wait = self.wait_for_slot(zone(&node), distance);
            if !wait.is_zero() {
                next = next.min(wait);
                wanted = taints::wanted(&node, false);
            }
        }
        let current = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        if current != wanted.as_slice() {
            let patch = json!({
                "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": wanted },
            });
            let api = kube::Api::<Node>::all(self.ctx.client.clone());
            ignore_not_found(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        Ok((next != Duration::MAX).then_some(next))
    }

    async fn mark_unknown(&self, node: &Node) -> Result<Arc<Node>, Error> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let patch = json!({
            "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
            "status": { "conditions": taints::unknown_conditions(node) },
        });
        let api = kube::Api::<Node>::all(self.ctx.client.clone());
        let marked = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        tracing::warn!(node = %name, "node is not heard of any more");
        if taints::is_ready(node) {
            let text = format!("Node {name} status is now: NodeNotReady");
            self.recorder.event(reference(node), EventType::Normal, "NodeNotReady", text);
        }
        Ok(Arc::new(marked))
    }

    /// Pods on a node that is not ready are not ready either: Services must not send to them.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        for pod in self.pods.list() {
            if pods::node_name(&pod) != name || !pods::is_ready(&pod) {
                continue;
            }
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": { "conditions": [
                    { "type": "Ready", "status": "False", "lastTransitionTime": time::now() },
                ] },
            });
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
            let api = self.ctx.api::<Pod>(namespace);
            let patched = api.patch_status(pod_name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            ignore_not_found(patched)?;
            self.recorder.event(reference(&*pod), EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    /// Whether pods may be driven off this node, and at what distance from the last such node.
    fn disruption(&self, node: &Node) -> (bool, Duration) {
        let mut zones: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for other in self.nodes.list() {
            let counts = zones.entry(zone(&other)).or_default();
            let same = other.metadata.uid == node.metadata.uid;
            let ready = if same { taints::is_ready(node) } else { taints::is_ready(&other) };
            if ready {
                counts.0 += 1;
            } else {
                counts.1 += 1;
            }
        }
        let own = zones.get(&zone(node)).copied().unwrap_or_default();
        judge(zones.values().copied(), own)
    }

    /// Zero: this node is next, and the slot is taken. Else how long to wait.
    fn wait_for_slot(&self, zone: String, distance: Duration) -> Duration {
        let mut evicted = self.evicted.lock();
        let wait = evicted.get(&zone).map_or(Duration::ZERO, |last| distance.saturating_sub(last.elapsed()));
        if wait.is_zero() {
            evicted.insert(zone, Instant::now());
        }
        wait
    }
}

/// Region and zone, as upstream joins them.
fn zone(node: &Node) -> String {
    let label = |name: &str| {
        node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).map_or("", String::as_str)
    };
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// Zones as (ready, not ready). When no node at all is ready, it is we who are cut off: nobody is
/// evicted. In a zone of which most is not ready, few are (or none, when it is small).
fn judge(mut zones: impl Iterator<Item = (usize, usize)>, own: (usize, usize)) -> (bool, Duration) {
    if zones.all(|(ready, _)| ready == 0) {
        return (false, EVICTION_DISTANCE);
    }
    let (ready, not_ready) = own;
    let total = ready + not_ready;
    let partial = ready > 0 && not_ready > 2 && not_ready * 100 >= total * 55;
    match (partial, total > LARGE_ZONE) {
        (false, _) => (true, EVICTION_DISTANCE),
        (true, true) => (true, SLOW_EVICTION_DISTANCE),
        (true, false) => (false, EVICTION_DISTANCE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disruption_stops_evictions() {
        for (zones, own, evict, slow) in [
            (vec![(0, 1)], (0, 1), false, false),
            (vec![(2, 1)], (2, 1), true, false),
            (vec![(0, 3), (3, 0)], (0, 3), true, false),
            (vec![(1, 9)], (1, 9), false, false),
            (vec![(10, 50)], (10, 50), true, true),
            (vec![(1, 2)], (1, 2), true, false),
        ] {
            let (may, distance) = judge(zones.clone().into_iter(), own);
            assert_eq!((may, distance == SLOW_EVICTION_DISTANCE), (evict, slow), "{zones:?}");
        }
    }
}
