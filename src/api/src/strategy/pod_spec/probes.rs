//! Probes of containers and what they run when they start and stop (upstream: `validateProbe`,
//! `validateHandler`, `validateLifecycle`).

use serde_json::Value;

use crate::field::At;
use crate::strategy::checks::Checks;
use crate::strategy::util::{integer, is_set, list, number, text};

/// A regular container's or a sidecar's probes and hooks. `grace` is the pod's grace period.
pub(super) fn validate(c: &mut Checks, container: &Value, grace: Option<i64>, at: At<'_>) {
    let hooks = at.child("lifecycle");
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = container["lifecycle"].get(hook).filter(|handler| !handler.is_null()) {
            one_handler(c, handler, grace, &HOOKS, hooks.child(hook));
        }
    }
    for kind in PROBES {
        let Some(probe) = container.get(kind).filter(|probe| !probe.is_null()) else { continue };
        let at = at.child(kind);
        one_handler(c, probe, grace, &PROBED, at);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            c.non_negative(probe, field, at);
        }
        let period = integer(probe, "terminationGracePeriodSeconds");
        let path = at.child("terminationGracePeriodSeconds");
        if let Some(seconds) = period.filter(|seconds| *seconds <= 0) {
            c.invalid(path, seconds, "must be greater than 0");
        }
        if kind == "readinessProbe" {
            if let Some(seconds) = period {
                c.invalid(path, seconds, "must not be set for readinessProbes");
            }
        } else if let Some(n) = integer(probe, "successThreshold").filter(|n| !matches!(n, 0 | 1)) {
            // Zero is what nobody said, and means one.
            c.invalid(at.child("successThreshold"), n, "must be 1");
        }
    }
}

pub(super) const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// An ordinary init container ends before anyone could ask it.
pub(super) fn forbid(c: &mut Checks, container: &Value, at: At<'_>) {
    for field in ["lifecycle"].into_iter().chain(PROBES) {
        if is_set(container, field) {
            c.forbidden(at.child(field), "may not be set for init containers without restartPolicy=Always");
        }
    }
}

const PROBED: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const HOOKS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

fn one_handler(c: &mut Checks, of: &Value, grace: Option<i64>, kinds: &[&str], at: At<'_>) {
    let mut found = false;
    for kind in kinds {
        let Some(handler) = of.get(*kind).filter(|handler| !handler.is_null()) else { continue };
        let at = at.child(kind);
        if std::mem::replace(&mut found, true) {
            c.forbidden(at, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if list(handler, "command").is_empty() => c.required(at.child("command"), ""),
            "httpGet" => http(c, handler, at),
            "tcpSocket" | "grpc" => c.port_or_name(at.child("port"), &handler["port"]),
            "sleep" => sleep(c, handler, grace, at),
            _ => {}
        }
    }
    if !found {
        c.required(at, "must specify a handler type");
    }
}

fn http(c: &mut Checks, handler: &Value, at: At<'_>) {
    if handler.get("path").and_then(Value::as_str).is_some_and(str::is_empty) {
        c.required(at.child("path"), "");
    }
    c.port_or_name(at.child("port"), &handler["port"]);
    c.one_of(handler, "scheme", at, &["HTTP", "HTTPS"]);
    for header in list(handler, "httpHeaders") {
        let name = text(header, "name");
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || !name.bytes().all(fits) {
            let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
            c.invalid(at.child("httpHeaders"), name, why);
        }
    }
}

fn sleep(c: &mut Checks, handler: &Value, grace: Option<i64>, at: At<'_>) {
    let seconds = number(handler, "seconds");
    if let Some(grace) = grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        c.invalid(at, seconds, why);
    }
}
