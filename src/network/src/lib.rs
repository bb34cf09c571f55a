//! The network of a node: the service proxy and the network policies (an nftables table each, written by
//! netlink), the pod network between nodes (compatible with flannel), addresses that move between nodes, the
//! CNI plugins' configuration, what the host needs for all of them, and the cluster's DNS server ([`dns`]). The
//! only crate that names nftables, netlink and hickory. It reads objects through `kedge-client` and runs
//! against any API server.
//!
//! Network policies alone drop packets that pods send and receive, but an accept in a table of Kedge cannot
//! overrule a drop elsewhere: every base chain of every table has to let a packet pass. Where another
//! program drops forwarded packets by default (Docker's `ip filter FORWARD`), the pod network adds rules
//! to that very chain that let pods' packets pass.

mod announce;
pub mod dns;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod host;
mod netlink;
mod nft;
mod overlay;
mod policy;
mod proxy;
mod rt;

pub use announce::{Announcer, Purpose, follow_node, start_announcer};
pub use error::Error;
pub use host::{
    Warning, cleanup, default_address_of, prepare_host, until_moved, write_cni_config, write_cni_config_for,
};
pub use ipnet::IpNet;
pub use overlay::{
    APPLIED, Backend, CONFIG_MAP_NAME, CONFIG_MAP_NAMESPACE, CniFiles, NetworkConfig, Obstacle, Overlay,
    OverlayConfig, POD_NETWORK, PodNetwork, VxlanConfig, WANTED, is_off, obstacles, start_overlay,
};
pub use policy::{Policies, PolicyConfig, start_policies};
pub use proxy::{Proxy, ProxyConfig, start_proxy};
