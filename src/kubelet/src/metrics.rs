//! What the kubelet counts while it works, for `/metrics` (upstream `pkg/kubelet/metrics/metrics.go`). Counting is
//! an addition or a small map; the text is made when somebody asks.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use kedge_base::prometheus::{Counter, DEFAULT_BUCKETS, Exposition, Histogram, Kind, labels};
use parking_lot::Mutex;

/// Upstream's `podStartupDurationBuckets`.
const START_TIMES: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

/// What a worker did with its pod, as upstream's `operation_type` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Create,
    /// The object has changed.
    Update,
    /// Something else wanted a look.
    Sync,
    Kill,
    /// Cleaned up.
    Terminated,
}

const ROUNDS: [&str; 5] = ["create", "update", "sync", "kill", "terminated"];

/// What was done with the cgroup of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupWork {
    Create,
    Destroy,
}

const GROUP_WORKS: [&str; 2] = ["create", "destroy"];

/// Numbers by two labels. Both come from the program's own texts, so there are few.
#[derive(Debug, Default)]
struct Counts(Mutex<BTreeMap<[&'static str; 2], u64>>);

impl Counts {
    fn add(&self, key: [&'static str; 2]) {
        *self.0.lock().entry(key).or_default() += 1;
    }

    fn write(&self, out: &mut Exposition, name: &str, help: &str, keys: [&str; 2]) {
        let mut family = out.family(name, Kind::Counter, help);
        for (values, count) in self.0.lock().iter() {
            let pairs = [(keys[0], values[0]), (keys[1], values[1])];
            let used = if keys[1].is_empty() { &pairs[..1] } else { &pairs };
            family.sample(&labels(used), count);
        }
    }
}

/// The folders of the claims that a pod uses, by the claims' names.
type Claims = BTreeMap<String, PathBuf>;

/// One per kubelet.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// From the first sight of a pod until it ran.
    pub(crate) pod_starts: Histogram,
    rounds: [Histogram; ROUNDS.len()],
    group_works: [Histogram; GROUP_WORKS.len()],
    pub(crate) started_pods: Counter,
    pub(crate) failed_pods: Counter,
    started_containers: Counts,
    failed_containers: Counts,
    evictions: Counts,
    /// By the uids of the pods.
    claims: Mutex<HashMap<String, Claims>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            pod_starts: Histogram::new(&START_TIMES),
            rounds: ROUNDS.map(|_| Histogram::new(&DEFAULT_BUCKETS)),
            group_works: GROUP_WORKS.map(|_| Histogram::new(&DEFAULT_BUCKETS)),
            started_pods: Counter::default(),
            failed_pods: Counter::default(),
            started_containers: Counts::default(),
            failed_containers: Counts::default(),
            evictions: Counts::default(),
            claims: Mutex::default(),
        }
    }

    pub(crate) fn round(&self, round: Round, begun: std::time::Instant) {
        self.rounds[round as usize].observe_since(begun);
    }

    pub(crate) fn group_work(&self, work: GroupWork, begun: std::time::Instant) {
        self.group_works[work as usize].observe_since(begun);
    }

    /// A container of this type is about to be started.
    pub(crate) fn starting(&self, container_type: &'static str) {
        self.started_containers.add([container_type, ""]);
    }

    /// It could not be; the reason is the one of its status.
    pub(crate) fn not_started(&self, container_type: &'static str, reason: &'static str) {
        self.failed_containers.add([container_type, reason]);
    }

    pub(crate) fn evicted(&self, signal: &'static str) {
        self.evictions.add([signal, ""]);
    }

    /// The pod uses the claim, which is this folder.
    pub(crate) fn claimed(&self, uid: &str, claim: &str, path: PathBuf) {
        self.claims.lock().entry(uid.to_owned()).or_default().insert(claim.to_owned(), path);
    }

    /// The pod is over.
    pub(crate) fn forget(&self, uid: &str) {
        self.claims.lock().remove(uid);
    }

    pub(crate) fn claims_of(&self, uid: &str) -> Claims {
        self.claims.lock().get(uid).cloned().unwrap_or_default()
    }

    pub(crate) fn write(&self, out: &mut Exposition) {
        let name = "kubelet_pod_start_duration_seconds";
        let help = "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod \
                    starting to run";
        out.family(name, Kind::Histogram, help).histogram("", &self.pod_starts);
        let help = "[ALPHA] Duration in seconds to sync a single pod. Broken down by operation type: create, \
                    update, or sync";
        by_type(out, "kubelet_pod_worker_duration_seconds", help, &ROUNDS, &self.rounds);
        let help = "[ALPHA] Duration in seconds for cgroup manager operations. Broken down by method.";
        by_type(out, "kubelet_cgroup_manager_duration_seconds", help, &GROUP_WORKS, &self.group_works);
        let help = "[ALPHA] Cumulative number of pods started";
        out.single("kubelet_started_pods_total", Kind::Counter, help, self.started_pods.get());
        let help = "[ALPHA] Cumulative number of errors when starting pods";
        out.single("kubelet_started_pods_errors_total", Kind::Counter, help, self.failed_pods.get());
        let help = "[ALPHA] Cumulative number of containers started";
        let keys = ["container_type", ""];
        self.started_containers.write(out, "kubelet_started_containers_total", help, keys);
        let help = "[ALPHA] Cumulative number of errors when starting containers";
        let keys = ["container_type", "code"];
        self.failed_containers.write(out, "kubelet_started_containers_errors_total", help, keys);
        let help = "[ALPHA] Cumulative number of pod evictions by eviction signal";
        self.evictions.write(out, "kubelet_evictions", help, ["eviction_signal", ""]);
    }
}

/// Those that were never observed are left out.
fn by_type(out: &mut Exposition, name: &str, help: &str, types: &[&str], histograms: &[Histogram]) {
    let mut family = out.family(name, Kind::Histogram, help);
    for (kind, histogram) in types.iter().zip(histograms).filter(|(_, histogram)| histogram.count() > 0) {
        family.histogram(&labels(&[("operation_type", kind)]), histogram);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told_and_nothing_else() {
        let metrics = Metrics::new();
        metrics.started_pods.add();
        metrics.starting("init_container");
        metrics.starting("init_container");
        metrics.not_started("container", "ErrImagePull");
        metrics.evicted("memory.available");
        metrics.round(Round::Kill, std::time::Instant::now());
        metrics.pod_starts.observe(2.5);
        metrics.claimed("u", "data", "/x".into());
        assert_eq!(metrics.claims_of("u").len(), 1);
        metrics.forget("u");
        assert!(metrics.claims_of("u").is_empty());
        let mut out = Exposition::default();
        metrics.write(&mut out);
        let text = out.finish();
        for line in [
            "kubelet_started_pods_total 1",
            "kubelet_started_pods_errors_total 0",
            "kubelet_started_containers_total{container_type=\"init_container\"} 2",
            "kubelet_started_containers_errors_total{container_type=\"container\",code=\"ErrImagePull\"} 1",
            "kubelet_evictions{eviction_signal=\"memory.available\"} 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"2\"} 0",
            "kubelet_pod_start_duration_seconds_bucket{le=\"3\"} 1",
            "kubelet_pod_worker_duration_seconds_count{operation_type=\"kill\"} 1",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
        assert!(!text.contains("operation_type=\"create\""), "{text}");
    }
}
