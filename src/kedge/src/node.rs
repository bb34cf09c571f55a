//! The assembly of one node: what is started, in which order, and stopped in the reverse one.
//!
//! Components know each other only through a `kube::Client`. On a control-plane node it leads straight
//! into the API server of the same process; on a worker it leads over HTTPS.

pub(crate) mod authority;
pub(crate) mod backup;
mod book;
pub(crate) mod control_plane;
mod drain;
pub(crate) mod encryption;
pub(crate) mod facts;
pub(crate) mod first_start;
mod flannel;
mod image_folder;
mod in_step;
mod leading;
pub(crate) mod left;
mod manifest_folder;
pub(crate) mod ops;
pub(crate) mod shared;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Taint;
use kedge_apiserver::User;
use kedge_base::{Backoff, Tasks};
use kedge_client::Informers;
use kedge_client::failover::{self, Servers};
use kedge_cluster::{Admitted, Leaf, Members, NodeIdentity, Pki, Refusal, Renewal, Role};
use kedge_kubelet::{Registries, containerd};
use kedge_network::{Announcer, CniFiles, OverlayConfig};
use kedge_store::Store;
use tokio::task::JoinHandle;

use self::backup::Backups;
use self::control_plane::ControlPlane;
use self::drain::Progress;
use self::image_folder::ImageFolder;
use self::leading::{ClusterSigner, Leading};
use self::ops::Ops;
use crate::config::Config;
use crate::image_build;
use crate::node_status::Board;
use crate::preflight;

/// How long each part may take to stop; the line that names who is late comes earlier.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// A node that has no quorum at its start goes on without after this time: what can be read is served.
const QUORUM_PATIENCE: Duration = Duration::from_secs(10);

/// Why the node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Stopped,
    /// The machine has another address: everything that knows the old one is to be started again.
    Moved,
}

/// Start everything, say when the node is ready, and run until `tasks` are asked to stop.
///
/// # Errors
/// When a part cannot start; the error names it and the remedy.
pub(crate) async fn run(mut config: Config, tasks: Tasks, ready: impl FnOnce()) -> anyhow::Result<Ended> {
    let mut joined = Admitted::read(&config.pki_dir()).context("read what joining wrote")?;
    left::tidy(&config.data_dir)?;
    let passed = if joined.is_some() {
        left::forget(&config)?;
        Vec::new()
    } else {
        left::forget_changed(&config)?;
        left::pass_over(&mut config)?
    };
    let joins = joined.is_none() && first_start::joins(&config);
    let role = match &joined {
        Some(admitted) => admitted.facts.role,
        None if joins => config.role,
        None => Role::ControlPlane,
    };
    let board = Board::serve(&config, role, &tasks)?;
    for (setting, why) in passed {
        tracing::warn!(setting, "{why}");
        board.note(setting, Some(why));
    }
    if joins {
        match tasks.token().clone().run_until_cancelled(first_start::join(&config, &board)).await {
            Some(admitted) => joined = Some(admitted?),
            None => return Ok(Ended::Stopped),
        }
    }
    match &joined {
        Some(admitted) => shared::adopt(&mut config, &admitted.config)?,
        None => shared::check_networks(&config)?,
    }
    let config = config;
    let node_ips = addresses(&config)?;
    board.set_addresses(&node_ips, &config.virtual_addresses);
    let moved = follow_address(&config, &node_ips, &tasks);
    let pki = open_pki(&config, &node_ips, role)?;
    if joined.is_none() {
        shared::keep_networks(&config)?;
    }

    // containerd takes the longest to come up, so it starts first; nothing waits for it yet.
    let groups = Groups {
        runtime: tasks.child("runtime"),
        server: tasks.child("server"),
        components: tasks.child("components"),
        node: tasks.child("node"),
    };
    let (settings, supervisor) = (containerd_settings(&config)?, groups.runtime.clone());
    let containerd = groups
        .runtime
        .spawn("containerd start", async move { containerd::supervise(settings, &supervisor).await });

    let members = match &joined {
        Some(admitted) => Some(Arc::new(Members::new(pki.clone(), admitted.peers.clone())?)),
        None => None,
    };
    let control_plane = match role {
        Role::Worker => None,
        Role::ControlPlane => {
            crate::kubeconfig::write(&config)?;
            Some(control_plane::start(&config, &node_ips, &pki, joined.as_ref(), &groups.server).await?)
        }
    };
    if let Some(plane) = &control_plane {
        let (mut unreadable, token) = (plane.unreadable.clone(), tasks.token().clone());
        tasks.spawn_until_stopped("unreadable objects", async move {
            if unreadable.wait_for(Option::is_some).await.is_ok() {
                token.cancel();
            }
        });
    }
    let node = Node { config, role, node_ips, pki, joined, members, control_plane, board, groups };
    // Whoever is told to stop meanwhile waits for nothing any more.
    let start = node.start(containerd, &tasks, ready);
    let network = match tasks.token().clone().run_until_cancelled(start).await {
        Some(Err(error)) if !tasks.token().is_cancelled() => {
            // Of a node that was removed nothing can work; it waits to be told to leave.
            let Some(refusal) = node.refused().await else { return Err(error) };
            tracing::error!(%refusal, error = format!("{error:#}"), "this node is none of the cluster's any more");
            node.board.removed(&refusal.to_string());
            None
        }
        started => started.and_then(Result::ok),
    };
    tasks.token().cancelled().await;
    // In the reverse order of start; containers and containerd go on running.
    for (name, group) in [
        ("node", &node.groups.node),
        ("components", &node.groups.components),
        ("server", &node.groups.server),
        ("runtime", &node.groups.runtime),
    ] {
        let late = group.shutdown(STOP_LIMIT).await;
        if !late.is_empty() {
            tracing::warn!(part = name, tasks = late.join(", "), "did not stop in time");
        }
    }
    drop(network);
    if let Some(control_plane) = node.control_plane {
        control_plane.store().close().await.context("close the datastore")?;
        control_plane::check_readable(&control_plane.unreadable)?;
    }
    Ok(if moved.load(Relaxed) { Ended::Moved } else { Ended::Stopped })
}

