//! Aggregated ClusterRoles: the rules of admin, edit, view and of any other role with an
//! `aggregationRule` are those of the roles it selects (upstream pkg/controller/clusterroleaggregation).

use std::time::Duration;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kedge_base::Order as _;
use kedge_client::{Error, Informer, ObjectKey, Queue, selector_matches};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, ignore_not_found};

pub(crate) fn start(ctx: &Context) {
    let roles = ctx.informers.informer::<ClusterRole>();
    let queue = Queue::new();
    let (all, adder) = (roles.clone(), queue.clone());
    ctx.on_change(&roles, move |change| {
        // A role may feed any aggregated one.
        for role in all.list() {
            if role.aggregation_rule.is_some() {
                adder.add(ObjectKey::of(&*role));
            }
        }
        if change.object().aggregation_rule.is_some() {
            adder.add(change.key());
        }
    });
    let (ready, client) = (roles.clone(), ctx.client.clone());
    let synced = async move { ready.synced().await };
    ctx.run("cluster-role-aggregation", queue, 2, synced, move |key| {
        let (roles, client) = (roles.clone(), client.clone());
        async move { reconcile(&roles, client, &key).await }
    });
}

async fn reconcile(
    roles: &Informer<ClusterRole>,
    client: kube::Client,
    key: &ObjectKey,
) -> Result<Option<Duration>, Error> {
    let Some(role) = roles.get_key(key) else { return Ok(None) };
    let all: Vec<ClusterRole> = roles.list().iter().map(|role| (**role).clone()).collect();
    let Some(rules) = aggregate(&role, &all) else { return Ok(None) };
    if role.rules.as_deref().unwrap_or_default() == rules.as_slice() {
        return Ok(None);
    }
    let patch = json!({
        "metadata": { "uid": role.metadata.uid, "resourceVersion": role.metadata.resource_version },
        "rules": rules,
    });
    let api = kube::Api::<ClusterRole>::all(client);
    ignore_not_found(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
    Ok(None)
}

/// The rules a role should have; `None` when it is not an aggregated one. Ordered by the names of
/// the roles they come from, each rule once.
fn aggregate(role: &ClusterRole, all: &[ClusterRole]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        let mut selected: Vec<&ClusterRole> = all
            .iter()
            .filter(|other| other.metadata.name != role.metadata.name)
            .filter(|other| selector_matches(selector, &other.metadata.labels))
            .collect();
        selected.order_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for rule in selected.into_iter().flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    fn role(name: &str, label: &str, resources: &[&str]) -> ClusterRole {
        let mut role = ClusterRole {
            rules: Some(
                resources
                    .iter()
                    .map(|&r| PolicyRule {
                        resources: Some(vec![r.to_owned()]),
                        verbs: vec!["get".into()],
                        ..PolicyRule::default()
                    })
                    .collect(),
            ),
            ..ClusterRole::default()
        };
        role.metadata.name = Some(name.into());
        role.metadata.labels = Some([(label.to_owned(), "true".to_owned())].into());
        role
    }

    #[test]
    fn rules_come_from_selected_roles_once_and_in_order() {
        let mut view = role("view", "to-edit", &["stale"]);
        assert_eq!(aggregate(&view, &[]), None);
        view.aggregation_rule = Some(AggregationRule {
            cluster_role_selectors: Some(vec![LabelSelector {
                match_labels: Some([("to-view".to_owned(), "true".to_owned())].into()),
                ..LabelSelector::default()
            }]),
        });
        let all = [
            view.clone(),
            role("z", "to-view", &["c", "a"]),
            role("b", "to-view", &["a", "b"]),
            role("other", "to-edit", &["d"]),
        ];
        let rules = aggregate(&view, &all).expect("aggregated");
        let names: Vec<&str> = rules.iter().map(|r| r.resources.as_ref().expect("set")[0].as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
