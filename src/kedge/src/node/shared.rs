//! The settings that all nodes of a cluster share: what the founder's configuration says.

use std::path::PathBuf;

use anyhow::Context as _;
use ipnet::IpNet;
use kedge_cluster::{Admitted, ClusterConfig, Pki};
use serde::{Deserialize, Serialize};

use crate::config::{Config, joined};

/// The settings that a joining node must take over.
pub(crate) fn settings(config: &Config, cluster_id: String) -> ClusterConfig {
    ClusterConfig {
        cluster_id,
        pod_cidrs: config.pod_cidrs.iter().map(ToString::to_string).collect(),
        service_cidrs: config.service_cidrs.iter().map(ToString::to_string).collect(),
        kubernetes_service: config.kubernetes_service(),
        cluster_dns: vec![config.cluster_dns],
        cluster_domain: config.cluster_domain.clone(),
        settings: [("port".to_owned(), config.port.to_string())]
            .into_iter()
            .chain(virtual_address(config))
            .collect(),
    }
}

/// The name of the setting among those that are passed on.
const VIRTUAL_ADDRESS: &str = "virtual-address";

fn virtual_address(config: &Config) -> Option<(String, String)> {
    let text = joined(&config.virtual_addresses);
    (!text.is_empty()).then(|| (VIRTUAL_ADDRESS.to_owned(), text))
}

/// The same for any node: one that joined has them from its cluster.
pub(crate) fn settings_of(config: &Config, pki: &Pki, admitted: Option<&Admitted>) -> ClusterConfig {
    let Some(admitted) = admitted else { return settings(config, pki.ca_hash()) };
    let mut shared = admitted.config.clone();
    // It may have come after this node did.
    shared.settings.remove(VIRTUAL_ADDRESS);
    shared.settings.extend(virtual_address(config));
    shared
}

/// A member's settings are the cluster's, whatever its own configuration says; only a virtual address may come to a
/// cluster later, by the configuration of its control-plane nodes.
///
/// # Errors
/// When the cluster's settings make no sense, which a damaged file may cause.
pub(crate) fn adopt(config: &mut Config, shared: &ClusterConfig) -> anyhow::Result<()> {
    let networks = |cidrs: &[String], what: &str| -> anyhow::Result<Vec<IpNet>> {
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
    let own = config.given.get(VIRTUAL_ADDRESS).is_some_and(|text| !text.is_empty());
    if let Some(text) = shared.settings.get(VIRTUAL_ADDRESS).filter(|_| !own) {
        let parse =
            |text: &str| text.parse().with_context(|| format!("the cluster's virtual address {text:?}"));
        config.virtual_addresses = text.split(',').map(parse).collect::<anyhow::Result<_>>()?;
    }
    Ok(())
}

/// The networks that the founder's cluster was made with. It goes with the cluster's keys: who has other keys is in
/// another cluster.
#[derive(Debug, Serialize, Deserialize)]
struct Founded {
    pod_cidrs: Vec<IpNet>,
    service_cidrs: Vec<IpNet>,
}

fn founded(config: &Config) -> PathBuf {
    config.pki_dir().join("founded.json")
}

/// Does the founder's configuration still name the networks that nodes, pods and Services have their addresses of?
/// One more (the other family) may come.
///
/// # Errors
/// It does not, or what was kept of them cannot be read.
pub(crate) fn check_networks(config: &Config) -> anyhow::Result<()> {
    let file = founded(config);
    let kept = kedge_base::read_optional(&file).with_context(|| format!("read {}", file.display()))?;
    let Some(kept) = kept else { return Ok(()) };
    let kept: Founded = serde_json::from_slice(&kept).with_context(|| format!("read {}", file.display()))?;
    for (key, before, now) in [
        ("pod-cidr", &kept.pod_cidrs, &config.pod_cidrs),
        ("service-cidr", &kept.service_cidrs, &config.service_cidrs),
    ] {
        anyhow::ensure!(
            before.iter().all(|network| now.contains(network)),
            "{key} is {} in the configuration, but this cluster was made with {}, of which its pods and Services \
             have their addresses; put that back, or begin a new cluster with kedge reset",
            joined(now),
            joined(before)
        );
    }
    Ok(())
}

/// Keeps them when the founder's keys are there.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn keep_networks(config: &Config) -> anyhow::Result<()> {
    let file = founded(config);
    let now = Founded { pod_cidrs: config.pod_cidrs.clone(), service_cidrs: config.service_cidrs.clone() };
    let text = serde_json::to_vec(&now).context("write the cluster's networks")?;
    if kedge_base::read_optional(&file).ok().flatten().as_ref() == Some(&text) {
        return Ok(());
    }
    kedge_base::write_atomic(&file, &text, 0o600).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn a_clusters_networks_stay() {
        let dir = tempfile::tempdir().unwrap();
        let load = |pods: &str, services: &str| {
            let mut given = Settings::default();
            given.insert("data-dir", dir.path().display().to_string());
            given.insert("pod-cidr", pods.to_owned());
            given.insert("service-cidr", services.to_owned());
            Config::load(Some(std::path::Path::new("/nonexistent")), &given).unwrap()
        };
        let made = load("10.244.0.0/16", "10.96.0.0/16");
        std::fs::create_dir(made.pki_dir()).unwrap();
        check_networks(&made).unwrap();
        keep_networks(&made).unwrap();
        check_networks(&made).unwrap();
        for (pods, services, wrong) in [
            ("10.99.0.0/16", "10.96.0.0/16", "pod-cidr is 10.99.0.0/16"),
            ("10.244.0.0/16", "10.97.0.0/16", "service-cidr is 10.97.0.0/16"),
            ("10.244.0.0/15", "10.96.0.0/16", "made with 10.244.0.0/16"),
        ] {
            let error = check_networks(&load(pods, services)).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("kedge reset"), "{error}");
        }
        let both = load("10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/16,fd00:10:96::/112");
        check_networks(&both).unwrap();
        keep_networks(&both).unwrap();
        assert!(check_networks(&made).is_err(), "the second family has addresses now, too");
    }

    #[test]
    fn a_virtual_address_is_the_clusters_unless_the_node_says_otherwise() {
        let load = |own: &str| {
            let mut given = Settings::default();
            given.insert(VIRTUAL_ADDRESS, own.to_owned());
            Config::load(Some(std::path::Path::new("/nonexistent")), &given).unwrap()
        };
        let founder = settings(&load("192.0.2.9"), String::new());
        for (own, shared, expected) in [
            ("", &founder, "192.0.2.9"),
            ("192.0.2.8", &founder, "192.0.2.8"),
            ("none", &founder, ""),
            ("192.0.2.8", &settings(&load(""), String::new()), "192.0.2.8"),
            ("", &settings(&load(""), String::new()), ""),
        ] {
            let mut config = load(own);
            adopt(&mut config, shared).unwrap();
            assert_eq!(joined(&config.virtual_addresses), expected, "{own:?}");
        }
        let mut broken = founder;
        broken.settings.insert(VIRTUAL_ADDRESS.to_owned(), "x".to_owned());
        assert!(adopt(&mut load(""), &broken).is_err());
    }
}
