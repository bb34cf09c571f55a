//! Kernel settings that pods and Services need.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;

/// Something that does not stop Kedge but will bite, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// One sentence.
    pub problem: String,
    /// What the user can do.
    pub remedy: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const BRIDGE: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Turn on forwarding, and netfilter on bridges (without it, a pod that reaches a Service whose
/// endpoint is on the same node gets answers from the wrong address). Changes nothing that is already
/// right; safe to call at every start.
///
/// # Errors
/// When forwarding is off and cannot be turned on.
pub fn prepare_host() -> Result<Vec<Warning>, Error> {
    let mut warnings = Vec::new();
    set(Path::new(FORWARD), "1")?;
    if !Path::new(BRIDGE).exists() {
        // Often a module that is not loaded yet. Whether it worked shows below.
        let mut modprobe = Command::new("modprobe");
        let _ = modprobe
            .arg("br_netfilter")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    let bridge = if Path::new(BRIDGE).exists() { set(Path::new(BRIDGE), "1").err() } else { None };
    if bridge.is_some() || !Path::new(BRIDGE).exists() {
        warnings.push(Warning {
            problem:
                "packets between pods of one node bypass netfilter, so Services do not work between them"
                    .into(),
            remedy: "load the kernel module br_netfilter and set net.bridge.bridge-nf-call-iptables = 1"
                .into(),
        });
    }
    Ok(warnings)
}

/// The same for IPv6, where pods have such addresses. Interfaces that take their address from router
/// advertisements go on doing so: the kernel stops that for routers unless it is told otherwise.
pub(crate) fn prepare_ipv6() -> Result<(), Error> {
    let interfaces = Path::new("/proc/sys/net/ipv6/conf");
    if let Ok(entries) = std::fs::read_dir(interfaces) {
        for entry in entries.flatten() {
            let path = entry.path().join("accept_ra");
            if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
                // An interface may vanish meanwhile.
                let _ = set(&path, "2");
            }
        }
    }
    set(&interfaces.join("all/forwarding"), "1")?;
    let bridge = Path::new("/proc/sys/net/bridge/bridge-nf-call-ip6tables");
    if bridge.exists() { set(bridge, "1") } else { Ok(()) }
}

/// Half-closed connections through address translation are kept for an hour, as kube-proxy does: some
/// servers answer late, and the kernel's minute would cut them off. A longer time stays. To be called
/// when connection tracking is loaded, which the proxy's table sees to.
pub(crate) fn prepare_connection_tracking() -> Result<(), Error> {
    raise(Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait"), 3600)
}

fn raise(path: &Path, least: u64) -> Result<(), Error> {
    let current = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    if current.trim().parse().is_ok_and(|current: u64| current >= least) {
        return Ok(());
    }
    set(path, &least.to_string())
}

fn set(path: &Path, wanted: &str) -> Result<(), Error> {
    let current = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    if current.trim() == wanted {
        return Ok(());
    }
    std::fs::write(path, wanted).map_err(|source| Error::file("set", path, source))?;
    tracing::info!(setting = %path.display(), wanted, "kernel setting changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_only_when_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ip_forward");
        std::fs::write(&path, "0\n").unwrap();
        set(&path, "1").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1");
        std::fs::write(&path, "1\n").unwrap();
        set(&path, "1").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n", "not written again");
        for (before, after) in [("60\n", "3600"), ("3600\n", "3600\n"), ("7200\n", "7200\n")] {
            std::fs::write(&path, before).unwrap();
            raise(&path, 3600).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after, "never lowered");
        }
        let error = set(&folder.path().join("missing"), "1").unwrap_err();
        assert!(error.to_string().ends_with("missing"), "{error}");
    }
}
