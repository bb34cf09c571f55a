//! Rows of the built-in kinds that take more than naming fields.

use jiff::Timestamp;
use serde_json::Value;

use super::duration::{age, human_duration};
use super::values::{containers, int, join, labels, list, or, selector, text};
use crate::object::{self, get, get_str};

pub(super) fn job(o: &Value, name: Value, old: Value, now: Timestamp) -> Vec<Value> {
    let [c, i] = containers(o, "/spec/template/spec/containers");
    let has = |t: &str| list(o, "/status/conditions").iter().any(|x| x["type"] == t && x["status"] == "True");
    let status = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if object::deletion_timestamp(o).is_some() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let succeeded = int(o, "/status/succeeded");
    let completions =
        match (get(o, "/spec/completions").as_i64(), get(o, "/spec/parallelism").as_i64().unwrap_or(0)) {
            (Some(n), _) => format!("{succeeded}/{n}"),
            (None, p) if p > 1 => format!("{succeeded}/1 of {p}"),
            _ => format!("{succeeded}/1"),
        };
    let second = |p: &str| get_str(o, p).parse::<Timestamp>().ok().map(Timestamp::as_second);
    let duration = match (second("/status/startTime"), second("/status/completionTime")) {
        (None, _) => String::new(),
        (Some(a), Some(b)) => human_duration(b - a),
        (Some(a), None) => human_duration(now.as_second() - a),
    };
    let s = selector(get(o, "/spec/selector"), "<none>");
    vec![name, status.into(), completions.into(), duration.into(), old, c, i, s]
}

pub(super) fn load_balancer(o: &Value) -> Value {
    let all = list(o, "/status/loadBalancer/ingress").iter().map(|i| {
        let ip = get_str(i, "/ip");
        if ip.is_empty() { get_str(i, "/hostname") } else { ip }.to_string()
    });
    join(all.filter(|s| !s.is_empty()), ",")
}

pub(super) fn service(o: &Value, name: Value, old: Value) -> Vec<Value> {
    let kind = get_str(o, "/spec/type");
    let ips = join(list(o, "/spec/externalIPs").iter().filter_map(Value::as_str).map(str::to_string), ",");
    let none = |v: Value| if v == "" { Value::from("<none>") } else { v };
    let external = match kind {
        "ExternalName" => text(o, "/spec/externalName"),
        "LoadBalancer" => match (load_balancer(o), ips) {
            (a, b) if a == "" && b == "" => "<pending>".into(),
            (a, b) if b == "" => a,
            (a, b) if a == "" => b,
            (a, b) => format!("{},{}", a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default()).into(),
        },
        _ => none(ips),
    };
    let ports = list(o, "/spec/ports").iter().map(|p| {
        let (port, protocol) = (int(p, "/port"), get_str(p, "/protocol"));
        match get(p, "/nodePort").as_i64().unwrap_or(0) {
            0 => format!("{port}/{protocol}"),
            node => format!("{port}:{node}/{protocol}"),
        }
    });
    let ports = none(join(ports, ","));
    vec![
        name,
        kind.into(),
        or(o, "/spec/clusterIP", "<none>"),
        external,
        ports,
        old,
        labels(get(o, "/spec/selector")),
    ]
}

