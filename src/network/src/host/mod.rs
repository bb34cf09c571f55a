//! What the machine itself needs: kernel settings, the CNI plugins' configuration, the node's address,
//! and taking all of it away again.

mod address;
mod cleanup;
mod cni;
mod portmap;
mod prepare;

pub use address::{default_address_of, until_moved};
pub use cleanup::cleanup;
pub(crate) use cni::{has_cni_config, remove_cni_config, show_foreign_cni};
pub use cni::{write_cni_config, write_cni_config_for};
pub(crate) use portmap::has_legacy_table;
pub use prepare::{Warning, prepare_host};
pub(crate) use prepare::{prepare_connection_tracking, prepare_ipv6};
