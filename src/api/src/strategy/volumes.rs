//! PersistentVolumes and their claims (upstream's `ValidatePersistentVolumeSpec` and
//! `ValidatePersistentVolumeClaimSpec`).

use serde_json::{Value, json};

use super::checks::{NOT_POSITIVE, label_selector, optional_name, required, required_name, syntax};
use super::pod_spec;
use super::storage_kinds::driver_name;
use super::util::{NON_NEGATIVE, list, one_of, text};
use crate::field::{FieldError, index, join, key};
use crate::names;
use crate::object;
use crate::quantity::Quantity;

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

fn access_modes(spec: &Value, detail: &str, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.accessModes";
    let modes = list(spec, "accessModes");
    if modes.is_empty() {
        required(AT, detail, errors);
    }
    let (known, unknown): (Vec<&Value>, Vec<&Value>) =
        modes.iter().partition(|m| ACCESS_MODES.iter().any(|a| *m == a));
    for mode in unknown {
        errors.push(FieldError::not_supported(AT, mode.clone(), &ACCESS_MODES));
    }
    let is_single = |m: &&Value| **m == "ReadWriteOncePod";
    if known.iter().any(is_single) && !known.iter().all(is_single) {
        let what = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(AT, what));
    }
}

fn classes(spec: &Value, errors: &mut Vec<FieldError>) {
    for field in ["storageClassName", "volumeAttributesClassName"] {
        if !text(spec, field).is_empty() {
            optional_name(spec, field, names::dns1123_subdomain, "spec", errors);
        }
    }
}

pub(super) fn validate_volume(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    access_modes(spec, "", errors);
    capacity(&spec["capacity"], errors);
    if !text(spec, "persistentVolumeReclaimPolicy").is_empty() {
        one_of(spec, "persistentVolumeReclaimPolicy", "spec", &["Delete", "Recycle", "Retain"], errors);
    }
    let affinity = &spec["nodeAffinity"];
    if affinity.is_object() {
        let (path, terms) = ("spec.nodeAffinity.required", &affinity["required"]);
        if terms.is_object() {
            node_selector(terms, path, errors);
        } else {
            required(path, "must specify required node constraints", errors);
        }
    }
    let mut present = SOURCES.iter().copied().filter(|s| spec[*s].is_object());
    match present.next() {
        None => required("spec", "must specify a volume type", errors),
        Some(first) => {
            source(spec, first, errors);
            for other in present {
                let what = "may not specify more than 1 volume type";
                errors.push(FieldError::forbidden(join("spec", other), what));
            }
        }
    }
    let root = text(&spec["hostPath"], "path");
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle"
        && !root.is_empty()
        && root.split('/').all(|part| matches!(part, "" | "."))
    {
        let what = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", what));
    }
    classes(spec, errors);
    one_of(spec, "volumeMode", "spec", &["Block", "Filesystem"], errors);
    if let Some(class) = spec["volumeAttributesClassName"].as_str() {
        if class.is_empty() {
            required("spec.volumeAttributesClassName", "an empty string is disallowed", errors);
        }
        if spec["csi"].is_null() {
            required("spec.csi", "has to be specified when using volumeAttributesClassName", errors);
        }
    }
}

fn capacity(capacity: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.capacity";
    let amounts = capacity.as_object();
    let count = amounts.map_or(0, serde_json::Map::len);
    if count == 0 {
        required(AT, "", errors);
    }
    if count != 1 || capacity.get("storage").is_none() {
        errors.push(FieldError::not_supported(AT, capacity.clone(), &["storage"]));
    }
    for (name, value) in amounts.into_iter().flatten() {
        let Some(q) = Quantity::from_value(value) else { continue };
        let path = key(AT, name);
        if q.sign() < 0 {
            errors.push(FieldError::invalid(path.as_str(), q.value(), "must be a valid resource quantity"));
        }
        if q.sign() <= 0 {
            errors.push(FieldError::invalid(path, q.to_string(), NOT_POSITIVE));
        }
    }
}

fn no_backsteps(path: &str, at: &str, errors: &mut Vec<FieldError>) {
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(at, path, "must not contain '..'"));
    }
}

fn source(spec: &Value, kind: &str, errors: &mut Vec<FieldError>) {
    let (s, at) = (&spec[kind], join("spec", kind));
    let path = text(s, "path");
    match kind {
        "local" => {
            if path.is_empty() {
                required(join(&at, "path"), "", errors);
            } else {
                no_backsteps(path, &join(&at, "path"), errors);
            }
            if !spec["nodeAffinity"].is_object() {
                required("spec.nodeAffinity", "Local volume requires node affinity", errors);
            }
        }
        "csi" => {
            driver_name(text(s, "driver"), &join(&at, "driver"), errors);
            if text(s, "volumeHandle").is_empty() {
                required(join(&at, "volumeHandle"), "", errors);
            }
            for field in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                if s[field].is_object() {
                    let at = join(&at, field);
                    required_name(&s[field], "name", names::dns1123_subdomain, &at, errors);
                    required_name(&s[field], "namespace", names::dns1123_label, &at, errors);
                }
            }
        }
        _ => pod_spec::persistent_source(kind, s, errors),
    }
}

