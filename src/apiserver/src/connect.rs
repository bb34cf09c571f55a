//! Streams into pods and proxies go through admission like writes: as operation CONNECT, with the
//! request's parameters as the object (apiserver `endpoints/handlers/rest.go`, `ConnectResource`).

use kedge_api::status::Status;
use serde_json::{Value, json};

use crate::admission::{self, Operation, Request};
use crate::verbs::Context;

/// Asks webhooks and policies whether the stream may be opened.
pub(crate) async fn admit(context: &Context) -> Result<(), Status> {
    let info = &context.info;
    let Some(mut options) = options(context) else { return Ok(()) };
    let request = Request {
        state: &context.state,
        user: &context.user,
        resource: &context.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        operation: Operation::Connect,
        old: None,
        dry_run: false,
    };
    // A stream has no place for warnings.
    admission::other_kind(&request, &mut options, &mut Vec::new()).await
}

/// The parameters as their type of `v1`; `None` for what is a plain read (logs).
fn options(context: &Context) -> Option<Value> {
    let query = &context.query;
    let kind = match (context.info.resource.as_str(), context.info.subresource.as_str()) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return None,
    };
    let mut options = json!({ "kind": kind, "apiVersion": "v1" });
    match context.info.subresource.as_str() {
        "proxy" => options["path"] = json!(format!("/{}", context.info.rest)),
        "portforward" => {
            let ports: Vec<i64> = query.all("ports").filter_map(|port| port.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = json!(ports);
            }
        }
        _ => {
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(flag) {
                    options[flag] = json!(true);
                }
            }
            if let Some(container) = query.get("container").filter(|name| !name.is_empty()) {
                options["container"] = json!(container);
            }
            let command: Vec<&str> = query.all("command").collect();
            if !command.is_empty() {
                options["command"] = json!(command);
            }
        }
    }
    Some(options)
}
