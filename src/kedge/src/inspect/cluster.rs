//! The node's process and what only a running cluster can tell: certificates, containerd, the other nodes
//! and their clocks, and the cluster's DNS as a pod sees it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use nix::sched::{CloneFlags, setns};

use super::{Context, Found, fail, ok, warn};
use crate::admin::{self, block_on};
use crate::commands::take_down;
use crate::config::Config;
use crate::service;
use crate::status::{State, last_failure};

/// An API server that does not answer in this time is as good as none.
const ANSWER: Duration = Duration::from_secs(10);
/// A pod's resolver gives up after 5 s.
const DNS_LIMIT: Duration = Duration::from_secs(5);
/// A lease is renewed every 10 s, and written up to half a second later.
const RENEWED: i64 = 12;
/// Tokens and certificates forgive less than this; logs become hard to read before.
const SKEW: i64 = 3;

pub(super) fn process(context: &Context<'_>) -> Vec<Found> {
    let config = context.config;
    let Some(status) = &context.status else {
        if context.process.is_some() {
            return vec![fail(
                format!("kedge runs but does not answer at {}", config.status_socket().display()),
                format!("see the log ({}); then kedge stop, kedge start", service::log_place(config)),
            )];
        }
        if !context.installed() {
            return vec![warn("kedge is not installed on this machine", "kedge install")];
        }
        return vec![match last_failure(config) {
            Some(last) => fail(
                format!("kedge does not run; it ended with: {}", last.error),
                last.remedy.unwrap_or_else(|| format!("see the log ({})", service::log_place(config))),
            ),
            None => fail("kedge does not run", "kedge start"),
        }];
    };
    let mut found: Vec<Found> = status
        .components
        .iter()
        .filter(|component| !component.ready)
        .map(|component| {
            let error = component.last_error.as_deref().unwrap_or("it has not said why");
            let remedy = component.remedy.clone().unwrap_or_else(|| {
                format!(
                    "wait a little if the node has just started; see the log ({})",
                    service::log_place(config)
                )
            });
            fail(format!("{} is not ready: {error}", component.name), remedy)
        })
        .collect();
    for warning in &status.warnings {
        found.push(warn(warning.message.clone(), warning.remedy.clone()));
    }
    if found.is_empty() && status.state == State::Ready {
        found.push(ok(format!("kedge is ready on node {} ({})", status.node, status.version)));
    }
    found
}

pub(super) fn certificates(context: &Context<'_>) -> Vec<Found> {
    if !context.installed() {
        return Vec::new();
    }
    let clock = Timestamp::now();
    match kedge_cluster::certificates(&context.config.pki_dir(), clock) {
        Ok(all) => judge_certificates(&all, clock),
        Err(error) => vec![fail(
            format!("the certificates cannot be read: {}", kedge_base::Chain(&error)),
            "put sudo before the command; a damaged file can be restored from a snapshot (kedge snapshot restore)",
        )],
    }
}

fn judge_certificates(all: &[kedge_cluster::CertificateStatus], now: Timestamp) -> Vec<Found> {
    let mut found = Vec::new();
    for certificate in all {
        let name = &certificate.name;
        let authority_ends = certificate.authority && certificate.days_left < 180;
        if certificate.days_left < 0 || certificate.expires <= now {
            found.push(fail(
                format!("the certificate {name} has expired"),
                if certificate.authority {
                    "it had to be replaced before (kedge certs rotate-ca); ask for help with this report"
                } else {
                    "kedge certs rotate"
                },
            ));
        } else if certificate.not_before > now {
            found.push(fail(
                format!("the certificate {name} is not valid yet: this machine's clock is behind"),
                "set the clock, then kedge certs rotate",
            ));
        } else if authority_ends {
            found.push(warn(
                format!("the authority {name} ends in {} days", certificate.days_left),
                if name == "front-proxy-ca" {
                    "plan a new cluster before then"
                } else {
                    "kedge certs rotate-ca replaces it while everything runs"
                },
            ));
        } else if certificate.renews.is_some_and(|renews| renews.duration_until(now).as_hours() > 48) {
            found.push(warn(
                format!(
                    "the certificate {name} should have been renewed by itself; {} days are left",
                    certificate.days_left
                ),
                "kedge certs rotate",
            ));
        }
    }
    if found.is_empty() {
        let soonest = all.iter().filter(|certificate| !certificate.authority).min_by_key(|c| c.expires);
        let text = soonest.map_or_else(String::new, |soonest| {
            format!(
                "; the first to end is {} in {} days, and it renews itself",
                soonest.name, soonest.days_left
            )
        });
        found.push(ok(format!("{} certificates are valid{text}", all.len())));
    }
    found
}

