//! ValidatingAdmissionPolicy (KEP-3488): refuses, warns or notes.

use std::sync::Arc;

use kedge_api::cel::{Budget, Error, Program, Scope, Value as Cel, Variables, dynamic};
use kedge_api::status::Status;
use serde_json::{Value, json};

use super::{Binding, Bound, Definition, bound, list, params, program, seen, shown, text};
use crate::admission::Request;
use crate::state::State;

const NAMES: [&str; 2] = [
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
];

/// All policies that are bound.
pub(crate) struct Policies {
    bound: Vec<Bound<Policy>>,
}

struct Policy {
    definition: Definition,
    validations: Vec<Validation>,
}

struct Validation {
    source: String,
    program: Result<Program, Error>,
    message: String,
    message_program: Option<Program>,
    reason: String,
}

impl Policy {
    fn new(value: &Value) -> Self {
        let validation = |value: &Value| Validation {
            source: text(&value["expression"]),
            program: program(&value["expression"]),
            message: text(&value["message"]),
            message_program: value["messageExpression"].as_str().and_then(|text| Program::compile(text).ok()),
            reason: text(&value["reason"]),
        };
        Self {
            definition: Definition::new(value),
            validations: list(&value["spec"], "validations").iter().map(validation).collect(),
        }
    }
}

fn policies(state: &State) -> Arc<Policies> {
    let bound = || bound(state, NAMES, Policy::new, |policy| &policy.definition.name);
    state.policies.get(&state.cache, NAMES, || Policies { bound: bound() })
}

/// Asks all policies that mean the request.
pub(in crate::admission) async fn validate(
    request: &Request<'_>,
    value: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let all = policies(request.state);
    // Policies do not guard their own kinds, or nobody could mend them.
    if all.bound.is_empty() || &*request.resource.group == "admissionregistration.k8s.io" {
        return Ok(());
    }
    for Bound { policy, binding } in &all.bound {
        let Some(resource) = policy.definition.wants(binding, request, value) else { continue };
        for (message, reason) in failures(policy, binding, request, &resource, value).await? {
            act(&policy.definition, binding, request, &message, &reason, warnings)?;
        }
    }
    Ok(())
}

/// What the policy finds wrong: message and reason.
async fn failures(
    policy: &Policy,
    binding: &Binding,
    request: &Request<'_>,
    resource: &kedge_api::registry::Resource,
    value: &Value,
) -> Result<Vec<(String, String)>, Status> {
    let shown = shown(request, resource, value).await?;
    let base = seen(request, resource, &shown).await?;
    let params = match params(&policy.definition, binding, request) {
        Ok(params) => params,
        Err(_) if policy.definition.ignore_failure => return Ok(Vec::new()),
        Err(error) => return Ok(vec![(format!("failed to configure binding: {error}"), String::new())]),
    };
    let mut found = Vec::new();
    for param in params {
        let mut seen = base.clone();
        seen.push(("params", dynamic(&param)));
        match policy.definition.conditions.hold(&seen) {
            Ok(true) => found.extend(judged(policy, &seen)),
            Ok(false) => {}
            Err(_) if policy.definition.ignore_failure => {}
            Err(error) => found.push((error, String::new())),
        }
    }
    Ok(found)
}

/// All validations against one parameter share a budget; running out of it is one failure for all of them.
fn judged(policy: &Policy, seen: &[(&str, Cel)]) -> Vec<(String, String)> {
    let variables = Variables::new(&policy.definition.variables);
    let scope = Scope::with(seen, &variables);
    let ignore = policy.definition.ignore_failure;
    let (mut found, mut budget) = (Vec::new(), Budget::validation());
    for validation in &policy.validations {
        let truth = match &validation.program {
            Ok(program) => program.is_true(scope, &mut budget),
            Err(error) => Err(error.clone()),
        };
        match truth {
            Ok(true) => {}
            Ok(false) => match message(validation, scope, &mut budget) {
                Ok(message) => found.push((message, validation.reason.clone())),
                Err(_) if ignore => return Vec::new(),
                Err(error) => return vec![(error.to_string(), String::new())],
            },
            Err(Error::Budget) if ignore => return Vec::new(),
            Err(error @ Error::Budget) => return vec![(error.to_string(), String::new())],
            Err(_) if ignore => {}
            Err(error) => found.push((
                format!("expression '{}' resulted in error: {error}", validation.source),
                validation.reason.clone(),
            )),
        }
    }
    found
}

/// # Errors
/// [`Error::Budget`] only: a message that cannot be made is replaced by the one that is written down.
fn message(validation: &Validation, scope: Scope<'_>, budget: &mut Budget) -> Result<String, Error> {
    let own = match validation.message_program.as_ref().map(|program| program.evaluate(scope, budget)) {
        Some(Err(error @ Error::Budget)) => return Err(error),
        own => own.and_then(Result::ok),
    };
    Ok(match own {
        Some(Cel::String(text)) if !text.trim().is_empty() => text.trim().to_owned(),
        _ if !validation.message.is_empty() => validation.message.clone(),
        _ => format!("failed expression: {}", validation.source.trim()),
    })
}

fn act(
    policy: &Definition,
    binding: &Binding,
    request: &Request<'_>,
    message: &str,
    reason: &str,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let who = format!("ValidatingAdmissionPolicy '{}' with binding '{}'", policy.name, binding.name);
    let acts = |name: &str| binding.actions.iter().any(|action| action == name);
    if acts("Audit") {
        tracing::info!(
            policy = policy.name,
            binding = binding.name,
            object = json!([request.namespace, request.name]).to_string(),
            message,
            "validation failed"
        );
    }
    if acts("Warn") {
        warnings.push(format!("Validation failed for {who}: {message}"));
    }
    if !acts("Deny") {
        return Ok(());
    }
    let mut status = request.forbidden(&format!("{who} denied request: {message}"));
    (status.code, status.reason) = match reason {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    Err(status)
}
