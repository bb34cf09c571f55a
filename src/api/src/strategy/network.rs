//! Services, endpoints, ingresses and network policies.

use serde_json::Value;

use super::util::{each, put, put_str, spec};
use crate::object;

pub(super) fn default_service(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    put_str(s, "sessionAffinity", "None");
    put_str(s, "type", "ClusterIP");
    let affinity = s.get("sessionAffinity").and_then(Value::as_str).unwrap_or_default().to_string();
    if affinity == "None" {
        s.remove("sessionAffinityConfig");
    } else if affinity == "ClientIP" {
        let c = object::object_entry(object::object_entry(s, "sessionAffinityConfig"), "clientIP");
        put(c, "timeoutSeconds", 10800);
    }
    for p in each(s, "ports") {
        put_str(p, "protocol", "TCP");
        let target = p.get("targetPort");
        if target.is_none_or(|t| t.is_null() || t == 0 || t == "")
            && let Some(n) = p.get("port").cloned()
        {
            p.insert("targetPort".into(), n);
        }
    }
    let kind = s.get("type").and_then(Value::as_str).unwrap_or_default().to_string();
    if kind != "ExternalName" {
        put_str(s, "internalTrafficPolicy", "Cluster");
    }
    let has_external = s.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || kind == "ClusterIP" && has_external {
        put_str(s, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        put(s, "allocateLoadBalancerNodePorts", true);
    }
}

pub(super) fn default_endpoints(obj: &mut Value) {
    let Some(m) = obj.as_object_mut() else { return };
    for s in each(m, "subsets") {
        for p in each(s, "ports") {
            put_str(p, "protocol", "TCP");
        }
    }
}

pub(super) fn default_endpoint_slice(obj: &mut Value) {
    let Some(m) = obj.as_object_mut() else { return };
    for p in each(m, "ports") {
        put(p, "name", "");
        put_str(p, "protocol", "TCP");
    }
}

pub(super) fn default_ingress_class(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    if let Some(p) = s.get_mut("parameters").and_then(Value::as_object_mut) {
        put_str(p, "scope", "Cluster");
    }
}

pub(super) fn default_network_policy(obj: &mut Value) {
    let Some(s) = spec(obj) else { return };
    for direction in ["ingress", "egress"] {
        for rule in each(s, direction) {
            for p in each(rule, "ports") {
                put_str(p, "protocol", "TCP");
            }
        }
    }
    if s.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let mut types = vec![Value::from("Ingress")];
        if s.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty()) {
            types.push("Egress".into());
        }
        s.insert("policyTypes".into(), Value::Array(types));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn services() {
        let mut s = json!({"spec": {"ports": [{"port": 80}]}});
        default_service(&mut s);
        assert_eq!(
            s["spec"],
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "None",
                "type": "ClusterIP", "internalTrafficPolicy": "Cluster"})
        );
        let mut e = crate::strategy::Checks::default();
        crate::strategy::service::validate(&mut e, &s);
        assert!(e.errors.is_empty(), "{e:?}");
        s["spec"]["ports"] = json!([{"port": 0, "targetPort": 1}, {"port": 2, "targetPort": 1}]);
        default_service(&mut s);
        crate::strategy::service::validate(&mut e, &s);
        let paths: Vec<&str> = e.errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["spec.ports[0].name", "spec.ports[0].port", "spec.ports[1].name"]);
    }

    #[test]
    fn policies() {
        let mut p = json!({"spec": {"egress": [{"ports": [{"port": 1}]}]}});
        default_network_policy(&mut p);
        assert_eq!(p["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(p["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
    }
}
