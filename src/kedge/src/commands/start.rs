//! `kedge start`: start the node's process and wait until it answers.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::require_root;
use super::status::Deaths;
use crate::config::Config;
use crate::failure::Failure;
use crate::{output, service, status};

/// Start, and return when the process answers (not when the node is Ready: `status --wait-ready`).
pub(crate) fn run(config: &Config, limit: Duration) -> Result<ExitCode, Failure> {
    require_root()?;
    let mut step = output::Step::begin("starting kedge");
    let started = match service::start(config) {
        Ok(started) => started,
        Err(error) => {
            step.abandon();
            return Err(error.into());
        }
    };
    let deadline = Instant::now() + limit;
    let mut deaths = Deaths::new(config);
    loop {
        match status::ask(&config.status_socket()) {
            Ok(Some(_)) => break,
            Ok(None) => {
                if let Err(error) = deaths.look() {
                    step.abandon();
                    return Err(error.into());
                }
            }
            Err(error) => step.update(&format!("starting kedge: {error}")),
        }
        if Instant::now() >= deadline {
            step.abandon();
            return Err(Failure::Failed(anyhow::anyhow!(
                "kedge does not answer after {} s; its last words:\n{}\nmore: {}",
                limit.as_secs(),
                service::log_tail(config, 10),
                service::log_place(config)
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let process = service::running(config).context("find the process")?;
    let pid = process.map(|process| format!(" (process {})", process.pid)).unwrap_or_default();
    step.done(&if started { format!("kedge started{pid}") } else { format!("kedge already runs{pid}") });
    let pid = service::running(config).ok().flatten().map(|process| process.pid);
    output::report(if started { "started" } else { "running" }, &serde_json::json!({ "pid": pid }));
    Ok(ExitCode::SUCCESS)
}
