//! A Deployment of 60 pause pods on the real node: applied until all are Ready, deleted until all are gone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kedge_tests::Cluster;
use serde_json::{Value, json};

use crate::client::{self, Client, JSON, Target};
use crate::table::Table;

const PODS: usize = 60;
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) async fn measure(cluster: &Cluster, target: &Target, table: &mut Table) -> anyhow::Result<()> {
    let images = cluster.kedge(&["images", "list"]).ok();
    let mut names = images.lines().filter_map(|line| line.split_whitespace().next());
    let image = names.find(|name| name.contains("kedge.dev/pause:")).context("no pause image")?;
    let mut client = target.connect().await?;
    client::namespace(&mut client, "load-pause").await?;
    let deployments = "/apis/apps/v1/namespaces/load-pause/deployments";

    let mut watch = pods(target, &mut client).await?;
    let start = Instant::now();
    client.must("POST", deployments, JSON, deployment(image).to_string()).await?;
    let mut ready = HashSet::new();
    while ready.len() < PODS {
        let event =
            tokio::time::timeout(LIMIT, watch.next()).await.context("not all pods became Ready")??;
        if is_ready(&event["object"]) {
            ready.insert(name(&event));
        }
    }
    table.seconds("Deployment of 60 pause pods, applied to all Ready", start.elapsed(), 8.0);

    let mut watch = pods(target, &mut client).await?;
    let start = Instant::now();
    client.must("DELETE", &format!("{deployments}/pause?propagationPolicy=Background"), JSON, "").await?;
    let mut gone = HashSet::new();
    while gone.len() < PODS {
        let event = tokio::time::timeout(LIMIT, watch.next()).await.context("not all pods went")??;
        if event["type"] == "DELETED" {
            gone.insert(name(&event));
        }
    }
    table.seconds("the same, deleted to gone", start.elapsed(), 8.0);
    client.must("DELETE", "/api/v1/namespaces/load-pause", JSON, "").await?;
    Ok(())
}

/// A watch of the namespace's pods from now on.
async fn pods(target: &Target, client: &mut Client) -> anyhow::Result<crate::client::Watch> {
    let path = "/api/v1/namespaces/load-pause/pods";
    let list = client.json(path).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list without a revision")?;
    target.connect().await?.watch(&format!("{path}?watch=1&resourceVersion={revision}")).await
}

fn name(event: &Value) -> String {
    event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().is_some_and(|conditions| {
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "pause" },
        "spec": {
            "replicas": PODS,
            "selector": { "matchLabels": { "app": "pause" } },
            "template": {
                "metadata": { "labels": { "app": "pause" } },
                "spec": { "containers": [{ "name": "c", "image": image }] },
            },
        },
    })
}
