//! The last two looks at every node and container, and the rates between them
//! (metrics-server `pkg/storage`).

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::text::samples;

/// A container younger than the time between two looks counts from its start, but not before it has run
/// for this long (milliseconds; metrics-server `freshContainerMinMetricsResolution`).
const FRESH: i64 = 10_000;

/// One look at a node or container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Point {
    /// Milliseconds since 1970.
    pub(crate) at: i64,
    /// Milliseconds since 1970; 0: not told.
    started: i64,
    /// Seconds of one processor.
    cpu: Option<f64>,
    /// Bytes.
    memory: Option<f64>,
}

impl Point {
    fn is_complete(&self) -> bool {
        self.at > 0 && self.cpu.is_some() && self.memory.is_some()
    }
}

/// Namespace and name of a pod.
pub(crate) type PodKey = (String, String);

/// One kubelet's answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Look {
    node: Option<Point>,
    pods: BTreeMap<PodKey, BTreeMap<String, Point>>,
}

impl Look {
    /// Parses `/metrics/resource`. `now`: for samples without a time, milliseconds since 1970.
    pub(crate) fn parse(text: &str, now: i64) -> Self {
        let mut look = Self::default();
        for sample in samples(text) {
            let at = sample.at.unwrap_or(now);
            let point = if sample.name.starts_with("node_") {
                look.node.get_or_insert_default()
            } else if sample.name.starts_with("container_") {
                let label = |name: &str| sample.label(name).filter(|value| !value.is_empty());
                let (Some(namespace), Some(pod), Some(container)) =
                    (label("namespace"), label("pod"), label("container"))
                else {
                    continue;
                };
                let pod = look.pods.entry((namespace.to_owned(), pod.to_owned())).or_default();
                pod.entry(container.to_owned()).or_default()
            } else {
                continue;
            };
            match sample.name {
                "node_cpu_usage_seconds_total" | "container_cpu_usage_seconds_total" => {
                    (point.cpu, point.at) = (Some(sample.value), at);
                }
                "node_memory_working_set_bytes" | "container_memory_working_set_bytes" => {
                    point.memory = Some(sample.value);
                    point.at = if point.at == 0 { at } else { point.at };
                }
                "container_start_time_seconds" => point.started = (sample.value * 1000.0) as i64,
                _ => {}
            }
        }
        look.node = look.node.filter(Point::is_complete);
        // A pod of which a container is not known would look smaller than it is.
        look.pods.retain(|_, containers| containers.values().all(Point::is_complete));
        look
    }
}

/// What was used between two looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// Billionths of a processor.
    pub(crate) nano_cores: u64,
    /// Bytes, at the second look.
    pub(crate) memory: u64,
    /// The second look, milliseconds since 1970.
    pub(crate) at: i64,
    /// Milliseconds between the two.
    pub(crate) window: i64,
}

fn rate(before: Option<&Point>, now: &Point, resolution: i64) -> Option<Rate> {
    let (cpu, memory) = (now.cpu?, now.memory?);
    // Another container of the same name: its count began anew.
    let before = before.filter(|before| before.at < now.at && now.started <= before.at);
    let before = before.filter(|before| before.cpu.is_some_and(|earlier| earlier <= cpu));
    let (since, used) = match before {
        Some(before) => (before.at, cpu - before.cpu?),
        None => {
            let age = now.at - now.started;
            let fresh = now.started > 0 && age >= FRESH && age < resolution.max(FRESH) * 2;
            if !fresh {
                return None;
            }
            (now.started, cpu)
        }
    };
    let window = now.at - since;
    let nano_cores = (used * 1e12 / window as f64) as u64;
    Some(Rate { nano_cores, memory: memory as u64, at: now.at, window })
}

#[derive(Debug, Default)]
struct Pair {
    before: Option<Look>,
    last: Look,
    /// Milliseconds.
    resolution: i64,
}

/// All nodes' looks.
#[derive(Debug, Default)]
pub(crate) struct Points(Mutex<BTreeMap<String, Pair>>);

