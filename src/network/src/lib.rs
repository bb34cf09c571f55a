//! The network of a node: the service proxy (one nftables table written by netlink), the CNI plugins'
//! configuration, what the host needs for both, and the cluster's DNS server ([`dns`]). The only crate
//! that names nftables, netlink and hickory.
//! It reads Services and EndpointSlices through `kedge-client` and runs against any API server.
//!
//! Packets that pods send and receive are never dropped by Kedge's table, but an accept there cannot
//! overrule a drop elsewhere: every base chain of every table has to let a packet pass. Where another
//! program drops forwarded packets by default (Docker's `ip filter FORWARD`), [`prepare_host`] returns
//! a warning that names the chain and the remedy.

pub mod dns;
mod error;
mod host;
mod netlink;
mod nft;
mod proxy;

pub use error::Error;
pub use host::{Warning, cleanup, default_address, prepare_host, write_cni_config};
pub use ipnet::IpNet;
pub use proxy::{Proxy, ProxyConfig, start_proxy};
