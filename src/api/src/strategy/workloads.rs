//! Deployments, ReplicaSets, ReplicationControllers, DaemonSets and StatefulSets (upstream: apps `defaults.go`,
//! `validation.go`), and what all that make pods have in common.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::checks::Checks;
use super::util::{each, list, put, put_str, spec, text};
use super::{meta, pod, pod_spec, selectors};
use crate::field::At;
use crate::object;
use crate::selector::LabelSelector;

pub(super) fn template(spec: &mut Map<String, Value>) {
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

/// A selector is one, selects something, and the pods of its own template.
fn selector_matches(c: &mut Checks, obj: &Value) {
    let selector = object::get(obj, "/spec/selector");
    if !selector.is_object() {
        return;
    }
    selectors::label_selector(c, selector, At::SPEC.child("selector"));
    // Upstream's ReplicaSets speak for their Deployments, its StatefulSets say nothing, its DaemonSets not even that.
    let (name, why) = match object::kind(obj) {
        "StatefulSet" => ("statefulset", Some("")),
        "DaemonSet" => ("daemonset", None),
        _ => ("deployment", Some("invalid label selector")),
    };
    match (LabelSelector::from_object(selector), why) {
        (Ok(all), _) if all.is_everything() => {
            c.invalid("spec.selector", selector.clone(), format!("empty selector is invalid for {name}"));
        }
        (Ok(some), _) => template_labels(c, obj, &some),
        (Err(_), Some(why)) => c.invalid("spec.selector", selector.clone(), why),
        (Err(_), None) => {}
    }
}

pub(super) fn template_labels(c: &mut Checks, obj: &Value, selector: &LabelSelector) {
    let labels = object::get(obj, "/spec/template/metadata/labels");
    if !selector.matches_labels(labels) {
        c.invalid(
            "spec.template.metadata.labels",
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
}

/// The template's labels and pods.
pub(super) fn validate_template(c: &mut Checks, template: &Value, at: At<'_>) {
    // Upstream leaves out `metadata` here.
    meta::labels(c, object::get(template, "/metadata/labels"), at.child("labels"));
    meta::annotations(c, object::get(template, "/metadata/annotations"), at.child("annotations"));
    pod_spec::validate_template(c, template, at);
}

/// The template of pods that always run.
fn lasting_template(c: &mut Checks, obj: &Value) {
    const AT: At<'_> = At::root("spec.template.spec");
    let template = object::get(obj, "/spec/template");
    validate_template(c, template, At::root("spec.template"));
    let spec = &template["spec"];
    c.one_of(spec, "restartPolicy", AT, &["Always"]);
    if spec["activeDeadlineSeconds"].is_i64() {
        // Upstream's Deployments speak for their ReplicaSets.
        let kind = if object::kind(obj) == "Deployment" { "ReplicaSet" } else { object::kind(obj) };
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        c.forbidden(AT.child("activeDeadlineSeconds"), why);
    }
}

pub(super) fn validate_deployment(c: &mut Checks, obj: &Value) {
    for f in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        c.non_negative(&obj["spec"], f, At::SPEC);
    }
    selector_matches(c, obj);
    lasting_template(c, obj);
    let strategy = object::get(obj, "/spec/strategy");
    c.one_of(strategy, "type", At::SPEC.child("strategy"), &["Recreate", "RollingUpdate"]);
    let rolling = &strategy["rollingUpdate"];
    if text(strategy, "type") == "Recreate" && rolling.is_object() {
        c.forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'");
    }
    if rolling.is_object() {
        const AT: At<'_> = At::root("spec.strategy.rollingUpdate");
        let unavailable = &rolling["maxUnavailable"];
        let out = c.count_or_percent(AT.child("maxUnavailable"), unavailable);
        let more = c.count_or_percent(AT.child("maxSurge"), &rolling["maxSurge"]);
        if out == Some(0) && more == Some(0) {
            let why = "may not be 0 when `maxSurge` is 0";
            c.invalid(AT.child("maxUnavailable"), unavailable.clone(), why);
        }
        c.at_most_all(AT.child("maxUnavailable"), unavailable);
    }
    let deadline = object::get(obj, "/spec/progressDeadlineSeconds").as_i64();
    let ready = object::get(obj, "/spec/minReadySeconds").as_i64().unwrap_or(0);
    if let Some(d) = deadline.filter(|d| *d <= ready) {
        c.invalid("spec.progressDeadlineSeconds", d, "must be greater than minReadySeconds");
    }
}

pub(super) fn update_selector(c: &mut Checks, new: &Value, old: &Value) {
    c.immutable(new, old, "/spec/selector");
}

pub(super) fn validate_replica_set(c: &mut Checks, obj: &Value) {
    c.non_negative(&obj["spec"], "replicas", At::SPEC);
    c.non_negative(&obj["spec"], "minReadySeconds", At::SPEC);
    selector_matches(c, obj);
    lasting_template(c, obj);
}

pub(super) fn validate_replication_controller(c: &mut Checks, obj: &Value) {
    c.non_negative(&obj["spec"], "replicas", At::SPEC);
    c.non_negative(&obj["spec"], "minReadySeconds", At::SPEC);
    let selector = object::get(obj, "/spec/selector");
    if selector.as_object().is_none_or(Map::is_empty) {
        c.required("spec.selector", "");
    } else if let Ok(s) = LabelSelector::from_map(selector) {
        template_labels(c, obj, &s);
    }
    if !object::get(obj, "/spec/template").is_object() {
        c.required("spec.template", "");
    }
    lasting_template(c, obj);
}

pub(super) fn validate_daemon_set(c: &mut Checks, obj: &Value) {
    c.non_negative(&obj["spec"], "minReadySeconds", At::SPEC);
    c.non_negative(&obj["spec"], "revisionHistoryLimit", At::SPEC);
    selector_matches(c, obj);
    lasting_template(c, obj);
    let u = object::get(obj, "/spec/updateStrategy");
    c.one_of(u, "type", At::SPEC.child("updateStrategy"), &["OnDelete", "RollingUpdate"]);
    let r = &u["rollingUpdate"];
    const AT: At<'_> = At::root("spec.updateStrategy.rollingUpdate");
    let (unavailable, surge) = (&r["maxUnavailable"], &r["maxSurge"]);
    let out = c.count_or_percent(AT.child("maxUnavailable"), unavailable);
    let more = c.count_or_percent(AT.child("maxSurge"), surge);
    c.at_most_all(AT.child("maxUnavailable"), unavailable);
    c.at_most_all(AT.child("maxSurge"), surge);
    match (out, more) {
        (Some(0), Some(0)) => c.required(AT.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        (Some(out), Some(more)) if out != 0 && more != 0 => {
            let why = "may not be set when maxUnavailable is non-zero";
            c.invalid(AT.child("maxSurge"), surge.clone(), why);
        }
        _ => {}
    }
}

pub(super) fn validate_stateful_set(c: &mut Checks, obj: &Value) {
    for f in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        c.non_negative(&obj["spec"], f, At::SPEC);
    }
    selector_matches(c, obj);
    // The claims' volumes are there when the pods are made, before all others and instead of any of their names.
    let claims = list(&obj["spec"], "volumeClaimTemplates");
    if claims.is_empty() {
        lasting_template(c, obj);
    } else {
        let mut with_claims = obj.clone();
        if let Some(s) = with_claims.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) {
            let names: BTreeSet<&str> = claims.iter().map(object::name).collect();
            let claimed = |name: &&str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
            let mut volumes: Vec<Value> = names.iter().map(claimed).collect();
            if let Some(Value::Array(own)) = s.remove("volumes") {
                volumes.extend(own.into_iter().filter(|volume| !names.contains(text(volume, "name"))));
            }
            s.insert("volumes".into(), volumes.into());
        }
        lasting_template(c, &with_claims);
    }
    c.one_of(&obj["spec"], "podManagementPolicy", At::SPEC, &["OrderedReady", "Parallel"]);
    c.one_of(
        object::get(obj, "/spec/updateStrategy"),
        "type",
        At::SPEC.child("updateStrategy"),
        &["OnDelete", "RollingUpdate"],
    );
    c.non_negative(
        &obj["spec"]["updateStrategy"]["rollingUpdate"],
        "partition",
        At::root("spec.updateStrategy.rollingUpdate"),
    );
}

const STATEFUL_SET_UPDATE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

pub(super) fn update_stateful_set(c: &mut Checks, new: &Value, old: &Value) {
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
        c.forbidden("spec", STATEFUL_SET_UPDATE);
    }
}

