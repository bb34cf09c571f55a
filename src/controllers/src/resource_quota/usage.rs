//! What objects use of a quota (upstream pkg/quota/v1/evaluator/core and apiserver `quota/v1`). Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodSpec, ResourceQuotaSpec, ScopedResourceSelectorRequirement,
    Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kedge_api::quantity::{Format, Quantity};

use crate::{pods, time};

/// By resource's name.
pub(super) type Amounts = BTreeMap<String, Quantity>;

fn one() -> Quantity {
    Quantity::from_units(1, Format::DecimalSi)
}

fn units(count: usize) -> Quantity {
    Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi)
}

fn parse(text: &Text) -> Quantity {
    text.0.parse().unwrap_or(Quantity::ZERO)
}

fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    list.into_iter().flatten().map(|(name, text)| (name.clone(), parse(text))).collect()
}

/// Add `other` to `sum`.
pub(super) fn add(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = sum.entry(name.clone()).or_insert(Quantity::ZERO);
        *entry = *entry + *amount;
    }
}

fn raise(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = most.entry(name.clone()).or_insert(*amount);
        *entry = (*entry).max(*amount);
    }
}

/// What a pod asks for together: containers and sidecars at the same time, or the largest of the
/// steps before (component-helpers `resource.PodRequests`).
fn of_pod(spec: &PodSpec, limits: bool) -> Amounts {
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        amounts(resources.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() }))
    };
    let mut sum = Amounts::new();
    for container in &spec.containers {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &of(container));
            raise(&mut most, &sidecars.clone());
        } else {
            let mut step = of(container);
            add(&mut step, &sidecars);
            raise(&mut most, &step);
        }
    }
    add(&mut sum, &sidecars);
    raise(&mut sum, &most);
    let whole = spec.resources.as_ref();
    sum.extend(amounts(whole.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() })));
    let overhead = amounts(spec.overhead.as_ref());
    for (name, amount) in overhead {
        // Overhead alone is no limit.
        if !limits || sum.contains_key(&name) {
            let entry = sum.entry(name).or_insert(Quantity::ZERO);
            *entry = *entry + amount;
        }
    }
    sum
}

/// A pod that has ended, or should have by now, uses nothing but its name.
fn is_live(pod: &Pod, now: Timestamp) -> bool {
    let overdue = pod.metadata.deletion_timestamp.as_ref().is_some_and(|at| {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        time::plus(at.0, grace) < now
    });
    !pods::is_finished(pod) && !overdue
}

pub(super) fn pod(pod: &Pod, now: Timestamp) -> Amounts {
    let mut used = Amounts::from([("count/pods".to_owned(), one())]);
    let Some(spec) = pod.spec.as_ref().filter(|_| is_live(pod, now)) else { return used };
    used.insert("pods".into(), one());
    for (name, amount) in of_pod(spec, false) {
        let plain =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        used.insert(format!("requests.{name}"), amount);
        if plain {
            used.insert(name, amount);
        }
    }
    for (name, amount) in of_pod(spec, true) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), amount);
        }
    }
    used
}

pub(super) fn service(service: &Service) -> Amounts {
    let mut used = Amounts::from([("count/services".to_owned(), one()), ("services".to_owned(), one())]);
    let Some(spec) = &service.spec else { return used };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let node_ports = match spec.type_.as_deref() {
        Some("NodePort") => ports.len(),
        Some("LoadBalancer") => {
            used.insert("services.loadbalancers".into(), one());
            if spec.allocate_load_balancer_node_ports == Some(false) {
                ports.iter().filter(|port| port.node_port.is_some_and(|port| port != 0)).count()
            } else {
                ports.len()
            }
        }
        _ => 0,
    };
    used.insert("services.nodeports".into(), units(node_ports));
    used
}

