//! The other objects a cluster starts with: system namespaces, system priority classes, and the mandatory
//! and suggested flow control configuration. Pure data; facts from upstream's
//! apiserver/pkg/apis/flowcontrol/bootstrap and pkg/apis/scheduling.

use serde_json::{Value, json};

/// Set to `true` while the cluster, not its admin, owns a flow control object's spec.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io/v1";

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Name, value, description.
const PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    ("system-cluster-critical", 2_000_000_000, "For pods the cluster needs, which may run on another node."),
    ("system-node-critical", 2_000_001_000, "For pods their node needs, which may not run elsewhere."),
];

/// A limited priority level with queues: name, nominal shares, lendable percent, queues, hand size. Every
/// queue holds 50 requests.
const QUEUED_LEVELS: [(&str, u32, u32, u32, u32); 6] = [
    ("system", 30, 33, 64, 6),
    ("node-high", 40, 25, 64, 6),
    ("leader-election", 10, 0, 16, 4),
    ("workload-high", 40, 50, 128, 6),
    ("workload-low", 100, 90, 128, 6),
    ("global-default", 20, 50, 128, 6),
];

/// Requests a flow schema matches.
enum Scope {
    /// Everything.
    All,
    /// GET of the health endpoints.
    Probes,
    /// Verbs, then (group, resources, whether cluster-scoped requests match too) in any namespace.
    Resources(&'static [&'static str], &'static [(&'static str, &'static [&'static str], bool)]),
}

struct Flow {
    name: &'static str,
    level: &'static str,
    precedence: u32,
    /// `ByUser`, `ByNamespace`, or empty: not told apart.
    distinguish: &'static str,
    /// `u:user`, `g:group` or `s:serviceaccount` of kube-system.
    subjects: &'static [&'static str],
    scope: Scope,
}

const LEASE_VERBS: &[&str] = &["get", "create", "update"];
const LEASES: &[(&str, &[&str], bool)] = &[("coordination.k8s.io", &["leases"], false)];
const EVERYBODY: &[&str] = &["g:system:unauthenticated", "g:system:authenticated"];

const fn flow(
    name: &'static str,
    level: &'static str,
    precedence: u32,
    distinguish: &'static str,
    subjects: &'static [&'static str],
    scope: Scope,
) -> Flow {
    Flow { name, level, precedence, distinguish, subjects, scope }
}

/// In order of precedence; `exempt` and `catch-all` are the mandatory ones.
const FLOWS: [Flow; 13] = [
    flow("exempt", "exempt", 1, "", &["g:system:masters"], Scope::All),
    flow("probes", "exempt", 2, "", EVERYBODY, Scope::Probes),
    flow(
        "system-leader-election",
        "leader-election",
        100,
        "ByUser",
        &["u:system:kube-controller-manager", "u:system:kube-scheduler", "s:*"],
        Scope::Resources(LEASE_VERBS, LEASES),
    ),
    flow(
        "endpoint-controller",
        "workload-high",
        150,
        "ByUser",
        &["u:system:kube-controller-manager", "s:endpoint-controller", "s:endpointslicemirroring-controller"],
        Scope::Resources(LEASE_VERBS, &[("", &["endpoints"], false)]),
    ),
    flow(
        "workload-leader-election",
        "leader-election",
        200,
        "ByUser",
        &["s:*"],
        Scope::Resources(LEASE_VERBS, LEASES),
    ),
    flow(
        "system-node-high",
        "node-high",
        400,
        "ByUser",
        &["g:system:nodes"],
        Scope::Resources(
            &["*"],
            &[("", &["nodes", "nodes/status"], true), ("coordination.k8s.io", &["leases"], false)],
        ),
    ),
    flow("system-nodes", "system", 500, "ByUser", &["g:system:nodes"], Scope::All),
    flow(
        "kube-controller-manager",
        "workload-high",
        800,
        "ByNamespace",
        &["u:system:kube-controller-manager"],
        Scope::All,
    ),
    flow("kube-scheduler", "workload-high", 800, "ByNamespace", &["u:system:kube-scheduler"], Scope::All),
    flow("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &["s:*"], Scope::All),
    flow("service-accounts", "workload-low", 9000, "ByUser", &["g:system:serviceaccounts"], Scope::All),
    flow("global-default", "global-default", 9900, "ByUser", EVERYBODY, Scope::All),
    flow("catch-all", "catch-all", 10_000, "ByUser", EVERYBODY, Scope::All),
];

/// Namespaces, PriorityClasses, PriorityLevelConfigurations and FlowSchemas, in the order to create them.
pub(crate) fn objects() -> Vec<Value> {
    let mut out = Vec::new();
    for name in NAMESPACES {
        out.push(json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        }));
    }
    for (name, value, description) in PRIORITY_CLASSES {
        out.push(json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
            "preemptionPolicy": "PreemptLowerPriority",
        }));
    }
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    out.push(flow_control("PriorityLevelConfiguration", "exempt", exempt));
    let rejecting = json!({"type": "Reject"});
    out.push(flow_control("PriorityLevelConfiguration", "catch-all", limited(5, 0, &rejecting)));
    for (name, shares, lendable, queues, hand) in QUEUED_LEVELS {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
        let response = json!({"type": "Queue", "queuing": queuing});
        out.push(flow_control("PriorityLevelConfiguration", name, limited(shares, lendable, &response)));
    }
    for flow in FLOWS {
        out.push(flow_control("FlowSchema", flow.name, flow_spec(&flow)));
    }
    out
}

