//! What every controller is given, and how it starts its workers.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use kedge_base::Tasks;
use kedge_client::{Change, Error, Informer, Informers, Queue, Recorder, Watched, run_controller};

use crate::Config;

/// Clones share everything.
#[derive(Clone)]
pub struct Context {
    /// For writes and for reads that must be fresh.
    pub client: kube::Client,
    /// For all other reads.
    pub informers: Informers,
    /// The cluster's settings.
    pub config: Arc<Config>,
    /// The owner of the controllers' tasks.
    pub tasks: Tasks,
}

impl Context {
    pub(crate) fn new(config: Config, client: kube::Client, informers: Informers, tasks: Tasks) -> Self {
        Self { client, informers, config: Arc::new(config), tasks }
    }

    /// A recorder whose events name `component` as their source.
    pub(crate) fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), &self.tasks, component, &self.config.host)
    }

    /// Hear of changes until the tasks stop. (The informer outlives us when another node takes
    /// the controllers over; a handler that only filled a queue nobody reads would be a leak.)
    pub(crate) fn on_change<K: Watched>(
        &self,
        informer: &Informer<K>,
        handler: impl Fn(&Change<K>) + Send + Sync + 'static,
    ) {
        let token = self.tasks.token().clone();
        informer.on_change(move |change| {
            if !token.is_cancelled() {
                handler(change);
            }
        });
    }

    /// Calls `handler` whenever the cluster's CA certificates are others.
    pub(crate) fn on_new_ca(&self, name: &'static str, handler: impl Fn() + Send + 'static) {
        let mut ca = self.config.cluster_ca_pem.clone();
        ca.mark_unchanged();
        self.tasks.spawn_until_stopped(name, async move {
            while ca.changed().await.is_ok() {
                handler();
            }
        });
    }

    /// Run a controller's workers once `synced` has ended.
    pub(crate) fn run<T, S, F, Fut>(
        &self,
        name: &'static str,
        queue: Queue<T>,
        workers: usize,
        synced: S,
        reconcile: F,
    ) where
        T: Clone + Eq + Hash + Display + Send + Sync + 'static,
        S: Future<Output = ()> + Send + 'static,
        F: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<Duration>, Error>> + Send + 'static,
    {
        let tasks = self.tasks.clone();
        self.tasks.spawn_until_stopped(name, async move {
            synced.await;
            run_controller(&tasks, name, queue, workers, reconcile);
        });
    }

    /// The API of a namespaced kind.
    pub(crate) fn api<K>(&self, namespace: &str) -> kube::Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        kube::Api::namespaced(self.client.clone(), namespace)
    }
}

/// The text that the API server gave for an error: what upstream puts into events and conditions.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether a create failed only because its namespace is being deleted.
pub(crate) fn namespace_is_terminating(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status
            .details
            .as_ref()
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")),
        _ => false,
    }
}

/// A missing object is as good as a deleted one.
pub(crate) fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if kedge_client::is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
