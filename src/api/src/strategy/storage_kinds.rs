//! StorageClasses, VolumeAttributesClasses, VolumeAttachments, CSIDrivers, CSINodes and
//! CSIStorageCapacities (upstream's `pkg/apis/storage/validation`).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::checks::{label_selector, not_negative, number, ratchet, required, syntax};
use super::meta::immutable;
use super::util::{list, non_negative, one_of, text};
use crate::field::{FieldError, index, join};
use crate::names;

/// Names and values of all parameters together.
const MAX_PARAMETER_BYTES: usize = 256 * 1024;
const MAX_PARAMETERS: usize = 512;
const MAX_NODE_ID: usize = 256;

fn parameters(obj: &Value, may_be_empty: bool, errors: &mut Vec<FieldError>) {
    const AT: &str = "parameters";
    let count = obj[AT].as_object().map_or(0, serde_json::Map::len);
    if count > MAX_PARAMETERS {
        return errors.push(FieldError::too_long(AT, MAX_PARAMETERS as u64));
    }
    let mut size = 0;
    for (k, v) in obj[AT].as_object().into_iter().flatten() {
        if k.is_empty() {
            errors.push(FieldError::invalid(AT, "", "field can not be empty."));
        }
        size += k.len() + v.as_str().map_or(0, str::len);
    }
    if size > MAX_PARAMETER_BYTES {
        errors.push(FieldError::too_long(AT, MAX_PARAMETER_BYTES as u64));
    }
    if !may_be_empty && count == 0 {
        required(AT, "must contain at least one key/value pair", errors);
    }
}

fn provisioner(obj: &Value, field: &str, errors: &mut Vec<FieldError>) {
    match text(obj, field) {
        "" => required(field, "", errors),
        name => syntax(names::qualified_name, &name.to_lowercase(), field, errors),
    }
}

pub(super) fn validate_class(obj: &Value, errors: &mut Vec<FieldError>) {
    provisioner(obj, "provisioner", errors);
    parameters(obj, true, errors);
    if !text(obj, "reclaimPolicy").is_empty() {
        one_of(obj, "reclaimPolicy", "", &["Delete", "Retain"], errors);
    }
    one_of(obj, "volumeBindingMode", "", &["Immediate", "WaitForFirstConsumer"], errors);
    let mut seen: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (i, term) in list(obj, "allowedTopologies").iter().enumerate() {
        let at = join(&index("allowedTopologies", i), "matchLabelExpressions");
        let found = topology(list(term, "matchLabelExpressions"), &at, errors);
        if seen.contains(&found) {
            errors.push(FieldError::duplicate(at, ""));
        }
        seen.push(found);
    }
}

/// The values of each key of one term.
fn topology<'a>(
    terms: &'a [Value],
    at: &str,
    errors: &mut Vec<FieldError>,
) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut found = BTreeMap::new();
    for (i, term) in terms.iter().enumerate() {
        let (at, key) = (index(at, i), text(term, "key"));
        let path = join(&at, "values");
        let mut values = BTreeSet::new();
        if list(term, "values").is_empty() {
            required(path.as_str(), "", errors);
        }
        for (j, v) in list(term, "values").iter().enumerate() {
            let v = v.as_str().unwrap_or_default();
            if !values.insert(v) {
                errors.push(FieldError::duplicate(index(&path, j), v));
            }
        }
        syntax(names::qualified_name, key, &join(&at, "key"), errors);
        if found.insert(key, values).is_some() {
            errors.push(FieldError::duplicate(join(&at, "key"), key));
        }
    }
    found
}

/// Topologies may change, and what a class is called in annotations and labels.
pub(super) fn update_class(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for field in ["/parameters", "/provisioner", "/reclaimPolicy", "/volumeBindingMode"] {
        immutable(new, old, field, errors);
    }
    ratchet(validate_class, new, old, errors);
}

pub(super) fn validate_attributes_class(obj: &Value, errors: &mut Vec<FieldError>) {
    provisioner(obj, "driverName", errors);
    parameters(obj, false, errors);
}

