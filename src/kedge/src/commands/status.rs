//! `kedge status`: ask the running node and print the answer. Exit code 0 only when it is ready.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;

use super::print;
use crate::cli::{Format, StatusArgs};
use crate::config::Config;
use crate::failure::{Failure, Remedied};
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
    let format = args.printed.format;
    print(format, &status.to_short(), &status)?;
    if format == Format::Short && status.state == State::Stopped {
        output::complain(&format!(
            "kedge does not run; start it with kedge start (log: {})",
            service::log_place(config)
        ));
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
    wait(config, limit, step, &is_ready, &mut || Ok(()))
}

/// Until a node that this command has just started is up (see [`Status::is_up`]).
///
/// # Errors
/// As [`wait_until`].
pub(crate) fn wait_started(config: &Config, limit: Duration, step: &mut Step) -> anyhow::Result<Status> {
    wait_until(config, limit, step, &Status::is_up)
}

/// Until that is true of a node that this command has just started, or the limit is over: when its process
/// ends there is nothing to wait for.
///
/// # Errors
/// The last words of the process and what helps.
pub(crate) fn wait_until(
    config: &Config,
    limit: Duration,
    step: &mut Step,
    enough: &dyn Fn(&Status) -> bool,
) -> anyhow::Result<Status> {
    let mut deaths = Deaths::new(config);
    wait(config, limit, step, enough, &mut || deaths.look())
}

fn is_ready(status: &Status) -> bool {
    status.state == State::Ready
}

/// Notices that the node's process has ended. A service manager starts it again, and what the first attempt
/// lacked the second may find: there it must have ended several times.
pub(crate) struct Deaths<'a> {
    config: &'a Config,
    since: Timestamp,
    seen: BTreeSet<Timestamp>,
    gone_since: Option<Instant>,
}

impl<'a> Deaths<'a> {
    const FORGIVEN: usize = 2;
    /// A node that takes a new address starts itself again, and has no pid file meanwhile.
    const GONE_FOR: Duration = Duration::from_secs(2);

    pub(crate) fn new(config: &'a Config) -> Self {
        // The time of a file has a coarser step than the clock.
        let since = Timestamp::now() - Duration::from_secs(1);
        Self { config, since, seen: BTreeSet::new(), gone_since: None }
    }

    /// # Errors
    /// It has ended; with its last words.
    pub(crate) fn look(&mut self) -> anyhow::Result<()> {
        if service::running(self.config)?.is_some() {
            self.gone_since = None;
            return Ok(());
        }
        if self.gone_since.get_or_insert_with(Instant::now).elapsed() < Self::GONE_FOR {
            return Ok(());
        }
        let failure = status::last_failure(self.config);
        if service::is_managed(self.config) {
            self.seen.extend(failure.iter().map(|last| last.time).filter(|time| *time >= self.since));
            if self.seen.len() <= Self::FORGIVEN {
                return Ok(());
            }
        }
        let (error, remedy) = match failure {
            Some(last) => (last.error, last.remedy),
            None => ("somebody stopped it".to_owned(), None),
        };
        let remedy = remedy.unwrap_or_else(|| "mend what the log names, then kedge start".to_owned());
        let text = format!(
            "kedge ended before it was Ready: {error}\nremedy: {remedy}\nits last words:\n{}\nmore: {}",
            service::log_tail(self.config, 10),
            service::log_place(self.config)
        );
        Err(Remedied::told_in(text, remedy).into())
    }
}

fn wait(
    config: &Config,
    limit: Duration,
    step: &mut Step,
    enough: &dyn Fn(&Status) -> bool,
    look: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Status> {
    let deadline = Instant::now() + limit;
    loop {
        let result = current(config);
        let over = Instant::now() >= deadline;
        match result {
            Ok(status) if enough(&status) || over => return Ok(status),
            Err(error) if over => return Err(error),
            Ok(status) => {
                if status.state == State::Stopped {
                    look()?;
                }
                step.update(&match status.waits_for() {
                    Some(part) => format!("kedge is {}, waiting for {part}", status.state.as_str()),
                    None => format!("kedge is {}", status.state.as_str()),
                });
            }
            Err(error) => step.update(&format!("{error:#}")),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::status::LastFailure;

    #[test]
    fn a_process_that_ended_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        for key in ["data-dir", "run-dir", "log-dir"] {
            settings.insert(key, dir.path().join(key).display().to_string());
        }
        let config = Config::load(Some(&dir.path().join("none.yaml")), &settings).unwrap();
        let error = anyhow::anyhow!("listen on port 6443: Address already in use");
        LastFailure::record(&error, &config).unwrap();
        std::fs::create_dir_all(&config.log_dir).unwrap();
        std::fs::write(config.log_file(), "one\nthe last line\n").unwrap();
        let mut step = Step::begin("test");
        // A limit that nobody could wait for: only the noticing ends this.
        let said = wait_started(&config, Duration::from_secs(1 << 30), &mut step).unwrap_err().to_string();
        for words in ["Address already in use", "kedge inspect names the program", "the last line"] {
            assert!(said.contains(words), "{said}");
        }
        // Whoever has not started it may wait for somebody who does.
        let status = wait_ready(&config, Duration::ZERO, &mut step).unwrap();
        assert_eq!(status.state, State::Stopped);
        step.abandon();
    }
}
