//! Reads metrics of applications: those of objects from `custom.metrics.k8s.io`, those of the world outside from
//! `external.metrics.k8s.io` (KEPs of sig-instrumentation; upstream staging/src/k8s.io/metrics/pkg/client). An
//! adapter that the user brings serves both.

use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Selector;
use kedge_api::quantity::Quantity;
use kedge_api::selector::LabelSelector;
use kube::core::GroupVersionKind;
use serde_json::Value;

use super::replicas::{Sample, Samples};
use crate::context::message;

/// The newest version first.
const CUSTOM: [&str; 2] = ["v1beta2", "v1beta1"];

/// A metric of each pod that a label selector lets through, in thousandths.
pub(super) async fn of_pods(
    client: &kube::Client,
    namespace: &str,
    selector: &str,
    metric: &MetricIdentifier,
) -> Result<Samples, String> {
    let path = format!("namespaces/{namespace}/pods/{}/{}", escaped("*"), escaped(&metric.name));
    let list = custom(client, &path, &[("labelSelector", selector), ("metricLabelSelector", &text(metric)?)])
        .await
        .map_err(|text| format!("unable to fetch metrics from custom metrics API: {text}"))?;
    let items = items(&list);
    if items.is_empty() {
        return Err("no metrics returned from custom metrics API".into());
    }
    items
        .iter()
        .map(|item| {
            let name = item["describedObject"]["name"].as_str().unwrap_or_default().to_owned();
            let at = item["timestamp"].as_str().and_then(|time| time.parse().ok());
            let window = item["windowSeconds"].as_u64().or(item["window"].as_u64()).unwrap_or(60);
            let sample = Sample {
                value: value(item)?,
                at: at.unwrap_or(Timestamp::UNIX_EPOCH),
                window: Duration::from_secs(window),
            };
            Ok((name, sample))
        })
        .collect()
}

/// A metric of one object, in thousandths.
pub(super) async fn of_object(
    client: &kube::Client,
    namespace: &str,
    object: &CrossVersionObjectReference,
    metric: &MetricIdentifier,
) -> Result<i64, String> {
    let api_version = object.api_version.as_deref().unwrap_or("v1");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let name = escaped(&object.name);
    let path = if group.is_empty() && object.kind == "Namespace" {
        format!("namespaces/{name}/metrics/{}", escaped(&metric.name))
    } else {
        let wanted = GroupVersionKind::gvk(group, version, &object.kind);
        let (resource, _) = kube::discovery::pinned_kind(client, &wanted)
            .await
            .map_err(|_| format!("no matches for kind \"{}\" in version \"{api_version}\"", object.kind))?;
        let dot = if group.is_empty() { "" } else { "." };
        format!("namespaces/{namespace}/{}{dot}{group}/{name}/{}", resource.plural, escaped(&metric.name))
    };
    let list = custom(client, &path, &[("metricLabelSelector", &text(metric)?)])
        .await
        .map_err(|text| format!("unable to fetch metrics from custom metrics API: {text}"))?;
    match items(&list) {
        [item] => value(item),
        [] => Err("no metrics returned from custom metrics API".into()),
        _ => Err(format!("the custom metrics API returned several values of {}", metric.name)),
    }
}

/// The sum of all series of an external metric, in thousandths.
pub(super) async fn of_world(
    client: &kube::Client,
    namespace: &str,
    metric: &MetricIdentifier,
) -> Result<i64, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}{}",
        escaped(&metric.name),
        query(&[("labelSelector", &text(metric)?)])
    );
    let list = get(client, &path)
        .await
        .map_err(|error| format!("unable to fetch metrics from external metrics API: {}", message(&error)))?;
    let items = items(&list);
    if items.is_empty() {
        return Err("no metrics returned from external metrics API".into());
    }
    items.iter().try_fold(0_i64, |sum, item| Ok(sum.saturating_add(value(item)?)))
}

/// From the newest version that is served.
async fn custom(client: &kube::Client, path: &str, asked: &[(&str, &str)]) -> Result<Value, String> {
    let mut refused = String::new();
    for version in CUSTOM {
        match get(client, &format!("/apis/custom.metrics.k8s.io/{version}/{path}{}", query(asked))).await {
            Err(error) if kedge_client::is_not_found(&error) => {
                refused = message(&error);
            }
            result => return result.map_err(|error| message(&error)),
        }
    }
    Err(refused)
}

async fn get(client: &kube::Client, path: &str) -> Result<Value, kube::Error> {
    client.request(Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?).await
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn value(item: &Value) -> Result<i64, String> {
    let text = item["value"].as_str().unwrap_or_default();
    let quantity: Quantity =
        text.parse().map_err(|_| format!("the metrics API returned the value {text:?}"))?;
    Ok(quantity.milli_value())
}

/// The metric's own selector as the API takes it.
fn text(metric: &MetricIdentifier) -> Result<String, String> {
    written(metric.selector.as_ref())
}

pub(super) fn written(selector: Option<&Selector>) -> Result<String, String> {
    let Some(selector) = selector else { return Ok(String::new()) };
    let value = serde_json::to_value(selector).map_err(|error| error.to_string())?;
    Ok(LabelSelector::from_object(&value).map_err(|error| error.to_string())?.to_string())
}

/// Without what is empty.
fn query(asked: &[(&str, &str)]) -> String {
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    pairs.extend_pairs(asked.iter().filter(|(_, value)| !value.is_empty()));
    let text = pairs.finish();
    if text.is_empty() { text } else { format!("?{text}") }
}

/// As a part of a path.
fn escaped(name: &str) -> String {
    form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_and_names_are_written_as_the_api_takes_them() {
        let selector: Selector = serde_json::from_value(json!({ "matchLabels": { "verb": "GET" },
            "matchExpressions": [{ "key": "code", "operator": "In", "values": ["500", "200"] }] }))
        .unwrap();
        let written = written(Some(&selector)).unwrap();
        assert_eq!(written, "code in (200,500),verb=GET");
        assert_eq!(
            query(&[("labelSelector", ""), ("metricLabelSelector", &written)]),
            "?metricLabelSelector=code+in+%28200%2C500%29%2Cverb%3DGET"
        );
        assert_eq!(query(&[("labelSelector", "")]), "");
        assert_eq!(escaped("s0-rabbitmq/queue a"), "s0-rabbitmq%2Fqueue%20a");
        assert!(value(&json!({ "value": "1500m" })) == Ok(1500) && value(&json!({})).is_err());
    }
}
