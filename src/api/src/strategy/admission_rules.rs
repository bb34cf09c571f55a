//! What webhook configurations and admission policies have in common: rules, and what limits them (upstream
//! `pkg/apis/admissionregistration/validation`); and where a webhook is (apiserver `util/webhook`).

use std::collections::HashSet;

use serde_json::Value;

use super::checks::Checks;
use super::selectors;
use super::util::{integer, list, strings, text};
use crate::field::At;
use crate::names;

pub(super) const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
pub(super) const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
pub(super) const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const FORM: &str = "; desired format: https://host[/path]";

/// `validateRuleWithOperations`
pub(super) fn rule(c: &mut Checks, rule: &Value, at: At<'_>) {
    wildcard_alone(c, rule, "operations", "operations", at);
    for (i, operation) in strings(rule, "operations").enumerate() {
        if !OPERATIONS.contains(&operation) {
            c.unsupported(at.item("operations", i), operation, &OPERATIONS);
        }
    }
    // A group may be empty: the one of pods.
    wildcard_alone(c, rule, "apiGroups", "API groups", at);
    wildcard_alone(c, rule, "apiVersions", "API versions", at);
    for (i, version) in strings(rule, "apiVersions").enumerate() {
        if version.is_empty() {
            c.required(at.item("apiVersions", i), "");
        }
    }
    resources(c, rule, at);
    c.one_of(rule, "scope", at, &SCOPES);
}

/// A list that must not be empty; `*` stands for everything and has nothing beside it.
fn wildcard_alone(c: &mut Checks, rule: &Value, field: &str, what: &str, at: At<'_>) {
    let values = list(rule, field);
    if values.is_empty() {
        c.required(at.child(field), "");
    }
    if values.len() > 1 && values.iter().any(|value| value == "*") {
        let why = format!("if '*' is present, must not specify other {what}");
        c.invalid(at.child(field), rule[field].clone(), why);
    }
}

fn resources(c: &mut Checks, rule: &Value, at: At<'_>) {
    let all = at.child("resources");
    let (mut every_part_of, mut part_of_every) = (HashSet::new(), HashSet::new());
    let (mut is_double, mut is_single, mut has_plain) = (false, false, false);
    if list(rule, "resources").is_empty() {
        c.required(all, "");
    }
    for (i, resource) in strings(rule, "resources").enumerate() {
        if resource.is_empty() {
            c.required(all.index(i), "");
            continue;
        }
        is_double |= resource == "*/*";
        is_single |= resource == "*";
        let Some((of, part)) = resource.split_once('/') else {
            has_plain = resource != "*";
            continue;
        };
        if every_part_of.contains(of) {
            let why = format!("if '{of}/*' is present, must not specify {resource}");
            c.invalid(all.index(i), resource, why);
        }
        if part_of_every.contains(part) {
            let why = format!("if '*/{part}' is present, must not specify {resource}");
            c.invalid(all.index(i), resource, why);
        }
        if part == "*" {
            every_part_of.insert(of);
        }
        if of == "*" {
            part_of_every.insert(part);
        }
    }
    let mut wrong = |why: &str| c.invalid(all, rule["resources"].clone(), why);
    if is_double && list(rule, "resources").len() > 1 {
        wrong("if '*/*' is present, must not specify other resources");
    }
    if is_single && has_plain {
        wrong("if '*' is present, must not specify other resources without subresources");
    }
}

/// `validateMatchResources`: of a policy or its binding.
pub(super) fn match_resources(c: &mut Checks, resources: &Value, at: At<'_>) {
    if !resources.is_object() {
        return;
    }
    c.one_of(resources, "matchPolicy", at, &MATCH_POLICIES);
    for selector in ["namespaceSelector", "objectSelector"] {
        selectors::label_selector(c, &resources[selector], at.child(selector));
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (i, one) in list(resources, field).iter().enumerate() {
            let at = at.item(field, i);
            let mut seen = HashSet::new();
            for (n, name) in strings(one, "resourceNames").enumerate() {
                c.syntax(at.item("resourceNames", n), name, names::path_segment);
                if !seen.insert(name) {
                    c.duplicate(at.item("resourceNames", n), name);
                }
            }
            rule(c, one, at);
        }
    }
}

