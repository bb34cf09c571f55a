//! What one metric of an autoscaler says: its value, and how many pods it asks for (upstream
//! pkg/controller/podautoscaler: computeReplicasForMetric).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerSpec, MetricIdentifier,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kedge_api::quantity::Quantity;

use super::replicas::{Proposal, Resource, TOLERANCE, Target, Tolerances, for_each_pod, for_value, propose};
use super::{custom, metrics};

/// What one metric says.
pub(super) struct Reading {
    pub(super) replicas: i32,
    /// As it stands in events.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// A condition's reason and message.
pub(super) type Failure = (&'static str, String);

/// What all metrics of an autoscaler are read with.
pub(super) struct Look<'a> {
    pub(super) client: &'a kube::Client,
    pub(super) namespace: &'a str,
    /// Of the pods, as text.
    pub(super) selector: &'a str,
    pub(super) pods: &'a [Arc<Pod>],
    /// What the target is to have now.
    pub(super) replicas: i32,
    /// What it has.
    pub(super) current: i32,
    pub(super) tolerances: Tolerances,
    pub(super) now: Timestamp,
}

pub(super) fn tolerances(spec: &HorizontalPodAutoscalerSpec) -> Tolerances {
    let given = |tolerance: Option<&Text>| Some(milli(tolerance)? as f64 / 1000.0);
    let behavior = spec.behavior.as_ref();
    let rules =
        |up: bool| behavior.and_then(|b| if up { b.scale_up.as_ref() } else { b.scale_down.as_ref() });
    let of = |up| given(rules(up).and_then(|rules| rules.tolerance.as_ref())).unwrap_or(TOLERANCE);
    Tolerances { down: of(false), up: of(true) }
}

fn milli(quantity: Option<&Text>) -> Option<i64> {
    Some(quantity?.0.parse::<Quantity>().ok()?.milli_value())
}

fn target(target: &MetricTarget) -> Option<Target> {
    match milli(target.average_value.as_ref()) {
        Some(average) => Some(Target::Average(average.max(1))),
        None => Some(Target::Utilization(target.average_utilization?.max(1))),
    }
}

fn quantity(milli: i64) -> Option<Text> {
    Some(Text(Quantity::from_milli(milli).to_string()))
}

impl Look<'_> {
    pub(super) async fn read(&self, metric: &MetricSpec) -> Result<Reading, Failure> {
        let blank = MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() };
        if let Some(source) = &metric.resource {
            let resource = Resource { name: &source.name, container: None };
            let (proposal, current) = self
                .resource(resource, &source.target)
                .await
                .map_err(|text| ("FailedGetResourceMetric", text))?;
            let status = ResourceMetricStatus { name: source.name.clone(), current };
            return Ok(Reading {
                replicas: proposal.replicas,
                name: named(&proposal, format!("{} resource", source.name)),
                status: MetricStatus { resource: Some(status), ..blank },
            });
        }
        if let Some(source) = &metric.container_resource {
            let resource = Resource { name: &source.name, container: Some(&source.container) };
            let (proposal, current) = self
                .resource(resource, &source.target)
                .await
                .map_err(|text| ("FailedGetContainerResourceMetric", text))?;
            let (name, container) = (source.name.clone(), source.container.clone());
            return Ok(Reading {
                replicas: proposal.replicas,
                name: named(&proposal, format!("{name} container resource of {container}")),
                status: MetricStatus {
                    container_resource: Some(ContainerResourceMetricStatus { name, container, current }),
                    ..blank
                },
            });
        }
        if let Some(source) = &metric.pods {
            let (replicas, current) = self.pods(&source.metric, &source.target).await.map_err(|text| {
                ("FailedGetPodsMetric", format!("failed to get pods metric value: {text}"))
            })?;
            return Ok(Reading {
                replicas,
                name: format!("pods metric {}", source.metric.name),
                status: MetricStatus {
                    pods: Some(PodsMetricStatus { metric: source.metric.clone(), current }),
                    ..blank
                },
            });
        }
        if let Some(source) = &metric.object {
            let (metric, object) = (&source.metric, &source.described_object);
            let value = async {
                let value =
                    custom::of_object(self.client, self.namespace, object, metric).await.map_err(|text| {
                        format!(
                            "unable to get metric {}: {text} on {} {}/{}",
                            metric.name, object.kind, self.namespace, object.name
                        )
                    })?;
                self.value(value, &source.target, "object")
            };
            let (replicas, current) = value.await.map_err(|text| {
                ("FailedGetObjectMetric", format!("failed to get object metric value: {text}"))
            })?;
            return Ok(Reading {
                replicas,
                name: format!("{} metric {}", object.kind, metric.name),
                status: MetricStatus {
                    object: Some(ObjectMetricStatus {
                        metric: metric.clone(),
                        described_object: object.clone(),
                        current,
                    }),
                    ..blank
                },
            });
        }
        if let Some(source) = &metric.external {
            let metric = &source.metric;
            let value = async {
                let value = custom::of_world(self.client, self.namespace, metric).await.map_err(|text| {
                    format!("unable to get external metric {}/{}: {text}", self.namespace, of(metric))
                })?;
                self.value(value, &source.target, "external")
            };
            let (replicas, current) = value.await.map_err(|text| {
                (
                    "FailedGetExternalMetric",
                    format!("failed to get {} external metric value: {text}", metric.name),
                )
            })?;
            return Ok(Reading {
                replicas,
                name: format!("external metric {}", of(metric)),
                status: MetricStatus {
                    external: Some(ExternalMetricStatus { metric: metric.clone(), current }),
                    ..blank
                },
            });
        }
        Err(("InvalidMetricSourceType", format!("unknown metric source type {:?}", metric.type_)))
    }

    async fn resource(
        &self,
        resource: Resource<'_>,
        wanted: &MetricTarget,
    ) -> Result<(Proposal, MetricValueStatus), String> {
        let target = target(wanted).ok_or(
            "invalid resource metric source: neither an average utilization target nor an average value (usage) \
             target was set",
        )?;
        let proposal = async {
            let samples = metrics::samples(self.client, self.namespace, self.selector, resource).await;
            let samples = samples
                .map_err(|text| format!("unable to get metrics for resource {}: {text}", resource.name))?;
            self.propose(&samples, resource, target)
        };
        let proposal =
            proposal.await.map_err(|text| format!("failed to get {} utilization: {text}", resource.name))?;
        let current = MetricValueStatus {
            average_utilization: proposal.utilization,
            average_value: quantity(proposal.average),
            value: None,
        };
        Ok((proposal, current))
    }

    fn propose(
        &self,
        samples: &super::replicas::Samples,
        resource: Resource<'_>,
        target: Target,
    ) -> Result<Proposal, String> {
        propose(self.replicas, self.pods, samples, resource, target, self.tolerances, self.now)
    }

    async fn pods(
        &self,
        metric: &MetricIdentifier,
        wanted: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus), String> {
        let average = milli(wanted.average_value.as_ref())
            .ok_or("invalid pods metric source: no average value target was set")?;
        let samples = custom::of_pods(self.client, self.namespace, self.selector, metric)
            .await
            .map_err(|text| format!("unable to get metric {}: {text}", metric.name))?;
        // No resource: what a young pod says counts.
        let none = Resource { name: "", container: None };
        let proposal = self.propose(&samples, none, Target::Average(average.max(1)))?;
        let current =
            MetricValueStatus { average_value: quantity(proposal.average), ..MetricValueStatus::default() };
        Ok((proposal.replicas, current))
    }

    /// What one number for all pods asks for.
    fn value(
        &self,
        value: i64,
        wanted: &MetricTarget,
        kind: &str,
    ) -> Result<(i32, MetricValueStatus), String> {
        let mut status = MetricValueStatus::default();
        let replicas = if let Some(average) = milli(wanted.average_value.as_ref()) {
            let (replicas, average) = for_each_pod(self.current, value, average.max(1), self.tolerances);
            status.average_value = quantity(average);
            replicas
        } else {
            let target = milli(wanted.value.as_ref()).ok_or_else(|| {
                format!(
                    "invalid {kind} metric source: neither a value target nor an average value target was set"
                )
            })?;
            status.value = quantity(value);
            for_value(self.replicas, self.pods, value, target.max(1), self.tolerances)?
        };
        Ok((replicas, status))
    }
}

fn named(proposal: &Proposal, what: String) -> String {
    match proposal.utilization {
        Some(_) => format!("{what} utilization (percentage of request)"),
        None => what,
    }
}

/// A metric with its selector.
fn of(metric: &MetricIdentifier) -> String {
    match custom::written(metric.selector.as_ref()) {
        Ok(selector) if !selector.is_empty() => format!("{}({selector})", metric.name),
        _ => metric.name.clone(),
    }
}
