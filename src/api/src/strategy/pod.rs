//! Pods and pod templates: defaults (upstream: core/v1 `defaults.go`), what is
//! set at creation, and which fields of a pod may change.

use serde_json::{Map, Value, json};

use super::checks::Checks;
use super::pod_spec;
use super::util::{each, list, map, put, put_str, spec};
use crate::field::At;
use crate::object;
use crate::quantity::Quantity;

pub(super) fn default(obj: &mut Value) {
    let Some(spec) = spec(obj) else { return };
    default_spec(spec);
    // Only of pods, not of templates: requests follow limits, services are linked.
    for list in ["containers", "initContainers"] {
        for c in each(spec, list) {
            requests_from_limits(c);
        }
    }
    put(spec, "enableServiceLinks", true);
    // Of pods only: a template keeps what its author wrote.
    if spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|seconds| seconds < 0) {
        spec.insert("terminationGracePeriodSeconds".into(), json!(1));
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        host_ports(spec);
    }
}

pub(super) fn default_pod_template(obj: &mut Value) {
    if let Some(t) = map(obj, "template") {
        default_template(t);
    }
}

/// The `template` of a workload.
pub(super) fn default_template(template: &mut Map<String, Value>) {
    put(template, "metadata", json!({}));
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        default_spec(spec);
        if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
            host_ports(spec);
        }
    }
}

fn host_ports(spec: &mut Map<String, Value>) {
    for list in ["containers", "initContainers"] {
        for c in each(spec, list) {
            for p in each(c, "ports") {
                if let Some(n) = p.get("containerPort").cloned() {
                    put(p, "hostPort", n);
                }
            }
        }
    }
}

fn default_spec(spec: &mut Map<String, Value>) {
    put_str(spec, "dnsPolicy", "ClusterFirst");
    put_str(spec, "restartPolicy", "Always");
    put_str(spec, "schedulerName", "default-scheduler");
    put(spec, "securityContext", json!({}));
    put(spec, "terminationGracePeriodSeconds", 30);
    // The deprecated alias follows the account's name.
    match (spec.get("serviceAccountName").cloned(), spec.get("serviceAccount").cloned()) {
        (Some(n), _) if n != "" => drop(spec.insert("serviceAccount".into(), n)),
        (_, Some(n)) if n != "" => drop(spec.insert("serviceAccountName".into(), n)),
        _ => {}
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in each(spec, list) {
            default_container(c);
        }
    }
    for v in each(spec, "volumes") {
        default_volume(v);
    }
    for t in each(spec, "topologySpreadConstraints") {
        put_str(t, "whenUnsatisfiable", "DoNotSchedule");
    }
}

/// `Always` for no tag or `latest`, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(n, _)| (n, true));
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        None if digest => "IfNotPresent",
        _ => "Always",
    }
}

fn default_container(c: &mut Map<String, Value>) {
    let policy = pull_policy(c.get("image").and_then(Value::as_str).unwrap_or_default());
    put_str(c, "imagePullPolicy", policy);
    put(c, "resources", json!({}));
    put_str(c, "terminationMessagePath", "/dev/termination-log");
    put_str(c, "terminationMessagePolicy", "File");
    for p in each(c, "ports") {
        put_str(p, "protocol", "TCP");
    }
    for e in each(c, "env") {
        if let Some(f) =
            e.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")).and_then(Value::as_object_mut)
        {
            put_str(f, "apiVersion", "v1");
        }
        if let Some(r) =
            e.get_mut("valueFrom").and_then(|v| v.get_mut("resourceFieldRef")).and_then(Value::as_object_mut)
        {
            put(r, "divisor", "0");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = c.get_mut(probe).and_then(Value::as_object_mut) {
            for (field, usual) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                // Zero is nothing in Go.
                if p.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
                    p.insert(field.into(), json!(usual));
                }
            }
            default_handler(p);
        }
    }
    if let Some(l) = c.get_mut("lifecycle").and_then(Value::as_object_mut) {
        for hook in ["postStart", "preStop"] {
            if let Some(h) = l.get_mut(hook).and_then(Value::as_object_mut) {
                default_handler(h);
            }
        }
    }
}

