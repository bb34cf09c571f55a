//! Mutating and validating admission webhooks (`admission.k8s.io/v1`): configurations are read once
//! per change, servers are asked over TLS, patches are applied and defaulted.

pub(super) mod rules;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use kedge_api::decode::{self, FieldValidation};
use kedge_api::object;
use kedge_api::status::Status;
use serde_json::{Value, json};

use self::rules::{Rule, Selectors};
use super::policy::{self, Conditions};
use super::{Operation, Request};
use crate::outbound::Server;
use crate::state::State;

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

/// All webhooks of the cluster.
#[derive(Default)]
pub(crate) struct Webhooks {
    mutating: Vec<Webhook>,
    validating: Vec<Webhook>,
}

struct Webhook {
    name: String,
    rules: Vec<Rule>,
    selectors: Selectors,
    equivalent: bool,
    ignore_failure: bool,
    reinvoke: bool,
    /// It changes something elsewhere and cannot be told not to.
    side_effects: bool,
    conditions: Conditions,
    timeout: Duration,
    /// Where it is, or why that cannot be known.
    server: Result<(Server, String), String>,
}

impl Webhook {
    fn new(state: &State, value: &Value) -> Self {
        let text = |field: &str| value[field].as_str().unwrap_or_default();
        let list = |field: &str| value[field].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            name: text("name").to_owned(),
            rules: list("rules").iter().map(Rule::new).collect(),
            selectors: Selectors::new(value),
            equivalent: text("matchPolicy") != "Exact",
            ignore_failure: text("failurePolicy") == "Ignore",
            reinvoke: text("reinvocationPolicy") == "IfNeeded",
            side_effects: !matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            conditions: Conditions::new(value),
            timeout: Duration::from_secs(value["timeoutSeconds"].as_u64().unwrap_or(10)),
            server: Server::of_client_config(state, &value["clientConfig"]),
        }
    }
}

/// The webhooks as of now; read again only after a configuration has changed.
fn webhooks(state: &State) -> Arc<Webhooks> {
    let all = |key: &str| {
        let list = rules::configurations(state, key);
        let hooks = list.iter().flat_map(|own| own["webhooks"].as_array().into_iter().flatten());
        hooks.map(|value| Webhook::new(state, value)).collect()
    };
    let make = || Webhooks { mutating: all(MUTATING), validating: all(VALIDATING) };
    state.webhooks.get(&state.cache, [MUTATING, VALIDATING], make)
}

/// Webhooks may not lock the door to their own configuration.
fn exempt(request: &Request<'_>) -> bool {
    &*request.resource.group == "admissionregistration.k8s.io"
}

/// The webhooks that were asked, and what each left behind: it is asked again if somebody changed that after.
#[derive(Default)]
pub(super) struct Seen {
    all: Arc<Webhooks>,
    left: Vec<(usize, Value)>,
    pub(super) changed: bool,
}

