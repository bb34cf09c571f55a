//! Validation of pods and of the templates they are made from (upstream: core `validation.go`). This file goes
//! through a specification in upstream's order; the files below have one part of it each. Their paths, words and
//! kinds of errors are upstream's, oddities included: clients and tests compare them.
//!
//! What defaults fill in is checked only where it is set.

mod affinity;
mod annotations;
mod checks;
mod containers;
mod env;
mod mounts;
mod network;
mod probes;
mod projected;
mod resources;
mod scheduling;
mod security_context;
mod storage;
#[cfg(test)]
mod tests;
mod tolerated;
mod volumes;
mod windows;

use std::collections::HashSet;

use serde_json::Value;

use super::util::{list, text};
use crate::field::FieldError;
use crate::names;
use crate::object;
use checks::{At, Checks, flag, number};
use tolerated::Tolerated;

pub(super) use tolerated::forgive;

/// What a persistent volume says of storage that a pod could name in the same words. Other kinds of sources have
/// rules of their own.
pub(super) fn persistent_source(kind: &str, source: &Value, errors: &mut Vec<FieldError>) {
    let mut c = Checks { errors, tolerated: Tolerated::default(), is_pod: false };
    let at = At::root("spec");
    volumes::persistent_source(&mut c, kind, source, at.child(kind));
}

/// A pod (`validatePodMetadataAndSpec`).
pub(super) fn validate_pod(pod: &Value, errors: &mut Vec<FieldError>) {
    check_pod(pod, Tolerated::default(), errors);
}

fn check_pod(pod: &Value, tolerated: Tolerated, errors: &mut Vec<FieldError>) {
    let spec = &pod["spec"];
    if !spec.is_object() {
        return;
    }
    let mut c = Checks { errors, tolerated, is_pod: true };
    let annotations = object::get(pod, "/metadata/annotations");
    annotations::validate(&mut c, annotations, spec, At::root("metadata.annotations"));
    let is_static = annotations.get(annotations::MIRROR).is_some();
    let at = At::root("spec");
    specification(&mut c, spec, object::name(pod), is_static, at);
    if text(spec, "serviceAccountName").is_empty() {
        let path = at.child("volumes");
        for (i, volume) in list(spec, "volumes").iter().enumerate() {
            let at = path.index(i);
            let at = at.child("projected");
            let path = at.child("sources");
            for (j, source) in list(&volume["projected"], "sources").iter().enumerate() {
                if checks::is_set(source, "serviceAccountToken") {
                    let at = path.index(j);
                    let why = "must not be specified when serviceAccountName is not set";
                    c.forbidden(at.child("serviceAccountToken"), why);
                }
            }
        }
    }
    for kind in ["containers", "initContainers"] {
        let path = at.child(kind);
        for (i, container) in list(spec, kind).iter().enumerate() {
            containers::image_padding(&mut c, container, path.index(i));
        }
    }
}

/// Tolerations that another kind has for its pods (`ValidateTolerations`).
pub(super) fn validate_tolerations(tolerations: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let mut c = Checks { errors, tolerated: Tolerated::default(), is_pod: false };
    scheduling::tolerations(&mut c, tolerations, At::root(path));
}

