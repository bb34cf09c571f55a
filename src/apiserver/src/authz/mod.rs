//! What a sender may do: members of `system:masters` everything, kubelets what the Node authorizer
//! lets them, everybody what RBAC grants.

mod escalation;
pub(crate) mod node;
pub(crate) mod rbac;

pub(crate) use escalation::check as escalation;

use std::sync::Arc;

use kedge_api::status::Status;
use serde_json::Value;

use crate::authn::{MASTERS, User};
use crate::cache::{Derived, Stored};
use crate::request::RequestInfo;
use crate::state::State;
use rbac::{Attributes, Decision, RuleSet};

/// The four resources that rules come from, by storage key.
const SOURCES: [&str; 4] = [
    "roles.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
];

/// The rules of all roles and bindings.
pub(crate) type Rules = Derived<RuleSet, 4>;

/// The rules as of now; parsed again only after one of the four resources has changed.
pub(crate) fn rules(state: &State) -> Arc<RuleSet> {
    state.rules.get(&state.cache, SOURCES, || {
        let [roles, cluster_roles, bindings, cluster_bindings] = SOURCES.map(|resource| {
            let objects = state.cache.bucket(resource).objects();
            let parse = |stored: &Arc<Stored>| serde_json::from_slice(&stored.bytes).ok();
            objects.values().filter_map(parse).collect::<Vec<Value>>()
        });
        RuleSet::new(&roles, &cluster_roles, &bindings, &cluster_bindings)
    })
}

/// Decide about one request.
pub(crate) fn authorize(state: &State, user: &User, attributes: &Attributes<'_>) -> Decision {
    if user.is_in(MASTERS) {
        return Decision::Allow(String::new());
    }
    if let Some(node) = user.node()
        && node::allows(state, node, attributes)
    {
        return Decision::Allow(String::new());
    }
    rules(state).allows(attributes)
}

/// The attributes of a request as it came in.
pub(crate) fn attributes<'a>(user: &'a User, info: &'a RequestInfo) -> Attributes<'a> {
    Attributes {
        user: &user.name,
        groups: &user.groups,
        verb: info.verb,
        namespace: &info.namespace,
        api_group: &info.group,
        resource: &info.resource,
        subresource: &info.subresource,
        name: &info.name,
        path: &info.path,
        is_resource: info.is_resource,
    }
}

/// Upstream's 403 (apiserver `handlers/responsewriters/errors.go`).
pub(crate) fn forbidden(user: &User, attributes: &Attributes<'_>) -> Status {
    if !attributes.is_resource {
        return Status::plain(
            403,
            "Forbidden",
            format!("forbidden: User {:?} cannot {} path {:?}", user.name, attributes.verb, attributes.path),
        );
    }
    let resource = if attributes.subresource.is_empty() {
        attributes.resource.to_owned()
    } else {
        format!("{}/{}", attributes.resource, attributes.subresource)
    };
    let place = if attributes.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", attributes.namespace)
    };
    let message = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        user.name, attributes.verb, attributes.api_group
    );
    let group_resource = kedge_api::status::GroupResource::new(attributes.api_group, attributes.resource);
    Status::forbidden(&group_resource, attributes.name, &message)
}

/// 403 unless the user may do it.
pub(crate) fn require(state: &State, user: &User, attributes: &Attributes<'_>) -> Result<(), Status> {
    match authorize(state, user, attributes) {
        Decision::Allow(_) => Ok(()),
        Decision::NoOpinion => Err(forbidden(user, attributes)),
    }
}
