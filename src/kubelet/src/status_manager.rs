//! Writes pod statuses to the API server: each pod's newest one, one request at a time and only
//! when something differs (upstream `pkg/kubelet/status/status_manager.go`).
//!
//! Others write there too: the node lifecycle controller says that pods are not ready while their node is
//! silent, and takes nothing back. What a pod's object shows is therefore held against what the API server
//! answered to this kubelet's last write (upstream compares every ten seconds, `needsReconcile`); what is the
//! kubelet's and is another by now is written again. Only that a pod has ended nobody takes back, whoever said
//! it (upstream `kubelet_pods.go`, `generateAPIPodStatus`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
/// What others change again and again is written again this often (upstream's `syncBatch`).
const MEND_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
struct Entry {
    namespace: String,
    name: String,
    status: PodStatus,
    /// What was written last.
    written: Option<PodStatus>,
    /// What the API server had after that.
    answered: Option<Answered>,
    /// When it was last written because of what somebody else wrote.
    mended: Option<Instant>,
    /// Everything of the pod is gone: delete the object.
    finished: bool,
}

/// The object after a write. Its status is in the API server's own form (times, quantities), so that what
/// differs from it later is somebody's change.
#[derive(Clone, Debug)]
struct Answered {
    version: Option<u64>,
    status: PodStatus,
}

impl Entry {
    /// The object says that the pod has ended: that stays.
    fn keep_end(&mut self, live: &Pod) {
        if !pod::is_terminal_phase(pod::phase(live)) {
            return;
        }
        let said = pod::status(live);
        for status in
            [Some(&mut self.status), self.answered.as_mut().map(|a| &mut a.status)].into_iter().flatten()
        {
            status.phase.clone_from(&said.phase);
            status.reason.clone_from(&said.reason);
            status.message.clone_from(&said.message);
        }
    }
}

impl Answered {
    fn of(object: &Pod, written: &PodStatus) -> Self {
        Self { version: version(object), status: kubelets_part(pod::status(object), written) }
    }

