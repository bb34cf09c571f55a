//! Configuration kinds: ConfigMap, Secret, Namespace, Node, quotas, disruption
//! budgets, autoscalers, priorities, leases, webhooks, CRDs and certificates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::checks::Checks;
use super::util::{each, list, put, put_str, spec, text};
use crate::field::At;
use crate::names;
use crate::object;

const MAX_DATA: usize = 1024 * 1024;

fn data_keys(c: &mut Checks, obj: &Value, fields: [&str; 2]) -> usize {
    let mut total = 0;
    for f in fields {
        for (k, v) in obj.get(f).and_then(Value::as_object).into_iter().flatten() {
            c.syntax(At::root(f).key(k), k, names::config_key);
            let len = v.as_str().map_or(0, str::len);
            // `data` of a Secret and `binaryData` count decoded.
            let encoded = f == "binaryData" || object::kind(obj) == "Secret";
            total += if encoded { len / 4 * 3 } else { len };
        }
    }
    total
}

pub(super) fn validate_config_map(c: &mut Checks, obj: &Value) {
    let total = data_keys(c, obj, ["data", "binaryData"]);
    for k in obj.get("data").and_then(Value::as_object).into_iter().flatten().map(|(k, _)| k) {
        if obj["binaryData"].get(k).is_some() {
            c.invalid(At::root("data").key(k), k.as_str(), "duplicate of key present in binaryData");
        }
    }
    if total > MAX_DATA {
        // How upstream's path of the object itself looks.
        c.too_long("[]", MAX_DATA);
    }
}

fn immutable_data(c: &mut Checks, new: &Value, old: &Value, fields: &[&str]) {
    if old.get("immutable").and_then(Value::as_bool) != Some(true) {
        return;
    }
    if new.get("immutable").and_then(Value::as_bool) != Some(true) {
        c.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for f in fields.iter().filter(|f| new.get(**f) != old.get(**f)) {
        c.forbidden(*f, "field is immutable when `immutable` is set");
    }
}

pub(super) fn update_config_map(c: &mut Checks, new: &Value, old: &Value) {
    immutable_data(c, new, old, &["data", "binaryData"]);
}

pub(super) fn default_secret(obj: &mut Value) {
    let Some(m) = obj.as_object_mut() else { return };
    put_str(m, "type", "Opaque");
    // stringData is write-only: it is merged into data.
    if let Some(Value::Object(strings)) = m.remove("stringData") {
        let data = object::object_entry(m, "data");
        for (k, v) in strings {
            data.insert(k, STANDARD.encode(v.as_str().unwrap_or_default()).into());
        }
    }
}

pub(super) fn validate_secret(c: &mut Checks, obj: &Value) {
    if data_keys(c, obj, ["data", "-"]) > MAX_DATA {
        c.too_long("data", MAX_DATA);
    }
    let needs: &[&str] = match text(obj, "type") {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/basic-auth"
            if ["username", "password"].iter().all(|k| obj["data"].get(*k).is_none()) =>
        {
            &["username", "password"]
        }
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/service-account-token" => {
            if object::annotation(obj, "kubernetes.io/service-account.name").unwrap_or_default().is_empty() {
                c.required("metadata.annotations[kubernetes.io/service-account.name]", "");
            }
            &[]
        }
        _ => &[],
    };
    for n in needs {
        let value = obj["data"].get(*n).and_then(Value::as_str);
        let Some(v) = value.filter(|v| *n != "ssh-privatekey" || !v.is_empty()) else {
            c.required(At::root("data").key(n), "");
            continue;
        };
        if n.starts_with(".docker")
            && !STANDARD.decode(v).is_ok_and(|b| serde_json::from_slice::<Map<String, Value>>(&b).is_ok())
        {
            c.invalid(At::root("data").key(n), "<secret contents redacted>", "invalid JSON");
        }
    }
}

pub(super) fn update_secret(c: &mut Checks, new: &Value, old: &Value) {
    c.immutable(new, old, "/type");
    immutable_data(c, new, old, &["data"]);
}

pub(super) fn default_namespace(obj: &mut Value) {
    let name = object::name(obj).to_string();
    if !name.is_empty() {
        object::set_label(obj, "kubernetes.io/metadata.name", &name);
    }
}

