//! Lets pods' packets through where another program drops what is forwarded, as Docker, ufw and many
//! hand-made firewalls do.
//!
//! A packet has to pass every base chain of the forward hook, in whatever table: an accept in a chain of
//! ours ends only that chain, while a drop anywhere is final. So an accept helps only inside the chain
//! that drops, before its other rules. That is where this puts two rules per pod network (from it and to
//! it), marked by a comment, and puts them back when the other program takes them away. Chains of the old
//! x_tables (`iptables-legacy`) are not part of nftables; there the same is done by that command.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kedge_base::{Backoff, Chain, Tasks};
use tokio::sync::watch;

use super::config::{Backend, NetworkConfig, VxlanConfig};
use crate::host::has_legacy_table;
use crate::nft::{
    Batch, Compare, Expr, ForeignChain, ForeignHook, TransactionError, Verdict, Watcher, Writer, base_chains,
    commented_rules,
};

/// Begins the comment of every rule of ours in a foreign chain.
const COMMENT: &str = "kedge: pod network";
/// Repairs that follow each other closer than this are slowed down.
const QUIET: Duration = Duration::from_secs(30);

// linux/netfilter/nf_tables.h
const META_NFPROTO: u32 = 15;
const NETWORK: u32 = 1;
const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;

/// Start to keep forwarding open for the networks; begins when they are known.
pub(super) fn start(network: watch::Receiver<Option<NetworkConfig>>, tasks: &Tasks) {
    tasks.spawn_restarting("forwarding of pods' packets", move || run(network.clone()));
}

async fn run(mut network: watch::Receiver<Option<NetworkConfig>>) {
    loop {
        let known = network.wait_for(Option::is_some).await.map(|network| network.clone());
        let Ok(Some(known)) = known else {
            return std::future::pending().await;
        };
        let other = |now: &Option<NetworkConfig>| now.as_ref() != Some(&known);
        let ended = tokio::select! {
            () = keep(known.clone()) => false,
            ended = async { network.wait_for(other).await.is_err() } => ended,
        };
        if ended {
            return std::future::pending().await;
        }
        if network.borrow().is_none() {
            // The pod network is somebody else's now.
            match tokio::task::spawn_blocking(remove_rules).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %Chain(&error), "rules that let pods' packets pass are left");
                }
                Err(error) => tracing::warn!(%error, "rules that let pods' packets pass are left"),
            }
        }
    }
}

/// Keeps forwarding open for one configuration, until it is dropped.
async fn keep(NetworkConfig { networks, backend }: NetworkConfig) {
    mention_input(&backend);
    let writer = match Writer::open() {
        Ok(writer) => Arc::new(writer),
        Err(error) => {
            tracing::warn!(%error, "nftables cannot be read, so forwarding of pods' packets is not checked");
            return std::future::pending().await;
        }
    };
    let mut fought = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut last: Option<Instant> = None;
    loop {
        // Before the check, so that nothing happens unseen in between.
        let watcher = Watcher::open_chains(writer.port());
        let (kernel, wanted) = (writer.clone(), networks.clone());
        let checked = tokio::task::spawn_blocking(move || check(&kernel, &wanted)).await;
        match checked {
            Ok(Ok(opened)) => {
                for chain in &opened {
                    tracing::warn!(%chain, "this chain drops forwarded packets by default, rules that let pods' packets pass were added to it");
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "forwarding of pods' packets could not be opened in another program's chain");
            }
            Err(error) => tracing::warn!(%error, "forwarding of pods' packets could not be checked"),
        }
        if last.is_some_and(|last| last.elapsed() < QUIET) {
            tokio::time::sleep(fought.next_delay()).await;
        } else {
            fought.reset();
        }
        last = Some(Instant::now());
        match watcher {
            Ok(watcher) => {
                if let Err(error) = watcher.noticed().await {
                    tracing::warn!(%error, "nftables notifications failed, they are opened again");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "changes of other programs' chains go unnoticed");
                return std::future::pending().await;
            }
        }
    }
}

/// Which ports of this machine are open is for its owner to say, so no rule is made for VXLAN's; but
/// where packets that come in are dropped by default, this is what somebody will look for in the log.
fn mention_input(backend: &Backend) {
    let Backend::Vxlan(VxlanConfig { port, .. }) = backend else { return };
    for chain in base_chains(ForeignHook::Input).into_iter().flatten().filter(|chain| chain.drops) {
        tracing::info!(
            %chain,
            "this chain drops what comes in by default: pods of other nodes are reached only when it lets UDP port {port} \
             in from the other nodes (with ufw: ufw allow proto udp from NODE to any port {port})"
        );
    }
}

