//! Validation of pods and of the templates they are made from (upstream: core `validation.go`). This file goes
//! through a specification in upstream's order; the files below have one part of it each. Their paths, words and
//! kinds of errors are upstream's, oddities included: clients and tests compare them.
//!
//! What defaults fill in is checked only where it is set.

mod affinity;
mod annotations;
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

use super::checks::Checks;
use super::meta;
use super::util::{flag, integer, is_set, list, text};
use crate::field::At;
use crate::names;
use crate::object;

pub(super) use projected::token_seconds;
pub(super) use resources::overhead;
pub(super) use scheduling::{EFFECTS, tolerations};
pub(super) use tolerated::{Tolerated, validate_forgiving};
pub(super) use volumes::persistent_source;

/// A pod (`validatePodMetadataAndSpec`).
pub(super) fn validate_pod(c: &mut Checks, pod: &Value) {
    let spec = &pod["spec"];
    if !spec.is_object() {
        return;
    }
    c.is_pod = true;
    let annotations = object::get(pod, "/metadata/annotations");
    annotations::validate(c, annotations, spec, At::root("metadata.annotations"));
    let is_static = annotations.get(annotations::MIRROR).is_some();
    let at = At::SPEC;
    specification(c, spec, object::name(pod), is_static, at);
    if text(spec, "serviceAccountName").is_empty() {
        for (i, volume) in list(spec, "volumes").iter().enumerate() {
            let volume_at = at.item("volumes", i);
            let at = volume_at.child("projected");
            for (j, source) in list(&volume["projected"], "sources").iter().enumerate() {
                if is_set(source, "serviceAccountToken") {
                    let why = "must not be specified when serviceAccountName is not set";
                    c.forbidden(at.item("sources", j).child("serviceAccountToken"), why);
                }
            }
        }
    }
    for kind in ["containers", "initContainers"] {
        for (i, container) in list(spec, kind).iter().enumerate() {
            containers::image_padding(c, container, at.item(kind, i));
        }
    }
}

/// What is refused of new pods only (`ValidatePodCreate`).
pub(super) fn validate_new_pod(c: &mut Checks, pod: &Value) {
    let (spec, at) = (&pod["spec"], At::SPEC);
    if !list(spec, "ephemeralContainers").is_empty() {
        c.forbidden(at.child("ephemeralContainers"), "cannot be set on create");
    }
    if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
        c.forbidden(at.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    annotations::profiles_match(c, object::get(pod, "/metadata/annotations"), spec, at);
}

/// A template at `path` (`ValidatePodTemplateSpec`); its labels and annotations as such are its kind's to check.
pub(super) fn validate_template(c: &mut Checks, template: &Value, at: At<'_>) {
    let spec = &template["spec"];
    if !spec.is_object() {
        return;
    }
    let annotations = object::get(template, "/metadata/annotations");
    annotations::validate(c, annotations, spec, at.child("annotations"));
    specification(c, spec, "", false, at.child("spec"));
    let at = at.child("spec");
    annotations::profiles_match(c, annotations, spec, at);
    if !list(spec, "ephemeralContainers").is_empty() {
        c.forbidden(at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// `ValidatePodSpec`. `pod` is the pod's name, empty in a template.
fn specification(c: &mut Checks, spec: &Value, pod: &str, is_static: bool, at: At<'_>) {
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
        grace: integer(spec, "terminationGracePeriodSeconds"),
        never_restarts: text(spec, "restartPolicy") == "Never",
        host_users: flag(spec, "hostUsers") != Some(false),
    };
    containers::validate(c, spec, &known, at);
    resources::of_pod(c, spec, at);
    network::host_ports(c, spec, at);
    c.one_of(spec, "restartPolicy", at, &["Always", "OnFailure", "Never"]);
    c.one_of(spec, "dnsPolicy", at, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    meta::labels(c, &spec["nodeSelector"], at.child("nodeSelector"));
    security_context::of_pod(c, spec, at);
    affinity::validate(c, spec, at);
    network::dns(c, spec, at);
    scheduling::gates(c, spec, at);
    scheduling::spread(c, spec, at);
    windows::host_process(c, spec, at);
    security_context::host_users(c, spec, at);
    network::hostname_override(c, spec, at);
    c.optional_name(spec, "serviceAccountName", at, names::dns1123_subdomain);
    c.optional_name(spec, "nodeName", at, names::dns1123_subdomain);
    c.in_range(spec, "activeDeadlineSeconds", at, 1, i64::from(i32::MAX));
    c.optional_name(spec, "hostname", at, names::dns1123_label);
    c.optional_name(spec, "subdomain", at, names::dns1123_label);
    scheduling::tolerations(c, list(spec, "tolerations"), at.child("tolerations"));
    network::host_aliases(c, spec, at);
    c.optional_name(spec, "priorityClassName", at, names::dns1123_subdomain);
    c.set_name(spec, "runtimeClassName", at, names::dns1123_subdomain);
    if is_set(spec, "preemptionPolicy") {
        c.required_one_of(spec, "preemptionPolicy", at, &["PreemptLowerPriority", "Never"]);
    }
    resources::overhead(c, &spec["overhead"], at.child("overhead"));
    security_context::os(c, spec, at);
    env::file_volumes(c, spec, at);
}

/// The containers of all kinds with their paths, as upstream visits them.
fn each_container(spec: &Value, at: At<'_>, mut visit: impl FnMut(&Value, At<'_>)) {
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in list(spec, kind).iter().enumerate() {
            visit(container, at.item(kind, i));
        }
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
