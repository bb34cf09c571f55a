//! An API server for tests: what every kind has in common (versions, conflicts, finalizers,
//! patches, watches) and nothing that only one kind has.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kedge_api::patch::merge_patch;
use kedge_base::Tasks;
use kedge_client::Informers;
use kube::client::Body;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Config, Context};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Clones share the objects.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By resource (`apis/apps/v1/daemonsets`), namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    revision: u64,
    watchers: Vec<Watcher>,
    /// Answers to requests that are not about stored objects, by method and path.
    canned: BTreeMap<(String, String), Value>,
    /// Resources of which nothing can be created, and why.
    refusing: BTreeMap<String, Value>,
    /// Every write: `method path`.
    log: Vec<String>,
}

struct Watcher {
    resource: String,
    fields: String,
    sender: UnboundedSender<Bytes>,
}

/// The parts of a request's path.
struct Target {
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
}

fn target(path: &str) -> Target {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let prefix = if parts.first() == Some(&"api") { 2 } else { 3 };
    let rest = parts.split_off(prefix.min(parts.len()));
    let (namespace, rest) = match rest.as_slice() {
        ["namespaces", namespace, rest @ ..]
            if !rest.is_empty() && !matches!(rest[0], "status" | "finalize") =>
        {
            ((*namespace).to_owned(), rest.to_vec())
        }
        rest => (String::new(), rest.to_vec()),
    };
    let part = |index: usize| rest.get(index).copied().unwrap_or_default();
    Target {
        resource: format!("{}/{}", parts.join("/"), part(0)),
        namespace,
        name: part(1).to_owned(),
        subresource: part(2).to_owned(),
    }
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message })
}

fn answer(value: &Value) -> Answer {
    let code = match value["kind"].as_str() {
        Some("Status") => value["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(200),
        _ => 200,
    };
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a status code");
    response
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": kind, "object": object })))
}

fn passes(fields: &str, object: &Value) -> bool {
    fields.split(',').filter(|term| !term.is_empty()).all(|term| {
        let (path, wanted) = term.split_once('=').expect("an equality");
        let pointer = format!("/{}", path.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str).unwrap_or_default() == wanted
    })
}

fn now() -> Value {
    json!(crate::time::now())
}

impl State {
    fn tell(&mut self, kind: &str, resource: &str, object: &Value) {
        let line = line(kind, object);
        self.watchers.retain(|watcher| {
            watcher.resource != resource
                || !passes(&watcher.fields, object)
                || watcher.sender.unbounded_send(line.clone()).is_ok()
        });
    }

    fn stamp(&mut self, object: &mut Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
    }

    fn create(&mut self, target: &Target, mut object: Value) -> Value {
        if let Some(refusal) = self.refusing.get(&target.resource) {
            return refusal.clone();
        }
        let meta = &mut object["metadata"];
        if meta["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = meta["generateName"].as_str().unwrap_or_default();
            meta["name"] = json!(format!("{prefix}{:05}", self.revision));
        }
        if !target.namespace.is_empty() {
            meta["namespace"] = json!(target.namespace);
        }
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let key = (target.resource.clone(), target.namespace.clone(), name.clone());
        if self.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", &format!("\"{name}\" already exists"));
        }
        if meta["uid"].is_null() {
            meta["uid"] = json!(format!("uid-{}", self.revision + 1));
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = now();
        }
        meta["generation"] = json!(1);
        self.stamp(&mut object);
        self.objects.insert(key, object.clone());
        self.tell("ADDED", &target.resource, &object);
        object
    }

    fn store(&mut self, target: &Target, old: &Value, mut new: Value) -> Value {
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "name", "namespace"] {
            new["metadata"][field] = old["metadata"][field].clone();
        }
        new["apiVersion"] = old["apiVersion"].clone();
        new["kind"] = old["kind"].clone();
        if let Some(meta) = new["metadata"].as_object_mut() {
            meta.retain(|_, value| !value.is_null());
        }
        if new["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = json!(generation + 1);
        }
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if new == *old {
            return new;
        }
        self.stamp(&mut new);
        let key = (target.resource.clone(), target.namespace.clone(), target.name.clone());
        let finalizers = new["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        if !new["metadata"]["deletionTimestamp"].is_null() && !finalizers {
            self.objects.remove(&key);
            self.tell("DELETED", &target.resource, &new);
        } else {
            self.objects.insert(key, new.clone());
            self.tell("MODIFIED", &target.resource, &new);
        }
        new
    }

    fn delete(&mut self, target: &Target, old: &Value, options: &Value) -> Value {
        let wanted = &options["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != old["metadata"]["uid"] {
            return failure(409, "Conflict", "Precondition failed: UID in precondition");
        }
        let key = (target.resource.clone(), target.namespace.clone(), target.name.clone());
        let mut gone = old.clone();
        if old["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty()) {
            if old["metadata"]["deletionTimestamp"].is_null() {
                gone["metadata"]["deletionTimestamp"] = now();
                self.stamp(&mut gone);
                self.objects.insert(key, gone.clone());
                self.tell("MODIFIED", &target.resource, &gone);
            }
            return gone;
        }
        self.stamp(&mut gone);
        self.objects.remove(&key);
        self.tell("DELETED", &target.resource, &gone);
        gone
    }

    fn patched(old: &Value, kind: &str, body: &[u8]) -> Result<Value, Value> {
        let patch: Value = serde_json::from_slice(body).expect("JSON");
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != old["metadata"]["uid"] {
            return Err(failure(409, "Conflict", "Precondition failed: UID in precondition"));
        }
        let done = match kind {
            "application/strategic-merge-patch+json" => {
                let api = old["apiVersion"].as_str().unwrap_or_default();
                let (group, version) = api.split_once('/').unwrap_or(("", api));
                let kind = old["kind"].as_str().unwrap_or_default();
                let schema = kedge_api::schema::SchemaSet::builtin().by_gvk(group, version, kind);
                kedge_api::patch::strategic_merge_patch(&schema.expect("a known kind"), old, &patch)
            }
            "application/merge-patch+json" => merge_patch(old, &patch),
            "application/json-patch+json" => kedge_api::patch::json_patch(old, body),
            other => panic!("patches of type {other} are not known here"),
        };
        done.map_err(|status| failure(422, "Invalid", &format!("{status:?}")))
    }
}

