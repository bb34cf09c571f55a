//! Deletes pods that nobody else will (upstream pkg/controller/podgc): on nodes that are gone, being
//! deleted without ever having been scheduled, on nodes that are out of service, and too many finished ones.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_base::Order as _;
use kedge_client::{Error, Informer, ObjectKey, Queue};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, ignore_not_found};
use crate::{pods, time};

/// A node must be missing for so long before its pods are deleted: it may just be registering again.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    /// Look at this pod.
    Pod(ObjectKey),
    /// Count the finished pods.
    Finished,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Finished => f.write_str("finished pods"),
        }
    }
}

struct Collector {
    ctx: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    queue: Queue<Item>,
    /// Nodes that pods name and that do not exist, since when.
    missing: Mutex<HashMap<String, Instant>>,
}

pub(crate) fn start(ctx: &Context) {
    let collector = Arc::new(Collector {
        pods: ctx.informers.informer::<Pod>(),
        nodes: ctx.informers.informer::<Node>(),
        queue: Queue::new(),
        missing: Mutex::default(),
        ctx: ctx.clone(),
    });
    let this = collector.clone();
    ctx.on_change(&collector.pods, move |change| {
        let Some(pod) = &change.new else {
            if let Some(pod) = &change.old {
                forget_unnamed(&mut this.missing.lock(), pods::node_name(pod), || this.pods.list());
            }
            return;
        };
        let finished = pods::is_finished(pod);
        if finished && !change.old.as_ref().is_some_and(|old| pods::is_finished(old)) {
            this.queue.add(Item::Finished);
        }
        let node = pods::node_name(pod);
        let unscheduled = node.is_empty() && pod.metadata.deletion_timestamp.is_some();
        let lost = !node.is_empty() && this.nodes.get("", node).is_none();
        if unscheduled || lost || pod.metadata.deletion_timestamp.is_some() {
            this.queue.add(Item::Pod(change.key()));
        }
    });
    let this = collector.clone();
    ctx.on_change(&collector.nodes, move |change| {
        let out = change.new.as_ref().is_some_and(|node| is_out_of_service(node));
        if change.new.is_none() || out {
            let name = change.key().name;
            for pod in this.pods.list() {
                if pods::node_name(&pod) == name {
                    this.queue.add(Item::Pod(ObjectKey::of(&*pod)));
                }
            }
        }
    });
    let (p, n) = (collector.pods.clone(), collector.nodes.clone());
    let synced = async move {
        p.synced().await;
        n.synced().await;
    };
    ctx.run("pod-gc", collector.queue.clone(), 2, synced, move |item: Item| {
        let this = collector.clone();
        async move {
            match item {
                Item::Pod(key) => this.look_at(&key).await,
                Item::Finished => this.trim_finished().await,
            }
        }
    });
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn is_node_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

impl Collector {
    async fn look_at(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get_key(key) else { return Ok(None) };
        let node_name = pods::node_name(&pod);
        let terminating = pod.metadata.deletion_timestamp.is_some();
        if node_name.is_empty() {
            if terminating {
                self.delete(&pod, None).await?;
            }
            return Ok(None);
        }
        if let Some(node) = self.nodes.get("", node_name) {
            self.missing.lock().remove(node_name);
            if terminating && is_out_of_service(&node) && !is_node_ready(&node) {
                self.delete(&pod, None).await?;
            }
            return Ok(None);
        }
        let since = *self.missing.lock().entry(node_name.to_owned()).or_insert_with(Instant::now);
        let waited = since.elapsed();
        if waited < QUARANTINE {
            return Ok(Some(QUARANTINE.saturating_sub(waited)));
        }
        // The cache may be wrong: the node must be missing on the server as well.
        let api = kube::Api::<Node>::all(self.ctx.client.clone());
        if api.get_metadata_opt(node_name).await?.is_some() {
            return Ok(Some(QUARANTINE));
        }
        self.delete(&pod, Some("PodGC: node no longer exists")).await?;
        Ok(None)
    }

    /// The oldest finished pods above the threshold go.
    async fn trim_finished(&self) -> Result<Option<Duration>, Error> {
        let Ok(threshold) = usize::try_from(self.ctx.config.terminated_pod_threshold) else {
            return Ok(None);
        };
        if threshold == 0 {
            return Ok(None);
        }
        let mut finished: Vec<Arc<Pod>> = self.pods.list();
        finished.retain(|pod| pods::is_finished(pod) && pod.metadata.deletion_timestamp.is_none());
        for pod in oldest_above(finished, threshold) {
            self.delete(&pod, None).await?;
        }
        Ok(None)
    }

    /// Delete at once, without a grace period that nobody would keep. The pod is first marked as
    /// failed, and with a reason as disrupted: a Job counts it and its failure policy sees why.
    async fn delete(&self, pod: &Pod, disruption: Option<&str>) -> Result<(), kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = self.ctx.api::<Pod>(namespace);
        if !pods::is_finished(pod) {
            let mut status = json!({ "phase": "Failed", "observedGeneration": pod.metadata.generation });
            if let Some(text) = disruption {
                status["conditions"] = json!([{
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": text, "lastTransitionTime": time::now(),
                    "observedGeneration": pod.metadata.generation,
                }]);
            }
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
            ignore_not_found(
                api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await,
            )?;
        }
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
        ignore_not_found(api.delete(name, &params).await)?;
        tracing::info!(namespace, name, "pod deleted by the pod garbage collector");
        Ok(())
    }
}

/// A pod that named this node is gone: nodes that no pod names any more need no quarantine, and anybody may name any.
fn forget_unnamed(missing: &mut HashMap<String, Instant>, node: &str, pods: impl FnOnce() -> Vec<Arc<Pod>>) {
    if !missing.contains_key(node) {
        return;
    }
    let left = pods();
    let named: HashSet<&str> = left.iter().map(|pod| pods::node_name(pod)).collect();
    missing.retain(|name, _| named.contains(name.as_str()));
}

fn oldest_above(mut pods: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    let excess = pods.len().saturating_sub(threshold);
    pods.order_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    pods.truncate(excess);
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{at, pod};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn nodes_that_no_pod_names_are_forgotten() {
        let left = [Arc::new(pod("a", "kept", "Running", None))];
        let now = Instant::now();
        let mut missing: HashMap<String, Instant> =
            ["gone", "gone-before", "kept"].map(|name| (name.to_owned(), now)).into();
        forget_unnamed(&mut missing, "there", || panic!("nobody waits for this node"));
        assert_eq!(missing.len(), 3);
        forget_unnamed(&mut missing, "gone", || left.to_vec());
        assert_eq!(missing.into_keys().collect::<Vec<_>>(), ["kept"]);
    }

    #[test]
    fn the_oldest_finished_pods_go() {
        let made = |name: &str, second: i64| {
            let mut pod = pod(name, "n", "Succeeded", None);
            pod.metadata.creation_timestamp = Some(Time(at(second)));
            Arc::new(pod)
        };
        let all = vec![made("b", 20), made("a", 10), made("c", 30)];
        for (threshold, expected) in [(3, vec![]), (2, vec!["a"]), (1, vec!["a", "b"])] {
            let gone = oldest_above(all.clone(), threshold);
            let names: Vec<_> = gone.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
            assert_eq!(names, expected);
        }
    }
}
