//! `kedge status`: ask the running node and print the answer. Exit code 0 only when it is ready.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cli::{Failure, Format, StatusArgs};
use crate::config::Config;
use crate::output::{self, Step};
use crate::service;
use crate::status::{self, State, Status};

/// The addons are left out when the API server takes longer to tell of them.
const ADDONS_LIMIT: Duration = Duration::from_secs(5);

/// Print the status, after waiting for Ready when asked to.
pub(crate) fn run(config: &Config, args: &StatusArgs) -> Result<ExitCode, Failure> {
    let mut status = match args.limit() {
        None => current(config)?,
        Some(limit) => {
            let mut step = Step::begin("waiting for kedge");
            let status = wait_ready(config, limit, &mut step);
            step.abandon();
            status?
        }
    };
    let store_answers = status.datastore.has_leader;
    if status.state != State::Stopped && store_answers && config.kubeconfig().exists() {
        status.addons = super::addons::enabled(config, ADDONS_LIMIT).unwrap_or_default();
    }
    match args.format {
        Format::Short => {
            output::write(&status.to_short());
            if status.state == State::Stopped {
                output::complain(&format!(
                    "kedge does not run; start it with kedge start (log: {})",
                    service::log_place(config)
                ));
            }
        }
        Format::Json => output::say(&serde_json::to_string_pretty(&status).context("write JSON")?),
        Format::Yaml => output::write(&serde_saphyr::to_string(&status).context("write YAML")?),
    }
    if status.state == State::Ready {
        return Ok(ExitCode::SUCCESS);
    }
    if args.wait_ready {
        output::complain(&format!("error: not ready after {} s", args.timeout));
    }
    Ok(ExitCode::from(1))
}

/// The status now; a node that does not run is `stopped`, no error.
fn current(config: &Config) -> anyhow::Result<Status> {
    let socket = config.status_socket();
    let answer = status::ask(&socket).with_context(|| {
        format!("ask the node at {} (is this root? does the process hang?)", socket.display())
    })?;
    Ok(answer.unwrap_or_else(|| Status {
        last_failure: status::last_failure(config),
        ..Status::stopped(&config.node_name)
    }))
}

/// Ask until the node is ready or the limit is over; the last answer is returned either way.
pub(crate) fn wait_ready(config: &Config, limit: Duration, step: &mut Step) -> anyhow::Result<Status> {
    wait_until(config, limit, step, &|status| status.state == State::Ready)
}

/// The same for what is `enough`.
pub(crate) fn wait_until(
    config: &Config,
    limit: Duration,
    step: &mut Step,
    enough: &dyn Fn(&Status) -> bool,
) -> anyhow::Result<Status> {
    let deadline = Instant::now() + limit;
    loop {
        let result = current(config);
        let over = Instant::now() >= deadline;
        match result {
            Ok(status) if enough(&status) || over => return Ok(status),
            Err(error) if over => return Err(error),
            Ok(status) => step.update(&match status.waits_for() {
                Some(part) => format!("kedge is {}, waiting for {part}", status.state.as_str()),
                None => format!("kedge is {}", status.state.as_str()),
            }),
            Err(error) => step.update(&format!("{error:#}")),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
