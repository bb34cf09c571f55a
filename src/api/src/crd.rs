//! What a CustomResourceDefinition means: the registry's rows that it makes, and whether its names are
//! free (`apiextensions-apiserver/pkg/controller/status`). Pure functions on JSON.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::object;
use crate::registry::{Absent, PrinterColumn, Resource, ScalePaths, Selectable, Subresource};
use crate::schema::{Name, SchemaRef};
use crate::strategy::Generic;

/// Keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
/// What may still be done to objects of a definition that is being deleted. Patches remove finalizers.
const LAST_VERBS: [&str; 7] = ["delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn owned(text: &str) -> Name {
    Cow::Owned(text.to_owned())
}

fn names(value: &Value, key: &str) -> Vec<Name> {
    items(value, key).iter().filter_map(Value::as_str).map(owned).collect()
}

/// `plural.group`, under which all versions are stored.
pub fn storage_key(crd: &Value) -> String {
    format!("{}.{}", text(&crd["spec"]["names"], "plural"), text(&crd["spec"], "group"))
}

/// Groups that are Kedge's own: the store keeps the book of nodes and the join tokens under such names, and no
/// definition may put its objects there.
pub fn is_reserved_group(group: &str) -> bool {
    group == "kedge.internal" || group.ends_with(".kedge.internal")
}

