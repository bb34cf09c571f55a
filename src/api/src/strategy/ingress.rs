//! Ingresses and their classes (upstream's `pkg/apis/networking/validation`).

use serde_json::Value;

use super::checks::{
    domain_prefixed_path, number, optional_name, port, ratchet, required, required_name, required_one_of,
    syntax, wildcard_subdomain,
};
use super::ips;
use super::meta::immutable;
use super::util::{list, text};
use crate::field::{FieldError, index, join};
use crate::names;
use crate::object;

const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
const MAX_CONTROLLER: usize = 250;

pub(super) fn validate(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let (rules, default) = (list(spec, "rules"), &spec["defaultBackend"]);
    if rules.is_empty() && default.is_null() {
        let what = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", spec["rules"].clone(), what));
    }
    if !default.is_null() {
        backend(default, "spec.defaultBackend", errors);
    }
    for (i, r) in rules.iter().enumerate() {
        rule(r, &index("spec.rules", i), errors);
    }
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        let at = index("spec.tls", i);
        for (j, h) in list(tls, "hosts").iter().enumerate() {
            host(h.as_str().unwrap_or_default(), &index(&join(&at, "hosts"), j), errors);
        }
        if !text(tls, "secretName").is_empty() {
            optional_name(tls, "secretName", names::dns1123_subdomain, &at, errors);
        }
    }
    optional_name(spec, "ingressClassName", names::dns1123_subdomain, "spec", errors);
}

/// The older way to name the class agrees with the newer one.
pub(super) fn validate_create(obj: &Value, errors: &mut Vec<FieldError>) {
    const CLASS: &str = "kubernetes.io/ingress.class";
    validate(obj, errors);
    if let (Some(old), Some(new)) = (object::annotation(obj, CLASS), obj["spec"]["ingressClassName"].as_str())
        && old != new
    {
        let what = "must match `ingressClassName` when both are specified";
        errors.push(FieldError::invalid(format!("annotations.{CLASS}"), old, what));
    }
}

pub(super) fn update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate, new, old, errors);
}

fn host(host: &str, path: &str, errors: &mut Vec<FieldError>) {
    let rule = if host.contains('*') { wildcard_subdomain } else { names::dns1123_subdomain };
    syntax(rule, host, path, errors);
}

fn rule(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let name = text(r, "host");
    if !name.is_empty() {
        let path = join(at, "host");
        if ips::parse(name).is_some() {
            let what = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(path.as_str(), name, what));
        }
        host(name, &path, errors);
    }
    if r["http"].is_null() {
        return;
    }
    let (at, paths) = (join(at, "http.paths"), list(&r["http"], "paths"));
    if paths.is_empty() {
        required(at.as_str(), "", errors);
    }
    for (i, p) in paths.iter().enumerate() {
        http_path(p, &index(&at, i), errors);
    }
}

fn http_path(p: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (kind, value, path) = (text(p, "pathType"), text(p, "path"), join(at, "path"));
    if p["pathType"].is_null() {
        return required(join(at, "pathType"), "pathType must be specified", errors);
    }
    let mut say = |what: String| errors.push(FieldError::invalid(path.as_str(), value, what));
    match kind {
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                say("must be an absolute path".into());
            }
            for wrong in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|w| value.contains(**w)) {
                say(format!("must not contain '{wrong}'"));
            }
            for wrong in ["/..", "/."].iter().filter(|w| value.ends_with(**w)) {
                say(format!("cannot end with '{wrong}'"));
            }
        }
        "ImplementationSpecific" if !value.is_empty() && !value.starts_with('/') => {
            say("must be an absolute path".into());
        }
        "ImplementationSpecific" => {}
        other => errors.push(FieldError::not_supported(join(at, "pathType"), other, &PATH_TYPES)),
    }
    backend(&p["backend"], &join(at, "backend"), errors);
}

fn backend(b: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (resource, service) = (&b["resource"], &b["service"]);
    match (resource.is_object(), service.is_object()) {
        (true, true) => {
            errors.push(FieldError::invalid(at, "", "cannot set both resource and service backends"));
        }
        (true, false) => reference(resource, &join(at, "resource"), errors),
        (false, true) => {
            required_name(service, "name", names::dns1123_label, &join(at, "service"), errors);
            let (name, n) = (text(&service["port"], "name"), number(&service["port"], "number"));
            match (name.is_empty(), n) {
                (true, 0) => required(at, "port name or number is required", errors),
                (true, n) => port(n, &join(at, "service.port.number"), errors),
                (false, 0) => syntax(names::port_name, name, &join(at, "service.port.name"), errors),
                (false, _) => {
                    errors.push(FieldError::invalid(at, "", "cannot set both port name & port number"));
                }
            }
        }
        (false, false) => errors.push(FieldError::invalid(at, "", "resource or service backend is required")),
    }
}

/// Something of another API group.
fn reference(r: &Value, at: &str, errors: &mut Vec<FieldError>) {
    optional_name(r, "apiGroup", names::dns1123_subdomain, at, errors);
    required_name(r, "kind", names::path_segment, at, errors);
    required_name(r, "name", names::path_segment, at, errors);
}