pub(super) fn update_revision(c: &mut Checks, new: &Value, old: &Value) {
    c.immutable(new, old, "/data");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::errors;

    fn deployment() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "b"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
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
        assert_eq!(errors(validate_deployment, &d), Vec::<String>::new());
        d["spec"]["template"]["metadata"]["labels"] = json!({"a": "x"});
        d["spec"]["replicas"] = json!(-1);
        assert_eq!(
            errors(validate_deployment, &d),
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                r#"spec.template.metadata.labels: Invalid value: {"a":"x"}: `selector` does not match template `labels`"#,
            ]
        );
    }

    #[test]
    fn percentages_of_rollouts() {
        let of = |check: fn(&mut Checks, &Value), strategy: &str, rolling: Value| {
            let mut obj = deployment();
            obj["spec"][strategy] = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
            errors(check, &obj)
        };
        let most = "must not be greater than 100%";
        // A surge of a deployment may be more than all that is there.
        assert_eq!(
            of(validate_deployment, "strategy", json!({"maxUnavailable": "120%", "maxSurge": "120%"})),
            [format!("spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"120%\": {most}")]
        );
        assert_eq!(
            of(validate_daemon_set, "updateStrategy", json!({"maxUnavailable": 0, "maxSurge": "120%"})),
            [format!("spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"120%\": {most}")]
        );
    }

    #[test]
    fn selectors_of_labels() {
        let of = |check: fn(&mut Checks, &Value), kind: &str, selector: Value| {
            let mut obj = deployment();
            obj["kind"] = json!(kind);
            obj["spec"]["selector"] = selector;
            errors(check, &obj)
        };
        let empty = |kind: &str| {
            vec![format!("spec.selector: Invalid value: {{}}: empty selector is invalid for {kind}")]
        };
        assert_eq!(of(validate_deployment, "Deployment", json!({})), empty("deployment"));
        assert_eq!(of(validate_replica_set, "ReplicaSet", json!({})), empty("deployment"));
        assert_eq!(of(validate_daemon_set, "DaemonSet", json!({})), empty("daemonset"));
        let bad = || json!({"matchExpressions": [{"key": "a", "operator": "in"}]});
        let operator = r#"spec.selector.matchExpressions[0].operator: Invalid value: "in": not a valid selector operator"#;
        let whole = r#"spec.selector: Invalid value: {"matchExpressions":[{"key":"a","operator":"in"}]}"#;
        let why = "invalid label selector";
        assert_eq!(
            of(validate_deployment, "Deployment", bad()),
            [operator.to_owned(), format!("{whole}: {why}")]
        );
        assert_eq!(of(validate_stateful_set, "StatefulSet", bad()), [operator, whole]);
        assert_eq!(of(validate_daemon_set, "DaemonSet", bad()), [operator]);
    }
}
