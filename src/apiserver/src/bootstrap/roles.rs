//! The default RBAC objects, made from the table in roles.txt, and their reconciliation at every start.
//!
//! Pure: the caller reads and writes the store. Behaviour follows upstream's
//! plugin/pkg/auth/authorizer/rbac/bootstrappolicy and component-helpers/auth/rbac/reconciliation.

use serde_json::{Map, Value, json};

use crate::authz::rbac::{Rule, covers, rules_of};

const TABLE: &str = include_str!("roles.txt");
const GROUP: &str = "rbac.authorization.k8s.io";
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Objects with this annotation set to `false` are left alone.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What to do with an object that is already there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reconciled {
    /// Nothing is missing, or the object is protected from updates.
    Keep,
    /// Write this object over the existing one (it keeps the existing metadata).
    Update(Value),
    /// The binding points at another role, which cannot be updated: delete it and create this one.
    Recreate(Value),
}

/// All default roles, then all default bindings, as complete `rbac.authorization.k8s.io/v1` objects. The
/// namespaced ones are in kube-system and kube-public.
pub(crate) fn objects() -> Vec<Value> {
    let mut roles: Vec<Value> = Vec::new();
    let mut bindings = Vec::new();
    for line in TABLE.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || words[0].starts_with('#') {
            continue;
        }
        if line.starts_with(' ') {
            if let Some(role) = roles.last_mut() {
                add_line(role, &words);
            }
            continue;
        }
        match words[..] {
            ["role", name] => roles.push(role(name, None)),
            ["role", name, label] => roles.push(role(name, label.strip_prefix("to="))),
            ["controller", name] => {
                let full = format!("system:controller:{name}");
                let account = format!("s:kube-system/{name}");
                roles.push(role(&full, None));
                bindings.push(binding(&full, &full, &[account.as_str()]));
            }
            ["bind", name, role_name, ref subjects @ ..] => bindings.push(binding(name, role_name, subjects)),
            // The table is part of the program; a test reads every line.
            _ => debug_assert!(false, "bad line in the role table: {line}"),
        }
    }
    roles.append(&mut bindings);
    roles
}

/// Compares an existing object with its default of the same kind and name. What is missing is added;
/// what somebody added is kept.
pub(crate) fn reconcile(existing: &Value, wanted: &Value) -> Reconciled {
    if existing.pointer("/metadata/annotations").and_then(|a| a.get(AUTO_UPDATE)).and_then(Value::as_str)
        == Some("false")
    {
        return Reconciled::Keep;
    }
    let mut result = existing.clone();
    for map in ["labels", "annotations"] {
        merge_metadata(&mut result, wanted, map);
    }
    if wanted.get("roleRef").is_some() {
        if !same_role(existing, wanted) {
            let mut new = wanted.clone();
            for map in ["labels", "annotations"] {
                override_metadata(&mut new, existing, map);
            }
            if let Some(subjects) = existing.get("subjects").and_then(Value::as_array) {
                add_subjects(&mut new, subjects);
            }
            return Reconciled::Recreate(new);
        }
        if let Some(subjects) = wanted.get("subjects").and_then(Value::as_array) {
            add_subjects(&mut result, subjects);
        }
    } else if wanted.get("aggregationRule").is_some() {
        // The rules of an aggregated role belong to the controller that fills them in.
        add_selectors(&mut result, wanted);
    } else if let Err(missing) = covers(&rules_of(existing), &rules_of(wanted)) {
        list_of(&mut result, "rules").extend(missing.iter().map(Rule::to_value));
    }
    if result == *existing { Reconciled::Keep } else { Reconciled::Update(result) }
}

fn role(full: &str, aggregate_to: Option<&str>) -> Value {
    let (kind, mut metadata) = header(full, "Role", "ClusterRole");
    if let Some(target) = aggregate_to {
        metadata["labels"][format!("{GROUP}/aggregate-to-{target}")] = json!("true");
    }
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "rules": []})
}

