//! Affinity of pods to nodes and to each other (upstream: `validateAffinity`), and label selectors.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::checks::{At, Checks, entries, is_set, number, strings};
use super::{list, text};
use crate::names;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const OPERATOR: &str = "not a valid selector operator";
const SET_VALUES: &str = "must be specified when `operator` is 'In' or 'NotIn'";
const NO_VALUES: &str = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";

pub(super) fn validate(c: &mut Checks<'_>, spec: &Value, at: At<'_>) {
    let affinity = &spec["affinity"];
    if !affinity.is_object() {
        return;
    }
    let at = at.child("affinity");
    let nodes = &affinity["nodeAffinity"];
    if nodes.is_object() {
        let at = at.child("nodeAffinity");
        if is_set(nodes, REQUIRED) {
            node_selector(c, &nodes[REQUIRED], at.child(REQUIRED));
        }
        let path = at.child(PREFERRED);
        for (i, term) in list(nodes, PREFERRED).iter().enumerate() {
            let at = path.index(i);
            weight(c, term, at);
            // Nothing breaks if no node has such a label.
            node_term(c, &term["preference"], true, at.child("preference"));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (of, at) = (&affinity[kind], at.child(kind));
        let path = at.child(REQUIRED);
        for (i, term) in list(of, REQUIRED).iter().enumerate() {
            pod_term(c, term, path.index(i));
        }
        let path = at.child(PREFERRED);
        for (i, term) in list(of, PREFERRED).iter().enumerate() {
            let at = path.index(i);
            weight(c, term, at);
            pod_term(c, &term["podAffinityTerm"], at.child("podAffinityTerm"));
        }
    }
}

fn weight(c: &mut Checks<'_>, term: &Value, at: At<'_>) {
    let weight = number(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        c.invalid(at.child("weight"), weight, "must be in the range 1-100");
    }
}

fn node_selector(c: &mut Checks<'_>, of: &Value, at: At<'_>) {
    let path = at.child("nodeSelectorTerms");
    let terms = list(of, "nodeSelectorTerms");
    if terms.is_empty() {
        c.required(path, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        let any_value = c.tolerated.node_affinity_values;
        node_term(c, term, any_value, path.index(i));
    }
}

fn node_term(c: &mut Checks<'_>, term: &Value, any_value: bool, at: At<'_>) {
    let path = at.child("matchExpressions");
    for (i, requirement) in list(term, "matchExpressions").iter().enumerate() {
        let at = path.index(i);
        let count = list(requirement, "values").len();
        let values = at.child("values");
        match text(requirement, "operator") {
            "In" | "NotIn" if count == 0 => c.required(values, SET_VALUES),
            "Exists" | "DoesNotExist" if count > 0 => c.forbidden(values, NO_VALUES),
            "Gt" | "Lt" if count != 1 => {
                c.required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => c.invalid(at.child("operator"), other, OPERATOR),
        }
        key_and_values(c, requirement, any_value, at);
    }
    let path = at.child("matchFields");
    for (i, requirement) in list(term, "matchFields").iter().enumerate() {
        let at = path.index(i);
        match text(requirement, "operator") {
            "In" | "NotIn" if list(requirement, "values").len() != 1 => c.required(
                at.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            other => c.invalid(at.child("operator"), other, OPERATOR),
        }
        let key = text(requirement, "key");
        if key != "metadata.name" {
            c.invalid(at.child("key"), key, "not a valid field selector key");
            continue;
        }
        let path = at.child("values");
        for (i, value) in strings(requirement, "values").enumerate() {
            c.each(path.index(i), value, names::dns1123_subdomain(value));
        }
    }
}

fn key_and_values(c: &mut Checks<'_>, requirement: &Value, any_value: bool, at: At<'_>) {
    let key = text(requirement, "key");
    c.each(at.child("key"), key, names::qualified_name(key));
    if any_value {
        return;
    }
    let path = at.child("values");
    for (i, value) in strings(requirement, "values").enumerate() {
        c.each(path.index(i), value, names::label_value(value));
    }
}

/// `ValidateLabelSelector`; no selector at all is valid.
pub(super) fn label_selector(c: &mut Checks<'_>, selector: &Value, any_value: bool, at: At<'_>) {
    if !selector.is_object() {
        return;
    }
    c.labels(&selector["matchLabels"], at.child("matchLabels"));
    let path = at.child("matchExpressions");
    for (i, requirement) in list(selector, "matchExpressions").iter().enumerate() {
        let at = path.index(i);
        let count = list(requirement, "values").len();
        match text(requirement, "operator") {
            "In" | "NotIn" if count == 0 => c.required(at.child("values"), SET_VALUES),
            "Exists" | "DoesNotExist" if count > 0 => c.forbidden(at.child("values"), NO_VALUES),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => c.invalid(at.child("operator"), other, OPERATOR),
        }
        key_and_values(c, requirement, any_value, at);
    }
}

fn pod_term(c: &mut Checks<'_>, term: &Value, at: At<'_>) {
    let any_value = c.tolerated.selector_values;
    for field in ["labelSelector", "namespaceSelector"] {
        label_selector(c, &term[field], any_value, at.child(field));
    }
    for name in strings(term, "namespaces") {
        c.each(at.child("namespace"), name, names::dns1123_label(name));
    }
    match_label_keys(c, term, at);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        c.required(at.child("topologyKey"), "can not be empty");
    }
    c.each(at.child("topologyKey"), key, names::qualified_name(key));
}

/// Keys whose values in the pod itself join its selector: named rightly, once, and only where there is a selector
/// (`ValidateMatchLabelKeysAndMismatchLabelKeys`).
pub(super) fn match_label_keys(c: &mut Checks<'_>, term: &Value, at: At<'_>) {
    let selector = &term["labelSelector"];
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let path = at.child(field);
        if !list(term, field).is_empty() && !selector.is_object() {
            c.forbidden(path, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in strings(term, field).enumerate() {
            c.each(path.index(i), key, names::qualified_name(key));
        }
    }
    if list(term, "matchLabelKeys").is_empty() {
        return;
    }
    // The first of two in the selector is what a key here became: only a second one was written by someone.
    let own: HashMap<&str, usize> =
        strings(term, "matchLabelKeys").enumerate().map(|(i, key)| (key, i)).collect();
    let mut selected: HashSet<&str> = entries(&selector["matchLabels"]).map(|(key, _)| key).collect();
    for expression in list(selector, "matchExpressions") {
        let key = text(expression, "key");
        if !selected.insert(key)
            && let Some(i) = own.get(key)
        {
            c.invalid(at.index(*i), key, "exists in both matchLabelKeys and labelSelector");
        }
    }
    let mismatched: HashSet<&str> = strings(term, "mismatchLabelKeys").collect();
    let path = at.child("matchLabelKeys");
    for (i, key) in strings(term, "matchLabelKeys").enumerate() {
        if mismatched.contains(key) {
            c.invalid(path.index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}
