//! What each pod of the node was granted (upstream `pkg/kubelet/allocation`): a resize (KEP-1287) changes the
//! object's wish at any time, the grant only when the node has room. One small file in the pod's folder keeps
//! it for the next process; nothing else remembers it. Holds no opinion: [`crate::resize`] decides.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::resources::{self, Amounts};
use crate::{Error, pod, volumes};

const FILE: &str = "allocation.json";

pub(crate) const PENDING: &str = "PodResizePending";
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";

/// The part of a container's resources that a running one can change. CPU in thousandths, memory in bytes;
/// 0 is none, as upstream has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) cpu_request: i64,
    pub(crate) cpu_limit: i64,
    pub(crate) memory_request: i64,
    pub(crate) memory_limit: i64,
}

impl Sizes {
    pub(crate) fn of(from: &ResourceRequirements) -> Self {
        let limit = |name: &str| from.limits.as_ref().and_then(|limits| limits.get(name));
        let request = |name: &str| {
            from.requests.as_ref().and_then(|requests| requests.get(name)).or_else(|| limit(name))
        };
        Self {
            cpu_request: request("cpu").map_or(0, resources::milli),
            cpu_limit: limit("cpu").map_or(0, resources::milli),
            memory_request: request("memory").map_or(0, resources::value),
            memory_limit: limit("memory").map_or(0, resources::value),
        }
    }

    pub(crate) fn same_cpu(&self, other: &Self) -> bool {
        (self.cpu_request, self.cpu_limit) == (other.cpu_request, other.cpu_limit)
    }

    pub(crate) fn same_memory(&self, other: &Self) -> bool {
        (self.memory_request, self.memory_limit) == (other.memory_request, other.memory_limit)
    }
}

fn same(left: &ResourceRequirements, right: &ResourceRequirements) -> bool {
    left == right || Sizes::of(left) == Sizes::of(right)
}

/// `from` with one resource, `cpu` or `memory`, as `other` has it.
pub(crate) fn with_resource(
    from: &ResourceRequirements,
    other: &ResourceRequirements,
    name: &str,
) -> ResourceRequirements {
    let take = |mine: &Option<Amounts>, theirs: &Option<Amounts>| {
        let mut amounts = mine.clone().unwrap_or_default();
        match theirs.as_ref().and_then(|theirs| theirs.get(name)) {
            Some(amount) => drop(amounts.insert(name.to_owned(), amount.clone())),
            None => drop(amounts.remove(name)),
        }
        (mine.is_some() || !amounts.is_empty()).then_some(amounts)
    };
    ResourceRequirements {
        requests: take(&from.requests, &other.requests),
        limits: take(&from.limits, &other.limits),
        claims: from.claims.clone(),
    }
}

/// One of the two conditions of a resize; an empty reason is none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stage {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// The object's generation that it is about.
    pub(crate) generation: Option<i64>,
    pub(crate) since: Time,
}

impl Stage {
    fn of(target: &Pod, kind: &str) -> Option<Self> {
        let conditions = target.status.as_ref()?.conditions.as_ref()?;
        let found = conditions.iter().find(|condition| condition.type_ == kind)?;
        Some(Self {
            reason: found.reason.clone().unwrap_or_default(),
            message: found.message.clone().unwrap_or_default(),
            generation: found.observed_generation,
            since: found.last_transition_time.clone().unwrap_or_else(pod::now),
        })
    }

    fn condition(&self, kind: &str) -> PodCondition {
        let text = |text: &String| (!text.is_empty()).then(|| text.clone());
        PodCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: text(&self.reason),
            message: text(&self.message),
            last_transition_time: Some(self.since.clone()),
            last_probe_time: None,
            observed_generation: self.generation,
        }
    }
}

/// What is known of one pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What the pod was granted, by container.
    pub(crate) allocated: BTreeMap<String, ResourceRequirements>,
    /// What the running container was last given, where that is not yet what was granted.
    #[serde(default)]
    pub(crate) actuated: BTreeMap<String, ResourceRequirements>,
    /// Why the wish was not granted.
    #[serde(skip)]
    pub(crate) pending: Option<Stage>,
    /// The grant is being carried out.
    #[serde(skip)]
    pub(crate) in_progress: Option<Stage>,
    #[serde(skip)]
    restored: bool,
    #[serde(skip)]
    unsaved: bool,
}

