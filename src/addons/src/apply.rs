//! Objects of any kind: applied, deleted, found by what the API server says it serves.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};

use crate::error::Error;
use crate::inventory::{ADDONS, Inventory, ObjectRef, Shelf};

/// Makes the cluster hold exactly `objects` of what the inventory's owner had (`before`): they are applied,
/// and what is no longer among them is deleted unless somebody else wants it (`keep`). The inventory names
/// everything that may exist at any time, so that nothing is forgotten when the work is cut off in between.
///
/// # Errors
/// The first refusal. Other objects are applied all the same when `go_on` says so; nothing is deleted then.
pub(crate) async fn converge(
    client: &kube::Client,
    inventory: &Inventory,
    objects: &[DynamicObject],
    before: Vec<ObjectRef>,
    keep: &BTreeSet<ObjectRef>,
    go_on: bool,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Error> {
    let kept: BTreeSet<&ObjectRef> = inventory.objects.iter().collect();
    let gone: Vec<ObjectRef> = before.into_iter().filter(|object| !kept.contains(object)).collect();
    let mut widest = inventory.clone();
    widest.objects.extend(gone.iter().cloned());
    // Whoever finds work that was cut off does it again.
    widest.digest.clear();
    widest.save(client).await?;

    let mut api = Objects::of(client, inventory.shelf);
    let mut refused = None;
    for object in objects {
        progress(&format!("applying {}", ObjectRef::of(object)));
        match api.apply(object).await {
            Ok(()) => {}
            Err(error) if go_on => drop(refused.get_or_insert(error)),
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = refused {
        return Err(error);
    }
    for object in gone.iter().rev().filter(|object| !keep.contains(object)) {
        progress(&format!("removing {object}"));
        api.delete(object).await?;
    }
    if !gone.is_empty() || !inventory.digest.is_empty() {
        inventory.save(client).await?;
    }
    Ok(())
}

/// Asks the API server once for each kind.
pub(crate) struct Objects<'a> {
    client: &'a kube::Client,
    shelf: Shelf,
    kinds: BTreeMap<(String, String), (ApiResource, Scope)>,
}

impl<'a> Objects<'a> {
    pub(crate) fn new(client: &'a kube::Client) -> Self {
        Self::of(client, ADDONS)
    }

    fn of(client: &'a kube::Client, shelf: Shelf) -> Self {
        Self { client, shelf, kinds: BTreeMap::new() }
    }

    /// The objects' interface; `None`: the kind is not served.
    pub(crate) async fn api(&mut self, object: &ObjectRef) -> Result<Option<Api<DynamicObject>>, Error> {
        let key = (object.api_version.clone(), object.kind.clone());
        if !self.kinds.contains_key(&key) {
            let (group, version) = match object.api_version.split_once('/') {
                Some((group, version)) => (group, version),
                None => ("", object.api_version.as_str()),
            };
            let kind = GroupVersionKind::gvk(group, version, &object.kind);
            match pinned_kind(self.client, &kind).await {
                Ok((resource, capabilities)) => {
                    self.kinds.insert(key.clone(), (resource, capabilities.scope));
                }
                Err(kube::Error::Discovery(_)) => return Ok(None),
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        let Some((resource, scope)) = self.kinds.get(&key) else { return Ok(None) };
        Ok(Some(match scope {
            Scope::Cluster => Api::all_with(self.client.clone(), resource),
            Scope::Namespaced => {
                let namespace = object.namespace.as_deref().unwrap_or("default");
                Api::namespaced_with(self.client.clone(), namespace, resource)
            }
        }))
    }

    /// Server-side apply; what others wrote into our fields is taken over.
    pub(crate) async fn apply(&mut self, object: &DynamicObject) -> Result<(), Error> {
        let named = ObjectRef::of(object);
        let Some(api) = self.api(&named).await? else {
            return Err(Error::UnknownKind {
                object: named.to_string(),
                kind: named.kind,
                api_version: named.api_version,
            });
        };
        let params = PatchParams::apply(self.shelf.manager).force();
        match api.patch(&named.name, &params, &Patch::Apply(object)).await {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Refused { object: named.to_string(), source: Box::new(source) }),
        }
    }

    /// Deletes it with all that depends on it; what is gone already, or whose kind is, is no error.
    /// True: it was there.
    pub(crate) async fn delete(&mut self, object: &ObjectRef) -> Result<bool, Error> {
        let Some(api) = self.api(object).await? else { return Ok(false) };
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        match api.delete(&object.name, &params).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(source) => Err(Error::Refused { object: object.to_string(), source: Box::new(source) }),
        }
    }
}
