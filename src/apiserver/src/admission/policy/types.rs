//! `status.typeChecking` of a ValidatingAdmissionPolicy: what is certainly wrong with its expressions for the
//! kinds it names (`apiserver/pkg/admission/plugin/policy/validating/typechecking.go`). Upstream's controller
//! writes it a moment after the policy; here it is there with the policy.

use std::sync::Arc;

use kedge_api::cel::{Program, Type};
use kedge_api::object;
use kedge_api::registry::Resource;
use serde_json::{Value, json};

use super::{list, text};
use crate::state::State;

/// More kinds than this are not looked at.
const MOST_KINDS: usize = 10;

/// Sets the status of a policy that is written; other objects stay as they are.
pub(crate) fn note(state: &State, resource: &Resource, value: &mut Value) {
    if &*resource.group != "admissionregistration.k8s.io"
        || &*resource.plural != "validatingadmissionpolicies"
        || !object::get(value, "/metadata/deletionTimestamp").is_null()
    {
        return;
    }
    let warnings = warnings(state, value);
    let checked = if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
    value["status"]["observedGeneration"] = value["metadata"]["generation"].clone();
    value["status"]["typeChecking"] = checked;
}

fn warnings(state: &State, policy: &Value) -> Vec<Value> {
    let spec = &policy["spec"];
    let kinds = kinds(state, spec);
    let mut warnings = Vec::new();
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let Some(Ok(program)) = validation[field].as_str().map(Program::compile) else { continue };
            let source = text(&validation[field]);
            let found: Vec<String> =
                kinds.iter().filter_map(|kind| of_kind(state, spec, kind, &program, &source)).collect();
            if !found.is_empty() {
                warnings.push(json!({
                    "fieldRef": format!("spec.validations[{index}].{field}"),
                    "warning": found.join("\n"),
                }));
            }
        }
    }
    warnings
}

/// The kinds that the policy names one by one.
fn kinds(state: &State, spec: &Value) -> Vec<Arc<Resource>> {
    let registry = state.registry.read();
    let mut kinds: Vec<Arc<Resource>> = Vec::new();
    for rule in list(&spec["matchConstraints"], "resourceRules") {
        let words = |field: &str| list(rule, field).iter().map(text).collect::<Vec<String>>();
        for group in words("apiGroups") {
            for version in words("apiVersions") {
                // A star and what lies in an object name no kind.
                for resource in words("resources") {
                    let Some(found) = registry.find(&group, &version, &resource) else { continue };
                    if kinds.len() < MOST_KINDS && !kinds.iter().any(|known| Arc::ptr_eq(known, &found)) {
                        kinds.push(found);
                    }
                }
            }
        }
    }
    kinds
}

/// What is wrong with an expression for objects of this kind.
fn of_kind(state: &State, spec: &Value, kind: &Resource, program: &Program, source: &str) -> Option<String> {
    let registry = state.registry.read();
    let param = &spec["paramKind"];
    let (group, version) = object::split_api_version(param["apiVersion"].as_str().unwrap_or_default());
    let param = registry.by_kind(group, version, param["kind"].as_str().unwrap_or_default());
    let namespace = registry.find("", "v1", "namespaces");
    let own = Type::of(kind.schema.cursor(), false);
    let mut declared = vec![
        ("object", own.clone()),
        ("oldObject", own),
        ("request", Type::Dyn),
        ("authorizer", Type::Dyn),
        ("params", param.as_ref().map_or(Type::Dyn, |kind| Type::of(kind.schema.cursor(), false))),
        (
            "namespaceObject",
            namespace.as_ref().map_or(Type::Dyn, |kind| Type::of(kind.schema.cursor(), false)),
        ),
    ];
    // Each variable sees those before it.
    let mut variables: Vec<(&str, Type<'_>)> = Vec::new();
    for variable in list(spec, "variables") {
        let program = Program::compile(variable["expression"].as_str().unwrap_or_default());
        let mut seen = declared.clone();
        seen.push(("variables", Type::Variables(variables.clone())));
        let found = program.map_or(Type::Dyn, |program| program.check(&seen).0);
        variables.push((variable["name"].as_str().unwrap_or_default(), found));
    }
    declared.push(("variables", Type::Variables(variables)));
    let (_, wrong) = program.check(&declared);
    let place = if kind.group.is_empty() {
        kind.version.to_string()
    } else {
        format!("{}/{}", kind.group, kind.version)
    };
    (!wrong.is_empty()).then(|| format!("{place}, Kind={}: {}\n | {source}", kind.kind, wrong.join("\n")))
}
