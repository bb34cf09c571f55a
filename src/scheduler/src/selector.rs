//! Label selectors, node selectors and tolerations, matched without parsing anything twice.
//! Pure functions over API types (apimachinery `labels`, component-helpers `nodeaffinity`, `corev1`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

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

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |greater: bool| {
        let (Some(actual), [bound]) = (value.and_then(|v| v.parse::<i64>().ok()), values) else {
            return false;
        };
        bound.parse::<i64>().is_ok_and(|bound| if greater { actual > bound } else { actual < bound })
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|v| v == value)),
        "NotIn" => value.is_none_or(|value| values.iter().all(|v| v != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

/// Whether a node satisfies one term. A term without requirements matches no node.
pub(crate) fn term_matches(term: &NodeSelectorTerm, labels: &Labels, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_matches(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| requirement_matches(r, (r.key == "metadata.name").then_some(name)))
}

/// Whether a node satisfies any of the terms.
pub(crate) fn node_selector_matches(selector: &NodeSelector, labels: &Labels, name: &str) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, labels, name))
}

/// corev1 `Toleration.ToleratesTaint`.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        // An empty key is only valid with Exists.
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// Whether every taint that keeps pods off a node is tolerated.
pub(crate) fn tolerates_node(tolerations: &[Toleration], taints: &[Taint]) -> bool {
    taints
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
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
    fn node_selector_terms() {
        let node = labels(&[("disk", "ssd"), ("cores", "8")]);
        let requirement = |key: &str, operator: &str, values: &[&str]| NodeSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
        };
        let expression = |r: NodeSelectorRequirement| NodeSelectorTerm {
            match_expressions: Some(vec![r]),
            match_fields: None,
        };
        for (term, expected) in [
            (NodeSelectorTerm::default(), false),
            (expression(requirement("disk", "In", &["ssd"])), true),
            (expression(requirement("disk", "NotIn", &["ssd"])), false),
            (expression(requirement("cores", "Gt", &["4"])), true),
            (expression(requirement("cores", "Lt", &["4"])), false),
            (expression(requirement("disk", "Gt", &["4"])), false),
            (
                NodeSelectorTerm {
                    match_expressions: None,
                    match_fields: Some(vec![requirement("metadata.name", "In", &["n1"])]),
                },
                true,
            ),
        ] {
            assert_eq!(term_matches(&term, &node, "n1"), expected, "{term:?}");
        }
    }

    #[test]
    fn tolerations() {
        let taint = |effect: &str| Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: effect.into(),
            time_added: None,
        };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        for (toleration, expected) in [
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Equal", "w", ""), false),
            (toleration("k", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "Equal", "v", ""), false),
            (toleration("k", "Exists", "", "NoExecute"), false),
        ] {
            assert_eq!(tolerates(&toleration, &taint("NoSchedule")), expected, "{toleration:?}");
        }
        assert!(tolerates_node(&[], &[taint("PreferNoSchedule")]));
        assert!(!tolerates_node(&[], &[taint("NoExecute")]));
    }
}