    /// The object was changed since, in what is the kubelet's.
    fn is_changed_by(&self, live: &Pod) -> bool {
        // The watch may be behind the answer; what it has yet to show comes with an event of its own.
        let older = self.version.zip(version(live)).is_some_and(|(answered, live)| live < answered);
        !older && difference(&pod::status(live), &self.status).is_some()
    }
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
            answered: None,
            mended: None,
            finished: false,
        });
        entry.status = status;
        if entry.written.as_ref() != Some(&entry.status) {
            self.queue.add(uid);
        }
    }

    /// The API server shows the pod like this: true when its status is not what this kubelet wrote and is
    /// written again.
    pub(crate) fn seen(&self, live: &Pod) -> bool {
        let uid = pod::uid(live);
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&uid) else { return false };
        entry.keep_end(live);
        // Without an answer yet, the write that is due looks for itself.
        let changed = entry.answered.as_ref().is_some_and(|answered| answered.is_changed_by(live));
        if changed {
            tracing::debug!(pod = pod::name(live), "somebody changed the pod's status, it is written again");
            let now = Instant::now();
            let due = match entry.mended {
                Some(due) if due > now => due,
                Some(last) => now.max(last + MEND_EVERY),
                None => now,
            };
            entry.mended = Some(due);
            self.queue.add_after(uid, due - now);
        }
        changed
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
        self.send(client, &live, entry).await?;
        Ok(None)
    }

    /// Brings the object, which was last seen as `live`, to what `entry` says.
    async fn send(
        &self,
        client: &kube::Client,
        live: &Pod,
        mut entry: Entry,
    ) -> Result<(), kedge_client::Error> {
        entry.keep_end(live);
        let uid = pod::uid(live);
        let api = kube::Api::<Pod>::namespaced(client.clone(), &entry.namespace);
        let answered = match difference(&pod::status(live), &entry.status) {
            None => Answered::of(live, &entry.status),
            Some(changes) => {
                let patch = json!({ "metadata": { "uid": uid }, "status": changes });
                match api.patch_status(&entry.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    Ok(object) => Answered::of(&object, &entry.status),
                    Err(error) if kedge_client::is_not_found(&error) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        if let Some(known) = self.entries.lock().get_mut(&uid) {
            known.written = Some(entry.status);
            known.answered = Some(answered);
        }
        if entry.finished && pod::is_being_deleted(live) {
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(&entry.name, &params).await {
                Ok(_) => {}
                // Another pod has the name by now, or none.
                Err(error) if kedge_client::is_not_found(&error) || kedge_client::is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn version(object: &Pod) -> Option<u64> {
    object.metadata.resource_version.as_ref()?.parse().ok()
}

/// Without what others own: fields that the kubelet never writes, and conditions that it did not.
fn kubelets_part(mut status: PodStatus, written: &PodStatus) -> PodStatus {
    let ours = |kind: &str| written.conditions.iter().flatten().any(|condition| condition.type_ == kind);
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| ours(&condition.type_));
    }
    status.nominated_node_name = None;
    status.resize = None;
    status.resource_claim_statuses = None;
    status.extended_resource_claim_status = None;
    status
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

    fn ready(status: &str) -> PodCondition {
        PodCondition { type_: "Ready".into(), status: status.into(), ..PodCondition::default() }
    }

    fn object(version: u64, status: PodStatus) -> Pod {
        let mut object = Pod::default();
        object.metadata.name = Some("web".into());
        object.metadata.namespace = Some("default".into());
        object.metadata.uid = Some("u".into());
        object.metadata.resource_version = Some(version.to_string());
        object.status = Some(status);
        object
    }

    fn running(conditions: Vec<PodCondition>) -> PodStatus {
        PodStatus { phase: Some("Running".into()), conditions: Some(conditions), ..PodStatus::default() }
    }

    /// An API server that answers every patch with the next of `answers` and keeps the patches.
    fn server(answers: Vec<Pod>) -> (kube::Client, Arc<Mutex<Vec<Value>>>) {
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (kept, answers) = (asked.clone(), Arc::new(Mutex::new(answers.into_iter())));
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (kept, answers) = (kept.clone(), answers.clone());
            async move {
                let body = request.into_body().collect_bytes().await.expect("a body");
                kept.lock().push(serde_json::from_slice(&body).expect("a patch"));
                let answer = answers.lock().next().expect("no more patches than answers");
                let answer = kube::client::Body::from(serde_json::to_vec(&answer).expect("an object"));
                Ok::<_, std::convert::Infallible>(http::Response::new(answer))
            }
        });
        (kube::Client::new(service, "default"), asked)
    }

    #[tokio::test]
    async fn what_others_made_of_the_status_is_mended() {
        let statuses = Statuses::new();
        let wanted = running(vec![ready("True")]);
        let mut canonical = wanted.clone();
        // The API server has its own form of what it was sent.
        canonical.start_time = Some(pod::now());
        let mut foreign = ready("True");
        foreign.type_ = "example.com/gate".into();
        canonical.conditions.get_or_insert_default().push(foreign.clone());
        let (client, patches) = server(vec![object(10, canonical.clone()), object(13, canonical.clone())]);
        let entry = || statuses.entries.lock().get("u").cloned().expect("the pod is known");

        let before = object(5, PodStatus::default());
        assert!(!statuses.seen(&before), "nothing is known of the pod");
        statuses.set(&before, wanted.clone());
        assert!(!statuses.seen(&before), "nothing is written yet");
        statuses.send(&client, &before, entry()).await.expect("written");

        // Its own write comes back, late events too, and what others own changes.
        let mut others = canonical.clone();
        others.nominated_node_name = Some("n".into());
        others.conditions.get_or_insert_default()[1].status = "False".into();
        for (version, status) in [(9, PodStatus::default()), (10, canonical.clone()), (11, others)] {
            assert!(!statuses.seen(&object(version, status)), "{version}");
        }

        // The node was silent for long.
        let marked = object(12, running(vec![ready("False"), foreign]));
        assert!(statuses.seen(&marked));
        statuses.send(&client, &marked, entry()).await.expect("written again");
        let sent = patches.lock().clone();
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert_eq!(sent[1]["status"]["conditions"], json!([{ "type": "Ready", "status": "True" }]));
        assert!(!statuses.seen(&marked), "the watch is behind");
        assert!(!statuses.seen(&object(13, canonical.clone())), "it is as it was");
        let lost = object(14, PodStatus { phase: Some("Pending".into()), ..running(vec![ready("True")]) });
        assert!(statuses.seen(&lost), "not only conditions");
        let due = entry().mended.expect("it is to be written");
        assert!(due > std::time::Instant::now(), "who changes it again and again is not answered at once");
        assert!(statuses.seen(&object(15, lost.status.clone().expect("a status"))));
        assert_eq!(entry().mended, Some(due), "one write mends both");

        // An end is never taken back, even by what was found before it was seen.
        let mut failed = pod::status(&object(16, canonical.clone()));
        failed.phase = Some("Failed".into());
        failed.reason = Some("Preempted".into());
        let failed = object(16, failed);
        assert!(!statuses.seen(&failed));
        assert_eq!(statuses.last(&failed).reason.as_deref(), Some("Preempted"));
        statuses.set(&failed, wanted);
        statuses.send(&client, &failed, entry()).await.expect("nothing to write");
        assert_eq!(patches.lock().len(), 2);
        assert_eq!(entry().written.and_then(|status| status.phase).as_deref(), Some("Failed"));
    }
}
