//! The answering side of the cluster port: decides on requests of other nodes. Knows nothing of sockets;
//! the listener hands in who asks and the bytes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kedge_base::Order as _;
use parking_lot::Mutex;
use rcgen::PublicKeyData as _;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::identity::Own;
use crate::limit::Limiter;
use crate::pki::parse_request;
use crate::wire::{
    Admitted, AnnounceRequest, AuthorityRequest, AuthorityView, Call, ClusterConfig, ControlPlaneKeys,
    JoinRequest, KeysRequest, LeaveRequest, NodeFacts, NodeRecord, RenewRequest, Renewed, Standing,
    StandingRequest, Version,
};
use crate::{Error, HostPort, Leaf, NodeId, NodeIdentity, PeerIdentity, Pki, Refusal, Registry, Role, Token};

/// Clocks of nodes may be so far apart.
pub(crate) const CLOCK_LIMIT: Duration = Duration::from_secs(5 * 60);
/// No node has more addresses.
const MOST_ADDRESSES: usize = 64;

/// What the assembly knows of the cluster and a new node needs.
pub trait ClusterFacts: Send + Sync + 'static {
    /// The settings that all nodes share.
    fn config(&self) -> ClusterConfig;
    /// Where API servers listen now, this node's first.
    fn api_servers(&self) -> Vec<HostPort>;
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) source: IpAddr,
    /// By the certificate that was shown and verified.
    pub(crate) peer: Option<PeerIdentity>,
}

/// Answers nodes that join, leave, renew or ask for their standing.
pub struct Service {
    pki: Arc<Pki>,
    registry: Registry,
    facts: Arc<dyn ClusterFacts>,
    limiter: Mutex<Limiter>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    /// The service of a control-plane node.
    pub fn new(pki: Arc<Pki>, registry: Registry, facts: Arc<dyn ClusterFacts>) -> Self {
        Self { pki, registry, facts, limiter: Mutex::new(Limiter::new(Instant::now().into_std())) }
    }

