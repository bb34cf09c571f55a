//! The Downward API: fields of the pod and resources of its containers as text
//! (upstream `pkg/fieldpath` and `pkg/api/v1/resource`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};

use crate::{Error, pod, resources};

/// What of the node a field may show.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFacts {
    pub(crate) host_ips: Vec<String>,
    pub(crate) pod_ips: Vec<String>,
    /// Allocatable CPU in thousandths.
    pub(crate) cpu_milli: i64,
    /// Allocatable memory in bytes.
    pub(crate) memory: i64,
    /// Allocatable ephemeral storage in bytes.
    pub(crate) storage: i64,
}

/// The value of `fieldRef.fieldPath`.
pub(crate) fn field(pod: &Pod, path: &str, facts: &NodeFacts) -> Result<String, Error> {
    let meta = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.annotations" => Ok(lookup(meta.annotations.as_ref(), key)),
            "metadata.labels" => Ok(lookup(meta.labels.as_ref(), key)),
            _ => Err(unsupported(path)),
        };
    }
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    Ok(match path {
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "spec.nodeName" => text(pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => {
            text(pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_ref()))
        }
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(unsupported(path)),
    })
}

fn unsupported(path: &str) -> Error {
    Error::config(format!("unsupported fieldPath: {path}"))
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

fn lookup(map: Option<&BTreeMap<String, String>>, key: &str) -> String {
    map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
}

/// `key="value"` lines in the order of the keys, quoted as Go's `%q` does.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let Some(map) = map else { return String::new() };
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// The value of `resourceFieldRef`; a missing limit is the node's allocatable.
pub(crate) fn resource(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    own_container: &str,
    facts: &NodeFacts,
) -> Result<String, Error> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(own_container);
    let container =
        pod::find_container(pod, name).ok_or_else(|| Error::config(format!("container {name} not found")))?;
    let (kind, what) = selector.resource.split_once('.').unwrap_or(("", &selector.resource));
    let amounts = match kind {
        "limits" => resources::limits(&container),
        "requests" => resources::requests(&container),
        _ => return Err(Error::config(format!("unsupported container resource : {}", selector.resource))),
    };
    let divisor = selector.divisor.as_ref();
    let divided = |amount: i64, unit: i64| {
        // Rounded up, as upstream.
        let unit = unit.max(1);
        ((amount + unit - 1) / unit).to_string()
    };
    if what == "cpu" {
        let mut amount = amounts.get("cpu").map_or(0, resources::milli);
        if amount == 0 && kind == "limits" {
            amount = facts.cpu_milli;
        }
        let unit = divisor.map(resources::milli).filter(|unit| *unit > 0).unwrap_or(1000);
        return Ok(divided(amount, unit));
    }
    let mut amount = amounts.get(what).map_or(0, resources::value);
    if amount == 0 && kind == "limits" {
        amount = match what {
            "memory" => facts.memory,
            "ephemeral-storage" => facts.storage,
            _ => 0,
        };
    }
    let unit = divisor.map(resources::value).filter(|unit| *unit > 0).unwrap_or(1);
    Ok(divided(amount, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_pod() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".into());
        pod.metadata.labels =
            Some(BTreeMap::from([("a".into(), "1".into()), ("b/c".into(), "say \"x\"".into())]));
        let facts = NodeFacts { pod_ips: vec!["10.0.0.1".into()], ..NodeFacts::default() };
        for (path, expected) in [
            ("metadata.name", "web"),
            ("metadata.labels['b/c']", "say \"x\""),
            ("metadata.labels", "a=\"1\"\nb/c=\"say \\\"x\\\"\""),
            ("metadata.annotations['none']", ""),
            ("status.podIP", "10.0.0.1"),
        ] {
            assert_eq!(field(&pod, path, &facts).ok().as_deref(), Some(expected), "{path}");
        }
        assert!(field(&pod, "spec.restartPolicy", &facts).is_err());
    }

    #[test]
    fn resources_round_up_and_default_to_the_node() {
        let facts = NodeFacts { cpu_milli: 2000, memory: 1 << 30, ..NodeFacts::default() };
        let container = k8s_openapi::api::core::v1::Container {
            name: "c".into(),
            resources: Some(k8s_openapi::api::core::v1::ResourceRequirements {
                requests: crate::resources::tests::amounts(&[("cpu", "1500m")]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pod = Pod {
            spec: Some(k8s_openapi::api::core::v1::PodSpec {
                containers: vec![container],
                ..Default::default()
            }),
            ..Pod::default()
        };
        let get = |resource_name: &str| {
            let selector = ResourceFieldSelector {
                resource: resource_name.to_owned(),
                ..ResourceFieldSelector::default()
            };
            resource(&pod, &selector, "c", &facts).unwrap_or_default()
        };
        assert_eq!(get("requests.cpu"), "2");
        assert_eq!(get("limits.cpu"), "2");
        assert_eq!(get("limits.memory"), (1 << 30).to_string());
    }
}
