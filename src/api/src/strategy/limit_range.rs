//! LimitRanges (upstream's `ValidateLimitRange`).

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::checks::Checks;
use super::resource_names as resources;
use super::util::{list, text};
use crate::field::At;
use crate::names;
use crate::quantity::Quantity;

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    let mut seen = HashSet::new();
    for (i, limit) in list(&obj["spec"], "limits").iter().enumerate() {
        let at = At::SPEC.item("limits", i);
        let (kind, path) = (text(limit, "type"), at.child("type"));
        let before = c.errors.len();
        c.syntax(path, kind, names::qualified_name);
        let is_standard = matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim");
        if c.errors.len() == before && !kind.contains('/') && !is_standard {
            let what = "must be a standard limit type or fully qualified";
            c.invalid(path, kind, what);
        }
        if !seen.insert(kind) {
            c.duplicate(path, kind);
        }
        one(c, limit, kind, at);
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
}

fn one(c: &mut Checks, limit: &Value, kind: &str, at: At<'_>) {
    let is_pod = kind == "Pod";
    let mut names = BTreeSet::new();
    for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if field == "maxLimitRequestRatio"
            && kind == "PersistentVolumeClaim"
            && ["min", "max"].iter().all(|f| limit[*f].get("storage").is_none())
        {
            let what = "either minimum or maximum storage value is required, but neither was provided";
            c.required(at.child("limits"), what);
        }
        let Some(amounts) = limit[field].as_object().filter(|m| !m.is_empty()) else { continue };
        let path = at.child(field);
        if is_pod && field.starts_with("default") {
            c.forbidden(path, "may not be specified when `type` is 'Pod'");
            continue;
        }
        for name in amounts.keys() {
            let path = path.key(name);
            if matches!(kind, "Pod" | "Container") {
                resources::of_container(c, name, path);
            } else {
                resources::any(c, name, path);
            }
            names.insert(name.as_str());
        }
    }
    for name in names {
        compare(c, limit, name, is_pod, at);
    }
}

/// min <= defaultRequest <= default <= max, and a ratio that these allow.
fn compare(c: &mut Checks, limit: &Value, name: &str, is_pod: bool, at: At<'_>) {
    let amount = |field: &str| Quantity::from_value(&limit[field][name]);
    let of_containers = |field: &str| if is_pod { None } else { amount(field) };
    let (min, max) = (amount("min"), amount("max"));
    let (default, request) = (of_containers("default"), of_containers("defaultRequest"));
    let ratio = amount("maxLimitRequestRatio");
    let mut say = |field: &str, value: Quantity, what: String| {
        c.invalid(at.child(field).key(name), value.to_string(), what);
    };
    // (less, its name, more, its name, the field that is told of, its value is the one of less)
    for (less, low, more, high, field, shows_less) in [
        (min, "min value", max, "max value", "min", true),
        (min, "min value", request, "default request value", "defaultRequest", false),
        (request, "default request value", max, "max value", "defaultRequest", true),
        (request, "default request value", default, "default limit value", "defaultRequest", true),
        (min, "min value", default, "default value", "default", true),
        (default, "default value", max, "max value", "default", false),
    ] {
        if let (Some(less), Some(more)) = (less, more)
            && less > more
        {
            let shown = if shows_less { less } else { more };
            say(field, shown, format!("{low} {less} is greater than {high} {more}"));
        }
    }
    if let Some(ratio) = ratio {
        let field = "maxLimitRequestRatio";
        if ratio.milli_value() < 1000 {
            say(field, ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let most = max.as_f64() / min.as_f64();
            if ratio.as_f64() > most {
                say(field, ratio, format!("ratio {ratio} is greater than max/min = {most:.6}"));
            }
        }
    }
    if let (Some(default), Some(request)) = (default, request)
        && default != request
        && !resources::may_overcommit(name)
    {
        let what = format!("default value {default} must equal to defaultRequest value {request} in {name}");
        say("defaultRequest", request, what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    fn of(limit: Value) -> String {
        told(validate, &json!({"spec": {"limits": [limit]}}))
    }

    #[test]
    fn good_limits() {
        for limit in [
            json!({"type": "Container", "min": {"cpu": "25m"}, "max": {"cpu": "100m"}, "default": {"cpu": "50m"},
                "defaultRequest": {"cpu": "30m"}, "maxLimitRequestRatio": {"cpu": 4}}),
            json!({"type": "Pod", "max": {"cpu": 4, "memory": "1Gi"}, "maxLimitRequestRatio": {"memory": "1.5"}}),
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}}),
            json!({"type": "example.com/thing", "max": {"storage": "10T"}}),
            json!({"type": "Container", "default": {"hugepages-2Mi": "4Mi"}, "defaultRequest": {"hugepages-2Mi": "4Mi"}}),
        ] {
            assert_eq!(of(limit.clone()), "", "{limit}");
        }
    }

    #[test]
    fn bad_limits() {
        for (limit, wanted) in [
            (
                json!({"type": "pod"}),
                "type: Invalid value: \"pod\": must be a standard limit type or fully qualified",
            ),
            (
                json!({"type": "Pod", "default": {"cpu": 1}}),
                "default: Forbidden: may not be specified when `type` is 'Pod'",
            ),
            (
                json!({"type": "Container", "min": {"cpu": 2}, "max": {"cpu": 1}}),
                "min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Container", "min": {"cpu": 2}, "defaultRequest": {"cpu": 1}}),
                "defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
            ),
            (
                json!({"type": "Container", "max": {"cpu": 1}, "defaultRequest": {"cpu": 2}}),
                "defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Container", "default": {"cpu": 1}, "defaultRequest": {"cpu": 2}}),
                "defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
            ),
            (
                json!({"type": "Container", "default": {"cpu": 2}, "max": {"cpu": 1}}),
                "default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Container", "default": {"cpu": 1}, "min": {"cpu": 2}}),
                "default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "800m"}}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"800m\": ratio 800m is less than 1",
            ),
            (
                json!({"type": "Container", "min": {"cpu": 1}, "max": {"cpu": 2}, "maxLimitRequestRatio": {"cpu": "3"}}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
            ),
            (
                json!({"type": "PersistentVolumeClaim"}),
                "limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ),
            (
                json!({"type": "Container", "max": {"storage": 1}}),
                "max[storage]: Invalid value: \"storage\": must be a standard resource for containers",
            ),
            (
                json!({"type": "Container", "default": {"hugepages-2Mi": "4Mi"}, "defaultRequest": {"hugepages-2Mi": "2Mi"}}),
                "defaultRequest[hugepages-2Mi]: Invalid value: \"2Mi\": default value 4Mi must equal to defaultRequest value 2Mi in hugepages-2Mi",
            ),
        ] {
            assert_eq!(of(limit), format!("spec.limits[0].{wanted}"));
        }
        let twice = json!({"spec": {"limits": [{"type": "Pod"}, {"type": "Pod"}]}});
        assert_eq!(told(validate, &twice), "spec.limits[1].type: Duplicate value: \"Pod\"");
    }
}