/// The tasks of a node in the order in which they are started.
struct Groups {
    runtime: Tasks,
    server: Tasks,
    components: Tasks,
    node: Tasks,
}

/// What the parts of a node are made from.
struct Node {
    config: Config,
    role: Role,
    node_ips: Vec<IpAddr>,
    pki: Arc<Pki>,
    joined: Option<Admitted>,
    members: Option<Arc<Members>>,
    control_plane: Option<ControlPlane>,
    board: Board,
    groups: Groups,
}

impl Node {
    /// What the cluster says when it does not know this node (any more).
    async fn refused(&self) -> Option<Refusal> {
        match self.members.as_ref()?.standing().await {
            Err(kedge_cluster::Error::Refused(refusal @ (Refusal::Removed { .. } | Refusal::NotAMember))) => {
                Some(refusal)
            }
            _ => None,
        }
    }

    /// Starts what is not the control plane itself, until all of it is ready.
    async fn start(
        &self,
        containerd: JoinHandle<Result<(), kedge_kubelet::Error>>,
        tasks: &Tasks,
        ready: impl FnOnce(),
    ) -> anyhow::Result<kedge_network::Proxy> {
        let Self { config, role, node_ips, pki, joined, members, control_plane, board, groups } = self;
        let first_addons = first_start::addons(config, joined.is_some());
        if first_addons.is_some() {
            board.expect(first_start::ADDONS);
        }
        let announcer = kedge_network::start_announcer(node_ips.clone(), &groups.components);
        let (client, kubelet_client) = match control_plane {
            Some(control_plane) => {
                lead(config, node_ips[0], pki, control_plane, board, &announcer, &groups.components).await;
                let client_of =
                    |name| kedge_client::named(control_plane.server.local(User::component(name)), name);
                (client_of("kedge"), client_of("kubelet"))
            }
            None => {
                let client = worker_client(config, pki, joined.as_ref(), &groups.components)?;
                (client.clone(), client)
            }
        };
        if let (Some(members), Some(admitted)) = (members, joined) {
            let keep = standing(members.clone(), admitted.clone(), config.pki_dir(), board.clone());
            tasks.spawn_until_stopped("standing in the cluster", keep);
        }
        let informers = Informers::new(client.clone(), &groups.components);
        if let (Role::Worker, Some(members)) = (*role, members) {
            authority::follow_as_worker(
                pki.clone(),
                members.clone(),
                &config.node_name,
                &informers,
                &groups.components,
            );
        }
        let backups = control_plane.as_ref().map(|plane| {
            Arc::new(Backups {
                store: plane.store().clone(),
                pki: pki.clone(),
                pki_dir: config.pki_dir(),
                folder: config.snapshot_dir(),
                node: config.node_name.clone(),
                cluster: shared::settings_of(config, pki, joined.as_ref()),
                busy: tokio::sync::Mutex::default(),
            })
        });
        board.serve_operations(Ops {
            client: client.clone(),
            pki: pki.clone(),
            node_name: config.node_name.clone(),
            addresses: node_ips.clone(),
            cluster_port: config.cluster_port,
            control_plane: control_plane
                .as_ref()
                .map(|plane| (plane.registry.clone(), plane.store().clone())),
            members: members.clone(),
            backups: backups.clone(),
            authority: control_plane.as_ref().map(|plane| plane.authority.clone()),
            encryption: control_plane.as_ref().map(|plane| plane.encryption.clone()),
            config: config.clone(),
            progress: Progress::default(),
        });

        containerd.await.context("start containerd")?.context("start containerd")?;
        board.ready("containerd");
        let socket = config.containerd_socket();
        image_build::ensure(&socket, &config.image_work_dir()).await.context("import Kedge's images")?;
        let mut images = ImageFolder::new(config, board.clone());
        images.import_all().await;
        groups.node.spawn_until_stopped("image archives", images.follow());
        let registries = registries(config, board, &groups.node);

        let network = network(config, node_ips, client.clone(), &informers, board, &groups.node).await?;
        let reserved = [config.port, config.cluster_port, config.kubelet_port].into();
        kedge_network::follow_node(
            &announcer,
            &config.node_name,
            reserved,
            client.clone(),
            &informers,
            &groups.node,
        );
        board.ready("network");
        let kubelet = kedge_kubelet::start(
            kubelet_config(config, pki, node_ips.clone(), *role, registries)?,
            &informers.with_client(kubelet_client),
            &groups.node,
        )
        .await
        .context("start the kubelet")?;
        board.follow_node(&config.node_name, &informers, kubelet.status(), &groups.node);
        if *role == Role::ControlPlane {
            manifest_folder::start(config, &client, board, &groups.node);
        }
        if let Some(addons) = first_addons {
            let enable = first_start::enable(config.clone(), addons, client.clone(), board.clone());
            groups.node.spawn_until_stopped("addons of the first start", enable);
        }
        let renewal = match (*role, members) {
            (Role::Worker, Some(members)) => Renewal::worker(pki.clone(), members.clone(), client),
            _ => Renewal::control_plane(pki.clone()),
        };
        tasks.spawn_until_stopped("certificate renewal", renewal.run());
        board.all_ready(tasks).await;
        if !tasks.token().is_cancelled() {
            ready();
            tasks.spawn_until_stopped("memory of the start", crate::memory::trim_after_start());
            if let (Some(backups), Some(interval)) = (backups, config.snapshot_interval) {
                tasks.spawn_until_stopped("snapshots", backups.schedule(interval, config.snapshot_keep));
            }
        }

        Ok(network)
    }
}

