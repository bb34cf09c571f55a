//! Fields that field selectors may name, per kind (upstream: the kinds'
//! `conversion.go` and `SelectableFields`).

use std::borrow::Cow;

use super::{Absent, Selectable};

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
            "status.podIPs",
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
    names
        .iter()
        .map(|name| Selectable {
            name: Cow::Borrowed(name),
            path: path(kind, name),
            absent: absent(kind, name),
        })
        .collect()
}

/// Where the stored form, which for events is that of core, has the field.
fn path(kind: &str, name: &str) -> Cow<'static, str> {
    let path = match (kind, name) {
        ("Event", "source") => "/source/component".to_owned(),
        ("Event", "reportingController") => "/reportingComponent".to_owned(),
        ("Job", "status.successful") => "/status/succeeded".to_owned(),
        _ => format!("/{}", name.replace("regarding.", "involvedObject.").replace('.', "/")),
    };
    Cow::Owned(path)
}

fn absent(kind: &str, name: &str) -> Absent {
    match (kind, name) {
        ("Pod", "spec.hostNetwork") | ("Node", _) => Absent::Text("false"),
        ("Job" | "ReplicaSet" | "ReplicationController", _) => Absent::Text("0"),
        ("Event", "source") => Absent::Path("/reportingComponent"),
        _ => Absent::Text(""),
    }
}

#[cfg(test)]
mod tests {
    use crate::registry::Registry;

    #[test]
    fn the_stored_form_of_events_is_that_of_core() {
        let registry = Registry::builtin();
        let events = registry.find("events.k8s.io", "v1", "events").unwrap();
        let path = |name| &*events.selectable.iter().find(|field| field.name == name).unwrap().path;
        assert_eq!(path("regarding.kind"), "/involvedObject/kind");
        assert_eq!(path("involvedObject.kind"), "/involvedObject/kind");
        assert_eq!(path("reportingController"), "/reportingComponent");
    }
}
