//! ValidatingAdmissionPolicy, MutatingAdmissionPolicy and their bindings (upstream
//! `pkg/apis/admissionregistration/validation`).

use std::collections::HashSet;

use serde_json::Value;

use super::admission_rules::{FAILURE_POLICIES, REINVOCATION_POLICIES, match_resources};
use super::checks::Checks;
use super::expressions::{ANY, BOOL, OBJECT, PATCH, SEEN, STRING, conditions, expression, fits};
use super::selectors;
use super::util::{is_set, list, strings, text};
use crate::cel::{RESERVED, Type};
use crate::field::At;
use crate::names;
use crate::object;

const MISSING: &str = "expression is not specified";
const MOST_ANNOTATIONS: usize = 20;
const LONGEST_ANNOTATION: usize = 5 * 1024;
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const PATCH_TYPES: [&str; 2] = ["ApplyConfiguration", "JSONPatch"];
/// What is deleted cannot be changed any more.
const MUTATING_OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
/// ValidatingAdmissionPolicy.
pub(super) fn validating(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    definition(c, spec);
    let (validations, annotations) = (list(spec, "validations"), list(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for field in ["validations", "auditAnnotations"] {
            let why = "validations or auditAnnotations must contain at least one item";
            c.required(At::SPEC.child(field), why);
        }
    }
    for (index, one) in validations.iter().enumerate() {
        validation(c, one, At::SPEC.item("validations", index));
    }
    audit_annotations(c, object::name(obj), spec);
    types(c, spec);
}

fn validation(c: &mut Checks, one: &Value, at: At<'_>) {
    expression(c, one, "expression", at, MISSING);
    let of_message = text(one, "messageExpression");
    if of_message.trim().is_empty() {
        if !of_message.is_empty() {
            c.invalid(at.child("messageExpression"), of_message, "must be non-empty if specified");
        }
    } else {
        expression(c, one, "messageExpression", at, "");
    }
    let message = text(one, "message");
    if !message.is_empty() && message.trim().is_empty() {
        c.invalid(at.child("message"), message, "must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        c.invalid(at.child("message"), message, "must not contain line breaks");
    }
    c.one_of(one, "reason", at, &REASONS);
}

fn audit_annotations(c: &mut Checks, policy: &str, spec: &Value) {
    let all = list(spec, "auditAnnotations");
    if all.len() > MOST_ANNOTATIONS {
        let why = format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations");
        c.invalid("spec.auditAnnotations", spec["auditAnnotations"].clone(), why);
    }
    let mut seen = HashSet::new();
    for (index, one) in all.iter().enumerate() {
        let at = At::SPEC.item("auditAnnotations", index);
        let key = text(one, "key");
        if policy.is_empty() {
            c.invalid(at.child("key"), key, "requires metadata.name be non-empty");
        } else {
            c.syntax(at.child("key"), &format!("{policy}/{key}"), names::qualified_name);
        }
        if text(one, "valueExpression").trim().len() > LONGEST_ANNOTATION {
            let why = format!("must not exceed {LONGEST_ANNOTATION} bytes in length");
            c.required(at.child("valueExpression"), why);
        } else {
            expression(c, one, "valueExpression", at, "valueExpression is not specified");
        }
        if !seen.insert(key) {
            c.duplicate(at.child("key"), key);
        }
    }
}

/// What both kinds of policies have.
fn definition(c: &mut Checks, spec: &Value) {
    c.one_of(spec, "failurePolicy", At::SPEC, &FAILURE_POLICIES);
    if spec["paramKind"].is_object() {
        param_kind(c, &spec["paramKind"], At::SPEC.child("paramKind"));
    }
    let constraints = &spec["matchConstraints"];
    if constraints.is_object() {
        match_resources(c, constraints, At::SPEC.child("matchConstraints"));
        if list(constraints, "resourceRules").is_empty() {
            c.required("spec.matchConstraints.resourceRules", "");
        }
    } else {
        c.required("spec.matchConstraints", "");
    }
    conditions(c, spec, At::SPEC);
    for (index, variable) in list(spec, "variables").iter().enumerate() {
        let at = At::SPEC.item("variables", index);
        let name = text(variable, "name");
        if name.trim().is_empty() {
            c.required(at.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            c.invalid(at.child("name"), name, "must be a valid CEL identifier");
        }
        expression(c, variable, "expression", at, MISSING);
    }
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
        && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
        && !RESERVED.contains(&name)
}

/// `validateParamKind`
fn param_kind(c: &mut Checks, kind: &Value, at: At<'_>) {
    let version_at = at.child("apiVersion");
    let given = text(kind, "apiVersion");
    let parsed = match given.split_once('/') {
        _ if given.is_empty() || given == "/" => Some(("", "")),
        None => Some(("", given)),
        Some((_, rest)) if rest.contains('/') => None,
        Some(parsed) => Some(parsed),
    };
    match parsed {
        _ if given.is_empty() => c.required(version_at, ""),
        None => c.invalid(version_at, given, format!("unexpected GroupVersion string: {given}")),
        Some((group, version)) => {
            let wrong = names::dns1123_subdomain(group);
            if !group.is_empty() && !wrong.is_empty() {
                c.invalid(version_at, group, wrong.join(","));
            }
            let wrong = names::dns1035_label(version);
            if version.is_empty() {
                c.invalid(version_at, given, "version must be specified");
            } else if !wrong.is_empty() {
                c.invalid(version_at, version, wrong.join(","));
            }
        }
    }
    let name = text(kind, "kind");
    let wrong = names::dns1035_label(&name.to_lowercase());
    if name.is_empty() {
        c.required(at.child("kind"), "");
    } else if !wrong.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        c.invalid(at.child("kind"), name, why);
    }
}

/// MutatingAdmissionPolicy.
pub(super) fn mutating(c: &mut Checks, obj: &Value) {
    let spec = &obj["spec"];
    definition(c, spec);
    mutating_operations(c, spec, "matchConstraints");
    let mutations = list(spec, "mutations");
    if mutations.is_empty() {
        c.required("spec.mutations", "mutations must contain at least one item");
    }
    for (index, one) in mutations.iter().enumerate() {
        mutation(c, one, At::SPEC.item("mutations", index));
    }
    c.required_one_of(spec, "reinvocationPolicy", At::SPEC, &REINVOCATION_POLICIES);
    types(c, spec);
}

fn mutating_operations(c: &mut Checks, spec: &Value, field: &str) {
    for operation in list(&spec[field], "resourceRules").iter().flat_map(|rule| strings(rule, "operations")) {
        if !MUTATING_OPERATIONS.contains(&operation) {
            let path = format!("spec.{field}.resourceRules.operations");
            c.unsupported(path, operation, &MUTATING_OPERATIONS);
        }
    }
}

fn mutation(c: &mut Checks, one: &Value, at: At<'_>) {
    if !c.needs(one, "patchType", at) {
        return;
    }
    let kind = text(one, "patchType");
    let (own, other) = match kind {
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
        "JSONPatch" => ("jsonPatch", "applyConfiguration"),
        unknown => return c.unsupported(at.child("patchType"), unknown, &PATCH_TYPES),
    };
    if one[own].is_object() {
        expression(c, &one[own], "expression", at.child(own), "");
    } else {
        c.required(at.child(own), format!("must be specified when patchType is {kind}"));
    }
    if is_set(one, other) {
        let why = format!("must not be specified when patchType is {kind}");
        c.invalid(at.child(other), format!("{{{other}}}"), why);
    }
}

/// ValidatingAdmissionPolicyBinding.
pub(super) fn validating_binding(c: &mut Checks, obj: &Value) {
    const AT: At<'_> = At::root("spec.validationActions");
    let spec = &obj["spec"];
    binding(c, spec);
    let mut seen = HashSet::new();
    for (index, action) in strings(spec, "validationActions").enumerate() {
        if !ACTIONS.contains(&action) {
            c.unsupported(AT.index(index), action, &ACTIONS);
        }
        if !seen.insert(action) {
            c.duplicate(AT.index(index), action);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        c.invalid(AT, spec["validationActions"].clone(), why);
    }
    if seen.is_empty() {
        c.required(AT, "at least one validation action is required");
    }
}

/// MutatingAdmissionPolicyBinding.
pub(super) fn mutating_binding(c: &mut Checks, obj: &Value) {
    binding(c, &obj["spec"]);
    mutating_operations(c, &obj["spec"], "matchResources");
}

fn binding(c: &mut Checks, spec: &Value) {
    c.required_name(spec, "policyName", At::SPEC, names::dns1123_subdomain);
    if spec["paramRef"].is_object() {
        param_ref(c, &spec["paramRef"], At::SPEC.child("paramRef"));
    }
    match_resources(c, &spec["matchResources"], At::SPEC.child("matchResources"));
}

/// `validateParamRef`
fn param_ref(c: &mut Checks, reference: &Value, at: At<'_>) {
    const BOTH: &str = "name and selector are mutually exclusive";
    let (has_name, has_selector) = (!text(reference, "name").is_empty(), reference["selector"].is_object());
    c.optional_name(reference, "name", at, names::path_segment);
    if has_name && has_selector {
        c.forbidden(at.child("name"), BOTH);
    }
    selectors::label_selector(c, &reference["selector"], at.child("selector"));
    if has_name && has_selector {
        c.forbidden(at.child("selector"), BOTH);
    }
    if !has_name && !has_selector {
        c.required(at, "one of name or selector must be specified");
    }
    c.required_one_of(reference, "parameterNotFoundAction", at, &["Deny", "Allow"]);
}

/// What the expressions of a policy name is there, and has the right type.
fn types(c: &mut Checks, spec: &Value) {
    let mut seen = SEEN.to_vec();
    seen.push(("namespaceObject", Type::Dyn));
    if spec["paramKind"].is_object() {
        seen.push(("params", Type::Dyn));
    }
    for (index, condition) in list(spec, "matchConditions").iter().enumerate() {
        fits(c, condition, "expression", At::SPEC.item("matchConditions", index), &seen, BOOL);
    }
    // Each variable sees those before it.
    let mut variables = Vec::new();
    for (index, variable) in list(spec, "variables").iter().enumerate() {
        let mut now = seen.clone();
        now.push(("variables", Type::Variables(variables.clone())));
        let found = fits(c, variable, "expression", At::SPEC.item("variables", index), &now, ANY);
        variables.push((variable["name"].as_str().unwrap_or_default(), found));
    }
    seen.push(("variables", Type::Variables(variables)));
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        let path = At::SPEC.item("validations", index);
        fits(c, validation, "expression", path, &seen, BOOL);
        fits(c, validation, "messageExpression", path, &seen, STRING);
    }
    for (index, mutation) in list(spec, "mutations").iter().enumerate() {
        let path = At::SPEC.item("mutations", index);
        for (field, wanted) in [("applyConfiguration", OBJECT), ("jsonPatch", PATCH)] {
            fits(c, &mutation[field], "expression", path.child(field), &seen, wanted);
        }
    }
}

#[cfg(test)]
mod tests;
