//! Events of both API groups (upstream's `core/validation/events.go`). The older group takes almost
//! anything, for it always did.

use serde_json::Value;

use super::checks::{Checks, IMMUTABLE};
use super::util::text;
use crate::field::At;
use crate::names;
use crate::object;

/// The longest reporting instance, action and reason.
const SHORT: usize = 128;
/// The longest message.
const LONG: usize = 1024;

fn is_new(obj: &Value) -> bool {
    object::api_version(obj).starts_with("events.k8s.io/")
}

/// The object that the event is of, under either name.
fn regarding(obj: &Value) -> &Value {
    if is_new(obj) { &obj["regarding"] } else { &obj["involvedObject"] }
}

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    legacy(c, obj);
    if !is_new(obj) {
        return;
    }
    series(c, obj);
    if text(obj, "eventTime").is_empty() {
        c.required("eventTime", "");
    }
    let kind = text(obj, "type");
    if !matches!(kind, "Normal" | "Warning") {
        c.invalid("type", "", format!("has invalid value: {kind}"));
    }
    let source = &obj["deprecatedSource"];
    for (field, is_set) in [
        ("firstTimestamp", !text(obj, "deprecatedFirstTimestamp").is_empty()),
        ("lastTimestamp", !text(obj, "deprecatedLastTimestamp").is_empty()),
        ("count", obj["deprecatedCount"].as_i64().is_some_and(|n| n != 0)),
        ("source", !text(source, "component").is_empty() || !text(source, "host").is_empty()),
    ] {
        if is_set {
            c.invalid(field, "", "needs to be unset");
        }
    }
}

fn series(c: &mut Checks, obj: &Value) {
    let series = &obj["series"];
    if !series.is_object() {
        return;
    }
    if series["count"].as_i64().unwrap_or(0) < 2 {
        c.invalid("series.count", "", "should be at least 2");
    }
    if text(series, "lastObservedTime").is_empty() {
        c.required("series.lastObservedTime", "");
    }
}

fn legacy(c: &mut Checks, obj: &Value) {
    let (own, of) = (object::namespace(obj), text(regarding(obj), "namespace"));
    let has_time = !text(obj, "eventTime").is_empty();
    let matches = match (has_time, of) {
        (false, "") => matches!(own, "" | "default"),
        (false, of) => of == own,
        (true, "") => matches!(own, "default" | "kube-system"),
        (true, _) => true,
    };
    if !matches {
        let what = "does not match event.namespace";
        c.invalid("involvedObject.namespace", of, what);
    }
    if has_time {
        let (path, controller) = if is_new(obj) {
            ("reportingController", text(obj, "reportingController"))
        } else {
            ("reportingComponent", text(obj, "reportingComponent"))
        };
        if controller.is_empty() {
            c.required(path, "");
        }
        c.syntax(At::root(path), controller, names::qualified_name);
        for field in ["reportingInstance", "action", "reason"] {
            let value = text(obj, field);
            if value.is_empty() {
                c.required(field, "");
            }
            if value.len() > SHORT {
                let what = format!("can have at most {SHORT} characters");
                c.invalid(field, "", what);
            }
        }
        if text(obj, if is_new(obj) { "note" } else { "message" }).len() > LONG {
            c.invalid("message", "", format!("can have at most {LONG} characters"));
        }
    }
    c.syntax(At::root("namespace"), own, names::dns1123_subdomain);
}

/// What happened does not change, only how often it did.
pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    if !is_new(new) {
        // Correlators patch events of the older group; what was stored stays so.
        return c.ratchet(legacy, new, old);
    }
    c.ratchet(legacy, new, old);
    if new["series"] != old["series"] {
        series(c, new);
    }
    for (field, told) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("type", "type"),
        ("action", "action"),
        ("related", "related"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if settled(&new[field]) != settled(&old[field]) {
            c.invalid(told, new[field].clone(), IMMUTABLE);
        }
    }
}

/// Go's zero values are as if the field were not there.
fn settled(value: &Value) -> Option<&Value> {
    let is_zero = match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0),
        Value::Object(m) => m.is_empty(),
        _ => false,
    };
    (!is_zero).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn events_of_the_core_group() {
        let of = |own: &str, object: &str, with: Value| {
            let mut event = json!({"apiVersion": "v1", "metadata": {"namespace": own}, "involvedObject": {"namespace": object}});
            for (k, v) in with.as_object().unwrap() {
                event[k] = v.clone();
            }
            told(validate, &event)
        };
        assert_eq!(of("a", "a", json!({})), "");
        assert_eq!(of("default", "", json!({})), "");
        let wrong = "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace";
        assert_eq!(of("a", "b", json!({})), wrong);
        assert_eq!(
            of("a", "", json!({})),
            "involvedObject.namespace: Invalid value: \"\": does not match event.namespace"
        );
        let full = json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "kubelet",
            "reportingInstance": "n", "action": "a", "reason": "r"});
        assert_eq!(of("a", "a", full.clone()), "");
        assert_eq!(of("kube-system", "", full), "");
        assert!(
            of("a", "a", json!({"eventTime": "2026-01-01T00:00:00.000000Z"}))
                .starts_with("reportingComponent: Required value")
        );
    }

    #[test]
    fn events_of_the_newer_group() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "metadata": {"namespace": "a"}, "regarding": {"namespace": "a"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a.b/c", "reportingInstance": "i",
            "action": "a", "reason": "r", "type": "Normal", "note": "n"});
        assert_eq!(told(validate, &event), "");
        for (field, value, wanted) in [
            ("eventTime", Value::Null, "eventTime: Required value"),
            ("type", json!("x"), "type: Invalid value: \"\": has invalid value: x"),
            ("action", json!(""), "action: Required value"),
            (
                "reason",
                json!("x".repeat(129)),
                "reason: Invalid value: \"\": can have at most 128 characters",
            ),
            (
                "note",
                json!("x".repeat(1025)),
                "message: Invalid value: \"\": can have at most 1024 characters",
            ),
            ("deprecatedCount", json!(1), "count: Invalid value: \"\": needs to be unset"),
            (
                "series",
                json!({"count": 1}),
                "series.count: Invalid value: \"\": should be at least 2; series.lastObservedTime: Required value",
            ),
        ] {
            let mut bad = event.clone();
            bad[field] = value;
            assert_eq!(told(validate, &bad), wanted, "{field}");
        }
        let mut changed = event.clone();
        changed["reason"] = json!("other");
        changed["series"] = json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"});
        let mut c = Checks::default();
        update(&mut c, &changed, &event);
        let got: Vec<String> = c.errors.iter().map(ToString::to_string).collect();
        assert_eq!(got, ["reason: Invalid value: \"other\": field is immutable"]);
    }
}
