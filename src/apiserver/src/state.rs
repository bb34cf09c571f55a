//! What every request can reach. It is made once at start and never global.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kedge_api::registry::{Registry, Resource};
use kedge_api::status::Status;
use kedge_base::Tasks;
use kedge_store::Store;
use tokio::sync::watch;

use crate::cache::{Cache, Derived};
use crate::sealing::Sealing;
use crate::token::Tokens;

/// How the API server is set up.
#[derive(Clone)]
pub struct Config {
    /// Where to listen for TLS connections.
    pub listen: SocketAddr,
    /// Serving certificate and optional verification of client certificates by the cluster CA.
    pub tls: Arc<rustls::ServerConfig>,
    /// How kubelets are reached: the cluster CA and the API server's client certificate.
    pub kubelet_client: Arc<rustls::ClientConfig>,
    /// The address that the `kubernetes` Service points to.
    pub advertise_address: IpAddr,
    /// `https://kubernetes.default.svc.cluster.local`
    pub issuer: String,
    /// PKCS#8 P-256 key in PEM.
    pub service_account_key: String,
    /// The cluster CA in PEM, published to front-proxy clients and in ConfigMaps; two while one takes the
    /// other's place.
    pub cluster_ca: watch::Receiver<String>,
    /// How aggregated API servers are told who asks; without it they see no client certificate.
    pub front_proxy: Option<FrontProxy>,
    /// First address and prefix length of the Services' range, e.g. `10.96.0.0/16`: one or, in a dual-stack
    /// cluster, one of each IP family. The first one's family is the default of Services.
    pub service_ranges: Vec<(IpAddr, u8)>,
    /// Node ports, both ends included.
    pub node_ports: (u16, u16),
    /// Events older than this are deleted, in seconds.
    pub event_ttl_seconds: u64,
    /// Encrypts and decrypts what is stored; the default does neither.
    pub sealing: Sealing,
}

/// The front proxy's identity towards aggregated API servers.
#[derive(Clone)]
pub struct FrontProxy {
    /// The client certificate that is shown to them.
    pub client: Arc<rustls::ClientConfig>,
    /// The front-proxy authority in PEM: what they check it against.
    pub ca: String,
}

/// How long a read waits for a revision of the future (apiserver cacher, `blockTimeout`).
const FRESH_WITHIN: Duration = Duration::from_secs(3);

pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) registry: Registries,
    pub(crate) cache: Arc<Cache>,
    pub(crate) store: Store,
    pub(crate) sealing: Sealing,
    pub(crate) tokens: Tokens,
    pub(crate) tasks: Tasks,
    /// The defaults of this version are in the store.
    pub(crate) bootstrapped: watch::Sender<bool>,
    pub(crate) rules: crate::authz::Rules,
    pub(crate) quota_turns: crate::admission::quota::Turns,
    pub(crate) inflight: crate::inflight::Limits,
    pub(crate) aggregation: crate::aggregation::Aggregation,
    pub(crate) policies: Derived<crate::admission::policy::Validating, 2>,
    pub(crate) mutating_policies: Derived<crate::admission::policy::Mutating, 2>,
    pub(crate) webhooks: Derived<crate::admission::webhook::Webhooks, 2>,
    pub(crate) default_priority: Derived<Option<crate::admission::pod::PriorityClass>, 1>,
    pub(crate) openapi: crate::openapi::Documents,
    /// Says of a kubelet's certificate, by its node's name and from when on it is valid, whether its node was taken
    /// off the cluster.
    pub(crate) departed: std::sync::OnceLock<Departed>,
    /// Says of the components beside this one how they are.
    pub(crate) components: std::sync::OnceLock<crate::components::Health>,
}

pub(crate) type Departed = Box<dyn Fn(&str, i64) -> bool + Send + Sync>;

/// What is served now: a value that is replaced as a whole when a definition changes, so that a
/// request never waits for one that changes it.
pub(crate) struct Registries(ArcSwap<Registry>);

impl Registries {
    pub(crate) fn new(registry: Registry) -> Self {
        Self(ArcSwap::from_pointee(registry))
    }

    /// The registry as it is now; what is made from it is out of date when this is another `Arc`.
    pub(crate) fn read(&self) -> Arc<Registry> {
        self.0.load_full()
    }

    pub(crate) fn replace(&self, registry: Registry) {
        self.0.store(Arc::new(registry));
    }
}

impl State {
    /// No roles are there yet by which requests could be authorised.
    pub(crate) fn is_new(&self) -> bool {
        !*self.bootstrapped.borrow() && self.cache.bucket("clusterroles.rbac.authorization.k8s.io").len() == 0
    }

    pub(crate) fn find(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Resource>> {
        self.registry.0.load().find(group, version, resource)
    }

    /// The revision that a fresh read is served from.
    pub(crate) async fn fresh_revision(&self) -> Result<u64, Status> {
        self.store.read_barrier().await.map_err(|error| unavailable(&error))
    }

    /// Waits for a revision that is not there yet. False: it is none of this store's, for nobody can have seen
    /// what was never acknowledged; so it is from before the store was restored to an older state.
    pub(crate) async fn reaches(&self, revision: u64) -> Result<bool, Status> {
        if self.cache.revision() >= revision || self.fresh_revision().await? >= revision {
            return Ok(true);
        }
        Ok(tokio::time::timeout(FRESH_WITHIN, self.cache.reached(revision)).await.is_ok())
    }
}

pub(crate) fn unavailable(error: &kedge_store::Error) -> Status {
    Status::service_unavailable(format!("the datastore does not answer: {}", kedge_base::Chain(error)))
}
