//! Jobs and CronJobs (upstream: batch `defaults.go`, `validation.go`).

use serde_json::{Map, Value, json};

use super::checks::{Checks, IMMUTABLE};
use super::selectors;
use super::util::{each, put, put_str, spec, text};
use super::workloads::{template, template_labels, validate_template};
use crate::field::At;
use crate::names;
use crate::object;
use crate::selector::LabelSelector;

fn default_job_spec(s: &mut Map<String, Value>) {
    template(s);
    let both_missing = !s.contains_key("completions") && !s.contains_key("parallelism");
    if both_missing {
        put(s, "completions", 1);
    }
    put(s, "parallelism", 1);
    let indexed_limit = s.contains_key("backoffLimitPerIndex");
    put(s, "backoffLimit", if indexed_limit { i64::from(i32::MAX) } else { 6 });
    put_str(s, "completionMode", "NonIndexed");
    put(s, "suspend", false);
    put(s, "manualSelector", false);
    let failing = s.contains_key("podFailurePolicy");
    put_str(s, "podReplacementPolicy", if failing { "Failed" } else { "TerminatingOrFailed" });
    if let Some(p) = s.get_mut("podFailurePolicy").and_then(Value::as_object_mut) {
        for rule in each(p, "rules") {
            for c in each(rule, "onPodConditions") {
                put_str(c, "status", "True");
            }
        }
    }
}

pub(super) fn default_job(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    default_job_spec(s);
    let labels = object::get(obj, "/spec/template/metadata/labels").clone();
    if labels.as_object().is_some_and(|l| !l.is_empty()) && object::labels(obj).is_none_or(Map::is_empty) {
        object::metadata_mut(obj).insert("labels".into(), labels);
    }
}

/// Gives the job its selector from its UID, which the server sets before.
pub(super) fn create_job(obj: &mut Value) {
    if object::get(obj, "/spec/manualSelector").as_bool() == Some(true) {
        return;
    }
    let (uid, name) = (object::uid(obj).to_string(), object::name(obj).to_string());
    if uid.is_empty() {
        return;
    }
    let Some(s) = spec(obj) else { return };
    let Some(t) = s.get_mut("template").and_then(Value::as_object_mut) else { return };
    let labels = object::object_entry(object::object_entry(t, "metadata"), "labels");
    for key in ["batch.kubernetes.io/job-name", "job-name"] {
        labels.insert(key.into(), name.as_str().into());
    }
    for key in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
        labels.insert(key.into(), uid.as_str().into());
    }
    let selector = object::object_entry(s, "selector");
    object::object_entry(selector, "matchLabels")
        .insert("batch.kubernetes.io/controller-uid".into(), uid.into());
}

pub(super) fn default_cron_job(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    put_str(s, "concurrencyPolicy", "Allow");
    put(s, "suspend", false);
    put(s, "successfulJobsHistoryLimit", 3);
    put(s, "failedJobsHistoryLimit", 1);
    let t = object::object_entry(s, "jobTemplate");
    put(t, "metadata", json!({}));
    if let Some(job) = t.get_mut("spec").and_then(Value::as_object_mut) {
        // A template's job gets its defaults when it is made, its pods now.
        template(job);
    }
}