pub(super) fn validate_class(obj: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.parameters";
    let spec = &obj["spec"];
    let controller = text(spec, "controller");
    if controller.len() > MAX_CONTROLLER {
        errors.push(FieldError::too_long("spec.controller", MAX_CONTROLLER as u64));
    }
    domain_prefixed_path(controller, "spec.controller", errors);
    let parameters = &spec["parameters"];
    if !parameters.is_object() {
        return;
    }
    reference(parameters, AT, errors);
    let scope = text(parameters, "scope");
    required_one_of(parameters, "scope", AT, &["Cluster", "Namespace"], errors);
    let namespace = join(AT, "namespace");
    match (scope, parameters["namespace"].as_str()) {
        ("Namespace", None) => required(namespace, "`parameters.scope` is set to 'Namespace'", errors),
        ("Namespace", Some(name)) => syntax(names::dns1123_label, name, &namespace, errors),
        ("Cluster", Some(_)) => {
            errors.push(FieldError::forbidden(namespace, "`parameters.scope` is set to 'Cluster'"));
        }
        _ => {}
    }
}

pub(super) fn update_class(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    immutable(new, old, "/spec/controller", errors);
    ratchet(validate_class, new, old, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    fn path(with: Value) -> Value {
        let mut path = json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}});
        for (k, v) in with.as_object().unwrap() {
            path[k] = v.clone();
        }
        json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [path]}}]}})
    }

    #[test]
    fn good_ingresses() {
        for obj in [
            path(json!({})),
            path(json!({"pathType": "ImplementationSpecific", "path": ""})),
            path(json!({"backend": {"service": {"name": "1s", "port": {"name": "http"}}}})),
            path(json!({"backend": {"resource": {"apiGroup": "a.b", "kind": "K", "name": "n"}}})),
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}, "ingressClassName": "c",
                "tls": [{"hosts": ["a.b", "*.a.b"], "secretName": "s"}]}}),
            json!({"spec": {"rules": [{"host": "*.a.b"}]}}),
        ] {
            assert_eq!(told(validate_create, &obj), "", "{obj}");
        }
    }

    #[test]
    fn bad_ingresses() {
        let at = "spec.rules[0].http.paths[0]";
        for (with, wanted) in [
            (json!({"path": "x"}), "path: Invalid value: \"x\": must be an absolute path"),
            (json!({"path": "/a//b"}), "path: Invalid value: \"/a//b\": must not contain '//'"),
            (json!({"path": "/a/.."}), "path: Invalid value: \"/a/..\": cannot end with '/..'"),
            (json!({"pathType": null}), "pathType: Required value: pathType must be specified"),
            (
                json!({"pathType": "x"}),
                r#"pathType: Unsupported value: "x": supported values: "Exact", "ImplementationSpecific", "Prefix""#,
            ),
            (json!({"backend": {}}), "backend: Invalid value: \"\": resource or service backend is required"),
            (
                json!({"backend": {"service": {"name": "s"}}}),
                "backend: Required value: port name or number is required",
            ),
            (
                json!({"backend": {"service": {"name": "s", "port": {"name": "a", "number": 1}}}}),
                "backend: Invalid value: \"\": cannot set both port name & port number",
            ),
            (
                json!({"backend": {"service": {"name": "s", "port": {"number": 65536}}}}),
                "backend.service.port.number: Invalid value: 65536: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"backend": {"service": {"name": "s", "port": {"number": 1}}, "resource": {}}}),
                "backend: Invalid value: \"\": cannot set both resource and service backends",
            ),
        ] {
            assert_eq!(told(validate_create, &path(with)), format!("{at}.{wanted}"));
        }
        for (spec, wanted) in [
            (json!({}), "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"),
            (json!({"rules": [{"http": {}}]}), "spec.rules[0].http.paths: Required value"),
            (
                json!({"rules": [{"host": "1.2.3.4"}]}),
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            ),
        ] {
            assert_eq!(told(validate_create, &json!({ "spec": spec })), wanted);
        }
        let host = told(
            validate_create,
            &json!({"spec": {"rules": [{"host": "a.*.b"}], "tls": [{"hosts": ["A"]}]}}),
        );
        assert!(
            host.contains("a wildcard DNS-1123 subdomain must start")
                && host.contains("spec.tls[0].hosts[0]"),
            "{host}"
        );
        let two = json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "a"}},
            "spec": {"ingressClassName": "b", "rules": [{}]}});
        assert_eq!(
            told(validate_create, &two),
            "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified"
        );
    }

    #[test]
    fn classes() {
        let of = |spec: Value| told(validate_class, &json!({ "spec": spec }));
        assert_eq!(of(json!({"controller": "traefik.io/ingress-controller"})), "");
        let parameters = |p: Value| json!({"controller": "a.b/c", "parameters": p});
        assert_eq!(
            of(parameters(json!({"kind": "K", "name": "n", "scope": "Namespace", "namespace": "x"}))),
            ""
        );
        for (spec, wanted) in [
            (json!({}), "spec.controller: Required value"),
            (
                json!({"controller": "x"}),
                "spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (parameters(json!({"name": "n", "scope": "Cluster"})), "spec.parameters.kind: Required value"),
            (
                parameters(json!({"kind": "K", "name": "n", "scope": "Namespace"})),
                "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
            ),
            (
                parameters(json!({"kind": "K", "name": "n", "scope": "Cluster", "namespace": "x"})),
                "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
            ),
            (
                parameters(json!({"kind": "K", "name": "n", "scope": "x"})),
                r#"spec.parameters.scope: Unsupported value: "x": supported values: "Cluster", "Namespace""#,
            ),
        ] {
            assert_eq!(of(spec), wanted);
        }
        let mut errors = Vec::new();
        let class = |c: &str| json!({"spec": {"controller": c}});
        update_class(&class("a.b/d"), &class("a.b/c"), &mut errors);
        assert_eq!(errors[0].to_string(), "spec.controller: Invalid value: \"a.b/d\": field is immutable");
    }
}
