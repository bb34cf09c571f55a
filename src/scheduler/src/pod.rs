//! A pod as the scheduler sees it: everything that plugins ask for, worked out once when the pod
//! arrives. The API object stays reachable for the rare questions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint, Volume,
};

use crate::resources::{PodRequests, pod_requests, resized_spec};
use crate::selector::{Labels, Selector};

/// What selectors of other pods look at. Pods made from one template share it, so a match is
/// worked out once for all of them.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub namespace: String,
    pub labels: Labels,
}

/// Keeps identities unique.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    known: HashSet<Arc<Identity>>,
    /// Unused entries are looked for when the set has grown to this.
    sweep_at: usize,
}

impl Interner {
    pub(crate) fn intern(&mut self, namespace: &str, labels: Labels) -> Arc<Identity> {
        let identity = Identity { namespace: namespace.to_owned(), labels };
        if let Some(known) = self.known.get(&identity) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|identity| Arc::strong_count(identity) > 1);
            self.sweep_at = (self.known.len() * 2).max(256);
        }
        let identity = Arc::new(identity);
        self.known.insert(identity.clone());
        identity
    }
}

/// Remembers for the length of one calculation which identities matched.
#[derive(Debug, Default)]
pub(crate) struct Memo(Vec<(usize, bool)>);

impl Memo {
    pub(crate) fn get(&mut self, identity: &Arc<Identity>, decide: impl FnOnce(&Identity) -> bool) -> bool {
        let key = Arc::as_ptr(identity) as usize;
        if let Some((_, known)) = self.0.iter().find(|(address, _)| *address == key) {
            return *known;
        }
        let matched = decide(identity);
        if self.0.len() < 32 {
            self.0.push((key, matched));
        }
        matched
    }
}

/// A port on the node that a pod needs for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Two pods cannot share a port unless their addresses differ.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

/// A parsed term of pod affinity or anti-affinity.
#[derive(Clone, Debug)]
pub(crate) struct AffinityTerm {
    pub namespaces: Vec<String>,
    pub namespace_selector: Selector,
    pub selector: Selector,
    pub topology_key: String,
    /// 0 for required terms.
    pub weight: i64,
}

impl AffinityTerm {
    fn new(term: &PodAffinityTerm, weight: i64, namespace: &str, labels: &Labels) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        let mut selector = Selector::new(term.label_selector.as_ref());
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.require(key, value, true);
            }
        }
        for key in term.mismatch_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.require(key, value, false);
            }
        }
        Self {
            namespaces,
            namespace_selector: Selector::new(term.namespace_selector.as_ref()),
            selector,
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    /// Whether the term means the pod; `namespaces` holds the labels of every namespace.
    pub(crate) fn matches(&self, target: &Identity, namespaces: &HashMap<String, Labels>) -> bool {
        let in_namespace = self.namespaces.contains(&target.namespace)
            || match namespaces.get(&target.namespace) {
                Some(labels) => self.namespace_selector.matches(labels),
                None => self.namespace_selector.is_empty(),
            };
        in_namespace && self.selector.matches(&target.labels)
    }
}

/// The terms of a pod's affinity to other pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodTerms {
    pub required: Vec<AffinityTerm>,
    pub required_anti: Vec<AffinityTerm>,
    pub preferred: Vec<AffinityTerm>,
    pub preferred_anti: Vec<AffinityTerm>,
}

/// A pod with what was worked out about it.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub pod: Arc<Pod>,
    pub uid: String,
    pub name: String,
    pub identity: Arc<Identity>,
    pub priority: i32,
    /// A deletion is under way.
    pub terminating: bool,
    pub requests: PodRequests,
    pub ports: Vec<HostPort>,
    /// Image names in the form nodes report them.
    pub images: Vec<String>,
    pub containers: usize,
    pub terms: Option<Box<PodTerms>>,
    /// Claims of the pod: name, and whether it is an ephemeral volume's.
    pub claims: Vec<(String, bool)>,
}

