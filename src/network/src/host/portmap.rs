//! Takes away what the portmap plugin leaves behind when pods end without it being asked: at uninstall.
//! The plugin keeps its rules in iptables, as chains `CNI-DN-*` per pod and `CNI-HOSTPORT-*` for all.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Chains that the pods of all networks share.
const SHARED: &str = "CNI-HOSTPORT-";
/// Where each pod has a rule.
const DNAT: &str = "CNI-HOSTPORT-DNAT";
const PER_POD: &str = "CNI-DN-";

/// Which commands exist depends on the distribution; what is missing has left nothing.
const PROGRAMS: [&str; 4] = ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"];
/// Names that stand for one of the above. Only asked when neither of those is there.
const PLAIN: [&str; 2] = ["iptables", "ip6tables"];

/// Remove the rules of our network's pods, and what all networks share when nobody uses it any more.
pub(super) fn remove_port_mappings(network: &str) -> io::Result<()> {
    let mut result = Ok(());
    let exists = |program: &str| save(program).is_ok();
    let plain = PLAIN.iter().filter(|plain| {
        !PROGRAMS.iter().any(|program| program.starts_with(&format!("{plain}-")) && exists(program))
    });
    for program in PROGRAMS.iter().chain(plain) {
        if is_legacy_and_unused(program) {
            continue;
        }
        let Ok(saved) = save(program) else { continue };
        if let Some(script) = removal(&saved, network) {
            match restore(program, &script) {
                Ok(()) => delete_if_empty(program),
                Err(error) => result = Err(error),
            }
        }
    }
    result
}

fn is_legacy_and_unused(program: &str) -> bool {
    program.ends_with("-legacy") && !has_legacy_table(program, "nat")
}

/// Whether x_tables has this table, as `iptables-legacy` or `ip6tables-legacy` would show it: asking that command
/// would make the kernel load it. In the network namespace of this thread, where the command would run:
/// `/proc/net` is that of the first one.
pub(crate) fn has_legacy_table(program: &str, table: &str) -> bool {
    let list = if program.starts_with("ip6") { "ip6_tables_names" } else { "ip_tables_names" };
    std::fs::read_to_string(format!("/proc/thread-self/net/{list}"))
        .is_ok_and(|names| names.lines().any(|name| name == table))
}

