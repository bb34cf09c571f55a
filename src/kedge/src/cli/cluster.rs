//! What can be typed about the cluster: its nodes, copies of its data, certificates.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{Asked, Printed, Reported, RotateCaArgs, UntilReady};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InvitationFormat {
    /// Sentences
    #[value(name = "text", alias = "pretty")]
    Pretty,
    /// The commands alone
    Short,
    /// YAML
    Yaml,
    /// JSON
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct AddNodeArgs {
    /// How long the token is valid: 90s, 15m, 1h, 7d
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = crate::config::parse_duration)]
    pub(crate) ttl: Duration,
    /// Let any number of nodes join with it
    #[arg(long)]
    pub(crate) reusable: bool,
    /// Let nodes join as workers only
    #[arg(long)]
    pub(crate) worker: bool,
    /// How to print it
    #[arg(long = "output", short = 'o', visible_alias = "format", value_enum, default_value_t = InvitationFormat::Pretty)]
    pub(crate) format: InvitationFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// List them; the tokens themselves are shown only once, by add-node
    List {
        /// The same as --output json
        #[arg(long, hide = true)]
        json: bool,
        #[command(flatten)]
        printed: Printed,
    },
    /// Let nobody join with a token any more
    Revoke {
        /// Its id in the list, or the beginning of it
        id: String,
        #[command(flatten)]
        reported: Reported,
    },
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What add-node printed: HOST:PORT/TOKEN/CA-HASH
    #[arg(value_name = "HOST:PORT/TOKEN/CA-HASH")]
    pub(crate) string: String,
    /// Run pods only, no control plane
    #[arg(long)]
    pub(crate) worker: bool,
    /// Join although something was made here: it is lost with this node's own cluster
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) ready: UntilReady,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Leave pods behind, and go even when the cluster does not answer
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave a basic addon out of the single node's cluster (repeat it for more)
    #[arg(long, value_name = "ADDON", value_parser = ["dns"])]
    pub(crate) without: Vec<String>,
    /// Seconds to wait until the single node is Ready
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveNodeArgs {
    /// Its name, id or address
    pub(crate) node: String,
    /// Do not move its pods away first
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save one, read it back, and say what is in it
    Save {
        /// Where to, in a folder that is there; a file of that name is replaced [default: DATA_DIR/snapshots]
        file: Option<PathBuf>,
        /// Its name in DATA_DIR/snapshots [default: the time]
        #[arg(long, conflicts_with = "file")]
        name: Option<String>,
        /// One of that name gives way, once this one is whole; it is an error otherwise
        #[arg(long, requires = "name")]
        replace: bool,
        #[command(flatten)]
        printed: Printed,
    },
    /// List those in DATA_DIR/snapshots
    List {
        #[command(flatten)]
        printed: Printed,
    },
    /// Read one to its end and say what is in it
    Verify {
        /// The file, or a name from the list
        file: PathBuf,
        #[command(flatten)]
        printed: Printed,
    },
    /// Make this node the only one of a cluster with what the snapshot holds
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The file, or a name from the list
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) asked: Asked,
    #[command(flatten)]
    pub(crate) ready: UntilReady,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    pub(crate) asked: Asked,
    #[command(flatten)]
    pub(crate) ready: UntilReady,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// When they expire and are renewed; exit code 1 when one has expired
    Check {
        #[command(flatten)]
        printed: Printed,
    },
    /// Issue all but the authorities' again; listeners use the new ones at once
    Rotate {
        #[command(flatten)]
        printed: Printed,
    },
    /// Replace the whole cluster's authority by a new one; the old one is trusted too until --finish
    RotateCa(RotateCaArgs),
}