fn default_handler(h: &mut Map<String, Value>) {
    if let Some(g) = h.get_mut("httpGet").and_then(Value::as_object_mut) {
        put_str(g, "path", "/");
        put_str(g, "scheme", "HTTP");
    }
    if let Some(g) = h.get_mut("grpc").and_then(Value::as_object_mut) {
        put(g, "service", "");
    }
}

fn requests_from_limits(c: &mut Map<String, Value>) {
    let Some(r) = c.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(Value::Object(limits)) = r.get("limits").cloned() else { return };
    let requests = object::object_entry(r, "requests");
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

fn default_volume(v: &mut Map<String, Value>) {
    let sources = v.keys().filter(|k| *k != "name").count();
    if sources == 0 {
        v.insert("emptyDir".into(), json!({}));
    }
    let mut source = |name: &str, f: &dyn Fn(&mut Map<String, Value>)| {
        if let Some(s) = v.get_mut(name).and_then(Value::as_object_mut) {
            f(s);
        }
    };
    for name in ["secret", "configMap"] {
        source(name, &|s| put(s, "defaultMode", 420));
    }
    let field_refs = |s: &mut Map<String, Value>| {
        for i in each(s, "items") {
            if let Some(f) = i.get_mut("fieldRef").and_then(Value::as_object_mut) {
                put_str(f, "apiVersion", "v1");
            }
            if let Some(r) = i.get_mut("resourceFieldRef").and_then(Value::as_object_mut) {
                put(r, "divisor", "0");
            }
        }
    };
    source("downwardAPI", &|s| {
        put(s, "defaultMode", 420);
        field_refs(s);
    });
    source("projected", &|s| {
        put(s, "defaultMode", 420);
        for p in each(s, "sources") {
            if let Some(t) = p.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
                put(t, "expirationSeconds", 3600);
            }
            if let Some(d) = p.get_mut("downwardAPI").and_then(Value::as_object_mut) {
                field_refs(d);
            }
        }
    });
    source("image", &|s| {
        let reference = s.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = if reference.is_empty() { "IfNotPresent" } else { pull_policy(reference) };
        put_str(s, "pullPolicy", policy);
    });
    source("hostPath", &|s| put(s, "type", ""));
    source("iscsi", &|s| put_str(s, "iscsiInterface", "default"));
    source("rbd", &|s| {
        put_str(s, "pool", "rbd");
        put_str(s, "user", "admin");
        put_str(s, "keyring", "/etc/ceph/keyring");
    });
    source("azureDisk", &|s| {
        put(s, "cachingMode", "ReadWrite");
        put(s, "kind", "Shared");
        put(s, "fsType", "ext4");
        put(s, "readOnly", false);
    });
    source("scaleIO", &|s| {
        put_str(s, "storageMode", "ThinProvisioned");
        put_str(s, "fsType", "xfs");
    });
    source("ephemeral", &|s| {
        if let Some(spec) =
            s.get_mut("volumeClaimTemplate").and_then(|t| t.get_mut("spec")).and_then(Value::as_object_mut)
        {
            put_str(spec, "volumeMode", "Filesystem");
        }
    });
}

/// What clients that do not know these fields would clear stays (`registry/core/pod/strategy.go`): the class of
/// service, and which generation the status and its conditions are about.
pub(super) fn update_status(new: &mut Value, old: &Value) {
    if !new["status"].is_object() {
        return;
    }
    let before = &old["status"];
    if new["status"]["qosClass"].as_str().unwrap_or_default().is_empty() && before["qosClass"].is_string() {
        new["status"]["qosClass"] = before["qosClass"].clone();
    }
    let unset = |of: &Value| of["observedGeneration"].as_i64().unwrap_or(0) == 0;
    if unset(&new["status"]) && !unset(before) {
        new["status"]["observedGeneration"] = before["observedGeneration"].clone();
    }
    let mut left: Vec<&Value> = before["conditions"].as_array().into_iter().flatten().collect();
    let conditions = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let Some(at) = left.iter().position(|known| known["type"] == condition["type"]) else { continue };
        let known = left.remove(at);
        if unset(condition) && !unset(known) {
            condition["observedGeneration"] = known["observedGeneration"].clone();
        }
    }
}

