//! The assembly of one node: what is started, in which order, and stopped in the reverse one.
//!
//! Components know each other only through a `kube::Client`. Here it leads straight into the API
//! server of the same process; on a worker it would lead over HTTPS.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kedge_apiserver::{ApiServer, User};
use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_cluster::{Leaf, NodeIdentity, Pki};
use kedge_kubelet::containerd;
use kedge_store::Store;
use tokio::sync::watch;

use crate::config::Config;
use crate::image_build;
use crate::node_status::Board;

/// How long each part may take to stop; the line that names who is late comes earlier.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Start everything, say when the node is ready, and run until `tasks` are asked to stop.
///
/// # Errors
/// When a part cannot start; the error names it and the remedy.
pub(crate) async fn run(config: Config, tasks: Tasks, ready: impl FnOnce()) -> anyhow::Result<()> {
    let board = Board::serve(&config, &tasks)?;
    let node_ip = match config.node_ip {
        Some(address) => address,
        None => kedge_network::default_address().context("find this node's address")?,
    };
    board.set_addresses(&[node_ip]);

    let pki = Pki::open(&config.pki_dir(), &identity(&config, node_ip)).context("open the cluster's keys")?;
    crate::commands::config::write(&config)?;

    // containerd takes the longest to come up, so it starts first; nothing waits for it yet.
    let runtime_tasks = tasks.child("runtime");
    let (settings, supervisor) = (containerd_settings(&config)?, runtime_tasks.clone());
    let containerd = runtime_tasks
        .spawn("containerd start", async move { containerd::supervise(settings, &supervisor).await });

    let server_tasks = tasks.child("server");
    let prepared =
        ApiServer::prepare(server_config(&config, &pki, node_ip)?).await.context("start the API server")?;
    let store = kedge_store::Config::new(config.data_dir.join("store"));
    let store = Store::open(store, prepared.observer(), &server_tasks).await.context("open the datastore")?;
    let server = prepared.start(store, &server_tasks);
    let addresses = watch::Sender::new(vec![node_ip]);
    server.lead(addresses.subscribe(), &server_tasks);
    server.ready().await;
    board.ready("apiserver");
    board.follow_store(server.store().clone());

    let client_of = |component: &str| kube_client(&server, component);
    let component_tasks = tasks.child("components");
    let informers = Informers::new(client_of("kedge"), &component_tasks);
    kedge_controllers::start(
        kedge_controllers::Config::new(pki.ca_pem().to_owned(), Some(config.pod_cidr)),
        &client_of("system:kube-controller-manager"),
        &informers,
        &component_tasks,
    )
    .context("start the controllers")?;
    board.ready("controllers");
    kedge_scheduler::start(kedge_scheduler::Config::default(), &informers, &component_tasks)
        .context("start the scheduler")?;
    board.ready("scheduler");

    containerd.await.context("start containerd")?.context("start containerd")?;
    board.ready("containerd");
    let socket = config.containerd_socket();
    image_build::ensure(&socket, &config.data_dir.join("images")).await.context("import Kedge's images")?;

    let node_tasks = tasks.child("node");
    let network = network(&config, node_ip, &informers, &node_tasks).await?;
    board.ready("network");
    kedge_kubelet::start(kubelet_config(&config, &pki, node_ip)?, &informers, &node_tasks)
        .await
        .context("start the kubelet")?;
    board.follow_node(&config.node_name, &informers);
    tasks.spawn_until_stopped("certificate renewal", renew(pki));
    board.all_ready(&tasks).await;
    if !tasks.token().is_cancelled() {
        ready();
        tasks.spawn_until_stopped("memory of the start", crate::memory::trim_after_start());
    }

    tasks.token().cancelled().await;
    // In the reverse order of start; containers and containerd go on running.
    for (name, group) in [
        ("node", &node_tasks),
        ("components", &component_tasks),
        ("server", &server_tasks),
        ("runtime", &runtime_tasks),
    ] {
        let late = group.shutdown(STOP_LIMIT).await;
        if !late.is_empty() {
            tracing::warn!(part = name, tasks = late.join(", "), "did not stop in time");
        }
    }
    drop(network);
    server.store().close().await.context("close the datastore")
}

fn identity(config: &Config, node_ip: IpAddr) -> NodeIdentity {
    let mut addresses = vec![node_ip, IpAddr::from([127, 0, 0, 1])];
    if !config.bind_address.is_unspecified() && !addresses.contains(&config.bind_address) {
        addresses.push(config.bind_address);
    }
    NodeIdentity {
        name: config.node_name.clone(),
        addresses,
        service_addresses: config.service_cidr.hosts().next().into_iter().collect(),
        cluster_domain: config.cluster_domain.clone(),
    }
}

