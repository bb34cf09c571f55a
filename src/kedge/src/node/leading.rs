//! What one node does for the whole cluster: controllers, scheduler, the list of API servers. It runs where
//! the store's leader is, so it moves with it, and no election of its own writes to the disk.
//!
//! Two nodes may hold themselves for the leader for a moment (the old one notices within an election's
//! time). That is as safe as with leases: every write names the version of what it read.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kedge_apiserver::{ApiServer, User};
use kedge_base::{Backoff, Tasks};
use kedge_client::Informers;
use kedge_cluster::{Pki, Registry, Signer};
use kedge_network::{Announcer, Purpose};
use kedge_store::Status;
use kube::api::{Api, DeleteParams};
use tokio::sync::watch;

use super::in_step::in_step;
use crate::config::Config;
use crate::node_status::Board;

/// How long the components may take to end when another node leads.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long an upgraded addon may take until it is healthy.
const UPGRADE_LIMIT: Duration = Duration::from_secs(300);

/// What the components need.
pub(crate) struct Leading {
    pub(crate) config: Config,
    pub(crate) server: ApiServer,
    pub(crate) controllers: kedge_controllers::Config,
    pub(crate) board: Board,
    pub(crate) registry: Registry,
    pub(crate) book_changes: watch::Receiver<u64>,
    /// This node's address, for as long as the store names no members.
    pub(crate) own_address: IpAddr,
    /// Holds the API server's own address while this node leads.
    pub(crate) announcer: Announcer,
}

impl Leading {
    /// Starts and stops the components with the leadership, until `tasks` stop.
    pub(crate) async fn follow(self, mut status: watch::Receiver<Status>, tasks: Tasks) {
        let stopped = tasks.token().clone();
        loop {
            let known = status.wait_for(|status| status.leader.is_some());
            let Some(Ok(known)) =
                stopped.run_until_cancelled(known).await.map(|known| known.map(|known| known.clone()))
            else {
                return;
            };
            if known.leader != Some(known.id) {
                // They run on the node that leads; that one's status tells of them.
                self.board.ready("controllers");
                self.board.ready("scheduler");
            }
            let leads = status.wait_for(|status| status.leader == Some(status.id));
            let Some(Ok(_)) = stopped.run_until_cancelled(leads).await else { return };
            let mut term = tasks.child("leading");
            let addresses = watch::Sender::new(vec![self.own_address]);
            self.announcer.hold(Purpose::ApiServer, self.virtual_addresses());
            let follow = async {
                loop {
                    let known = status.borrow_and_update().clone();
                    if known.leader != Some(known.id) {
                        return;
                    }
                    let now = api_servers(&known, self.own_address);
                    addresses.send_if_modified(|old| std::mem::replace(old, now.clone()) != now);
                    if status.changed().await.is_err() {
                        return;
                    }
                }
            };
            let work = async {
                let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
                started(&tasks, &mut term, backoff, |term| {
                    self.start(&addresses, term).inspect_err(|error| {
                        for part in ["controllers", "scheduler"] {
                            self.board.failed(part, &format!("{error:#}"));
                        }
                    })
                })
                .await;
                std::future::pending::<()>().await;
            };
            let led = async {
                tokio::select! {
                    () = follow => {}
                    () = work => {}
                }
            };
            if stopped.run_until_cancelled(led).await.is_none() {
                // The whole group is being stopped, this part with it.
                return;
            }
            // Before anything else: another node may have it already.
            self.announcer.hold(Purpose::ApiServer, BTreeSet::new());
            tracing::info!("another node leads now: controllers and scheduler stop here");
            let late = term.shutdown(STOP_LIMIT).await;
            if !late.is_empty() {
                tracing::warn!(tasks = late.join(", "), "did not stop in time");
            }
        }
    }

