//! What an update may keep although it would be refused of a new object: rules become stricter, and what is there
//! must still be changeable (upstream: `PodValidationOptions`).

use std::collections::HashSet;

use serde_json::{Value, json};

use super::checks::{At, Checks, each_container, entries, flag, is_set, quantity};
use super::{affinity, annotations, check_pod, check_template, list, resources, security_context, text};
use crate::field::FieldError;
use crate::object;

/// What an update may still have because the old object had it (upstream's `PodValidationOptions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tolerated {
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

/// Takes back what is wrong with `new` if it was so before: the same errors that `old` has, and what upstream
/// tolerates in whatever form once an object has it. Costs nothing where there is no error.
pub(in crate::strategy) fn forgive(
    validate: fn(&Value, &mut Vec<FieldError>),
    new: &Value,
    old: &Value,
    errors: &mut Vec<FieldError>,
) {
    let Some(path) = template_path(object::kind(new)) else { return };
    let is_pod = path.is_empty();
    let here = |error: &FieldError| {
        (is_pod && (error.path.starts_with("spec.") || error.path.starts_with("metadata.annotations")))
            || (!is_pod
                && error.path.starts_with(path)
                && error.path.as_bytes().get(path.len()) == Some(&b'.'))
    };
    if !errors.iter().any(here) {
        return;
    }
    let mut before = Vec::new();
    validate(old, &mut before);
    let pointer = format!("/{}", path.replace('.', "/"));
    let template = |of| if is_pod { of } else { object::get(of, &pointer) };
    let tolerated = Tolerated::of(template(old));
    if tolerated != Tolerated::default() {
        let check = |tolerated| {
            let mut found = Vec::new();
            if is_pod {
                check_pod(new, tolerated, &mut found);
            } else {
                check_template(template(new), path, tolerated, &mut found);
            }
            found
        };
        replace(errors, &check(Tolerated::default()), check(tolerated));
    }
    let before: HashSet<String> = before.iter().map(ToString::to_string).collect();
    errors.retain(|error| !here(error) || !before.contains(&error.to_string()));
}

/// Puts `lenient` where `strict` was found. What only the kind itself knows (the volumes that claims become) may
/// have kept some of both from being errors.
fn replace(errors: &mut Vec<FieldError>, strict: &[FieldError], lenient: Vec<FieldError>) {
    let texts = |errors: &[FieldError]| errors.iter().map(ToString::to_string).collect::<HashSet<_>>();
    let (all, strict) = (texts(errors), texts(strict));
    let Some(first) = errors.iter().position(|error| strict.contains(&error.to_string())) else { return };
    errors.retain(|error| !strict.contains(&error.to_string()));
    let lenient = lenient.into_iter().filter(|error| {
        let text = error.to_string();
        all.contains(&text) || !strict.contains(&text)
    });
    errors.splice(first..first, lenient);
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
        let found = |check: &dyn Fn(&mut Checks<'_>)| {
            let mut errors = Vec::new();
            check(&mut Checks { errors: &mut errors, tolerated: Self::default(), is_pod: false });
            !errors.is_empty()
        };
        let at = At::root("spec");
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
                spread().iter().for_each(|of| affinity::label_selector(c, &of["labelSelector"], false, at));
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
            && quantity(amount).is_some_and(|amount| !resources::is_whole_pages(name, &amount))
    })
}
