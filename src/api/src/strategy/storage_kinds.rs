//! StorageClasses, VolumeAttributesClasses, VolumeAttachments, CSIDrivers, CSINodes and
//! CSIStorageCapacities (upstream's `pkg/apis/storage/validation`).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::checks::{Checks, IMMUTABLE};
use super::pod_spec::token_seconds;
use super::selectors;
use super::util::{list, strings, text};
use crate::field::At;
use crate::names;

/// Names and values of all parameters together.
const MAX_PARAMETER_BYTES: usize = 256 * 1024;
const MAX_PARAMETERS: usize = 512;
const MAX_NODE_ID: usize = 256;

fn parameters(c: &mut Checks, obj: &Value, may_be_empty: bool) {
    const AT: &str = "parameters";
    let count = obj[AT].as_object().map_or(0, serde_json::Map::len);
    if count > MAX_PARAMETERS {
        return c.too_long(AT, MAX_PARAMETERS);
    }
    let mut size = 0;
    for (k, v) in obj[AT].as_object().into_iter().flatten() {
        if k.is_empty() {
            c.invalid(AT, "", "field can not be empty.");
        }
        size += k.len() + v.as_str().map_or(0, str::len);
    }
    if size > MAX_PARAMETER_BYTES {
        c.too_long(AT, MAX_PARAMETER_BYTES);
    }
    if !may_be_empty && count == 0 {
        c.required(AT, "must contain at least one key/value pair");
    }
}

fn provisioner(c: &mut Checks, obj: &Value, field: &str) {
    match text(obj, field) {
        "" => c.required(field, ""),
        name => c.syntax(At::ROOT.child(field), &name.to_lowercase(), names::qualified_name),
    }
}

pub(super) fn validate_class(c: &mut Checks, obj: &Value) {
    provisioner(c, obj, "provisioner");
    parameters(c, obj, true);
    if !text(obj, "reclaimPolicy").is_empty() {
        c.one_of(obj, "reclaimPolicy", At::ROOT, &["Delete", "Retain"]);
    }
    c.one_of(obj, "volumeBindingMode", At::ROOT, &["Immediate", "WaitForFirstConsumer"]);
    let mut seen: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (i, term) in list(obj, "allowedTopologies").iter().enumerate() {
        let term_at = At::ROOT.item("allowedTopologies", i);
        let at = term_at.child("matchLabelExpressions");
        let found = topology(c, list(term, "matchLabelExpressions"), at);
        if seen.contains(&found) {
            c.duplicate(at, "");
        }
        seen.push(found);
    }
}

/// The values of each key of one term.
fn topology<'a>(c: &mut Checks, terms: &'a [Value], at: At<'_>) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut found = BTreeMap::new();
    for (i, term) in terms.iter().enumerate() {
        let (at, key) = (at.index(i), text(term, "key"));
        let path = at.child("values");
        let mut values = BTreeSet::new();
        if list(term, "values").is_empty() {
            c.required(path, "");
        }
        for (j, v) in strings(term, "values").enumerate() {
            if !values.insert(v) {
                c.duplicate(path.index(j), v);
            }
        }
        c.syntax(at.child("key"), key, names::qualified_name);
        if found.insert(key, values).is_some() {
            c.duplicate(at.child("key"), key);
        }
    }
    found
}

/// Topologies may change, and what a class is called in annotations and labels.
pub(super) fn update_class(c: &mut Checks, new: &Value, old: &Value) {
    for field in ["/parameters", "/provisioner", "/reclaimPolicy", "/volumeBindingMode"] {
        c.immutable(new, old, field);
    }
    c.ratchet(validate_class, new, old);
}

pub(super) fn validate_attributes_class(c: &mut Checks, obj: &Value) {
    provisioner(c, obj, "driverName");
    parameters(c, obj, false);
}

