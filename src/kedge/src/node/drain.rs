//! Moves the pods of a node away, as `kubectl drain` does it: cordon, then evict what a controller will
//! make again elsewhere, and wait until it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::{Event, Watch};
use kube::Resource as _;
use kube::api::{Api, EvictParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// All pods together; disruption budgets may hold some of them up.
const LIMIT: Duration = Duration::from_secs(120);
/// A budget that is used up is asked again after this time.
const AGAIN: Duration = Duration::from_secs(2);
/// A kubelet renews its lease every 10 s: one that has not for so long, and does not answer, is not there.
const SILENT: Duration = Duration::from_secs(15);

/// Does the Node's condition say so?
pub(crate) fn is_ready(node: &Node) -> bool {
    ready(node) == Some("True")
}

fn ready(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

/// What is being done, in words, for whoever waits for it.
#[derive(Debug, Default)]
pub(crate) struct Progress(watch::Sender<String>);

impl Progress {
    pub(crate) fn say(&self, text: String) {
        self.0.send_replace(text);
    }

    pub(crate) fn clear(&self) {
        self.0.send_replace(String::new());
    }

    pub(crate) fn text(&self) -> String {
        self.0.borrow().clone()
    }
}

/// What became of moving the pods of a node away.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// It took pods before.
    pub(crate) cordoned: bool,
    /// How it showed that nobody is there any more who could end the pods: they are deleted with the node.
    pub(crate) lost: Option<String>,
}

/// Cordon and evict. Ends early when `lost` does.
///
/// # Errors
/// When the API server refuses, or a pod is still there after two minutes. Then the node takes pods again, if
/// it did before.
pub(crate) async fn drain(
    client: &kube::Client,
    node: &str,
    progress: &Progress,
    lost: impl Future<Output = String>,
) -> anyhow::Result<Drained> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(known) = nodes.get_opt(node).await.with_context(|| format!("cordon {node}"))? else {
        // It never registered: nothing runs there.
        return Ok(Drained::default());
    };
    let cordoned = known.spec.and_then(|spec| spec.unschedulable) != Some(true);
    if cordoned {
        schedulable(&nodes, node, false).await.with_context(|| format!("cordon {node}"))?;
    }
    let moved = tokio::select! {
        moved = tokio::time::timeout(LIMIT, moved(client, node, progress)) => moved,
        why = lost => {
            tracing::warn!(node, why, "its pods are not moved away any longer: they go with it");
            return Ok(Drained { cordoned, lost: Some(why) });
        }
    };
    let failed = match moved {
        Ok(Ok(())) => return Ok(Drained { cordoned, lost: None }),
        Ok(Err(error)) => error.context(format!("move the pods of {node} away")),
        Err(_) => anyhow!(
            "the pods of {node} are not gone after {} s ({}); kubectl get pods -A -o wide shows them (a disruption \
             budget may hold them), --force does not wait for them",
            LIMIT.as_secs(),
            progress.text()
        ),
    };
    if cordoned {
        uncordon(client, node).await;
    }
    Err(failed)
}

async fn schedulable(nodes: &Api<Node>, node: &str, yes: bool) -> kube::Result<()> {
    let patch = json!({ "spec": { "unschedulable": if yes { Value::Null } else { true.into() } } });
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

/// It stays after all: it takes pods again.
pub(crate) async fn uncordon(client: &kube::Client, node: &str) {
    if let Err(error) = schedulable(&Api::all(client.clone()), node, true).await {
        tracing::warn!(node, error = %kedge_base::Chain(&error), "it stays cordoned: kubectl uncordon it");
    }
}

async fn moved(client: &kube::Client, node: &str, progress: &Progress) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::all(client.clone());
    let list = pods.list(&ListParams::default().fields(&format!("spec.nodeName={node}"))).await?;
    let going: Vec<Pod> = list.items.into_iter().filter(moves).collect();
    for pod in &going {
        evict(client, pod, progress).await?;
    }
    let waiting = going.iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, full_name(pod)))).collect();
    gone(client, node, waiting, progress).await;
    Ok(())
}

