//! Options of writes: dry run, field manager, field validation, and `DeleteOptions`.

use kedge_api::decode::FieldValidation;
use kedge_api::field::FieldError;
use kedge_api::managed::{Manager, default_manager};
use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::status::Status;
use serde::Deserialize;

use super::Context;

const LONGEST_MANAGER: usize = 128;

/// What the query of a create, update or patch says.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) manager: String,
    pub(crate) validation: FieldValidation,
    pub(crate) force: bool,
}

impl WriteOptions {
    /// The manager that this write is recorded under.
    pub(crate) fn manager(&self, resource: &Resource, subresource: &str) -> Manager {
        Manager {
            name: self.manager.clone(),
            api_version: resource.api_version(),
            time: object::now_rfc3339(),
            subresource: subresource.to_owned(),
            reset: resource.strategy.reset_fields(subresource),
        }
    }

    pub(crate) fn of(context: &Context) -> Result<Self, Status> {
        let query = &context.query;
        let mut errors = Vec::new();
        let manager = query.get("fieldManager");
        if manager.is_some_and(|manager| manager.len() > LONGEST_MANAGER) {
            errors.push(FieldError::too_long("fieldManager", LONGEST_MANAGER as u64));
        }
        let dry_runs: Vec<&str> = query.all("dryRun").filter(|value| !value.is_empty()).collect();
        let dry_run = !dry_runs.is_empty();
        if dry_runs.iter().any(|value| *value != "All") {
            errors.push(FieldError::not_supported("dryRun", dry_runs, &["All"]));
        }
        let validation = match query.get("fieldValidation") {
            None | Some("" | "Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let known = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported("fieldValidation", other, &known));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            let kind = match context.info.verb {
                "update" => "UpdateOptions",
                "patch" => "PatchOptions",
                _ => "CreateOptions",
            };
            return Err(Status::invalid("meta.k8s.io", kind, "", errors));
        }
        let manager = match manager {
            Some(manager) => manager.to_owned(),
            None => {
                let agent =
                    context.headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok());
                default_manager(agent.unwrap_or_default())
            }
        };
        Ok(Self { dry_run, manager, validation, force: query.flag("force") })
    }

    /// For writes that the API server makes on its own behalf.
    pub(crate) fn internal() -> Self {
        Self { dry_run: false, manager: "kedge".into(), validation: FieldValidation::Ignore, force: true }
    }
}

/// `meta/v1.DeleteOptions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation_policy: Option<String>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) preconditions: Option<Preconditions>,
    pub(crate) dry_run: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

impl DeleteOptions {
    /// The body's options; where there is no body, the query's.
    pub(crate) fn of(context: &Context, body: &[u8]) -> Result<Self, Status> {
        let mut options: Self = if body.is_empty() {
            Self::default()
        } else {
            let value = crate::body::value(context.content_type(), body)?;
            // "null" decodes to nothing in Go.
            let value = if value.is_null() { serde_json::json!({}) } else { value };
            serde_json::from_value(value).map_err(|error| {
                Status::bad_request(format!("couldn't decode the body as DeleteOptions: {error}"))
            })?
        };
        let query = &context.query;
        if options.grace_period_seconds.is_none()
            && let Some(text) = query.get("gracePeriodSeconds")
        {
            let seconds = text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "gracePeriodSeconds: strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            })?;
            options.grace_period_seconds = Some(seconds);
        }
        if options.propagation_policy.is_none() {
            options.propagation_policy = query.get("propagationPolicy").map(str::to_owned);
        }
        if options.orphan_dependents.is_none() && query.get("orphanDependents").is_some() {
            options.orphan_dependents = Some(query.flag("orphanDependents"));
        }
        let dry_runs: Vec<String> =
            query.all("dryRun").filter(|value| !value.is_empty()).map(str::to_owned).collect();
        if !dry_runs.is_empty() {
            options.dry_run = Some(dry_runs);
        }
        options.validate()?;
        Ok(options)
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run.as_ref().is_some_and(|values| values.iter().any(|value| value == "All"))
    }

    fn validate(&self) -> Result<(), Status> {
        const POLICIES: [&str; 4] = ["Foreground", "Background", "Orphan", "nil"];
        let mut errors = Vec::new();
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(FieldError::invalid("propagationPolicy", policy.as_str(), why));
            }
            if !POLICIES[..3].contains(&policy.as_str()) {
                errors.push(FieldError::not_supported("propagationPolicy", policy.as_str(), &POLICIES));
            }
        }
        if let Some(values) = self.dry_run.as_ref().filter(|values| values.iter().any(|value| value != "All"))
        {
            errors.push(FieldError::not_supported("dryRun", values.clone(), &["All"]));
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", errors))
    }
}
