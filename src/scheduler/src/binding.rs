//! What the scheduler writes: bindings (DefaultBinder), volumes' reservations, conditions of pods
//! that wait, and evictions by preemption. The only module that sends requests.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_client::Error;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::plugins::volume_binding::{Action, SELECTED_NODE};
use crate::pod::PodInfo;

fn pods(client: &kube::Client, pod: &PodInfo) -> Api<Pod> {
    Api::namespaced(client.clone(), pod.namespace())
}

/// Binds the pod to the node by its `binding` subresource.
pub(crate) async fn bind(client: &kube::Client, pod: &PodInfo, node: &str) -> Result<(), Error> {
    let mut binding = Binding::default();
    binding.metadata.name = Some(pod.name.clone());
    binding.metadata.namespace = Some(pod.namespace().to_owned());
    binding.metadata.uid = Some(pod.uid.clone());
    binding.target = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    let api = pods(client, pod);
    let _: serde_json::Value =
        api.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await?;
    Ok(())
}

/// Reserves a volume, or tells the provisioner about the node.
pub(crate) async fn prepare_volume(client: &kube::Client, action: &Action) -> Result<(), Error> {
    match action {
        Action::Reserve { volume, claim } => {
            let api: Api<PersistentVolume> = Api::all(client.clone());
            let patch = json!({
                "metadata": {
                    "resourceVersion": volume.metadata.resource_version,
                    "annotations": { "pv.kubernetes.io/bound-by-controller": "yes" },
                },
                "spec": { "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": claim.metadata.namespace,
                    "name": claim.metadata.name,
                    "uid": claim.metadata.uid,
                } },
            });
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        Action::Provision { claim, node } => {
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
    }
    Ok(())
}

/// Whether the pod already carries the condition.
pub(crate) fn has_condition(pod: &Pod, reason: &str, message: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some(reason)
            && condition.message.as_deref() == Some(message)
    })
}

/// Writes PodScheduled=False; `nominated` sets (`Some("")` clears) the nominated node.
pub(crate) async fn mark_unscheduled(
    client: &kube::Client,
    pod: &PodInfo,
    reason: &str,
    message: &str,
    nominated: Option<&str>,
) -> Result<(), Error> {
    let before = pod.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let since = before
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        .and_then(|condition| condition.last_transition_time.clone())
        .unwrap_or_else(|| Time(Timestamp::now()));
    let mut status = json!({ "conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": reason,
        "message": message,
        "observedGeneration": pod.pod.metadata.generation,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    }] });
    if let Some(node) = nominated {
        status["nominatedNodeName"] = if node.is_empty() { json!(null) } else { json!(node) };
    }
    let patch = json!({ "metadata": { "uid": pod.uid }, "status": status });
    pods(client, pod).patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

/// Marks a victim of preemption and deletes it.
pub(crate) async fn evict(client: &kube::Client, victim: &PodInfo, scheduler: &str) -> Result<(), Error> {
    let api = pods(client, victim);
    let patch = json!({ "metadata": { "uid": victim.uid }, "status": { "conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "observedGeneration": victim.pod.metadata.generation,
        "lastTransitionTime": Time(Timestamp::now()),
    }] } });
    let marked = api.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    let ended = match marked {
        Ok(_) => {
            let only_this = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
            api.delete(&victim.name, &parameters).await.map(|_| ())
        }
        Err(error) => Err(error),
    };
    match ended {
        Err(error) if !kedge_client::is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}
