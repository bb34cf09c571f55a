//! Pod Security Standards (KEP-2579): which policy a namespace's labels ask for, and what a pod does
//! that a level forbids. Pure evaluation on JSON with upstream's wording
//! (`k8s.io/pod-security-admission`); the API server's admission decides when to ask.

mod baseline;
mod restricted;

use std::fmt;

use serde_json::Value;

use crate::field::{At, FieldError};
use crate::object;

/// The minor version of Kubernetes whose policies are known here; later ones mean this one.
pub const NEWEST_MINOR: u32 = 36;

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
const AUDIT: &str = "pod-security.kubernetes.io/audit";
const WARN: &str = "pod-security.kubernetes.io/warn";

/// How much a namespace allows, from everything to little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            "restricted" => Self::Restricted,
            _ => return None,
        })
    }
}

/// Which version of the standards counts; `None` is `latest`.
pub type Minor = Option<u32>;

/// A level of one version: `restricted:latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelVersion {
    pub level: Level,
    pub version: Minor,
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            None => write!(f, "{level}:latest"),
            Some(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

const PRIVILEGED: LevelVersion = LevelVersion { level: Level::Privileged, version: None };

/// What a namespace refuses, records and warns about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub enforce: LevelVersion,
    pub audit: LevelVersion,
    pub warn: LevelVersion,
}

impl Policy {
    /// The policy of a namespace, with what is wrong with its labels. A label that cannot be read
    /// enforces the strictest level and never warns.
    pub fn of_namespace(namespace: &Value) -> (Self, Vec<FieldError>) {
        const LABELS: At<'_> = At::root("metadata.labels");
        let mut errors = Vec::new();
        let label = |name: &str| object::label(namespace, name);
        let mut read = |name: &str, fallback: Level| {
            let mut found = PRIVILEGED;
            if let Some(text) = label(name) {
                found.level = Level::parse(text).unwrap_or_else(|| {
                    errors.push(FieldError::invalid(
                        LABELS.key(name),
                        text,
                        "must be one of privileged, baseline, restricted",
                    ));
                    fallback
                });
            }
            let versioned = format!("{name}-version");
            if let Some(text) = label(&versioned) {
                found.version = parse_version(text).unwrap_or_else(|| {
                    errors.push(FieldError::invalid(
                        LABELS.key(&versioned),
                        text,
                        "must be \"latest\" or \"v1.x\"",
                    ));
                    None
                });
            }
            found
        };
        let enforce = read(ENFORCE, Level::Restricted);
        let audit = read(AUDIT, Level::Privileged);
        let mut warn = read(WARN, Level::Privileged);
        // Whoever applies a Deployment whose pods will be refused is told so.
        let says_nothing = label(WARN).is_none() && label(&format!("{WARN}-version")).is_none();
        if says_nothing && Level::parse(label(ENFORCE).unwrap_or_default()).is_some() {
            warn = enforce;
        }
        (Self { enforce, audit, warn }, errors)
    }

    /// Nothing is refused, recorded or warned about.
    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|policy| policy.level == Level::Privileged)
    }
}

fn parse_version(text: &str) -> Option<Minor> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let canonical = minor == "0" || (!minor.starts_with('0') && minor.bytes().all(|b| b.is_ascii_digit()));
    if canonical { minor.parse().ok().map(Some) } else { None }
}

/// One check that a pod failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `allowPrivilegeEscalation != false`
    pub reason: String,
    /// `container "c" must set securityContext.allowPrivilegeEscalation=false`
    pub detail: String,
}

impl Violation {
    fn new(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { reason: reason.into(), detail: detail.into() }
    }
}

/// What the pod does that the level forbids, in upstream's order.
pub fn evaluate(policy: LevelVersion, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let minor = policy.version.unwrap_or(NEWEST_MINOR).min(NEWEST_MINOR);
    let pod = Pod { metadata, spec, minor };
    match policy.level {
        Level::Privileged => Vec::new(),
        Level::Baseline => baseline::checks(&pod, false),
        Level::Restricted => {
            let mut found = baseline::checks(&pod, true);
            found.extend(restricted::checks(&pod));
            found
        }
    }
}

/// Reasons only: what a namespace's warning lists.
pub fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}

/// Reasons with their details: what a refused pod's message lists.
pub fn details(violations: &[Violation]) -> String {
    violations
        .iter()
        .map(|v| if v.detail.is_empty() { v.reason.clone() } else { format!("{} ({})", v.reason, v.detail) })
        .collect::<Vec<_>>()
        .join(", ")
}

/// The metadata and specification of the pods that an object makes; `None` if it makes none.
pub fn pod_template<'a>(group: &str, plural: &str, obj: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let template = match (group, plural) {
        ("", "pods") => obj,
        ("", "podtemplates") => object::get(obj, "/template"),
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "daemonsets" | "replicasets" | "statefulsets")
        | ("batch", "jobs") => object::get(obj, "/spec/template"),
        ("batch", "cronjobs") => object::get(obj, "/spec/jobTemplate/spec/template"),
        _ => return None,
    };
    let spec = object::get(template, "/spec");
    spec.is_object().then(|| (object::get(template, "/metadata"), spec))
}

/// Whether an update changes what the policies look at.
pub fn is_significant_update(new: &Value, old: &Value) -> bool {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    if object::annotation(new, POD) != object::annotation(old, POD) {
        return true;
    }
    ["containers", "initContainers"].iter().any(|list| {
        let (new, old) = (items(&new["spec"][*list]), items(&old["spec"][*list]));
        new.len() != old.len() || new.iter().zip(old).any(|(new, old)| new["image"] != old["image"])
    }) || items(&new["spec"]["ephemeralContainers"]).iter().any(|new| {
        let before = items(&old["spec"]["ephemeralContainers"]).iter().find(|old| old["name"] == new["name"]);
        before.is_none_or(|old| old["image"] != new["image"])
    })
}

/// A pod under one version of the standards.
struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    minor: u32,
}

impl<'a> Pod<'a> {
    /// Init, normal and ephemeral containers, in this order.
    fn containers(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| items(&spec[list]))
            .map(|container| (text(&container["name"]), container))
    }

    /// Containers that the closure finds bad, by name.
    fn bad(&self, mut is_bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|(_, container)| is_bad(container)).map(|(name, _)| name).collect()
    }

    fn security(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    /// Since 1.25 a pod for Windows is not asked for what Windows does not have.
    fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// Since 1.35 root inside a user namespace is not held against a pod.
    fn has_user_namespace(&self) -> bool {
        self.minor >= 35 && self.spec["hostUsers"] == false
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

fn quoted<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| format!("{:?}", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: everything that set something bad.
fn setters(pod: bool, names: &[&str]) -> String {
    let mut all: Vec<String> = Vec::new();
    if pod {
        all.push("pod".to_owned());
    }
    if !names.is_empty() {
        all.push(containers(names));
    }
    all.join(" and ")
}

#[cfg(test)]
mod tests;
