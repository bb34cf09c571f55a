//! Is this machine fit to be a node, and is the node on it well? One list of checks for `install`, `join`
//! and `inspect`; each knows when it applies, names what it found and the remedy, and changes nothing.
//!
//! The judging is pure (text and numbers in, a [`Finding`] out); only the thin ends read the machine.

pub(crate) mod bundle;
mod cluster;
mod disk;
mod firewall;
mod machine;
mod network;
pub(crate) mod redact;
pub(crate) mod settings;
mod time;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::process::Process;
use crate::status::{self, Status};

pub(crate) use disk::SLOW_SYNC;
pub(crate) use machine::load_modules;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but will bite.
    Warn,
    /// A node cannot work like this.
    Fail,
}

impl Verdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The check's name.
    pub(crate) check: String,
    pub(crate) state: Verdict,
    /// What is so, in one sentence.
    pub(crate) message: String,
    /// What the operator can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

/// A verdict, what was found, and the remedy; the check's name is added by [`run`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found(pub(crate) Verdict, pub(crate) String, pub(crate) Option<String>);

pub(crate) fn ok(message: impl Into<String>) -> Found {
    Found(Verdict::Ok, message.into(), None)
}

pub(crate) fn warn(message: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found(Verdict::Warn, message.into(), Some(remedy.into()))
}

pub(crate) fn fail(message: impl Into<String>, remedy: impl Into<String>) -> Found {
    Found(Verdict::Fail, message.into(), Some(remedy.into()))
}

/// Why the checks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before `install` changes anything.
    Install,
    /// Before `join` does: the cluster's settings are not known yet.
    Join,
    /// `kedge inspect`.
    Inspect,
}

/// When a check makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before an installation and later.
    Always,
    /// Of a node's process, running or not: not before there is one.
    Node,
    /// Only of a node that answers.
    Running,
}

struct Check {
    name: &'static str,
    when: When,
    run: fn(&Context<'_>) -> Vec<Found>,
}

const fn check(name: &'static str, when: When, run: fn(&Context<'_>) -> Vec<Found>) -> Check {
    Check { name, when, run }
}

/// All checks, the most basic first.
const CHECKS: [Check; 21] = [
    check("root", When::Always, machine::root_check),
    check("settings", When::Always, settings::check),
    check("programs", When::Always, machine::programs),
    check("cgroups", When::Always, machine::cgroups),
    check("kernel", When::Always, machine::kernel),
    check("inotify", When::Always, machine::inotify),
    check("memory", When::Always, machine::memory),
    check("host-name", When::Always, machine::host_name),
    check("disk-space", When::Always, disk::space),
    check("disk-sync", When::Always, disk::sync_time),
    check("ports", When::Always, network::ports),
    check("routes", When::Always, network::routes),
    check("forwarding", When::Always, network::forwarding),
    check("firewall", When::Always, firewall::check),
    check("resolv.conf", When::Always, network::resolv_conf),
    check("time", When::Always, time::check),
    check("kedge", When::Node, cluster::process),
    check("certificates", When::Node, cluster::certificates),
    check("containerd", When::Running, cluster::containerd),
    check("nodes", When::Running, cluster::nodes),
    check("dns", When::Running, cluster::dns),
];

/// What the checks look at.
pub(crate) struct Context<'a> {
    pub(crate) config: &'a Config,
    pub(crate) moment: Moment,
    /// The node's own words, when it answers.
    pub(crate) status: Option<Status>,
    /// Its process, when there is one.
    pub(crate) process: Option<Process>,
    /// The cluster's nodes, as the API server tells; asked once.
    pub(crate) nodes: Option<Result<cluster::Nodes, String>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(config: &'a Config, moment: Moment) -> Self {
        let process = Process::recorded(&config.pid_file()).ok().flatten();
        let status = process.and_then(|_| status::ask(&config.status_socket()).ok().flatten());
        let nodes = (moment == Moment::Inspect && status.is_some()).then(|| cluster::ask_nodes(config));
        Self { config, moment, status, process, nodes }
    }

    /// Is the pod network Kedge's? The node knows what its cluster says.
    pub(crate) fn own_pod_network(&self) -> bool {
        match &self.status {
            Some(status) if !status.pod_network.is_empty() => status.pod_network != "none",
            _ => self.config.own_pod_network,
        }
    }

    /// Is there a node on this machine, running or not?
    pub(crate) fn installed(&self) -> bool {
        self.process.is_some() || self.config.pki_dir().join("ca.crt").exists()
    }
}

/// Runs what applies. `progress` hears the name of each check before it begins.
pub(crate) fn run(config: &Config, moment: Moment, progress: &mut dyn FnMut(&str)) -> Vec<Finding> {
    let context = Context::new(config, moment);
    let mut findings = Vec::new();
    for check in &CHECKS {
        let applies = match check.when {
            When::Always => true,
            When::Node => moment == Moment::Inspect,
            When::Running => moment == Moment::Inspect && context.status.is_some(),
        };
        if !applies {
            continue;
        }
        progress(check.name);
        findings.extend((check.run)(&context).into_iter().map(|Found(state, message, remedy)| Finding {
            check: check.name.to_owned(),
            state,
            message,
            remedy,
        }));
    }
    findings
}

/// The worst of all.
pub(crate) fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.state).max().unwrap_or(Verdict::Ok)
}

/// Lines for people. `paint` may add colour to a state's word.
pub(crate) fn to_text(findings: &[Finding], paint: &dyn Fn(Verdict, &str) -> String) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        // Padded before it is painted: escape sequences have no width.
        let word = paint(finding.state, &format!("{:4}", finding.state.as_str()));
        let _ = writeln!(text, "{word}  {:width$}  {}", finding.check, finding.message);
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "      {:width$}  remedy: {remedy}", "");
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let _ = writeln!(
        text,
        "{} ok, {} to look at, {} failed",
        count(Verdict::Ok),
        count(Verdict::Warn),
        count(Verdict::Fail)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: &str, Found(state, message, remedy): Found) -> Finding {
        Finding { check: check.into(), state, message, remedy }
    }

    #[test]
    fn the_text_names_state_message_and_remedy() {
        let findings = [
            finding("ports", ok("all free")),
            finding("time", warn("no time service", "install one")),
            finding("cgroups", fail("memory is off", "reboot")),
        ];
        let text = to_text(&findings, &|_, word| word.to_owned());
        for line in [
            "ok    ports    all free",
            "warn  time     no time service",
            "               remedy: install one",
            "fail  cgroups  memory is off",
            "1 ok, 1 to look at, 1 failed",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
        assert_eq!(worst(&findings), Verdict::Fail);
        assert_eq!(worst(&findings[..2]), Verdict::Warn);
        assert_eq!(worst(&[]), Verdict::Ok);
    }

    #[test]
    fn names_are_used_once() {
        let mut names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
    }

    #[test]
    fn what_programs_read_is_stable() {
        let json = serde_json::to_value(finding("dns", warn("a", "b"))).unwrap();
        assert_eq!(json, serde_json::json!({"check": "dns", "state": "warn", "message": "a", "remedy": "b"}));
    }
}
