//! DELETE and DELETECOLLECTION: grace periods, finalizers and propagation
//! (apiserver `pkg/registry/generic/registry/store.go`).

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::status::{Details, Status};
use kedge_store::{Check, CommitError, Condition, Op, Txn};
use serde_json::{Value, json};

use super::create::{commit_failed, seal, written_otherwise};
use super::options::DeleteOptions;
use super::{Context, joined, object_key, read, store_key};
use crate::admission::{self, Operation, Request};
use crate::authn::User;
use crate::cache::Stored;
use crate::claims;
use crate::crd;
use crate::encode;
use crate::respond;
use crate::state::State;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

pub(crate) async fn delete(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    let options = DeleteOptions::of(context, body)?;
    let deletion = Deletion { state: &context.state, user: &context.user, resource: &context.resource };
    match deletion.run(&context.info.namespace, &context.info.name, &options).await? {
        Outcome::Gone(old) => {
            // Upstream answers with the object for kinds that ask for it, with a Status otherwise.
            if returns_object(&context.resource) {
                return read::present(context, StatusCode::OK, &old).await;
            }
            let value = read::parse(&old)?;
            let details = Details {
                name: context.info.name.clone(),
                group: context.resource.group.to_string(),
                kind: context.resource.plural.to_string(),
                uid: object::uid(&value).to_owned(),
                causes: Vec::new(),
                retry_after_seconds: 0,
            };
            Ok(respond::json(StatusCode::OK, &Status::success(Some(details)).to_value()))
        }
        Outcome::Marked(bytes) => read::present(context, StatusCode::OK, &bytes).await,
    }
}

pub(crate) async fn delete_collection(
    context: &Arc<Context>,
    body: &Bytes,
) -> Result<Response<Body>, Status> {
    let options = DeleteOptions::of(context, body)?;
    let page = read::page(context).await?;
    let deletion = Deletion { state: &context.state, user: &context.user, resource: &context.resource };
    let mut items: Vec<Bytes> = Vec::new();
    for stored in page.objects {
        match deletion.run(stored.namespace(), stored.name(), &options).await {
            Ok(Outcome::Gone(bytes) | Outcome::Marked(bytes)) => items.push(bytes),
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let resource = &context.resource;
    let metadata = json!({ "resourceVersion": page.revision.to_string() });
    let head = joined::head(&resource.list_kind, &resource.api_version(), &metadata);
    Ok(respond::json_body(StatusCode::OK, Body::new(joined::Joined::new(head, items))))
}

/// Kinds whose deletion is answered with the object instead of a Status (`ReturnDeletedObject` of
/// upstream's `registry/core/*/storage`).
fn returns_object(resource: &Resource) -> bool {
    let kinds = [
        "pods",
        "podtemplates",
        "persistentvolumes",
        "persistentvolumeclaims",
        "resourcequotas",
        "serviceaccounts",
        "services",
    ];
    resource.group.is_empty() && kinds.contains(&&*resource.plural)
}

/// What became of the object.
pub(crate) enum Outcome {
    /// It is gone; its last bytes.
    Gone(Bytes),
    /// It waits for its grace period or its finalizers; its bytes now.
    Marked(Bytes),
}

/// How one try ended, when nobody else was faster.
struct Attempt {
    outcome: Outcome,
    /// The store took it; otherwise it says what this node's own copy says.
    committed: bool,
}

/// Deletes objects for a user, or for the API server itself.
pub(crate) struct Deletion<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) user: &'a User,
    pub(crate) resource: &'a Arc<Resource>,
}

impl Deletion<'_> {
    pub(crate) async fn run(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Outcome, Status> {
        let bucket = self.state.cache.bucket(&self.resource.storage_key);
        // As with updates: what the store does not check is confirmed before it is answered.
        let mut confirmed = false;
        loop {
            let seen = self.state.cache.revision();
            let stored = bucket.get(&object_key(namespace, name));
            let result = match &stored {
                None => Err(Status::not_found(&self.resource.group_resource(), name)),
                Some(stored) => self.attempt(namespace, name, options, stored).await,
            };
            match result {
                Ok(Some(Attempt { outcome, committed })) if committed || confirmed => return Ok(outcome),
                // Somebody else changed it: decide again on what it is now.
                Ok(None) => {}
                Err(status) if confirmed || status.code >= 500 => return Err(status),
                result => {
                    if self.state.fresh_revision().await? <= seen
                        && let Some(attempt) = result?
                    {
                        return Ok(attempt.outcome);
                    }
                    confirmed = true;
                }
            }
        }
    }

    async fn attempt(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        stored: &Arc<Stored>,
    ) -> Result<Option<Attempt>, Status> {
        let (state, resource) = (self.state, self.resource);
        let old = read::parse(&stored.bytes)?;
        self.check_preconditions(name, &old, options)?;
        let request = Request {
            state,
            user: self.user,
            resource,
            subresource: "",
            namespace,
            name,
            operation: Operation::Delete,
            old: Some(&old),
            dry_run: options.is_dry_run(),
        };
        admission::validate(&request, &old, &mut Vec::new()).await?;
        let mut value = old.clone();
        let gone = mark(resource, &mut value, options)?;
        let undecided = |outcome| Ok(Some(Attempt { outcome, committed: false }));
        if options.is_dry_run() {
            return undecided(if gone {
                Outcome::Gone(stored.bytes.clone())
            } else {
                Outcome::Marked(value.to_string().into())
            });
        }
        if value == old && !gone {
            return undecided(Outcome::Marked(stored.bytes.clone()));
        }
        let store_key = store_key(resource, &object_key(namespace, name));
        let mut conditions = vec![Condition { key: store_key.clone(), check: Check::At(stored.modified) }];
        let mut ops = Vec::new();
        let marked = if gone {
            ops.push(Op::Delete { key: store_key });
            claims::release(state, resource, &old).add_to(&mut conditions, &mut ops);
            None
        } else {
            let fresh = encode::encode(&value);
            let value = seal(state, &resource.storage_key, &store_key, fresh.clone(), &mut conditions)?;
            ops.push(Op::Put { key: store_key, value });
            Some(fresh)
        };
        let outcome = match (state.store.commit(Txn { conditions, ops, lazy: false }).await, marked) {
            (Ok(_), None) => Outcome::Gone(stored.bytes.clone()),
            (Ok(revision), Some(fresh)) => Outcome::Marked(encode::spliced(&fresh, revision)),
            (Err(CommitError::Conflict { key: at, .. }), _) => {
                written_otherwise(state, &at).await?;
                return Ok(None);
            }
            (Err(error), _) => return Err(commit_failed(&error)),
        };
        Ok(Some(Attempt { outcome, committed: true }))
    }

    fn check_preconditions(&self, name: &str, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
        let Some(preconditions) = &options.preconditions else { return Ok(()) };
        let check = |wanted: &Option<String>, actual: &str, what: &str| match wanted {
            Some(wanted) if wanted != actual => Err(Status::conflict(
                &self.resource.group_resource(),
                name,
                format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}"
                ),
            )),
            _ => Ok(()),
        };
        check(&preconditions.uid, object::uid(old), "UID")?;
        check(&preconditions.resource_version, object::resource_version(old), "ResourceVersion")
    }
}

