//! How much of the node its containers use: `/stats/summary` and `/metrics/resource`, from CRI's
//! container statistics.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::StatusCode;
use k8s_cri::v1 as cri;
use serde_json::{Value, json};

use super::{Answer, Refusal, json as answer, text};
use crate::Error;
use crate::core::Shared;
use crate::runtime::keys;

async fn stats(core: &Shared) -> Result<Vec<cri::ContainerStats>, Refusal> {
    let request = cri::ListContainerStatsRequest { filter: None };
    let answered = core.runtime.cri().list_container_stats(request).await;
    Ok(answered.map_err(|status| Refusal::internal(&Error::from(status)))?.into_inner().stats)
}

/// Namespace, pod, uid and container of a statistic.
fn names(stats: &cri::ContainerStats) -> [String; 4] {
    let labels = stats.attributes.as_ref().map(|attributes| &attributes.labels);
    [keys::POD_NAMESPACE, keys::POD_NAME, keys::POD_UID, keys::CONTAINER_NAME]
        .map(|key| labels.and_then(|labels| labels.get(key)).cloned().unwrap_or_default())
}

fn cpu_nanoseconds(stats: &cri::ContainerStats) -> u64 {
    let usage = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref());
    usage.map_or(0, |usage| usage.value)
}

fn memory_bytes(stats: &cri::ContainerStats) -> u64 {
    let usage = stats.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref());
    usage.map_or(0, |usage| usage.value)
}

pub(super) async fn summary(core: &Shared) -> Result<Answer, Refusal> {
    let mut pods: BTreeMap<[String; 3], Vec<Value>> = BTreeMap::new();
    let now = jiff::Timestamp::now().to_string();
    for stats in stats(core).await? {
        let [namespace, name, uid, container] = names(&stats);
        pods.entry([namespace, name, uid]).or_default().push(json!({
            "name": container,
            "cpu": { "time": now, "usageCoreNanoSeconds": cpu_nanoseconds(&stats) },
            "memory": { "time": now, "workingSetBytes": memory_bytes(&stats) },
        }));
    }
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|([namespace, name, uid], containers)| {
            json!({ "podRef": { "name": name, "namespace": namespace, "uid": uid }, "containers": containers })
        })
        .collect();
    Ok(answer(&json!({ "node": { "nodeName": core.config.node_name }, "pods": pods })))
}

/// `pkg/kubelet/metrics/collectors/resource_metrics.go`.
pub(super) async fn resource(core: &Shared) -> Result<Answer, Refusal> {
    let mut cpu = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    let mut memory = String::from("# TYPE container_memory_working_set_bytes gauge\n");
    for stats in stats(core).await? {
        let [namespace, name, _, container] = names(&stats);
        let labels = format!("{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{name}\"}}");
        // Writing to a String cannot fail.
        let _ = writeln!(
            cpu,
            "container_cpu_usage_seconds_total{labels} {:.6}",
            cpu_nanoseconds(&stats) as f64 / 1e9
        );
        let _ = writeln!(memory, "container_memory_working_set_bytes{labels} {}", memory_bytes(&stats));
    }
    Ok(text(StatusCode::OK, cpu + &memory))
}
