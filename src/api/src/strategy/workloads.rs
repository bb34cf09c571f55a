//! Deployments, ReplicaSets, ReplicationControllers, DaemonSets, StatefulSets,
//! Jobs and CronJobs (upstream: apps and batch `defaults.go`, `validation.go`).

use serde_json::{Map, Value, json};

use super::meta::immutable;
use super::util::{NON_NEGATIVE, each, list, non_negative, one_of, put, put_str, spec, text};
use super::{pod, pod_spec};
use crate::field::FieldError;
use crate::names;
use crate::object;
use crate::selector::LabelSelector;

fn template(spec: &mut Map<String, Value>) {
    if let Some(t) = spec.get_mut("template").and_then(Value::as_object_mut) {
        pod::default_template(t);
    }
}

pub(super) fn default_deployment(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    template(s);
    put(s, "replicas", 1);
    put(s, "revisionHistoryLimit", 10);
    put(s, "progressDeadlineSeconds", 600);
    let strategy = object::object_entry(s, "strategy");
    put_str(strategy, "type", "RollingUpdate");
    if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        let r = object::object_entry(strategy, "rollingUpdate");
        put(r, "maxUnavailable", "25%");
        put(r, "maxSurge", "25%");
    }
}

pub(super) fn default_replica_set(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    template(s);
    put(s, "replicas", 1);
}

pub(super) fn default_replication_controller(obj: &mut Value) {
    let labels = object::get(obj, "/spec/template/metadata/labels").clone();
    let Some(s) = spec(obj) else { return };
    template(s);
    put(s, "replicas", 1);
    if let Some(l) = labels.as_object().filter(|l| !l.is_empty()) {
        put(s, "selector", Value::Object(l.clone()));
        if object::labels(obj).is_none_or(Map::is_empty) {
            object::metadata_mut(obj).insert("labels".into(), labels);
        }
    }
}

pub(super) fn default_daemon_set(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    template(s);
    put(s, "revisionHistoryLimit", 10);
    let u = object::object_entry(s, "updateStrategy");
    put_str(u, "type", "RollingUpdate");
    if u.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        let r = object::object_entry(u, "rollingUpdate");
        put(r, "maxUnavailable", 1);
        put(r, "maxSurge", 0);
    }
}

pub(super) fn default_stateful_set(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    template(s);
    put_str(s, "podManagementPolicy", "OrderedReady");
    put(s, "replicas", 1);
    put(s, "revisionHistoryLimit", 10);
    let u = object::object_entry(s, "updateStrategy");
    put_str(u, "type", "RollingUpdate");
    if u.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        put(object::object_entry(u, "rollingUpdate"), "partition", 0);
    }
    let p = object::object_entry(s, "persistentVolumeClaimRetentionPolicy");
    put_str(p, "whenDeleted", "Retain");
    put_str(p, "whenScaled", "Retain");
    for t in each(s, "volumeClaimTemplates") {
        put_str(t, "apiVersion", "v1");
        put_str(t, "kind", "PersistentVolumeClaim");
        let claim = object::object_entry(t, "spec");
        put_str(claim, "volumeMode", "Filesystem");
        put(t, "status", json!({"phase": "Pending"}));
    }
}

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

fn selector_matches(obj: &Value, errors: &mut Vec<FieldError>) {
    let selector = object::get(obj, "/spec/selector");
    if !selector.is_object() {
        return;
    }
    let parsed = match LabelSelector::from_object(selector) {
        Ok(s) => s,
        Err(_) => {
            errors.push(FieldError::invalid("spec.selector", selector.clone(), "invalid label selector"));
            return;
        }
    };
    if parsed.is_everything() {
        errors.push(FieldError::invalid(
            "spec.selector",
            selector.clone(),
            "empty selector is invalid for deployment"
                .replace("deployment", &object::kind(obj).to_lowercase()),
        ));
        return;
    }
    template_labels(obj, &parsed, errors);
}

fn template_labels(obj: &Value, selector: &LabelSelector, errors: &mut Vec<FieldError>) {
    let labels = object::get(obj, "/spec/template/metadata/labels");
    if !selector.matches_labels(labels) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
}

