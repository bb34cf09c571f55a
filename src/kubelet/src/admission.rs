//! The node's own say before a pod starts (upstream `pkg/kubelet/lifecycle/predicate.go`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::node_fit;

use crate::core::Core;
use crate::worker::Verdict;
use crate::{eviction, pod, resources};

/// `Err` is why the pod is refused; its phase becomes Failed.
pub(crate) async fn check(core: &Core, target: &Pod) -> Result<(), Verdict> {
    let conditions = core.pressure.lock().conditions();
    if let Some(verdict) = eviction::refusal(target, &conditions) {
        tracing::info!(
            pod = pod::name(target),
            ?conditions,
            "the node is under pressure and takes no such pod"
        );
        return Err(verdict);
    }
    sysctls(target, &core.config.allowed_unsafe_sysctls)?;
    let verdict = |reason: String, message: String| Verdict {
        reason,
        message: format!("Pod was rejected: {message}"),
        ..Verdict::default()
    };
    let Some(mut node) = core.node.get("", &core.config.node_name) else { return Ok(()) };
    kind_of_node(target, &node).map_err(|(reason, message)| verdict(reason.into(), message.into()))?;
    if !is_selected(target, &node) {
        // The label that brought the pod here may be younger than what is known of the node.
        match kube::Api::<Node>::all(core.client.clone()).get(&core.config.node_name).await {
            Ok(now) => node = Arc::new(now),
            Err(error) => tracing::debug!(%error, "the node's labels of this moment could not be asked for"),
        }
    }
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let uid = pod::uid(target);
    let others: Vec<_> = core
        .workers
        .pods()
        .into_iter()
        .filter(|other| pod::uid(other) != uid && !pod::is_terminal_phase(pod::phase(other)))
        // Two pods that arrive together: the older one has the place.
        .filter(|other| core.statuses.last(other).start_time.is_some())
        .collect();
    let charged: Vec<_> = {
        let state = core.allocations.lock();
        others.iter().map(|other| state.charged(other)).collect()
    };
    fits(target, &charged, &allocatable).map_err(|(reason, message)| verdict(reason, message))?;
    general(target, &others, &node)
        .map_err(|(name, why)| verdict(name.into(), format!("Predicate {name} failed: {why}")))
}

fn is_selected(target: &Pod, node: &Node) -> bool {
    target.spec.as_ref().is_none_or(|spec| node_fit::affinity_fits(spec, node))
}

