//! The cluster's DNS server, which `kedge dns` runs in a pod: names of Services, endpoints and pods by
//! the Kubernetes DNS specification 1.1.0, everything else by asking other servers.
//!
//! Three informers feed `records`, which publishes immutable snapshots; `zone` finds a name's records in
//! a snapshot; `forward` asks other servers and remembers what they say; hickory-server reads and writes
//! the packets, and `handler` stands between. Figures carry CoreDNS's names. hickory-server logs every
//! answer at level info: a program that uses this keeps `hickory_server` at warn unless asked.

mod ask;
mod cache;
mod forward;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod handler;
mod http;
mod metrics;
mod name;
mod records;
mod servers;
mod zone;

#[cfg(test)]
mod addon_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod test_upstream;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_base::Tasks;
use kedge_client::{Informer, Informers};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::Error;
pub use ask::ask;
use forward::{Forwarder, Source};
use handler::{Handler, Shared};
use metrics::Metrics;
use records::Index;
pub use servers::{StubDomain, host_resolv_conf, parse_server, parse_servers, parse_stub_domains};
use zone::Zone;

/// A TCP connection without a question is closed after this time.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that may wait for a slow reader, per connection.
const TCP_QUEUE: usize = 32;
/// How long questions under way may still take when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// What the server serves and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's domain.
    pub domain: String,
    /// Where questions are taken, by UDP and TCP. `[::]` takes IPv4 too.
    pub listen: Vec<SocketAddr>,
    /// `/health`: the process is alive. `None`: not served.
    pub health: Option<SocketAddr>,
    /// `/ready`: everything is known that there is to serve.
    pub ready: Option<SocketAddr>,
    /// `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// Servers for names outside the cluster. Empty: those of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    /// The first of these files that names a server which is no loopback address counts; it is looked
    /// at again while the server runs.
    pub resolv_conf: Vec<PathBuf>,
    /// Domains with servers of their own.
    pub stub_domains: Vec<StubDomain>,
    /// Time to live of the cluster's records, in seconds; of negative answers too.
    pub ttl: u32,
    /// How many answers of other servers are remembered.
    pub cache_entries: usize,
    /// How many questions to other servers may be under way.
    pub max_concurrent: usize,
    /// How long one of those servers may take before the next is asked. Two and a half times this long
    /// it is tried in all; the usual clients wait five seconds.
    pub timeout: Duration,
    /// How long the server goes on after it was told to stop, so that nobody is sent to it any more.
    pub lameduck: Duration,
    /// Namespace and name of the Service that this server is reached by; `ns.dns.DOMAIN` is its address.
    pub service: (String, String),
    /// What `ns.dns.DOMAIN` is while there is no such Service, usually the pod's addresses.
    pub addresses: Vec<IpAddr>,
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self {
            domain: "cluster.local".into(),
            listen: vec![any(53)],
            health: Some(any(8080)),
            ready: Some(any(8181)),
            metrics: Some(any(9153)),
            upstreams: Vec::new(),
            resolv_conf: servers::host_files().into(),
            stub_domains: Vec::new(),
            ttl: 5,
            cache_entries: 4096,
            max_concurrent: 1000,
            timeout: Duration::from_secs(2),
            lameduck: Duration::from_secs(5),
            service: ("kube-system".into(), "kube-dns".into()),
            addresses: Vec::new(),
        }
    }
}

/// A running server. It ends with [`Server::stop`], or at once with the tasks it was started in.
pub struct Server {
    shared: Arc<Shared>,
    state: Arc<State>,
    stop: CancellationToken,
    tasks: Tasks,
    lameduck: Duration,
    bound: Bound,
    /// `None` only in tests that fill the index themselves.
    sources: Option<Sources>,
}

#[derive(Clone)]
struct Sources {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Namespace>,
}

impl Sources {
    fn have_synced(&self) -> bool {
        self.services.has_synced() && self.slices.has_synced() && self.namespaces.has_synced()
    }
}

