//! ResourceQuota's arithmetic (`pkg/quota/v1`, `apiserver/pkg/admission/plugin/resourcequota`): what an
//! object uses, which quotas count it, and the words when it is too much. Pure functions on JSON.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::object;
use crate::quantity::{Format, Quantity};
use crate::resources::{List, Side, add, list, pod_total, pretty};

/// Kinds that quotas count by a name without `count/`.
const LEGACY: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
/// What a pod is charged for without a `requests.` before it.
const PLAIN: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn one() -> Quantity {
    Quantity::from_units(1, Format::DecimalSi)
}

/// What an object uses at this moment of whatever a quota may limit. `count` is `pods` or `deployments.apps`.
pub fn usage(group: &str, plural: &str, obj: &Value, now: Timestamp) -> List {
    let mut used = List::new();
    let count = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    used.insert(format!("count/{count}"), one());
    if !group.is_empty() {
        return used;
    }
    match plural {
        "pods" if is_live(obj, now) => add(&mut used, &pod(obj)),
        "services" => add(&mut used, &service(obj)),
        "persistentvolumeclaims" => add(&mut used, &claim(obj)),
        _ if LEGACY.contains(&plural) => drop(used.insert(plural.to_owned(), one())),
        _ => {}
    }
    used
}

/// A pod that has ended, or should have by now, uses nothing but its name (`QuotaV1Pod`).
fn is_live(pod: &Value, now: Timestamp) -> bool {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let deleted = object::deletion_timestamp(pod).and_then(|text| text.parse::<Timestamp>().ok());
    let grace = SignedDuration::from_secs(object::deletion_grace_period(pod).unwrap_or(0));
    !ended && deleted.and_then(|at| at.checked_add(grace).ok()).is_none_or(|end| end >= now)
}

fn pod(pod: &Value) -> List {
    let mut used = List::from([("pods".to_owned(), one())]);
    for (name, quantity) in pod_total(&pod["spec"], Side::Requests) {
        if PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-") {
            used.insert(name.clone(), quantity);
        }
        used.insert(format!("requests.{name}"), quantity);
    }
    for (name, quantity) in pod_total(&pod["spec"], Side::Limits) {
        if PLAIN.contains(&name.as_str()) {
            used.insert(format!("limits.{name}"), quantity);
        }
    }
    used
}

fn service(service: &Value) -> List {
    let spec = &service["spec"];
    let ports = i64::try_from(spec["ports"].as_array().map_or(0, Vec::len)).unwrap_or(i64::MAX);
    let units = |count: i64| Quantity::from_units(count, Format::DecimalSi);
    let (mut node_ports, mut balancers) = (0, 0);
    match spec["type"].as_str() {
        Some("NodePort") => node_ports = ports,
        Some("LoadBalancer") => {
            balancers = 1;
            let own = |port: &&Value| port["nodePort"].as_i64().unwrap_or(0) != 0;
            node_ports = if spec["allocateLoadBalancerNodePorts"] == false {
                let list = spec["ports"].as_array().into_iter().flatten();
                i64::try_from(list.filter(own).count()).unwrap_or(i64::MAX)
            } else {
                ports
            };
        }
        _ => {}
    }
    List::from([
        ("services".to_owned(), one()),
        ("services.nodeports".to_owned(), units(node_ports)),
        ("services.loadbalancers".to_owned(), units(balancers)),
    ])
}

fn claim(claim: &Value) -> List {
    let mut used = List::from([("persistentvolumeclaims".to_owned(), one())]);
    let annotation = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    let class = annotation.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    let prefix = format!("{class}.storageclass.storage.k8s.io");
    if !class.is_empty() {
        used.insert(format!("{prefix}/persistentvolumeclaims"), one());
    }
    // While a claim shrinks back from a failed resize, what is allocated counts.
    let asked = Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]);
    if let Some(storage) = asked.max(Quantity::from_value(&claim["status"]["allocatedResources"]["storage"]))
    {
        used.insert("requests.storage".to_owned(), storage);
        if !class.is_empty() {
            used.insert(format!("{prefix}/requests.storage"), storage);
        }
    }
    used
}

/// Whether a quota counts the object at all: all of its scopes must match.
pub fn counts(quota: &Value, group: &str, plural: &str, obj: &Value) -> bool {
    let spec = &quota["spec"];
    let mut requirements: Vec<(String, String, Vec<String>)> = Vec::new();
    for scope in spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        requirements.push((scope.to_owned(), "Exists".to_owned(), Vec::new()));
    }
    for expression in spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten() {
        let text = |field: &str| expression[field].as_str().unwrap_or_default().to_owned();
        let values = expression["values"].as_array().into_iter().flatten();
        let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
        requirements.push((text("scopeName"), text("operator"), values));
    }
    requirements.iter().all(|(scope, operator, values)| {
        let class = match (group, plural, scope.as_str()) {
            ("", "pods", "PriorityClass") => Some(&obj["spec"]["priorityClassName"]),
            ("", "persistentvolumeclaims", "VolumeAttributesClass") => {
                Some(&obj["spec"]["volumeAttributesClassName"])
            }
            _ => None,
        };
        if let Some(class) = class {
            let class = class.as_str().unwrap_or_default();
            let listed = values.iter().any(|value| value == class);
            return match operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            };
        }
        (group, plural) == ("", "pods") && pod_scope(scope, obj)
    })
}

