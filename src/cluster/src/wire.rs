//! What nodes say to each other on the cluster port besides Raft: JSON over HTTP/1.1 over TLS.
//!
//! Fields are only ever added; a node ignores what it does not know, and what a newer node needs from an
//! older one is optional. Nothing here is Kubernetes' business: ranges and domains pass through as text.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{AuthorityReport, AuthorityState, HostPort, Leaf, NodeId, Role, TokenHash};

/// All requests are POSTs below this path; other paths belong to the store.
pub(crate) const PREFIX: &str = "/kedge.cluster/v1/";
/// No request is bigger.
pub(crate) const REQUEST_LIMIT: usize = 64 << 10;
/// No answer is bigger.
pub(crate) const REPLY_LIMIT: usize = 1 << 20;

/// A request with its path and its answer.
pub(crate) trait Call: Serialize + DeserializeOwned + Send {
    const PATH: &'static str;
    type Reply: Serialize + DeserializeOwned + Send;
}

impl Serialize for HostPort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a node says of itself when it asks to be admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    /// The name of its Node object.
    pub name: String,
    /// What it wants to be.
    pub role: Role,
    /// Where its cluster port is (or would be, on a worker), announced and never looked up.
    pub address: HostPort,
    /// Every address it may be reached at.
    pub addresses: Vec<std::net::IpAddr>,
    /// Voters are spread over these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
}

/// `join`: a request without a client certificate. The keys stay with the joiner: it sends requests for
/// certificates, of which only the public keys are used.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinRequest {
    pub(crate) token: String,
    pub(crate) facts: NodeFacts,
    /// Kedge's version and that of Kubernetes.
    pub(crate) version: Version,
    pub(crate) clock: Timestamp,
    /// PEM, one for each of [`Leaf::WORKER`].
    pub(crate) requests: BTreeMap<Leaf, String>,
}

impl fmt::Debug for JoinRequest {
    // The token must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Call for JoinRequest {
    const PATH: &'static str = "join";
    type Reply = Admitted;
}

/// A version of Kedge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Kedge's own, `0.1.0`.
    pub kedge: String,
    /// The Kubernetes version it follows, `1.36.0`.
    pub kubernetes: String,
}

impl Version {
    /// This build's.
    pub fn own() -> Self {
        Self { kedge: kedge_base::VERSION.to_owned(), kubernetes: kedge_base::KUBERNETES_VERSION.to_owned() }
    }

    /// Same minor versions of both?
    pub fn fits(&self, other: &Self) -> bool {
        minor(&self.kedge) == minor(&other.kedge) && minor(&self.kubernetes) == minor(&other.kubernetes)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kedge {} (Kubernetes {})", self.kedge, self.kubernetes)
    }
}

fn minor(version: &str) -> (&str, &str) {
    let mut parts = version.split(['.', '-', '+']);
    (parts.next().unwrap_or(""), parts.next().unwrap_or(""))
}

/// The cluster's settings that every node must share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterConfig {
    /// The cluster's own id.
    pub cluster_id: String,
    /// Pods' range, one an address family.
    pub pod_cidrs: Vec<String>,
    /// Services' range, one an address family.
    pub service_cidrs: Vec<String>,
    /// The cluster IP of the Service `kubernetes`, one an address family.
    pub kubernetes_service: Vec<std::net::IpAddr>,
    /// The cluster IPs of the Service `kube-dns`.
    pub cluster_dns: Vec<std::net::IpAddr>,
    /// For instance `cluster.local`.
    pub cluster_domain: String,
    /// Whatever else the assembly wants to pass on; unknown names are ignored.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// Where a control-plane node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its member id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its cluster port.
    pub address: HostPort,
    /// Its failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
}

/// The answer to a join: everything a node needs to be part of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admitted {
    /// The node's id; a control-plane node's member id in the store.
    pub id: NodeId,
    /// What it was admitted with.
    pub facts: NodeFacts,
    /// PEM by leaf: the signed certificates.
    pub certificates: BTreeMap<Leaf, String>,
    /// The cluster authority's certificate.
    pub ca: String,
    /// For control-plane nodes: what lets a node sign and issue by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlaneKeys>,
    /// The control-plane nodes there are, without this one.
    pub peers: Vec<Peer>,
    /// Where API servers listen.
    pub api_servers: Vec<HostPort>,
    /// The cluster's settings.
    pub config: ClusterConfig,
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted")
            .field("id", &self.id)
            .field("facts", &self.facts)
            .field("peers", &self.peers)
            .field("api_servers", &self.api_servers)
            .finish_non_exhaustive()
    }
}

