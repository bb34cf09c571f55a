//! Annotations that say something about a pod (upstream: `ValidatePodSpecificAnnotations`), and profiles that
//! are told both by an annotation and by a field.

use std::cell::OnceCell;
use std::collections::HashSet;

use serde_json::Value;

use super::each_container;
use super::scheduling;
use crate::field::At;
use crate::object;
use crate::strategy::checks::Checks;
use crate::strategy::util::{entries, list, text};

pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
pub(super) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// `at` is the path of the annotations.
pub(super) fn validate(c: &mut Checks, annotations: &Value, spec: &Value, at: At<'_>) {
    let containers: OnceCell<HashSet<&str>> = OnceCell::new();
    for (key, value) in entries(annotations) {
        let value = value.as_str().unwrap_or_default();
        match key {
            MIRROR if text(spec, "nodeName").is_empty() => {
                c.invalid(at.key(key), value, "must set spec.nodeName if mirror pod annotation is set");
            }
            TOLERATIONS if !value.is_empty() => match serde_json::from_str::<Vec<Value>>(value) {
                Ok(tolerations) => scheduling::tolerations(c, &tolerations, at.child(TOLERATIONS)),
                Err(e) => c.invalid(at, TOLERATIONS, e.to_string()),
            },
            DELETION_COST if !c.tolerated.deletion_cost && !is_cost(value) => {
                c.invalid(at.key(key), value, "must be a 32bit integer");
            }
            SECCOMP_POD => seccomp(c, value, at.child(key)),
            _ => {
                if key.starts_with(SECCOMP_CONTAINER) {
                    seccomp(c, value, at.child(key));
                } else if let Some(name) = key.strip_prefix(APP_ARMOR) {
                    if !containers.get_or_init(|| all_names(spec)).contains(name) {
                        c.invalid(at.key(key), name, "container not found");
                    }
                    let known = matches!(value, "" | "runtime/default" | "unconfined");
                    if !known && !value.starts_with("localhost/") {
                        c.invalid(at.key(key), value, format!("invalid AppArmor profile name: {value:?}"));
                    }
                }
            }
        }
    }
}

fn all_names(spec: &Value) -> HashSet<&str> {
    let kinds = ["initContainers", "containers", "ephemeralContainers"];
    kinds.iter().flat_map(|kind| list(spec, kind)).map(|container| text(container, "name")).collect()
}

/// What deleting the pod costs, in comparison.
pub(super) fn is_cost(value: &str) -> bool {
    // Neither a sign nor a zero in front that nothing needs.
    let padded = value.starts_with('+') || (value.len() > 1 && value.starts_with('0'));
    !padded && value.parse::<i32>().is_ok()
}

fn seccomp(c: &mut Checks, profile: &str, at: At<'_>) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        _ => match profile.strip_prefix("localhost/") {
            Some(path) => c.descending_path(at, path),
            None => c.invalid(at, profile, "must be a valid seccomp profile"),
        },
    }
}

/// Where annotation and field tell a profile, they tell the same. `at` is the path of the specification.
pub(super) fn profiles_match(c: &mut Checks, annotations: &Value, spec: &Value, at: At<'_>) {
    if !annotations.is_object() {
        return;
    }
    let pod = &spec["securityContext"];
    let context = at.child("securityContext");
    if let Some(told) = annotations.get(SECCOMP_POD).and_then(Value::as_str) {
        same(c, &pod["seccompProfile"], told, "seccomp", context.child("seccompProfile"));
    }
    let told = |prefix: &str| entries(annotations).any(|(key, _)| key.starts_with(prefix));
    for (prefix, field, what) in
        [(SECCOMP_CONTAINER, "seccompProfile", "seccomp"), (APP_ARMOR, "appArmorProfile", "apparmor")]
    {
        if !told(prefix) || (what == "apparmor" && text(&spec["os"], "name") == "windows") {
            continue;
        }
        each_container(spec, at, |container, at| {
            let mut profile = &container["securityContext"][field];
            if what == "apparmor" && !profile.is_object() {
                profile = &pod[field];
            }
            let key = format!("{prefix}{}", text(container, "name"));
            if let Some(told) = annotations.get(&key).and_then(Value::as_str) {
                let at = at.child("securityContext");
                same(c, profile, told, what, at.child(field));
            }
        });
    }
}

fn same(c: &mut Checks, profile: &Value, told: &str, what: &str, at: At<'_>) {
    let kind = match text(profile, "type") {
        "Unconfined" => told == "unconfined",
        "RuntimeDefault" => told == "runtime/default" || (what == "seccomp" && told == "docker/default"),
        "Localhost" => told.starts_with("localhost/"),
        _ => return,
    };
    if !kind {
        c.forbidden(at.child("type"), format!("{what} type in annotation and field must match"));
    } else if let Some(path) = told.strip_prefix("localhost/")
        && path != object::get_str(profile, "/localhostProfile")
    {
        let why = format!("{what} profile in annotation and field must match");
        c.forbidden(at.child("localhostProfile"), &why);
    }
}
