//! MutatingAdmissionPolicy (KEP-3962): changes objects before mutating webhooks see them, and once more when
//! somebody changed them after (`apiserver/pkg/admission/plugin/policy/mutating`).

use std::sync::Arc;

use kedge_api::cel::{Budget, Error, Program, Scope, Value as Cel, Variables, dynamic};
use kedge_api::decode::{self, FieldValidation};
use kedge_api::managed;
use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::schema::{Cursor, ListType, Shape};
use kedge_api::status::{Cause, Status};
use serde_json::{Value, json};

use super::{Bound, Definition, bound, list, params, program, seen, shown, text};
use crate::admission::webhook::rules::converted;
use crate::admission::{Operation, Request};
use crate::state::State;

const NAMES: [&str; 2] = [
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
];

/// All policies that are bound.
#[derive(Default)]
pub(crate) struct Policies {
    bound: Vec<Bound<Policy>>,
}

struct Policy {
    definition: Definition,
    mutations: Vec<Mutation>,
    reinvoke: bool,
}

struct Mutation {
    source: String,
    program: Result<Program, Error>,
    /// Merged as an applied configuration; else it is a JSON patch.
    apply: bool,
}

impl Policy {
    fn new(value: &Value) -> Self {
        let mutation = |value: &Value| {
            let apply = value["patchType"] != "JSONPatch";
            let holder = &value[if apply { "applyConfiguration" } else { "jsonPatch" }];
            Mutation { source: text(&holder["expression"]), program: program(&holder["expression"]), apply }
        };
        Self {
            definition: Definition::new(value),
            mutations: list(&value["spec"], "mutations").iter().map(mutation).collect(),
            reinvoke: value["spec"]["reinvocationPolicy"] == "IfNeeded",
        }
    }
}

fn policies(state: &State) -> Arc<Policies> {
    let bound = || bound(state, NAMES, Policy::new, |policy| &policy.definition.name);
    state.mutating_policies.get(&state.cache, NAMES, || Policies { bound: bound() })
}

/// The policies that were asked, and what each left behind: it is asked again if somebody changed that after.
#[derive(Default)]
pub(in crate::admission) struct Seen {
    all: Arc<Policies>,
    /// The binding's place and the parameter's key.
    left: Vec<(usize, String, Value)>,
    pub(in crate::admission) changed: bool,
}

/// Lets all policies that mean the request change its object, one after the other.
pub(in crate::admission) async fn mutate(request: &Request<'_>, value: &mut Value) -> Result<Seen, Status> {
    let all = policies(request.state);
    // Policies do not guard their own kinds, or nobody could mend them; what is deleted is not changed, nor
    // are the options of a stream.
    if all.bound.is_empty()
        || &*request.resource.group == "admissionregistration.k8s.io"
        || matches!(request.operation, Operation::Delete | Operation::Connect)
    {
        return Ok(Seen::default());
    }
    let before = value.clone();
    let (mut left, mut failed) = (Vec::new(), Vec::new());
    for (place, own) in all.bound.iter().enumerate() {
        let done = one(request, own, value, &mut failed, None).await?;
        if own.policy.reinvoke {
            left.extend(done.into_iter().map(|(key, left)| (place, key, left)));
        }
    }
    refuse(request, failed)?;
    Ok(Seen { all, left, changed: *value != before })
}

/// Asks those again that want it and whose object is not what they left.
pub(in crate::admission) async fn again(
    request: &Request<'_>,
    value: &mut Value,
    seen: Seen,
) -> Result<(), Status> {
    let mut failed = Vec::new();
    for (place, key, left) in &seen.left {
        if let Some(own) = seen.all.bound.get(*place).filter(|_| left != value) {
            one(request, own, value, &mut failed, Some(key)).await?;
        }
    }
    refuse(request, failed)
}

/// One binding with each of its parameters, or with one of them: what each left behind.
async fn one(
    request: &Request<'_>,
    own: &Bound<Policy>,
    value: &mut Value,
    failed: &mut Vec<String>,
    only: Option<&str>,
) -> Result<Vec<(String, Value)>, Status> {
    let Bound { policy, binding } = own;
    let definition = &policy.definition;
    let Some(resource) = definition.wants(binding, request, value) else { return Ok(Vec::new()) };
    let mut fail = |message: String| {
        if definition.ignore_failure {
            tracing::debug!(policy = definition.name, binding = binding.name, message, "failure ignored");
        } else {
            let (policy, binding) = (&definition.name, &binding.name);
            failed.push(format!("policy '{policy}' with binding '{binding}' denied request: {message}"));
        }
    };
    let params = match params(definition, binding, request) {
        Ok(params) => params,
        Err(error) => {
            fail(format!("failed to configure binding: {error}"));
            return Ok(Vec::new());
        }
    };
    let mut done = Vec::new();
    for param in params {
        let key = format!("{}/{}", object::namespace(&param), object::name(&param));
        if only.is_some_and(|only| only != key) {
            continue;
        }
        let mut current = shown(request, &resource, value).await?;
        let base = seen(request, &resource, &current).await?;
        match definition.conditions.hold(&with_param(base, &param)) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                fail(error);
                continue;
            }
        }
        for mutation in &policy.mutations {
            let now = with_param(seen(request, &resource, &current).await?, &param);
            match changed(definition, mutation, &resource, &current, &now) {
                Ok(changed) => current = changed,
                Err(error) => fail(error),
            }
        }
        let mut changed = converted(request.state, &resource, request.resource, &current).await?;
        if changed != *value {
            request.resource.strategy.default(&mut changed);
            *value = changed;
        }
        done.push((key, value.clone()));
    }
    Ok(done)
}

