//! Names and amounts of resources, for all that counts or takes them (upstream's `core/helper`,
//! `validateResourceName`, `ValidateResourceQuantityValue`).

use serde_json::Value;

use super::checks::{Checks, NON_NEGATIVE};
use crate::field::At;
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

/// Any resource (`validateResourceName`); true if it is one.
pub(super) fn any(c: &mut Checks, name: &str, at: At<'_>) -> bool {
    let before = c.errors.len();
    c.syntax(at, name, names::qualified_name);
    if c.errors.len() == before && !name.contains('/') && name != "storage" && !is_quota(name) {
        c.invalid(at, name, "must be a standard resource type or fully qualified");
    }
    c.errors.len() == before
}

/// What a container may ask for (`validateContainerResourceName`).
pub(super) fn of_container(c: &mut Checks, name: &str, at: At<'_>) -> bool {
    // The usual ones need no look at their spelling.
    if matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        return true;
    }
    let is_known = any(c, name, at);
    if !name.contains('/') {
        if !is_huge_page(name) {
            c.invalid(at, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        c.invalid(at, name, "doesn't follow extended resource name standard");
    }
    is_known
}

/// What a quota may limit (`ValidateResourceQuotaResourceName`).
pub(super) fn of_quota(c: &mut Checks, name: &str, at: At<'_>) {
    any(c, name, at);
    if !name.contains('/') && !is_quota(name) {
        c.invalid(at, name, "must be a standard resource for quota");
    }
}

/// An amount: not negative, and whole where things are counted (`ValidateResourceQuantityValue`).
pub(super) fn amount(c: &mut Checks, name: &str, value: &Value, at: At<'_>) {
    let Some(quantity) = Quantity::from_value(value) else { return };
    if quantity.sign() < 0 {
        c.invalid(at, quantity.to_string(), NON_NEGATIVE);
    }
    if !quantity.is_integer()
        && quantity.milli_value() % 1000 != 0
        && (COUNTED.contains(&name) || is_extended(name))
    {
        c.invalid(at, quantity.to_string(), "must be an integer");
    }
}
