//! IPAddresses and ServiceCIDRs (upstream's `pkg/apis/networking/validation`).

use serde_json::Value;

use super::checks::{Checks, IMMUTABLE};
use super::ips;
use super::util::{list, strings};
use crate::field::At;
use crate::names;
use crate::object;

const CIDRS: At<'_> = At::root("spec.cidrs");

pub(super) fn validate_address(c: &mut Checks, obj: &Value) {
    let parent = object::get(obj, "/spec/parentRef");
    if !parent.is_object() {
        return c.required("spec.parentRef", "");
    }
    const AT: At<'_> = At::root("spec.parentRef");
    // The core group has no name.
    c.optional_name(parent, "group", AT, names::dns1123_subdomain);
    c.required_name(parent, "resource", AT, names::path_segment);
    c.required_name(parent, "name", AT, names::path_segment);
    c.optional_name(parent, "namespace", AT, names::path_segment);
}

pub(super) fn update_address(c: &mut Checks, new: &Value, old: &Value) {
    c.immutable(new, old, "/spec/parentRef");
}

fn cidrs(obj: &Value) -> &[Value] {
    list(object::get(obj, "/spec"), "cidrs")
}

pub(super) fn validate_range(c: &mut Checks, obj: &Value) {
    let all = cidrs(obj);
    if all.is_empty() {
        return c.required(CIDRS, "at least one CIDR required");
    }
    if all.len() > 2 {
        return c.invalid(CIDRS, obj["spec"].clone(), "may only hold up to 2 values");
    }
    let family = |cidr: &Value| ips::Range::parse(cidr.as_str().unwrap_or_default()).map(|r| r.is_ipv4());
    if let [first, second] = all
        && !matches!((family(first), family(second)), (Some(a), Some(b)) if a != b)
    {
        let what = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        return c.invalid(CIDRS, obj["spec"].clone(), what);
    }
    for (i, cidr) in strings(&obj["spec"], "cidrs").enumerate() {
        ips::canonical_range(c, cidr, CIDRS.index(i));
    }
}

/// A range stays as it is; it may get a second family.
pub(super) fn update_range(c: &mut Checks, new: &Value, old: &Value) {
    let (changed, new, old) = (new, cidrs(new), cidrs(old));
    if new.len() != old.len() {
        validate_range(c, changed);
    }
    if new.len() != old.len() && (old.len() != 1 || new.len() != 2) {
        return c.invalid(CIDRS, new.to_vec(), IMMUTABLE);
    }
    for (i, (new, old)) in new.iter().zip(old).enumerate() {
        if new != old {
            c.invalid(CIDRS.index(i), new.clone(), IMMUTABLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(check: impl FnOnce(&mut Checks)) -> String {
        let mut c = Checks::default();
        check(&mut c);
        c.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn addresses_have_one_form() {
        for (name, right) in [
            ("10.0.0.1", true),
            ("255.255.255.255", true),
            ("fe80::42:1dff:fe84:f9e2", true),
            ("fe80:0:0:0:42:1dff:fe84:f9e2", false),
            ("FE80::1", false),
            ("::ffff:10.0.0.1", false),
            ("10.0.0.01", false),
            ("name", false),
        ] {
            assert_eq!(ips::canonical_address(name).is_empty(), right, "{name}");
        }
    }

    #[test]
    fn an_address_belongs_to_something() {
        let of = |parent: Value| told(|e| validate_address(e, &json!({ "spec": { "parentRef": parent } })));
        assert_eq!(of(json!({ "resource": "services", "name": "a", "namespace": "b" })), "");
        assert!(of(Value::Null).contains("spec.parentRef: Required"));
        let missing = of(json!({ "group": "-" }));
        for field in ["group: Invalid", "resource: Required", "name: Required"] {
            assert!(missing.contains(field), "{missing}");
        }
    }

    #[test]
    fn ranges() {
        let of = |list: Value| told(|e| validate_range(e, &json!({ "spec": { "cidrs": list } })));
        for (list, wanted) in [
            (json!(["10.0.0.0/16"]), ""),
            (json!(["10.0.0.0/16", "fd00::/112"]), ""),
            (json!(["0.0.0.0/0", "::/0"]), ""),
            (json!([]), "at least one"),
            (json!(["10.0.0.0/16", "fd00::/112", "fd01::/112"]), "up to 2"),
            (json!(["10.0.0.0/33"]), "valid CIDR"),
            (json!(["10.0.0.1/16"]), "must not have bits set beyond the prefix length"),
            (json!(["010.0.0.0/16"]), "must not have leading 0s in IP or prefix length"),
            (json!(["FD00::/112"]), "must be in canonical form (\"fd00::/112\")"),
            (json!(["10.0.0.0/16", "10.1.0.0/16"]), "no more than one IP for each"),
        ] {
            let got = of(list.clone());
            assert!(if wanted.is_empty() { got.is_empty() } else { got.contains(wanted) }, "{list}: {got}");
        }
    }

    #[test]
    fn a_range_may_get_its_second_family() {
        let of = |new: Value, old: Value| {
            let spec = |list: Value| json!({ "spec": { "cidrs": list } });
            told(|e| update_range(e, &spec(new), &spec(old))).is_empty()
        };
        let (four, six) = ("10.0.0.0/16", "fd00::/112");
        assert!(of(json!([four]), json!([four])));
        assert!(of(json!([four, six]), json!([four])));
        assert!(!of(json!([six, four]), json!([four])));
        assert!(!of(json!([four]), json!([four, six])));
        assert!(!of(json!([six]), json!([four])));
    }
}