fn pod_scope(scope: &str, pod: &Value) -> bool {
    let ends = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "CrossNamespacePodAffinity" => reaches_other_namespaces(pod),
        _ => false,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    let counted = |side| {
        pod_total(&pod["spec"], side)
            .iter()
            .any(|(name, quantity)| matches!(name.as_str(), "cpu" | "memory") && !quantity.is_zero())
    };
    !counted(Side::Requests) && !counted(Side::Limits)
}

fn reaches_other_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &pod["spec"]["affinity"][*kind];
        let required = affinity["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = preferred.into_iter().flatten().map(|term| &term["podAffinityTerm"]);
        required.into_iter().flatten().chain(preferred).any(|term| {
            term["namespaces"].as_array().is_some_and(|list| !list.is_empty())
                || term["namespaceSelector"].is_object()
        })
    })
}

/// What a pod must say of itself because a quota limits it: `must specify limits.cpu for: c`.
pub fn unspecified(hard: &List, spec: &Value) -> Option<String> {
    let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for container in ["containers", "initContainers"]
        .iter()
        .flat_map(|field| spec[*field].as_array().into_iter().flatten())
    {
        for name in hard.keys() {
            let (side, resource) = match name.split_once('.') {
                Some(("requests", resource)) => (Side::Requests, resource),
                Some(("limits", resource)) => (Side::Limits, resource),
                None => (Side::Requests, name.as_str()),
                Some(_) => continue,
            };
            if !matches!(resource, "cpu" | "memory") {
                continue;
            }
            let given = |holder: &Value| !holder["resources"][side.field()][resource].is_null();
            if !given(container) && !given(spec) {
                missing.entry(name.clone()).or_default().push(container["name"].as_str().unwrap_or_default());
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts = missing.into_iter().map(|(resource, mut names)| {
        names.sort_unstable();
        names.dedup();
        format!("{resource} for: {}", names.join(","))
    });
    Some(format!("must specify {}", parts.collect::<Vec<_>>().join("; ")))
}

/// What a change takes from a quota, and the quota's usage after it.
#[derive(Debug)]
pub struct Charge {
    /// The new `status.used` of what changes.
    pub used: List,
}

/// Charges a change of usage to a quota. `Ok(None)`: the quota does not limit any of it.
///
/// # Errors
/// Upstream's text, for a 403.
pub fn charge(quota: &Value, delta: &List) -> Result<Option<Charge>, String> {
    let name = crate::object::name(quota);
    let hard = list(&quota["spec"]["hard"]);
    let requested: List = delta
        .iter()
        .filter(|(resource, quantity)| hard.contains_key(*resource) && !quantity.is_zero())
        .map(|(resource, quantity)| (resource.clone(), *quantity))
        .collect();
    if requested.is_empty() {
        return Ok(None);
    }
    let (known, used) = (list(&quota["status"]["hard"]), list(&quota["status"]["used"]));
    let unknown: Vec<&str> = requested
        .keys()
        .filter(|resource| !known.contains_key(*resource) || !used.contains_key(*resource))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
    }
    let mut after = List::new();
    let mut exceeded: Vec<&String> = Vec::new();
    for (resource, quantity) in &requested {
        let sum = used[resource] + *quantity;
        if quantity.sign() > 0 && sum > known[resource] {
            exceeded.push(resource);
        }
        after.insert(resource.clone(), sum);
    }
    if exceeded.is_empty() {
        return Ok(Some(Charge { used: after }));
    }
    let only = |list: &List| -> String {
        let picked = exceeded.iter().map(|name| ((*name).clone(), list[*name])).collect();
        pretty(&picked)
    };
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        only(&requested),
        only(&used),
        only(&known)
    ))
}

