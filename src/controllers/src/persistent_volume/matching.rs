//! Which volume a claim may be bound to (component-helpers `storage/volume`: FindMatchingVolume and
//! pv_controller.go: checkVolumeSatisfyClaim). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kedge_api::quantity::Quantity;
use kedge_client::selector_matches;

const LEGACY_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(super) fn annotation<'a>(
    annotations: &'a Option<BTreeMap<String, String>>,
    key: &str,
) -> Option<&'a str> {
    annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class a claim asks for; empty for none.
pub(super) fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata.annotations, LEGACY_CLASS).or(spec).unwrap_or_default()
}

/// Whether the claim leaves the class to the cluster.
pub(super) fn has_no_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata.annotations, LEGACY_CLASS).is_none()
        && claim.spec.as_ref().is_none_or(|spec| spec.storage_class_name.is_none())
}

/// The newest of the classes that call themselves the default.
pub(super) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    classes
        .iter()
        .filter(|class| {
            DEFAULT_CLASS.iter().any(|key| annotation(&class.metadata.annotations, key) == Some("true"))
        })
        .max_by(|a, b| {
            let created =
                |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
            created(a).cmp(&created(b)).then_with(|| b.metadata.name.cmp(&a.metadata.name))
        })
}

fn volume_class(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata.annotations, LEGACY_CLASS).or(spec).unwrap_or_default()
}

fn storage(
    list: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> Quantity {
    list.and_then(|list| list.get("storage")?.0.parse().ok()).unwrap_or(Quantity::ZERO)
}

fn asked(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

fn same_mode(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
    let volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
    claim == volume
}

fn has_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| offered.contains(mode))
}

fn same_attributes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let claim = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let volume = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    claim.unwrap_or_default() == volume.unwrap_or_default()
}

/// Whether the volume is reserved for this claim, by the controller or by an administrator.
pub(super) fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        let uid = reference.uid.as_deref().unwrap_or_default();
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
    })
}

/// Why a volume that the claim names cannot be its; upstream's words.
pub(super) fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    if asked(claim) > capacity(volume) {
        return Some("requested PV is too small");
    }
    if volume_class(volume) != claim_class(claim) {
        return Some("storageClassName does not match");
    }
    if !same_attributes(claim, volume) {
        return Some("volumeAttributesClassName does not match");
    }
    if !same_mode(claim, volume) {
        return Some("incompatible volumeMode");
    }
    if !has_modes(claim, volume) {
        return Some("incompatible accessMode");
    }
    None
}

/// The volume for a claim: the one reserved for it, else the smallest that is large enough. With
/// `delayed`, only the former: the scheduler chooses.
pub(super) fn best<'a>(
    volumes: &'a [Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    delayed: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let fits = |volume: &Arc<PersistentVolume>| {
        volume.metadata.deletion_timestamp.is_none()
            && same_mode(claim, volume)
            && same_attributes(claim, volume)
            && has_modes(claim, volume)
            && capacity(volume) >= asked(claim)
    };
    if let Some(reserved) = volumes.iter().find(|volume| is_bound_to(volume, claim) && fits(volume)) {
        return Some(reserved);
    }
    if delayed {
        return None;
    }
    volumes
        .iter()
        .filter(|volume| {
            volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available")
                && volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
                && selector.is_none_or(|selector| selector_matches(selector, &volume.metadata.labels))
                && volume_class(volume) == claim_class(claim)
                && fits(volume)
        })
        .min_by_key(|volume| capacity(volume))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut value = json!({ "metadata": { "name": name, "labels": { "name": name } }, "status": { "phase": "Available" },
            "spec": { "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"] } });
        for (key, field) in more.as_object().into_iter().flatten() {
            if key == "phase" {
                value["status"]["phase"] = field.clone();
            } else {
                value["spec"][key] = field.clone();
            }
        }
        Arc::new(serde_json::from_value(value).expect("a volume"))
    }

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut spec = more;
        if spec["accessModes"].is_null() {
            spec["accessModes"] = json!(["ReadWriteOnce"]);
        }
        spec["resources"] = json!({ "requests": { "storage": "5Gi" } });
        serde_json::from_value(
            json!({ "metadata": { "name": "c", "namespace": "ns", "uid": "u" }, "spec": spec }),
        )
        .expect("a claim")
    }

    #[test]
    fn the_smallest_that_is_large_enough() {
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("big", "100Gi", json!({})),
            volume("fit", "10Gi", json!({})),
            volume(
                "used",
                "5Gi",
                json!({ "phase": "Bound", "claimRef": { "name": "x", "namespace": "ns" } }),
            ),
            volume("block", "5Gi", json!({ "volumeMode": "Block" })),
            volume("fast", "50Gi", json!({ "storageClassName": "fast" })),
            volume(
                "mine",
                "60Gi",
                json!({ "storageClassName": "own", "claimRef": { "name": "c", "namespace": "ns" } }),
            ),
        ];
        for (what, spec, all, delayed, expected) in [
            ("plain", json!({}), &volumes[..6], false, Some("fit")),
            ("reserved", json!({}), &volumes[..], false, Some("mine")),
            ("reserved, later", json!({}), &volumes[..], true, Some("mine")),
            ("later", json!({}), &volumes[..6], true, None),
            ("class", json!({ "storageClassName": "fast" }), &volumes[..6], false, Some("fast")),
            ("block", json!({ "volumeMode": "Block" }), &volumes[..6], false, Some("block")),
            (
                "selector",
                json!({ "selector": { "matchLabels": { "name": "big" } } }),
                &volumes[..6],
                false,
                Some("big"),
            ),
            ("modes", json!({ "accessModes": ["ReadWriteMany"] }), &volumes[..6], false, None),
        ] {
            let found = best(all, &claim(spec), delayed);
            assert_eq!(found.and_then(|volume| volume.metadata.name.as_deref()), expected, "{what}");
        }
        assert_eq!(mismatch(&volumes[0], &claim(json!({}))), Some("requested PV is too small"));
        assert_eq!(mismatch(&volumes[5], &claim(json!({}))), Some("storageClassName does not match"));
        assert_eq!(mismatch(&volumes[2], &claim(json!({}))), None);
    }
}
