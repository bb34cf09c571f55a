//! Writes pod statuses to the API server: each pod's newest one, one request at a time and only
//! when something differs (upstream `pkg/kubelet/status/status_manager.go`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kedge_base::Tasks;
use kedge_client::{Informer, Queue, run_controller};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::status::OWNED;
use crate::{allocation, pod};

/// Pods whose statuses are written at the same time.
const WORKERS: usize = 8;

#[derive(Clone, Debug)]
struct Entry {
    namespace: String,
    name: String,
    status: PodStatus,
    /// What was written last.
    written: Option<PodStatus>,
    /// Everything of the pod is gone: delete the object.
    finished: bool,
}

/// Clones share.
#[derive(Clone)]
pub(crate) struct Statuses {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    queue: Queue<String>,
}

impl Statuses {
    pub(crate) fn new() -> Self {
        Self { entries: Arc::default(), queue: Queue::new() }
    }

    /// The newest status: what was set here, else what the object has.
    pub(crate) fn last(&self, target: &Pod) -> PodStatus {
        let known = self.entries.lock().get(&pod::uid(target)).map(|entry| entry.status.clone());
        known.unwrap_or_else(|| pod::status(target))
    }

    pub(crate) fn set(&self, target: &Pod, status: PodStatus) {
        let uid = pod::uid(target);
        let mut entries = self.entries.lock();
        let entry = entries.entry(uid.clone()).or_insert_with(|| Entry {
            namespace: pod::namespace(target).to_owned(),
            name: pod::name(target).to_owned(),
            status: pod::status(target),
            written: None,
            finished: false,
        });
        entry.status = status;
        if entry.written.as_ref() != Some(&entry.status) {
            self.queue.add(uid);
        }
    }

    /// Nothing of the pod is left on this node.
    pub(crate) fn finish(&self, target: &Pod) {
        let uid = pod::uid(target);
        let status = self.last(target);
        self.set(target, status);
        if let Some(entry) = self.entries.lock().get_mut(&uid) {
            entry.finished = true;
        }
        self.queue.add(uid);
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
    }

    /// Starts the writers.
    pub(crate) fn run(&self, tasks: &Tasks, client: &kube::Client, pods: &Informer<Pod>) {
        let (this, client, pods) = (self.clone(), client.clone(), pods.clone());
        run_controller(tasks, "kubelet pod status", self.queue.clone(), WORKERS, move |uid: String| {
            let (this, client, pods) = (this.clone(), client.clone(), pods.clone());
            async move { this.write(&client, &pods, &uid).await }
        });
    }