/// Ends the node when the machine has another address than the one it announced, unless the user has named
/// one. Certificates, the Node and the records of the cluster are then made for the new one at the next
/// start; containers do not notice.
fn follow_address(config: &Config, node_ips: &[IpAddr], tasks: &Tasks) -> Arc<AtomicBool> {
    let moved = Arc::new(AtomicBool::new(false));
    for own in node_ips.iter().copied().filter(|address| !config.node_ips.contains(address)) {
        let (moved, token) = (moved.clone(), tasks.token().clone());
        tasks.spawn_until_stopped("address of this node", async move {
            match kedge_network::until_moved(own).await {
                Ok(new) => {
                    tracing::info!(%new, old = %own, "the address of this machine changed: starting again with the new one");
                    moved.store(true, Relaxed);
                    token.cancel();
                }
                Err(error) => {
                    tracing::warn!(error = %kedge_base::Chain(&error), "a new address will only be noticed at the next start");
                }
            }
        });
    }
    moved
}

/// Starts what follows the leadership, and waits a while for the first objects.
async fn lead(
    config: &Config,
    node_ip: IpAddr,
    pki: &Arc<Pki>,
    control_plane: &ControlPlane,
    board: &Board,
    announcer: &Announcer,
    tasks: &Tasks,
) {
    let store: &Store = control_plane.store();
    board.follow_store(store.clone());
    let parts = board.clone();
    control_plane.server.components(move |name| {
        parts.problem(if name == "controller-manager" { "controllers" } else { name })
    });
    let mut controllers = kedge_controllers::Config::new(pki.follow_ca_pem(), config.pod_cidrs.clone());
    controllers.virtual_addresses.clone_from(&config.virtual_addresses);
    let registry = control_plane.registry.clone();
    controllers.signer = Some(Arc::new(ClusterSigner { pki: pki.clone(), registry }));
    let leading = Leading {
        config: config.clone(),
        server: control_plane.server.clone(),
        controllers,
        board: board.clone(),
        registry: control_plane.registry.clone(),
        book_changes: control_plane.book_changes.clone(),
        own_address: node_ip,
        announcer: announcer.clone(),
    };
    tasks.spawn("leading", leading.follow(store.status(), tasks.clone()));
    match tokio::time::timeout(QUORUM_PATIENCE, control_plane.server.ready()).await {
        Ok(()) => board.ready("apiserver"),
        Err(_) => {
            tracing::warn!("the datastore takes no writes yet; this node goes on with what it can read");
            let (server, board) = (control_plane.server.clone(), board.clone());
            tasks.spawn_until_stopped("API server readiness", async move {
                server.ready().await;
                board.ready("apiserver");
            });
        }
    }
}

