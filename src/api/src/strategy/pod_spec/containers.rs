//! Containers of all three kinds (upstream: `validateContainers`, `validateInitContainers`,
//! `validateEphemeralContainers`): what is common to them and what only one of them may have.

use std::collections::HashSet;

use serde_json::Value;

use super::volumes::Volumes;
use super::{env, mounts, probes, resources, security_context};
use crate::field::At;
use crate::names;
use crate::strategy::checks::{Checks, PROTOCOLS};
use crate::strategy::util::{entries, integer, is_set, list, number, text};

/// What containers are checked against.
pub(super) struct Pod<'a> {
    pub(super) volumes: Volumes<'a>,
    /// The names of the pod's resource claims.
    pub(super) claims: HashSet<&'a str>,
    pub(super) grace: Option<i64>,
    pub(super) never_restarts: bool,
    /// Containers have the host's users.
    pub(super) host_users: bool,
}

pub(super) fn validate(c: &mut Checks, spec: &Value, pod: &Pod<'_>, at: At<'_>) {
    let mut names = HashSet::new();
    let (regular, path) = (list(spec, "containers"), at.child("containers"));
    if regular.is_empty() {
        c.required(path, "");
    }
    let mut ports = Ports::default();
    for (i, container) in regular.iter().enumerate() {
        let at = path.index(i);
        common(c, container, pod, at);
        unique(c, container, &mut names, at);
        probes::validate(c, container, pod.grace, at);
        restart_policy(c, container, at);
    }
    for (i, container) in regular.iter().enumerate() {
        ports.take(c, container, path.index(i));
    }
    init(c, spec, pod, &mut names, at.child("initContainers"));
    ephemeral(c, spec, pod, names, at.child("ephemeralContainers"));
}

fn init<'a>(c: &mut Checks, spec: &'a Value, pod: &Pod<'_>, names: &mut HashSet<&'a str>, path: At<'_>) {
    for (i, container) in list(spec, "initContainers").iter().enumerate() {
        let at = path.index(i);
        common(c, container, pod, at);
        restart_policy(c, container, at);
        unique(c, container, names, at);
        // They run one after another, so each has its ports to itself; upstream takes each for the first.
        Ports::default().take(c, container, path.index(0));
        let is_sidecar = text(container, "restartPolicy") == "Always";
        if is_sidecar {
            probes::validate(c, container, pod.grace, at);
        } else {
            probes::forbid(c, container, at);
        }
        if is_sidecar || c.tolerated.init_restart_on_resize {
            continue;
        }
        for (j, policy) in list(container, "resizePolicy").iter().enumerate() {
            let policy = text(policy, "restartPolicy");
            if policy == "RestartContainer" {
                let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                c.invalid(at.item("resizePolicy", j).child("restartPolicy"), policy, why);
            }
        }
    }
}

/// What a container for debugging may have.
const EPHEMERAL_FIELDS: [&str; 17] = [
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
];

fn ephemeral<'a>(c: &mut Checks, spec: &'a Value, pod: &Pod<'_>, others: HashSet<&'a str>, path: At<'_>) {
    const CANNOT: &str = "cannot be set for an Ephemeral Container";
    let containers = list(spec, "ephemeralContainers");
    if containers.is_empty() {
        return;
    }
    let mut names = others.clone();
    for (i, container) in containers.iter().enumerate() {
        let at = path.index(i);
        common(c, container, pod, at);
        image_padding(c, container, at);
        if !names.insert(text(container, "name")) {
            c.duplicate(at.child("name"), text(container, "name"));
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            c.not_found(at.child("targetContainerName"), target);
        }
        for (field, value) in entries(container) {
            let is_empty = match value {
                Value::Null => true,
                Value::Array(list) => list.is_empty(),
                // Defaults leave resources behind.
                Value::Object(map) => field == "resources" && map.is_empty(),
                _ => false,
            };
            if !is_empty && !EPHEMERAL_FIELDS.contains(&field) {
                c.forbidden(at.child(field), CANNOT);
            }
        }
        let mounts = at.child("volumeMounts");
        for (j, mount) in list(container, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, field).is_empty() {
                    let at = mounts.index(j);
                    c.forbidden(at.child(field), CANNOT);
                }
            }
        }
    }
}

fn unique<'a>(c: &mut Checks, container: &'a Value, names: &mut HashSet<&'a str>, at: At<'_>) {
    let name = text(container, "name");
    if !name.is_empty() && !names.insert(name) {
        c.duplicate(at.child("name"), name);
    }
}

