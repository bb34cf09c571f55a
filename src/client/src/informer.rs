//! Shared informers: one watch and one cache per kind, however many components of one [`Informers`]
//! look. The node has one, and who leads the store another one, which ends with the lead.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use kedge_base::Tasks;
use kube::core::params::WatchParams;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::ObjectKey;
use crate::follow::{Sink, follow};

/// What an informer can watch: any kind whose group, version and scope are known at build time.
pub trait Watched:
    kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

/// Makes informers on first use and shares them afterwards. Clones share.
#[derive(Clone)]
pub struct Informers {
    client: kube::Client,
    factory: Arc<Factory>,
}

struct Factory {
    client: kube::Client,
    tasks: Tasks,
    made: Mutex<HashMap<(TypeId, String), Box<dyn Any + Send + Sync>>>,
}

impl Informers {
    /// The informers run as tasks of `tasks` and end with it.
    pub fn new(client: kube::Client, tasks: &Tasks) -> Self {
        let tasks = tasks.child("informers");
        let factory = Arc::new(Factory { client: client.clone(), tasks, made: Mutex::default() });
        Self { client, factory }
    }

    /// The same caches for a component that makes its own requests with this client.
    pub fn with_client(&self, client: kube::Client) -> Self {
        Self { client, factory: self.factory.clone() }
    }

    /// The client for requests of one's own.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// All objects of the kind, in all namespaces.
    pub fn informer<K: Watched>(&self) -> Informer<K> {
        self.informer_with_fields("")
    }

    /// The objects that a field selector lets through, e.g. `spec.nodeName=node1`.
    pub fn informer_with_fields<K: Watched>(&self, field_selector: &str) -> Informer<K> {
        let mut made = self.factory.made.lock();
        let key = (TypeId::of::<K>(), field_selector.to_owned());
        if let Some(informer) = made.get(&key).and_then(|any| any.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::new();
        informer.start(self.factory.client.clone(), field_selector, &self.factory.tasks);
        made.insert(key, Box::new(informer.clone()));
        informer
    }
}

/// A change of one object. At least one side is there.
pub struct Change<K> {
    /// What the cache held before; `None` for a new object.
    pub old: Option<Arc<K>>,
    /// What it holds now; `None` for a deleted object.
    pub new: Option<Arc<K>>,
}

impl<K: kube::Resource> Change<K> {
    /// The newest version that is known.
    ///
    /// # Panics
    /// Never: a change has at least one side.
    pub fn object(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has a side")
    }

