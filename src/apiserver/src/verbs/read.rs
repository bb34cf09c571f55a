//! GET and LIST from the watch cache.

use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::field::FieldError;
use kedge_api::registry::Resource;
use kedge_api::status::Status;
use kedge_api::table::partial_object_metadata;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Context, select::Selection};
use crate::cache::{Objects, Stored};
use crate::respond::{self, Form};

pub(crate) async fn get(context: &Arc<Context>) -> Result<Response<Body>, Status> {
    if context.query.get("resourceVersion") != Some("0") {
        context.state.fresh_revision().await?;
    }
    let bucket = context.state.cache.bucket(&context.resource.storage_key);
    let stored = bucket.get(&context.key()).ok_or_else(|| context.not_found())?;
    present(context, StatusCode::OK, &stored.bytes)
}

/// One object in the version and form that the client asked for.
pub(crate) fn present(context: &Context, code: StatusCode, bytes: &Bytes) -> Result<Response<Body>, Status> {
    match context.accepted.form {
        Form::Object => Ok(respond::object(code, converted(&context.resource, bytes)?, context.accepted)),
        Form::Metadata => {
            let object = partial_object_metadata(&parse(bytes)?);
            Ok(respond::object(code, object.to_string().into(), context.accepted))
        }
        Form::Table => {
            let object = parse(&converted(&context.resource, bytes)?)?;
            let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
            let table = table(context, std::iter::once(Ok(object)), json!({ "resourceVersion": version }))?;
            Ok(respond::object(code, table.to_string().into(), context.accepted))
        }
    }
}

/// The object's bytes in the requested version: the stored ones wherever that is the same.
pub(crate) fn converted(resource: &Resource, bytes: &Bytes) -> Result<Bytes, Status> {
    if !resource.converts() || resource.is_current(bytes) {
        return Ok(bytes.clone());
    }
    Ok(resource.from_storage(parse(bytes)?)?.to_string().into())
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes)
        .map_err(|error| Status::internal(format!("stored object is not JSON: {error}")))
}

/// Where a chunked list goes on.
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: u64,
    start: String,
}

impl Continue {
    fn encode(revision: u64, start: &str) -> String {
        let token = Self { v: "meta.k8s.io/v1".into(), rv: revision, start: start.to_owned() };
        URL_SAFE_NO_PAD.encode(json!(token).to_string())
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad())?;
        serde_json::from_slice(&bytes).map_err(|_| bad())
    }
}

/// One chunk of a list.
pub(crate) struct Page {
    pub(crate) revision: u64,
    pub(crate) objects: Vec<Arc<Stored>>,
    next: Option<String>,
    /// Known only when nothing is filtered, as upstream.
    remaining: Option<usize>,
}

pub(crate) async fn page(context: &Context) -> Result<Page, Status> {
    let selection = Selection::of(context)?;
    let query = &context.query;
    let limit = match query.get("limit") {
        Some(text) => {
            text.parse::<i64>().map_err(|_| Status::bad_request(format!("limit: invalid value {text:?}")))?
        }
        None => 0,
    };
    let limit = usize::try_from(limit).unwrap_or(0);
    let bucket = context.state.cache.bucket(&context.resource.storage_key);
    let (revision, objects, start): (u64, Objects, String) = match query.get("continue") {
        Some(token) => {
            let token = Continue::decode(token)?;
            let objects = bucket.pinned(token.rv).ok_or_else(|| {
                Status::resource_expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
                )
            })?;
            (token.rv, objects, token.start)
        }
        None => {
            let wanted = query.get("resourceVersion").unwrap_or_default();
            let matching = query.get("resourceVersionMatch").unwrap_or_default();
            check_version(wanted, matching)?;
            let revision = if wanted == "0" {
                context.state.cache.revision()
            } else {
                context.state.fresh_revision().await?
            };
            let asked: u64 = wanted.parse().unwrap_or(0);
            if asked > revision {
                return Err(too_large_version(asked, revision));
            }
            // The revision is read before the objects: they are never older than it says.
            let objects = bucket.objects();
            (revision, objects, selection.prefix())
        }
    };
    let prefix = selection.prefix();
    let mut selected = Vec::new();
    let mut next = None;
    let mut remaining = 0;
    for (key, stored) in
        objects.range::<std::ops::RangeFrom<Arc<str>>, Arc<str>>(Arc::<str>::from(start.as_str())..)
    {
        if !key.starts_with(&prefix) {
            break;
        }
        if !selection.matches(stored) {
            continue;
        }
        if limit > 0 && selected.len() == limit {
            if next.is_none() {
                next = Some(Continue::encode(revision, key));
                if selection.is_selective() {
                    break;
                }
            }
            remaining += 1;
            continue;
        }
        selected.push(stored.clone());
    }
    if next.is_some() {
        bucket.pin(revision, &objects);
    }
    let remaining = (next.is_some() && !selection.is_selective()).then_some(remaining);
    Ok(Page { revision, objects: selected, next, remaining })
}