/// The template's labels and pods; `restart` lists the allowed restart policies.
fn validate_template(obj: &Value, path: &str, restart: &[&str], errors: &mut Vec<FieldError>) {
    let t = object::get(obj, &format!("/{}", path.replace('.', "/")));
    super::meta::labels(object::get(t, "/metadata/labels"), &format!("{path}.metadata.labels"), errors);
    super::meta::annotations(
        object::get(t, "/metadata/annotations"),
        &format!("{path}.metadata.annotations"),
        errors,
    );
    pod_spec::validate(&t["spec"], &format!("{path}.spec"), errors);
    one_of(&t["spec"], "restartPolicy", &format!("{path}.spec"), restart, errors);
    if object::get(t, "/spec/activeDeadlineSeconds").is_i64() && restart == ["Always"] {
        errors.push(FieldError::forbidden(
            format!("{path}.spec.activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {} is not Supported", object::kind(obj)),
        ));
    }
}

/// An int or a percentage that is not negative; the number or the percentage.
fn int_or_percent(v: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<i64> {
    match v {
        Value::Number(n) => {
            let n = n.as_i64().unwrap_or(0);
            if n < 0 {
                errors.push(FieldError::invalid(path, n, NON_NEGATIVE));
            }
            Some(n)
        }
        Value::String(s) => {
            let n = s.strip_suffix('%').and_then(|d| d.parse::<u32>().ok());
            if n.is_none() {
                errors.push(FieldError::invalid(
                    path,
                    s.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ));
            }
            n.map(i64::from)
        }
        _ => None,
    }
}

pub(super) fn validate_deployment(obj: &Value, errors: &mut Vec<FieldError>) {
    for f in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        non_negative(obj, &format!("/spec/{f}"), errors);
    }
    selector_matches(obj, errors);
    validate_template(obj, "spec.template", &["Always"], errors);
    let strategy = object::get(obj, "/spec/strategy");
    one_of(strategy, "type", "spec.strategy", &["Recreate", "RollingUpdate"], errors);
    let rolling = &strategy["rollingUpdate"];
    if text(strategy, "type") == "Recreate" && rolling.is_object() {
        errors.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ));
    }
    if rolling.is_object() {
        let unavailable =
            int_or_percent(&rolling["maxUnavailable"], "spec.strategy.rollingUpdate.maxUnavailable", errors);
        let surge = int_or_percent(&rolling["maxSurge"], "spec.strategy.rollingUpdate.maxSurge", errors);
        if unavailable == Some(0) && surge == Some(0) {
            errors.push(FieldError::invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                rolling["maxUnavailable"].clone(),
                "may not be 0 when `maxSurge` is 0",
            ));
        }
    }
    let deadline = object::get(obj, "/spec/progressDeadlineSeconds").as_i64();
    let ready = object::get(obj, "/spec/minReadySeconds").as_i64().unwrap_or(0);
    if let Some(d) = deadline.filter(|d| *d <= ready) {
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            d,
            "must be greater than minReadySeconds",
        ));
    }
}

pub(super) fn update_selector(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    immutable(new, old, "/spec/selector", errors);
}

pub(super) fn validate_replica_set(obj: &Value, errors: &mut Vec<FieldError>) {
    non_negative(obj, "/spec/replicas", errors);
    non_negative(obj, "/spec/minReadySeconds", errors);
    selector_matches(obj, errors);
    validate_template(obj, "spec.template", &["Always"], errors);
}

pub(super) fn validate_replication_controller(obj: &Value, errors: &mut Vec<FieldError>) {
    non_negative(obj, "/spec/replicas", errors);
    non_negative(obj, "/spec/minReadySeconds", errors);
    let selector = object::get(obj, "/spec/selector");
    if selector.as_object().is_none_or(Map::is_empty) {
        errors.push(FieldError::required("spec.selector", ""));
    } else if let Ok(s) = LabelSelector::from_map(selector) {
        template_labels(obj, &s, errors);
    }
    if !object::get(obj, "/spec/template").is_object() {
        errors.push(FieldError::required("spec.template", ""));
    }
    validate_template(obj, "spec.template", &["Always"], errors);
}

