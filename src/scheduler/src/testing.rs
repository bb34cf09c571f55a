//! Builders of pods and nodes for unit tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerImage, ContainerPort, Node, NodeSpec, NodeStatus, PersistentVolume,
    PersistentVolumeClaim, Pod, PodAffinity, PodAffinityTerm, PodAntiAffinity, PodSpec, ResourceRequirements,
    Taint, WeightedPodAffinityTerm,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::cache::Cache;
use crate::framework::{Cluster, Lookup};
use crate::pod::{Interner, PodInfo};
use crate::selector::Selector;

pub(crate) struct PodBuilder(Pod);

pub(crate) fn pod(name: &str) -> PodBuilder {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some(format!("uid-{name}"));
    pod.spec = Some(PodSpec {
        containers: vec![Container { name: "c".into(), ..Container::default() }],
        ..PodSpec::default()
    });
    PodBuilder(pod)
}

fn term(key: &str, value: &str, topology: &str) -> PodAffinityTerm {
    PodAffinityTerm {
        label_selector: Some(LabelSelector {
            match_labels: Some([(key.to_owned(), value.to_owned())].into()),
            match_expressions: None,
        }),
        topology_key: topology.into(),
        ..PodAffinityTerm::default()
    }
}

impl PodBuilder {
    pub(crate) fn spec(mut self, change: impl FnOnce(&mut PodSpec)) -> Self {
        change(self.0.spec.as_mut().expect("a spec"));
        self
    }

    fn affinity(self, change: impl FnOnce(&mut Affinity)) -> Self {
        self.spec(|spec| change(spec.affinity.get_or_insert_with(Affinity::default)))
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_with(Default::default).insert(key.into(), value.into());
        self
    }

    pub(crate) fn priority(self, priority: i32) -> Self {
        self.spec(|spec| spec.priority = Some(priority))
    }

    pub(crate) fn request(self, name: &str, amount: &str) -> Self {
        self.spec(|spec| {
            let resources = spec.containers[0].resources.get_or_insert_with(ResourceRequirements::default);
            let requests = resources.requests.get_or_insert_with(Default::default);
            requests.insert(name.into(), Quantity(amount.into()));
        })
    }

    pub(crate) fn cpu(self, amount: &str) -> Self {
        self.request("cpu", amount)
    }

    pub(crate) fn host_port(self, port: i32) -> Self {
        self.spec(|spec| {
            spec.containers[0].ports.get_or_insert_with(Vec::new).push(ContainerPort {
                container_port: port,
                host_port: Some(port),
                ..ContainerPort::default()
            });
        })
    }

    pub(crate) fn image(self, image: &str) -> Self {
        self.spec(|spec| spec.containers[0].image = Some(image.into()))
    }

    pub(crate) fn require_affinity(self, key: &str, value: &str, topology: &str) -> Self {
        self.affinity(|affinity| {
            let affinity = affinity.pod_affinity.get_or_insert_with(PodAffinity::default);
            affinity.required_during_scheduling_ignored_during_execution =
                Some(vec![term(key, value, topology)]);
        })
    }

    pub(crate) fn anti_affinity(self, key: &str, value: &str, topology: &str) -> Self {
        self.affinity(|affinity| {
            let affinity = affinity.pod_anti_affinity.get_or_insert_with(PodAntiAffinity::default);
            affinity.required_during_scheduling_ignored_during_execution =
                Some(vec![term(key, value, topology)]);
        })
    }

    pub(crate) fn prefer_affinity(self, key: &str, value: &str, topology: &str, weight: i32) -> Self {
        self.affinity(|affinity| {
            let affinity = affinity.pod_affinity.get_or_insert_with(PodAffinity::default);
            affinity.preferred_during_scheduling_ignored_during_execution =
                Some(vec![WeightedPodAffinityTerm { pod_affinity_term: term(key, value, topology), weight }]);
        })
    }

    pub(crate) fn build(self) -> Pod {
        self.0
    }

    pub(crate) fn info(self) -> Arc<PodInfo> {
        Arc::new(PodInfo::new(Arc::new(self.0), &mut Interner::default()))
    }
}

pub(crate) struct NodeBuilder(Node);

/// A node with 4 cores, 8 GiB and room for 110 pods.
pub(crate) fn node(name: &str) -> NodeBuilder {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    node.metadata.labels = Some([("kubernetes.io/hostname".to_owned(), name.to_owned())].into());
    node.spec = Some(NodeSpec::default());
    node.status = Some(NodeStatus::default());
    NodeBuilder(node).allocatable("cpu", "4").allocatable("memory", "8Gi").allocatable("pods", "110")
}

impl NodeBuilder {
    pub(crate) fn allocatable(mut self, name: &str, amount: &str) -> Self {
        let status = self.0.status.get_or_insert_with(NodeStatus::default);
        status.allocatable.get_or_insert_with(Default::default).insert(name.into(), Quantity(amount.into()));
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_with(Default::default).insert(key.into(), value.into());
        self
    }

    pub(crate) fn taint(mut self, key: &str, value: &str, effect: &str) -> Self {
        let spec = self.0.spec.get_or_insert_with(NodeSpec::default);
        spec.taints.get_or_insert_with(Vec::new).push(Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            time_added: None,
        });
        self
    }

    pub(crate) fn unschedulable(mut self) -> Self {
        self.0.spec.get_or_insert_with(NodeSpec::default).unschedulable = Some(true);
        self
    }

    pub(crate) fn image(mut self, name: &str, size: i64) -> Self {
        let status = self.0.status.get_or_insert_with(NodeStatus::default);
        status
            .images
            .get_or_insert_with(Vec::new)
            .push(ContainerImage { names: Some(vec![name.into()]), size_bytes: Some(size) });
        self
    }

    pub(crate) fn build(self) -> Node {
        self.0
    }
}

/// Answers from plain lists.
#[derive(Default)]
pub(crate) struct Fixed {
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    pub selector: Option<Selector>,
}

impl Lookup for Fixed {
    fn claim(&self, _: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.iter().find(|claim| claim.metadata.name.as_deref() == Some(name)).cloned()
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name)).cloned()
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.clone()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.iter().find(|class| class.metadata.name.as_deref() == Some(name)).cloned()
    }

    fn budgets(&self, _: &str) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.clone()
    }

    fn default_selector(&self, _: &PodInfo) -> Option<Selector> {
        self.selector.clone()
    }
}

/// A small cluster.
#[derive(Default)]
pub(crate) struct World {
    pub cache: Cache,
    pub lookup: Fixed,
}

impl World {
    pub(crate) fn of(nodes: Vec<NodeBuilder>) -> Self {
        let mut world = Self::default();
        for node in nodes {
            world.cache.set_node(Arc::new(node.build()));
        }
        world.cache.refresh();
        world
    }

    pub(crate) fn run(&mut self, pod: PodBuilder, node: &str) {
        self.cache.set_pod(pod.info(), node);
    }

    pub(crate) fn cluster(&self) -> Cluster<'_> {
        Cluster { cache: &self.cache, lookup: &self.lookup }
    }
}
