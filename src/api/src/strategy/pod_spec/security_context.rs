//! What pods and containers may do to their node (upstream: `validatePodSpecSecurityContext`,
//! `ValidateSecurityContext`): users, profiles, privileges, kernel parameters, user namespaces.

use std::collections::HashSet;

use serde_json::Value;

use super::each_container;
use super::windows;
use crate::field::At;
use crate::strategy::checks::Checks;
use crate::strategy::util::{flag, is_set, list, text};

/// The kernel's identifiers of users and groups that Kubernetes takes.
const MAX_ID: i64 = i32::MAX as i64;

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

pub(super) fn of_pod(c: &mut Checks, spec: &Value, at: At<'_>) {
    let context = &spec["securityContext"];
    let at = at.child("securityContext");
    for id in ["fsGroup", "runAsUser", "runAsGroup"] {
        c.in_range(context, id, at, 0, MAX_ID);
    }
    let path = at.child("supplementalGroups");
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        if let Some(id) = group.as_i64().filter(|id| !(0..=MAX_ID).contains(id)) {
            c.invalid(path.index(i), id, format!("must be between 0 and {MAX_ID}, inclusive"));
        }
    }
    if flag(spec, "shareProcessNamespace") == Some(true) && flag(spec, "hostPID") == Some(true) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        c.invalid(at.child("shareProcessNamespace"), true, why);
    }
    sysctls(c, spec, at.child("sysctls"));
    c.one_of(context, "fsGroupChangePolicy", at, &["Always", "OnRootMismatch"]);
    profiles(c, context, at);
    c.one_of(context, "supplementalGroupsPolicy", at, &["Merge", "Strict"]);
    // Another policy needs a feature that is off by default (SELinuxMount).
    let policies: &[&str] =
        if c.tolerated.any_selinux_change_policy { &["MountOption", "Recursive"] } else { &["Recursive"] };
    c.one_of(context, "seLinuxChangePolicy", at, policies);
}

/// What pods and containers both have.
fn profiles(c: &mut Checks, context: &Value, at: At<'_>) {
    seccomp(c, context, at.child("seccompProfile"));
    windows::options(c, &context["windowsOptions"], at.child("windowsOptions"));
    app_armor(c, context, at.child("appArmorProfile"));
}

pub(super) fn of_container(c: &mut Checks, context: &Value, host_users: bool, at: At<'_>) {
    if !context.is_object() {
        return;
    }
    c.in_range(context, "runAsUser", at, 0, MAX_ID);
    c.in_range(context, "runAsGroup", at, 0, MAX_ID);
    c.one_of(context, "procMount", at, &["Default", "Unmasked"]);
    if host_users && text(context, "procMount") == "Unmasked" {
        c.invalid(at.child("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    seccomp(c, context, at.child("seccompProfile"));
    if flag(context, "allowPrivilegeEscalation") == Some(false) {
        if flag(context, "privileged") == Some(true) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            c.invalid(at, context.clone(), why);
        }
        if list(&context["capabilities"], "add").iter().any(|name| name == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            c.invalid(at, context.clone(), why);
        }
    }
    windows::options(c, &context["windowsOptions"], at.child("windowsOptions"));
    app_armor(c, context, at.child("appArmorProfile"));
}

fn seccomp(c: &mut Checks, context: &Value, at: At<'_>) {
    let profile = &context["seccompProfile"];
    if !profile.is_object() {
        return;
    }
    let kind = text(profile, "type");
    if kind.is_empty() {
        c.required(at.child("type"), "type is required when seccompProfile is set");
    } else if !PROFILES.contains(&kind) {
        c.unsupported(at.child("type"), kind, &PROFILES);
    }
    let file = profile.get("localhostProfile").and_then(Value::as_str);
    let at = at.child("localhostProfile");
    match (kind, file) {
        ("Localhost", None) => c.required(at, "must be set when seccomp type is Localhost"),
        ("Localhost", Some(file)) => c.descending_path(at, file),
        (_, Some(_)) => c.invalid(at, profile.clone(), "can only be set when seccomp type is Localhost"),
        (_, None) => {}
    }
}

fn app_armor(c: &mut Checks, context: &Value, at: At<'_>) {
    const MUST: &str = "must be set when AppArmor type is Localhost";
    /// One less than the longest path.
    const LONGEST: usize = 4095;
    let profile = &context["appArmorProfile"];
    if !profile.is_object() {
        return;
    }
    let name = profile.get("localhostProfile").and_then(Value::as_str);
    let path = at.child("localhostProfile");
    match (text(profile, "type"), name) {
        ("Localhost", None) => c.required(path, MUST),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                c.invalid(path, name, "must not be padded with whitespace");
            } else if name.is_empty() {
                c.required(path, MUST);
            }
            if name.len() > LONGEST {
                c.too_long(path, LONGEST);
            }
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            c.invalid(path, name, "can only be set when AppArmor type is Localhost");
        }
        ("", _) => c.required(at.child("type"), "type is required when appArmorProfile is set"),
        (other, _) => c.unsupported(at.child("type"), other, &PROFILES),
    }
}

