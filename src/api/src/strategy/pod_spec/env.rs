//! Environment variables of containers (upstream: `ValidateEnv`, `ValidateEnvFrom`) and the references to fields
//! of the pod that volumes share with them.

use std::cell::OnceCell;
use std::collections::HashMap;

use serde_json::Value;

use crate::field::At;
use crate::names;
use crate::quantity::Quantity;
use crate::strategy::checks::{Checks, has_backsteps};
use crate::strategy::util::{is_set, list, text};

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields that the API converts, though only some of them are allowed where they are asked for.
const CONVERTED: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const TWO_SOURCES: &str = "may not have more than one field specified at a time";

pub(super) fn validate(c: &mut Checks, container: &Value, at: At<'_>) {
    let env = at.child("env");
    for (i, variable) in list(container, "env").iter().enumerate() {
        let at = env.index(i);
        if c.needs(variable, "name", at) {
            let name = text(variable, "name");
            c.syntax(at.child("name"), name, names::env_var_name);
        }
        if is_set(variable, "valueFrom") {
            value_from(c, variable, at.child("valueFrom"));
        }
    }
    let from = at.child("envFrom");
    for (i, source) in list(container, "envFrom").iter().enumerate() {
        let at = from.index(i);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            c.syntax(at.child("prefix"), prefix, names::env_var_name);
        }
        let mut found = 0;
        for kind in ["configMapRef", "secretRef"].into_iter().filter(|kind| is_set(source, kind)) {
            found += 1;
            let at = at.child(kind);
            if c.needs(&source[kind], "name", at) {
                let name = text(&source[kind], "name");
                // Upstream checks it as the prefix of a name.
                let whole = name.strip_suffix('-').map(|start| format!("{start}a"));
                c.each(at.child("name"), name, names::dns1123_subdomain(whole.as_deref().unwrap_or(name)));
            }
        }
        // Upstream names the whole list.
        match found {
            0 => c.invalid(from, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => c.invalid(from, "", TWO_SOURCES),
        }
    }
}

fn value_from(c: &mut Checks, variable: &Value, at: At<'_>) {
    let from = &variable["valueFrom"];
    let mut found = 0;
    for kind in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let Some(of) = from.get(kind).filter(|of| !of.is_null()) else { continue };
        found += 1;
        let at = at.child(kind);
        match kind {
            "fieldRef" => field_ref(c, of, &ENV_FIELDS, at),
            "resourceFieldRef" => resource_field_ref(c, of, false, at),
            "fileKeyRef" => file_key(c, of, at),
            _ => key_of(c, of, at),
        }
    }
    if found == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        c.invalid(at, "", why);
    } else if !text(variable, "value").is_empty() {
        c.invalid(at, "", "may not be specified when `value` is not empty");
    } else if found > 1 {
        c.invalid(at, "", TWO_SOURCES);
    }
}

/// A key of a ConfigMap or Secret.
fn key_of(c: &mut Checks, of: &Value, at: At<'_>) {
    let name = text(of, "name");
    c.syntax(at.child("name"), name, names::dns1123_subdomain);
    if c.needs(of, "key", at) {
        let key = text(of, "key");
        c.syntax(at.child("key"), key, names::config_key);
    }
}

/// A variable that a file in a volume holds.
fn file_key(c: &mut Checks, of: &Value, at: At<'_>) {
    if c.needs(of, "key", at) {
        let key = text(of, "key");
        c.syntax(at.child("key"), key, names::env_var_name);
    }
    if c.needs(of, "volumeName", at) {
        let volume = text(of, "volumeName");
        c.syntax(at.child("volumeName"), volume, names::dns1123_label);
    }
    if c.needs(of, "path", at) && has_backsteps(text(of, "path")) {
        c.no_backsteps(at.child("path"), text(of, "path"));
    }
}

/// Files that variables come from are in volumes of the pod's own (`validateFileKeyRefVolumes`).
pub(super) fn file_volumes(c: &mut Checks, spec: &Value, at: At<'_>) {
    let volumes: OnceCell<HashMap<&str, &Value>> = OnceCell::new();
    super::each_container(spec, at, |container, at| {
        let env = at.child("env");
        for (i, variable) in list(container, "env").iter().enumerate() {
            let of = &variable["valueFrom"]["fileKeyRef"];
            if !of.is_object() {
                continue;
            }
            let name = text(of, "volumeName");
            let at = env.index(i);
            let at = at.child("valueFrom");
            let at = at.child("fileKeyRef");
            let volumes = volumes.get_or_init(|| {
                list(spec, "volumes").iter().map(|volume| (text(volume, "name"), volume)).collect()
            });
            match volumes.get(name) {
                None => c.not_found(at.child("volumeName"), name),
                Some(volume) if !is_set(volume, "emptyDir") => {
                    c.invalid(at.child("volumeName"), name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    });
}

/// `validateObjectFieldSelector`: a field of the pod that is one of `allowed` (sorted).
pub(super) fn field_ref(c: &mut Checks, of: &Value, allowed: &[&str], at: At<'_>) {
    let path = text(of, "fieldPath");
    if path.is_empty() {
        return c.required(at.child("fieldPath"), "");
    }
    let cannot = |what: String| format!("error converting fieldPath: {what}");
    let version = of.get("apiVersion").and_then(Value::as_str).unwrap_or("v1");
    if version.is_empty() {
        return c.required(at.child("apiVersion"), "");
    }
    if version != "v1" {
        let why = cannot(format!("unsupported pod version: {version}"));
        return c.invalid(at.child("fieldPath"), path, why);
    }
    let subscript =
        path.strip_suffix("']").and_then(|path| path.split_once("['")).filter(|(field, _)| !field.is_empty());
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            c.each(at, &key, names::qualified_name(&key));
        }
        Some(("metadata.labels", key)) => c.syntax(at, key, names::qualified_name),
        Some(_) => {
            let why = cannot(format!("field label does not support subscript: {path}"));
            c.invalid(at.child("fieldPath"), path, why);
        }
        None => {
            let internal = if path == "spec.host" { "spec.nodeName" } else { path };
            if allowed.contains(&internal) {
            } else if CONVERTED.contains(&internal) {
                c.unsupported(at.child("fieldPath"), internal, allowed);
            } else {
                let why = cannot(format!("field label not supported: {path}"));
                c.invalid(at.child("fieldPath"), path, why);
            }
        }
    }
}

/// `validateContainerResourceFieldSelector`; in a volume it must say whose resource it is.
pub(super) fn resource_field_ref(c: &mut Checks, of: &Value, in_volume: bool, at: At<'_>) {
    let resource = text(of, "resource");
    let pages = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && text(of, "containerName").is_empty() {
        c.required(at.child("containerName"), "");
    } else if resource.is_empty() {
        c.required(at.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !pages {
        c.unsupported(at.child("resource"), resource, &RESOURCES);
    }
    let Some(divisor) = Quantity::from_value(&of["divisor"]).filter(|divisor| !divisor.is_zero()) else {
        return;
    };
    let divisor = divisor.to_string();
    const UNITS: [&str; 13] =
        ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (allowed, what): (&[&str], _) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (&UNITS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (&UNITS, "local ephemeral storage"),
        _ if pages => (&UNITS, "hugepages"),
        _ => return,
    };
    if !allowed.contains(&divisor.as_str()) {
        let list = if what == "cpu" { "1m and 1".to_owned() } else { UNITS.join(", ") };
        let why = format!("only divisor's values {list} are supported with the {what} resource");
        c.invalid(at.child("divisor"), resource, why);
    }
}
