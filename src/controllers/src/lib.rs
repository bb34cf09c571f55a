//! The controllers: loops that read objects from shared informers and write objects through the
//! API server until the cluster is as it is described. One module a controller. Every one is
//! level-triggered (a key says only "look again"), may run twice, and keeps no truth of its own.
//! This crate talks to a `kube::Client` only; it never imports the API server or the store.

mod adoption;
mod certificates;
mod cluster_role;
mod context;
mod cron_job;
mod daemon_set;
mod deployment;
mod discovery;
mod disruption;
mod endpoint_slice;
mod endpoints;
mod expectations;
#[cfg(test)]
mod fake;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod garbage;
mod history;
mod horizontal_autoscaler;
mod job;
mod load_balancer;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod owned;
mod percent;
mod persistent_volume;
mod pod_control;
mod pod_gc;
mod pods;
mod replica_set;
mod replicas_by_nodes;
mod resource_quota;
mod scale;
mod service_account;
mod service_cidr;
mod stateful_set;
mod template;
mod time;
mod ttl_after_finished;

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kedge_base::Tasks;
use kedge_client::Informers;
use tokio::sync::watch;

pub use context::Context;

/// What the controllers need to know about the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's CA certificate(s), PEM: goes into `kube-root-ca.crt` and into token secrets. It may change.
    pub cluster_ca_pem: watch::Receiver<String>,
    /// The addresses that pods get, one network an IP family; every node receives a part of each. Empty:
    /// nodes get their ranges from somebody else.
    pub pod_cidrs: Vec<IpNet>,
    /// The prefix length of one node's part of IPv4 (`--node-cidr-mask-size-ipv4`).
    pub node_cidr_mask_ipv4: u8,
    /// The prefix length of one node's part of IPv6 (`--node-cidr-mask-size-ipv6`).
    pub node_cidr_mask_ipv6: u8,
    /// Addresses of the API server itself: no Service may get one.
    pub virtual_addresses: Vec<IpAddr>,
    /// Named as the source of events, normally the node's name; may be empty.
    pub host: String,
    /// Finished pods above this number are deleted, oldest first (upstream: 12500).
    /// Zero or less: never.
    pub terminated_pod_threshold: i64,
    /// Signs certificate requests. `None`: requests are neither approved nor signed here. To be set
    /// only when the API server writes the requester into `spec.username` and `spec.groups` itself,
    /// whatever the client sent: what a node may have is decided by them.
    pub signer: Option<Arc<dyn Signer>>,
}

/// Why a certificate was not signed; its text goes into the request's `Failed` condition.
pub type SignerError = Box<dyn std::error::Error + Send + Sync>;

/// The authority that signs certificate requests for the `kubernetes.io/...` signers. Subject, names
/// and usages were checked against the signer's rules before.
pub trait Signer: Debug + Send + Sync + 'static {
    /// The certificate (PEM, with intermediates) for a request (PEM), valid for `lifetime` with
    /// `usages` as `spec.usages` spells them (`digital signature`, `client auth`, ...).
    ///
    /// # Errors
    /// The request cannot be signed, ever: it is marked as failed.
    fn sign(
        &self,
        csr_pem: &str,
        signer_name: &str,
        usages: &[String],
        lifetime: Duration,
    ) -> Result<String, SignerError>;
}

impl Config {
    /// Upstream's defaults around the two things that have none.
    pub fn new(cluster_ca_pem: watch::Receiver<String>, pod_cidrs: Vec<IpNet>) -> Self {
        Self {
            cluster_ca_pem,
            pod_cidrs,
            node_cidr_mask_ipv4: 24,
            node_cidr_mask_ipv6: 64,
            virtual_addresses: Vec::new(),
            host: String::new(),
            terminated_pod_threshold: 12_500,
            signer: None,
        }
    }

    /// The prefix length of a node's part of this network.
    pub(crate) fn node_mask(&self, cidr: &IpNet) -> u8 {
        if cidr.addr().is_ipv4() { self.node_cidr_mask_ipv4 } else { self.node_cidr_mask_ipv6 }
    }
}

/// The controllers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A node's part must be smaller than (or equal to) the whole.
    #[error("pod network {cidr} cannot be split into /{mask} parts, one for each node")]
    NodeMask {
        /// The configured pod network.
        cidr: IpNet,
        /// The configured prefix length of a node's part.
        mask: u8,
    },
}

/// Start every controller as tasks of `tasks`. Returns at once; each begins its work when the
/// informers it reads are complete. To be called by who leads the store: when
/// `tasks` stops, all of them end and change nothing more.
pub fn start(
    config: Config,
    client: &kube::Client,
    informers: &Informers,
    tasks: &Tasks,
) -> Result<(), Error> {
    for cidr in &config.pod_cidrs {
        let mask = config.node_mask(cidr);
        if mask < cidr.prefix_len() || mask > cidr.max_prefix_len() {
            return Err(Error::NodeMask { cidr: *cidr, mask });
        }
    }
    let ctx = Context::new(config, client.clone(), informers.clone(), tasks.clone());
    // What a new cluster waits for comes first.
    cluster_role::start(&ctx);
    service_account::start(&ctx);
    node_ipam::start(&ctx);
    node_lifecycle::start(&ctx);
    replica_set::start(&ctx);
    deployment::start(&ctx);
    replicas_by_nodes::start(&ctx);
    daemon_set::start(&ctx);
    stateful_set::start(&ctx);
    job::start(&ctx);
    ttl_after_finished::start(&ctx);
    cron_job::start(&ctx);
    certificates::start(&ctx);
    endpoint_slice::start(&ctx);
    endpoints::start(&ctx);
    namespace::start(&ctx);
    let census = garbage::start(&ctx);
    resource_quota::start(&ctx, census);
    disruption::start(&ctx);
    persistent_volume::start(&ctx);
    service_cidr::start(&ctx);
    load_balancer::start(&ctx);
    horizontal_autoscaler::start(&ctx);
    pod_gc::start(&ctx);
    Ok(())
}