pub(super) fn update_attributes_class(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for field in ["driverName", "parameters"].iter().filter(|f| new.get(**f) != old.get(**f)) {
        errors.push(FieldError::forbidden(*field, format!("updates to {field} are forbidden.")));
    }
    ratchet(validate_attributes_class, new, old, errors);
}

/// The name of a CSI driver, in either case.
pub(super) fn driver_name(name: &str, path: &str, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        return required(path, "", errors);
    }
    if name.len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
    let wrong = names::dns1123_subdomain(&name.to_lowercase());
    errors.extend(wrong.into_iter().map(|m| FieldError::invalid(path, name, m)));
}

pub(super) fn validate_attachment(obj: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "spec.source";
    const WHAT: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let spec = &obj["spec"];
    driver_name(text(spec, "attacher"), "spec.attacher", errors);
    let (inline, named) = (&spec["source"]["inlineVolumeSpec"], &spec["source"]["persistentVolumeName"]);
    match (inline.is_null(), named.as_str()) {
        (true, None) => required(AT, WHAT, errors),
        (false, Some(_)) => errors.push(FieldError::forbidden(AT, WHAT)),
        (true, Some("")) => {
            required(
                "spec.source.persistentVolumeName",
                "must specify non empty persistentVolumeName",
                errors,
            );
        }
        _ => {}
    }
    syntax(names::dns1123_subdomain, text(spec, "nodeName"), "spec.nodeName", errors);
    if let Some(name) = named.as_str() {
        syntax(names::dns1123_subdomain, name, "spec.source.persistentVolumeName", errors);
    }
}

pub(super) fn update_attachment(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate_attachment, new, old, errors);
    immutable(new, old, "/spec", errors);
}

pub(super) fn validate_driver(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    one_of(spec, "fsGroupPolicy", "spec", &["File", "None", "ReadWriteOnceWithFSType"], errors);
    let mut audiences = HashSet::new();
    let requests = list(spec, "tokenRequests");
    for (i, request) in requests.iter().enumerate() {
        let (at, audience) = (index("spec.tokenRequests", i), text(request, "audience"));
        if !audiences.insert(audience) {
            errors.push(FieldError::duplicate(join(&at, "audience"), audience));
            continue;
        }
        let Some(n) = request["expirationSeconds"].as_i64() else { continue };
        let what = match n {
            ..600 => "may not specify a duration less than 10 minutes",
            4_294_967_297.. => "may not specify a duration larger than 2^32 seconds",
            _ => continue,
        };
        errors.push(FieldError::invalid(join(&at, "expirationSeconds"), n, what));
    }
    for mode in list(spec, "volumeLifecycleModes") {
        if mode != "Persistent" && mode != "Ephemeral" {
            let path = "spec.volumeLifecycleModes";
            errors.push(FieldError::not_supported(path, mode.clone(), &["Persistent", "Ephemeral"]));
        }
    }
    let period = "nodeAllocatableUpdatePeriodSeconds";
    if let Some(n) = spec[period].as_i64().filter(|n| *n < 10) {
        let what = "must be greater than or equal to 10 seconds";
        errors.push(FieldError::invalid(join("spec", period), n, what));
    }
    let in_secrets = "serviceAccountTokenInSecrets";
    if !spec[in_secrets].is_null() && requests.is_empty() {
        let what = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        errors.push(FieldError::invalid(join("spec", in_secrets), spec[in_secrets].clone(), what));
    }
}

pub(super) fn update_driver(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate_driver, new, old, errors);
    // Upstream's path is misspelt.
    for (field, told) in
        [("attachRequired", "spec.attachedRequired"), ("volumeLifecycleModes", "spec.volumeLifecycleModes")]
    {
        let value = &new["spec"][field];
        if *value != old["spec"][field] {
            errors.push(FieldError::invalid(told, value.clone(), "field is immutable"));
        }
    }
}

