//! The address families of a Service: what a client left open is filled in from what it did say, from the
//! Service as it was and from what the cluster has (`registry/core/service/storage/alloc.go`,
//! `ValidateServiceClusterIPsRelatedFields` and the upgrade rules of `apis/core/validation`). Pure: the
//! addresses themselves are given out in `claims`.

use std::net::IpAddr;

use kedge_api::field::FieldError;
use serde_json::{Value, json};

const NONE: &str = "None";
const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";
const POLICY: &str = "spec.ipFamilyPolicy";
const FAMILIES: &str = "spec.ipFamilies";
const IPS: &str = "spec.clusterIPs";

/// `IPv4` or `IPv6`, as the API spells it.
pub(crate) fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The four fields of one Service that depend on each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fields {
    ip: String,
    ips: Vec<String>,
    families: Vec<String>,
    policy: Option<String>,
    has_selector: bool,
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|one| one.as_str().unwrap_or_default().to_owned()).collect()
}

impl Fields {
    fn read(service: &Value) -> Self {
        let spec = &service["spec"];
        Self {
            ip: spec["clusterIP"].as_str().unwrap_or_default().to_owned(),
            ips: strings(&spec["clusterIPs"]),
            families: strings(&spec["ipFamilies"]),
            policy: spec["ipFamilyPolicy"].as_str().filter(|policy| !policy.is_empty()).map(str::to_owned),
            has_selector: spec["selector"].as_object().is_some_and(|selector| !selector.is_empty()),
        }
    }

    fn write(&self, service: &mut Value) {
        let spec = &mut service["spec"];
        if !self.ips.is_empty() {
            spec["clusterIP"] = json!(self.ip);
            spec["clusterIPs"] = json!(self.ips);
        }
        spec["ipFamilies"] = json!(self.families);
        spec["ipFamilyPolicy"] = json!(self.policy);
    }

    /// Nobody but its own endpoints says which families it has.
    fn is_free(&self) -> bool {
        self.ip == NONE && !self.has_selector
    }

    fn policy_is(&self, policy: &str) -> bool {
        self.policy.as_deref() == Some(policy)
    }
}

/// The same address, however it is written.
fn same(a: &str, b: &str) -> bool {
    a == b || matches!((a.parse::<IpAddr>(), b.parse::<IpAddr>()), (Ok(a), Ok(b)) if a == b)
}

