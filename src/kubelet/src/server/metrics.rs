//! How much of the node its containers use: `/stats/summary` and `/metrics/resource`, from CRI's
//! container statistics and the cgroups of the pods and of the node.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use kedge_base::Order as _;
use kedge_base::prometheus::{Exposition, Kind, Nanoseconds, labels};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use super::{Answer, Refusal, exposition, json as answer};
use crate::cgroup::Usage;
use crate::core::Shared;
use crate::runtime::keys;
use crate::{Error, pod};

/// What is known at one moment.
#[derive(Debug, Default)]
struct Snapshot {
    /// Nanoseconds since 1970.
    at: i64,
    node: Option<Usage>,
    pods: Vec<PodUse>,
    /// Something that should have been there could not be read.
    failed: bool,
}

#[derive(Debug)]
struct PodUse {
    namespace: String,
    name: String,
    uid: String,
    /// Seconds since 1970.
    started: Option<i64>,
    usage: Option<Usage>,
    containers: Vec<ContainerUse>,
}

#[derive(Debug)]
struct ContainerUse {
    name: String,
    /// Nanoseconds since 1970.
    created: i64,
    /// Nanoseconds of one processor, and when they were counted.
    cpu: Option<(u64, i64)>,
    nano_cores: Option<u64>,
    /// Bytes, and when.
    working_set: Option<(u64, i64)>,
    /// All of it, as the runtime says it.
    memory: Option<cri::MemoryUsage>,
}

/// Namespace, pod, uid and container of a statistic.
fn names(stats: &cri::ContainerStats) -> [String; 4] {
    let labels = stats.attributes.as_ref().map(|attributes| &attributes.labels);
    [keys::POD_NAMESPACE, keys::POD_NAME, keys::POD_UID, keys::CONTAINER_NAME]
        .map(|key| labels.and_then(|labels| labels.get(key)).cloned().unwrap_or_default())
}

async fn look(core: &Shared) -> Result<Snapshot, Error> {
    let request = cri::ListContainerStatsRequest { filter: None };
    let stats = core.runtime.cri().list_container_stats(request).await?.into_inner().stats;
    let state = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 };
    let filter = cri::ContainerFilter { state: Some(state), ..Default::default() };
    let running = core.runtime.list_containers(Some(filter)).await?;
    let created = running.into_iter().map(|container| (container.id, container.created_at)).collect();
    let pods = core.pods.list();
    let cgroups = core.cgroups.clone();
    // Hundreds of small files: not for a thread that others wait for.
    let groups = tokio::task::spawn_blocking(move || {
        let of_pods: Vec<(Arc<Pod>, Option<Usage>)> = pods
            .into_iter()
            .map(|pod| {
                let usage = cgroups.pod_usage(&pod);
                (pod, usage)
            })
            .collect();
        (cgroups.node_usage(), of_pods)
    });
    let (node, of_pods) =
        groups.await.map_err(|error| Error::other(format!("the cgroups could not be read: {error}")))?;
    Ok(assemble(now(), &stats, &created, node, &of_pods))
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

fn assemble(
    at: i64,
    stats: &[cri::ContainerStats],
    created: &HashMap<String, i64>,
    node: Option<Usage>,
    of_pods: &[(Arc<Pod>, Option<Usage>)],
) -> Snapshot {
    let mut containers: BTreeMap<String, Vec<ContainerUse>> = BTreeMap::new();
    for stat in stats {
        let id = stat.attributes.as_ref().map_or("", |attributes| attributes.id.as_str());
        // One that has ended is listed until it is removed.
        let Some(created) = created.get(id) else { continue };
        let [_, _, uid, name] = names(stat);
        let cpu = stat.cpu.as_ref();
        let memory = stat.memory.as_ref();
        let used = cpu.and_then(|cpu| Some((cpu.usage_core_nano_seconds.as_ref()?.value, cpu.timestamp)));
        let working_set = memory.and_then(|memory| {
            let value = memory.working_set_bytes.as_ref()?.value;
            Some((value, memory.timestamp))
        });
        containers.entry(uid).or_default().push(ContainerUse {
            name,
            created: *created,
            cpu: used,
            nano_cores: cpu.and_then(|cpu| cpu.usage_nano_cores.as_ref()).map(|cores| cores.value),
            working_set,
            memory: stat.memory,
        });
    }
    let mut failed = node.is_none();
    let mut pods = Vec::new();
    for (target, usage) in of_pods {
        let uid = pod::uid(target);
        let Some(mut containers) = containers.remove(&uid) else { continue };
        containers.order_by(|a, b| a.name.cmp(&b.name));
        failed |= usage.is_none();
        pods.push(PodUse {
            namespace: target.metadata.namespace.clone().unwrap_or_default(),
            name: target.metadata.name.clone().unwrap_or_default(),
            uid,
            started: pod::status(target).start_time.map(|time| time.0.as_second()),
            usage: *usage,
            containers,
        });
    }
    pods.order_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Snapshot { at, node, pods, failed }
}