/// Returns when nobody is on the node any more who could end its pods, and says how that shows: its condition,
/// or that it neither answers nor renews its lease. A node that says itself that it is not ready is there.
pub(crate) async fn until_lost(client: &kube::Client, node: &str) -> String {
    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    // Clocks may differ: what counts is whether it changes while this looks.
    let (mut renewed, mut since) = (None, Instant::now());
    loop {
        tokio::time::sleep(AGAIN).await;
        let found = match nodes.get_opt(node).await {
            Ok(Some(found)) if ready(&found) == Some("Unknown") => return "is not heard of any more".into(),
            Ok(Some(found)) => found,
            Ok(None) => return "has no Node object any more".into(),
            // Whoever moves the pods says why the API server does not answer.
            Err(_) => continue,
        };
        let Ok(lease) = leases.get_opt(node).await else { continue };
        let now = lease.and_then(|lease| lease.spec?.renew_time);
        if now != renewed {
            (renewed, since) = (now, Instant::now());
        } else if since.elapsed() >= SILENT && !answers(&found).await {
            return "does not answer".into();
        }
    }
}

/// Does anybody listen at the kubelet's port?
async fn answers(node: &Node) -> bool {
    let Some(status) = &node.status else { return false };
    let port = status.daemon_endpoints.as_ref().and_then(|ends| ends.kubelet_endpoint.as_ref());
    let port = port.and_then(|port| u16::try_from(port.port).ok()).unwrap_or(10250);
    for address in status.addresses.iter().flatten().filter(|address| address.type_ == "InternalIP") {
        let connect = tokio::net::TcpStream::connect((address.address.as_str(), port));
        if matches!(tokio::time::timeout(AGAIN, connect).await, Ok(Ok(_))) {
            return true;
        }
    }
    false
}

/// Returns when none of these pods (names by uid) is on the node any more. The watch is by node: a node may
/// watch its own pods and no others.
async fn gone(client: &kube::Client, node: &str, mut waiting: BTreeMap<String, String>, progress: &Progress) {
    let mut pods =
        Watch::<Pod>::new(client.clone(), Pod::url_path(&(), None), &format!("spec.nodeName={node}"), "");
    let mut listed = BTreeSet::new();
    while !waiting.is_empty() {
        progress.say(still_there(node, &waiting));
        match pods.next().await {
            Event::Begin => listed.clear(),
            Event::Listed(pod) => listed.extend(pod.metadata.uid),
            Event::Done => waiting.retain(|uid, _| listed.contains(uid)),
            Event::Changed(_) => {}
            Event::Deleted(pod) => waiting.retain(|uid, _| pod.metadata.uid.as_ref() != Some(uid)),
        }
    }
}

fn still_there(node: &str, waiting: &BTreeMap<String, String>) -> String {
    let mut names: Vec<&str> = waiting.values().take(3).map(String::as_str).collect();
    if waiting.len() > names.len() {
        names.push("...");
    }
    let pods = if waiting.len() == 1 { "pod" } else { "pods" };
    format!("waiting for {} {pods} to end on {node}: {}", waiting.len(), names.join(", "))
}

fn full_name(pod: &Pod) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

/// A DaemonSet's pods would come back at once, mirror pods are the node's own, and what has ended is no
/// work.
fn moves(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let of_daemon_set = owners.into_iter().any(|owner| owner.kind == "DaemonSet");
    let annotations = pod.metadata.annotations.as_ref();
    let mirror = annotations.is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !of_daemon_set && !mirror && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn namespaced(client: &kube::Client, pod: &Pod) -> Api<Pod> {
    Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"))
}

async fn evict(client: &kube::Client, pod: &Pod, progress: &Progress) -> anyhow::Result<()> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    loop {
        match namespaced(client, pod).evict(name, &EvictParams::default()).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 429 => {
                progress.say(format!("a disruption budget holds the pod {}", full_name(pod)));
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(error).with_context(|| format!("evict the pod {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for() {
        let waiting = |count: usize| (0..count).map(|i| (format!("u{i}"), format!("default/p{i}"))).collect();
        assert_eq!(still_there("n", &waiting(1)), "waiting for 1 pod to end on n: default/p0");
        assert_eq!(
            still_there("n", &waiting(4)),
            "waiting for 4 pods to end on n: default/p0, default/p1, default/p2, ..."
        );
    }

    #[tokio::test]
    async fn a_node_answers_at_its_kubelet_port() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let node = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        } });
        let node: Node = serde_json::from_value(node).unwrap();
        assert!(answers(&node).await);
        drop(listener);
        assert!(!answers(&node).await);
    }

    #[test]
    fn who_has_to_move() {
        for (pod, expected) in [
            (json!({}), true),
            (json!({"status": {"phase": "Running"}}), true),
            (json!({"status": {"phase": "Succeeded"}}), false),
            (json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}), false),
            (
                json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]}}),
                false,
            ),
        ] {
            let parsed: Pod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(moves(&parsed), expected, "{pod}");
        }
    }
}
