//! Custom resources whose versions a webhook converts (`apiextensions.k8s.io` ConversionReview; upstream
//! `apiextensions-apiserver/pkg/apiserver/conversion`). Everything else converts without asking anybody.

use std::time::Duration;

use bytes::Bytes;
use kedge_api::object;
use kedge_api::registry::Resource;
use kedge_api::status::Status;
use serde_json::{Value, json};

use crate::outbound::Server;
use crate::state::State;
use crate::verbs::read;

/// Upstream waits this long for a conversion webhook.
const PATIENCE: Duration = Duration::from_secs(30);

/// From the row's version to the one that is stored.
pub(crate) async fn to_storage(state: &State, resource: &Resource, value: Value) -> Result<Value, Status> {
    if resource.conversion.is_none() {
        return resource.to_storage(value);
    }
    let wanted = object::join_api_version(&resource.storage_version.0, &resource.storage_version.1);
    let mut converted = convert(state, resource, vec![value], &wanted).await?;
    converted.pop().ok_or_else(|| Status::internal("the conversion lost the object"))
}

/// From whatever version is stored to the row's.
pub(crate) async fn from_storage(state: &State, resource: &Resource, value: Value) -> Result<Value, Status> {
    if resource.conversion.is_none() {
        return resource.from_storage(value);
    }
    let mut converted = convert(state, resource, vec![value], &resource.api_version()).await?;
    let value = converted.pop().ok_or_else(|| Status::internal("the conversion lost the object"))?;
    // Of its version now: what is left to do is giving it its defaults.
    resource.from_storage(value)
}

/// The bytes of stored objects in the row's version; those of another version are converted in one call.
pub(crate) async fn shown(
    state: &State,
    resource: &Resource,
    stored: Vec<Bytes>,
) -> Result<Vec<Bytes>, Status> {
    if resource.conversion.is_none() {
        return stored.iter().map(|bytes| read::converted(resource, bytes)).collect();
    }
    let mut foreign = Vec::new();
    for bytes in stored.iter().filter(|bytes| !resource.is_current(bytes)) {
        foreign.push(read::parse(bytes)?);
    }
    let mut converted = convert(state, resource, foreign, &resource.api_version()).await?.into_iter();
    let mut all = Vec::with_capacity(stored.len());
    for bytes in stored {
        let bytes = match converted.len() {
            _ if resource.is_current(&bytes) => bytes,
            _ => converted.next().map_or(bytes, |value| value.to_string().into()),
        };
        all.push(read::converted(resource, &bytes)?);
    }
    Ok(all)
}

