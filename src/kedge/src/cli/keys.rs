//! What can be typed about keys that the whole cluster shares.

use clap::{Args, Subcommand};

use super::{Printed, Reported};

#[derive(Debug, Args)]
pub(crate) struct RotateCaArgs {
    /// Trust the old authority no more: certificates and kubeconfigs of its are refused from then on
    #[arg(long, conflicts_with = "abort")]
    pub(crate) finish: bool,
    /// Give up, as long as the new authority has issued nothing
    #[arg(long)]
    pub(crate) abort: bool,
    /// Seconds to wait for all nodes; it goes on by itself after that
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

/// How long a command waits for the cluster.
#[derive(Debug, Args)]
pub(crate) struct Waiting {
    /// Seconds to wait until everything is rewritten; it goes on by itself after that
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EncryptionCommand {
    /// Encrypt in the whole cluster, what is stored already too
    Enable {
        /// What to encrypt: resources in the plural with their group, for instance widgets.example.com
        #[arg(long, value_name = "RESOURCE", value_delimiter = ',', default_value = "secrets")]
        resources: Vec<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// What is encrypted with which key, and how far a change is
    Status {
        #[command(flatten)]
        printed: Printed,
    },
    /// Encrypt everything again with a new key
    Rotate {
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Decrypt everything
    Disable {
        #[command(flatten)]
        waiting: Waiting,
    },
}
