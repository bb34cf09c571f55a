//! The service proxy: follows Services and EndpointSlices and keeps one nftables table up to date.
//!
//! `build` turns objects into plain data (`model`), `table` finds what changed, `rules` turns that into
//! rules, `writer` sends it as one transaction and heals the table when somebody else changes it.

mod build;
#[cfg(test)]
mod build_tests;
mod changes;
mod conntrack;
mod endpoints;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod health;
mod model;
mod rules;
mod table;
mod writer;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_base::Tasks;
use kedge_client::Informers;
use tokio::sync::watch;

use crate::Error;
use changes::Changes;
use writer::ProxyWriter;

/// What the proxy needs to know about the node and the cluster.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// As in `endpoints[].nodeName`: decides which endpoints are local.
    pub node_name: String,
    /// This node's own addresses, as announced.
    pub node_ips: Vec<IpAddr>,
    /// The whole cluster's pod networks, one per IP family. Traffic between them keeps its source
    /// address; what leaves them is masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// The networks of cluster IPs, one per IP family.
    pub service_cidrs: Vec<IpNet>,
    /// Name of the nftables table in family `inet`; normally `kedge`. It belongs to the proxy alone.
    pub table_name: String,
    /// Node ports answer on the node's addresses in these networks; empty means all but loopback.
    pub node_port_addresses: Vec<IpNet>,
}

impl ProxyConfig {
    /// The table is called `kedge`, and node ports answer on all addresses of the node.
    pub fn new(
        node_name: impl Into<String>,
        node_ips: Vec<IpAddr>,
        pod_cidrs: Vec<IpNet>,
        service_cidrs: Vec<IpNet>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips,
            pod_cidrs,
            service_cidrs,
            table_name: "kedge".into(),
            node_port_addresses: Vec::new(),
        }
    }

    #[cfg(test)]
    fn for_tests() -> Self {
        let net = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        Self::new("node1", vec![IpAddr::from([192, 0, 2, 1])], net("10.244.0.0/16"), net("10.96.0.0/16"))
    }

    /// nft's identifiers, so that `nft list table inet NAME` works.
    fn check(&self) -> Result<(), Error> {
        let name = &self.table_name;
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
        if !name.starts_with(|c: char| c.is_ascii_alphabetic())
            || !name.chars().all(valid)
            || name.len() > 200
        {
            return Err(Error::Invalid(format!("{name:?} is no name for an nftables table")));
        }
        Ok(())
    }
}

/// A running proxy. It stops with the tasks it was started in; the table stays, so that traffic flows
/// while Kedge restarts (see [`crate::cleanup`]).
#[derive(Debug, Clone)]
pub struct Proxy {
    writes: watch::Receiver<u64>,
}

impl Proxy {
    /// How many transactions the kernel has taken.
    pub fn writes(&self) -> u64 {
        *self.writes.borrow()
    }

    /// Returns when there are more than `writes` transactions (see [`Proxy::writes`]), or the proxy has
    /// stopped.
    pub async fn written_since(&self, writes: u64) {
        let mut current = self.writes.clone();
        let _ = current.wait_for(|current| *current > writes).await;
    }

    /// Returns when the table was written for the first time, or the proxy has stopped.
    pub async fn ready(&self) {
        let mut writes = self.writes.clone();
        let _ = writes.wait_for(|writes| *writes > 0).await;
    }
}

fn zone(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").map(String::as_str)
}

/// Start to follow Services, EndpointSlices and this node's zone. The table is written when they are known,
/// so a restart never empties the table that the process before has left.
///
/// # Errors
/// When the configuration is invalid or the kernel offers no nftables.
pub async fn start_proxy(config: ProxyConfig, informers: &Informers, tasks: &Tasks) -> Result<Proxy, Error> {
    config.check()?;
    let services = informers.informer::<Service>();
    let slices = informers.informer::<EndpointSlice>();
    // This node's zone decides which endpoints are hinted to it.
    let node = informers.informer_with_fields::<Node>(&format!("metadata.name={}", config.node_name));
    let writer = ProxyWriter::open(config)
        .map_err(|source| Error::netlink("open a netlink socket for nftables", source))?;

    let changes = Arc::new(Changes::default());
    let (told, heard, moved) = (changes.clone(), changes.clone(), changes.clone());
    services.on_change(move |change| told.service(change));
    slices.on_change(move |change| heard.slice(change));
    node.on_change(move |change| moved.set_zone(change.new.as_deref().and_then(zone).unwrap_or_default()));

    let (sender, writes) = watch::channel(0);
    let proxy_tasks = tasks.child("service proxy");
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    let health = health::HealthServers::new(&proxy_tasks);
    tasks.spawn_restarting("service proxy", move || {
        let (writer, services, slices, node) =
            (writer.clone(), services.clone(), slices.clone(), node.clone());
        let (changes, sender, health) = (changes.clone(), sender.clone(), health.clone());
        async move {
            services.synced().await;
            slices.synced().await;
            node.synced().await;
            writer::run(writer, services, changes, sender, health).await;
        }
    });
    Ok(Proxy { writes })
}
