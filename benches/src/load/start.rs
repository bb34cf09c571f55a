//! How long a start takes, on an empty data folder: certificates and store are made on the way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kedge_base::Tasks;
use kedge_tests::Cluster;

use crate::client::{JSON, Target};

const LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(2);

/// Times from the start of the process.
pub(crate) struct Started {
    pub(crate) readyz: Duration,
    pub(crate) service_account: Duration,
}

pub(crate) async fn measure(cluster: &mut Cluster, tasks: &Tasks) -> anyhow::Result<Started> {
    let start = Instant::now();
    cluster.run();
    // The node writes the kubeconfig when its certificates exist, before it listens.
    let kubeconfig = cluster.dir().join("data/kubeconfig");
    let target = loop {
        let text = std::fs::read_to_string(&kubeconfig).unwrap_or_default();
        match Target::from_kubeconfig(&text, cluster.port, cluster.pid(), tasks.clone()) {
            Ok(target) => break target,
            Err(error) if start.elapsed() > LIMIT => return Err(error.context("no kubeconfig was written")),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    let readyz = until_ok(&target, "/readyz", start).await?;
    let service_account =
        until_ok(&target, "/api/v1/namespaces/default/serviceaccounts/default", start).await?;
    Ok(Started { readyz, service_account })
}

/// Asks until the answer is 200, and gives the time since `start`.
async fn until_ok(target: &Target, path: &str, start: Instant) -> anyhow::Result<Duration> {
    let mut last = anyhow::anyhow!("nothing was answered");
    while start.elapsed() < LIMIT {
        match ask(target, path, start).await {
            Ok(time) => return Ok(time),
            Err(error) => last = error,
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(last).with_context(|| format!("{path} after {} s", LIMIT.as_secs()))
}

/// One connection, used until it breaks.
async fn ask(target: &Target, path: &str, start: Instant) -> anyhow::Result<Duration> {
    let mut client = target.connect().await?;
    while start.elapsed() < LIMIT {
        let (status, _) = client.call("GET", path, JSON, "").await?;
        if status == 200 {
            return Ok(start.elapsed());
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("not ready in time")
}
