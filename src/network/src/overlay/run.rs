//! The one task that keeps the pod network: it waits for a change of a node or of the kernel, compares
//! everything, changes the differences and announces this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kedge_base::{Backoff, Chain};
use kedge_client::kube::api::{Patch, PatchParams};
use kedge_client::{Change, Informer, kube};
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use super::condition::Condition;
use super::config::{Backend, CONFIG_MAP_NAME, CONFIG_MAP_NAMESPACE, NetworkConfig, is_off};
use super::kernel::{Desired, Kernel, Outcome, OwnShare, device_name};
use super::lease::{Lease, pod_cidrs, public_overwrite};
use super::plan::ROUTE_PROTOCOL;
use super::{OverlayConfig, PodNetwork};
use crate::host;
use crate::rt::{Event, Mac, RtWatcher};

/// Repairs that follow each other closer than this are slowed down: somebody fights for the routes.
const QUIET: Duration = Duration::from_secs(30);

/// Clones share.
#[derive(Clone)]
pub(crate) struct Runner(Arc<Inner>);

pub(super) struct Inner {
    pub(super) config: OverlayConfig,
    pub(super) client: kube::Client,
    pub(super) nodes: Informer<Node>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) state: watch::Sender<Option<PodNetwork>>,
    /// Told when a node changed in a way that matters.
    pub(super) changed: Arc<Notify>,
    /// The cluster's configuration, once it is known.
    pub(super) network: watch::Sender<Option<NetworkConfig>>,
    /// What was said already.
    told: Mutex<BTreeSet<String>>,
    /// What the pass before wanted.
    pub(super) last: Mutex<Option<Desired>>,
    /// The version of the Node that was patched last, and with what: its change may not have come back.
    pub(super) patched: Mutex<Option<(Option<String>, BTreeMap<String, String>)>>,
    /// The same for its condition.
    pub(super) said: Mutex<Option<(Option<String>, Condition)>>,
}

/// What of a node matters here.
fn relevant(node: &Node, is_own: bool) -> impl PartialEq + use<> {
    let annotations = is_own.then(|| node.metadata.annotations.clone()).flatten();
    (Lease::of(node), pod_cidrs(node), annotations, is_own.then(|| Condition::of(node)))
}

impl Runner {
    pub(crate) fn new(
        config: OverlayConfig,
        client: kube::Client,
        nodes: Informer<Node>,
        kernel: Kernel,
        state: watch::Sender<Option<PodNetwork>>,
    ) -> Self {
        let kernel = Arc::new(kernel);
        let (changed, network) = (Arc::default(), watch::Sender::default());
        let (told, last, patched) = (Mutex::default(), Mutex::default(), Mutex::default());
        let said = Mutex::default();
        let inner =
            Inner { config, client, nodes, kernel, state, changed, network, told, last, patched, said };
        Self(Arc::new(inner))
    }

    /// The cluster's configuration, once it is known.
    pub(crate) fn network(&self) -> watch::Receiver<Option<NetworkConfig>> {
        self.0.network.subscribe()
    }

    /// To be called once.
    pub(crate) fn follow_nodes(&self) {
        let (changed, own) = (self.0.changed.clone(), self.0.config.node_name.clone());
        self.0.nodes.on_change(move |change: &Change<Node>| {
            let is_own = change.key().name == own;
            let side = |node: &Option<Arc<Node>>| node.as_deref().map(|node| relevant(node, is_own));
            // Nodes report their health all the time.
            if side(&change.old) != side(&change.new) {
                changed.notify_one();
            }
        });
    }

    /// Runs until it is dropped. May be started again after a panic.
    pub(crate) async fn run(self) {
        let this = &*self.0;
        this.nodes.synced().await;
        loop {
            // Before the configuration is read, so that a change which comes meanwhile is seen as one.
            let wanted = this.wanted();
            match this.network_config().await {
                Some(network) => this.keep(&network, wanted.as_deref()).await,
                None => this.stay_out(wanted.as_deref()).await,
            }
        }
    }
}

