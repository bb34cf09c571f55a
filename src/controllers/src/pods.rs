//! Questions about pods that several controllers ask (upstream pkg/api/v1/pod and pkg/controller).

use std::cmp::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use crate::time;

/// A count as upstream writes most of them: zero is left out.
pub(crate) fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// `status.phase`, empty when not set.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The node it runs on, empty when not scheduled.
pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Succeeded or Failed.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// A condition by its type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_deref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether the Ready condition is True.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when it is ready, when it is and says so.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|time| time.0)
}

/// `Ok`: ready for `min_ready_seconds`. `Err(Some(d))`: will be after `d` if it stays ready.
pub(crate) fn availability(
    pod: &Pod,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Result<(), Option<Duration>> {
    if !is_ready(pod) {
        return Err(None);
    }
    if min_ready_seconds <= 0 {
        return Ok(());
    }
    let since = ready_since(pod).ok_or(None)?;
    let left = time::until(time::plus(since, i64::from(min_ready_seconds)), now);
    if left.is_zero() { Ok(()) } else { Err(Some(left)) }
}

/// Whether it is available now.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    availability(pod, min_ready_seconds, now).is_ok()
}

/// `controller.kubernetes.io/pod-deletion-cost`, zero when missing or not a number.
fn deletion_cost(pod: &Pod) -> i32 {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost"))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

/// Ages are compared by the power of two of their nanoseconds, so that the choice among pods of
/// about the same age is random (by uid) and not always the newest (KEP-2185).
fn age_rank(since: Option<Timestamp>, now: Timestamp) -> i64 {
    let Some(since) = since else { return i64::MIN };
    match now.as_nanosecond() - since.as_nanosecond() {
        age if age > 0 => i64::from(age.ilog2()),
        _ => -1,
    }
}

fn max_restarts(pod: &Pod) -> (i32, i32) {
    let status = pod.status.as_ref();
    let regular = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let regular = regular.iter().map(|c| c.restart_count).max().unwrap_or(0);
    let sidecars: Vec<&str> = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default()
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let init = init.iter().filter(|c| sidecars.contains(&c.name.as_str())).map(|c| c.restart_count).max();
    (regular, init.unwrap_or(0))
}

/// The order in which pods are deleted, first to go first (upstream ActivePodsWithRanks). The rank
/// is the number of related active pods on the same node. A total order, as sorting needs it: where
/// upstream goes straight from the same age class to the uid, restarts and age come in between.
pub(crate) fn deletion_order(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    fn phase_rank(pod: &Pod) -> u8 {
        match phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            "Running" => 2,
            _ => 0,
        }
    }
    let ((a, a_rank), (b, b_rank)) = (a, b);
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let assigned = |pod: &Pod| !node_name(pod).is_empty();
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| b_rank.cmp(&a_rank))
        .then_with(|| age_rank(ready_since(a), now).cmp(&age_rank(ready_since(b), now)))
        .then_with(|| max_restarts(b).cmp(&max_restarts(a)))
        .then_with(|| age_rank(created(a), now).cmp(&age_rank(created(b), now)))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ContainerStatus, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// A pod made from what matters here.
    pub(crate) fn pod(uid: &str, node: &str, phase: &str, ready_since: Option<i64>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.name = Some(uid.into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.creation_timestamp = Some(Time(at(1000)));
        pod.spec =
            Some(PodSpec { node_name: (!node.is_empty()).then(|| node.to_owned()), ..PodSpec::default() });
        pod.status = Some(PodStatus {
            phase: Some(phase.into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: if ready_since.is_some() { "True" } else { "False" }.into(),
                last_transition_time: ready_since.map(|second| Time(at(second))),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        });
        pod
    }

    #[test]
    fn pods_go_in_upstreams_order() {
        let mut cheap = pod("c", "n", "Running", Some(2000));
        cheap.metadata.annotations =
            Some([("controller.kubernetes.io/pod-deletion-cost".to_owned(), "-5".to_owned())].into());
        let mut restarted = pod("g", "n", "Running", Some(2000));
        if let Some(status) = &mut restarted.status {
            status.container_statuses =
                Some(vec![ContainerStatus { restart_count: 3, ..ContainerStatus::default() }]);
        }
        // In the order of deletion, with the rank of each.
        let expected = [
            (pod("z", "", "Pending", None), 0),
            (pod("y", "n", "Pending", None), 0),
            (pod("x", "n", "Running", None), 0),
            (cheap, 0),
            (pod("d", "n", "Running", Some(2000)), 2),
            (pod("e", "n", "Running", Some(9000)), 1),
            (restarted, 1),
            (pod("h", "n", "Running", Some(2000)), 1),
            (pod("i", "n", "Running", Some(2000)), 1),
        ];
        let mut order: Vec<usize> = (0..expected.len()).rev().collect();
        order.sort_by(|&a, &b| {
            let side = |i: usize| (&expected[i].0, expected[i].1);
            deletion_order(side(a), side(b), at(10_000))
        });
        assert_eq!(order, (0..expected.len()).collect::<Vec<_>>());
    }

    #[test]
    fn available_after_min_ready_seconds() {
        let ready = pod("a", "n", "Running", Some(100));
        assert_eq!(availability(&ready, 0, at(100)), Ok(()));
        assert_eq!(availability(&ready, 10, at(104)), Err(Some(Duration::from_secs(6))));
        assert_eq!(availability(&ready, 10, at(110)), Ok(()));
        assert_eq!(availability(&pod("b", "n", "Running", None), 0, at(110)), Err(None));
    }
}
