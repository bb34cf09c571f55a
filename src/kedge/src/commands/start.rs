//! `kedge start`: start the node's process and wait until it serves.

use std::cell::Cell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kedge_cluster::{Admitted, Role};

use super::{require_root, status};
use crate::config::Config;
use crate::failure::Failure;
use crate::status::{REMOVED, State, Status};
use crate::{output, service};

/// So long may the cluster take to say whether this node is still in it; and what complains for longer is not about to
/// begin.
const STANDING: Duration = Duration::from_secs(3);

/// Start, and return when the node serves (not when it is Ready: `status --wait-ready`): its files were read,
/// its ports are its own, containerd runs. One that is still about it when the time is over goes on.
pub(crate) fn run(config: &Config, limit: Duration) -> Result<ExitCode, Failure> {
    require_root()?;
    let mut step = output::Step::begin("starting kedge");
    let served = service::start(config).map_err(Failure::from).and_then(|started| {
        let worker = Admitted::read(&config.pki_dir())
            .is_ok_and(|joined| joined.is_some_and(|admitted| admitted.facts.role == Role::Worker));
        let lasts = |since: &Cell<Option<Instant>>| {
            let began = since.get().unwrap_or_else(Instant::now);
            since.set(Some(began));
            began.elapsed() >= STANDING
        };
        let (serves, complains) = (Cell::new(None), Cell::new(None));
        let enough = |status: &Status| {
            if status.was_removed() {
                return true;
            }
            if status.serves() {
                // A worker asks how it stands as soon as it runs; a cluster that does not answer is not waited for.
                return !worker || status.in_cluster.is_some() || lasts(&serves);
            }
            // What ran already may have something to complain of; `status` tells it.
            !started && status.complains() && lasts(&complains)
        };
        let status = status::wait_until(config, limit, &mut step, &enough)?;
        if status.was_removed() {
            return Err(Failure::Failed(anyhow::anyhow!("kedge runs, but {REMOVED}")));
        }
        if status.state == State::Stopped {
            return Err(Failure::Failed(anyhow::anyhow!(
                "kedge does not answer after {} s; its last words:\n{}\nmore: {}",
                limit.as_secs(),
                service::log_tail(config, 10),
                service::log_place(config)
            )));
        }
        Ok((started, status))
    });
    let (started, status) = match served {
        Ok(served) => served,
        Err(error) => {
            step.abandon();
            return Err(error);
        }
    };
    let pid = service::running(config).ok().flatten().map(|process| process.pid);
    let process = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    let waits = if status.serves() { None } else { status.waits_for() };
    let waits = waits.map(|part| format!("; it waits for {part}")).unwrap_or_default();
    let what = if started { "kedge started" } else { "kedge already runs" };
    step.done(&format!("{what}{process}{waits}"));
    output::report(if started { "started" } else { "running" }, &serde_json::json!({ "pid": pid }));
    Ok(ExitCode::SUCCESS)
}