/// Of pods only: templates may have images that are padded.
pub(super) fn image_padding(c: &mut Checks, container: &Value, at: At<'_>) {
    let image = text(container, "image");
    if image.trim() != image {
        c.invalid(at.child("image"), image, "must not have leading or trailing whitespace");
    }
}

/// `validateContainerCommon`.
fn common(c: &mut Checks, container: &Value, pod: &Pod<'_>, at: At<'_>) {
    if c.needs(container, "name", at) {
        let name = text(container, "name");
        c.syntax(at.child("name"), name, names::dns1123_label);
    }
    c.needs(container, "image", at);
    c.one_of(container, "terminationMessagePolicy", at, &["File", "FallbackToLogsOnError"]);
    ports(c, container, at.child("ports"));
    env::validate(c, container, at);
    mounts::validate(c, container, &pod.volumes, at);
    c.one_of(container, "imagePullPolicy", at, &["Always", "IfNotPresent", "Never"]);
    resources::of_container(c, &container["resources"], &pod.claims, at.child("resources"));
    resize_policy(c, container, pod, at.child("resizePolicy"));
    security_context::of_container(
        c,
        &container["securityContext"],
        pod.host_users,
        at.child("securityContext"),
    );
}

fn ports(c: &mut Checks, container: &Value, path: At<'_>) {
    let mut names_seen = HashSet::new();
    for (i, port) in list(container, "ports").iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && !names_seen.insert(name) {
                c.duplicate(at.child("name"), name);
            }
            c.each(at.child("name"), name, wrong);
        }
        match number(port, "containerPort") {
            0 => c.required(at.child("containerPort"), ""),
            _ => c.in_range(port, "containerPort", at, 1, 65535),
        }
        if integer(port, "hostPort") != Some(0) {
            c.in_range(port, "hostPort", at, 1, 65535);
        }
        c.one_of(port, "protocol", at, &PROTOCOLS);
    }
}

/// Ports of the host that are taken.
#[derive(Default)]
struct Ports(HashSet<String>);

impl Ports {
    fn take(&mut self, c: &mut Checks, container: &Value, at: At<'_>) {
        for (i, port) in list(container, "ports").iter().enumerate() {
            let Some(n) = integer(port, "hostPort").filter(|n| *n != 0) else { continue };
            let taken = format!("{}/{}/{n}", text(port, "protocol"), text(port, "hostIP"));
            if self.0.contains(&taken) {
                let at = at.child("ports");
                let at = at.index(i);
                c.duplicate(at.child("hostPort"), taken);
            } else {
                self.0.insert(taken);
            }
        }
    }
}

fn resize_policy(c: &mut Checks, container: &Value, pod: &Pod<'_>, at: At<'_>) {
    let mut seen = HashSet::new();
    for (i, policy) in list(container, "resizePolicy").iter().enumerate() {
        let (resource, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if !seen.insert(resource) {
            c.duplicate(at.index(i), resource);
        }
        match resource {
            "cpu" | "memory" => {}
            "" => c.required(at, ""),
            _ => c.unsupported(at, resource, &["cpu", "memory"]),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => c.required(at, ""),
            _ => c.unsupported(at, restart, &["NotRequired", "RestartContainer"]),
        }
        if pod.never_restarts && restart != "NotRequired" {
            c.invalid(at, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

/// A container's own restart policy and the rules that refine it (KEP-5307).
fn restart_policy(c: &mut Checks, container: &Value, at: At<'_>) {
    let rules = list(container, "restartPolicyRules");
    match container.get("restartPolicy").and_then(Value::as_str) {
        None if rules.is_empty() => return,
        None => {
            let why = "must specify restartPolicy when restart rules are used";
            c.required(at.child("restartPolicy"), why);
        }
        Some("Always" | "Never" | "OnFailure") => {}
        Some(policy) => {
            c.unsupported(at.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
        }
    }
    let path = at.child("restartPolicyRules");
    if rules.len() > 20 {
        c.too_many(path, rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = path.index(i);
        let action = text(rule, "action");
        if !matches!(action, "Restart" | "RestartAllContainers") {
            c.unsupported(at.child("action"), action, &["Restart", "RestartAllContainers"]);
        }
        let codes = at.child("exitCodes");
        if !is_set(rule, "exitCodes") {
            c.required(codes, "must be specified");
            continue;
        }
        let operator = text(&rule["exitCodes"], "operator");
        if !matches!(operator, "In" | "NotIn") {
            c.unsupported(codes.child("operator"), operator, &["In", "NotIn"]);
        }
        let values = list(&rule["exitCodes"], "values").len();
        if values > 255 {
            c.too_many(codes.child("values"), values, 255);
        }
    }
}