pub(super) fn claim(claim: &PersistentVolumeClaim) -> Amounts {
    let mut used = Amounts::from([
        ("count/persistentvolumeclaims".to_owned(), one()),
        ("persistentvolumeclaims".to_owned(), one()),
    ]);
    let Some(spec) = &claim.spec else { return used };
    let legacy =
        claim.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let class = legacy.or(spec.storage_class_name.as_ref()).filter(|class| !class.is_empty());
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let asked = requests.and_then(|requests| requests.get("storage")).map(parse);
    // While a claim shrinks back from a failed resize, what is allocated counts.
    let allocated = claim
        .status
        .as_ref()
        .and_then(|status| status.allocated_resources.as_ref()?.get("storage"))
        .map(parse);
    let storage = asked.max(allocated);
    let mut put = |prefix: &str| {
        if !prefix.is_empty() {
            used.insert(format!("{prefix}persistentvolumeclaims"), one());
        }
        if let Some(storage) = storage {
            used.insert(format!("{prefix}requests.storage"), storage);
        }
    };
    put("");
    if let Some(class) = class {
        put(&format!("{class}.storageclass.storage.k8s.io/"));
    }
    used
}

/// `(group, plural)` of a resource that only counts objects.
pub(super) fn counted(name: &str) -> Option<(&str, &str)> {
    if let Some(resource) = name.strip_prefix("count/") {
        return Some(resource.split_once('.').map_or(("", resource), |(plural, group)| (group, plural)));
    }
    matches!(name, "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas")
        .then_some(("", name))
}

fn is_best_effort(spec: &PodSpec) -> bool {
    let names = |amounts: Amounts| {
        amounts.iter().any(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero())
    };
    let asks = |container: &Container| {
        let resources = container.resources.as_ref();
        names(amounts(resources.and_then(|r| r.requests.as_ref())))
            || names(amounts(resources.and_then(|r| r.limits.as_ref())))
    };
    let whole = spec.resources.as_ref();
    !(spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(asks)
        || names(amounts(whole.and_then(|r| r.requests.as_ref())))
        || names(amounts(whole.and_then(|r| r.limits.as_ref()))))
}

fn crosses_namespaces(spec: &PodSpec) -> bool {
    let Some(affinity) = &spec.affinity else { return false };
    let near = affinity.pod_affinity.as_ref();
    let far = affinity.pod_anti_affinity.as_ref();
    let required = [
        near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
    ];
    let preferred = [
        near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
        far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
    ];
    required
        .into_iter()
        .flatten()
        .flatten()
        .chain(preferred.into_iter().flatten().flatten().map(|weighted| &weighted.pod_affinity_term))
        .any(|term| {
            term.namespaces.as_ref().is_some_and(|list| !list.is_empty()) || term.namespace_selector.is_some()
        })
}

fn scope_holds(scope: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let values = scope.values.as_deref().unwrap_or_default();
    match scope.scope_name.as_str() {
        "Terminating" => spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0),
        "NotTerminating" => spec.active_deadline_seconds.is_none_or(|seconds| seconds < 0),
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        "PriorityClass" => {
            let class = spec.priority_class_name.as_ref().filter(|class| !class.is_empty());
            match scope.operator.as_str() {
                "Exists" => class.is_some(),
                "DoesNotExist" => class.is_none(),
                "In" => class.is_some_and(|class| values.contains(class)),
                "NotIn" => class.is_none_or(|class| !values.contains(class)),
                _ => false,
            }
        }
        _ => false,
    }
}

/// The scopes a pod must have; other kinds have none.
pub(super) fn scopes(spec: &ResourceQuotaSpec) -> Vec<ScopedResourceSelectorRequirement> {
    let named = spec.scopes.iter().flatten().map(|name| ScopedResourceSelectorRequirement {
        scope_name: name.clone(),
        operator: "Exists".into(),
        values: None,
    });
    let selected = spec
        .scope_selector
        .iter()
        .flat_map(|selector| selector.match_expressions.clone().unwrap_or_default());
    named.chain(selected).collect()
}