fn with_param(mut seen: Vec<(&'static str, Cel)>, param: &Value) -> Vec<(&'static str, Cel)> {
    seen.push(("params", dynamic(param)));
    seen
}

/// The object after one mutation.
fn changed(
    definition: &Definition,
    mutation: &Mutation,
    resource: &Resource,
    current: &Value,
    seen: &[(&str, Cel)],
) -> Result<Value, String> {
    let variables = Variables::new(&definition.variables);
    let scope = Scope::with(seen, &variables);
    let made = match &mutation.program {
        Ok(program) => program.evaluate(scope, &mut Budget::validation()),
        Err(error) => Err(error.clone()),
    };
    let made = made.map_err(|error| match error {
        Error::Budget => error.to_string(),
        error => format!("expression '{}' resulted in error: {error}", mutation.source),
    })?;
    let mut changed =
        if mutation.apply { applied(&made, resource, current)? } else { patched(&made, current)? };
    // What is not in the schema is refused, as if a client had sent it.
    decode::check_schema(&mut changed, resource, FieldValidation::Strict).map_err(|status| status.message)?;
    Ok(changed)
}

/// `Object{...}` merged into the object as server-side apply merges, but nobody comes to own anything.
fn applied(made: &Cel, resource: &Resource, current: &Value) -> Result<Value, String> {
    let patch = match made {
        Cel::Message(message) if *message.name == *"Object" => made.to_json(),
        other => {
            let kind = other.type_name();
            return Err(format!("unsupported return type from ApplyConfiguration expression: {kind}"));
        }
    };
    let patch = patch.ok_or("invalid return type: it has no form in JSON")?;
    for field in ["apiVersion", "kind"] {
        if !patch[field].is_null() && patch[field] != current[field] {
            return Err(format!(
                "error applying patch: patch ({}) and original object ({}) are not of the same gvk",
                patch[field], current[field]
            ));
        }
    }
    let mut atomics = Vec::new();
    find_atomics(resource.schema.cursor(), &patch, "", &mut atomics);
    if !atomics.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    Ok(managed::merge(&resource.schema, current, &patch))
}

/// Whoever writes a part of something atomic would lose the rest of it without knowing.
fn find_atomics(at: Cursor<'_>, value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) if matches!(at.node.shape, Shape::Object | Shape::Map) => {
            if at.is_atomic() {
                found.push(path.to_owned());
            }
            for (name, value) in fields {
                if let Some(child) = at.child(name) {
                    find_atomics(child, value, &format!("{path}.{name}"), found);
                }
            }
        }
        Value::Array(items) if at.node.shape == Shape::Array => {
            if at.is_atomic() || at.node.list == ListType::Atomic {
                found.push(path.to_owned());
            }
            let Some(item) = at.item() else { return };
            for (index, value) in items.iter().enumerate() {
                find_atomics(item, value, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// A list of `JSONPatch{...}` applied; one whose test fails changes nothing.
fn patched(made: &Cel, current: &Value) -> Result<Value, String> {
    let Cel::List(items) = made else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    let mut operations = Vec::with_capacity(items.len());
    for item in items.iter() {
        let Cel::Message(message) = item else {
            return Err(format!(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of {}",
                item.type_name()
            ));
        };
        let mut operation = json!({});
        for (name, value) in &message.fields {
            let value = value.to_json().ok_or_else(|| {
                format!(
                    "JSONPath valueExpression evaluated to a type that could not marshal to JSON: {}",
                    value.type_name()
                )
            })?;
            operation[&**name] = value;
        }
        operations.push(operation);
    }
    let patch = Value::Array(operations).to_string();
    let patched = kedge_api::patch::json_patch_if(current, patch.as_bytes());
    let patched = patched.map_err(|status| format!("JSONPath: {}", status.message))?;
    Ok(patched.unwrap_or_else(|| current.clone()))
}

fn refuse(request: &Request<'_>, failed: Vec<String>) -> Result<(), Status> {
    let Some(first) = failed.first() else { return Ok(()) };
    let mut status = request.forbidden("");
    status.reason = "Invalid";
    status.message = first.clone();
    let causes = failed.into_iter().map(|message| Cause { message, ..Cause::default() });
    status.details.get_or_insert_default().causes.extend(causes);
    Err(status)
}

#[cfg(test)]
mod tests {
    use kedge_api::registry::Registry;

    use super::*;

    fn run(source: &str, apply: bool, current: &Value) -> Result<Value, String> {
        let resource = Registry::builtin().find("apps", "v1", "deployments").expect("built in");
        let policy = Policy::new(&json!({
            "metadata": { "name": "p" },
            "spec": {
                "variables": [{ "name": "n", "expression": "object.spec.replicas + 1" }],
                "mutations": [{
                    "patchType": if apply { "ApplyConfiguration" } else { "JSONPatch" },
                    "applyConfiguration": { "expression": source },
                    "jsonPatch": { "expression": source },
                }],
            },
        }));
        let seen = [("object", dynamic(current))];
        changed(&policy.definition, &policy.mutations[0], &resource, current, &seen)
    }

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d", "labels": { "a": "b" } },
            "spec": { "replicas": 1, "selector": { "matchLabels": { "a": "b" } }, "template": {
                "metadata": { "labels": { "a": "b" } },
                "spec": { "containers": [{ "name": "c", "image": "i", "args": ["x"] }] } } },
        })
    }

    #[test]
    fn configurations_are_merged() {
        let current = deployment();
        for (source, pointer, expected) in [
            ("Object{spec: Object.spec{replicas: variables.n}}", "/spec/replicas", json!(2)),
            (
                "Object{metadata: Object.metadata{labels: {'new': 'x'}}}",
                "/metadata/labels",
                json!({ "a": "b", "new": "x" }),
            ),
            (
                "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{\
                 containers: [Object.spec.template.spec.containers{name: 'sidecar', image: 's'}]}}}}",
                "/spec/template/spec/containers/1/name",
                json!("sidecar"),
            ),
            ("Object{?spec: optional.none()}", "/spec/replicas", json!(1)),
        ] {
            let changed = run(source, true, &current).expect(source);
            assert_eq!(changed.pointer(pointer), Some(&expected), "{source}: {changed}");
        }
        for (source, why) in [
            ("{'spec': {'replicas': 2}}", "unsupported return type from ApplyConfiguration expression: map"),
            ("Object{spec: Object.status{}}", "unexpected type name"),
            ("Object{spec: Object.spec{unknown: 1}}", "unknown field \"spec.unknown\""),
            (
                "Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'x': 'y'}}}}",
                "may not mutate atomic arrays, maps or structs: .spec.selector",
            ),
            (
                "Object{spec: Object.spec{replicas: object.missing}}",
                "resulted in error: no such key: missing",
            ),
            ("Object{kind: 'Pod'}", "are not of the same gvk"),
        ] {
            let error = run(source, true, &current).expect_err(source);
            assert!(error.contains(why), "{source}: {error}");
        }
    }

    #[test]
    fn json_patches_are_applied() {
        let current = deployment();
        for (source, pointer, expected) in [
            (
                "[JSONPatch{op: 'replace', path: '/spec/replicas', value: variables.n}]",
                "/spec/replicas",
                json!(2),
            ),
            (
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('x/y'), value: 'z'}]",
                "/metadata/labels",
                json!({ "a": "b", "x/y": "z" }),
            ),
            (
                "[JSONPatch{op: 'test', path: '/spec/replicas', value: 5}, JSONPatch{op: 'remove', path: '/metadata/labels'}]",
                "/metadata/labels/a",
                json!("b"),
            ),
            (
                "[JSONPatch{op: 'add', path: '/spec/template/spec/containers/-', value: Object.spec.template.spec.containers{name: 'd', image: 'j'}}]",
                "/spec/template/spec/containers/1/image",
                json!("j"),
            ),
            (
                "object.spec.replicas > 5 ? [JSONPatch{op: 'remove', path: '/spec'}] : []",
                "/spec/replicas",
                json!(1),
            ),
        ] {
            let changed = run(source, false, &current).expect(source);
            assert_eq!(changed.pointer(pointer), Some(&expected), "{source}: {changed}");
        }
        for (source, why) in [
            ("1", "should evaluate to array"),
            ("[1]", "should evaluate to array of JSONPatch"),
            ("[JSONPatch{op: 'remove', path: '/spec/nothing'}]", "JSONPath: "),
            ("[JSONPatch{op: 'add', path: '/spec/unknown', value: 1}]", "unknown field"),
        ] {
            let error = run(source, false, &current).expect_err(source);
            assert!(error.contains(why), "{source}: {error}");
        }
    }
}
