//! `metav1.Status`: how the API reports failure, with the reasons, codes and
//! wording of apimachinery's `api/errors`, which clients parse.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::field::FieldError;

/// A group and the plural name of a resource, printed `deployments.apps` or `pods`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    pub group: String,
    pub resource: String,
}

impl GroupResource {
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// One cause of a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// What the failure is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    /// Seconds; 0 is not sent.
    pub retry_after_seconds: u32,
}

/// The outcome of a request as `metav1.Status`; a code below 300 is a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// Where a list may go on after this failure: `continue` in the metadata; empty: nowhere.
    pub next: Box<str>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

fn about(gr: &GroupResource, name: &str) -> Details {
    Details {
        name: name.to_string(),
        group: gr.group.clone(),
        kind: gr.resource.clone(),
        ..Default::default()
    }
}

impl Status {
    /// A status with no details.
    pub fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, next: Box::default() }
    }

    fn with(code: u16, reason: &'static str, message: String, details: Details) -> Self {
        Self { code, reason, message, details: Some(Box::new(details)), next: Box::default() }
    }

    pub fn is_success(&self) -> bool {
        self.code < 300
    }

    pub fn not_found(gr: &GroupResource, name: &str) -> Self {
        Self::with(404, "NotFound", format!("{gr} \"{name}\" not found"), about(gr, name))
    }

    /// The path is served by nothing: what upstream answers for unknown resources.
    pub fn page_not_found() -> Self {
        Self::with(
            404,
            "NotFound",
            "the server could not find the requested resource".to_string(),
            Details::default(),
        )
    }

    pub fn already_exists(gr: &GroupResource, name: &str) -> Self {
        Self::with(409, "AlreadyExists", format!("{gr} \"{name}\" already exists"), about(gr, name))
    }

    pub fn conflict(gr: &GroupResource, name: &str, msg: impl fmt::Display) -> Self {
        Self::with(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {gr} \"{name}\": {msg}"),
            about(gr, name),
        )
    }

    /// The conflict that clients retry: the version they sent is not the newest.
    pub fn modified(gr: &GroupResource, name: &str) -> Self {
        Self::conflict(
            gr,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// A server-side apply conflict with the causes of each field.
    pub fn apply_conflict(causes: Vec<Cause>, message: String) -> Self {
        Self::with(409, "Conflict", message, Details { causes, ..Default::default() })
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let qualified = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for e in &errors {
            let text = e.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let message = match texts.as_slice() {
            [] => format!("{qualified} \"{name}\" is invalid"),
            [one] => format!("{qualified} \"{name}\" is invalid: {one}"),
            many => format!("{qualified} \"{name}\" is invalid: [{}]", many.join(", ")),
        };
        let details = Details {
            name: name.to_string(),
            group: group.to_string(),
            kind: kind.to_string(),
            causes: errors.iter().map(FieldError::cause).collect(),
            ..Default::default()
        };
        Self::with(422, "Invalid", message, details)
    }

    pub fn bad_request(msg: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", msg)
    }

    pub fn forbidden(gr: &GroupResource, name: &str, msg: impl fmt::Display) -> Self {
        let message = if gr.resource.is_empty() {
            format!("forbidden: {msg}")
        } else if name.is_empty() {
            format!("{gr} is forbidden: {msg}")
        } else {
            format!("{gr} \"{name}\" is forbidden: {msg}")
        };
        Self::with(403, "Forbidden", message, about(gr, name))
    }

    pub fn unauthorized(msg: impl Into<String>) -> Self {
        let msg = msg.into();
        Self::plain(401, "Unauthorized", if msg.is_empty() { "Unauthorized".to_string() } else { msg })
    }

    pub fn method_not_supported(gr: &GroupResource, verb: &str) -> Self {
        let details = Details { group: gr.group.clone(), kind: gr.resource.clone(), ..Default::default() };
        Self::with(
            405,
            "MethodNotAllowed",
            format!("{verb} is not supported on resources of kind \"{gr}\""),
            details,
        )
    }

    pub fn gone(msg: impl Into<String>) -> Self {
        Self::plain(410, "Gone", msg)
    }

    /// The resource version or continue token is older than what is kept.
    pub fn expired(msg: impl Into<String>) -> Self {
        Self::plain(410, "Expired", msg)
    }

    /// What a chunked list was of is not kept any more; with `next` it can go on as of now (apiserver
    /// `storage/etcd3/errors.go`).
    pub fn list_expired(next: impl Into<Box<str>>) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
        Self { next: next.into(), ..Self::expired(message) }
    }

    /// Same as [`Status::expired`], upstream's other name for it.
    pub fn resource_expired(msg: impl Into<String>) -> Self {
        Self::expired(msg)
    }

    pub fn internal(msg: impl fmt::Display) -> Self {
        let text = msg.to_string();
        let details = Details {
            causes: vec![Cause { message: text.clone(), ..Default::default() }],
            ..Default::default()
        };
        Self::with(500, "InternalError", format!("Internal error occurred: {text}"), details)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::plain(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::plain(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    pub fn timeout(msg: impl fmt::Display, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Default::default() };
        Self::with(504, "Timeout", format!("Timeout: {msg}"), details)
    }

    pub fn server_timeout(gr: &GroupResource, operation: &str, retry_after_seconds: u32) -> Self {
        let details = Details {
            group: gr.group.clone(),
            kind: gr.resource.clone(),
            name: operation.to_string(),
            retry_after_seconds,
            ..Default::default()
        };
        let message = format!(
            "The {operation} operation against {gr} could not be completed at this time, please try again."
        );
        Self::with(500, "ServerTimeout", message, details)
    }

    pub fn too_many_requests(msg: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Default::default() };
        Self::with(429, "TooManyRequests", msg.into(), details)
    }

    pub fn service_unavailable(msg: impl Into<String>) -> Self {
        Self::plain(503, "ServiceUnavailable", msg)
    }

    pub fn request_entity_too_large(msg: impl fmt::Display) -> Self {
        Self::plain(413, "RequestEntityTooLarge", format!("Request entity is too large: {msg}"))
    }

    /// What a delete answers when the object is gone at once.
    pub fn success(details: Option<Details>) -> Self {
        Self { details: details.map(Box::new), ..Self::plain(200, "", "") }
    }

    /// Attaches a cause, for instance that the namespace is terminating.
    #[must_use]
    pub fn caused_by(mut self, cause: Cause) -> Self {
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        out.insert("kind".into(), "Status".into());
        out.insert("apiVersion".into(), "v1".into());
        let metadata = if self.next.is_empty() { json!({}) } else { json!({ "continue": self.next }) };
        out.insert("metadata".into(), metadata);
        out.insert("status".into(), if self.is_success() { "Success" } else { "Failure" }.into());
        for (key, text) in [("message", self.message.as_str()), ("reason", self.reason)] {
            if !text.is_empty() {
                out.insert(key.into(), text.into());
            }
        }
        if let Some(d) = &self.details {
            out.insert("details".into(), d.to_value());
        }
        if self.code != 0 && !self.is_success() {
            out.insert("code".into(), self.code.into());
        }
        Value::Object(out)
    }
}

impl Details {
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                out.insert(key.into(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            out.insert("causes".into(), Value::Array(causes));
        }
        if self.retry_after_seconds != 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(out)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                out.insert(key.into(), text.as_str().into());
            }
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording_and_codes() {
        let deployments = GroupResource::new("apps", "deployments");
        let pods = GroupResource::new("", "pods");
        let cases = [
            (Status::not_found(&deployments, "web"), 404, r#"deployments.apps "web" not found"#),
            (Status::already_exists(&pods, "a"), 409, r#"pods "a" already exists"#),
            (Status::forbidden(&pods, "", "no"), 403, "pods is forbidden: no"),
            (Status::internal("x"), 500, "Internal error occurred: x"),
            (
                Status::invalid("apps", "Deployment", "web", vec![FieldError::required("spec.a", "")]),
                422,
                r#"Deployment.apps "web" is invalid: spec.a: Required value"#,
            ),
        ];
        for (s, code, message) in cases {
            assert_eq!((s.code, s.to_string().as_str()), (code, message));
        }
        let v = Status::not_found(&deployments, "web").to_value();
        assert_eq!(
            v,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
            "reason": "NotFound", "message": "deployments.apps \"web\" not found",
            "details": {"name": "web", "group": "apps", "kind": "deployments"}})
        );
        assert_eq!(Status::success(None).to_value()["status"], "Success");
        let expired = Status::list_expired("token").to_value();
        assert_eq!(
            (&expired["reason"], &expired["metadata"]),
            (&json!("Expired"), &json!({"continue": "token"}))
        );
    }
}
