//! CREATE.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::field::FieldError;
use kedge_api::managed;
use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::status::Status;
use kedge_store::{Check, CommitError, Condition, Op, Txn};
use serde_json::{Value, json};

use super::options::WriteOptions;
use super::{BY_ADMISSION, Context, dedup_owners, object_key, read, store_key};
use crate::admission::{self, Operation, Request};
use crate::authn::User;
use crate::claims;
use crate::conversion;
use crate::encode;
use crate::respond;
use crate::state::State;

/// Names, addresses and ports that the server makes up are tried this often before a clash is reported.
const CHOICES: usize = 16;

pub(crate) async fn create(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    let options = WriteOptions::of(context)?;
    let (value, warnings) =
        crate::body::object(context.content_type(), body, &context.resource, options.validation)?;
    let namespace = context.info.namespace.clone();
    let created = Creation { state: &context.state, user: &context.user, resource: &context.resource };
    let (bytes, more) = created.run(&namespace, value, &options).await?;
    let mut response = read::present(context, StatusCode::CREATED, &bytes).await?;
    respond::add_warnings(&mut response, &warnings);
    respond::add_warnings(&mut response, &more);
    Ok(response)
}

/// Creates objects for a user, or for the API server itself.
pub(crate) struct Creation<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) user: &'a User,
    pub(crate) resource: &'a Arc<Resource>,
}