/// Asks the mutating webhooks one after the other.
pub(super) async fn mutate(
    request: &Request<'_>,
    value: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<Seen, Status> {
    let all = webhooks(request.state);
    if all.mutating.is_empty() || exempt(request) {
        return Ok(Seen::default());
    }
    let (before, mut left) = (value.clone(), Vec::new());
    for (place, webhook) in all.mutating.iter().enumerate() {
        if ask_to_change(webhook, request, value, warnings).await? && webhook.reinvoke {
            left.push((place, value.clone()));
        }
    }
    Ok(Seen { all, left, changed: *value != before })
}

/// Asks those again that want it and whose object is not what they left.
pub(super) async fn again(
    request: &Request<'_>,
    value: &mut Value,
    seen: Seen,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    for (place, left) in &seen.left {
        if let Some(webhook) = seen.all.mutating.get(*place).filter(|_| left != value) {
            ask_to_change(webhook, request, value, warnings).await?;
        }
    }
    Ok(())
}

/// `true` if the webhook was asked.
async fn ask_to_change(
    webhook: &Webhook,
    request: &Request<'_>,
    value: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<bool, Status> {
    let Some(resource) = wanted(webhook, request, value) else { return Ok(false) };
    let Some(answer) = ask(webhook, request, &resource, value).await? else { return Ok(true) };
    take_warnings(&answer, warnings);
    allowed(webhook, &answer)?;
    let Some(patch) = answer["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(true) };
    let failed =
        |what: String| Status::internal(format!("failed calling webhook {:?}: {what}", webhook.name));
    if answer["patchType"] != "JSONPatch" {
        return Err(failed(format!("unsupported patch type {}", answer["patchType"])));
    }
    let patch = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .map_err(|error| failed(format!("patch is not base64: {error}")))?;
    let shown = rules::converted(request.state, request.resource, &resource, value).await?;
    if request.has_other_kind() {
        *value = kedge_api::patch::json_patch(&shown, &patch)?;
        return Ok(true);
    }
    let patched = kedge_api::patch::json_patch_of(&resource.schema, &shown, &patch)?;
    let mut patched = rules::converted(request.state, &resource, request.resource, &patched).await?;
    // What the webhook has added beyond the schema goes, as with what a client sends; a wrong type is refused.
    decode::check_schema(&mut patched, request.resource, FieldValidation::Ignore)?;
    request.resource.strategy.default(&mut patched);
    *value = patched;
    Ok(true)
}

/// Asks all validating webhooks at once.
pub(super) async fn validate(
    request: &Request<'_>,
    value: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let all = webhooks(request.state);
    if all.validating.is_empty() || exempt(request) {
        return Ok(());
    }
    let asked = all.validating.iter().filter_map(|webhook| {
        let resource = wanted(webhook, request, value)?;
        Some(async move {
            let answer = ask(webhook, request, &resource, value).await?;
            Ok::<_, Status>(answer.map(|answer| (webhook, answer)))
        })
    });
    let answers = futures::future::join_all(asked).await;
    let mut refused = None;
    for answer in answers {
        match answer {
            Ok(None) => {}
            Ok(Some((webhook, answer))) => {
                take_warnings(&answer, warnings);
                if let Err(status) = allowed(webhook, &answer) {
                    refused.get_or_insert(status);
                }
            }
            Err(status) => drop(refused.get_or_insert(status)),
        }
    }
    refused.map_or(Ok(()), Err)
}

/// The version of the resource to show, if the webhook is to be asked at all.
fn wanted(
    webhook: &Webhook,
    request: &Request<'_>,
    value: &Value,
) -> Option<Arc<kedge_api::registry::Resource>> {
    let resource = rules::version_for(&webhook.rules, webhook.equivalent, request)?;
    webhook.selectors.matches(request, value).then_some(resource)
}

/// The `response` of the webhook; `None` when it failed and that does not matter.
async fn ask(
    webhook: &Webhook,
    request: &Request<'_>,
    resource: &kedge_api::registry::Resource,
    value: &Value,
) -> Result<Option<Value>, Status> {
    if request.dry_run && webhook.side_effects {
        return Err(Status::bad_request(format!(
            "admission webhook {:?} does not support dry run",
            webhook.name
        )));
    }
    let review = review(request, resource, value, false).await?;
    let conditions = if webhook.conditions.is_empty() {
        Ok(true)
    } else {
        webhook.conditions.hold(&policy::variables(request, &review, false))
    };
    let called = match conditions {
        Ok(false) => return Ok(None),
        Err(error) => Err(error),
        Ok(true) => call(webhook, request.state, &review).await,
    };
    match called {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if webhook.ignore_failure => {
            tracing::warn!(webhook = webhook.name, error, "failed calling webhook, failing open");
            Ok(None)
        }
        Err(error) => Err(Status::internal(format!(
            "failed calling webhook {:?}: failed to call webhook: {error}",
            webhook.name
        ))),
    }
}

async fn call(webhook: &Webhook, state: &State, review: &Value) -> Result<Value, String> {
    let (server, path) = webhook.server.as_ref().map_err(Clone::clone)?;
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}timeout={}s", webhook.timeout.as_secs());
    let mut answer = server.post(state, &path, review, webhook.timeout).await?;
    if answer["kind"] != "AdmissionReview" || answer["apiVersion"] != "admission.k8s.io/v1" {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            answer["apiVersion"].as_str().unwrap_or_default(),
            answer["kind"].as_str().unwrap_or_default()
        ));
    }
    let response = answer["response"].take();
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if response["uid"] != review["request"]["uid"] {
        return Err(format!("expected response.uid={}", review["request"]["uid"]));
    }
    Ok(response)
}