impl Points {
    /// Takes in what a node's kubelet said.
    pub(crate) fn add(&self, node: &str, look: Look, resolution: i64) {
        let mut all = self.0.lock();
        let pair = all.entry(node.to_owned()).or_default();
        pair.resolution = resolution;
        // Asked twice in the same moment, a kubelet says the same: no rate comes from that.
        if look.node.is_some() && look.node.map(|point| point.at) == pair.last.node.map(|point| point.at) {
            return;
        }
        let first = pair.last == Look::default();
        let last = std::mem::replace(&mut pair.last, look);
        pair.before = if first { None } else { Some(last) };
    }

    /// Forgets nodes that are not among these.
    pub(crate) fn retain(&self, known: impl Fn(&str) -> bool) {
        self.0.lock().retain(|name, _| known(name));
    }

    /// A node that did not answer has no metrics any more.
    pub(crate) fn forget(&self, node: &str) {
        self.0.lock().remove(node);
    }

    pub(crate) fn node(&self, name: &str) -> Option<Rate> {
        let all = self.0.lock();
        let pair = all.get(name)?;
        rate(pair.before.as_ref()?.node.as_ref(), pair.last.node.as_ref()?, pair.resolution)
    }

    /// Each container of the pod with its rate; `None` unless all are known.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Vec<(String, Rate)>> {
        let key = (namespace.to_owned(), name.to_owned());
        let all = self.0.lock();
        all.values().find_map(|pair| {
            let now = pair.last.pods.get(&key)?;
            let before = pair.before.as_ref().and_then(|before| before.pods.get(&key));
            let of = |name: &String, point: &Point| {
                let earlier = before.and_then(|containers| containers.get(name));
                Some((name.clone(), rate(earlier, point, pair.resolution)?))
            };
            now.iter().map(|(name, point)| of(name, point)).collect()
        })
    }

    /// Whether there is anything to tell: rates need two looks.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.lock().values().any(|pair| pair.before.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(at: i64, cpu: f64, started: f64) -> String {
        format!(
            "node_cpu_usage_seconds_total {cpu} {at}\nnode_memory_working_set_bytes 4096 {at}\n\
             container_cpu_usage_seconds_total{{container=\"c\",namespace=\"n\",pod=\"p\"}} {cpu} {at}\n\
             container_memory_working_set_bytes{{container=\"c\",namespace=\"n\",pod=\"p\"}} 2048 {at}\n\
             container_start_time_seconds{{container=\"c\",namespace=\"n\",pod=\"p\"}} {started}\n\
             container_cpu_usage_seconds_total{{container=\"c\",namespace=\"n\",pod=\"half\"}} {cpu} {at}\n"
        )
    }

    #[test]
    fn rates_are_between_the_last_two_looks() {
        let points = Points::default();
        points.add("a", Look::parse(&text(100_000, 10.0, 1.0), 0), 15_000);
        assert_eq!((points.node("a"), points.pod("n", "p"), points.is_ready()), (None, None, false));
        points.add("a", Look::parse(&text(110_000, 12.5, 1.0), 0), 15_000);
        let expected = Rate { nano_cores: 250_000_000, memory: 4096, at: 110_000, window: 10_000 };
        assert_eq!(points.node("a"), Some(expected));
        let pod = Rate { memory: 2048, ..expected };
        assert_eq!(points.pod("n", "p"), Some(vec![("c".to_owned(), pod)]));
        assert_eq!(points.pod("n", "half"), None, "its memory is not known");
        assert!(points.is_ready());
        // The same answer again changes nothing.
        points.add("a", Look::parse(&text(110_000, 12.5, 1.0), 0), 15_000);
        assert_eq!(points.node("a"), Some(expected));
        points.forget("a");
        assert_eq!(points.node("a"), None);
    }

    #[test]
    fn a_container_that_started_anew_counts_from_its_start() {
        for (at, cpu, started, expected) in [
            // It runs since 12 s: a rate over these.
            (130_000, 3.0, 118.0, Some((250_000_000, 12_000))),
            // Too young to tell.
            (130_000, 3.0, 125.0, None),
            // No start is told and the count is lower than before.
            (130_000, 3.0, 0.0, None),
        ] {
            let points = Points::default();
            points.add("a", Look::parse(&text(115_000, 10.0, 1.0), 0), 15_000);
            points.add("a", Look::parse(&text(at, cpu, started), 0), 15_000);
            let found = points.pod("n", "p").map(|pod| (pod[0].1.nano_cores, pod[0].1.window));
            assert_eq!(found, expected, "{at} {cpu} {started}");
        }
    }
}
