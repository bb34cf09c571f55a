//! The pod network between nodes, compatible with flannel's vxlan and host-gw backends.
//!
//! `lease` reads and writes the annotations by which nodes find each other, `config` the shared
//! configuration, `plan` decides what the kernel should have, `kernel` brings it there, `run` does so
//! whenever a node or the kernel changes. Nothing is polled: the kernel tells who touches what.
//!
//! A node whose kernel has no VXLAN announces host-gw by itself; Kedge's nodes understand the mixture (a
//! pair of nodes uses VXLAN only when both can), a stock flanneld ignores nodes of the other kind.

mod condition;
mod config;
mod forward;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod kernel;
mod lease;
mod off;
mod plan;
mod run;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kedge_base::Tasks;
use kedge_client::{Informers, kube};
use tokio::sync::watch;

use crate::Error;
pub use config::{
    Backend, CONFIG_MAP_NAME, CONFIG_MAP_NAMESPACE, NetworkConfig, POD_NETWORK, VxlanConfig, is_off,
};
pub(crate) use forward::remove_rules;
pub use forward::{Obstacle, obstacles};
use kernel::Kernel;

/// The files that tell the CNI plugins about this node's pods; see [`crate::write_cni_config_for`].
#[derive(Debug, Clone)]
pub struct CniFiles {
    /// Where the container runtime looks.
    pub dir: PathBuf,
    /// Where address leases are kept.
    pub host_local_dir: PathBuf,
    /// Where another network's installer puts its configuration; it is used while this network is off.
    pub foreign_dir: PathBuf,
}

/// A Node's annotation: set to another value, it makes that node read the ConfigMap again.
pub const WANTED: &str = "kedge.dev/pod-network-wanted";
/// A Node's annotation: the value of [`WANTED`] that the node has acted upon.
pub const APPLIED: &str = "kedge.dev/pod-network-applied";

/// What the pod network needs to know about the node.
#[derive(Debug, Clone)]
pub struct OverlayConfig {
    /// The name of this node's Node object, the only one that is changed.
    pub node_name: String,
    /// This node's own addresses, one per IP family: other nodes send pods' packets there.
    pub node_ips: Vec<IpAddr>,
    /// Used when the cluster has no ConfigMap `kube-flannel/kube-flannel-cfg`.
    pub network: NetworkConfig,
    /// The same: without it the pod network is somebody else's until the ConfigMap says otherwise.
    pub enabled: bool,
    /// The pods' bridge; its MTU follows the network's.
    pub bridge: String,
    /// Written as soon as the node has its range of pod addresses. `None` writes nothing.
    pub cni: Option<CniFiles>,
}

impl OverlayConfig {
    /// Flannel's default backend, and no CNI files.
    pub fn new(
        node_name: impl Into<String>,
        node_ips: Vec<IpAddr>,
        pod_cidrs: Vec<IpNet>,
        bridge: &str,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips,
            network: NetworkConfig { networks: pod_cidrs, backend: Backend::Vxlan(VxlanConfig::default()) },
            enabled: true,
            bridge: bridge.to_owned(),
            cni: None,
        }
    }
}

/// How the pod network stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodNetwork {
    /// This node's pods.
    pub pod_cidrs: Vec<IpNet>,
    /// For pods, in bytes; 0 while the node cannot reach others.
    pub mtu: u32,
    /// `vxlan` or `host-gw`: what is in use. `none`: the pod network is somebody else's.
    pub backend: String,
    /// The other nodes' pods that can be reached.
    pub routes: Vec<IpNet>,
    /// What does not work, each with what to do about it.
    pub problems: Vec<String>,
}

/// A running pod network. It stops with the tasks it was started in; devices and routes stay, so that
/// packets flow while Kedge restarts (see [`crate::cleanup`]).
#[derive(Debug, Clone)]
pub struct Overlay {
    state: watch::Receiver<Option<PodNetwork>>,
}

impl Overlay {
    /// The newest state; `None` until the node has its range of pod addresses.
    pub fn state(&self) -> Option<PodNetwork> {
        self.state.borrow().clone()
    }

    /// Follows [`Overlay::state`].
    pub fn watch(&self) -> watch::Receiver<Option<PodNetwork>> {
        self.state.clone()
    }

    /// Returns when the network was set up and announced for the first time, or it has stopped.
    pub async fn ready(&self) {
        let mut state = self.state.clone();
        let _ = state.wait_for(Option::is_some).await;
    }
}

/// Start to follow the nodes. Returns at once; [`Overlay::ready`] waits. `client` reads the ConfigMap
/// and patches this node's annotations, nothing else.
///
/// # Errors
/// When the configuration makes no sense, or the kernel does not let us see routes.
pub async fn start_overlay(
    config: OverlayConfig,
    client: kube::Client,
    informers: &Informers,
    tasks: &Tasks,
) -> Result<Overlay, Error> {
    if config.node_ips.is_empty() || config.network.networks.is_empty() {
        return Err(Error::Invalid("the pod network needs an address of this node and a network".into()));
    }
    let kernel =
        Kernel::open().map_err(|source| Error::netlink("open a netlink socket for routes", source))?;
    let nodes = informers.informer::<Node>();
    let (sender, state) = watch::channel(None);
    let runner = run::Runner::new(config, client, nodes, kernel, sender);
    runner.follow_nodes();
    forward::start(runner.network(), tasks);
    tasks.spawn_restarting("pod network", move || runner.clone().run());
    Ok(Overlay { state })
}

/// For uninstalling: what the pod network has made in the kernel.
pub(crate) fn remove(bridge: &str) -> Result<(), Error> {
    let removed = Kernel::open().and_then(|kernel| kernel.remove(bridge));
    removed.map_err(|source| Error::netlink("remove the pod network's routes and devices", source))
}
