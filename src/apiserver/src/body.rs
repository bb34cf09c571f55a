//! Request bodies: size limit and formats.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kedge_api::decode::{self, FieldValidation, Target};
use kedge_api::registry::Resource;
use kedge_api::schema::SchemaSet;
use kedge_api::status::Status;
use serde_json::Value;

use crate::yaml;

/// Upstream's limit (`MaxRequestBodyBytes`).
const LIMIT: usize = 3 << 20;

/// The whole body, or 413.
pub(crate) async fn collect(body: Body) -> Result<Bytes, Status> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Status::request_entity_too_large(format!("limit is {LIMIT}")))
        }
        Err(error) => Err(Status::bad_request(format!("the request's body could not be read: {error}"))),
    }
}

/// The body as JSON text: YAML and protobuf are turned into JSON, other formats are refused.
pub(crate) fn json_text(content_type: &str, body: &Bytes) -> Result<Bytes, Status> {
    match content_type {
        "application/json" | "" => Ok(body.clone()),
        "application/yaml" | "application/apply-patch+yaml" | "application/vnd.kubernetes.protobuf" => {
            Ok(value(content_type, body)?.to_string().into())
        }
        other => Err(unsupported(other)),
    }
}

/// The body as an object of the resource, and warnings (apimachinery `serializer/json`, strict decoding).
pub(crate) fn object(
    content_type: &str,
    body: &Bytes,
    resource: &Resource,
    mode: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let twice = match content_type {
        "application/yaml" => yaml::parse(body)?.1.told().filter(|_| mode != FieldValidation::Ignore),
        _ => None,
    };
    let text = json_text(content_type, body)?;
    let Some(twice) = twice else { return decode::decode(&text, "application/json", resource, mode) };
    let (value, mut warnings) = decode::decode(&text, "application/json", resource, FieldValidation::Warn)?;
    warnings.insert(0, twice);
    if mode == FieldValidation::Strict {
        return Err(Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: strict decoding error: {}",
            resource.version,
            warnings.join(", "),
            kind = resource.kind,
        )));
    }
    Ok((value, warnings))
}

/// The body as an object of a built-in kind that is not the resource's own: those of subresources.
pub(crate) fn of_kind(
    content_type: &str,
    body: &Bytes,
    target: Target<'_>,
    mode: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let text = json_text(content_type, body)?;
    let schema = SchemaSet::builtin().by_gvk(target.group, target.version, target.kind);
    let schema = schema.ok_or_else(|| Status::internal(format!("no schema of {}", target.kind)))?;
    decode::decode_as(&text, &schema, target, mode)
}

/// The body as a value.
pub(crate) fn value(content_type: &str, body: &[u8]) -> Result<Value, Status> {
    match content_type {
        "application/yaml" | "application/apply-patch+yaml" => Ok(yaml::parse(body)?.0),
        "application/json"
        | ""
        | "application/merge-patch+json"
        | "application/strategic-merge-patch+json"
        | "application/apply-patch+json" => serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("error decoding JSON: {error}"))),
        other if kedge_api::protobuf::is_protobuf(other) => kedge_api::protobuf::decode(body)
            .map_err(|error| Status::bad_request(format!("error decoding protobuf: {error}"))),
        other => Err(unsupported(other)),
    }
}

pub(crate) fn unsupported(content_type: &str) -> Status {
    tracing::debug!(content_type, "body in an unknown format");
    Status::unsupported_media_type(&[
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
    ])
}