    /// A member's own configuration may be such that it does not answer there.
    fn virtual_addresses(&self) -> BTreeSet<IpAddr> {
        let (served, not): (Vec<IpAddr>, Vec<IpAddr>) =
            self.config.virtual_addresses.iter().partition(|address| self.config.serves(**address));
        for address in not {
            let bind = self.config.bind_address();
            tracing::warn!(%address, %bind, "the cluster's virtual address is not served by this node's listeners");
        }
        served.into_iter().collect()
    }

    fn start(&self, addresses: &watch::Sender<Vec<IpAddr>>, term: &Tasks) -> anyhow::Result<()> {
        let client_of =
            |component| kedge_client::named(self.server.local(User::component(component)), component);
        self.server.lead(addresses.subscribe(), term);
        let (registry, changes) = (self.registry.clone(), self.book_changes.clone());
        let forget = forget_nodes(registry, changes, client_of("kedge"));
        term.spawn_until_stopped("nodes that have left", forget);
        let tell = super::authority::tell_workers(
            self.registry.clone(),
            self.book_changes.clone(),
            client_of("kedge"),
        );
        term.spawn_until_stopped("news of the authority", tell);
        let rewrite =
            super::encryption::rewrite(self.registry.clone(), self.book_changes.clone(), self.server.clone());
        term.spawn_until_stopped("stored objects", rewrite);
        let network = kedge_network::NetworkConfig {
            networks: self.config.pod_cidrs.clone(),
            backend: kedge_network::Backend::Vxlan(kedge_network::VxlanConfig::default()),
        };
        let publish = super::flannel::publish(client_of("kedge"), network, self.config.own_pod_network);
        term.spawn_until_stopped("flannel's objects", publish);
        let upgrade = upgrade_addons(crate::addons::manager(&self.config, client_of("kedge"))?);
        term.spawn_until_stopped("addons' upgrade", upgrade);
        let informers = Informers::new(client_of("kedge"), term);
        let user = User::component("system:kube-controller-manager");
        let manager = kedge_client::named(self.server.local(user), "kube-controller-manager");
        kedge_controllers::start(self.controllers.clone(), &manager, &informers, term)?;
        self.board.ready("controllers");
        let informers = informers.with_client(client_of("kube-scheduler"));
        kedge_scheduler::start(kedge_scheduler::Config::default(), &informers, term)?;
        self.board.ready("scheduler");
        Ok(())
    }
}

/// Until all has started: of a start that failed some may run, and ends before the next one begins.
async fn started(
    tasks: &Tasks,
    term: &mut Tasks,
    mut backoff: Backoff,
    start: impl Fn(&Tasks) -> anyhow::Result<()>,
) {
    while let Err(error) = start(term) {
        tracing::error!(error = format!("{error:#}"), "the controllers do not start, trying again");
        let late = term.shutdown(STOP_LIMIT).await;
        if !late.is_empty() {
            tracing::warn!(tasks = late.join(", "), "did not stop in time");
        }
        tokio::time::sleep(backoff.next_delay()).await;
        *term = tasks.child("leading");
    }
}

