//! Affinity of pods to nodes and to each other (upstream: `validateAffinity`).

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::field::At;
use crate::names;
use crate::strategy::checks::Checks;
use crate::strategy::selectors;
use crate::strategy::util::{entries, is_set, list, number, strings, text};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn validate(c: &mut Checks, spec: &Value, at: At<'_>) {
    let affinity = &spec["affinity"];
    if !affinity.is_object() {
        return;
    }
    let at = at.child("affinity");
    let nodes = &affinity["nodeAffinity"];
    if nodes.is_object() {
        let at = at.child("nodeAffinity");
        if is_set(nodes, REQUIRED) {
            let any_value = c.tolerated.node_affinity_values;
            selectors::node_selector(c, &nodes[REQUIRED], any_value, at.child(REQUIRED));
        }
        for (i, term) in list(nodes, PREFERRED).iter().enumerate() {
            let at = at.item(PREFERRED, i);
            weight(c, term, at);
            // Nothing breaks if no node has such a label.
            selectors::node_term(c, &term["preference"], true, at.child("preference"));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (of, at) = (&affinity[kind], at.child(kind));
        for (i, term) in list(of, REQUIRED).iter().enumerate() {
            pod_term(c, term, at.item(REQUIRED, i));
        }
        for (i, term) in list(of, PREFERRED).iter().enumerate() {
            let at = at.item(PREFERRED, i);
            weight(c, term, at);
            pod_term(c, &term["podAffinityTerm"], at.child("podAffinityTerm"));
        }
    }
}

fn weight(c: &mut Checks, term: &Value, at: At<'_>) {
    let weight = number(term, "weight");
    if !(1..=100).contains(&weight) {
        c.invalid(at.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_term(c: &mut Checks, term: &Value, at: At<'_>) {
    let any_value = c.tolerated.selector_values;
    for field in ["labelSelector", "namespaceSelector"] {
        selectors::label_selector_with(c, &term[field], any_value, at.child(field));
    }
    for name in strings(term, "namespaces") {
        c.syntax(at.child("namespace"), name, names::dns1123_label);
    }
    match_label_keys(c, term, at);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        c.required(at.child("topologyKey"), "can not be empty");
    }
    c.syntax(at.child("topologyKey"), key, names::qualified_name);
}

/// Keys whose values in the pod itself join its selector: named rightly, once, and only where there is a selector
/// (`ValidateMatchLabelKeysAndMismatchLabelKeys`).
pub(super) fn match_label_keys(c: &mut Checks, term: &Value, at: At<'_>) {
    let selector = &term["labelSelector"];
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let path = at.child(field);
        if !list(term, field).is_empty() && !selector.is_object() {
            c.forbidden(path, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in strings(term, field).enumerate() {
            c.syntax(path.index(i), key, names::qualified_name);
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
