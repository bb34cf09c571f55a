//! The baseline level: nothing that is known to lead out of a container.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Pod, Violation, containers, items, plural, quoted, setters, text};

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Namespaced sysctls, with the minor version since which each is allowed.
const SYSCTLS: [(u32, &str); 12] = [
    (0, "kernel.shm_rmid_forced"),
    (0, "net.ipv4.ip_local_port_range"),
    (0, "net.ipv4.tcp_syncookies"),
    (0, "net.ipv4.ping_group_range"),
    (0, "net.ipv4.ip_unprivileged_port_start"),
    (27, "net.ipv4.ip_local_reserved_ports"),
    (29, "net.ipv4.tcp_keepalive_time"),
    (29, "net.ipv4.tcp_fin_timeout"),
    (29, "net.ipv4.tcp_keepalive_intvl"),
    (29, "net.ipv4.tcp_keepalive_probes"),
    (32, "net.ipv4.tcp_rmem"),
    (32, "net.ipv4.tcp_wmem"),
];

/// All checks by their identifiers' order; the restricted level brings stricter ones of its own for
/// capabilities, seccomp and volumes.
pub(super) fn checks(pod: &Pod<'_>, restricted: bool) -> Vec<Violation> {
    let overridden: [Option<Violation>; 3] =
        if restricted { [const { None }; 3] } else { [capabilities(pod), host_paths(pod), seccomp(pod)] };
    // Of older versions some restricted checks did not exist and override nothing.
    let [mut capabilities_found, host_paths_found, mut seccomp_found] = overridden;
    if restricted && pod.minor < 22 {
        capabilities_found = capabilities(pod);
    }
    if restricted && pod.minor < 19 {
        seccomp_found = seccomp(pod);
    }
    [
        app_armor(pod),
        capabilities_found,
        host_namespaces(pod),
        host_paths_found,
        host_ports(pod),
        hosts_of_probes(pod),
        privileged(pod),
        proc_mount(pod),
        se_linux(pod),
        seccomp_found,
        sysctls(pod),
        windows_host_process(pod),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut check = |security: &Value| {
        let kind = text(&security["appArmorProfile"]["type"]);
        let bad = !matches!(kind, "" | "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(format!("{kind:?}"));
        }
        bad
    };
    let pod_is_bad = check(pod.security());
    let names = pod.bad(|container| check(&container["securityContext"]));
    let mut annotations = Vec::new();
    for (name, value) in pod.metadata["annotations"].as_object().into_iter().flatten() {
        let profile = text(value);
        let allowed = profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/");
        if name.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed {
            annotations.push(format!("{name}={profile:?}"));
        }
    }
    let count = values.len() + annotations.len();
    if count == 0 {
        return None;
    }
    let mut parts = Vec::new();
    if !values.is_empty() {
        parts.push(format!(
            "{} must not set AppArmor profile type to {}",
            setters(pod_is_bad, &names),
            values.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    annotations.sort();
    parts.extend(annotations);
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", count);
    Some(Violation::new(reason, parts.join(", ")))
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    let mut bad = BTreeSet::new();
    let names = pod.bad(|container| {
        let before = items(&container["securityContext"]["capabilities"]["add"])
            .iter()
            .map(text)
            .filter(|name| !CAPABILITIES.contains(name))
            .map(|name| bad.insert(name))
            .count();
        before > 0
    });
    (!names.is_empty()).then(|| {
        Violation::new(
            "non-default capabilities",
            format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers(&names),
                quoted(bad)
            ),
        )
    })
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| pod.spec[**field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    (!set.is_empty()).then(|| Violation::new("host namespaces", set.join(", ")))
}

fn host_paths(pod: &Pod<'_>) -> Option<Violation> {
    let names: Vec<&str> = items(&pod.spec["volumes"])
        .iter()
        .filter(|volume| volume["hostPath"].is_object())
        .map(|volume| text(&volume["name"]))
        .collect();
    let detail = format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    (!names.is_empty()).then(|| Violation::new("hostPath volumes", detail))
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = pod.bad(|container| {
        items(&container["ports"])
            .iter()
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|port| *port != 0)
            .map(|port| ports.insert(port.to_string()))
            .count()
            > 0
    });
    if names.is_empty() {
        return None;
    }
    let word = plural("hostPort", "hostPorts", ports.len());
    let detail = format!(
        "{} {} {word} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        ports.into_iter().collect::<Vec<_>>().join(", ")
    );
    Some(Violation::new(word, detail))
}

/// Probes and hooks that reach for another host than the pod (KEP-4940, since 1.34).
fn hosts_of_probes(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 34 {
        return None;
    }
    let mut hosts = BTreeSet::new();
    let names = pod.bad(|container| {
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &container["lifecycle"]["postStart"],
            &container["lifecycle"]["preStop"],
        ];
        let found = handlers
            .iter()
            .flat_map(|handler| [text(&handler["httpGet"]["host"]), text(&handler["tcpSocket"]["host"])])
            .filter(|host| !matches!(*host, "" | "127.0.0.1" | "::1"))
            .map(|host| hosts.insert(host))
            .count();
        found > 0
    });
    if names.is_empty() {
        return None;
    }
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    let verb = plural("uses", "use", names.len());
    Some(Violation::new(word, format!("{} {verb} {word} {}", containers(&names), quoted(hosts))))
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.bad(|container| container["securityContext"]["privileged"] == true);
    (!names.is_empty()).then(|| {
        Violation::new(
            "privileged",
            format!("{} must not set securityContext.privileged=true", containers(&names)),
        )
    })
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_user_namespace() {
        return None;
    }
    let mut values = BTreeSet::new();
    let names = pod.bad(|container| {
        let value = text(&container["securityContext"]["procMount"]);
        let bad = !matches!(value, "" | "Default");
        if bad {
            values.insert(value);
        }
        bad
    });
    (!names.is_empty()).then(|| {
        Violation::new(
            "procMount",
            format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(values)),
        )
    })
}

fn se_linux(pod: &Pod<'_>) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let minor = pod.minor;
    let mut check = |security: &Value| {
        let options = &security["seLinuxOptions"];
        let kind = text(&options["type"]).to_owned();
        let allowed = matches!(kind.as_str(), "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (minor >= 31 && kind == "container_engine_t");
        let (bad_user, bad_role) = (!text(&options["user"]).is_empty(), !text(&options["role"]).is_empty());
        if !allowed {
            types.insert(kind);
        }
        user |= bad_user;
        role |= bad_role;
        !allowed || bad_user || bad_role
    };
    let pod_is_bad = check(pod.security());
    let names = pod.bad(|container| check(&container["securityContext"]));
    if !pod_is_bad && names.is_empty() {
        return None;
    }
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    if user {
        what.push("user may not be set".to_owned());
    }
    if role {
        what.push("role may not be set".to_owned());
    }
    let who = setters(pod_is_bad, &names);
    Some(Violation::new(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")),
    ))
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 19 {
        return seccomp_annotations(pod);
    }
    let mut values = BTreeSet::new();
    let mut check = |security: &Value| {
        let kind = text(&security["seccompProfile"]["type"]);
        let bad = !matches!(kind, "" | "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(kind.to_owned());
        }
        bad
    };
    let pod_is_bad = check(pod.security());
    let names = pod.bad(|container| check(&container["securityContext"]));
    let who = setters(pod_is_bad, &names);
    (!who.is_empty()).then(|| {
        Violation::new(
            "seccompProfile",
            format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)),
        )
    })
}