/// `pkg/kubelet/metrics/collectors/resource_metrics.go`.
pub(super) async fn resource(core: &Shared) -> Result<Answer, Refusal> {
    let snapshot = look(core).await.unwrap_or_else(|error| {
        tracing::warn!(error = %error.text(), "resource metrics not read");
        Snapshot { failed: true, ..Snapshot::default() }
    });
    Ok(exposition(snapshot.to_text()))
}

/// `pkg/kubelet/apis/stats/v1alpha1`.
pub(super) async fn summary(core: &Shared) -> Result<Answer, Refusal> {
    let snapshot = look(core).await.map_err(|error| Refusal::internal(&error))?;
    let mut node = snapshot.node_summary(&core.config.node_name);
    if let Ok(stat) = statvfs(&core.config.root_dir) {
        let size = stat.fragment_size();
        node["fs"] = json!({
            "time": moment(snapshot.at),
            "availableBytes": stat.blocks_available() * size,
            "capacityBytes": stat.blocks() * size,
            "usedBytes": stat.blocks().saturating_sub(stat.blocks_free()) * size,
            "inodesFree": stat.files_free(),
            "inodes": stat.files(),
            "inodesUsed": stat.files().saturating_sub(stat.files_free()),
        });
    }
    Ok(answer(&json!({ "node": node, "pods": snapshot.pod_summaries() })))
}

fn moment(nanoseconds: i64) -> Value {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map_or(Value::Null, |time| json!(format!("{time:.0}")))
}

/// A value and when it was measured, in nanoseconds since 1970.
struct At<T>(T, i64);

impl<T: Display> Display for At<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.0, self.1 / 1_000_000)
    }
}

impl Snapshot {
    fn to_text(&self) -> String {
        let mut out = Exposition::default();
        let of_container = |pod: &PodUse, container: &ContainerUse| {
            labels(&[("container", &container.name), ("namespace", &pod.namespace), ("pod", &pod.name)])
        };
        let of_pod = |pod: &PodUse| labels(&[("namespace", &pod.namespace), ("pod", &pod.name)]);
        let each = || self.pods.iter().flat_map(|pod| pod.containers.iter().map(move |own| (pod, own)));

        let help = "[STABLE] Cumulative cpu time consumed by the container in core-seconds";
        let mut family = out.family("container_cpu_usage_seconds_total", Kind::Counter, help);
        for (pod, container) in each() {
            if let Some((used, at)) = container.cpu {
                family.sample(&of_container(pod, container), At(Nanoseconds(used), at));
            }
        }
        let help = "[STABLE] Current working set of the container in bytes";
        let mut family = out.family("container_memory_working_set_bytes", Kind::Gauge, help);
        for (pod, container) in each() {
            if let Some((bytes, at)) = container.working_set {
                family.sample(&of_container(pod, container), At(bytes, at));
            }
        }
        let help = "[STABLE] Start time of the container since unix epoch in seconds";
        let mut family = out.family("container_start_time_seconds", Kind::Gauge, help);
        for (pod, container) in each() {
            let created = Nanoseconds(u64::try_from(container.created).unwrap_or(0));
            family.sample(&of_container(pod, container), At(created, self.at));
        }
        if let Some(node) = self.node {
            let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
            let used = At(Nanoseconds(node.cpu), self.at);
            out.single("node_cpu_usage_seconds_total", Kind::Counter, help, used);
            let help = "[STABLE] Current working set of the node in bytes";
            let used = At(node.working_set, self.at);
            out.single("node_memory_working_set_bytes", Kind::Gauge, help, used);
        }
        let used = || self.pods.iter().filter_map(|pod| Some((pod, pod.usage?)));
        let help = "[STABLE] Cumulative cpu time consumed by the pod in core-seconds";
        let mut family = out.family("pod_cpu_usage_seconds_total", Kind::Counter, help);
        for (pod, usage) in used() {
            family.sample(&of_pod(pod), At(Nanoseconds(usage.cpu), self.at));
        }
        let help = "[STABLE] Current working set of the pod in bytes";
        let mut family = out.family("pod_memory_working_set_bytes", Kind::Gauge, help);
        for (pod, usage) in used() {
            family.sample(&of_pod(pod), At(usage.working_set, self.at));
        }
        for name in ["resource_scrape_error", "scrape_error"] {
            let help = "1 if there was an error while getting container metrics, 0 otherwise";
            out.single(name, Kind::Gauge, help, u8::from(self.failed));
        }
        out.finish()
    }

