//! Volumes, claims and storage classes.

use serde_json::Value;

use super::checks::{Checks, IMMUTABLE};
use super::util::{put, put_str, spec, text};
use super::volumes;
use crate::object;
use crate::quantity::Quantity;

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

pub(super) fn update_pv(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(volumes::validate_volume, new, old);
    // The secret for growing a volume may be named later, and changed never.
    let late_secret = old["spec"]["csi"]["controllerExpandSecretRef"].is_null();
    let source = |v: &Value| {
        let mut m = v["spec"].as_object().cloned().unwrap_or_default();
        m.retain(|k, _| !NO_SOURCE.contains(&k.as_str()));
        if let Some(csi) = m.get_mut("csi").and_then(Value::as_object_mut).filter(|_| late_secret) {
            csi.remove("controllerExpandSecretRef");
        }
        m
    };
    if source(new) != source(old) {
        c.forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation");
    }
    for (field, may_be_set) in [("nodeAffinity", true), ("volumeMode", false)] {
        let (after, before) = (&new["spec"][field], &old["spec"][field]);
        if after != before && !(may_be_set && before.is_null()) {
            // Upstream's path lacks the beginning.
            c.invalid(field, after.clone(), IMMUTABLE);
        }
    }
    let class = |v: &Value| v["spec"]["volumeAttributesClassName"].is_null();
    if class(new) && !class(old) {
        let what = "update from non-nil value to nil is forbidden";
        c.forbidden("spec.volumeAttributesClassName", what);
    }
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

pub(super) fn update_pvc(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(volumes::validate_claim, new, old);
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
        c.forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
    }
    let size = |v: &Value| Quantity::from_value(object::get(v, "/spec/resources/requests/storage"));
    if let (Some(n), Some(o)) = (size(new), size(old)) {
        // What was asked for and not yet given may be taken back (KEP-1790).
        let given = Quantity::from_value(object::get(old, "/status/capacity/storage"));
        if n < o && given.is_none_or(|given| n <= given) {
            c.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
        }
        if n != o && !bound {
            c.forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
        }
    }
}

pub(super) fn default_storage_class(obj: &mut Value) {
    let Some(m) = obj.as_object_mut() else { return };
    put_str(m, "reclaimPolicy", "Delete");
    put_str(m, "volumeBindingMode", "Immediate");
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
        let mut e = Checks::default();
        volumes::validate_claim(&mut e, &c);
        assert!(e.errors.is_empty(), "{e:?}");
        let mut bound = c.clone();
        bound["spec"]["volumeName"] = json!("pv");
        update_pvc(&mut e, &bound, &c);
        assert!(e.errors.is_empty(), "{e:?}");
        bound["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        update_pvc(&mut e, &bound, &c);
        assert_eq!(e.errors.len(), 1);
    }

    #[test]
    fn volumes() {
        let v = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
        let mut e = Checks::default();
        volumes::validate_volume(&mut e, &v);
        assert!(e.errors.is_empty(), "{e:?}");
        volumes::validate_volume(&mut e, &json!({"spec": {}}));
        assert_eq!(e.errors.len(), 4);

        let changed = |before: Value, after: Value| {
            let of = |own: &Value| {
                let mut volume = v.clone();
                volume["spec"].as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
                volume
            };
            let mut c = Checks::default();
            update_pv(&mut c, &of(&after), &of(&before));
            c.errors.iter().map(|error| error.path.clone()).collect::<Vec<_>>()
        };
        let on = |node: &str| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}})
        };
        assert!(changed(json!({}), on("a")).is_empty(), "it may be set once");
        assert_eq!(changed(on("a"), on("b")), ["nodeAffinity"]);
        assert_eq!(changed(on("a"), json!({})), ["nodeAffinity"]);
        let csi = |secret: Value| json!({"hostPath": null, "csi": {"driver": "d.example", "volumeHandle": "1", "controllerExpandSecretRef": secret}});
        let secret = |name: &str| json!({"name": name, "namespace": "n"});
        assert!(changed(csi(Value::Null), csi(secret("a"))).is_empty());
        assert_eq!(changed(csi(secret("a")), csi(secret("b"))), ["spec.persistentvolumesource"]);
        let iscsi = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "iscsi": {"targetPortal": "192.0.2.1", "iqn": "iqn.2001-04.com.example:a", "lun": 999}}});
        e.errors.clear();
        volumes::validate_volume(&mut e, &iscsi);
        assert_eq!(e.errors.iter().map(|error| error.path.as_str()).collect::<Vec<_>>(), ["spec.iscsi.lun"]);
    }
}
