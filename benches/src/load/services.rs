//! 1,000 Services of 10 endpoints: until the kernel has all of them, until it has them again after its table
//! was deleted (the first sync without the start around it), and until it has one change.
//!
//! A connection through a cluster IP says when: one Service more has the driver itself as its endpoint.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kedge_tests::Cluster;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::CLIENTS;
use crate::client::{self, JSON, MERGE_PATCH, Target};
use crate::requests::{self, Call};
use crate::table::{Table, percentile};

const SERVICES: usize = 1_000;
const ENDPOINTS: usize = 10;
const CHANGES: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);
/// A packet to an address that the table does not have goes nowhere.
const ANSWER: Duration = Duration::from_millis(20);
const PATH: &str = "/api/v1/namespaces/load-services/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/load-services/endpointslices";
/// The Service that leads to the driver.
const PROBE: &str = "probe";

pub(crate) async fn measure(cluster: &Cluster, target: &Target, table: &mut Table) -> anyhow::Result<()> {
    let own: IpAddr = cluster.node_address().parse().context("the node's address")?;
    let listener = TcpListener::bind((own, 0)).await.context("listen for the probe")?;
    let port = listener.local_addr().context("the probe's port")?.port();
    target.tasks().spawn_until_stopped("probe", async move { while listener.accept().await.is_ok() {} });
    let mut client = target.connect().await?;
    client::namespace(&mut client, "load-services").await?;

    let start = Instant::now();
    requests::run(target, CLIENTS, SERVICES, |index| post(PATH, &service(&format!("s-{index}"), 8080)))
        .await?;
    requests::run(target, CLIENTS, SERVICES, |index| {
        let addresses = (0..ENDPOINTS).map(|number| endpoint_address(index * ENDPOINTS + number));
        post(SLICES, &slice(&format!("s-{index}"), 8080, &addresses.collect::<Vec<_>>()))
    })
    .await?;
    let made = client.must("POST", PATH, JSON, service(PROBE, port).to_string()).await?;
    let made: Value = serde_json::from_slice(&made).context("parse the Service")?;
    let address: IpAddr = made["spec"]["clusterIP"].as_str().unwrap_or_default().parse().context("its IP")?;
    let address = SocketAddr::new(address, 80);
    // Or else something other than the table answers here.
    until(address, false).await?;
    client.must("POST", SLICES, JSON, slice(PROBE, port, &[own.to_string()]).to_string()).await?;
    until(address, true).await?;
    let took = start.elapsed();
    table.note(
        "1,000 Services of 10 endpoints: created by 16 clients until the kernel has them",
        seconds(took),
    );

    let name = table_name(cluster)?;
    complete(&name)?;
    // nft's own time is in it: the node may have written everything before nft has ended.
    let start = Instant::now();
    nft(&["delete", "table", "inet", &name])?;
    until(address, true).await?;
    let took = start.elapsed();
    complete(&name)?;
    table.note(
        "the same, all at once into an empty table (first sync; nft deletes the old one)",
        seconds(took),
    );

    let (mut sent, mut all) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let ready = number % 2 == 1;
        let endpoints = json!([{ "addresses": [own], "conditions": { "ready": ready } }]);
        let body = json!({ "endpoints": endpoints }).to_string();
        let start = Instant::now();
        client.must("PATCH", &format!("{SLICES}/{PROBE}"), MERGE_PATCH, body).await?;
        sent.push(start.elapsed());
        until(address, ready).await?;
        all.push(start.elapsed());
    }
    sent.sort();
    all.sort();
    table.note(
        "the same, one change: from the request until the kernel has it, p50 and worst of 100",
        format!(
            "{:.1} ms, {:.1} ms (answered after {:.1} ms)",
            milliseconds(percentile(&all, 0.5)),
            milliseconds(percentile(&all, 1.0)),
            milliseconds(percentile(&sent, 0.5)),
        ),
    );
    client.must("DELETE", "/api/v1/namespaces/load-services", JSON, "").await?;
    Ok(())
}

/// The kernel has every endpoint. While a table changes, nft lists nothing and calls that success.
fn complete(table: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut found = 0;
    while found == 0 && start.elapsed() < LIMIT {
        found = nft(&["list", "table", "inet", table])?.matches("10.250.").count();
    }
    ensure!(found >= SERVICES * ENDPOINTS, "the kernel has {found} of {} endpoints", SERVICES * ENDPOINTS);
    Ok(())
}

/// Connects until it is as it is to be: taken by the endpoint, or refused because there is none.
async fn until(address: SocketAddr, taken: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        let answer = tokio::time::timeout(ANSWER, TcpStream::connect(address)).await;
        if answer.is_ok_and(|connected| connected.is_ok() == taken) {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
    anyhow::bail!("{address} was not {} in time", if taken { "reached" } else { "refused" })
}

fn post(path: &str, object: &Value) -> Call {
    Call { method: "POST", path: path.to_owned(), content_type: JSON, body: object.to_string() }
}

fn service(name: &str, target: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": target }] },
    })
}

fn slice(service: &str, port: u16, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address], "conditions": { "ready": true } }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": service, "labels": {
            "kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "load",
        } },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
    })
}

/// Of a network that is not there.
fn endpoint_address(number: usize) -> String {
    format!("10.250.{}.{}", number / 250, number % 250 + 1)
}

fn table_name(cluster: &Cluster) -> anyhow::Result<String> {
    let flags = cluster.flags();
    let at = flags.iter().position(|flag| flag == "--table-name").context("the table's name")?;
    flags.get(at + 1).cloned().context("the table's name")
}

fn nft(arguments: &[&str]) -> anyhow::Result<String> {
    let out = Command::new("nft").args(arguments).output().context("run nft")?;
    ensure!(out.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_has_an_address_of_its_own() {
        let all: std::collections::BTreeSet<String> =
            (0..SERVICES * ENDPOINTS).map(endpoint_address).collect();
        assert_eq!(all.len(), SERVICES * ENDPOINTS);
        assert!(all.iter().all(|address| address.parse::<std::net::Ipv4Addr>().is_ok()));
    }
}
