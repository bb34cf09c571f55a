//! EndpointSlices (upstream's `pkg/apis/discovery/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::checks::{Checks, PROTOCOLS};
use super::ips;
use super::meta::labels;
use super::util::{list, strings, text};
use crate::field::At;
use crate::names;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20000;
const MAX_LABELS: usize = 16;
const MAX_HINTS: usize = 8;

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    c.required_one_of(obj, "addressType", At::ROOT, &["FQDN", "IPv4", "IPv6"]);
    ports(c, list(obj, "ports"));
    let endpoints = list(obj, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        return c.too_many("endpoints", endpoints.len(), MAX_ENDPOINTS);
    }
    for (i, e) in endpoints.iter().enumerate() {
        endpoint(c, e, text(obj, "addressType"), At::ROOT.item("endpoints", i));
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    let is_same = |field: &str| new.get(field) == old.get(field);
    if !(is_same("endpoints") && is_same("ports") && is_same("addressType")) {
        c.ratchet(validate, new, old);
    }
    c.immutable(new, old, "/addressType");
}

fn ports(c: &mut Checks, ports: &[Value]) {
    if ports.len() > MAX_PORTS {
        return c.too_many("ports", ports.len(), MAX_PORTS);
    }
    let mut seen = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let (at, name) = (At::ROOT.item("ports", i), text(p, "name"));
        if !name.is_empty() {
            c.syntax(at.child("name"), name, names::dns1123_label);
        }
        if !seen.insert(name) {
            c.duplicate(at.child("name"), name);
        }
        c.one_of(p, "protocol", at, &PROTOCOLS);
        c.set_name(p, "appProtocol", at, names::qualified_name);
    }
}

fn endpoint(c: &mut Checks, e: &Value, family: &str, at: At<'_>) {
    let (path, addresses) = (at.child("addresses"), list(e, "addresses"));
    if addresses.is_empty() {
        c.required(path, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        c.too_many(path, addresses.len(), MAX_ADDRESSES);
    }
    for (i, a) in strings(e, "addresses").enumerate() {
        address(c, a, family, path, i);
    }
    c.set_name(e, "nodeName", at, names::dns1123_subdomain);
    let topology = &e["deprecatedTopology"];
    let path = at.child("deprecatedTopology");
    if let Some(n) = topology.as_object().map(serde_json::Map::len).filter(|n| *n > MAX_LABELS) {
        c.too_many(path, n, MAX_LABELS);
    }
    labels(c, topology, path);
    c.set_name(e, "hostname", at, names::dns1123_label);
    hints(c, &e["hints"], at.child("hints"));
}

fn address(c: &mut Checks, value: &str, family: &str, path: At<'_>, i: usize) {
    let at = path.index(i);
    let before = c.errors.len();
    match family {
        "IPv4" | "IPv6" => {
            if family == "IPv6" {
                c.syntax(at, value, ips::canonical_address);
            } else {
                ips::address(c, value, at);
            }
            let Some(ip) = ips::parse(value).filter(|_| c.errors.len() == before) else { return };
            if ip.is_ipv4() != (family == "IPv4") {
                c.invalid(path, value, format!("must be an {family} address"));
            }
            ips::endpoint(c, value, at);
        }
        "FQDN" => domain(c, value, at),
        _ => {}
    }
}

fn domain(c: &mut Checks, value: &str, at: At<'_>) {
    if value.is_empty() {
        return c.required(at, "");
    }
    let name = value.strip_suffix('.').unwrap_or(value);
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        c.invalid(at, name, wrong.join(","));
    } else if !name.contains('.') {
        let what = "should be a domain with at least two segments separated by dots";
        c.invalid(at, name, what);
    } else if let Some((label, wrong)) =
        name.split('.').map(|l| (l, names::dns1123_label(l))).find(|(_, wrong)| !wrong.is_empty())
    {
        c.invalid(at, label, wrong.join(","));
    }
}

fn hints(c: &mut Checks, hints: &Value, at: At<'_>) {
    let kinds: [(&str, fn(&str) -> Vec<String>); 2] =
        [("forZones", names::label_value), ("forNodes", names::dns1123_subdomain)];
    for (field, rule) in kinds {
        let (at, hinted) = (at.child(field), list(hints, field));
        if hinted.len() > MAX_HINTS {
            return c.too_many(at, hinted.len(), MAX_HINTS);
        }
        let mut seen = HashSet::new();
        for (i, hint) in hinted.iter().enumerate() {
            let (at, name) = (at.index(i), text(hint, "name"));
            let path = at.child("name");
            if !seen.insert(name) {
                c.duplicate(path, name);
            }
            c.syntax(path, name, rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn slices() {
        let of = |family: &str, e: Value| {
            told(
                validate,
                &json!({"addressType": family, "endpoints": [e], "ports": [{"name": "", "protocol": "TCP", "port": 80}]}),
            )
        };
        for (family, e) in [
            (
                "IPv4",
                json!({"addresses": ["10.0.0.1"], "nodeName": "n", "hints": {"forZones": [{"name": "a"}]}}),
            ),
            ("IPv6", json!({"addresses": ["fd00::1"], "hostname": "h"})),
            ("FQDN", json!({"addresses": ["example.com."]})),
        ] {
            assert_eq!(of(family, e.clone()), "", "{e}");
        }
        for (family, e, wanted) in [
            ("IPv4", json!({}), "addresses: Required value: must contain at least 1 address"),
            (
                "IPv4",
                json!({"addresses": ["127.0.0.1"]}),
                "addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                "IPv4",
                json!({"addresses": ["fd00::1"]}),
                "addresses: Invalid value: \"fd00::1\": must be an IPv4 address",
            ),
            (
                "IPv6",
                json!({"addresses": ["10.0.0.1"]}),
                "addresses: Invalid value: \"10.0.0.1\": must be an IPv6 address",
            ),
            (
                "IPv6",
                json!({"addresses": ["FD00::1"]}),
                "addresses[0]: Invalid value: \"FD00::1\": must be in canonical form (\"fd00::1\")",
            ),
            (
                "FQDN",
                json!({"addresses": ["a"]}),
                "addresses[0]: Invalid value: \"a\": should be a domain with at least two segments separated by dots",
            ),
            (
                "IPv4",
                json!({"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}, {"name": "a"}]}}),
                "hints.forZones[1].name: Duplicate value: \"a\"",
            ),
        ] {
            assert_eq!(of(family, e), format!("endpoints[0].{wanted}"));
        }
        let many = json!({"addressType": "IPv4", "endpoints": [{"addresses": vec!["10.0.0.1"; 101]}]});
        assert_eq!(
            told(validate, &many),
            "endpoints[0].addresses: Too many: 101: must have at most 100 items"
        );
        assert_eq!(
            told(validate, &json!({"addressType": "ipv4"})),
            r#"addressType: Unsupported value: "ipv4": supported values: "FQDN", "IPv4", "IPv6""#
        );
        let twice = json!({"addressType": "IPv4", "ports": [{"name": "a"}, {"name": "a", "protocol": "x"}]});
        assert_eq!(
            told(validate, &twice),
            r#"ports[1].name: Duplicate value: "a"; ports[1].protocol: Unsupported value: "x": supported values: "SCTP", "TCP", "UDP""#
        );
    }
}
