//! Conversion between versions that share their storage: the two event APIs and
//! the two versions of HorizontalPodAutoscaler.

use serde_json::{Map, Value, json};

use crate::object;
use crate::status::Status;

type Gv<'a> = (&'a str, &'a str);

pub(super) fn convert(mut obj: Value, kind: &str, from: Gv<'_>, to: Gv<'_>) -> Result<Value, Status> {
    if from == to {
        return Ok(obj);
    }
    match (kind, from.0, to.0) {
        ("Event", "events.k8s.io", "") => rename(&mut obj, true),
        ("Event", "", "events.k8s.io") => rename(&mut obj, false),
        ("HorizontalPodAutoscaler", _, _) if to.1 == "v2" => hpa_to_v2(&mut obj)?,
        ("HorizontalPodAutoscaler", _, _) if to.1 == "v1" => hpa_to_v1(&mut obj)?,
        // A CRD without a conversion webhook: only the version's name differs.
        _ => {}
    }
    if let Value::Object(m) = &mut obj {
        m.insert("apiVersion".into(), object::join_api_version(to.0, to.1).into());
    }
    Ok(obj)
}

/// events.k8s.io name, core name.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn rename(obj: &mut Value, to_core: bool) {
    let Value::Object(m) = obj else { return };
    for (new, core) in EVENT_FIELDS {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(v) = m.remove(from) {
            m.insert(to.to_string(), v);
        }
    }
}

const ANNOTATION_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const ANNOTATION_CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const ANNOTATION_CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const ANNOTATION_BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn take_annotation(obj: &mut Value, key: &str) -> Result<Option<Value>, Status> {
    let meta = object::metadata_mut(obj);
    let Some(Value::Object(a)) = meta.get_mut("annotations") else { return Ok(None) };
    let Some(text) = a.remove(key) else { return Ok(None) };
    if a.is_empty() {
        meta.remove("annotations");
    }
    serde_json::from_str(text.as_str().unwrap_or_default())
        .map(Some)
        .map_err(|e| Status::bad_request(format!("annotation {key} is not JSON: {e}")))
}

fn cpu_metric(target: &Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": target}}})
}

/// autoscaling/v1 knows CPU only; the rest travels in annotations, as upstream.
fn hpa_to_v2(obj: &mut Value) -> Result<(), Status> {
    let mut metrics: Vec<Value> = Vec::new();
    if let Some(target) = object::remove(obj, "/spec/targetCPUUtilizationPercentage") {
        metrics.push(cpu_metric(&target));
    }
    if let Some(Value::Array(more)) = take_annotation(obj, ANNOTATION_METRICS)? {
        metrics.extend(more);
    }
    if !metrics.is_empty() {
        object::set(obj, "/spec/metrics", Value::Array(metrics));
    }
    if let Some(behavior) = take_annotation(obj, ANNOTATION_BEHAVIOR)? {
        object::set(obj, "/spec/behavior", behavior);
    }
    let mut current: Vec<Value> = Vec::new();
    if let Some(used) = object::remove(obj, "/status/currentCPUUtilizationPercentage") {
        current.push(
            json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": used}}}),
        );
    }
    if let Some(Value::Array(more)) = take_annotation(obj, ANNOTATION_CURRENT)? {
        current.extend(more);
    }
    if !current.is_empty() {
        object::set(obj, "/status/currentMetrics", Value::Array(current));
    }
    if let Some(conditions) = take_annotation(obj, ANNOTATION_CONDITIONS)? {
        object::set(obj, "/status/conditions", conditions);
    }
    Ok(())
}

fn is_cpu(m: &Value, value: &str) -> bool {
    m["type"] == "Resource" && m["resource"]["name"] == "cpu" && !object::get(m, value).is_null()
}

fn hpa_to_v1(obj: &mut Value) -> Result<(), Status> {
    let encode = |v: &Value| serde_json::to_string(v).map_err(|e| Status::internal(e.to_string()));
    for (list, used, target, annotation) in [
        (
            "/spec/metrics",
            "/resource/target/averageUtilization",
            "/spec/targetCPUUtilizationPercentage",
            ANNOTATION_METRICS,
        ),
        (
            "/status/currentMetrics",
            "/resource/current/averageUtilization",
            "/status/currentCPUUtilizationPercentage",
            ANNOTATION_CURRENT,
        ),
    ] {
        let Some(Value::Array(mut metrics)) = object::remove(obj, list) else { continue };
        if let Some(i) = metrics.iter().position(|m| is_cpu(m, used)) {
            let cpu = metrics.remove(i);
            object::set(obj, target, object::get(&cpu, used).clone());
        }
        if !metrics.is_empty() {
            let text = encode(&Value::Array(metrics))?;
            object::set_annotation(obj, annotation, &text);
        }
    }
    for (path, annotation) in
        [("/spec/behavior", ANNOTATION_BEHAVIOR), ("/status/conditions", ANNOTATION_CONDITIONS)]
    {
        if let Some(v) = object::remove(obj, path) {
            let text = encode(&v)?;
            object::set_annotation(obj, annotation, &text);
        }
    }
    if object::get(obj, "/status").as_object().is_some_and(Map::is_empty) {
        object::remove(obj, "/status");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_there_and_back() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod"}, "message": "m",
            "count": 2, "source": {"component": "c"}, "eventTime": "t", "series": {"count": 1}});
        let new = convert(core.clone(), "Event", ("", "v1"), ("events.k8s.io", "v1")).unwrap();
        assert_eq!(new["regarding"]["kind"], "Pod");
        assert_eq!(new["note"], "m");
        assert_eq!(new["apiVersion"], "events.k8s.io/v1");
        assert_eq!(convert(new, "Event", ("events.k8s.io", "v1"), ("", "v1")).unwrap(), core);
    }

    #[test]
    fn hpa_there_and_back() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "a"}, "spec": {"maxReplicas": 3,
            "behavior": {"scaleDown": {}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 60}}}]}});
        let v1 = convert(v2.clone(), "HorizontalPodAutoscaler", ("autoscaling", "v2"), ("autoscaling", "v1"))
            .unwrap();
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(v1["spec"].get("metrics").is_none());
        let back =
            convert(v1, "HorizontalPodAutoscaler", ("autoscaling", "v1"), ("autoscaling", "v2")).unwrap();
        assert_eq!(back, v2);
    }
}
