//! The settings that all nodes of a cluster share: what the founder's configuration says.

use anyhow::Context as _;
use kedge_cluster::{Admitted, ClusterConfig, Pki};

use crate::config::Config;

/// The settings that a joining node must take over.
pub(crate) fn settings(config: &Config, cluster_id: String) -> ClusterConfig {
    ClusterConfig {
        cluster_id,
        pod_cidrs: vec![config.pod_cidr.to_string()],
        service_cidrs: vec![config.service_cidr.to_string()],
        kubernetes_service: config.service_cidr.hosts().next().into_iter().collect(),
        cluster_dns: vec![config.cluster_dns],
        cluster_domain: config.cluster_domain.clone(),
        settings: [("port".to_owned(), config.port.to_string())].into(),
    }
}

/// The same for any node: one that joined has them from its cluster.
pub(crate) fn settings_of(config: &Config, pki: &Pki, joined: Option<&Admitted>) -> ClusterConfig {
    joined.map_or_else(|| settings(config, pki.ca_hash()), |admitted| admitted.config.clone())
}

/// A member's settings are the cluster's, whatever its own configuration says.
///
/// # Errors
/// When the cluster's settings make no sense, which a damaged file may cause.
pub(crate) fn adopt(config: &mut Config, shared: &ClusterConfig) -> anyhow::Result<()> {
    let network = |cidrs: &[String], what: &str| -> anyhow::Result<ipnet::IpNet> {
        let text = cidrs.first().with_context(|| format!("the cluster names no {what}"))?;
        text.parse().with_context(|| format!("the cluster's {what} {text:?}"))
    };
    config.pod_cidr = network(&shared.pod_cidrs, "range of pods")?;
    config.service_cidr = network(&shared.service_cidrs, "range of Services")?;
    if let Some(dns) = shared.cluster_dns.first() {
        config.cluster_dns = *dns;
    }
    config.cluster_domain.clone_from(&shared.cluster_domain);
    Ok(())
}
