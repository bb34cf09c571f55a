//! UPDATE, and the loop that every change of an existing object goes through.

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
use serde_json::Value;

use super::create::{Creation, commit_failed, is_lazy, seal, set_namespace, written_otherwise};
use super::options::WriteOptions;
use super::{Context, object_key, read, store_key};
use crate::admission::{self, Operation, Request};
use crate::authn::User;
use crate::authz;
use crate::cache::Stored;
use crate::claims;
use crate::conversion;
use crate::encode;
use crate::respond;
use crate::state::State;

/// A write whose client named no version is tried again this often when others write too
/// (upstream's patches give up after 5 tries, `GuaranteedUpdate` never does).
const TRIES: usize = 64;

/// Which part of the object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Everything but the status.
    Main,
    /// `spec.replicas` by way of the scale subresource.
    Scale,
    /// What a client may change through a subresource; the kind's strategy keeps the rest.
    Part(&'static str),
    /// A subresource whose handler has built the object itself: binding, finalize.
    Trusted(&'static str),
}

impl Target {
    pub(crate) const STATUS: Self = Self::Part("status");

    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Scale => "scale",
            Self::Part(name) | Self::Trusted(name) => name,
        }
    }
}

pub(crate) async fn update(
    context: &Arc<Context>,
    body: &Bytes,
    target: Target,
) -> Result<Response<Body>, Status> {
    let options = WriteOptions::of(context)?;
    let (mut value, mut warnings) =
        crate::body::object(context.content_type(), body, &context.resource, options.validation)?;
    set_namespace(&context.resource, &context.info.namespace, &mut value)?;
    if object::name(&value) != context.info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            object::name(&value),
            context.info.name
        )));
    }
    let change = Change { state: &context.state, user: &context.user, resource: &context.resource, target };
    let (namespace, name) = (&context.info.namespace, &context.info.name);
    let mut edit = |_: &Value| Ok(Edit::replace(value.clone()));
    let result = change.run(namespace, name, &options, &mut edit).await;
    let may_create = target == Target::Main && context.resource.strategy.creates_on_update();
    let (code, (bytes, more)) = match result {
        Err(status) if may_create && status.reason == "NotFound" && object::uid(&value).is_empty() => {
            match create_instead(context, &value, &options).await {
                // Somebody else created it meanwhile: it is an update then.
                Err(status) if status.reason == "AlreadyExists" => {
                    (StatusCode::OK, change.run(namespace, name, &options, &mut edit).await?)
                }
                result => (StatusCode::CREATED, result?),
            }
        }
        result => (StatusCode::OK, result?),
    };
    warnings.extend(more);
    let mut response = read::present(context, code, &bytes).await?;
    respond::add_warnings(&mut response, &warnings);
    Ok(response)
}

/// Creates what an update did not find; that needs the right to create (apiserver `update.go`).
async fn create_instead(
    context: &Arc<Context>,
    value: &Value,
    options: &WriteOptions,
) -> Result<(Bytes, Vec<String>), Status> {
    let mut attributes = authz::attributes(&context.user, &context.info);
    attributes.verb = "create";
    authz::require(&context.state, &context.user, &attributes)?;
    let mut value = value.clone();
    object::metadata_mut(&mut value).remove("resourceVersion");
    let creation = Creation { state: &context.state, user: &context.user, resource: &context.resource };
    creation.run(&context.info.namespace, value, options).await
}

/// What a change makes of the old object.
pub(crate) struct Edit {
    pub(crate) value: Value,
    /// Server-side apply has worked out who manages which field already.
    pub(crate) managed: bool,
}

impl Edit {
    pub(crate) fn replace(value: Value) -> Self {
        Self { value, managed: false }
    }
}

/// How one try ended.
enum Done {
    /// The store took it: the final bytes, and warnings.
    Committed(Bytes, Vec<String>),
    /// Nothing was to be written, going by what this node has.
    Unchanged(Bytes, Vec<String>),
    /// Somebody else was faster.
    Outrun,
}

/// Changes one object.
pub(crate) struct Change<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) user: &'a User,
    pub(crate) resource: &'a Arc<Resource>,
    pub(crate) target: Target,
}

