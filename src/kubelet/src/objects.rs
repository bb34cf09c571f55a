//! ConfigMaps and Secrets that pods of this node use: each is watched on its own for as long as a
//! pod refers to it, so the kubelet needs no permission to list all of them
//! (upstream `pkg/kubelet/util/manager/watch_based_manager.go`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use kedge_base::Tasks;
use kedge_client::{Event, Watch};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Error, pod};

/// How long a pod waits for the first answer about an object.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// The data of a ConfigMap or Secret as bytes.
pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) secret: bool,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// `None` until the first answer; then the data, or `None` inside when the object does not exist.
type Known = Option<Option<Arc<Object>>>;

/// An object's data and what a Secret says of its type.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) data: Data,
    /// A ConfigMap's `binaryData`: files of volumes, but no environment variables.
    binary: Data,
    pub(crate) type_: String,
    pub(crate) uid: String,
}

impl Object {
    /// What a volume of it holds.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.data.iter().chain(&self.binary)
    }

    pub(crate) fn file(&self, name: &str) -> Option<&Vec<u8>> {
        self.data.get(name).or_else(|| self.binary.get(name))
    }
}

struct Entry {
    users: HashSet<String>,
    stop: CancellationToken,
    known: watch::Sender<Known>,
}

type OnChange = Arc<dyn Fn(&str) + Send + Sync>;

/// Clones share.
#[derive(Clone)]
pub(crate) struct Objects {
    client: kube::Client,
    tasks: Tasks,
    entries: Arc<Mutex<HashMap<Source, Entry>>>,
    /// Called with the pod's uid when an object that it uses changes.
    on_change: OnChange,
}

impl Objects {
    pub(crate) fn new(client: kube::Client, tasks: &Tasks, on_change: OnChange) -> Self {
        Self { client, tasks: tasks.child("objects"), entries: Arc::default(), on_change }
    }

    /// Watch exactly what the pod refers to, on its behalf.
    pub(crate) fn register(&self, uid: &str, wanted: HashSet<Source>) {
        let mut entries = self.entries.lock();
        entries.retain(|source, entry| {
            if !wanted.contains(source) && entry.users.remove(uid) && entry.users.is_empty() {
                entry.stop.cancel();
                return false;
            }
            true
        });
        for source in wanted {
            let entry = entries.entry(source.clone()).or_insert_with(|| self.watch(&source));
            entry.users.insert(uid.to_owned());
        }
    }

    /// The pod is gone.
    pub(crate) fn unregister(&self, uid: &str) {
        self.register(uid, HashSet::new());
    }

    /// The object's data, or `None` when it does not exist. Waits for the first answer.
    pub(crate) async fn get(&self, source: &Source) -> Result<Option<Arc<Object>>, Error> {
        let receiver = self.entries.lock().get(source).map(|entry| entry.known.subscribe());
        let Some(mut receiver) = receiver else {
            return self.fetch(source).await;
        };
        // The guard of the channel may not live across an await: it is not `Send`.
        let answer = match tokio::time::timeout(FIRST_ANSWER, receiver.wait_for(Option::is_some)).await {
            Ok(Ok(known)) => return Ok(known.clone().flatten()),
            Ok(Err(_)) => None,
            Err(_) => Some(Error::other(format!(
                "failed to sync {} cache: timed out waiting for the condition",
                if source.secret { "secret" } else { "configmap" }
            ))),
        };
        match answer {
            Some(error) => Err(error),
            None => self.fetch(source).await,
        }
    }

    async fn fetch(&self, source: &Source) -> Result<Option<Arc<Object>>, Error> {
        let client = self.client.clone();
        if source.secret {
            let api = kube::Api::<Secret>::namespaced(client, &source.namespace);
            Ok(api.get_opt(&source.name).await?.map(|object| Arc::new(Object::from(object))))
        } else {
            let api = kube::Api::<ConfigMap>::namespaced(client, &source.namespace);
            Ok(api.get_opt(&source.name).await?.map(|object| Arc::new(Object::from(object))))
        }
    }

