//! One watch of one component, for what no informer is worth: few objects, or a kind known at run time
//! only. It goes on by itself wherever it breaks.

use std::marker::PhantomData;
use std::pin::Pin;

use kube::core::params::WatchParams;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::follow::{Sink, follow, version};

/// What a watch tells. `Begin`, any number of `Listed` and `Done` replace everything that was told before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<K> {
    Begin,
    /// An object that exists already.
    Listed(K),
    Done,
    /// A new or changed object.
    Changed(K),
    /// The last state of an object that is gone.
    Deleted(K),
}

/// The objects of one collection as they come, change and go.
pub struct Watch<K> {
    following: Pin<Box<dyn Future<Output = ()> + Send>>,
    events: mpsc::UnboundedReceiver<Event<String>>,
    path: String,
    kind: PhantomData<fn() -> K>,
}

impl<K: DeserializeOwned> Watch<K> {
    /// Watches the collection at `path` (kube's `Resource::url_path`), of it what the selectors let through;
    /// either may be empty.
    pub fn new(client: kube::Client, path: String, fields: &str, labels: &str) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let selector = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let params = WatchParams {
            field_selector: selector(fields),
            label_selector: selector(labels),
            ..WatchParams::default()
        };
        let following = follow(client, path.clone(), params, path.clone(), Box::new(Queue(sender)));
        Self { following: Box::pin(following), events, path, kind: PhantomData }
    }

    /// The next event. It may be dropped and called again: none is lost.
    pub async fn next(&mut self) -> Event<K> {
        loop {
            match next(&mut self.following, &mut self.events).await.decode() {
                Ok(event) => return event,
                Err(error) => {
                    tracing::warn!(path = self.path, %error, "object not understood, it is left out");
                }
            }
        }
    }

    /// The next object that is there, new or changed.
    pub async fn next_object(&mut self) -> K {
        loop {
            if let Event::Listed(object) | Event::Changed(object) = self.next().await {
                return object;
            }
        }
    }
}

/// The same for every kind.
async fn next(
    following: &mut Pin<Box<dyn Future<Output = ()> + Send>>,
    events: &mut mpsc::UnboundedReceiver<Event<String>>,
) -> Event<String> {
    tokio::select! {
        biased;
        Some(event) = events.recv() => event,
        // It never ends.
        () = following => std::future::pending().await,
    }
}

impl Event<String> {
    fn decode<K: DeserializeOwned>(self) -> serde_json::Result<Event<K>> {
        Ok(match self {
            Self::Begin => Event::Begin,
            Self::Listed(text) => Event::Listed(serde_json::from_str(&text)?),
            Self::Done => Event::Done,
            Self::Changed(text) => Event::Changed(serde_json::from_str(&text)?),
            Self::Deleted(text) => Event::Deleted(serde_json::from_str(&text)?),
        })
    }
}

/// Who does not listen any more has dropped the watch with it.
struct Queue(mpsc::UnboundedSender<Event<String>>);

impl Sink for Queue {
    fn begin(&mut self) {
        let _ = self.0.send(Event::Begin);
    }

    fn listed(&mut self, object: &str) -> serde_json::Result<()> {
        let _ = self.0.send(Event::Listed(object.to_owned()));
        Ok(())
    }

    fn done(&mut self) {
        let _ = self.0.send(Event::Done);
    }

    fn apply(&mut self, object: &str) -> serde_json::Result<Option<String>> {
        let version = version(object)?;
        let _ = self.0.send(Event::Changed(object.to_owned()));
        Ok(version)
    }

    fn delete(&mut self, object: &str) -> serde_json::Result<Option<String>> {
        let version = version(object)?;
        let _ = self.0.send(Event::Deleted(object.to_owned()));
        Ok(version)
    }
}
