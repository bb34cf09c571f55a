//! Events about objects, as client-go's recorder makes them: equal events are counted up in one
//! Event object instead of filling the store.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_base::{Chain, Tasks};
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How many events may wait for the API server before new ones are dropped.
const QUEUE: usize = 1000;
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
pub struct Recorder(mpsc::Sender<Entry>);

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

struct Known {
    name: String,
    count: i32,
    last: Instant,
}

impl Recorder {
    /// `component` and `host` become the event's source.
    pub fn new(client: kube::Client, tasks: &Tasks, component: &str, host: &str) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Entry>(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        tasks.spawn_until_stopped("events", async move {
            let mut known: HashMap<Identity, Known> = HashMap::new();
            while let Some(entry) = receiver.recv().await {
                let reason = entry.reason.clone();
                if let Err(error) = write(&client, &source, &mut known, entry).await {
                    tracing::debug!(reason, error = %Chain(&error), "event not written");
                }
            }
        });
        Self(sender)
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
        if self.0.try_send(entry).is_err() {
            tracing::debug!(reason, "event dropped, too many wait");
        }
    }
}

async fn write(
    client: &kube::Client,
    source: &EventSource,
    known: &mut HashMap<Identity, Known>,
    entry: Entry,
) -> Result<(), kube::Error> {
    let namespace = entry.regarding.namespace.clone().filter(|n| !n.is_empty()).unwrap_or("default".into());
    let api = kube::Api::<Event>::namespaced(client.clone(), &namespace);
    let identity = Identity {
        uid: entry.regarding.uid.clone().unwrap_or_default(),
        name: entry.regarding.name.clone().unwrap_or_default(),
        field_path: entry.regarding.field_path.clone().unwrap_or_default(),
        kind: entry.kind,
        reason: entry.reason.clone(),
        message: entry.message.clone(),
    };
    let now = Instant::now();
    known.retain(|_, seen| now.duration_since(seen.last) < WINDOW);
    if let Some(seen) = known.get_mut(&identity) {
        let patch = serde_json::json!({ "count": seen.count + 1, "lastTimestamp": Time(entry.at) });
        match api.patch(&seen.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => {
                seen.count += 1;
                seen.last = now;
                return Ok(());
            }
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
        last_timestamp: Some(Time(entry.at)),
        count: Some(1),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        source: Some(source.clone()),
        ..Default::default()
    };
    let made = api.create(&PostParams::default(), &event).await?;
    if known.len() >= REMEMBERED
        && let Some(oldest) = known.iter().min_by_key(|(_, seen)| seen.last).map(|(id, _)| id.clone())
    {
        known.remove(&oldest);
    }
    known.insert(identity, Known { name: made.metadata.name.unwrap_or_default(), count: 1, last: now });
    Ok(())
}

/// A reference to an object, as events carry it.
pub fn reference<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}
