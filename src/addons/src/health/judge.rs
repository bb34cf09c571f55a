//! Is one object healthy? Read from its status alone, kind by kind.

use serde_json::Value;

use crate::inventory::ObjectRef;

/// Does the kind have a health that [`judge`] knows? A Service's is in its endpoints.
pub(super) fn is_judged(object: &ObjectRef) -> bool {
    matches!(
        (object.api_version.as_str(), object.kind.as_str()),
        ("v1", "Pod" | "PersistentVolumeClaim")
            | ("apps/v1", "Deployment" | "DaemonSet" | "StatefulSet")
            | ("batch/v1", "Job")
            | ("apiregistration.k8s.io/v1", "APIService")
    )
}

/// `Ok`: it is healthy. `Err`: what it waits for, in words. Workloads as `kubectl rollout status` takes them
/// (upstream's pkg/polymorphichelpers/rollout_status.go).
pub(super) fn judge(kind: &str, object: &Value) -> Result<(), String> {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
    let status = |name: &str| number(&format!("/status/{name}")).unwrap_or(0);
    match kind {
        "APIService" => return of_condition(object, "Available"),
        "Pod" => return of_pod(object),
        "Job" => return of_job(object),
        "PersistentVolumeClaim" => return of_claim(object),
        _ => {}
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

/// Nothing makes it healthy any more: waiting is no use.
pub(super) fn is_final(kind: &str, object: &Value) -> bool {
    match kind {
        "Job" => condition(object, "Failed").is_some_and(|failed| failed["status"] == "True"),
        "Pod" => phase(object) == "Failed",
        _ => false,
    }
}

/// By a condition that must be `True`.
pub(crate) fn of_condition(object: &Value, name: &str) -> Result<(), String> {
    match condition(object, name) {
        Some(condition) if condition["status"] == "True" => Ok(()),
        Some(condition) => Err(match condition["message"].as_str() {
            Some(message) if !message.is_empty() => message.to_owned(),
            _ => format!("is not {name}"),
        }),
        None => Err(format!("has no condition {name} yet")),
    }
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|condition| condition["type"] == name)
}

fn phase(object: &Value) -> &str {
    object.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Pending")
}

fn of_pod(pod: &Value) -> Result<(), String> {
    let once = pod.pointer("/spec/restartPolicy").is_some_and(|policy| policy != "Always");
    let ready = condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True");
    match phase(pod) {
        "Succeeded" if once => Ok(()),
        "Running" if ready => Ok(()),
        "Running" => Err("is not ready".to_owned()),
        phase => Err(format!("is {phase}")),
    }
}

fn of_job(job: &Value) -> Result<(), String> {
    let is_true = |name: &str| condition(job, name).filter(|condition| condition["status"] == "True");
    if is_true("Complete").is_some() || job.pointer("/spec/suspend") == Some(&Value::Bool(true)) {
        return Ok(());
    }
    if let Some(failed) = is_true("Failed") {
        let text = |name: &str| failed[name].as_str().unwrap_or_default();
        return Err(format!("has failed: {}: {}", text("reason"), text("message")));
    }
    let number = |pointer: &str| job.pointer(pointer).and_then(Value::as_i64);
    let wanted = number("/spec/completions").unwrap_or(1);
    Err(format!("{} of {wanted} pods have succeeded", number("/status/succeeded").unwrap_or(0)))
}

/// A claim may wait for its first pod, which says so itself.
fn of_claim(claim: &Value) -> Result<(), String> {
    match phase(claim) {
        "Lost" => Err("has lost its volume".to_owned()),
        _ => Ok(()),
    }
}

/// Must this Service have an endpoint? Only when one of the addon's own objects makes pods for it: others may
/// come later, or never.
pub(super) fn is_expected(service: &Value, objects: &[(ObjectRef, Option<Value>)]) -> bool {
    let selector = service.pointer("/spec/selector").and_then(Value::as_object);
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return false };
    let namespace = |object: &Value| object.pointer("/metadata/namespace").cloned();
    let makes_pods = |kind: &str, object: &Value| {
        let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
        match kind {
            "Deployment" | "StatefulSet" => number("/spec/replicas") != Some(0),
            "DaemonSet" => number("/status/desiredNumberScheduled").unwrap_or(0) > 0,
            "Pod" => true,
            _ => false,
        }
    };
    objects.iter().filter_map(|(named, object)| Some((named, object.as_ref()?))).any(|(named, object)| {
        let labels = match named.kind.as_str() {
            "Pod" => "/metadata/labels",
            _ => "/spec/template/metadata/labels",
        };
        is_judged(named)
            && makes_pods(&named.kind, object)
            && namespace(object) == namespace(service)
            && object
                .pointer(labels)
                .is_some_and(|labels| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
    })
}

/// Has this EndpointSlice somebody who answers? Unknown counts as ready, as the API says.
pub(super) fn has_endpoint(slice: &Value) -> bool {
    let endpoints = slice.get("endpoints").and_then(Value::as_array);
    endpoints
        .into_iter()
        .flatten()
        .any(|endpoint| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)))
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
            ("APIService", json!({}), Err("has no condition Available yet")),
            ("Pod", json!({"spec": {}}), Err("is Pending")),
            ("Pod", json!({"spec": {}, "status": {"phase": "Running"}}), Err("is not ready")),
            (
                "Pod",
                json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
                Ok(()),
            ),
            (
                "Pod",
                json!({"spec": {"restartPolicy": "Never"}, "status": {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]}}),
                Ok(()),
            ),
            (
                "Pod",
                json!({"spec": {"restartPolicy": "Never"}, "status": {"phase": "Failed"}}),
                Err("is Failed"),
            ),
            (
                "Job",
                json!({"spec": {"completions": 3}, "status": {"succeeded": 1}}),
                Err("1 of 3 pods have succeeded"),
            ),
            ("Job", json!({"spec": {"suspend": true}}), Ok(())),
            ("Job", json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}), Ok(())),
            (
                "Job",
                json!({"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}]}}),
                Err("has failed: BackoffLimitExceeded: too often"),
            ),
            ("PersistentVolumeClaim", json!({"status": {"phase": "Pending"}}), Ok(())),
            ("PersistentVolumeClaim", json!({"status": {"phase": "Lost"}}), Err("has lost its volume")),
        ];
        for (kind, object, expected) in cases {
            assert_eq!(judge(kind, &object), expected.map_err(str::to_owned), "{kind} {object}");
        }
    }

    #[test]
    fn a_service_needs_endpoints_when_the_addon_makes_its_pods() {
        let service = json!({"metadata": {"namespace": "a"}, "spec": {"selector": {"app": "web"}}});
        let of = |kind: &str, api: &str, object: Value| {
            let named = ObjectRef {
                api_version: api.into(),
                kind: kind.into(),
                namespace: Some("a".into()),
                name: "web".into(),
            };
            [(named, Some(object))]
        };
        let template = json!({"metadata": {"labels": {"app": "web", "more": "x"}}});
        for (kind, api, object, expected) in [
            ("Pod", "v1", json!({"metadata": {"namespace": "a", "labels": {"app": "web"}}}), true),
            ("Pod", "v1", json!({"metadata": {"namespace": "b", "labels": {"app": "web"}}}), false),
            ("Pod", "v1", json!({"metadata": {"namespace": "a", "labels": {"app": "other"}}}), false),
            (
                "Deployment",
                "apps/v1",
                json!({"metadata": {"namespace": "a"}, "spec": {"replicas": 1, "template": template}}),
                true,
            ),
            (
                "Deployment",
                "apps/v1",
                json!({"metadata": {"namespace": "a"}, "spec": {"replicas": 0, "template": template}}),
                false,
            ),
            (
                "DaemonSet",
                "apps/v1",
                json!({"metadata": {"namespace": "a"}, "spec": {"template": template}, "status": {"desiredNumberScheduled": 0}}),
                false,
            ),
            (
                "Job",
                "batch/v1",
                json!({"metadata": {"namespace": "a"}, "spec": {"template": template}}),
                false,
            ),
        ] {
            assert_eq!(is_expected(&service, &of(kind, api, object)), expected, "{kind}");
        }
        let bare = json!({"metadata": {"namespace": "a"}, "spec": {"selector": {}}});
        let pod = json!({"metadata": {"namespace": "a", "labels": {"app": "web"}}});
        assert!(!is_expected(&bare, &of("Pod", "v1", pod)));
        assert!(has_endpoint(&json!({"endpoints": [{"conditions": {"ready": false}}, {}]})));
        assert!(!has_endpoint(&json!({"endpoints": [{"conditions": {"ready": false}}]})));
        assert!(!has_endpoint(&json!({})));
    }
}
