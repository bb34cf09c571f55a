//! What a pod may keep on the node's disk: the sizes of its emptyDir volumes, and the `ephemeral-storage`
//! limits of its containers and of all of it (upstream `eviction_manager.go`, `localStorageEviction`). The
//! files of pods that have such limits are counted, at most every ten seconds and less often when there are
//! many; nobody waits for it, unless a disk is short.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kedge_api::quantity::Quantity;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::manager::{AT_ONCE, evict};
use super::message;
use super::usage::{Need, PodUse, measure};
use crate::core::Shared;
use crate::{node, pod, resources};

const STORAGE: &str = "ephemeral-storage";
/// The pause is so many times as long as counting took, within bounds.
const PAUSE_FACTOR: u32 = 20;
/// The manager looks every ten seconds.
const SHORTEST_PAUSE: Duration = Duration::from_secs(9);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// When to count again; clones share.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits(Arc<Mutex<When>>);

#[derive(Debug, Default)]
struct When {
    counting: bool,
    not_before: Option<Instant>,
}

impl Limits {
    /// Begins to count when it is time and somebody has a limit; what comes out are the uids of the pods that
    /// were evicted.
    pub(super) fn count(&self, core: &Shared, pods: &[Arc<Pod>]) -> Option<JoinHandle<Option<Vec<String>>>> {
        let begun = Instant::now();
        let limited: Vec<(Arc<Pod>, Need)> =
            pods.iter().filter_map(|target| Some((target.clone(), need(target)?))).collect();
        let mut when = self.0.lock();
        if limited.is_empty() || when.counting || when.not_before.is_some_and(|at| begun < at) {
            return None;
        }
        when.counting = true;
        let (this, core) = (self.clone(), core.clone());
        let tasks = core.tasks.clone();
        Some(tasks.spawn_until_stopped("storage limits", async move {
            let separate = node::has_image_disk(&core.config);
            let mut evicted = Vec::new();
            for (target, need) in limited {
                let uid = pod::uid(&target);
                let uses = measure(&core, std::slice::from_ref(&target), need).await;
                if let Some((signal, text)) = uses.get(&uid).and_then(|used| judge(&target, used, separate))
                    && evict(&core, &target, signal, text, AT_ONCE, false)
                {
                    evicted.push(uid);
                }
            }
            let pause = (begun.elapsed() * PAUSE_FACTOR).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            *this.0.lock() = When { counting: false, not_before: Some(Instant::now() + pause) };
            evicted
        }))
    }
}

/// `None`: the pod has no such limit.
fn need(target: &Pod) -> Option<Need> {
    let storage = pod_limit(target).is_some();
    (storage || volume_limits(target).next().is_some()).then_some(Need {
        groups: false,
        containers: storage,
        folders: true,
    })
}

/// Volumes in memory cannot grow beyond their sizes.
fn volume_limits(target: &Pod) -> impl Iterator<Item = (&str, &ApiQuantity)> {
    let all = target.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    all.filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let limit = source.size_limit.as_ref().filter(|limit| resources::value(limit) > 0)?;
        source.medium.as_deref().unwrap_or("").is_empty().then_some((volume.name.as_str(), limit))
    })
}

/// The sum of what its containers may use, when one of them has a limit at all.
fn pod_limit(target: &Pod) -> Option<i64> {
    let mut all = pod::containers(target).iter().chain(pod::init_containers(target));
    all.any(|container| resources::limits(container).contains_key(STORAGE))
        .then(|| resources::sum_of_limits(target, STORAGE))
}

fn canonical(quantity: &ApiQuantity) -> String {
    quantity.0.parse::<Quantity>().map_or(quantity.0.clone(), |parsed| parsed.to_string())
}

