//! How many pods a resource metric asks for (upstream controller/podautoscaler/replica_calculator.go
//! and metrics/utilization.go). Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kedge_api::quantity::Quantity;

use crate::{pods, time};

/// A new pod's CPU is not counted for so long (`--horizontal-pod-autoscaler-cpu-initialization-period`).
const INITIALIZATION: i64 = 300;
/// A pod that has been unready since this time after its start has never been ready
/// (`--horizontal-pod-autoscaler-initial-readiness-delay`).
const READINESS_DELAY: i64 = 30;
/// `--horizontal-pod-autoscaler-tolerance`.
pub(super) const TOLERANCE: f64 = 0.1;

/// One pod's use, in thousandths of the resource's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) value: i64,
    pub(super) at: Timestamp,
    pub(super) window: Duration,
}

pub(super) type Samples = HashMap<String, Sample>;

/// How far from 1 the ratio may be without a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn holds(self, ratio: f64) -> bool {
        // As many digits as matter: 1.1 - 1 is not 0.1 in floating point.
        let near = 1e-9;
        ratio >= 1.0 - self.down - near && ratio <= 1.0 + self.up + near
    }
}

/// What the metric should be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// Percent of what is requested.
    Utilization(i32),
    /// Thousandths, on average.
    Average(i64),
}

/// Which resource of which containers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resource<'a> {
    pub(super) name: &'a str,
    /// `None`: all of them.
    pub(super) container: Option<&'a str>,
}

/// The answer, and the metric as it is: percent of the requests, thousandths on average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) utilization: Option<i32>,
    pub(super) average: i64,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Groups<'a> {
    ready: usize,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
    ignored: Vec<&'a str>,
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whether the CPU of a pod that runs says nothing yet: it starts, or has never been ready.
fn is_starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(condition), Some(started)) = (pods::condition(pod, "Ready"), started) else { return true };
    let unready = condition.status == "False";
    let changed = condition.last_transition_time.as_ref().map_or(started, |time| time.0);
    if time::plus(started, INITIALIZATION) > now {
        let window = i64::try_from(sample.window.as_secs()).unwrap_or(0);
        return unready || sample.at < time::plus(changed, window);
    }
    unready && time::plus(started, READINESS_DELAY) > changed
}

