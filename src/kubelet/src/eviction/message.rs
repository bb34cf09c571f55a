//! Why a pod was evicted, in upstream's words (`helpers.go`, `evictionMessage`). Pure.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;
use kedge_api::quantity::{Format, Quantity};

use super::Levels;
use super::pressure::Threshold;
use super::usage::PodUse;
use crate::pod;

/// Bytes as upstream writes them.
pub(super) fn bytes(amount: i64) -> String {
    Quantity::from_units(amount, Format::BinarySi).to_string()
}

/// About a pod that ends because `resource` runs short; `active` are all thresholds that are met.
pub(super) fn of_pressure(
    resource: &str,
    target: &Pod,
    used: Option<&PodUse>,
    active: &[Threshold],
    levels: &Levels,
) -> String {
    let mut text = format!("The node was low on resource: {resource}. ");
    let met = active.iter().find_map(|threshold| {
        let level = levels[threshold.signal as usize]?;
        (threshold.signal.resource() == resource).then_some((threshold, level))
    });
    if let Some((threshold, level)) = met {
        let available = Quantity::from_units(level.available, threshold.signal.format());
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "Threshold quantity: {}, available: {available}. ",
            threshold.floor.text(level.capacity)
        );
    }
    let Some(used) = used else { return text };
    let more = |text: &mut String, what: &str, name: &str, usage: i64, request: Option<&Quantity>| {
        let request = request.map_or("0".to_owned(), ToString::to_string);
        let _ = write!(
            text,
            "{what} {name} was using {}, request is {request}, has larger consumption of {resource}. ",
            bytes(usage)
        );
    };
    let of_pod =
        target.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get(resource));
    if resource == "memory"
        && let (Some(request), Some(usage)) = (of_pod, used.memory)
    {
        more(&mut text, "Pod", pod::name(target), usage, request.0.parse().ok().as_ref());
    }
    for container in pod::containers(target).iter().chain(pod::init_containers(target)) {
        let Some(found) = used.containers.get(&container.name) else { continue };
        let usage = match resource {
            "memory" => found.memory,
            "ephemeral-storage" => found.layer.map(|layer| layer.bytes.saturating_add(found.logs.bytes)),
            _ => None,
        };
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let request: Option<Quantity> =
            requests.and_then(|requests| requests.get(resource)).and_then(|request| request.0.parse().ok());
        if let Some(usage) = usage
            && usage > request.as_ref().map_or(0, Quantity::value)
        {
            more(&mut text, "Container", &container.name, usage, request.as_ref());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::usage::{ContainerUse, Space};
    use super::super::{Eviction, Level, Signal};
    use super::*;
    use serde_json::json;

    #[test]
    fn upstreams_words() {
        let policy = Eviction {
            hard: "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%".parse().expect("read"),
            ..Eviction::default()
        };
        let active = policy.thresholds();
        let mut levels: Levels = [None; 6];
        levels[Signal::MemoryAvailable as usize] = Some(Level { available: 51_384 << 10, capacity: 1 << 30 });
        levels[Signal::NodefsAvailable as usize] = Some(Level { available: 1000, capacity: 10 << 30 });
        levels[Signal::NodefsInodesFree as usize] = Some(Level { available: 12, capacity: 1000 });
        let target: Pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {
        "initContainers": [{"name": "first"}],
        "containers": [
            {"name": "over", "resources": {"requests": {"memory": "10Mi", "ephemeral-storage": "1Mi"}}},
            {"name": "within", "resources": {"requests": {"memory": "1Gi", "ephemeral-storage": "1Gi"}}},
            {"name": "asks nothing"},
        ]}}))
        .expect("a pod");
        let container = ContainerUse {
            memory: Some(20 << 20),
            layer: Some(Space { bytes: 3 << 20, inodes: 1 }),
            logs: Space { bytes: 4 << 10, inodes: 1 },
        };
        let used = PodUse {
            memory: Some(60 << 20),
            containers: ["over", "within", "asks nothing"]
                .map(|name| (name.to_owned(), container.clone()))
                .into(),
            ..PodUse::default()
        };
        for (resource, used, expected) in [
            (
                "memory",
                Some(&used),
                "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51384Ki. \
                 Container over was using 20Mi, request is 10Mi, has larger consumption of memory. \
                 Container asks nothing was using 20Mi, request is 0, has larger consumption of memory. ",
            ),
            (
                "ephemeral-storage",
                Some(&used),
                "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 1k. \
                 Container over was using 3076Ki, request is 1Mi, has larger consumption of ephemeral-storage. \
                 Container asks nothing was using 3076Ki, request is 0, has larger consumption of ephemeral-storage. ",
            ),
            (
                "inodes",
                Some(&used),
                "The node was low on resource: inodes. Threshold quantity: 50, available: 12. ",
            ),
            ("pids", None, "The node was low on resource: pids. "),
        ] {
            assert_eq!(of_pressure(resource, &target, used, &active, &levels), expected);
        }
        let mut whole = target;
        if let Some(spec) = &mut whole.spec {
            spec.resources = serde_json::from_value(json!({"requests": {"memory": "50Mi"}})).ok();
            spec.containers.clear();
        }
        let text = of_pressure("memory", &whole, Some(&used), &active, &levels);
        assert!(
            text.ends_with("Pod web was using 60Mi, request is 50Mi, has larger consumption of memory. "),
            "{text}"
        );
    }
}
