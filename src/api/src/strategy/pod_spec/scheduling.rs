//! What decides where and when a pod runs, affinity aside: spread constraints, tolerations, gates of scheduling
//! and of readiness (upstream: `validateTopologySpreadConstraints`, `ValidateTolerations` and others).

use std::collections::HashSet;

use serde_json::Value;

use super::affinity::match_label_keys;
use crate::field::At;
use crate::names;
use crate::strategy::checks::Checks;
use crate::strategy::selectors;
use crate::strategy::util::{entries, integer, is_set, list, number, strings, text};

pub(in crate::strategy) const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// `validateTopologySpreadConstraints`.
pub(super) fn spread(c: &mut Checks, spec: &Value, at: At<'_>) {
    let constraints = list(spec, "topologySpreadConstraints");
    let path = at.child("topologySpreadConstraints");
    // Each pair is told where it comes first, as long as it comes again.
    fn pair(constraint: &Value) -> (&str, &str) {
        (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"))
    }
    let mut later = HashSet::new();
    let mut repeats = vec![false; constraints.len()];
    if constraints.len() > 1 {
        for (i, constraint) in constraints.iter().enumerate().rev() {
            repeats[i] = !later.insert(pair(constraint));
        }
    }
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.index(i);
        positive(c, number(constraint, "maxSkew"), at.child("maxSkew"));
        let (key, action) = pair(constraint);
        if key.is_empty() {
            c.required(at.child("topologyKey"), "can not be empty");
        }
        c.only(constraint, "whenUnsatisfiable", at, &["DoNotSchedule", "ScheduleAnyway"]);
        if repeats[i] {
            c.duplicate(at.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = integer(constraint, "minDomains") {
            positive(c, domains, at.child("minDomains"));
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                c.invalid(at.child("minDomains"), domains, why);
            }
        }
        c.one_of(constraint, "nodeAffinityPolicy", at, &["Honor", "Ignore"]);
        c.one_of(constraint, "nodeTaintsPolicy", at, &["Honor", "Ignore"]);
        if c.tolerated.old_match_label_keys {
            old_match_label_keys(c, constraint, at.child("matchLabelKeys"));
        } else {
            match_label_keys(c, constraint, at);
        }
        if !c.tolerated.spread_selectors {
            selectors::label_selector(c, &constraint["labelSelector"], at.child("labelSelector"));
        }
    }
}

fn positive(c: &mut Checks, n: i64, at: At<'_>) {
    if n <= 0 {
        c.invalid(at, n, "must be greater than zero");
    }
}

/// `ValidateMatchLabelKeysInTopologySpread`: how it was before such keys joined the selector.
fn old_match_label_keys(c: &mut Checks, constraint: &Value, at: At<'_>) {
    if list(constraint, "matchLabelKeys").is_empty() {
        return;
    }
    let selector = &constraint["labelSelector"];
    if !selector.is_object() {
        c.forbidden(at, "must not be specified when labelSelector is not set");
    }
    let labels = entries(&selector["matchLabels"]).map(|(key, _)| key);
    let expressions = list(selector, "matchExpressions").iter().map(|expression| text(expression, "key"));
    let selected: HashSet<&str> = labels.chain(expressions).collect();
    for (i, key) in strings(constraint, "matchLabelKeys").enumerate() {
        c.syntax(at.index(i), key, names::qualified_name);
        if selected.contains(key) {
            c.invalid(at.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// `ValidateTolerations` of `tolerations`, an array.
pub(in crate::strategy) fn tolerations(c: &mut Checks, tolerations: &[Value], path: At<'_>) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = path.index(i);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        if !key.is_empty() {
            c.syntax(at.child("key"), key, names::qualified_name);
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            c.invalid(at.child("operator"), operator, why);
        }
        if is_set(toleration, "tolerationSeconds") && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            c.invalid(at.child("effect"), effect, why);
        }
        match operator {
            "" | "Equal" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    c.invalid(at.child("operator"), value, wrong.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                c.invalid(at.child("operator"), value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Lt" | "Gt" if c.tolerated.comparing_tolerations => compared(c, value, at.child("value")),
            "Lt" | "Gt" => c.unsupported(at.child("operator"), operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => c.unsupported(at.child("operator"), operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            c.one_of(toleration, "effect", at, &EFFECTS);
        }
    }
}

fn compared(c: &mut Checks, value: &str, at: At<'_>) {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let is_canonical = value == "0"
        || (!digits.starts_with('0')
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit()));
    if value.is_empty() {
        c.invalid(at, value, "must be non-empty");
    } else if !is_canonical {
        c.invalid(at, value, "must be a valid decimal integer in canonical form");
    }
    if value.parse::<i64>().is_err() {
        let why = if is_canonical { "value out of range" } else { "invalid syntax" };
        c.invalid(at, value, format!("strconv.ParseInt: parsing {value:?}: {why}"));
    }
}

/// Conditions that a pod waits for, to be ready and to be scheduled.
pub(super) fn gates(c: &mut Checks, spec: &Value, at: At<'_>) {
    for (i, gate) in list(spec, "readinessGates").iter().enumerate() {
        let (name, at) = (text(gate, "conditionType"), at.item("readinessGates", i));
        c.syntax(at.child("conditionType"), name, names::qualified_name);
    }
    let mut seen = HashSet::new();
    for (i, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        c.syntax(at.item("schedulingGates", i), name, names::qualified_name);
        if !seen.insert(name) {
            c.duplicate(at.item("schedulingGates", i), name);
        }
    }
}
