//! HorizontalPodAutoscaler: as many pods as a metric asks for (upstream pkg/controller/podautoscaler).
//! The arithmetic is in `replicas`, the speed in `behavior`; `reading` asks the three metrics APIs, which addons
//! and adapters serve.

mod behavior;
mod custom;
mod metrics;
mod reading;
mod replicas;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricSpec,
    MetricTarget,
};
use k8s_openapi::api::core::v1::Pod;
use kedge_api::selector::LabelSelector;
use kedge_client::{Error, EventType, Informer, ObjectKey, Queue, Recorder, reference};
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;

use self::behavior::{Past, decide, note};
use self::reading::{Failure, Look, tolerances};
use crate::context::{Context, message};
use crate::scale::{api_of, scale_of};
use crate::time;

/// How often the metrics are looked at, while there is an autoscaler
/// (`--horizontal-pod-autoscaler-sync-period`).
const PERIOD: Duration = Duration::from_secs(15);
const WORKERS: usize = 2;

pub(crate) fn start(ctx: &Context) {
    let controller = Arc::new(Controller {
        scalers: ctx.informers.informer::<HorizontalPodAutoscaler>(),
        pods: ctx.informers.informer::<Pod>(),
        recorder: ctx.recorder("horizontal-pod-autoscaler"),
        past: Mutex::default(),
        queue: Queue::new(),
        ctx: ctx.clone(),
    });
    let this = controller.clone();
    ctx.on_change(&controller.scalers, move |change| {
        let spec =
            |side: &Option<Arc<HorizontalPodAutoscaler>>| side.as_ref().map(|scaler| scaler.spec.clone());
        if change.new.is_none() {
            this.past.lock().remove(&change.key());
        }
        // Its own writes are no reason to look at the metrics again.
        if spec(&change.old) != spec(&change.new) {
            this.queue.add(change.key());
        }
    });
    let (scalers, pods) = (controller.scalers.clone(), controller.pods.clone());
    let synced = async move {
        scalers.synced().await;
        pods.synced().await;
    };
    ctx.run("horizontal-pod-autoscaler", controller.queue.clone(), WORKERS, synced, move |key| {
        let this = controller.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Controller {
    ctx: Context,
    scalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    recorder: Recorder,
    past: Mutex<HashMap<ObjectKey, Past>>,
    queue: Queue<ObjectKey>,
}

fn set(status: &mut HorizontalPodAutoscalerStatus, kind: &str, value: bool, reason: &str, text: &str) {
    let conditions = status.conditions.get_or_insert_default();
    let value = if value { "True" } else { "False" };
    let index = conditions.iter().position(|condition| condition.type_ == kind);
    let since = index.map(|index| &conditions[index]).filter(|old| old.status == value);
    let new = HorizontalPodAutoscalerCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(text.into()),
        last_transition_time: since.map_or_else(|| Some(time::now()), |old| old.last_transition_time.clone()),
    };
    match index {
        Some(index) => conditions[index] = new,
        None => conditions.push(new),
    }
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(scaler) = self.scalers.get_key(key) else {
            self.past.lock().remove(key);
            return Ok(None);
        };
        let old = scaler.status.clone().unwrap_or_default();
        let mut status = old.clone();
        status.observed_generation = scaler.metadata.generation;
        self.look(key, &scaler, &mut status).await;
        if status != old {
            let changed = HorizontalPodAutoscaler { status: Some(status), ..(*scaler).clone() };
            let api = self.ctx.api::<HorizontalPodAutoscaler>(&key.namespace);
            match api.replace_status(&key.name, &PostParams::default(), &changed).await {
                Err(error) if kedge_client::is_not_found(&error) => return Ok(None),
                // The next look writes it again, with the version of then.
                Err(error) if kedge_client::is_conflict(&error) => {}
                result => {
                    result?;
                }
            }
        }
        Ok(Some(PERIOD))
    }

    fn warn(&self, scaler: &HorizontalPodAutoscaler, reason: &str, text: String) {
        self.recorder.event(reference(scaler), EventType::Warning, reason, text);
    }

    /// All that can go wrong is told in the status.
    async fn look(
        &self,
        key: &ObjectKey,
        scaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
    ) {
        let spec = &scaler.spec;
        let wanted = &spec.scale_target_ref;
        let version = wanted.api_version.as_deref().unwrap_or("v1");
        let found = match api_of(&self.ctx.client, version, &wanted.kind, &key.namespace).await {
            Ok((api, _)) => scale_of(&api, &wanted.name).await.map(|scale| (api, scale)),
            Err(error) => Err(error),
        };
        let (api, scale) = match found {
            Ok(found) => found,
            Err(error) => {
                let text = text_of(&error);
                self.warn(scaler, "FailedGetScale", text.clone());
                let text = format!("the HPA controller was unable to get the target's current scale: {text}");
                set(status, "AbleToScale", false, "FailedGetScale", &text);
                return;
            }
        };
        set(
            status,
            "AbleToScale",
            true,
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
        );
        let current = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        let min = spec.min_replicas.unwrap_or(1);
        let now = Timestamp::now();
        status.current_replicas = Some(scale.status.as_ref().map_or(current, |status| status.replicas));
        self.past
            .lock()
            .entry(key.clone())
            .or_insert_with(|| Past { recommendations: vec![(now, current)], ..Past::default() });
        let mut why = String::new();
        let desired = if current == 0 && min != 0 {
            set(
                status,
                "ScalingActive",
                false,
                "ScalingDisabled",
                "scaling is disabled since the replica count of the target is zero",
            );
            status.desired_replicas = 0;
            return;
        } else if current > spec.max_replicas {
            why.push_str("Current number of replicas above Spec.MaxReplicas");
            spec.max_replicas
        } else if current < min {
            why.push_str("Current number of replicas below Spec.MinReplicas");
            min
        } else {
            let selector = scale.status.and_then(|status| status.selector).unwrap_or_default();
            match self.measure(key, scaler, current, &selector, status, now).await {
                Ok((wanted, metric)) => {
                    let decision = {
                        let mut past = self.past.lock();
                        decide(spec, current, wanted, past.entry(key.clone()).or_default(), now)
                    };
                    set(status, "AbleToScale", true, decision.stabilized.0, decision.stabilized.1);
                    let (limited, (reason, text)) = decision.limited;
                    set(status, "ScalingLimited", limited, reason, text);
                    if decision.replicas > current {
                        why = format!("{metric} above target");
                    } else if decision.replicas < current {
                        why.push_str("All metrics below target");
                    }
                    decision.replicas
                }
                Err(text) => {
                    self.warn(scaler, "FailedComputeMetricsReplicas", text);
                    return;
                }
            }
        };
        status.desired_replicas = desired;
        if desired == current {
            return;
        }
        let patch = Patch::Merge(json!({ "spec": { "replicas": desired } }));
        match api.patch_scale(&wanted.name, &PatchParams::default(), &patch).await {
            Ok(_) => {
                let text = format!("the HPA controller was able to update the target scale to {desired}");
                set(status, "AbleToScale", true, "SucceededRescale", &text);
                let text = format!("New size: {desired}; reason: {why}");
                self.recorder.event(reference(scaler), EventType::Normal, "SuccessfulRescale", text);
                status.last_scale_time = Some(time::now());
                if let Some(past) = self.past.lock().get_mut(key) {
                    note(spec.behavior.as_ref(), past, desired - current, now);
                }
                tracing::info!(autoscaler = %key, from = current, to = desired, reason = why, "scaled");
            }
            Err(error) => {
                let text = format!("New size: {desired}; reason: {why}; error: {}", message(&error));
                self.warn(scaler, "FailedRescale", text);
                let text =
                    format!("the HPA controller was unable to update the target scale: {}", message(&error));
                set(status, "AbleToScale", false, "FailedUpdateScale", &text);
                status.desired_replicas = current;
            }
        }
    }

    /// The largest number that a metric asks for, and its name. When some metrics are not known, a
    /// rise is possible and a fall is not.
    async fn measure(
        &self,
        key: &ObjectKey,
        scaler: &HorizontalPodAutoscaler,
        current: i32,
        selector: &str,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> Result<(i32, String), String> {
        let Some(labels) = LabelSelector::parse(selector).ok().filter(|_| !selector.is_empty()) else {
            let text = "the HPA target's scale is missing a selector";
            set(status, "ScalingActive", false, "InvalidSelector", text);
            return Err(text.into());
        };
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| {
            labels
                .matches(|key| pod.metadata.labels.as_ref().and_then(|all| all.get(key)).map(String::as_str))
        });
        let default = [default_metric()];
        let specs = scaler.spec.metrics.as_deref().filter(|metrics| !metrics.is_empty()).unwrap_or(&default);
        let (mut best, mut failures, mut current_metrics) =
            (None::<(i32, String)>, Vec::<Failure>::new(), Vec::new());
        let look = Look {
            client: &self.ctx.client,
            namespace: &key.namespace,
            selector,
            pods: &pods,
            replicas: current,
            current: status.current_replicas.unwrap_or(current),
            tolerances: tolerances(&scaler.spec),
            now,
        };
        for metric in specs {
            match look.read(metric).await {
                Ok(reading) => {
                    current_metrics.push(reading.status);
                    if best.as_ref().is_none_or(|(most, _)| reading.replicas > *most) {
                        best = Some((reading.replicas, reading.name));
                    }
                }
                Err(failure) => failures.push(failure),
            }
        }
        status.current_metrics = (!current_metrics.is_empty()).then_some(current_metrics);
        if let Some((reason, text)) = failures.first() {
            let falls = best.as_ref().is_none_or(|(most, _)| *most < current);
            if falls {
                let full = format!("the HPA was unable to compute the replica count: {text}");
                set(status, "ScalingActive", false, reason, &full);
                self.warn(scaler, reason, text.clone());
                return Err(format!(
                    "invalid metrics ({} invalid out of {}), first error is: {text}",
                    failures.len(),
                    specs.len()
                ));
            }
        }
        let (most, name) = best.ok_or("no metrics are specified")?;
        let text = format!("the HPA was able to successfully calculate a replica count from {name}");
        set(status, "ScalingActive", true, "ValidMetricFound", &text);
        Ok((most, name))
    }
}

/// What an autoscaler without metrics goes by.
fn default_metric() -> MetricSpec {
    MetricSpec {
        type_: "Resource".into(),
        resource: Some(k8s_openapi::api::autoscaling::v2::ResourceMetricSource {
            name: "cpu".into(),
            target: MetricTarget {
                type_: "Utilization".into(),
                average_utilization: Some(80),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

fn text_of(error: &Error) -> String {
    match error {
        Error::Api(error) => message(error),
        Error::Other(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{World, run};
    use serde_json::Value;

    const SCALE: &str = "/apis/apps/v1/namespaces/ns/deployments/d/scale";
    const METRICS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods";

    fn world(replicas: i32, metrics: Value) -> World {
        let world = World::new();
        let scale = json!({ "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": { "name": "d" },
            "spec": { "replicas": replicas }, "status": { "replicas": replicas, "selector": "app=d" } });
        world.can("GET", SCALE, scale.clone());
        world.can("PATCH", SCALE, scale);
        for number in 0..2 {
            world.create::<Pod>(json!({ "metadata": { "name": format!("p{number}"), "namespace": "ns", "labels": { "app": "d" } },
                "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "100m" } } }] },
                "status": { "phase": "Running", "startTime": "2020-01-01T00:00:00Z", "conditions": [
                    { "type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" }] } }));
        }
        world.create::<HorizontalPodAutoscaler>(
            json!({ "metadata": { "name": "h", "namespace": "ns" }, "spec": {
            "minReplicas": 1, "maxReplicas": 10, "metrics": metrics,
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "d" } } }),
        );
        start(&world.ctx);
        world
    }

    fn metrics(world: &World, cpu: &str) {
        let item = |name: &str| {
            json!({ "metadata": { "name": name }, "timestamp": "2026-01-01T00:00:00Z", "window": "30s",
            "containers": [{ "name": "c", "usage": { "cpu": cpu } }] })
        };
        world.can(
            "GET",
            METRICS,
            json!({ "kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {},
            "items": [item("p0"), item("p1")] }),
        );
    }

    fn reason(world: &World, kind: &str) -> Option<String> {
        let status = world.get::<HorizontalPodAutoscaler>("ns", "h")?.status?;
        status.conditions?.into_iter().find(|condition| condition.type_ == kind)?.reason
    }

    fn cpu() -> Value {
        json!([{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 50 } } }])
    }

    #[test]
    fn a_busy_deployment_grows() {
        run(async {
            let world = world(2, cpu());
            world
                .until("told that metrics are missing", |w| {
                    reason(w, "ScalingActive").as_deref() == Some("FailedGetResourceMetric")
                })
                .await;
            assert!(!world.log().iter().any(|line| line.contains("/scale")), "nothing is known");
            metrics(&world, "75m");
            world.until("scaled", |w| w.events().contains(&"SuccessfulRescale".to_owned())).await;
            let status =
                world.get::<HorizontalPodAutoscaler>("ns", "h").and_then(|h| h.status).expect("a status");
            assert_eq!((status.current_replicas, status.desired_replicas), (Some(2), 3));
            assert_eq!(reason(&world, "ScalingActive").as_deref(), Some("ValidMetricFound"));
        });
    }

    /// Of pods, of an object, of the world: each by its own API, in the version that is served.
    #[test]
    fn applications_metrics_count() {
        let item = |name: &str, value: &str| {
            json!({ "describedObject": { "kind": "Pod", "name": name }, "timestamp": "2026-01-01T00:00:00Z",
                "value": value, "metricName": "requests" })
        };
        let custom = "/apis/custom.metrics.k8s.io";
        let metric = json!({ "name": "requests", "selector": { "matchLabels": { "verb": "GET" } } });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "name": "front" });
        for (what, path, items, source, desired) in [
            (
                "of pods",
                format!("{custom}/v1beta2/namespaces/ns/pods/*/requests"),
                json!([item("p0", "15"), item("p1", "15")]),
                json!({ "type": "Pods", "pods": { "metric": metric, "target": { "type": "AverageValue", "averageValue": "10" } } }),
                3,
            ),
            (
                "of an object, older API",
                format!("{custom}/v1beta1/namespaces/ns/services/front/requests"),
                json!([item("front", "200")]),
                json!({ "type": "Object", "object": { "metric": metric, "describedObject": service,
                    "target": { "type": "Value", "value": "100" } } }),
                4,
            ),
            (
                "of the namespace, for each pod",
                format!("{custom}/v1beta2/namespaces/ns/metrics/requests"),
                json!([item("ns", "3500m")]),
                json!({ "type": "Object", "object": { "metric": { "name": "requests" },
                    "describedObject": { "kind": "Namespace", "name": "ns" },
                    "target": { "type": "AverageValue", "averageValue": "1" } } }),
                4,
            ),
            (
                "of the world",
                "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/requests".to_owned(),
                json!([{ "metricName": "requests", "value": "30" }, { "metricName": "requests", "value": "42" }]),
                json!({ "type": "External", "external": { "metric": metric, "target": { "type": "AverageValue", "averageValue": "18" } } }),
                4,
            ),
        ] {
            run(async move {
                let world = world(2, json!([source]));
                let kinds = json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [
                    { "name": "services", "singularName": "service", "kind": "Service", "namespaced": true, "verbs": ["get"] }] });
                world.can("GET", "/api/v1", kinds);
                world.can("GET", &path, json!({ "kind": "MetricValueList", "items": items }));
                let status = |w: &World| w.get::<HorizontalPodAutoscaler>("ns", "h").and_then(|h| h.status);
                world
                    .until(what, |w| status(w).is_some_and(|status| status.desired_replicas == desired))
                    .await;
                assert_eq!(reason(&world, "ScalingActive").as_deref(), Some("ValidMetricFound"));
            });
        }
    }

    #[test]
    fn what_cannot_be_scaled_is_told() {
        for (replicas, metrics, kind, expected) in [
            (0, cpu(), "ScalingActive", "ScalingDisabled"),
            (
                2,
                json!([{ "type": "External", "external": { "metric": { "name": "q" }, "target": { "type": "Value", "value": "1" } } }]),
                "ScalingActive",
                "FailedGetExternalMetric",
            ),
            (20, cpu(), "AbleToScale", "SucceededRescale"),
        ] {
            run(async move {
                let world = world(replicas, metrics);
                world.until(expected, |w| reason(w, kind).as_deref() == Some(expected)).await;
            });
        }
    }
}
