//! Who may speak in a cluster: certificate authorities, certificates and the keys that sign tokens.
//!
//! Certificates are made here and nowhere else (rcgen, ring, ECDSA P-256), kept in one folder, renewed
//! at two thirds of their life and swapped under running listeners. The crate knows of no other component:
//! it hands out PEM text and ready rustls configurations.

mod clock;
mod error;
mod issue;
mod kubeconfig;
mod pki;
mod tls;

pub use clock::Clock;
pub use error::Error;
pub use issue::{Leaf, NodeIdentity, Usage};
pub use kubeconfig::{admin_kubeconfig, kubeconfig};
pub use pki::Pki;
