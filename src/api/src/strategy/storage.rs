//! Volumes, claims and storage classes.

use serde_json::Value;

use super::meta::immutable;
use super::util::{list, one_of, put, put_str, spec, text};
use crate::field::FieldError;
use crate::object;
use crate::quantity::Quantity;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn default_pv(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    put_str(s, "persistentVolumeReclaimPolicy", "Retain");
    put_str(s, "volumeMode", "Filesystem");
    if let Some(h) = s.get_mut("hostPath").and_then(Value::as_object_mut) {
        put(h, "type", "");
    }
    if let Some(h) = s.get_mut("iscsi").and_then(Value::as_object_mut) {
        put_str(h, "iscsiInterface", "default");
    }
    if let Some(c) = s.get_mut("claimRef").and_then(Value::as_object_mut) {
        put_str(c, "kind", "PersistentVolumeClaim");
        put_str(c, "apiVersion", "v1");
    }
}

fn access_modes(s: &Value, errors: &mut Vec<FieldError>) {
    let modes = list(s, "accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for m in modes.iter().filter(|m| !ACCESS_MODES.iter().any(|a| *m == a)) {
        errors.push(FieldError::not_supported("spec.accessModes", m.clone(), &ACCESS_MODES));
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        errors.push(FieldError::forbidden(
            "spec.accessModes",
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
}

/// Fields of a volume's specification that are no source.
const NO_SOURCE: [&str; 10] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
    "status",
];

pub(super) fn validate_pv(obj: &Value, errors: &mut Vec<FieldError>) {
    let s = &obj["spec"];
    if !s.is_object() {
        return;
    }
    access_modes(s, errors);
    let capacity = object::get(s, "/capacity/storage");
    match Quantity::from_value(capacity) {
        None => errors.push(FieldError::required("spec.capacity", "")),
        Some(q) if q.sign() <= 0 => {
            errors.push(FieldError::invalid(
                "spec.capacity[storage]",
                q.to_string(),
                "must be greater than zero",
            ));
        }
        Some(_) => {}
    }
    let sources =
        s.as_object().into_iter().flat_map(|m| m.keys()).filter(|k| !NO_SOURCE.contains(&k.as_str()));
    match sources.count() {
        0 => errors.push(FieldError::required("spec", "must specify a volume type")),
        1 => {}
        _ => errors.push(FieldError::forbidden("spec", "may not specify more than 1 volume type")),
    }
    one_of(s, "persistentVolumeReclaimPolicy", "spec", &["Delete", "Recycle", "Retain"], errors);
    one_of(s, "volumeMode", "spec", &["Block", "Filesystem"], errors);
    if s.get("local").is_some() && s.get("nodeAffinity").is_none() {
        errors.push(FieldError::required("spec.nodeAffinity", "Local volume requires node affinity"));
    }
}

pub(super) fn update_pv(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let source = |v: &Value| {
        let mut m = v["spec"].as_object().cloned().unwrap_or_default();
        m.retain(|k, _| !NO_SOURCE.contains(&k.as_str()));
        m
    };
    if source(new) != source(old) {
        errors.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    immutable(new, old, "/spec/volumeMode", errors);
}

pub(super) fn default_pvc(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    put_str(s, "volumeMode", "Filesystem");
    // The older and the newer data source name the same thing.
    match (s.get("dataSource").cloned(), s.get("dataSourceRef").cloned()) {
        (Some(a), None) => drop(s.insert("dataSourceRef".into(), a)),
        (None, Some(b)) if b.get("namespace").is_none() => drop(s.insert("dataSource".into(), b)),
        _ => {}
    }
}

pub(super) fn validate_pvc(obj: &Value, errors: &mut Vec<FieldError>) {
    let s = &obj["spec"];
    if !s.is_object() {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
        return;
    }
    access_modes(s, errors);
    match Quantity::from_value(object::get(s, "/resources/requests/storage")) {
        None => errors.push(FieldError::required("spec.resources[storage]", "")),
        Some(q) if q.sign() <= 0 => errors.push(FieldError::invalid(
            "spec.resources.requests[storage]",
            q.to_string(),
            "must be greater than zero",
        )),
        Some(_) => {}
    }
    one_of(s, "volumeMode", "spec", &["Block", "Filesystem"], errors);
}

pub(super) fn update_pvc(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let bound = object::get_str(old, "/status/phase") == "Bound";
    let fixed = |v: &Value| {
        let mut m = v["spec"].as_object().cloned().unwrap_or_default();
        m.remove("resources");
        m.remove("volumeAttributesClassName");
        // A claim is bound, and given the default class, by an update.
        for late in ["volumeName", "storageClassName"] {
            if text(&old["spec"], late).is_empty() {
                m.remove(late);
            }
        }
        m
    };
    if fixed(new) != fixed(old) {
        errors.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let size = |v: &Value| Quantity::from_value(object::get(v, "/spec/resources/requests/storage"));
    if let (Some(n), Some(o)) = (size(new), size(old)) {
        if n < o {
            errors.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        } else if n != o && !bound {
            errors.push(FieldError::forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ));
        }
    }
}

pub(super) fn default_storage_class(obj: &mut Value) {
    let Some(m) = obj.as_object_mut() else { return };
    put_str(m, "reclaimPolicy", "Delete");
    put_str(m, "volumeBindingMode", "Immediate");
}

pub(super) fn validate_storage_class(obj: &Value, errors: &mut Vec<FieldError>) {
    one_of(obj, "reclaimPolicy", "", &["Delete", "Retain"], errors);
    one_of(obj, "volumeBindingMode", "", &["Immediate", "WaitForFirstConsumer"], errors);
    if obj.get("provisioner").is_some() && text(obj, "provisioner").is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    }
}

pub(super) fn update_storage_class(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for f in ["parameters", "provisioner", "reclaimPolicy"] {
        if object::get(new, &format!("/{f}")) != object::get(old, &format!("/{f}")) {
            errors.push(FieldError::forbidden(f, format!("updates to {f} are forbidden.")));
        }
    }
    immutable(new, old, "/volumeBindingMode", errors);
}

pub(super) fn default_csi_driver(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    put(s, "attachRequired", true);
    put(s, "podInfoOnMount", false);
    put(s, "storageCapacity", false);
    put_str(s, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    put(s, "volumeLifecycleModes", serde_json::json!(["Persistent"]));
    put(s, "requiresRepublish", false);
    put(s, "seLinuxMount", false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims() {
        let mut c = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        default_pvc(&mut c);
        let mut e = Vec::new();
        validate_pvc(&c, &mut e);
        assert!(e.is_empty(), "{e:?}");
        let mut bound = c.clone();
        bound["spec"]["volumeName"] = json!("pv");
        update_pvc(&bound, &c, &mut e);
        assert!(e.is_empty(), "{e:?}");
        bound["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        update_pvc(&bound, &c, &mut e);
        assert_eq!(e.len(), 1);
    }

    #[test]
    fn volumes() {
        let v = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
        let mut e = Vec::new();
        validate_pv(&v, &mut e);
        assert!(e.is_empty(), "{e:?}");
        validate_pv(&json!({"spec": {}}), &mut e);
        assert_eq!(e.len(), 3);
    }
}
