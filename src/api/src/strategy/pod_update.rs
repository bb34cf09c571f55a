//! What of a pod may change once it exists (upstream: `ValidatePodUpdate`).

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::checks::Checks;
use super::meta;
use super::util::{list, text};
use crate::field::At;
use crate::object;

const UPDATE_MESSAGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Most of a pod's specification is fixed once it exists.
pub(super) fn validate_update(c: &mut Checks, new: &Value, old: &Value) {
    let (n, o) = (&new["spec"], &old["spec"]);
    annotations(c, object::get(new, ANNOTATIONS), object::get(old, ANNOTATIONS));
    for list_name in ["containers", "initContainers"] {
        let (a, b) = (list(n, list_name), list(o, list_name));
        if a.len() != b.len() {
            c.forbidden(At::SPEC.child(list_name), "pod updates may not add or remove containers");
            return;
        }
    }
    let deadline = |v: &Value| v.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (deadline(n), deadline(o)) {
        (Some(a), Some(b)) if a > b => {
            c.invalid("spec.activeDeadlineSeconds", a, "must be less than or equal to previous value");
        }
        (None, Some(_)) => c.invalid(
            "spec.activeDeadlineSeconds",
            Value::Null,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
    let (added, before) = (list(n, "tolerations"), list(o, "tolerations"));
    if before.iter().any(|t| !added.iter().any(|a| same_toleration(a, t))) {
        c.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    new_gates(c, n, o);
    if n == o {
        return;
    }
    // Take over what may change, then nothing else may differ.
    let mut allowed = n.clone();
    for list_name in ["containers", "initContainers"] {
        let images: Vec<Value> = list(o, list_name).iter().map(|c| c["image"].clone()).collect();
        if let Some(items) = allowed.get_mut(list_name).and_then(Value::as_array_mut) {
            for (c, image) in items.iter_mut().zip(images) {
                if let Some(c) = c.as_object_mut() {
                    c.insert("image".into(), image);
                }
            }
        }
    }
    let negative = o.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|s| s < 0);
    for field in [
        "activeDeadlineSeconds",
        "tolerations",
        "schedulingGates",
        "terminationGracePeriodSeconds",
        "ephemeralContainers",
    ] {
        if field == "terminationGracePeriodSeconds"
            && !(negative && n.get(field).and_then(Value::as_i64) == Some(1))
        {
            continue;
        }
        take_over(&mut allowed, o, field);
    }
    if !list(o, "schedulingGates").is_empty() {
        narrowed(c, n, o);
        take_over(&mut allowed, o, "nodeSelector");
        let mut affinity = allowed["affinity"].take();
        let other_kinds = affinity.as_object_mut().is_some_and(|kinds| {
            kinds.remove("nodeAffinity");
            !kinds.is_empty()
        });
        if other_kinds || o.get("affinity").is_some() {
            if let Some(nodes) = object::get(o, "/affinity").get("nodeAffinity") {
                affinity["nodeAffinity"] = nodes.clone();
            }
            allowed["affinity"] = affinity;
        } else {
            take_over(&mut allowed, o, "affinity");
        }
    }
    if allowed != *o {
        c.forbidden("spec", UPDATE_MESSAGE);
    }
}

/// Containers for debugging come, and stay as they came (`ValidatePodEphemeralContainersUpdate`).
pub(super) fn validate_ephemeral(c: &mut Checks, new: &Value, old: &Value) {
    annotations(c, object::get(new, ANNOTATIONS), object::get(old, ANNOTATIONS));
    if object::annotation(old, MIRROR).is_some() {
        c.errors.clear();
        c.forbidden("[]", "static pods do not support ephemeral containers");
        return;
    }
    const PATH: &str = "spec.ephemeralContainers";
    let known: HashMap<&str, &Value> = list(&new["spec"], "ephemeralContainers")
        .iter()
        .map(|container| (text(container, "name"), container))
        .collect();
    for container in list(&old["spec"], "ephemeralContainers") {
        let name = text(container, "name");
        let what = match known.get(name) {
            None => "removed",
            Some(now) if *now != container => "changed",
            Some(_) => continue,
        };
        c.forbidden(PATH, format!("existing ephemeral containers {name:?} may not be {what}\n"));
    }
}

const ANNOTATIONS: &str = "/metadata/annotations";
const MIRROR: &str = "kubernetes.io/config.mirror";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What annotations say of a pod's confinement, and whose copy it is, stays (`ValidatePodSpecificAnnotationUpdates`).
fn annotations(c: &mut Checks, new: &Value, old: &Value) {
    let mut fixed = |of: &Value, other: &Value, what: &str, only_missing: bool| {
        for (key, value) in of.as_object().into_iter().flatten() {
            let thing = match key.as_str() {
                MIRROR => "mirror pod annotation",
                _ if key.starts_with(APP_ARMOR) => "AppArmor annotations",
                _ => continue,
            };
            let told = other.get(key);
            let is_same = if only_missing { told.is_some() } else { told == Some(value) };
            if is_same {
                continue;
            }
            c.forbidden(meta::ANNOTATIONS.key(key), format!("may not {what} {thing}"));
        }
    };
    fixed(old, new, "remove or update", false);
    fixed(new, old, "add", true);
}

/// Gates may be removed, never added (`validateOnlyDeletedSchedulingGates`).
fn new_gates(c: &mut Checks, new: &Value, old: &Value) {
    let known: HashSet<&str> = list(old, "schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    for (i, gate) in list(new, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !known.contains(name) {
            c.forbidden(
                At::SPEC.item("schedulingGates", i).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
}

/// A gated pod may fit fewer nodes than before, never others (`validateNodeSelectorMutation`,
/// `validateNodeAffinityMutation`).
fn narrowed(c: &mut Checks, new: &Value, old: &Value) {
    let labels = object::get(new, "/nodeSelector");
    let mut before = old.get("nodeSelector").and_then(Value::as_object).into_iter().flatten();
    if before.any(|(key, value)| labels.get(key) != Some(value)) {
        c.invalid(
            "spec.nodeSelector",
            labels.clone(),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    const TERMS: &str =
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let path = TERMS.replace('/', ".");
    let path = At::SPEC.child(&path[1..]);
    let terms = |of| object::get(of, TERMS).as_array().map(Vec::as_slice).unwrap_or_default();
    let (new, old) = (terms(new), terms(old));
    if old.is_empty() {
        return;
    }
    if new.len() != old.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        c.invalid(path, new.to_vec(), why);
        return;
    }
    for (i, (new, old)) in new.iter().zip(old).enumerate() {
        let fields = ["matchExpressions", "matchFields"];
        let was_empty = fields.iter().all(|field| list(old, field).is_empty());
        let is_empty = fields.iter().all(|field| list(new, field).is_empty());
        let adds = fields.iter().all(|field| list(new, field).starts_with(list(old, field)));
        if !adds || (was_empty && !is_empty) {
            let why = "only additions are allowed (no mutations or deletions)";
            c.invalid(path.index(i), new.clone(), why);
        }
    }
}

fn take_over(to: &mut Value, from: &Value, field: &str) {
    let Some(m) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(v) => drop(m.insert(field.to_string(), v.clone())),
        None => drop(m.remove(field)),
    }
}

fn same_toleration(a: &Value, b: &Value) -> bool {
    ["key", "operator", "value", "effect"].iter().all(|f| text(a, f) == text(b, f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(old: &Value, new: &Value) -> Vec<String> {
        let mut c = Checks::default();
        validate_update(&mut c, new, old);
        c.errors.iter().map(ToString::to_string).collect()
    }

    fn pod(mut fields: Value) -> Value {
        fields["containers"] = json!([{"name": "a", "image": "i"}]);
        json!({ "spec": fields })
    }

    fn node(expressions: Value) -> Value {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}})
    }

    #[test]
    fn gated_pods_fit_fewer_nodes_and_never_others() {
        let gates = json!([{"name": "g"}, {"name": "h"}]);
        let gated = |mut fields: Value| {
            fields["schedulingGates"] = gates.clone();
            pod(fields)
        };
        let key = |name: &str| json!({"key": name, "operator": "Exists"});
        let affinity = |nodes: Value| gated(json!({"affinity": {"nodeAffinity": nodes}}));
        let selector = |selector: Value| gated(json!({ "nodeSelector": selector }));
        const TERMS: &str =
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        let allowed = [
            (gated(json!({})), pod(json!({"schedulingGates": [{"name": "h"}]}))),
            (gated(json!({})), affinity(node(json!([key("a")])))),
            (affinity(node(json!([key("a")]))), affinity(node(json!([key("a"), key("b")])))),
            (selector(json!({"a": "b"})), selector(json!({"a": "b", "c": "d"}))),
        ];
        for (old, new) in allowed {
            assert_eq!(told(&old, &new), Vec::<String>::new(), "{new}");
        }
        let refused = [
            (
                pod(json!({"schedulingGates": [{"name": "g"}]})),
                gated(json!({})),
                "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'h'".to_owned(),
            ),
            (
                selector(json!({"a": "b"})),
                selector(json!({"a": "c"})),
                r#"spec.nodeSelector: Invalid value: {"a":"c"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)"#.to_owned(),
            ),
            (
                affinity(node(json!([key("a")]))),
                affinity(node(json!([key("b")]))),
                format!(r#"{TERMS}[0]: Invalid value: {{"matchExpressions":[{{"key":"b","operator":"Exists"}}]}}: only additions are allowed (no mutations or deletions)"#),
            ),
            (
                affinity(node(json!([key("a")]))),
                gated(json!({})),
                format!("{TERMS}: Invalid value: []: no additions/deletions to non-empty NodeSelectorTerms list are allowed"),
            ),
            (
                gated(json!({})),
                gated(json!({"affinity": {"podAffinity": {}}})),
                format!("spec: Forbidden: {UPDATE_MESSAGE}"),
            ),
            (
                pod(json!({"nodeSelector": {"a": "b"}})),
                pod(json!({"nodeSelector": {"a": "b", "c": "d"}})),
                format!("spec: Forbidden: {UPDATE_MESSAGE}"),
            ),
        ];
        for (old, new, wanted) in refused {
            assert_eq!(told(&old, &new), [wanted], "{new}");
        }
    }

    #[test]
    fn containers_for_debugging_stay() {
        let pod = |containers: Value| json!({"spec": { "ephemeralContainers": containers }});
        let (a, b) = (json!({"name": "a", "image": "i"}), json!({"name": "b", "image": "i"}));
        let told = |old: Value, new: Value| {
            let mut c = Checks::default();
            validate_ephemeral(&mut c, &new, &old);
            c.errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(pod(json!([a])), pod(json!([b, a]))), Vec::<String>::new());
        for (new, what) in [(json!([b]), "removed"), (json!([{"name": "a", "image": "j"}]), "changed")] {
            let wanted = format!("existing ephemeral containers \"a\" may not be {what}\n");
            assert_eq!(
                told(pod(json!([a])), pod(new)),
                [format!("spec.ephemeralContainers: Forbidden: {wanted}")]
            );
        }
        let mut mirror = pod(json!([]));
        mirror["metadata"] = json!({"annotations": { MIRROR: "x" }});
        let mut new = mirror.clone();
        new["spec"] = pod(json!([a]))["spec"].clone();
        assert_eq!(told(mirror, new), ["[]: Forbidden: static pods do not support ephemeral containers"]);
    }

    #[test]
    fn some_annotations_stay() {
        let with = |annotations: Value| json!({"metadata": { "annotations": annotations }, "spec": {}});
        let armor = format!("{APP_ARMOR}a");
        let cases = [
            (json!({"x": "1"}), json!({"y": "2"}), None),
            (json!({}), json!({ MIRROR: "a" }), Some((MIRROR, "add mirror pod annotation"))),
            (
                json!({ MIRROR: "a" }),
                json!({ MIRROR: "b" }),
                Some((MIRROR, "remove or update mirror pod annotation")),
            ),
            (
                json!({ &armor: "a" }),
                json!({}),
                Some((armor.as_str(), "remove or update AppArmor annotations")),
            ),
            (json!({}), json!({ &armor: "a" }), Some((armor.as_str(), "add AppArmor annotations"))),
        ];
        for (old, new, wanted) in cases {
            let wanted: Vec<String> = wanted
                .iter()
                .map(|(key, what)| format!("metadata.annotations[{key}]: Forbidden: may not {what}"))
                .collect();
            assert_eq!(told(&with(old), &with(new)), wanted);
        }
    }
}