/// The question. `is_shown`: the object is in the wanted version already.
pub(super) async fn review(
    request: &Request<'_>,
    resource: &kedge_api::registry::Resource,
    value: &Value,
    is_shown: bool,
) -> Result<Value, Status> {
    let own = request.resource;
    let kind = |r: &kedge_api::registry::Resource| {
        // Through scale and the like the stored object is shown, not the subresource's kind.
        json!({ "group": r.group, "version": r.version, "kind": r.kind })
    };
    let name = |r: &kedge_api::registry::Resource| json!({ "group": r.group, "version": r.version, "resource": r.plural });
    let shown = async |value: &Value| rules::converted(request.state, own, resource, value).await;
    let options = match request.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => "",
    };
    let new = match request.operation {
        Operation::Delete => Value::Null,
        _ if is_shown => value.clone(),
        _ if request.has_other_kind() => value.clone(),
        _ => shown(value).await?,
    };
    let old = match request.old {
        Some(old) => shown(old).await?,
        None => Value::Null,
    };
    let mut asked = json!({
        "uid": object::new_uid(),
        "kind": kind(resource),
        "resource": name(resource),
        "requestKind": kind(own),
        "requestResource": name(own),
        "operation": request.operation.as_str(),
        "userInfo": crate::review::user_info(request.user),
        "object": new,
        "oldObject": old,
        "dryRun": request.dry_run,
        "options": { "kind": options, "apiVersion": "meta.k8s.io/v1" },
    });
    if request.has_other_kind() {
        let version = value["apiVersion"].as_str().unwrap_or("v1");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        asked["kind"] = json!({ "group": group, "version": version, "kind": value["kind"] });
        asked["requestKind"] = asked["kind"].clone();
    }
    if request.operation == Operation::Connect {
        asked["options"] = Value::Null;
    }
    // A namespace lies in itself, as upstream sees it.
    let namespace = if request.is("", "namespaces") { request.name } else { request.namespace };
    for (field, text) in [("name", request.name), ("namespace", namespace)] {
        if !text.is_empty() {
            asked[field] = json!(text);
        }
    }
    if !request.subresource.is_empty() {
        asked["subResource"] = json!(request.subresource);
        asked["requestSubResource"] = json!(request.subresource);
    }
    Ok(json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": asked }))
}

fn take_warnings(answer: &Value, warnings: &mut Vec<String>) {
    let list = answer["warnings"].as_array().into_iter().flatten();
    warnings.extend(list.filter_map(Value::as_str).map(str::to_owned));
}

/// The webhook's refusal in upstream's words (`plugin/webhook/errors/statuserror.go`).
fn allowed(webhook: &Webhook, answer: &Value) -> Result<(), Status> {
    if answer["allowed"] == true {
        return Ok(());
    }
    let result = &answer["status"];
    let denied = format!("admission webhook {:?} denied the request", webhook.name);
    let (message, reason) =
        (result["message"].as_str().unwrap_or_default(), result["reason"].as_str().unwrap_or_default());
    let message = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0).max(400);
    Err(Status::plain(code, known_reason(reason), message))
}

fn known_reason(reason: &str) -> &'static str {
    const KNOWN: [&str; 14] = [
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "AlreadyExists",
        "Conflict",
        "Gone",
        "Invalid",
        "ServerTimeout",
        "Timeout",
        "TooManyRequests",
        "BadRequest",
        "MethodNotAllowed",
        "InternalError",
        "ServiceUnavailable",
    ];
    KNOWN.into_iter().find(|known| *known == reason).unwrap_or_default()
}
