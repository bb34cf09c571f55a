//! Events about objects, as client-go's recorder makes them: equal events are counted up in one
//! Event object instead of filling the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_base::{Chain, Tasks};
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How many events may wait for the API server before new ones are dropped.
const QUEUE: usize = 1000;
/// How many are written at the same time: the store may let each of them wait for a while, to write them together.
const AT_ONCE: usize = 64;
/// How many distinct events are remembered for counting (client-go keeps 4096).
const REMEMBERED: usize = 1024;
/// An equal event after this time starts a new object (client-go's aggregation interval).
const WINDOW: Duration = Duration::from_secs(600);

/// The two types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information only.
    Normal,
    /// Something may need attention.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Writes events for one component. Clones share its queue.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
    /// How many were dropped since that was last told.
    dropped: Arc<AtomicU64>,
}

struct Entry {
    regarding: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// What makes two events equal.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Identity {
    uid: String,
    name: String,
    field_path: String,
    kind: EventType,
    reason: String,
    message: String,
}

impl Identity {
    fn of(entry: &Entry) -> Self {
        Self {
            uid: entry.regarding.uid.clone().unwrap_or_default(),
            name: entry.regarding.name.clone().unwrap_or_default(),
            field_path: entry.regarding.field_path.clone().unwrap_or_default(),
            kind: entry.kind,
            reason: entry.reason.clone(),
            message: entry.message.clone(),
        }
    }
}

/// Equal events that waited together: one write.
struct Group {
    first: Entry,
    last: Timestamp,
    count: i32,
}

#[derive(Clone)]
struct Known {
    name: String,
    count: i32,
    last: Instant,
}

impl Recorder {
    /// `component` and `host` become the event's source.
    pub fn new(client: kube::Client, tasks: &Tasks, component: &str, host: &str) -> Self {
        let (queue, mut receiver) = mpsc::channel::<Entry>(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut writer = Writer {
            client,
            source: EventSource {
                component: Some(component.to_owned()),
                host: (!host.is_empty()).then(|| host.to_owned()),
            },
            known: HashMap::new(),
        };
        let lost = dropped.clone();
        tasks.spawn_until_stopped("events", async move {
            let mut entries = Vec::new();
            while receiver.recv_many(&mut entries, QUEUE).await > 0 {
                writer.write(entries.drain(..)).await;
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let component = writer.source.component.as_deref();
                    tracing::warn!(component, lost, "events dropped, the API server did not keep up");
                }
            }
        });
        Self { queue, dropped }
    }

