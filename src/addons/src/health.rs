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

/// `Ok`: it is healthy. `Err`: what it waits for, in words.
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
    let (wanted, updated, ready) = match kind {
        "DaemonSet" => {
            (status("desiredNumberScheduled"), status("updatedNumberScheduled"), status("numberAvailable"))
        }
        "StatefulSet" => {
            (number("/spec/replicas").unwrap_or(1), status("updatedReplicas"), status("readyReplicas"))
        }
        _ => (number("/spec/replicas").unwrap_or(1), status("updatedReplicas"), status("availableReplicas")),
    };
    if updated < wanted || ready < wanted {
        return Err(format!("{} of {wanted} pods are ready", ready.min(updated)));
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
                let _ = write!(reason, "; {pod}");
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
    let pod = pods.items.iter().find(|pod| !is_ready(pod))?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let selector = format!("involvedObject.kind=Pod,involvedObject.name={name},type=Warning");
    let mut events = events.list(&ListParams::default().fields(&selector)).await.ok()?.items;
    events.order_by_key(|event| event.last_timestamp.clone().map(|time| time.0));
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    Some(match events.last() {
        Some(event) => format!(
            "pod {namespace}/{name} is {phase}: {}: {}",
            event.reason.as_deref().unwrap_or_default(),
            event.message.as_deref().unwrap_or_default()
        ),
        None => format!("pod {namespace}/{name} is {phase}"),
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
}
