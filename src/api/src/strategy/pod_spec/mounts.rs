//! Where containers see volumes: mounts and raw devices (upstream: `ValidateVolumeMounts`,
//! `ValidateVolumeDevices`).

use std::collections::HashSet;

use serde_json::Value;

use super::volumes::Volumes;
use crate::field::At;
use crate::strategy::checks::{Checks, has_backsteps};
use crate::strategy::util::{flag, is_set, list, text};

pub(super) fn validate(c: &mut Checks, container: &Value, volumes: &Volumes<'_>, at: At<'_>) {
    let (mounts, devices) = (list(container, "volumeMounts"), list(container, "volumeDevices"));
    mounted(c, container, mounts, devices, volumes, at.child("volumeMounts"));
    if !devices.is_empty() {
        raw(c, mounts, devices, volumes, at.child("volumeDevices"));
    }
}

fn mounted(
    c: &mut Checks,
    container: &Value,
    mounts: &[Value],
    devices: &[Value],
    volumes: &Volumes<'_>,
    list: At<'_>,
) {
    let mut paths = HashSet::with_capacity(mounts.len());
    let raw_names: HashSet<&str> = devices.iter().map(|device| text(device, "name")).collect();
    let raw_paths: HashSet<&str> = devices.iter().map(|device| text(device, "devicePath")).collect();
    for (i, mount) in mounts.iter().enumerate() {
        let at = list.index(i);
        let (name, path) = (text(mount, "name"), text(mount, "mountPath"));
        c.needs(mount, "name", at);
        if !volumes.contains_key(name) {
            c.not_found(at.child("name"), name);
        }
        c.needs(mount, "mountPath", at);
        if !paths.insert(path) {
            c.invalid(at.child("mountPath"), path, "must be unique");
        }
        if raw_names.contains(name) {
            c.invalid(at.child("name"), name, "must not already exist in volumeDevices");
        }
        if raw_paths.contains(path) {
            c.invalid(at.child("mountPath"), path, "must not already exist as a path in volumeDevices");
        }
        // From here on upstream leaves out which of the mounts it is.
        let (sub, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        c.descending_path(list.child("subPath"), sub);
        if !expression.is_empty() {
            if !sub.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                c.invalid(at.child("subPathExpr"), expression, why);
            }
            c.descending_path(list.child("subPathExpr"), expression);
        }
        c.one_of(mount, "mountPropagation", list, &["Bidirectional", "HostToContainer", "None"]);
        if text(mount, "mountPropagation") == "Bidirectional"
            && flag(&container["securityContext"], "privileged") != Some(true)
        {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            c.forbidden(list.child("mountPropagation"), why);
        }
        recursive_read_only(c, mount, list);
    }
}

fn recursive_read_only(c: &mut Checks, mount: &Value, list: At<'_>) {
    c.one_of(mount, "recursiveReadOnly", list, &["Disabled", "Enabled", "IfPossible"]);
    if !matches!(text(mount, "recursiveReadOnly"), "Enabled" | "IfPossible") {
        return;
    }
    let at = list.child("recursiveReadOnly");
    if flag(mount, "readOnly") != Some(true) {
        c.forbidden(at, "may only be specified when readOnly is true");
    }
    if is_set(mount, "mountPropagation") && text(mount, "mountPropagation") != "None" {
        c.forbidden(at, "may only be specified when mountPropagation is None or not specified");
    }
}

fn raw(c: &mut Checks, mounts: &[Value], devices: &[Value], volumes: &Volumes<'_>, list: At<'_>) {
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    let mounted: HashSet<&str> = mounts.iter().map(|mount| text(mount, "name")).collect();
    let mounted_at: HashSet<&str> = mounts.iter().map(|mount| text(mount, "mountPath")).collect();
    for (i, device) in devices.iter().enumerate() {
        let at = list.index(i);
        let (name, path) = (text(device, "name"), text(device, "devicePath"));
        let (at_name, at_path) = (at.child("name"), at.child("devicePath"));
        if name.is_empty() {
            c.required(at_name, "");
        }
        if names.contains(name) {
            c.invalid(at_name, name, "must be unique");
        }
        match volumes.get(name) {
            None => c.not_found(at_name, name),
            Some(volume) if !is_set(volume, "persistentVolumeClaim") && !is_set(volume, "ephemeral") => {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                c.invalid(at_name, name, why);
            }
            Some(_) => {}
        }
        if path.is_empty() {
            c.required(at_path, "");
        }
        if paths.contains(path) {
            c.invalid(at_path, path, "must be unique");
        }
        if has_backsteps(path) {
            c.invalid(at_path, path, "can not contain backsteps ('..')");
        } else {
            paths.insert(path);
        }
        if mounted.contains(name) {
            c.invalid(at_name, name, "must not already exist in volumeMounts");
        }
        if mounted_at.contains(path) {
            c.invalid(at_path, path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}
