//! Roles and bindings (upstream: rbac `validation.go`, `defaults.go`).

use serde_json::Value;

use super::checks::{label_selector, ratchet, required, syntax};
use super::meta::immutable;
use super::util::{each, list, put, text};
use crate::field::{FieldError, index, join};
use crate::names;
use crate::object;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn validate_role(obj: &Value, errors: &mut Vec<FieldError>) {
    let namespaced = object::kind(obj) == "Role";
    for (i, r) in list(obj, "rules").iter().enumerate() {
        let at = index("rules", i);
        if list(r, "verbs").is_empty() {
            errors.push(FieldError::required(join(&at, "verbs"), "verbs must contain at least one value"));
        }
        if !list(r, "nonResourceURLs").is_empty() {
            if namespaced {
                errors.push(FieldError::invalid(
                    join(&at, "nonResourceURLs"),
                    r["nonResourceURLs"].clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if !list(r, "apiGroups").is_empty()
                || !list(r, "resources").is_empty()
                || !list(r, "resourceNames").is_empty()
            {
                errors.push(FieldError::invalid(
                    join(&at, "nonResourceURLs"),
                    r["nonResourceURLs"].clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        if list(r, "apiGroups").is_empty() {
            errors.push(FieldError::required(
                join(&at, "apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if list(r, "resources").is_empty() {
            errors.push(FieldError::required(
                join(&at, "resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
    aggregation(obj, errors);
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

/// A field that has one of these values and no other, empty included.
fn only(holder: &Value, field: &str, at: &str, allowed: &[&str], errors: &mut Vec<FieldError>) {
    let value = text(holder, field);
    if !allowed.contains(&value) {
        errors.push(FieldError::not_supported(join(at, field), value, allowed));
    }
}

pub(super) fn validate_binding(obj: &Value, errors: &mut Vec<FieldError>) {
    let role = &obj["roleRef"];
    let namespaced = object::kind(obj) == "RoleBinding";
    only(role, "apiGroup", "roleRef", &[GROUP], errors);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    only(role, "kind", "roleRef", kinds, errors);
    match text(role, "name") {
        "" => required("roleRef.name", "", errors),
        name => syntax(names::path_segment, name, "roleRef.name", errors),
    }
    for (i, s) in list(obj, "subjects").iter().enumerate() {
        subject(s, namespaced, &index("subjects", i), errors);
    }
}

fn subject(s: &Value, namespaced: bool, at: &str, errors: &mut Vec<FieldError>) {
    let name = text(s, "name");
    if name.is_empty() {
        required(join(at, "name"), "", errors);
    }
    match text(s, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                syntax(names::dns1123_subdomain, name, &join(at, "name"), errors);
            }
            only(s, "apiGroup", at, &[""], errors);
            if !namespaced && text(s, "namespace").is_empty() {
                required(join(at, "namespace"), "", errors);
            }
        }
        "User" | "Group" => only(s, "apiGroup", at, &[GROUP], errors),
        _ => only(s, "kind", at, &["ServiceAccount", "User", "Group"], errors),
    }
}

pub(super) fn update_binding(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate_binding, new, old, errors);
    let mut found = Vec::new();
    immutable(new, old, "/roleRef", &mut found);
    errors.extend(found.into_iter().map(|e| FieldError { detail: "cannot change roleRef".into(), ..e }));
}

/// What roles select the roles that they are made of by.
fn aggregation(obj: &Value, errors: &mut Vec<FieldError>) {
    const AT: &str = "aggregationRule.clusterRoleSelectors";
    let rule = &obj["aggregationRule"];
    if object::kind(obj) != "ClusterRole" || !rule.is_object() {
        return;
    }
    let selectors = list(rule, "clusterRoleSelectors");
    if selectors.is_empty() {
        let what = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        required(AT, what, errors);
    }
    for (i, s) in selectors.iter().enumerate() {
        label_selector(s, &index(AT, i), errors);
    }
}

pub(super) fn update_role(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    ratchet(validate_role, new, old, errors);
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
        let mut e = Vec::new();
        validate_binding(&b, &mut e);
        assert!(e.is_empty(), "{e:?}");
        let mut other = b.clone();
        other["roleRef"]["name"] = json!("x");
        update_binding(&other, &b, &mut e);
        assert_eq!(e[0].detail, "cannot change roleRef");
    }

    #[test]
    fn rules() {
        let mut e = Vec::new();
        validate_role(
            &json!({"kind": "Role", "rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
            &mut e,
        );
        assert_eq!(e[0].to_string(), "rules[0].verbs: Required value: verbs must contain at least one value");
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
