//! Discovery: which groups, versions and resources there are, in the old form and the aggregated
//! one (KEP-3352). Made from the registry at each request; clients cache it.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use kedge_api::registry::{Registry, Resource};
use kedge_base::Order as _;
use serde_json::{Value, json};

use crate::aggregation;
use crate::respond;
use crate::state::State;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The answer when the path is one of discovery.
pub(crate) fn answer(state: &State, headers: &HeaderMap, path: &str) -> Option<Response<Body>> {
    let registry = state.registry.read();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let value = match parts.as_slice() {
        ["api"] if wants_aggregated(headers) => return Some(aggregated(state, headers, &registry, true)),
        ["apis"] if wants_aggregated(headers) => return Some(aggregated(state, headers, &registry, false)),
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{
                "clientCIDR": "0.0.0.0/0",
                "serverAddress": format!("{}:{}", state.config.advertise_address, state.config.listen.port()),
            }],
        }),
        ["apis"] => json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": groups(state, &registry).iter().filter(|(name, _)| !name.is_empty())
                .map(|(name, versions)| group(name, versions)).collect::<Vec<_>>(),
        }),
        ["api", version] => resources(&registry, "", version)?,
        ["apis", name] => {
            let groups = groups(state, &registry);
            let (name, versions) = groups.iter().find(|(known, _)| known == name)?;
            let mut group = group(name, versions);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            group
        }
        ["apis", group, version] => resources(&registry, group, version)?,
        _ => return None,
    };
    Some(respond::json(StatusCode::OK, &value))
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|media| {
        let has = |text: &str| media.split(';').any(|part| part.trim() == text);
        has("application/json")
            && has("g=apidiscovery.k8s.io")
            && has("v=v2")
            && has("as=APIGroupDiscoveryList")
    })
}

/// Groups in discovery order with their versions, preferred first.
fn groups(state: &State, registry: &Registry) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, Vec<String>)> = registry
        .groups()
        .into_iter()
        .map(|group| (group.name.to_string(), group.versions.iter().map(ToString::to_string).collect()))
        .collect();
    aggregation::add_groups(state, &mut groups);
    groups
}

fn group(name: &str, versions: &[String]) -> Value {
    let version =
        |version: &String| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

fn of<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = std::sync::Arc<Resource>> + 'a {
    registry
        .iter()
        .filter(move |resource| &*resource.group == group && &*resource.version == version)
        .cloned()
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in of(registry, group, version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        if resource.stored {
            entry["storageVersionHash"] = json!(storage_version_hash(resource.as_ref()));
        }
        list.push(entry);
        for sub in &resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (&*sub.group, &*sub.version) != (group, version) {
                entry["group"] = json!(sub.group);
                entry["version"] = json!(sub.version);
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return None;
    }
    list.order_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list }),
    )
}

/// By which clients see that objects are stored in another version now (apiserver `endpoints/discovery`).
fn storage_version_hash(resource: &Resource) -> String {
    use base64::Engine as _;
    let (group, version) = &resource.storage_version;
    let name = format!("{group}/{version}/{}", resource.kind);
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8])
}

fn aggregated(state: &State, headers: &HeaderMap, registry: &Registry, core: bool) -> Response<Body> {
    let items: Vec<Value> = groups(state, registry)
        .iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    if let Some(remote) = aggregation::aggregated_groups(state, name, version) {
                        return remote;
                    }
                    let mut resources: Vec<Value> =
                        of(registry, name, version).map(|resource| entry(&resource)).collect();
                    resources.order_by(|a, b| a["resource"].as_str().cmp(&b["resource"].as_str()));
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            json!({ "metadata": { "name": name, "creationTimestamp": null }, "versions": versions })
        })
        .collect();
    let text = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
    .to_string();
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let tag: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect();
    let tag = format!("\"{tag}\"");
    let known =
        headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()) == Some(tag.as_str());
    let mut response = if known {
        respond::text(StatusCode::NOT_MODIFIED, "")
    } else {
        respond::json_bytes(StatusCode::OK, text.into())
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn entry(resource: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": kind(&sub.group, &sub.version, &sub.kind),
                "verbs": sub.verbs,
            })
        })
        .collect();
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}