/// The addresses that this node announces, one of each IP family of the cluster, the default one first: those
/// of the configuration or those towards the network.
///
/// # Errors
/// When there is none of the first family.
pub(crate) fn addresses(config: &Config) -> anyhow::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for (index, network) in config.pod_cidrs.iter().enumerate() {
        let is_ipv4 = network.addr().is_ipv4();
        let chosen = config.node_ips.iter().find(|address| address.is_ipv4() == is_ipv4).copied();
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        let address = match chosen {
            Some(address) => Ok(address),
            None => kedge_network::default_address_of(is_ipv4),
        };
        match address {
            Ok(address) => found.push(address),
            Err(error) if index == 0 => {
                return Err(anyhow::Error::new(error).context(format!("find this node's {family} address")));
            }
            Err(error) => tracing::warn!(
                error = %kedge_base::Chain(&error),
                "this node has no {family} address, so other nodes do not reach its pods by {family}"
            ),
        }
    }
    Ok(found)
}

/// The cluster's and this node's keys; what is missing is made.
///
/// # Errors
/// When a file that cannot be made again is missing or damaged.
pub(crate) fn open_pki(config: &Config, node_ips: &[IpAddr], role: Role) -> anyhow::Result<Arc<Pki>> {
    let mut addresses = node_ips.to_vec();
    addresses.push(IpAddr::from([127, 0, 0, 1]));
    let bind_address = config.bind_address();
    if !bind_address.is_unspecified() && !addresses.contains(&bind_address) {
        addresses.push(bind_address);
    }
    let identity = NodeIdentity {
        name: config.node_name.clone(),
        addresses,
        service_addresses: [config.kubernetes_service(), config.virtual_addresses.clone()].concat(),
        cluster_domain: config.cluster_domain.clone(),
    };
    let pki = match role {
        Role::ControlPlane => Pki::open(&config.pki_dir(), &identity),
        Role::Worker => Pki::open_worker(&config.pki_dir(), &identity),
    };
    Ok(Arc::new(pki.context("open the cluster's keys")?))
}

