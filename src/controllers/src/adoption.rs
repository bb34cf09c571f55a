//! Who owns what: a controller adopts matching orphans and releases what no longer matches
//! (upstream pkg/controller, ControllerRefManager).

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kedge_client::{Error, selector_matches};
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;

/// The owner reference that says "I manage this".
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_deref().unwrap_or_default().iter().find(|owner| owner.controller == Some(true))
}

/// Whether the object with `uid` manages this one.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The reference to put into objects that `owner` makes.
pub(crate) fn owner_reference<K: kube::Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What to do with one object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours already.
    Keep,
    /// An orphan that matches.
    Adopt,
    /// Ours by reference, but it does not match any more.
    Release,
    /// Somebody else's business.
    Leave,
}

/// `matches`: the selector and, for pods, whatever else is asked.
pub(crate) fn decide(owner: &ObjectMeta, object: &ObjectMeta, matches: bool) -> Claim {
    let uid = owner.uid.as_deref().unwrap_or_default();
    let owner_is_going = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(reference) if reference.uid != uid => Claim::Leave,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner_is_going => Claim::Leave,
        Some(_) => Claim::Release,
        None if owner_is_going || !matches || object.deletion_timestamp.is_some() => Claim::Leave,
        None => Claim::Adopt,
    }
}

/// The objects of `candidates` that `reference`'s owner manages, after adopting and releasing.
/// `fresh` reads the owner from the API server: an orphan is adopted only when the owner still
/// lives under the same uid, because the cache may show one that was deleted.
pub(crate) async fn claim<C, F>(
    client: &kube::Client,
    owner: &ObjectMeta,
    reference: &OwnerReference,
    selector: &LabelSelector,
    candidates: Vec<Arc<C>>,
    fresh: F,
) -> Result<Vec<Arc<C>>, Error>
where
    C: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
    F: Future<Output = Result<ObjectMeta, kube::Error>>,
{
    let namespace = owner.namespace.as_deref().unwrap_or_default();
    // Validation lets none pass that selects everything; one that came in otherwise selects nothing.
    let selects = selector.match_labels.as_ref().is_some_and(|labels| !labels.is_empty())
        || selector.match_expressions.as_ref().is_some_and(|list| !list.is_empty());
    let mut claimed = Vec::with_capacity(candidates.len());
    let mut adopt = Vec::new();
    for object in candidates {
        let matches = selects && selector_matches(selector, &object.meta().labels);
        match decide(owner, object.meta(), matches) {
            Claim::Keep => claimed.push(object),
            Claim::Leave => {}
            Claim::Adopt => adopt.push(object),
            Claim::Release => release(client, namespace, &*object, &reference.uid).await?,
        }
    }
    if adopt.is_empty() {
        return Ok(claimed);
    }
    let live = fresh.await?;
    if live.uid.as_deref() != Some(reference.uid.as_str()) {
        return Err(Error::other(format!(
            "original {} {}/{} is gone: got uid {}, wanted {}",
            reference.kind,
            namespace,
            reference.name,
            live.uid.unwrap_or_default(),
            reference.uid
        )));
    }
    if live.deletion_timestamp.is_some() {
        return Ok(claimed);
    }
    for object in adopt {
        let meta = object.meta();
        let patch = json!({ "metadata": { "ownerReferences": [reference], "uid": meta.uid } });
        let api = kube::Api::<C>::namespaced(client.clone(), namespace);
        let name = meta.name.as_deref().unwrap_or_default();
        match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(adopted) => claimed.push(Arc::new(adopted)),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(claimed)
}

async fn release<C>(client: &kube::Client, namespace: &str, object: &C, owner_uid: &str) -> Result<(), Error>
where
    C: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let meta = object.meta();
    let patch = json!({
        "metadata": { "ownerReferences": [{ "$patch": "delete", "uid": owner_uid }], "uid": meta.uid }
    });
    let api = kube::Api::<C>::namespaced(client.clone(), namespace);
    let name = meta.name.as_deref().unwrap_or_default();
    match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Err(error) if !is_gone(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Not found, or another object has the name now: the uid in the patch is a conflict, or invalid.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(owner: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            owner_references: owner.map(|uid| {
                vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
            }),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn claims_follow_upstream() {
        let owner = ObjectMeta { uid: Some("me".into()), ..ObjectMeta::default() };
        let going = ObjectMeta { deletion_timestamp: Some(crate::time::now()), ..owner.clone() };
        let dying = ObjectMeta { deletion_timestamp: Some(crate::time::now()), ..object(None) };
        for (owner, object, matches, expected) in [
            (&owner, object(Some("me")), true, Claim::Keep),
            (&owner, object(Some("me")), false, Claim::Release),
            (&owner, object(Some("other")), true, Claim::Leave),
            (&owner, object(None), true, Claim::Adopt),
            (&owner, object(None), false, Claim::Leave),
            (&owner, dying, true, Claim::Leave),
            (&going, object(None), true, Claim::Leave),
            (&going, object(Some("me")), true, Claim::Keep),
            (&going, object(Some("me")), false, Claim::Leave),
        ] {
            assert_eq!(decide(owner, &object, matches), expected, "{object:?} {matches}");
        }
    }
}
