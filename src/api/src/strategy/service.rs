//! Services (upstream's `validateService`). Addresses and families are the API server's, which hands
//! them out.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::checks::{Checks, IMMUTABLE, PROTOCOLS};
use super::ips;
use super::meta::ANNOTATIONS;
use super::util::{list, number, strings, text};
use crate::field::At;
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

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    let kind = text(spec, "type");
    hints(c, obj);
    let list_of_ports = list(spec, "ports");
    if list_of_ports.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        c.required("spec.ports", "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            c.invalid("spec.clusterIPs[0]", "None", format!("may not be set to 'None' for {kind} services"));
        }
        "ExternalName" => external_name(c, spec),
        _ => {}
    }
    ports(c, list_of_ports);
    super::meta::labels(c, &spec["selector"], At::SPEC.child("selector"));
    affinity(c, spec);
    for (i, ip) in strings(spec, "externalIPs").enumerate() {
        let (path, before) = (At::SPEC.item("externalIPs", i), c.errors.len());
        ips::address(c, ip, path);
        if c.errors.len() == before {
            ips::endpoint(c, ip, path);
        }
    }
    c.required_one_of(spec, "type", At::SPEC, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    numbers(c, list_of_ports, kind);
    balancer(c, obj, kind);
    traffic(c, spec);
}

fn hints(c: &mut Checks, obj: &Value) {
    const OLD: &str = "service.kubernetes.io/topology-aware-hints";
    const NEW: &str = "service.kubernetes.io/topology-mode";
    if let (Some(old), Some(new)) = (object::annotation(obj, OLD), object::annotation(obj, NEW))
        && old != new
    {
        let what = format!("must match annotations[{OLD}] when both are specified");
        c.invalid(ANNOTATIONS.key(NEW), new, what);
    }
}

fn external_name(c: &mut Checks, spec: &Value) {
    // The server takes away addresses and families that were there for another type.
    if !matches!(text(spec, "clusterIP"), "" | "None") {
        c.forbidden("spec.clusterIPs", "may not be set for ExternalName services");
    }
    let name = text(spec, "externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => c.required("spec.externalName", ""),
        name => c.syntax(At::SPEC.child("externalName"), name, names::dns1123_subdomain),
    }
}

fn ports(c: &mut Checks, ports: &[Value]) {
    let mut seen = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let at = At::SPEC.item("ports", i);
        match text(p, "name") {
            "" if ports.len() > 1 => c.required(at.child("name"), ""),
            "" => {}
            name => {
                c.syntax(at.child("name"), name, names::dns1123_label);
                if !seen.insert(name) {
                    c.duplicate(at.child("name"), name);
                }
            }
        }
        c.port(at.child("port"), number(p, "port"));
        c.required_one_of(p, "protocol", at, &PROTOCOLS);
        if !p["targetPort"].is_null() {
            c.port_or_name(at.child("targetPort"), &p["targetPort"]);
        }
        c.set_name(p, "appProtocol", at, names::qualified_name);
    }
}

/// Port numbers that exclude each other.
fn numbers(c: &mut Checks, ports: &[Value], kind: &str) {
    if kind == "ClusterIP" {
        for i in (0..ports.len()).filter(|i| number(&ports[*i], "nodePort") != 0) {
            let what = "may not be used when `type` is 'ClusterIP'";
            c.forbidden(At::SPEC.item("ports", i).child("nodePort"), what);
        }
    }
    let mut seen = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let n = number(p, "nodePort");
        if n != 0 && !seen.insert((text(p, "protocol"), n)) {
            c.duplicate(At::SPEC.item("ports", i).child("nodePort"), n);
        }
    }
    seen.clear();
    for (i, p) in ports.iter().enumerate() {
        let (protocol, n) = (text(p, "protocol"), number(p, "port"));
        if !seen.insert((protocol, n)) {
            let key = json!({"protocol": protocol, "port": n, "targetPort": 0});
            c.duplicate(At::SPEC.item("ports", i), key);
        }
    }
}

