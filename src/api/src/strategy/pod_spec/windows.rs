//! What is particular to pods for Windows (upstream: `validateWindows`, `validateWindowsSecurityContextOptions`,
//! `validateWindowsHostProcessPod`).

use serde_json::Value;

use super::each_container;
use crate::field::At;
use crate::names;
use crate::strategy::checks::Checks;
use crate::strategy::util::{flag, is_set, list};

/// Fields of the pod's security context and of the pod that Windows has not, in upstream's order.
const POD: [(&str, bool); 15] = [
    ("appArmorProfile", true),
    ("seLinuxOptions", true),
    ("hostUsers", false),
    ("hostPID", false),
    ("hostIPC", false),
    ("seccompProfile", true),
    ("fsGroup", true),
    ("fsGroupChangePolicy", true),
    ("sysctls", true),
    ("shareProcessNamespace", false),
    ("runAsUser", true),
    ("runAsGroup", true),
    ("supplementalGroups", true),
    ("supplementalGroupsPolicy", true),
    ("seLinuxChangePolicy", true),
];

const CONTAINER: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// What a pod for Windows must not set.
pub(super) fn forbidden(c: &mut Checks, spec: &Value, at: At<'_>) {
    const WHY: &str = "cannot be set for a windows pod";
    let context = at.child("securityContext");
    for (field, in_context) in POD {
        let (of, at) = if in_context { (&spec["securityContext"], context) } else { (spec, at) };
        let is_used = match field {
            "hostPID" | "hostIPC" => flag(of, field) == Some(true),
            "sysctls" => !list(of, field).is_empty(),
            _ => is_set(of, field),
        };
        if is_used {
            c.forbidden(at.child(field), WHY);
        }
    }
    each_container(spec, at, |container, at| {
        let at = at.child("securityContext");
        for field in CONTAINER {
            if is_set(&container["securityContext"], field) {
                c.forbidden(at.child(field), WHY);
            }
        }
    });
}

/// `validateWindowsSecurityContextOptions`.
pub(super) fn options(c: &mut Checks, options: &Value, at: At<'_>) {
    let set = |field: &str| options.get(field).and_then(Value::as_str);
    if let Some(name) = set("gmsaCredentialSpecName") {
        c.syntax(at.child("gmsaCredentialSpecName"), name, names::dns1123_subdomain);
    }
    if let Some(credentials) = set("gmsaCredentialSpec") {
        let at = at.child("gmsaCredentialSpec");
        if credentials.is_empty() {
            c.invalid(at, "", "gmsaCredentialSpec cannot be an empty string");
        } else if credentials.len() > 64 * 1024 {
            c.invalid(at, credentials, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(user) = set("runAsUserName") {
        user_name(c, user, at.child("runAsUserName"));
    }
}

/// `[DOMAIN\]USER`.
fn user_name(c: &mut Checks, whole: &str, at: At<'_>) {
    if whole.is_empty() {
        return c.invalid(at, whole, "runAsUserName cannot be an empty string");
    }
    if whole.bytes().any(|byte| byte.is_ascii_control()) {
        return c.invalid(at, whole, "runAsUserName cannot contain control characters");
    }
    let (domain, user) = match whole.split_once('\\') {
        Some((_, user)) if user.contains('\\') => {
            return c.invalid(at, whole, "runAsUserName cannot contain more than one backslash");
        }
        Some((domain, user)) => (Some(domain), user),
        None => (None, whole),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            c.invalid(at, whole, "runAsUserName's Domain length must be under 256 characters");
        }
        if !is_netbios(domain) && !is_domain(domain) {
            let why = "runAsUserName's Domain doesn't match the NetBios nor the DNS format";
            c.invalid(at, whole, why);
        }
    }
    if user.is_empty() {
        c.invalid(at, whole, "runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        c.invalid(at, whole, "runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|char| matches!(char, '.' | ' ')) {
        c.invalid(at, whole, "runAsUserName's User cannot contain only periods or spaces");
    }
    const REFUSED: &str = "\"/\\:;|=,+*?<>@[]";
    if user.contains(|char| REFUSED.contains(char)) {
        let why = format!("runAsUserName's User cannot contain the following characters: {REFUSED}");
        c.invalid(at, whole, why);
    }
}

fn is_netbios(name: &str) -> bool {
    (1..=15).contains(&name.chars().count())
        && !name.starts_with('.')
        && !name.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|'])
}

fn is_domain(name: &str) -> bool {
    name.split('.').all(|label| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Containers that are processes of their host: all of the pod's, on the host's network.
pub(super) fn host_process(c: &mut Checks, spec: &Value, at: At<'_>) {
    let of = |context: &Value| flag(&context["windowsOptions"], "hostProcess");
    let pod = of(&spec["securityContext"]);
    let (mut count, mut hosted) = (0_usize, 0_usize);
    each_container(spec, at, |container, at| {
        count += 1;
        let own = of(&container["securityContext"]);
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            let why = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            let at = at.child("securityContext");
            let at = at.child("windowsOptions");
            c.invalid(at.child("hostProcess"), own, why);
        }
        hosted += usize::from(own.or(pod) == Some(true));
    });
    if hosted == 0 {
        return;
    }
    if hosted != count {
        let why =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        c.invalid(at, "", why);
    }
    if flag(spec, "hostNetwork") != Some(true) {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        c.invalid(at.child("hostNetwork"), false, why);
    }
}