pub(super) fn containerd(context: &Context<'_>) -> Vec<Found> {
    let socket = context.config.containerd_socket();
    let asked = block_on(async { tokio::time::timeout(ANSWER, kedge_kubelet::list_images(&socket)).await });
    let remedy = format!(
        "see the log ({}); kedge stop and kedge start start it again, containers go on",
        service::log_place(context.config)
    );
    vec![match asked {
        Ok(Ok(Ok(images))) => ok(format!("containerd answers and has {} images", images.len())),
        Ok(Ok(Err(error))) => fail(format!("containerd fails: {}", kedge_base::Chain(&error)), remedy),
        Ok(Err(_)) => fail(format!("containerd does not answer within {} s", ANSWER.as_secs()), remedy),
        Err(_) => fail("containerd cannot be asked", remedy),
    }]
}

/// What the API server tells of the nodes.
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    leases: Vec<Lease>,
    /// Pods of the DNS Service that are ready.
    dns: usize,
    asked: Timestamp,
}

/// Asks the API server of this control-plane node.
pub(super) fn ask_nodes(config: &Config) -> Result<Nodes, String> {
    if !config.kubeconfig().exists() {
        return Err("this is a worker".into());
    }
    let ask = async {
        let client = admin::client(config)?;
        let everything = ListParams::default();
        let nodes = Api::<Node>::all(client.clone()).list(&everything).await?.items;
        let leases =
            Api::<Lease>::namespaced(client.clone(), "kube-node-lease").list(&everything).await?.items;
        let pods = Api::<Pod>::namespaced(client, "kube-system");
        let pods = pods.list(&ListParams::default().labels("k8s-app=kube-dns")).await?.items;
        let dns = pods.iter().filter(|pod| ready(pod)).count();
        anyhow::Ok(Nodes { nodes, leases, dns, asked: Timestamp::now() })
    };
    match block_on(async { tokio::time::timeout(ANSWER, ask).await }) {
        Ok(Ok(Ok(nodes))) => Ok(nodes),
        Ok(Ok(Err(error))) => Err(crate::failure::text(&error)),
        _ => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

pub(super) fn nodes(context: &Context<'_>) -> Vec<Found> {
    match &context.nodes {
        Some(Ok(known)) => judge_nodes(&node_facts(known)),
        Some(Err(_)) if !context.config.kubeconfig().exists() => Vec::new(),
        Some(Err(error)) => vec![fail(
            format!("the API server does not answer: {error}"),
            format!("see kedge status and the log ({})", service::log_place(context.config)),
        )],
        None => Vec::new(),
    }
}

/// A node as the judgement needs it.
struct NodeFacts {
    name: String,
    ready: bool,
    reason: String,
    /// Seconds since the node's lease was renewed, by the node's clock against ours.
    since_renewal: Option<i64>,
}

fn node_facts(known: &Nodes) -> Vec<NodeFacts> {
    let leases: BTreeMap<&str, i64> = known
        .leases
        .iter()
        .filter_map(|lease| {
            let renewed = lease.spec.as_ref()?.renew_time.as_ref()?;
            Some((lease.metadata.name.as_deref()?, known.asked.as_second() - renewed.0.as_second()))
        })
        .collect();
    known
        .nodes
        .iter()
        .map(|node| {
            let name = node.metadata.name.clone().unwrap_or_default();
            let condition = node
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref()?.iter().find(|one| one.type_ == "Ready"));
            NodeFacts {
                ready: condition.is_some_and(|one| one.status == "True"),
                reason: condition.and_then(|one| one.message.clone()).unwrap_or_default(),
                since_renewal: leases.get(name.as_str()).copied(),
                name,
            }
        })
        .collect()
}

/// A renewal in the future or long ago, of a node that is Ready, means that two clocks differ.
fn judge_nodes(nodes: &[NodeFacts]) -> Vec<Found> {
    let mut found = Vec::new();
    for node in nodes {
        let name = &node.name;
        if !node.ready {
            found.push(warn(
                format!("node {name} is not Ready: {}", node.reason),
                format!("kedge inspect there; kedge remove-node {name} if it never comes back"),
            ));
            continue;
        }
        let remedy = "set the clocks of all nodes by the network (timedatectl set-ntp true)";
        match node.since_renewal {
            Some(age) if age < -SKEW => {
                found.push(warn(
                    format!("the clock of node {name} is {} s ahead of this one's", -age),
                    remedy,
                ));
            }
            Some(age) if age > RENEWED + SKEW => found.push(warn(
                format!("the clock of node {name} is about {} s behind this one's", age - RENEWED / 2),
                remedy,
            )),
            _ => {}
        }
    }
    if found.is_empty() {
        found.push(ok(match nodes.len() {
            1 => "the node is Ready".to_owned(),
            count => format!("all {count} nodes are Ready and their clocks agree"),
        }));
    }
    found
}

pub(super) fn dns(context: &Context<'_>) -> Vec<Found> {
    let config = context.config;
    let serving = match &context.nodes {
        Some(Ok(known)) => Some(known.dns),
        _ => None,
    };
    if serving == Some(0) {
        return vec![warn(
            "no DNS pod is ready, so pods do not resolve names",
            "kedge enable dns; if it is enabled: kedge kubectl -n kube-system describe pods -l k8s-app=kube-dns",
        )];
    }
    let server = SocketAddr::new(config.cluster_dns, 53);
    let name = format!("kubernetes.default.svc.{}", config.cluster_domain);
    let places = pod_namespaces(config);
    let (place, result) = match places.first() {
        Some(namespace) => ("from a pod", ask_inside(namespace, server, &name)),
        None => ("from this machine (no pod runs here)", kedge_network::dns::ask(server, &name, DNS_LIMIT)),
    };
    vec![judge_dns(config, place, &name, result)]
}

fn judge_dns(config: &Config, place: &str, name: &str, result: std::io::Result<Vec<IpAddr>>) -> Found {
    let server = config.cluster_dns;
    match result {
        Ok(addresses) if addresses.iter().any(|address| config.is_service(*address)) => {
            ok(format!("{server} resolves {name} {place}"))
        }
        Ok(addresses) => fail(
            format!("{server} says {addresses:?} for {name} {place}, which is no address of a Service here"),
            "another DNS server answers at that address: choose other ranges with --service-cidr and --cluster-dns",
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fail(
            format!("{server} does not know {name} {place}"),
            format!(
                "is the cluster's domain {} on all nodes? see kedge kubectl -n kube-system logs -l k8s-app=kube-dns",
                config.cluster_domain
            ),
        ),
        Err(error) => fail(
            format!("DNS does not work {place}: {error}"),
            "look at the checks forwarding and firewall above, then at kedge kubectl -n kube-system get pods,endpointslices",
        ),
    }
}

/// The files that hold the network namespaces of this node's pods.
fn pod_namespaces(config: &Config) -> Vec<PathBuf> {
    let own = take_down::own_namespaces(config);
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| fs::metadata(path).is_ok_and(|data| own.contains(&data.ino())))
        .collect();
    files.sort();
    files
}

/// A thread has its own network namespace: only the question is asked inside.
fn ask_inside(namespace: &Path, server: SocketAddr, name: &str) -> std::io::Result<Vec<IpAddr>> {
    let file = fs::File::open(namespace)?;
    let name = name.to_owned();
    let thread = std::thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        kedge_network::dns::ask(server, &name, DNS_LIMIT)
    });
    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the question was not asked")))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Settings;

    #[test]
    fn nodes_that_fail_and_clocks_that_differ() {
        let node = |ready, since_renewal| NodeFacts {
            name: "n1".into(),
            ready,
            reason: "no network".into(),
            since_renewal,
        };
        for (facts, expected, part) in [
            (node(true, Some(4)), Verdict::Ok, "Ready"),
            (node(true, None), Verdict::Ok, "Ready"),
            (node(false, Some(300)), Verdict::Warn, "no network"),
            (node(true, Some(-90)), Verdict::Warn, "90 s ahead"),
            (node(true, Some(126)), Verdict::Warn, "about 120 s behind"),
        ] {
            let found = judge_nodes(&[facts]);
            assert_eq!(found[0].0, expected, "{found:?}");
            assert!(found[0].1.contains(part), "{part:?} is not in {found:?}");
        }
    }

    #[test]
    fn answers_of_the_right_and_of_another_server() {
        let config = Config::load(Some(Path::new("/nonexistent")), &Settings::default()).unwrap();
        let judge = |result| judge_dns(&config, "from a pod", "kubernetes.default.svc.cluster.local", result);
        assert_eq!(judge(Ok(vec![[10, 96, 0, 1].into()])).0, Verdict::Ok);
        assert_eq!(judge(Ok(vec![[192, 0, 2, 1].into()])).0, Verdict::Fail);
        for kind in [std::io::ErrorKind::NotFound, std::io::ErrorKind::TimedOut] {
            assert_eq!(judge(Err(kind.into())).0, Verdict::Fail);
        }
    }

    #[test]
    fn certificates_by_age() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let certificate = |authority, renews: &str, expires: &str| {
            let expires: Timestamp = expires.parse().unwrap();
            kedge_cluster::CertificateStatus {
                name: "apiserver".into(),
                path: PathBuf::new(),
                subject: String::new(),
                issuer: String::new(),
                names: std::collections::BTreeSet::new(),
                authority,
                not_before: "2026-01-01T00:00:00Z".parse().unwrap(),
                expires,
                renews: (!authority).then(|| renews.parse().unwrap()),
                days_left: now.duration_until(expires).as_hours() / 24,
            }
        };
        for (authority, renews, expires, expected) in [
            (false, "2026-09-01T00:00:00Z", "2027-01-01T00:00:00Z", Verdict::Ok),
            (false, "2026-05-01T00:00:00Z", "2026-08-01T00:00:00Z", Verdict::Warn),
            (false, "2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z", Verdict::Fail),
            (true, "", "2036-01-01T00:00:00Z", Verdict::Ok),
            (true, "", "2026-07-01T00:00:00Z", Verdict::Warn),
        ] {
            let found = judge_certificates(&[certificate(authority, renews, expires)], now);
            assert_eq!(found[0].0, expected, "{found:?}");
        }
    }
}