/// What the server is bound to; of interest when a port was given as 0.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// Where questions are taken by UDP.
    pub udp: Vec<SocketAddr>,
    /// Where questions are taken by TCP.
    pub tcp: Vec<SocketAddr>,
    /// `/health`.
    pub health: Option<SocketAddr>,
    /// `/ready`.
    pub ready: Option<SocketAddr>,
    /// `/metrics`.
    pub metrics: Option<SocketAddr>,
}

#[derive(Default)]
struct State {
    stopping: AtomicBool,
    /// The server has ended although nobody asked it to.
    failed: AtomicBool,
}

/// Start to serve. Names outside the cluster are resolved at once; names of the cluster when the
/// informers have synced, which [`Server::ready`] waits for.
///
/// # Errors
/// When the configuration is invalid, a file cannot be read or an address cannot be bound.
pub async fn serve(config: Config, informers: &Informers, tasks: &Tasks) -> Result<Server, Error> {
    let index = Arc::new(Index::default());
    let services = informers.informer::<Service>();
    let slices = informers.informer::<EndpointSlice>();
    let namespaces = informers.informer::<Namespace>();
    let known = index.clone();
    namespaces.on_change(move |change| {
        if let Some(name) = &change.object().metadata.name {
            if change.new.is_some() { known.set_namespace(name) } else { known.remove_namespace(name) }
        }
    });
    let known = index.clone();
    services.on_change(move |change| match &change.new {
        Some(service) => known.set_service(service),
        None => known.remove_service(change.object()),
    });
    let known = index.clone();
    slices.on_change(move |change| match &change.new {
        Some(slice) => known.set_slice(slice),
        None => known.remove_slice(change.object()),
    });
    let sources = Sources { services, slices, namespaces };
    let known = sources.clone();
    let mut server = serve_index(config, index, Box::new(move || known.have_synced()), tasks).await?;
    server.sources = Some(sources);
    Ok(server)
}

async fn serve_index(
    config: Config,
    index: Arc<Index>,
    synced: handler::Synced,
    tasks: &Tasks,
) -> Result<Server, Error> {
    let zone = Zone::new(&config.domain, config.ttl, config.service, config.addresses)?;
    let source = if config.upstreams.is_empty() {
        Source::Files(config.resolv_conf)
    } else {
        Source::Given(config.upstreams)
    };
    let forwarder = Forwarder::new(
        source,
        &config.stub_domains,
        config.cache_entries,
        config.max_concurrent,
        config.timeout,
    )?;
    let port = config.listen.first().map_or(53, SocketAddr::port);
    let shared = Arc::new(Shared {
        zone,
        index,
        forwarder,
        metrics: Metrics::new(port),
        synced,
        active: Default::default(),
        turn: Default::default(),
    });
    let tasks = tasks.child("dns");
    let state = Arc::new(State::default());

    let mut bound = Bound::default();
    let mut server = hickory_server::Server::new(Handler(shared.clone()));
    for address in config.listen {
        let socket = bind_udp(address).await.map_err(|source| cannot_bind("UDP", address, source))?;
        let listener = http::bind(address).await.map_err(|source| cannot_bind("TCP", address, source))?;
        bound.udp.extend(socket.local_addr());
        bound.tcp.extend(listener.local_addr());
        server.register_socket(socket);
        server.register_listener(listener, TCP_IDLE, TCP_QUEUE);
    }
    let (seen, counted) = (shared.clone(), shared.clone());
    let (alive, ready) = (state.clone(), state.clone());
    let pages: [(_, _, http::Page, &mut _); 3] = [
        (config.health, "/health", Arc::new(move || alive.health()), &mut bound.health),
        (config.ready, "/ready", Arc::new(move || ready.ready(&seen)), &mut bound.ready),
        (
            config.metrics,
            "/metrics",
            Arc::new(move || (StatusCode::OK, counted.metrics.render(&counted.forwarder))),
            &mut bound.metrics,
        ),
    ];
    for (address, path, page, local) in pages {
        let Some(address) = address else { continue };
        let listener = http::bind(address).await.map_err(|source| cannot_bind("TCP", address, source))?;
        *local = listener.local_addr().ok();
        http::serve(listener, path, page, &tasks);
    }

    let stop = server.shutdown_token().clone();
    let (end, failed, asked) = (tasks.token().clone(), state.clone(), stop.clone());
    tasks.spawn("server", async move {
        let ended = tokio::select! {
            ended = server.block_until_done() => ended,
            () = end.cancelled() => server.shutdown_gracefully().await,
        };
        if let Err(error) = ended
            && !asked.is_cancelled()
        {
            failed.failed.store(true, Ordering::Release);
            tracing::error!(%error, "the DNS server has ended; /health says so, for the pod to be restarted");
        }
    });
    let upstreams: Vec<_> = shared.forwarder.servers().iter().map(|server| server.address).collect();
    tracing::info!(udp = ?bound.udp, tcp = ?bound.tcp, domain = %config.domain, ?upstreams, "DNS server started");
    Ok(Server { shared, state, stop, tasks, lameduck: config.lameduck, bound, sources: None })
}