pub(super) fn validate_daemon_set(obj: &Value, errors: &mut Vec<FieldError>) {
    non_negative(obj, "/spec/minReadySeconds", errors);
    non_negative(obj, "/spec/revisionHistoryLimit", errors);
    selector_matches(obj, errors);
    validate_template(obj, "spec.template", &["Always"], errors);
    let u = object::get(obj, "/spec/updateStrategy");
    one_of(u, "type", "spec.updateStrategy", &["OnDelete", "RollingUpdate"], errors);
    let r = &u["rollingUpdate"];
    let unavailable =
        int_or_percent(&r["maxUnavailable"], "spec.updateStrategy.rollingUpdate.maxUnavailable", errors);
    let surge = int_or_percent(&r["maxSurge"], "spec.updateStrategy.rollingUpdate.maxSurge", errors);
    match (unavailable, surge) {
        (Some(0), Some(0)) => errors.push(FieldError::required(
            "spec.updateStrategy.rollingUpdate.maxUnavailable",
            "cannot be 0 when maxSurge is 0",
        )),
        (Some(u), Some(s)) if u != 0 && s != 0 => errors.push(FieldError::invalid(
            "spec.updateStrategy.rollingUpdate.maxSurge",
            r["maxSurge"].clone(),
            "may not be set when maxUnavailable is non-zero",
        )),
        _ => {}
    }
}

pub(super) fn validate_stateful_set(obj: &Value, errors: &mut Vec<FieldError>) {
    for f in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        non_negative(obj, &format!("/spec/{f}"), errors);
    }
    selector_matches(obj, errors);
    // The claims' volumes are there when the pods are made.
    let mut with_claims = obj.clone();
    if let Some(s) = with_claims.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) {
        let volumes = s.entry("volumes").or_insert_with(|| json!([]));
        for c in list(&obj["spec"], "volumeClaimTemplates") {
            let name = object::name(c);
            if let Some(v) = volumes.as_array_mut()
                && !v.iter().any(|x| x["name"] == name)
            {
                v.push(json!({"name": name, "emptyDir": {}}));
            }
        }
    }
    validate_template(&with_claims, "spec.template", &["Always"], errors);
    one_of(&obj["spec"], "podManagementPolicy", "spec", &["OrderedReady", "Parallel"], errors);
    one_of(
        object::get(obj, "/spec/updateStrategy"),
        "type",
        "spec.updateStrategy",
        &["OnDelete", "RollingUpdate"],
        errors,
    );
    non_negative(obj, "/spec/updateStrategy/rollingUpdate/partition", errors);
}

const STATEFUL_SET_UPDATE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

pub(super) fn update_stateful_set(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let fixed = |v: &Value| {
        let mut s = v["spec"].as_object().cloned().unwrap_or_default();
        for f in [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ] {
            s.remove(f);
        }
        s
    };
    if fixed(new) != fixed(old) {
        errors.push(FieldError::forbidden("spec", STATEFUL_SET_UPDATE));
    }
}

pub(super) fn update_revision(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    immutable(new, old, "/data", errors);
}

