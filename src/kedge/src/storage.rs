//! `kedge storage`: makes volumes on one node, as the hostpath-storage addon runs it in a pod.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use kedge_storage::Config;

use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct StorageArgs {
    /// The folder in which volumes are made; the host's, mounted at the same place
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// The node that this runs on
    #[arg(long, env = "NODE_NAME", value_name = "NAME", id = "own-node")]
    node: String,
}

/// Work until SIGTERM.
pub(crate) fn run(args: StorageArgs) -> Result<ExitCode, Failure> {
    if !args.path.is_absolute() {
        let what = format!("--path {}: it is relative", args.path.display());
        return Err(Failure::usage(what, "write one that begins with /"));
    }
    let config = Config { node: args.node, root: args.path };
    crate::pod::run("storage", |client, tasks| async move {
        kedge_storage::start(config, client, &tasks).await.context("make volumes")
    })
}
