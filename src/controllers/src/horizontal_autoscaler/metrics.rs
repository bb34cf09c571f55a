//! Reads pods' use of resources from the metrics API (`metrics.k8s.io`, served by an addon).

use std::time::Duration;

use kedge_api::quantity::Quantity;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use kube::discovery::ApiResource;

use super::replicas::{Resource, Sample, Samples};

/// The samples of the pods that a label selector lets through. The error is for the autoscaler's
/// condition.
pub(super) async fn samples(
    client: &kube::Client,
    namespace: &str,
    selector: &str,
    resource: Resource<'_>,
) -> Result<Samples, String> {
    let kind = ApiResource {
        group: "metrics.k8s.io".into(),
        version: "v1beta1".into(),
        api_version: "metrics.k8s.io/v1beta1".into(),
        kind: "PodMetrics".into(),
        plural: "pods".into(),
    };
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind);
    let list = api.list(&ListParams::default().labels(selector)).await.map_err(|error| {
        let text = refusal(&error, "pods.metrics.k8s.io");
        format!("unable to fetch metrics from resource metrics API: {text}")
    })?;
    if list.items.is_empty() {
        return Err("no metrics returned from resource metrics API".into());
    }
    Ok(list.items.iter().filter_map(|pod| sample(pod, resource)).collect())
}

/// The text of an error; an API that nobody serves is told of in client-go's words.
fn refusal(error: &kube::Error, resource: &str) -> String {
    let is_missing =
        matches!(error, kube::Error::Api(status) if status.code == 404 && status.details.is_none());
    if is_missing {
        return format!("the server could not find the requested resource (get {resource})");
    }
    crate::context::message(error)
}

/// `None`: some container does not say.
fn sample(pod: &DynamicObject, resource: Resource<'_>) -> Option<(String, Sample)> {
    let containers = pod.data["containers"].as_array()?;
    let mut value = 0;
    let mut found = false;
    for container in containers {
        if resource.container.is_some_and(|wanted| container["name"] != wanted) {
            continue;
        }
        let amount: Quantity = container["usage"][resource.name].as_str()?.parse().ok()?;
        value += amount.milli_value();
        found = true;
    }
    let at = pod.data["timestamp"].as_str()?.parse().ok()?;
    let window: jiff::SignedDuration = pod.data["window"].as_str()?.parse().ok()?;
    let window = Duration::try_from(window).ok()?;
    found.then(|| (pod.metadata.name.clone().unwrap_or_default(), Sample { value, at, window }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_are_added_up() {
        let pod: DynamicObject = serde_json::from_value(json!({ "metadata": { "name": "p" }, "timestamp": "2026-01-01T00:00:00Z",
            "window": "30.5s", "containers": [
                { "name": "a", "usage": { "cpu": "250m", "memory": "1Mi" } }, { "name": "b", "usage": { "cpu": "1" } }] }))
        .expect("metrics");
        for (name, container, expected) in [
            ("cpu", None, Some(1250)),
            ("cpu", Some("b"), Some(1000)),
            ("memory", None, None),
            ("memory", Some("a"), Some(1_048_576_000)),
            ("cpu", Some("c"), None),
        ] {
            let found = sample(&pod, Resource { name, container });
            assert_eq!(found.map(|(_, sample)| sample.value), expected, "{name} {container:?}");
        }
    }
}
