//! ValidatingAdmissionPolicy (KEP-3488): the cluster's own rules in CEL, no webhook needed. Policies
//! and bindings are compiled once per change.

use std::sync::Arc;

use kedge_api::cel::{Error, Program, Value as Cel, dynamic};
use kedge_api::object;
use kedge_api::selector::LabelSelector;
use kedge_api::status::Status;
use serde_json::{Map, Value, json};

use super::webhook::rules::{Rule, Selectors, configurations, converted, version_for};
use super::{Operation, Request, objects_in};
use crate::state::State;
use crate::verbs::read;

const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";
const BINDINGS: &str = "validatingadmissionpolicybindings.admissionregistration.k8s.io";

/// All policies that are bound, and the revisions they were read at.
#[derive(Default)]
pub(crate) struct Policies {
    version: [u64; 2],
    bound: Vec<(Arc<Policy>, Binding)>,
}

struct Policy {
    name: String,
    constraints: Constraints,
    conditions: Conditions,
    ignore_failure: bool,
    param_kind: Option<(String, String)>,
    variables: Vec<(String, Result<Program, Error>)>,
    validations: Vec<Validation>,
}

struct Validation {
    source: String,
    program: Result<Program, Error>,
    message: String,
    message_program: Option<Program>,
    reason: String,
}

struct Binding {
    name: String,
    constraints: Option<Constraints>,
    param: Value,
    deny: bool,
    warn: bool,
    audit: bool,
}

/// Which requests are meant: `matchConstraints` and `matchResources`.
struct Constraints {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    selectors: Selectors,
    equivalent: bool,
}

impl Constraints {
    fn new(value: &Value) -> Self {
        let list = |field: &str| value[field].as_array().into_iter().flatten().map(Rule::new).collect();
        Self {
            rules: list("resourceRules"),
            excluded: list("excludeResourceRules"),
            selectors: Selectors::new(value),
            equivalent: value["matchPolicy"] != "Exact",
        }
    }

    fn matches(
        &self,
        request: &Request<'_>,
        value: &Value,
        optional: bool,
    ) -> Option<Arc<kedge_api::registry::Resource>> {
        if version_for(&self.excluded, self.equivalent, request).is_some() {
            return None;
        }
        let resource = if self.rules.is_empty() && optional {
            request.resource.clone()
        } else {
            version_for(&self.rules, self.equivalent, request)?
        };
        self.selectors.matches(request, value).then_some(resource)
    }
}

/// `matchConditions`: all must be true.
pub(super) struct Conditions(Vec<(String, Result<Program, Error>)>);

impl Conditions {
    pub(super) fn new(value: &Value) -> Self {
        let list = value["matchConditions"].as_array().into_iter().flatten();
        let compile = |condition: &Value| {
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            (text("name"), Program::compile(&text("expression")))
        };
        Self(list.map(compile).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the request is meant. One that is false decides, even when another cannot be evaluated.
    pub(super) fn hold(&self, variables: &[(&str, Cel)]) -> Result<bool, String> {
        let mut failed = None;
        for (name, program) in &self.0 {
            let truth = match program {
                Ok(program) => program.is_true(variables),
                Err(error) => Err(error.clone()),
            };
            match truth {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => {
                    failed.get_or_insert(format!("match condition {name:?}: {error}"));
                }
            }
        }
        failed.map_or(Ok(true), Err)
    }
}

/// What expressions can see: `object`, `oldObject`, `request`, `namespaceObject`.
pub(super) fn variables(request: &Request<'_>, review: &Value, namespace: bool) -> Vec<(&'static str, Cel)> {
    let asked = &review["request"];
    let mut about = Map::new();
    for (key, value) in asked.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "object" | "oldObject" | "uid") {
            about.insert(key.clone(), value.clone());
        }
    }
    let mut all = vec![
        ("object", dynamic(&asked["object"])),
        ("oldObject", dynamic(&asked["oldObject"])),
        ("request", dynamic(&Value::Object(about))),
    ];
    if namespace {
        let stored = request.state.cache.bucket("namespaces").get(&format!("/{}", request.namespace));
        let found = stored.and_then(|stored| read::parse(&stored.bytes).ok()).unwrap_or_default();
        all.push(("namespaceObject", dynamic(&found)));
    }
    all
}

