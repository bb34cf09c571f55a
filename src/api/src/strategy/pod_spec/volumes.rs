//! Volumes of a pod (upstream: `ValidateVolumes`): names, one source each, and what the sources of the API's own
//! objects must have. Sources that are storage elsewhere are in `storage`, projections in `projected`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{env, projected, storage};
use crate::field::At;
use crate::names;
use crate::quantity::Quantity;
use crate::strategy::checks::Checks;
use crate::strategy::meta;
use crate::strategy::util::{entries, integer, is_set, list, text};

pub(super) const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const MORE_THAN_ONE: &str = "may not specify more than 1 volume type";

/// Valid volumes by their names.
pub(super) type Volumes<'a> = HashMap<&'a str, &'a Value>;

type Check = fn(&mut Checks, &Value, At<'_>);

/// The sources in the order in which upstream looks for them, and what it calls them where it reports that
/// there is more than one.
const SOURCES: [(&str, &str, Check); 29] = [
    ("emptyDir", "emptyDir", |_, _, _| {}),
    ("hostPath", "hostPath", host_path),
    ("gitRepo", "gitRepo", git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", storage::gce_disk),
    ("awsElasticBlockStore", "awsElasticBlockStore", storage::aws_disk),
    ("secret", "secret", secret),
    ("nfs", "nfs", storage::nfs),
    ("iscsi", "iscsi", storage::iscsi),
    ("glusterfs", "glusterfs", storage::glusterfs),
    ("flocker", "flocker", storage::flocker),
    ("persistentVolumeClaim", "persistentVolumeClaim", claim),
    ("rbd", "rbd", storage::rbd),
    ("cinder", "cinder", storage::cinder),
    ("cephfs", "cephFS", storage::cephfs),
    ("quobyte", "quobyte", storage::quobyte),
    ("downwardAPI", "downwarAPI", downward_api),
    ("fc", "fc", storage::fibre_channel),
    ("flexVolume", "flexVolume", storage::flex_volume),
    ("configMap", "configMap", config_map),
    ("azureFile", "azureFile", storage::azure_file),
    ("vsphereVolume", "vsphereVolume", storage::vsphere),
    ("photonPersistentDisk", "photonPersistentDisk", storage::photon),
    ("portworxVolume", "portworxVolume", storage::portworx),
    ("azureDisk", "azureDisk", storage::azure_disk),
    ("storageos", "storageos", storage::storageos),
    ("projected", "projected", projected::validate),
    ("scaleIO", "scaleIO", storage::scale_io),
    ("csi", "csi", storage::csi),
    ("ephemeral", "ephemeral", ephemeral),
];

/// Checks the volumes; gives those that are valid. `pod` is the pod's name, empty in a template.
pub(super) fn validate<'a>(c: &mut Checks, spec: &'a Value, pod: &str, at: At<'_>) -> Volumes<'a> {
    let at = at.child("volumes");
    let mut valid = Volumes::new();
    let volumes = list(spec, "volumes");
    let is_ephemeral = |volume: &Value| is_set(volume, "ephemeral");
    let made: HashSet<String> = match pod {
        "" => HashSet::new(),
        _ => {
            let made = volumes.iter().filter(|volume| is_ephemeral(volume));
            made.map(|volume| format!("{pod}-{}", text(volume, "name"))).collect()
        }
    };
    for (i, volume) in volumes.iter().enumerate() {
        let at = at.index(i);
        let before = c.errors.len();
        let name = text(volume, "name");
        source(c, volume, at);
        if is_ephemeral(volume) && !pod.is_empty() && !name.is_empty() {
            let claim = format!("{pod}-{name}");
            for message in names::dns1123_subdomain(&claim) {
                c.invalid(at.child("name"), name, format!("PVC name {claim:?}: {message}"));
            }
        }
        if c.needs(volume, "name", at) {
            c.syntax(at.child("name"), name, names::dns1123_label);
        }
        if valid.contains_key(name) {
            c.duplicate(at.child("name"), name);
        }
        if c.errors.len() == before {
            valid.insert(name, volume);
        }
        let claim = text(&volume["persistentVolumeClaim"], "claimName");
        if !made.is_empty() && made.contains(claim) {
            let at = at.child("persistentVolumeClaim");
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            c.invalid(at.child("claimName"), claim, why);
        }
    }
    valid
}

fn source(c: &mut Checks, volume: &Value, at: At<'_>) {
    let Some(fields) = volume.as_object() else { return };
    let count = fields.iter().filter(|(key, value)| *key != "name" && !value.is_null()).count();
    if count == 0 {
        return c.required(at, "must specify a volume type");
    }
    if let Some(dir) = fields.get("emptyDir")
        && Quantity::from_value(&dir["sizeLimit"]).is_some_and(|limit| limit.sign() < 0)
    {
        let at = at.child("emptyDir");
        c.forbidden(at.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
    let mut found = false;
    let mut one = |c: &mut Checks, name: &str, called: &str, check: Check| {
        let Some(source) = fields.get(name).filter(|source| !source.is_null()) else { return };
        if std::mem::replace(&mut found, true) {
            c.forbidden(at.child(called), MORE_THAN_ONE);
        } else {
            check(c, source, at.child(name));
        }
    };
    if count == 1 {
        // The only one: no need to look for the others.
        let only = fields.iter().find(|(key, value)| *key != "name" && !value.is_null());
        let known = only.and_then(|(key, _)| SOURCES.iter().find(|(name, ..)| name == key));
        if let Some((name, called, check)) = known {
            one(c, name, called, *check);
        } else {
            one(c, "image", "image", image);
        }
    } else {
        for (name, called, check) in &SOURCES {
            one(c, name, called, *check);
        }
        one(c, "image", "image", image);
    }
    let iscsi = &volume["iscsi"];
    let name = text(volume, "name");
    if is_set(iscsi, "initiatorName") && name.len() + 1 + text(iscsi, "targetPortal").len() > 64 {
        let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        c.invalid(at.child("name"), name, why);
    }
}

/// Kinds that persistent volumes have too, and that are checked alike there.
const PERSISTENT: [&str; 20] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// What a persistent volume says of storage that a pod could name in the same words. Other kinds of sources have
/// rules of their own.
pub(in crate::strategy) fn persistent_source(c: &mut Checks, kind: &str, source: &Value, at: At<'_>) {
    let check = SOURCES.iter().find(|(name, ..)| *name == kind && PERSISTENT.contains(name));
    if let Some((.., check)) = check {
        check(c, source, at);
    }
}

/// `mode` and `defaultMode` are permissions.
pub(super) fn mode(c: &mut Checks, of: &Value, field: &str, at: At<'_>) {
    if let Some(mode) = integer(of, field).filter(|mode| !(0..=0o777).contains(mode)) {
        c.invalid(at.child(field), mode, FILE_MODE);
    }
}

fn host_path(c: &mut Checks, source: &Value, at: At<'_>) {
    if !c.needs(source, "path", at) {
        return;
    }
    c.no_backsteps(at.child("path"), text(source, "path"));
    let known =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    c.one_of(source, "type", at, &known);
}

fn git_repo(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "repository", at);
    c.descending_path(at.child("directory"), text(source, "directory"));
}

fn secret(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "secretName", at);
    mode(c, source, "defaultMode", at);
    items(c, source, at);
}

fn config_map(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "name", at);
    mode(c, source, "defaultMode", at);
    items(c, source, at);
}

fn items(c: &mut Checks, source: &Value, at: At<'_>) {
    let at = at.child("items");
    for (i, item) in list(source, "items").iter().enumerate() {
        key_to_path(c, item, at.index(i));
    }
}

pub(super) fn key_to_path(c: &mut Checks, item: &Value, at: At<'_>) {
    c.needs(item, "key", at);
    c.needs(item, "path", at);
    c.local_path(at.child("path"), text(item, "path"));
    mode(c, item, "mode", at);
}

fn claim(c: &mut Checks, source: &Value, at: At<'_>) {
    c.needs(source, "claimName", at);
}

fn downward_api(c: &mut Checks, source: &Value, at: At<'_>) {
    mode(c, source, "defaultMode", at);
    // Upstream does not say which of the items.
    for item in list(source, "items") {
        downward_file(c, item, at);
    }
}

const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// `validateDownwardAPIVolumeFile`.
pub(super) fn downward_file(c: &mut Checks, file: &Value, at: At<'_>) {
    c.needs(file, "path", at);
    c.local_path(at.child("path"), text(file, "path"));
    if is_set(file, "fieldRef") {
        env::field_ref(c, &file["fieldRef"], &FILE_FIELDS, at.child("fieldRef"));
        if is_set(file, "resourceFieldRef") {
            c.invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
        }
    } else if is_set(file, "resourceFieldRef") {
        env::resource_field_ref(c, &file["resourceFieldRef"], true, at.child("resourceFieldRef"));
    } else {
        c.required(at, "one of fieldRef and resourceFieldRef is required");
    }
    mode(c, file, "mode", at);
}

fn image(c: &mut Checks, source: &Value, at: At<'_>) {
    if c.is_pod {
        c.needs(source, "reference", at);
    }
    c.one_of(source, "pullPolicy", at, &["Always", "IfNotPresent", "Never"]);
}

/// The claim that is made for the pod.
fn ephemeral(c: &mut Checks, source: &Value, at: At<'_>) {
    let template = &source["volumeClaimTemplate"];
    let at = at.child("volumeClaimTemplate");
    if !template.is_object() {
        return c.required(at, "");
    }
    let metadata = at.child("metadata");
    for (key, value) in entries(&template["metadata"]) {
        let is_empty = match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        match key {
            "annotations" => {
                for (name, _) in entries(value) {
                    meta::annotation_key(c, name, metadata.child(key));
                }
            }
            "labels" => meta::labels(c, value, metadata.child(key)),
            _ if !is_empty => c.forbidden(metadata.child(key), "cannot be set"),
            _ => {}
        }
    }
    crate::strategy::volumes::claim_spec(c, &template["spec"], at.child("spec"));
}
