//! The name of an object within its kind, and label selectors on typed objects.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Namespace and name. Objects of cluster scope have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Empty for cluster scope.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A claim or a volume: what a controller of storage works on, in one queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StorageKey {
    /// A PersistentVolumeClaim.
    Claim(ObjectKey),
    /// A PersistentVolume, by its name.
    Volume(String),
}

impl fmt::Display for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

/// Whether `labels` satisfy the selector. An empty selector matches everything; an unknown
/// operator matches nothing (apimachinery `LabelSelectorAsSelector` refuses it).
pub fn selector_matches(selector: &LabelSelector, labels: &Option<BTreeMap<String, String>>) -> bool {
    let get = |key: &str| labels.as_ref().and_then(|labels| labels.get(key));
    let equal = selector
        .match_labels
        .as_ref()
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| get(key) == Some(value)));
    equal
        && selector.match_expressions.as_ref().is_none_or(|requirements| {
            requirements.iter().all(|requirement| {
                let values = requirement.values.as_deref().unwrap_or_default();
                let value = get(&requirement.key);
                match requirement.operator.as_str() {
                    "In" => value.is_some_and(|value| values.contains(value)),
                    "NotIn" => value.is_none_or(|value| !values.contains(value)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    #[test]
    fn selectors_follow_upstream() {
        let labels = Some(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
        let expression = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|&v| v.to_owned()).collect()),
            }]),
            ..LabelSelector::default()
        };
        for (selector, expected) in [
            (LabelSelector::default(), true),
            (expression("app", "In", &["web", "db"]), true),
            (expression("app", "NotIn", &["web"]), false),
            (expression("tier", "NotIn", &["web"]), true),
            (expression("tier", "Exists", &[]), false),
            (expression("tier", "DoesNotExist", &[]), true),
            (expression("app", "Near", &["web"]), false),
        ] {
            assert_eq!(selector_matches(&selector, &labels), expected, "{selector:?}");
        }
    }
}
