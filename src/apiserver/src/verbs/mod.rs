//! The verbs, one generic path for all kinds of objects.

pub(crate) mod create;
pub(crate) mod delete;
mod joined;
pub(crate) mod options;
mod patch;
pub(crate) mod read;
pub(crate) mod select;
pub(crate) mod update;
mod watch;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Response};
use kedge_api::registry::Resource;
use kedge_api::status::GroupResource;
use kedge_api::status::Status;
use serde_json::Value;

use crate::authn::User;
use crate::request::{Query, RequestInfo};
use crate::respond::Accepted;
use crate::state::State;

/// One request for a known resource by an authorised user.
pub(crate) struct Context {
    pub(crate) state: Arc<State>,
    pub(crate) user: User,
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) resource: Arc<Resource>,
    pub(crate) accepted: Accepted,
}

impl Context {
    /// The key within the resource's bucket.
    pub(crate) fn key(&self) -> String {
        object_key(&self.info.namespace, &self.info.name)
    }

    pub(crate) fn group_resource(&self) -> GroupResource {
        self.resource.group_resource()
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(&self.group_resource(), &self.info.name)
    }

    pub(crate) fn content_type(&self) -> &str {
        let header = self.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        header.map_or("application/json", |header| header.split(';').next().unwrap_or(header).trim())
    }
}

/// An owner that is named twice is named once, with a warning (apiserver `dedupOwnerReferencesAndAddWarning`).
/// `when` it was found twice: a word of the warning.
pub(crate) fn dedup_owners(value: &mut Value, when: &str, warnings: &mut Vec<String>) {
    let twice = kedge_api::object::dedup_owner_references(value);
    if !twice.is_empty() {
        warnings.push(format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        ));
    }
}

/// What is found twice after admission has changed the object.
pub(crate) const BY_ADMISSION: &str = " after mutating admission happens";

/// `namespace/name`; the namespace is empty for cluster scope.
pub(crate) fn object_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The store's key of an object.
pub(crate) fn store_key(resource: &Resource, key: &str) -> kedge_store::Key {
    format!("{}/{key}", resource.storage_key).into()
}

/// Run the verb that the request names.
pub(crate) async fn run(context: Context, body: Bytes) -> Result<Response<Body>, Status> {
    let context = Arc::new(context);
    let info = &context.info;
    let allowed = if info.subresource.is_empty() { context.resource.has_verb(info.verb) } else { true };
    if !allowed {
        return Err(Status::method_not_supported(&context.group_resource(), info.verb));
    }
    if context.resource.namespaced
        && info.namespace.is_empty()
        && matches!(info.verb, "create" | "deletecollection")
    {
        return Err(Status::method_not_supported(&context.group_resource(), info.verb));
    }
    if info.name.is_empty() && matches!(info.verb, "update" | "patch") {
        return Err(Status::method_not_supported(&context.group_resource(), info.verb));
    }
    if !info.subresource.is_empty() {
        return crate::subresource::run(&context, body).await;
    }
    match info.verb {
        "get" => read::get(&context).await,
        "list" => read::list(&context).await,
        "watch" => watch::watch(&context).await,
        "create" => create::create(&context, &body).await,
        "update" => update::update(&context, &body, update::Target::Main).await,
        "patch" => patch::patch(&context, &body, update::Target::Main).await,
        "delete" => delete::delete(&context, &body).await,
        "deletecollection" => delete::delete_collection(&context, &body).await,
        verb => Err(Status::method_not_supported(&context.group_resource(), verb)),
    }
}

/// A subresource that is stored inside its object: get, update and patch of one part.
pub(crate) async fn run_part(
    context: &Arc<Context>,
    body: Bytes,
    target: update::Target,
) -> Result<Response<Body>, Status> {
    match context.info.verb {
        "get" => read::get(context).await,
        "update" => update::update(context, &body, target).await,
        "patch" => patch::patch(context, &body, target).await,
        verb => Err(Status::method_not_supported(&context.group_resource(), verb)),
    }
}