fn limited(shares: u32, lendable: u32, response: &Value) -> Value {
    json!({
        "type": "Limited",
        "limited": {
            "nominalConcurrencyShares": shares,
            "lendablePercent": lendable,
            "limitResponse": response,
        },
    })
}

fn flow_control(kind: &str, name: &str, spec: Value) -> Value {
    let mut out = json!({
        "apiVersion": FLOW_CONTROL,
        "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
    });
    out["spec"] = spec;
    out
}

fn flow_spec(flow: &Flow) -> Value {
    let subjects: Vec<Value> = flow.subjects.iter().filter_map(|word| subject(word)).collect();
    let mut rule = json!({"subjects": subjects});
    match flow.scope {
        Scope::All => {
            rule["resourceRules"] = json!([resource_rule(&["*"], "*", &["*"], true)]);
            rule["nonResourceRules"] = json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
        }
        Scope::Probes => {
            let urls = ["/healthz", "/readyz", "/livez"];
            rule["nonResourceRules"] = json!([{"verbs": ["get"], "nonResourceURLs": urls}]);
        }
        Scope::Resources(verbs, list) => {
            let rules: Vec<Value> = list
                .iter()
                .map(|(group, resources, cluster)| resource_rule(verbs, group, resources, *cluster))
                .collect();
            rule["resourceRules"] = Value::Array(rules);
        }
    }
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": flow.level},
        "matchingPrecedence": flow.precedence,
        "rules": [rule],
    });
    if !flow.distinguish.is_empty() {
        spec["distinguisherMethod"] = json!({"type": flow.distinguish});
    }
    spec
}

/// A rule for every namespace; `clusterScope` is written only when it is true.
fn resource_rule(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut out = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster {
        out["clusterScope"] = json!(true);
    }
    out
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    match kind {
        "u" => Some(json!({"kind": "User", "user": {"name": name}})),
        "g" => Some(json!({"kind": "Group", "group": {"name": name}})),
        "s" => {
            let account = json!({"name": name, "namespace": "kube-system"});
            Some(json!({"kind": "ServiceAccount", "serviceAccount": account}))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_and_named_once() {
        let all = objects();
        let wanted =
            [("Namespace", 4), ("PriorityClass", 2), ("PriorityLevelConfiguration", 8), ("FlowSchema", 13)];
        for (kind, count) in wanted {
            let mut names: Vec<&str> = all
                .iter()
                .filter(|o| o["kind"] == kind)
                .filter_map(|o| o["metadata"]["name"].as_str())
                .collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{kind}");
        }
    }

    #[test]
    fn flows_refer_to_levels_and_have_subjects_and_rules() {
        let all = objects();
        for flow in all.iter().filter(|o| o["kind"] == "FlowSchema") {
            let name = &flow["metadata"]["name"];
            let level = &flow["spec"]["priorityLevelConfiguration"]["name"];
            let known = all
                .iter()
                .any(|o| o["kind"] == "PriorityLevelConfiguration" && o["metadata"]["name"] == *level);
            assert!(known, "{name}: no level {level}");
            let rule = &flow["spec"]["rules"][0];
            assert!(rule["subjects"].as_array().is_some_and(|l| !l.is_empty()), "{name}");
            assert!(rule.get("resourceRules").is_some() || rule.get("nonResourceRules").is_some(), "{name}");
        }
    }

    #[test]
    fn every_subject_word_is_understood() {
        for flow in FLOWS {
            for word in flow.subjects {
                assert!(subject(word).is_some(), "{word}");
            }
        }
    }
}
