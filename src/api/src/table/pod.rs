//! The row of a pod: its readiness, the status that sums up its containers, and
//! its restarts.

use jiff::Timestamp;
use serde_json::Value;

use super::duration::{age, human_duration};
use crate::object;

fn list<'a>(v: &'a Value, path: &str) -> &'a [Value] {
    object::get(v, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

fn reason_of(terminated: &Value) -> String {
    let reason = object::get_str(terminated, "/reason");
    if !reason.is_empty() {
        return reason.to_string();
    }
    match object::get(terminated, "/signal").as_i64().unwrap_or(0) {
        0 => format!("ExitCode:{}", object::get(terminated, "/exitCode").as_i64().unwrap_or(0)),
        signal => format!("Signal:{signal}"),
    }
}

#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += object::get(status, "/restartCount").as_i64().unwrap_or(0);
        if let Ok(t) = object::get_str(status, "/lastState/terminated/finishedAt").parse::<Timestamp>() {
            self.last = self.last.max(Some(t));
        }
    }
}

fn is_sidecar(spec: &Value, name: &str) -> bool {
    list(spec, "/initContainers").iter().any(|c| c["name"] == name && c["restartPolicy"] == "Always")
}

/// Ready, Status and Restarts.
pub(super) fn summary(pod: &Value, now: Timestamp) -> (String, String, String) {
    let spec = object::get(pod, "/spec");
    let mut reason = object::get_str(pod, "/status/phase").to_string();
    let why = object::get_str(pod, "/status/reason");
    if !why.is_empty() {
        reason = why.to_string();
    }
    let conditions = list(pod, "/status/conditions");
    if conditions.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".to_string();
    }
    let init_total = list(spec, "/initContainers").len();
    let sidecars = list(spec, "/initContainers").iter().filter(|c| c["restartPolicy"] == "Always").count();
    let total = list(spec, "/containers").len() + sidecars;
    let (mut ready, mut all, mut of_sidecars) = (0, Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (i, s) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        let sidecar = is_sidecar(spec, object::get_str(s, "/name"));
        all.add(s);
        if sidecar {
            of_sidecars.add(s);
        }
        let terminated = object::get(s, "/state/terminated");
        if terminated.is_object() && object::get(terminated, "/exitCode").as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && object::get(s, "/started").as_bool() == Some(true) {
            ready += usize::from(object::get(s, "/ready").as_bool() == Some(true));
            continue;
        }
        let waiting = object::get_str(s, "/state/waiting/reason");
        reason = if terminated.is_object() {
            format!("Init:{}", reason_of(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{init_total}")
        };
        initializing = true;
        break;
    }
    let initialized = conditions.iter().any(|c| c["type"] == "Initialized" && c["status"] == "True");
    if !initializing || initialized {
        all = of_sidecars;
        let mut running = false;
        for s in list(pod, "/status/containerStatuses").iter().rev() {
            all.add(s);
            let waiting = object::get_str(s, "/state/waiting/reason");
            let terminated = object::get(s, "/state/terminated");
            if !waiting.is_empty() {
                reason = waiting.to_string();
            } else if terminated.is_object() {
                reason = reason_of(terminated);
            } else if object::get(s, "/ready").as_bool() == Some(true)
                && object::get(s, "/state/running").is_object()
            {
                running = true;
                ready += 1;
            }
        }
        // A completed container beside a running one does not complete the pod.
        if reason == "Completed" && running {
            let is_ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.to_string();
        }
    }
    if object::deletion_timestamp(pod).is_some() {
        if why == "NodeLost" {
            reason = "Unknown".to_string();
        } else if !matches!(object::get_str(pod, "/status/phase"), "Failed" | "Succeeded") {
            reason = "Terminating".to_string();
        }
    }
    let restarts = match all.last {
        Some(t) if all.count > 0 => {
            format!("{} ({} ago)", all.count, human_duration(now.as_second() - t.as_second()))
        }
        _ => all.count.to_string(),
    };
    (format!("{ready}/{total}"), reason, restarts)
}

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (ready, status, restarts) = summary(pod, now);
    let or_none = |s: &str| Value::from(if s.is_empty() { "<none>" } else { s });
    let gates = list(pod, "/spec/readinessGates");
    let met = gates
        .iter()
        .filter(|g| {
            list(pod, "/status/conditions")
                .iter()
                .any(|c| c["type"] == g["conditionType"] && c["status"] == "True")
        })
        .count();
    let ip = object::get_str(pod, "/status/podIPs/0/ip");
    vec![
        object::name(pod).into(),
        ready.into(),
        status.into(),
        restarts.into(),
        age(object::creation_timestamp(pod), now).into(),
        or_none(if ip.is_empty() { object::get_str(pod, "/status/podIP") } else { ip }),
        or_none(object::get_str(pod, "/spec/nodeName")),
        or_none(object::get_str(pod, "/status/nominatedNodeName")),
        if gates.is_empty() { "<none>".into() } else { format!("{met}/{}", gates.len()).into() },
    ]
}