/// `after` minus `before`.
pub fn difference(after: &List, before: &List) -> List {
    let mut delta = after.clone();
    for (name, quantity) in before {
        let own = delta.get(name).copied().unwrap_or(Quantity::ZERO);
        delta.insert(name.clone(), own - *quantity);
    }
    delta
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn pods_that_have_ended_use_a_name_only() {
        let now = Timestamp::from_second(100).unwrap();
        let containers = json!([{"resources": {"requests": {"cpu": "1"}}}]);
        let deleted = |at: &str, grace: i64| json!({"metadata": {"deletionTimestamp": at, "deletionGracePeriodSeconds": grace}});
        for (mut pod, live) in [
            (json!({"status": {"phase": "Running"}}), true),
            (json!({"status": {"phase": "Failed"}}), false),
            (json!({"status": {"phase": "Succeeded"}}), false),
            (deleted("1970-01-01T00:00:10Z", 5), false),
            (deleted("1970-01-01T00:01:38Z", 5), true),
            (deleted("9999-12-30T00:00:00Z", i64::MAX), true),
        ] {
            pod["spec"]["containers"] = containers.clone();
            let used = pretty(&usage("", "pods", &pod, now));
            let expected = if live { "count/pods=1,cpu=1,pods=1,requests.cpu=1" } else { "count/pods=1" };
            assert_eq!(used, expected, "{pod}");
        }
    }

    #[test]
    fn node_ports_and_balancers() {
        for (spec, node_ports, balancers) in [
            (json!({ "type": "ClusterIP", "ports": [{ "port": 1 }] }), "0", "0"),
            (json!({ "type": "NodePort", "ports": [{ "port": 1 }, { "port": 2 }] }), "2", "0"),
            (
                json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{ "port": 1 }, { "port": 2, "nodePort": 30000 }] }),
                "1",
                "1",
            ),
        ] {
            let used = usage("", "services", &json!({ "spec": spec }), NOW);
            assert_eq!(used["services.nodeports"].to_string(), node_ports, "{spec}");
            assert_eq!(used["services.loadbalancers"].to_string(), balancers, "{spec}");
        }
    }

    #[test]
    fn usages() {
        let pod = json!({"spec": {"containers": [{"resources":
            {"requests": {"cpu": "1", "x.com/gpu": "2"}, "limits": {"memory": "1Gi", "x.com/gpu": "2"}}}]}});
        assert_eq!(
            pretty(&usage("", "pods", &pod, NOW)),
            "count/pods=1,cpu=1,limits.memory=1Gi,pods=1,requests.cpu=1,requests.x.com/gpu=2"
        );
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        assert_eq!(
            pretty(&usage("", "services", &service, NOW)),
            "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"
        );
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            pretty(&usage("", "persistentvolumeclaims", &claim, NOW)),
            "count/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
             fast.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi"
        );
        assert_eq!(pretty(&usage("apps", "deployments", &json!({}), NOW)), "count/deployments.apps=1");
        assert_eq!(pretty(&usage("", "secrets", &json!({}), NOW)), "count/secrets=1,secrets=1");
    }

    #[test]
    fn charges() {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "cpu": "1"}},
            "status": {"hard": {"pods": "2", "cpu": "1"}, "used": {"pods": "1", "cpu": "500m"}}});
        let of = |pods: i64, cpu: i64| {
            List::from([
                ("pods".to_owned(), Quantity::from_units(pods, Format::DecimalSi)),
                ("cpu".to_owned(), Quantity::from_milli(cpu)),
                ("other".to_owned(), one()),
            ])
        };
        assert_eq!(pretty(&charge(&quota, &of(1, 500)).unwrap().unwrap().used), "cpu=1,pods=2");
        assert!(charge(&quota, &of(0, 0)).unwrap().is_none());
        assert_eq!(
            charge(&quota, &of(2, 600)).unwrap_err(),
            "exceeded quota: q, requested: cpu=600m,pods=2, used: cpu=500m,pods=1, limited: cpu=1,pods=2"
        );
        let fresh = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
        assert_eq!(charge(&fresh, &of(1, 0)).unwrap_err(), "status unknown for quota: q, resources: pods");
    }

    #[test]
    fn scopes() {
        let quota = |scope: &str| json!({"spec": {"scopes": [scope]}});
        let plain = json!({"spec": {"containers": [{}]}});
        let busy = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high",
            "containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        for (scope, of_plain, of_busy) in [
            ("Terminating", false, true),
            ("NotTerminating", true, false),
            ("BestEffort", true, false),
            ("NotBestEffort", false, true),
            ("PriorityClass", false, true),
            ("CrossNamespacePodAffinity", false, false),
        ] {
            assert_eq!(counts(&quota(scope), "", "pods", &plain), of_plain, "{scope}");
            assert_eq!(counts(&quota(scope), "", "pods", &busy), of_busy, "{scope}");
            assert!(!counts(&quota(scope), "", "services", &busy), "{scope}");
        }
        let selector = json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert!(counts(&selector, "", "pods", &busy) && !counts(&selector, "", "pods", &plain));
    }

    #[test]
    fn what_a_quota_limits_must_be_said() {
        let hard = List::from([("limits.cpu".to_owned(), one()), ("requests.memory".to_owned(), one())]);
        let spec =
            json!({"containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"memory": "1"}}}]});
        assert_eq!(
            unspecified(&hard, &spec).as_deref(),
            Some("must specify limits.cpu for: a,b; requests.memory for: b")
        );
        assert_eq!(unspecified(&List::from([("pods".to_owned(), one())]), &spec), None);
    }
}
