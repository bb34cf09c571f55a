//! What a namespace holds that an inventory does not name: things of users, for which the namespace stays.

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

/// The first of them and how many more there are, in words; `None`: there is none.
///
/// # Errors
/// When the API server does not say what kinds there are.
pub(crate) async fn first(
    client: &kube::Client,
    namespace: &str,
    inventory: &Inventory,
) -> Result<Option<String>, Error> {
    let own: BTreeSet<(&str, &str, &str)> = inventory
        .made()
        .filter(|object| object.namespace.as_deref() == Some(namespace))
        .map(|object| (group(&object.api_version), object.kind.as_str(), object.name.as_str()))
        .collect();
    let mut found: Vec<ObjectRef> = Vec::new();
    for (resource, listed) in kinds(client).await? {
        if IGNORED.contains(&(resource.group.as_str(), resource.kind.as_str())) {
            continue;
        }
        // Who does not say what it holds may hold something.
        if !listed {
            return Ok(Some(format!("nobody knows what: {} does not answer", resource.api_version)));
        }
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
        let list = match api.list_metadata(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => continue,
            Err(kube::Error::Api(_)) => {
                return Ok(Some(format!("nobody knows what: {} cannot be listed", resource.plural)));
            }
            Err(error) => return Err(error.into()),
        };
        found.extend(list.into_iter().map(|object| object.metadata).filter_map(|metadata| {
            let name = metadata.name.clone().unwrap_or_default();
            let ours = own.contains(&(resource.group.as_str(), resource.kind.as_str(), name.as_str()));
            (!ours && counts(&resource.kind, &metadata)).then(|| ObjectRef {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
                namespace: None,
                name,
            })
        }));
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
}