/// Put our rules where they are missing. The chains that got some.
fn check(writer: &Writer, networks: &[IpNet]) -> Result<Vec<ForeignChain>, TransactionError> {
    let mut opened = Vec::new();
    let mut result = Ok(());
    for chain in base_chains(ForeignHook::Forward)?.into_iter().filter(|chain| chain.drops) {
        match open_chain(writer, &chain, networks) {
            Ok(true) => opened.push(chain),
            Ok(false) => {}
            // A table can belong to its program alone; the others are tried all the same.
            Err(error) => result = Err(error),
        }
    }
    legacy(networks);
    result.map(|()| opened)
}

/// False when nothing was missing.
fn open_chain(writer: &Writer, chain: &ForeignChain, networks: &[IpNet]) -> Result<bool, TransactionError> {
    let wanted = networks.iter().flat_map(|net| rules(chain, net));
    let has: BTreeSet<String> = commented_rules(chain)?.into_iter().map(|(_, comment)| comment).collect();
    let mut batch = Batch::of_family(chain.family, &chain.table);
    for (comment, rule) in wanted.filter(|(comment, _)| !has.contains(comment)) {
        batch.insert_rule(&chain.chain, &rule, &comment);
    }
    let missing = !batch.is_empty();
    writer.commit(batch)?;
    Ok(missing)
}

/// Accept what comes from the network and what goes to it, when the chain sees such packets.
fn rules(chain: &ForeignChain, net: &IpNet) -> Vec<(String, Vec<Expr>)> {
    let family = if net.addr().is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
    if chain.family != FAMILY_INET && chain.family != family {
        return Vec::new();
    }
    [(true, "from"), (false, "to")]
        .map(|(source, word)| {
            let mut rule = Vec::new();
            if chain.family == FAMILY_INET {
                rule.push(Expr::Meta { key: META_NFPROTO, register: 1 });
                rule.push(Expr::Cmp { register: 1, compare: Compare::Equal, data: vec![family] });
            }
            rule.extend(is_in(net, source));
            rule.extend([Expr::Counter, Expr::Verdict(Verdict::Accept)]);
            (format!("{COMMENT} {word} {net}"), rule)
        })
        .into()
}

/// As iptables writes it, so that `iptables -S` still can show the chain.
fn is_in(net: &IpNet, source: bool) -> Vec<Expr> {
    let (offset, size) = match (net.addr().is_ipv4(), source) {
        (true, true) => (12, 4),
        (true, false) => (16, 4),
        (false, true) => (8, 16),
        (false, false) => (24, 16),
    };
    let mut data = Expr::address_bytes(net.trunc().addr());
    let whole_bytes = net.prefix_len().is_multiple_of(8) && net.prefix_len() > 0;
    let length = if whole_bytes { usize::from(net.prefix_len() / 8) } else { size };
    data.truncate(length);
    let length = u32::try_from(length).unwrap_or(4);
    let mut rule = vec![Expr::Payload { base: NETWORK, offset, length, register: 1 }];
    if !whole_bytes {
        let mask = Expr::address_bytes(net.netmask());
        let xor = vec![0; mask.len()];
        rule.push(Expr::Bitwise { register: 1, mask, xor });
    }
    rule.push(Expr::Cmp { register: 1, compare: Compare::Equal, data });
    rule
}

/// A chain of another program that drops packets by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// For instance `ip filter FORWARD`.
    pub chain: String,
    /// It sees what comes in to this machine; otherwise what is forwarded.
    pub incoming: bool,
    /// It holds the rules that let the pod network's packets pass.
    pub opened: bool,
}

/// What stands in the way of pods' packets. Only looks, for a diagnosis.
///
/// # Errors
/// When nftables cannot be read.
pub fn obstacles(pod_networks: &[IpNet]) -> std::io::Result<Vec<Obstacle>> {
    let mut found = Vec::new();
    for chain in base_chains(ForeignHook::Forward)?.into_iter().filter(|chain| chain.drops) {
        let has: BTreeSet<String> =
            commented_rules(&chain)?.into_iter().map(|(_, comment)| comment).collect();
        let opened = pod_networks
            .iter()
            .flat_map(|network| rules(&chain, network))
            .all(|(comment, _)| has.contains(&comment));
        found.push(Obstacle { chain: chain.to_string(), incoming: false, opened });
    }
    for chain in base_chains(ForeignHook::Input)?.into_iter().filter(|chain| chain.drops) {
        found.push(Obstacle { chain: chain.to_string(), incoming: true, opened: false });
    }
    for program in LEGACY {
        let listed = if has_legacy_table(program, "filter") { listed(program) } else { Vec::new() };
        if listed.iter().any(|line| line == "-P FORWARD DROP") && program == "iptables-legacy" {
            let opened = pod_networks.iter().filter(|network| network.addr().is_ipv4()).all(|network| {
                ["from", "to"].iter().all(|word| {
                    let comment = format!("{COMMENT} {word} {network}");
                    listed.iter().any(|rule| rule.contains(&comment))
                })
            });
            found.push(Obstacle { chain: format!("{program} FORWARD"), incoming: false, opened });
        }
    }
    Ok(found)
}