pub(super) fn create_namespace(obj: &mut Value) {
    let has = list(&obj["spec"], "finalizers").iter().any(|f| f == "kubernetes");
    if !has && let Some(m) = obj.as_object_mut() {
        let finalizers = object::object_entry(m, "spec").entry("finalizers").or_insert_with(|| json!([]));
        if let Some(a) = finalizers.as_array_mut() {
            a.push("kubernetes".into());
        }
    }
}

/// Only a new namespace's finalizers may be anything but what they were.
pub(super) fn validate_namespace(c: &mut Checks, obj: &Value) {
    const AT: At<'_> = At::root("spec.finalizers");
    for f in list(&obj["spec"], "finalizers").iter().map(|f| f.as_str().unwrap_or_default()) {
        c.syntax(AT, f, names::qualified_name);
        if !f.contains('/') && !matches!(f, "kubernetes" | "orphan" | "foregroundDeletion") {
            let what = "name is neither a standard finalizer name nor is it fully qualified";
            c.invalid(AT, f, what);
        }
    }
}

/// Finalizers change only through `finalize`.
pub(super) fn update_namespace(obj: &mut Value, old: &Value) {
    if let Some(m) = obj.as_object_mut() {
        match old.get("spec") {
            Some(s) => drop(m.insert("spec".into(), s.clone())),
            None => drop(m.remove("spec")),
        }
    }
}

pub(super) fn default_node(obj: &mut Value) {
    if let Some(m) = obj.as_object_mut() {
        object::object_entry(m, "spec");
    }
    if let Some(s) = obj.get_mut("status").and_then(Value::as_object_mut)
        && let Some(capacity) = s.get("capacity").cloned()
    {
        put(s, "allocatable", capacity);
    }
}

/// Nodes are created with their status left out and the legacy pod CIDR mirrored.
pub(super) fn create_node(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    match (s.get("podCIDR").cloned(), s.get("podCIDRs").cloned()) {
        (Some(one), None) => drop(s.insert("podCIDRs".into(), Value::Array(vec![one]))),
        (None, Some(Value::Array(many))) if !many.is_empty() => {
            drop(s.insert("podCIDR".into(), many[0].clone()));
        }
        _ => {}
    }
}

pub(super) fn default_limit_range(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    for item in each(s, "limits") {
        if item.get("type").and_then(Value::as_str) != Some("Container") {
            continue;
        }
        // default falls back to max, defaultRequest to default and then to min.
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let Some(Value::Object(source)) = item.get(from).cloned() else { continue };
            let target = object::object_entry(item, to);
            for (k, v) in source {
                target.entry(k).or_insert(v);
            }
        }
    }
}

