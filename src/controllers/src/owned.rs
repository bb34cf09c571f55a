//! What a change of a pod means to the controller of its owner.

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Change, Informer, ObjectKey, Queue, Watched};

use crate::adoption::controller_of;
use crate::expectations::Expectations;

/// The key of the owner of kind `K`, when the object has one and it is the same one still.
pub(crate) fn owner_key<K>(owners: &Informer<K>, meta: &ObjectMeta) -> Option<ObjectKey>
where
    K: Watched + kube::Resource<Scope = NamespaceResourceScope>,
{
    let owner = controller_of(meta)?;
    if owner.kind != K::kind(&()) {
        return None;
    }
    let key = ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), owner.name.as_str());
    // An owner that is not in the cache yet will count for itself when it arrives.
    owners
        .get_key(&key)
        .is_some_and(|found| found.meta().uid.as_deref() == Some(owner.uid.as_str()))
        .then_some(key)
}

/// Count what was expected and queue the owners that must look again: the present one, the former
/// one, and for an orphan whoever selects it.
pub(crate) fn note_pod<K>(
    change: &Change<Pod>,
    owners: &Informer<K>,
    expectations: &Expectations,
    queue: &Queue<ObjectKey>,
    selects: impl Fn(&K, &Option<BTreeMap<String, String>>) -> bool,
) where
    K: Watched + kube::Resource<Scope = NamespaceResourceScope>,
{
    if let Some(old) = &change.old
        && let Some(key) = owner_key(owners, &old.metadata)
    {
        if change.new.is_none() {
            expectations.deleted(&key, old.metadata.uid.as_deref().unwrap_or_default());
        }
        queue.add(key);
    }
    let Some(new) = &change.new else { return };
    if let Some(key) = owner_key(owners, &new.metadata) {
        if new.metadata.deletion_timestamp.is_some() {
            expectations.deleted(&key, new.metadata.uid.as_deref().unwrap_or_default());
        } else if change.old.is_none() {
            expectations.created(&key);
        }
        queue.add(key);
    } else if controller_of(&new.metadata).is_none() && new.metadata.deletion_timestamp.is_none() {
        let relabelled = change.old.as_ref().is_none_or(|old| {
            old.metadata.labels != new.metadata.labels || controller_of(&old.metadata).is_some()
        });
        if relabelled {
            for owner in owners.list_namespace(&change.key().namespace) {
                if selects(&owner, &new.metadata.labels) {
                    queue.add(ObjectKey::of(&*owner));
                }
            }
        }
    }
}