pub(super) fn validate_node(obj: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, driver) in list(&obj["spec"], "drivers").iter().enumerate() {
        let (at, name, id) = (index("spec.drivers", i), text(driver, "name"), text(driver, "nodeID"));
        driver_name(name, &join(&at, "name"), errors);
        if id.is_empty() {
            required(join(&at, "nodeID"), "", errors);
        } else if id.len() > MAX_NODE_ID {
            let what = format!("must be {MAX_NODE_ID} characters or less");
            errors.push(FieldError::invalid(join(&at, "nodeID"), id, what));
        }
        let count = number(&driver["allocatable"], "count");
        if count < 0 {
            let path = join(&at, "allocatable.count");
            errors.push(FieldError::invalid(path, count, super::util::NON_NEGATIVE));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(join(&at, "name"), name));
        }
        let mut keys = HashSet::new();
        for key in list(driver, "topologyKeys").iter().map(|k| k.as_str().unwrap_or_default()) {
            if key.is_empty() {
                required(at.as_str(), "", errors);
            }
            if !keys.insert(key) {
                errors.push(FieldError::duplicate(at.as_str(), key));
            }
            syntax(names::qualified_name, key, &at, errors);
        }
    }
}

/// A driver's entry changes by being removed and added; what it can attach may change.
pub(super) fn update_node(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate_node, new, old, errors);
    for before in list(&old["spec"], "drivers") {
        for after in list(&new["spec"], "drivers").iter().filter(|d| d["name"] == before["name"]) {
            let ids = text(before, "nodeID") == text(after, "nodeID");
            if !ids || list(before, "topologyKeys") != list(after, "topologyKeys") {
                errors.push(FieldError::invalid("spec.drivers", after.clone(), "field is immutable"));
            }
        }
    }
}

pub(super) fn validate_capacity(obj: &Value, errors: &mut Vec<FieldError>) {
    label_selector(&obj["nodeTopology"], "nodeTopology", errors);
    syntax(names::dns1123_subdomain, text(obj, "storageClassName"), "storageClassName", errors);
    not_negative(&obj["capacity"], "capacity", errors);
}

pub(super) fn update_capacity(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    immutable(new, old, "/nodeTopology", errors);
    immutable(new, old, "/storageClassName", errors);
}

/// Leases (upstream's `coordination/validation`).
pub(super) fn validate_lease(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    if let Some(n) = spec["leaseDurationSeconds"].as_i64().filter(|n| *n <= 0) {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", n, "must be greater than 0"));
    }
    non_negative(obj, "/spec/leaseTransitions", errors);
    let strategy = text(spec, "strategy");
    if let Some(s) = spec["strategy"].as_str() {
        let path = "spec.strategy.strategy";
        if s.contains('/') {
            syntax(names::qualified_name, s, path, errors);
        } else if s != "OldestEmulationVersion" {
            errors.push(FieldError::not_supported(path, s, &["OldestEmulationVersion"]));
        }
    }
    if !text(spec, "preferredHolder").is_empty() && strategy.is_empty() {
        let what = "may only be specified if `strategy` is defined";
        errors.push(FieldError::forbidden("spec.preferredHolder", what));
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
        let cases: [(Check, Value, &str); 15] = [
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
        let mut errors = Vec::new();
        update_class(&json!({"provisioner": "b"}), &json!({"provisioner": "a"}), &mut errors);
        update_driver(
            &json!({"spec": {"attachRequired": true}}),
            &json!({"spec": {"attachRequired": false}}),
            &mut errors,
        );
        let node = |id: &str, count: i64| json!({"spec": {"drivers": [{"name": "a", "nodeID": id, "allocatable": {"count": count}}]}});
        update_node(&node("n", 2), &node("n", 1), &mut errors);
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "provisioner: Invalid value: \"b\": field is immutable",
                "spec.attachedRequired: Invalid value: true: field is immutable"
            ]
        );
        update_node(&node("m", 1), &node("n", 1), &mut errors);
        assert_eq!(errors.len(), 3);
    }
}
