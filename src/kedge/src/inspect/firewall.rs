//! Other programs' firewalls: what they drop that pods need. Kedge's own accept rules stand inside such
//! chains while the node runs; here it is seen whether they do.

use std::fs;
use std::path::Path;

use ipnet::IpNet;

use super::{Context, Found, fail, ok, warn};
use crate::config::Config;
use crate::process;

pub(super) fn check(context: &Context<'_>) -> Vec<Found> {
    let ufw = fs::read_to_string("/etc/ufw/ufw.conf").is_ok_and(|text| ufw_enabled(&text));
    // A firewalld that runs in a container or another namespace is none of this machine's.
    let firewalld = Path::new("/run/firewalld.pid").exists()
        || process::table().values().any(|entry| entry.command.contains("/firewalld"));
    let mut found = managers(ufw, firewalld, context.config);
    match kedge_network::obstacles(&context.config.pod_cidrs) {
        Ok(chains) => found.extend(judge(&chains, context.process.is_some(), context.config)),
        // Only root may look.
        Err(error) => found.push(warn(
            format!("nftables cannot be read: {error}"),
            "put sudo before the command, or use a kernel with nf_tables",
        )),
    }
    if found.is_empty() {
        found.push(ok("no firewall drops what pods send"));
    }
    found
}

fn ufw_enabled(text: &str) -> bool {
    text.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes"))
}

/// Programs that write rules of their own and need to be told.
fn managers(ufw: bool, firewalld: bool, config: &Config) -> Vec<Found> {
    let bridge = &config.bridge_name;
    let each = |word: &str, ranges: &[IpNet]| -> String {
        ranges
            .iter()
            .map(|range| format!("{word}{range}"))
            .collect::<Vec<_>>()
            .join(if word.starts_with('-') { " " } else { "; " })
    };
    let ports = format!("{},{},{}", config.port, config.cluster_port, config.kubelet_port);
    let mut found = Vec::new();
    if ufw {
        found.push(warn(
            "ufw is active: it drops what other nodes and pods send to this machine unless it is told",
            format!(
                "ufw allow in on {bridge}; {}; ufw allow proto tcp to any port {ports}; \
                 ufw allow proto udp to any port 8472 (it may be restricted to the nodes' network)",
                each("ufw allow from ", &config.pod_cidrs)
            ),
        ));
    }
    if firewalld {
        let open: Vec<String> =
            ports.split(',').map(|port| format!("firewall-cmd --permanent --add-port={port}/tcp")).collect();
        found.push(warn(
            "firewalld is active: it rejects pods' packets unless it is told",
            format!(
                "firewall-cmd --permanent --zone=trusted {} {}; {}; \
                 firewall-cmd --permanent --add-port=8472/udp; firewall-cmd --reload",
                each("--add-source=", &config.pod_cidrs),
                each("--add-source=", &config.service_cidrs),
                open.join("; ")
            ),
        ));
    }
    found
}

fn judge(chains: &[kedge_network::Obstacle], runs: bool, config: &Config) -> Vec<Found> {
    chains
        .iter()
        .filter_map(|chain| {
            let name = &chain.chain;
            match (chain.incoming, chain.opened, runs) {
                (true, ..) => Some(warn(
                    format!("{name} drops what comes in by default"),
                    format!(
                        "let the other nodes in to TCP {}, {}, {} and UDP 8472, and users to the node ports \
                         30000-32767 that they need",
                        config.port, config.cluster_port, config.kubelet_port
                    ),
                )),
                (false, true, _) => None,
                (false, false, false) => Some(warn(
                    format!("{name} drops forwarded packets by default"),
                    "nothing: kedge adds rules that let pods' packets pass when it runs",
                )),
                (false, false, true) => Some(fail(
                    format!("{name} drops forwarded packets, and kedge's rules that let pods' packets pass are not in it"),
                    format!(
                        "allow forwarding from and to {} there (iptables -P FORWARD ACCEPT), or look into the log for \
                         why the rules cannot be added",
                        crate::config::joined(&config.pod_cidrs)
                    ),
                )),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Settings;
    use kedge_network::Obstacle;

    fn config() -> Config {
        Config::load(Some(Path::new("/nonexistent")), &Settings::default()).unwrap()
    }

    #[test]
    fn active_managers_are_told_what_to_allow() {
        assert!(managers(false, false, &config()).is_empty());
        let both = managers(true, true, &config());
        assert_eq!(both.len(), 2);
        for (found, part) in both.iter().zip(["ufw allow from 10.244.0.0/16", "--add-source=10.244.0.0/16"]) {
            assert!(found.2.as_ref().unwrap().contains(part), "{found:?}");
        }
        assert!(ufw_enabled("# x\nENABLED=yes\n") && !ufw_enabled("ENABLED=no\n#ENABLED=yes\n"));
    }

    #[test]
    fn a_dropping_chain_before_and_after_kedge_opened_it() {
        let chain = |incoming, opened| Obstacle { chain: "ip filter FORWARD".into(), incoming, opened };
        for (incoming, opened, runs, expected) in [
            (false, false, false, Some(Verdict::Warn)),
            (false, false, true, Some(Verdict::Fail)),
            (false, true, true, None),
            (true, false, true, Some(Verdict::Warn)),
        ] {
            let found = judge(&[chain(incoming, opened)], runs, &config());
            assert_eq!(found.first().map(|found| found.0), expected, "{incoming} {opened} {runs}");
        }
    }
}
