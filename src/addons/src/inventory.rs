//! What an enabled addon has made, kept in a ConfigMap `kedge-addon-NAME` in `kube-system`; and the same for
//! files of the manifests' folder, as `kedge-manifest-HASH`.
//!
//! It is written before anything is applied (with what was there before added), so that nothing is
//! forgotten when the work is cut off in between, and again with exactly what is left afterwards.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams};
use serde::{Deserialize, Serialize};

use crate::check::Check;
use crate::error::Error;

const NAMESPACE: &str = "kube-system";

/// Whose inventories: they are found by their own label and never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shelf {
    prefix: &'static str,
    label: &'static str,
    /// The field manager that applies what they list.
    pub(crate) manager: &'static str,
}

/// Of addons.
pub(crate) const ADDONS: Shelf =
    Shelf { prefix: "kedge-addon-", label: "kedge.dev/addon", manager: "kedge-addons" };
/// Of files in the manifests' folder.
pub(crate) const MANIFESTS: Shelf =
    Shelf { prefix: "kedge-manifest-", label: "kedge.dev/manifest", manager: "kedge-manifests" };

impl Default for Shelf {
    fn default() -> Self {
        ADDONS
    }
}

/// Names one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl ObjectRef {
    pub(crate) fn of(object: &DynamicObject) -> Self {
        let types = object.types.clone().unwrap_or_default();
        Self {
            api_version: types.api_version,
            kind: types.kind,
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// An enabled addon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    #[serde(skip)]
    pub(crate) shelf: Shelf,
    #[serde(skip)]
    pub addon: String,
    pub version: String,
    /// The version of Kedge that applied it: its images carry that.
    #[serde(default)]
    pub kedge: String,
    /// Of what was applied; empty while that is under way.
    #[serde(default)]
    pub digest: String,
    /// The arguments it was enabled with; defaults are not kept, so that a new version may change them.
    #[serde(default)]
    pub arguments: BTreeMap<String, String>,
    /// In the order in which they were applied.
    pub objects: Vec<ObjectRef>,
    /// What must be so for it to be healthy, beside their status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<Check>,
    /// Those of them that others made before: they are given up in the end, never deleted. `None`: it was
    /// written by a Kedge that did not ask, and all count as made by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existed: Option<BTreeSet<ObjectRef>>,
    /// The UIDs of those that Kedge made: what has another one, somebody else made under the same name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub uids: BTreeSet<String>,
}

/// Has this manager applied some of the object's fields?
pub(crate) fn carries(object: &DynamicObject, manager: &str) -> bool {
    object.metadata.managed_fields.iter().flatten().any(|entry| is_entry(entry, manager))
}

pub(crate) fn is_entry(entry: &ManagedFieldsEntry, manager: &str) -> bool {
    entry.manager.as_deref() == Some(manager) && entry.operation.as_deref() == Some("Apply")
}

fn api(client: &kube::Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), NAMESPACE)
}

impl Shelf {
    fn object_name(self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Inventory {
    /// Is this object, which has the name of one of ours, the one that Kedge made? When the work was cut off
    /// before its UID was noted, the fields that we have applied tell it.
    pub(crate) fn is_maker_of(&self, found: &DynamicObject) -> bool {
        found.metadata.uid.as_ref().is_some_and(|uid| self.uids.contains(uid))
            || carries(found, self.shelf.manager)
    }

    /// Those that Kedge made.
    pub(crate) fn made(&self) -> impl Iterator<Item = &ObjectRef> {
        self.objects.iter().filter(|object| !self.existed.as_ref().is_some_and(|own| own.contains(object)))
    }

    pub(crate) async fn load(client: &kube::Client, addon: &str) -> Result<Option<Self>, Error> {
        Self::load_from(client, ADDONS, addon).await
    }

    pub(crate) async fn load_from(
        client: &kube::Client,
        shelf: Shelf,
        name: &str,
    ) -> Result<Option<Self>, Error> {
        match api(client).get_opt(&shelf.object_name(name)).await? {
            Some(map) => Self::decode(shelf, name, &map).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn all(client: &kube::Client) -> Result<Vec<Self>, Error> {
        Self::all_of(client, ADDONS).await
    }

    pub(crate) async fn all_of(client: &kube::Client, shelf: Shelf) -> Result<Vec<Self>, Error> {
        let maps = api(client).list(&ListParams::default().labels(shelf.label)).await?;
        maps.items
            .iter()
            .filter_map(|map| Some((map.metadata.labels.as_ref()?.get(shelf.label)?, map)))
            .map(|(name, map)| Self::decode(shelf, name, map))
            .collect()
    }

    fn decode(shelf: Shelf, addon: &str, map: &ConfigMap) -> Result<Self, Error> {
        let text = map.data.as_ref().and_then(|data| data.get("inventory")).map_or("", String::as_str);
        let mut inventory: Self = serde_json::from_str(text)
            .map_err(|error| Error::Inventory { addon: addon.to_owned(), what: error.to_string() })?;
        addon.clone_into(&mut inventory.addon);
        inventory.shelf = shelf;
        Ok(inventory)
    }

    pub(crate) async fn save(&self, client: &kube::Client) -> Result<(), Error> {
        let text = serde_json::to_string(self)
            .map_err(|error| Error::Inventory { addon: self.addon.clone(), what: error.to_string() })?;
        let name = self.shelf.object_name(&self.addon);
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(NAMESPACE.to_owned()),
                labels: Some([(self.shelf.label.to_owned(), self.addon.clone())].into()),
                ..ObjectMeta::default()
            },
            data: Some([("inventory".to_owned(), text)].into()),
            ..ConfigMap::default()
        };
        api(client)
            .patch(&name, &PatchParams::apply(self.shelf.manager).force(), &Patch::Apply(&map))
            .await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, client: &kube::Client) -> Result<(), Error> {
        match api(client).delete(&self.shelf.object_name(&self.addon), &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
