//! What the kubelet must be told at start. Every folder, port and name is here, so that several
//! nodes can live on one machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use kedge_base::Order as _;

/// TLS of the kubelet's server.
#[derive(Clone)]
pub struct ServerTls {
    /// The server's certificate and key; a client verifier for the cluster's CA that also admits
    /// clients without a certificate (they are then asked for a bearer token).
    pub config: Arc<rustls::ServerConfig>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

/// The kubelet's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node object's name.
    pub node_name: String,
    /// Extra labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// The addresses that the node announces, at most one an IP family; the first one's family is that of
    /// `status.podIP`. Never empty.
    pub node_ips: Vec<IpAddr>,
    /// containerd's gRPC socket.
    pub containerd_socket: PathBuf,
    /// State of the pods: `pods/UID/volumes`, `pods/UID/containers`, ... e.g. `/var/lib/kedge/kubelet`.
    pub root_dir: PathBuf,
    /// Logs of the containers, `/var/log/pods`.
    pub log_dir: PathBuf,
    /// Addresses of the cluster's DNS service.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain, `cluster.local`.
    pub cluster_domain: String,
    /// Where the kubelet's API listens, port 10250 by default.
    pub server_address: SocketAddr,
    /// TLS of that API.
    pub tls: ServerTls,
    /// The most pods the node takes, 110 by default.
    pub max_pods: u32,
    /// The image of the sandbox container; it is never collected.
    pub pause_image: String,
    /// Mirrors and logins of registries.
    pub registries: crate::Registries,
    /// When unused images are removed.
    pub image_gc: crate::ImageGc,
    /// Where containerd keeps images: its disk is watched too.
    pub image_dir: PathBuf,
    /// Below which floors the node is under pressure, and how it gets rid of pods then.
    pub eviction: crate::Eviction,
    /// Sysctls beyond the safe ones that pods may set: names, or beginnings of names that end with `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The parent of all pods' cgroups, `kubepods`.
    pub cgroup_root: String,
    /// Adds the control-plane role to the node's labels.
    pub control_plane: bool,
    /// Taints that the node has when it is registered first.
    pub register_taints: Vec<Taint>,
    /// Network plugins that the pods' network is made with, as files; while one is missing the node's network
    /// is not ready. Empty when that is not known.
    pub network_plugins: Vec<PathBuf>,
    /// The host's resolver configuration, `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl Config {
    /// The address that the node is reached by first.
    pub(crate) fn node_ip(&self) -> String {
        self.node_ips.first().map(ToString::to_string).unwrap_or_default()
    }

    /// All addresses of the node, as a pod on its network has them.
    pub(crate) fn host_ips(&self) -> Vec<String> {
        self.node_ips.iter().map(ToString::to_string).collect()
    }

    /// A pod's addresses in the order of the node's families, whatever the runtime's is (upstream
    /// `kubelet_pods.go`, `sortPodIPs`).
    pub(crate) fn sorted(&self, mut ips: Vec<String>) -> Vec<String> {
        let first_is_ipv6 = self.node_ips.first().is_some_and(IpAddr::is_ipv6);
        ips.order_by_key(|ip| ip.contains(':') != first_is_ipv6);
        ips
    }

    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    /// One empty file for each pod whose log folder is this node's, named by its uid; see [`crate::pod_logs`].
    pub(crate) fn log_notes_dir(&self) -> PathBuf {
        self.root_dir.join("logs")
    }

    /// The pod's log folder, `NAMESPACE_NAME_UID` (upstream `BuildPodLogsDirectory`).
    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}