impl Policy {
    fn new(value: &Value) -> Self {
        let spec = &value["spec"];
        let list = |field: &str| spec[field].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let validation = |value: &Value| Validation {
            source: text(&value["expression"]),
            program: Program::compile(value["expression"].as_str().unwrap_or_default()),
            message: text(&value["message"]),
            message_program: value["messageExpression"].as_str().and_then(|text| Program::compile(text).ok()),
            reason: text(&value["reason"]),
        };
        let variable = |value: &Value| {
            (text(&value["name"]), Program::compile(value["expression"].as_str().unwrap_or_default()))
        };
        let kind = &spec["paramKind"];
        Self {
            name: object::name(value).to_owned(),
            constraints: Constraints::new(&spec["matchConstraints"]),
            conditions: Conditions::new(spec),
            ignore_failure: spec["failurePolicy"] == "Ignore",
            param_kind: kind.is_object().then(|| (text(&kind["apiVersion"]), text(&kind["kind"]))),
            variables: list("variables").iter().map(variable).collect(),
            validations: list("validations").iter().map(validation).collect(),
        }
    }
}

fn policies(state: &State) -> Arc<Policies> {
    let version = [POLICIES, BINDINGS].map(|name| *state.cache.bucket(name).subscribe().borrow());
    let current = state.policies.load_full();
    if current.version == version {
        return current;
    }
    let all: Vec<Arc<Policy>> =
        configurations(state, POLICIES).iter().map(|value| Arc::new(Policy::new(value))).collect();
    let bindings = configurations(state, BINDINGS);
    let bound = bindings.iter().filter_map(|value| {
        let spec = &value["spec"];
        let policy = all.iter().find(|policy| spec["policyName"] == policy.name.as_str())?;
        let actions = spec["validationActions"].as_array();
        let acts = |name: &str| actions.is_some_and(|list| list.iter().any(|action| action == name));
        let binding = Binding {
            name: object::name(value).to_owned(),
            constraints: spec["matchResources"]
                .is_object()
                .then(|| Constraints::new(&spec["matchResources"])),
            param: spec["paramRef"].clone(),
            deny: acts("Deny"),
            warn: acts("Warn"),
            audit: acts("Audit"),
        };
        Some((policy.clone(), binding))
    });
    let fresh = Arc::new(Policies { version, bound: bound.collect() });
    state.policies.store(fresh.clone());
    fresh
}

pub(super) async fn validate(
    request: &Request<'_>,
    value: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let all = policies(request.state);
    // Policies do not guard their own kinds, or nobody could mend them.
    if all.bound.is_empty() || &*request.resource.group == "admissionregistration.k8s.io" {
        return Ok(());
    }
    for (policy, binding) in &all.bound {
        let Some(resource) = policy.constraints.matches(request, value, false) else { continue };
        let bound = binding.constraints.as_ref();
        if bound.is_some_and(|own| own.matches(request, value, true).is_none()) {
            continue;
        }
        for (message, reason) in failures(policy, binding, request, &resource, value).await? {
            act(policy, binding, request, &message, &reason, warnings)?;
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
    let shown = if request.operation == Operation::Connect {
        value.clone()
    } else {
        converted(request.state, request.resource, resource, value).await?
    };
    let review = super::webhook::review(request, resource, &shown, true).await?;
    let base = variables(request, &review, true);
    let params = match params(policy, binding, request) {
        Ok(params) => params,
        Err(_) if policy.ignore_failure => return Ok(Vec::new()),
        Err(error) => return Ok(vec![(format!("failed to configure binding: {error}"), String::new())]),
    };
    let mut found = Vec::new();
    for param in params {
        let mut seen = base.clone();
        seen.push(("params", dynamic(&param)));
        match policy.conditions.hold(&seen) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) if policy.ignore_failure => continue,
            Err(error) => {
                found.push((error, String::new()));
                continue;
            }
        }
        let mut composed: Vec<(String, Cel)> = Vec::new();
        for (name, program) in &policy.variables {
            let mut now = seen.clone();
            now.push(("variables", record(&composed)));
            // One that fails matters only to those who use it.
            if let Some(result) = program.as_ref().ok().and_then(|program| program.evaluate(&now).ok()) {
                composed.push((name.clone(), result));
            }
        }
        seen.push(("variables", record(&composed)));
        for validation in &policy.validations {
            let truth = match &validation.program {
                Ok(program) => program.is_true(&seen),
                Err(error) => Err(error.clone()),
            };
            match truth {
                Ok(true) => {}
                Ok(false) => found.push((message(validation, &seen), validation.reason.clone())),
                Err(_) if policy.ignore_failure => {}
                Err(error) => found.push((
                    format!("expression '{}' resulted in error: {error}", validation.source),
                    validation.reason.clone(),
                )),
            }
        }
    }
    Ok(found)
}