pub(super) fn node(o: &Value, name: Value, old: Value) -> Vec<Value> {
    let ready = list(o, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| get_str(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_string();
    if get(o, "/spec/unschedulable").as_bool() == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<String> = Vec::new();
    for (k, v) in object::labels(o).into_iter().flatten() {
        let role = match k.strip_prefix("node-role.kubernetes.io/") {
            Some(r) => r,
            None if k == "kubernetes.io/role" => v.as_str().unwrap_or_default(),
            None => "",
        };
        if !role.is_empty() && !roles.iter().any(|r| r == role) {
            roles.push(role.to_string());
        }
    }
    roles.sort();
    let roles = if roles.is_empty() { "<none>".to_string() } else { roles.join(",") };
    let address = |t: &str| {
        let found = list(o, "/status/addresses").iter().find(|a| a["type"] == t);
        Value::from(found.map_or("<none>", |a| get_str(a, "/address")))
    };
    vec![
        name,
        status.into(),
        roles.into(),
        old,
        text(o, "/status/nodeInfo/kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        or(o, "/status/nodeInfo/osImage", "<unknown>"),
        or(o, "/status/nodeInfo/kernelVersion", "<unknown>"),
        or(o, "/status/nodeInfo/containerRuntimeVersion", "<unknown>"),
    ]
}

/// Both event APIs.
pub(super) fn event(o: &Value, name: Value, now: Timestamp) -> Vec<Value> {
    let first =
        |paths: &[&str]| paths.iter().map(|p| get_str(o, p)).find(|s| !s.is_empty()).unwrap_or_default();
    let about =
        if get(o, "/involvedObject").is_object() { get(o, "/involvedObject") } else { get(o, "/regarding") };
    let object = format!("{}/{}", get_str(about, "/kind").to_lowercase(), get_str(about, "/name"));
    let ago = |t: &str| Value::from(age(Some(t).filter(|t| !t.is_empty()), now));
    let begun = first(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
    let series = get_str(o, "/series/lastObservedTime");
    let last = if series.is_empty() {
        first(&["/lastTimestamp", "/deprecatedLastTimestamp", "/firstTimestamp", "/eventTime"])
    } else {
        series
    };
    let count = ["/series/count", "/count", "/deprecatedCount"]
        .iter()
        .find_map(|p| get(o, p).as_i64().filter(|n| *n > 0))
        .unwrap_or(1);
    let component = first(&[
        "/source/component",
        "/deprecatedSource/component",
        "/reportingComponent",
        "/reportingController",
    ]);
    let host = first(&["/source/host", "/deprecatedSource/host", "/reportingInstance"]);
    let source = if host.is_empty() { component.to_string() } else { format!("{component}, {host}") };
    vec![
        ago(last),
        text(o, "/type"),
        text(o, "/reason"),
        object.into(),
        text(about, "/fieldPath"),
        source.into(),
        first(&["/message", "/note"]).trim().into(),
        ago(begun),
        count.into(),
        name,
    ]
}

pub(super) fn hpa(o: &Value, name: Value, old: Value) -> Vec<Value> {
    let reference =
        format!("{}/{}", get_str(o, "/spec/scaleTargetRef/kind"), get_str(o, "/spec/scaleTargetRef/name"));
    let min = get(o, "/spec/minReplicas").as_i64().map_or_else(|| "<unset>".to_string(), |n| n.to_string());
    let mut targets: Vec<String> = Vec::new();
    if let Some(t) = get(o, "/spec/targetCPUUtilizationPercentage").as_i64() {
        let now = get(o, "/status/currentCPUUtilizationPercentage");
        let now = now.as_i64().map_or_else(|| "<unknown>".to_string(), |n| format!("{n}%"));
        targets.push(format!("cpu: {now}/{t}%"));
    }
    for (i, m) in list(o, "/spec/metrics").iter().enumerate() {
        let current = get(o, &format!("/status/currentMetrics/{i}"));
        let source = match get_str(m, "/type") {
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "Pods" => "pods",
            "Object" => "object",
            "External" => "external",
            _ => {
                targets.push("<unknown type>".to_string());
                continue;
            }
        };
        let (target, seen) =
            (get(m, &format!("/{source}/target")), get(current, &format!("/{source}/current")));
        let value = |v: &Value, f: &str| v.get(f).and_then(Value::as_str).map(str::to_string);
        let label = get_str(m, &format!("/{source}/name"));
        let prefix = if label.is_empty() { String::new() } else { format!("{label}: ") };
        targets.push(if let Some(t) = target.get("averageUtilization").and_then(Value::as_i64) {
            let seen = seen.get("averageUtilization").and_then(Value::as_i64);
            format!("{prefix}{}/{t}%", seen.map_or_else(|| "<unknown>".to_string(), |n| format!("{n}%")))
        } else if let Some(t) = value(target, "averageValue") {
            let seen = value(seen, "averageValue").unwrap_or_else(|| "<unknown>".to_string());
            let average = if matches!(source, "object" | "external") { " (avg)" } else { "" };
            format!("{prefix}{seen}/{t}{average}")
        } else {
            let seen = value(seen, "value").unwrap_or_else(|| "<unknown>".to_string());
            format!("{prefix}{seen}/{}", value(target, "value").unwrap_or_else(|| "<auto>".to_string()))
        });
    }
    let shown = match targets.len() {
        0 => "<none>".to_string(),
        n if n > 2 => format!("{} + {} more...", targets[..2].join(", "), n - 2),
        _ => targets.join(", "),
    };
    vec![
        name,
        reference.into(),
        shown.into(),
        min.into(),
        get(o, "/spec/maxReplicas").as_i64().unwrap_or(0).to_string().into(),
        int(o, "/status/currentReplicas"),
        old,
    ]
}