/// A new version of Kedge brings new versions of the addons that are enabled.
async fn upgrade_addons(manager: kedge_addons::Manager) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
    loop {
        match manager.upgrade(UPGRADE_LIMIT).await {
            Ok(done) => {
                for (addon, result) in &done {
                    match result {
                        Ok(()) => tracing::info!(addon, "addon upgraded"),
                        Err(error) => {
                            tracing::warn!(addon, error = %kedge_base::Chain(error), "addon not upgraded");
                        }
                    }
                }
                if done.iter().all(|(_, result)| result.is_ok()) {
                    return;
                }
            }
            Err(error) => tracing::debug!(error = %kedge_base::Chain(&error), "the addons are not known yet"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Signs with the cluster's authority what the certificate controller has approved.
#[derive(Debug)]
pub(crate) struct ClusterSigner {
    pub(crate) pki: Arc<Pki>,
    pub(crate) registry: Registry,
}

impl kedge_controllers::Signer for ClusterSigner {
    fn sign(
        &self,
        csr_pem: &str,
        signer_name: &str,
        usages: &[String],
        lifetime: Duration,
    ) -> Result<String, kedge_controllers::SignerError> {
        let signer = Signer::from_name(signer_name).ok_or("this cluster has no such signer")?;
        if signer == Signer::KubeletServing {
            self.pki.check_serving_names(csr_pem, &self.registry)?;
        }
        Ok(self.pki.sign(signer, csr_pem, usages, Some(lifetime))?)
    }
}

/// Deletes the Node objects of nodes that have left the cluster or were removed: by the book, so that one
/// who dies in between is no reason for a ghost.
async fn forget_nodes(registry: Registry, changes: watch::Receiver<u64>, client: kube::Client) {
    let nodes: Api<Node> = Api::all(client);
    in_step(changes, "the Nodes of nodes that have left", || async {
        let mut result = Ok(());
        for name in registry.departed() {
            // A list of names from memory first: usually none of them has an object any more.
            let gone = match nodes.get_opt(&name).await {
                Ok(Some(_)) => nodes.delete(&name, &DeleteParams::default()).await.map(drop),
                other => other.map(drop),
            };
            // One that stays must not keep the others.
            result = result.and(gone.with_context(|| format!("delete node {name}")));
        }
        result
    })
    .await;
}

/// The addresses of the control-plane nodes that are there, in a fixed order.
fn api_servers(status: &Status, own: IpAddr) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = status
        .members
        .iter()
        .filter(|member| member.healthy != Some(false) || member.id == status.id)
        .filter_map(|member| {
            let (host, _) = member.member.as_ref()?.address.rsplit_once(':')?;
            host.trim_matches(['[', ']']).parse().ok()
        })
        .collect();
    if addresses.is_empty() {
        addresses.push(own);
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_store::{Member, MemberStatus, Role};

    fn member(id: u64, address: &str, healthy: Option<bool>) -> MemberStatus {
        let member = Member { id, name: format!("n{id}"), address: address.into(), failure_domain: None };
        MemberStatus {
            id,
            member: Some(member),
            role: Role::Voter,
            votes: true,
            is_leader: id == 1,
            healthy,
            silent_for: None,
            lag: None,
        }
    }

    #[tokio::test]
    async fn controllers_that_do_not_start_are_tried_again_without_what_ran() {
        let tasks = Tasks::new("test");
        let mut term = tasks.child("leading");
        let starts = std::cell::Cell::new(0);
        let first = std::cell::RefCell::new(None);
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        started(&tasks, &mut term, backoff, |term| {
            starts.set(starts.get() + 1);
            let half = term.spawn_until_stopped("half", std::future::pending::<()>());
            if starts.get() == 1 {
                *first.borrow_mut() = Some(half);
            }
            anyhow::ensure!(starts.get() == 3, "on purpose");
            Ok(())
        })
        .await;
        assert_eq!(starts.get(), 3);
        assert!(first.take().is_some_and(|half| half.is_finished()), "what had started of it was ended");
        assert_eq!(term.running(), ["test/leading/half"]);
    }

    #[test]
    fn pods_are_told_of_the_api_servers_that_are_there() {
        let own: IpAddr = [192, 0, 2, 1].into();
        let mut status = Status { id: 1, leader: Some(1), ..Status::default() };
        assert_eq!(api_servers(&status, own), [own]);
        status.members = vec![
            member(3, "192.0.2.3:25000", Some(true)),
            member(1, "192.0.2.1:25000", None),
            member(2, "192.0.2.2:25000", Some(false)),
            member(4, "[2001:db8::4]:25000", Some(true)),
        ];
        let texts: Vec<String> = api_servers(&status, own).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1", "192.0.2.3", "2001:db8::4"]);
    }
}
