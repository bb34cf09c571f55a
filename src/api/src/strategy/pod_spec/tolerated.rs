//! What an update may keep although it would be refused of a new object: rules become stricter, and what is there
//! must still be changeable (upstream: `PodValidationOptions`).

use std::collections::HashSet;

use serde_json::{Value, json};

use super::each_container;
use super::{affinity, annotations, resources, security_context};
use crate::field::{At, FieldError};
use crate::object;
use crate::quantity::Quantity;
use crate::strategy::checks::{Check, Checks};
use crate::strategy::selectors;
use crate::strategy::util::{entries, flag, is_set, list, text};

/// What an update may still have because the old object had it (upstream's `PodValidationOptions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::strategy) struct Tolerated {
    pub(super) selector_values: bool,
    pub(super) node_affinity_values: bool,
    pub(super) spread_selectors: bool,
    /// The rules for `matchLabelKeys` of spread constraints are those before 1.34.
    pub(super) old_match_label_keys: bool,
    pub(super) huge_pages: bool,
    pub(super) token_paths: bool,
    pub(super) host_sysctls: bool,
    pub(super) any_selinux_change_policy: bool,
    pub(super) comparing_tolerations: bool,
    pub(super) user_namespace_with_host_network: bool,
    pub(super) user_namespace_with_devices: bool,
    pub(super) init_restart_on_resize: bool,
    pub(super) deletion_cost: bool,
}

/// A kind's own rules for an update. What is wrong with pods is taken back if it was so before: the same errors that
/// `old` has, and what upstream tolerates in whatever form once an object has it. Costs nothing where there is no
/// error.
pub(in crate::strategy) fn validate_forgiving(c: &mut Checks, validate: Check, new: &Value, old: &Value) {
    let start = c.errors.len();
    validate(c, new);
    let Some(path) = template_path(object::kind(new)) else { return };
    let is_pod = path.is_empty();
    let here = |error: &FieldError| {
        if is_pod {
            error.path.starts_with("spec.") || error.path.starts_with("metadata.annotations")
        } else {
            let below = error.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
            below || error.path.starts_with("spec.selector.")
        }
    };
    if !c.errors.iter().any(here) {
        return;
    }
    let template = if is_pod { old } else { object::get(old, &format!("/{}", path.replace('.', "/"))) };
    let tolerated = Tolerated::of(template);
    if tolerated != Tolerated::default() {
        c.errors.truncate(start);
        c.tolerated = tolerated;
        validate(c, new);
    }
    let mut before = Checks::default();
    validate(&mut before, old);
    let before: HashSet<String> = before.errors.iter().map(ToString::to_string).collect();
    c.errors.retain(|error| !here(error) || !before.contains(&error.to_string()));
}

/// Where a kind has its template of pods; empty for a pod.
fn template_path(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "PodTemplate" => Some("template"),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "ReplicationController" | "Job" => {
            Some("spec.template")
        }
        "CronJob" => Some("spec.jobTemplate.spec.template"),
        _ => None,
    }
}

impl Tolerated {
    /// Of a pod or a template that exists.
    fn of(old: &Value) -> Self {
        let spec = &old["spec"];
        let found = |check: &dyn Fn(&mut Checks)| {
            let mut c = Checks::default();
            check(&mut c);
            !c.errors.is_empty()
        };
        let at = At::SPEC;
        let affinity = &spec["affinity"];
        let nodes = json!({ "affinity": { "nodeAffinity": affinity["nodeAffinity"] } });
        let pods = json!({ "affinity": {
            "podAffinity": affinity["podAffinity"], "podAntiAffinity": affinity["podAntiAffinity"] } });
        let spread = || list(spec, "topologySpreadConstraints");
        let cost = object::get(old, "/metadata/annotations").get(annotations::DELETION_COST);
        let own_users = flag(spec, "hostUsers") == Some(false);
        let (mut pages, mut devices, mut restarts) = (has_odd_pages(&spec["overhead"]), false, false);
        each_container(spec, at, |container, _| {
            let of = &container["resources"];
            pages |= has_odd_pages(&of["limits"]) || has_odd_pages(&of["requests"]);
            devices |= !list(container, "volumeDevices").is_empty();
        });
        for container in list(spec, "initContainers") {
            let is_sidecar = text(container, "restartPolicy") == "Always";
            let mut policies = list(container, "resizePolicy").iter();
            restarts |= !is_sidecar && policies.any(|policy| policy["restartPolicy"] == "RestartContainer");
        }
        Self {
            selector_values: affinity.is_object() && found(&|c| affinity::validate(c, &pods, at)),
            node_affinity_values: affinity.is_object() && found(&|c| affinity::validate(c, &nodes, at)),
            spread_selectors: found(&|c| {
                spread().iter().for_each(|of| selectors::label_selector(c, &of["labelSelector"], at));
            }),
            old_match_label_keys: found(&|c| {
                spread().iter().for_each(|of| affinity::match_label_keys(c, of, at));
            }),
            huge_pages: pages,
            token_paths: found(&|c| {
                for volume in list(spec, "volumes") {
                    for source in list(&volume["projected"], "sources") {
                        c.local_path(at, text(&source["serviceAccountToken"], "path"));
                    }
                }
            }),
            host_sysctls: list(&spec["securityContext"], "sysctls")
                .iter()
                .any(|sysctl| security_context::shared_sysctl(spec, text(sysctl, "name")).is_some()),
            any_selinux_change_policy: is_set(&spec["securityContext"], "seLinuxChangePolicy"),
            comparing_tolerations: list(spec, "tolerations")
                .iter()
                .any(|toleration| matches!(text(toleration, "operator"), "Lt" | "Gt")),
            user_namespace_with_host_network: own_users && flag(spec, "hostNetwork") == Some(true),
            user_namespace_with_devices: own_users && devices,
            init_restart_on_resize: restarts,
            deletion_cost: cost.and_then(Value::as_str).is_some_and(|cost| !annotations::is_cost(cost)),
        }
    }
}

fn has_odd_pages(of: &Value) -> bool {
    entries(of).any(|(name, amount)| {
        name.starts_with("hugepages-")
            && Quantity::from_value(amount).is_some_and(|amount| !resources::is_whole_pages(name, &amount))
    })
}
