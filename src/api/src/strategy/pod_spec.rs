//! Validation of a pod's specification (upstream: core `validation.go`).

use std::collections::HashSet;

use serde_json::Value;

use super::util::{NON_NEGATIVE, list, one_of, text};
use crate::field::{FieldError, index, join};
use crate::names;
use crate::object;
use crate::quantity::Quantity;

pub(super) fn validate(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !spec.is_object() {
        return;
    }
    let volumes = validate_volumes(spec, path, errors);
    let mut seen = HashSet::new();
    if list(spec, "containers").is_empty() {
        errors.push(FieldError::required(join(path, "containers"), ""));
    }
    let mut ports = HashSet::new();
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, c) in list(spec, kind).iter().enumerate() {
            let at = index(&join(path, kind), i);
            let name = text(c, "name");
            if !name.is_empty() && !seen.insert(name.to_string()) {
                errors.push(FieldError::duplicate(join(&at, "name"), name));
            }
            validate_container(c, &at, &volumes, errors);
            if kind == "containers" {
                host_port_conflicts(c, &at, &mut ports, errors);
            }
        }
    }
    sysctls(&spec["securityContext"], &join(path, "securityContext.sysctls"), errors);
    one_of(spec, "restartPolicy", path, &["Always", "OnFailure", "Never"], errors);
    one_of(spec, "dnsPolicy", path, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], errors);
    one_of(spec, "preemptionPolicy", path, &["Never", "PreemptLowerPriority"], errors);
    if text(spec, "dnsPolicy") == "None" && list(&spec["dnsConfig"], "nameservers").is_empty() {
        errors.push(FieldError::required(
            format!("{path}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    for (field, rule) in [
        ("serviceAccountName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        let v = text(spec, field);
        if !v.is_empty() {
            errors.extend(rule(v).into_iter().map(|m| FieldError::invalid(join(path, field), v, m)));
        }
    }
    if let Some(n) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64)
        && !(1..=i64::from(i32::MAX)).contains(&n)
    {
        errors.push(FieldError::invalid(
            join(path, "activeDeadlineSeconds"),
            n,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    super::meta::labels(&spec["nodeSelector"], &join(path, "nodeSelector"), errors);
    validate_tolerations(spec, path, errors);
}

/// The names of the volumes.
fn validate_volumes(spec: &Value, path: &str, errors: &mut Vec<FieldError>) -> HashSet<String> {
    let mut names_seen = HashSet::new();
    for (i, v) in list(spec, "volumes").iter().enumerate() {
        let at = index(&join(path, "volumes"), i);
        let name = text(v, "name");
        if name.is_empty() {
            if v.get("name").is_some() {
                errors.push(FieldError::required(join(&at, "name"), ""));
            }
        } else {
            errors.extend(
                names::dns1123_label(name)
                    .into_iter()
                    .map(|m| FieldError::invalid(join(&at, "name"), name, m)),
            );
            if !names_seen.insert(name.to_string()) {
                errors.push(FieldError::duplicate(join(&at, "name"), name));
            }
        }
        let sources: Vec<&String> =
            v.as_object().into_iter().flat_map(|m| m.keys()).filter(|k| *k != "name").collect();
        if sources.is_empty() {
            errors.push(FieldError::required(at.as_str(), "must specify a volume type"));
        }
        for s in sources.iter().skip(1) {
            errors.push(FieldError::forbidden(join(&at, s), "may not specify more than 1 volume type"));
        }
    }
    names_seen
}

fn validate_container(c: &Value, at: &str, volumes: &HashSet<String>, errors: &mut Vec<FieldError>) {
    let name = text(c, "name");
    if !name.is_empty() {
        errors.extend(
            names::dns1123_label(name).into_iter().map(|m| FieldError::invalid(join(at, "name"), name, m)),
        );
    } else if c.get("name").is_some() {
        errors.push(FieldError::required(join(at, "name"), ""));
    }
    let image = text(c, "image");
    if image.is_empty() {
        errors.push(FieldError::required(join(at, "image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            join(at, "image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(c, "imagePullPolicy", at, &["Always", "IfNotPresent", "Never"], errors);
    one_of(c, "terminationMessagePolicy", at, &["FallbackToLogsOnError", "File"], errors);
    let mut port_names = HashSet::new();
    for (i, p) in list(c, "ports").iter().enumerate() {
        let at = index(&join(at, "ports"), i);
        let pname = text(p, "name");
        if !pname.is_empty() {
            errors.extend(
                names::port_name(pname).into_iter().map(|m| FieldError::invalid(join(&at, "name"), pname, m)),
            );
            if !port_names.insert(pname) {
                errors.push(FieldError::duplicate(join(&at, "name"), pname));
            }
        }
        match p.get("containerPort").and_then(Value::as_i64).unwrap_or(0) {
            0 => errors.push(FieldError::required(join(&at, "containerPort"), "")),
            n => port(n, &join(&at, "containerPort"), errors),
        }
        if let Some(n) = p.get("hostPort").and_then(Value::as_i64).filter(|n| *n != 0) {
            port(n, &join(&at, "hostPort"), errors);
        }
        one_of(p, "protocol", &at, &["SCTP", "TCP", "UDP"], errors);
    }
    for (i, e) in list(c, "env").iter().enumerate() {
        let at = index(&join(at, "env"), i);
        let ename = text(e, "name");
        if e.get("name").is_some() && ename.is_empty() {
            errors.push(FieldError::required(join(&at, "name"), ""));
        } else if !ename.is_empty() {
            errors.extend(
                names::env_var_name(ename)
                    .into_iter()
                    .map(|m| FieldError::invalid(join(&at, "name"), ename, m)),
            );
        }
        if let Some(from) = e.get("valueFrom").and_then(Value::as_object) {
            let vf = join(&at, "valueFrom");
            if from.is_empty() {
                errors.push(FieldError::invalid(vf.as_str(), "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"));
            } else if !text(e, "value").is_empty() {
                errors.push(FieldError::invalid(
                    vf.as_str(),
                    "",
                    "may not be specified when `value` is not empty",
                ));
            } else if from.len() > 1 {
                errors.push(FieldError::invalid(
                    vf.as_str(),
                    "",
                    "may not have more than one field specified at a time",
                ));
            }
        }
    }
    let mut mounts = HashSet::new();
    for (i, m) in list(c, "volumeMounts").iter().enumerate() {
        let at = index(&join(at, "volumeMounts"), i);
        let (mname, mpath) = (text(m, "name"), text(m, "mountPath"));
        if !mname.is_empty() && !volumes.contains(mname) {
            errors.push(FieldError::not_found(join(&at, "name"), mname));
        }
        if mpath.is_empty() {
            if m.get("mountPath").is_some() {
                errors.push(FieldError::required(join(&at, "mountPath"), ""));
            }
        } else if !mounts.insert(mpath) {
            errors.push(FieldError::invalid(join(&at, "mountPath"), mpath, "must be unique"));
        }
        let sub = text(m, "subPath");
        if sub.starts_with('/') || sub.split('/').any(|s| s == "..") {
            let what = if sub.starts_with('/') { "must be a relative path" } else { "must not contain '..'" };
            errors.push(FieldError::invalid(join(&at, "subPath"), sub, what));
        }
    }
    validate_resources(&c["resources"], &join(at, "resources"), errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = c.get(probe) {
            validate_probe(p, &join(at, probe), probe, errors);
        }
    }
    for hook in ["postStart", "preStop"] {
        let h = object::get(c, &format!("/lifecycle/{hook}"));
        if !h.is_null() {
            validate_handler(
                h,
                &format!("{at}.lifecycle.{hook}"),
                &["exec", "httpGet", "sleep", "tcpSocket"],
                errors,
            );
        }
    }
}

fn port(n: i64, path: &str, errors: &mut Vec<FieldError>) {
    errors.extend(names::port_number(n).into_iter().map(|m| FieldError::invalid(path, n, m)));
}

fn host_port_conflicts(c: &Value, at: &str, seen: &mut HashSet<String>, errors: &mut Vec<FieldError>) {
    for (i, p) in list(c, "ports").iter().enumerate() {
        let Some(n) = p.get("hostPort").and_then(Value::as_i64).filter(|n| *n != 0) else { continue };
        let id = format!("{}/{}/{n}", text(p, "protocol"), text(p, "hostIP"));
        if !seen.insert(id.clone()) {
            errors.push(FieldError::duplicate(format!("{at}.ports[{i}].hostPort"), id));
        }
    }
}

pub(super) fn validate_resources(r: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let quantity = |v: &Value| Quantity::from_value(v);
    for field in ["limits", "requests"] {
        for (name, v) in r.get(field).and_then(Value::as_object).into_iter().flatten() {
            let at = crate::field::key(&join(path, field), name);
            errors.extend(
                names::qualified_name(name)
                    .into_iter()
                    .map(|m| FieldError::invalid(at.as_str(), name.as_str(), m)),
            );
            if let Some(q) = quantity(v).filter(|q| q.sign() < 0) {
                errors.push(FieldError::invalid(at.as_str(), q.to_string(), NON_NEGATIVE));
            }
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-")
                || name.contains('/');
            if !standard {
                errors.push(FieldError::invalid(
                    at.as_str(),
                    name.as_str(),
                    "must be a standard resource for containers",
                ));
            }
        }
    }
    for (name, v) in r.get("requests").and_then(Value::as_object).into_iter().flatten() {
        let at = join(path, "requests");
        let (Some(request), limit) = (quantity(v), object::get(r, "/limits").get(name).and_then(quantity))
        else {
            continue;
        };
        let extended = name.contains('/') && !name.starts_with("kubernetes.io/");
        match limit {
            Some(l) if (extended || name.starts_with("hugepages-")) && request != l => {
                errors.push(FieldError::invalid(
                    at,
                    request.to_string(),
                    format!("must be equal to {name} limit of {l}"),
                ));
            }
            Some(l) if request > l => errors.push(FieldError::invalid(
                at,
                request.to_string(),
                format!("must be less than or equal to {name} limit of {l}"),
            )),
            None if extended => errors.push(FieldError::required(
                join(path, "limits"),
                "Limit must be set for non overcommitable resources",
            )),
            _ => {}
        }
    }
}

fn validate_probe(p: &Value, at: &str, kind: &str, errors: &mut Vec<FieldError>) {
    validate_handler(p, at, &["exec", "grpc", "httpGet", "tcpSocket"], errors);
    for f in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(n) = p.get(f).and_then(Value::as_i64).filter(|n| *n < 0) {
            errors.push(FieldError::invalid(join(at, f), n, NON_NEGATIVE));
        }
    }
    if kind != "readinessProbe"
        && let Some(n) = p.get("successThreshold").and_then(Value::as_i64).filter(|n| *n > 1)
    {
        errors.push(FieldError::invalid(join(at, "successThreshold"), n, "must be 1"));
    }
}

fn validate_handler(h: &Value, at: &str, kinds: &[&str], errors: &mut Vec<FieldError>) {
    let set: Vec<&&str> = kinds.iter().filter(|k| h.get(**k).is_some_and(Value::is_object)).collect();
    if set.is_empty() {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
    for extra in set.iter().skip(1) {
        errors.push(FieldError::forbidden(join(at, extra), "may not specify more than 1 handler type"));
    }
    if let Some(e) = h.get("exec").filter(|e| list(e, "command").is_empty() && e.is_object()) {
        let _ = e;
        errors.push(FieldError::required(format!("{at}.exec.command"), ""));
    }
    for kind in ["httpGet", "tcpSocket"] {
        match object::get(h, &format!("/{kind}/port")) {
            Value::Number(n) => port(n.as_i64().unwrap_or(0), &format!("{at}.{kind}.port"), errors),
            Value::String(s) => {
                errors.extend(
                    names::port_name(s)
                        .into_iter()
                        .map(|m| FieldError::invalid(format!("{at}.{kind}.port"), s.as_str(), m)),
                );
            }
            _ => {}
        }
    }
    let scheme = h.get("httpGet").unwrap_or(&Value::Null);
    one_of(scheme, "scheme", &format!("{at}.httpGet"), &["HTTP", "HTTPS"], errors);
}

fn validate_tolerations(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, t) in list(spec, "tolerations").iter().enumerate() {
        let at = index(&join(path, "tolerations"), i);
        let (key, op, value) = (text(t, "key"), text(t, "operator"), text(t, "value"));
        if !key.is_empty() {
            errors.extend(
                names::qualified_name(key).into_iter().map(|m| FieldError::invalid(join(&at, "key"), key, m)),
            );
        } else if op != "Exists" {
            errors.push(FieldError::invalid(
                join(&at, "operator"),
                op,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        match op {
            "" | "Equal" => {
                errors.extend(
                    names::label_value(value)
                        .into_iter()
                        .map(|m| FieldError::invalid(join(&at, "operator"), value, m)),
                );
            }
            "Exists" if !value.is_empty() => {
                errors.push(FieldError::invalid(
                    join(&at, "operator"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                ));
            }
            "Exists" => {}
            _ => one_of(t, "operator", &at, &["Equal", "Exists"], errors),
        }
        if t.get("tolerationSeconds").is_some() && text(t, "effect") != "NoExecute" {
            errors.push(FieldError::invalid(
                join(&at, "effect"),
                text(t, "effect"),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        if !text(t, "effect").is_empty() {
            one_of(t, "effect", &at, &["NoExecute", "NoSchedule", "PreferNoSchedule"], errors);
        }
    }
}

/// `validateSysctls`: names of the kernel's form, each once. Whether the node allows them is its own matter.
fn sysctls(security: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, sysctl) in list(security, "sysctls").iter().enumerate() {
        let at = join(&index(path, i), "name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if name.len() > 253 || !is_sysctl(name) {
            errors.push(FieldError::invalid(
                at,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(at, name));
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.split(['.', '/']).all(|part| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && bytes.iter().all(|byte| alphanumeric(byte) || matches!(byte, b'-' | b'_'))
    })
}

/// Warnings about valid pods and templates.
pub(super) fn warnings(obj: &Value) -> Vec<String> {
    let (spec, path) = match (object::kind(obj), object::get(obj, "/spec/template/spec")) {
        ("Pod", _) => (&obj["spec"], "spec"),
        (_, t) if t.is_object() => (t, "spec.template.spec"),
        _ => return Vec::new(),
    };
    let mut out = Vec::new();
    for (i, c) in list(spec, "containers").iter().enumerate() {
        let mut seen = HashSet::new();
        for (j, e) in list(c, "env").iter().enumerate() {
            let name = text(e, "name");
            if !seen.insert(name) {
                out.push(format!("{path}.containers[{i}].env[{j}]: hides previous definition of {name:?}, which may be dropped when using apply"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: &Value) -> Vec<String> {
        let mut e = Vec::new();
        validate(spec, "spec", &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn valid() {
        let s = json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/x"}],
            "ports": [{"containerPort": 80, "protocol": "TCP"}]}], "volumes": [{"name": "v", "emptyDir": {}}]});
        assert_eq!(check(&s), Vec::<String>::new());
    }

    #[test]
    fn invalid() {
        let cases = [
            (json!({"containers": []}), "spec.containers: Required value"),
            (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
            (
                json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
                r#"spec.containers[1].name: Duplicate value: "a""#,
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
                r#"spec.containers[0].volumeMounts[0].name: Not found: "v""#,
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 70000}]}]}),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"restartPolicy": "x", "containers": [{"name": "a", "image": "i"}]}),
                r#"spec.restartPolicy: Unsupported value: "x": supported values: "Always", "OnFailure", "Never""#,
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
                r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "livenessProbe": {}}]}),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
        ];
        for (s, want) in cases {
            assert_eq!(check(&s), [want]);
        }
    }

    #[test]
    fn sysctls_have_names_of_the_kernels_form() {
        let pod = |names: &[&str]| {
            let list: Vec<Value> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
            json!({"containers": [{"name": "a", "image": "i"}], "securityContext": {"sysctls": list}})
        };
        let found = check(&pod(&["foo-", "kernel.shmmax", "safe-and-unsafe", "bar..", "net/ipv4/a_b"]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with(r#"spec.securityContext.sysctls[0].name: Invalid value: "foo-""#),
            "{found:?}"
        );
        assert!(found[1].starts_with("spec.securityContext.sysctls[3].name"), "{found:?}");
        assert!(check(&pod(&["a.b", "a.b"]))[0].contains("Duplicate value"));
    }
}
