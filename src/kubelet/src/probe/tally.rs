//! How the probes of the containers have come out, for `/metrics/probes` (upstream
//! `pkg/kubelet/prober/prober_manager.go`). A container that is started again goes on where the one before it
//! was; what is known of a pod goes with the pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kedge_base::prometheus::{Counter, DEFAULT_BUCKETS, Exposition, Histogram, Kind, labels};
use parking_lot::Mutex;

use crate::pod;

/// One probe of one container.
#[derive(Debug)]
pub(super) struct Tally {
    kind: &'static str,
    container: String,
    pod: String,
    namespace: String,
    successful: Counter,
    failed: Counter,
    unknown: Counter,
    /// Of those that succeeded, as upstream.
    times: Histogram,
}

impl Tally {
    pub(super) fn good(&self, took: Duration) {
        self.successful.add();
        self.times.observe(took.as_secs_f64());
    }

    pub(super) fn bad(&self) {
        self.failed.add();
    }

    /// The probe could not be made.
    pub(super) fn error(&self) {
        self.unknown.add();
    }
}

/// All of the node, by the uids of the pods.
#[derive(Debug, Default)]
pub(super) struct Tallies(Mutex<HashMap<String, Vec<Arc<Tally>>>>);

impl Tallies {
    /// The one of this container and kind, made when it is missing.
    pub(super) fn of(&self, target: &Pod, container: &str, kind: &'static str) -> Arc<Tally> {
        let mut all = self.0.lock();
        let of_pod = all.entry(pod::uid(target)).or_default();
        if let Some(known) = of_pod.iter().find(|known| known.kind == kind && known.container == container) {
            return known.clone();
        }
        let made = Arc::new(Tally {
            kind,
            container: container.to_owned(),
            pod: pod::name(target).to_owned(),
            namespace: pod::namespace(target).to_owned(),
            successful: Counter::default(),
            failed: Counter::default(),
            unknown: Counter::default(),
            times: Histogram::new(&DEFAULT_BUCKETS),
        });
        of_pod.push(made.clone());
        made
    }

    pub(super) fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    pub(super) fn write(&self, out: &mut Exposition) {
        let all = self.0.lock();
        let each = || all.iter().flat_map(|(uid, tallies)| tallies.iter().map(move |tally| (uid, tally)));
        let of = |tally: &Tally| {
            [
                ("container", tally.container.as_str()),
                ("namespace", tally.namespace.as_str()),
                ("pod", tally.pod.as_str()),
                ("probe_type", tally.kind),
            ]
            .map(|(name, value)| labels(&[(name, value)]))
            .join(",")
        };
        let help =
            "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
        let mut family = out.family("prober_probe_total", Kind::Counter, help);
        for (uid, tally) in each() {
            let own = of(tally);
            let results =
                [("successful", &tally.successful), ("failed", &tally.failed), ("unknown", &tally.unknown)];
            for (result, count) in results.into_iter().filter(|(_, count)| count.get() > 0) {
                let more = labels(&[("pod_uid", uid), ("result", result)]);
                family.sample_with(&own, &more, count.get());
            }
        }
        let help = "[ALPHA] Duration in seconds for a probe response.";
        let mut family = out.family("prober_probe_duration_seconds", Kind::Histogram, help);
        // These labels do not tell a pod from the one before it with the same name: one of them stands.
        let mut told = std::collections::HashSet::new();
        for (_, tally) in each().filter(|(_, tally)| tally.times.count() > 0) {
            let own = of(tally);
            if told.insert(own.clone()) {
                family.histogram(&own, &tally.times);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.name = Some("web".into());
        pod.metadata.namespace = Some("shop".into());
        pod
    }

    fn text(tallies: &Tallies) -> String {
        let mut out = Exposition::default();
        tallies.write(&mut out);
        out.finish()
    }

    #[test]
    fn results_are_counted_by_container_and_kind_until_the_pod_is_gone() {
        let tallies = Tallies::default();
        assert_eq!(text(&tallies), "");
        tallies.of(&pod("u"), "c", "readiness").good(Duration::from_millis(30));
        tallies.of(&pod("u"), "c", "readiness").bad();
        // The same container, started again.
        tallies.of(&pod("u"), "c", "readiness").bad();
        tallies.of(&pod("u"), "c", "liveness").error();
        tallies.of(&pod("v"), "c", "readiness").good(Duration::from_millis(30));
        let all = text(&tallies);
        let base = "container=\"c\",namespace=\"shop\",pod=\"web\"";
        for line in [
            format!(
                "prober_probe_total{{{base},probe_type=\"readiness\",pod_uid=\"u\",result=\"successful\"}} 1"
            ),
            format!(
                "prober_probe_total{{{base},probe_type=\"readiness\",pod_uid=\"u\",result=\"failed\"}} 2"
            ),
            format!(
                "prober_probe_total{{{base},probe_type=\"liveness\",pod_uid=\"u\",result=\"unknown\"}} 1"
            ),
            format!("prober_probe_duration_seconds_bucket{{{base},probe_type=\"readiness\",le=\"0.05\"}} 1"),
            format!("prober_probe_duration_seconds_count{{{base},probe_type=\"readiness\"}} 1"),
        ] {
            assert_eq!(all.lines().filter(|own| **own == line).count(), 1, "{line} in {all}");
        }
        tallies.forget("u");
        let left = text(&tallies);
        assert!(!left.contains("pod_uid=\"u\"") && left.contains("pod_uid=\"v\""), "{left}");
    }
}
