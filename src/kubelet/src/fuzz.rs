//! What fuzz/ calls: what the kubelet reads from files, archives and requests.

pub use crate::images::fuzz::{archive, archive_seeds, compressed, reference};
pub use crate::logs::fuzz::log_line;
pub use crate::registries::fuzz::registries;
pub use crate::server::fuzz::query;

/// A `resolv.conf`.
pub fn resolv_conf(data: &[u8]) {
    let _ = crate::dns::parse(&String::from_utf8_lossy(data));
}