impl Creation<'_> {
    /// Creates a decoded object and returns its final bytes and warnings.
    pub(crate) async fn run(
        &self,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<(Bytes, Vec<String>), Status> {
        let resource = self.resource;
        if resource.custom && !resource.has_verb("create") {
            // Server-side apply creates too.
            return Err(Status::method_not_supported(&resource.group_resource(), "create"));
        }
        set_namespace(resource, namespace, &mut value)?;
        let generated = object::name(&value).is_empty();
        if generated && object::generate_name(&value).is_empty() {
            return Err(Status::invalid(
                &resource.group,
                &resource.kind,
                "",
                vec![FieldError::required("metadata.name", "name or generateName is required")],
            ));
        }
        let mut tries = CHOICES;
        loop {
            tries -= 1;
            let mut attempt = value.clone();
            if generated {
                let name = object::generated_name(object::generate_name(&attempt));
                object::set_name(&mut attempt, &name);
            }
            match self.attempt(namespace, attempt, options).await {
                // An address or port that the server chose was taken meanwhile: it chooses again.
                Ok(None) if tries > 0 => {}
                Ok(None) => {
                    return Err(Status::internal(
                        "failed to allocate an address, a port or quota, try again",
                    ));
                }
                Ok(Some(done)) => return Ok(done),
                Err(status) if status.reason == "AlreadyExists" && generated && tries > 0 => {}
                Err(mut status) if status.reason == "AlreadyExists" && generated => {
                    if let Some(details) = &mut status.details {
                        details.retry_after_seconds = 1;
                    }
                    return Err(status);
                }
                Err(status) => return Err(status),
            }
        }
    }

    async fn attempt(
        &self,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Option<(Bytes, Vec<String>)>, Status> {
        let (state, resource) = (self.state, self.resource);
        let names_version = !object::resource_version(&value).is_empty();
        let strategy = &resource.strategy;
        strategy.default(&mut value);
        let name = object::name(&value).to_owned();
        let mut warnings = Vec::new();
        let request = Request {
            state,
            user: self.user,
            resource,
            subresource: "",
            namespace,
            name: &name,
            operation: Operation::Create,
            old: None,
            dry_run: options.dry_run,
        };
        dedup_owners(&mut value, "", &mut warnings);
        admission::mutate(&request, &mut value, &mut warnings).await?;
        dedup_owners(&mut value, BY_ADMISSION, &mut warnings);
        drop_server_fields(&mut value);
        object::set_uid(&mut value, &object::new_uid());
        object::set_creation_timestamp(&mut value, &object::now_rfc3339());
        strategy.prepare_create(&mut value);
        let mut claims = claims::prepare(state, resource, &mut value, None)?;
        let errors = strategy.validate(&value);
        if !errors.is_empty() {
            return Err(Status::invalid(&resource.group, &resource.kind, &name, errors));
        }
        admission::validate(&request, &value, &mut warnings).await?;
        // Upstream's store finds this, after everybody else has had a say.
        if names_version {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        warnings.extend(strategy.warnings(&value));
        crate::crd::warn(resource, &value, &mut warnings);
        let charges = admission::quota::charge(&request, &value).await?;
        let manager = options.manager(resource, "");
        if object::managed_fields(&value).is_empty() {
            managed::track_update(&resource.schema, None, &mut value, &manager);
        }
        admission::policy::note_types(state, resource, &mut value);
        let key = store_key(resource, &object_key(namespace, &name));
        if options.dry_run {
            if state.cache.bucket(&resource.storage_key).get(&object_key(namespace, &name)).is_some() {
                return Err(Status::already_exists(&resource.group_resource(), &name));
            }
            return Ok(Some((value.to_string().into(), warnings)));
        }
        let value = conversion::to_storage(state, resource, value).await?;
        let stored = encode::encode(&value);
        let mut conditions = vec![Condition { key: key.clone(), check: Check::Absent }];
        let value = seal(state, &resource.storage_key, &key, stored.clone(), &mut conditions)?;
        let mut ops = vec![Op::Put { key: key.clone(), value }];
        claims.add_to(&mut conditions, &mut ops);
        charges.add_to(&mut conditions, &mut ops);
        let txn = Txn { conditions, ops, lazy: is_lazy(resource) };
        match state.store.commit(txn).await {
            Ok(revision) => Ok(Some((encode::spliced(&stored, revision), warnings))),
            Err(CommitError::Conflict { key: at, .. }) if at == key => {
                Err(Status::already_exists(&resource.group_resource(), &name))
            }
            Err(CommitError::Conflict { key: at, .. })
                if claims.may_choose_again(&at) || charges.has(&at) =>
            {
                Ok(None)
            }
            Err(CommitError::Conflict { key: at, .. }) if written_otherwise(state, &at).await? => Ok(None),
            Err(CommitError::Conflict { key: at, .. }) => Err(claims.conflict(&at, resource, &name)),
            Err(error) => Err(commit_failed(&error)),
        }
    }
}

/// Heartbeats and events may wait for the next flush.
pub(crate) fn is_lazy(resource: &Resource) -> bool {
    matches!(
        (&*resource.group, &*resource.plural),
        ("coordination.k8s.io", "leases") | ("" | "events.k8s.io", "events")
    )
}

/// The value as it is to be stored; see [`crate::sealing`].
pub(crate) fn seal(
    state: &State,
    storage_key: &str,
    key: &kedge_store::Key,
    value: kedge_store::Value,
    conditions: &mut Vec<Condition>,
) -> Result<kedge_store::Value, Status> {
    let sealed = state.sealing.seal(storage_key, key, value, conditions);
    sealed.map_err(|reason| Status::internal(format!("the object cannot be encrypted: {reason}")))
}

/// Whether a write was refused because objects are encrypted otherwise than this node knew; it knows then.
pub(crate) async fn written_otherwise(state: &State, at: &kedge_store::Key) -> Result<bool, Status> {
    if !state.sealing.is_record(at) {
        return Ok(false);
    }
    state.fresh_revision().await.map(|_| true)
}

pub(crate) fn commit_failed(error: &CommitError) -> Status {
    let text = kedge_base::Chain(error).to_string();
    match error {
        CommitError::TooLarge { .. } => Status::request_entity_too_large(text),
        // As upstream passes it on from etcd; what the client can do about it is in the text.
        CommitError::Quota { .. } => Status::plain(500, "", text),
        _ => Status::service_unavailable(format!("the datastore did not accept the write: {text}")),
    }
}

/// What only the server may say of a new object (apiserver `rest.FillObjectMetaSystemFields`).
fn drop_server_fields(value: &mut Value) {
    let metadata = object::metadata_mut(value);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"] {
        metadata.remove(field);
    }
}

/// The object's namespace is the path's; one of cluster scope has none, whatever it says
/// (apiserver `rest.EnsureObjectNamespaceMatchesRequestNamespace`): manifests often name one there.
pub(crate) fn set_namespace(resource: &Resource, namespace: &str, value: &mut Value) -> Result<(), Status> {
    let own = object::namespace(value);
    if resource.namespaced && !own.is_empty() && own != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if resource.namespaced {
        value["metadata"]["namespace"] = json!(namespace);
    } else if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("namespace");
    }
    Ok(())
}
