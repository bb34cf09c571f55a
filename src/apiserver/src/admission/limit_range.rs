//! LimitRanger: a namespace's defaults and bounds for pods and claims.

use std::sync::Arc;

use kedge_api::limits;
use kedge_api::status::Status;
use serde_json::Value;

use super::{Operation, Request, objects_in};
use crate::cache::Stored;
use crate::verbs::read;

/// Pods are looked at when they are made or resized, claims at every write.
fn ranges(request: &Request<'_>) -> Vec<Arc<Stored>> {
    let is_pod = &*request.resource.plural == "pods" && request.resource.group.is_empty();
    let concerned = match (request.operation, request.subresource) {
        (Operation::Create, "") => is_pod || request.is("", "persistentvolumeclaims"),
        (Operation::Update, "") => request.is("", "persistentvolumeclaims"),
        (Operation::Update, "resize") => is_pod,
        _ => false,
    };
    if concerned { objects_in(request.state, "limitranges", request.namespace) } else { Vec::new() }
}

pub(super) fn mutate(request: &Request<'_>, value: &mut Value) -> Result<(), Status> {
    if !request.is("", "pods") || request.operation != Operation::Create {
        return Ok(());
    }
    for stored in ranges(request) {
        limits::default_pod(&read::parse(&stored.bytes)?, value);
    }
    Ok(())
}

pub(super) fn validate(request: &Request<'_>, value: &Value) -> Result<(), Status> {
    for stored in ranges(request) {
        let range = read::parse(&stored.bytes)?;
        let errors = if &*request.resource.plural == "pods" {
            limits::validate_pod(&range, value)
        } else {
            limits::validate_claim(&range, value)
        };
        match errors.as_slice() {
            [] => {}
            [one] => return Err(request.forbidden(one)),
            many => return Err(request.forbidden(&format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}
