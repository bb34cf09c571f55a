//! Roles and bindings (upstream: rbac `validation.go`, `defaults.go`).

use serde_json::Value;

use super::checks::Checks;
use super::selectors;
use super::util::{each, list, put, text};
use crate::field::At;
use crate::names;
use crate::object;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn validate_role(c: &mut Checks, obj: &Value) {
    let namespaced = object::kind(obj) == "Role";
    for (i, r) in list(obj, "rules").iter().enumerate() {
        let at = At::ROOT.item("rules", i);
        if list(r, "verbs").is_empty() {
            c.required(at.child("verbs"), "verbs must contain at least one value");
        }
        if !list(r, "nonResourceURLs").is_empty() {
            if namespaced {
                c.invalid(
                    at.child("nonResourceURLs"),
                    r["nonResourceURLs"].clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !list(r, "apiGroups").is_empty()
                || !list(r, "resources").is_empty()
                || !list(r, "resourceNames").is_empty()
            {
                c.invalid(
                    at.child("nonResourceURLs"),
                    r["nonResourceURLs"].clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if list(r, "apiGroups").is_empty() {
            c.required(at.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if list(r, "resources").is_empty() {
            c.required(at.child("resources"), "resource rules must supply at least one resource");
        }
    }
    aggregation(c, obj);
}

pub(super) fn default_binding(obj: &mut Value) {
    let Some(m) = obj.as_object_mut() else { return };
    if let Some(r) = m.get_mut("roleRef").and_then(Value::as_object_mut)
        && r.get("apiGroup").and_then(Value::as_str).unwrap_or_default().is_empty()
    {
        r.insert("apiGroup".into(), GROUP.into());
    }
    for s in each(m, "subjects") {
        if matches!(s.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
            put(s, "apiGroup", GROUP);
        }
    }
}

pub(super) fn validate_binding(c: &mut Checks, obj: &Value) {
    let role = &obj["roleRef"];
    let namespaced = object::kind(obj) == "RoleBinding";
    c.only(role, "apiGroup", At::root("roleRef"), &[GROUP]);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    c.only(role, "kind", At::root("roleRef"), kinds);
    c.required_name(role, "name", At::root("roleRef"), names::path_segment);
    for (i, s) in list(obj, "subjects").iter().enumerate() {
        subject(c, s, namespaced, At::ROOT.item("subjects", i));
    }
}

fn subject(c: &mut Checks, s: &Value, namespaced: bool, at: At<'_>) {
    c.needs(s, "name", at);
    match text(s, "kind") {
        "ServiceAccount" => {
            c.optional_name(s, "name", at, names::dns1123_subdomain);
            c.only(s, "apiGroup", at, &[""]);
            if !namespaced {
                c.needs(s, "namespace", at);
            }
        }
        "User" | "Group" => c.only(s, "apiGroup", at, &[GROUP]),
        _ => c.only(s, "kind", at, &["ServiceAccount", "User", "Group"]),
    }
}

pub(super) fn update_binding(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_binding, new, old);
    if new["roleRef"] != old["roleRef"] {
        c.invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef");
    }
}

/// What roles select the roles that they are made of by.
fn aggregation(c: &mut Checks, obj: &Value) {
    const AT: At<'_> = At::root("aggregationRule.clusterRoleSelectors");
    let rule = &obj["aggregationRule"];
    if object::kind(obj) != "ClusterRole" || !rule.is_object() {
        return;
    }
    let selectors = list(rule, "clusterRoleSelectors");
    if selectors.is_empty() {
        let what = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        c.required(AT, what);
    }
    for (i, s) in selectors.iter().enumerate() {
        selectors::label_selector(c, s, AT.index(i));
    }
}

pub(super) fn update_role(c: &mut Checks, new: &Value, old: &Value) {
    c.ratchet(validate_role, new, old);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bindings() {
        let mut b = json!({"kind": "RoleBinding", "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        default_binding(&mut b);
        assert_eq!(b["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(b["roleRef"]["apiGroup"], GROUP);
        let mut e = Checks::default();
        validate_binding(&mut e, &b);
        assert!(e.errors.is_empty(), "{e:?}");
        let mut other = b.clone();
        other["roleRef"]["name"] = json!("x");
        update_binding(&mut e, &other, &b);
        assert_eq!(e.errors[0].detail, "cannot change roleRef");
    }

    #[test]
    fn rules() {
        let mut e = Checks::default();
        validate_role(
            &mut e,
            &json!({"kind": "Role", "rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
        );
        assert_eq!(
            e.errors[0].to_string(),
            "rules[0].verbs: Required value: verbs must contain at least one value"
        );
    }

    #[test]
    fn subjects_and_roles() {
        use crate::strategy::checks::tests::told;
        let of = |kind: &str, role: Value, subject: Value| {
            told(validate_binding, &json!({"kind": kind, "roleRef": role, "subjects": [subject]}))
        };
        let role = || json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": "system:r"});
        let account = || json!({"kind": "ServiceAccount", "name": "s", "namespace": "n"});
        assert_eq!(of("ClusterRoleBinding", role(), account()), "");
        assert_eq!(of("RoleBinding", role(), json!({"kind": "Group", "name": "g", "apiGroup": GROUP})), "");
        for (kind, role, subject, wanted) in [
            (
                "ClusterRoleBinding",
                json!({"apiGroup": GROUP, "kind": "Role", "name": "r"}),
                account(),
                r#"roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole""#.to_owned(),
            ),
            (
                "RoleBinding",
                json!({"apiGroup": GROUP, "kind": "x", "name": "r"}),
                account(),
                r#"roleRef.kind: Unsupported value: "x": supported values: "Role", "ClusterRole""#.to_owned(),
            ),
            (
                "RoleBinding",
                json!({"apiGroup": "x", "kind": "Role", "name": "a/b"}),
                account(),
                format!(r#"roleRef.apiGroup: Unsupported value: "x": supported values: "{GROUP}"; roleRef.name: Invalid value: "a/b": may not contain '/'"#),
            ),
            ("RoleBinding", role(), json!({"kind": "User", "apiGroup": GROUP}), "subjects[0].name: Required value".to_owned()),
            (
                "RoleBinding",
                role(),
                json!({"kind": "User", "name": "u", "apiGroup": "x"}),
                format!(r#"subjects[0].apiGroup: Unsupported value: "x": supported values: "{GROUP}""#),
            ),
            (
                "ClusterRoleBinding",
                role(),
                json!({"kind": "ServiceAccount", "name": "s"}),
                "subjects[0].namespace: Required value".to_owned(),
            ),
            (
                "RoleBinding",
                role(),
                json!({"kind": "x", "name": "s"}),
                r#"subjects[0].kind: Unsupported value: "x": supported values: "ServiceAccount", "User", "Group""#.to_owned(),
            ),
        ] {
            assert_eq!(of(kind, role, subject), wanted);
        }
        let aggregated = json!({"kind": "ClusterRole", "aggregationRule": {"clusterRoleSelectors": []}});
        assert_eq!(
            told(validate_role, &aggregated),
            "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil"
        );
    }
}
