//! NodeMetrics, PodMetrics, their lists and tables, and the documents that describe them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::points::Rate;
use crate::{GROUP, VERSION};

const GROUP_VERSION: &str = "metrics.k8s.io/v1beta1";

/// A node or pod with what it uses.
#[derive(Debug)]
pub(super) struct Measured {
    meta: ObjectMeta,
    at: i64,
    window: i64,
    /// Of a pod; a node has just one, without a name.
    parts: Vec<(String, Rate)>,
    is_pod: bool,
}

impl Measured {
    pub(super) fn node(meta: ObjectMeta, rate: Rate) -> Self {
        let parts = vec![(String::new(), rate)];
        Self { meta, at: rate.at, window: rate.window, parts, is_pod: false }
    }

    /// The pod is as old as the oldest of its containers' samples.
    pub(super) fn pod(meta: ObjectMeta, parts: Vec<(String, Rate)>) -> Option<Self> {
        let oldest = parts.iter().map(|(_, rate)| rate).min_by_key(|rate| rate.at)?;
        let (at, window) = (oldest.at, oldest.window);
        Some(Self { meta, at, window, parts, is_pod: true })
    }

    fn metadata(&self) -> Value {
        let mut meta = json!({
            "name": self.meta.name,
            // These objects are made when they are asked for.
            "creationTimestamp": moment(jiff::Timestamp::now().as_millisecond()),
        });
        if let Some(namespace) = self.meta.namespace.as_ref().filter(|_| self.is_pod) {
            meta["namespace"] = json!(namespace);
        }
        if let Some(labels) = self.meta.labels.as_ref().filter(|labels| !labels.is_empty()) {
            meta["labels"] = json!(labels);
        }
        meta
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "metadata": self.metadata(),
            "timestamp": moment(self.at),
            "window": window(self.window),
        });
        if self.is_pod {
            let containers: Vec<Value> = self
                .parts
                .iter()
                .map(|(name, rate)| json!({ "name": name, "usage": usage(*rate) }))
                .collect();
            body["containers"] = json!(containers);
        } else if let Some((_, rate)) = self.parts.first() {
            body["usage"] = usage(*rate);
        }
        body
    }

    pub(super) fn object(&self, kind: &str) -> Value {
        let mut object = self.body();
        object["kind"] = json!(format!("{kind}Metrics"));
        object["apiVersion"] = json!(GROUP_VERSION);
        object
    }
}

fn moment(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds)
        .map_or_else(|_| String::new(), |time| format!("{time:.0}"))
}

/// As Go prints a duration, in seconds.
fn window(milliseconds: i64) -> String {
    let text = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

fn cpu(nano_cores: u64) -> String {
    if nano_cores == 0 { "0".to_owned() } else { format!("{nano_cores}n") }
}

fn memory(bytes: u64) -> String {
    format!("{}Ki", bytes / 1024)
}

fn usage(rate: Rate) -> Value {
    json!({ "cpu": cpu(rate.nano_cores), "memory": memory(rate.memory) })
}

pub(super) fn list(items: &[Measured], kind: &str) -> Value {
    let items: Vec<Value> = items.iter().map(Measured::body).collect();
    json!({
        "kind": format!("{kind}MetricsList"), "apiVersion": GROUP_VERSION, "metadata": {}, "items": items,
    })
}

pub(super) fn table(items: &[Measured]) -> Value {
    let column = |name: &str, format: &str, description: &str| json!({ "name": name, "type": "string", "format": format, "description": description, "priority": 0 });
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let cores = item.parts.iter().map(|(_, rate)| rate.nano_cores).sum();
            let bytes = item.parts.iter().map(|(_, rate)| rate.memory).sum();
            json!({
                "cells": [item.meta.name, cpu(cores), memory(bytes), window(item.window)],
                "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item.metadata(),
                },
            })
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": [
            column("Name", "name", "Name of the resource"),
            column("cpu", "", "Processor time that is used"),
            column("memory", "", "Memory that is used"),
            column("Window", "", "The time over which it was measured"),
        ],
        "rows": rows,
    })
}

pub(super) fn group_list() -> Value {
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group_entry()] })
}

fn group_entry() -> Value {
    let version = json!({ "groupVersion": GROUP_VERSION, "version": VERSION });
    json!({ "name": GROUP, "versions": [version], "preferredVersion": version })
}

pub(super) fn group() -> Value {
    let mut group = group_entry();
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    group
}

pub(super) fn resources() -> Value {
    let resource = |name: &str, kind: &str, namespaced: bool| {
        json!({
            "name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"],
        })
    };
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION,
        "resources": [resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)],
    })
}