    async fn write(
        &self,
        client: &kube::Client,
        pods: &Informer<Pod>,
        uid: &str,
    ) -> Result<Option<Duration>, kedge_client::Error> {
        let Some(entry) = self.entries.lock().get(uid).cloned() else { return Ok(None) };
        let Some(live) = pods.get(&entry.namespace, &entry.name).filter(|live| pod::uid(live) == uid) else {
            return Ok(None);
        };
        let api = kube::Api::<Pod>::namespaced(client.clone(), &entry.namespace);
        if let Some(changes) = difference(&pod::status(&live), &entry.status) {
            let patch = json!({ "metadata": { "uid": uid }, "status": changes });
            match api.patch_status(&entry.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {}
                Err(error) if kedge_client::is_not_found(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(known) = self.entries.lock().get_mut(uid) {
            known.written = Some(entry.status);
        }
        if entry.finished && pod::is_being_deleted(&live) {
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(&entry.name, &params).await {
                Ok(_) => {}
                // Another pod has the name by now, or none.
                Err(error) if kedge_client::is_not_found(&error) || kedge_client::is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

/// The fields to change as a strategic merge patch, or `None`. Fields and conditions of others
/// stay out of it.
fn difference(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (before, mut after) = (object(old), object(new));
    let conditions = after.remove("conditions");
    let mut changes = Map::new();
    for (key, value) in &after {
        if before.get(key) != Some(value) {
            changes.insert(key.clone(), value.clone());
        }
    }
    for key in ["reason", "message", "podIP", "podIPs"] {
        if before.contains_key(key) && !after.contains_key(key) {
            changes.insert(key.to_owned(), Value::Null);
        }
    }
    // Lists that are merged by a key would keep their old entries without this.
    if changes.contains_key("podIPs") {
        replace_list(&mut changes, "podIPs");
    }
    if changes.contains_key("hostIPs") {
        replace_list(&mut changes, "hostIPs");
    }
    let known: Vec<Value> = before.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut changed: Vec<Value> = Vec::new();
    for condition in conditions.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let before = known.iter().find(|known| known["type"] == condition["type"]);
        if before.is_some_and(|known| same_condition(known, condition)) {
            continue;
        }
        let mut condition = condition.clone();
        for key in ["reason", "message"] {
            if condition.get(key).is_none() && before.is_some_and(|known| known.get(key).is_some()) {
                condition[key] = Value::Null;
            }
        }
        changed.push(condition);
    }
    // The conditions of a resize go when it is over; all others stay for ever.
    let wanted = |kind: &str| {
        conditions.as_ref().and_then(Value::as_array).into_iter().flatten().any(|c| c["type"] == kind)
    };
    for kind in [allocation::PENDING, allocation::IN_PROGRESS] {
        if known.iter().any(|known| known["type"] == kind) && !wanted(kind) {
            changed.push(json!({ "$patch": "delete", "type": kind }));
        }
    }
    debug_assert!(changed.iter().all(|c| OWNED.contains(&c["type"].as_str().unwrap_or_default())));
    if !changed.is_empty() {
        changes.insert("conditions".to_owned(), Value::Array(changed));
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

fn replace_list(changes: &mut Map<String, Value>, key: &str) {
    if let Some(Value::Array(list)) = changes.get_mut(key) {
        list.push(json!({ "$patch": "replace" }));
    }
}

/// Probe times do not count.
fn same_condition(left: &Value, right: &Value) -> bool {
    let unique: HashSet<&str> =
        HashSet::from(["status", "reason", "message", "observedGeneration", "lastTransitionTime"]);
    unique.into_iter().all(|key| left.get(key) == right.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodCondition;

    #[test]
    fn only_differences_are_sent() {
        let condition = |kind: &str, status: &str, reason: Option<&str>| PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.map(str::to_owned),
            ..PodCondition::default()
        };
        let old = PodStatus {
            phase: Some("Pending".into()),
            message: Some("waits".into()),
            qos_class: Some("BestEffort".into()),
            conditions: Some(vec![
                condition("Ready", "False", Some("X")),
                condition("example.com/gate", "True", None),
            ]),
            ..PodStatus::default()
        };
        let new = PodStatus {
            phase: Some("Running".into()),
            qos_class: Some("BestEffort".into()),
            conditions: Some(vec![condition("Ready", "True", None), condition("Initialized", "True", None)]),
            ..PodStatus::default()
        };
        let changes = difference(&old, &new).expect("something changed");
        assert_eq!(
            changes,
            json!({
                "phase": "Running",
                "message": null,
                "conditions": [
                    { "type": "Ready", "status": "True", "reason": null },
                    { "type": "Initialized", "status": "True" },
                ],
            })
        );
        assert_eq!(difference(&new, &new), None);
        let resized = PodStatus {
            conditions: Some(vec![
                condition("Ready", "True", None),
                condition("PodResizePending", "True", Some("Deferred")),
            ]),
            ..new.clone()
        };
        let changes = difference(&resized, &new).expect("the resize is over");
        let gone = json!({ "$patch": "delete", "type": "PodResizePending" });
        assert!(changes["conditions"].as_array().is_some_and(|list| list.contains(&gone)), "{changes}");
    }
}