fn server_config(config: &Config, pki: &Pki, node_ip: IpAddr) -> anyhow::Result<kedge_apiserver::Config> {
    Ok(kedge_apiserver::Config {
        listen: SocketAddr::new(config.bind_address, config.port),
        tls: pki.server_config(Leaf::Apiserver, Some(pki.ca_pem()))?,
        kubelet_client: pki.client_config(Some(Leaf::ApiserverKubeletClient), pki.ca_pem())?,
        advertise_address: node_ip,
        issuer: format!("https://kubernetes.default.svc.{}", config.cluster_domain),
        service_account_key: pki.service_account_key_pem().to_owned(),
        cluster_ca: pki.ca_pem().to_owned(),
        service_range: (config.service_cidr.network(), config.service_cidr.prefix_len()),
        node_ports: (30000, 32767),
        event_ttl_seconds: 3600,
    })
}

fn containerd_settings(config: &Config) -> anyhow::Result<containerd::Settings> {
    let usual = ["/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd"];
    let binary = config
        .containerd
        .clone()
        .or_else(|| usual.iter().map(PathBuf::from).find(|path| path.is_file()))
        .context("containerd is missing; install the package containerd")?;
    let plugins = config.cni_bin_dirs();
    let cni_bin_dir = plugins.iter().find(|dir| dir.join("bridge").is_file()).or(plugins.first());
    Ok(containerd::Settings {
        binary,
        root: config.data_dir.join("containerd"),
        state: config.run_dir.join("containerd"),
        cni_bin_dir: cni_bin_dir.cloned().unwrap_or_default(),
        cni_conf_dir: config.cni_config_dir(),
        registry_dir: config.data_dir.join("registries"),
        pause_image: image_build::pause_image(),
        stream_address: IpAddr::from([127, 0, 0, 1]),
    })
}

/// A client that calls the API server of this process: no socket, no TLS.
fn kube_client(server: &ApiServer, component: &str) -> kube::Client {
    kube::Client::new(server.local(User::component(component)), "default")
}

async fn network(
    config: &Config,
    node_ip: IpAddr,
    informers: &Informers,
    tasks: &Tasks,
) -> anyhow::Result<kedge_network::Proxy> {
    for warning in kedge_network::prepare_host().context("prepare the host's network")? {
        tracing::warn!(%warning, "host network");
    }
    let mut proxy = kedge_network::ProxyConfig::new(
        config.node_name.clone(),
        vec![node_ip],
        config.pod_cidr,
        config.service_cidr,
    );
    proxy.table_name.clone_from(&config.table_name);
    let proxy =
        kedge_network::start_proxy(proxy, informers, tasks).await.context("start the service proxy")?;
    // The control plane gives every node its part of the pods' range; pods wait for it.
    let node = informers.informer_with_fields::<Node>(&format!("metadata.name={}", config.node_name));
    let (dir, bridge, addresses) =
        (config.cni_config_dir(), config.bridge_name.clone(), config.cni_address_dir());
    node.on_change(move |change| {
        let range = change.new.as_ref().and_then(|node| node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok());
        let Some(range) = range else { return };
        if let Err(error) = kedge_network::write_cni_config(&dir, &bridge, range, None, &addresses) {
            tracing::error!(error = %kedge_base::Chain(&error), "the pod network's configuration was not written");
        }
    });
    Ok(proxy)
}

fn kubelet_config(config: &Config, pki: &Pki, node_ip: IpAddr) -> anyhow::Result<kedge_kubelet::Config> {
    Ok(kedge_kubelet::Config {
        node_name: config.node_name.clone(),
        labels: std::collections::BTreeMap::new(),
        node_ip,
        containerd_socket: config.containerd_socket(),
        root_dir: config.data_dir.join("kubelet"),
        log_dir: config.log_dir.join("pods"),
        cluster_dns: vec![config.cluster_dns],
        cluster_domain: config.cluster_domain.clone(),
        server_address: SocketAddr::new(config.bind_address, config.kubelet_port),
        tls: kedge_kubelet::ServerTls { config: pki.server_config(Leaf::Kubelet, Some(pki.ca_pem()))? },
        max_pods: 110,
        pause_image: image_build::pause_image(),
        cgroup_root: "kubepods".to_owned(),
        control_plane: true,
        register_taints: Vec::new(),
        resolv_conf: "/etc/resolv.conf".into(),
    })
}

/// Certificates renew themselves at two thirds of their life; listeners take the new ones at once.
async fn renew(pki: Pki) {
    loop {
        let wait = pki.next_renewal().duration_since(pki.clock().system_time()).unwrap_or(Duration::ZERO);
        // A day at most: the clock of a board may jump.
        tokio::time::sleep(wait.clamp(Duration::from_secs(60), Duration::from_secs(86_400))).await;
        match pki.renew() {
            Ok(renewed) if renewed.is_empty() => {}
            Ok(renewed) => tracing::info!(?renewed, "certificates renewed"),
            Err(error) => {
                tracing::warn!(error = %kedge_base::Chain(&error), "certificates not renewed, trying again");
            }
        }
    }
}
