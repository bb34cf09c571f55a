//! PodSecurity: asks a namespace's policy about pods, what makes pods, and its own change
//! (`k8s.io/pod-security-admission/admission`). Nothing is exempt; an unlabelled namespace allows everything.

use std::collections::BTreeMap;

use kedge_api::object;
use kedge_api::pod_security::{
    Level, LevelVersion, Policy, details, evaluate, is_significant_update, pod_template, reasons,
};
use kedge_api::status::Status;
use serde_json::Value;

use super::{Operation, Request};

/// More existing pods than this are not looked at when a namespace's policy changes.
const PODS_CHECKED: usize = 3000;

/// Subresources that change nothing a policy looks at.
const IGNORED: [&str; 5] = ["binding", "eviction", "status", "resize", "scale"];

pub(super) fn validate(
    request: &Request<'_>,
    value: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    if request.operation == Operation::Delete || IGNORED.contains(&request.subresource) {
        return Ok(());
    }
    if request.is("", "namespaces") {
        return namespace(request, value, warnings);
    }
    let (group, plural) = (&*request.resource.group, &*request.resource.plural);
    let Some((metadata, spec)) = pod_template(group, plural, value) else { return Ok(()) };
    let is_pod = group.is_empty() && plural == "pods";
    if is_pod && request.old.is_some_and(|old| !is_significant_update(value, old)) {
        return Ok(());
    }
    let bucket = request.state.cache.bucket("namespaces");
    let Some(stored) = bucket.get(&format!("/{}", request.namespace)) else { return Ok(()) };
    // Most namespaces have no such label: do not parse them.
    if !stored.extracted.labels.iter().any(|(name, _)| name.starts_with("pod-security.kubernetes.io/")) {
        return Ok(());
    }
    let (policy, _) = Policy::of_namespace(&crate::verbs::read::parse(&stored.bytes)?);
    if policy.is_privileged() {
        return Ok(());
    }
    if is_pod {
        let found = evaluate(policy.enforce, metadata, spec);
        if !found.is_empty() {
            return Err(request.forbidden(&format!(
                "violates PodSecurity \"{}\": {}",
                policy.enforce,
                details(&found)
            )));
        }
    }
    let audited = evaluate(policy.audit, metadata, spec);
    if !audited.is_empty() {
        tracing::info!(
            namespace = request.namespace,
            name = request.name,
            resource = plural,
            "would violate PodSecurity \"{}\": {}",
            policy.audit,
            details(&audited)
        );
    }
    let found = evaluate(policy.warn, metadata, spec);
    if !found.is_empty() {
        warnings.push(format!("would violate PodSecurity \"{}\": {}", policy.warn, details(&found)));
    }
    Ok(())
}

/// Labels must be readable; a stricter policy is held against the pods that exist.
fn namespace(request: &Request<'_>, value: &Value, warnings: &mut Vec<String>) -> Result<(), Status> {
    let (policy, errors) = Policy::of_namespace(value);
    let Some(old) = request.old else {
        if errors.is_empty() {
            return Ok(());
        }
        return Err(Status::invalid("", "Namespace", request.name, errors));
    };
    let (before, old_errors) = Policy::of_namespace(old);
    if !errors.is_empty() {
        // What was wrong before does not stop other changes.
        if errors == old_errors {
            return Ok(());
        }
        return Err(Status::invalid("", "Namespace", request.name, errors));
    }
    let (new, old) = (policy.enforce, before.enforce);
    let relaxed = new.version == old.version && new.level <= old.level;
    if new.level == Level::Privileged || relaxed {
        return Ok(());
    }
    existing_pods(request, new, warnings)
}

fn existing_pods(
    request: &Request<'_>,
    enforce: LevelVersion,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let objects = request.state.cache.bucket("pods").objects();
    let prefix = format!("{}/", request.name);
    let start: std::sync::Arc<str> = prefix.as_str().into();
    let pods: Vec<_> = objects
        .range::<std::ops::RangeFrom<std::sync::Arc<str>>, std::sync::Arc<str>>(start..)
        .map(|(_, stored)| stored)
        .take_while(|stored| stored.key.starts_with(&prefix))
        .collect();
    // The reasons, with the first pod's name and how many pods there are.
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for stored in pods.iter().take(PODS_CHECKED) {
        let pod = crate::verbs::read::parse(&stored.bytes)?;
        let why = evaluate(enforce, object::get(&pod, "/metadata"), object::get(&pod, "/spec"));
        if !why.is_empty() {
            found.entry(reasons(&why)).or_insert_with(|| (stored.name().to_owned(), 0)).1 += 1;
        }
    }
    if pods.len() > PODS_CHECKED {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {PODS_CHECKED} of {} existing pods",
            pods.len()
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {:?} violate the new PodSecurity enforce level \"{enforce}\"",
            request.name
        ));
    }
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, (name, count))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            _ => format!("{name} (and {} other pods): {reasons}", count - 1),
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    Ok(())
}
