//! Requests and limits: quality of service, CPU shares and quota, OOM scores, sums over a pod
//! (upstream `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`, `component-helpers/resource`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kedge_api::quantity::Quantity;

use crate::pod;

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// CFS period in microseconds.
pub(crate) const PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1000;

pub(crate) type Amounts = BTreeMap<String, ApiQuantity>;

/// The quality of service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The value of a quantity in whole units; what cannot be parsed counts as nothing (the API server
/// has validated it).
pub(crate) fn value(quantity: &ApiQuantity) -> i64 {
    quantity.0.parse::<Quantity>().map_or(0, |quantity| quantity.value())
}

/// The value in thousandths.
pub(crate) fn milli(quantity: &ApiQuantity) -> i64 {
    quantity.0.parse::<Quantity>().map_or(0, |quantity| quantity.milli_value())
}

pub(crate) fn requests(container: &Container) -> Amounts {
    let resources = container.resources.clone().unwrap_or_default();
    let mut requests = resources.requests.unwrap_or_default();
    for (name, limit) in resources.limits.unwrap_or_default() {
        requests.entry(name).or_insert(limit);
    }
    requests
}

pub(crate) fn limits(container: &Container) -> Amounts {
    container.resources.as_ref().and_then(|resources| resources.limits.clone()).unwrap_or_default()
}

/// The class, from the requests and limits of all containers for CPU and memory.
pub(crate) fn qos(pod: &Pod) -> Qos {
    if let Some(class) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        match class {
            "Guaranteed" => return Qos::Guaranteed,
            "Burstable" => return Qos::Burstable,
            "BestEffort" => return Qos::BestEffort,
            _ => {}
        }
    }
    let mut any = false;
    let mut guaranteed = true;
    for container in pod::containers(pod).iter().chain(pod::init_containers(pod)) {
        let resources = container.resources.clone().unwrap_or_default();
        let requests = resources.requests.unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        for name in ["cpu", "memory"] {
            let request = requests.get(name).map_or(0, milli);
            let limit = limits.get(name).map_or(0, milli);
            any |= request > 0 || limit > 0;
            if limit == 0 || (request != 0 && request != limit) {
                guaranteed = false;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// CPU in thousandths to cgroup v1 shares.
pub(crate) fn cpu_shares(milli_cpu: i64) -> i64 {
    (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CPU limit in thousandths to a CFS quota in microseconds; 0 means none.
pub(crate) fn cpu_quota(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 { 0 } else { (milli_cpu * PERIOD / 1000).max(MIN_QUOTA) }
}

/// cgroup v1 shares to a cgroup v2 weight (the formula of KEP-2254).
pub(crate) fn cpu_weight(shares: i64) -> i64 {
    if shares <= 0 { 0 } else { 1 + ((shares.clamp(MIN_SHARES, MAX_SHARES) - 2) * 9999) / 262_142 }
}

/// The OOM score adjustment of a container (upstream `GetContainerOOMScoreAdjust`).
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    let critical = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0) >= 2_000_000_000;
    if critical {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let memory = requests(container).get("memory").map_or(0, value);
            let score = 1000 - (1000 * memory) / node_memory.max(1);
            score.clamp(3, 999)
        }
    }
}

/// The pod's sum of a resource in `unit` (requests or limits), with init containers and sidecars as
/// the scheduler counts them.
fn pod_sum(pod: &Pod, name: &str, of: fn(&Container) -> Amounts, unit: fn(&ApiQuantity) -> i64) -> i64 {
    let amount = |container: &Container| of(container).get(name).map_or(0, unit);
    let mut sum: i64 = pod::containers(pod).iter().map(amount).sum();
    let mut sidecars = 0;
    let mut peak = 0;
    for container in pod::init_containers(pod) {
        if pod::is_sidecar(container) {
            sidecars += amount(container);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + amount(container));
        }
    }
    sum = (sum + sidecars).max(peak);
    let overhead = pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref());
    sum + overhead.and_then(|overhead| overhead.get(name)).map_or(0, unit)
}

/// The limits of all containers that have one, added up as requests are.
pub(crate) fn sum_of_limits(pod: &Pod, name: &str) -> i64 {
    pod_sum(pod, name, limits, value)
}