fn validate_job_spec(obj: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let pointer = format!("/{}", at.replace('.', "/"));
    for f in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(obj, &format!("{pointer}/{f}"), errors);
    }
    let s = object::get(obj, &pointer);
    one_of(s, "completionMode", at, &["Indexed", "NonIndexed"], errors);
    one_of(s, "podReplacementPolicy", at, &["Failed", "TerminatingOrFailed"], errors);
    if text(s, "completionMode") == "Indexed" && s.get("completions").is_none() {
        errors.push(FieldError::required(format!("{at}.completions"), "when completion mode is Indexed"));
    }
    let policy = object::get(s, "/template/spec/restartPolicy").as_str().unwrap_or_default();
    let template = format!("{at}.template");
    if policy == "Always" {
        // Upstream asks for a value when the default was taken.
        errors.push(FieldError::required(
            format!("{template}.spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        ));
    }
    validate_template(obj, &template, &["Always", "Never", "OnFailure"], errors);
}

pub(super) fn validate_job(obj: &Value, errors: &mut Vec<FieldError>) {
    validate_job_spec(obj, "spec", errors);
    let selector = object::get(obj, "/spec/selector");
    if selector.is_object() {
        if let Ok(s) = LabelSelector::from_object(selector) {
            template_labels(obj, &s, errors);
        }
    } else {
        errors.push(FieldError::required("spec.selector", ""));
    }
    if let Some(m) = names::dns1123_label(object::name(obj))
        .first()
        .filter(|_| text(&obj["spec"], "completionMode") == "Indexed")
    {
        errors.push(FieldError::invalid("metadata.name", object::name(obj), m.as_str()));
    }
}

pub(super) fn update_job(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let indexed = text(&new["spec"], "completionMode") == "Indexed";
    if !indexed {
        immutable(new, old, "/spec/completions", errors);
    }
    for f in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(new, old, &format!("/spec/{f}"), errors);
    }
    // A suspended job that never started may still be rescheduled elsewhere.
    let suspended = object::get(old, "/spec/suspend").as_bool() == Some(true)
        && object::get(old, "/status/startTime").is_null();
    if !suspended {
        immutable(new, old, "/spec/template", errors);
    }
}

pub(super) fn validate_cron_job(obj: &Value, errors: &mut Vec<FieldError>) {
    validate_job_spec(obj, "spec.jobTemplate.spec", errors);
    let s = &obj["spec"];
    let schedule = text(s, "schedule");
    if schedule.is_empty() {
        if s.get("schedule").is_some() {
            errors.push(FieldError::required("spec.schedule", ""));
        }
    } else if let Err(e) = check_schedule(schedule) {
        errors.push(FieldError::invalid("spec.schedule", schedule, e));
    }
    if let Some(zone) = s.get("timeZone").and_then(Value::as_str) {
        if zone.is_empty() {
            errors.push(FieldError::invalid(
                "spec.timeZone",
                zone,
                "timeZone must be nil or non-empty string",
            ));
        } else if zone.eq_ignore_ascii_case("local") {
            errors.push(FieldError::invalid(
                "spec.timeZone",
                zone,
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ));
        } else if jiff::tz::TimeZone::get(zone).is_err() {
            errors.push(FieldError::invalid("spec.timeZone", zone, format!("unknown time zone {zone}")));
        }
    }
    one_of(s, "concurrencyPolicy", "spec", &["Allow", "Forbid", "Replace"], errors);
    for f in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        non_negative(obj, &format!("/spec/{f}"), errors);
    }
    if object::name(obj).len() > 52 {
        errors.push(FieldError::invalid(
            "metadata.name",
            object::name(obj),
            "must be no more than 52 characters",
        ));
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

    fn deployment() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "b"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    }

    fn errors(v: &Value, f: fn(&Value, &mut Vec<FieldError>)) -> Vec<String> {
        let mut e = Vec::new();
        f(v, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn deployments() {
        let mut d = deployment();
        default_deployment(&mut d);
        assert_eq!(d["spec"]["replicas"], 1);
        assert_eq!(
            d["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(d["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        assert_eq!(errors(&d, validate_deployment), Vec::<String>::new());
        d["spec"]["template"]["metadata"]["labels"] = json!({"a": "x"});
        d["spec"]["replicas"] = json!(-1);
        assert_eq!(
            errors(&d, validate_deployment),
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                r#"spec.template.metadata.labels: Invalid value: {"a":"x"}: `selector` does not match template `labels`"#,
            ]
        );
    }

    #[test]
    fn jobs() {
        let mut j = json!({"kind": "Job", "metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        default_job(&mut j);
        create_job(&mut j);
        assert_eq!(j["spec"]["backoffLimit"], 6);
        assert_eq!(j["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        assert_eq!(errors(&j, validate_job), Vec::<String>::new());
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