fn all_same(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

/// Fill in `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` of a Service that is no ExternalName. `old` is the
/// one before, null for a new one; `configured` the cluster's families, the default one first.
pub(crate) fn resolve(service: &mut Value, old: &Value, configured: &[&str]) -> Vec<FieldError> {
    let is_update = !old.is_null() && old["spec"]["type"] != "ExternalName";
    let before = is_update.then(|| Fields::read(old));
    let mut now = Fields::read(service);
    normalize(&mut now, before.as_ref());
    let mut errors = match &before {
        // A cluster that gets or loses a family changes no Service that is there.
        Some(before)
            if now.policy_is(PREFER)
                && before.policy_is(PREFER)
                && all_same(&now.ips, &before.ips)
                && now.families == before.families =>
        {
            Vec::new()
        }
        _ => fill(&mut now, before.as_ref(), configured),
    };
    if errors.is_empty()
        && let Some(before) = &before
    {
        errors = changes(&now, before);
    }
    if errors.is_empty() {
        now.write(service);
    }
    errors
}

/// `clusterIP` is the older spelling of `clusterIPs[0]`.
fn normalize(now: &mut Fields, before: Option<&Fields>) {
    if let Some(before) = before {
        if now.ip.is_empty() && now.ips.is_empty() {
            now.ip.clone_from(&before.ip);
        }
        if now.ips.is_empty() && now.ip == before.ip {
            now.ips.clone_from(&before.ips);
        }
        if now.ip != before.ip && now.ips == before.ips {
            // A client of the older field alone.
            now.ips.clear();
        }
        // Headless ones have no addresses to infer it from.
        if now.families.is_empty() && now.ip == NONE && before.ip == NONE {
            now.families.clone_from(&before.families);
        }
    }
    if now.ips.is_empty() && !now.ip.is_empty() {
        now.ips = vec![now.ip.clone()];
    }
    if now.ip.is_empty()
        && let Some(first) = now.ips.first()
    {
        now.ip.clone_from(first);
    }
}

fn fill(now: &mut Fields, before: Option<&Fields>, configured: &[&str]) -> Vec<FieldError> {
    if now.policy.is_none() {
        let inherited = before.and_then(|before| before.policy.clone());
        let default = if now.is_free() { REQUIRE } else { SINGLE };
        now.policy = Some(inherited.unwrap_or_else(|| default.to_owned()));
    }
    let mut errors = check(now);
    if !errors.is_empty() {
        return errors;
    }
    let single = now.policy_is(SINGLE);
    let mut wrong_policy =
        |now: &Fields, detail: &str| errors.push(FieldError::invalid(POLICY, json!(now.policy), detail));
    if let Some(before) = before {
        if single {
            // The first one stays; a list that nobody touched follows the policy.
            if all_same(&now.ips, &before.ips) {
                now.ips.truncate(1);
            }
            if now.families == before.families {
                now.families.truncate(1);
            }
        } else {
            let cut = |now: &[String], before: &[String], same: &dyn Fn(&str, &str) -> bool| {
                now.len() == 1 && before.len() == 2 && same(&now[0], &before[0])
            };
            if cut(&now.ips, &before.ips, &same) {
                wrong_policy(now, "must be 'SingleStack' to release the secondary cluster IP");
            }
            if cut(&now.families, &before.families, &|a, b| a == b) {
                wrong_policy(now, "must be 'SingleStack' to release the secondary IP family");
            }
        }
    }
    if single && now.ips.len() == 2 {
        wrong_policy(
            now,
            "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
        );
    }
    if single && now.families.len() == 2 {
        wrong_policy(
            now,
            "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        );
    }
    for (index, ip) in now.ips.iter().enumerate().skip(now.families.len()) {
        let Ok(address) = ip.parse::<IpAddr>() else { break };
        let family = family_of(address);
        if configured.contains(&family) {
            now.families.push(family.to_owned());
        } else {
            errors.push(FieldError::invalid(
                format!("{IPS}[{index}]"),
                json!(now.ips),
                format!("{family} is not configured on this cluster"),
            ));
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    let default = configured.first().copied().unwrap_or("IPv4");
    let other = |family: &str| if family == "IPv4" { "IPv6" } else { "IPv4" }.to_owned();
    if !now.is_free() {
        if now.policy_is(REQUIRE) && configured.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(POLICY, json!(now.policy), detail));
        }
        for (index, family) in now.families.iter().enumerate() {
            if !configured.contains(&family.as_str()) {
                errors.push(FieldError::invalid(
                    format!("{FAMILIES}[{index}]"),
                    json!(family),
                    "not configured on this cluster",
                ));
            }
        }
        if !errors.is_empty() {
            return errors;
        }
    }
    if now.families.is_empty() {
        now.families.push(default.to_owned());
    }
    if !single && now.families.len() == 1 && (now.is_free() || configured.len() == 2) {
        now.families.push(other(&now.families[0]));
    }
    errors
}

/// What cannot be right whatever the cluster has.
fn check(now: &Fields) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if now.ips.first().is_some_and(|first| *first != now.ip) {
        errors.push(FieldError::invalid(IPS, json!(now.ips), "first value must match `clusterIP`"));
    }
    for (index, family) in now.families.iter().enumerate() {
        let at = format!("{FAMILIES}[{index}]");
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            errors.push(FieldError::not_supported(at, json!(family), &["IPv4", "IPv6"]));
        } else if now.families[..index].contains(family) {
            errors.push(FieldError::duplicate(at, json!(family)));
        }
    }
    if let Some(policy) = &now.policy
        && ![PREFER, REQUIRE, SINGLE].contains(&policy.as_str())
    {
        errors.push(FieldError::not_supported(POLICY, json!(policy), &[PREFER, REQUIRE, SINGLE]));
    }
    let well_formed = errors.len();
    for (index, ip) in now.ips.iter().enumerate() {
        if index == 0 && ip == NONE {
            if now.ips.len() > 1 {
                let detail = "'None' must be the first and only value";
                errors.push(FieldError::invalid(IPS, json!(now.ips), detail));
            }
        } else if ip.parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(
                format!("{IPS}[{index}]"),
                json!(ip),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
    }
    if now.ips.len() > 2 {
        errors.push(FieldError::invalid(IPS, json!(now.ips), "may only hold up to 2 values"));
    }
    if errors.len() > well_formed {
        return errors;
    }
    let families: Vec<&str> =
        now.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).map(family_of).collect();
    if families.len() == 2 && families[0] == families[1] {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(IPS, json!(now.ips), detail));
    }
    if errors.is_empty() {
        for (index, (family, said)) in families.iter().zip(&now.families).enumerate() {
            if family != said {
                errors.push(FieldError::invalid(
                    format!("{IPS}[{index}]"),
                    json!(now.ips[index]),
                    format!("expected an {said} value as indicated by `ipFamilies[{index}]`"),
                ));
            }
        }
    }
    errors
}