/// Marks the object as being deleted; `true` when nothing holds it back.
fn mark(resource: &Resource, value: &mut Value, options: &DeleteOptions) -> Result<bool, Status> {
    let was_deleting = value["metadata"]["deletionTimestamp"].is_string();
    let grace = grace_period(resource, value, options);
    set_finalizers(resource, value, options);
    if crd::is_definition(resource) && !was_deleting {
        crd::mark_deleted(value);
    }
    let held = value["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
        || (is_namespace(resource)
            && value["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty()));
    if was_deleting {
        let before = value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        // A grace period can only be shortened.
        if grace < before {
            let shorter = value["metadata"]["deletionTimestamp"]
                .as_str()
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .map(|at| at - jiff::SignedDuration::from_secs(before - grace));
            if let Some(at) = shorter {
                value["metadata"]["deletionTimestamp"] = json!(object::format_time(at));
            }
            value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        return Ok(!held && grace.min(before) == 0);
    }
    if !held && grace == 0 {
        return Ok(true);
    }
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    value["metadata"]["deletionTimestamp"] = json!(object::format_time(at));
    value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    // A deletion is a change of what is wanted.
    if let Some(generation) = value["metadata"]["generation"].as_i64() {
        value["metadata"]["generation"] = json!(generation + 1);
    }
    if is_namespace(resource) {
        value["status"]["phase"] = json!("Terminating");
    }
    Ok(false)
}

fn is_namespace(resource: &Resource) -> bool {
    resource.group.is_empty() && &*resource.plural == "namespaces"
}

/// 68 years. A moment that is much later is no time any more.
const LONGEST_GRACE: i64 = i32::MAX as i64;

/// Only pods end gracefully (`registry/core/pod/strategy.go`, `CheckGracefulDelete`).
fn grace_period(resource: &Resource, value: &Value, options: &DeleteOptions) -> i64 {
    if !(resource.group.is_empty() && &*resource.plural == "pods") {
        return 0;
    }
    let unscheduled = value["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || ended {
        return 0;
    }
    let own = value["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let seconds = options.grace_period_seconds.unwrap_or(own);
    // A negative period counts as one second, as upstream.
    if seconds < 0 { 1 } else { seconds.min(LONGEST_GRACE) }
}

/// Whose pods stay when a client does not say what is to become of them, as they did before there was a garbage
/// collector (`DefaultGarbageCollectionPolicy`).
fn orphans_by_default(resource: &Resource) -> bool {
    matches!(
        (&*resource.group, &*resource.version, &*resource.plural),
        ("", "v1", "replicationcontrollers") | ("batch", "v1", "jobs")
    )
}

/// `deletionFinalizersForGarbageCollection`: foreground and orphan deletion are the garbage collector's work.
fn set_finalizers(resource: &Resource, value: &mut Value, options: &DeleteOptions) {
    let mut finalizers: Vec<String> = value["metadata"]["finalizers"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let policy = match (options.propagation_policy.as_deref(), options.orphan_dependents) {
        (Some(policy), _) => policy.to_owned(),
        (None, Some(true)) => "Orphan".to_owned(),
        (None, Some(false)) => "Background".to_owned(),
        (None, None) if finalizers.iter().any(|name| name == ORPHAN || name == FOREGROUND) => return,
        (None, None) if orphans_by_default(resource) => "Orphan".to_owned(),
        (None, None) => return,
    };
    finalizers.retain(|name| name != ORPHAN && name != FOREGROUND);
    match policy.as_str() {
        "Orphan" => finalizers.push(ORPHAN.to_owned()),
        "Foreground" => finalizers.push(FOREGROUND.to_owned()),
        _ => {}
    }
    if finalizers.is_empty() {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("finalizers");
        }
    } else {
        value["metadata"]["finalizers"] = json!(finalizers);
    }
}
