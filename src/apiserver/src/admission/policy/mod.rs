//! Admission policies: the cluster's own rules in CEL, no webhook needed (KEP-3488, KEP-3962). What those that
//! refuse and those that change have in common is here: which requests they are for, what their expressions
//! see, the parameters of their bindings. Policies and bindings are compiled once per change.

mod mutating;
mod types;
mod validating;

use std::sync::Arc;

use kedge_api::cel::{self, Budget, Error, Program, Question, Scope, Value as Cel, dynamic};
use kedge_api::object;
use kedge_api::selector::LabelSelector;
use kedge_api::status::Status;
use serde_json::{Map, Value};

use super::webhook::rules::{Rule, Selectors, configurations, converted, version_for};
use super::{Request, objects_in};
use crate::authn::User;
use crate::authz::{self, rbac};
use crate::state::State;
use crate::verbs::read;

pub(crate) use mutating::Policies as Mutating;
pub(super) use mutating::{again, mutate};
pub(crate) use types::note as note_types;
pub(crate) use validating::Policies as Validating;
pub(super) use validating::validate;

/// What both kinds of policies say, and one of their bindings.
struct Bound<P> {
    policy: Arc<P>,
    binding: Binding,
}

/// A policy without what it does.
struct Definition {
    name: String,
    constraints: Constraints,
    conditions: Conditions,
    ignore_failure: bool,
    param_kind: Option<(String, String)>,
    variables: Vec<(String, Result<Program, Error>)>,
}

struct Binding {
    name: String,
    constraints: Option<Constraints>,
    param: Value,
    /// Of a policy that refuses: what happens then.
    actions: Vec<String>,
}

impl Definition {
    fn new(value: &Value) -> Self {
        let spec = &value["spec"];
        let variable = |value: &Value| (text(&value["name"]), program(&value["expression"]));
        let kind = &spec["paramKind"];
        Self {
            name: object::name(value).to_owned(),
            constraints: Constraints::new(&spec["matchConstraints"]),
            conditions: Conditions::new(spec),
            ignore_failure: spec["failurePolicy"] == "Ignore",
            param_kind: kind.is_object().then(|| (text(&kind["apiVersion"]), text(&kind["kind"]))),
            variables: list(spec, "variables").iter().map(variable).collect(),
        }
    }

    /// The version of the request's resource that the policy wants to see, if it and the binding mean it.
    fn wants(
        &self,
        binding: &Binding,
        request: &Request<'_>,
        value: &Value,
    ) -> Option<Arc<kedge_api::registry::Resource>> {
        let resource = self.constraints.matches(request, value, false)?;
        let own = binding.constraints.as_ref();
        own.is_none_or(|own| own.matches(request, value, true).is_some()).then_some(resource)
    }
}

