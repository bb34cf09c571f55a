//! Moves the pods of a node away, as `kubectl drain` does it: cordon, then evict what a controller will
//! make again elsewhere, and wait until it is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::{Event, Watch};
use kube::Resource as _;
use kube::api::{Api, EvictParams, ListParams, Patch, PatchParams};
use serde_json::json;

/// All pods together; disruption budgets may hold some of them up.
const LIMIT: Duration = Duration::from_secs(120);
/// A budget that is used up is asked again after this time.
const AGAIN: Duration = Duration::from_secs(2);

/// Does the Node's condition say so?
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Cordon and evict.
///
/// # Errors
/// When the API server refuses, or a pod is still there after two minutes.
pub(crate) async fn drain(client: &kube::Client, node: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let cordon = json!({ "spec": { "unschedulable": true } });
    match nodes.patch(node, &PatchParams::default(), &Patch::Merge(&cordon)).await {
        Ok(_) => {}
        // It never registered: nothing runs there.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cordon {node}")),
    }
    let pods: Api<Pod> = Api::all(client.clone());
    let list = pods.list(&ListParams::default().fields(&format!("spec.nodeName={node}"))).await?;
    let going: Vec<Pod> = list.items.into_iter().filter(moves).collect();
    let all = async {
        for pod in &going {
            evict(client, pod).await?;
        }
        gone(client, node, going.iter().filter_map(|pod| pod.metadata.uid.clone()).collect()).await;
        anyhow::Ok(())
    };
    match tokio::time::timeout(LIMIT, all).await {
        Ok(result) => result.with_context(|| format!("move the pods of {node} away")),
        Err(_) => bail!(
            "the pods of {node} are not gone after {} s; kubectl get pods -A -o wide shows them (a disruption \
             budget may hold them), --force does not wait for them",
            LIMIT.as_secs()
        ),
    }
}

/// Returns when none of these pods is on the node any more. The watch is by node: a node may watch its own
/// pods and no others.
async fn gone(client: &kube::Client, node: &str, mut waiting: BTreeSet<String>) {
    let mut pods =
        Watch::<Pod>::new(client.clone(), Pod::url_path(&(), None), &format!("spec.nodeName={node}"), "");
    let mut listed = BTreeSet::new();
    while !waiting.is_empty() {
        match pods.next().await {
            Event::Begin => listed.clear(),
            Event::Listed(pod) => listed.extend(pod.metadata.uid),
            Event::Done => waiting.retain(|uid| listed.contains(uid)),
            Event::Changed(_) => {}
            Event::Deleted(pod) => waiting.retain(|uid| pod.metadata.uid.as_ref() != Some(uid)),
        }
    }
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

async fn evict(client: &kube::Client, pod: &Pod) -> anyhow::Result<()> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    loop {
        match namespaced(client, pod).evict(name, &EvictParams::default()).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 429 => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(error).with_context(|| format!("evict the pod {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
