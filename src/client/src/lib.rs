//! How components reach an API server: shared informers, work queues, controllers' workers and
//! events, all on top of a `kube::Client`. The client may speak HTTPS or call a router in the same
//! process; nothing here knows which. On a worker it goes to whichever control-plane node answers
//! ([`failover`]). This crate never imports the API server or the store.

mod connect;
mod controller;
mod error;
mod events;
pub mod failover;
mod follow;
pub mod https;
mod informer;
mod key;
pub mod load_balancer;
mod mounted;
mod named;
pub mod node_fit;
mod queue;
mod watch;

pub use controller::run_controller;
pub use error::{Error, is_already_exists, is_conflict, is_not_found, told};
pub use events::{EventType, Recorder, reference};
pub use informer::{Change, Informer, Informers, Watched};
pub use key::{ObjectKey, StorageKey, selector_matches};
pub use named::named;
pub use queue::Queue;
pub use watch::{Event, Watch};
pub use {k8s_openapi, kube};
