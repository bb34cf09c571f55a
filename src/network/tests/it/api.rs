//! The API server's side of watches: streaming lists and updates, enough for informers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use kedge_client::kube;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[derive(Clone)]
pub(crate) struct Api(Arc<Mutex<HashMap<String, Resource>>>);

struct Resource {
    objects: Vec<Value>,
    watchers: Vec<UnboundedSender<Bytes>>,
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })))
}

impl Api {
    pub(crate) fn new<const N: usize>(resources: [(&str, Vec<Value>); N]) -> Self {
        let resource = |objects| Resource { objects, watchers: Vec::new() };
        let resources = resources.into_iter().map(|(name, objects)| (name.to_owned(), resource(objects)));
        Self(Arc::new(Mutex::new(resources.collect())))
    }

    /// Change the resource's only object.
    pub(crate) fn update(&self, resource: &str, object: &Value) {
        let mut resources = self.0.lock().unwrap();
        let resource = resources.get_mut(resource).unwrap();
        resource.objects = vec![object.clone()];
        resource.watchers.retain(|watcher| watcher.send(line("MODIFIED", object)).is_ok());
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let lines = api.watch(request.uri().path());
            async move {
                let frames = futures::stream::unfold(lines, |mut lines| async move {
                    lines.recv().await.map(|line| (Ok::<_, Infallible>(Frame::data(line)), lines))
                });
                Ok::<_, Infallible>(http::Response::new(StreamBody::new(frames)))
            }
        });
        kube::Client::new(service, "default")
    }

    fn watch(&self, path: &str) -> tokio::sync::mpsc::UnboundedReceiver<Bytes> {
        let (sender, receiver) = unbounded_channel();
        let mut resources = self.0.lock().unwrap();
        let name = path.rsplit('/').next().unwrap_or_default();
        let resource = resources.get_mut(name).unwrap_or_else(|| panic!("unexpected request for {path}"));
        for object in &resource.objects {
            sender.send(line("ADDED", object)).unwrap();
        }
        let (api_version, kind) = match name {
            "services" => ("v1", "Service"),
            "namespaces" => ("v1", "Namespace"),
            _ => ("discovery.k8s.io/v1", "EndpointSlice"),
        };
        let bookmark = json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": { "resourceVersion": "9", "annotations": { "k8s.io/initial-events-end": "true" } },
        });
        sender.send(line("BOOKMARK", &bookmark)).unwrap();
        resource.watchers.push(sender);
        receiver
    }
}