impl PodInfo {
    pub(crate) fn new(pod: Arc<Pod>, interner: &mut Interner) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let identity = interner.intern(namespace, pod.metadata.labels.clone().unwrap_or_default());
        let terms =
            spec.affinity.as_ref().and_then(|affinity| pod_terms(affinity, namespace, &identity.labels));
        let volumes = spec.volumes.as_deref().unwrap_or_default();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            requests: pod_requests(resized_spec(&pod).as_ref().unwrap_or(spec)),
            ports: host_ports(spec),
            images: spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
                .filter_map(|container| container.image.as_deref())
                .map(normalized_image)
                .collect(),
            containers: spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len),
            terms: terms.map(Box::new),
            claims: volumes.iter().filter_map(|volume| claim(volume, &name)).collect(),
            name,
            identity,
            pod,
        }
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.identity.namespace
    }

    pub(crate) fn labels(&self) -> &Labels {
        &self.identity.labels
    }

    pub(crate) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
    }

    pub(crate) fn node_affinity(&self) -> Option<&NodeAffinity> {
        self.spec()?.affinity.as_ref()?.node_affinity.as_ref()
    }

    pub(crate) fn spread_constraints(&self) -> &[TopologySpreadConstraint] {
        self.spec().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default()
    }

    /// Whether it may displace others.
    pub(crate) fn may_preempt(&self) -> bool {
        self.spec().and_then(|spec| spec.preemption_policy.as_deref()) != Some("Never")
    }

    /// The node that an earlier preemption made room on.
    pub(crate) fn nominated_node(&self) -> Option<&str> {
        self.pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }
}

fn pod_terms(affinity: &Affinity, namespace: &str, labels: &Labels) -> Option<PodTerms> {
    if affinity.pod_affinity.is_none() && affinity.pod_anti_affinity.is_none() {
        return None;
    }
    let required = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<AffinityTerm> {
        terms.into_iter().flatten().map(|term| AffinityTerm::new(term, 0, namespace, labels)).collect()
    };
    let mut result = PodTerms::default();
    if let Some(affinity) = &affinity.pod_affinity {
        result.required = required(affinity.required_during_scheduling_ignored_during_execution.as_ref());
        for term in affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
            result.preferred.push(AffinityTerm::new(
                &term.pod_affinity_term,
                i64::from(term.weight),
                namespace,
                labels,
            ));
        }
    }
    if let Some(affinity) = &affinity.pod_anti_affinity {
        result.required_anti =
            required(affinity.required_during_scheduling_ignored_during_execution.as_ref());
        for term in affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
            result.preferred_anti.push(AffinityTerm::new(
                &term.pod_affinity_term,
                i64::from(term.weight),
                namespace,
                labels,
            ));
        }
    }
    Some(result)
}

/// Ports of containers and of restartable init containers.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for port in spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten())
    {
        if let Some(number) = port.host_port.filter(|number| *number > 0) {
            ports.push(HostPort {
                ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            });
        }
    }
    ports
}

/// Adds ":latest" when there is neither tag nor digest.
fn normalized_image(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || name.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}

fn claim(volume: &Volume, pod: &str) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref().map(|_| (format!("{pod}-{}", volume.name), true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn pods_of_one_template_share_their_identity() {
        let mut interner = Interner::default();
        let make = |interner: &mut Interner, name: &str| {
            PodInfo::new(Arc::new(testing::pod(name).label("app", "web").build()), interner)
        };
        let (a, b) = (make(&mut interner, "a"), make(&mut interner, "b"));
        assert!(Arc::ptr_eq(&a.identity, &b.identity));
        drop((a, b));
        interner.sweep_at = 0;
        interner.intern("ns", Labels::new());
        assert_eq!(interner.known.len(), 1);
    }

    #[test]
    fn images_get_a_tag() {
        for (given, expected) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("host:5000/nginx", "host:5000/nginx:latest"),
            ("nginx@sha256:00", "nginx@sha256:00"),
        ] {
            assert_eq!(normalized_image(given), expected);
        }
    }

    #[test]
    fn ports_conflict_on_overlapping_addresses() {
        let port =
            |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        for (a, b, expected) in [
            (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 80), true),
            (port("0.0.0.0", "TCP", 80), port("127.0.0.1", "TCP", 80), true),
            (port("127.0.0.1", "TCP", 80), port("127.0.0.2", "TCP", 80), false),
            (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "UDP", 80), false),
            (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 81), false),
        ] {
            assert_eq!(a.conflicts(&b), expected, "{a:?} {b:?}");
        }
    }
}
