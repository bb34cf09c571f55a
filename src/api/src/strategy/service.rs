//! Services (upstream's `validateService`). Addresses and families are the API server's, which hands
//! them out.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::checks::{number, optional_name, port, ratchet, required, required_one_of, syntax};
use super::ips;
use super::util::{list, one_of, text};
use crate::field::{FieldError, index, join};
use crate::names;
use crate::object;

const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
/// A day.
const LONGEST_AFFINITY: i64 = 86400;

fn is_headless(spec: &Value) -> bool {
    text(spec, "clusterIP") == "None" || matches!(list(spec, "clusterIPs"), [one] if one == "None")
}

/// Reached from outside of the cluster.
fn is_external(spec: &Value) -> bool {
    match text(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

pub(super) fn validate(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let kind = text(spec, "type");
    hints(obj, errors);
    let list_of_ports = list(spec, "ports");
    if list_of_ports.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        required("spec.ports", "", errors);
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        )),
        "ExternalName" => external_name(spec, errors),
        _ => {}
    }
    ports(list_of_ports, errors);
    super::meta::labels(&spec["selector"], "spec.selector", errors);
    affinity(spec, errors);
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        let (path, ip, before) =
            (index("spec.externalIPs", i), ip.as_str().unwrap_or_default(), errors.len());
        ips::address(ip, &path, errors);
        if errors.len() == before {
            ips::endpoint(ip, &path, errors);
        }
    }
    required_one_of(spec, "type", "spec", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    numbers(list_of_ports, kind, errors);
    balancer(obj, kind, errors);
    traffic(spec, errors);
}

fn hints(obj: &Value, errors: &mut Vec<FieldError>) {
    const OLD: &str = "service.kubernetes.io/topology-aware-hints";
    const NEW: &str = "service.kubernetes.io/topology-mode";
    if let (Some(old), Some(new)) = (object::annotation(obj, OLD), object::annotation(obj, NEW))
        && old != new
    {
        let what = format!("must match annotations[{OLD}] when both are specified");
        errors.push(FieldError::invalid(format!("metadata.annotations[{NEW}]"), new, what));
    }
}

fn external_name(spec: &Value, errors: &mut Vec<FieldError>) {
    // The server takes away addresses and families that were there for another type.
    if !matches!(text(spec, "clusterIP"), "" | "None") {
        errors.push(FieldError::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
    }
    let name = text(spec, "externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => required("spec.externalName", "", errors),
        name => syntax(names::dns1123_subdomain, name, "spec.externalName", errors),
    }
}

fn ports(ports: &[Value], errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let at = index("spec.ports", i);
        match text(p, "name") {
            "" if ports.len() > 1 => required(join(&at, "name"), "", errors),
            "" => {}
            name => {
                syntax(names::dns1123_label, name, &join(&at, "name"), errors);
                if !seen.insert(name) {
                    errors.push(FieldError::duplicate(join(&at, "name"), name));
                }
            }
        }
        port(number(p, "port"), &join(&at, "port"), errors);
        required_one_of(p, "protocol", &at, &["SCTP", "TCP", "UDP"], errors);
        match &p["targetPort"] {
            Value::Number(n) => port(n.as_i64().unwrap_or(0), &join(&at, "targetPort"), errors),
            Value::String(name) => syntax(names::port_name, name, &join(&at, "targetPort"), errors),
            _ => {}
        }
        optional_name(p, "appProtocol", names::qualified_name, &at, errors);
    }
}

/// Port numbers that exclude each other.
fn numbers(ports: &[Value], kind: &str, errors: &mut Vec<FieldError>) {
    if kind == "ClusterIP" {
        for i in (0..ports.len()).filter(|i| number(&ports[*i], "nodePort") != 0) {
            let what = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(format!("spec.ports[{i}].nodePort"), what));
        }
    }
    let mut seen = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let n = number(p, "nodePort");
        if n != 0 && !seen.insert((text(p, "protocol"), n)) {
            errors.push(FieldError::duplicate(format!("spec.ports[{i}].nodePort"), n));
        }
    }
    seen.clear();
    for (i, p) in ports.iter().enumerate() {
        let (protocol, n) = (text(p, "protocol"), number(p, "port"));
        if !seen.insert((protocol, n)) {
            let key = json!({"protocol": protocol, "port": n, "targetPort": 0});
            errors.push(FieldError::duplicate(index("spec.ports", i), key));
        }
    }
}

