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
mod components;
mod connect;
mod conversion;
mod crd;
mod discovery;
mod encode;
mod eviction;
mod expiry;
mod extract;
mod families;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod handler;
mod inflight;
mod links;
mod log_options;
mod openapi;
mod outbound;
mod protobuf;
mod proxy;
mod random;
mod request;
mod respond;
mod review;
mod rewrite;
mod sealing;
mod server;
mod state;
mod stream;
mod subresource;
mod token;
mod verbs;
mod yaml;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kedge_api::registry::Registry;
use kedge_base::Tasks;
use kedge_store::{Observer, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use admission::is_restricted_label;
pub use authn::User;
pub use rewrite::{Form, RewriteError};
pub use sealing::{KeyId, Sealing, Unreadable, Writing};
pub use server::LocalService;
pub use state::{Config, FrontProxy};

/// Why the API server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
}

/// An API server that listens at nothing yet: made before the store, whose observer it is.
pub struct Prepared {
    config: Config,
    registry: Registry,
    cache: Arc<cache::Cache>,
    tokens: token::Tokens,
    listener: TcpListener,
}

impl Prepared {
    /// What must be told of every change of the store, before its writer gets the acknowledgement.
    pub fn observer(&self) -> Arc<dyn Observer> {
        self.cache.clone()
    }

    /// Serve from what the store holds. The objects that every cluster has are written as soon as the store
    /// takes writes; see [`ApiServer::ready`].
    pub fn start(self, store: Store, tasks: &Tasks) -> ApiServer {
        let tasks = tasks.child("apiserver");
        let state = Arc::new(state::State {
            sealing: self.config.sealing.clone(),
            config: self.config,
            registry: state::Registries::new(self.registry),
            cache: self.cache,
            store,
            tokens: self.tokens,
            tasks: tasks.clone(),
            bootstrapped: watch::Sender::new(false),
            rules: authz::Rules::default(),
            quota_turns: admission::quota::Turns::default(),
            inflight: inflight::Limits::default(),
            aggregation: aggregation::Aggregation::default(),
            policies: cache::Derived::default(),
            mutating_policies: cache::Derived::default(),
            webhooks: cache::Derived::default(),
            default_priority: cache::Derived::default(),
            openapi: openapi::Documents::default(),
            departed: std::sync::OnceLock::new(),
            components: std::sync::OnceLock::new(),
        });
        server::listen(state.clone(), self.listener, &tasks);
        // What was defined before is served from the first request on.
        let mut installer = crd::Installer::new(state.clone(), &tasks);
        let starting = state.clone();
        tasks.spawn_until_stopped("first objects, custom resource definitions", async move {
            installer.sync().await;
            bootstrap::run_until_done(starting).await;
            installer.run().await;
        });
        tasks.spawn_until_stopped("aggregated APIs", aggregation::watch_availability(state.clone()));
        ApiServer(state)
    }
}

/// A running API server.
#[derive(Clone)]
pub struct ApiServer(Arc<state::State>);

impl ApiServer {
    /// Take the port and make the watch cache.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn prepare(mut config: Config) -> Result<Prepared, Error> {
        let registry = Registry::builtin();
        let mut paths: HashMap<Box<str>, extract::Paths> = HashMap::new();
        for resource in registry.iter().filter(|resource| resource.stored && !resource.converts()) {
            paths.insert(resource.storage_key.as_ref().into(), verbs::select::paths(resource));
        }
        let cache = Arc::new(cache::Cache::new(paths, config.sealing.clone()));
        let tokens =
            token::Tokens::new(config.issuer.clone(), &config.service_account_key).map_err(Error::Key)?;
        let address = config.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        // Port 0 asks for any free one.
        config.listen = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
        Ok(Prepared { config, registry, cache, tokens, listener })
    }

    /// Do what one API server of a cluster does for all of them, until `tasks` stop: delete old events, and
    /// tell pods where the API servers are, whenever `addresses` change.
    pub fn lead(&self, addresses: watch::Receiver<Vec<IpAddr>>, tasks: &Tasks) {
        tasks.spawn_until_stopped("event expiry", expiry::run(self.0.clone()));
        tasks.spawn_until_stopped("authorities", bootstrap::publish_authorities(self.0.clone()));
        tasks.spawn_until_stopped("API server addresses", bootstrap::publish(self.0.clone(), addresses));
    }

    /// Refuse from now on kubelets' certificates that `departed` says of, by their node's name and from when on they
    /// are valid (Unix seconds), that their node was taken off the cluster: they stay valid for months.
    pub fn refuse_nodes(&self, departed: impl Fn(&str, i64) -> bool + Send + Sync + 'static) {
        // There is one book of nodes; a second call would change nothing.
        let _ = self.0.departed.set(Box::new(departed));
    }

    /// How `scheduler` and `controller-manager` are, for `kubectl get componentstatuses`: the reason if one does
    /// not work.
    pub fn components(&self, health: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) {
        // There is one assembly; a second call would change nothing.
        let _ = self.0.components.set(Box::new(health));
    }

    /// Returns when the objects that every cluster has are there: `/readyz` says ok from then on.
    pub async fn ready(&self) {
        // The sender lives in the state, so the channel cannot close.
        let _ = self.0.bootstrapped.subscribe().wait_for(|done| *done).await;
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