/// Take our rules out of all foreign chains.
pub(crate) fn remove_rules() -> Result<(), TransactionError> {
    let writer = Writer::open()?;
    for chain in base_chains(ForeignHook::Forward)? {
        let mut batch = Batch::of_family(chain.family, &chain.table);
        for (handle, comment) in commented_rules(&chain)? {
            if comment.starts_with(COMMENT) {
                batch.delete_rule(&chain.chain, handle);
            }
        }
        writer.commit(batch)?;
    }
    for program in LEGACY {
        if has_legacy_table(program, "filter") {
            for rule in listed(program).iter().filter(|rule| rule.contains(COMMENT)) {
                let arguments = rule.replacen("-A ", "-D ", 1);
                run_legacy(program, &split(&arguments));
            }
        }
    }
    Ok(())
}

/// The commands of x_tables.
const LEGACY: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];

/// The same for x_tables.
fn legacy(networks: &[IpNet]) {
    for program in LEGACY {
        let is_ipv4 = program == "iptables-legacy";
        if !has_legacy_table(program, "filter") {
            continue;
        }
        let listed = listed(program);
        if listed.is_empty() {
            tracing::warn!(
                program,
                "there are x_tables rules but no such command to look at them; when pods cannot reach other nodes, \
                 allow forwarding of the pod network there"
            );
            continue;
        }
        if !listed.iter().any(|line| line == "-P FORWARD DROP") {
            continue;
        }
        for net in networks.iter().filter(|net| net.addr().is_ipv4() == is_ipv4) {
            for (option, word) in [("-s", "from"), ("-d", "to")] {
                let comment = format!("{COMMENT} {word} {net}");
                if listed.iter().any(|rule| rule.contains(&comment)) {
                    continue;
                }
                let net = net.to_string();
                let rule =
                    ["-I", "FORWARD", option, &net, "-m", "comment", "--comment", &comment, "-j", "ACCEPT"];
                if run_legacy(program, &rule.map(str::to_owned)) {
                    tracing::warn!(
                        program,
                        rule = comment,
                        "the chain FORWARD drops by default, a rule that lets pods' packets pass was added"
                    );
                } else {
                    tracing::warn!(
                        program,
                        "the chain FORWARD drops pods' packets by default; allow them, for example with: {program} -P FORWARD ACCEPT"
                    );
                }
            }
        }
    }
}

/// `-S FORWARD`, by lines; empty when the command is missing or fails.
fn listed(program: &str) -> Vec<String> {
    let output = Command::new(program).args(["-w", "5", "-S", "FORWARD"]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

fn run_legacy(program: &str, arguments: &[String]) -> bool {
    let mut command = Command::new(program);
    command
        .args(["-w", "5"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Words, where double quotes keep spaces together, as `iptables -S` prints them.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (n, part) in line.split('"').enumerate() {
        if n % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: u8) -> ForeignChain {
        ForeignChain { family, table: "filter".into(), chain: "FORWARD".into(), drops: true }
    }

    #[test]
    fn each_chain_gets_rules_it_can_hold() {
        let v4: IpNet = "10.244.0.0/16".parse().unwrap();
        let v6: IpNet = "fd00::/48".parse().unwrap();
        for (family, net, count, length) in
            [(2, v4, 2, 4), (10, v4, 0, 0), (1, v4, 2, 6), (10, v6, 2, 4), (2, v6, 0, 0), (1, v6, 2, 6)]
        {
            let rules = rules(&chain(family), &net);
            assert_eq!(rules.len(), count, "{family} {net}");
            for (comment, rule) in rules {
                assert_eq!(rule.len(), length, "{comment}");
                assert_eq!(rule.last(), Some(&Expr::Verdict(Verdict::Accept)));
            }
        }
    }

    #[test]
    fn odd_prefixes_are_masked() {
        let net: IpNet = "10.32.0.0/11".parse().unwrap();
        let rule = is_in(&net, true);
        assert!(matches!(&rule[1], Expr::Bitwise { mask, .. } if *mask == [255, 224, 0, 0]));
        let net: IpNet = "10.244.0.0/16".parse().unwrap();
        let rule = is_in(&net, false);
        assert_eq!(rule[0], Expr::Payload { base: NETWORK, offset: 16, length: 2, register: 1 });
        assert_eq!(rule[1], Expr::Cmp { register: 1, compare: Compare::Equal, data: vec![10, 244] });
    }

    #[test]
    fn listed_rules_become_arguments() {
        let line =
            r#"-D FORWARD -s 10.244.0.0/16 -m comment --comment "kedge: pod network from x" -j ACCEPT"#;
        let words = split(line);
        assert_eq!(words.len(), 10);
        assert_eq!(words[7], "kedge: pod network from x");
    }
}