fn binding(full: &str, role_name: &str, subjects: &[&str]) -> Value {
    let (kind, metadata) = header(full, "RoleBinding", "ClusterRoleBinding");
    let role_kind = if kind == "RoleBinding" { "Role" } else { "ClusterRole" };
    let mut out = json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role_name},
    });
    let subjects: Vec<Value> = subjects.iter().filter_map(|s| subject(s)).collect();
    if !subjects.is_empty() {
        out["subjects"] = Value::Array(subjects);
    }
    out
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    match kind {
        "u" => Some(json!({"apiGroup": GROUP, "kind": "User", "name": name})),
        "g" => Some(json!({"apiGroup": GROUP, "kind": "Group", "name": name})),
        "s" => {
            let (namespace, name) = name.split_once('/')?;
            Some(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}))
        }
        _ => None,
    }
}

/// Kind and metadata of `namespace/name` or `name`.
fn header(full: &str, namespaced: &'static str, cluster: &'static str) -> (&'static str, Value) {
    let mut metadata = json!({
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTO_UPDATE: "true"},
    });
    let (kind, name) = match full.split_once('/') {
        Some((namespace, name)) => {
            metadata["namespace"] = json!(namespace);
            (namespaced, name)
        }
        None => (cluster, full),
    };
    metadata["name"] = json!(name);
    (kind, metadata)
}

/// Adds an indented table line to the role above it.
fn add_line(role: &mut Value, words: &[&str]) {
    let rule = match *words {
        ["aggregate", label] => {
            let key = format!("{GROUP}/aggregate-to-{label}");
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {key: "true"}}]});
            return;
        }
        ["events"] => rule("create,update,patch", "core,events.k8s.io", "events", ""),
        [verb_list, "url", urls] => {
            Rule { verbs: verbs(verb_list), non_resource_urls: sorted(urls), ..Rule::default() }
        }
        [verb_list, groups, resources] => rule(verb_list, groups, resources, ""),
        [verb_list, groups, resources, names] => {
            rule(verb_list, groups, resources, names.strip_prefix("names=").unwrap_or(names))
        }
        _ => {
            debug_assert!(false, "bad rule in the role table: {words:?}");
            return;
        }
    };
    list_of(role, "rules").push(rule.to_value());
}

fn rule(verb_list: &str, groups: &str, resources: &str, names: &str) -> Rule {
    let mut api_groups = sorted(groups);
    for group in &mut api_groups {
        if group == "core" {
            group.clear();
        }
    }
    api_groups.sort_unstable();
    Rule {
        verbs: verbs(verb_list),
        api_groups,
        resources: sorted(resources),
        resource_names: sorted(names),
        non_resource_urls: Vec::new(),
    }
}

fn verbs(list: &str) -> Vec<String> {
    let words: Vec<&str> = list
        .split(',')
        .map(|word| match word {
            "R" => "get,list,watch",
            "LW" => "list,watch",
            "RU" => "get,list,watch,update,patch",
            "W" => "create,update,patch,delete,deletecollection",
            "RW" => "get,list,watch,create,update,patch,delete,deletecollection",
            other => other,
        })
        .collect();
    sorted(&words.join(","))
}

/// Splits at commas; upstream's defaults have every list in sorted order.
fn sorted(list: &str) -> Vec<String> {
    let mut out: Vec<String> = list.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// The array under `key`, made when it is absent or null.
fn list_of<'a>(object: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let slot = &mut object[key];
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    match slot {
        Value::Array(list) => list,
        _ => unreachable!("made an array just above"),
    }
}

fn metadata_map<'a>(object: &'a Value, key: &str) -> Option<&'a Map<String, Value>> {
    object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_object)
}

/// Adds the wanted labels or annotations that are absent; values that are there stay.
fn merge_metadata(result: &mut Value, wanted: &Value, key: &str) {
    for (name, value) in metadata_map(wanted, key).into_iter().flatten() {
        if metadata_map(result, key).is_none_or(|map| !map.contains_key(name)) {
            result["metadata"][key][name.as_str()] = value.clone();
        }
    }
}