pub(super) fn default_hpa(obj: &mut Value) {
    let v1 = object::api_version(obj) == "autoscaling/v1";
    let Some(s) = spec(obj) else { return };
    put(s, "minReplicas", 1);
    if v1 {
        return;
    }
    if s.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        s.insert(
            "metrics".into(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    let Some(b) = s.get_mut("behavior").and_then(Value::as_object_mut) else { return };
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (direction, policies) in [("scaleUp", up), ("scaleDown", down)] {
        let r = object::object_entry(b, direction);
        if direction == "scaleUp" {
            put(r, "stabilizationWindowSeconds", 0);
        }
        put_str(r, "selectPolicy", "Max");
        put(r, "policies", policies);
    }
}

pub(super) fn default_priority_class(obj: &mut Value) {
    if let Some(m) = obj.as_object_mut() {
        put(m, "preemptionPolicy", "PreemptLowerPriority");
    }
}

fn webhooks(obj: &mut Value, mutating: bool) {
    let Some(m) = obj.as_object_mut() else { return };
    for w in each(m, "webhooks") {
        put(w, "failurePolicy", "Fail");
        put(w, "matchPolicy", "Equivalent");
        put(w, "namespaceSelector", json!({}));
        put(w, "objectSelector", json!({}));
        put(w, "timeoutSeconds", 10);
        if mutating {
            put(w, "reinvocationPolicy", "Never");
        }
        for r in each(w, "rules") {
            put(r, "scope", "*");
        }
        if let Some(s) =
            w.get_mut("clientConfig").and_then(|c| c.get_mut("service")).and_then(Value::as_object_mut)
        {
            put(s, "port", 443);
        }
    }
}

pub(super) fn default_webhooks(obj: &mut Value) {
    webhooks(obj, false);
}

pub(super) fn default_mutating_webhooks(obj: &mut Value) {
    webhooks(obj, true);
}

pub(super) fn default_admission_policy(obj: &mut Value) {
    let binding = object::kind(obj).ends_with("Binding");
    let mutating = object::kind(obj).starts_with("Mutating");
    let Some(s) = spec(obj) else { return };
    if !binding {
        put(s, "failurePolicy", "Fail");
        if mutating {
            put_str(s, "reinvocationPolicy", "Never");
        }
    }
    let field = if binding { "matchResources" } else { "matchConstraints" };
    if let Some(c) = s.get_mut(field).and_then(Value::as_object_mut) {
        put(c, "matchPolicy", "Equivalent");
        put(c, "namespaceSelector", json!({}));
        put(c, "objectSelector", json!({}));
        for list in ["resourceRules", "excludeResourceRules"] {
            for r in each(c, list) {
                put(r, "scope", "*");
            }
        }
    }
}

pub(super) fn default_api_service(obj: &mut Value) {
    if let Some(service) = spec(obj).and_then(|s| s.get_mut("service")).and_then(Value::as_object_mut) {
        put(service, "port", 443);
    }
}

/// `kube-aggregator/pkg/apis/apiregistration/validation`.
pub(super) fn validate_api_service(c: &mut Checks, obj: &Value) {
    let s = &obj["spec"];
    let wanted = format!("{}.{}", text(s, "version"), text(s, "group"));
    if object::name(obj) != wanted {
        c.invalid(
            "metadata.name",
            object::name(obj),
            format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"),
        );
    }
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let value = s[field].as_i64().unwrap_or(0);
        if !(1..=most).contains(&value) {
            c.invalid(At::SPEC.child(field), value, format!("must be positive and less than {most}"));
        }
    }
    let service = &s["service"];
    let has_bundle = !text(s, "caBundle").is_empty();
    let insecure = s["insecureSkipTLSVerify"] == true;
    if !service.is_object() {
        if has_bundle || insecure {
            c.invalid(
                "spec.insecureSkipTLSVerify",
                insecure,
                "local APIServices may not have insecureSkipTLSVerify or caBundle",
            );
        }
        return;
    }
    c.needs(service, "namespace", At::root("spec.service"));
    c.needs(service, "name", At::root("spec.service"));
    if has_bundle && insecure {
        c.invalid("spec.insecureSkipTLSVerify", true, "may not be true if caBundle is present");
    }
}

pub(super) fn default_csr(obj: &mut Value) {
    if let Some(s) = spec(obj) {
        put(s, "usages", json!(["digital signature", "key encipherment"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(v: &Value, f: fn(&mut Checks, &Value)) -> Vec<String> {
        let mut e = Checks::default();
        f(&mut e, v);
        e.errors.iter().map(|e| e.path.clone()).collect()
    }

    #[test]
    fn secrets_and_config_maps() {
        let mut s = json!({"kind": "Secret", "stringData": {"a": "b"}, "data": {"a": "eA=="}});
        default_secret(&mut s);
        assert_eq!(s, json!({"kind": "Secret", "type": "Opaque", "data": {"a": "Yg=="}}));
        assert!(errors(&s, validate_secret).is_empty());
        s["type"] = json!("kubernetes.io/tls");
        assert_eq!(errors(&s, validate_secret), ["data[tls.crt]", "data[tls.key]"]);
        let c = json!({"kind": "ConfigMap", "data": {"a b": "x", "big": "x".repeat(MAX_DATA)}});
        assert_eq!(errors(&c, validate_config_map), ["data[a b]", "[]"]);
    }

    #[test]
    fn namespaces() {
        let mut n = json!({"metadata": {"name": "x"}});
        default_namespace(&mut n);
        create_namespace(&mut n);
        assert_eq!(
            n,
            json!({"metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}}, "spec": {"finalizers": ["kubernetes"]}})
        );
    }
}
