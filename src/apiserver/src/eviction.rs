//! `pods/eviction`: a deletion that a PodDisruptionBudget may refuse
//! (`registry/core/pod/storage/eviction.go`).

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::selector::LabelSelector;
use kedge_api::status::{Cause, Status};
use serde_json::{Value, json};

use crate::admission::objects_in;
use crate::respond;
use crate::verbs::delete::Deletion;
use crate::verbs::options::{DeleteOptions, Preconditions, WriteOptions};
use crate::verbs::update::{Change, Edit, Target};
use crate::verbs::{Context, read};

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// A budget that its controller does not confirm evictions of is not spent further.
const MOST_DISRUPTED: usize = 2000;

pub(crate) async fn evict(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    if context.info.verb != "create" {
        return Err(Status::method_not_supported(&context.group_resource(), context.info.verb));
    }
    let eviction = crate::body::value(context.content_type(), body)?;
    if object::name(&eviction) != context.info.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options: DeleteOptions = match &eviction["deleteOptions"] {
        Value::Null => DeleteOptions::default(),
        options => serde_json::from_value(options.clone())
            .map_err(|error| Status::bad_request(format!("couldn't decode deleteOptions: {error}")))?,
    };
    if context.query.all("dryRun").any(|value| value == "All") {
        options.dry_run = Some(vec!["All".to_owned()]);
    }
    let bucket = context.state.cache.bucket("pods");
    let stored = match bucket.get(&context.key()) {
        Some(stored) => stored,
        // Nothing is denied by a copy that may lag behind.
        None => {
            context.state.fresh_revision().await?;
            bucket.get(&context.key()).ok_or_else(|| context.not_found())?
        }
    };
    let pod = read::parse(&stored.bytes)?;
    if !needs_no_budget(&pod) {
        let budgets = budgets_of(context, &pod)?;
        match budgets.as_slice() {
            [] => {}
            [budget] => {
                if !is_ready(&pod) && unhealthy_may_go(budget) {
                    // The pod that was looked at is the one that may go.
                    let preconditions = options.preconditions.get_or_insert_default();
                    preconditions
                        .resource_version
                        .get_or_insert_with(|| object::resource_version(&pod).to_owned());
                } else {
                    spend(context, object::name(budget), options.is_dry_run()).await?;
                }
            }
            _ => {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
        // A replacement of the same name is not the pod that was to go.
        options
            .preconditions
            .get_or_insert_with(Preconditions::default)
            .uid
            .get_or_insert_with(|| object::uid(&pod).to_owned());
        if !options.is_dry_run() {
            let pinned = options.preconditions.as_ref().and_then(|own| own.resource_version.clone());
            let marked = mark(context, pinned).await?;
            if let Some(preconditions) = &mut options.preconditions
                && preconditions.resource_version.is_some()
            {
                preconditions.resource_version =
                    Some(object::resource_version(&read::parse(&marked)?).to_owned());
            }
        }
    }
    let deletion = Deletion { state: &context.state, user: &context.user, resource: &context.resource };
    deletion.run(&context.info.namespace, &context.info.name, &options).await?;
    Ok(respond::json(
        StatusCode::CREATED,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
    ))
}

/// Pods that do nothing, or go anyway.
fn needs_no_budget(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
        || pod["metadata"]["deletionTimestamp"].is_string()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// KEP-3017: a pod that serves nobody may go without spending the budget.
fn unhealthy_may_go(budget: &Value) -> bool {
    if budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" {
        return true;
    }
    let count = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let seen = budget["status"]["observedGeneration"].as_i64().unwrap_or(0) >= object::generation(budget);
    seen && count("desiredHealthy") > 0 && count("currentHealthy") >= count("desiredHealthy")
}

fn budgets_of(context: &Context, pod: &Value) -> Result<Vec<Value>, Status> {
    let mut found = Vec::new();
    for stored in objects_in(&context.state, "poddisruptionbudgets.policy", &context.info.namespace) {
        let budget = read::parse(&stored.bytes)?;
        let selector = LabelSelector::from_object(&budget["spec"]["selector"]);
        if selector.is_ok_and(|selector| selector.matches_object(pod)) {
            found.push(budget);
        }
    }
    Ok(found)
}

/// Takes one disruption from the budget, or says why there is none.
async fn spend(context: &Arc<Context>, name: &str, dry_run: bool) -> Result<(), Status> {
    let Some(resource) = context.state.find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let change = Change {
        state: &context.state,
        user: &context.user,
        resource: &resource,
        target: Target::Trusted("status"),
    };
    let options = WriteOptions { dry_run, ..WriteOptions::internal() };
    let pod = &context.info.name;
    let mut edit = |budget: &Value| after_spending(&resource, budget, pod).map(Edit::replace);
    change.run(&context.info.namespace, name, &options, &mut edit).await?;
    Ok(())
}

fn after_spending(resource: &Resource, budget: &Value, pod: &str) -> Result<Value, Status> {
    let name = object::name(budget);
    let status = &budget["status"];
    let refuse = |message: String, retry: u32| {
        let cause = Cause { reason: "DisruptionBudget".into(), message, field: String::new() };
        Status::too_many_requests(REFUSED, retry).caused_by(cause)
    };
    if status["observedGeneration"].as_i64().unwrap_or(0) < object::generation(budget) {
        return Err(refuse(
            format!("The disruption budget {name} is still being processed by the server."),
            10,
        ));
    }
    let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
    let forbidden = |text: &str| Status::forbidden(&resource.group_resource(), name, text);
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        return Err(forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if allowed == 0 {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let failed = conditions
            .filter(|c| c["type"] == "DisruptionAllowed" && c["reason"] == "SyncFailed")
            .find_map(|c| c["message"].as_str());
        let why = match failed {
            Some(failure) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {failure}"
            ),
            None => format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                status["desiredHealthy"].as_i64().unwrap_or(0),
                status["currentHealthy"].as_i64().unwrap_or(0)
            ),
        };
        return Err(refuse(why, 0));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = json!(allowed - 1);
    if allowed == 1 {
        none_left(&mut new);
    }
    new["status"]["disruptedPods"][pod] = json!(object::now_rfc3339());
    Ok(new)
}

fn none_left(budget: &mut Value) {
    let generation = object::generation(budget);
    let mut conditions = budget["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "DisruptionAllowed");
    conditions.push(json!({
        "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
        "lastTransitionTime": object::now_rfc3339(), "observedGeneration": generation,
    }));
    budget["status"]["conditions"] = json!(conditions);
}

/// The pod says why it goes (KEP-3329).
async fn mark(context: &Arc<Context>, version: Option<String>) -> Result<Bytes, Status> {
    let change = Change {
        state: &context.state,
        user: &context.user,
        resource: &context.resource,
        target: Target::Trusted("status"),
    };
    let mut edit = |pod: &Value| {
        let mut new = pod.clone();
        let mut conditions = new["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "DisruptionTarget");
        conditions.push(json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastProbeTime": null,
            "lastTransitionTime": object::now_rfc3339(), "observedGeneration": object::generation(pod),
        }));
        new["status"]["conditions"] = json!(conditions);
        object::set_resource_version(&mut new, version.as_deref().unwrap_or_default());
        Ok(Edit::replace(new))
    };
    let (bytes, _) =
        change.run(&context.info.namespace, &context.info.name, &WriteOptions::internal(), &mut edit).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_says_why_it_refuses() {
        let registry = kedge_api::registry::Registry::builtin();
        let resource = registry.find("policy", "v1", "poddisruptionbudgets").expect("built in");
        let budget = |status: Value| json!({"metadata": {"name": "b", "generation": 2}, "status": status});
        for (status, code, message) in [
            (
                json!({"observedGeneration": 1, "disruptionsAllowed": 1}),
                429,
                "The disruption budget b is still being processed by the server.",
            ),
            (
                json!({"observedGeneration": 2, "disruptionsAllowed": 0, "desiredHealthy": 3, "currentHealthy": 2}),
                429,
                "The disruption budget b needs 3 healthy pods and has 2 currently",
            ),
            (json!({"observedGeneration": 2, "disruptionsAllowed": -1}), 403, ""),
        ] {
            let refused = after_spending(&resource, &budget(status), "p").expect_err("refused");
            assert_eq!(refused.code, code);
            let causes = refused.details.map(|details| details.causes).unwrap_or_default();
            assert_eq!(causes.first().map_or("", |cause| cause.message.as_str()), message);
        }
        let spent = after_spending(
            &resource,
            &budget(json!({"observedGeneration": 2, "disruptionsAllowed": 1})),
            "p",
        )
        .expect("allowed");
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        assert!(spent["status"]["disruptedPods"]["p"].is_string());
        assert_eq!(spent["status"]["conditions"][0]["reason"], "InsufficientPods");
    }

    #[test]
    fn unhealthy_pods_by_policy() {
        let budget = |policy: Value, current: i64| {
            json!({"metadata": {"generation": 1}, "spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"observedGeneration": 1, "desiredHealthy": 2, "currentHealthy": current}})
        };
        assert!(unhealthy_may_go(&budget(json!("AlwaysAllow"), 0)));
        assert!(unhealthy_may_go(&budget(Value::Null, 2)));
        assert!(!unhealthy_may_go(&budget(json!("IfHealthyBudget"), 1)));
    }
}
