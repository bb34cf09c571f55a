//! What stands before every change of this machine: the checks of [`crate::inspect`] in the words of an
//! error message, and the few questions that other commands ask about the machine.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::config::Config;
use crate::failure::Remedied;
use crate::inspect::{self, Found, Moment, Verdict};

pub(crate) use crate::inspect::load_modules;
use crate::output::Step;

/// The network plugins that pods need: for their network, and containerd for its own loopback.
pub(crate) const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "portmap", "loopback"];
/// What brings them.
pub(crate) const CNI_REMEDY: &str = "apt-get install -y containernetworking-plugins; where they are in another \
     folder, name it by the setting cni-bin-dir and start kedge again";

/// Something that keeps this machine from being a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Problem {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// All problems at once, most basic first. What only bites later is said on standard error.
pub(crate) fn check(config: &Config, moment: Moment) -> Vec<Problem> {
    let mut step = Step::begin("checking this machine");
    let findings =
        inspect::run(config, moment, &mut |check| step.update(&format!("checking this machine: {check}")));
    step.abandon();
    let mut problems = Vec::new();
    for finding in findings {
        let remedy = finding.remedy.unwrap_or_default();
        match finding.state {
            Verdict::Ok => {}
            Verdict::Warn => {
                crate::output::note(&format!(
                    "warning: {}: {}\n  remedy: {remedy}",
                    finding.check, finding.message
                ));
            }
            Verdict::Fail => problems.push(Problem::new(finding.message, remedy)),
        }
    }
    problems
}

/// Refuses settings with which a node does not start.
///
/// # Errors
/// What they name and this machine does not have.
pub(crate) fn check_settings(config: &Config) -> anyhow::Result<()> {
    let problem = |Found(_, what, remedy): Found| Problem::new(what, remedy.unwrap_or_default());
    let problems: Vec<Problem> = inspect::settings::refused(config).into_iter().map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(refusal(&problems).into()) }
}

/// The problems as lines of an error.
pub(crate) fn refusal(problems: &[Problem]) -> Remedied {
    let mut text = format!("this machine is not ready ({} found); nothing was changed:", problems.len());
    for problem in problems {
        text.push_str(&format!("\n  problem: {}\n  remedy:  {}", problem.what, problem.remedy));
    }
    let remedies: Vec<&str> = problems.iter().map(|problem| problem.remedy.as_str()).collect();
    Remedied::told_in(text, remedies.join("\n"))
}

/// The one check that every changing command needs.
pub(crate) fn root() -> Option<Problem> {
    (!nix::unistd::geteuid().is_root())
        .then(|| Problem::new("Kedge needs root, and this is another user", "put sudo before the command"))
}

/// A program by its name, also where a root shell's PATH may not look.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
                .map(PathBuf::from),
        )
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The address to reach a listener bound to `address` from this machine.
pub(crate) fn local_address(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_with_their_remedies() {
        let text = refusal(&[Problem::new("port 6443 is in use", "stop that program")]).to_string();
        for part in
            ["1 found", "nothing was changed", "problem: port 6443 is in use", "remedy:  stop that program"]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}