/// What the scheduler looks at too, for pods that came without it; `Err` is the name of what does not fit, and
/// why.
fn general(target: &Pod, others: &[Arc<Pod>], node: &Node) -> Result<(), (&'static str, &'static str)> {
    if !is_selected(target, node) {
        return Err(("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if host_ports(target)
        .any(|port| others.iter().any(|other| host_ports(other).any(|taken| port.clashes_with(&taken))))
    {
        return Err(("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    let tolerations = target.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    if !node_fit::tolerates_all(tolerations, node_fit::taints(node), &["NoExecute"]) {
        return Err(("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    Ok(())
}

/// What no preemption would help: another operating system, or groups as this runtime cannot set them.
fn kind_of_node(target: &Pod, node: &Node) -> Result<(), (&'static str, &'static str)> {
    let label = target.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        return Err((
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    let spec = target.spec.as_ref();
    if spec.and_then(|spec| spec.os.as_ref()).is_some_and(|os| os.name != "linux") {
        return Err(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    let policy = spec
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|context| context.supplemental_groups_policy.as_deref());
    let features = node.status.as_ref().and_then(|status| status.features.as_ref());
    if policy == Some("Strict")
        && features.and_then(|features| features.supplemental_groups_policy) != Some(true)
    {
        return Err((
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ));
    }
    Ok(())
}

/// Whether there is room beside the others; `Err` is a reason and a message.
pub(crate) fn fits(
    target: &Pod,
    others: &[Arc<Pod>],
    allocatable: &resources::Amounts,
) -> Result<(), (String, String)> {
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if let Some(most) = allocatable.get("pods").map(resources::value)
        && count + 1 > most
    {
        return Err((
            "OutOfpods".into(),
            format!("Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {most}"),
        ));
    }
    for name in resources::requested_names(target) {
        let asked = resources::pod_request(target, &name);
        // What no device plugin announces cannot be checked here.
        let Some(has) = allocatable.get(&name) else { continue };
        let has = if name == "cpu" { resources::milli(has) } else { resources::value(has) };
        let used: i64 = others.iter().map(|other| resources::pod_request(other, &name)).sum();
        if asked > 0 && used + asked > has {
            return Err((
                format!("OutOf{name}"),
                format!(
                    "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {has}"
                ),
            ));
        }
    }
    Ok(())
}

/// Sysctls that concern the pod alone (upstream `pkg/kubelet/sysctl/safe_sysctls.go`).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// `pkg/kubelet/sysctl/allowlist.go`; `allowed` are further names, or beginnings of names that end with `*`.
fn sysctls(target: &Pod, allowed: &[String]) -> Result<(), Verdict> {
    let spec = pod::spec(target);
    let list = spec.security_context.and_then(|context| context.sysctls).unwrap_or_default();
    for sysctl in list {
        let name = sysctl.name.replace('/', ".");
        let known = SAFE_SYSCTLS.contains(&&*name)
            || allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == *pattern,
            });
        let why = match namespace_of(&name) {
            Some("net") if spec.host_network == Some(true) => "not allowed with host net enabled",
            Some("ipc") if spec.host_ipc == Some(true) => "not allowed with host ipc enabled",
            _ if !known => "not allowlisted",
            _ => continue,
        };
        let message = format!("Pod was rejected: forbidden sysctl: {name:?} {why}");
        return Err(Verdict { reason: "SysctlForbidden".into(), message, ..Verdict::default() });
    }
    Ok(())
}

/// The namespace that holds a sysctl's value (or those of all names with this beginning): the node's own must
/// not be changed by a pod.
fn namespace_of(name: &str) -> Option<&'static str> {
    if name == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|beginning| name.starts_with(beginning))
    {
        return Some("ipc");
    }
    name.starts_with("net.").then_some("net")
}

/// Checks one of `--allowed-unsafe-sysctls` as upstream does: a name, or its beginning and `*`, of a sysctl
/// that each pod has for itself.
///
/// # Errors
/// Why it is not one.
pub fn check_sysctl_pattern(pattern: &str) -> Result<(), String> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(valid) || name.starts_with('.') {
        return Err(format!("{pattern:?} is no sysctl such as kernel.msgmax or net.core.*"));
    }
    if namespace_of(name).is_none() {
        return Err(format!("the sysctls {pattern:?} are not known to be namespaced"));
    }
    Ok(())
}

/// A port of the node that a pod takes.
struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    fn clashes_with(&self, other: &Self) -> bool {
        let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

fn host_ports(target: &Pod) -> impl Iterator<Item = HostPort> {
    let sidecars = pod::init_containers(target).iter().filter(|container| pod::is_sidecar(container));
    let ports = pod::containers(target).iter().chain(sidecars).flat_map(|own| own.ports.iter().flatten());
    ports.filter_map(|port| {
        Some(HostPort {
            ip: port.host_ip.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: port.host_port.filter(|port| *port > 0)?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod_of(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn pods_for_another_kind_of_node_are_refused() {
        let node = |strict| -> Node {
            serde_json::from_value(json!({
                "status": {"features": {"supplementalGroupsPolicy": strict}}
            }))
            .expect("a node")
        };
        let reason =
            |spec, strict| kind_of_node(&pod_of(spec), &node(strict)).err().map(|(reason, _)| reason);
        let strict = json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}});
        assert_eq!(reason(json!({"os": {"name": "linux"}}), false), None);
        assert_eq!(reason(json!({"os": {"name": "windows"}}), false), Some("PodOSNotSupported"));
        assert_eq!(reason(strict.clone(), false), Some("SupplementalGroupsPolicyNotSupported"));
        assert_eq!(reason(strict, true), None);
    }

    #[test]
    fn pods_that_no_scheduler_sent() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "spec": {"taints": [
                {"key": "gone", "effect": "NoExecute"},
                {"key": "full", "effect": "NoSchedule"},
            ]},
        }))
        .expect("a node");
        let other = Arc::new(pod_of(json!({"containers": [
            {"name": "c", "ports": [{"hostPort": 80, "containerPort": 80}]},
        ]})));
        let terms = |name: &str| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]},
            ]}}})
        };
        let tolerations = json!([{"key": "gone", "operator": "Exists"}]);
        for (spec, refused_by) in [
            (json!({"tolerations": tolerations}), None),
            (
                json!({"tolerations": tolerations, "nodeSelector": {"disk": "ssd"}, "affinity": terms("n")}),
                None,
            ),
            (json!({"tolerations": tolerations, "nodeSelector": {"disk": "hdd"}}), Some("NodeAffinity")),
            (json!({"tolerations": tolerations, "affinity": terms("m")}), Some("NodeAffinity")),
            (json!({}), Some("TaintToleration")),
            (
                json!({"containers": [{"name": "c", "ports": [{"hostPort": 80, "containerPort": 81}]}]}),
                Some("NodePorts"),
            ),
        ] {
            let mut spec = spec;
            if spec["containers"].is_null() {
                spec["containers"] = json!([]);
            }
            let found = general(&pod_of(spec.clone()), std::slice::from_ref(&other), &node);
            assert_eq!(found.err().map(|(name, _)| name), refused_by, "{spec}");
        }
    }

    #[test]
    fn only_safe_sysctls_of_its_own_namespaces() {
        for (spec, wanted) in [
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}}),
                None,
            ),
            (json!({"securityContext": {"sysctls": [{"name": "net/ipv4/tcp_rmem", "value": "1"}]}}), None),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                Some("\"kernel.msgmax\" not allowlisted"),
            ),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.shmmax", "value": "1"}]}}), None),
            (json!({"securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]}}), None),
            (
                json!({"securityContext": {"sysctls": [{"name": "net.core.rmem_max", "value": "1"}]}}),
                Some("not allowlisted"),
            ),
            (
                json!({"hostIPC": true, "securityContext": {"sysctls": [{"name": "kernel.shmmax", "value": "1"}]}}),
                Some("not allowed with host ipc enabled"),
            ),
            (
                json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]}}),
                Some("not allowed with host net enabled"),
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let allowed = ["kernel.shm*".to_owned(), "net.core.somaxconn".to_owned()];
            let found = sysctls(&pod_of(spec.clone()), &allowed).err();
            match (&found, wanted) {
                (None, None) => {}
                (Some(verdict), Some(part)) => {
                    assert_eq!(verdict.reason, "SysctlForbidden");
                    assert!(verdict.message.contains(part), "{}", verdict.message);
                }
                _ => panic!("{spec}: {:?}", found.map(|verdict| verdict.message)),
            }
        }
    }

    #[test]
    fn patterns_are_of_namespaced_sysctls() {
        for good in ["kernel.msg*", "kernel.sem", "net.core.somaxconn", "net.*", "fs.mqueue.*"] {
            assert_eq!(check_sysctl_pattern(good), Ok(()), "{good}");
        }
        for bad in ["*", "", "kernel.*", "vm.swappiness", "Net.core", "net.core.**"] {
            assert!(check_sysctl_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_ports_clash_by_address_and_protocol() {
        let pod = |ip: &str, protocol: &str| {
            pod_of(json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080, "hostIP": ip, "protocol": protocol}, {"containerPort": 81},
            ]}]}))
        };
        for (one, other, clash) in [
            (pod("127.0.0.1", "TCP"), pod("127.0.0.2", "TCP"), false),
            (pod("127.0.0.1", "TCP"), pod("127.0.0.1", "UDP"), false),
            (pod("127.0.0.1", "TCP"), pod("127.0.0.1", "TCP"), true),
            (pod("127.0.0.1", "TCP"), pod("0.0.0.0", "TCP"), true),
            (pod("", "UDP"), pod("127.0.0.1", "UDP"), true),
        ] {
            let (a, b) = (host_ports(&one).next().unwrap(), host_ports(&other).next().unwrap());
            assert_eq!(a.clashes_with(&b), clash, "{} {}", a.ip, b.ip);
            assert_eq!(host_ports(&one).count(), 1);
        }
    }
}
