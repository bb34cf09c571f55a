//! Services, endpoints, ingresses and network policies.

use std::collections::HashSet;

use serde_json::Value;

use super::meta::immutable;
use super::util::{each, list, one_of, put, put_str, spec, text};
use crate::field::{FieldError, index, join};
use crate::names;
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
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        put_str(s, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        put(s, "allocateLoadBalancerNodePorts", true);
    }
}

pub(super) fn validate_service(obj: &Value, errors: &mut Vec<FieldError>) {
    let s = &obj["spec"];
    let kind = text(s, "type");
    let ports = list(s, "ports");
    if ports.is_empty() && text(s, "clusterIP") != "None" && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    one_of(s, "type", "spec", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    one_of(s, "sessionAffinity", "spec", &["ClientIP", "None"], errors);
    one_of(s, "internalTrafficPolicy", "spec", &["Cluster", "Local"], errors);
    one_of(s, "externalTrafficPolicy", "spec", &["Cluster", "Local"], errors);
    one_of(s, "ipFamilyPolicy", "spec", &["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    let (mut by_name, mut by_port) = (HashSet::new(), HashSet::new());
    for (i, p) in ports.iter().enumerate() {
        let at = index("spec.ports", i);
        let name = text(p, "name");
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(join(&at, "name"), ""));
        } else if !name.is_empty() {
            errors.extend(
                names::dns1123_label(name)
                    .into_iter()
                    .map(|m| FieldError::invalid(join(&at, "name"), name, m)),
            );
            if !by_name.insert(name) {
                errors.push(FieldError::duplicate(join(&at, "name"), name));
            }
        }
        let number = p.get("port").and_then(Value::as_i64).unwrap_or(0);
        errors.extend(
            names::port_number(number).into_iter().map(|m| FieldError::invalid(join(&at, "port"), number, m)),
        );
        one_of(p, "protocol", &at, &["SCTP", "TCP", "UDP"], errors);
        match &p["targetPort"] {
            Value::Number(n) => {
                let n = n.as_i64().unwrap_or(0);
                errors.extend(
                    names::port_number(n)
                        .into_iter()
                        .map(|m| FieldError::invalid(join(&at, "targetPort"), n, m)),
                );
            }
            Value::String(t) => {
                errors.extend(
                    names::port_name(t)
                        .into_iter()
                        .map(|m| FieldError::invalid(join(&at, "targetPort"), t.as_str(), m)),
                );
            }
            _ => {}
        }
        if !by_port.insert((text(p, "protocol"), number)) {
            errors.push(FieldError::duplicate(at.as_str(), p.clone()));
        }
        if p.get("nodePort").and_then(Value::as_i64).is_some_and(|n| n != 0) && kind == "ClusterIP" {
            errors.push(FieldError::forbidden(
                join(&at, "nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
    }
    super::meta::labels(&s["selector"], "spec.selector", errors);
    if kind == "ExternalName" {
        let name = text(s, "externalName").trim_end_matches('.');
        if name.is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        } else {
            errors.extend(
                names::dns1123_subdomain(name)
                    .into_iter()
                    .map(|m| FieldError::invalid("spec.externalName", name, m)),
            );
        }
        if !matches!(text(s, "clusterIP"), "" | "None") {
            errors.push(FieldError::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
        }
    }
    for (i, ip) in list(s, "clusterIPs").iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        if !matches!(ip, "" | "None") && ip.parse::<std::net::IpAddr>().is_err() {
            errors.push(FieldError::invalid(
                index("spec.clusterIPs", i),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
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

pub(super) fn validate_endpoint_slice(obj: &Value, errors: &mut Vec<FieldError>) {
    one_of(obj, "addressType", "", &["FQDN", "IPv4", "IPv6"], errors);
    let endpoints = list(obj, "endpoints");
    if endpoints.len() > 1000 {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), 1000));
    }
    for (i, e) in endpoints.iter().enumerate() {
        let addresses = list(e, "addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(
                format!("endpoints[{i}].addresses"),
                "must contain at least 1 address",
            ));
        }
        for (j, a) in addresses.iter().enumerate() {
            let a = a.as_str().unwrap_or_default();
            let ok = match text(obj, "addressType") {
                "IPv4" => a.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => a.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => names::dns1123_subdomain(a).is_empty(),
            };
            if !ok {
                errors.push(FieldError::invalid(
                    format!("endpoints[{i}].addresses[{j}]"),
                    a,
                    format!("must be a valid {} address", text(obj, "addressType")),
                ));
            }
        }
    }
    let mut seen = HashSet::new();
    for (i, p) in list(obj, "ports").iter().enumerate() {
        if !seen.insert(text(p, "name")) {
            errors.push(FieldError::duplicate(format!("ports[{i}].name"), text(p, "name")));
        }
        one_of(p, "protocol", &index("ports", i), &["SCTP", "TCP", "UDP"], errors);
    }
}

pub(super) fn update_endpoint_slice(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    immutable(new, old, "/addressType", errors);
}

pub(super) fn validate_ingress(obj: &Value, errors: &mut Vec<FieldError>) {
    let s = &obj["spec"];
    let rules = list(s, "rules");
    if rules.is_empty() && !s.get("defaultBackend").is_some_and(Value::is_object) {
        errors.push(FieldError::invalid(
            "spec",
            Value::Array(rules.to_vec()),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    for (i, r) in rules.iter().enumerate() {
        let host = text(r, "host");
        let plain = host.strip_prefix("*.").unwrap_or(host);
        if !host.is_empty() {
            errors.extend(
                names::dns1123_subdomain(plain)
                    .into_iter()
                    .map(|m| FieldError::invalid(format!("spec.rules[{i}].host"), host, m)),
            );
        }
        for (j, p) in list(&r["http"], "paths").iter().enumerate() {
            let at = format!("spec.rules[{i}].http.paths[{j}]");
            one_of(p, "pathType", &at, &["Exact", "ImplementationSpecific", "Prefix"], errors);
            let path = text(p, "path");
            if matches!(text(p, "pathType"), "Exact" | "Prefix") && !path.starts_with('/') {
                errors.push(FieldError::invalid(join(&at, "path"), path, "must be an absolute path"));
            }
        }
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
        let mut e = Vec::new();
        validate_service(&s, &mut e);
        assert!(e.is_empty(), "{e:?}");
        s["spec"]["ports"] = json!([{"port": 0, "targetPort": 1}, {"port": 2, "targetPort": 1}]);
        validate_service(&s, &mut e);
        let paths: Vec<&str> = e.iter().map(|e| e.path.as_str()).collect();
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
