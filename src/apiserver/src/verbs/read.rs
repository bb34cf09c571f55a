//! GET and LIST from the watch cache.

use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::field::FieldError;
use kedge_api::registry::Resource;
use kedge_api::status::{Cause, Status};
use kedge_api::table::{partial_object_metadata, write_partial_object_metadata};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Context, joined, select::Selection};
use crate::cache::{Objects, Stored};
use crate::conversion;
use crate::respond::{self, Form};

pub(crate) async fn get(context: &Arc<Context>) -> Result<Response<Body>, Status> {
    let wanted = context.query.get("resourceVersion").unwrap_or_default();
    check_version(wanted, "")?;
    if wanted != "0" {
        context.state.fresh_revision().await?;
    }
    not_beyond(context, wanted.parse().unwrap_or(0)).await?;
    let bucket = context.state.cache.bucket(&context.resource.storage_key);
    let stored = bucket.get(&context.key()).ok_or_else(|| context.not_found())?;
    present(context, StatusCode::OK, &stored.bytes).await
}

/// One object in the version and form that the client asked for.
pub(crate) async fn present(
    context: &Context,
    code: StatusCode,
    bytes: &Bytes,
) -> Result<Response<Body>, Status> {
    let shown = async || {
        let mut all = conversion::shown(&context.state, &context.resource, vec![bytes.clone()]).await?;
        Ok::<_, Status>(all.pop().unwrap_or_default())
    };
    match context.accepted.form {
        Form::Object => Ok(respond::object(code, shown().await?, context.accepted)),
        Form::Metadata => {
            let mut out = Vec::new();
            write_metadata(&mut out, bytes)?;
            Ok(respond::object(code, out.into(), context.accepted))
        }
        Form::Table => {
            let object = parse(&shown().await?)?;
            let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
            let table = table(context, std::iter::once(Ok(object)), json!({ "resourceVersion": version }))?;
            Ok(respond::object(code, table.to_string().into(), context.accepted))
        }
    }
}

/// Stored objects in the requested version.
async fn shown(context: &Context, objects: &[Arc<Stored>]) -> Result<Vec<Bytes>, Status> {
    let stored = objects.iter().map(|stored| stored.bytes.clone()).collect();
    conversion::shown(&context.state, &context.resource, stored).await
}

/// The object's bytes in the requested version, where no webhook is needed for it: the stored ones wherever that is the same.
pub(crate) fn converted(resource: &Resource, bytes: &Bytes) -> Result<Bytes, Status> {
    if !resource.converts() || (resource.is_current(bytes) && !resource.defaulted) {
        return Ok(bytes.clone());
    }
    Ok(resource.from_storage(parse(bytes)?)?.to_string().into())
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|error| not_json(&error))
}

/// Appends an object's `PartialObjectMetadata`.
pub(crate) fn write_metadata(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Status> {
    write_partial_object_metadata(out, bytes).map_err(|error| not_json(&error))
}

fn not_json(error: &serde_json::Error) -> Status {
    Status::internal(format!("stored object is not JSON: {error}"))
}

/// Where a chunked list goes on.
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    /// The revision of the first chunk; negative: whatever there is now.
    rv: i64,
    start: String,
}

/// The revision of a list that goes on with what there is now.
const NOW: i64 = -1;

impl Continue {
    fn encode(revision: i64, start: &str) -> String {
        let token = Self { v: "meta.k8s.io/v1".into(), rv: revision, start: start.to_owned() };
        URL_SAFE_NO_PAD.encode(json!(token).to_string())
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad())?;
        serde_json::from_slice(&bytes).map_err(|_| bad())
    }
}

/// A continue token, for fuzz/.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_continue(text: &str) {
    if let Ok(token) = Continue::decode(text) {
        let again = Continue::decode(&Continue::encode(token.rv, &token.start));
        assert!(again.is_ok_and(|again| (again.rv, again.start) == (token.rv, token.start)));
    }
}

/// What a list reads: the present objects, or what is left of those that a continued list began with.
enum View {
    Whole(Objects),
    Pinned(Arc<[Arc<Stored>]>),
}

