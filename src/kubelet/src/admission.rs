//! The node's own say before a pod starts (upstream `pkg/kubelet/lifecycle/predicate.go`).

use k8s_openapi::api::core::v1::Pod;

use crate::core::Core;
use crate::worker::Verdict;
use crate::{pod, resources};

/// `Err` is why the pod is refused; its phase becomes Failed.
pub(crate) fn check(core: &Core, target: &Pod) -> Result<(), Verdict> {
    let verdict =
        |reason: String, message: String| Verdict { reason, message: format!("Pod was rejected: {message}") };
    let Some(node) = core.node.get("", &core.config.node_name) else { return Ok(()) };
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let wanted = target.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
    if wanted.iter().any(|(key, value)| labels.get(key) != Some(value)) {
        return Err(verdict(
            "NodeAffinity".into(),
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into(),
        ));
    }
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let uid = pod::uid(target);
    let others: Vec<_> = core
        .workers
        .pods()
        .into_iter()
        .filter(|other| pod::uid(other) != uid && !pod::is_terminal_phase(pod::phase(other)))
        // Two pods that arrive together: the older one has the place.
        .filter(|other| core.statuses.last(other).start_time.is_some())
        .collect();
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let most = allocatable.get("pods").map_or(i64::from(core.config.max_pods), resources::value);
    if count + 1 > most {
        return Err(verdict(
            "OutOfpods".into(),
            format!("Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {most}"),
        ));
    }
    for name in resources::requested_names(target) {
        let asked = resources::pod_request(target, &name);
        // What no device plugin announces cannot be checked here.
        let Some(has) = allocatable.get(&name) else { continue };
        let has = if name == "cpu" { resources::milli(has) } else { resources::value(has) };
        let used: i64 = others.iter().map(|other| resources::pod_request(other, &name)).sum();
        if asked > 0 && used + asked > has {
            return Err(verdict(
                format!("OutOf{name}"),
                format!(
                    "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {has}"
                ),
            ));
        }
    }
    Ok(())
}