impl Change<'_> {
    /// `edit` is called with the object as it is now, again after each conflict that is not the
    /// client's matter. Returns the final bytes and warnings.
    pub(crate) async fn run(
        &self,
        namespace: &str,
        name: &str,
        options: &WriteOptions,
        edit: &mut (dyn FnMut(&Value) -> Result<Edit, Status> + Send),
    ) -> Result<(Bytes, Vec<String>), Status> {
        let key = object_key(namespace, name);
        let bucket = self.state.cache.bucket(&self.resource.storage_key);
        // A commit is checked by the store. Whatever else is answered comes from this node's own copy, which
        // may lag behind what others have acknowledged: it is confirmed first (as `GuaranteedUpdate` does
        // with what it has from its cache).
        let mut confirmed = false;
        for _ in 0..TRIES {
            let seen = self.state.cache.revision();
            let stored = bucket.get(&key);
            let result = match &stored {
                None => Err(Status::not_found(&self.resource.group_resource(), name)),
                Some(stored) => self.edited(namespace, name, options, stored, edit).await,
            };
            match result {
                Ok(Done::Committed(bytes, warnings)) => return Ok((bytes, warnings)),
                Ok(Done::Outrun) => {}
                Ok(Done::Unchanged(bytes, warnings)) if confirmed => return Ok((bytes, warnings)),
                Err(status) if confirmed || status.code >= 500 => return Err(status),
                result => {
                    if self.state.fresh_revision().await? <= seen {
                        return match result? {
                            Done::Committed(bytes, warnings) | Done::Unchanged(bytes, warnings) => {
                                Ok((bytes, warnings))
                            }
                            Done::Outrun => Err(self.conflict(name)),
                        };
                    }
                    confirmed = true;
                }
            }
        }
        Err(self.conflict(name))
    }

    async fn edited(
        &self,
        namespace: &str,
        name: &str,
        options: &WriteOptions,
        stored: &Arc<Stored>,
        edit: &mut (dyn FnMut(&Value) -> Result<Edit, Status> + Send),
    ) -> Result<Done, Status> {
        let old = conversion::from_storage(self.state, self.resource, read::parse(&stored.bytes)?).await?;
        let edited = edit(&old)?;
        self.attempt(namespace, name, options, stored, &old, edited).await
    }

    fn conflict(&self, name: &str) -> Status {
        Status::conflict(
            &self.resource.group_resource(),
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    async fn attempt(
        &self,
        namespace: &str,
        name: &str,
        options: &WriteOptions,
        stored: &Arc<Stored>,
        old: &Value,
        edited: Edit,
    ) -> Result<Done, Status> {
        let (state, resource) = (self.state, self.resource);
        let mut value = edited.value;
        // A client that names a version means that one. When somebody else is faster, the edit is made
        // again on the newer object and ends here.
        let version = object::resource_version(&value);
        let is_unnamed = matches!(version, "" | "0");
        if !is_unnamed && version != object::resource_version(old) {
            return Err(self.conflict(name));
        }
        let is_clients = matches!(self.target, Target::Main | Target::Part(_));
        if is_unnamed && is_clients && resource.strategy.update_names_version() {
            let wrong = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            // Upstream has the resource's name here instead of the kind's.
            return Err(Status::invalid(&resource.group, &resource.plural, name, vec![wrong]));
        }
        self.keep_identity(namespace, name, old, &mut value)?;
        let strategy = &resource.strategy;
        if self.target == Target::Main {
            strategy.default(&mut value);
        }
        let mut warnings = Vec::new();
        let request = Request {
            state,
            user: self.user,
            resource,
            subresource: self.target.subresource(),
            namespace,
            name,
            operation: Operation::Update,
            old: Some(old),
            dry_run: options.dry_run,
        };
        admission::mutate(&request, &mut value, &mut warnings).await?;
        let part = self.target.subresource();
        match self.target {
            Target::Main | Target::Scale => strategy.prepare_update(&mut value, old),
            Target::Part(part) => strategy.prepare_subresource(part, &mut value, old),
            Target::Trusted(_) => {}
        }
        let mut claims = claims::prepare(state, resource, &mut value, Some(old))?;
        let errors = match self.target {
            Target::Main | Target::Scale => strategy.validate_update(&value, old),
            Target::Part(_) => strategy.validate_subresource(part, &value, old),
            Target::Trusted(_) => Vec::new(),
        };
        if !errors.is_empty() {
            return Err(Status::invalid(&resource.group, &resource.kind, name, errors));
        }
        admission::validate(&request, &value, &mut warnings).await?;
        if self.target == Target::Main {
            warnings.extend(strategy.warnings(&value));
            crate::crd::warn(resource, &value, &mut warnings);
        }
        let charges = admission::quota::charge(&request, &value).await?;
        if !edited.managed {
            let manager = options.manager(resource, self.target.subresource());
            managed::track_update(&resource.schema, Some(old), &mut value, &manager);
        }
        if self.target == Target::Main {
            admission::policy::note_types(state, resource, &mut value);
        }
        let value = conversion::to_storage(state, resource, value).await?;
        let fresh = encode::encode(&value);
        if encode::is_spliced(&fresh, stored.modified, &stored.bytes) {
            return Ok(Done::Unchanged(stored.bytes.clone(), warnings));
        }
        if options.dry_run {
            return Ok(Done::Unchanged(encode::spliced(&fresh, stored.modified), warnings));
        }
        let key = store_key(resource, &object_key(namespace, name));
        let mut conditions = vec![Condition { key: key.clone(), check: Check::At(stored.modified) }];
        let gone = is_to_be_deleted(&value);
        let mut ops = if gone {
            vec![Op::Delete { key: key.clone() }]
        } else {
            let value = seal(state, &resource.storage_key, &key, fresh.clone(), &mut conditions)?;
            vec![Op::Put { key: key.clone(), value }]
        };
        if gone {
            claims = claims::release(state, resource, &value);
        }
        claims.add_to(&mut conditions, &mut ops);
        if !gone {
            charges.add_to(&mut conditions, &mut ops);
        }
        match state.store.commit(Txn { conditions, ops, lazy: is_lazy(resource) && !gone }).await {
            Ok(revision) => Ok(Done::Committed(encode::spliced(&fresh, revision), warnings)),
            Err(CommitError::Conflict { key: at, .. })
                if at == key || claims.may_choose_again(&at) || charges.has(&at) =>
            {
                Ok(Done::Outrun)
            }
            Err(CommitError::Conflict { key: at, .. }) if written_otherwise(state, &at).await? => {
                Ok(Done::Outrun)
            }
            Err(CommitError::Conflict { key: at, .. }) => Err(claims.conflict(&at, resource, name)),
            Err(error) => Err(commit_failed(&error)),
        }
    }

    /// Name, uid and what only the server sets stay as they are (apiserver `registry/rest/update.go`).
    fn keep_identity(
        &self,
        namespace: &str,
        name: &str,
        old: &Value,
        value: &mut Value,
    ) -> Result<(), Status> {
        let (uid, old_uid) = (object::uid(value).to_owned(), object::uid(old));
        if !uid.is_empty() && uid != old_uid {
            return Err(Status::conflict(
                &self.resource.group_resource(),
                name,
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"),
            ));
        }
        if object::name(value) != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                object::name(value)
            )));
        }
        let own = object::namespace(value);
        if !namespace.is_empty() && !own.is_empty() && own != namespace {
            return Err(Status::bad_request(format!(
                "the namespace of the object ({own}) does not match the namespace on the request ({namespace})"
            )));
        }
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in [
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "generation",
                "namespace",
            ] {
                match &old["metadata"][field] {
                    Value::Null => metadata.remove(field),
                    kept => metadata.insert(field.to_owned(), kept.clone()),
                };
            }
            metadata.remove("selfLink");
        }
        Ok(())
    }
}

/// The last finalizer is gone from an object that was to be deleted (`ShouldDeleteDuringUpdate`).
fn is_to_be_deleted(value: &Value) -> bool {
    let metadata = &value["metadata"];
    metadata["deletionTimestamp"].is_string()
        && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        // A namespace has its own list of finalizers.
        && value["spec"]["finalizers"].as_array().is_none_or(|finalizers| finalizers.is_empty() || value["kind"] != "Namespace")
}