/// What is refused of new pods only (`ValidatePodCreate`).
pub(super) fn validate_new_pod(pod: &Value, errors: &mut Vec<FieldError>) {
    let mut c = Checks { errors, tolerated: Tolerated::default(), is_pod: true };
    let (spec, at) = (&pod["spec"], At::root("spec"));
    if !list(spec, "ephemeralContainers").is_empty() {
        c.forbidden(at.child("ephemeralContainers"), "cannot be set on create");
    }
    if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
        c.forbidden(at.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    annotations::profiles_match(&mut c, object::get(pod, "/metadata/annotations"), spec, at);
}

/// A template at `path` (`ValidatePodTemplateSpec`); its labels and annotations as such are its kind's to check.
pub(super) fn validate_template(template: &Value, path: &str, errors: &mut Vec<FieldError>) {
    check_template(template, path, Tolerated::default(), errors);
}

fn check_template(template: &Value, path: &str, tolerated: Tolerated, errors: &mut Vec<FieldError>) {
    let spec = &template["spec"];
    if !spec.is_object() {
        return;
    }
    let mut c = Checks { errors, tolerated, is_pod: false };
    let at = At::root(path);
    let annotations = object::get(template, "/metadata/annotations");
    annotations::validate(&mut c, annotations, spec, at.child("annotations"));
    specification(&mut c, spec, "", false, at.child("spec"));
    let at = at.child("spec");
    annotations::profiles_match(&mut c, annotations, spec, at);
    if !list(spec, "ephemeralContainers").is_empty() {
        c.forbidden(at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// `ValidatePodSpec`. `pod` is the pod's name, empty in a template.
fn specification(c: &mut Checks<'_>, spec: &Value, pod: &str, is_static: bool, at: At<'_>) {
    let volumes = volumes::validate(c, spec, pod, at);
    let claims: HashSet<&str> = list(spec, "resourceClaims")
        .iter()
        .map(|claim| text(claim, "name"))
        .filter(|n| !n.is_empty())
        .collect();
    resources::claims(c, spec, is_static, at);
    let known = containers::Pod {
        volumes,
        claims,
        grace: number(spec, "terminationGracePeriodSeconds"),
        never_restarts: text(spec, "restartPolicy") == "Never",
        host_users: flag(spec, "hostUsers") != Some(false),
    };
    containers::validate(c, spec, &known, at);
    resources::of_pod(c, spec, at);
    network::host_ports(c, spec, at);
    c.one_of(spec, "restartPolicy", at, &["Always", "OnFailure", "Never"]);
    c.one_of(spec, "dnsPolicy", at, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    c.labels(&spec["nodeSelector"], at.child("nodeSelector"));
    security_context::of_pod(c, spec, at);
    affinity::validate(c, spec, at);
    network::dns(c, spec, at);
    scheduling::gates(c, spec, at);
    scheduling::spread(c, spec, at);
    windows::host_process(c, spec, at);
    security_context::host_users(c, spec, at);
    network::hostname_override(c, spec, at);
    named(c, spec, "serviceAccountName", names::dns1123_subdomain, at);
    named(c, spec, "nodeName", names::dns1123_subdomain, at);
    c.in_range(spec, "activeDeadlineSeconds", at, 1, i64::from(i32::MAX));
    named(c, spec, "hostname", names::dns1123_label, at);
    named(c, spec, "subdomain", names::dns1123_label, at);
    scheduling::tolerations(c, list(spec, "tolerations"), at.child("tolerations"));
    network::host_aliases(c, spec, at);
    named(c, spec, "priorityClassName", names::dns1123_subdomain, at);
    if let Some(class) = spec.get("runtimeClassName").and_then(Value::as_str) {
        c.each(at.child("runtimeClassName"), class, names::dns1123_subdomain(class));
    }
    c.one_of(spec, "preemptionPolicy", at, &["PreemptLowerPriority", "Never"]);
    resources::overhead(c, spec, at);
    security_context::os(c, spec, at);
    env::file_volumes(c, spec, at);
}

/// A name that may be left out.
fn named(c: &mut Checks<'_>, spec: &Value, field: &str, rule: fn(&str) -> Vec<String>, at: At<'_>) {
    let name = text(spec, field);
    if !name.is_empty() {
        c.each(at.child(field), name, rule(name));
    }
}

/// Warnings about valid pods and templates.
pub(super) fn warnings(obj: &Value) -> Vec<String> {
    let (spec, path) = match (object::kind(obj), object::get(obj, "/spec/template/spec")) {
        ("Pod", _) => (&obj["spec"], "spec"),
        (_, t) if t.is_object() => (t, "spec.template.spec"),
        _ => return Vec::new(),
    };
    let mut out = Vec::new();
    for (i, c) in list(spec, "containers").iter().enumerate() {
        let mut seen = HashSet::new();
        for (j, e) in list(c, "env").iter().enumerate() {
            let name = text(e, "name");
            if !seen.insert(name) {
                out.push(format!("{path}.containers[{i}].env[{j}]: hides previous definition of {name:?}, which may be dropped when using apply"));
            }
        }
    }
    out
}
