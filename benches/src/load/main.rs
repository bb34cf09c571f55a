//! Measures what one node can show of the budgets in the design, on the real binary with real containers,
//! and prints a Markdown table with the targets beside.
//!
//! ```text
//! cargo build --release --package kedge --target $(uname -m)-unknown-linux-gnu
//! KEDGE_BINARY=target/$(uname -m)-unknown-linux-gnu/release/kedge \
//!     cargo run --release --package kedge-benches --bin load [-- SECTION...]
//! ```
//!
//! Sections: start idle requests watch schedule pods leader etcd (all when none is named). `LOAD_IDLE_SECONDS` is
//! how long the idle node is looked at (120). Done only when named: `services`, which fills the node's nftables
//! table, and `soak [--minutes 30]`, for which a node with dns and metrics on is left alone for that long.
//! `etcd` needs etcd (`ETCD`, or from PATH), or says that it is left out. The driver runs on the same machine
//! and takes its share of the processors, as the stock figures' driver did.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is the product")]

mod client;
mod etcd;
mod events;
mod leader;
mod pods;
mod process;
mod requests;
mod schedule;
mod services;
mod soak;
mod start;
mod stream;
mod table;
mod watch;

use std::time::Duration;

use anyhow::{Context as _, bail};
use kedge_base::Tasks;
use kedge_tests::Cluster;

use crate::client::Target;
use crate::table::Table;

/// Concurrent clients, each with its own connection.
const CLIENTS: usize = 16;
/// What can be named.
const SECTIONS: [&str; 10] =
    ["start", "idle", "requests", "watch", "schedule", "services", "pods", "leader", "etcd", "soak"];

fn main() -> anyhow::Result<()> {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let minutes = soak::minutes(&mut wanted)?;
    if let Some(unknown) = wanted.iter().find(|word| !SECTIONS.contains(&word.as_str())) {
        bail!("there is no section {unknown}; there are {}", SECTIONS.join(" "));
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(measure(&wanted, minutes))
}

async fn measure(wanted: &[String], minutes: u64) -> anyhow::Result<()> {
    let asked = |section: &str| wanted.is_empty() || wanted.iter().any(|word| word == section);
    let tasks = Tasks::new("load");
    let mut table = Table::default();
    let mut cluster = Cluster::prepare();
    kedge_tests::step("start");
    let started = start::measure(&mut cluster, &tasks).await?;
    cluster.wait_ready();
    if asked("start") {
        table.seconds("start until /readyz", started.readyz, 0.3);
        table.seconds("start until the default ServiceAccount exists", started.service_account, 0.6);
    }
    let target = Target::of(&cluster, tasks.clone())?;
    if asked("idle") {
        kedge_tests::step("idle");
        let seconds =
            std::env::var("LOAD_IDLE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(120);
        // What the start left to do is not idleness.
        tokio::time::sleep(Duration::from_secs(30)).await;
        let idle = process::idle(cluster.pid(), Duration::from_secs(seconds)).await?;
        table.at_most("memory, idle (RSS)", process::resident(cluster.pid())?, "MiB", 40.0);
        table.at_most("CPU, idle", idle.cpu_percent, "% of a core", 1.0);
        table.at_most("disk writes, idle", idle.written_mib_an_hour, "MB an hour", 5.0);
    }
    if wanted.iter().any(|word| word == "soak") {
        kedge_tests::step("soak");
        soak::measure(&cluster, minutes, &mut table).await?;
    }
    if asked("requests") {
        kedge_tests::step("requests");
        requests::measure(&target, &mut table).await?;
    }
    if asked("watch") {
        kedge_tests::step("watch");
        watch::measure(&target, &mut table).await?;
    }
    if asked("schedule") {
        kedge_tests::step("schedule");
        schedule::measure(&target, &cluster.node, &mut table).await?;
    }
    if asked("services") {
        kedge_tests::step("services");
        services::measure(&cluster, &target, &mut table).await?;
    }
    if asked("pods") {
        kedge_tests::step("pods");
        pods::measure(&cluster, &target, &mut table).await?;
    }
    let leader = if asked("leader") {
        kedge_tests::step("leader");
        Some(tokio::task::block_in_place(|| leader::measure(&mut table)))
    } else {
        None
    };
    if asked("etcd") {
        kedge_tests::step("etcd");
        let idle = std::env::var("LOAD_IDLE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(120);
        etcd::measure(&target, cluster.pid(), Duration::from_secs(idle), leader, &mut table).await?;
    }
    // The allocator gives back within seconds what the load needed.
    tokio::time::sleep(Duration::from_secs(10)).await;
    table.at_most("memory after this load (RSS)", process::resident(cluster.pid())?, "MiB", 100.0);
    tasks.shutdown(Duration::from_secs(5)).await;
    println!("{table}");
    cluster.remove();
    match table.missed() {
        0 => Ok(()),
        missed => anyhow::bail!("{missed} of the targets were missed"),
    }
}
