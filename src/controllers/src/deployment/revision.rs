//! The annotations by which a Deployment's history is kept (upstream deployment_util.go).

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(super) const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";
const HISTORY_ANNOTATION: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_ANNOTATION: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_ANNOTATION: &str = "deployment.kubernetes.io/max-replicas";
/// Longer histories lose their oldest entries.
const HISTORY_LIMIT: usize = 2000;

/// What belongs to the Deployment alone or is computed for each set.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION_ANNOTATION,
    HISTORY_ANNOTATION,
    DESIRED_ANNOTATION,
    MAX_ANNOTATION,
    "deprecated.deployment.rollback.to",
];

pub(super) fn int_annotation(meta: &ObjectMeta, name: &str) -> Option<i32> {
    meta.annotations.as_ref()?.get(name)?.parse().ok()
}

/// The set's revision, 0 when it has none.
pub(super) fn revision(meta: &ObjectMeta) -> i64 {
    meta.annotations
        .as_ref()
        .and_then(|a| a.get(REVISION_ANNOTATION))
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

pub(super) fn max_revision<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    sets.into_iter().map(|set| revision(&set.metadata)).max().unwrap_or(0)
}

/// Set one annotation; whether that changed it.
fn set(meta: &mut ObjectMeta, name: &str, value: &str) -> bool {
    let annotations = meta.annotations.get_or_insert_default();
    if annotations.get(name).is_some_and(|old| old == value) {
        return false;
    }
    annotations.insert(name.to_owned(), value.to_owned());
    true
}

/// How many replicas the Deployment wanted, and could have had, when the set was last sized.
pub(super) fn set_replicas(meta: &mut ObjectMeta, desired: i32, max: i32) -> bool {
    let desired = set(meta, DESIRED_ANNOTATION, &desired.to_string());
    let max = set(meta, MAX_ANNOTATION, &max.to_string());
    desired || max
}

/// Bring the new set's annotations up to date: the Deployment's own ones (the change cause among
/// them) and the revision, the former one going into the history. Whether anything changed.
pub(super) fn annotate(deployment: &ObjectMeta, new: &mut ObjectMeta, new_revision: i64) -> bool {
    let mut changed = false;
    for (name, value) in deployment.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&name.as_str()) {
            changed |= set(new, name, value);
        }
    }
    let old = new.annotations.as_ref().and_then(|a| a.get(REVISION_ANNOTATION)).cloned();
    if let Some(old) = &old
        && old.parse::<i64>().is_err()
    {
        return changed;
    }
    if revision(new) < new_revision {
        set(new, REVISION_ANNOTATION, &new_revision.to_string());
        changed = true;
        if let Some(old) = old.filter(|old| !old.is_empty()) {
            let annotations = new.annotations.get_or_insert_default();
            let history = annotations.get(HISTORY_ANNOTATION).cloned().unwrap_or_default();
            annotations.insert(HISTORY_ANNOTATION.to_owned(), append(&history, &old));
        }
    }
    changed
}

fn append(history: &str, revision: &str) -> String {
    let mut entries: Vec<&str> = history.split(',').filter(|entry| !entry.is_empty()).collect();
    entries.push(revision);
    let mut start = 0;
    while entries[start..].join(",").len() > HISTORY_LIMIT && start + 1 < entries.len() {
        start += 1;
    }
    entries[start..].join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(annotations: &[(&str, &str)]) -> ObjectMeta {
        ObjectMeta {
            annotations: Some(annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn annotations_are_copied_and_revisions_counted() {
        let deployment = meta(&[
            ("kubernetes.io/change-cause", "image"),
            (REVISION_ANNOTATION, "9"),
            ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
        ]);
        let mut new = meta(&[(REVISION_ANNOTATION, "1"), (HISTORY_ANNOTATION, "0")]);
        assert!(annotate(&deployment, &mut new, 3));
        assert_eq!(
            new,
            meta(&[
                ("kubernetes.io/change-cause", "image"),
                (REVISION_ANNOTATION, "3"),
                (HISTORY_ANNOTATION, "0,1")
            ])
        );
        assert!(!annotate(&deployment, &mut new, 3), "nothing changes twice");
        assert!(!annotate(&deployment, &mut new, 2), "a revision never goes back");
        assert!(set_replicas(&mut new, 2, 3) && !set_replicas(&mut new, 2, 3));
    }

    #[test]
    fn a_long_history_loses_its_beginning() {
        let long = (0..1000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let cut = append(&long, "1000");
        assert!(cut.len() <= HISTORY_LIMIT && cut.ends_with(",999,1000") && !cut.starts_with(','));
    }
}
