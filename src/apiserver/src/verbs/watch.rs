//! WATCH: a cursor into the bucket's ring of events.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use kedge_api::status::Status;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::read::{
    check_version, converted, invalid_match, not_beyond, parse, table, too_large, write_metadata,
};
use super::{Context, select::Selection};
use crate::cache::{self, Bucket, Event, EventKind, Stored, TooOld};
use crate::conversion;
use crate::respond::Form;

/// Events that are written to a client at once.
const BATCH: usize = 512;
/// While a bucket is busy, each of its watchers adds this to the pause between two writes to a watcher: many
/// watchers get many events at once instead of every event alone. Below a timer's step there is no pause.
const PAUSE_PER_WATCHER: Duration = Duration::from_micros(100);
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(5);
/// How often a client that asked for bookmarks gets one on a quiet watch (upstream: about a minute).
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Upstream's `--min-request-timeout`: a watch without a time-out lives this long at least.
const MINIMUM_LIFE: u64 = 1800;

struct Watcher {
    context: Arc<Context>,
    bucket: Arc<Bucket>,
    changed: tokio::sync::watch::Receiver<u64>,
    selection: Selection,
    bookmarks: bool,
    /// Everything up to this revision was sent.
    cursor: u64,
    /// What is to be sent before the first event.
    initial: std::collections::VecDeque<Arc<Stored>>,
    /// `sendInitialEvents`: the bookmark that ends the initial events is still owed.
    owes_initial_bookmark: bool,
    bookmark_at: Instant,
    end_at: Instant,
    /// When the last events were sent, if those were the newest.
    sent_at: Option<Instant>,
    ended: bool,
    first_table: bool,
    /// The keys of the objects that are selected, where that is seen in converted objects only.
    chosen: HashSet<Arc<str>>,
    /// What a conversion webhook has made of the objects that are sent next, by revision and key.
    converted: HashMap<(u64, Arc<str>), Result<Bytes, Status>>,
}