/// Asks the webhook about the objects that are not of the wanted version yet; the order stays.
async fn convert(
    state: &State,
    resource: &Resource,
    objects: Vec<Value>,
    wanted: &str,
) -> Result<Vec<Value>, Status> {
    let asked: Vec<&Value> = objects.iter().filter(|object| object["apiVersion"] != wanted).collect();
    if asked.is_empty() {
        return Ok(objects);
    }
    let from = asked[0]["apiVersion"].as_str().unwrap_or_default().to_owned();
    let failed = |what: String| {
        Status::internal(format!("conversion webhook for {from}, Kind={} failed: {what}", resource.kind))
    };
    let webhook = resource.conversion.as_deref().unwrap_or(&Value::Null);
    let (server, path) = Server::of_client_config(state, &webhook["clientConfig"]).map_err(&failed)?;
    let known = webhook["conversionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    // The first of the webhook's versions that is known here, as upstream.
    let version = known.iter().filter_map(Value::as_str).find(|version| matches!(*version, "v1" | "v1beta1"));
    let api_version = format!("apiextensions.k8s.io/{}", version.unwrap_or("v1"));
    let review = json!({
        "kind": "ConversionReview",
        "apiVersion": api_version,
        "request": { "uid": object::new_uid(), "desiredAPIVersion": wanted, "objects": asked },
    });
    let path = format!("{path}{}timeout={}s", if path.contains('?') { '&' } else { '?' }, PATIENCE.as_secs());
    let answer = server.post(state, &path, &review, PATIENCE).await.map_err(&failed)?;
    let mut converted = converted(answer, &review, &asked).map_err(&failed)?.into_iter();
    Ok(objects
        .iter()
        .map(|object| {
            if object["apiVersion"] == wanted {
                return object.clone();
            }
            converted.next().unwrap_or_default()
        })
        .collect())
}

/// What the webhook has made of the objects: as many, of the wanted version, with their identity.
fn converted(mut answer: Value, review: &Value, asked: &[&Value]) -> Result<Vec<Value>, String> {
    if answer["kind"] != "ConversionReview" || answer["apiVersion"] != review["apiVersion"] {
        return Err(format!(
            "expected webhook response of {}, Kind=ConversionReview, got {}, Kind={}",
            review["apiVersion"].as_str().unwrap_or_default(),
            answer["apiVersion"].as_str().unwrap_or_default(),
            answer["kind"].as_str().unwrap_or_default()
        ));
    }
    let response = answer["response"].take();
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    if response["uid"] != review["request"]["uid"] {
        return Err(format!("expected response.uid={}, got {}", review["request"]["uid"], response["uid"]));
    }
    if response["result"]["status"] != "Success" {
        let message = response["result"]["message"].as_str().filter(|message| !message.is_empty());
        return Err(message.map_or_else(
            || format!("response.result.status was {}, not \"Success\"", response["result"]["status"]),
            str::to_owned,
        ));
    }
    let objects = response["convertedObjects"].as_array().map(Vec::as_slice).unwrap_or_default();
    if objects.len() != asked.len() {
        return Err(format!("webhook returned {} objects, expected {}", objects.len(), asked.len()));
    }
    let wanted = &review["request"]["desiredAPIVersion"];
    let mut all = Vec::with_capacity(objects.len());
    for (index, (object, original)) in objects.iter().zip(asked).enumerate() {
        if object["apiVersion"] != *wanted || object["kind"] != original["kind"] {
            return Err(format!(
                "webhook returned an invalid apiVersion or kind at index {index}: {}, Kind={}",
                object["apiVersion"], object["kind"]
            ));
        }
        let (new, old) = (&object["metadata"], &original["metadata"]);
        for field in ["name", "namespace", "uid"] {
            if new[field] != old[field] {
                return Err(format!(
                    "webhook changed metadata.{field} at index {index} from {} to {}",
                    old[field], new[field]
                ));
            }
        }
        // Only labels and annotations are the webhook's to change.
        let mut object = object.clone();
        let mut metadata = old.clone();
        for field in ["labels", "annotations"] {
            match &new[field] {
                Value::Null => drop(metadata.as_object_mut().and_then(|metadata| metadata.remove(field))),
                value => metadata[field] = value.clone(),
            }
        }
        object["metadata"] = metadata;
        all.push(object);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_webhooks() {
        let original = json!({"apiVersion": "x.io/v1", "kind": "T",
            "metadata": {"name": "a", "uid": "1", "resourceVersion": "7"}, "hostPort": "h:1"});
        let review = json!({"apiVersion": "apiextensions.k8s.io/v1",
            "request": {"uid": "u", "desiredAPIVersion": "x.io/v2"}});
        let good = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
            "uid": "u", "result": {"status": "Success"}, "convertedObjects": [{"apiVersion": "x.io/v2", "kind": "T",
                "metadata": {"name": "a", "uid": "1", "labels": {"new": "1"}, "resourceVersion": "9"}, "host": "h"}]}});
        let made = converted(good.clone(), &review, &[&original]).unwrap();
        assert_eq!(made[0]["host"], "h");
        assert_eq!(
            made[0]["metadata"],
            json!({"name": "a", "uid": "1", "labels": {"new": "1"}, "resourceVersion": "7"})
        );
        for (pointer, value, part) in [
            ("/apiVersion", json!("v1"), "expected webhook response of"),
            ("/response", json!(null), "no response"),
            ("/response/uid", json!("x"), "response.uid"),
            ("/response/result", json!({"status": "Failure", "message": "cannot"}), "cannot"),
            ("/response/convertedObjects", json!([]), "webhook returned 0 objects, expected 1"),
            ("/response/convertedObjects/0/apiVersion", json!("x.io/v1"), "invalid apiVersion"),
            ("/response/convertedObjects/0/metadata/name", json!("b"), "changed metadata.name"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let error = converted(bad, &review, &[&original]).unwrap_err();
            assert!(error.contains(part), "{pointer}: {error}");
        }
    }
}