/// What the pod asks of a resource; CPU in thousandths, everything else in whole units.
pub(crate) fn pod_request(pod: &Pod, name: &str) -> i64 {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let unit = if name == "cpu" { milli } else { value };
    match of_pod.and_then(|requests| requests.get(name)) {
        Some(request) => unit(request),
        None => pod_sum(pod, name, requests, unit),
    }
}

/// The pod's limit of a resource, or `None` when a container has none.
pub(crate) fn pod_limit(pod: &Pod, name: &str) -> Option<i64> {
    let unit = if name == "cpu" { milli } else { value };
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()).and_then(|r| r.limits.as_ref());
    if let Some(limit) = of_pod.and_then(|limits| limits.get(name)) {
        return Some(unit(limit));
    }
    let all = pod::containers(pod).iter().chain(pod::init_containers(pod));
    for container in all {
        if limits(container).get(name).map_or(0, unit) == 0 {
            return None;
        }
    }
    Some(pod_sum(pod, name, limits, unit))
}

/// Names of all resources that a pod asks for.
pub(crate) fn requested_names(pod: &Pod) -> Vec<String> {
    let mut names: Vec<String> = pod::containers(pod)
        .iter()
        .chain(pod::init_containers(pod))
        .flat_map(|container| requests(container).into_keys())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

    pub(crate) fn amounts(list: &[(&str, &str)]) -> Option<Amounts> {
        Some(list.iter().map(|(n, q)| ((*n).to_owned(), ApiQuantity((*q).to_owned()))).collect())
    }

    fn pod_with(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Pod {
        let container = Container {
            name: "c".into(),
            resources: Some(ResourceRequirements {
                requests: amounts(requests),
                limits: amounts(limits),
                claims: None,
            }),
            ..Container::default()
        };
        Pod { spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }), ..Pod::default() }
    }

    #[test]
    fn classes() {
        for (requests, limits, expected) in [
            (&[][..], &[][..], Qos::BestEffort),
            (&[("cpu", "100m")][..], &[][..], Qos::Burstable),
            (&[][..], &[("cpu", "1"), ("memory", "1Gi")][..], Qos::Guaranteed),
            (&[("cpu", "1"), ("memory", "1Gi")][..], &[("cpu", "1"), ("memory", "1Gi")][..], Qos::Guaranteed),
            (
                &[("cpu", "500m"), ("memory", "1Gi")][..],
                &[("cpu", "1"), ("memory", "1Gi")][..],
                Qos::Burstable,
            ),
        ] {
            assert_eq!(qos(&pod_with(requests, limits)), expected, "{requests:?} {limits:?}");
        }
    }

    #[test]
    fn shares_quota_and_weight() {
        assert_eq!([0, 1, 250, 1000].map(cpu_shares), [2, 2, 256, 1024]);
        assert_eq!([0, 5, 500, 2000].map(cpu_quota), [0, 1000, 50_000, 200_000]);
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 39, 10_000]);
    }

    #[test]
    fn sums_count_init_containers_as_peaks() {
        let mut pod = pod_with(&[("cpu", "100m")], &[]);
        let mut init = pod_with(&[("cpu", "300m")], &[]).spec.unwrap_or_default().containers;
        if let Some(spec) = &mut pod.spec {
            spec.init_containers = Some(init.clone());
        }
        assert_eq!(pod_request(&pod, "cpu"), 300);
        init[0].restart_policy = Some("Always".into());
        if let Some(spec) = &mut pod.spec {
            spec.init_containers = Some(init);
        }
        assert_eq!(pod_request(&pod, "cpu"), 400);
        assert_eq!(pod_limit(&pod, "memory"), None);
    }

    #[test]
    fn oom_scores() {
        let node = 4 << 30;
        let best = pod_with(&[], &[]);
        let burst = pod_with(&[("memory", "1Gi")], &[]);
        let sure = pod_with(&[], &[("cpu", "1"), ("memory", "1Gi")]);
        let score = |pod: &Pod| oom_score_adj(pod, &pod::containers(pod)[0], node);
        assert_eq!([score(&best), score(&burst), score(&sure)], [1000, 750, -997]);
    }
}