pub(super) fn update_attributes_class(c: &mut Checks, new: &Value, old: &Value) {
    for field in ["driverName", "parameters"].iter().filter(|f| new.get(**f) != old.get(**f)) {
        c.forbidden(*field, format!("updates to {field} are forbidden."));
    }
    c.ratchet(validate_attributes_class, new, old);
}

/// The name of a CSI driver, in either case.
pub(super) fn driver_name(c: &mut Checks, name: &str, path: At<'_>) {
    if name.is_empty() {
        return c.required(path, "");
    }
    if name.len() > 63 {
        c.too_long(path, 63);
    }
    c.each(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

pub(super) fn validate_attachment(c: &mut Checks, obj: &Value) {
    const AT: &str = "spec.source";
    const WHAT: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let spec = &obj["spec"];
    driver_name(c, text(spec, "attacher"), At::SPEC.child("attacher"));
    let (inline, named) = (&spec["source"]["inlineVolumeSpec"], &spec["source"]["persistentVolumeName"]);
    match (inline.is_null(), named.as_str()) {
        (true, None) => c.required(AT, WHAT),
        (false, Some(_)) => c.forbidden(AT, WHAT),
        (true, Some("")) => {
            c.required("spec.source.persistentVolumeName", "must specify non empty persistentVolumeName");
        }
        _ => {}
    }
    c.syntax(At::SPEC.child("nodeName"), text(spec, "nodeName"), names::dns1123_subdomain);
    if let Some(name) = named.as_str() {
        c.syntax(At::root("spec.source.persistentVolumeName"), name, names::dns1123_subdomain);
    }
}

pub(super) fn update_attachment(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_attachment, new, old);
    c.immutable(new, old, "/spec");
}

pub(super) fn validate_driver(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    c.one_of(spec, "fsGroupPolicy", At::SPEC, &["File", "None", "ReadWriteOnceWithFSType"]);
    let mut audiences = HashSet::new();
    let requests = list(spec, "tokenRequests");
    for (i, request) in requests.iter().enumerate() {
        let (at, audience) = (At::SPEC.item("tokenRequests", i), text(request, "audience"));
        if !audiences.insert(audience) {
            c.duplicate(at.child("audience"), audience);
        } else {
            token_seconds(c, request, at);
        }
    }
    for mode in list(spec, "volumeLifecycleModes") {
        if mode != "Persistent" && mode != "Ephemeral" {
            let path = "spec.volumeLifecycleModes";
            c.unsupported(path, mode.clone(), &["Persistent", "Ephemeral"]);
        }
    }
    let period = "nodeAllocatableUpdatePeriodSeconds";
    if let Some(n) = spec[period].as_i64().filter(|n| *n < 10) {
        let what = "must be greater than or equal to 10 seconds";
        c.invalid(At::SPEC.child(period), n, what);
    }
    let in_secrets = "serviceAccountTokenInSecrets";
    if !spec[in_secrets].is_null() && requests.is_empty() {
        let what = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        c.invalid(At::SPEC.child(in_secrets), spec[in_secrets].clone(), what);
    }
}

pub(super) fn update_driver(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_driver, new, old);
    // Upstream's path is misspelt.
    for (field, told) in
        [("attachRequired", "spec.attachedRequired"), ("volumeLifecycleModes", "spec.volumeLifecycleModes")]
    {
        let value = &new["spec"][field];
        if *value != old["spec"][field] {
            c.invalid(told, value.clone(), IMMUTABLE);
        }
    }
}

pub(super) fn validate_node(c: &mut Checks, obj: &Value) {
    let mut seen = HashSet::new();
    for (i, driver) in list(&obj["spec"], "drivers").iter().enumerate() {
        let (at, name, id) = (At::SPEC.item("drivers", i), text(driver, "name"), text(driver, "nodeID"));
        driver_name(c, name, at.child("name"));
        if c.needs(driver, "nodeID", at) && id.len() > MAX_NODE_ID {
            let what = format!("must be {MAX_NODE_ID} characters or less");
            c.invalid(at.child("nodeID"), id, what);
        }
        c.non_negative(&driver["allocatable"], "count", at.child("allocatable"));
        if !seen.insert(name) {
            c.duplicate(at.child("name"), name);
        }
        let mut keys = HashSet::new();
        for key in strings(driver, "topologyKeys") {
            if key.is_empty() {
                c.required(at, "");
            }
            if !keys.insert(key) {
                c.duplicate(at, key);
            }
            c.syntax(at, key, names::qualified_name);
        }
    }
}

