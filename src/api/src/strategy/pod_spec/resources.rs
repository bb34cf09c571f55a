//! What containers and pods ask for (upstream: `validateResourceRequirements`, `validatePodResources`):
//! names, amounts, requests within limits, and claims that the pod has.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::field::{At, FieldError};
use crate::names;
use crate::quantity::Quantity;
use crate::strategy::checks::Checks;
use crate::strategy::resource_names::{self, is_huge_page, may_overcommit};
use crate::strategy::util::{entries, is_set, list, text};

const NEEDS_BASIC: &str = "HugePages require cpu or memory";

type NameCheck = fn(&mut Checks, &str, At<'_>) -> bool;

fn of_pods(c: &mut Checks, name: &str, at: At<'_>) -> bool {
    let is_known = resource_names::any(c, name, at);
    if is_known && !matches!(name, "cpu" | "memory") && !is_huge_page(name) {
        c.unsupported(at, name, &["cpu", "hugepages-", "memory"]);
    }
    is_known
}

/// A container's resources.
pub(super) fn of_container(c: &mut Checks, of: &Value, claims: &HashSet<&str>, at: At<'_>) {
    if of.is_object() {
        requirements(c, of, resource_names::of_container, at);
        claim_names(c, of, claims, at.child("claims"));
    }
}

/// What the runtime of the pod itself takes.
pub(in crate::strategy) fn overhead(c: &mut Checks, overhead: &Value, at: At<'_>) {
    let (mut basic, mut pages) = (false, false);
    let path = at.child("limits");
    amounts(c, overhead, resource_names::of_container, path, &mut basic, &mut pages);
    if pages && !basic {
        c.forbidden(at, NEEDS_BASIC);
    }
}

/// Names and amounts of one list; tells whether there is processor or memory, and whether huge pages.
fn amounts(
    c: &mut Checks,
    of: &Value,
    check_name: NameCheck,
    path: At<'_>,
    basic: &mut bool,
    pages: &mut bool,
) {
    for (name, value) in entries(of) {
        let at = path.key(name);
        check_name(c, name, at);
        *basic |= matches!(name, "cpu" | "memory");
        *pages |= is_huge_page(name);
        resource_names::amount(c, name, value, at);
        let Some(amount) = Quantity::from_value(value) else { continue };
        if is_huge_page(name) && !c.tolerated.huge_pages && !is_whole_pages(name, &amount) {
            c.invalid(at, amount.to_string(), format!("{amount} is not positive integer multiple of {name}"));
        }
    }
}

/// An amount of huge pages is a whole number of pages of the size that the name says.
pub(super) fn is_whole_pages(name: &str, amount: &Quantity) -> bool {
    let size = name.strip_prefix("hugepages-").and_then(|size| size.parse::<Quantity>().ok());
    size.is_some_and(|size| size.sign() > 0 && size.is_integer() && amount.value() % size.value() == 0)
}

fn requirements(c: &mut Checks, of: &Value, check_name: NameCheck, at: At<'_>) {
    let (limits, requests) = (&of["limits"], &of["requests"]);
    let (mut basic, mut pages) = (false, false);
    amounts(c, limits, check_name, at.child("limits"), &mut basic, &mut pages);
    let path = at.child("requests");
    amounts(c, requests, check_name, path, &mut basic, &mut pages);
    for (name, value) in entries(requests) {
        let Some(request) = Quantity::from_value(value) else { continue };
        match limits.get(name).and_then(Quantity::from_value) {
            Some(limit) if request != limit && !may_overcommit(name) => {
                c.invalid(path, request.to_string(), format!("must be equal to {name} limit of {limit}"));
            }
            Some(limit) if request > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                c.invalid(path, request.to_string(), why);
            }
            None if !may_overcommit(name) => {
                c.required(at.child("limits"), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    if pages && !basic {
        c.forbidden(at, NEEDS_BASIC);
    }
}

/// `validateResourceClaimNames`: a container uses claims that the pod has, each once.
fn claim_names(c: &mut Checks, of: &Value, known: &HashSet<&str>, path: At<'_>) {
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    // Claims of which some request is used.
    let mut parts: HashSet<&str> = HashSet::new();
    let which = OnceCell::new();
    for (i, claim) in list(of, "claims").iter().enumerate() {
        let at = path.index(i);
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            c.required(at, "");
            continue;
        }
        if seen.contains(&(name, "")) {
            c.duplicate(at, name);
        } else {
            if !request.is_empty() {
                c.syntax(at.child("request"), request, names::dns1123_label);
            }
            if seen.contains(&(name, request)) {
                c.duplicate(at, format!("{name}/{request}"));
            } else if request.is_empty() && parts.contains(name) {
                c.duplicate(at, name);
            }
            seen.insert((name, request));
            if !request.is_empty() {
                parts.insert(name);
            }
        }
        if !known.contains(name) {
            let which = which.get_or_init(|| {
                let mut names: Vec<&str> = known.iter().copied().collect();
                names.sort_unstable();
                // Each such error tells them all.
                names.truncate(100);
                if names.is_empty() {
                    " which is empty".to_owned()
                } else {
                    format!(": {}", names.join(", "))
                }
            });
            let detail = format!("must be one of the names in pod.spec.resourceClaims{which}");
            c.errors.push(FieldError { detail, ..FieldError::not_found(at, name) });
        }
    }
}

/// The claims that a pod has.
pub(super) fn claims(c: &mut Checks, spec: &Value, is_static: bool, at: At<'_>) {
    let mut seen = HashSet::new();
    for (i, claim) in list(spec, "resourceClaims").iter().enumerate() {
        if is_static {
            c.forbidden(At::root("[]"), "static pods do not support resource claims");
            continue;
        }
        let at = at.item("resourceClaims", i);
        let name = text(claim, "name");
        if name.is_empty() {
            c.required(at.child("name"), "");
        } else if !seen.insert(name) {
            c.duplicate(at.child("name"), name);
        } else {
            c.syntax(at.child("name"), name, names::dns1123_label);
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.iter().filter(|source| is_set(claim, source)).count() {
            0 => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                c.invalid(at, claim.clone(), why);
            }
            1 => {}
            _ => {
                let why =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                c.invalid(at, claim.clone(), why);
            }
        }
        for source in sources {
            c.set_name(claim, source, at, names::dns1123_subdomain);
        }
    }
}

/// The resources of the pod as a whole (KEP-2837).
pub(super) fn of_pod(c: &mut Checks, spec: &Value, at: At<'_>) {
    let of = &spec["resources"];
    if !of.is_object() {
        return;
    }
    let at = at.child("resources");
    if text(&spec["os"], "name") == "windows" {
        return c.forbidden(at, "may not be set for a windows pod");
    }
    if is_set(of, "claims") {
        c.forbidden(at.child("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(c, of, of_pods, at);
    for field in ["requests", "limits"] {
        let path = at.child(field);
        let sums = together(spec, field);
        for (name, value) in entries(&of[field]).filter(|(name, _)| field == "requests" || is_huge_page(name))
        {
            let (Some(whole), Some(sum)) = (Quantity::from_value(value), sums.get(name)) else { continue };
            if *sum > whole {
                let why = format!("must be greater than or equal to aggregate container {field} of {sum}");
                c.invalid(path.key(name), whole.to_string(), why);
            }
        }
    }
    for (i, container) in list(spec, "containers").iter().enumerate() {
        for (name, value) in entries(&container["resources"]["limits"]) {
            let (Some(own), Some(whole)) =
                (Quantity::from_value(value), Quantity::from_value(&of["limits"][name]))
            else {
                continue;
            };
            if own > whole {
                let why = format!("must be less than or equal to pod limits of {whole}");
                c.invalid(at.item("containers", i).key(name).child("limits"), own.to_string(), why);
            }
        }
    }
}

/// What the containers take of each resource at most at one time: sidecars stay while init containers come and go.
fn together<'a>(spec: &'a Value, field: &str) -> HashMap<&'a str, Quantity> {
    let of = |container: &'a Value| {
        entries(&container["resources"][field])
            .filter_map(|(name, value)| Some((name, Quantity::from_value(value)?)))
    };
    // What stays, and the most that was needed so far.
    let mut sums: HashMap<&str, (Quantity, Quantity)> = HashMap::new();
    for container in list(spec, "initContainers") {
        let stays = text(container, "restartPolicy") == "Always";
        for (name, own) in of(container) {
            let (kept, most) = sums.entry(name).or_insert((Quantity::ZERO, Quantity::ZERO));
            let now = *kept + own;
            if stays {
                *kept = now;
            }
            if now > *most {
                *most = now;
            }
        }
    }
    for container in list(spec, "containers") {
        for (name, own) in of(container) {
            let (kept, _) = sums.entry(name).or_insert((Quantity::ZERO, Quantity::ZERO));
            *kept = *kept + own;
        }
    }
    sums.into_iter().map(|(name, (kept, most))| (name, if kept > most { kept } else { most })).collect()
}
