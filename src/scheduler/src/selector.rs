//! Label selectors, matched without parsing anything twice, and the taints that keep pods off.
//! Pure functions over API types (apimachinery `labels`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kedge_client::node_fit::tolerates_all;

pub(crate) type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

/// A conjunction of requirements on labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    requirements: Vec<(String, Operator)>,
    /// No object matches (a missing selector, or one with an unknown operator).
    nothing: bool,
}

impl Selector {
    pub(crate) fn everything() -> Self {
        Self { requirements: Vec::new(), nothing: false }
    }

    pub(crate) fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// A missing selector matches nothing, an empty one everything.
    pub(crate) fn new(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Self::nothing() };
        let mut result = Self::everything();
        if let Some(labels) = &selector.match_labels {
            result.require_labels(labels);
        }
        for requirement in selector.match_expressions.iter().flatten() {
            let values = requirement.values.clone().unwrap_or_default();
            let operator = match requirement.operator.as_str() {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::Missing,
                _ => return Self::nothing(),
            };
            result.requirements.push((requirement.key.clone(), operator));
        }
        result
    }

    /// Adds "label equals" for every entry.
    pub(crate) fn require_labels(&mut self, labels: &Labels) {
        for (key, value) in labels {
            self.require(key, value, true);
        }
    }

    /// Adds `key In [value]`, or `NotIn` when not `equal`.
    pub(crate) fn require(&mut self, key: &str, value: &str, equal: bool) {
        let values = vec![value.to_owned()];
        let operator = if equal { Operator::In(values) } else { Operator::NotIn(values) };
        self.requirements.push((key.to_owned(), operator));
    }

    /// Takes over the requirements of another selector.
    pub(crate) fn and(&mut self, other: Self) {
        self.nothing |= other.nothing;
        self.requirements.extend(other.requirements);
    }

    /// Whether everything matches.
    pub(crate) fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        !self.nothing
            && self.requirements.iter().all(|(key, operator)| {
                let value = labels.get(key);
                match operator {
                    Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                    Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                    Operator::Exists => value.is_some(),
                    Operator::Missing => value.is_none(),
                }
            })
    }
}

/// Whether every taint that keeps pods off a node is tolerated.
pub(crate) fn tolerates_node(tolerations: &[Toleration], taints: &[Taint]) -> bool {
    tolerates_all(tolerations, taints, &["NoSchedule", "NoExecute"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn labels(entries: &[(&str, &str)]) -> Labels {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn label_selectors() {
        let pod = labels(&[("app", "web"), ("tier", "front")]);
        let expression = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            }]),
            match_labels: None,
        };
        for (selector, expected) in [
            (LabelSelector::default(), true),
            (LabelSelector { match_labels: Some(labels(&[("app", "web")])), match_expressions: None }, true),
            (LabelSelector { match_labels: Some(labels(&[("app", "db")])), match_expressions: None }, false),
            (expression("app", "In", &["web", "db"]), true),
            (expression("app", "NotIn", &["web"]), false),
            (expression("zone", "NotIn", &["web"]), true),
            (expression("zone", "Exists", &[]), false),
            (expression("zone", "DoesNotExist", &[]), true),
            (expression("app", "Near", &[]), false),
        ] {
            assert_eq!(Selector::new(Some(&selector)).matches(&pod), expected, "{selector:?}");
        }
        assert!(!Selector::new(None).matches(&pod));
        assert!(Selector::new(Some(&LabelSelector::default())).is_empty());
    }

    #[test]
    fn taints_that_keep_pods_off() {
        let taint = |effect: &str| Taint { key: "k".into(), effect: effect.into(), ..Taint::default() };
        assert!(tolerates_node(&[], &[taint("PreferNoSchedule")]));
        assert!(!tolerates_node(&[], &[taint("NoExecute")]));
    }
}
