//! The API server's side of what the network asks for: streaming lists and updates for informers, one
//! ConfigMap, and patches of nodes' annotations.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use http::{Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use kedge_client::kube;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[derive(Clone)]
pub(crate) struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    resources: HashMap<String, Resource>,
    version: u64,
    patches: Vec<(String, Value)>,
}

#[derive(Default)]
struct Resource {
    objects: Vec<Value>,
    watchers: Vec<UnboundedSender<Bytes>>,
}

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })))
}

fn name(object: &Value) -> (Option<&str>, Option<&str>) {
    (object["metadata"]["namespace"].as_str(), object["metadata"]["name"].as_str())
}

fn whole(status: StatusCode, value: &Value) -> Response<Body> {
    let frame = Frame::data(Bytes::from(value.to_string()));
    let mut response = Response::new(StreamBody::new(stream::iter([Ok(frame)]).boxed()));
    *response.status_mut() = status;
    response
}

impl Api {
    pub(crate) fn new<const N: usize>(resources: [(&str, Vec<Value>); N]) -> Self {
        let api = Self(Arc::default());
        for (resource, objects) in resources {
            api.0.lock().unwrap().resources.insert(resource.to_owned(), Resource::default());
            objects.iter().for_each(|object| api.set(resource, object));
        }
        api
    }

    /// Make or change an object.
    pub(crate) fn set(&self, resource: &str, object: &Value) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let resource = state.resources.get_mut(resource).unwrap();
        let kind = match resource.objects.iter_mut().find(|old| name(old) == name(&object)) {
            Some(old) => {
                *old = object.clone();
                "MODIFIED"
            }
            None => {
                resource.objects.push(object.clone());
                "ADDED"
            }
        };
        resource.watchers.retain(|watcher| watcher.send(line(kind, &object)).is_ok());
    }

    pub(crate) fn get(&self, resource: &str, wanted: &str) -> Option<Value> {
        let state = self.0.lock().unwrap();
        state.resources.get(resource)?.objects.iter().find(|object| name(object).1 == Some(wanted)).cloned()
    }

    pub(crate) fn delete(&self, resource: &str, wanted: &str) {
        let mut state = self.0.lock().unwrap();
        let resource = state.resources.get_mut(resource).unwrap();
        let at = resource.objects.iter().position(|object| name(object).1 == Some(wanted)).unwrap();
        let object = resource.objects.remove(at);
        resource.watchers.retain(|watcher| watcher.send(line("DELETED", &object)).is_ok());
    }

    /// It is gone, and no watch says so: what a node sees that was cut off meanwhile.
    pub(crate) fn forget(&self, resource: &str, wanted: &str) {
        let mut state = self.0.lock().unwrap();
        state.resources.get_mut(resource).unwrap().objects.retain(|object| name(object).1 != Some(wanted));
    }

    /// The patches that were sent, with the names of what they were for.
    pub(crate) fn patches(&self) -> Vec<(String, Value)> {
        self.0.lock().unwrap().patches.clone()
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let api = api.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                Ok::<_, Infallible>(api.answer(&head, &body))
            }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, head: &http::request::Parts, body: &[u8]) -> Response<Body> {
        let parts: Vec<&str> = head.uri.path().split('/').collect();
        if let (&Method::PATCH, [.., resource, object, "status"]) = (&head.method, &*parts) {
            return self.patch_status(resource, object, body);
        }
        if head.method == Method::PATCH {
            let [resource, object] = parts[parts.len() - 2..] else { panic!("{}", head.uri) };
            return self.patch(resource, object, body);
        }
        if head.uri.query().is_some_and(|query| query.contains("watch=true")) {
            let lines = stream::unfold(self.watch(parts[parts.len() - 1]), |mut lines| async move {
                lines.recv().await.map(|line| (Ok(Frame::data(line)), lines))
            });
            return Response::new(StreamBody::new(lines.boxed()));
        }
        let [resource, object] = parts[parts.len() - 2..] else { panic!("{}", head.uri) };
        match self.get(resource, object) {
            Some(object) => whole(StatusCode::OK, &object),
            None => whole(
                StatusCode::NOT_FOUND,
                &json!({
                    "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound",
                    "message": format!("{resource} {object:?} not found"), "code": 404,
                }),
            ),
        }
    }

    /// A strategic merge patch of one condition.
    fn patch_status(&self, resource: &str, wanted: &str, body: &[u8]) -> Response<Body> {
        let patch: Value = serde_json::from_slice(body).unwrap();
        let mut object = self.get(resource, wanted).unwrap();
        object["status"]["conditions"] = patch["status"]["conditions"].clone();
        self.set(resource, &object);
        whole(StatusCode::OK, &object)
    }

    /// A merge patch of annotations.
    fn patch(&self, resource: &str, wanted: &str, body: &[u8]) -> Response<Body> {
        let patch: Value = serde_json::from_slice(body).unwrap();
        let mut object = self.get(resource, wanted).unwrap();
        for (name, value) in patch["metadata"]["annotations"].as_object().unwrap() {
            object["metadata"]["annotations"][name] = value.clone();
        }
        self.0.lock().unwrap().patches.push((wanted.to_owned(), patch));
        self.set(resource, &object);
        whole(StatusCode::OK, &object)
    }

    fn watch(&self, resource: &str) -> tokio::sync::mpsc::UnboundedReceiver<Bytes> {
        let (sender, receiver) = unbounded_channel();
        let mut state = self.0.lock().unwrap();
        let version = state.version.max(1).to_string();
        let (api_version, kind) = match resource {
            "services" => ("v1", "Service"),
            "nodes" => ("v1", "Node"),
            "namespaces" => ("v1", "Namespace"),
            "pods" => ("v1", "Pod"),
            "networkpolicies" => ("networking.k8s.io/v1", "NetworkPolicy"),
            _ => ("discovery.k8s.io/v1", "EndpointSlice"),
        };
        let resource =
            state.resources.get_mut(resource).unwrap_or_else(|| panic!("unexpected watch of {resource}"));
        for object in &resource.objects {
            sender.send(line("ADDED", object)).unwrap();
        }
        let bookmark = json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": { "resourceVersion": version, "annotations": { "k8s.io/initial-events-end": "true" } },
        });
        sender.send(line("BOOKMARK", &bookmark)).unwrap();
        resource.watchers.push(sender);
        receiver
    }
}
