//! Each rule with a pod that breaks it and upstream's words, and pods that look odd and are fine.

mod containers;
mod placement;
mod resources;
mod security;
mod updates;
mod volumes;

use serde_json::{Map, Value, json};

use super::*;
use crate::field::FieldError;

/// A valid specification with these fields in place of its own.
fn spec(fields: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "a", "image": "i"}], "serviceAccountName": "s",
        "terminationGracePeriodSeconds": 30, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst"});
    merge(&mut spec, fields);
    spec
}

/// The same for its container.
fn container(fields: Value) -> Value {
    let mut container = json!({"name": "a", "image": "i"});
    merge(&mut container, fields);
    spec(json!({ "containers": [container] }))
}

fn merge(to: &mut Value, from: Value) {
    let from: Map<String, Value> = from.as_object().cloned().unwrap_or_default();
    to.as_object_mut().unwrap().extend(from);
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn check(spec: &Value) -> Vec<String> {
    let mut c = Checks::default();
    validate_pod(&mut c, &json!({"metadata": {"name": "p"}, "spec": spec}));
    texts(&c.errors)
}

/// Every specification gives exactly its errors.
#[track_caller]
fn refuses<const N: usize>(cases: [(Value, &[&str]); N]) {
    for (spec, wanted) in cases {
        assert_eq!(check(&spec), wanted, "{spec}");
    }
}

#[track_caller]
fn accepts<const N: usize>(cases: [Value; N]) {
    for spec in cases {
        assert_eq!(check(&spec), Vec::<String>::new(), "{spec}");
    }
}

/// The same with the beginning of all paths told once.
#[track_caller]
fn refuses_under(at: &str, cases: Vec<(Value, Vec<&str>)>) {
    for (spec, wanted) in cases {
        let wanted: Vec<String> = wanted.iter().map(|rest| format!("{at}{rest}")).collect();
        assert_eq!(check(&spec), wanted, "{spec}");
    }
}

#[test]
fn a_template_has_its_own_paths_and_refuses_containers_for_debugging() {
    let template = json!({
        "metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "x"}},
        "spec": {"containers": [{"name": "a", "image": " "}], "hostNetwork": true, "dnsPolicy": "Foo",
            "ephemeralContainers": [{"name": "d", "image": "i"}]},
    });
    let mut c = Checks::default();
    validate_template(&mut c, &template, At::root("spec.template"));
    assert_eq!(
        texts(&c.errors),
        [
            r#"spec.template.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "x": must be a 32bit integer"#,
            r#"spec.template.spec.dnsPolicy: Unsupported value: "Foo": supported values: "ClusterFirstWithHostNet", "ClusterFirst", "Default", "None""#,
            "spec.template.spec.ephemeralContainers: Forbidden: ephemeral containers not allowed in pod template",
        ]
    );
}