/// `validateSysctls`: names of the kernel's form, each once. Whether the node allows them is its own matter.
fn sysctls(c: &mut Checks, spec: &Value, path: At<'_>) {
    let mut seen = HashSet::new();
    for (i, sysctl) in list(&spec["securityContext"], "sysctls").iter().enumerate() {
        let (at, name) = (path.index(i), text(sysctl, "name"));
        let at = at.child("name");
        if name.is_empty() {
            c.required(at, "");
        } else if name.len() > 253 || !is_sysctl(name) {
            let why = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            c.invalid(at, name, why);
        } else if seen.contains(name) {
            c.duplicate(at, name);
        }
        if !c.tolerated.host_sysctls
            && let Some(why) = shared_sysctl(spec, name)
        {
            c.invalid(at, name, why);
        }
        seen.insert(name);
    }
}

fn is_sysctl(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.split(['.', '/']).all(|part| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && bytes.iter().all(|byte| alphanumeric(byte) || matches!(byte, b'-' | b'_'))
    })
}

/// A parameter of a namespace that the pod shares with its host is the host's (`ValidateHostSysctl`).
pub(super) fn shared_sysctl(spec: &Value, name: &str) -> Option<&'static str> {
    const IPC: [&str; 10] = [
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.shm",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.msg",
    ];
    let network = flag(spec, "hostNetwork") == Some(true);
    let ipc = flag(spec, "hostIPC") == Some(true);
    if !network && !ipc {
        return None;
    }
    // With a slash as the first separator the two change places.
    let dotted: String = match name.find(['.', '/']) {
        Some(first) if name.as_bytes().get(first) == Some(&b'/') => name
            .chars()
            .map(|char| {
                if char == '/' {
                    '.'
                } else if char == '.' {
                    '/'
                } else {
                    char
                }
            })
            .collect(),
        _ => name.to_owned(),
    };
    let name = dotted.split('*').next().unwrap_or_default();
    if network && name.starts_with("net.") {
        return Some("may not be specified when 'hostNetwork' is true");
    }
    let is_ipc = IPC.contains(&name) || name.starts_with("fs.mqueue.");
    (ipc && is_ipc).then_some("may not be specified when 'hostIPC' is true")
}

/// A pod with users of its own shares no other namespace with its host (`validateHostUsers`).
pub(super) fn host_users(c: &mut Checks, spec: &Value, at: At<'_>) {
    const WHEN: &str = "when `hostUsers` is false";
    if flag(spec, "hostUsers") != Some(false) {
        return;
    }
    if flag(spec, "hostNetwork") == Some(true) && !c.tolerated.user_namespace_with_host_network {
        c.forbidden(at.child("hostNetwork"), WHEN);
    }
    for (field, called) in [("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if flag(spec, field) == Some(true) {
            c.forbidden(at.child(called), WHEN);
        }
    }
    if !c.tolerated.user_namespace_with_devices {
        each_container(spec, at, |container, at| {
            if !list(container, "volumeDevices").is_empty() {
                c.forbidden(at.child("volumeDevices"), WHEN);
            }
        });
    }
}

/// The operating system that a pod names decides what it may set (`validateOS`, `validateLinux`,
/// `validateWindows`).
pub(super) fn os(c: &mut Checks, spec: &Value, at: At<'_>) {
    if !is_set(spec, "os") {
        return;
    }
    let context = at.child("securityContext");
    match text(&spec["os"], "name") {
        "linux" => {
            const WHY: &str = "windows options cannot be set for a linux pod";
            if is_set(&spec["securityContext"], "windowsOptions") {
                c.forbidden(context.child("windowsOptions"), WHY);
            }
            each_container(spec, at, |container, at| {
                if is_set(&container["securityContext"], "windowsOptions") {
                    let at = at.child("securityContext");
                    c.forbidden(at.child("windowsOptions"), WHY);
                }
            });
        }
        "windows" => windows::forbidden(c, spec, at),
        "" => {
            let at = at.child("os");
            c.required(at.child("name"), "");
        }
        other => c.unsupported(at.child("os"), other, &["linux", "windows"]),
    }
}
