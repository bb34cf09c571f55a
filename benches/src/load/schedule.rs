//! 1,000 pods onto 100 hollow nodes: Node objects that nobody stands behind.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::CLIENTS;
use crate::client::{self, Client, JSON, MERGE_PATCH, Target};
use crate::requests::{self, Call};
use crate::table::Table;

const NODES: usize = 100;
const PODS: usize = 1_000;

pub(crate) async fn measure(target: &Target, real: &str, table: &mut Table) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/load-pods/pods";
    let mut client = target.connect().await?;
    client::namespace(&mut client, "load-pods").await?;
    // The real node would start containers.
    cordon(&mut client, real, true).await?;
    for index in 0..NODES {
        hollow(&mut client, index).await?;
    }
    until_schedulable(&mut client).await?;

    let list = client.json(path).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list without a revision")?;
    let mut watch =
        target.connect().await?.watch(&format!("{path}?watch=1&resourceVersion={revision}")).await?;
    let start = Instant::now();
    let bound = target.tasks().spawn("bound", async move {
        let mut bound = HashSet::new();
        while bound.len() < PODS {
            let event = watch.next().await?;
            let pod = &event["object"];
            if pod["spec"]["nodeName"].is_string() {
                bound.insert(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        anyhow::Ok(start.elapsed())
    });
    requests::run(target, CLIENTS, PODS, move |index| Call {
        method: "POST",
        path: path.to_owned(),
        content_type: JSON,
        body: pod(index).to_string(),
    })
    .await?;
    let took = tokio::time::timeout(Duration::from_secs(300), bound)
        .await
        .context("not all pods were bound in 300 s")?
        .context("the watcher panicked")??;
    table.at_least(
        "1,000 pods onto 100 nodes, created and bound",
        PODS as f64 / took.as_secs_f64(),
        "/s",
        2_000.0,
    );

    client.must("DELETE", &format!("{path}?gracePeriodSeconds=0"), JSON, "").await?;
    for index in 0..NODES {
        client.must("DELETE", &format!("/api/v1/nodes/{}", name(index)), JSON, "").await?;
    }
    client.must("DELETE", "/api/v1/namespaces/load-pods", JSON, "").await?;
    cordon(&mut client, real, false).await
}

fn name(index: usize) -> String {
    format!("hollow-{index:03}")
}

async fn cordon(client: &mut Client, node: &str, on: bool) -> anyhow::Result<()> {
    let body = json!({ "spec": { "unschedulable": on.then_some(true) } }).to_string();
    client.must("PATCH", &format!("/api/v1/nodes/{node}"), MERGE_PATCH, body).await?;
    Ok(())
}

/// A node as its kubelet would report it.
async fn hollow(client: &mut Client, index: usize) -> anyhow::Result<()> {
    let name = name(index);
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
    });
    client.must("POST", "/api/v1/nodes", JSON, node.to_string()).await?;
    let resources = json!({ "cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti" });
    let condition = |kind: &str, status: &str| {
        json!({ "type": kind, "status": status, "reason": "Hollow", "message": "hollow",
                "lastHeartbeatTime": now(), "lastTransitionTime": now() })
    };
    let status = json!({ "status": {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [condition("Ready", "True"), condition("MemoryPressure", "False"),
                       condition("DiskPressure", "False"), condition("PIDPressure", "False")],
    }});
    client.must("PATCH", &format!("/api/v1/nodes/{name}/status"), MERGE_PATCH, status.to_string()).await?;
    Ok(())
}

/// Until the node lifecycle controller has seen that all of them are Ready.
async fn until_schedulable(client: &mut Client) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let nodes = client.json("/api/v1/nodes").await?;
        let open = nodes["items"].as_array().map_or(0, |items| {
            items
                .iter()
                .filter(|node| {
                    node["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("hollow-"))
                })
                .filter(|node| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty))
                .count()
        });
        if open == NODES {
            return Ok(());
        }
        anyhow::ensure!(
            start.elapsed() < Duration::from_secs(60),
            "only {open} of {NODES} nodes lost their taints"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn pod(index: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": format!("p-{index}"), "labels": { "app": "load" } },
        "spec": { "containers": [{
            "name": "c",
            "image": "kedge.dev/hello:1.0",
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        }] },
    })
}

/// The time as the API writes it (RFC 3339), without a date library: civil-from-days after Howard Hinnant.
fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs())
}

fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_the_api_writes_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