fn affinity(spec: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.sessionAffinityConfig";
    required_one_of(spec, "sessionAffinity", "spec", &["ClientIP", "None"], errors);
    let config = &spec["sessionAffinityConfig"];
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let what = "when session affinity type is ClientIP";
            let path = join(AT, "clientIP.timeoutSeconds");
            if !config.is_object() {
                required(AT, what, errors);
            } else if !config["clientIP"].is_object() {
                required(join(AT, "clientIP"), what, errors);
            } else if config["clientIP"]["timeoutSeconds"].is_null() {
                required(path, what, errors);
            } else {
                let n = number(&config["clientIP"], "timeoutSeconds");
                if !(1..=LONGEST_AFFINITY).contains(&n) {
                    let what = format!("must be greater than 0 and less than {LONGEST_AFFINITY}");
                    errors.push(FieldError::invalid(path, n, what));
                }
            }
        }
        "None" if !config.is_null() => {
            errors.push(FieldError::forbidden(AT, "must not be set when session affinity is None"));
        }
        _ => {}
    }
}

/// What only load balancers have.
fn balancer(obj: &Value, kind: &str, errors: &mut Vec<FieldError>) {
    let (spec, is_balancer) = (&obj["spec"], kind == "LoadBalancer");
    let ranges = list(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // Upstream's path begins with a capital.
        const AT: &str = "spec.LoadBalancerSourceRanges";
        if !is_balancer {
            errors.push(FieldError::forbidden(AT, BALANCER_ONLY));
        }
        for (i, range) in ranges.iter().enumerate() {
            ips::range(range.as_str().unwrap_or_default().trim(), &index(AT, i), errors);
        }
    } else if let Some(ranges) = object::annotation(obj, RANGES) {
        let at = format!("metadata.annotations[{RANGES}]");
        if !is_balancer {
            errors.push(FieldError::forbidden(at.as_str(), BALANCER_ONLY));
        }
        for range in ranges.trim().split(',').filter(|_| !ranges.trim().is_empty()) {
            ips::range(range.trim(), &at, errors);
        }
    }
    if !is_balancer && !spec["allocateLoadBalancerNodePorts"].is_null() {
        errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", BALANCER_ONLY));
    }
    if is_balancer {
        optional_name(spec, "loadBalancerClass", names::qualified_name, "spec", errors);
    } else if !spec["loadBalancerClass"].is_null() {
        errors.push(FieldError::forbidden("spec.loadBalancerClass", BALANCER_ONLY));
    }
}

