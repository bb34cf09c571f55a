//! Who stops an object from being healthy: the pod, and the event that says why.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Event, Pod};
use kedge_base::Order as _;
use kube::api::{Api, ListParams};
use serde_json::Value;

use crate::inventory::ObjectRef;

/// What is wrong, and the words behind `kubectl` that show all of it.
pub(super) struct Culprit {
    pub(super) text: String,
    pub(super) describe: String,
}

/// The first pod that the object makes or selects which is not well, or what is said of the object itself.
pub(super) async fn culprit(client: &kube::Client, object: &ObjectRef, found: &Value) -> Culprit {
    let kind = object.kind.to_lowercase();
    let describe = match &object.namespace {
        Some(namespace) => format!("-n {namespace} describe {kind} {}", object.name),
        None => format!("describe {kind} {}", object.name),
    };
    let own = || Culprit { text: String::new(), describe };
    let Some(namespace) = object.namespace.as_deref() else { return own() };
    match blocking_pod(client, namespace, object, found).await {
        Some((name, mut text)) => {
            if object.kind != "Pod" {
                text = format!("pod {namespace}/{name} {text}");
            }
            Culprit { text, describe: format!("-n {namespace} describe pod {name}") }
        }
        None => {
            let mut culprit = own();
            let events = warnings(client, namespace, &object.kind, &object.name).await;
            if let Some((reason, message)) = telling(&events) {
                culprit.text = format!("{reason}: {message}");
            } else if let Some(message) = refused_pods(found) {
                culprit.text = message;
            }
            culprit
        }
    }
}

/// Its name, and how it is.
async fn blocking_pod(
    client: &kube::Client,
    namespace: &str,
    object: &ObjectRef,
    found: &Value,
) -> Option<(String, String)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = if object.kind == "Pod" {
        pods.get_opt(&object.name).await.ok()??
    } else {
        let selector = match object.kind.as_str() {
            "Service" => found.pointer("/spec/selector")?,
            _ => found.pointer("/spec/selector/matchLabels")?,
        };
        let label = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
        let labels: Vec<String> = selector.as_object()?.iter().map(label).collect();
        let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await.ok()?;
        pods.items.into_iter().find(is_stuck)?
    };
    let name = pod.metadata.name.clone().unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let mut text = format!("is {phase}");
    let events = warnings(client, namespace, "Pod", &name).await;
    if let Some((reason, message)) = telling(&events) {
        let _ = write!(text, ": {reason}: {message}");
    }
    if let Some(ended) = last_end(&pod) {
        let _ = write!(text, " ({ended})");
    }
    Some((name, text))
}

/// Neither ready, nor done, nor on its way out.
fn is_stuck(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let done = status.and_then(|status| status.phase.as_deref()) == Some("Succeeded");
    !ready && !done && pod.metadata.deletion_timestamp.is_none()
}

/// The warnings about an object, the newest last: reason and message.
async fn warnings(client: &kube::Client, namespace: &str, kind: &str, name: &str) -> Vec<(String, String)> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let selector = format!("involvedObject.kind={kind},involvedObject.name={name},type=Warning");
    let Ok(events) = events.list(&ListParams::default().fields(&selector)).await else { return Vec::new() };
    let mut events = events.items;
    events.order_by_key(|event| event.last_timestamp.clone().map(|time| time.0));
    events
        .into_iter()
        .map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default()))
        .collect()
}

/// Why a Deployment has no pods: its ReplicaSet's events would say the same.
fn refused_pods(deployment: &Value) -> Option<String> {
    let conditions = deployment.pointer("/status/conditions")?.as_array()?;
    let failure = conditions.iter().find(|one| one["type"] == "ReplicaFailure" && one["status"] == "True")?;
    failure["message"].as_str().map(str::to_owned)
}

/// The newest event that says more than the name of a state: the kubelet's "Error: ImagePullBackOff" follows
/// the one that names the image and what its registry said.
fn telling(events: &[(String, String)]) -> Option<&(String, String)> {
    let bare = |message: &str| message.strip_prefix("Error: ").is_some_and(|state| !state.contains(' '));
    events.iter().rev().find(|(_, message)| !bare(message)).or(events.last())
}

/// How a container of the pod ended that does not run.
fn last_end(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(|container| {
        let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
        let ended = now.or(container.last_state.as_ref().and_then(|state| state.terminated.as_ref()))?;
        let message = ended.message.as_deref().unwrap_or_default().trim();
        let colon = if message.is_empty() { "" } else { ": " };
        (ended.exit_code != 0).then(|| {
            format!("container {} ended with code {}{colon}{message}", container.name, ended.exit_code)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_that_names_the_image_is_told() {
        let event = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
        let pull = event("Failed", "Failed to pull image \"no/such:1\": not found");
        let events = [
            pull.clone(),
            event("Failed", "Error: ErrImagePull"),
            event("Failed", "Error: ImagePullBackOff"),
        ];
        assert_eq!(telling(&events), Some(&pull));
        assert_eq!(telling(&events[1..]), Some(&events[2]));
        let crash = event("BackOff", "Back-off restarting failed container dns in pod kube-dns");
        assert_eq!(telling(&[pull, crash.clone()]), Some(&crash));
        assert_eq!(telling(&[]), None);
    }
}