impl State {
    fn health(&self) -> (StatusCode, String) {
        if self.failed.load(Ordering::Acquire) {
            return (StatusCode::SERVICE_UNAVAILABLE, "the server has ended".into());
        }
        (StatusCode::OK, "OK".into())
    }

    fn ready(&self, shared: &Shared) -> (StatusCode, String) {
        if self.stopping.load(Ordering::Acquire) {
            return (StatusCode::SERVICE_UNAVAILABLE, "stopping".into());
        }
        // CoreDNS lists the parts that are not ready.
        if !(shared.synced)() {
            return (StatusCode::SERVICE_UNAVAILABLE, "kubernetes".into());
        }
        (StatusCode::OK, "OK".into())
    }
}

impl Server {
    /// What the server is bound to.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Whether everything is known that there is to serve.
    pub fn is_ready(&self) -> bool {
        (self.shared.synced)()
    }

    /// Returns when everything is known that there is to serve.
    pub async fn ready(&self) {
        if let Some(sources) = &self.sources {
            sources.services.synced().await;
            sources.slices.synced().await;
            sources.namespaces.synced().await;
        }
    }

    /// Stop in good order: not ready any more, then answering for the time of `lameduck` those who have
    /// not noticed yet, then finishing what is under way.
    pub async fn stop(&self) {
        self.state.stopping.store(true, Ordering::Release);
        tracing::info!(lameduck = ?self.lameduck, "DNS server stops");
        let _ = self.tasks.token().run_until_cancelled(tokio::time::sleep(self.lameduck)).await;
        let begun = tokio::time::Instant::now();
        while self.shared.active.load(Ordering::Acquire) > 0 && begun.elapsed() < DRAIN {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stop.cancel();
        for task in self.tasks.shutdown(DRAIN).await {
            tracing::warn!(task, "still running at the end");
        }
    }
}

async fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    match UdpSocket::bind(address).await {
        Err(error) => match without_ipv6(address, &error) {
            Some(address) => UdpSocket::bind(address).await,
            None => Err(error),
        },
        bound => bound,
    }
}

/// `0.0.0.0` in place of `[::]` on a machine without IPv6.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    use nix::errno::Errno;
    let no_ipv6 = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].map(|errno| Some(errno as i32));
    (address.ip() == Ipv6Addr::UNSPECIFIED && no_ipv6.contains(&error.raw_os_error()))
        .then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

fn cannot_bind(protocol: &'static str, address: SocketAddr, source: io::Error) -> Error {
    let remedy = match source.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there, stop it or choose another address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need the capability CAP_NET_BIND_SERVICE",
        _ => "",
    };
    Error::Bind { address, protocol, remedy, source }
}
