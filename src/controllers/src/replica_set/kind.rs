//! One view of the two kinds that replicate pods.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kedge_client::Watched;
use serde::Serialize;

/// What the controller reads.
pub(super) struct View {
    pub(super) selector: LabelSelector,
    pub(super) replicas: i32,
    pub(super) min_ready_seconds: i32,
    pub(super) template: Option<PodTemplateSpec>,
    pub(super) generation: i64,
    /// Whether the kind's status has a field for pods that are being deleted.
    pub(super) counts_terminating: bool,
    pub(super) status: ReplicaSetStatus,
}

/// A kind that replicates pods.
pub(super) trait Replicated:
    Watched + kube::Resource<Scope = NamespaceResourceScope> + Serialize
{
    /// The controller's name in events.
    const COMPONENT: &'static str;
    fn view(&self) -> View;
    /// The object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";

    fn view(&self) -> View {
        let spec = self.spec.clone().unwrap_or_default();
        View {
            selector: spec.selector,
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template,
            generation: self.metadata.generation.unwrap_or(0),
            counts_terminating: true,
            status: self.status.clone().unwrap_or_default(),
        }
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";

    fn view(&self) -> View {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default().into_iter().map(|c| ReplicaSetCondition {
            type_: c.type_,
            status: c.status,
            reason: c.reason,
            message: c.message,
            last_transition_time: c.last_transition_time,
        });
        let conditions: Vec<_> = conditions.collect();
        View {
            selector: LabelSelector { match_labels: spec.selector, match_expressions: None },
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template,
            generation: self.metadata.generation.unwrap_or(0),
            counts_terminating: false,
            status: ReplicaSetStatus {
                replicas: status.replicas,
                fully_labeled_replicas: status.fully_labeled_replicas,
                ready_replicas: status.ready_replicas,
                available_replicas: status.available_replicas,
                observed_generation: status.observed_generation,
                terminating_replicas: None,
                conditions: (!conditions.is_empty()).then_some(conditions),
            },
        }
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let conditions = status.conditions.map(|conditions| {
            let each = conditions.into_iter().map(|c| ReplicationControllerCondition {
                type_: c.type_,
                status: c.status,
                reason: c.reason,
                message: c.message,
                last_transition_time: c.last_transition_time,
            });
            each.collect()
        });
        Self {
            status: Some(ReplicationControllerStatus {
                replicas: status.replicas,
                fully_labeled_replicas: status.fully_labeled_replicas,
                ready_replicas: status.ready_replicas,
                available_replicas: status.available_replicas,
                observed_generation: status.observed_generation,
                conditions,
            }),
            ..self.clone()
        }
    }
}