fn record(values: &[(String, Cel)]) -> Cel {
    let map: std::collections::HashMap<String, Cel> = values.iter().cloned().collect();
    map.into()
}

fn message(validation: &Validation, variables: &[(&str, Cel)]) -> String {
    let own = validation.message_program.as_ref().and_then(|program| program.evaluate(variables).ok());
    match own {
        Some(Cel::String(text)) if !text.trim().is_empty() => text.trim().to_owned(),
        _ if !validation.message.is_empty() => validation.message.clone(),
        _ => format!("failed expression: {}", validation.source.trim()),
    }
}

/// The objects that the binding gives to the policy; one that is null for a policy without parameters.
fn params(policy: &Policy, binding: &Binding, request: &Request<'_>) -> Result<Vec<Value>, String> {
    let Some((api_version, kind)) = &policy.param_kind else { return Ok(vec![Value::Null]) };
    if !binding.param.is_object() {
        return Ok(vec![Value::Null]);
    }
    let (group, version) = object::split_api_version(api_version);
    let resource = request.state.registry.read().by_kind(group, version, kind);
    let resource = resource.ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'")
    })?;
    let own = binding.param["namespace"].as_str().unwrap_or_default();
    let namespace = match (resource.namespaced, own) {
        (false, _) => "",
        (true, "") if request.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .to_owned(),
            );
        }
        (true, "") => request.namespace,
        (true, own) => own,
    };
    let read = |bytes: &[u8]| {
        let value = read::parse(bytes).map_err(|status| status.message)?;
        resource.from_storage(value).map_err(|status| status.message)
    };
    let mut found = Vec::new();
    if let Some(name) = binding.param["name"].as_str() {
        let stored = request.state.cache.bucket(&resource.storage_key).get(&format!("{namespace}/{name}"));
        if let Some(stored) = stored {
            found.push(read(&stored.bytes)?);
        }
    } else {
        let selector = LabelSelector::from_object(&binding.param["selector"]).map_err(|e| e.to_string())?;
        for stored in objects_in(request.state, &resource.storage_key, namespace) {
            if selector.matches(|key| stored.extracted.label(key)) {
                found.push(read(&stored.bytes)?);
            }
        }
    }
    if found.is_empty() && binding.param["parameterNotFoundAction"] != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found)
}

fn act(
    policy: &Policy,
    binding: &Binding,
    request: &Request<'_>,
    message: &str,
    reason: &str,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let who = format!("ValidatingAdmissionPolicy '{}' with binding '{}'", policy.name, binding.name);
    if binding.audit {
        tracing::info!(
            policy = policy.name,
            binding = binding.name,
            object = json!([request.namespace, request.name]).to_string(),
            message,
            "validation failed"
        );
    }
    if binding.warn {
        warnings.push(format!("Validation failed for {who}: {message}"));
    }
    if !binding.deny {
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
