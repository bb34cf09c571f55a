//! The API server: one generic path for all kinds of objects, from the watch cache and the store.
//!
//! This crate owns HTTP (axum, hyper) and everything a client may send. It knows nothing of
//! controllers, scheduler or kubelet; it reaches kubelets as any client would, over HTTPS.

mod admission;
mod aggregation;
mod authn;
mod authz;
mod body;
mod bootstrap;
mod cache;
mod claims;
mod crd;
mod discovery;
mod encode;
mod eviction;
mod expiry;
mod extract;
mod handler;
mod inflight;
mod openapi;
mod outbound;
mod proxy;
mod random;
mod request;
mod respond;
mod review;
mod server;
mod state;
mod subresource;
mod token;
mod verbs;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use kedge_api::registry::Registry;
use kedge_api::status::Status;
use kedge_base::Tasks;
use kedge_store::Store;
use tokio::net::TcpListener;

pub use authn::User;
pub use server::LocalService;
pub use state::{Config, FrontProxy};

/// Why the API server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The datastore could not be opened.
    #[error("open the datastore")]
    Store(#[from] kedge_store::Error),
    /// Somebody else listens there, or the address is not ours.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The key file is damaged.
    #[error("read the ServiceAccount signing key: {0}")]
    Key(String),
    /// A built-in object could not be written.
    #[error("write the cluster's first objects")]
    Bootstrap(#[source] Status),
}

/// A running API server.
#[derive(Clone)]
pub struct ApiServer(Arc<state::State>);

impl ApiServer {
    /// Open the store, listen, and write the objects that every cluster has. When this returns, the
    /// server is ready.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(mut config: Config, store: kedge_store::Config, tasks: &Tasks) -> Result<Self, Error> {
        let registry = Registry::builtin();
        let mut paths: HashMap<Box<str>, extract::Paths> = HashMap::new();
        for resource in registry.iter().filter(|resource| resource.stored && !resource.converts()) {
            paths.insert(resource.storage_key.as_ref().into(), verbs::select::paths(resource));
        }
        let cache = Arc::new(cache::Cache::new(paths));
        let tokens =
            token::Tokens::new(config.issuer.clone(), &config.service_account_key).map_err(Error::Key)?;
        let address = config.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        // Port 0 asks for any free one.
        config.listen = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
        let tasks = tasks.child("apiserver");
        let store = Store::open(store, cache.clone(), &tasks).await?;
        let state = Arc::new(state::State {
            config,
            registry: state::Registries::new(registry),
            cache,
            store,
            tokens,
            tasks: tasks.clone(),
            bootstrapped: AtomicBool::new(false),
            rules: ArcSwap::from_pointee(([u64::MAX; 4], authz::rbac::RuleSet::default())),
            quota_turn: tokio::sync::Mutex::new(()),
            inflight: inflight::Limits::default(),
            aggregation: aggregation::Aggregation::default(),
            policies: ArcSwap::default(),
            webhooks: ArcSwap::default(),
            openapi: openapi::Documents::default(),
        });
        server::listen(state.clone(), listener, &tasks);
        // What was defined before is served from the first request on.
        let mut installer = crd::Installer::new(state.clone(), &tasks);
        installer.sync().await;
        bootstrap::run(&state).await.map_err(Error::Bootstrap)?;
        state.bootstrapped.store(true, Ordering::Release);
        tasks.spawn_until_stopped("custom resource definitions", installer.run());
        tasks.spawn_until_stopped("aggregated APIs", aggregation::watch_availability(state.clone()));
        tasks.spawn_until_stopped("event expiry", expiry::run(state.clone()));
        Ok(Self(state))
    }

    /// The way in for a component of this process.
    pub fn local(&self, user: User) -> LocalService {
        LocalService { state: self.0.clone(), user }
    }

    /// The datastore, for its figures and for closing it last.
    pub fn store(&self) -> &Store {
        &self.0.store
    }
}
