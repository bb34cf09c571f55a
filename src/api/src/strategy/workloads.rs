//! Deployments, ReplicaSets, ReplicationControllers, DaemonSets and StatefulSets (upstream: apps `defaults.go`,
//! `validation.go`), and what all that make pods have in common.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::meta::immutable;
use super::util::{NON_NEGATIVE, each, list, non_negative, one_of, put, put_str, spec, text};
use super::{pod, pod_spec};
use crate::field::FieldError;
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

pub(super) fn template_labels(obj: &Value, selector: &LabelSelector, errors: &mut Vec<FieldError>) {
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
pub(super) fn validate_template(obj: &Value, path: &str, restart: &[&str], errors: &mut Vec<FieldError>) {
    let t = object::get(obj, &format!("/{}", path.replace('.', "/")));
    // Upstream leaves out `metadata` here.
    super::meta::labels(object::get(t, "/metadata/labels"), &format!("{path}.labels"), errors);
    super::meta::annotations(object::get(t, "/metadata/annotations"), &format!("{path}.annotations"), errors);
    pod_spec::validate_template(t, path, errors);
    if restart == ["Always"] {
        one_of(&t["spec"], "restartPolicy", &format!("{path}.spec"), restart, errors);
    }
    if object::get(t, "/spec/activeDeadlineSeconds").is_i64() && restart == ["Always"] {
        errors.push(FieldError::forbidden(
            format!("{path}.spec.activeDeadlineSeconds"),
            // Upstream's Deployments speak for their ReplicaSets.
            format!(
                "activeDeadlineSeconds in {} is not Supported",
                if object::kind(obj) == "Deployment" { "ReplicaSet" } else { object::kind(obj) }
            ),
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
    // The claims' volumes are there when the pods are made, before all others and instead of any of their names.
    let claims = list(&obj["spec"], "volumeClaimTemplates");
    if claims.is_empty() {
        validate_template(obj, "spec.template", &["Always"], errors);
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
        validate_template(&with_claims, "spec.template", &["Always"], errors);
    }
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
}