    /// The book.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn pki(&self) -> &Arc<Pki> {
        &self.pki
    }

    /// A request and its answer, both JSON.
    pub(crate) async fn answer(&self, asker: &Asker, path: &str, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        match path {
            JoinRequest::PATH => encode(&self.limited(asker, body).await?),
            StandingRequest::PATH => encode(&self.standing(member(asker)?)?),
            RenewRequest::PATH => encode(&self.renew(member(asker)?, &decode(body)?).await?),
            LeaveRequest::PATH => {
                let peer = member(asker)?;
                let record = self.registry.leave(peer.id).await?;
                tracing::info!(node = record.name, id = %record.id, "node left the cluster");
                encode(&record)
            }
            AuthorityRequest::PATH => encode(&self.authority(member(asker)?, &decode(body)?).await?),
            KeysRequest::PATH => encode(&self.keys(member(asker)?)?),
            AnnounceRequest::PATH => encode(&self.announce(member(asker)?, decode(body)?).await?),
            other => Err(Refusal::Invalid {
                message: format!("there is no request {other:?}; is the other node newer than this one?"),
            }),
        }
    }

    /// Too many wrong attempts end a source's chances for a while.
    async fn limited(&self, asker: &Asker, body: &[u8]) -> Result<Admitted, Refusal> {
        let now = || Instant::now().into_std();
        let allowed = self.limiter.lock().check(asker.source, now());
        if let Err(wait) = allowed {
            return Err(Refusal::TooManyAttempts { retry_after_seconds: wait.as_secs().max(1) });
        }
        let decided = self.join(body).await;
        if let Err(refusal) = &decided {
            if refusal.is_guess() {
                self.limiter.lock().failed(asker.source, now());
            }
            tracing::warn!(source = %asker.source, %refusal, "a join was refused");
        }
        decided
    }

    async fn join(&self, body: &[u8]) -> Result<Admitted, Refusal> {
        let request: JoinRequest = decode(body).map_err(|refusal| other_version(body).unwrap_or(refusal))?;
        let token = request.token.parse::<Token>().map_err(|_| Refusal::UnknownToken)?.hash();
        check_facts(&request.facts)?;
        let csr = |leaf: Leaf| {
            request.requests.get(&leaf).ok_or_else(|| Refusal::Invalid {
                message: format!("the request for the certificate {:?} is missing", leaf.file_stem()),
            })
        };
        // The request is signed with the key: nobody can ask in another node's name.
        let node_key = parse_request(csr(Leaf::Node)?).map_err(|error| invalid(&error))?.public_key;
        let id = NodeId::of_public_key(&node_key.subject_public_key_info());
        self.registry.check_token(&token, id, request.facts.role).await?;
        let now = self.registry.now();
        let apart = now.as_second().abs_diff(request.clock.as_second());
        if apart > CLOCK_LIMIT.as_secs() {
            return Err(Refusal::ClocksApart {
                joiner: request.clock,
                cluster: now,
                limit_seconds: CLOCK_LIMIT.as_secs(),
            });
        }
        check_version(&request.version)?;
        self.check_own(id, &request.facts.addresses).await?;
        let own = Own { id, role: request.facts.role };
        let identity = self.identity(&request.facts.name, &request.facts.addresses);
        let mut certificates = std::collections::BTreeMap::new();
        for leaf in Leaf::WORKER {
            let signed = self.pki.sign_leaf(leaf, csr(leaf)?, &identity, own);
            certificates.insert(leaf, signed.map_err(|error| invalid(&error))?);
        }
        let shared = || match own.role {
            Role::ControlPlane => self.pki.shared_keys().map(Some).map_err(|error| unavailable(&error)),
            Role::Worker => Ok(None),
        };
        shared()?;
        // Everything is ready; from here on the node is a member, whether the answer arrives or not.
        let record = self.registry.admit(&token, id, &request.facts).await?;
        // Only now: a key that came into use before it was a member is among these, and for one that comes
        // into use later the cluster waits for it.
        let control_plane = shared()?;
        tracing::info!(node = record.name, %id, role = %record.role, "node admitted to the cluster");
        let mut peers: Vec<_> = self
            .registry
            .nodes()
            .await?
            .into_iter()
            .filter(|node| node.role == Role::ControlPlane && node.id != id)
            .map(|node| node.peer())
            .collect();
        // This node knows the way already, so it comes first.
        peers.order_by_key(|peer| peer.id != self.pki.node_id());
        Ok(Admitted {
            id,
            facts: request.facts,
            certificates,
            ca: self.pki.ca_pem(),
            control_plane,
            peers,
            api_servers: self.facts.api_servers(),
            config: self.facts.config(),
        })
    }

    fn standing(&self, peer: &PeerIdentity) -> Result<Standing, Refusal> {
        Ok(Standing {
            node: self.registry.standing(peer.id)?,
            control_plane: self.registry.control_plane(),
            api_servers: self.facts.api_servers(),
        })
    }

    async fn renew(&self, peer: &PeerIdentity, request: &RenewRequest) -> Result<Renewed, Refusal> {
        let record = self.registry.standing(peer.id)?;
        if !Leaf::WORKER.contains(&request.leaf) {
            return Err(Refusal::Forbidden {
                message: format!(
                    "the certificate {:?} is not signed for other nodes",
                    request.leaf.file_stem()
                ),
            });
        }
        check_addresses(&request.addresses)?;
        self.check_own(peer.id, &request.addresses).await?;
        let key = parse_request(&request.request).map_err(|error| invalid(&error))?.public_key;
        if request.leaf == Leaf::Node && NodeId::of_public_key(&key.subject_public_key_info()) != peer.id {
            return Err(Refusal::Forbidden { message: "a node's own key cannot be replaced".into() });
        }
        let own = Own { id: record.id, role: record.role };
        let identity = self.identity(&record.name, &request.addresses);
        let certificate = self
            .pki
            .sign_leaf(request.leaf, &request.request, &identity, own)
            .map_err(|error| invalid(&error))?;
        Ok(Renewed { certificate })
    }

    async fn authority(
        &self,
        peer: &PeerIdentity,
        request: &AuthorityRequest,
    ) -> Result<AuthorityView, Refusal> {
        self.registry.standing(peer.id)?;
        let state = self.registry.authority().await?.map(|(state, _)| state);
        if state.is_some() {
            self.registry.report_authority(peer.id, &request.report).await?;
        }
        Ok(AuthorityView { state })
    }

    fn keys(&self, peer: &PeerIdentity) -> Result<ControlPlaneKeys, Refusal> {
        let record = self.registry.standing(peer.id)?;
        if peer.role != Role::ControlPlane || record.role != Role::ControlPlane {
            return Err(Refusal::Forbidden {
                message: "only control-plane nodes get the cluster's keys".into(),
            });
        }
        self.pki.shared_keys().map_err(|error| unavailable(&error))
    }

    async fn announce(&self, peer: &PeerIdentity, request: AnnounceRequest) -> Result<NodeRecord, Refusal> {
        check_addresses(&request.addresses)?;
        self.check_own(peer.id, &request.addresses).await?;
        let record = self.registry.standing(peer.id)?;
        let facts = NodeFacts {
            name: record.name,
            role: record.role,
            address: request.address,
            addresses: request.addresses,
            failure_domain: record.failure_domain,
        };
        self.registry.enroll(peer.id, &facts).await
    }

    /// A certificate for an address is the right to be trusted there, so nobody gets one for what belongs to
    /// Services, to the API server wherever it is, or to another node.
    async fn check_own(&self, id: NodeId, addresses: &[IpAddr]) -> Result<(), Refusal> {
        let config = self.facts.config();
        let api = self.pki.identity().service_addresses;
        let mut shared = config.kubernetes_service.iter().chain(&config.cluster_dns).chain(&api);
        if let Some(address) = shared.find(|address| addresses.contains(address)) {
            return Err(Refusal::Invalid {
                message: format!(
                    "{address} is the address of a Service or of the cluster's API server and cannot be a node's"
                ),
            });
        }
        self.registry.check_addresses(id, addresses).await
    }

    fn identity(&self, name: &str, addresses: &[IpAddr]) -> NodeIdentity {
        NodeIdentity { name: name.to_owned(), addresses: addresses.to_vec(), ..self.pki.identity() }
    }
}