/// A `core/v1.NodeSelector`.
fn node_selector(selector: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (at, terms) = (join(at, "nodeSelectorTerms"), list(selector, "nodeSelectorTerms"));
    if terms.is_empty() {
        required(at.as_str(), "must have at least one node selector term", errors);
    }
    for (i, term) in terms.iter().enumerate() {
        let at = index(&at, i);
        for (j, r) in list(term, "matchExpressions").iter().enumerate() {
            expression(r, &index(&join(&at, "matchExpressions"), j), errors);
        }
        for (j, r) in list(term, "matchFields").iter().enumerate() {
            field(r, &index(&join(&at, "matchFields"), j), errors);
        }
    }
}

fn expression(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (path, values) = (join(at, "values"), list(r, "values"));
    match text(r, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            required(path.as_str(), "must be specified when `operator` is 'In' or 'NotIn'", errors);
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let what = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(path.as_str(), what));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let what = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            required(path.as_str(), what, errors);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => {
            errors.push(FieldError::invalid(join(at, "operator"), other, "not a valid selector operator"));
        }
    }
    syntax(names::qualified_name, text(r, "key"), &join(at, "key"), errors);
    for (i, v) in values.iter().enumerate() {
        syntax(names::label_value, v.as_str().unwrap_or_default(), &index(&path, i), errors);
    }
}

fn field(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (path, values) = (join(at, "values"), list(r, "values"));
    match text(r, "operator") {
        "In" | "NotIn" if values.len() != 1 => {
            let what = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            required(path.as_str(), what, errors);
        }
        "In" | "NotIn" => {}
        other => {
            errors.push(FieldError::invalid(join(at, "operator"), other, "not a valid selector operator"));
        }
    }
    if text(r, "key") != "metadata.name" {
        let what = "not a valid field selector key";
        return errors.push(FieldError::invalid(join(at, "key"), text(r, "key"), what));
    }
    for (i, v) in values.iter().enumerate() {
        syntax(names::dns1123_subdomain, v.as_str().unwrap_or_default(), &index(&path, i), errors);
    }
}

pub(super) fn validate_claim(obj: &Value, errors: &mut Vec<FieldError>) {
    const SIZE: &str = "spec.resources[storage]";
    let spec = &obj["spec"];
    access_modes(spec, "at least 1 access mode is required", errors);
    label_selector(&spec["selector"], "spec.selector", errors);
    match Quantity::from_value(object::get(spec, "/resources/requests/storage")) {
        None => required(SIZE, "", errors),
        Some(q) if q.sign() <= 0 => {
            errors.push(FieldError::invalid(SIZE, q.to_string(), NOT_POSITIVE));
        }
        Some(_) => {}
    }
    classes(spec, errors);
    one_of(spec, "volumeMode", "spec", &["Block", "Filesystem"], errors);
    let (old, new) = (&spec["dataSource"], &spec["dataSourceRef"]);
    for (source, at) in [(old, "spec.dataSource"), (new, "spec.dataSourceRef")] {
        if source.is_object() {
            data_source(source, at, errors);
        }
    }
    if !old.is_object() || !new.is_object() {
        return;
    }
    // Upstream shows a path there, which is written as an empty object.
    if !text(new, "namespace").is_empty() {
        let what = "may not be specified when dataSourceRef.namespace is specified";
        errors.push(FieldError::invalid("spec", json!({}), what));
    } else if ["apiGroup", "kind", "name"].iter().any(|f| old[*f] != new[*f]) {
        errors.push(FieldError::invalid("spec", json!({}), "must match dataSourceRef"));
    }
}

fn data_source(source: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for field in ["name", "kind"].into_iter().filter(|f| text(source, f).is_empty()) {
        required(join(at, field), "", errors);
    }
    let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
    if !group.is_empty() {
        syntax(names::dns1123_subdomain, group, &join(at, "apiGroup"), errors);
    } else if kind != "PersistentVolumeClaim" {
        let what = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(FieldError::invalid(at, kind, what));
    }
    if !text(source, "namespace").is_empty() {
        optional_name(source, "namespace", names::dns1123_label, at, errors);
    }
}

/// Amounts of a node or of an overhead: quantities that are not negative.
pub(super) fn amounts(amounts: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in amounts.as_object().into_iter().flatten() {
        let path = key(at, name);
        super::resource_names::of_container(name, &path, errors);
        if let Some(q) = Quantity::from_value(value).filter(|q| q.sign() < 0) {
            errors.push(FieldError::invalid(path, q.to_string(), NON_NEGATIVE));
        }
    }
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