/// A driver's entry changes by being removed and added; what it can attach may change.
pub(super) fn update_node(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_node, new, old);
    for before in list(&old["spec"], "drivers") {
        for after in list(&new["spec"], "drivers").iter().filter(|d| d["name"] == before["name"]) {
            let ids = text(before, "nodeID") == text(after, "nodeID");
            if !ids || list(before, "topologyKeys") != list(after, "topologyKeys") {
                c.invalid("spec.drivers", after.clone(), IMMUTABLE);
            }
        }
    }
}

pub(super) fn validate_capacity(c: &mut Checks, obj: &Value) {
    selectors::label_selector(c, &obj["nodeTopology"], At::root("nodeTopology"));
    c.syntax(At::root("storageClassName"), text(obj, "storageClassName"), names::dns1123_subdomain);
    c.non_negative_quantity(At::root("capacity"), &obj["capacity"]);
}

pub(super) fn update_capacity(c: &mut Checks, new: &Value, old: &Value) {
    c.immutable(new, old, "/nodeTopology");
    c.immutable(new, old, "/storageClassName");
}

/// Leases (upstream's `coordination/validation`).
pub(super) fn validate_lease(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    if let Some(n) = spec["leaseDurationSeconds"].as_i64().filter(|n| *n <= 0) {
        c.invalid("spec.leaseDurationSeconds", n, "must be greater than 0");
    }
    c.non_negative(&obj["spec"], "leaseTransitions", At::SPEC);
    let strategy = text(spec, "strategy");
    if let Some(s) = spec["strategy"].as_str() {
        let path = At::root("spec.strategy.strategy");
        if s.contains('/') {
            c.syntax(path, s, names::qualified_name);
        } else if s != "OldestEmulationVersion" {
            c.unsupported(path, s, &["OldestEmulationVersion"]);
        }
    }
    if !text(spec, "preferredHolder").is_empty() && strategy.is_empty() {
        let what = "may only be specified if `strategy` is defined";
        c.forbidden("spec.preferredHolder", what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::checks::Check;
    use crate::strategy::checks::tests::told;
    use serde_json::json;

    #[test]
    fn valid() {
        let cases: [(Check, Value); 8] = [
            (
                validate_class,
                json!({"provisioner": "kubernetes.io/no-provisioner", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"}),
            ),
            (
                validate_class,
                json!({"provisioner": "Kedge.io/Hostpath", "allowedTopologies": [
                {"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}, {"matchLabelExpressions": [{"key": "zone", "values": ["b"]}]}]}),
            ),
            (validate_attributes_class, json!({"driverName": "a.b", "parameters": {"a": "b"}})),
            (
                validate_attachment,
                json!({"spec": {"attacher": "a.b", "nodeName": "n", "source": {"persistentVolumeName": "p"}}}),
            ),
            (
                validate_driver,
                json!({"spec": {"attachRequired": true, "fsGroupPolicy": "File", "tokenRequests": [{"audience": ""}], "volumeLifecycleModes": ["Ephemeral"]}}),
            ),
            (
                validate_node,
                json!({"spec": {"drivers": [{"name": "a.b", "nodeID": "n", "topologyKeys": ["a.b/zone"], "allocatable": {"count": 3}}]}}),
            ),
            (validate_capacity, json!({"storageClassName": "s", "capacity": "1Gi", "nodeTopology": {}})),
            (
                validate_lease,
                json!({"spec": {"leaseDurationSeconds": 15, "strategy": "OldestEmulationVersion", "preferredHolder": "a"}}),
            ),
        ];
        for (check, obj) in cases {
            assert_eq!(told(check, &obj), "", "{obj}");
        }
    }

    #[test]
    fn invalid() {
        let cases: [(Check, Value, &str); 16] = [
            (validate_class, json!({"provisioner": ""}), "provisioner: Required value"),
            (
                validate_class,
                json!({"provisioner": "a", "reclaimPolicy": "Recycle"}),
                r#"reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain""#,
            ),
            (
                validate_class,
                json!({"provisioner": "a", "volumeBindingMode": "x"}),
                r#"volumeBindingMode: Unsupported value: "x": supported values: "Immediate", "WaitForFirstConsumer""#,
            ),
            (
                validate_class,
                json!({"provisioner": "a", "parameters": {"": "x"}}),
                "parameters: Invalid value: \"\": field can not be empty.",
            ),
            (
                validate_class,
                json!({"provisioner": "a", "parameters": {"k": "x".repeat(MAX_PARAMETER_BYTES)}}),
                "parameters: Too long: may not be more than 262144 bytes",
            ),
            (
                validate_class,
                json!({"provisioner": "a", "allowedTopologies": [{"matchLabelExpressions": [{"key": "z", "values": []}, {"key": "z", "values": ["a", "a"]}]}]}),
                "allowedTopologies[0].matchLabelExpressions[0].values: Required value; allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value: \"a\"; allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"z\"",
            ),
            (
                validate_attributes_class,
                json!({"driverName": "a"}),
                "parameters: Required value: must contain at least one key/value pair",
            ),
            (
                validate_attachment,
                json!({"spec": {"attacher": "a", "nodeName": "n", "source": {}}}),
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
            (
                validate_driver,
                json!({"spec": {"tokenRequests": [{"audience": "a"}, {"audience": "a"}]}}),
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
            ),
            (
                validate_driver,
                json!({"spec": {"tokenRequests": [{"expirationSeconds": 599}]}}),
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
            ),
            (
                validate_driver,
                json!({"spec": {"fsGroupPolicy": "x"}}),
                r#"spec.fsGroupPolicy: Unsupported value: "x": supported values: "File", "None", "ReadWriteOnceWithFSType""#,
            ),
            (
                validate_node,
                json!({"spec": {"drivers": [{"name": "a", "nodeID": "n"}, {"name": "a", "nodeID": "n"}]}}),
                "spec.drivers[1].name: Duplicate value: \"a\"",
            ),
            (
                validate_node,
                json!({"spec": {"drivers": [{"name": "a"}]}}),
                "spec.drivers[0].nodeID: Required value",
            ),
            (
                validate_capacity,
                json!({"storageClassName": "s", "capacity": -1}),
                "capacity: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                validate_capacity,
                json!({"storageClassName": "s", "capacity": "-1"}),
                "capacity: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                validate_lease,
                json!({"spec": {"leaseDurationSeconds": 0, "preferredHolder": "a"}}),
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0; spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined",
            ),
        ];
        for (check, obj, wanted) in cases {
            assert_eq!(told(check, &obj), wanted);
        }
    }

    #[test]
    fn updates() {
        let mut c = Checks::default();
        update_class(&mut c, &json!({"provisioner": "b"}), &json!({"provisioner": "a"}));
        update_driver(
            &mut c,
            &json!({"spec": {"attachRequired": true}}),
            &json!({"spec": {"attachRequired": false}}),
        );
        let node = |id: &str, count: i64| json!({"spec": {"drivers": [{"name": "a", "nodeID": id, "allocatable": {"count": count}}]}});
        update_node(&mut c, &node("n", 2), &node("n", 1));
        let told: Vec<String> = c.errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "provisioner: Invalid value: \"b\": field is immutable",
                "spec.attachedRequired: Invalid value: true: field is immutable"
            ]
        );
        update_node(&mut c, &node("m", 1), &node("n", 1));
        assert_eq!(c.errors.len(), 3);
    }
}
