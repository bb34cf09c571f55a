//! What users have made: in a namespace, for which it stays when its addon goes; or in the whole cluster.

use std::collections::BTreeSet;

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, ObjectMeta};

use crate::error::Error;
use crate::inventory::{Inventory, ObjectRef};

/// What the cluster itself makes, in any namespace or beside objects that count themselves.
const IGNORED: [(&str, &str); 5] = [
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("", "Endpoints"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("coordination.k8s.io", "Lease"),
];
/// Groups that show figures, and hold nothing.
const FIGURES: [&str; 3] = ["metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"];

/// Kubernetes' own; most of Kedge's is there, too.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// What counts of what is in no namespace: group, version, kind, plural.
const OF_THE_CLUSTER: [(&str, &str, &str, &str); 3] = [
    ("", "v1", "Namespace", "namespaces"),
    ("", "v1", "PersistentVolume", "persistentvolumes"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
];

/// Everything in this cluster that neither Kubernetes, Kedge nor an addon has made, in words. `namespaces` are
/// further ones of Kedge's.
///
/// # Errors
/// When the API server does not say what kinds there are.
pub async fn objects_of_users(client: &kube::Client, namespaces: &[&str]) -> Result<Vec<String>, Error> {
    let inventories = Inventory::all(client).await?;
    let mut own: BTreeSet<_> = inventories.iter().flat_map(Inventory::made).map(key).collect();
    own.extend(namespaces.iter().map(|name| ("", "Namespace", None, *name)));
    let of_the_cluster = OF_THE_CLUSTER.map(|(group, version, kind, plural)| {
        let kind = GroupVersionKind::gvk(group, version, kind);
        (ApiResource::from_gvk_with_plural(&kind, plural), true)
    });
    let mut found = Vec::new();
    for (resource, listed) in kinds(client).await?.into_iter().chain(of_the_cluster) {
        if IGNORED.contains(&(resource.group.as_str(), resource.kind.as_str())) {
            continue;
        }
        // Who does not say what it holds may hold something.
        if !listed {
            found.push(format!("whatever {} holds, which does not answer", resource.api_version));
            continue;
        }
        let Some(list) = list(client, &resource, None).await? else {
            found.push(format!("whatever {} there are, which cannot be listed", resource.plural));
            continue;
        };
        let objects = list.into_iter().filter(|metadata| counts(&resource.kind, metadata));
        found.extend(
            objects
                .map(|metadata| ObjectRef {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                    namespace: metadata.namespace,
                    name: metadata.name.unwrap_or_default(),
                })
                .filter(|object| is_of_users(object, &own))
                .map(|object| object.to_string()),
        );
    }
    Ok(found)
}

/// `own` is what addons have made.
fn is_of_users(object: &ObjectRef, own: &BTreeSet<Key<'_>>) -> bool {
    let systems_or_addons = |namespace: &str| {
        SYSTEM_NAMESPACES.contains(&namespace) || own.contains(&("", "Namespace", None, namespace))
    };
    let name = object.name.as_str();
    let is_of_kubernetes = match (object.kind.as_str(), object.namespace.as_deref()) {
        ("Namespace", None) => name == "default" || systems_or_addons(name),
        ("Service", Some("default")) => name == "kubernetes",
        (_, Some(namespace)) => systems_or_addons(namespace),
        _ => false,
    };
    !is_of_kubernetes && !own.contains(&key(object))
}

/// An object in whichever version: group, kind, namespace, name.
type Key<'a> = (&'a str, &'a str, Option<&'a str>, &'a str);

fn key(object: &ObjectRef) -> Key<'_> {
    (group(&object.api_version), &object.kind, object.namespace.as_deref(), &object.name)
}

/// The metadata of all objects; `None`: they cannot be listed.
async fn list(
    client: &kube::Client,
    resource: &ApiResource,
    namespace: Option<&str>,
) -> Result<Option<Vec<ObjectMeta>>, Error> {
    let api = match namespace {
        Some(namespace) => Api::<DynamicObject>::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    };
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => Ok(Some(list.items.into_iter().map(|object| object.metadata).collect())),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => Ok(Some(Vec::new())),
        Err(kube::Error::Api(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The first of them and how many more there are, in words; `None`: there is none.
///
/// # Errors
/// When the API server does not say what kinds there are.
pub(crate) async fn first(
    client: &kube::Client,
    namespace: &str,
    inventory: &Inventory,
) -> Result<Option<String>, Error> {
    let own: BTreeSet<_> = inventory.made().map(key).collect();
    let mut found: Vec<ObjectRef> = Vec::new();
    for (resource, listed) in kinds(client).await? {
        if IGNORED.contains(&(resource.group.as_str(), resource.kind.as_str())) {
            continue;
        }
        // Who does not say what it holds may hold something.
        if !listed {
            return Ok(Some(format!("nobody knows what: {} does not answer", resource.api_version)));
        }
        let Some(list) = list(client, &resource, Some(namespace)).await? else {
            return Ok(Some(format!("nobody knows what: {} cannot be listed", resource.plural)));
        };
        found.extend(list.into_iter().filter(|metadata| counts(&resource.kind, metadata)).filter_map(
            |metadata| {
                let name = metadata.name.unwrap_or_default();
                let ours = own.contains(&(&resource.group, &resource.kind, Some(namespace), name.as_str()));
                (!ours).then(|| ObjectRef {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                    namespace: None,
                    name,
                })
            },
        ));
    }
    Ok(found.first().map(|object| match found.len() {
        1 => format!("{object}, which is not the addon's"),
        count => format!("{object} and {} more, which are not the addon's", count - 1),
    }))
}

/// Not what goes by itself, belongs to another object, or is in every namespace.
fn counts(kind: &str, metadata: &ObjectMeta) -> bool {
    let in_every_one = matches!(
        (kind, metadata.name.as_deref()),
        ("ServiceAccount", Some("default")) | ("ConfigMap", Some("kube-root-ca.crt"))
    );
    // The token of an account, as old clusters made it.
    let of_an_account = kind == "Secret"
        && metadata
            .annotations
            .as_ref()
            .is_some_and(|notes| notes.contains_key("kubernetes.io/service-account.name"));
    let owned = metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
    metadata.deletion_timestamp.is_none() && !owned && !in_every_one && !of_an_account
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Every kind of namespaces that can be listed, each in one version (a group's preferred one if it has the
/// kind); false: its group does not answer.
async fn kinds(client: &kube::Client) -> Result<Vec<(ApiResource, bool)>, Error> {
    let mut lists = vec![("v1".to_owned(), Some(client.list_core_api_resources("v1").await?))];
    let groups = client.list_api_groups().await?.groups;
    for group in groups.into_iter().filter(|group| !FIGURES.contains(&group.name.as_str())) {
        let mut versions: Vec<String> =
            group.preferred_version.into_iter().map(|v| v.group_version).collect();
        for version in group.versions {
            if !versions.contains(&version.group_version) {
                versions.push(version.group_version);
            }
        }
        for version in versions {
            let list = match client.list_api_group_resources(&version).await {
                Ok(list) => Some(list),
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(kube::Error::Api(_)) => None,
                Err(error) => return Err(error.into()),
            };
            lists.push((version, list));
        }
    }
    let mut known = BTreeSet::new();
    let mut kinds = Vec::new();
    for (api_version, list) in lists {
        let group = group(&api_version);
        let version = api_version.rsplit('/').next().unwrap_or_default();
        let Some(list) = list else {
            let nobody = GroupVersionKind::gvk(group, version, "");
            kinds.push((ApiResource::from_gvk_with_plural(&nobody, ""), false));
            continue;
        };
        for resource in list.resources {
            let listed = resource.verbs.iter().any(|verb| verb == "list");
            let counts = resource.namespaced && listed && !resource.name.contains('/');
            if counts && known.insert((group.to_owned(), resource.name.clone())) {
                let kind = GroupVersionKind::gvk(group, version, &resource.kind);
                kinds.push((ApiResource::from_gvk_with_plural(&kind, &resource.name), true));
            }
        }
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn only_what_somebody_has_made_counts() {
        for (kind, metadata, expected) in [
            ("ConfigMap", json!({"name": "mine"}), true),
            ("ConfigMap", json!({"name": "kube-root-ca.crt"}), false),
            ("ServiceAccount", json!({"name": "default"}), false),
            ("ServiceAccount", json!({"name": "mine"}), true),
            ("PersistentVolumeClaim", json!({"name": "data-db-0"}), true),
            ("ConfigMap", json!({"name": "mine", "deletionTimestamp": "2026-01-01T00:00:00Z"}), false),
            (
                "Pod",
                json!({"name": "p", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u"}]}),
                false,
            ),
            (
                "Secret",
                json!({"name": "t", "annotations": {"kubernetes.io/service-account.name": "default"}}),
                false,
            ),
        ] {
            let metadata: ObjectMeta = from_value(metadata).unwrap();
            assert_eq!(counts(kind, &metadata), expected, "{kind} {metadata:?}");
        }
    }

    #[test]
    fn what_addons_and_kubernetes_have_made_is_no_users() {
        let object = |api_version: &str, kind: &str, namespace: Option<&str>, name: &str| ObjectRef {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: namespace.map(str::to_owned),
            name: name.into(),
        };
        let crd = "apiextensions.k8s.io/v1";
        let made = [
            object("v1", "Namespace", None, "metallb-system"),
            object(crd, "CustomResourceDefinition", None, "pools.metallb.io"),
            object("autoscaling/v1", "HorizontalPodAutoscaler", Some("default"), "addons"),
        ];
        let own: BTreeSet<_> = made.iter().map(key).collect();
        for (object, expected) in [
            (object("v1", "Service", Some("default"), "kubernetes"), false),
            (object("v1", "Service", Some("default"), "web"), true),
            (object("v1", "Service", Some("other"), "kubernetes"), true),
            (object("v1", "Secret", Some("kube-system"), "x"), false),
            (object("v1", "Secret", Some("metallb-system"), "x"), false),
            (object("v1", "Secret", Some("default"), "x"), true),
            (object("v1", "Namespace", None, "kube-node-lease"), false),
            (object("v1", "Namespace", None, "default"), false),
            (object("v1", "Namespace", None, "metallb-system"), false),
            (object("v1", "Namespace", None, "shop"), true),
            (object("v1", "PersistentVolume", None, "disk"), true),
            (object(crd, "CustomResourceDefinition", None, "pools.metallb.io"), false),
            (object(crd, "CustomResourceDefinition", None, "lamps.example.invalid"), true),
            (object("example.invalid/v1", "Lamp", Some("default"), "first"), true),
            (object("autoscaling/v2", "HorizontalPodAutoscaler", Some("default"), "addons"), false),
        ] {
            assert_eq!(is_of_users(&object, &own), expected, "{object}");
        }
    }
}