/// Why the pod must go: the name that upstream counts it under, and the words.
fn judge(target: &Pod, used: &PodUse, separate: bool) -> Option<(&'static str, String)> {
    for (name, limit) in volume_limits(target) {
        if used.volumes.get(name).is_some_and(|space| space.bytes > resources::value(limit)) {
            let limit = canonical(limit);
            let text = format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. ");
            return Some(("emptydirfs.limit", text));
        }
    }
    if let Some(limit) = pod_limit(target)
        && used.disk(true, true).bytes.saturating_add(used.other.bytes) > limit
    {
        let limit = message::bytes(limit);
        let text =
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some(("ephemeralpodfs.limit", text));
    }
    pod::containers(target).iter().find_map(|container| {
        let limits = resources::limits(container);
        let limit = limits.get(STORAGE).filter(|limit| resources::value(limit) > 0)?;
        let found = used.containers.get(&container.name)?;
        // As upstream: a writable layer on the images' own disk is not this disk's.
        let layer = found.layer.filter(|_| !separate).unwrap_or_default();
        (layer.bytes.saturating_add(found.logs.bytes) > resources::value(limit)).then(|| {
            let (name, limit) = (&container.name, canonical(limit));
            let text = format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. ");
            ("ephemeralcontainerfs.limit", text)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::usage::{ContainerUse, Space};
    use super::*;
    use serde_json::{Value, json};

    fn pod_of(volumes: &Value, limits: &[&str]) -> Pod {
        let containers: Vec<Value> = limits
            .iter()
            .enumerate()
            .map(|(at, limit)| {
                let limits = if limit.is_empty() { json!({}) } else { json!({ STORAGE: limit }) };
                json!({"name": format!("c{at}"), "resources": {"limits": limits}})
            })
            .collect();
        serde_json::from_value(json!({"spec": {"volumes": volumes, "containers": containers}}))
            .expect("a pod")
    }

    fn used(volume: i64, containers: &[(i64, i64)]) -> PodUse {
        let space = |bytes: i64| Space { bytes, inodes: 1 };
        let containers = containers.iter().enumerate().map(|(at, (layer, logs))| {
            let used = ContainerUse { memory: None, layer: Some(space(*layer)), logs: space(*logs) };
            (format!("c{at}"), used)
        });
        PodUse {
            volumes: [("scratch".to_owned(), space(volume))].into(),
            containers: containers.collect(),
            ..PodUse::default()
        }
    }

    #[test]
    fn what_is_too_much() {
        let volume = |source: Value| json!([{"name": "scratch", "emptyDir": source}]);
        let none = json!([]);
        let sized = volume(json!({"sizeLimit": "1024Ki"}));
        for (target, used, separate, expected) in [
            (pod_of(&sized, &[""]), used(1 << 20, &[]), false, None),
            (
                pod_of(&sized, &[""]),
                used((1 << 20) + 1, &[]),
                false,
                Some("Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "),
            ),
            (pod_of(&volume(json!({"sizeLimit": "0"})), &[""]), used(1 << 20, &[]), false, None),
            (
                pod_of(&volume(json!({"sizeLimit": "1k", "medium": "Memory"})), &[""]),
                used(2000, &[]),
                false,
                None,
            ),
            (pod_of(&volume(json!({})), &[""]), used(1 << 40, &[(1 << 40, 0)]), false, None),
            // Everything together counts, whichever container has the limit.
            (
                pod_of(&none, &["1Ki", ""]),
                used(0, &[(0, 0), (1000, 25)]),
                false,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 1Ki. "),
            ),
            (
                pod_of(&volume(json!({})), &["1Ki", "1Ki"]),
                used(2000, &[(40, 9), (0, 0)]),
                false,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. "),
            ),
            (
                pod_of(&none, &["1Ki", "1Mi"]),
                used(0, &[(1000, 25), (0, 0)]),
                false,
                Some("Container c0 exceeded its local ephemeral storage limit \"1Ki\". "),
            ),
            (pod_of(&none, &["1Ki", "1Mi"]), used(0, &[(1000, 25), (0, 0)]), true, None),
            (pod_of(&none, &["1Ki", "1Mi"]), used(0, &[(1000, 24), (0, 0)]), false, None),
        ] {
            let judged = judge(&target, &used, separate).map(|(_, text)| text);
            assert_eq!(judged.as_deref(), expected, "{used:?}");
        }
    }

    #[test]
    fn only_pods_with_limits_are_counted() {
        let sized = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
        let memory = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}}]);
        for (target, expected) in [
            (pod_of(&json!([]), &[""]), None),
            (pod_of(&memory, &[""]), None),
            (pod_of(&sized, &[""]), Some(false)),
            (pod_of(&json!([]), &["", "1Gi"]), Some(true)),
        ] {
            assert_eq!(need(&target).map(|need| need.containers), expected);
        }
    }
}