    fn node_summary(&self, name: &str) -> Value {
        let mut node = json!({ "nodeName": name });
        if let Some(usage) = self.node {
            node["cpu"] = json!({ "time": moment(self.at), "usageCoreNanoSeconds": usage.cpu });
            node["memory"] = self.memory(usage);
        }
        node
    }

    fn memory(&self, usage: Usage) -> Value {
        let mut memory = json!({
            "time": moment(self.at), "usageBytes": usage.memory, "workingSetBytes": usage.working_set,
        });
        let more = [
            ("rssBytes", usage.rss),
            ("pageFaults", usage.page_faults),
            ("majorPageFaults", usage.major_page_faults),
        ];
        for (field, value) in more {
            if let Some(value) = value {
                memory[field] = json!(value);
            }
        }
        memory
    }

    fn pod_summaries(&self) -> Vec<Value> {
        let of_pod = |pod: &PodUse| {
            let containers: Vec<Value> = pod.containers.iter().map(container_summary).collect();
            let mut summary = json!({
                "podRef": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
                "containers": containers,
            });
            if let Some(started) = pod.started {
                summary["startTime"] = moment(started.saturating_mul(1_000_000_000));
            }
            if let Some(usage) = pod.usage {
                summary["cpu"] = json!({ "time": moment(self.at), "usageCoreNanoSeconds": usage.cpu });
                summary["memory"] = self.memory(usage);
            }
            summary
        };
        self.pods.iter().map(of_pod).collect()
    }
}

fn container_summary(container: &ContainerUse) -> Value {
    let mut summary = json!({ "name": container.name, "startTime": moment(container.created) });
    if let Some((used, at)) = container.cpu {
        summary["cpu"] = json!({ "time": moment(at), "usageCoreNanoSeconds": used });
        if let Some(cores) = container.nano_cores {
            summary["cpu"]["usageNanoCores"] = json!(cores);
        }
    }
    if let Some(memory) = &container.memory {
        summary["memory"] = json!({ "time": moment(memory.timestamp) });
        let fields = [
            ("availableBytes", &memory.available_bytes),
            ("usageBytes", &memory.usage_bytes),
            ("workingSetBytes", &memory.working_set_bytes),
            ("rssBytes", &memory.rss_bytes),
            ("pageFaults", &memory.page_faults),
            ("majorPageFaults", &memory.major_page_faults),
        ];
        for (field, value) in fields {
            if let Some(value) = value {
                summary["memory"][field] = json!(value.value);
            }
        }
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(id: &str, name: &str, cpu: u64) -> cri::ContainerStats {
        let labels = [(keys::POD_UID, "u"), (keys::CONTAINER_NAME, name)];
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: id.into(),
                labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                ..Default::default()
            }),
            cpu: Some(cri::CpuUsage {
                timestamp: 5_000_000,
                usage_core_nano_seconds: Some(cri::UInt64Value { value: cpu }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn only_running_containers_of_known_pods_are_told_of() {
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".into());
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        let created = [("new".to_owned(), 1_500_000_000)].into();
        let usage = Usage { cpu: 7, memory: 9, working_set: 8, rss: Some(6), ..Usage::default() };
        let all = [stats("old", "c", 1), stats("new", "c", 2_000_000_003)];
        let snapshot = assemble(1_000_000_000, &all, &created, None, &[(Arc::new(pod), Some(usage))]);
        let text = snapshot.to_text();
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"} 2.000000003 5",
            "container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"p\"} 1.500000000 1000",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 0.000000007 1000",
            "pod_memory_working_set_bytes{namespace=\"ns\",pod=\"p\"} 8 1000",
            "resource_scrape_error 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("node_cpu_usage_seconds_total"));
        assert_eq!(snapshot.pod_summaries()[0]["memory"]["rssBytes"], 6);
        assert_eq!(snapshot.pod_summaries()[0]["containers"][0]["startTime"], "1970-01-01T00:00:01Z");
    }
}
