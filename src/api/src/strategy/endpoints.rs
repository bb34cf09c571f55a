//! Endpoints (upstream's `ValidateEndpoints`).

use serde_json::Value;

use super::checks::{Checks, PROTOCOLS};
use super::ips;
use super::util::{list, number, text};
use crate::field::At;
use crate::names;

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    for (i, subset) in list(obj, "subsets").iter().enumerate() {
        let at = At::ROOT.item("subsets", i);
        let (ready, waiting) = (list(subset, "addresses"), list(subset, "notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            c.required(at, "must specify `addresses` or `notReadyAddresses`");
        }
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            for (j, a) in addresses.iter().enumerate() {
                address(c, a, at.item(field, j));
            }
        }
        let ports = list(subset, "ports");
        for (j, p) in ports.iter().enumerate() {
            endpoint_port(c, p, ports.len() > 1, at.item("ports", j));
        }
    }
}

/// Subsets that have not changed are not looked at.
pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    if new.get("subsets") != old.get("subsets") {
        c.ratchet(validate, new, old);
    }
}

fn address(c: &mut Checks, a: &Value, at: At<'_>) {
    let (path, ip) = (at.child("ip"), text(a, "ip"));
    ips::address(c, ip, path);
    c.optional_name(a, "hostname", at, names::dns1123_label);
    c.set_name(a, "nodeName", at, names::dns1123_subdomain);
    ips::endpoint(c, ip, path);
}

fn endpoint_port(c: &mut Checks, p: &Value, named: bool, at: At<'_>) {
    if named {
        c.required_name(p, "name", at, names::dns1123_label);
    } else {
        c.optional_name(p, "name", at, names::dns1123_label);
    }
    c.port(at.child("port"), number(p, "port"));
    c.required_one_of(p, "protocol", at, &PROTOCOLS);
    c.set_name(p, "appProtocol", at, names::qualified_name);
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
        let mut c = Checks::default();
        update(&mut c, &bad, &bad);
        assert_eq!(c.errors, []);
    }
}