fn validate_job_spec(c: &mut Checks, spec: &Value, at: At<'_>) {
    for f in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        c.non_negative(spec, f, at);
    }
    c.one_of(spec, "completionMode", at, &["Indexed", "NonIndexed"]);
    c.one_of(spec, "podReplacementPolicy", at, &["Failed", "TerminatingOrFailed"]);
    if text(spec, "completionMode") == "Indexed" && spec.get("completions").is_none() {
        c.required(at.child("completions"), "when completion mode is Indexed");
    }
    let (template, at) = (&spec["template"], at.child("template"));
    validate_template(c, template, at);
    let at = at.child("spec.restartPolicy");
    match text(&template["spec"], "restartPolicy") {
        // Upstream asks for a value when the default was taken.
        "Always" => c.required(at, "valid values: \"OnFailure\", \"Never\""),
        policy @ "OnFailure" if spec.get("podFailurePolicy").is_some_and(Value::is_object) => {
            c.invalid(at, policy, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "" | "OnFailure" | "Never" => {}
        other => c.unsupported(at, other, &["OnFailure", "Never"]),
    }
}

pub(super) fn validate_job(c: &mut Checks, obj: &Value) {
    validate_job_spec(c, &obj["spec"], At::SPEC);
    let selector = object::get(obj, "/spec/selector");
    if selector.is_object() {
        selectors::label_selector(c, selector, At::SPEC.child("selector"));
        if let Ok(s) = LabelSelector::from_object(selector) {
            template_labels(c, obj, &s);
        }
    } else {
        c.required("spec.selector", "");
    }
    if let Some(m) = names::dns1123_label(object::name(obj))
        .first()
        .filter(|_| text(&obj["spec"], "completionMode") == "Indexed")
    {
        c.invalid("metadata.name", object::name(obj), m.as_str());
    }
}

pub(super) fn update_job(c: &mut Checks, new: &Value, old: &Value) {
    let indexed = text(&new["spec"], "completionMode") == "Indexed";
    if !indexed {
        c.immutable(new, old, "/spec/completions");
    }
    for path in [
        "/spec/selector",
        "/spec/completionMode",
        "/spec/podFailurePolicy",
        "/spec/backoffLimitPerIndex",
        "/spec/managedBy",
        "/spec/successPolicy",
    ] {
        c.immutable(new, old, path);
    }
    update_job_template(c, new, old);
}

/// Where the pods of a suspended job go and what they take may change while none of them is there; the rest
/// of the template never (MutableSchedulingDirectivesForSuspendedJobs and
/// MutablePodResourcesForSuspendedJobs, on from 1.36).
fn update_job_template(c: &mut Checks, new: &Value, old: &Value) {
    let status = &old["status"];
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told = conditions.iter().any(|c| text(c, "type") == "Suspended" && text(c, "status") == "True");
    let is_free = old["spec"]["suspend"].as_bool() == Some(true)
        && (status["startTime"].is_null() || told)
        && status["active"].as_i64().unwrap_or(0) == 0;
    if !is_free {
        c.immutable(new, old, "/spec/template");
        return;
    }
    let wanted = object::get(new, "/spec/template/spec");
    let mut allowed = object::get(old, "/spec/template/spec").clone();
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        take(&mut allowed, wanted, field);
    }
    let mut affinity = allowed["affinity"].take();
    take(&mut affinity, &wanted["affinity"], "nodeAffinity");
    let is_empty = affinity.as_object().is_none_or(Map::is_empty) && wanted["affinity"].is_null();
    take(&mut allowed, &json!({ "affinity": if is_empty { Value::Null } else { affinity } }), "affinity");
    for list in ["containers", "initContainers"] {
        let (Some(allowed), Some(wanted)) = (allowed[list].as_array_mut(), wanted[list].as_array()) else {
            continue;
        };
        if allowed.len() == wanted.len() {
            for (allowed, wanted) in allowed.iter_mut().zip(wanted).filter(|(a, w)| a["name"] == w["name"]) {
                take(allowed, wanted, "resources");
            }
        }
    }
    if &without_nulls(allowed) != wanted {
        c.invalid("spec.template.spec", wanted.clone(), IMMUTABLE);
    }
}

/// `to`'s field becomes what it is in `from`, absent included.
fn take(to: &mut Value, from: &Value, field: &str) {
    match from.get(field).filter(|value| !value.is_null()) {
        Some(value) if to.is_null() => *to = json!({ field: value }),
        Some(value) => to[field] = value.clone(),
        None => {
            if let Some(to) = to.as_object_mut() {
                to.remove(field);
            }
        }
    }
}

/// Indexing an object to change it leaves nulls behind.
fn without_nulls(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    object
}

pub(super) fn validate_cron_job(c: &mut Checks, obj: &Value) {
    validate_job_spec(c, &obj["spec"]["jobTemplate"]["spec"], At::root("spec.jobTemplate.spec"));
    let s = &obj["spec"];
    let schedule = text(s, "schedule");
    if schedule.is_empty() {
        if s.get("schedule").is_some() {
            c.required("spec.schedule", "");
        }
    } else if let Err(e) = check_schedule(schedule) {
        c.invalid("spec.schedule", schedule, e);
    }
    if let Some(zone) = s.get("timeZone").and_then(Value::as_str) {
        if zone.is_empty() {
            c.invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string");
        } else if zone.eq_ignore_ascii_case("local") {
            c.invalid(
                "spec.timeZone",
                zone,
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            );
        } else if jiff::tz::TimeZone::get(zone).is_err() {
            c.invalid("spec.timeZone", zone, format!("unknown time zone {zone}"));
        }
    }
    c.one_of(s, "concurrencyPolicy", At::SPEC, &["Allow", "Forbid", "Replace"]);
    for f in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        c.non_negative(s, f, At::SPEC);
    }
    if object::name(obj).len() > 52 {
        c.invalid("metadata.name", object::name(obj), "must be no more than 52 characters");
    }
}

