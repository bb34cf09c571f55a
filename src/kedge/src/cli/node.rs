//! What can be typed about this node.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Asked, Printed, Reported, UntilReady};

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Only check this machine and say what is missing
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) ready: UntilReady,
    /// Return as soon as the service was started; no addon is enabled then
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Upgrade although the cluster stands still while this node restarts, or cannot be saved
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave a basic addon out (repeat it for more)
    #[arg(long, value_name = "ADDON", value_parser = crate::addons::BASIC_ADDONS)]
    pub(crate) without: Vec<String>,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct BeforeUpgradeArgs {
    /// A file that lets the upgrade go on whatever is wrong; it counts once
    #[arg(long, value_name = "FILE")]
    pub(crate) anyway: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The data goes back too, to the moment before the upgrade; later changes are lost
    #[arg(long)]
    pub(crate) with_data: bool,
    /// Go back although the cluster stands still while this node restarts
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) asked: Asked,
    #[command(flatten)]
    pub(crate) ready: UntilReady,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    /// Keep the data folder, so that a later install brings the cluster back
    #[arg(long)]
    pub(crate) keep_data: bool,
    /// Remove a node that a cluster counts on, whatever becomes of the others
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Seconds to wait until Kedge answers
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Wait until the node is Ready
    #[arg(long)]
    pub(crate) wait_ready: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) printed: Printed,
}

impl StatusArgs {
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.wait_ready.then(|| Duration::from_secs(self.timeout))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Leave the terminal: used by `kedge start` where there is no service manager
    #[arg(long, hide = true)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ConfigArgs {
    /// The server's URL in the kubeconfig, e.g. https://192.0.2.1:6443 (repeat it for more)
    #[arg(long, value_name = "URL")]
    pub(crate) server: Vec<String>,
    #[command(subcommand)]
    pub(crate) command: Option<ConfigCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print this node's effective settings and where each was said
    Show {
        #[command(flatten)]
        printed: Printed,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) printed: Printed,
    /// Write an archive for a bug report too (tar.gz); secrets are removed from it
    #[arg(long, value_name = "FILE")]
    pub(crate) tarball: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Reset although other nodes belong to the cluster; they are told when they answer
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave a basic addon out (repeat it for more)
    #[arg(long, value_name = "ADDON", value_parser = ["dns"])]
    pub(crate) without: Vec<String>,
    #[command(flatten)]
    pub(crate) ready: UntilReady,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct KubectlArgs {
    /// kubectl's own arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<OsString>,
}
