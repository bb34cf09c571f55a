//! CustomResourceDefinitions at work: names and conditions are settled, rows come into and leave the
//! registry, and the objects of a definition that is deleted go with it
//! (`apiextensions-apiserver/pkg/controller/{status,establish,finalizer}`). Every API server does this
//! from its own cache; what it writes is the same everywhere.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kedge_api::crd;
use kedge_api::object;
use kedge_api::registry::{Registry, Resource};
use kedge_api::schema::SchemaRef;
use kedge_api::status::Status;
use kedge_base::Tasks;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::authn::User;
use crate::cache::Stored;
use crate::state::State;
use crate::verbs::delete::Deletion;
use crate::verbs::options::{DeleteOptions, WriteOptions};
use crate::verbs::update::{Change, Edit, Target};
use crate::verbs::{read, select};

const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// What was made of one definition.
struct Installed {
    revision: u64,
    storage_key: String,
    rows: Vec<Arc<Resource>>,
}

/// Keeps the registry equal to the definitions.
pub(crate) struct Installer {
    state: Arc<State>,
    tasks: Tasks,
    known: HashMap<Arc<str>, Installed>,
    /// The names that definitions have been granted, which no other of the group gets.
    granted: HashMap<Arc<str>, Value>,
    /// Definitions whose objects are being deleted by a task of their own.
    cleaning: Arc<Mutex<HashSet<Arc<str>>>>,
}

impl Installer {
    pub(crate) fn new(state: Arc<State>, tasks: &Tasks) -> Self {
        Self {
            state,
            tasks: tasks.child("custom resources"),
            known: HashMap::new(),
            granted: HashMap::new(),
            cleaning: Arc::default(),
        }
    }

    /// Follow the definitions until the tasks stop.
    pub(crate) async fn run(mut self) {
        loop {
            let mut changed = self.state.cache.bucket(DEFINITIONS).subscribe();
            loop {
                changed.borrow_and_update();
                self.sync().await;
                // The bucket was replaced by a snapshot: look at the new one.
                if changed.changed().await.is_err() {
                    break;
                }
            }
        }
    }

    /// Brings the registry up to date with the definitions in the cache.
    pub(crate) async fn sync(&mut self) {
        let objects = self.state.cache.bucket(DEFINITIONS).objects();
        let gone: Vec<Arc<str>> =
            self.known.keys().filter(|key| !objects.contains_key(&***key)).cloned().collect();
        let mut removed = Vec::new();
        for key in gone {
            removed.extend(self.known.remove(&key));
            self.granted.remove(&key);
        }
        let fresh: Vec<Arc<Stored>> = objects
            .values()
            .filter(|stored| self.known.get(&stored.key).is_none_or(|old| old.revision != stored.modified))
            .cloned()
            .collect();
        if fresh.is_empty() && removed.is_empty() {
            return;
        }
        let mut registry = Registry::clone(&self.state.registry.read());
        for old in &removed {
            take_out(&mut registry, &old.rows);
        }
        self.granted.extend(fresh.iter().map(|stored| (stored.key.clone(), granted(&stored.bytes))));
        for stored in fresh {
            let Ok(definition) = read::parse(&stored.bytes) else { continue };
            let rows = self.rows(&registry, &definition);
            if let Some(old) = self.known.remove(&stored.key) {
                take_out(&mut registry, &old.rows);
            }
            let storage_key = crd::storage_key(&definition);
            if let Some(row) = rows.iter().find(|row| row.version == row.storage_version.1).or(rows.first()) {
                self.state.cache.define(&storage_key, select::paths(row));
            }
            for row in &rows {
                registry.insert_shared(row.clone());
            }
            let installed = Installed { revision: stored.modified, storage_key, rows };
            self.known.insert(stored.key.clone(), installed);
            self.settle(&stored.key, &definition).await;
        }
        self.state.registry.replace(registry);
        for old in removed {
            self.state.cache.forget(&old.storage_key);
        }
    }

    fn rows(&self, registry: &Registry, definition: &Value) -> Vec<Arc<Resource>> {
        crd::rows(definition)
            .into_iter()
            .filter(|row| {
                // Kubernetes' own kinds stay what they are, and so does what is no kind at all.
                let free =
                    !registry.is_builtin(&row.group, &row.version) && !crd::is_reserved_group(&row.group);
                if !free {
                    tracing::warn!(
                        definition = object::name(definition),
                        "group and version are built in or Kedge's own"
                    );
                }
                free
            })
            .map(Arc::new)
            .collect()
    }

    /// Writes the definition's conditions, or begins to delete its objects.
    async fn settle(&mut self, key: &Arc<str>, definition: &Value) {
        if object::deletion_timestamp(definition).is_some() {
            let held = object::finalizers(definition).contains(&crd::FINALIZER);
            if held && self.cleaning.lock().insert(key.clone()) {
                let (state, cleaning, key) = (self.state.clone(), self.cleaning.clone(), key.clone());
                let definition = definition.clone();
                self.tasks.spawn_until_stopped("definition clean-up", async move {
                    if let Err(status) = clean_up(&state, &definition).await {
                        tracing::warn!(definition = object::name(&definition), %status, "objects not deleted");
                    }
                    cleaning.lock().remove(&key);
                });
            }
            return;
        }
        let others: Vec<Value> = self
            .granted
            .iter()
            .filter(|(other, _)| *other != key && group(other) == group(key))
            .map(|(_, names)| json!({ "status": { "acceptedNames": names } }))
            .collect();
        let Some(status) = crd::naming(definition, &others) else { return };
        // Those that come later in the same round get other names.
        self.granted.insert(key.clone(), status["acceptedNames"].clone());
        let mut edit = |current: &Value| {
            let mut new = current.clone();
            if let Some(status) = crd::naming(current, &others) {
                new["status"] = status;
            }
            Ok(Edit::replace(new))
        };
        if let Err(status) = write(&self.state, object::name(definition), "status", &mut edit).await {
            tracing::warn!(definition = object::name(definition), %status, "conditions not written");
        }
    }
}

