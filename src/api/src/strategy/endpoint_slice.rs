//! EndpointSlices (upstream's `pkg/apis/discovery/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::checks::{optional_name, ratchet, required, required_one_of, syntax};
use super::ips;
use super::meta::{immutable, labels};
use super::util::{list, one_of, text};
use crate::field::{FieldError, index, join};
use crate::names;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20000;
const MAX_LABELS: usize = 16;
const MAX_HINTS: usize = 8;

pub(super) fn validate(obj: &Value, errors: &mut Vec<FieldError>) {
    required_one_of(obj, "addressType", "", &["FQDN", "IPv4", "IPv6"], errors);
    ports(list(obj, "ports"), errors);
    let endpoints = list(obj, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        return errors.push(FieldError::too_many("endpoints", endpoints.len(), MAX_ENDPOINTS as u64));
    }
    for (i, e) in endpoints.iter().enumerate() {
        endpoint(e, text(obj, "addressType"), &index("endpoints", i), errors);
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let is_same = |field: &str| new.get(field) == old.get(field);
    if !(is_same("endpoints") && is_same("ports") && is_same("addressType")) {
        ratchet(validate, new, old, errors);
    }
    immutable(new, old, "/addressType", errors);
}

fn ports(ports: &[Value], errors: &mut Vec<FieldError>) {
    if ports.len() > MAX_PORTS {
        return errors.push(FieldError::too_many("ports", ports.len(), MAX_PORTS as u64));
    }
    let mut seen = HashSet::new();
    for (i, p) in ports.iter().enumerate() {
        let (at, name) = (index("ports", i), text(p, "name"));
        if !name.is_empty() {
            syntax(names::dns1123_label, name, &join(&at, "name"), errors);
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(join(&at, "name"), name));
        }
        one_of(p, "protocol", &at, &["SCTP", "TCP", "UDP"], errors);
        optional_name(p, "appProtocol", names::qualified_name, &at, errors);
    }
}

fn endpoint(e: &Value, family: &str, at: &str, errors: &mut Vec<FieldError>) {
    let (path, addresses) = (join(at, "addresses"), list(e, "addresses"));
    if addresses.is_empty() {
        required(path.as_str(), "must contain at least 1 address", errors);
    } else if addresses.len() > MAX_ADDRESSES {
        errors.push(FieldError::too_many(path.as_str(), addresses.len(), MAX_ADDRESSES as u64));
    }
    for (i, a) in addresses.iter().enumerate() {
        address(a.as_str().unwrap_or_default(), family, &path, i, errors);
    }
    optional_name(e, "nodeName", names::dns1123_subdomain, at, errors);
    let topology = &e["deprecatedTopology"];
    let path = join(at, "deprecatedTopology");
    if let Some(n) = topology.as_object().map(serde_json::Map::len).filter(|n| *n > MAX_LABELS) {
        errors.push(FieldError::too_many(path.as_str(), n, MAX_LABELS as u64));
    }
    labels(topology, &path, errors);
    optional_name(e, "hostname", names::dns1123_label, at, errors);
    hints(&e["hints"], &join(at, "hints"), errors);
}

fn address(value: &str, family: &str, path: &str, i: usize, errors: &mut Vec<FieldError>) {
    let at = index(path, i);
    let before = errors.len();
    match family {
        "IPv4" | "IPv6" => {
            ips::address(value, &at, errors);
            let Some(ip) = ips::parse(value).filter(|_| errors.len() == before) else { return };
            if family == "IPv6" && ip.to_string() != value {
                let what = format!("must be in canonical form ({:?})", ip.to_string());
                return errors.push(FieldError::invalid(at, value, what));
            }
            if ip.is_ipv4() != (family == "IPv4") {
                errors.push(FieldError::invalid(path, value, format!("must be an {family} address")));
            }
            ips::endpoint(value, &at, errors);
        }
        "FQDN" => domain(value, &at, errors),
        _ => {}
    }
}

fn domain(value: &str, at: &str, errors: &mut Vec<FieldError>) {
    if value.is_empty() {
        return required(at, "", errors);
    }
    let name = value.strip_suffix('.').unwrap_or(value);
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        errors.push(FieldError::invalid(at, name, wrong.join(",")));
    } else if !name.contains('.') {
        let what = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(at, name, what));
    } else if let Some((label, wrong)) =
        name.split('.').map(|l| (l, names::dns1123_label(l))).find(|(_, wrong)| !wrong.is_empty())
    {
        errors.push(FieldError::invalid(at, label, wrong.join(",")));
    }
}

fn hints(hints: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let kinds: [(&str, fn(&str) -> Vec<String>); 2] =
        [("forZones", names::label_value), ("forNodes", names::dns1123_subdomain)];
    for (field, rule) in kinds {
        let (at, hinted) = (join(at, field), list(hints, field));
        if hinted.len() > MAX_HINTS {
            return errors.push(FieldError::too_many(at, hinted.len(), MAX_HINTS as u64));
        }
        let mut seen = HashSet::new();
        for (i, hint) in hinted.iter().enumerate() {
            let (path, name) = (join(&index(&at, i), "name"), text(hint, "name"));
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(path.as_str(), name));
            }
            syntax(rule, name, &path, errors);
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
