//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::decode::FieldValidation;
use kedge_api::managed;
use kedge_api::object;
use kedge_api::registry::Resource;
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

/// The patch, and the keys that come twice in it.
fn read_patch(
    kind: &str,
    body: &Bytes,
    resource: &Resource,
    mode: FieldValidation,
) -> Result<(Patch, Vec<String>), Status> {
    let read = || {
        kedge_api::decode::patch(body, mode)
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))
    };
    match kind {
        "application/json-patch+json" => {
            let (operations, mut twice) = read()?;
            if mode != FieldValidation::Ignore {
                twice.extend(kedge_api::patch::unknown_in_operations(&operations));
            }
            let twice = twice.iter().map(|error| format!("json patch {error}")).collect();
            Ok((Patch::Json(body.clone()), twice))
        }
        "application/merge-patch+json" => read().map(|(patch, twice)| (Patch::Merge(patch), twice)),
        "application/strategic-merge-patch+json" if !resource.custom => {
            read().map(|(patch, twice)| (Patch::Strategic(patch), twice))
        }
        _ => Err(unsupported(resource)),
    }
}

pub(crate) async fn patch(
    context: &Arc<Context>,
    body: &Bytes,
    target: Target,
) -> Result<Response<Body>, Status> {
    let options = WriteOptions::of(context)?;
    let kind = context.content_type();
    if matches!(kind, "application/apply-patch+yaml" | "application/apply-patch+json") {
        return apply(context, body, target, options).await;
    }
    let resource = context.resource.clone();
    let (patch, twice) = read_patch(kind, body, &resource, options.validation)?;
    let strategic = match &patch {
        Patch::Strategic(patch) => Some(patch),
        Patch::Json(_) | Patch::Merge(_) => None,
    };
    let checked = kedge_api::patch::Checked { twice: &twice, strategic };
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
    let change = Change { state: &context.state, user: &context.user, resource: &context.resource, target };
    let mut edit = |old: &Value| {
        let make = || match &patch {
            Patch::Json(operations) => kedge_api::patch::json_patch_of(&resource.schema, old, operations),
            Patch::Merge(patch) => kedge_api::patch::merge_patch(old, patch),
            Patch::Strategic(patch) => kedge_api::patch::strategic_merge_patch(&resource.schema, old, patch),
        };
        let value;
        (value, warnings) = checked.outcome(&resource, options.validation, make)?;
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
    let (applied, twice) = crate::yaml::parse(body)?;
    fits(resource, &applied)?;
    // What the type does not have is refused by then, whatever the client wants validated.
    let text = applied.to_string();
    let (mut applied, mut warnings) =
        kedge_api::decode::decode(text.as_bytes(), "application/json", resource, FieldValidation::Ignore)?;
    if let Some(twice) = twice.told() {
        match options.validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => warnings.push(format!("error converting YAML to JSON: {twice}")),
            FieldValidation::Strict => {
                return Err(Status::bad_request(format!(
                    "error strict decoding YAML: error converting YAML to JSON: {twice}"
                )));
            }
        }
    }
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

/// A configuration that does not fit its type is refused (apimachinery `managedfields/internal/structuredmerge.go`);
/// one that names another type is told so when it is decoded.
fn fits(resource: &Resource, applied: &Value) -> Result<(), Status> {
    let same = |field: &str, own: &str| applied[field].as_str().is_none_or(|named| named == own);
    let is_named = same("apiVersion", &resource.api_version()) && same("kind", &resource.kind);
    if !applied.is_object() || !is_named || object::nests_deeper_than(applied, object::MAX_NESTING) {
        return Ok(());
    }
    let found = managed::mismatches(&resource.schema, applied);
    if found.is_empty() {
        return Ok(());
    }
    let about = format!(
        "{}/{}; {}/{}, Kind={}",
        object::namespace(applied),
        object::name(applied),
        resource.group,
        resource.version,
        resource.kind
    );
    let message = format!("failed to create typed patch object ({about}): {}", managed::told(&found));
    Err(Status::plain(500, "", message))
}

fn unsupported(resource: &Resource) -> Status {
    let strategic = (!resource.custom).then_some("application/strategic-merge-patch+json");
    let known = ["application/json-patch+json", "application/merge-patch+json"].into_iter();
    let known: Vec<&str> = known.chain(strategic).chain(["application/apply-patch+yaml"]).collect();
    Status::unsupported_media_type(&known)
}