impl Inner {
    /// Keeps the network as it should be, until this node is told to read the configuration again.
    async fn keep(&self, network: &NetworkConfig, wanted: Option<&str>) {
        let this = self;
        if network.networks != this.config.network.networks {
            tracing::warn!(
                cluster = ?network.networks, own = ?this.config.network.networks,
                "ConfigMap {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME} names other pod networks than this node's \
                 configuration: pods are reached by the former, but Services take only the latter for pods"
            );
        }
        if network.networks.iter().any(|net| net.addr().is_ipv6())
            && let Err(error) = host::prepare_ipv6()
        {
            tracing::warn!(error = %Chain(&error), "pods' IPv6 packets may not be forwarded");
        }
        this.network.send_replace(Some(network.clone()));
        let mut failed = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let mut fought = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut last_repair: Option<Instant> = None;
        let mut watcher: Option<RtWatcher> = None;
        let mut by_kernel = false;
        loop {
            if watcher.is_none() {
                // Before the look at the kernel, so that nothing happens unseen in between.
                match RtWatcher::open() {
                    Ok(opened) => watcher = Some(opened),
                    Err(error) => tracing::warn!(%error, "changes of routes by others go unnoticed"),
                }
            }
            if this.wanted().as_deref() != wanted {
                return;
            }
            let mut outcome = this.pass(network).await;
            if outcome.lease.is_some()
                && !outcome.try_again
                && let Err(error) = this.acknowledge(wanted).await
            {
                tracing::warn!(error = %Chain(&error), "that this node has changed its pod network was not written");
                outcome.try_again = true;
            }
            if outcome.try_again {
                let delay = failed.next_delay();
                tracing::warn!(retry_in = ?delay, "the pod network is not complete");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = this.changed.notified() => {}
                }
                by_kernel = false;
                continue;
            }
            failed.reset();
            if by_kernel && outcome.changes > 0 && outcome.as_before {
                tracing::warn!(
                    repaired = outcome.changes,
                    "the pod network was changed by somebody else, it is repaired"
                );
                if last_repair.is_some_and(|last| last.elapsed() < QUIET) {
                    tokio::select! {
                        () = tokio::time::sleep(fought.next_delay()) => {}
                        // Kept for below, where it is waited for again.
                        () = this.changed.notified() => this.changed.notify_one(),
                    }
                } else {
                    fought.reset();
                }
                last_repair = Some(Instant::now());
            }
            let concerns = |event: &Event| this.concerns(event, network, &outcome);
            tokio::select! {
                () = this.changed.notified() => by_kernel = false,
                noticed = noticed(watcher.as_ref(), concerns) => {
                    by_kernel = true;
                    if let Err(error) = noticed {
                        tracing::warn!(%error, "notifications about routes failed, they are opened again");
                        watcher = None;
                    }
                }
            }
        }
    }
}

async fn noticed(watcher: Option<&RtWatcher>, concerns: impl Fn(&Event) -> bool) -> std::io::Result<()> {
    match watcher {
        Some(watcher) => watcher.until(concerns).await,
        None => std::future::pending().await,
    }
}