pub(crate) async fn watch(context: &Arc<Context>) -> Result<Response<Body>, Status> {
    let query = &context.query;
    let version = query.get("resourceVersion").unwrap_or_default();
    let matching = query.get("resourceVersionMatch").unwrap_or_default();
    let bookmarks = query.flag("allowWatchBookmarks");
    let streaming = query.get("sendInitialEvents").is_some() && query.flag("sendInitialEvents");
    if query.get("sendInitialEvents").is_some() && matching != "NotOlderThan" {
        return Err(invalid_match("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    if query.get("sendInitialEvents").is_none() {
        if !matching.is_empty() {
            return Err(invalid_match(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        check_version(version, "")?;
    }
    let selection = Selection::of(context)?;
    let bucket = context.state.cache.bucket(&context.resource.storage_key);
    let changed = bucket.subscribe();
    let asked: u64 = version
        .parse()
        .or(if version.is_empty() { Ok(0) } else { Err(()) })
        .map_err(|()| Status::bad_request(format!("resourceVersion: Invalid value: {version:?}")))?;
    let mut refused = None;
    let (cursor, initial) = if streaming || asked == 0 {
        // Initial state first, then changes. "0" takes any state, "" the newest.
        let revision = if version == "0" {
            context.state.cache.revision()
        } else {
            context.state.fresh_revision().await?
        };
        not_beyond(context, asked).await?;
        let revision = revision.max(asked);
        let objects = bucket.objects();
        // An object newer than `revision` is sent again as an event; watchers accept that.
        let initial = if query.get("sendInitialEvents").is_some() && !streaming {
            std::collections::VecDeque::new()
        } else {
            let prefix: Arc<str> = selection.prefix().into();
            objects
                .range::<std::ops::RangeFrom<Arc<str>>, Arc<str>>(prefix.clone()..)
                .take_while(|(key, _)| key.starts_with(&*prefix))
                .filter(|(_, stored)| selection.matches(stored))
                .map(|(_, stored)| stored.clone())
                .collect()
        };
        let newest = initial.iter().map(|stored| stored.modified).max().unwrap_or(0);
        (revision.max(newest), initial)
    } else {
        // As upstream's watch cache does it: what is wrong with a revision that could be read is told by an
        // event. Clients (kube-rs among them) list anew on such an event only, and would come back with the
        // same revision for ever after a plain 410: whenever a server's history is shorter than another's.
        // Upstream lets a watch from a revision of the future wait in silence until that is there, which after
        // a restore to an older state is never: here such a watcher is sent to list anew too.
        let refusal = if context.state.reaches(asked).await? {
            bucket.events_after(asked, 0).err().map(|old| expired(&old))
        } else {
            Some(Status::resource_expired(too_large(asked, context.state.cache.revision())))
        };
        refused = refusal.map(|status| line("ERROR", &status.to_value()));
        (asked, std::collections::VecDeque::new())
    };
    let (mut chosen, mut initial) = (HashSet::new(), initial);
    if selection.is_late() {
        let now: Vec<Arc<Stored>> =
            bucket.objects().values().filter(|stored| selection.matches(stored)).cloned().collect();
        chosen.extend(selection.keep(context, now).await?.iter().map(|stored| stored.key.clone()));
        initial = selection.keep(context, initial.into()).await?.into();
        chosen.extend(initial.iter().map(|stored| stored.key.clone()));
    }
    let seconds = match query.get("timeoutSeconds").and_then(|text| text.parse::<u64>().ok()) {
        Some(seconds) if seconds > 0 => seconds,
        // Spread the ends of long watches so that clients do not all come back at once.
        _ => MINIMUM_LIFE + crate::random::below(MINIMUM_LIFE),
    };
    let now = Instant::now();
    let watcher = Watcher {
        context: context.clone(),
        bucket,
        changed,
        selection,
        bookmarks,
        cursor,
        initial,
        owes_initial_bookmark: streaming && bookmarks,
        bookmark_at: now + BOOKMARK_INTERVAL,
        end_at: now + Duration::from_secs(seconds.min(86_400)),
        sent_at: None,
        ended: false,
        first_table: true,
        chosen,
        converted: HashMap::new(),
    };
    let body = match refused {
        Some(line) => Body::from(line),
        None => Body::from_stream(futures::stream::unfold(watcher, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((Ok::<Bytes, std::convert::Infallible>(chunk), watcher))
        })),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let kind = if context.accepted.form == Form::Object {
        "application/json"
    } else {
        "application/json;stream=watch"
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

pub(crate) fn expired(old: &TooOld) -> Status {
    Status::resource_expired(format!("too old resource version: {} ({})", old.requested, old.oldest))
}

impl Watcher {
    /// The next lines, or the end of the watch.
    async fn next(&mut self) -> Option<Bytes> {
        let token = self.context.state.tasks.token().clone();
        loop {
            if self.ended {
                return None;
            }
            let mut out = Vec::new();
            if !self.initial.is_empty() {
                let batch = self.initial.drain(..self.initial.len().min(BATCH)).collect::<Vec<_>>();
                self.convert(&batch).await;
                for stored in batch {
                    self.write(&mut out, EventKind::Added, &stored);
                }
                return Some(out.into());
            }
            if self.owes_initial_bookmark {
                self.owes_initial_bookmark = false;
                return Some(self.bookmark(self.cursor, true));
            }
            self.pause().await;
            self.changed.borrow_and_update();
            match self.news().await {
                Ok(Some(lines)) if lines.is_empty() => continue,
                Ok(Some(lines)) => return Some(lines),
                Ok(None) => {}
                Err(old) => {
                    self.ended = true;
                    return Some(line("ERROR", &expired(&old).to_value()));
                }
            }
            tokio::select! {
                changed = self.changed.changed() => {
                    if changed.is_err() {
                        // The bucket was replaced by a snapshot: the client lists again.
                        self.ended = true;
                    }
                }
                () = tokio::time::sleep_until(self.bookmark_at), if self.bookmarks => {
                    self.bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
                    // Every event up to this revision is in the ring, and the ring was just found empty.
                    let revision = self.context.state.cache.revision();
                    match self.bucket.events_after(self.cursor, 1) {
                        Ok(events) if events.is_empty() => {
                            self.cursor = revision.max(self.cursor);
                            return Some(self.bookmark(self.cursor, false));
                        }
                        _ => {}
                    }
                }
                () = tokio::time::sleep_until(self.end_at) => self.ended = true,
                () = token.cancelled() => self.ended = true,
            }
        }
    }

    /// The lines of the next events, maybe none of them for this watcher; `None`: there are no more events.
    async fn news(&mut self) -> Result<Option<Bytes>, TooOld> {
        if self.is_plain() && !self.selection.is_selective() {
            let Some(chunk) = self.bucket.chunk_after(self.cursor, &self.selection.prefix())? else {
                return Ok(None);
            };
            self.cursor = chunk.to;
            self.sent_at = chunk.newest.then(Instant::now);
            return Ok(Some(chunk.lines.clone()));
        }
        let events = self.bucket.events_after(self.cursor, BATCH)?;
        if events.is_empty() {
            return Ok(None);
        }
        let objects: Vec<Arc<Stored>> = events.iter().map(|event| event.object.clone()).collect();
        self.convert(&objects).await;
        let mut out = Vec::new();
        for event in &events {
            self.write_event(&mut out, event);
            self.cursor = event.revision;
        }
        self.sent_at = (events.len() < BATCH && !out.is_empty()).then(Instant::now);
        Ok(Some(out.into()))
    }

    /// Lets events gather when they come faster than so many watchers can be woken for each. What comes
    /// after a quiet time is sent at once.
    async fn pause(&mut self) {
        let Some(sent_at) = self.sent_at.take() else { return };
        let watchers = u32::try_from(self.bucket.watchers()).unwrap_or(u32::MAX);
        let pause = PAUSE_PER_WATCHER.saturating_mul(watchers).min(*PAUSES.end());
        if pause >= *PAUSES.start() && sent_at.elapsed() < pause {
            tokio::time::sleep_until(sent_at + pause).await;
        }
    }

    /// Asks the conversion webhook about the next objects, where there is one: what it makes of them is
    /// kept for [`Self::shown`].
    async fn convert(&mut self, objects: &[Arc<Stored>]) {
        let resource = &self.context.resource;
        if resource.conversion.is_none() {
            return;
        }
        let bytes = objects.iter().map(|stored| stored.bytes.clone()).collect();
        self.converted = match conversion::shown(&self.context.state, resource, bytes).await {
            Ok(all) => objects.iter().zip(all).map(|(stored, bytes)| (place(stored), Ok(bytes))).collect(),
            Err(status) => objects.iter().map(|stored| (place(stored), Err(status.clone()))).collect(),
        };
    }

    /// The stored bytes are what the client wants to see.
    fn is_plain(&self) -> bool {
        self.context.accepted.form == Form::Object && !self.context.resource.converts()
    }

    /// A change may mean that an object enters or leaves the selection.
    fn write_event(&mut self, out: &mut Vec<u8>, event: &Event) {
        let object = &event.object;
        let before =
            event.previous.as_ref().is_some_and(|previous| self.selection.matches_with(object, previous));
        let after = event.kind != EventKind::Deleted && self.selection.matches(object);
        let (before, after) =
            if self.selection.is_late() { self.seen(event, before, after) } else { (before, after) };
        let kind = match (before, after) {
            (false, false) => return,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        self.write(out, kind, object);
    }

    /// The same by the fields of the converted object. The one before is not converted: what was selected is
    /// remembered.
    fn seen(&mut self, event: &Event, before: bool, after: bool) -> (bool, bool) {
        let object = &event.object;
        let shown = match self.converted.get(&place(object)) {
            Some(bytes) => bytes.clone(),
            None => converted(&self.context.resource, &object.bytes),
        };
        // What cannot be converted is told as an error.
        let matches = shown.map_or(true, |shown| self.selection.matches_shown(&shown));
        let was = self.chosen.remove(&object.key);
        if after && matches {
            self.chosen.insert(object.key.clone());
        }
        (before && (was || (event.kind == EventKind::Deleted && matches)), after && matches)
    }

    fn write(&mut self, out: &mut Vec<u8>, kind: EventKind, stored: &Stored) {
        if self.is_plain() {
            return cache::line(out, kind, &stored.bytes);
        }
        match self.shown(stored) {
            Ok(object) => cache::line(out, kind, &object),
            Err(status) => out.extend_from_slice(&line("ERROR", &status.to_value())),
        }
    }

    fn shown(&mut self, stored: &Stored) -> Result<Bytes, Status> {
        let context = self.context.clone();
        let object = match self.converted.remove(&place(stored)) {
            Some(bytes) => bytes?,
            None => converted(&context.resource, &stored.bytes)?,
        };
        Ok(match context.accepted.form {
            Form::Object => object,
            Form::Metadata => {
                let mut out = Vec::new();
                write_metadata(&mut out, &object)?;
                out.into()
            }
            Form::Table => {
                let metadata = json!({ "resourceVersion": stored.modified.to_string() });
                let mut table = table(&context, std::iter::once(parse(&object)), metadata)?;
                // Only the first table of a watch names its columns.
                if !std::mem::take(&mut self.first_table) {
                    table["columnDefinitions"] = Value::Null;
                }
                table.to_string().into()
            }
        })
    }

    fn bookmark(&self, revision: u64, initial: bool) -> Bytes {
        let resource = &self.context.resource;
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.context.accepted.form {
            Form::Object => {
                json!({ "kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata })
            }
            Form::Metadata => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": revision.to_string() },
                "columnDefinitions": null,
                "rows": [{ "cells": null, "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                }}],
            }),
        };
        line("BOOKMARK", &object)
    }
}

/// One version of one object.
fn place(stored: &Stored) -> (u64, Arc<str>) {
    (stored.modified, stored.key.clone())
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({ "type": kind, "object": object }).to_string();
    text.push('\n');
    text.into()
}