/// The standard five-field schedule and its `@` shorthands.
fn check_schedule(s: &str) -> Result<(), String> {
    if s.contains("TZ") {
        return Err("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_string());
    }
    if let Some(word) = s.strip_prefix('@') {
        let known =
            ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"].contains(&word);
        return if known || word.starts_with("every ") {
            Ok(())
        } else {
            Err(format!("unrecognized descriptor: {s}"))
        };
    }
    let fields: Vec<&str> = s.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    const MONTHS: &[&str] =
        &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let ranges: [(u32, u32, &[&str]); 5] =
        [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
    for (field, (low, high, words)) in fields.iter().zip(ranges) {
        for part in field.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
            if step.is_some_and(|s| s.parse::<u32>().ok().is_none_or(|n| n == 0)) {
                return Err(format!("step of range should be a positive number: {part}"));
            }
            if range == "*" || range == "?" {
                continue;
            }
            let number = |t: &str| {
                let word = words.iter().position(|w| w.eq_ignore_ascii_case(t)).map(|i| i as u32 + low);
                word.or_else(|| t.parse::<u32>().ok()).ok_or_else(|| format!("failed to parse int from {t}"))
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (number(first)?, number(last)?);
            if first < low {
                return Err(format!("beginning of range ({first}) below minimum ({low}): {part}"));
            }
            if last > high {
                return Err(format!("end of range ({last}) above maximum ({high}): {part}"));
            }
            if first > last {
                return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::errors;

    #[test]
    fn jobs() {
        let mut j = json!({"kind": "Job", "metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        default_job(&mut j);
        create_job(&mut j);
        assert_eq!(j["spec"]["backoffLimit"], 6);
        assert_eq!(j["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        assert_eq!(errors(validate_job, &j), Vec::<String>::new());
    }

    #[test]
    fn the_template_of_a_suspended_job() {
        let container =
            |cpu: &str| json!([{ "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } } }]);
        let job = |suspend: bool, status: Value, pod: Value| json!({ "status": status, "spec": { "suspend": suspend, "template": { "spec": pod } } });
        let old = json!({ "containers": container("1") });
        let more_cpu = json!({ "containers": container("2") });
        let elsewhere = json!({ "containers": container("1"), "nodeSelector": { "a": "b" }, "affinity": { "nodeAffinity": {} } });
        let other_image = json!({ "containers": [{ "name": "c", "image": "j", "resources": { "requests": { "cpu": "1" } } }] });
        let apart = json!({ "containers": container("1"), "affinity": { "podAntiAffinity": {} } });
        let suspended =
            json!({ "startTime": "t", "conditions": [{ "type": "Suspended", "status": "True" }] });
        let active = json!({ "active": 1, "startTime": "t", "conditions": [{ "type": "Suspended", "status": "True" }] });
        for (what, suspend, status, new, allowed) in [
            ("resources, never started", true, json!({}), &more_cpu, true),
            ("resources, suspended again", true, suspended.clone(), &more_cpu, true),
            ("resources, pods are still there", true, active, &more_cpu, false),
            (
                "resources, the controller has not seen it",
                true,
                json!({ "startTime": "t" }),
                &more_cpu,
                false,
            ),
            ("resources, running", false, json!({}), &more_cpu, false),
            ("node", true, suspended.clone(), &elsewhere, true),
            ("image", true, json!({}), &other_image, false),
            ("other affinity", true, json!({}), &apart, false),
            ("nothing", true, suspended, &old, true),
        ] {
            let mut found = Checks::default();
            update_job(
                &mut found,
                &job(suspend, status.clone(), new.clone()),
                &job(suspend, status, old.clone()),
            );
            assert_eq!(found.errors.is_empty(), allowed, "{what}: {found:?}");
        }
        let mut found = Checks::default();
        update_job(&mut found, &job(true, json!({}), old), &job(true, json!({}), elsewhere));
        assert!(found.errors.is_empty(), "taken away again: {found:?}");
    }

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0 1-3,7 jan mon-fri", "@hourly", "@every 1h", "0 0 ? * *"] {
            assert_eq!(check_schedule(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* * * * 8",
            "*/0 * * * *",
            "@never",
            "TZ=UTC * * * * *",
            "5-1 * * * *",
        ] {
            assert!(check_schedule(bad).is_err(), "{bad}");
        }
    }
}