impl Record {
    fn new(target: &Pod) -> Self {
        let own = resizable(target);
        let allocated: BTreeMap<_, _> = own.map(|c| (c.name.clone(), wish(c))).collect();
        // A pod without any has nothing to resize: its class is immutable.
        let unsaved = allocated.values().any(|resources| Sizes::of(resources) != Sizes::default());
        Self { allocated, unsaved, ..Self::default() }
    }

    /// Whether the object asks for something else than what was granted.
    pub(crate) fn differs(&self, desired: &Pod) -> bool {
        resizable(desired).any(|container| {
            self.allocated.get(&container.name).is_some_and(|granted| !same(granted, &wish(container)))
        })
    }

    /// Grants what the object asks for.
    pub(crate) fn grant(&mut self, desired: &Pod) {
        for container in resizable(desired) {
            let new = wish(container);
            let Some(old) = self.allocated.insert(container.name.clone(), new.clone()) else { continue };
            let actual = self.actuated.remove(&container.name).unwrap_or(old);
            if !same(&actual, &new) {
                self.actuated.insert(container.name.clone(), actual);
            }
        }
        self.unsaved = true;
    }

    /// The running container has these now.
    pub(crate) fn actuate(&mut self, container: &str, now: ResourceRequirements) {
        let granted = self.allocated.get(container);
        let lags = granted.is_some_and(|granted| !same(granted, &now));
        let before = if lags {
            self.actuated.insert(container.to_owned(), now.clone())
        } else {
            self.actuated.remove(container)
        };
        self.unsaved |= before != lags.then_some(now);
    }

    /// The pod with what it was granted.
    pub(crate) fn granted(&self, target: &Arc<Pod>) -> Arc<Pod> {
        self.apply(target, |_, granted| granted.clone())
    }

    fn apply(
        &self,
        target: &Arc<Pod>,
        pick: impl Fn(&str, &ResourceRequirements) -> ResourceRequirements,
    ) -> Arc<Pod> {
        let changes = |container: &Container| {
            let granted = self.allocated.get(&container.name)?;
            let picked = pick(&container.name, granted);
            (!same(&picked, &wish(container))).then_some(picked)
        };
        let picked: Vec<(String, ResourceRequirements)> = resizable(target)
            .filter_map(|container| Some((container.name.clone(), changes(container)?)))
            .collect();
        if picked.is_empty() {
            return target.clone();
        }
        let mut changed = Pod::clone(target);
        if let Some(spec) = &mut changed.spec {
            let all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
            for container in all {
                if let Some((_, granted)) = picked.iter().find(|(name, _)| *name == container.name) {
                    container.resources = Some(granted.clone());
                }
            }
        }
        Arc::new(changed)
    }
}

fn wish(container: &Container) -> ResourceRequirements {
    container.resources.clone().unwrap_or_default()
}

/// Containers and sidecars; what runs to its end before them keeps its size.
pub(crate) fn resizable(target: &Pod) -> impl Iterator<Item = &Container> {
    let sidecars = pod::init_containers(target).iter().filter(|container| pod::is_sidecar(container));
    pod::containers(target).iter().chain(sidecars)
}

/// All records, and the pods whose resize waits.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) records: HashMap<String, Record>,
    pub(crate) waiting: Vec<String>,
}

/// One per kubelet.
#[derive(Debug, Default)]
pub(crate) struct Allocations(Mutex<State>);