/// apimachinery `ValidateListOptions`.
pub(crate) fn check_version(version: &str, matching: &str) -> Result<(), Status> {
    if !version.is_empty() && version.parse::<u64>().is_err() {
        return Err(Status::bad_request(format!(
            "resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: invalid syntax"
        )));
    }
    match matching {
        "" | "NotOlderThan" | "Exact" if matching.is_empty() || !version.is_empty() => Ok(()),
        "NotOlderThan" | "Exact" => {
            Err(invalid_match("resourceVersionMatch is forbidden unless resourceVersion is provided"))
        }
        other => {
            let error = FieldError::not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan"]);
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", vec![error]))
        }
    }
}

/// 422 about `resourceVersionMatch`.
pub(crate) fn invalid_match(detail: &str) -> Status {
    let error = FieldError::forbidden("resourceVersionMatch", detail);
    Status::invalid("meta.k8s.io", "ListOptions", "", vec![error])
}

pub(crate) fn too_large_version(asked: u64, current: u64) -> Status {
    Status::timeout(format!("Too large resource version: {asked}, current: {current}"), 1)
}

pub(crate) async fn list(context: &Arc<Context>) -> Result<Response<Body>, Status> {
    let page = page(context).await?;
    let mut metadata = json!({ "resourceVersion": page.revision.to_string() });
    if let Some(next) = &page.next {
        metadata["continue"] = json!(next);
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let resource = &context.resource;
    let bytes: Bytes = match context.accepted.form {
        Form::Object => {
            let size: usize = page.objects.iter().map(|stored| stored.bytes.len() + 1).sum();
            let mut out = Vec::with_capacity(size + 256);
            let head = json!({ "kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": metadata });
            let head = head.to_string();
            out.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
            out.extend_from_slice(b",\"items\":[");
            for (index, stored) in page.objects.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                if !resource.converts() {
                    out.extend_from_slice(&stored.bytes);
                } else {
                    out.extend_from_slice(&converted(resource, &stored.bytes)?);
                }
            }
            out.extend_from_slice(b"]}");
            out.into()
        }
        Form::Metadata => {
            let items: Result<Vec<Value>, Status> = page
                .objects
                .iter()
                .map(|stored| Ok(partial_object_metadata(&parse(&stored.bytes)?)))
                .collect();
            json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items? })
                .to_string()
                .into()
        }
        Form::Table => {
            let objects = page.objects.iter().map(|stored| parse(&converted(resource, &stored.bytes)?));
            table(context, objects, metadata)?.to_string().into()
        }
    };
    Ok(respond::object(StatusCode::OK, bytes, context.accepted))
}

/// A `meta.k8s.io/v1.Table`.
pub(crate) fn table(
    context: &Context,
    objects: impl Iterator<Item = Result<Value, Status>>,
    metadata: Value,
) -> Result<Value, Status> {
    let include: fn(&Value) -> Value = match context.query.get("includeObject") {
        None | Some("Metadata") => partial_object_metadata,
        Some("Object") => Value::clone,
        Some("None") => |_| Value::Null,
        Some(other) => {
            return Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}")));
        }
    };
    let objects = objects.collect::<Result<Vec<Value>, Status>>()?;
    Ok(kedge_api::table::table(&context.resource, objects.iter(), metadata, jiff::Timestamp::now(), include))
}
