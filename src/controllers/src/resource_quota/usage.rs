//! What objects use of a quota: the arithmetic is kedge-api's, which admission charges with too. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kedge_api::quota;
use kedge_api::resources::List;
use serde::Serialize;
use serde_json::Value;

/// What quotas look into, and not only count.
pub(super) trait Charged: Serialize {
    const PLURAL: &'static str;

    /// As the API has it. What came from there can be written so.
    fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Charged for Pod {
    const PLURAL: &'static str = "pods";
}

impl Charged for Service {
    const PLURAL: &'static str = "services";
}

impl Charged for PersistentVolumeClaim {
    const PLURAL: &'static str = "persistentvolumeclaims";
}

/// What an object, as [`Charged::to_value`] has it, uses of this quota: nothing, if the quota's scopes
/// leave it out.
pub(super) fn of<K: Charged>(quota: &Value, object: &Value, now: Timestamp) -> List {
    if !quota::counts(quota, "", K::PLURAL, object) {
        return List::new();
    }
    quota::usage("", K::PLURAL, object, now)
}

/// `(group, plural)` of a resource that only counts objects.
pub(super) fn counted(name: &str) -> Option<(&str, &str)> {
    if let Some(resource) = name.strip_prefix("count/") {
        return Some(resource.split_once('.').map_or(("", resource), |(plural, group)| (group, plural)));
    }
    matches!(name, "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas")
        .then_some(("", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_resources() {
        for (name, expected) in [
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/secrets", Some(("", "secrets"))),
            ("configmaps", Some(("", "configmaps"))),
            ("requests.cpu", None),
        ] {
            assert_eq!(counted(name), expected);
        }
    }
}
