//! PersistentVolumes and their claims (upstream's `ValidatePersistentVolumeSpec` and
//! `ValidatePersistentVolumeClaimSpec`).

use serde_json::{Value, json};

use super::checks::{Checks, NOT_POSITIVE};
use super::storage_kinds::driver_name;
use super::util::{entries, list, strings, text};
use super::{pod_spec, selectors};
use crate::field::At;
use crate::names;
use crate::object;
use crate::quantity::Quantity;

const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// What a volume can be made of, in the order in which upstream looks.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

fn access_modes(c: &mut Checks, spec: &Value, at: At<'_>) {
    let (mut single, mut others) = (false, false);
    for mode in strings(spec, "accessModes") {
        if !ACCESS_MODES.contains(&mode) {
            c.unsupported(at.child("accessModes"), mode, &ACCESS_MODES);
        } else if mode == "ReadWriteOncePod" {
            single = true;
        } else {
            others = true;
        }
    }
    if single && others {
        c.forbidden(at.child("accessModes"), "may not use ReadWriteOncePod with other access modes");
    }
}

pub(super) fn validate_volume(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    if list(spec, "accessModes").is_empty() {
        c.required("spec.accessModes", "");
    }
    access_modes(c, spec, At::SPEC);
    capacity(c, &spec["capacity"]);
    if !text(spec, "persistentVolumeReclaimPolicy").is_empty() {
        c.one_of(spec, "persistentVolumeReclaimPolicy", At::SPEC, &["Delete", "Recycle", "Retain"]);
    }
    let affinity = &spec["nodeAffinity"];
    if affinity.is_object() {
        let (at, terms) = (At::root("spec.nodeAffinity.required"), &affinity["required"]);
        if terms.is_object() {
            selectors::node_selector(c, terms, false, at);
        } else {
            c.required(at, "must specify required node constraints");
        }
    }
    let mut present = SOURCES.iter().copied().filter(|s| spec[*s].is_object());
    match present.next() {
        None => c.required("spec", "must specify a volume type"),
        Some(first) => {
            source(c, spec, first);
            for other in present {
                let what = "may not specify more than 1 volume type";
                c.forbidden(At::SPEC.child(other), what);
            }
        }
    }
    let root = text(&spec["hostPath"], "path");
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle"
        && !root.is_empty()
        && root.split('/').all(|part| matches!(part, "" | "."))
    {
        let what = "may not be 'recycle' for a hostPath mount of '/'";
        c.forbidden("spec.persistentVolumeReclaimPolicy", what);
    }
    c.optional_name(spec, "storageClassName", At::SPEC, names::dns1123_subdomain);
    c.optional_name(spec, "volumeAttributesClassName", At::SPEC, names::dns1123_subdomain);
    c.one_of(spec, "volumeMode", At::SPEC, &VOLUME_MODES);
    if let Some(class) = spec["volumeAttributesClassName"].as_str() {
        if class.is_empty() {
            c.required("spec.volumeAttributesClassName", "an empty string is disallowed");
        }
        if spec["csi"].is_null() {
            c.required("spec.csi", "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn capacity(c: &mut Checks, capacity: &Value) {
    const AT: At<'_> = At::root("spec.capacity");
    let count = entries(capacity).count();
    if count == 0 {
        c.required(AT, "");
    }
    if count != 1 || capacity.get("storage").is_none() {
        c.unsupported(AT, capacity.clone(), &["storage"]);
    }
    for (name, value) in entries(capacity) {
        let Some(q) = Quantity::from_value(value) else { continue };
        let path = AT.key(name);
        if q.sign() < 0 {
            c.invalid(path, q.value(), "must be a valid resource quantity");
        }
        if q.sign() <= 0 {
            c.invalid(path, q.to_string(), NOT_POSITIVE);
        }
    }
}

fn source(c: &mut Checks, spec: &Value, kind: &str) {
    let (s, at) = (&spec[kind], At::SPEC.child(kind));
    match kind {
        "local" => {
            c.needs(s, "path", at);
            c.no_backsteps(at.child("path"), text(s, "path"));
            if !spec["nodeAffinity"].is_object() {
                c.required("spec.nodeAffinity", "Local volume requires node affinity");
            }
        }
        "csi" => {
            driver_name(c, text(s, "driver"), at.child("driver"));
            c.needs(s, "volumeHandle", at);
            for field in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                if s[field].is_object() {
                    let at = at.child(field);
                    c.required_name(&s[field], "name", at, names::dns1123_subdomain);
                    c.required_name(&s[field], "namespace", at, names::dns1123_label);
                }
            }
        }
        _ => pod_spec::persistent_source(c, kind, s, at),
    }
}

pub(super) fn validate_claim(c: &mut Checks, obj: &Value) {
    claim_spec(c, &obj["spec"], At::SPEC);
}

/// What a claim asks for, its own or a pod's (`ValidatePersistentVolumeClaimSpec`).
pub(super) fn claim_spec(c: &mut Checks, spec: &Value, at: At<'_>) {
    if list(spec, "accessModes").is_empty() {
        c.required(at.child("accessModes"), "at least 1 access mode is required");
    }
    selectors::label_selector(c, &spec["selector"], at.child("selector"));
    access_modes(c, spec, at);
    let resources = at.child("resources");
    match Quantity::from_value(object::get(spec, "/resources/requests/storage")) {
        None => c.required(resources.key("storage"), ""),
        Some(q) if q.sign() <= 0 => c.invalid(resources.key("storage"), q.to_string(), NOT_POSITIVE),
        Some(_) => {}
    }
    c.optional_name(spec, "storageClassName", at, names::dns1123_subdomain);
    c.one_of(spec, "volumeMode", at, &VOLUME_MODES);
    let (old, new) = (&spec["dataSource"], &spec["dataSourceRef"]);
    for (source, field) in [(old, "dataSource"), (new, "dataSourceRef")] {
        if source.is_object() {
            data_source(c, source, at.child(field));
        }
    }
    if old.is_object() && new.is_object() {
        // Upstream shows a path there, which is written as an empty object.
        if !text(new, "namespace").is_empty() {
            c.invalid(at, json!({}), "may not be specified when dataSourceRef.namespace is specified");
        } else if ["apiGroup", "kind", "name"].iter().any(|f| old[*f] != new[*f]) {
            c.invalid(at, json!({}), "must match dataSourceRef");
        }
    }
    c.optional_name(spec, "volumeAttributesClassName", at, names::dns1123_subdomain);
}

fn data_source(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "name", at);
    c.needs(source, "kind", at);
    let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
    if !group.is_empty() {
        c.syntax(at.child("apiGroup"), group, names::dns1123_subdomain);
    } else if kind != "PersistentVolumeClaim" {
        let what = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        c.invalid(at, kind, what);
    }
    c.optional_name(source, "namespace", at, names::dns1123_label);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;

    fn volume(with: Value) -> String {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "volumeMode": "Filesystem"});
        for (k, v) in with.as_object().unwrap() {
            spec[k] = v.clone();
        }
        told(validate_volume, &json!({ "spec": spec }))
    }

    #[test]
    fn volumes() {
        let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n"]}]}]}});
        for spec in [
            json!({"hostPath": {"path": "/x", "type": "DirectoryOrCreate"}, "nodeAffinity": affinity}),
            json!({"local": {"path": "/x"}, "nodeAffinity": affinity}),
            json!({"nfs": {"server": "s", "path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}),
            json!({"csi": {"driver": "a.b", "volumeHandle": "v"}, "volumeAttributesClassName": "c", "storageClassName": "s"}),
            json!({"rbd": {"monitors": ["a"], "image": "i"}}),
        ] {
            assert_eq!(volume(spec.clone()), "", "{spec}");
        }
        for (spec, wanted) in [
            (json!({}), "spec: Required value: must specify a volume type"),
            (
                json!({"hostPath": {"path": "/x"}, "nfs": {"server": "s", "path": "/"}}),
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
            ),
            (
                json!({"hostPath": {"path": "/a/../b"}}),
                "spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            ),
            (
                json!({"hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}),
                "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
            ),
            (
                json!({"nfs": {"server": "s", "path": "x"}}),
                "spec.nfs.path: Invalid value: \"x\": must be an absolute path",
            ),
            (
                json!({"local": {"path": "/x"}}),
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ),
            (
                json!({"hostPath": {"path": "/x"}, "accessModes": ["x"]}),
                r#"spec.accessModes: Unsupported value: "x": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod""#,
            ),
            (
                json!({"hostPath": {"path": "/x"}, "capacity": {"storage": 0}}),
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                json!({"hostPath": {"path": "/x"}, "capacity": {"storage": 1, "cpu": 1}}),
                r#"spec.capacity: Unsupported value: {"cpu":1,"storage":1}: supported values: "storage""#,
            ),
            (
                json!({"hostPath": {"path": "/x"}, "nodeAffinity": {}}),
                "spec.nodeAffinity.required: Required value: must specify required node constraints",
            ),
            (
                json!({"hostPath": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchFields": [{"key": "x", "operator": "In", "values": ["a"]}]}]}}}),
                "spec.nodeAffinity.required.nodeSelectorTerms[0].matchFields[0].key: Invalid value: \"x\": not a valid field selector key",
            ),
            (json!({"csi": {"driver": "a.b"}}), "spec.csi.volumeHandle: Required value"),
        ] {
            let got = volume(spec).replace(r#"{"storage":1,"cpu":1}"#, r#"{"cpu":1,"storage":1}"#);
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn claims() {
        let of = |with: Value| {
            let mut spec =
                json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
            for (k, v) in with.as_object().unwrap() {
                spec[k] = v.clone();
            }
            told(validate_claim, &json!({ "spec": spec }))
        };
        let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        for spec in [
            json!({}),
            json!({"storageClassName": "", "volumeName": "v"}),
            json!({"dataSource": source, "dataSourceRef": source}),
            json!({"selector": {"matchLabels": {"a": "b"}}}),
        ] {
            assert_eq!(of(spec.clone()), "", "{spec}");
        }
        for (spec, wanted) in [
            (
                json!({"accessModes": []}),
                "spec.accessModes: Required value: at least 1 access mode is required",
            ),
            (
                json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}),
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ),
            (json!({"resources": {}}), "spec.resources[storage]: Required value"),
            (
                json!({"resources": {"requests": {"storage": "-1"}}}),
                "spec.resources[storage]: Invalid value: \"-1\": must be greater than zero",
            ),
            (
                json!({"dataSource": {"kind": "x", "name": "n"}}),
                "spec.dataSource: Invalid value: \"x\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ),
            (
                json!({"dataSource": source, "dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "n"}}),
                "spec: Invalid value: {}: must match dataSourceRef",
            ),
            (
                json!({"volumeMode": "x"}),
                r#"spec.volumeMode: Unsupported value: "x": supported values: "Block", "Filesystem""#,
            ),
        ] {
            assert_eq!(of(spec), wanted);
        }
        assert!(
            of(json!({"storageClassName": "A"})).starts_with("spec.storageClassName: Invalid value: \"A\"")
        );
    }
}