    /// The object's key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(&**self.object())
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// A cache of one kind that follows the API server. Clones share it.
pub struct Informer<K>(Arc<Inner<K>>);

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<K> {
    objects: RwLock<BTreeMap<ObjectKey, Arc<K>>>,
    /// Held while handlers run and while one is added, so that each sees every change once, in order.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K: Watched> Informer<K> {
    fn new() -> Self {
        Self(Arc::new(Inner {
            objects: RwLock::default(),
            handlers: Mutex::default(),
            synced: watch::Sender::new(false),
        }))
    }

    fn start(&self, client: kube::Client, field_selector: &str, tasks: &Tasks) {
        let feed = Box::new(Feed { informer: self.clone(), listed: BTreeMap::new() });
        let path = K::url_path(&(), None);
        let kind = K::kind(&()).into_owned();
        let name = format!("informer {}", K::plural(&()));
        let fields = Some(field_selector.to_owned()).filter(|fields| !fields.is_empty());
        let params = WatchParams { field_selector: fields, ..WatchParams::default() };
        let follow = follow(client, path, params, kind, feed);
        tasks.spawn_until_stopped(&name, follow);
    }

    fn set(&self, mut object: K) {
        // Nobody who uses a cache needs to know which manager owns which field.
        object.meta_mut().managed_fields = None;
        let (key, new) = (ObjectKey::of(&object), Arc::new(object));
        let handlers = self.0.handlers.lock();
        let old = self.0.objects.write().insert(key, new.clone());
        tell(&handlers, &Change { old, new: Some(new) });
    }

    fn remove(&self, key: &ObjectKey, last: Option<K>) {
        let handlers = self.0.handlers.lock();
        let old = self.0.objects.write().remove(key);
        if let Some(old) = last.map(Arc::new).or(old) {
            tell(&handlers, &Change { old: Some(old), new: None });
        }
    }

    /// The result of a list replaces the cache; handlers hear of the differences only.
    fn replace(&self, mut listed: BTreeMap<ObjectKey, Arc<K>>) {
        for object in listed.values_mut() {
            if let Some(object) = Arc::get_mut(object) {
                object.meta_mut().managed_fields = None;
            }
        }
        let handlers = self.0.handlers.lock();
        let before = std::mem::replace(&mut *self.0.objects.write(), listed.clone());
        for (key, old) in &before {
            if !listed.contains_key(key) {
                tell(&handlers, &Change { old: Some(old.clone()), new: None });
            }
        }
        for (key, new) in listed {
            let old = before.get(&key).cloned();
            let version = |object: &Arc<K>| object.meta().resource_version.clone();
            if old.as_ref().is_none_or(|old| version(old) != version(&new)) {
                tell(&handlers, &Change { old, new: Some(new) });
            }
        }
        drop(handlers);
        self.0.synced.send_replace(true);
    }

    /// The object, when it exists.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    /// The object, when it exists.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.0.objects.read().get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.objects.read().values().cloned().collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.0.objects.read();
        objects
            .range(ObjectKey::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Returns when the first list is complete.
    pub async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives in `self`, so the channel cannot close.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Whether the first list is complete.
    pub fn has_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Called in order, after the cache was updated; what exists already is told as added first.
    /// The handler must not block and must not call `on_change` of the same informer.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.0.handlers.lock();
        for object in self.list() {
            handler(&Change { old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }
}

/// What the watch tells, decoded.
struct Feed<K> {
    informer: Informer<K>,
    listed: BTreeMap<ObjectKey, Arc<K>>,
}

impl<K: Watched> Sink for Feed<K> {
    fn begin(&mut self) {
        self.listed.clear();
    }

    fn listed(&mut self, object: &str) -> serde_json::Result<()> {
        let object: K = serde_json::from_str(object)?;
        self.listed.insert(ObjectKey::of(&object), Arc::new(object));
        Ok(())
    }

    fn done(&mut self) {
        self.informer.replace(std::mem::take(&mut self.listed));
    }

    fn apply(&mut self, object: &str) -> serde_json::Result<Option<String>> {
        let object: K = serde_json::from_str(object)?;
        let version = object.meta().resource_version.clone();
        self.informer.set(object);
        Ok(version)
    }

    fn delete(&mut self, object: &str) -> serde_json::Result<Option<String>> {
        let object: K = serde_json::from_str(object)?;
        let version = object.meta().resource_version.clone();
        self.informer.remove(&ObjectKey::of(&object), Some(object));
        Ok(version)
    }
}

fn tell<K>(handlers: &[Handler<K>], change: &Change<K>) {
    for handler in handlers {
        handler(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    fn listed(objects: &[(&str, &str)]) -> BTreeMap<ObjectKey, Arc<ConfigMap>> {
        objects.iter().map(|(n, v)| (ObjectKey::new("ns", *n), Arc::new(object(n, v)))).collect()
    }

    #[tokio::test]
    async fn handlers_hear_of_differences_once_and_in_order() {
        let informer = Informer::<ConfigMap>::new();
        informer.replace(listed(&[("a", "1"), ("b", "2")]));
        informer.synced().await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = heard.clone();
        informer.on_change(move |change| {
            let version = |side: &Option<Arc<ConfigMap>>| {
                side.as_ref().and_then(|o| o.metadata.resource_version.clone()).unwrap_or_default()
            };
            log.lock().push(format!(
                "{} {}>{}",
                change.key().name,
                version(&change.old),
                version(&change.new)
            ));
        });
        informer.set(object("a", "3"));
        informer.remove(&ObjectKey::new("ns", "b"), None);
        informer.replace(listed(&[("a", "3"), ("c", "4")]));
        assert_eq!(*heard.lock(), ["a >1", "b >2", "a 1>3", "b 2>", "c >4"]);
        assert_eq!(informer.list_namespace("ns").len(), 2);
        assert!(informer.list_namespace("n").is_empty());
    }
}
