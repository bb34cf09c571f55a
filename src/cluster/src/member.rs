//! What a member asks of the control plane, and how members connect to each other.

use std::io;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::call::{connect, exchange, http1, secure};
use crate::wire::{
    AnnounceRequest, AuthorityRequest, Call, ControlPlaneKeys, KeysRequest, LeaveRequest, NodeRecord, Peer,
    RenewRequest, Standing, StandingRequest,
};
use crate::{AuthorityState, Error, HostPort, Leaf, NodeId, Pki, Refusal};

/// Opens connections to members: mutual TLS, HTTP/2, and sure to lead to that very member, because its
/// certificate must carry its id. Renewed certificates are used from the next connection on.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: Arc<ClientConfig>,
}

impl Dialer {
    /// With this node's certificate.
    ///
    /// # Errors
    /// When the certificates are of no use for TLS.
    pub fn new(pki: &Pki) -> Result<Self, Error> {
        let mut config = ClientConfig::clone(&*pki.cluster_client_config(Some(Leaf::Node))?);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    /// Connect to the member's cluster port at `host:port`; gives up after some seconds.
    ///
    /// # Errors
    /// With the reason of [`Error::Unreachable`], or what TLS says.
    pub async fn dial(&self, member: NodeId, address: &str) -> io::Result<TlsStream<TcpStream>> {
        let server: HostPort =
            address.parse().map_err(|reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        let stream = connect(&server).await.map_err(io::Error::other)?;
        secure(stream, &member.server_name(), self.config.clone()).await
    }
}

/// The control plane as a member sees it. Each request goes to the nodes in turn until one decides.
#[derive(Debug)]
pub struct Members {
    pki: Arc<Pki>,
    config: Arc<ClientConfig>,
    peers: RwLock<Vec<Peer>>,
}

impl Members {
    /// A member with the control-plane nodes it knows.
    ///
    /// # Errors
    /// When the certificates are of no use for TLS.
    pub fn new(pki: Arc<Pki>, peers: Vec<Peer>) -> Result<Self, Error> {
        let config = http1(&*pki.cluster_client_config(Some(Leaf::Node))?);
        Ok(Self { pki, config, peers: RwLock::new(peers) })
    }

    /// The control-plane nodes it knows: keep them on disk.
    pub fn peers(&self) -> Vec<Peer> {
        self.peers.read().clone()
    }

    /// Other control-plane nodes became known.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        *self.peers.write() = peers;
    }

    /// Is this node still a member? The control-plane nodes in the answer are taken over.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::Removed`] or [`Refusal::NotAMember`] when it is not;
    /// [`Error::NoControlPlane`] when nobody can say.
    pub async fn standing(&self) -> Result<Standing, Error> {
        let standing = self.ask(&StandingRequest {}).await?;
        if !standing.control_plane.is_empty() {
            self.set_peers(standing.control_plane.clone());
        }
        Ok(standing)
    }

    /// Take this node off the cluster. A node that is off already is told so by `None`: the leave was
    /// repeated, or somebody removed it.
    ///
    /// # Errors
    /// [`Refusal::Unsafe`] when the cluster would not survive it.
    pub async fn leave(&self) -> Result<Option<NodeRecord>, Error> {
        match self.ask(&LeaveRequest {}).await {
            Ok(record) => Ok(Some(record)),
            Err(Error::Refused(Refusal::Removed { .. } | Refusal::NotAMember)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says what this node has, and hears whether the cluster's authority is being replaced.
    ///
    /// # Errors
    /// As [`Members::standing`].
    pub async fn authority(&self) -> Result<Option<AuthorityState>, Error> {
        let report = self.pki.authority_report()?;
        Ok(self.ask(&AuthorityRequest { report }).await?.state)
    }

    /// What all control-plane nodes share, from another one of them. With `wanted` the next one is asked when
    /// one does not have it.
    ///
    /// # Errors
    /// [`Error::NoControlPlane`] when nobody has it or answers.
    pub async fn keys(&self, wanted: impl Fn(&ControlPlaneKeys) -> bool) -> Result<ControlPlaneKeys, Error> {
        let mut failures = Vec::new();
        for peer in self.peers() {
            if peer.id == self.pki.node_id() {
                continue;
            }
            match self.ask_one(&peer, &KeysRequest {}).await {
                Ok(keys) if wanted(&keys) => return Ok(keys),
                Ok(_) => failures.push(format!("{} does not have them", peer.name)),
                Err(error) => failures.push(error.to_string()),
            }
        }
        Err(Error::NoControlPlane(if failures.is_empty() {
            "there is no other control-plane node".into()
        } else {
            failures.join("; ")
        }))
    }

    /// This node's cluster port has another address.
    ///
    /// # Errors
    /// [`Refusal::AddressTaken`].
    pub async fn announce(
        &self,
        address: HostPort,
        addresses: Vec<std::net::IpAddr>,
    ) -> Result<NodeRecord, Error> {
        self.ask(&AnnounceRequest { address, addresses }).await
    }

    /// Have a certificate of this node signed and put in place. The way for [`Leaf::Node`], and for the
    /// kubelet's where the API server does not sign.
    ///
    /// # Errors
    /// When it is refused or nobody answers; the old certificate stays in use.
    pub async fn renew(&self, leaf: Leaf) -> Result<(), Error> {
        let pending = self.pki.pending(leaf)?;
        let addresses = self.pki.identity().addresses;
        let renewed = self.ask(&RenewRequest { leaf, request: pending.request.clone(), addresses }).await?;
        self.pki.install(&pending, &renewed.certificate)
    }

    async fn ask<C: Call + Sync>(&self, call: &C) -> Result<C::Reply, Error> {
        let mut failures = Vec::new();
        for peer in self.peers() {
            if peer.id == self.pki.node_id() {
                continue;
            }
            let failure = match self.ask_one(&peer, call).await {
                Ok(reply) => return Ok(reply),
                // Another node may know more, or have a quorum.
                Err(error @ Error::Refused(Refusal::Unavailable { .. } | Refusal::NotAMember)) => error,
                Err(error @ (Error::Unreachable { .. } | Error::Exchange { .. })) => error,
                Err(error) => return Err(error),
            };
            failures.push(failure);
        }
        // A clear answer of one counts more than the silence of others.
        if let Some(refused) = failures.iter().position(|failure| matches!(failure, Error::Refused(_))) {
            return Err(failures.swap_remove(refused));
        }
        let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Err(Error::NoControlPlane(if failures.is_empty() {
            "none is known".into()
        } else {
            failures.join("; ")
        }))
    }

    async fn ask_one<C: Call + Sync>(&self, peer: &Peer, call: &C) -> Result<C::Reply, Error> {
        let address = peer.address.to_string();
        let stream = connect(&peer.address).await?;
        let stream = secure(stream, &peer.id.server_name(), self.config.clone()).await.map_err(|error| {
            Error::Exchange { address: address.clone(), reason: format!("no secure connection: {error}") }
        })?;
        exchange(stream, &address, call).await
    }
}
