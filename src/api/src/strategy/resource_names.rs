//! Names of resources in quotas and limits (upstream's `core/helper` and `validateResourceName`).

use super::checks::syntax;
use super::util::NON_NEGATIVE;
use crate::field::FieldError;
use crate::names;
use crate::quantity::Quantity;

/// Counted by a quota, in whole numbers.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
/// Measured by a quota.
const MEASURED: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

pub(super) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// A name that a quota has a meaning of.
pub(super) fn is_quota(name: &str) -> bool {
    COUNTED.contains(&name)
        || MEASURED.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// More of it may be promised than there is.
pub(super) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Any resource; says whether it is well-formed.
pub(super) fn any(name: &str, path: &str, errors: &mut Vec<FieldError>) -> bool {
    let before = errors.len();
    syntax(names::qualified_name, name, path, errors);
    if errors.len() == before && !name.contains('/') && name != "storage" && !is_quota(name) {
        let what = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(path, name, what));
    }
    errors.len() == before
}

/// What a container may ask for.
pub(super) fn of_container(name: &str, path: &str, errors: &mut Vec<FieldError>) {
    any(name, path, errors);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(name) {
            errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

/// What a quota may limit.
pub(super) fn of_quota(name: &str, path: &str, errors: &mut Vec<FieldError>) {
    any(name, path, errors);
    if !name.contains('/') && !is_quota(name) {
        errors.push(FieldError::invalid(path, name, "must be a standard resource for quota"));
    }
}

/// An amount: not negative, and whole where things are counted.
pub(super) fn amount(name: &str, quantity: Quantity, path: &str, errors: &mut Vec<FieldError>) {
    if quantity.sign() < 0 {
        errors.push(FieldError::invalid(path, quantity.to_string(), NON_NEGATIVE));
    }
    if (COUNTED.contains(&name) || is_extended(name)) && quantity.milli_value() % 1000 != 0 {
        errors.push(FieldError::invalid(path, quantity.to_string(), "must be an integer"));
    }
}
