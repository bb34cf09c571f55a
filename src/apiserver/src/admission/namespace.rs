//! NamespaceLifecycle: nothing is created in a namespace that does not exist or is being deleted,
//! and the system's namespaces stay (`plugin/pkg/admission/namespace/lifecycle`).

use kedge_api::status::GroupResource;
use kedge_api::status::{Cause, Status};

use super::{Operation, Request};
use crate::verbs::object_key;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) async fn exists(request: &Request<'_>) -> Result<(), Status> {
    if request.namespace.is_empty() || request.operation != Operation::Create || request.is("", "namespaces")
    {
        return Ok(());
    }
    // Access reviews ask about namespaces that need not exist.
    if &*request.resource.group == "authorization.k8s.io" {
        return Ok(());
    }
    let bucket = request.state.cache.bucket("namespaces");
    let key = object_key("", request.namespace);
    let mut stored = bucket.get(&key);
    if stored.is_none() {
        // Another control-plane node may have made it a moment ago.
        request.state.fresh_revision().await?;
        stored = bucket.get(&key);
    }
    let Some(stored) = stored else {
        return Err(Status::not_found(&GroupResource::new("", "namespaces"), request.namespace));
    };
    let phase = bucket.field("status.phase").and_then(|index| stored.extracted.fields.get(index));
    if phase.is_none_or(|phase| &**phase != "Terminating") {
        return Ok(());
    }
    let mut status = request.forbidden(&format!(
        "unable to create new content in namespace {} because it is being terminated",
        request.namespace
    ));
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {} is being terminated", request.namespace),
            field: "metadata.namespace".into(),
        });
    }
    Err(status)
}

pub(super) fn validate(request: &Request<'_>) -> Result<(), Status> {
    let deletes = request.operation == Operation::Delete && request.is("", "namespaces");
    if deletes && IMMORTAL.contains(&request.name) {
        return Err(request.forbidden("this namespace may not be deleted"));
    }
    Ok(())
}