/// The node that asks.
fn member(asker: &Asker) -> Result<&PeerIdentity, Refusal> {
    asker.peer.as_ref().ok_or_else(|| Refusal::Unauthenticated { message: "none was shown".into() })
}

fn check_version(joiner: &Version) -> Result<(), Refusal> {
    let own = Version::own();
    if own.fits(joiner) {
        return Ok(());
    }
    Err(Refusal::VersionsApart { joiner: joiner.to_string(), cluster: own.to_string() })
}

/// What cannot be understood may come from another version, which is the better thing to say.
fn other_version(body: &[u8]) -> Option<Refusal> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: Version,
    }
    check_version(&serde_json::from_slice::<Versioned>(body).ok()?.version).err()
}

/// A node's name is a DNS subdomain of RFC 1123, as Node objects demand.
fn check_facts(facts: &NodeFacts) -> Result<(), Refusal> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if facts.name.len() > 253 || !facts.name.split('.').all(label) {
        return Err(Refusal::Invalid {
            message: format!(
                "the node name {:?} must consist of lower-case letters, digits, '-' and '.', and begin and end \
                 with a letter or digit",
                facts.name
            ),
        });
    }
    if is_nobodys_name(&facts.name) {
        return Err(Refusal::Invalid {
            message: format!("the node name {:?} is reserved; choose another one", facts.name),
        });
    }
    check_addresses(&facts.addresses)
}

/// A certificate names its node, and these names are not nodes'.
pub(crate) fn is_nobodys_name(name: &str) -> bool {
    ["kubernetes", "localhost"].contains(&name)
        || name.starts_with("kubernetes.default")
        || [".svc", ".kedge.internal"].iter().any(|end| name.ends_with(end))
        || name.contains(".svc.")
}

fn check_addresses(addresses: &[IpAddr]) -> Result<(), Refusal> {
    if addresses.is_empty() || addresses.len() > MOST_ADDRESSES {
        return Err(Refusal::Invalid {
            message: format!("a node has 1 to {MOST_ADDRESSES} addresses, not {}", addresses.len()),
        });
    }
    match addresses.iter().find(|address| address.is_unspecified() || address.is_multicast()) {
        Some(address) => Err(Refusal::Invalid { message: format!("{address} is not a node's address") }),
        None => Ok(()),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::Invalid { message: error.to_string() })
}

fn encode<T: serde::Serialize>(reply: &T) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(reply).map_err(|error| Refusal::Unavailable { message: error.to_string() })
}

fn invalid(error: &Error) -> Refusal {
    Refusal::Invalid { message: kedge_base::Chain(error).to_string() }
}

fn unavailable(error: &Error) -> Refusal {
    Refusal::Unavailable { message: kedge_base::Chain(error).to_string() }
}