/// Lays the labels or annotations of `from` over those of `result`.
fn override_metadata(result: &mut Value, from: &Value, key: &str) {
    for (name, value) in metadata_map(from, key).into_iter().flatten() {
        result["metadata"][key][name.as_str()] = value.clone();
    }
}

fn same_role(a: &Value, b: &Value) -> bool {
    let part = |object: &Value, key: &str| -> String {
        let text = object.get("roleRef").and_then(|r| r.get(key)).and_then(Value::as_str).unwrap_or("");
        // The API group has only this one default.
        if key == "apiGroup" && text.is_empty() { GROUP.to_owned() } else { text.to_owned() }
    };
    ["apiGroup", "kind", "name"].into_iter().all(|key| part(a, key) == part(b, key))
}

/// Kind, name and namespace; the API group follows from the kind.
fn subject_key(subject: &Value) -> [&str; 3] {
    ["kind", "name", "namespace"].map(|key| subject.get(key).and_then(Value::as_str).unwrap_or(""))
}

fn add_subjects(object: &mut Value, wanted: &[Value]) {
    for subject in wanted {
        let known = object
            .get("subjects")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|have| subject_key(have) == subject_key(subject)));
        if !known {
            list_of(object, "subjects").push(subject.clone());
        }
    }
}

fn add_selectors(result: &mut Value, wanted: &Value) {
    let pointer = "/aggregationRule/clusterRoleSelectors";
    let Some(selectors) = wanted.pointer(pointer).and_then(Value::as_array) else { return };
    for selector in selectors {
        let known = result.pointer(pointer).and_then(Value::as_array).is_some_and(|l| l.contains(selector));
        if !known {
            list_of(&mut result["aggregationRule"], "clusterRoleSelectors").push(selector.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::authz::rbac::{Attributes, Decision, RuleSet};

    fn find(kind: &str, name: &str) -> Value {
        let wanted = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
        let all = objects();
        all.iter().find(wanted).cloned().unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    #[test]
    fn every_line_of_the_table_makes_something_sound() {
        let all = objects();
        let mut seen = HashSet::new();
        for object in &all {
            let meta = &object["metadata"];
            let id = format!("{} {} {}", object["kind"], meta["namespace"], meta["name"]);
            assert!(seen.insert(id.clone()), "{id} twice");
            assert_eq!(meta["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults", "{id}");
            assert_eq!(meta["annotations"][AUTO_UPDATE], "true", "{id}");
            if let Some(reference) = object.get("roleRef") {
                let found = all.iter().any(|role| {
                    role["kind"] == reference["kind"]
                        && role["metadata"]["name"] == reference["name"]
                        && role["metadata"]["namespace"] == meta["namespace"]
                });
                assert!(found, "{id} refers to no role");
            } else {
                let rules = rules_of(object);
                assert_eq!(rules.is_empty(), object.get("aggregationRule").is_some(), "{id}");
                for rule in rules {
                    assert!(!rule.verbs.is_empty(), "{id}");
                    assert!(!rule.resources.is_empty() || !rule.non_resource_urls.is_empty(), "{id}");
                    for verb in &rule.verbs {
                        assert!(verb == "*" || verb.chars().all(|c| c.is_ascii_lowercase()), "{id} {verb}");
                    }
                }
            }
        }
        let kinds = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
        for (kind, least) in kinds.into_iter().zip([60, 40, 7, 7]) {
            let count = all.iter().filter(|o| o["kind"] == kind).count();
            assert!(count >= least, "{count} of {kind}");
        }
    }

    #[test]
    fn shapes() {
        assert_eq!(
            find("ClusterRole", "cluster-admin")["rules"],
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}])
        );
        let edit = find("ClusterRole", "edit");
        assert_eq!(edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
        assert_eq!(
            edit["aggregationRule"]["clusterRoleSelectors"],
            json!([{"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}}])
        );
        let node = find("ClusterRoleBinding", "system:node");
        assert!(node.get("subjects").is_none());
        let job = find("ClusterRoleBinding", "system:controller:job-controller");
        assert_eq!(
            job["subjects"],
            json!([{"kind": "ServiceAccount", "name": "job-controller", "namespace": "kube-system"}])
        );
    }

    #[test]
    fn the_defaults_decide_as_expected() {
        let all = objects();
        let of = |kind: &'static str| all.iter().filter(move |o| o["kind"] == kind);
        let set = RuleSet::new(of("Role"), of("ClusterRole"), of("RoleBinding"), of("ClusterRoleBinding"));
        let authenticated = vec!["system:authenticated".to_owned()];
        let cases = [
            ("system:kube-scheduler", "create", "pods", "binding", true),
            ("system:kube-scheduler", "create", "pods", "", false),
            ("system:serviceaccount:kube-system:job-controller", "create", "pods", "", true),
            ("system:serviceaccount:default:job-controller", "create", "pods", "", false),
            ("ann", "list", "secrets", "", false),
        ];
        for (user, verb, resource, subresource, wanted) in cases {
            let ask = Attributes {
                user,
                groups: &authenticated,
                verb,
                namespace: "default",
                api_group: "",
                resource,
                subresource,
                name: "",
                path: "",
                is_resource: true,
            };
            assert_eq!(set.allows(&ask) != Decision::NoOpinion, wanted, "{user} {verb} {resource}");
        }
    }

    #[test]
    fn reconciling_a_default_with_itself_keeps_it() {
        for object in objects() {
            assert_eq!(reconcile(&object, &object), Reconciled::Keep, "{}", object["metadata"]["name"]);
        }
    }

    #[test]
    fn missing_rules_come_back_and_extra_ones_stay() {
        let wanted = find("ClusterRole", "system:auth-delegator");
        let mut existing = wanted.clone();
        let extra = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        existing["rules"] = json!([wanted["rules"][0], extra]);
        existing["metadata"]["uid"] = json!("u");
        existing["metadata"]["labels"] = Value::Null;
        let Reconciled::Update(new) = reconcile(&existing, &wanted) else { panic!("no update") };
        assert_eq!(new["rules"], json!([wanted["rules"][0], extra, wanted["rules"][1]]));
        assert_eq!(new["metadata"]["uid"], "u");
        assert_eq!(new["metadata"]["labels"], wanted["metadata"]["labels"]);

        existing["metadata"]["annotations"][AUTO_UPDATE] = json!("false");
        assert_eq!(reconcile(&existing, &wanted), Reconciled::Keep);
    }

    #[test]
    fn aggregated_rules_are_not_touched() {
        let wanted = find("ClusterRole", "view");
        let mut existing = wanted.clone();
        existing["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        assert_eq!(reconcile(&existing, &wanted), Reconciled::Keep);
        existing["aggregationRule"] = Value::Null;
        let Reconciled::Update(new) = reconcile(&existing, &wanted) else { panic!("no update") };
        assert_eq!(new["aggregationRule"], wanted["aggregationRule"]);
        assert_eq!(new["rules"], existing["rules"]);
    }

    #[test]
    fn bindings() {
        let wanted = find("ClusterRoleBinding", "system:public-info-viewer");
        let mut existing = wanted.clone();
        let extra = json!({"apiGroup": GROUP, "kind": "User", "name": "x"});
        existing["subjects"] = json!([extra, wanted["subjects"][1]]);
        let Reconciled::Update(new) = reconcile(&existing, &wanted) else { panic!("no update") };
        assert_eq!(new["subjects"], json!([extra, wanted["subjects"][1], wanted["subjects"][0]]));

        existing["roleRef"]["name"] = json!("other");
        let Reconciled::Recreate(new) = reconcile(&existing, &wanted) else { panic!("no recreate") };
        assert_eq!(new["roleRef"], wanted["roleRef"]);
        assert!(new["subjects"].as_array().is_some_and(|l| l.len() == 3 && l.contains(&extra)));
    }
}