impl Inner {
    /// The cluster's configuration: the ConfigMap's, or ours when there is none; `None` when the pod network is
    /// somebody else's. flanneld, too, reads it once; Kedge's nodes read it again when their Node says so.
    async fn network_config(&self) -> Option<NetworkConfig> {
        let maps = kube::Api::<ConfigMap>::namespaced(self.client.clone(), CONFIG_MAP_NAMESPACE);
        let mut retry = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            match maps.get_opt(CONFIG_MAP_NAME).await {
                Ok(None) => break,
                Ok(Some(map)) if is_off(&map) => return None,
                Ok(Some(map)) => match NetworkConfig::from_config_map(&map) {
                    Ok(network) => return Some(network),
                    Err(error) => {
                        let problem = format!(
                            "{}; this node uses its own configuration, correct the ConfigMap {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP_NAME}",
                            Chain(&error)
                        );
                        tracing::error!(problem, "pod network");
                        break;
                    }
                },
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    tracing::debug!(
                        "this node may not read flannel's ConfigMap, it uses its own configuration"
                    );
                    break;
                }
                Err(error) => {
                    let delay = retry.next_delay();
                    tracing::debug!(error = %Chain(&error), retry_in = ?delay, "the pod network's configuration could not be read");
                    tokio::time::sleep(delay).await;
                }
            }
        }
        self.config.enabled.then(|| self.config.network.clone())
    }

    /// What the Node says that this node should have acted upon.
    pub(super) fn wanted(&self) -> Option<String> {
        let node = self.nodes.get("", &self.config.node_name)?;
        node.metadata.annotations.as_ref()?.get(super::WANTED).cloned()
    }

    /// Says that it has.
    pub(super) async fn acknowledge(&self, wanted: Option<&str>) -> Result<(), kube::Error> {
        let (Some(wanted), Some(node)) = (wanted, self.nodes.get("", &self.config.node_name)) else {
            return Ok(());
        };
        let applied = node.metadata.annotations.as_ref().and_then(|all| all.get(super::APPLIED));
        if applied.is_some_and(|applied| applied == wanted) {
            return Ok(());
        }
        let patch = json!({ "metadata": { "annotations": { super::APPLIED: wanted } } });
        let nodes = kube::Api::<Node>::all(self.client.clone());
        nodes.patch(&self.config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// One comparison of everything.
    async fn pass(&self, network: &NetworkConfig) -> Outcome {
        let Some(node) = self.nodes.get("", &self.config.node_name) else { return Outcome::default() };
        let subnets = pod_cidrs(&node);
        if subnets.is_empty() {
            return Outcome::default();
        }
        let desired = self.desired(network, &node, &subnets);
        let as_before = self.last.lock().replace(desired.clone()).as_ref() == Some(&desired);
        let kernel = self.kernel.clone();
        let done = tokio::task::spawn_blocking(move || kernel.reconcile(&desired)).await;
        let mut outcome = match done.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(outcome) => outcome,
            Err(error) => {
                let problems = vec![format!("the pod network's state could not be read: {error}")];
                Outcome { problems, try_again: true, ..Outcome::default() }
            }
        };
        outcome.as_before = as_before;
        if outcome.no_vxlan {
            outcome.problems.push(
                "this kernel cannot make VXLAN devices, so packets go to other nodes as they are (host-gw) and all \
                 nodes have to be in one network segment; to use VXLAN install the kernel's module vxlan (on Ubuntu \
                 for Raspberry Pi: apt install linux-modules-extra-raspi)"
                    .into(),
            );
        }
        if let Err(error) = self.write_cni(&subnets, &outcome) {
            outcome.problems.push(Chain(&error).to_string());
            outcome.try_again = true;
        }
        if let Err(error) = self.announce(&node, &outcome).await {
            outcome.problems.push(format!(
                "this node's pod network could not be announced to the other nodes: {}",
                Chain(&error)
            ));
            outcome.try_again = true;
        }
        if let Err(error) = self.say(&node, &outcome).await {
            outcome
                .problems
                .push(format!("the Node's condition NetworkUnavailable was not written: {}", Chain(&error)));
            outcome.try_again = true;
        }
        self.tell(&outcome.problems);
        self.publish(subnets, &outcome);
        outcome
    }

    fn desired(&self, network: &NetworkConfig, node: &Node, subnets: &[IpNet]) -> Desired {
        let vni = match &network.backend {
            Backend::Vxlan(vxlan) => vxlan.vni,
            Backend::HostGw => 0,
        };
        let uid = node.metadata.uid.as_deref().unwrap_or_default();
        let own = |subnet: &IpNet| {
            let is_ipv4 = subnet.addr().is_ipv4();
            let address = *self.config.node_ips.iter().find(|ip| ip.is_ipv4() == is_ipv4)?;
            let mac = Lease::announced_vtep(node, is_ipv4)
                .map_or_else(|| stable_mac(uid, &self.config.node_name, vni, is_ipv4), |vtep| vtep.mac);
            let announced = public_overwrite(node, is_ipv4).unwrap_or(address);
            Some(OwnShare { subnet: *subnet, address, announced, mac })
        };
        let lease = |node: &Arc<Node>| Some((node.metadata.name.clone()?, Lease::of(node)?));
        Desired {
            node: self.config.node_name.clone(),
            networks: network.networks.clone(),
            backend: network.backend.clone(),
            own: subnets.iter().filter_map(own).collect(),
            pod_cidrs: subnets.to_vec(),
            leases: self.nodes.list().iter().filter_map(lease).collect(),
            bridge: self.config.bridge.clone(),
        }
    }

    /// Pods of this node can run even while it cannot reach others.
    fn write_cni(&self, subnets: &[IpNet], outcome: &Outcome) -> Result<(), crate::Error> {
        let Some(files) = &self.config.cni else { return Ok(()) };
        let mtu = outcome.lease.is_some().then_some(outcome.mtu);
        host::write_cni_config_for(&files.dir, &self.config.bridge, subnets, mtu, &files.host_local_dir)
    }

    /// Only what is missing, and only on our own Node.
    async fn announce(&self, node: &Node, outcome: &Outcome) -> Result<(), kube::Error> {
        let Some(lease) = &outcome.lease else { return Ok(()) };
        let missing = lease.missing_annotations(node);
        let patched = Some((node.metadata.resource_version.clone(), missing.clone()));
        if missing.is_empty() || *self.patched.lock() == patched {
            return Ok(());
        }
        let nodes = kube::Api::<Node>::all(self.client.clone());
        let patch = json!({ "metadata": { "annotations": missing } });
        nodes.patch(&self.config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        *self.patched.lock() = patched;
        tracing::info!(backend = %lease.backend, mtu = outcome.mtu, "pod network announced");
        Ok(())
    }

    /// The condition by which the scheduler knows whether pods can be reached here.
    async fn say(&self, node: &Node, outcome: &Outcome) -> Result<(), kube::Error> {
        let wanted =
            Condition::wanted(outcome.lease.is_some(), self.nodes.list().len() > 1, &outcome.problems);
        let now = Condition::of(node);
        let said = Some((node.metadata.resource_version.clone(), wanted.clone()));
        if now.as_ref() == Some(&wanted) || *self.said.lock() == said {
            return Ok(());
        }
        let nodes = kube::Api::<Node>::all(self.client.clone());
        let moved = now.is_none_or(|now| now.status != wanted.status);
        let patch = json!({ "status": { "conditions": [wanted.patch(moved)] } });
        nodes.patch_status(&self.config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        *self.said.lock() = said;
        Ok(())
    }

    /// Each problem once, until it is gone.
    fn tell(&self, problems: &[String]) {
        let mut told = self.told.lock();
        told.retain(|problem| problems.contains(problem));
        for problem in problems {
            if told.insert(problem.clone()) {
                tracing::warn!(problem, "pod network");
            }
        }
    }

    fn publish(&self, pod_cidrs: Vec<IpNet>, outcome: &Outcome) {
        let state = PodNetwork {
            pod_cidrs,
            mtu: outcome.mtu,
            backend: outcome.lease.as_ref().map(|lease| lease.backend.clone()).unwrap_or_default(),
            routes: outcome.routes.clone(),
            problems: outcome.problems.clone(),
        };
        self.state.send_if_modified(|old| {
            let differs = old.as_ref() != Some(&state);
            *old = Some(state);
            differs
        });
    }

    /// Whether the kernel tells of something that is ours or that ours depends on.
    fn concerns(&self, event: &Event, network: &NetworkConfig, outcome: &Outcome) -> bool {
        let matters = |link: u32| outcome.devices.contains(&link) || outcome.uplinks.contains(&link);
        match event {
            Event::Lost => true,
            Event::Neighbour(link) => outcome.devices.contains(link),
            // Without an uplink our address may appear anywhere.
            Event::Address(link) => {
                matters(*link) || outcome.uplinks.is_empty() || outcome.bridge == Some(*link)
            }
            Event::Link(link) => {
                let is_device = |is_ipv4| match &network.backend {
                    Backend::Vxlan(vxlan) => link.name == device_name(vxlan.vni, is_ipv4),
                    Backend::HostGw => false,
                };
                matters(link.index) || link.name == self.config.bridge || is_device(true) || is_device(false)
            }
            Event::Route(route) => {
                route.protocol == ROUTE_PROTOCOL
                    || outcome.devices.contains(&route.link)
                    || outcome.routes.contains(&route.to)
                    // Whether a node is a neighbour follows from the routes of the uplink.
                    || outcome.uplinks.contains(&route.link)
            }
        }
    }
}

/// The same after every restart: others need not learn a new one. Locally administered, no multicast.
fn stable_mac(uid: &str, node: &str, vni: u32, is_ipv4: bool) -> Mac {
    let digest = Sha256::digest(format!("{uid}\0{node}\0{}", device_name(vni, is_ipv4)));
    let mut mac = [0; 6];
    mac.iter_mut().zip(digest.iter()).for_each(|(byte, digest)| *byte = *digest);
    mac[0] = mac[0] & 0xfe | 0x02;
    Mac(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_stable_and_different() {
        let mac = stable_mac("a", "node1", 1, true);
        assert_eq!(mac, stable_mac("a", "node1", 1, true));
        assert_ne!(mac, stable_mac("b", "node1", 1, true));
        assert_ne!(mac, stable_mac("a", "node1", 1, false));
        assert_eq!(mac.0[0] & 0x03, 0x02, "locally administered unicast");
    }
}