/// A worker's way to the API servers, with the kubelet's identity: it knows all of them and keeps them on
/// the disk.
fn worker_client(
    config: &Config,
    pki: &Pki,
    joined: Option<&Admitted>,
    tasks: &Tasks,
) -> anyhow::Result<kube::Client> {
    let known: Vec<String> =
        joined.into_iter().flat_map(|admitted| &admitted.api_servers).map(ToString::to_string).collect();
    let servers = Servers::open(&config.node_name, Some(config.data_dir.join("api-servers.json")), &known)
        .context("run kedge leave --force and join again")?;
    let tls = pki.cluster_client_config(Some(Leaf::KubeletClient))?;
    let client = failover::client(&servers, tls, "kubelet", tasks);
    failover::follow(&servers, client.clone(), tasks);
    Ok(client)
}

/// Learns from the others who belongs to the control plane, and whether this node still does.
async fn standing(members: Arc<Members>, mut admitted: Admitted, pki_dir: PathBuf, board: Board) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        match members.standing().await {
            Ok(standing) => {
                board.belongs();
                admitted.peers.clear();
                admitted
                    .peers
                    .extend(standing.control_plane.into_iter().filter(|peer| peer.id != standing.node.id));
                admitted.api_servers = standing.api_servers;
                if let Err(error) = admitted.write(&pki_dir) {
                    tracing::warn!(error = %kedge_base::Chain(&error), "the control plane's addresses were not kept");
                }
                backoff.reset();
                // What it says holds until this node's Node object is gone.
                board.until_unregistered().await;
                continue;
            }
            Err(kedge_cluster::Error::Refused(refusal)) => {
                board.removed(&refusal.to_string());
                tracing::error!(%refusal, "the cluster does not know this node");
            }
            Err(error) => {
                tracing::debug!(error = %kedge_base::Chain(&error), "nobody says how this node stands");
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

fn containerd_settings(config: &Config) -> anyhow::Result<containerd::Settings> {
    let usual = ["/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd"];
    let binary = config
        .containerd
        .clone()
        .or_else(|| usual.iter().map(PathBuf::from).find(|path| path.is_file()))
        .context("containerd is missing; install the package containerd")?;
    Ok(containerd::Settings {
        binary,
        root: config.data_dir.join("containerd"),
        state: config.run_dir.join("containerd"),
        cni_bin_dir: cni_bin_dir(config),
        cni_conf_dir: config.cni_config_dir(),
        registry_dir: registry_dir(config),
        pause_image: image_build::pause_image(),
        stream_address: IpAddr::from([127, 0, 0, 1]),
    })
}

/// After a start that failed: see [`containerd::stop_own`].
///
/// # Errors
/// When it does not end.
pub(crate) async fn end_own_containerd(config: &Config) -> anyhow::Result<()> {
    let Ok(settings) = containerd_settings(config) else { return Ok(()) };
    containerd::stop_own(&settings).await.context("end containerd")
}

/// Where the network plugins are, or should be.
fn cni_bin_dir(config: &Config) -> PathBuf {
    let dirs = config.cni_bin_dirs();
    dirs.iter().find(|dir| dir.join("bridge").is_file()).or(dirs.first()).cloned().unwrap_or_default()
}

fn registry_dir(config: &Config) -> PathBuf {
    config.data_dir.join("registries")
}

/// Mirrors and logins; what is wrong with their file is told by `kedge status`.
fn registries(config: &Config, board: &Board, tasks: &Tasks) -> Registries {
    let registries = Registries::new(config.registries.clone(), config.mirrors.clone(), registry_dir(config));
    if let Err(error) = registries.refresh() {
        tracing::warn!(error = %kedge_base::Chain(&error), "mirrors and logins of registries are not used");
    }
    board.follow_registries(registries.clone());
    let (board, file, mut problem) =
        (board.clone(), config.registries.display().to_string(), registries.problem());
    tasks.spawn_until_stopped("registries' file", async move {
        loop {
            let now = problem.borrow_and_update().clone();
            board.note(&file, now);
            if problem.changed().await.is_err() {
                return;
            }
        }
    });
    registries
}

async fn network(
    config: &Config,
    node_ips: &[IpAddr],
    client: kube::Client,
    informers: &Informers,
    board: &Board,
    tasks: &Tasks,
) -> anyhow::Result<kedge_network::Proxy> {
    for warning in kedge_network::prepare_host().context("prepare the host's network")? {
        tracing::warn!(%warning, "host network");
    }
    let mut overlay = OverlayConfig::new(
        config.node_name.clone(),
        node_ips.to_vec(),
        config.pod_cidrs.clone(),
        &config.bridge_name,
    );
    // The control plane gives every node its part of the pods' range; pods wait for it.
    overlay.cni = Some(CniFiles {
        dir: config.cni_config_dir(),
        host_local_dir: config.cni_address_dir(),
        foreign_dir: config.cni_conf_dir.clone(),
    });
    overlay.enabled = config.own_pod_network;
    let overlay = kedge_network::start_overlay(overlay, client, informers, tasks)
        .await
        .context("start the pod network")?;
    let (board, mut state) = (board.clone(), overlay.watch());
    tasks.spawn_until_stopped("pod network's status", async move {
        while state.changed().await.is_ok() {
            let now = state.borrow_and_update().clone().unwrap_or_default();
            board.set_pod_network(&now.backend);
            board.note("pod network", (!now.problems.is_empty()).then(|| now.problems.join("; ")));
        }
    });
    let mut proxy = kedge_network::ProxyConfig::new(
        config.node_name.clone(),
        node_ips.to_vec(),
        config.pod_cidrs.clone(),
        config.service_cidrs.clone(),
    );
    proxy.table_name.clone_from(&config.table_name);
    let policies = kedge_network::PolicyConfig {
        node_name: config.node_name.clone(),
        table_name: config.table_name.clone(),
    };
    kedge_network::start_policies(&policies, informers, tasks).context("start the network policies")?;
    kedge_network::start_proxy(proxy, informers, tasks).await.context("start the service proxy")
}

fn kubelet_config(
    config: &Config,
    pki: &Pki,
    node_ips: Vec<IpAddr>,
    role: Role,
    registries: Registries,
) -> anyhow::Result<kedge_kubelet::Config> {
    Ok(kedge_kubelet::Config {
        node_name: config.node_name.clone(),
        labels: config.node_labels.clone(),
        node_ips,
        containerd_socket: config.containerd_socket(),
        root_dir: config.data_dir.join("kubelet"),
        log_dir: config.log_dir.join("pods"),
        cluster_dns: vec![config.cluster_dns],
        cluster_domain: config.cluster_domain.clone(),
        server_address: SocketAddr::new(config.bind_address(), config.kubelet_port),
        tls: kedge_kubelet::ServerTls { config: pki.cluster_server_config(Leaf::Kubelet)? },
        max_pods: 110,
        pause_image: image_build::pause_image(),
        registries,
        image_gc: config.image_gc,
        image_dir: config.data_dir.join("containerd"),
        eviction: config.eviction.clone(),
        allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
        cgroup_root: "kubepods".to_owned(),
        control_plane: role == Role::ControlPlane,
        register_taints: config
            .node_taints
            .iter()
            .map(|taint| Taint {
                key: taint.key.clone(),
                value: Some(taint.value.clone()).filter(|value| !value.is_empty()),
                effect: taint.effect.clone(),
                ..Taint::default()
            })
            .collect(),
        // Another pod network brings its own.
        network_plugins: if config.own_pod_network {
            let dir = cni_bin_dir(config);
            preflight::CNI_PLUGINS.iter().map(|plugin| dir.join(plugin)).collect()
        } else {
            Vec::new()
        },
        resolv_conf: kedge_network::dns::host_resolv_conf(),
    })
}
