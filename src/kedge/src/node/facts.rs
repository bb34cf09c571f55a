//! What a node says of itself when it asks to join a cluster.

use std::net::IpAddr;

use kedge_base::Order as _;
use kedge_cluster::{HostPort, JoinString, NodeFacts, Role};

use crate::config::Config;

/// Which IP families the cluster has is not known yet: the address it was asked by says which comes first.
pub(crate) fn facts(config: &Config, role: Role, string: &JoinString) -> anyhow::Result<NodeFacts> {
    let family = string.server.address().map(|address| address.is_ipv4());
    let mut addresses = config.node_ips.clone();
    let mut missing = None;
    for is_ipv4 in [true, false] {
        if !addresses.iter().any(|address| address.is_ipv4() == is_ipv4) {
            match kedge_network::default_address_of(is_ipv4) {
                Ok(address) => addresses.push(address),
                Err(error) => missing = Some(error),
            }
        }
    }
    if family.is_some() || config.node_ips.is_empty() {
        addresses.order_by_key(|address| address.is_ipv4() != family.unwrap_or(true));
    }
    let address: IpAddr = match (addresses.first(), missing) {
        (Some(address), _) => *address,
        (None, Some(error)) => return Err(anyhow::Error::new(error).context("find this node's address")),
        (None, None) => anyhow::bail!("this node has no address"),
    };
    Ok(NodeFacts {
        name: config.node_name.clone(),
        role,
        address: HostPort { host: address.to_string(), port: config.cluster_port },
        addresses,
        failure_domain: config.failure_domain.clone(),
    })
}
