//! Nobody grants more than they have: the check on writes of roles and bindings
//! (`pkg/registry/rbac/*/policybased`).

use kedge_api::status::Status;
use serde_json::Value;

use super::rbac::{Attributes, Decision, Rule, covers, rules_of};
use super::{authorize, rules};
use crate::admission::{Operation, Request};
use crate::authn::MASTERS;

const GROUP: &str = "rbac.authorization.k8s.io";

/// 403 when the write of a role or binding would give rights that the user does not have.
pub(crate) fn check(request: &Request<'_>, value: &Value) -> Result<(), Status> {
    if &*request.resource.group != GROUP
        || request.operation == Operation::Delete
        || request.user.is_in(MASTERS)
    {
        return Ok(());
    }
    let old = request.old.unwrap_or(&Value::Null);
    match &*request.resource.plural {
        "roles" | "clusterroles" => {
            if value["rules"] == old["rules"] && value["aggregationRule"] == old["aggregationRule"] {
                return Ok(());
            }
            if may(request, "escalate", &request.resource.plural, request.namespace, request.name) {
                return Ok(());
            }
            if value["aggregationRule"].is_object() && value["aggregationRule"] != old["aggregationRule"] {
                return Err(
                    request.forbidden("must have cluster-admin privileges to use the aggregationRule")
                );
            }
            within(request, &rules_of(value))
        }
        "rolebindings" | "clusterrolebindings" => {
            if value["roleRef"] == old["roleRef"] && value["subjects"] == old["subjects"] {
                return Ok(());
            }
            let name = value["roleRef"]["name"].as_str().unwrap_or_default();
            let cluster = value["roleRef"]["kind"] == "ClusterRole";
            let (resource, namespace) =
                if cluster { ("clusterroles", "") } else { ("roles", request.namespace) };
            if may(request, "bind", resource, request.namespace, name) {
                return Ok(());
            }
            let bucket = request.state.cache.bucket(&format!("{resource}.{GROUP}"));
            let role = bucket
                .get(&format!("{namespace}/{name}"))
                .and_then(|stored| serde_json::from_slice::<Value>(&stored.bytes).ok())
                .ok_or_else(|| {
                    Status::not_found(&kedge_api::status::GroupResource::new(GROUP, resource), name)
                })?;
            within(request, &rules_of(&role))
        }
        _ => Ok(()),
    }
}

fn may(request: &Request<'_>, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let attributes = Attributes {
        user: &request.user.name,
        groups: &request.user.groups,
        verb,
        namespace,
        api_group: GROUP,
        resource,
        subresource: "",
        name,
        path: "",
        is_resource: true,
    };
    matches!(authorize(request.state, request.user, &attributes), Decision::Allow(_))
}

fn within(request: &Request<'_>, wanted: &[Rule]) -> Result<(), Status> {
    let current = rules(request.state);
    let own = current.rules_for(&request.user.name, &request.user.groups, request.namespace);
    covers(&own, wanted).map_err(|missing| {
        let missing: Vec<String> = missing.iter().map(|rule| rule.to_value().to_string()).collect();
        request.forbidden(&format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            request.user.name,
            request.user.groups,
            missing.join("\n")
        ))
    })
}