    fn watch(&self, source: &Source) -> Entry {
        let entry =
            Entry { users: HashSet::new(), stop: CancellationToken::new(), known: watch::Sender::new(None) };
        if source.secret {
            self.start::<Secret>(source, &entry);
        } else {
            self.start::<ConfigMap>(source, &entry);
        }
        entry
    }

    fn start<K>(&self, source: &Source, entry: &Entry)
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Send + 'static,
        Object: From<K>,
    {
        let path = K::url_path(&(), Some(&source.namespace));
        let mut events =
            Watch::<K>::new(self.client.clone(), path, &format!("metadata.name={}", source.name), "");
        let (stop, known) = (entry.stop.clone(), entry.known.clone());
        let (objects, source) = (self.clone(), source.clone());
        self.tasks.spawn_until_stopped("watch of a pod's object", async move {
            let follow = async {
                let mut listed = None;
                loop {
                    let now = match events.next().await {
                        Event::Changed(object) => Some(Arc::new(Object::from(object))),
                        Event::Deleted(_) => None,
                        Event::Begin => {
                            listed = None;
                            continue;
                        }
                        Event::Listed(object) => {
                            listed = Some(Arc::new(Object::from(object)));
                            continue;
                        }
                        Event::Done => listed.take(),
                    };
                    known.send_replace(Some(now));
                    objects.tell(&source);
                }
            };
            stop.run_until_cancelled(follow).await;
        });
    }

    fn tell(&self, source: &Source) {
        let users: Vec<String> = match self.entries.lock().get(source) {
            Some(entry) => entry.users.iter().cloned().collect(),
            None => Vec::new(),
        };
        for uid in users {
            (self.on_change)(&uid);
        }
    }
}

impl From<ConfigMap> for Object {
    fn from(object: ConfigMap) -> Self {
        let data =
            object.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
        let binary =
            object.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        Self { data, binary, type_: String::new(), uid: object.metadata.uid.unwrap_or_default() }
    }
}

impl From<Secret> for Object {
    fn from(object: Secret) -> Self {
        let data = object.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        let uid = object.metadata.uid.unwrap_or_default();
        Self { data, binary: Data::new(), type_: object.type_.unwrap_or_default(), uid }
    }
}

/// Everything that the pod refers to.
pub(crate) fn sources(pod: &Pod) -> HashSet<Source> {
    let namespace = pod::namespace(pod);
    let mut found = HashSet::new();
    let mut add = |secret: bool, name: &str| {
        if !name.is_empty() {
            found.insert(Source { secret, namespace: namespace.to_owned(), name: name.to_owned() });
        }
    };
    let spec = pod::spec(pod);
    for secret in spec.image_pull_secrets.iter().flatten() {
        add(true, &secret.name);
    }
    let ephemeral = pod::ephemeral_containers(pod);
    for container in pod::init_containers(pod).iter().chain(pod::containers(pod)).chain(&ephemeral) {
        of_container(container, &mut add);
    }
    for volume in spec.volumes.iter().flatten() {
        of_volume(volume, &mut add);
    }
    found
}

fn of_container(container: &Container, add: &mut impl FnMut(bool, &str)) {
    for from in container.env_from.iter().flatten() {
        if let Some(map) = &from.config_map_ref {
            add(false, &map.name);
        }
        if let Some(secret) = &from.secret_ref {
            add(true, &secret.name);
        }
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        if let Some(key) = &source.config_map_key_ref {
            add(false, &key.name);
        }
        if let Some(key) = &source.secret_key_ref {
            add(true, &key.name);
        }
    }
}

fn of_volume(volume: &Volume, add: &mut impl FnMut(bool, &str)) {
    if let Some(map) = &volume.config_map {
        add(false, &map.name);
    }
    if let Some(secret) = &volume.secret {
        add(true, secret.secret_name.as_deref().unwrap_or_default());
    }
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        if let Some(map) = &source.config_map {
            add(false, &map.name);
        }
        if let Some(secret) = &source.secret {
            add(true, &secret.name);
        }
    }
}
