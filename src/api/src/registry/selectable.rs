//! Fields that field selectors may name, per kind (upstream: the kinds'
//! `conversion.go` and `SelectableFields`).

use std::borrow::Cow;

use serde_json::Value;

use super::{Resource, Selectable};
use crate::object;

pub(super) fn of_kind(kind: &str) -> Vec<Selectable> {
    let names: &[&'static str] = match kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reportingController",
        ],
        "Secret" => &["type"],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "Job" => &["status.successful"],
        "ReplicationController" | "ReplicaSet" => &["status.replicas"],
        "CertificateSigningRequest" => &["spec.signerName"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "ResourceSlice" => &["spec.nodeName", "spec.driver"],
        _ => &[],
    };
    names.iter().map(|n| Selectable { name: Cow::Borrowed(n), path: Cow::Owned(path(kind, n)) }).collect()
}

fn path(kind: &str, name: &str) -> String {
    match (kind, name) {
        ("Event", "source") => "/source/component".to_string(),
        ("Job", "status.successful") => "/status/succeeded".to_string(),
        _ => format!("/{}", name.replace('.', "/")),
    }
}

pub(super) fn value(resource: &Resource, obj: &Value, name: &str) -> Option<String> {
    match name {
        "metadata.name" => return Some(object::name(obj).to_string()),
        "metadata.namespace" if resource.namespaced => return Some(object::namespace(obj).to_string()),
        _ => {}
    }
    let s = resource.selectable.iter().find(|s| s.name == name)?;
    let text = match object::get(obj, &s.path) {
        Value::String(s) => s.clone(),
        Value::Null => match (resource.kind.as_ref(), name) {
            ("Pod", "spec.hostNetwork") | ("Node", _) => "false".to_string(),
            ("Job" | "ReplicaSet" | "ReplicationController", _) => "0".to_string(),
            // The two event APIs name the same things differently.
            ("Event", n) => return Some(other_event_name(obj, n)),
            _ => String::new(),
        },
        other => other.to_string(),
    };
    Some(text)
}

fn other_event_name(obj: &Value, name: &str) -> String {
    let path = match name {
        "reportingComponent" => "/reportingController".to_string(),
        "reportingController" => "/reportingComponent".to_string(),
        "source" => "/deprecatedSource/component".to_string(),
        n => match (n.strip_prefix("involvedObject."), n.strip_prefix("regarding.")) {
            (Some(f), _) => format!("/regarding/{f}"),
            (_, Some(f)) => format!("/involvedObject/{f}"),
            _ => return String::new(),
        },
    };
    let found = object::get_str(obj, &path);
    if found.is_empty() && name == "source" {
        return object::get_str(obj, "/reportingComponent").to_string();
    }
    found.to_string()
}

#[cfg(test)]
mod tests {
    use crate::registry::Registry;
    use serde_json::json;

    #[test]
    fn values() {
        let r = Registry::builtin();
        let pods = r.find("", "v1", "pods").unwrap();
        let p = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": "n"}});
        assert_eq!(pods.field_value(&p, "spec.nodeName").as_deref(), Some("n"));
        assert_eq!(pods.field_value(&p, "status.phase").as_deref(), Some(""));
        assert_eq!(pods.field_value(&p, "spec.hostNetwork").as_deref(), Some("false"));
        assert_eq!(pods.field_value(&p, "spec.containers"), None);
        assert!(pods.is_selectable("metadata.namespace"));
        let e = json!({"regarding": {"kind": "Pod"}});
        let events = r.find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(events.field_value(&e, "involvedObject.kind").as_deref(), Some("Pod"));
    }
}
