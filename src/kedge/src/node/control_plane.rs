//! The control plane of this node: the replicated store, the API server on it, and the cluster port that
//! other nodes reach both by.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::BodyExt as _;
use kedge_apiserver::{ApiServer, FrontProxy, Sealing, Unreadable};
use kedge_base::{Backoff, Tasks};
use kedge_cluster::{
    Admitted, ClusterConfig, ClusterFacts, Dialer, HostPort, Leaf, NodeFacts, NodeId, PeerIdentity, Pki,
    Registry, Replica, Role, Service, StoreService,
};
use kedge_store::{Bootstrap, Cluster, Connection, Dial, Dialing, Member, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::Service as _;
use tower::util::BoxCloneSyncService;

use super::authority::Authority;
use super::book::{Observers, StoreRecords};
use super::encryption::{self, Encryption};
use super::shared;
use crate::config::Config;
use crate::failure::Remedied;

/// Among the keys: the store was opened with them. It goes with the keys, so that joining and leaving begin
/// without it.
const STORE_MARK: &str = "store-opened";

/// Was the store opened with the keys that are in place? Then the cluster may count on what is in it.
pub(crate) fn store_was_opened(config: &Config) -> bool {
    config.pki_dir().join(STORE_MARK).exists()
}

/// The running control plane.
pub(crate) struct ControlPlane {
    pub(crate) server: ApiServer,
    pub(crate) registry: Registry,
    /// Counts the changes of the cluster's book.
    pub(crate) book_changes: watch::Receiver<u64>,
    pub(crate) encryption: Arc<Encryption>,
    pub(crate) authority: Arc<Authority>,
    /// What this node could not read of what is stored; it cannot go on then.
    pub(crate) unreadable: watch::Receiver<Option<Unreadable>>,
}

impl ControlPlane {
    pub(crate) fn store(&self) -> &Store {
        self.server.store()
    }
}

/// Opens the store, listens on both ports and starts to serve. Without a quorum this returns as well: what
/// can be read is served.
///
/// # Errors
/// When the store or a port cannot be opened.
pub(crate) async fn start(
    config: &Config,
    node_ips: &[IpAddr],
    pki: &Arc<Pki>,
    joined: Option<&Admitted>,
    tasks: &Tasks,
) -> anyhow::Result<ControlPlane> {
    store_is_there(config, joined.is_some())?;
    let node_ip = node_ips.first().copied().context("this node has no address")?;
    let sealing = encryption::sealing(&config.pki_dir())?;
    let server_config = server_config(config, pki, node_ip, sealing.clone())?;
    let prepared = ApiServer::prepare(server_config).await.context("start the API server")?;
    let address = SocketAddr::new(config.bind_address(), config.cluster_port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;

    let book = Arc::new(Replica::default());
    let changes = watch::Sender::new(0);
    let observers = Observers {
        api: prepared.observer(),
        book: book.clone(),
        changes: changes.clone(),
        sealing: sealing.clone(),
    };
    let store = Store::open(store_config(config, pki, joined)?, Arc::new(observers), tasks)
        .await
        .context("open the datastore")?;
    let unreadable = sealing.unreadable();
    check_readable(&unreadable)?;
    let mark = config.pki_dir().join(STORE_MARK);
    if !mark.exists() {
        kedge_base::write_atomic(&mark, b"", 0o600).with_context(|| format!("write {}", mark.display()))?;
    }
    let registry = Registry::new(Arc::new(StoreRecords { store: store.clone(), book }), pki.clock().clone());
    let facts = Facts {
        shared: shared::settings_of(config, pki, joined),
        registry: registry.clone(),
        port: config.port,
        own: HostPort { host: node_ip.to_string(), port: config.port },
    };
    let service = Arc::new(Service::new(pki.clone(), registry.clone(), Arc::new(facts)));
    kedge_cluster::serve(listener, service, Some(store_service(&store)), tasks)
        .context("serve the cluster port")?;
    let own = NodeFacts {
        name: config.node_name.clone(),
        role: Role::ControlPlane,
        address: HostPort { host: node_ip.to_string(), port: config.cluster_port },
        addresses: node_ips.to_vec(),
        failure_domain: config.failure_domain.clone(),
    };
    tasks.spawn_until_stopped("enrolment", enroll(store.clone(), registry.clone(), pki.node_id(), own));
    let server = prepared.start(store, tasks);
    let book = registry.clone();
    server.refuse_nodes(move |name, not_before| book.is_of_departed(name, not_before));
    let encryption =
        Encryption::new(pki.clone(), config.pki_dir(), registry.clone(), server.clone(), sealing)?;
    encryption.follow(changes.subscribe(), tasks);
    let authority = Authority::new(pki.clone(), registry.clone(), config.clone())?;
    authority.follow(changes.subscribe(), tasks);
    Ok(ControlPlane {
        server,
        registry,
        book_changes: changes.subscribe(),
        encryption,
        authority,
        unreadable,
    })
}

/// A node that cannot read all that is stored would show, and controllers would act on, less than there is.
///
/// # Errors
/// What cannot be read, and what to do about it.
pub(crate) fn check_readable(unreadable: &watch::Receiver<Option<Unreadable>>) -> anyhow::Result<()> {
    match &*unreadable.borrow() {
        None => Ok(()),
        Some(error) => Err(Remedied::new(error, encryption::remedy(error)).into()),
    }
}

/// A member that has forgotten what it confirmed could vote a second time and help to lose what was
/// acknowledged; and a single node does not begin anew by accident.
fn store_is_there(config: &Config, joined: bool) -> anyhow::Result<()> {
    let folder = config.store_dir();
    if !store_was_opened(config) || fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(());
    }
    let (folder, name) = (folder.display(), &config.node_name);
    let anew = format!(
        "take this node off its cluster (kedge remove-node {name} --force on another control-plane node) and join \
         again (kedge leave --force, then kedge join, here)"
    );
    if joined {
        anyhow::bail!(
            "the datastore's folder {folder} is gone or empty, and the cluster counts on what was in it: put it \
             back, or {anew}"
        );
    }
    anyhow::bail!(
        "the datastore's folder {folder} is gone or empty: put it back; or, where there are other control-plane \
         nodes, {anew}; or go back to a snapshot (kedge snapshot restore); or, to begin anew without any data, \
         remove {}",
        config.pki_dir().join(STORE_MARK).display()
    )
}

/// Writes down who and where this node is, as soon as the store takes writes: in the store's group and in
/// the cluster's book.
async fn enroll(store: Store, registry: Registry, id: NodeId, own: NodeFacts) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let announced =
            store.announce(&own.name, &own.address.to_string(), own.failure_domain.as_deref()).await;
        let done = match announced {
            Ok(()) => registry.enroll(id, &own).await.map(drop).map_err(|refusal| refusal.to_string()),
            Err(error) => Err(kedge_base::Chain(&error).to_string()),
        };
        match done {
            Ok(()) => return,
            Err(reason) => tracing::warn!(reason, "this node's record in the cluster is not written yet"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

fn store_config(
    config: &Config,
    pki: &Pki,
    joined: Option<&Admitted>,
) -> anyhow::Result<kedge_store::Config> {
    let mut store = kedge_store::Config::new(config.store_dir());
    store.node_id = pki.node_id().get();
    store.quota_bytes = config.store_quota;
    let mut cluster = Cluster::new(Arc::new(StoreDial(Dialer::new(pki)?)));
    if let Some(admitted) = joined {
        let peer = |peer: &kedge_cluster::Peer| Member {
            id: peer.id.get(),
            name: peer.name.clone(),
            address: peer.address.to_string(),
            failure_domain: peer.failure_domain.clone(),
        };
        cluster.bootstrap = Bootstrap::Join { peers: admitted.peers.iter().map(peer).collect() };
    }
    store.cluster = Some(cluster);
    Ok(store)
}

fn server_config(
    config: &Config,
    pki: &Pki,
    node_ip: IpAddr,
    sealing: Sealing,
) -> anyhow::Result<kedge_apiserver::Config> {
    Ok(kedge_apiserver::Config {
        listen: SocketAddr::new(config.bind_address(), config.port),
        tls: pki.cluster_server_config(Leaf::Apiserver)?,
        kubelet_client: pki.cluster_client_config(Some(Leaf::ApiserverKubeletClient))?,
        front_proxy: Some(FrontProxy {
            client: pki.cluster_client_config(Some(Leaf::FrontProxyClient))?,
            ca: pki.front_proxy_ca_pem().to_owned(),
        }),
        advertise_address: node_ip,
        issuer: format!("https://kubernetes.default.svc.{}", config.cluster_domain),
        service_account_key: pki.service_account_key_pem().to_owned(),
        cluster_ca: pki.follow_ca_pem(),
        service_ranges: config.service_cidrs.iter().map(|net| (net.network(), net.prefix_len())).collect(),
        node_ports: (30000, 32767),
        event_ttl_seconds: 3600,
        sealing,
    })
}

/// What a new node is told.
struct Facts {
    shared: ClusterConfig,
    registry: Registry,
    port: u16,
    own: HostPort,
}

impl ClusterFacts for Facts {
    fn config(&self) -> ClusterConfig {
        self.shared.clone()
    }

    fn api_servers(&self) -> Vec<HostPort> {
        let mut servers = vec![self.own.clone()];
        for peer in self.registry.control_plane() {
            let server = HostPort { host: peer.address.host, port: self.port };
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }
}

/// The store's connections are those of members.
struct StoreDial(Dialer);

impl Dial for StoreDial {
    fn dial(&self, member_id: u64, address: &str) -> Dialing {
        let (dialer, address) = (self.0.clone(), address.to_owned());
        Box::pin(async move {
            let stream = dialer.dial(NodeId::new(member_id), &address).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// The store's service on the cluster port: the member's certificate says who it is.
fn store_service(store: &Store) -> StoreService {
    let routes = store.service();
    BoxCloneSyncService::new(tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let mut routes = routes.clone();
        if let Some(peer) = request.extensions().get::<PeerIdentity>() {
            let peer = kedge_store::Peer { member_id: Some(peer.id.get()), name: Some(peer.name.clone()) };
            request.extensions_mut().insert(peer);
        }
        async move {
            let response = routes.call(request).await?;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
    }))
}