fn traffic(spec: &Value, errors: &mut Vec<FieldError>) {
    const POLICIES: [&str; 2] = ["Cluster", "Local"];
    let policy = text(spec, "externalTrafficPolicy");
    if is_external(spec) {
        // A Service with external addresses alone has been defaulted as one of the cluster.
        if !policy.is_empty() || text(spec, "type") != "ClusterIP" {
            required_one_of(spec, "externalTrafficPolicy", "spec", &POLICIES, errors);
        }
    } else if !policy.is_empty() {
        let what = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, what));
    }
    let health = number(spec, "healthCheckNodePort");
    if !needs_health_check(spec) && health != 0 {
        let what = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", health, what));
    } else if health != 0 {
        port(health, "spec.healthCheckNodePort", errors);
    }
    one_of(spec, "internalTrafficPolicy", "spec", &POLICIES, errors);
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    one_of(spec, "trafficDistribution", "spec", &distributions, errors);
    one_of(spec, "ipFamilyPolicy", "spec", &["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    for (i, ip) in list(spec, "clusterIPs").iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        if !matches!(ip, "" | "None") {
            ips::address(ip, &index("spec.clusterIPs", i), errors);
        }
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let (after, before) = (&new["spec"], &old["spec"]);
    let is_balancer = |spec: &Value| text(spec, "type") == "LoadBalancer";
    if is_balancer(after) && is_balancer(before) && after["loadBalancerClass"] != before["loadBalancerClass"]
    {
        let class = after["loadBalancerClass"].clone();
        errors.push(FieldError::invalid("spec.loadBalancerClass", class, "may not change once set"));
    }
    if needs_health_check(after)
        && needs_health_check(before)
        && number(after, "healthCheckNodePort") != number(before, "healthCheckNodePort")
    {
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    ratchet(validate, new, old, errors);
}

/// Takes away what the new type has no use for, where the client left it as it was
/// (`dropTypeDependentFields`), and keeps the port of the health check.
pub(super) fn prepare_update(obj: &mut Value, old: &Value) {
    let before = &old["spec"];
    let Some(spec) = obj.get_mut("spec") else { return };
    let was_balancer = text(before, "type") == "LoadBalancer";
    let is_balancer = text(spec, "type") == "LoadBalancer";
    if needs_health_check(before) && needs_health_check(spec) && number(spec, "healthCheckNodePort") == 0 {
        spec["healthCheckNodePort"] = before["healthCheckNodePort"].clone();
    }
    let mut gone = Vec::new();
    if needs_health_check(before) && !needs_health_check(spec) {
        gone.push("healthCheckNodePort");
    }
    if was_balancer && !is_balancer {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(before) && !is_external(spec) {
        gone.push("externalTrafficPolicy");
    }
    let Some(spec) = spec.as_object_mut() else { return };
    for field in gone {
        if spec.get(field) == before.get(field) {
            spec.remove(field);
        }
    }
    if was_balancer && !is_balancer && obj["status"]["loadBalancer"].is_object() {
        obj["status"]["loadBalancer"] = json!({});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;

    fn service(with: Value) -> Value {
        let mut spec = json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
        for (k, v) in with.as_object().unwrap() {
            spec[k] = v.clone();
        }
        json!({ "spec": spec })
    }

    fn of(with: Value) -> String {
        told(validate, &service(with))
    }

    #[test]
    fn good_services() {
        for spec in [
            json!({}),
            json!({"clusterIP": "None", "ports": []}),
            json!({"type": "ExternalName", "externalName": "example.com.", "ports": []}),
            json!({"externalIPs": ["1.2.3.4"], "externalTrafficPolicy": "Cluster"}),
            json!({"externalIPs": ["1.2.3.4"]}),
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}),
            json!({"trafficDistribution": "PreferSameNode"}),
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000,
                "loadBalancerSourceRanges": [" 10.0.0.0/8"], "loadBalancerClass": "a.b/c", "allocateLoadBalancerNodePorts": false}),
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [
                {"name": "a", "port": 53, "protocol": "TCP", "targetPort": "dns", "nodePort": 30053},
                {"name": "b", "port": 53, "protocol": "UDP", "targetPort": 53, "nodePort": 30053, "appProtocol": "kubernetes.io/h2c"}]}),
        ] {
            assert_eq!(of(spec.clone()), "", "{spec}");
        }
    }

    #[test]
    fn bad_services() {
        for (spec, wanted) in [
            (json!({"ports": []}), "ports: Required value"),
            (
                json!({"externalIPs": ["x"]}),
                "externalIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
            (
                json!({"externalIPs": ["127.0.0.1"]}),
                "externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                json!({"type": "NodePort", "externalTrafficPolicy": "Cluster", "clusterIP": "None"}),
                "clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
            ),
            (json!({"type": "ExternalName"}), "externalName: Required value"),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
                "sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
            ),
            (
                json!({"sessionAffinityConfig": {}}),
                "sessionAffinityConfig: Forbidden: must not be set when session affinity is None",
            ),
            (
                json!({"loadBalancerSourceRanges": ["10.0.0.1/8"]}),
                "LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'; spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length",
            ),
            (
                json!({"loadBalancerClass": "a"}),
                "loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                json!({"allocateLoadBalancerNodePorts": true}),
                "allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                json!({"externalTrafficPolicy": "Local"}),
                "externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            ),
            (
                json!({"healthCheckNodePort": 30000}),
                "healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ),
            (
                json!({"trafficDistribution": "x"}),
                r#"trafficDistribution: Unsupported value: "x": supported values: "PreferClose", "PreferSameZone", "PreferSameNode""#,
            ),
            (
                json!({"ports": [{"port": 80, "protocol": "tcp"}]}),
                r#"ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP""#,
            ),
            (
                json!({"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}),
                "ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                json!({"ports": [{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "a", "port": 81, "protocol": "TCP"}]}),
                "ports[1].name: Duplicate value: \"a\"",
            ),
            (
                json!({"type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": [
                    {"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30000},
                    {"name": "b", "port": 81, "protocol": "TCP", "nodePort": 30000}]}),
                "ports[1].nodePort: Duplicate value: 30000",
            ),
        ] {
            assert_eq!(of(spec), format!("spec.{wanted}"));
        }
    }

    #[test]
    fn updates() {
        let of = |new: Value, old: Value| {
            let (mut new, old) = (service(new), service(old));
            prepare_update(&mut new, &old);
            let mut errors = Vec::new();
            update(&new, &old, &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let balancer = |class: &str| {
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30000, "loadBalancerClass": class, "allocateLoadBalancerNodePorts": true})
        };
        assert_eq!(
            of(balancer("a/b"), balancer("a/c")),
            "spec.loadBalancerClass: Invalid value: \"a/b\": may not change once set"
        );
        let mut moved = balancer("a/b");
        moved["healthCheckNodePort"] = json!(30001);
        assert_eq!(of(moved, balancer("a/b")), "spec.healthCheckNodePort: Forbidden: field is immutable");
        // Another type, everything else as it was.
        let mut plain = balancer("a/b");
        plain["type"] = json!("ClusterIP");
        assert_eq!(of(plain, balancer("a/b")), "");
        assert_eq!(of(json!({"externalIPs": ["127.0.0.1"]}), json!({"externalIPs": ["127.0.0.1"]})), "");
    }
}
