//! Admission: what changes or refuses a write after it was authorised. Built-in plugins, upstream's
//! names and order; every one is a function of the request and the object.

mod certificate;
mod limit_range;
mod namespace;
mod node;
pub(crate) mod pod;
mod pod_security;
pub(crate) mod policy;
pub(crate) mod quota;
mod service_account;
mod storage;
pub(crate) mod webhook;

use std::sync::Arc;

use kedge_api::registry::Resource;
use kedge_api::status::GroupResource;
use kedge_api::status::Status;
use serde_json::Value;

use crate::authn::User;
use crate::cache::Stored;
use crate::state::State;

pub use node::is_restricted_label;

/// The cached objects of one resource in one namespace.
pub(crate) fn objects_in(state: &State, storage_key: &str, namespace: &str) -> Vec<Arc<Stored>> {
    let prefix = format!("{namespace}/");
    let objects = state.cache.bucket(storage_key).objects();
    objects
        .range::<std::ops::RangeFrom<Arc<str>>, Arc<str>>(Arc::<str>::from(prefix.as_str())..)
        .map(|(_, stored)| stored)
        .take_while(|stored| stored.key.starts_with(&prefix))
        .cloned()
        .collect()
}

/// What is being done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    /// A stream into a pod, or a proxy.
    Connect,
}

impl Operation {
    /// As webhooks and policies name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// A write on its way to the store.
pub(crate) struct Request<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) user: &'a User,
    pub(crate) resource: &'a Arc<Resource>,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) operation: Operation,
    pub(crate) old: Option<&'a Value>,
    pub(crate) dry_run: bool,
}

impl Request<'_> {
    /// Whether the request is about this resource itself, not a subresource.
    pub(crate) fn is(&self, group: &str, resource: &str) -> bool {
        self.subresource.is_empty() && &*self.resource.group == group && &*self.resource.plural == resource
    }

    /// Whether the object is the subresource's own: options of streams and proxies, a TokenRequest.
    pub(crate) fn has_other_kind(&self) -> bool {
        self.operation == Operation::Connect || self.subresource == "token"
    }

    pub(crate) fn group_resource(&self) -> GroupResource {
        self.resource.group_resource()
    }

    pub(crate) fn forbidden(&self, message: &str) -> Status {
        Status::forbidden(&self.group_resource(), self.name, message)
    }
}

/// Plugins that change the object.
pub(crate) async fn mutate(
    request: &Request<'_>,
    value: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    namespace::exists(request).await?;
    mutate_built_in(request, value)?;
    let policies = policy::mutate(request, value).await?;
    let webhooks = webhook::mutate(request, value, warnings).await?;
    if policies.changed || webhooks.changed {
        // Once more (apiserver `AdmitWithReinvocation`): containers that were added get their token and the
        // namespace's defaults, a class that was given its priority or its overhead.
        mutate_built_in(request, value)?;
        policy::again(request, value, policies).await?;
        webhook::again(request, value, webhooks, warnings).await?;
    }
    // Last: no webhook may ask in another's name.
    certificate::mutate(request, value);
    Ok(())
}

/// Each may see its own work again.
fn mutate_built_in(request: &Request<'_>, value: &mut Value) -> Result<(), Status> {
    if request.is("", "pods") && request.operation == Operation::Create {
        service_account::mutate(request, value)?;
        pod::mutate(request, value)?;
    }
    if request.is("", "pods") && request.operation == Operation::Update {
        pod::mutate_update(request, value);
    }
    if request.is("", "nodes") && request.operation == Operation::Create {
        node::taint_new(value);
    }
    limit_range::mutate(request, value)?;
    storage::mutate(request, value)
}

/// Plugins that only refuse.
pub(crate) async fn validate(
    request: &Request<'_>,
    value: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    namespace::validate(request)?;
    pod::validate_class(request, value)?;
    node::restrict(request, value)?;
    crate::authz::escalation(request, value)?;
    certificate::validate(request, value)?;
    limit_range::validate(request, value)?;
    pod_security::validate(request, value, warnings)?;
    policy::validate(request, value, warnings).await?;
    webhook::validate(request, value, warnings).await
}

/// What is asked with an object of another kind than the resource's ([`Request::has_other_kind`]): a stream or a
/// proxy with its parameters as their API type, a token with its TokenRequest.
pub(crate) async fn other_kind(
    request: &Request<'_>,
    value: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let webhooks = webhook::mutate(request, value, warnings).await?;
    webhook::again(request, value, webhooks, warnings).await?;
    node::restrict(request, value)?;
    policy::validate(request, value, warnings).await?;
    webhook::validate(request, value, warnings).await
}
