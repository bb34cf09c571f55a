//! The objects a new cluster starts with, and how they are kept right after an upgrade.
//! Pure data: whoever starts the API server writes them to the store.

pub(crate) mod roles;
pub(crate) mod system;
