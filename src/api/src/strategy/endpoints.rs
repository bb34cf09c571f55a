//! Endpoints (upstream's `ValidateEndpoints`).

use serde_json::Value;

use super::checks::{self, number, optional_name, port, required_one_of};
use super::ips;
use super::util::{list, text};
use crate::field::{FieldError, index, join};
use crate::names;

pub(super) fn validate(obj: &Value, errors: &mut Vec<FieldError>) {
    for (i, subset) in list(obj, "subsets").iter().enumerate() {
        let at = index("subsets", i);
        let (ready, waiting) = (list(subset, "addresses"), list(subset, "notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            checks::required(at.as_str(), "must specify `addresses` or `notReadyAddresses`", errors);
        }
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            for (j, a) in addresses.iter().enumerate() {
                address(a, &index(&join(&at, field), j), errors);
            }
        }
        let ports = list(subset, "ports");
        for (j, p) in ports.iter().enumerate() {
            endpoint_port(p, ports.len() > 1, &index(&join(&at, "ports"), j), errors);
        }
    }
}

/// Subsets that have not changed are not looked at.
pub(super) fn update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if new.get("subsets") != old.get("subsets") {
        checks::ratchet(validate, new, old, errors);
    }
}

fn address(a: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (path, ip) = (join(at, "ip"), text(a, "ip"));
    ips::address(ip, &path, errors);
    if !text(a, "hostname").is_empty() {
        optional_name(a, "hostname", names::dns1123_label, at, errors);
    }
    optional_name(a, "nodeName", names::dns1123_subdomain, at, errors);
    ips::endpoint(ip, &path, errors);
}

fn endpoint_port(p: &Value, named: bool, at: &str, errors: &mut Vec<FieldError>) {
    if !text(p, "name").is_empty() {
        optional_name(p, "name", names::dns1123_label, at, errors);
    } else if named {
        checks::required(join(at, "name"), "", errors);
    }
    port(number(p, "port"), &join(at, "port"), errors);
    required_one_of(p, "protocol", at, &["SCTP", "TCP", "UDP"], errors);
    optional_name(p, "appProtocol", names::qualified_name, at, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn subsets() {
        let tcp = |port: i64| json!({"name": "a", "port": port, "protocol": "TCP"});
        for subset in [
            json!({"addresses": [{"ip": "10.0.0.1", "nodeName": "n", "hostname": "h"}], "ports": [tcp(80)]}),
            json!({"notReadyAddresses": [{"ip": "2001:db8::1"}]}),
            json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1, "protocol": "UDP", "appProtocol": "kubernetes.io/h2c"}]}),
        ] {
            assert_eq!(told(validate, &json!({"subsets": [subset]})), "", "{subset}");
        }
        for (subset, wanted) in [
            (
                json!({"ports": [tcp(80)]}),
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
            ),
            (
                json!({"addresses": [{"ip": "127.0.0.1"}]}),
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                json!({"notReadyAddresses": [{"ip": "169.254.1.1"}]}),
                "subsets[0].notReadyAddresses[0].ip: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            ),
            (
                json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [tcp(66000)]}),
                "subsets[0].ports[0].port: Invalid value: 66000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [tcp(1), {"port": 2, "protocol": "TCP"}]}),
                "subsets[0].ports[1].name: Required value",
            ),
            (
                json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 2, "protocol": "tcp"}]}),
                r#"subsets[0].ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP""#,
            ),
            (
                json!({"addresses": [{"ip": "x"}]}),
                "subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff); subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address",
            ),
        ] {
            assert_eq!(told(validate, &json!({"subsets": [subset]})), wanted);
        }
        let bad = json!({"subsets": [{"addresses": [{"ip": "x"}]}]});
        let mut errors = Vec::new();
        update(&bad, &bad, &mut errors);
        assert_eq!(errors, []);
    }
}
