//! Who may speak in a cluster, and how nodes become one: certificate authorities, certificates, the keys
//! that sign tokens; join tokens, the join protocol, the book of nodes, connections between nodes.
//!
//! Certificates are made here and nowhere else (rcgen, ring, ECDSA P-256), kept in one folder, renewed
//! at two thirds of their life and swapped under running listeners. The crate names neither the store nor
//! the API server: the store is [`Records`] here, and hands over its own service for the cluster port; the
//! API server is a `kube::Client`.

mod authority;
mod call;
mod certs;
mod clock;
mod encryption;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod identity;
mod issue;
mod join;
mod join_string;
mod kubeconfig;
mod limit;
mod listener;
mod member;
mod pki;
mod refusal;
mod registry;
mod renew;
mod service;
mod sign;
mod staging;
mod tls;
mod token;
mod trust;
mod wire;

pub use authority::{AuthorityReport, AuthorityStage, AuthorityState, AuthorityStep};
pub use certs::{CertificateStatus, certificates};
pub use clock::Clock;
pub use encryption::{EncryptionKeys, EncryptionNext, EncryptionStage, EncryptionState, EncryptionWish};
pub use error::Error;
pub use identity::{NodeId, PeerIdentity, Role};
pub use issue::{Leaf, NodeIdentity, Usage};
pub use join::{LocalState, join};
pub use join_string::{CLUSTER_PORT, HostPort, JoinString};
pub use kubeconfig::{admin_kubeconfig, kubeconfig};
pub use listener::{Body, BoxError, StoreService, serve};
pub use member::{Dialer, Members};
pub use pki::{Pending, Pki};
pub use refusal::Refusal;
pub use registry::{
    Check, MemberChange, Record, Records, RecordsError, Registry, Replica, TokenSummary, Transaction,
    is_of_nodes, nodes_of, strike_others,
};
pub use renew::{Renewal, renew_by_request};
pub use service::{ClusterFacts, Service};
pub use sign::Signer;
pub use staging::Staging;
pub use token::{DEFAULT_TTL, Token, TokenHash, TokenOptions, TokenRecord, UsedBy};
pub use wire::{
    Admitted, ClusterConfig, ControlPlaneKeys, NodeFacts, NodeRecord, Peer, RemovedRecord, Standing, Version,
};
