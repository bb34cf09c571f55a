//! One that watches: over one connection after the other, at one server after the other.

use std::io;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::{MAPS, Shared, contents};
use crate::history::{Call, Change, Event, Op, Outcome, Revision, Watch};
use crate::https::Connection;

/// Clients write all the time: a watch that shows nothing for so long is at a server that is cut off.
const SILENCE: Duration = Duration::from_secs(2);
/// A watch moves on by itself, so that every server is watched.
const STAY: Duration = Duration::from_secs(4);

/// A fresh list, written down as a read of every object; its revision.
pub(super) fn list(shared: &Shared, server: usize) -> Option<Revision> {
    let invoked = shared.now();
    let (status, body) = shared.servers[server].call("GET", MAPS, "", super::ANSWER).ok()?;
    if status != 200 {
        let text = String::from_utf8_lossy(&body).into_owned();
        shared.refused(format!("list: {status} {}", text.chars().take(300).collect::<String>()));
        return None;
    }
    let returned = shared.now();
    let list: Json = serde_json::from_slice(&body).ok()?;
    let items = list["items"].as_array()?;
    // The last one is the load's own.
    for key in 0..shared.keys + 2 {
        let found = items
            .iter()
            .find(|item| item["metadata"]["name"].as_str().and_then(|name| shared.key(name)) == Some(key))
            .and_then(contents);
        let outcome = found.map_or(Outcome::Absent, |(revision, value)| Outcome::Found(revision, value));
        shared.note(Op { client: usize::MAX, server, key, call: Call::Read, invoked, returned, outcome });
    }
    list["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// Watches until the last revision.
pub(super) fn watch(shared: &Shared, number: usize, from: Revision) -> Watch {
    let mut watch = Watch { from, to: from, ..Watch::default() };
    let mut server = number % shared.servers.len();
    loop {
        match follow(shared, server, &mut watch) {
            Ok(End::Last) => return watch,
            Ok(End::Moved) | Err(_) => {}
            Ok(End::Expired) => {
                // Gone on with what there is now.
                if let Some(at) = list(shared, server)
                    && at > watch.to
                {
                    watch.gaps.push((watch.to, at));
                    watch.to = at;
                }
            }
        }
        watch.resumed += 1;
        server = (server + 1) % shared.servers.len();
        // Where nobody listens it fails at once.
        std::thread::sleep(Duration::from_millis(20));
    }
}

enum End {
    Last,
    Moved,
    Expired,
}

fn follow(shared: &Shared, server: usize, watch: &mut Watch) -> io::Result<End> {
    let until = Instant::now() + STAY;
    let done = |watch: &Watch| {
        let last = shared.last.load(std::sync::atomic::Ordering::Acquire);
        last != 0 && watch.to >= last
    };
    let mut connection = Connection::open(&shared.servers[server], SILENCE)?;
    let path = format!("{MAPS}?watch=1&allowWatchBookmarks=true&resourceVersion={}", watch.to);
    connection.send("GET", &path, "")?;
    let head = connection.head()?;
    if head.status != 200 {
        let body = connection.body(&head)?;
        let text: Json = serde_json::from_slice(&body).unwrap_or_default();
        shared.refused(format!("watch: {} {}", head.status, text["message"]));
        return Ok(if head.status == 410 { End::Expired } else { End::Moved });
    }
    let mut buffer = Vec::new();
    loop {
        if done(watch) {
            return Ok(End::Last);
        }
        if Instant::now() >= until && shared.last.load(std::sync::atomic::Ordering::Acquire) == 0 {
            return Ok(End::Moved);
        }
        let Some(chunk) = connection.chunk()? else { return Ok(End::Moved) };
        buffer.extend(chunk);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            if let Some(end) = event(shared, &line, watch)? {
                return Ok(end);
            }
        }
    }
}

/// Takes one line in.
fn event(shared: &Shared, line: &[u8], watch: &mut Watch) -> io::Result<Option<End>> {
    let event: Json = serde_json::from_slice(line)?;
    let object = &event["object"];
    let change = match event["type"].as_str() {
        Some("ADDED") => Change::Added,
        Some("MODIFIED") => Change::Modified,
        Some("DELETED") => Change::Deleted,
        Some("BOOKMARK") => {
            let revision = object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
            watch.to = watch.to.max(revision.unwrap_or(0));
            return Ok(None);
        }
        Some("ERROR") => {
            shared.refused(format!("watch's event: {} {}", object["code"], object["message"]));
            return Ok(Some(if object["code"] == 410 { End::Expired } else { End::Moved }));
        }
        _ => panic!("not an event: {event}"),
    };
    let revision = object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
    let Some(revision) = revision else { panic!("an event without a revision: {event}") };
    if let Some(key) = object["metadata"]["name"].as_str().and_then(|name| shared.key(name)) {
        let Some((_, value)) = contents(object) else { panic!("an event without a value: {event}") };
        watch.events.push(Event { change, key, revision, value, seen: shared.now() });
    }
    watch.to = watch.to.max(revision);
    Ok(None)
}
