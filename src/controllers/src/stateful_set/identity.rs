//! What a StatefulSet's pods and claims are called and look like (upstream
//! controller/statefulset/stateful_set_utils.go). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::adoption::owner_reference;
use crate::history::REVISION_LABEL;
use crate::pod_control::pod_from_template;

pub(super) const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
pub(super) const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

fn set_name(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// The number at the end of a pod's name, when the rest is the set's name.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let number = pod.metadata.name.as_deref()?.strip_prefix(set_name(set))?.strip_prefix('-')?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse().ok()
}

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set_name(set))
}

/// The first ordinal.
pub(super) fn first(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref()?.start).unwrap_or(0)
}

pub(super) fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
}

pub(super) fn in_range(set: &StatefulSet, ordinal: i32) -> bool {
    ordinal >= first(set) && ordinal < first(set).saturating_add(replicas(set))
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.metadata.name.as_deref().unwrap_or_default(), set_name(set))
}

/// The claims that the pod with this ordinal uses.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selector = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    templates(set)
        .iter()
        .map(|template| {
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(selector.clone());
            PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(claim_name(set, template, ordinal)),
                    namespace: set.metadata.namespace.clone(),
                    labels: (!labels.is_empty()).then_some(labels),
                    annotations: template.metadata.annotations.clone(),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            }
        })
        .collect()
}

/// The labels by which a pod is known.
pub(super) fn identity_labels(set: &StatefulSet, ordinal: i32) -> BTreeMap<String, String> {
    BTreeMap::from([
        (NAME_LABEL.to_owned(), pod_name(set, ordinal)),
        (INDEX_LABEL.to_owned(), ordinal.to_string()),
    ])
}

/// The pod with this ordinal, made from a revision's template.
pub(super) fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod_from_template(template, namespace, &owner_reference(set));
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.extend(identity_labels(set, ordinal));
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    let mut volumes: Vec<Volume> = templates(set)
        .iter()
        .map(|template| Volume {
            name: template.metadata.name.clone().unwrap_or_default(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: Some(false),
            }),
            ..Volume::default()
        })
        .collect();
    let own = spec.volumes.take().unwrap_or_default();
    let own = own.into_iter().filter(|volume| volumes.iter().all(|claimed| claimed.name != volume.name));
    let own: Vec<_> = own.collect();
    volumes.extend(own);
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    pod
}

/// The revision a pod was made from.
pub(super) fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL)).map_or("", String::as_str)
}

/// Whether claims go when the set is deleted, and when it is scaled down.
pub(super) fn retention(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |value: Option<&String>| value.is_some_and(|value| value == "Delete");
    (
        deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
        deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
    )
}

/// The owners a claim should have so that the garbage collector follows the retention policy;
/// `None` when they are right already or another controller has the claim.
pub(super) fn claim_owners(
    set: &StatefulSet,
    pod: &Pod,
    ordinal: i32,
    claim: &ObjectMeta,
) -> Option<Vec<OwnerReference>> {
    let (when_deleted, when_scaled) = retention(set);
    let condemned = !in_range(set, ordinal);
    let by_pod = when_scaled && condemned;
    let by_set = when_deleted && !by_pod;
    let (set_ref, pod_ref) = (owner_reference(set), owner_reference(pod));
    let present = claim.owner_references.clone().unwrap_or_default();
    let ours = |owner: &OwnerReference| {
        owner.uid == set_ref.uid || (owner.kind == "Pod" && owner.name == pod_ref.name)
    };
    if present.iter().any(|owner| owner.controller == Some(true) && !ours(owner)) {
        return None;
    }
    let mut wanted: Vec<_> = present.iter().filter(|owner| !ours(owner)).cloned().collect();
    if by_set {
        wanted.push(set_ref);
    }
    if by_pod {
        wanted.push(pod_ref);
    }
    let key = |list: &[OwnerReference]| {
        let mut uids: Vec<_> = list.iter().map(|owner| owner.uid.clone()).collect();
        uids.sort();
        uids
    };
    (key(&wanted) != key(&present)).then_some(wanted)
}

