//! The restricted level: current practice of hardening, on top of baseline.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Pod, Violation, containers, items, plural, quoted, setters, text};

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// All checks by their identifiers' order.
pub(super) fn checks(pod: &Pod<'_>) -> Vec<Violation> {
    [escalation(pod), capabilities(pod), volumes(pod), non_root(pod), user(pod), seccomp(pod)]
        .into_iter()
        .flatten()
        .collect()
}

fn escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 8 || pod.is_windows() {
        return None;
    }
    let names = pod.bad(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    (!names.is_empty()).then(|| {
        Violation::new(
            "allowPrivilegeEscalation != false",
            format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names)),
        )
    })
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 22 || pod.is_windows() {
        return None;
    }
    let list = |container: &'_ Value, field: &str| -> Vec<String> {
        let list = items(&container["securityContext"]["capabilities"][field]);
        list.iter().map(|name| text(name).to_owned()).collect()
    };
    let keeps = pod.bad(|container| !list(container, "drop").iter().any(|name| name == "ALL"));
    let mut added = BTreeSet::new();
    let adds = pod.bad(|container| {
        let bad: Vec<_> =
            list(container, "add").into_iter().filter(|name| name != "NET_BIND_SERVICE").collect();
        let any = !bad.is_empty();
        added.extend(bad);
        any
    });
    let mut parts = Vec::new();
    if !keeps.is_empty() {
        parts.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeps)));
    }
    if !adds.is_empty() {
        parts.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adds),
            quoted(added)
        ));
    }
    (!parts.is_empty()).then(|| Violation::new("unrestricted capabilities", parts.join("; ")))
}

fn volumes(pod: &Pod<'_>) -> Option<Violation> {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in items(&pod.spec["volumes"]) {
        let kind = volume.as_object().and_then(|volume| {
            volume.iter().find(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key.as_str())
        });
        // A volume of no kind is an empty folder.
        let Some(kind) = kind.filter(|kind| !VOLUMES.contains(kind)) else { continue };
        names.push(text(&volume["name"]));
        kinds.insert(kind);
    }
    (!names.is_empty()).then(|| {
        Violation::new(
            "restricted volume types",
            format!(
                "{} {} {} {} {}",
                plural("volume", "volumes", names.len()),
                quoted(&names),
                plural("uses", "use", names.len()),
                plural("restricted volume type", "restricted volume types", kinds.len()),
                quoted(kinds),
            ),
        )
    })
}

fn non_root(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_user_namespace() {
        return None;
    }
    let own = |security: &Value| security["runAsNonRoot"].as_bool();
    let of_pod = own(pod.security());
    let explicit = pod.bad(|container| own(&container["securityContext"]) == Some(false));
    let who = setters(of_pod == Some(false), &explicit);
    let reason = "runAsNonRoot != true";
    if !who.is_empty() {
        return Some(Violation::new(
            reason,
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        ));
    }
    if of_pod == Some(true) {
        return None;
    }
    let implicit = pod.bad(|container| own(&container["securityContext"]).is_none());
    (!implicit.is_empty()).then(|| {
        Violation::new(
            reason,
            format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)),
        )
    })
}

fn user(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 23 || pod.has_user_namespace() {
        return None;
    }
    let is_root = |security: &Value| security["runAsUser"].as_i64() == Some(0);
    let names = pod.bad(|container| is_root(&container["securityContext"]));
    let who = setters(is_root(pod.security()), &names);
    (!who.is_empty()).then(|| Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0")))
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 19 || pod.is_windows() {
        return None;
    }
    let kind = |security: &Value| security["seccompProfile"]["type"].as_str().map(str::to_owned);
    let is_good = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let mut values = BTreeSet::new();
    let mut is_bad = |kind: Option<String>| {
        let bad = kind.filter(|kind| !is_good(kind));
        bad.map(|kind| values.insert(kind)).is_some()
    };
    let of_pod = kind(pod.security());
    let pod_is_bad = is_bad(of_pod.clone());
    let explicit = pod.bad(|container| is_bad(kind(&container["securityContext"])));
    let who = setters(pod_is_bad, &explicit);
    if !who.is_empty() {
        return Some(Violation::new(
            "seccompProfile",
            format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)),
        ));
    }
    if of_pod.is_some() {
        return None;
    }
    let implicit = pod.bad(|container| kind(&container["securityContext"]).is_none());
    (!implicit.is_empty()).then(|| {
        Violation::new(
            "seccompProfile",
            format!(
                "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
                containers(&implicit)
            ),
        )
    })
}
