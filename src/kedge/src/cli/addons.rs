//! What can be typed about addons.

use clap::{Args, Subcommand};

use super::{Printed, Reported};

#[derive(Debug, Args)]
pub(crate) struct DisableArgs {
    /// Their names
    #[arg(required = true, value_name = "ADDON")]
    pub(crate) addons: Vec<String>,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Args)]
pub(crate) struct EnableArgs {
    /// Names, with arguments behind a colon: dns, dns:1.1.1.1,8.8.8.8, dns:replicas=2;upstream=1.1.1.1
    #[arg(required = true, value_name = "ADDON[:ARGUMENTS]")]
    pub(crate) addons: Vec<String>,
    /// Seconds to wait until each is healthy
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) reported: Reported,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AddonsCommand {
    /// List them with their health
    List {
        #[command(flatten)]
        printed: Printed,
    },
    /// What an addon is and which arguments it takes
    Info {
        /// Its name
        addon: String,
        #[command(flatten)]
        printed: Printed,
    },
    /// Folders and git repositories with more addons, on this node
    #[command(subcommand)]
    Repo(RepoCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RepoCommand {
    /// Copy one to this node
    Add {
        /// A folder, or the URL of a git repository; addons are folders in it with an addon.yaml
        #[arg(value_name = "PATH-OR-URL")]
        source: String,
        /// How to call it here [default: the last part of the path or URL]
        #[arg(long)]
        name: Option<String>,
        /// A branch or tag of the git repository
        #[arg(long, value_name = "BRANCH")]
        branch: Option<String>,
        #[command(flatten)]
        reported: Reported,
    },
    /// Forget one; its addons that are enabled stay
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        reported: Reported,
    },
    /// Copy one again, or all of them, and upgrade their addons that are enabled
    Update {
        /// Its name
        name: Option<String>,
        #[command(flatten)]
        reported: Reported,
    },
    /// List them
    List {
        #[command(flatten)]
        printed: Printed,
    },
}