impl Binding {
    fn new(value: &Value) -> Self {
        let spec = &value["spec"];
        Self {
            name: object::name(value).to_owned(),
            constraints: spec["matchResources"]
                .is_object()
                .then(|| Constraints::new(&spec["matchResources"])),
            param: spec["paramRef"].clone(),
            actions: list(spec, "validationActions").iter().map(text).collect(),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn program(value: &Value) -> Result<Program, Error> {
    Program::compile(value.as_str().unwrap_or_default())
}

/// All bindings with their policies.
fn bound<P>(
    state: &State,
    [policies, bindings]: [&str; 2],
    make: impl Fn(&Value) -> P,
    name: impl Fn(&P) -> &str,
) -> Vec<Bound<P>> {
    let all: Vec<Arc<P>> =
        configurations(state, policies).iter().map(|value| Arc::new(make(value))).collect();
    let bindings = configurations(state, bindings);
    // One policy after the other, as upstream goes through them.
    let of = |policy: &Arc<P>| {
        let own = bindings.iter().filter(|value| value["spec"]["policyName"] == name(policy));
        own.map(|value| Bound { policy: policy.clone(), binding: Binding::new(value) }).collect::<Vec<_>>()
    };
    all.iter().flat_map(of).collect()
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
        let compile = |condition: &Value| (text(&condition["name"]), program(&condition["expression"]));
        Self(list(value, "matchConditions").iter().map(compile).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the request is meant. One that is false decides, even when another cannot be evaluated; they
    /// have a budget of their own.
    pub(super) fn hold(&self, variables: &[(&str, Cel)]) -> Result<bool, String> {
        let (mut failed, mut budget) = (None, Budget::conditions());
        for (name, program) in &self.0 {
            let truth = match program {
                Ok(program) => program.is_true(Scope::new(variables), &mut budget),
                Err(error) => Err(error.clone()),
            };
            match truth {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error @ Error::Budget) => return Err(error.to_string()),
                Err(error) => {
                    failed.get_or_insert(format!("match condition {name:?}: {error}"));
                }
            }
        }
        failed.map_or(Ok(true), Err)
    }
}

/// What expressions can see: `object`, `oldObject`, `request`, `authorizer`, `namespaceObject`.
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
        ("authorizer", authorizer(request)),
    ];
    if namespace {
        let stored = request.state.cache.bucket("namespaces").get(&format!("/{}", request.namespace));
        let found = stored.and_then(|stored| read::parse(&stored.bytes).ok()).unwrap_or_default();
        all.push(("namespaceObject", dynamic(&found)));
    }
    all
}

/// Answers expressions that ask what a user may do: the one who sends the request, or a ServiceAccount.
struct Authority {
    state: Arc<State>,
    user: User,
}

fn authorizer(request: &Request<'_>) -> Cel {
    let asked = Question {
        group: (&*request.resource.group).into(),
        resource: (&*request.resource.plural).into(),
        subresource: request.subresource.into(),
        namespace: request.namespace.into(),
        name: request.name.into(),
        ..Question::default()
    };
    let authority = Authority { state: request.state.clone(), user: request.user.clone() };
    cel::Check::variable(Arc::new(authority), asked)
}

impl cel::Authorizer for Authority {
    fn decide(&self, question: &Question) -> cel::Decision {
        let account = question.service_account.as_ref().map(|(namespace, name)| {
            let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            User::new(format!("system:serviceaccount:{namespace}:{name}"), groups)
        });
        let user = account.as_ref().unwrap_or(&self.user);
        let attributes = rbac::Attributes {
            user: &user.name,
            groups: &user.groups,
            verb: &question.verb,
            namespace: &question.namespace,
            api_group: &question.group,
            resource: &question.resource,
            subresource: &question.subresource,
            name: &question.name,
            path: &question.path,
            is_resource: question.path.is_empty(),
        };
        match authz::authorize(&self.state, user, &attributes) {
            rbac::Decision::Allow(reason) => cel::Decision { allowed: true, reason, error: None },
            rbac::Decision::NoOpinion => cel::Decision::default(),
        }
    }
}

/// What the expressions of a policy see of a request whose object is `shown`, the parameters left aside.
async fn seen(
    request: &Request<'_>,
    resource: &kedge_api::registry::Resource,
    shown: &Value,
) -> Result<Vec<(&'static str, Cel)>, Status> {
    let review = super::webhook::review(request, resource, shown, true).await?;
    Ok(variables(request, &review, true))
}

/// The object as the version of the resource that a policy wants to see.
async fn shown(
    request: &Request<'_>,
    resource: &kedge_api::registry::Resource,
    value: &Value,
) -> Result<Value, Status> {
    if request.has_other_kind() {
        return Ok(value.clone());
    }
    converted(request.state, request.resource, resource, value).await
}

/// The objects that the binding gives to the policy; one that is null for a policy without parameters.
fn params(policy: &Definition, binding: &Binding, request: &Request<'_>) -> Result<Vec<Value>, String> {
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
