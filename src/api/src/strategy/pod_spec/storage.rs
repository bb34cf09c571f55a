//! Volumes that are storage elsewhere: what each kind of them must say (upstream: `validate…VolumeSource`).

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::field::At;
use crate::names;
use crate::strategy::checks::Checks;
use crate::strategy::storage_kinds::driver_name;
use crate::strategy::util::{entries, flag, integer, is_set, list, text};

fn partition(c: &mut Checks, source: &Value, at: At<'_>) {
    // Zero is the whole disk; upstream's message leaves it out.
    if let Some(n) = integer(source, "partition").filter(|n| !(0..=255).contains(n)) {
        c.invalid(at.child("partition"), n, "must be between 1 and 255, inclusive");
    }
}

/// A reference to a secret has a name.
fn secret_name(c: &mut Checks, source: &Value, at: At<'_>) {
    if is_set(source, "secretRef") {
        c.needs(&source["secretRef"], "name", at.child("secretRef"));
    }
}

fn monitors(c: &mut Checks, source: &Value, at: At<'_>) {
    if list(source, "monitors").is_empty() {
        c.required(at.child("monitors"), "");
    }
}

pub(super) fn gce_disk(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "pdName", at);
    partition(c, source, at);
}

pub(super) fn aws_disk(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "volumeID", at);
    partition(c, source, at);
}

pub(super) fn nfs(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "server", at);
    c.needs(source, "path", at);
    let path = text(source, "path");
    if !path.starts_with('/') {
        c.invalid(at.child("path"), path, "must be an absolute path");
    }
}

static IQN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"iqn\.\d{4}-\d{2}\.([[:alnum:]\-.]+)(:[^,;*&$|\s]+)$").ok());

/// What is wrong with the name of an initiator or a target.
fn iscsi_name(name: &str) -> Option<&'static str> {
    let alphanumeric = |length: usize| {
        name.len() == 4 + length && name.bytes().skip(4).all(|byte| byte.is_ascii_alphanumeric())
    };
    let is_valid = match name.get(..3) {
        Some("iqn") => IQN.as_ref().is_some_and(|form| form.is_match(name)),
        Some("eui") => alphanumeric(16),
        Some("naa") => alphanumeric(32),
        _ => return Some("must be valid format starting with iqn, eui, or naa"),
    };
    (!is_valid).then_some("must be valid format")
}

pub(super) fn iscsi(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "targetPortal", at);
    if c.needs(source, "iqn", at)
        && let Some(why) = iscsi_name(text(source, "iqn"))
    {
        c.invalid(at.child("iqn"), text(source, "iqn"), why);
    }
    c.in_range(source, "lun", at, 0, 255);
    let authenticates = ["chapAuthDiscovery", "chapAuthSession"];
    if authenticates.iter().any(|field| flag(source, field) == Some(true)) && !is_set(source, "secretRef") {
        c.required(at.child("secretRef"), "");
    }
    if let Some(name) = source.get("initiatorName").and_then(Value::as_str)
        && let Some(why) = iscsi_name(name)
    {
        c.invalid(at.child("initiatorname"), name, why);
    }
}

pub(super) fn glusterfs(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "endpoints", at);
    c.needs(source, "path", at);
}

pub(super) fn flocker(c: &mut Checks, source: &Value, at: At<'_>) {
    let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        c.required(at, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        c.invalid(at, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        c.invalid(at.child("datasetName"), name, "must not contain '/'");
    }
}

pub(super) fn rbd(c: &mut Checks, source: &Value, at: At<'_>) {
    monitors(c, source, at);
    c.needs(source, "image", at);
}

pub(super) fn cinder(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "volumeID", at);
    secret_name(c, source, at);
}

pub(super) fn cephfs(c: &mut Checks, source: &Value, at: At<'_>) {
    monitors(c, source, at);
}

pub(super) fn quobyte(c: &mut Checks, source: &Value, at: At<'_>) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(source, "registry");
    if registry.is_empty() {
        c.required(at.child("registry"), PAIRS);
    } else if text(source, "tenant").len() >= 65 {
        c.required(at.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        for pair in registry.split(',') {
            let is_pair = match pair.rsplit_once(':') {
                Some((host, _)) if host.starts_with('[') => host.ends_with(']'),
                Some((host, _)) => !host.contains(':'),
                None => false,
            };
            if !is_pair {
                c.invalid(at.child("registry"), registry, PAIRS);
            }
        }
    }
    c.needs(source, "volume", at);
}

pub(super) fn fibre_channel(c: &mut Checks, source: &Value, at: At<'_>) {
    let (targets, wwids) = (list(source, "targetWWNs"), list(source, "wwids"));
    let path = at.child("targetWWNs");
    if targets.is_empty() && wwids.is_empty() {
        c.required(path, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !wwids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        c.invalid(path, targets.to_vec(), why);
    }
    if !targets.is_empty() {
        if is_set(source, "lun") {
            c.in_range(source, "lun", at, 0, 255);
        } else {
            c.required(at.child("lun"), "lun is required if targetWWNs is specified");
        }
    }
}

pub(super) fn flex_volume(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "driver", at);
    let at = at.child("options");
    for (key, _) in entries(&source["options"]) {
        let namespace = key.split_once('/').map_or(key, |(namespace, _)| namespace);
        let normalized = format!(".{}", namespace.to_lowercase());
        if normalized.ends_with(".kubernetes.io") || normalized.ends_with(".k8s.io") {
            c.invalid(at.key(key), key, "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}

pub(super) fn azure_file(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "secretName", at);
    c.needs(source, "shareName", at);
}

pub(super) fn azure_disk(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "diskName", at);
    c.needs(source, "diskURI", at);
    c.one_of(source, "cachingMode", at, &["None", "ReadOnly", "ReadWrite"]);
    c.one_of(source, "kind", at, &["Dedicated", "Managed", "Shared"]);
    let uri = text(source, "diskURI");
    let (prefix, form) = match source.get("kind").and_then(Value::as_str) {
        Some("Managed") => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        Some(_) => {
            ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
        }
        None => return,
    };
    if !uri.starts_with(prefix) {
        c.unsupported(at.child("diskURI"), uri, &[form]);
    }
}

pub(super) fn vsphere(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "volumePath", at);
}

pub(super) fn photon(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "pdID", at);
}

pub(super) fn portworx(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "volumeID", at);
}

pub(super) fn scale_io(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "gateway", at);
    c.needs(source, "system", at);
    c.needs(source, "volumeName", at);
}

pub(super) fn storageos(c: &mut Checks, source: &Value, at: At<'_>) {
    c.required_name(source, "volumeName", at, names::dns1123_label);
    c.optional_name(source, "volumeNamespace", at, names::dns1123_label);
    secret_name(c, source, at);
}

pub(super) fn csi(c: &mut Checks, source: &Value, at: At<'_>) {
    driver_name(c, text(source, "driver"), at.child("driver"));
    if is_set(source, "nodePublishSecretRef") {
        match text(&source["nodePublishSecretRef"], "name") {
            "" => {
                let at = at.child("nodePublishSecretRef");
                c.required(at.child("name"), "");
            }
            name => c.syntax(at.child("name"), name, names::dns1123_subdomain),
        }
    }
}