/// Schemas of the two kinds, with references that begin with `prefix`.
fn schemas(prefix: &str) -> Value {
    let of =
        |kind: &str| json!({ "$ref": format!("{prefix}io.k8s.metrics.pkg.apis.metrics.v1beta1.{kind}") });
    let usage = json!({
        "type": "object", "description": "The memory usage is the memory working set.",
        "additionalProperties": { "type": "string" },
    });
    let gvk = |kind: &str| json!([{ "group": GROUP, "version": VERSION, "kind": kind }]);
    let object = |kind: &str, own: &str, schema: Value| {
        let mut object = json!({
            "type": "object", "required": ["timestamp", "window", own],
            "description": format!("{kind} sets resource usage metrics, measured over the window that ends at the timestamp."),
            "properties": {
                "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "metadata": { "type": "object" },
                "timestamp": { "type": "string", "format": "date-time" }, "window": { "type": "string" },
            },
            "x-kubernetes-group-version-kind": gvk(kind),
        });
        object["properties"][own] = schema;
        object
    };
    let list = |kind: &str, item: &str| {
        json!({
            "type": "object", "required": ["items"],
            "properties": {
                "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "metadata": { "type": "object" },
                "items": { "type": "array", "items": of(item) },
            },
            "x-kubernetes-group-version-kind": gvk(kind),
        })
    };
    let name = |kind: &str| format!("io.k8s.metrics.pkg.apis.metrics.v1beta1.{kind}");
    let all = [
        (
            "ContainerMetrics",
            json!({
                "type": "object", "required": ["name", "usage"],
                "properties": { "name": { "type": "string" }, "usage": usage },
            }),
        ),
        ("NodeMetrics", object("NodeMetrics", "usage", usage)),
        ("NodeMetricsList", list("NodeMetricsList", "NodeMetrics")),
        (
            "PodMetrics",
            object("PodMetrics", "containers", json!({ "type": "array", "items": of("ContainerMetrics") })),
        ),
        ("PodMetricsList", list("PodMetricsList", "PodMetrics")),
    ];
    all.into_iter().map(|(kind, schema)| (name(kind), schema)).collect::<serde_json::Map<_, _>>().into()
}

fn info() -> Value {
    json!({ "title": "Kedge metrics", "version": VERSION })
}

pub(super) fn openapi_v2() -> Value {
    json!({ "swagger": "2.0", "info": info(), "paths": {}, "definitions": schemas("#/definitions/") })
}

pub(super) fn openapi_paths() -> Value {
    let path = format!("apis/{GROUP_VERSION}");
    json!({ "paths": { (path.clone()): { "serverRelativeURL": format!("/openapi/v3/{path}") } } })
}

pub(super) fn openapi_v3() -> Value {
    json!({
        "openapi": "3.0.0", "info": info(), "paths": {},
        "components": { "schemas": schemas("#/components/schemas/") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(at: i64) -> Rate {
        Rate { nano_cores: 250_000_000, memory: 2048, at, window: 15_020 }
    }

    fn meta() -> ObjectMeta {
        ObjectMeta {
            name: Some("p".into()),
            namespace: Some("n".into()),
            labels: Some([("app".to_owned(), "x".to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn objects_are_upstreams() {
        let parts = vec![("a".to_owned(), rate(2000)), ("b".to_owned(), rate(1000))];
        let pod = Measured::pod(meta(), parts).unwrap();
        let object = pod.object("Pod");
        assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("PodMetrics"), &json!(GROUP_VERSION)));
        assert_eq!(object["timestamp"], "1970-01-01T00:00:01Z");
        assert_eq!(object["window"], "15.02s");
        assert_eq!(object["metadata"]["labels"]["app"], "x");
        assert_eq!(
            object["containers"][1],
            json!({"name": "b", "usage": {"cpu": "250000000n", "memory": "2Ki"}})
        );
        let table = table(&[pod]);
        assert_eq!(table["rows"][0]["cells"], json!(["p", "500000000n", "4Ki", "15.02s"]));
        assert_eq!(table["columnDefinitions"].as_array().unwrap().len(), 4);
        assert!(Measured::pod(meta(), Vec::new()).is_none(), "a pod without containers has no metrics");
        let node = list(&[Measured::node(meta(), rate(1000))], "Node");
        assert_eq!(node["kind"], "NodeMetricsList");
        assert_eq!(node["items"][0]["usage"]["cpu"], "250000000n");
        assert!(node["items"][0]["metadata"]["namespace"].is_null());
    }

    #[test]
    fn windows_are_durations() {
        for (milliseconds, text) in [(15_000, "15s"), (15_020, "15.02s"), (75_123, "75.123s"), (500, "0.5s")]
        {
            assert_eq!(window(milliseconds), text);
        }
    }
}
