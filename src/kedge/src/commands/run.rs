//! `kedge run`: the node in the foreground. Signals, the service manager and the log are handled here;
//! what a node consists of is in `node`.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use kedge_base::Tasks;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use super::require_root;
use crate::cli::RunArgs;
use crate::config::Config;
use crate::failure::Failure;
use crate::node::Ended;
use crate::process::Process;
use crate::status::LastFailure;
use crate::{node, preflight, service, switch};

/// A node that was removed, or that waits for other machines, may never be Ready. After this time the service counts
/// as started all the same, or the machine's boot would not end; Kedge's own commands ask the node and not the
/// service manager.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// Run until SIGTERM or SIGINT.
pub(crate) fn run(mut config: Config, args: &RunArgs) -> Result<ExitCode, Failure> {
    crate::memory::small_pages();
    require_root()?;
    // A process that starts itself again has its session already.
    if args.detach && nix::unistd::getsid(None) != Ok(nix::unistd::getpid()) {
        // The parent started us in its own session: a closing terminal must not reach us.
        nix::unistd::setsid().context("leave the terminal's session")?;
    }
    crate::log::init();
    // Until this process ends, whatever ends it.
    let _only = service::claim(&config)?;
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("create {}", config.data_dir.display()))?;
    let own = Process::own().context("find this process in /proc")?;
    let pid_file = config.pid_file();
    own.record(&pid_file).with_context(|| format!("write {}", pid_file.display()))?;
    // What the service manager tells to stop meanwhile it goes on with at the next start.
    if let Err(error) = switch::finish(&mut config).and_then(|_| preflight::check_settings(&config)) {
        let _ = std::fs::remove_file(&pid_file);
        let _ = LastFailure::record(&error, &config);
        return Err(error.into());
    }
    preflight::load_modules();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .thread_name("kedge")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(serve(config.clone()));
    // Blocking work that ignores shutdown must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(5));
    let _ = std::fs::remove_file(&pid_file);
    if let Err(error) = &result
        && let Err(error) = LastFailure::record(error, &config)
    {
        tracing::warn!(%error, "why this process ends was not kept for kedge status");
    }
    match result? {
        Ended::Stopped => Ok(ExitCode::SUCCESS),
        Ended::Moved => Err(start_again()),
    }
}

/// The same program with the same arguments takes this process's place: its id stays, so that a service
/// manager notices nothing. Returns only when that fails.
fn start_again() -> Failure {
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    Failure::Failed(anyhow::Error::new(error).context("start again with the new address"))
}

/// Two workers at least: one may be held up by a burst of work while the other answers.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

async fn serve(config: Config) -> anyhow::Result<Ended> {
    let tasks = Tasks::new("kedge");
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let token = tasks.token().clone();
    let pid_file = config.pid_file();
    tasks.spawn_until_stopped("signals", async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        if let Some(Err(error)) = Process::own().map(|own| own.record_stopping(&pid_file)) {
            tracing::warn!(%error, "that this process stops was not noted");
        }
        tell_manager(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
        token.cancel();
    });
    if let Some(period) = sd_notify::watchdog_enabled() {
        // From a task on the runtime: when the runtime hangs, the service manager notices.
        tasks.spawn_until_stopped("watchdog", async move {
            let mut ticks = tokio::time::interval(period / 3);
            loop {
                ticks.tick().await;
                tell_manager(&[NotifyState::Watchdog]);
            }
        });
    }
    tell_manager(&[NotifyState::Status("starting")]);
    if sd_notify::booted().unwrap_or(false) {
        tasks.spawn_until_stopped("service manager's patience", async {
            tokio::time::sleep(BOOT_PATIENCE).await;
            tell_manager(&[NotifyState::Ready]);
        });
    }
    let last_failure = config.last_failure_file();
    let (was_ready, of_failure) = (Arc::new(AtomicBool::new(false)), config.clone());
    let becomes_ready = was_ready.clone();
    let ready = move || {
        becomes_ready.store(true, Relaxed);
        let _ = std::fs::remove_file(&last_failure);
        tracing::info!("the node is ready");
        tell_manager(&[NotifyState::Ready, NotifyState::Status("ready")]);
    };
    let result = Box::pin(node::run(config, tasks.clone(), ready)).await;
    let left = tasks.shutdown(Duration::from_secs(10)).await;
    if !left.is_empty() {
        tracing::warn!(tasks = left.join(", "), "did not end in time");
    }
    if result.is_err()
        && !was_ready.load(Relaxed)
        && let Err(error) = node::end_own_containerd(&of_failure).await
    {
        tracing::warn!(error = format!("{error:#}"), "the containerd of this start was not ended");
    }
    result.context("run the node")
}

fn tell_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
