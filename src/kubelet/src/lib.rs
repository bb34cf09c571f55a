//! The node agent: runs the pods that are bound to one node, on containerd, through CRI v1.
//!
//! It follows upstream's kubelet (`pkg/kubelet`) in everything an API client can see: statuses,
//! conditions, events and their wording. It works against any conformant API server and reaches it
//! only through [`kedge_client`]. Only this crate names containerd.
//!
//! One task a pod ([`worker`]) does everything for that pod in order; changes of the object, events
//! of the runtime, probe results and timers wake it up. What runs is always read from the runtime,
//! never remembered, so a new process adopts the containers of the one before it.

mod actions;
mod admission;
mod allocation;
mod calls;
mod cgroup;
mod config;
mod container_config;
pub mod containerd;
mod core;
mod dns;
mod env;
mod error;
mod eviction;
mod fields;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod gc;
mod hosts;
mod images;
mod kubelet;
mod launch;
mod lifecycle;
mod logs;
mod metrics;
mod node;
mod objects;
mod pod;
mod pod_logs;
mod probe;
mod registries;
mod resize;
mod resize_action;
mod resources;
mod runtime;
mod runtime_events;
mod sandbox_config;
mod server;
mod status;
mod status_manager;
mod terminate;
mod termination_message;
mod volumes;
mod worker;

pub use admission::check_sysctl_pattern;
pub use config::{Config, ServerTls};
pub use error::Error;
pub use eviction::{
    Eviction, GracePeriods, MinimumReclaim, Signal, Thresholds, duration_text as eviction_duration_text,
    parse_duration as parse_eviction_duration,
};
pub use images::{
    ImageGc, ImageInfo, ImportOptions, describe as describe_images, export as export_images,
    import as import_images, let_go as let_go_of_images, list as list_images, prune as prune_images,
    set_pinned as set_images_pinned,
};
pub use kubelet::{Kubelet, Summary, start};
pub use registries::{Mirrors, Registries, check_mirror, check_registries};
