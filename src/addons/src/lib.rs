//! Addons: folders with an `addon.yaml` and manifests, embedded in the binary or loaded from a folder.
//!
//! Enabling is one server-side apply under the field manager `kedge-addons`, with an inventory object
//! that lists what was made: disabling removes exactly that (what was there before stays), and a newer version of an addon removes
//! what it no longer has. The same code applies the manifests of a watched folder. The crate talks to an
//! API server through a `kube::Client`; apart from that it touches the folder of added addons and runs git
//! to fill it.

mod apply;
mod catalog;
mod check;
mod definition;
mod error;
mod foreign;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod health;
mod inventory;
mod manager;
mod manifests;
mod render;
mod repository;

pub use catalog::Catalog;
pub use check::Check;
pub use definition::{Addon, Argument, ArgumentType};
pub use error::Error;
pub use foreign::objects_of_users;
pub use inventory::{Inventory, ObjectRef};
pub use manager::{Cluster, Listed, Manager, State};
pub use manifests::{Done, Manifests};
pub use repository::{Added, Kind, Repositories, Repository};
