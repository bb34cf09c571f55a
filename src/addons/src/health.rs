//! Is an addon healthy? Its workloads have rolled out and its API services answer: read from their
//! status by watches, never guessed from names. Who stops it is named with the event that says why.

use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kedge_base::Order as _;
use kedge_client::{Event as Seen, Watch};
use kube::api::{Api, DynamicObject, ListParams};
use serde_json::Value;

use crate::apply::Objects;
use crate::error::Error;
use crate::inventory::ObjectRef;

/// The kinds that have a health of their own.
const CHECKED: [&str; 4] = ["Deployment", "DaemonSet", "StatefulSet", "APIService"];

/// `Ok`: it is healthy. `Err`: what it waits for, in words. Workloads as `kubectl rollout status` takes them
/// (upstream's pkg/polymorphichelpers/rollout_status.go).
pub(crate) fn judge(kind: &str, object: &Value) -> Result<(), String> {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
    let status = |name: &str| number(&format!("/status/{name}")).unwrap_or(0);
    if kind == "APIService" {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let available = conditions.into_iter().flatten().find(|condition| condition["type"] == "Available");
        return match available {
            Some(condition) if condition["status"] == "True" => Ok(()),
            Some(condition) => Err(condition["message"].as_str().unwrap_or("is not available").to_owned()),
            None => Err("its availability is not known yet".to_owned()),
        };
    }
    if status("observedGeneration") < number("/metadata/generation").unwrap_or(0) {
        return Err("has not been looked at yet".to_owned());
    }
    let replicas = number("/spec/replicas").unwrap_or(1);
    let missing = |what: &str, have: i64, wanted: i64| Err(format!("{have} of {wanted} {what}"));
    match kind {
        "DaemonSet" => {
            let (wanted, updated) = (status("desiredNumberScheduled"), status("updatedNumberScheduled"));
            // Nobody replaces the pods of such a one but its owner.
            let by_hand = object.pointer("/spec/updateStrategy/type").is_some_and(|kind| kind == "OnDelete");
            if updated < wanted && !by_hand {
                return missing("pods are updated", updated, wanted);
            }
            let available = status("numberAvailable");
            if available < wanted {
                return missing("pods are ready", available, wanted);
            }
        }
        "StatefulSet" => {
            if status("readyReplicas") < replicas {
                return missing("pods are ready", status("readyReplicas"), replicas);
            }
            let strategy = object.pointer("/spec/updateStrategy/type").and_then(Value::as_str);
            let partition = number("/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0);
            let wanted = (replicas - partition).max(0);
            if strategy != Some("OnDelete") && status("updatedReplicas") < wanted {
                return missing("pods are updated", status("updatedReplicas"), wanted);
            }
        }
        // Old pods count as available too: they must be gone before the new ones are looked at.
        _ => {
            let updated = status("updatedReplicas");
            if updated < replicas {
                return missing("pods are updated", updated, replicas);
            }
            if status("replicas") > updated {
                let old = status("replicas") - updated;
                return Err(format!("{old} old pods wait for the new ones to be ready"));
            }
            if status("availableReplicas") < updated {
                return missing("pods are ready", status("availableReplicas"), updated);
            }
        }
    }
    Ok(())
}

/// Health now, without waiting: the reasons against it, empty when healthy.
pub(crate) async fn reasons(client: &kube::Client, objects: &[ObjectRef]) -> Result<Vec<String>, Error> {
    let mut known = Objects::new(client);
    let mut reasons = Vec::new();
    for object in objects {
        let Some(api) = known.api(object).await? else {
            reasons.push(format!("{object} is of a kind that is not served"));
            continue;
        };
        match api.get_opt(&object.name).await? {
            None => reasons.push(format!("{object} is missing")),
            Some(found) if CHECKED.contains(&object.kind.as_str()) => {
                if let Err(reason) = judge(&object.kind, &to_value(&found)) {
                    reasons.push(format!("{object}: {reason}"));
                }
            }
            Some(_) => {}
        }
    }
    Ok(reasons)
}

/// Waits until all are healthy, telling `progress` what it waits for.
///
/// # Errors
/// [`Error::Unhealthy`] with the pod and its event when `limit` is over.
pub(crate) async fn wait(
    client: &kube::Client,
    addon: &str,
    objects: &[ObjectRef],
    limit: Duration,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Error> {
    let mut known = Objects::new(client);
    let deadline = tokio::time::Instant::now() + limit;
    for object in objects.iter().filter(|object| CHECKED.contains(&object.kind.as_str())) {
        let Some(api) = known.api(object).await? else { continue };
        let (path, fields) = (api.resource_url().to_owned(), format!("metadata.name={}", object.name));
        let mut changes = Watch::<Value>::new(client.clone(), path, &fields, "");
        let mut last = "it does not exist yet".to_owned();
        let healthy = tokio::time::timeout_at(deadline, async {
            loop {
                match judge(&object.kind, &changes.next_object().await) {
                    Ok(()) => return,
                    Err(reason) => {
                        progress(&format!("{object}: {reason}"));
                        last = reason;
                    }
                }
            }
        })
        .await;
        if healthy.is_err() {
            let mut reason = format!("{object}: {last}");
            if let Some(pod) = blocking_pod(client, &mut known, object).await {
                let _ = write!(reason, " ({pod})");
            }
            return Err(Error::Unhealthy { addon: addon.to_owned(), seconds: limit.as_secs(), reason });
        }
    }
    Ok(())
}

/// Returns when an object that was deleted is really gone: with it goes what depends on it, and until then
/// nobody can make it anew.
///
/// # Errors
/// When the API server does not answer.
pub(crate) async fn gone(client: &kube::Client, object: &ObjectRef) -> Result<(), Error> {
    let mut known = Objects::new(client);
    let Some(api) = known.api(object).await? else { return Ok(()) };
    let (path, fields) = (api.resource_url().to_owned(), format!("metadata.name={}", object.name));
    let mut changes = Watch::<Value>::new(client.clone(), path, &fields, "");
    let mut there = false;
    loop {
        match changes.next().await {
            Seen::Begin => there = false,
            Seen::Listed(_) => there = true,
            Seen::Done if there => {}
            Seen::Done | Seen::Deleted(_) => return Ok(()),
            Seen::Changed(_) => {}
        }
    }
}

/// The first pod of a workload that is not ready, with its newest warning.
async fn blocking_pod(client: &kube::Client, known: &mut Objects<'_>, object: &ObjectRef) -> Option<String> {
    let workload = to_value(&known.api(object).await.ok()??.get(&object.name).await.ok()?);
    let labels: Vec<String> = workload
        .pointer("/spec/selector/matchLabels")?
        .as_object()?
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let namespace = object.namespace.as_deref().unwrap_or("default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await.ok()?;
    let is_ready = |pod: &&Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let pod = pods.items.iter().filter(stays).find(|pod| !is_ready(pod))?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let selector = format!("involvedObject.kind=Pod,involvedObject.name={name},type=Warning");
    let mut events = events.list(&ListParams::default().fields(&selector)).await.ok()?.items;
    events.order_by_key(|event| event.last_timestamp.clone().map(|time| time.0));
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let events: Vec<(String, String)> = events
        .into_iter()
        .map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default()))
        .collect();
    let mut text = format!("pod {namespace}/{name} is {phase}");
    if let Some((reason, message)) = telling(&events) {
        let _ = write!(text, ": {reason}: {message}");
    }
    if let Some(ended) = last_end(pod) {
        let _ = write!(text, " ({ended})");
    }
    Some(text)
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

fn to_value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn health_is_read_from_the_status() {
        let cases = [
            (
                "Deployment",
                json!({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 2}}),
                Err("has not been looked at yet"),
            ),
            (
                "Deployment",
                json!({"metadata": {"generation": 1}, "spec": {"replicas": 2}, "status": {"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 1}}),
                Err("1 of 2 pods are ready"),
            ),
            // The new pod does not start, and the old one goes on: maxUnavailable is 0.
            (
                "Deployment",
                json!({"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}}),
                Err("1 old pods wait for the new ones to be ready"),
            ),
            (
                "Deployment",
                json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 3}}),
                Err("1 of 3 pods are updated"),
            ),
            (
                "Deployment",
                json!({"metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1}}),
                Ok(()),
            ),
            (
                "DaemonSet",
                json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}}),
                Ok(()),
            ),
            (
                "StatefulSet",
                json!({"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": 1}}),
                Err("0 of 1 pods are ready"),
            ),
            (
                "StatefulSet",
                json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": {"observedGeneration": 2, "readyReplicas": 3, "updatedReplicas": 1}}),
                Err("1 of 3 pods are updated"),
            ),
            (
                "StatefulSet",
                json!({"metadata": {"generation": 2}, "spec": {"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}}, "status": {"observedGeneration": 2, "readyReplicas": 3, "updatedReplicas": 1}}),
                Ok(()),
            ),
            (
                "DaemonSet",
                json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 1, "numberAvailable": 3}}),
                Err("1 of 3 pods are updated"),
            ),
            (
                "APIService",
                json!({"status": {"conditions": [{"type": "Available", "status": "False", "message": "no endpoints"}]}}),
                Err("no endpoints"),
            ),
            ("APIService", json!({}), Err("its availability is not known yet")),
        ];
        for (kind, object, expected) in cases {
            assert_eq!(judge(kind, &object), expected.map_err(str::to_owned), "{kind} {object}");
        }
    }

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
