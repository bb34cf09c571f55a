//! The settings that all nodes of a cluster share: what the founder's configuration says.

use anyhow::Context as _;
use kedge_cluster::{Admitted, ClusterConfig, Pki};

use crate::config::Config;

/// The settings that a joining node must take over.
pub(crate) fn settings(config: &Config, cluster_id: String) -> ClusterConfig {
    ClusterConfig {
        cluster_id,
        pod_cidrs: config.pod_cidrs.iter().map(ToString::to_string).collect(),
        service_cidrs: config.service_cidrs.iter().map(ToString::to_string).collect(),
        kubernetes_service: config.kubernetes_service(),
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
    let networks = |cidrs: &[String], what: &str| -> anyhow::Result<Vec<ipnet::IpNet>> {
        anyhow::ensure!(!cidrs.is_empty(), "the cluster names no {what}");
        let parse = |text: &String| text.parse().with_context(|| format!("the cluster's {what} {text:?}"));
        cidrs.iter().map(parse).collect()
    };
    config.pod_cidrs = networks(&shared.pod_cidrs, "range of pods")?;
    config.service_cidrs = networks(&shared.service_cidrs, "range of Services")?;
    if let Some(dns) = shared.cluster_dns.first() {
        config.cluster_dns = *dns;
    }
    config.cluster_domain.clone_from(&shared.cluster_domain);
    Ok(())
}