/// Where a webhook is: one of a URL and a Service.
pub(super) fn client_config(c: &mut Checks, config: &Value, at: At<'_>) {
    let (url, service) = (config["url"].as_str(), &config["service"]);
    match url {
        Some(url) if !service.is_object() => webhook_url(c, url, at.child("url")),
        None if service.is_object() => webhook_service(c, service, at.child("service")),
        _ => c.required(at, "exactly one of url or service is required"),
    }
}

/// `ValidateWebhookURL`, reading the URL as Go does.
fn webhook_url(c: &mut Checks, url: &str, at: At<'_>) {
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let is_scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ => (String::new(), rest),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or_default());
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if let Some(why) = unreadable(url, host) {
        let why = format!("url must be a valid URL: parse {url:?}: {why}{FORM}");
        return c.required(at, why);
    }
    if scheme != "https" {
        c.invalid(at, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        c.invalid(at, host, format!("host must be provided{FORM}"));
    }
    if let Some(user) = user {
        c.invalid(at, user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        c.invalid(at, fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        c.invalid(at, query, "query parameters are not permitted in the URL");
    }
}

fn unreadable(url: &str, host: &str) -> Option<String> {
    if url.starts_with(':') {
        return Some("missing protocol scheme".into());
    }
    if url.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Some("net/url: invalid control character in URL".into());
    }
    if let Some(odd) = host.chars().find(|c| matches!(c, ' ' | '\\' | '^' | '`' | '{' | '}' | '|')) {
        return Some(format!("invalid character {:?} in host name", odd.to_string()));
    }
    // What follows an IPv6 address in brackets, or a name.
    let after = host.rsplit_once(']').map_or(host, |(_, after)| after);
    let port = after.rfind(':').map_or("", |at| &after[at..]);
    let is_number = port.bytes().skip(1).all(|b| b.is_ascii_digit());
    (!is_number).then(|| format!("invalid port {port:?} after host"))
}

/// `ValidateWebhookService`
fn webhook_service(c: &mut Checks, service: &Value, at: At<'_>) {
    for (field, what) in
        [("name", "service name is required"), ("namespace", "service namespace is required")]
    {
        if text(service, field).is_empty() {
            c.required(at.child(field), what);
        }
    }
    let port = integer(service, "port").unwrap_or(443);
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        c.invalid(at.child("port"), port, format!("port is not valid: {}", wrong.join(", ")));
    }
    let (path, at) = (text(service, "path"), at.child("path"));
    if matches!(path, "" | "/") {
        return;
    }
    if path == "//" {
        return c.invalid(at, path, "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        c.invalid(at, path, "must start with a '/'");
    }
    let mut chars = path.chars();
    chars.next();
    let inner = chars.as_str();
    for (i, segment) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if segment.is_empty() {
            c.invalid(at, path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for wrong in names::dns1123_subdomain(segment) {
            c.invalid(at, path, format!("segment[{i}]: {wrong}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn rules() {
        fn check(c: &mut Checks, v: &Value) {
            rule(c, v, At::root("r"));
        }
        let good = json!({"operations": ["CREATE", "UPDATE"], "apiGroups": ["", "apps"], "apiVersions": ["v1"],
            "resources": ["pods", "pods/status", "*/scale"], "scope": "Namespaced"});
        assert_eq!(told(check, &good), "");
        for (field, value, wanted) in [
            ("operations", json!([]), "r.operations: Required value"),
            (
                "operations",
                json!(["*", "CREATE"]),
                r#"r.operations: Invalid value: ["*","CREATE"]: if '*' is present, must not specify other operations"#,
            ),
            (
                "operations",
                json!(["PATCH"]),
                r#"r.operations[0]: Unsupported value: "PATCH": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE""#,
            ),
            ("apiGroups", json!(null), "r.apiGroups: Required value"),
            (
                "apiGroups",
                json!(["a", "*"]),
                r#"r.apiGroups: Invalid value: ["a","*"]: if '*' is present, must not specify other API groups"#,
            ),
            ("apiVersions", json!([""]), "r.apiVersions[0]: Required value"),
            ("resources", json!([]), "r.resources: Required value"),
            ("resources", json!([""]), "r.resources[0]: Required value"),
            (
                "resources",
                json!(["*/*", "a"]),
                r#"r.resources: Invalid value: ["*/*","a"]: if '*/*' is present, must not specify other resources"#,
            ),
            (
                "resources",
                json!(["*", "a"]),
                r#"r.resources: Invalid value: ["*","a"]: if '*' is present, must not specify other resources without subresources"#,
            ),
            ("resources", json!(["*", "a/b"]), ""),
            (
                "resources",
                json!(["a/*", "a/b"]),
                r#"r.resources[1]: Invalid value: "a/b": if 'a/*' is present, must not specify a/b"#,
            ),
            (
                "resources",
                json!(["*/b", "a/b"]),
                r#"r.resources[1]: Invalid value: "a/b": if '*/b' is present, must not specify a/b"#,
            ),
            (
                "scope",
                json!("x"),
                r#"r.scope: Unsupported value: "x": supported values: "*", "Cluster", "Namespaced""#,
            ),
        ] {
            let mut bad = good.clone();
            bad[field] = value.clone();
            assert_eq!(told(check, &bad), wanted, "{field} {value}");
        }
    }

    #[test]
    fn what_a_policy_matches() {
        fn check(c: &mut Checks, v: &Value) {
            match_resources(c, v, At::root("m"));
        }
        let rule = json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "resourceNames": ["a", "a/b", "a"]});
        assert_eq!(
            told(check, &json!({"resourceRules": [rule]})),
            r#"m.resourceRules[0].resourceNames[1]: Invalid value: "a/b": may not contain '/'; m.resourceRules[0].resourceNames[2]: Duplicate value: "a""#
        );
        assert_eq!(
            told(
                check,
                &json!({"matchPolicy": "x", "objectSelector": {"matchExpressions": [{"key": "a", "operator": "is"}]}})
            ),
            r#"m.matchPolicy: Unsupported value: "x": supported values: "Equivalent", "Exact"; m.objectSelector.matchExpressions[0].operator: Invalid value: "is": not a valid selector operator"#
        );
        assert_eq!(told(check, &Value::Null), "");
    }

    #[test]
    fn where_webhooks_are() {
        fn check(c: &mut Checks, v: &Value) {
            client_config(c, v, At::root("c"));
        }
        let url = |url: &str| told(check, &json!({ "url": url }));
        for good in ["https://a", "https://a.b:443/c/d", "HTTPS://[::1]:8443/", "https://a:/x"] {
            assert_eq!(url(good), "", "{good}");
        }
        let form = "; desired format: https://host[/path]";
        for (bad, wanted) in [
            ("http://a", format!(r#""http": 'https' is the only allowed URL scheme{form}"#)),
            ("https:///x", format!(r#""": host must be provided{form}"#)),
            ("https://u:p@a", r#""u:p": user information is not permitted in the URL"#.into()),
            ("https://a#f", r#""f": fragments are not permitted in the URL"#.into()),
            ("https://a?q=1", r#""q=1": query parameters are not permitted in the URL"#.into()),
        ] {
            assert_eq!(url(bad), format!("c.url: Invalid value: {wanted}"));
        }
        assert_eq!(
            url("https://a:x/"),
            format!(
                r#"c.url: Required value: url must be a valid URL: parse "https://a:x/": invalid port ":x" after host{form}"#
            )
        );
        let one = "c: Required value: exactly one of url or service is required";
        assert_eq!(told(check, &json!({})), one);
        assert_eq!(told(check, &json!({"url": "https://a", "service": {}})), one);

        let service = |port: i64, path: &str| {
            told(check, &json!({"service": {"name": "a", "namespace": "b", "port": port, "path": path}}))
        };
        for good in ["", "/", "/a", "/a/b.c/"] {
            assert_eq!(service(443, good), "", "{good}");
        }
        assert_eq!(
            service(0, ""),
            "c.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive"
        );
        assert_eq!(service(1, "//"), r#"c.service.path: Invalid value: "//": segment[0] may not be empty"#);
        assert_eq!(
            service(1, "/a//b"),
            r#"c.service.path: Invalid value: "/a//b": segment[1] may not be empty"#
        );
        assert!(
            service(1, "/a/B").starts_with(r#"c.service.path: Invalid value: "/a/B": segment[1]: a low"#)
        );
        assert_eq!(service(1, "xa"), r#"c.service.path: Invalid value: "xa": must start with a '/'"#);
        assert_eq!(
            told(check, &json!({"service": {}})),
            "c.service.name: Required value: service name is required; c.service.namespace: Required value: service namespace is required"
        );
    }
}