/// A condition of the definition is "True".
pub fn has_condition(crd: &Value, kind: &str) -> bool {
    items(&crd["status"], "conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// The rows of an established definition's served versions; none of one that is not established.
pub fn rows(crd: &Value) -> Vec<Resource> {
    if !has_condition(crd, "Established") {
        return Vec::new();
    }
    let versions = items(&crd["spec"], "versions");
    versions.iter().filter(|version| version["served"] == true).map(|version| row(crd, version)).collect()
}

/// The row of the stored version, served or not: what the clean-up of instances works on.
pub fn storage_row(crd: &Value) -> Option<Resource> {
    let version = items(&crd["spec"], "versions").iter().find(|version| version["storage"] == true)?;
    Some(row(crd, version))
}

fn row(crd: &Value, version: &Value) -> Resource {
    let spec = &crd["spec"];
    let accepted = &crd["status"]["acceptedNames"];
    let group = text(spec, "group");
    let name = text(version, "name");
    let namespaced = text(spec, "scope") == "Namespaced";
    // A schema that cannot be compiled was refused when the definition was written.
    let schema = SchemaRef::from_openapi(&version["schema"]["openAPIV3Schema"])
        .unwrap_or_else(|_| SchemaRef::untyped());
    let parts = &version["subresources"];
    let kind = text(accepted, "kind");
    let mut subresources = Vec::new();
    let verbs = || vec![Cow::Borrowed("get"), Cow::Borrowed("patch"), Cow::Borrowed("update")];
    let has_status = parts["status"].is_object();
    if has_status {
        subresources.push(Subresource {
            name: "status".into(),
            group: owned(group),
            version: owned(name),
            kind: owned(kind),
            verbs: verbs(),
            namespaced,
            scale: None,
        });
    }
    if let Value::Object(_) = &parts["scale"] {
        subresources.push(Subresource {
            name: "scale".into(),
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            verbs: verbs(),
            namespaced,
            scale: Some(Box::new(ScalePaths {
                spec_replicas: pointer(text(&parts["scale"], "specReplicasPath")),
                status_replicas: pointer(text(&parts["scale"], "statusReplicasPath")),
                label_selector: parts["scale"]["labelSelectorPath"].as_str().map(pointer),
            })),
        });
    }
    let columns = items(version, "additionalPrinterColumns").iter().map(|column| PrinterColumn {
        name: text(column, "name").to_owned(),
        kind: text(column, "type").to_owned(),
        format: text(column, "format").to_owned(),
        description: text(column, "description").to_owned(),
        priority: column["priority"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
        json_path: text(column, "jsonPath").to_owned(),
    });
    let selectable = items(version, "selectableFields").iter().map(|field| {
        let path = text(field, "jsonPath");
        Selectable {
            name: Cow::Owned(path.trim_start_matches('.').to_owned()),
            path: Cow::Owned(pointer(path)),
            absent: Absent::Text(""),
        }
    });
    let stored = items(&crd["spec"], "versions").iter().find(|version| version["storage"] == true);
    let verbs: &[&'static str] = if object::deletion_timestamp(crd).is_some() { &LAST_VERBS } else { &VERBS };
    Resource {
        group: owned(group),
        version: owned(name),
        kind: owned(kind),
        list_kind: owned(text(accepted, "listKind")),
        plural: owned(text(accepted, "plural")),
        singular: owned(text(accepted, "singular")),
        short_names: names(accepted, "shortNames"),
        categories: names(accepted, "categories"),
        namespaced,
        verbs: verbs.iter().map(|verb| Cow::Borrowed(*verb)).collect(),
        subresources,
        strategy: Arc::new(Generic::custom(schema.clone(), namespaced, has_status)),
        defaulted: has_default(&version["schema"]["openAPIV3Schema"]),
        conversion: (spec["conversion"]["strategy"] == "Webhook")
            .then(|| Arc::new(spec["conversion"]["webhook"].clone())),
        schema,
        columns: columns.collect(),
        selectable: selectable.collect(),
        stored: true,
        storage_key: Cow::Owned(storage_key(crd)),
        storage_version: (owned(group), owned(stored.map_or(name, |version| text(version, "name")))),
        mixed: items(&crd["status"], "storedVersions").len() > 1,
        custom: true,
    }
}

/// Whether a schema gives any field a value.
fn has_default(schema: &Value) -> bool {
    let Some(map) = schema.as_object() else { return false };
    map.contains_key("default")
        || ["items", "additionalProperties"].iter().any(|key| map.get(*key).is_some_and(has_default))
        || schema["properties"].as_object().is_some_and(|fields| fields.values().any(has_default))
}

/// `.spec.replicas` as a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

/// The definition's status with names and conditions as they should be, given the other definitions
/// of its group. `None` when there is nothing to change.
pub fn naming(crd: &Value, others: &[Value]) -> Option<Value> {
    let wanted = &crd["spec"]["names"];
    let mut resources: Vec<&str> = Vec::new();
    let mut kinds: Vec<&str> = Vec::new();
    for other in others.iter().filter(|other| object::name(other) != object::name(crd)) {
        let taken = &other["status"]["acceptedNames"];
        resources.extend([text(taken, "plural"), text(taken, "singular")]);
        resources.extend(items(taken, "shortNames").iter().filter_map(Value::as_str));
        kinds.extend([text(taken, "kind"), text(taken, "listKind")]);
    }
    let mut accepted = crd["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let mut conflict: Option<(&str, String)> = None;
    let mut accept = |field: &str, taken: &[&str], reason: &'static str| {
        let name = text(wanted, field);
        if !name.is_empty() && taken.contains(&name) && accepted[field] != name {
            conflict = Some((reason, format!("{name:?} is already in use")));
        } else if !name.is_empty() {
            accepted[field] = json!(name);
        }
    };
    accept("plural", &resources, "PluralConflict");
    accept("singular", &resources, "SingularConflict");
    accept("kind", &kinds, "KindConflict");
    accept("listKind", &kinds, "ListKindConflict");
    let clashes: Vec<&str> = items(wanted, "shortNames")
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| resources.contains(name))
        .collect();
    if clashes.is_empty() {
        set_list(&mut accepted, "shortNames", &wanted["shortNames"]);
    } else {
        let texts: Vec<String> = clashes.iter().map(|name| format!("{name:?} is already in use")).collect();
        conflict = Some(("ShortNamesConflict", texts.join(", ")));
    }
    set_list(&mut accepted, "categories", &wanted["categories"]);
    let mut status = crd["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    status["acceptedNames"] = accepted;
    match &conflict {
        None => {
            set_condition(&mut status, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
            set_condition(
                &mut status,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
            );
        }
        Some((reason, message)) => {
            set_condition(&mut status, "NamesAccepted", "False", reason, message);
            // Once established, a definition stays so under the names that it has.
            if !has_condition(crd, "Established") {
                set_condition(
                    &mut status,
                    "Established",
                    "False",
                    "NotAccepted",
                    "not all names are accepted",
                );
            }
        }
    }
    let group = text(&crd["spec"], "group");
    if group.ends_with(".k8s.io") || group.ends_with(".kubernetes.io") {
        approval(crd, &mut status);
    }
    (status != crd["status"]).then_some(status)
}

fn approval(crd: &Value, status: &mut Value) {
    let annotation = object::annotation(crd, "api-approved.kubernetes.io").unwrap_or_default();
    let kind = "KubernetesAPIApprovalPolicyConformant";
    if annotation.starts_with("https://") {
        set_condition(status, kind, "True", "ApprovedAnnotation", &format!("approved in {annotation}"));
    } else {
        set_condition(
            status,
            kind,
            "False",
            "UnapprovedAnnotation",
            &format!("not approved: {annotation:?}"),
        );
    }
}

fn set_list(names: &mut Value, field: &str, list: &Value) {
    if list.as_array().is_some_and(|list| !list.is_empty()) {
        names[field] = list.clone();
    } else if let Some(names) = names.as_object_mut() {
        names.remove(field);
    }
}

/// Sets a condition; its time changes only with its status.
pub fn set_condition(status: &mut Value, kind: &str, value: &str, reason: &str, message: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(list) = status["conditions"].as_array_mut() else { return };
    match list.iter_mut().find(|condition| condition["type"] == kind) {
        Some(condition) => {
            if condition["status"] != value {
                condition["status"] = json!(value);
                condition["lastTransitionTime"] = json!(object::now_rfc3339());
            }
            condition["reason"] = json!(reason);
            condition["message"] = json!(message);
        }
        None => list.push(json!({
            "type": kind, "status": value, "reason": reason, "message": message,
            "lastTransitionTime": object::now_rfc3339(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd() -> Value {
        json!({"metadata": {"name": "things.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList", "shortNames": ["th"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                 "selectableFields": [{"jsonPath": ".spec.color"}]},
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}},
                {"name": "v1alpha1", "served": false, "storage": false}]}})
    }

    #[test]
    fn names_are_accepted_and_rows_made() {
        let mut crd = crd();
        assert!(rows(&crd).is_empty());
        crd["status"] = naming(&crd, &[]).unwrap();
        assert!(naming(&crd, &[crd.clone()]).is_none(), "settled");
        let rows = rows(&crd);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].list_kind.as_ref(), rows[0].storage_key.as_ref()), ("ThingList", "things.x.io"));
        assert!(!rows[0].converts() && rows[1].converts());
        assert_eq!(rows[0].subresource("scale").unwrap().scale.as_ref().unwrap().spec_replicas, "/spec/n");
        assert_eq!(
            (rows[0].selectable[0].name.as_ref(), rows[0].selectable[0].path.as_ref()),
            ("spec.color", "/spec/color")
        );
        let old = rows[1].from_storage(json!({"apiVersion": "x.io/v1", "kind": "Thing"})).unwrap();
        assert_eq!(old["apiVersion"], "x.io/v1beta1");
        crd["status"]["storedVersions"] = json!(["v1beta1", "v1"]);
        let mixed = &super::rows(&crd)[0];
        let back = mixed.from_storage(json!({"apiVersion": "x.io/v1beta1", "kind": "Thing"})).unwrap();
        assert_eq!(back["apiVersion"], "x.io/v1");
    }

    #[test]
    fn taken_names_are_refused() {
        let mut first = crd();
        first["status"] = naming(&first, &[]).unwrap();
        let mut second = crd();
        second["metadata"]["name"] = json!("others.x.io");
        second["spec"]["names"]["plural"] = json!("others");
        let status = naming(&second, &[first]).unwrap();
        let condition = |kind: &str| {
            let list = status["conditions"].as_array().unwrap();
            list.iter().find(|c| c["type"] == kind).unwrap().clone()
        };
        assert_eq!(condition("NamesAccepted")["reason"], "ShortNamesConflict");
        assert_eq!(condition("NamesAccepted")["message"], "\"th\" is already in use");
        assert_eq!(condition("Established")["status"], "False");
        assert_eq!(status["acceptedNames"], json!({"plural": "others"}));
    }
}
