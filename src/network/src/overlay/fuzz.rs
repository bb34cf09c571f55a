//! What nodes announce of their part of the pod network, for fuzz/.

use k8s_openapi::api::core::v1::Node;

use super::config::NetworkConfig;
use super::lease::{Lease, pod_cidrs, public_overwrite};

/// A Node object.
pub fn lease(data: &[u8]) {
    let Ok(node) = serde_json::from_slice::<Node>(data) else { return };
    let _ = (pod_cidrs(&node), public_overwrite(&node, true), Lease::announced_vtep(&node, false));
    let Some(lease) = Lease::of(&node) else { return };
    let mut again = node.clone();
    again.metadata.annotations = Some(lease.annotations());
    assert_eq!(Lease::of(&again).map(|lease| lease.annotations()), Some(lease.annotations()));
    let _ = lease.missing_annotations(&node);
}

/// flannel's `net-conf.json`.
pub fn net_conf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = NetworkConfig::parse(text) {
        let again = NetworkConfig::parse(&config.net_conf().to_string());
        assert_eq!(again.ok(), Some(config));
    }
}
