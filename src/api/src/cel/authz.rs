//! Questions of an expression about what users may do: `authorizer.group('apps').resource('deployments')
//! .check('create').allowed()` (apiserver `pkg/cel/library/authz.go`). Whoever evaluates brings the answers.

use std::fmt;
use std::sync::Arc;

use super::meter::Meter;
use super::value::Value;
use super::{Outcome, no_overload};

/// What an authorization check costs: two of them are an expression's budget.
const COST: u64 = 350_000;

/// Who knows what users may do.
pub trait Authorizer: Send + Sync {
    /// The answer.
    fn decide(&self, question: &Question) -> Decision;
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Namespace and name of a ServiceAccount; else it is about the user of the request.
    pub service_account: Option<(Arc<str>, Arc<str>)>,
    /// A path that is no resource's; empty: it is about a resource.
    pub path: Arc<str>,
    pub verb: Arc<str>,
    pub group: Arc<str>,
    pub resource: Arc<str>,
    pub subresource: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What was answered.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    /// Why there was no answer.
    pub error: Option<String>,
}

/// How far the question has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

/// A question that is being put together.
#[derive(Clone)]
pub struct Check {
    authorizer: Arc<dyn Authorizer>,
    /// What the request itself asks for.
    request: Arc<Question>,
    question: Question,
    stage: Stage,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("question", &self.question)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl Check {
    /// The variable `authorizer`; `request` is what `authorizer.requestResource` asks about.
    pub fn variable(authorizer: Arc<dyn Authorizer>, request: Question) -> Value {
        let question = Question::default();
        Value::Authorizer(Arc::new(Self {
            authorizer,
            request: Arc::new(request),
            question,
            stage: Stage::Authorizer,
        }))
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }

    /// `authorizer.requestResource`
    pub(super) fn field(&self, name: &str) -> Option<Value> {
        (self.stage == Stage::Authorizer && name == "requestResource").then(|| {
            let question = Question {
                service_account: self.question.service_account.clone(),
                ..(*self.request).clone()
            };
            Value::Authorizer(Arc::new(Self { question, stage: Stage::Resource, ..self.clone() }))
        })
    }

    fn then(&self, stage: Stage, change: impl FnOnce(&mut Question)) -> Outcome {
        let mut next = Self { stage, ..self.clone() };
        change(&mut next.question);
        Ok(Value::Authorizer(Arc::new(next)))
    }
}

macro_rules! builders {
    ($($name:ident: $from:ident => $to:ident, $field:ident),* $(,)?) => {
        $(pub(super) fn $name(_: &mut Meter, args: &[Value]) -> Outcome {
            match args {
                [Value::Authorizer(check), Value::String(text)] if check.stage == Stage::$from => {
                    check.then(Stage::$to, |question| question.$field = text.clone())
                }
                _ => no_overload(),
            }
        })*
    };
}

builders! {
    path: Authorizer => Path, path,
    group: Authorizer => Group, group,
    resource: Group => Resource, resource,
    subresource: Resource => Resource, subresource,
    namespace: Resource => Resource, namespace,
    name: Resource => Resource, name,
}

/// `fieldSelector(text)` and `labelSelector(text)`: a narrower question. No authorizer here looks at them, as
/// upstream's RBAC does not.
pub(super) fn selector(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Authorizer(check), Value::String(_)] if check.stage == Stage::Resource => Ok(args[0].clone()),
        _ => no_overload(),
    }
}

pub(super) fn service_account(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Authorizer(check), Value::String(namespace), Value::String(name)]
            if check.stage == Stage::Authorizer =>
        {
            let account = (namespace.clone(), name.clone());
            check.then(Stage::Authorizer, |question| question.service_account = Some(account))
        }
        _ => no_overload(),
    }
}

pub(super) fn check(meter: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Authorizer(check), Value::String(verb)]
            if matches!(check.stage, Stage::Path | Stage::Resource) =>
        {
            meter.spend(COST)?;
            let question = Question { verb: verb.clone(), ..check.question.clone() };
            Ok(Value::Decision(Arc::new(check.authorizer.decide(&question))))
        }
        _ => no_overload(),
    }
}

macro_rules! answers {
    ($($name:ident => $answer:expr),* $(,)?) => {
        $(pub(super) fn $name(_: &mut Meter, args: &[Value]) -> Outcome {
            let [Value::Decision(decision)] = args else { return no_overload() };
            let answer: fn(&Decision) -> Value = $answer;
            Ok(answer(decision))
        })*
    };
}

answers! {
    allowed => |decision| decision.allowed.into(),
    reason => |decision| decision.reason.as_str().into(),
    errored => |decision| decision.error.is_some().into(),
    error => |decision| decision.error.as_deref().unwrap_or_default().into(),
}