fn group<'a>(pods: &'a [Arc<Pod>], samples: &Samples, resource: &str, now: Timestamp) -> Groups<'a> {
    let mut groups = Groups::default();
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
            groups.ignored.push(name(pod));
        } else if pods::phase(pod) == "Pending" {
            groups.unready.push(name(pod));
        } else {
            match samples.get(name(pod)) {
                None => groups.missing.push(name(pod)),
                Some(sample) if resource == "cpu" && is_starting(pod, sample, now) => {
                    groups.unready.push(name(pod));
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// What the pods request of the resource, in thousandths.
fn requests(pods: &[Arc<Pod>], resource: Resource<'_>) -> Result<HashMap<String, i64>, String> {
    let mut all = HashMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let of = |container: &Container| -> Option<i64> {
            let requests = container.resources.as_ref()?.requests.as_ref()?;
            let amount: Quantity = requests.get(resource.name)?.0.parse().ok()?;
            Some(amount.milli_value())
        };
        let mut sum = 0;
        for container in spec.containers.iter().chain(sidecars) {
            if resource.container.is_none_or(|wanted| wanted == container.name) {
                sum += of(container).ok_or_else(|| {
                    format!(
                        "missing request for {} in container {} of Pod {}",
                        resource.name,
                        container.name,
                        name(pod)
                    )
                })?;
            }
        }
        all.insert(name(pod).to_owned(), sum);
    }
    Ok(all)
}

/// The ratio of what is used to what should be, and the metric itself.
fn ratio(
    samples: &HashMap<String, i64>,
    requests: &HashMap<String, i64>,
    target: Target,
) -> Result<(f64, Option<i32>, i64), String> {
    let count = i64::try_from(samples.len()).unwrap_or(i64::MAX).max(1);
    match target {
        Target::Average(target) => {
            let average = samples.values().sum::<i64>() / count;
            Ok((average as f64 / target as f64, None, average))
        }
        Target::Utilization(target) => {
            let with_request = || samples.iter().filter_map(|(pod, value)| Some((value, requests.get(pod)?)));
            let used: i64 = with_request().map(|(value, _)| value).sum();
            let requested: i64 = with_request().map(|(_, request)| request).sum();
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            let entries = i64::try_from(with_request().count()).unwrap_or(1).max(1);
            Ok((f64::from(utilization) / f64::from(target), Some(utilization), used / entries))
        }
    }
}

fn ceil(ratio: f64, count: usize) -> i32 {
    let wanted = (ratio * count as f64).ceil();
    if wanted >= f64::from(i32::MAX) { i32::MAX } else { wanted as i32 }
}

/// The number of pods that brings the metric to its target. Pods without a metric count against the
/// direction of the change, so that too much is never done on too little knowledge.
pub(super) fn propose(
    current: i32,
    pods: &[Arc<Pod>],
    samples: &Samples,
    resource: Resource<'_>,
    target: Target,
    tolerances: Tolerances,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let groups = group(pods, samples, resource.name, now);
    let mut used: HashMap<String, i64> = samples
        .iter()
        .filter(|(pod, _)| !groups.ignored.contains(&pod.as_str()) && !groups.unready.contains(&pod.as_str()))
        .map(|(pod, sample)| (pod.clone(), sample.value))
        .collect();
    if used.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let requests = match target {
        Target::Utilization(_) => requests(pods, resource)?,
        Target::Average(_) => HashMap::new(),
    };
    let (first, utilization, average) = ratio(&used, &requests, target)?;
    let proposal = |replicas| Proposal { replicas, utilization, average };
    let with_unready = !groups.unready.is_empty() && first > 1.0;
    if !with_unready && groups.missing.is_empty() {
        if tolerances.holds(first) {
            return Ok(proposal(current));
        }
        return Ok(proposal(ceil(first, groups.ready)));
    }
    for pod in &groups.missing {
        let value = match target {
            _ if first > 1.0 => 0,
            Target::Average(target) => {
                if first < 1.0 {
                    target
                } else {
                    0
                }
            }
            Target::Utilization(_) if first == 1.0 => continue,
            Target::Utilization(target) => {
                requests.get(*pod).copied().unwrap_or(0) * i64::from(target.max(100)) / 100
            }
        };
        used.insert((*pod).to_owned(), value);
    }
    if with_unready {
        used.extend(groups.unready.iter().map(|pod| ((*pod).to_owned(), 0)));
    }
    let (second, ..) = ratio(&used, &requests, target)?;
    let turned = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
    if tolerances.holds(second) || turned {
        return Ok(proposal(current));
    }
    let wanted = ceil(second, used.len());
    if (second < 1.0 && wanted > current) || (second > 1.0 && wanted < current) {
        return Ok(proposal(current));
    }
    Ok(proposal(wanted))
}

/// The number of pods that brings one number for all of them to its target (upstream
/// getUsageRatioReplicaCount). Both in thousandths.
pub(super) fn for_value(
    current: i32,
    pods: &[Arc<Pod>],
    value: i64,
    target: i64,
    tolerances: Tolerances,
) -> Result<i32, String> {
    let ratio = value as f64 / target as f64;
    if current == 0 {
        return Ok(ceil(ratio, 1));
    }
    if tolerances.holds(ratio) {
        return Ok(current);
    }
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let ready = pods.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
    Ok(ceil(ratio, ready.count()))
}

/// The number of pods of which each has its share of a number, and the share of each that is there (upstream
/// GetObjectPerPodMetricReplicas and GetExternalPerPodMetricReplicas). All in thousandths.
pub(super) fn for_each_pod(current: i32, value: i64, target: i64, tolerances: Tolerances) -> (i32, i64) {
    let share = value as f64 / f64::from(current.max(1));
    let ratio = value as f64 / (target as f64 * f64::from(current));
    let replicas = if tolerances.holds(ratio) { current } else { ceil(value as f64 / target as f64, 1) };
    (replicas, share.ceil() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::at;
    use serde_json::json;

    /// Phase, whether ready, started at, became (un)ready at.
    fn pod(index: usize, phase: &str, ready: bool, started: i64, changed: i64) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": format!("p{index}") },
                "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] },
                "status": { "phase": phase, "startTime": at(started).to_string(), "conditions": [
                    { "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(changed).to_string() }] } }))
            .expect("a pod"),
        )
    }

    #[test]
    fn replicas_follow_the_metric() {
        let now = 10_000;
        let good = ("Running", true, 100, 200);
        let pending = ("Pending", false, 9_999, 9_999);
        let young = ("Running", false, 9_950, 9_950);
        let never = ("Running", false, 100, 110);
        let failed = ("Failed", false, 100, 200);
        let tolerances = Tolerances { down: TOLERANCE, up: TOLERANCE };
        for (what, pods, samples, target, expected) in [
            ("up", vec![good; 3], vec![Some(300), Some(500), Some(700)], Target::Utilization(30), Ok(5)),
            ("within tolerance", vec![good; 3], vec![Some(500); 3], Target::Utilization(46), Ok(3)),
            ("down", vec![good; 5], vec![Some(100); 5], Target::Utilization(50), Ok(1)),
            ("average", vec![good; 2], vec![Some(400); 2], Target::Average(200), Ok(4)),
            (
                "missing hold back a rise",
                vec![good; 4],
                vec![Some(600), Some(600), None, None],
                Target::Utilization(50),
                Ok(4),
            ),
            (
                "missing soften a fall",
                vec![good; 3],
                vec![Some(100), Some(100), None],
                Target::Utilization(50),
                Ok(3),
            ),
            (
                "unready hold back a rise",
                vec![good, pending, pending],
                vec![Some(1000), None, None],
                Target::Utilization(50),
                Ok(3),
            ),
            (
                "still enough for a rise",
                vec![good, good, young],
                vec![Some(900), Some(900), Some(900)],
                Target::Utilization(30),
                Ok(6),
            ),
            (
                "unready do not hinder a fall",
                vec![good, good, pending],
                vec![Some(100), Some(100), None],
                Target::Utilization(50),
                Ok(1),
            ),
            ("never ready", vec![good, never], vec![Some(500), Some(9000)], Target::Utilization(50), Ok(2)),
            (
                "failed do not count",
                vec![good, failed],
                vec![Some(1000), None],
                Target::Utilization(50),
                Ok(2),
            ),
            ("nothing known", vec![pending], vec![None], Target::Utilization(50), Err(())),
            ("no pods", vec![], vec![], Target::Utilization(50), Err(())),
        ] {
            let list: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(i, (phase, ready, started, changed))| pod(i, phase, *ready, *started, *changed))
                .collect();
            let samples: Samples = samples
                .iter()
                .enumerate()
                .filter_map(|(i, value)| {
                    Some((
                        format!("p{i}"),
                        Sample { value: (*value)?, at: at(now - 15), window: Duration::from_secs(30) },
                    ))
                })
                .collect();
            let current = i32::try_from(list.len()).expect("few");
            let resource = Resource { name: "cpu", container: None };
            let found = propose(current, &list, &samples, resource, target, tolerances, at(now));
            assert_eq!(found.map(|proposal| proposal.replicas).map_err(|_| ()), expected, "{what}");
        }
    }

    #[test]
    fn requests_are_needed_for_percentages() {
        let list = [pod(0, "Running", true, 100, 200)];
        let samples =
            Samples::from([("p0".to_owned(), Sample { value: 1, at: at(1), window: Duration::ZERO })]);
        let resource = Resource { name: "memory", container: Some("c") };
        let tolerances = Tolerances { down: TOLERANCE, up: TOLERANCE };
        let found = propose(1, &list, &samples, resource, Target::Utilization(50), tolerances, at(10_000));
        assert_eq!(found, Err("missing request for memory in container c of Pod p0".into()));
    }
}
