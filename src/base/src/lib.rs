//! What every crate of Kedge needs and nothing that is particular to Kubernetes:
//! named tasks and their shutdown, back-off, error chains, safe file writes, watched folders, ranges of addresses, a small
//! sort, connections of HTTPS servers and what is told to Prometheus.
//! This crate knows of no other crate of the workspace.

mod addresses;
mod backoff;
mod error;
mod file;
mod folder;
pub mod https;
mod order;
mod pipe;
pub mod prometheus;
mod task;

pub use addresses::{AddressRange, NotARange};
pub use backoff::Backoff;
pub use error::Chain;
pub use file::{read_optional, sync_dir, write_atomic};
pub use folder::{Changed, FolderWatch};
pub use order::Order;
pub use pipe::pass_bytes;
pub use task::Tasks;

/// The version of this build, without a leading "v".
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The Kubernetes version whose API and behaviour this build follows.
pub const KUBERNETES_VERSION: &str = "1.36.0";

/// What `kubectl version` and the node's `kubeletVersion` report.
pub fn git_version() -> String {
    format!("v{KUBERNETES_VERSION}+kedge.{VERSION}")
}
