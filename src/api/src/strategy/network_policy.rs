//! NetworkPolicies (upstream's `pkg/apis/networking/validation`): what is not understood must not be
//! stored, for a rule that no one enforces lets everything through.

use serde_json::Value;

use super::checks::Checks;
use super::ips;
use super::selectors;
use super::util::{list, strings, text};
use crate::field::At;
use crate::names;

const TYPES: [&str; 2] = ["Ingress", "Egress"];

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    selectors::label_selector(c, &spec["podSelector"], At::SPEC.child("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(spec, direction).iter().enumerate() {
            let at = At::SPEC.item(direction, i);
            for (j, p) in list(rule, "ports").iter().enumerate() {
                ports(c, p, at.item("ports", j));
            }
            for (j, p) in list(rule, peers).iter().enumerate() {
                peer(c, p, at.item(peers, j));
            }
        }
    }
    let types = list(spec, "policyTypes");
    if types.len() > TYPES.len() {
        let what = "may not specify more than two policyTypes";
        return c.invalid("spec.policyTypes", types.to_vec(), what);
    }
    for (i, t) in types.iter().enumerate() {
        if !TYPES.iter().any(|known| t == known) {
            c.unsupported(At::SPEC.item("policyTypes", i), t.clone(), &TYPES);
        }
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
}

fn ports(c: &mut Checks, p: &Value, at: At<'_>) {
    c.one_of(p, "protocol", at, &["TCP", "UDP", "SCTP"]);
    let (first, last) = (at.child("port"), at.child("endPort"));
    let end = p.get("endPort").and_then(Value::as_i64);
    match (&p["port"], end) {
        (Value::Number(n), _) => {
            let n = n.as_i64().unwrap_or(0);
            c.port(first, n);
            if let Some(end) = end {
                if end < n {
                    let what = "must be greater than or equal to `port`";
                    c.invalid(last, n, what);
                }
                c.port(last, end);
            }
        }
        (Value::String(name), _) => {
            if let Some(end) = end {
                let what = "may not be specified when `port` is non-numeric";
                c.invalid(last, end, what);
            }
            c.syntax(first, name, names::port_name);
        }
        (_, Some(end)) => {
            let what = "may not be specified when `port` is not specified";
            c.invalid(last, end, what);
        }
        _ => {}
    }
}

fn peer(c: &mut Checks, p: &Value, at: At<'_>) {
    let mut selectors = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if p[field].is_object() {
            selectors += 1;
            selectors::label_selector(c, &p[field], at.child(field));
        }
    }
    let has_block = p["ipBlock"].is_object();
    if has_block {
        block(c, &p["ipBlock"], at.child("ipBlock"));
    }
    if !has_block && selectors == 0 {
        c.required(at, "must specify a peer");
    } else if has_block && selectors > 0 {
        c.forbidden(at, "may not specify both ipBlock and another peer");
    }
}

fn block(c: &mut Checks, b: &Value, at: At<'_>) {
    if !c.needs(b, "cidr", at) {
        return;
    }
    let Some(all) = ips::range(c, text(b, "cidr"), at.child("cidr")) else { return };
    for (i, except) in strings(b, "except").enumerate() {
        let path = at.item("except", i);
        let Some(part) = ips::range(c, except, path) else { continue };
        if !all.has_inside(&part) {
            c.invalid(path, except, "must be a strict subset of `cidr`");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    fn of(spec: Value) -> String {
        told(validate, &json!({ "spec": spec }))
    }

    #[test]
    fn types_of_policies() {
        assert_eq!(of(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})), "");
        assert_eq!(
            of(json!({"policyTypes": ["ingress"]})),
            r#"spec.policyTypes[0]: Unsupported value: "ingress": supported values: "Ingress", "Egress""#
        );
        assert_eq!(
            of(json!({"policyTypes": ["Ingress", "Egress", "Ingress"]})),
            r#"spec.policyTypes: Invalid value: ["Ingress","Egress","Ingress"]: may not specify more than two policyTypes"#
        );
    }

    #[test]
    fn peers() {
        let of = |peer: Value| of(json!({"egress": [{"to": [peer]}]}));
        let at = "spec.egress[0].to[0]";
        for peer in [
            json!({"podSelector": {}}),
            json!({"podSelector": {}, "namespaceSelector": {"matchLabels": {"a": "b"}}}),
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.0.0.0/9"]}}),
            json!({"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}}),
        ] {
            assert_eq!(of(peer.clone()), "", "{peer}");
        }
        for (peer, wanted) in [
            (json!({}), format!("{at}: Required value: must specify a peer")),
            (
                json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
                format!("{at}: Forbidden: may not specify both ipBlock and another peer"),
            ),
            (json!({"ipBlock": {}}), format!("{at}.ipBlock.cidr: Required value")),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0"}}),
                format!(
                    "{at}.ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
                ),
            ),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}),
                format!(
                    "{at}.ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"
                ),
            ),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}),
                format!(
                    "{at}.ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`"
                ),
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
                format!(
                    "{at}.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
            ),
        ] {
            assert_eq!(of(peer), wanted);
        }
    }

    #[test]
    fn port_ranges() {
        let of = |port: Value| of(json!({"ingress": [{"ports": [port]}]}));
        let at = "spec.ingress[0].ports[0]";
        for port in [
            json!({"protocol": "TCP"}),
            json!({"port": 1, "endPort": 65535}),
            json!({"port": "http", "protocol": "SCTP"}),
        ] {
            assert_eq!(of(port.clone()), "", "{port}");
        }
        for (port, wanted) in [
            (json!({"port": 0}), ".port: Invalid value: 0: must be between 1 and 65535, inclusive"),
            (
                json!({"port": 9, "endPort": 8}),
                ".endPort: Invalid value: 9: must be greater than or equal to `port`",
            ),
            (
                json!({"port": 9, "endPort": 65536}),
                ".endPort: Invalid value: 65536: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"port": "http", "endPort": 8}),
                ".endPort: Invalid value: 8: may not be specified when `port` is non-numeric",
            ),
            (
                json!({"endPort": 8}),
                ".endPort: Invalid value: 8: may not be specified when `port` is not specified",
            ),
            (json!({"port": "a--b"}), ".port: Invalid value: \"a--b\": must not contain consecutive hyphens"),
            (
                json!({"protocol": "tcp"}),
                r#".protocol: Unsupported value: "tcp": supported values: "TCP", "UDP", "SCTP""#,
            ),
        ] {
            assert_eq!(of(port), format!("{at}{wanted}"));
        }
    }

    #[test]
    fn what_was_stored_before_stays_updatable() {
        let of = |cidr: &str| json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}});
        let mut c = Checks::default();
        update(&mut c, &of("10.0.0.1/8"), &of("10.0.0.1/8"));
        assert_eq!(c.errors, []);
        update(&mut c, &of("10.0.0.1/8"), &of("10.0.0.0/8"));
        assert_eq!(c.errors.len(), 1);
    }
}
