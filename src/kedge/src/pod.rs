//! What the subcommands share that run in a pod from Kedge's own image.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use kedge_base::Tasks;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// How long what is under way may take when the pod ends.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Starts the component as the pod's ServiceAccount and lets it run until SIGTERM.
pub(crate) fn run<F, Fut>(name: &'static str, start: F) -> Result<ExitCode, Failure>
where
    F: FnOnce(kube::Client, Tasks) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    crate::log::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let tasks = Tasks::new(name);
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let client = kedge_client::https::in_cluster().context("reach the API server")?;
        let started = tokio::select! {
            result = start(client, tasks.clone()) => { result?; true }
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
        };
        if started {
            tasks.spawn_until_stopped("memory of the start", crate::memory::trim_after_start());
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        tasks.shutdown(STOP_LIMIT).await;
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
