//! What this node knows of its cluster without anybody's help: one small file in the data folder, written
//! by `kedge join` and kept up to date by the running node.

use std::path::Path;

use anyhow::Context as _;
use kedge_cluster::{ClusterConfig, HostPort, Peer, Role};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// The file's content. A node that was never joined to another has none: it founds a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Membership {
    pub(crate) role: Role,
    /// The control-plane nodes known last.
    pub(crate) peers: Vec<Peer>,
    /// Where API servers were last.
    pub(crate) api_servers: Vec<HostPort>,
    /// The settings that all nodes of the cluster share.
    pub(crate) config: ClusterConfig,
}

impl Membership {
    /// Reads the file; `None`: this node founds its own cluster.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub(crate) fn load(config: &Config) -> anyhow::Result<Option<Self>> {
        let file = config.membership_file();
        let Some(bytes) =
            kedge_base::read_optional(&file).with_context(|| format!("read {}", file.display()))?
        else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).with_context(|| {
            format!("{} is damaged; restore it, or run kedge leave --force and join again", file.display())
        })
    }

    /// # Errors
    /// When it cannot be written.
    pub(crate) fn save(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self).context("write JSON")?;
        if kedge_base::read_optional(file).ok().flatten().as_deref() == Some(text.as_slice()) {
            return Ok(());
        }
        kedge_base::write_atomic(file, &text, 0o600).with_context(|| format!("write {}", file.display()))
    }
}

/// The settings that a joining node must take over.
pub(crate) fn shared_settings(config: &Config, cluster_id: String) -> ClusterConfig {
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
