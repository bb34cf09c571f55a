//! The sandbox of a pod for CRI (upstream `kuberuntime_sandbox.go`, `generatePodSandboxConfig`).

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Pod, SeccompProfile};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::core::Core;
use crate::runtime::keys;
use crate::{dns, hosts, pod, resources};

/// The configuration of the pod's sandbox number `attempt`.
pub(crate) fn make(core: &Core, target: &Pod, attempt: u32) -> cri::PodSandboxConfig {
    let (name, namespace, uid) = (pod::name(target), pod::namespace(target), pod::uid(target));
    let host_network = pod::host_network(target);
    let hostname =
        if host_network { String::new() } else { hosts::names(target, &core.config.cluster_domain).0 };
    let host_dns =
        std::fs::read_to_string(&core.config.resolv_conf).map(|text| dns::parse(&text)).unwrap_or_default();
    let mut labels: HashMap<String, String> =
        target.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.insert(keys::POD_NAME.into(), name.into());
    labels.insert(keys::POD_NAMESPACE.into(), namespace.into());
    labels.insert(keys::POD_UID.into(), uid.clone());
    let annotations = target.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: uid.clone(),
            namespace: namespace.into(),
            attempt,
        }),
        hostname,
        log_directory: core.config.pod_log_dir(namespace, name, &uid).to_string_lossy().into_owned(),
        dns_config: Some(dns::for_pod(&core.config, host_dns, target)),
        port_mappings: port_mappings(target),
        labels,
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: core.cgroups.parent_of(target),
            security_context: Some(security_context(target)),
            sysctls: sysctls(target),
            // Runtimes with machines of their own size them by these.
            resources: Some(resources_of(target)),
            overhead: overhead_of(target),
        }),
        windows: None,
    }
}

/// What the containers may use together (upstream `kuberuntime_sandbox_linux.go`,
/// `calculateSandboxResources`).
fn resources_of(target: &Pod) -> cri::LinuxContainerResources {
    let overhead = |name: &str, unit: fn(&Quantity) -> i64| {
        let overhead = target.spec.as_ref().and_then(|spec| spec.overhead.as_ref());
        overhead.and_then(|overhead| overhead.get(name)).map_or(0, unit)
    };
    let request = resources::pod_request(target, "cpu") - overhead("cpu", resources::milli);
    let limit = |name: &str, unit: fn(&Quantity) -> i64| {
        resources::pod_limit(target, name).map_or(0, |limit| limit - overhead(name, unit))
    };
    cri::LinuxContainerResources {
        cpu_period: resources::PERIOD,
        cpu_quota: resources::cpu_quota(limit("cpu", resources::milli)),
        cpu_shares: resources::cpu_shares(request),
        memory_limit_in_bytes: limit("memory", resources::value),
        ..Default::default()
    }
}

/// What the sandbox itself takes beside them.
fn overhead_of(target: &Pod) -> Option<cri::LinuxContainerResources> {
    let overhead = target.spec.as_ref()?.overhead.as_ref().filter(|overhead| !overhead.is_empty())?;
    let cpu = overhead.get("cpu").map_or(0, resources::milli);
    Some(cri::LinuxContainerResources {
        cpu_period: resources::PERIOD,
        cpu_quota: resources::cpu_quota(cpu),
        cpu_shares: resources::cpu_shares(cpu),
        memory_limit_in_bytes: overhead.get("memory").map_or(0, resources::value),
        ..Default::default()
    })
}

fn port_mappings(target: &Pod) -> Vec<cri::PortMapping> {
    let mut mappings = Vec::new();
    let sidecars = pod::init_containers(target).iter().filter(|container| pod::is_sidecar(container));
    for container in pod::containers(target).iter().chain(sidecars) {
        for port in container.ports.iter().flatten() {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            };
            mappings.push(cri::PortMapping {
                protocol: protocol as i32,
                container_port: port.container_port,
                host_port: port.host_port.unwrap_or(0),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            });
        }
    }
    mappings
}

fn sysctls(target: &Pod) -> HashMap<String, String> {
    let spec = pod::spec(target);
    let list = spec.security_context.and_then(|context| context.sysctls).unwrap_or_default();
    // Both spellings are allowed, the runtime wants dots.
    list.into_iter().map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value)).collect()
}

/// Which namespaces the pod shares with the node.
pub(crate) fn namespaces(target: &Pod) -> cri::NamespaceOption {
    let spec = pod::spec(target);
    let node_or = |host: Option<bool>, otherwise: cri::NamespaceMode| {
        if host == Some(true) { cri::NamespaceMode::Node as i32 } else { otherwise as i32 }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: node_or(spec.host_network, cri::NamespaceMode::Pod),
        ipc: node_or(spec.host_ipc, cri::NamespaceMode::Pod),
        pid: node_or(spec.host_pid, pid),
        ..Default::default()
    }
}

fn security_context(target: &Pod) -> cri::LinuxSandboxSecurityContext {
    let spec = pod::spec(target);
    let own = spec.security_context.unwrap_or_default();
    let privileged = has_privileged_container(target);
    let mut groups = own.supplemental_groups.clone().unwrap_or_default();
    groups.extend(own.fs_group);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(target)),
        run_as_user: own.run_as_user.map(|value| cri::Int64Value { value }),
        // CRI refuses a group without a user.
        run_as_group: own
            .run_as_group
            .filter(|_| own.run_as_user.is_some())
            .map(|value| cri::Int64Value { value }),
        supplemental_groups: groups,
        privileged,
        seccomp: Some(seccomp(own.seccomp_profile.as_ref())),
        ..Default::default()
    }
}

/// Ephemeral containers too: the runtime compares a container with what its sandbox is said to be then.
fn has_privileged_container(target: &Pod) -> bool {
    let ephemeral = pod::ephemeral_containers(target);
    pod::containers(target).iter().chain(pod::init_containers(target)).chain(&ephemeral).any(|container| {
        container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
    })
}

/// No profile means unconfined, as upstream without `--seccomp-default`.
pub(crate) fn seccomp(profile: Option<&SeccompProfile>) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let kind = match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => ProfileType::RuntimeDefault,
        Some("Localhost") => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = match (kind, profile.and_then(|profile| profile.localhost_profile.as_ref())) {
        (ProfileType::Localhost, Some(path)) => format!("/var/lib/kubelet/seccomp/{path}"),
        _ => String::new(),
    };
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_privileged_debug_container_makes_the_sandbox_privileged() {
        let pod = |ephemeral: serde_json::Value| {
            serde_json::from_value::<Pod>(json!({ "spec": {
                "containers": [{ "name": "a" }], "ephemeralContainers": ephemeral,
            } }))
            .expect("a pod")
        };
        assert!(!has_privileged_container(&pod(json!([{ "name": "b" }]))));
        let privileged = json!([{ "name": "b", "securityContext": { "privileged": true } }]);
        assert!(has_privileged_container(&pod(privileged)));
    }
}