pub(super) fn in_scopes(scopes: &[ScopedResourceSelectorRequirement], pod: &Pod) -> bool {
    scopes.iter().all(|scope| scope_holds(scope, pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::at;
    use serde_json::{Value, json};

    fn show(used: &Amounts) -> Vec<String> {
        used.iter().map(|(name, amount)| format!("{name}={amount}")).collect()
    }

    #[test]
    fn pods_use_what_they_ask_for() {
        let container = |cpu: &str, limit: &str| json!({ "name": "c", "resources": { "requests": { "cpu": cpu }, "limits": { "memory": limit } } });
        let mut sidecar = container("200m", "1Mi");
        sidecar["restartPolicy"] = json!("Always");
        for (what, pod_json, expected) in [
            (
                "containers",
                json!({ "spec": { "containers": [container("100m", "1Mi"), container("250m", "2Mi")] } }),
                vec!["count/pods=1", "cpu=350m", "limits.memory=3Mi", "pods=1", "requests.cpu=350m"],
            ),
            (
                "a large step before",
                json!({ "spec": { "initContainers": [container("1", "1Mi")], "containers": [container("100m", "2Mi")] } }),
                vec!["count/pods=1", "cpu=1", "limits.memory=2Mi", "pods=1", "requests.cpu=1"],
            ),
            (
                "a sidecar",
                json!({ "spec": { "initContainers": [sidecar, container("1", "1Mi")], "containers": [container("100m", "2Mi")] } }),
                vec!["count/pods=1", "cpu=1200m", "limits.memory=3Mi", "pods=1", "requests.cpu=1200m"],
            ),
            (
                "ended",
                json!({ "spec": { "containers": [container("1", "1")] }, "status": { "phase": "Failed" } }),
                vec!["count/pods=1"],
            ),
            (
                "overdue",
                json!({ "metadata": { "deletionTimestamp": "1970-01-01T00:00:10Z", "deletionGracePeriodSeconds": 5 }, "spec": { "containers": [] } }),
                vec!["count/pods=1"],
            ),
        ] {
            let parsed: Pod = serde_json::from_value(pod_json).expect("a pod");
            assert_eq!(show(&pod(&parsed, at(100))), expected, "{what}");
        }
    }

    #[test]
    fn services_and_claims() {
        for (spec, node_ports, balancers) in [
            (json!({ "type": "ClusterIP", "ports": [{ "port": 1 }] }), "0", None),
            (json!({ "type": "NodePort", "ports": [{ "port": 1 }, { "port": 2 }] }), "2", None),
            (json!({ "type": "LoadBalancer", "ports": [{ "port": 1 }] }), "1", Some("1")),
            (
                json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{ "port": 1 }, { "port": 2, "nodePort": 30000 }] }),
                "1",
                Some("1"),
            ),
        ] {
            let used = service(&serde_json::from_value(json!({ "spec": spec })).expect("a service"));
            assert_eq!(used["services.nodeports"].to_string(), node_ports, "{spec}");
            assert_eq!(used.get("services.loadbalancers").map(ToString::to_string).as_deref(), balancers);
        }
        let used = claim(
            &serde_json::from_value(json!({ "spec": { "storageClassName": "fast", "resources": { "requests": { "storage": "1Gi" } } } }))
                .expect("a claim"),
        );
        assert_eq!(
            show(&used),
            [
                "count/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/requests.storage=1Gi",
                "persistentvolumeclaims=1",
                "requests.storage=1Gi"
            ]
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let scope = |name: &str, operator: &str, values: &[&str]| json!({ "scopeName": name, "operator": operator, "values": values });
        for (scope, spec, expected) in [
            (scope("Terminating", "Exists", &[]), json!({ "activeDeadlineSeconds": 5 }), true),
            (scope("NotTerminating", "Exists", &[]), json!({ "activeDeadlineSeconds": 5 }), false),
            (scope("BestEffort", "Exists", &[]), json!({}), true),
            (scope("NotBestEffort", "Exists", &[]), json!({}), false),
            (scope("PriorityClass", "In", &["high"]), json!({ "priorityClassName": "high" }), true),
            (scope("PriorityClass", "NotIn", &["high"]), json!({ "priorityClassName": "high" }), false),
            (scope("PriorityClass", "DoesNotExist", &[]), json!({}), true),
            (scope("CrossNamespacePodAffinity", "Exists", &[]), json!({}), false),
            (scope("Unknown", "Exists", &[]), json!({}), false),
        ] {
            let quota: ResourceQuotaSpec =
                serde_json::from_value(json!({ "scopeSelector": { "matchExpressions": [scope] } }))
                    .expect("a quota");
            let mut spec: Value = spec;
            spec["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(json!({ "spec": spec })).expect("a pod");
            assert_eq!(in_scopes(&scopes(&quota), &pod), expected, "{scope}");
        }
    }

    #[test]
    fn counted_resources() {
        for (name, expected) in [
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/secrets", Some(("", "secrets"))),
            ("configmaps", Some(("", "configmaps"))),
            ("requests.cpu", None),
        ] {
            assert_eq!(counted(name), expected);
        }
    }
}