impl Fake {
    async fn handle(self, request: Request<Body>) -> Result<Answer, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let path = parts.uri.path().to_owned();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=").replace("%2C", ",")))
            .collect();
        let kind = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let target = target(&path);
        let mut state = self.0.lock();
        if parts.method != Method::GET {
            state.log.push(format!("{} {path}", parts.method));
        }
        if let Some(canned) = state.canned.get(&(parts.method.to_string(), path)) {
            return Ok(answer(canned));
        }
        let json = || serde_json::from_slice::<Value>(&body).unwrap_or(Value::Null);
        let key = (target.resource.clone(), target.namespace.clone(), target.name.clone());
        let fields = query.get("fieldSelector").cloned().unwrap_or_default();
        let found = state.objects.get(&key).cloned();
        if target.name.is_empty() {
            let listed: Vec<Value> = state
                .objects
                .iter()
                .filter(|((resource, namespace, _), object)| {
                    *resource == target.resource
                        && (target.namespace.is_empty() || *namespace == target.namespace)
                        && passes(&fields, object)
                })
                .map(|(_, object)| object.clone())
                .collect();
            if parts.method == Method::POST {
                return Ok(answer(&state.create(&target, json())));
            }
            if !query.contains_key("watch") {
                let version = state.revision.to_string();
                return Ok(answer(
                    &json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version }, "items": listed }),
                ));
            }
            let (sender, receiver) = unbounded();
            for object in &listed {
                let _ = sender.unbounded_send(line("ADDED", object));
            }
            let end = json!({
                "kind": "Status", "apiVersion": "v1",
                "metadata": {
                    "resourceVersion": state.revision.to_string(),
                    "annotations": { "k8s.io/initial-events-end": "true" },
                },
            });
            let _ = sender.unbounded_send(line("BOOKMARK", &end));
            state.watchers.push(Watcher { resource: target.resource, fields, sender });
            let frames = receiver.map(|bytes| Ok(http_body::Frame::data(bytes)));
            return Ok(Response::new(StreamBody::new(frames).boxed_unsync()));
        }
        let Some(old) = found else {
            return Ok(answer(&failure(404, "NotFound", &format!("\"{}\" not found", target.name))));
        };
        let mut edit = |new: Result<Value, Value>| {
            let new = match new {
                Ok(new) => new,
                Err(failure) => return failure,
            };
            let version = &new["metadata"]["resourceVersion"];
            if version.as_str().is_some_and(|v| !v.is_empty())
                && *version != old["metadata"]["resourceVersion"]
            {
                return failure(409, "Conflict", "the object has been modified");
            }
            let new = if target.subresource.is_empty() {
                let mut new = new;
                new["status"] = old["status"].clone();
                new
            } else {
                let mut kept = old.clone();
                if target.subresource == "scale" {
                    kept["spec"]["replicas"] = new["spec"]["replicas"].clone();
                } else {
                    kept["status"] = new["status"].clone();
                }
                kept
            };
            let stored = state.store(&target, &old, new);
            if target.subresource == "scale" {
                return json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": stored["metadata"],
                    "spec": { "replicas": stored["spec"]["replicas"] } });
            }
            stored
        };
        let done = match parts.method {
            Method::GET => old,
            Method::PUT => edit(Ok(json())),
            Method::PATCH => edit(State::patched(&old, kind, &body)),
            Method::DELETE => state.delete(&target, &old, &json()),
            other => panic!("{other} is not known here"),
        };
        Ok(answer(&done))
    }
}