/// iptables on nftables makes its table for the first rule and leaves it behind without any.
fn delete_if_empty(program: &str) {
    if program.ends_with("-legacy") || !save(program).is_ok_and(|saved| is_empty(&saved)) {
        return;
    }
    let family = if program.starts_with("ip6") { "ip6" } else { "ip" };
    // The old command's tables are none of nftables': then there is nothing of that name.
    let _ = Command::new("nft")
        .args(["delete", "table", family, "nat"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Only the chains that every such table has, without rules, and accepting.
fn is_empty(saved: &str) -> bool {
    const OWN: [&str; 4] = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];
    saved.lines().all(|line| match line.strip_prefix(':') {
        Some(chain) => {
            let words: Vec<&str> = chain.split_whitespace().collect();
            words.first().is_some_and(|name| OWN.contains(name)) && words.get(1) == Some(&"ACCEPT")
        }
        None => !line.starts_with("-A"),
    })
}

fn save(program: &str) -> io::Result<String> {
    let output = Command::new(format!("{program}-save")).args(["-t", "nat"]).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn restore(program: &str, script: &str) -> io::Result<()> {
    let mut child = Command::new(format!("{program}-restore"))
        .args(["--noflush", "-w", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{program}-restore could not remove port mappings: {said}")))
}

/// The chain that a rule jumps to.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split_whitespace();
    words.find(|word| *word == "-j")?;
    words.next()
}

/// What to feed to `iptables-restore --noflush`; `None` when nothing is left over.
fn removal(saved: &str, network: &str) -> Option<String> {
    let chains: BTreeSet<&str> = saved
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split_whitespace().next())
        .filter(|chain| chain.starts_with(PER_POD) || chain.starts_with(SHARED))
        .collect();
    let rules: Vec<&str> = saved.lines().filter(|line| line.starts_with("-A ")).collect();
    let in_chain =
        |chain: &'static str| rules.iter().filter(move |rule| rule.split(' ').nth(1) == Some(chain));
    // portmap's comment: dnat name: "NETWORK" id: "CONTAINER"
    let mark = format!(r#"dnat name: \"{network}\" id:"#);
    let is_ours = |rule: &&&str| rule.contains(&mark);
    let foreign: BTreeSet<&str> =
        in_chain(DNAT).filter(|rule| !is_ours(rule)).filter_map(|rule| target(rule)).collect();
    let is_last = foreign.is_empty();

    let mut dead: Vec<&str> = chains
        .iter()
        .filter(|chain| chain.starts_with(PER_POD) && !foreign.contains(*chain))
        .copied()
        .collect();
    if is_last {
        dead.extend(chains.iter().filter(|chain| chain.starts_with(SHARED)));
    }
    if dead.is_empty() {
        return None;
    }
    let mut script = String::from("*nat\n");
    for rule in &rules {
        let from = rule.split(' ').nth(1).unwrap_or_default();
        if !dead.contains(&from) && target(rule).is_some_and(|target| dead.contains(&target)) {
            script.push_str(&rule.replacen("-A ", "-D ", 1));
            script.push('\n');
        }
    }
    for command in ["-F", "-X"] {
        for chain in &dead {
            script.push_str(&format!("{command} {chain}\n"));
        }
    }
    script.push_str("COMMIT\n");
    Some(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As portmap of containernetworking-plugins 1.1.1 leaves it.
    const SAVED: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-DN-0123456789abcdef01234 - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-DN-0123456789abcdef01234 -s 10.244.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.0.5:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"kedge\" id: \"aa\"" -m multiport --dports 8080 -j CNI-DN-0123456789abcdef01234
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
COMMIT
"#;

    #[test]
    fn everything_goes_when_nobody_else_uses_it() {
        let script = removal(SAVED, "kedge").unwrap();
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(lines.iter().filter(|line| line.starts_with("-D ")).count(), 3, "{script}");
        assert!(!script.contains("DOCKER"), "{script}");
        for chain in ["CNI-DN-0123456789abcdef01234", "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK"] {
            assert!(lines.contains(&&*format!("-F {chain}")) && lines.contains(&&*format!("-X {chain}")));
        }
        let first_flush = lines.iter().position(|line| line.starts_with("-F")).unwrap();
        let last_delete = lines.iter().rposition(|line| line.starts_with("-D")).unwrap();
        assert!(last_delete < first_flush, "nothing refers to what is deleted");
    }

    #[test]
    fn other_networks_keep_theirs() {
        let other = r#":CNI-DN-ffffffffffffffffffff0 - [0:0]
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"podman\" id: \"bb\"" -j CNI-DN-ffffffffffffffffffff0
"#;
        let both = SAVED.replace("COMMIT\n", other) + "COMMIT\n";
        let script = removal(&both, "kedge").unwrap();
        assert!(!script.contains("CNI-DN-ffff") && !script.contains("-X CNI-HOSTPORT"), "{script}");
        assert!(script.contains("-X CNI-DN-0123456789abcdef01234"), "{script}");
        assert!(script.contains(r#"-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"kedge\""#));
    }

    #[test]
    fn only_a_table_without_rules_is_empty() {
        let empty = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [1:2]\nCOMMIT\n";
        assert!(is_empty(empty));
        for more in [":DOCKER - [0:0]\n", ":INPUT DROP [0:0]\n", "-A OUTPUT -j ACCEPT\n"] {
            assert!(!is_empty(&format!("{empty}{more}")), "{more}");
        }
        assert!(!is_empty(SAVED));
    }

    #[test]
    fn nothing_left_over_is_nothing_to_do() {
        assert_eq!(removal("*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\nCOMMIT\n", "kedge"), None);
        assert_eq!(removal("", "kedge"), None);
    }
}