pub(super) fn create(obj: &mut Value) {
    let qos = qos_class(obj);
    if let Value::Object(m) = obj {
        m.insert("status".into(), json!({"phase": "Pending", "qosClass": qos}));
    }
}

/// Guaranteed, Burstable or BestEffort (upstream: `apis/core/v1/helper/qos`).
pub(super) fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let containers = list(&pod["spec"], "containers").iter().chain(list(&pod["spec"], "initContainers"));
    let quantity = |v: &Value| Quantity::from_value(v).filter(|q| !q.is_zero());
    for c in containers {
        for r in ["cpu", "memory"] {
            let limit = quantity(object::get(c, &format!("/resources/limits/{r}")));
            let request = quantity(object::get(c, &format!("/resources/requests/{r}")));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    pod_spec::validate_pod(c, obj);
}

pub(super) fn validate_create(c: &mut Checks, obj: &Value) {
    pod_spec::validate_new_pod(c, obj);
}

pub(super) fn validate_pod_template(c: &mut Checks, obj: &Value) {
    super::workloads::validate_template(c, &obj["template"], At::root("template"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_grace_period_is_one_second() {
        for (sent, expected) in [(-1, 1), (0, 0), (7, 7)] {
            let mut pod = json!({"spec": {"terminationGracePeriodSeconds": sent}});
            default(&mut pod);
            assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], expected);
            let mut template = json!({"template": {"spec": {"terminationGracePeriodSeconds": sent}}});
            default_pod_template(&mut template);
            assert_eq!(template["template"]["spec"]["terminationGracePeriodSeconds"], sent);
        }
    }

    #[test]
    fn a_status_without_observed_generations_keeps_them() {
        let old = json!({"status": {"observedGeneration": 3, "qosClass": "BestEffort", "conditions": [
            {"type": "Ready", "observedGeneration": 2}, {"type": "Mine", "observedGeneration": 1}]}});
        let mut new = json!({"status": {"conditions": [
            {"type": "Mine"}, {"type": "Ready", "observedGeneration": 3}, {"type": "New"}]}});
        update_status(&mut new, &old);
        assert_eq!(
            new,
            json!({"status": {"observedGeneration": 3, "qosClass": "BestEffort", "conditions": [
                {"type": "Mine", "observedGeneration": 1}, {"type": "Ready", "observedGeneration": 3},
                {"type": "New"}]}})
        );
        let mut new = json!({"status": {"qosClass": "BestEffort"}});
        update_status(&mut new, &old);
        assert_eq!(new, json!({"status": {"qosClass": "BestEffort", "observedGeneration": 3}}));
    }

    #[test]
    fn defaults() {
        let mut p = json!({"spec": {"containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80}}},
            {"name": "b", "image": "reg:5000/x:1.0"}], "volumes": [{"name": "s", "secret": {"secretName": "x"}}]}});
        default(&mut p);
        let s = &p["spec"];
        assert_eq!(s["restartPolicy"], "Always");
        assert_eq!(s["enableServiceLinks"], true);
        assert_eq!(s["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(s["containers"][1]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(s["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(s["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(s["containers"][0]["livenessProbe"]["httpGet"]["path"], "/");
        assert_eq!(s["volumes"][0]["secret"]["defaultMode"], 420);
        let once = p.clone();
        default(&mut p);
        assert_eq!(p, once);
    }

    #[test]
    fn quality_of_service() {
        let pod = |r: Value| json!({"spec": {"containers": [{"resources": r}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(qos_class(&pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
    }

    #[test]
    fn updates() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "1"}], "nodeName": "n"}});
        let check = |f: &dyn Fn(&mut Value)| {
            let mut new = old.clone();
            f(&mut new);
            let mut e = Checks::default();
            super::super::pod_update::validate_update(&mut e, &new, &old);
            e.errors.len()
        };
        assert_eq!(check(&|v| v["spec"]["containers"][0]["image"] = json!("2")), 0);
        assert_eq!(check(&|v| v["spec"]["nodeName"] = json!("m")), 1);
        assert_eq!(check(&|v| v["spec"]["tolerations"] = json!([{"key": "a"}])), 0);
        assert_eq!(check(&|v| v["spec"]["containers"] = json!([])), 1);
    }
}
