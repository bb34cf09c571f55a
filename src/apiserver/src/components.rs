//! `componentstatuses` (registry/core/componentstatus): a list that nobody writes, made when it is asked for.
//! The datastore is tried; of the other two the assembly says how they are, which run where the store leads.

use axum::body::Body;
use http::{Response, StatusCode};
use kedge_api::status::Status;
use serde_json::{Value, json};

use crate::respond::{self, Form};
use crate::verbs::{Context, read};

/// How a component is that this crate does not know: the reason if it does not work.
pub(crate) type Health = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

const DEPRECATED: &str = "v1 ComponentStatus is deprecated in v1.19+";

/// GET of one or of all.
pub(crate) async fn run(context: &Context) -> Result<Response<Body>, Status> {
    if !context.info.subresource.is_empty() {
        return Err(Status::page_not_found());
    }
    let mut found = Vec::new();
    for name in ["scheduler", "controller-manager", "etcd-0"] {
        if context.info.name.is_empty() || context.info.name == name {
            found.push(one(name, health(context, name).await));
        }
    }
    let value = match context.info.verb {
        "list" => list(context, found)?,
        "get" => match (found.pop(), context.accepted.form) {
            (None, _) => return Err(context.not_found()),
            (Some(one), Form::Object) => one,
            (Some(one), Form::Metadata) => kedge_api::table::partial_object_metadata(&one),
            (Some(one), Form::Table) => read::table(context, std::iter::once(Ok(one)), json!({}))?,
        },
        verb => return Err(Status::method_not_supported(&context.group_resource(), verb)),
    };
    let mut response = respond::object(StatusCode::OK, value.to_string().into(), context.accepted);
    respond::add_warnings(&mut response, &[DEPRECATED.to_owned()]);
    Ok(response)
}

fn list(context: &Context, found: Vec<Value>) -> Result<Value, Status> {
    Ok(match context.accepted.form {
        Form::Object => {
            json!({ "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": found })
        }
        Form::Metadata => {
            let items: Vec<Value> = found.iter().map(kedge_api::table::partial_object_metadata).collect();
            json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items })
        }
        Form::Table => read::table(context, found.into_iter().map(Ok), json!({}))?,
    })
}

async fn health(context: &Context, name: &str) -> Result<(), String> {
    if name == "etcd-0" {
        return context.state.fresh_revision().await.map(drop).map_err(|status| status.message);
    }
    match context.state.components.get() {
        Some(health) => health(name),
        None => Err("nothing is known of it".to_owned()),
    }
}

fn one(name: &str, health: Result<(), String>) -> Value {
    let condition = match health {
        Ok(()) => json!({ "type": "Healthy", "status": "True", "message": "ok" }),
        Err(error) => json!({ "type": "Healthy", "status": "False", "error": error }),
    };
    json!({
        "kind": "ComponentStatus",
        "apiVersion": "v1",
        "metadata": { "name": name, "creationTimestamp": null },
        "conditions": [condition],
    })
}