/// A family can be added and given back; what is there does not change.
fn changes(now: &Fields, before: &Fields) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, (new, old)) in now.ips.iter().zip(&before.ips).enumerate() {
        if !same(new, old) {
            let at = format!("{IPS}[{index}]");
            errors.push(FieldError::invalid(at, json!(now.ips), "may not change once set"));
        }
    }
    if !now.is_free() {
        for (index, (new, old)) in now.families.iter().zip(&before.families).enumerate() {
            if new != old {
                let at = format!("{FAMILIES}[{index}]");
                errors.push(FieldError::invalid(at, json!(now.families), "may not change once set"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[&str] = &["IPv4"];
    const V6: &[&str] = &["IPv6"];
    const BOTH: &[&str] = &["IPv4", "IPv6"];
    const REVERSED: &[&str] = &["IPv6", "IPv4"];

    fn service(spec: Value) -> Value {
        json!({ "spec": spec })
    }

    #[test]
    fn what_is_left_open_follows_the_cluster() {
        let selector = json!({ "app": "web" });
        for (cluster, given, families, policy) in [
            (V4, json!({ "selector": selector }), json!(["IPv4"]), SINGLE),
            (V6, json!({ "selector": selector }), json!(["IPv6"]), SINGLE),
            (REVERSED, json!({ "selector": selector }), json!(["IPv6"]), SINGLE),
            (BOTH, json!({ "ipFamilyPolicy": PREFER }), json!(["IPv4", "IPv6"]), PREFER),
            (V4, json!({ "ipFamilyPolicy": PREFER }), json!(["IPv4"]), PREFER),
            (REVERSED, json!({ "ipFamilyPolicy": REQUIRE }), json!(["IPv6", "IPv4"]), REQUIRE),
            (BOTH, json!({ "ipFamilies": ["IPv6"] }), json!(["IPv6"]), SINGLE),
            (
                BOTH,
                json!({ "ipFamilies": ["IPv6"], "ipFamilyPolicy": PREFER }),
                json!(["IPv6", "IPv4"]),
                PREFER,
            ),
            (BOTH, json!({ "clusterIP": "fd00::7" }), json!(["IPv6"]), SINGLE),
            (BOTH, json!({ "clusterIP": NONE, "selector": selector }), json!(["IPv4"]), SINGLE),
            // Its endpoints may be of any family, whatever the cluster has.
            (V4, json!({ "clusterIP": NONE }), json!(["IPv4", "IPv6"]), REQUIRE),
            (
                BOTH,
                json!({ "clusterIPs": ["fd00::7", "10.0.0.7"], "ipFamilyPolicy": REQUIRE }),
                json!(["IPv6", "IPv4"]),
                REQUIRE,
            ),
        ] {
            let mut made = service(given.clone());
            assert_eq!(resolve(&mut made, &Value::Null, cluster), [], "{given}");
            assert_eq!(made["spec"]["ipFamilies"], families, "{given}");
            assert_eq!(made["spec"]["ipFamilyPolicy"], policy, "{given}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        for (cluster, given, path, detail) in [
            (
                V4,
                json!({ "ipFamilyPolicy": REQUIRE, "selector": { "a": "b" } }),
                POLICY,
                "not configured for",
            ),
            (V4, json!({ "ipFamilies": ["IPv6"] }), "spec.ipFamilies[0]", "not configured on this cluster"),
            (V4, json!({ "clusterIP": "fd00::1" }), "spec.clusterIPs[0]", "IPv6 is not configured"),
            (BOTH, json!({ "ipFamilies": BOTH, "ipFamilyPolicy": SINGLE }), POLICY, "multiple IP families"),
            (BOTH, json!({ "ipFamilies": BOTH }), POLICY, "multiple IP families"),
            (BOTH, json!({ "ipFamilies": ["IPv4", "IPv4"] }), "spec.ipFamilies[1]", ""),
            (BOTH, json!({ "ipFamilies": ["IPv5"] }), "spec.ipFamilies[0]", "supported values"),
            (BOTH, json!({ "clusterIPs": ["10.0.0.1", "10.0.0.2"] }), IPS, "no more than one IP for each"),
            (BOTH, json!({ "clusterIPs": [NONE, "10.0.0.2"] }), IPS, "first and only"),
            (BOTH, json!({ "clusterIPs": ["10.0.0.1.2"] }), "spec.clusterIPs[0]", "valid IP address"),
            (BOTH, json!({ "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"] }), IPS, "match `clusterIP`"),
            (
                BOTH,
                json!({ "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"] }),
                "spec.clusterIPs[0]",
                "expected an IPv6 value as indicated by `ipFamilies[0]`",
            ),
        ] {
            let errors = resolve(&mut service(given.clone()), &Value::Null, cluster);
            assert_eq!(errors.len(), 1, "{given}: {errors:?}");
            assert_eq!(errors[0].path, path, "{given}");
            assert!(errors[0].detail.contains(detail), "{given}: {errors:?}");
        }
    }

    #[test]
    fn a_family_comes_and_goes_with_the_policy_and_the_first_one_stays() {
        let one = service(json!({ "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": SINGLE, "selector": { "a": "b" } }));
        let with = |old: &Value, change: &dyn Fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new["spec"]);
            let errors = resolve(&mut new, old, BOTH);
            (new, errors)
        };
        let (mut two, errors) = with(&one, &|spec| spec["ipFamilyPolicy"] = json!(PREFER));
        assert_eq!(errors, []);
        assert_eq!(two["spec"]["ipFamilies"], json!(BOTH));
        assert_eq!(two["spec"]["clusterIPs"], json!(["10.0.0.7"]), "the second is still to be given out");
        two["spec"]["clusterIPs"] = json!(["10.0.0.7", "fd00::7"]);

        let (back, errors) = with(&two, &|spec| spec["ipFamilyPolicy"] = json!(SINGLE));
        assert_eq!(errors, []);
        assert_eq!(back["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(back["spec"]["clusterIPs"], json!(["10.0.0.7"]));

        let (_, errors) = with(&two, &|spec| spec["clusterIPs"] = json!(["10.0.0.7"]));
        assert!(errors[0].detail.contains("release the secondary cluster IP"), "{errors:?}");
        for (field, value) in
            [("clusterIPs", json!(["10.0.0.8", "fd00::7"])), ("clusterIP", json!("10.0.0.8"))]
        {
            let (_, errors) = with(&two, &|spec| {
                spec["clusterIP"] = json!("10.0.0.8");
                spec[field] = value.clone();
            });
            assert!(errors.iter().any(|error| error.detail == "may not change once set"), "{errors:?}");
        }
        let (kept, errors) = with(&two, &|spec| {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec[field] = Value::Null;
            }
        });
        assert_eq!(errors, []);
        assert_eq!(kept, two, "a client that names none of them keeps them");
        // The cluster lost a family, the Service stays as it is.
        let mut same = two.clone();
        assert_eq!(resolve(&mut same, &two, V4), []);
        assert_eq!(same, two);
    }
}
