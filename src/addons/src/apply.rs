//! Objects of any kind: applied, deleted, found by what the API server says it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use serde_json::json;

use crate::error::Error;
use crate::inventory::{ADDONS, Inventory, MANIFESTS, ObjectRef, Shelf, carries, is_entry};
use crate::{foreign, health};

/// Kinds without a state of their own whose fields cannot be changed: what Kedge made of them is replaced.
const REPLACED: [(&str, &str); 6] = [
    ("storage.k8s.io", "StorageClass"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("node.k8s.io", "RuntimeClass"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("storage.k8s.io", "CSIDriver"),
];
/// How long what is replaced may take until it is gone.
const REPLACE_LIMIT: Duration = Duration::from_secs(60);

/// Makes the cluster hold exactly `objects` of what the inventory's owner had (`before`): they are applied,
/// and what is no longer among them is removed unless somebody else wants it (`keep`). The inventory names
/// everything that may exist at any time, and which of it was there before, so that nothing is forgotten
/// when the work is cut off in between. Its arguments are the earlier ones until all is applied.
///
/// # Errors
/// The first refusal. Other objects are applied all the same when `go_on` says so; nothing is deleted then.
/// [`Error::Unchangeable`], [`Error::Foreign`]: nothing was changed.
pub(crate) async fn converge(
    client: &kube::Client,
    mut inventory: Inventory,
    objects: &[DynamicObject],
    before: Option<Inventory>,
    keep: &BTreeSet<ObjectRef>,
    go_on: bool,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Error> {
    let mut api = Objects::of(client, inventory.shelf);
    let found = api.find(objects).await?;
    let existed = existing(client, &inventory, before.as_ref(), &found).await?;
    let replaced = if go_on { BTreeMap::new() } else { api.unchangeable(objects, &found, &existed).await? };
    inventory.existed = Some(existed);

    let mut widest = inventory.clone();
    let mut gone = Vec::new();
    if let Some(before) = &before {
        let kept: BTreeSet<&ObjectRef> = inventory.objects.iter().collect();
        gone.extend(before.objects.iter().filter(|object| !kept.contains(object)).cloned());
        widest.objects.extend(gone.iter().cloned());
        let others = before.existed.iter().flatten().filter(|object| !kept.contains(object));
        widest.existed.get_or_insert_default().extend(others.cloned());
        widest.uids.clone_from(&before.uids);
        widest.version.clone_from(&before.version);
        widest.arguments.clone_from(&before.arguments);
    }
    // Whoever finds work that was cut off does it again.
    widest.digest.clear();
    widest.save(client).await?;

    let mut refused = None;
    for object in objects {
        let named = ObjectRef::of(object);
        progress(&format!("applying {named}"));
        if let Some(uid) = replaced.get(&named) {
            api.take_away(&named, uid).await?;
        }
        match api.apply(object).await {
            Ok(uid) => {
                let existed = inventory.existed.as_ref().is_some_and(|own| own.contains(&named));
                inventory.uids.extend(uid.filter(|_| !existed));
            }
            Err(error) => {
                refused.get_or_insert(error);
                if !go_on {
                    break;
                }
            }
        }
    }
    widest.uids.extend(inventory.uids.iter().cloned());
    if let Some(error) = refused {
        widest.save(client).await?;
        return Err(error);
    }
    for object in gone.iter().rev().filter(|object| !keep.contains(object)) {
        progress(&format!("removing {object}"));
        if let Some(remark) = api.remove(object, &widest).await? {
            tracing::info!("{remark}");
            progress(&remark);
        }
    }
    inventory.save(client).await
}

/// Which of the found objects Kedge did not make. What an earlier inventory names is ours unless
/// somebody else has made it since: who was cut off before the apply finds such things.
async fn existing(
    client: &kube::Client,
    inventory: &Inventory,
    before: Option<&Inventory>,
    found: &BTreeMap<ObjectRef, DynamicObject>,
) -> Result<BTreeSet<ObjectRef>, Error> {
    let made: BTreeSet<&ObjectRef> = before.into_iter().flat_map(Inventory::made).collect();
    let known: BTreeSet<&ObjectRef> = before.into_iter().flat_map(|before| &before.objects).collect();
    let is_ours = |object: &ObjectRef, found: &DynamicObject| {
        // Before such notes all counted as made.
        made.contains(object) && before.is_some_and(|own| own.existed.is_none() || own.is_maker_of(found))
    };
    let mut existed: BTreeSet<ObjectRef> = found
        .iter()
        .filter(|(object, found)| !is_ours(object, found))
        .map(|(object, _)| object.clone())
        .collect();
    if existed.iter().any(|object| !known.contains(object)) {
        // What another file or addon has made is Kedge's too: it goes with the last of them.
        for shelf in [ADDONS, MANIFESTS] {
            for other in Inventory::all_of(client, shelf).await? {
                if (other.shelf, &other.addon) != (inventory.shelf, &inventory.addon) {
                    other.made().filter(|object| !known.contains(object)).for_each(|object| {
                        existed.remove(object);
                    });
                }
            }
        }
    }
    Ok(existed)
}

/// Conflicts are told in a line each.
fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(|line| line.trim().trim_start_matches("- ")).collect();
    lines.join(" ")
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
    /// Returns its UID.
    pub(crate) async fn apply(&mut self, object: &DynamicObject) -> Result<Option<String>, Error> {
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
            Ok(applied) => Ok(applied.metadata.uid),
            Err(source) => Err(Error::refused(&named, source)),
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
            Err(source) => Err(Error::refused(object, source)),
        }
    }

    /// Those that are there.
    async fn find(&mut self, objects: &[DynamicObject]) -> Result<BTreeMap<ObjectRef, DynamicObject>, Error> {
        let mut found = BTreeMap::new();
        for object in objects {
            let named = ObjectRef::of(object);
            if let Some(api) = self.api(&named).await?
                && let Some(there) = api.get_opt(&named.name).await?
            {
                found.insert(named, there);
            }
        }
        Ok(found)
    }

    /// Those that must be replaced because the API server refuses to change them, with their UIDs.
    ///
    /// # Errors
    /// [`Error::Unchangeable`] when one of them is not to be replaced; [`Error::Foreign`] when others have other
    /// values in what was there before Kedge: to take that over would leave them without when Kedge gives it up.
    async fn unchangeable(
        &mut self,
        objects: &[DynamicObject],
        found: &BTreeMap<ObjectRef, DynamicObject>,
        existed: &BTreeSet<ObjectRef>,
    ) -> Result<BTreeMap<ObjectRef, String>, Error> {
        let mut replaced = BTreeMap::new();
        for object in objects {
            let named = ObjectRef::of(object);
            let Some(there) = found.get(&named) else { continue };
            let Some(api) = self.api(&named).await? else { continue };
            let params = PatchParams {
                dry_run: true,
                force: !existed.contains(&named),
                ..PatchParams::apply(self.shelf.manager)
            };
            // Whatever else goes wrong may be over when it is its turn.
            let Err(kube::Error::Api(status)) = api.patch(&named.name, &params, &Patch::Apply(object)).await
            else {
                continue;
            };
            if status.code == 409 && existed.contains(&named) {
                return Err(Error::Foreign { object: named.to_string(), what: one_line(&status.message) });
            }
            if status.code != 422 {
                continue;
            }
            let group = named.api_version.split_once('/').map_or("", |(group, _)| group);
            match &there.metadata.uid {
                Some(uid)
                    if REPLACED.contains(&(group, named.kind.as_str())) && !existed.contains(&named) =>
                {
                    replaced.insert(named, uid.clone());
                }
                _ => {
                    return Err(Error::Unchangeable {
                        object: named.to_string(),
                        what: status.message.trim_end_matches('.').to_owned(),
                    });
                }
            }
        }
        Ok(replaced)
    }

    /// Deletes this very object and waits until its name is free.
    async fn take_away(&mut self, object: &ObjectRef, uid: &str) -> Result<(), Error> {
        let Some(api) = self.api(object).await? else { return Ok(()) };
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&object.name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(source) => return Err(Error::refused(object, source)),
        }
        // Whatever holds it up is told by the refusal of the apply.
        match tokio::time::timeout(REPLACE_LIMIT, health::gone(self.client, object)).await {
            Ok(result) => result,
            Err(_) => Ok(()),
        }
    }

    /// Removes what `inventory` names: deleted when Kedge made it, else only given up. Returns why it stays.
    pub(crate) async fn remove(
        &mut self,
        object: &ObjectRef,
        inventory: &Inventory,
    ) -> Result<Option<String>, Error> {
        let Some(existed) = &inventory.existed else {
            self.delete(object).await?;
            return Ok(None);
        };
        let Some(api) = self.api(object).await? else { return Ok(None) };
        let Some(found) = api.get_opt(&object.name).await? else { return Ok(None) };
        let why = if existed.contains(object) {
            "it was there before".to_owned()
        } else if !inventory.is_maker_of(&found) {
            "others have made it anew".to_owned()
        } else if object.kind == "Namespace" && object.api_version == "v1" {
            match foreign::first(self.client, &object.name, inventory).await? {
                Some(holds) => format!("it holds {holds}"),
                None => String::new(),
            }
        } else {
            String::new()
        };
        if why.is_empty() {
            self.delete(object).await?;
            return Ok(None);
        }
        self.release(&api, object, &found).await?;
        Ok(Some(format!("{object} stays: {why}")))
    }

    /// Gives up the fields that we have applied. Those that the object cannot be without stay, as nobody's.
    async fn release(
        &self,
        api: &Api<DynamicObject>,
        object: &ObjectRef,
        found: &DynamicObject,
    ) -> Result<(), Error> {
        if !carries(found, self.shelf.manager) {
            return Ok(());
        }
        let mut nothing = json!({
            "apiVersion": object.api_version, "kind": object.kind, "metadata": { "name": object.name },
        });
        if let Some(namespace) = &object.namespace {
            nothing["metadata"]["namespace"] = json!(namespace);
        }
        let params = PatchParams::apply(self.shelf.manager);
        match api.patch(&object.name, &params, &Patch::Apply(&nothing)).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 422 => {}
            Err(source) => return Err(Error::refused(object, source)),
        }
        let entries = found.metadata.managed_fields.iter().flatten();
        let others: Vec<_> = entries.filter(|entry| !is_entry(entry, self.shelf.manager)).collect();
        // An empty entry stands for none at all.
        let others = if others.is_empty() { json!([{}]) } else { json!(others) };
        let patch = json!({ "metadata": {
            "managedFields": others, "resourceVersion": found.metadata.resource_version,
        } });
        match api.patch(&object.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(Error::refused(object, source)),
        }
    }
}
