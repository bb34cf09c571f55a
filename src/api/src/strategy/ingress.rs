//! Ingresses and their classes (upstream's `pkg/apis/networking/validation`).

use serde_json::Value;

use super::checks::Checks;
use super::ips;
use super::util::{list, number, strings, text};
use crate::field::At;
use crate::names;
use crate::object;

const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
const MAX_CONTROLLER: usize = 250;

pub(super) fn validate(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    let (rules, default) = (list(spec, "rules"), &spec["defaultBackend"]);
    if rules.is_empty() && default.is_null() {
        let what = "either `defaultBackend` or `rules` must be specified";
        c.invalid("spec", spec["rules"].clone(), what);
    }
    if !default.is_null() {
        backend(c, default, At::SPEC.child("defaultBackend"));
    }
    for (i, r) in rules.iter().enumerate() {
        rule(c, r, At::SPEC.item("rules", i));
    }
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        let at = At::SPEC.item("tls", i);
        for (j, h) in strings(tls, "hosts").enumerate() {
            host(c, h, at.item("hosts", j));
        }
        c.optional_name(tls, "secretName", at, names::dns1123_subdomain);
    }
    c.set_name(spec, "ingressClassName", At::SPEC, names::dns1123_subdomain);
}

/// The older way to name the class agrees with the newer one.
pub(super) fn validate_create(c: &mut Checks, obj: &Value) {
    const CLASS: &str = "kubernetes.io/ingress.class";
    validate(c, obj);
    if let (Some(old), Some(new)) = (object::annotation(obj, CLASS), obj["spec"]["ingressClassName"].as_str())
        && old != new
    {
        let what = "must match `ingressClassName` when both are specified";
        c.invalid(At::root("annotations").child(CLASS), old, what);
    }
}

pub(super) fn update(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate, new, old);
}

fn host(c: &mut Checks, host: &str, path: At<'_>) {
    let rule = if host.contains('*') { names::wildcard_subdomain } else { names::dns1123_subdomain };
    c.syntax(path, host, rule);
}

fn rule(c: &mut Checks, r: &Value, at: At<'_>) {
    let name = text(r, "host");
    if !name.is_empty() {
        let path = at.child("host");
        if ips::parse(name).is_some() {
            let what = "must be a DNS name, not an IP address";
            c.invalid(path, name, what);
        }
        host(c, name, path);
    }
    if r["http"].is_null() {
        return;
    }
    let (at, paths) = (at.child("http.paths"), list(&r["http"], "paths"));
    if paths.is_empty() {
        c.required(at, "");
    }
    for (i, p) in paths.iter().enumerate() {
        http_path(c, p, at.index(i));
    }
}

fn http_path(c: &mut Checks, p: &Value, at: At<'_>) {
    let (kind, value, path) = (text(p, "pathType"), text(p, "path"), at.child("path"));
    if p["pathType"].is_null() {
        return c.required(at.child("pathType"), "pathType must be specified");
    }
    let mut say = |what: String| c.invalid(path, value, what);
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
        other => c.unsupported(at.child("pathType"), other, &PATH_TYPES),
    }
    backend(c, &p["backend"], at.child("backend"));
}

fn backend(c: &mut Checks, b: &Value, at: At<'_>) {
    let (resource, service) = (&b["resource"], &b["service"]);
    match (resource.is_object(), service.is_object()) {
        (true, true) => {
            c.invalid(at, "", "cannot set both resource and service backends");
        }
        (true, false) => reference(c, resource, at.child("resource")),
        (false, true) => {
            c.required_name(service, "name", at.child("service"), names::dns1123_label);
            let (name, n) = (text(&service["port"], "name"), number(&service["port"], "number"));
            match (name.is_empty(), n) {
                (true, 0) => c.required(at, "port name or number is required"),
                (true, n) => c.port(at.child("service.port.number"), n),
                (false, 0) => c.syntax(at.child("service.port.name"), name, names::port_name),
                (false, _) => {
                    c.invalid(at, "", "cannot set both port name & port number");
                }
            }
        }
        (false, false) => c.invalid(at, "", "resource or service backend is required"),
    }
}

/// Something of another API group.
fn reference(c: &mut Checks, r: &Value, at: At<'_>) {
    c.set_name(r, "apiGroup", at, names::dns1123_subdomain);
    c.required_name(r, "kind", at, names::path_segment);
    c.required_name(r, "name", at, names::path_segment);
}

pub(super) fn validate_class(c: &mut Checks, obj: &Value) {
    const AT: At<'_> = At::root("spec.parameters");
    let spec = &obj["spec"];
    let controller = text(spec, "controller");
    if controller.len() > MAX_CONTROLLER {
        c.too_long("spec.controller", MAX_CONTROLLER);
    }
    c.domain_prefixed_path(At::SPEC.child("controller"), controller);
    let parameters = &spec["parameters"];
    if !parameters.is_object() {
        return;
    }
    reference(c, parameters, AT);
    let scope = text(parameters, "scope");
    c.required_one_of(parameters, "scope", AT, &["Cluster", "Namespace"]);
    let namespace = AT.child("namespace");
    match (scope, parameters["namespace"].as_str()) {
        ("Namespace", None) => c.required(namespace, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(name)) => c.syntax(namespace, name, names::dns1123_label),
        ("Cluster", Some(_)) => {
            c.forbidden(namespace, "`parameters.scope` is set to 'Cluster'");
        }
        _ => {}
    }
}

pub(super) fn update_class(c: &mut Checks, new: &Value, old: &Value) {
    c.immutable(new, old, "/spec/controller");
    c.ratchet(validate_class, new, old);
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
        let mut c = Checks::default();
        let class = |c: &str| json!({"spec": {"controller": c}});
        update_class(&mut c, &class("a.b/d"), &class("a.b/c"));
        assert_eq!(c.errors[0].to_string(), "spec.controller: Invalid value: \"a.b/d\": field is immutable");
    }
}