/// Before 1.19 the profile was an annotation.
fn seccomp_annotations(pod: &Pod<'_>) -> Option<Violation> {
    let bad: Vec<String> = pod.metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| {
            let profile = text(value);
            let allowed = matches!(profile, "" | "runtime/default" | "docker/default")
                || profile.starts_with("localhost/");
            let ours = *name == "seccomp.security.alpha.kubernetes.io/pod"
                || name.starts_with("container.seccomp.security.alpha.kubernetes.io/");
            ours && !allowed
        })
        .map(|(name, value)| format!("{name}={:?}", text(value)))
        .collect();
    let reason = plural("forbidden seccomp profile", "forbidden seccomp profiles", bad.len());
    (!bad.is_empty()).then(|| Violation::new(reason, bad.join(", ")))
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    let bad: Vec<&str> = items(&pod.security()["sysctls"])
        .iter()
        .map(|sysctl| text(&sysctl["name"]))
        .filter(|name| !SYSCTLS.iter().any(|(since, known)| *since <= pod.minor && known == name))
        .collect();
    (!bad.is_empty()).then(|| Violation::new("forbidden sysctls", bad.join(", ")))
}

fn windows_host_process(pod: &Pod<'_>) -> Option<Violation> {
    let is_bad = |security: &Value| security["windowsOptions"]["hostProcess"] == true;
    let who = setters(is_bad(pod.security()), &pod.bad(|container| is_bad(&container["securityContext"])));
    (!who.is_empty()).then(|| {
        Violation::new(
            "hostProcess",
            format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
        )
    })
}