fn affinity(c: &mut Checks, spec: &Value) {
    const AT: At<'_> = At::root("spec.sessionAffinityConfig");
    c.required_one_of(spec, "sessionAffinity", At::SPEC, &["ClientIP", "None"]);
    let config = &spec["sessionAffinityConfig"];
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let what = "when session affinity type is ClientIP";
            let path = AT.child("clientIP.timeoutSeconds");
            if !config.is_object() {
                c.required(AT, what);
            } else if !config["clientIP"].is_object() {
                c.required(AT.child("clientIP"), what);
            } else if config["clientIP"]["timeoutSeconds"].is_null() {
                c.required(path, what);
            } else {
                let n = number(&config["clientIP"], "timeoutSeconds");
                if !(1..=LONGEST_AFFINITY).contains(&n) {
                    let what = format!("must be greater than 0 and less than {LONGEST_AFFINITY}");
                    c.invalid(path, n, what);
                }
            }
        }
        "None" if !config.is_null() => {
            c.forbidden(AT, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

/// What only load balancers have.
fn balancer(c: &mut Checks, obj: &Value, kind: &str) {
    let (spec, is_balancer) = (&obj["spec"], kind == "LoadBalancer");
    let ranges = list(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() {
        // Upstream's path begins with a capital.
        const AT: At<'_> = At::root("spec.LoadBalancerSourceRanges");
        if !is_balancer {
            c.forbidden(AT, BALANCER_ONLY);
        }
        for (i, range) in strings(spec, "loadBalancerSourceRanges").enumerate() {
            ips::range(c, range.trim(), AT.index(i));
        }
    } else if let Some(ranges) = object::annotation(obj, RANGES) {
        let at = ANNOTATIONS.key(RANGES);
        if !is_balancer {
            c.forbidden(at, BALANCER_ONLY);
        }
        for range in ranges.trim().split(',').filter(|_| !ranges.trim().is_empty()) {
            ips::range(c, range.trim(), at);
        }
    }
    if !is_balancer && !spec["allocateLoadBalancerNodePorts"].is_null() {
        c.forbidden("spec.allocateLoadBalancerNodePorts", BALANCER_ONLY);
    }
    if is_balancer {
        c.set_name(spec, "loadBalancerClass", At::SPEC, names::qualified_name);
    } else if !spec["loadBalancerClass"].is_null() {
        c.forbidden("spec.loadBalancerClass", BALANCER_ONLY);
    }
}

fn traffic(c: &mut Checks, spec: &Value) {
    const POLICIES: [&str; 2] = ["Cluster", "Local"];
    let policy = text(spec, "externalTrafficPolicy");
    if is_external(spec) {
        // A Service with external addresses alone has been defaulted as one of the cluster.
        if !policy.is_empty() || text(spec, "type") != "ClusterIP" {
            c.required_one_of(spec, "externalTrafficPolicy", At::SPEC, &POLICIES);
        }
    } else if !policy.is_empty() {
        let what = "may only be set for externally-accessible services";
        c.invalid("spec.externalTrafficPolicy", policy, what);
    }
    let health = number(spec, "healthCheckNodePort");
    if !needs_health_check(spec) && health != 0 {
        let what = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        c.invalid("spec.healthCheckNodePort", health, what);
    } else if health != 0 {
        c.port(At::SPEC.child("healthCheckNodePort"), health);
    }
    c.one_of(spec, "internalTrafficPolicy", At::SPEC, &POLICIES);
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    c.one_of(spec, "trafficDistribution", At::SPEC, &distributions);
    c.one_of(spec, "ipFamilyPolicy", At::SPEC, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    for (i, ip) in strings(spec, "clusterIPs").enumerate() {
        if !matches!(ip, "" | "None") {
            ips::address(c, ip, At::SPEC.item("clusterIPs", i));
        }
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    let (after, before) = (&new["spec"], &old["spec"]);
    let is_balancer = |spec: &Value| text(spec, "type") == "LoadBalancer";
    if is_balancer(after) && is_balancer(before) && after["loadBalancerClass"] != before["loadBalancerClass"]
    {
        let class = after["loadBalancerClass"].clone();
        c.invalid("spec.loadBalancerClass", class, "may not change once set");
    }
    if needs_health_check(after)
        && needs_health_check(before)
        && number(after, "healthCheckNodePort") != number(before, "healthCheckNodePort")
    {
        c.forbidden("spec.healthCheckNodePort", IMMUTABLE);
    }
    c.ratchet(validate, new, old);
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
            let mut c = Checks::default();
            update(&mut c, &new, &old);
            c.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
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
