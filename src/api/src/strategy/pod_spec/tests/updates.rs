//! What was accepted once can still be changed, in both ways that the API server asks.

use super::*;
use crate::registry::Registry;

fn deployment(pod: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n", "resourceVersion": "1"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}})
}

/// What updating one to the other is told.
fn update(old: &Value, new: &Value) -> Vec<String> {
    let resource = Registry::builtin().find("apps", "v1", "deployments").unwrap();
    let (mut old, mut new) = (old.clone(), new.clone());
    resource.strategy.default(&mut old);
    resource.strategy.default(&mut new);
    texts(&resource.strategy.validate_update(&new, &old))
}

#[test]
fn an_unchanged_template_is_not_held_against_an_update() {
    let old =
        deployment(container(json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": "/abs"}],
        "securityContext": {"runAsUser": -1}, "envFrom": [{}]})));
    let mut new = old.clone();
    new["spec"]["replicas"] = json!(5);
    assert_eq!(update(&old, &new), Vec::<String>::new());
    // What is new must be right, what was there stays tolerated.
    new["spec"]["template"]["spec"]["dnsPolicy"] = json!("Foo");
    let found = update(&old, &new);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("spec.template.spec.dnsPolicy: Unsupported value"), "{found:?}");
}

#[test]
fn what_upstream_tolerates_may_change() {
    let toleration = |operator: &str, value: &str| {
        deployment(spec(json!({"tolerations": [{"key": "a", "operator": operator, "value": value}]})))
    };
    assert_eq!(update(&toleration("Gt", "1"), &toleration("Lt", "2")), Vec::<String>::new());
    assert_eq!(update(&toleration("Equal", "1"), &toleration("Lt", "2")).len(), 1);
    assert_eq!(
        update(&toleration("Gt", "1"), &toleration("Lt", "02")),
        [
            r#"spec.template.spec.tolerations[0].value: Invalid value: "02": must be a valid decimal integer in canonical form"#
        ]
    );
    let selinux =
        |policy: Value| deployment(spec(json!({"securityContext": { "seLinuxChangePolicy": policy }})));
    assert_eq!(update(&selinux(json!("Recursive")), &selinux(json!("MountOption"))), Vec::<String>::new());
    assert_eq!(update(&selinux(Value::Null), &selinux(json!("MountOption"))).len(), 1);
    let pages = |amount: &str| {
        deployment(container(
            json!({"resources": {"limits": {"cpu": "1", "hugepages-2Mi": amount}, "requests": {"hugepages-2Mi": amount}}}),
        ))
    };
    assert_eq!(update(&pages("3Mi"), &pages("5Mi")), Vec::<String>::new());
    assert_eq!(update(&pages("2Mi"), &pages("5Mi")).len(), 2);
    let label = |value: &str| {
        deployment(spec(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": [value]}]}]}}}}),
        ))
    };
    assert_eq!(update(&label("-"), &label("--")), Vec::<String>::new());
    assert_eq!(update(&label("a"), &label("--")).len(), 1);
}

#[test]
fn pods_and_all_kinds_of_templates_are_checked() {
    let bad =
        || container(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}], "restartPolicy": null}));
    for (group, version, plural, path) in [
        ("", "v1", "pods", "spec"),
        ("", "v1", "podtemplates", "template.spec"),
        ("", "v1", "replicationcontrollers", "spec.template.spec"),
        ("apps", "v1", "deployments", "spec.template.spec"),
        ("apps", "v1", "replicasets", "spec.template.spec"),
        ("apps", "v1", "statefulsets", "spec.template.spec"),
        ("apps", "v1", "daemonsets", "spec.template.spec"),
        ("batch", "v1", "jobs", "spec.template.spec"),
        ("batch", "v1", "cronjobs", "spec.jobTemplate.spec.template.spec"),
    ] {
        let resource = Registry::builtin().find(group, version, plural).unwrap();
        let mut object = json!({"apiVersion": resource.api_version(), "kind": resource.kind.as_ref(),
            "metadata": {"name": "x", "namespace": "n", "uid": "u"}});
        crate::object::set(&mut object, &format!("/{}", path.replace('.', "/")), bad());
        resource.strategy.default(&mut object);
        let wanted = format!(r#"{path}.containers[0].volumeMounts[0].name: Not found: "v""#);
        let found = texts(&resource.strategy.validate(&object));
        assert_eq!(found.iter().filter(|error| **error == wanted).count(), 1, "{plural}: {found:?}");
        // The same object again is no error of this kind.
        let found = texts(&resource.strategy.validate_update(&object, &object));
        assert!(!found.contains(&wanted), "{plural}: {found:?}");
    }
}

#[test]
fn claims_of_stateful_sets_are_volumes() {
    let resource = Registry::builtin().find("apps", "v1", "statefulsets").unwrap();
    let mut set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s", "namespace": "n"},
        "spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
                "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]}}}});
    resource.strategy.default(&mut set);
    assert_eq!(texts(&resource.strategy.validate(&set)), Vec::<String>::new());
}
