//! LimitRanger's rules (`plugin/pkg/admission/limitranger`): defaults for containers that say nothing,
//! smallest, largest and ratio for containers, pods and claims. Pure functions on JSON.

use serde_json::{Value, json};

use crate::object;
use crate::quantity::Quantity;
use crate::resources::{List, Side, list, pod_total};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |item| item["type"] == kind)
}

/// Gives containers of a new pod the range's defaults, and says so in an annotation.
pub fn default_pod(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (List::new(), List::new());
    for item in items(range, "Container") {
        requests.extend(list(&item["defaultRequest"]));
        limits.extend(list(&item["default"]));
    }
    let mut notes = Vec::new();
    for (field, word) in [("containers", "container"), ("initContainers", "init container")] {
        // An index would leave a null behind where there is no such list.
        let list = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
        for container in list.into_iter().flatten() {
            for (side, defaults, what) in
                [(Side::Requests, &requests, "request"), (Side::Limits, &limits, "limit")]
            {
                let missing: Vec<&str> = defaults
                    .keys()
                    .map(String::as_str)
                    .filter(|name| container["resources"][side.field()][*name].is_null())
                    .collect();
                if missing.is_empty() {
                    continue;
                }
                for name in &missing {
                    let path = format!("/resources/{}", side.field());
                    if !object::get(container, &path).is_object() {
                        object::set(container, &path, json!({}));
                    }
                    container["resources"][side.field()][*name] = json!(defaults[*name].to_string());
                }
                let name = container["name"].as_str().unwrap_or_default();
                notes.push(format!("{} {what} for {word} {name}", missing.join(", ")));
            }
        }
    }
    if !notes.is_empty() {
        object::set_annotation(pod, ANNOTATION, &format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

/// What of a new pod the range does not allow.
pub fn validate_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let spec = &pod["spec"];
    for item in items(range, "Container") {
        for field in ["containers", "initContainers"] {
            for container in spec[field].as_array().into_iter().flatten() {
                let own = |side: Side| list(&container["resources"][side.field()]);
                bounds(item, "Container", &own(Side::Requests), &own(Side::Limits), &mut errors);
            }
        }
    }
    for item in items(range, "Pod") {
        let total = |side| pod_total(spec, side);
        bounds(item, "Pod", &total(Side::Requests), &total(Side::Limits), &mut errors);
    }
    errors
}

/// What of a claim the range does not allow.
pub fn validate_claim(range: &Value, claim: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let requests = list(&claim["spec"]["resources"]["requests"]);
    let kind = "PersistentVolumeClaim";
    for item in items(range, kind) {
        for (name, enforced) in list(&item["min"]) {
            below(&name, kind, enforced, requests.get(&name), None, &mut errors);
        }
        for (name, enforced) in list(&item["max"]) {
            match requests.get(&name) {
                None => errors
                    .push(format!("maximum {name} usage per {kind} is {enforced}.  No request is specified")),
                Some(request) if *request > enforced => errors
                    .push(format!("maximum {name} usage per {kind} is {enforced}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    errors
}

fn bounds(item: &Value, kind: &str, requests: &List, limits: &List, errors: &mut Vec<String>) {
    for (name, enforced) in list(&item["min"]) {
        below(&name, kind, enforced, requests.get(&name), limits.get(&name), errors);
    }
    for (name, enforced) in list(&item["max"]) {
        above(&name, kind, enforced, requests.get(&name), limits.get(&name), errors);
    }
    for (name, enforced) in list(&item["maxLimitRequestRatio"]) {
        ratio(&name, kind, enforced, requests.get(&name), limits.get(&name), errors);
    }
}

fn below(
    name: &str,
    kind: &str,
    enforced: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    errors: &mut Vec<String>,
) {
    let head = format!("minimum {name} usage per {kind} is {enforced}");
    match (request, limit) {
        (None, _) => errors.push(format!("{head}.  No request is specified")),
        (Some(request), _) if *request < enforced => errors.push(format!("{head}, but request is {request}")),
        (_, Some(limit)) if *limit < enforced => errors.push(format!("{head}, but limit is {limit}")),
        _ => {}
    }
}

fn above(
    name: &str,
    kind: &str,
    enforced: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    errors: &mut Vec<String>,
) {
    let head = format!("maximum {name} usage per {kind} is {enforced}");
    match (limit, request) {
        (None, _) => errors.push(format!("{head}.  No limit is specified")),
        (Some(limit), _) if *limit > enforced => errors.push(format!("{head}, but limit is {limit}")),
        (_, Some(request)) if *request > enforced => errors.push(format!("{head}, but request is {request}")),
        _ => {}
    }
}

fn ratio(
    name: &str,
    kind: &str,
    enforced: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    errors: &mut Vec<String>,
) {
    let head = format!("{name} max limit to request ratio per {kind} is {enforced}");
    let set = |quantity: Option<&Quantity>| quantity.copied().filter(|quantity| !quantity.is_zero());
    let (request, limit) = match (set(request), set(limit)) {
        (None, _) => return errors.push(format!("{head}, but no request is specified or request is 0")),
        (_, None) => return errors.push(format!("{head}, but no limit is specified or limit is 0")),
        (Some(request), Some(limit)) => (request, limit),
    };
    // Large quantities are compared by whole units, small ones by thousandths, as upstream.
    let (mut observed, mut allowed) =
        (limit.value() as f64 / request.value().max(1) as f64, enforced.value() as f64);
    if request.value() <= i64::MAX / 1000 && limit.value() <= i64::MAX / 1000 {
        observed = limit.milli_value() as f64 / request.milli_value() as f64 * 1000.0;
        allowed = enforced.milli_value() as f64;
        if observed > allowed {
            errors.push(format!("{head}, but provided ratio is {:.6}", observed / 1000.0));
        }
        return;
    }
    if observed > allowed {
        errors.push(format!("{head}, but provided ratio is {observed:.6}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn defaults_are_filled_in_and_noted() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}),
        );
        let mut pod = pod(json!({"limits": {"memory": "2Gi"}}));
        default_pod(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m", "memory": "2Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            object::annotation(&pod, ANNOTATION),
            Some("LimitRanger plugin set: cpu request for container c; cpu limit for container c")
        );
        let before = pod.clone();
        default_pod(&range, &mut pod);
        assert_eq!(pod, before);
        let mut bare = json!({"spec": {"containers": [{"name": "c"}]}});
        default_pod(&range, &mut bare);
        assert_eq!(bare["spec"]["containers"][0]["resources"]["limits"]["memory"], "1Gi");
    }

    #[test]
    fn bounds_of_pods() {
        for (item, resources, expected) in [
            (
                json!({"type": "Container", "max": {"cpu": "2"}}),
                json!({"limits": {"cpu": "3"}}),
                "maximum cpu usage per Container is 2, but limit is 3",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "2"}}),
                json!({}),
                "maximum cpu usage per Container is 2.  No limit is specified",
            ),
            (
                json!({"type": "Container", "min": {"memory": "1Gi"}}),
                json!({"requests": {"memory": "1Mi"}}),
                "minimum memory usage per Container is 1Gi, but request is 1Mi",
            ),
            (
                json!({"type": "Pod", "min": {"memory": "1Gi"}}),
                json!({}),
                "minimum memory usage per Pod is 1Gi.  No request is specified",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "400m"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "4"}}),
                json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "400m"}}),
                "",
            ),
            (json!({"type": "PersistentVolumeClaim", "max": {"cpu": "1"}}), json!({}), ""),
        ] {
            let errors = validate_pod(&range(item.clone()), &pod(resources));
            assert_eq!(errors.join("; "), expected, "{item}");
        }
    }

    #[test]
    fn bounds_of_claims() {
        let range = range(
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}),
        );
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert!(validate_claim(&range, &claim("1536Mi")).is_empty());
        assert_eq!(
            validate_claim(&range, &claim("3Gi")),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        assert_eq!(
            validate_claim(&range, &claim("1Mi")),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"]
        );
    }
}
