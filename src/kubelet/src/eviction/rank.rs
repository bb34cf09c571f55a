//! Which pod goes first (upstream `helpers.go`, `rankMemoryPressure`, `rankDiskPressureFunc`, `rankPIDPressure`).
//! Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kedge_base::Order as _;

use super::Signal;
use super::usage::PodUse;
use crate::{pod, resources};

/// Orders the pods: the first one is evicted first. `separate`: images and writable layers are on a disk of
/// their own. A pod of which nothing is known comes before the others.
pub(super) fn rank(pods: &mut [Arc<Pod>], uses: &HashMap<String, PodUse>, signal: Signal, separate: bool) {
    pods.order_by_key(|target| {
        let priority = target.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let used = uses.get(&pod::uid(target)).map(|used| amount(used, signal, separate));
        let known = used.is_some();
        if signal == Signal::PidAvailable {
            return (false, false, priority, known, Reverse(used.unwrap_or(0)));
        }
        let over = used.map_or(0, |used| used - request(target, signal));
        (known, over <= 0, priority, false, Reverse(over))
    });
}

fn amount(used: &PodUse, signal: Signal, separate: bool) -> i64 {
    let of_pods = used.disk(!separate, true);
    let of_images = used.disk(true, !separate);
    match signal {
        Signal::MemoryAvailable => used.memory.unwrap_or(0),
        Signal::NodefsAvailable => of_pods.bytes,
        Signal::NodefsInodesFree => of_pods.inodes,
        Signal::ImagefsAvailable => of_images.bytes,
        Signal::ImagefsInodesFree => of_images.inodes,
        Signal::PidAvailable => used.processes,
    }
}

fn request(target: &Pod, signal: Signal) -> i64 {
    match signal {
        Signal::MemoryAvailable | Signal::NodefsAvailable | Signal::ImagefsAvailable => {
            resources::pod_request(target, signal.resource())
        }
        // Nobody can ask for these.
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree | Signal::PidAvailable => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::usage::{ContainerUse, Space};
    use super::*;
    use serde_json::json;

    /// Name, priority, request (of memory and of storage), use.
    type Row = (&'static str, i32, Option<i64>, Option<PodUse>);

    fn ranked(rows: &[Row], signal: Signal, separate: bool) -> Vec<String> {
        let mut pods = Vec::new();
        let mut uses = HashMap::new();
        for (name, priority, request, used) in rows {
            let requests = request.map_or(
                json!({}),
                |amount| json!({"memory": amount.to_string(), "ephemeral-storage": amount.to_string()}),
            );
            let target = json!({"metadata": {"name": name, "uid": name}, "spec": {
                "priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]}});
            pods.push(Arc::new(serde_json::from_value::<Pod>(target).expect("a pod")));
            if let Some(used) = used {
                uses.insert((*name).to_owned(), used.clone());
            }
        }
        rank(&mut pods, &uses, signal, separate);
        pods.iter().map(|target| pod::name(target).to_owned()).collect()
    }

    fn memory(bytes: i64) -> Option<PodUse> {
        Some(PodUse { memory: Some(bytes), ..PodUse::default() })
    }

    fn disk(layer: i64, logs: i64, volume: i64) -> Option<PodUse> {
        let space = |number: i64| Space { bytes: number * 1000, inodes: number };
        let container = ContainerUse { memory: None, layer: Some(space(layer)), logs: space(logs) };
        Some(PodUse {
            containers: [("c".to_owned(), container)].into(),
            volumes: [("v".to_owned(), space(volume))].into(),
            ..PodUse::default()
        })
    }

    #[test]
    fn memory_by_request_then_priority_then_use() {
        let rows = [
            ("within, much", 0, Some(1000), memory(900)),
            ("within, little", 0, Some(1000), memory(100)),
            ("over, important", 100, Some(100), memory(900)),
            ("over by little", 0, Some(100), memory(150)),
            ("over by much", 0, Some(100), memory(800)),
            ("best effort", 0, None, memory(300)),
            ("best effort, important", 100, None, memory(5000)),
            ("within, unimportant", -10, Some(1000), memory(1000)),
            ("unknown", 100, None, None),
        ];
        assert_eq!(
            ranked(&rows, Signal::MemoryAvailable, false),
            [
                "unknown",
                "over by much",
                "best effort",
                "over by little",
                "best effort, important",
                "over, important",
                "within, unimportant",
                "within, much",
                "within, little",
            ]
        );
    }

    #[test]
    fn disks_by_what_is_on_them() {
        let rows = [
            ("layer", 0, None, disk(500, 1, 1)),
            ("logs", 0, None, disk(1, 400, 1)),
            ("volume", 0, None, disk(1, 1, 300)),
            ("asked for it", 0, Some(1_000_000), disk(1, 1, 900)),
        ];
        for (signal, separate, order) in [
            (Signal::NodefsAvailable, false, ["layer", "logs", "volume", "asked for it"]),
            (Signal::ImagefsAvailable, false, ["layer", "logs", "volume", "asked for it"]),
            // What a pod asked for counts once, whatever disk is short.
            (Signal::NodefsAvailable, true, ["logs", "volume", "layer", "asked for it"]),
            (Signal::ImagefsAvailable, true, ["layer", "logs", "volume", "asked for it"]),
            // Files cannot be asked for.
            (Signal::NodefsInodesFree, false, ["asked for it", "layer", "logs", "volume"]),
            (Signal::NodefsInodesFree, true, ["asked for it", "logs", "volume", "layer"]),
            (Signal::ImagefsInodesFree, true, ["layer", "logs", "volume", "asked for it"]),
        ] {
            assert_eq!(ranked(&rows, signal, separate), order, "{signal:?} {separate}");
        }
    }

    #[test]
    fn process_ids_by_priority_then_number() {
        let processes = |processes: i64| Some(PodUse { processes, ..PodUse::default() });
        let rows = [
            ("important", 10, None, processes(900)),
            ("few", 0, None, processes(2)),
            ("many", 0, None, processes(80)),
            ("unknown", 0, None, None),
        ];
        assert_eq!(ranked(&rows, Signal::PidAvailable, false), ["unknown", "many", "few", "important"]);
    }
}