impl View {
    /// The objects from a key on, in order.
    fn from<'a>(&'a self, start: &str) -> Box<dyn Iterator<Item = &'a Arc<Stored>> + Send + 'a> {
        match self {
            Self::Whole(objects) => {
                let start = Arc::<str>::from(start);
                Box::new(
                    objects
                        .range::<std::ops::RangeFrom<Arc<str>>, Arc<str>>(start..)
                        .map(|(_, stored)| stored),
                )
            }
            Self::Pinned(rest) => {
                let at = rest.partition_point(|stored| *stored.key < *start);
                Box::new(rest[at..].iter())
            }
        }
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
    let prefix = selection.prefix();
    let (revision, view, start): (u64, View, String) = match query.get("continue") {
        Some(token) => {
            let token = Continue::decode(token)?;
            match u64::try_from(token.rv) {
                Ok(revision) => {
                    let rest = bucket
                        .pinned(revision, &prefix)
                        .ok_or_else(|| Status::list_expired(Continue::encode(NOW, &token.start)))?;
                    (revision, View::Pinned(rest), token.start)
                }
                // The client knows that it gets what has changed meanwhile.
                Err(_) => {
                    let revision = context.state.fresh_revision().await?;
                    (revision, View::Whole(bucket.objects()), token.start)
                }
            }
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
            not_beyond(context, asked).await?;
            // The revision is read before the objects: they are never older than it says.
            let objects = bucket.objects();
            let revision = if matching == "Exact" {
                // Older states are not kept, but nothing may have changed since.
                let is_same = bucket.events_after(asked, 1).is_ok_and(|events| events.is_empty());
                if !is_same {
                    return Err(Status::expired("The resourceVersion for the provided list is too old."));
                }
                asked
            } else {
                revision.max(asked)
            };
            (revision, View::Whole(objects), prefix.clone())
        }
    };
    let mut selected = Vec::new();
    // All that follows the chunk, selected or not.
    let mut rest: Vec<Arc<Stored>> = Vec::new();
    let mut next = None;
    let mut remaining = 0;
    let first = matches!(view, View::Whole(_));
    let start = start.max(prefix.clone());
    let view = if selection.is_late() {
        let here = view.from(&start).take_while(|stored| stored.key.starts_with(&prefix));
        let candidates = here.filter(|stored| selection.matches(stored)).cloned().collect();
        View::Pinned(selection.keep(context, candidates).await?.into())
    } else {
        view
    };
    for stored in view.from(&start).take_while(|stored| stored.key.starts_with(&prefix)) {
        if next.is_none() {
            if !selection.matches(stored) {
                continue;
            }
            if limit == 0 || selected.len() < limit {
                selected.push(stored.clone());
                continue;
            }
            next = Some(Continue::encode(i64::try_from(revision).unwrap_or(NOW), &stored.key));
        }
        remaining += 1;
        if first {
            rest.push(stored.clone());
        }
    }
    match (&next, first) {
        (Some(_), true) => bucket.pin(revision, &prefix, &rest),
        (None, false) => bucket.unpin(revision, &prefix),
        _ => {}
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
        "Exact" if version == "0" => {
            Err(invalid_match("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""))
        }
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

/// A revision of the future is waited for, then refused: apiserver storage
/// `NewTooLargeResourceVersionError`, by whose cause client-go's reflectors know that they have to begin anew.
pub(crate) async fn not_beyond(context: &Context, asked: u64) -> Result<(), Status> {
    if context.state.reaches(asked).await? {
        return Ok(());
    }
    let current = context.state.cache.revision();
    let mut status = Status::timeout(too_large(asked, current), 1);
    status.details.get_or_insert_default().causes.push(Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        ..Cause::default()
    });
    Err(status)
}

pub(crate) fn too_large(asked: u64, current: u64) -> String {
    format!("Too large resource version: {asked}, current: {current}")
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
            let head = joined::head(&resource.list_kind, &resource.api_version(), &metadata);
            if !resource.converts() && !context.accepted.yaml {
                let body = Body::new(joined::Joined::new(head, page.objects));
                return Ok(respond::json_body(StatusCode::OK, body));
            }
            let mut out = Vec::from(head);
            for (index, bytes) in shown(context, &page.objects).await?.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(bytes);
            }
            out.extend_from_slice(b"]}");
            out.into()
        }
        Form::Metadata => {
            let mut out = Vec::from(joined::head("PartialObjectMetadataList", "meta.k8s.io/v1", &metadata));
            for (index, stored) in page.objects.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_metadata(&mut out, &stored.bytes)?;
            }
            out.extend_from_slice(b"]}");
            out.into()
        }
        Form::Table => {
            let bytes = shown(context, &page.objects).await?;
            let objects = bytes.iter().map(|bytes| parse(bytes));
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
    table_of(context, &context.resource, objects, metadata)
}

/// The same with the columns of another kind than the request's.
pub(crate) fn table_of(
    context: &Context,
    resource: &Resource,
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
    Ok(kedge_api::table::table(resource, objects.iter(), metadata, jiff::Timestamp::now(), include))
}
