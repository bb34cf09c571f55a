//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::managed;
use kedge_api::object;
use kedge_api::status::Status;
use serde_json::Value;

use super::create::Creation;
use super::options::WriteOptions;
use super::update::{Change, Edit, Target};
use super::{Context, object_key, read};
use crate::authz;
use crate::respond;

/// A patch that is computed from the object alone; apply also looks at who manages what.
enum Patch {
    Json(Bytes),
    Merge(Value),
    Strategic(Value),
}

pub(crate) async fn patch(
    context: &Arc<Context>,
    body: &Bytes,
    target: Target,
) -> Result<Response<Body>, Status> {
    let options = WriteOptions::of(context)?;
    let kind = context.content_type();
    let patch = match kind {
        "application/json-patch+json" => Patch::Json(body.clone()),
        "application/merge-patch+json" => Patch::Merge(crate::body::value(kind, body)?),
        "application/strategic-merge-patch+json" => {
            if context.resource.custom {
                return Err(unsupported());
            }
            Patch::Strategic(crate::body::value(kind, body)?)
        }
        "application/apply-patch+yaml" | "application/apply-patch+json" => {
            return apply(context, body, target, options).await;
        }
        _ => return Err(unsupported()),
    };
    if options.force {
        return Err(Status::invalid(
            "meta.k8s.io",
            "PatchOptions",
            "",
            vec![kedge_api::field::FieldError::forbidden(
                "force",
                "may not be specified for non-apply patch",
            )],
        ));
    }
    let mut warnings = Vec::new();
    let resource = context.resource.clone();
    let change = Change { state: &context.state, user: &context.user, resource: &context.resource, target };
    let mut edit = |old: &Value| {
        let mut value = match &patch {
            Patch::Json(operations) => kedge_api::patch::json_patch(old, operations)?,
            Patch::Merge(patch) => kedge_api::patch::merge_patch(old, patch)?,
            Patch::Strategic(patch) => kedge_api::patch::strategic_merge_patch(&resource.schema, old, patch)?,
        };
        warnings = kedge_api::decode::check_schema(&mut value, &resource, options.validation)?;
        Ok(Edit::replace(value))
    };
    let (bytes, more) = change.run(&context.info.namespace, &context.info.name, &options, &mut edit).await?;
    warnings.extend(more);
    let mut response = read::present(context, StatusCode::OK, &bytes).await?;
    respond::add_warnings(&mut response, &warnings);
    Ok(response)
}

async fn apply(
    context: &Arc<Context>,
    body: &Bytes,
    target: Target,
    options: WriteOptions,
) -> Result<Response<Body>, Status> {
    let (info, resource) = (&context.info, &context.resource);
    if context.query.get("fieldManager").is_none() {
        return Err(Status::invalid(
            "meta.k8s.io",
            "PatchOptions",
            "",
            vec![kedge_api::field::FieldError::required("fieldManager", "is required for apply patch")],
        ));
    }
    let text = crate::body::json_text("application/apply-patch+yaml", body)?;
    let (mut applied, warnings) =
        kedge_api::decode::decode(&text, "application/json", resource, options.validation)?;
    let own = object::name(&applied).to_owned();
    if !own.is_empty() && own != info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({})",
            info.name
        )));
    }
    object::set_name(&mut applied, &info.name);
    super::create::set_namespace(resource, &info.namespace, &mut applied)?;
    if !object::managed_fields(&applied).is_empty() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let manager = options.manager(resource, target.subresource());
    let bucket = context.state.cache.bucket(&resource.storage_key);
    if bucket.get(&object_key(&info.namespace, &info.name)).is_none() && target == Target::Main {
        // Creating by apply needs the right to create (apiserver `patch.go`).
        let mut attributes = authz::attributes(&context.user, info);
        attributes.verb = "create";
        authz::require(&context.state, &context.user, &attributes)?;
        let fresh = managed::apply(&resource.schema, None, &applied, &manager, options.force)?;
        let creation = Creation { state: &context.state, user: &context.user, resource };
        match creation.run(&info.namespace, fresh, &options).await {
            // Somebody else created it meanwhile: it is an update then.
            Err(status) if status.reason == "AlreadyExists" => {}
            result => {
                let (bytes, more) = result?;
                let mut response = read::present(context, StatusCode::CREATED, &bytes).await?;
                respond::add_warnings(&mut response, &warnings);
                respond::add_warnings(&mut response, &more);
                return Ok(response);
            }
        }
    }
    let change = Change { state: &context.state, user: &context.user, resource, target };
    let mut edit = |old: &Value| {
        let value = managed::apply(&resource.schema, Some(old), &applied, &manager, options.force)?;
        Ok(Edit { value, managed: true })
    };
    let (bytes, more) = change.run(&info.namespace, &info.name, &options, &mut edit).await?;
    let mut response = read::present(context, StatusCode::OK, &bytes).await?;
    respond::add_warnings(&mut response, &warnings);
    respond::add_warnings(&mut response, &more);
    Ok(response)
}

fn unsupported() -> Status {
    Status::unsupported_media_type(&[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ])
}
