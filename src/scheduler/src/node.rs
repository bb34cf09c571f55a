//! A node with the sums over its pods, kept up to date by additions and removals.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod::PodInfo;
use crate::resources::Resources;
use crate::selector::Labels;

/// A node and what runs on it, assumed pods included.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    pub name: String,
    /// `None` when pods name a node that is not there (yet, or any more).
    pub node: Option<Arc<Node>>,
    pub labels: Labels,
    pub allocatable: Resources,
    pub requested: Resources,
    /// With the minimum for containers that request nothing.
    pub scored: Resources,
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of `pods` have affinity or anti-affinity terms.
    pub with_terms: usize,
    /// How many of `pods` have required anti-affinity terms.
    pub with_anti_terms: usize,
    /// How many of `pods` use host ports.
    pub with_ports: usize,
    /// Bytes of each image that the node holds.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Takes over what the API server says about the node.
    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        let status = node.status.as_ref();
        self.allocatable = status
            .and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()))
            .map(Resources::from_list)
            .unwrap_or_default();
        self.images.clear();
        for image in status.iter().flat_map(|status| status.images.iter().flatten()) {
            for name in image.names.iter().flatten() {
                self.images.insert(name.clone(), image.size_bytes.unwrap_or(0));
            }
        }
        self.node = Some(node);
    }

    pub(crate) fn taints(&self) -> &[Taint] {
        self.node
            .as_ref()
            .and_then(|node| node.spec.as_ref())
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
    }

    pub(crate) fn unschedulable(&self) -> bool {
        self.node.as_ref().and_then(|node| node.spec.as_ref()).is_some_and(|s| s.unschedulable == Some(true))
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// Region and zone, for the order in which nodes are looked at.
    pub(crate) fn zone(&self) -> (String, String) {
        let label = |key: &str, old: &str| self.label(key).or(self.label(old)).unwrap_or_default().to_owned();
        (
            label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
            label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
        )
    }

    pub(crate) fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests.exact);
        self.scored.add(&pod.requests.scored);
        self.with_terms += usize::from(pod.terms.is_some());
        self.with_anti_terms += usize::from(has_anti_terms(&pod));
        self.with_ports += usize::from(!pod.ports.is_empty());
        self.pods.push(pod);
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let index = self.pods.iter().position(|pod| pod.uid == uid)?;
        let pod = self.pods.swap_remove(index);
        self.requested.subtract(&pod.requests.exact);
        self.scored.subtract(&pod.requests.scored);
        self.with_terms -= usize::from(pod.terms.is_some());
        self.with_anti_terms -= usize::from(has_anti_terms(&pod));
        self.with_ports -= usize::from(!pod.ports.is_empty());
        Some(pod)
    }
}

pub(crate) fn has_anti_terms(pod: &PodInfo) -> bool {
    pod.terms.as_ref().is_some_and(|terms| !terms.required_anti.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn sums_return_to_nothing() {
        let mut node = NodeInfo::named("n");
        let pods = [
            testing::pod("a").cpu("100m").host_port(80).info(),
            testing::pod("b").cpu("1").anti_affinity("app", "x", "zone").info(),
        ];
        for pod in &pods {
            node.add_pod(pod.clone());
        }
        assert_eq!((node.requested.milli_cpu, node.with_ports), (1100, 1));
        assert_eq!((node.with_terms, node.with_anti_terms), (1, 1));
        for pod in &pods {
            assert!(node.remove_pod(&pod.uid).is_some());
        }
        assert!(node.requested.is_zero() && node.scored.is_zero() && node.pods.is_empty());
        assert_eq!((node.with_ports, node.with_terms, node.with_anti_terms), (0, 0, 0));
        assert!(node.remove_pod("gone").is_none());
    }
}