/// Private keys that all control-plane nodes share.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneKeys {
    /// The cluster authority's key.
    pub ca_key: String,
    /// The key of the authority that is to take its place; empty: none is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_ca_key: String,
    /// The front-proxy authority.
    pub front_proxy_ca: String,
    /// Its key.
    pub front_proxy_ca_key: String,
    /// The key that signs ServiceAccount tokens.
    pub service_account_key: String,
    /// The file of keys that stored objects are encrypted with; empty: there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub encryption: String,
}

impl fmt::Debug for ControlPlaneKeys {
    // Keys must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlaneKeys").finish_non_exhaustive()
    }
}

/// `standing`: am I still a member? Asked with the node's certificate, answered from the local copy.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StandingRequest {}

impl Call for StandingRequest {
    const PATH: &'static str = "standing";
    type Reply = Standing;
}

/// A member's standing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// The record of the node that asked.
    pub node: NodeRecord,
    /// All control-plane nodes.
    pub control_plane: Vec<Peer>,
    /// Where API servers listen.
    pub api_servers: Vec<HostPort>,
}

/// `renew`: the certificate of a member, asked for with one that is still valid.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewRequest {
    pub(crate) leaf: Leaf,
    /// PEM.
    pub(crate) request: String,
    /// The addresses the node has now.
    pub(crate) addresses: Vec<std::net::IpAddr>,
}

impl Call for RenewRequest {
    const PATH: &'static str = "renew";
    type Reply = Renewed;
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Renewed {
    /// PEM.
    pub(crate) certificate: String,
}

/// `leave`: take the node that asks off the cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaveRequest {}

impl Call for LeaveRequest {
    const PATH: &'static str = "leave";
    type Reply = NodeRecord;
}

/// `announce`: the node that asks has another address for its cluster port now.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AnnounceRequest {
    pub(crate) address: HostPort,
    pub(crate) addresses: Vec<std::net::IpAddr>,
}

impl Call for AnnounceRequest {
    const PATH: &'static str = "announce";
    type Reply = NodeRecord;
}

/// `keys`: what all control-plane nodes share, asked for by one of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeysRequest {}

impl Call for KeysRequest {
    const PATH: &'static str = "keys";
    type Reply = ControlPlaneKeys;
}

/// `authority`: this is what I have; is the cluster's authority being replaced?
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AuthorityRequest {
    pub(crate) report: AuthorityReport,
}

impl Call for AuthorityRequest {
    const PATH: &'static str = "authority";
    type Reply = AuthorityView;
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AuthorityView {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<AuthorityState>,
}

/// What the cluster stores of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Where its cluster port is.
    pub address: HostPort,
    /// Every address it has.
    #[serde(default)]
    pub addresses: Vec<std::net::IpAddr>,
    /// Its failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
    /// When it was admitted.
    pub joined: Timestamp,
    /// The token that admitted it; none for the founder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenHash>,
}

impl NodeRecord {
    pub(crate) fn peer(&self) -> Peer {
        Peer {
            id: self.id,
            name: self.name.clone(),
            address: self.address.clone(),
            failure_domain: self.failure_domain.clone(),
        }
    }
}

/// What stays of a node that is gone, so that it can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedRecord {
    /// Its id.
    pub id: NodeId,
    /// Its name then.
    pub name: String,
    /// When it went.
    pub at: Timestamp,
    /// By itself (`kedge leave`), not by `remove-node`.
    pub left: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_fit_by_minor() {
        let version =
            |kedge: &str, kubernetes: &str| Version { kedge: kedge.into(), kubernetes: kubernetes.into() };
        let own = version("0.1.0", "1.36.0");
        for (other, fits) in [
            (version("0.1.9", "1.36.2"), true),
            (version("0.1.0-rc.1", "1.36.0"), true),
            (version("0.2.0", "1.36.0"), false),
            (version("0.1.0", "1.37.0"), false),
            (version("1.1.0", "1.36.0"), false),
        ] {
            assert_eq!(own.fits(&other), fits, "{other}");
        }
    }
}