    /// Record that something happened to `regarding`. Never waits: when the API server does not
    /// keep up, the event is dropped.
    pub fn event(
        &self,
        regarding: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let message: String = message.into();
        // The API server refuses longer messages (events' validation, 1024 bytes).
        let message = message
            .chars()
            .scan(0, |n, c| {
                *n += c.len_utf8();
                (*n <= 1024).then_some(c)
            })
            .collect();
        let entry = Entry { regarding, kind, reason: reason.to_owned(), message, at: Timestamp::now() };
        if self.queue.try_send(entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What turns entries into Event objects.
struct Writer {
    client: kube::Client,
    source: EventSource,
    known: HashMap<Identity, Known>,
}

impl Writer {
    /// Writes all of them: equal ones as one, the others side by side. What cannot be written is dropped.
    async fn write(&mut self, entries: impl Iterator<Item = Entry>) {
        let now = Instant::now();
        self.known.retain(|_, seen| now.duration_since(seen.last) < WINDOW);
        let this = &*self;
        let written: Vec<_> = futures::stream::iter(grouped(entries))
            .map(|(identity, group)| async move {
                let known = this.known.get(&identity).cloned();
                match this.write_group(known, group).await {
                    Ok((name, count)) => Some((identity, Known { name, count, last: now })),
                    Err(error) => {
                        tracing::debug!(reason = identity.reason, error = %Chain(&error), "event not written");
                        None
                    }
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        self.known.extend(written.into_iter().flatten());
        if self.known.len() > REMEMBERED {
            let mut times: Vec<Instant> = self.known.values().map(|seen| seen.last).collect();
            let (_, oldest, _) = times.select_nth_unstable(self.known.len() - REMEMBERED);
            let oldest = *oldest;
            self.known.retain(|_, seen| seen.last >= oldest);
        }
    }

    /// Returns the object's name and how often the event is counted in it.
    async fn write_group(&self, known: Option<Known>, group: Group) -> Result<(String, i32), kube::Error> {
        let Group { first: entry, last, count } = group;
        let namespace =
            entry.regarding.namespace.clone().filter(|n| !n.is_empty()).unwrap_or("default".into());
        let api = kube::Api::<Event>::namespaced(self.client.clone(), &namespace);
        if let Some(seen) = known {
            let count = seen.count + count;
            let patch = serde_json::json!({ "count": count, "lastTimestamp": Time(last) });
            match api.patch(&seen.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => return Ok((seen.name, count)),
                // It expired or was deleted: start again.
                Err(error) if crate::is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let subject = entry.regarding.name.clone().unwrap_or_default();
        let event = Event {
            metadata: kube::api::ObjectMeta {
                name: Some(format!("{subject}.{:x}", entry.at.as_nanosecond())),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: entry.regarding,
            type_: Some(entry.kind.as_str().to_owned()),
            reason: Some(entry.reason),
            message: Some(entry.message),
            first_timestamp: Some(Time(entry.at)),
            last_timestamp: Some(Time(last)),
            count: Some(count),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            source: Some(self.source.clone()),
            ..Default::default()
        };
        let made = api.create(&PostParams::default(), &event).await?;
        Ok((made.metadata.name.unwrap_or_default(), count))
    }
}

/// Equal events together, in the order in which each came first.
fn grouped(entries: impl Iterator<Item = Entry>) -> Vec<(Identity, Group)> {
    let mut groups: Vec<(Identity, Group)> = Vec::new();
    let mut places: HashMap<Identity, usize> = HashMap::new();
    for entry in entries {
        let identity = Identity::of(&entry);
        if let Some(place) = places.get(&identity) {
            let group = &mut groups[*place].1;
            group.last = entry.at;
            group.count += 1;
        } else {
            places.insert(identity.clone(), groups.len());
            groups.push((identity, Group { last: entry.at, first: entry, count: 1 }));
        }
    }
    groups
}

/// A reference to an object, as events carry it.
pub fn reference<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    type Stored = Arc<Mutex<HashMap<String, Event>>>;

    /// An API server that keeps events, and makes each write wait as a store does that collects them.
    fn server() -> (kube::Client, Stored) {
        let stored = Stored::default();
        let kept = stored.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let kept = kept.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let named = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let patched = request.method() == http::Method::PATCH;
                let body = request.into_body().collect_bytes().await.expect("a body");
                let mut kept = kept.lock();
                let event = if patched {
                    let patch: Event = serde_json::from_slice(&body).expect("a part of an event");
                    let event = kept.get_mut(&named).expect("an event that was made before");
                    (event.count, event.last_timestamp) = (patch.count, patch.last_timestamp);
                    event.clone()
                } else {
                    let event: Event = serde_json::from_slice(&body).expect("an event");
                    let name = event.metadata.name.clone().unwrap_or_default();
                    assert!(kept.insert(name, event.clone()).is_none(), "{event:?}");
                    event
                };
                let body = kube::client::Body::from(serde_json::to_vec(&event).expect("an event"));
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            }
        });
        (kube::Client::new(service, "default"), stored)
    }

    fn pod(name: &str) -> ObjectReference {
        ObjectReference { name: Some(name.into()), uid: Some(name.into()), ..ObjectReference::default() }
    }

    fn counts(stored: &Stored) -> Vec<i32> {
        stored.lock().values().filter_map(|event| event.count).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_written_at_once_and_equal_ones_counted() {
        let (client, stored) = server();
        let tasks = Tasks::new("test");
        let recorder = Recorder::new(client, &tasks, "kubelet", "node");
        let begun = Instant::now();
        for number in 0..500 {
            recorder.event(pod(&format!("p{number}")), EventType::Normal, "Started", "it started");
        }
        while stored.lock().len() < 500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

        // Of one pod again and again: each is counted, in one object.
        for _ in 0..20 {
            for _ in 0..10 {
                recorder.event(pod("p7"), EventType::Normal, "Started", "it started");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let counts = counts(&stored);
        assert_eq!(counts.len(), 500);
        assert_eq!(counts.iter().max(), Some(&201));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_is_counted() {
        let (client, stored) = server();
        let tasks = Tasks::new("test");
        let recorder = Recorder::new(client, &tasks, "kubelet", "node");
        // Nothing runs in between: the writer takes none of them.
        for number in 0..QUEUE + 5 {
            recorder.event(pod(&format!("p{number}")), EventType::Normal, "Started", "it started");
        }
        assert_eq!(recorder.dropped.load(Ordering::Relaxed), 5);
        while stored.lock().len() < QUEUE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(recorder.dropped.load(Ordering::Relaxed), 0, "it was told");
    }
}