/// Whether the claim still belongs to a former pod of this name and will be deleted with it: the
/// new pod must not get it.
pub(super) fn is_stale(set: &StatefulSet, name: &str, uid: Option<&str>, claim: &ObjectMeta) -> bool {
    let (_, when_scaled) = retention(set);
    when_scaled
        && claim
            .owner_references
            .iter()
            .flatten()
            .any(|owner| owner.kind == "Pod" && owner.name == name && Some(owner.uid.as_str()) != uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut spec = spec;
        spec["selector"] = json!({ "matchLabels": { "app": "web" } });
        if spec["template"].is_null() {
            spec["template"] = json!({ "spec": { "containers": [] } });
        }
        serde_json::from_value(
            json!({ "metadata": { "name": "web", "namespace": "ns", "uid": "set" }, "spec": spec }),
        )
        .expect("a set")
    }

    #[test]
    fn ordinals_come_from_names() {
        let set = set(json!({ "replicas": 3, "ordinals": { "start": 5 } }));
        for (name, expected, inside) in [
            ("web-0", Some(0), false),
            ("web-5", Some(5), true),
            ("web-7", Some(7), true),
            ("web-8", Some(8), false),
            ("web-", None, false),
            ("web--1", None, false),
            ("web-+1", None, false),
            ("web-x-1", None, false),
            ("other-1", None, false),
            ("web-99999999999", None, false),
        ] {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            assert_eq!(ordinal(&set, &pod), expected, "{name}");
            assert_eq!(expected.is_some_and(|n| in_range(&set, n)), inside, "{name}");
        }
    }

    #[test]
    fn a_pod_has_its_identity_and_its_claims() {
        let set = set(json!({
            "serviceName": "svc",
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [],
                "volumes": [{ "name": "data", "emptyDir": {} }, { "name": "tmp", "emptyDir": {} }] } },
            "volumeClaimTemplates": [{ "metadata": { "name": "data", "labels": { "tier": "x" } }, "spec": {} }],
        }));
        let template = set.spec.as_ref().map(|spec| spec.template.clone()).expect("a template");
        let made = pod(&set, &template, "web-abc", 3);
        let labels = made.metadata.labels.expect("labels");
        assert_eq!(
            [&labels[NAME_LABEL], &labels[INDEX_LABEL], &labels[REVISION_LABEL], &labels["app"]],
            ["web-3", "3", "web-abc", "web"]
        );
        let spec = made.spec.expect("a spec");
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-3"), Some("svc")));
        let volumes: Vec<_> = spec.volumes.into_iter().flatten().collect();
        let names: Vec<_> = volumes.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["data", "tmp"]);
        let claimed = volumes[0].persistent_volume_claim.as_ref().map(|claim| claim.claim_name.as_str());
        assert_eq!(claimed, Some("data-web-3"));
        let claims = claims(&set, 3);
        assert_eq!(claims[0].metadata.name.as_deref(), Some("data-web-3"));
        assert_eq!(claims[0].metadata.labels.as_ref().map(BTreeMap::len), Some(2));
    }

    #[test]
    fn claims_follow_the_retention_policy() {
        for (deleted, scaled, ordinal, expected) in [
            ("Retain", "Retain", 0, vec![]),
            ("Delete", "Retain", 0, vec!["set"]),
            ("Delete", "Retain", 9, vec!["set"]),
            ("Retain", "Delete", 0, vec![]),
            ("Retain", "Delete", 9, vec!["pod"]),
            ("Delete", "Delete", 0, vec!["set"]),
            ("Delete", "Delete", 9, vec!["pod"]),
        ] {
            let set = set(json!({ "replicas": 1,
                "persistentVolumeClaimRetentionPolicy": { "whenDeleted": deleted, "whenScaled": scaled } }));
            let mut pod = Pod::default();
            pod.metadata.name = Some(pod_name(&set, ordinal));
            pod.metadata.uid = Some("pod".into());
            let before = ObjectMeta {
                owner_references: Some(vec![owner_reference(&set), owner_reference(&pod)]),
                ..ObjectMeta::default()
            };
            let uids = |meta: &ObjectMeta| -> Vec<String> {
                meta.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect()
            };
            for start in [ObjectMeta::default(), before] {
                let owners = claim_owners(&set, &pod, ordinal, &start);
                let now = owners.map_or(start, |owners| ObjectMeta {
                    owner_references: Some(owners),
                    ..ObjectMeta::default()
                });
                assert_eq!(uids(&now), expected, "{deleted} {scaled} {ordinal}");
                assert_eq!(claim_owners(&set, &pod, ordinal, &now), None, "nothing changes twice");
            }
        }
    }
}
