//! `kedge metrics`: the resource metrics API, as the metrics addon runs it in a pod.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_metrics::Config;

use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct MetricsArgs {
    /// Seconds between two looks at every node
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(5..=600))]
    resolution: u64,
    /// Where to answer
    #[arg(long, default_value = "[::]:10250")]
    listen: SocketAddr,
}

/// Serve until SIGTERM.
pub(crate) fn run(args: MetricsArgs) -> Result<ExitCode, Failure> {
    let resolution = Duration::from_secs(args.resolution);
    let config = Config { listen: args.listen, resolution, ..Config::default() };
    crate::pod::run("metrics", |client, tasks| async move {
        kedge_metrics::start(config, client, &tasks).await.context("serve metrics")
    })
}
