//! Questions that are answered and not stored: token and access reviews.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use kedge_api::object;
use kedge_api::status::Status;
use serde_json::{Value, json};

use crate::authn::{self, User};
use crate::authz::{self, rbac::Attributes, rbac::Decision};
use crate::respond;
use crate::verbs::Context;
use crate::verbs::create::set_namespace;
use crate::verbs::options::WriteOptions;

pub(crate) async fn create(context: &Arc<Context>, body: &Bytes) -> Result<Response<Body>, Status> {
    if context.info.verb != "create" {
        return Err(Status::method_not_supported(&context.group_resource(), context.info.verb));
    }
    let text = crate::body::json_text(context.content_type(), body)?;
    let options = WriteOptions::of(context)?;
    let (mut review, _) =
        kedge_api::decode::decode(&text, "application/json", &context.resource, options.validation)?;
    let status = match &*context.resource.plural {
        "tokenreviews" => token_review(context, &review),
        "selfsubjectreviews" => json!({ "userInfo": user_info(&context.user) }),
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            set_namespace(&context.resource, &context.info.namespace, &mut review)?;
            is_local(context, &review)?;
            let spec = &review["spec"];
            let groups = strings(&spec["groups"]);
            let user = User {
                name: spec["user"].as_str().unwrap_or_default().to_owned(),
                uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
                groups,
                extra: std::collections::BTreeMap::new(),
                certified: None,
            };
            if user.name.is_empty() && user.groups.is_empty() {
                return Err(Status::invalid(
                    "authorization.k8s.io",
                    &context.resource.kind,
                    "",
                    vec![kedge_api::field::FieldError::invalid(
                        "spec.user",
                        json!(""),
                        "at least one of user or group must be specified",
                    )],
                ));
            }
            access(context, &user, spec)
        }
        "selfsubjectaccessreviews" => access(context, &context.user, &review["spec"]),
        "selfsubjectrulesreviews" => rules(context, &review["spec"]),
        "bindings" => return old_binding(context, &review, &options).await,
        other => return Err(Status::not_found(&context.group_resource(), other)),
    };
    review["status"] = status;
    if review["metadata"].is_null() {
        review["metadata"] = json!({});
    }
    review["metadata"]["creationTimestamp"] = Value::Null;
    Ok(respond::object(StatusCode::CREATED, review.to_string().into(), context.accepted))
}

/// Who may ask within a namespace is told of that namespace only
/// (`authorization/validation.ValidateLocalSubjectAccessReview`).
fn is_local(context: &Context, review: &Value) -> Result<(), Status> {
    if &*context.resource.plural != "localsubjectaccessreviews" {
        return Ok(());
    }
    let invalid = |field: &str, value: &Value, message: &str| {
        let error = kedge_api::field::FieldError::invalid(field, value.clone(), message);
        Err(Status::invalid("authorization.k8s.io", &context.resource.kind, "", vec![error]))
    };
    let (spec, namespace) = (&review["spec"], context.info.namespace.as_str());
    let asked = &spec["resourceAttributes"]["namespace"];
    if spec["resourceAttributes"].is_object() && asked != namespace {
        return invalid("spec.resourceAttributes.namespace", asked, "must match metadata.namespace");
    }
    if !spec["nonResourceAttributes"].is_null() {
        let value = &spec["nonResourceAttributes"];
        return invalid("spec.nonResourceAttributes", value, "disallowed on this kind of request");
    }
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default()
}

pub(crate) fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn token_review(context: &Context, review: &Value) -> Value {
    let audiences = strings(&review["spec"]["audiences"]);
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    match authn::token_user(&context.state, token, &audiences) {
        Ok((user, audiences)) => {
            json!({ "authenticated": true, "user": user_info(&user), "audiences": audiences })
        }
        Err(reason) => {
            json!({ "authenticated": false, "user": {}, "error": format!("[invalid bearer token, {reason}]") })
        }
    }
}

fn access(context: &Context, user: &User, spec: &Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let fields: Vec<String> = ["verb", "namespace", "group", "resource", "subresource", "name"]
        .iter()
        .map(|key| text(&resource[*key]))
        .collect();
    let (path_verb, path) = (text(&path["verb"]), text(&path["path"]));
    let is_resource = resource.is_object();
    let attributes = Attributes {
        user: &user.name,
        groups: &user.groups,
        verb: if is_resource { &fields[0] } else { &path_verb },
        namespace: &fields[1],
        api_group: &fields[2],
        resource: &fields[3],
        subresource: &fields[4],
        name: &fields[5],
        path: &path,
        is_resource,
    };
    match authz::authorize(&context.state, user, &attributes) {
        Decision::Allow(reason) if reason.is_empty() => json!({ "allowed": true }),
        Decision::Allow(reason) => json!({ "allowed": true, "reason": reason }),
        Decision::NoOpinion => json!({ "allowed": false }),
    }
}

fn rules(context: &Context, spec: &Value) -> Value {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    let user = &context.user;
    let mut resource_rules = Vec::new();
    let mut path_rules = Vec::new();
    if user.is_in(authn::MASTERS) {
        resource_rules.push(json!({ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }));
        path_rules.push(json!({ "verbs": ["*"], "nonResourceURLs": ["*"] }));
    }
    for rule in authz::rules(&context.state).rules_for(&user.name, &user.groups, namespace) {
        let rule = rule.to_value();
        if rule["nonResourceURLs"].as_array().is_some_and(|urls| !urls.is_empty()) {
            path_rules.push(rule);
        } else {
            resource_rules.push(rule);
        }
    }
    json!({ "resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false })
}

/// `POST namespaces/NS/bindings`, the older form of `pods/NAME/binding`.
async fn old_binding(
    context: &Arc<Context>,
    binding: &Value,
    options: &WriteOptions,
) -> Result<Response<Body>, Status> {
    let pods = context.state.find("", "v1", "pods").ok_or_else(|| context.not_found())?;
    let mut info = context.info.clone();
    info.resource = "pods".to_owned();
    info.name = object::name(binding).to_owned();
    let context = Arc::new(Context {
        state: context.state.clone(),
        user: context.user.clone(),
        info,
        query: context.query.clone(),
        headers: context.headers.clone(),
        resource: pods,
        accepted: context.accepted,
    });
    crate::subresource::bind_as(&context, binding, options).await
}