/// The group of a definition, whose name is always `plural.group`.
fn group(key: &str) -> &str {
    key.split_once('.').map_or("", |(_, group)| group)
}

/// The names that a definition has been granted. Its schemas, which may be large, are passed over.
fn granted(definition: &[u8]) -> Value {
    #[derive(Deserialize)]
    struct Definition {
        status: Option<Names>,
    }
    #[derive(Deserialize)]
    struct Names {
        #[serde(rename = "acceptedNames", default)]
        accepted_names: Value,
    }
    let definition: Option<Definition> = serde_json::from_slice(definition).ok();
    definition
        .and_then(|definition| definition.status)
        .map(|status| status.accepted_names)
        .unwrap_or_default()
}

fn take_out(registry: &mut Registry, rows: &[Arc<Resource>]) {
    for row in rows {
        registry.remove(&row.group, &row.version, &row.plural);
    }
}

async fn write(
    state: &Arc<State>,
    name: &str,
    part: &'static str,
    edit: &mut (dyn FnMut(&Value) -> Result<Edit, Status> + Send),
) -> Result<(), Status> {
    let Some(resource) = state.find("apiextensions.k8s.io", "v1", "customresourcedefinitions") else {
        return Ok(());
    };
    let user = User::component("system:apiserver");
    let change = Change { state, user: &user, resource: &resource, target: Target::Trusted(part) };
    match change.run("", name, &WriteOptions::internal(), edit).await {
        Err(status) if status.code == 404 => Ok(()),
        result => result.map(drop),
    }
}

/// Deletes all objects of a definition, waits for their finalizers, then lets the definition go.
async fn clean_up(state: &Arc<State>, definition: &Value) -> Result<(), Status> {
    let name = object::name(definition);
    if let Some(row) = crd::storage_row(definition).filter(|row| !row.plural.is_empty()) {
        let resource = Arc::new(row);
        let user = User::component("system:apiserver");
        let deletion = Deletion { state, user: &user, resource: &resource };
        loop {
            let bucket = state.cache.bucket(&resource.storage_key);
            let mut changed = bucket.subscribe();
            let objects = bucket.objects();
            if objects.is_empty() {
                break;
            }
            for stored in objects.values() {
                let result = deletion.run(stored.namespace(), stored.name(), &DeleteOptions::default()).await;
                if let Err(status) = result.map(drop)
                    && status.code != 404
                {
                    tracing::warn!(object = %stored.key, %status, "custom object not deleted");
                }
            }
            if !bucket.objects().is_empty() && changed.changed().await.is_err() {
                continue;
            }
        }
    }
    let mut edit = |current: &Value| {
        let mut new = current.clone();
        let rest: Vec<&str> =
            object::finalizers(current).into_iter().filter(|own| *own != crd::FINALIZER).collect();
        object::set_finalizers(&mut new, &rest);
        let (reason, message) = ("InstanceDeletionCompleted", "removed all instances");
        crd::set_condition(&mut new["status"], "Terminating", "False", reason, message);
        Ok(Edit::replace(new))
    };
    write(state, name, "finalize", &mut edit).await
}

/// A definition that is to be deleted waits for its objects.
pub(crate) fn mark_deleted(definition: &mut Value) {
    let mut finalizers: Vec<String> = object::finalizers(definition).into_iter().map(str::to_owned).collect();
    if finalizers.iter().any(|own| own == crd::FINALIZER) {
        return;
    }
    finalizers.push(crd::FINALIZER.to_owned());
    definition["metadata"]["finalizers"] = json!(finalizers);
    crd::set_condition(
        &mut definition["status"],
        "Terminating",
        "True",
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    );
}

/// Tells the user of validation rules that this server cannot check.
pub(crate) fn warn(resource: &Resource, definition: &Value, warnings: &mut Vec<String>) {
    if !is_definition(resource) {
        return;
    }
    for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
        if let Ok(schema) = SchemaRef::from_openapi(&version["schema"]["openAPIV3Schema"]) {
            warnings.extend(kedge_api::schema::unenforced(&schema));
        }
    }
}

/// Whether the resource is that of definitions.
pub(crate) fn is_definition(resource: &Resource) -> bool {
    resource.storage_key == DEFINITIONS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_tells_its_group_and_names_without_its_schemas() {
        assert_eq!(group("/things.example.com"), "example.com");
        let bytes =
            br#"{"spec":{"versions":[{"schema":{}}]},"status":{"acceptedNames":{"kind":"Thing"},"x":1}}"#;
        assert_eq!(granted(bytes), json!({ "kind": "Thing" }));
        assert_eq!(granted(b"{}"), Value::Null);
    }
}
