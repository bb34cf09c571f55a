//! What plugins look up beside nodes and pods, answered from the shared informers.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kedge_client::{Informer, Informers};

use crate::framework::Lookup;
use crate::pod::PodInfo;
use crate::selector::Selector;

/// Lookups over informers.
pub(crate) struct Caches {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    budgets: Informer<PodDisruptionBudget>,
    services: Informer<Service>,
    controllers: Informer<ReplicationController>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
}

impl Caches {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.informer(),
            volumes: informers.informer(),
            classes: informers.informer(),
            budgets: informers.informer(),
            services: informers.informer(),
            controllers: informers.informer(),
            replica_sets: informers.informer(),
            stateful_sets: informers.informer(),
        }
    }

    /// Returns when every cache is filled.
    pub(crate) async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.budgets.synced().await;
        self.services.synced().await;
        self.controllers.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
    }
}

impl Lookup for Caches {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(namespace, name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get("", name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get("", name)
    }

    fn budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.list_namespace(namespace)
    }

    fn default_selector(&self, pod: &PodInfo) -> Option<Selector> {
        let mut result = Selector::everything();
        for service in self.services.list_namespace(pod.namespace()) {
            let Some(wanted) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else {
                continue;
            };
            let mut selector = Selector::everything();
            selector.require_labels(wanted);
            if !wanted.is_empty() && selector.matches(pod.labels()) {
                result.and(selector);
            }
        }
        let owners = pod.pod.metadata.owner_references.iter().flatten();
        if let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) {
            let (namespace, name) = (pod.namespace(), owner.name.as_str());
            match owner.kind.as_str() {
                "ReplicaSet" => {
                    if let Some(set) = self.replica_sets.get(namespace, name)
                        && let Some(spec) = &set.spec
                    {
                        result.and(Selector::new(Some(&spec.selector)));
                    }
                }
                "StatefulSet" => {
                    if let Some(set) = self.stateful_sets.get(namespace, name)
                        && let Some(spec) = &set.spec
                    {
                        result.and(Selector::new(Some(&spec.selector)));
                    }
                }
                "ReplicationController" => {
                    let controller = self.controllers.get(namespace, name);
                    let labels =
                        controller.and_then(|c| c.spec.as_ref().and_then(|spec| spec.selector.clone()));
                    if let Some(labels) = labels {
                        result.require_labels(&labels);
                    }
                }
                _ => {}
            }
        }
        (!result.is_empty()).then_some(result)
    }
}
