//! Aggregated groups in discovery: what their servers said when they were last asked.

use std::sync::Arc;

use kedge_base::Order as _;
use serde_json::{Value, json};

use super::{Remote, remotes};
use crate::state::State;

/// Adds remote groups and versions to those that are served here, preferred versions first.
pub(crate) fn add_groups(state: &State, groups: &mut Vec<(String, Vec<String>)>) {
    for remote in sorted(state).iter().filter(|remote| remote.available) {
        match groups.iter_mut().find(|(name, _)| *name == remote.group) {
            Some((_, versions)) if versions.contains(&remote.version) => {}
            Some((_, versions)) => versions.push(remote.version.clone()),
            None => groups.push((remote.group.clone(), vec![remote.version.clone()])),
        }
    }
}

fn sorted(state: &State) -> Vec<Arc<Remote>> {
    let mut all: Vec<Arc<Remote>> = remotes(state).values().cloned().collect();
    all.order_by(|a, b| {
        let rank = |remote: &Remote| (remote.group_priority, remote.version_priority);
        rank(b).cmp(&rank(a)).then_with(|| a.name.cmp(&b.name))
    });
    all
}

/// One version of a remote group in the aggregated form (KEP-3352).
pub(crate) fn aggregated_groups(state: &State, group: &str, version: &str) -> Option<Value> {
    let remotes = remotes(state);
    let remote = remotes.get(&(group.to_owned(), version.to_owned()))?;
    let list = state.aggregation.resources.lock().get(&remote.name).cloned();
    let resources = list.map_or_else(Vec::new, |list| aggregated(&list, group, version));
    let freshness = if remote.available { "Current" } else { "Stale" };
    Some(json!({ "version": version, "resources": resources, "freshness": freshness }))
}

/// An `APIResourceList` in the aggregated form.
fn aggregated(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let entries = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let kind = |entry: &Value| {
        let or = |field: &str, own: &str| match entry[field].as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => own.to_owned(),
        };
        json!({ "group": or("group", group), "version": or("version", version), "kind": entry["kind"] })
    };
    let mut resources = Vec::new();
    for entry in entries {
        let name = entry["name"].as_str().unwrap_or_default();
        if name.contains('/') {
            continue;
        }
        let mut found = json!({
            "resource": name,
            "responseKind": kind(entry),
            "scope": if entry["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": entry["singularName"],
            "verbs": entry["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if entry[field].is_array() {
                found[field] = entry[field].clone();
            }
        }
        let prefix = format!("{name}/");
        let parts: Vec<Value> = entries
            .iter()
            .filter_map(|part| Some((part, part["name"].as_str()?.strip_prefix(&prefix)?)))
            .map(|(part, name)| {
                json!({ "subresource": name, "responseKind": kind(part), "verbs": part["verbs"] })
            })
            .collect();
        if !parts.is_empty() {
            found["subresources"] = json!(parts);
        }
        resources.push(found);
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_aggregated_entries() {
        let list = json!({"resources": [
            {"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get"]},
            {"name": "nodes/status", "namespaced": false, "kind": "NodeMetrics", "verbs": ["patch"]},
        ]});
        let found = aggregated(&list, "metrics.k8s.io", "v1beta1");
        assert_eq!(found.len(), 1);
        assert_eq!(
            (&found[0]["scope"], &found[0]["responseKind"]["group"]),
            (&json!("Cluster"), &json!("metrics.k8s.io"))
        );
        assert_eq!(found[0]["subresources"][0]["subresource"], "status");
    }
}