/// The API server and what a controller needs.
pub(crate) struct World {
    pub(crate) fake: Fake,
    pub(crate) ctx: Context,
}

impl World {
    pub(crate) fn new() -> Self {
        let fake = Fake::default();
        let service = fake.clone();
        let service = tower::service_fn(move |request| service.clone().handle(request));
        let client = kube::Client::new(service, "default");
        let tasks = Tasks::new("test");
        let informers = Informers::new(client.clone(), &tasks);
        let ctx = Context::new(
            Config::new(tokio::sync::watch::Sender::new("CA".to_owned()).subscribe(), Vec::new()),
            client,
            informers,
            tasks,
        );
        Self { fake, ctx }
    }

    fn resource<K: kube::Resource<DynamicType = ()>>() -> String {
        K::url_path(&(), None).trim_matches('/').to_owned()
    }

    /// Create an object as a user does. `value` needs no apiVersion and kind.
    pub(crate) fn create<K>(&self, mut value: Value) -> K
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        value["apiVersion"] = json!(K::api_version(&()));
        value["kind"] = json!(K::kind(&()));
        let target = Target {
            resource: Self::resource::<K>(),
            namespace: value["metadata"]["namespace"].as_str().unwrap_or_default().to_owned(),
            name: String::new(),
            subresource: String::new(),
        };
        let made = self.fake.0.lock().create(&target, value);
        serde_json::from_value(made).expect("an object of the kind")
    }

    pub(crate) fn get<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        let key = (Self::resource::<K>(), namespace.to_owned(), name.to_owned());
        let found = self.fake.0.lock().objects.get(&key).cloned();
        found.map(|value| serde_json::from_value(value).expect("an object of the kind"))
    }

    pub(crate) fn list<K>(&self) -> Vec<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        let resource = Self::resource::<K>();
        let state = self.fake.0.lock();
        let all = state.objects.iter().filter(|((r, _, _), _)| *r == resource);
        all.map(|(_, value)| serde_json::from_value(value.clone()).expect("an object of the kind")).collect()
    }

    /// Change an object in place, all parts of it.
    pub(crate) fn edit<K>(&self, object: &K, change: impl FnOnce(&mut Value))
    where
        K: kube::Resource<DynamicType = ()> + Serialize,
    {
        let target = Target {
            resource: Self::resource::<K>(),
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
            subresource: String::new(),
        };
        let key = (target.resource.clone(), target.namespace.clone(), target.name.clone());
        let mut state = self.fake.0.lock();
        let old = state.objects.get(&key).cloned().expect("the object exists");
        let mut new = old.clone();
        change(&mut new);
        state.store(&target, &old, new);
    }

    /// Delete an object as a user does.
    pub(crate) fn delete<K>(&self, object: &K)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let target = Target {
            resource: Self::resource::<K>(),
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
            subresource: String::new(),
        };
        let key = (target.resource.clone(), target.namespace.clone(), target.name.clone());
        let mut state = self.fake.0.lock();
        if let Some(old) = state.objects.get(&key).cloned() {
            state.delete(&target, &old, &Value::Null);
        }
    }

    /// Answer requests with this method and path so.
    pub(crate) fn can(&self, method: &str, path: &str, value: Value) {
        self.fake.0.lock().canned.insert((method.to_owned(), path.to_owned()), value);
    }

    /// Refuse to create objects of a kind from now on; `None`: allow it again.
    pub(crate) fn refuse<K: kube::Resource<DynamicType = ()>>(&self, failure: Option<(u16, &str, &str)>) {
        let mut state = self.fake.0.lock();
        let resource = Self::resource::<K>();
        match failure {
            Some((code, reason, message)) => {
                state.refusing.insert(resource, self::failure(code, reason, message));
            }
            None => {
                state.refusing.remove(&resource);
            }
        }
    }

    /// Every write so far, `METHOD /path`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.fake.0.lock().log.clone()
    }

    /// The reasons of all events.
    pub(crate) fn events(&self) -> Vec<String> {
        let events = self.list::<k8s_openapi::api::core::v1::Event>();
        events.into_iter().filter_map(|event| event.reason).collect()
    }

    /// Wait until the condition holds. Time is the runtime's (paused) clock: a busy machine does
    /// not make this fail.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..5_000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what} did not come; writes so far: {:#?}", self.log());
    }

    /// Let everything that is under way come to an end.
    pub(crate) async fn settle(&self) {
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Run a test on a clock that jumps: nothing waits for real.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(test);
}
