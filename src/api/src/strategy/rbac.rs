//! Roles and bindings (upstream: rbac `validation.go`, `defaults.go`).

use serde_json::Value;

use super::meta::immutable;
use super::util::{each, list, one_of, put, text};
use crate::field::{FieldError, index, join};
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

pub(super) fn validate_binding(obj: &Value, errors: &mut Vec<FieldError>) {
    let role = &obj["roleRef"];
    if role.is_object() {
        one_of(role, "apiGroup", "roleRef", &[GROUP], errors);
        let kinds: &[&str] =
            if object::kind(obj) == "RoleBinding" { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
        one_of(role, "kind", "roleRef", kinds, errors);
        if role.get("name").is_some() && text(role, "name").is_empty() {
            errors.push(FieldError::required("roleRef.name", ""));
        }
    }
    for (i, s) in list(obj, "subjects").iter().enumerate() {
        let at = index("subjects", i);
        match text(s, "kind") {
            "ServiceAccount" => {
                if !text(s, "apiGroup").is_empty() {
                    one_of(s, "apiGroup", &at, &[""], errors);
                }
                if object::kind(obj) == "ClusterRoleBinding" && text(s, "namespace").is_empty() {
                    errors.push(FieldError::required(join(&at, "namespace"), ""));
                }
            }
            "User" | "Group" => one_of(s, "apiGroup", &at, &[GROUP], errors),
            _ => one_of(s, "kind", &at, &["Group", "ServiceAccount", "User"], errors),
        }
    }
}

pub(super) fn update_binding(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut found = Vec::new();
    immutable(new, old, "/roleRef", &mut found);
    errors.extend(found.into_iter().map(|e| FieldError { detail: "cannot change roleRef".into(), ..e }));
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
}