impl Allocations {
    /// What the process before this one granted. A file that cannot be read counts as none: the object's wish
    /// is then taken as granted.
    pub(crate) fn load(pods_dir: &Path) -> Self {
        let mut records = HashMap::new();
        for entry in std::fs::read_dir(pods_dir).into_iter().flatten().flatten() {
            let Ok(bytes) = std::fs::read(entry.path().join(FILE)) else { continue };
            let uid = entry.file_name().to_string_lossy().into_owned();
            match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) => drop(records.insert(uid, record)),
                Err(error) => {
                    tracing::warn!(uid, %error, "what the pod was granted cannot be read, its spec counts");
                }
            }
        }
        Self(Mutex::new(State { records, waiting: Vec::new() }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// The pod passed admission, or did so before: it has what it asked for. What the object says of an earlier
    /// resize counts after a restart.
    pub(crate) fn admit(&self, target: &Pod) {
        let mut state = self.0.lock();
        let record = state.records.entry(pod::uid(target)).or_insert_with(|| Record::new(target));
        if !std::mem::replace(&mut record.restored, true) {
            record.pending = Stage::of(target, PENDING);
            record.in_progress = Stage::of(target, IN_PROGRESS);
        }
    }

    /// The pod with the resources that it was granted.
    pub(crate) fn apply(&self, target: &Arc<Pod>) -> Arc<Pod> {
        match self.0.lock().records.get(&pod::uid(target)) {
            Some(record) => record.granted(target),
            None => target.clone(),
        }
    }

    /// The running container has these now.
    pub(crate) fn actuate(&self, uid: &str, container: &str, now: ResourceRequirements) {
        if let Some(record) = self.0.lock().records.get_mut(uid) {
            record.actuate(container, now);
        }
    }

    /// What the running container has, where that is not what was granted.
    pub(crate) fn actual(&self, uid: &str, container: &str) -> Option<ResourceRequirements> {
        self.0.lock().records.get(uid)?.actuated.get(container).cloned()
    }

    /// The conditions of the pod's resize.
    pub(crate) fn conditions(&self, uid: &str) -> Vec<PodCondition> {
        let state = self.0.lock();
        let Some(record) = state.records.get(uid) else { return Vec::new() };
        let pending = record.pending.iter().map(|stage| stage.condition(PENDING));
        pending.chain(record.in_progress.iter().map(|stage| stage.condition(IN_PROGRESS))).collect()
    }

    /// Nothing of the pod is left.
    pub(crate) fn forget(&self, uid: &str) {
        let mut state = self.0.lock();
        state.records.remove(uid);
        state.waiting.retain(|waiting| waiting != uid);
    }
}

impl State {
    /// The pod as it counts for the node: what it was granted, or what it still has if that is more.
    pub(crate) fn charged(&self, target: &Arc<Pod>) -> Arc<Pod> {
        let Some(record) = self.records.get(&pod::uid(target)) else { return target.clone() };
        record.apply(target, |name, granted| match record.actuated.get(name) {
            None => granted.clone(),
            Some(actual) => {
                let (new, old) = (Sizes::of(granted), Sizes::of(actual));
                let mut most = granted.clone();
                if old.cpu_request > new.cpu_request {
                    most = with_resource(&most, actual, "cpu");
                }
                if old.memory_request > new.memory_request {
                    most = with_resource(&most, actual, "memory");
                }
                most
            }
        })
    }
}

/// Writes what has changed, before anything is done with it. Not flushed to the disk: after a power cut no
/// container is left that it could be about.
pub(crate) async fn save(core: &Core, uid: &str) -> Result<(), Error> {
    let bytes = {
        let mut state = core.allocations.lock();
        let Some(record) = state.records.get_mut(uid).filter(|record| record.unsaved) else { return Ok(()) };
        record.unsaved = false;
        serde_json::to_vec(record)
            .map_err(|error| Error::other(format!("allocation of pod {uid}: {error}")))?
    };
    let dir = core.config.pod_dir(uid);
    let written = volumes::blocking(move || {
        volumes::make_dir(&dir, 0o750)?;
        let (new, file) = (dir.join(format!("{FILE}.new")), dir.join(FILE));
        let failed = |error| Error::io(format!("write {}", file.display()), error);
        std::fs::write(&new, bytes).map_err(failed)?;
        std::fs::rename(&new, &file).map_err(failed)
    })
    .await;
    if written.is_err()
        && let Some(record) = core.allocations.lock().records.get_mut(uid)
    {
        record.unsaved = true;
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn target(resources: &serde_json::Value) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": "p", "uid": "u", "generation": 2},
            "spec": {
                "initContainers": [{"name": "init", "resources": resources}],
                "containers": [{"name": "c", "resources": resources}],
            },
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn cpu(pod: &Pod, container: &str) -> String {
        let found = pod::find_container(pod, container).expect("a container");
        resources::requests(&found).get("cpu").map(|amount| amount.0.clone()).unwrap_or_default()
    }

    #[test]
    fn a_wish_counts_when_it_is_granted() {
        let (small, big) = (json!({"requests": {"cpu": "100m"}}), json!({"requests": {"cpu": "200m"}}));
        let all = Allocations::default();
        all.admit(&target(&small));
        let desired = target(&big);
        assert_eq!(cpu(&all.apply(&desired), "c"), "100m");
        assert_eq!(cpu(&all.apply(&desired), "init"), "200m", "an init container is not resized");
        assert!(all.lock().records["u"].differs(&desired));
        all.lock().records.get_mut("u").expect("admitted").grant(&desired);
        assert!(Arc::ptr_eq(&all.apply(&desired), &desired));
        assert_eq!(Sizes::of(&all.actual("u", "c").expect("lags behind")).cpu_request, 100);
        // Back to where it was: nothing to do.
        all.lock().records.get_mut("u").expect("admitted").grant(&target(&small));
        assert_eq!(all.actual("u", "c"), None);
    }

    #[test]
    fn the_same_amount_in_other_words_is_no_wish() {
        let all = Allocations::default();
        all.admit(&target(&json!({"requests": {"cpu": "0.1"}, "limits": {"memory": "1Gi"}})));
        let same =
            target(&json!({"requests": {"cpu": "100m", "memory": "1024Mi"}, "limits": {"memory": "1Gi"}}));
        assert!(!all.lock().records["u"].differs(&same));
    }

    #[test]
    fn the_larger_of_grant_and_use_counts() {
        let all = Allocations::default();
        all.admit(&target(&json!({"requests": {"cpu": "300m", "memory": "10Mi"}})));
        let desired = target(&json!({"requests": {"cpu": "200m", "memory": "20Mi"}}));
        all.lock().records.get_mut("u").expect("admitted").grant(&desired);
        let charged = all.lock().charged(&desired);
        let sizes = Sizes::of(&wish(&pod::containers(&charged)[0]));
        assert_eq!((sizes.cpu_request, sizes.memory_request), (300, 20 << 20));
        let now = pod::containers(&desired)[0].resources.clone().unwrap_or_default();
        all.actuate("u", "c", now);
        let charged = all.lock().charged(&desired);
        assert_eq!(Sizes::of(&wish(&pod::containers(&charged)[0])).cpu_request, 200);
    }

    #[test]
    fn records_outlive_the_process() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let all = Allocations::default();
        all.admit(&target(&json!({"requests": {"cpu": "100m"}})));
        let desired = target(&json!({"requests": {"cpu": "200m"}}));
        all.lock().records.get_mut("u").expect("admitted").grant(&desired);
        let bytes = serde_json::to_vec(&all.lock().records["u"]).expect("JSON");
        for (uid, bytes) in [("u", bytes.as_slice()), ("broken", b"{".as_slice())] {
            std::fs::create_dir(dir.path().join(uid)).expect("a folder");
            std::fs::write(dir.path().join(uid).join(FILE), bytes).expect("written");
        }
        let again = Allocations::load(dir.path());
        assert_eq!(Sizes::of(&again.actual("u", "c").expect("lags")).cpu_request, 100);
        assert!(!again.lock().records.contains_key("broken"));
        let larger = target(&json!({"requests": {"cpu": "9"}}));
        assert_eq!(cpu(&again.apply(&larger), "c"), "200m");
    }

    #[test]
    fn conditions_come_back_from_the_object() {
        let mut pod = Pod::clone(&target(&json!({})));
        pod.status = serde_json::from_value(json!({"conditions": [
            {"type": PENDING, "status": "True", "reason": "Deferred", "message": "m", "observedGeneration": 2},
        ]}))
        .expect("a status");
        let all = Allocations::default();
        all.admit(&pod);
        let found = all.conditions("u");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].reason.as_deref(), found[0].observed_generation), (Some("Deferred"), Some(2)));
        all.forget("u");
        assert!(all.conditions("u").is_empty());
    }
}
