//! Amounts of resources as plain integers, and the formula for what a pod requests.
//! Pure calculation: quantities are parsed here once and nowhere else in this crate.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kedge_api::quantity::Quantity as Parsed;

/// What a container without a CPU request counts as when nodes are scored, in thousandths of a core.
pub(crate) const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container without a memory request counts as when nodes are scored, in bytes.
pub(crate) const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

type List = BTreeMap<String, Quantity>;

/// Amounts by resource. Extended resources and huge pages are in `scalar`, ordered by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// How many pods (nodes only).
    pub pods: i64,
    pub scalar: Vec<(String, i64)>,
}

/// A quantity that does not parse counts as nothing: the API server does not store such a one.
fn parse(quantity: &Quantity) -> Option<Parsed> {
    quantity.0.parse::<Parsed>().ok()
}

fn value(quantity: &Quantity) -> i64 {
    parse(quantity).map_or(0, |parsed| parsed.value())
}

fn milli(quantity: &Quantity) -> i64 {
    parse(quantity).map_or(0, |parsed| parsed.milli_value())
}

impl Resources {
    pub(crate) fn from_list(list: &List) -> Self {
        let mut result = Self::default();
        for (name, quantity) in list {
            match name.as_str() {
                "cpu" => result.milli_cpu = milli(quantity),
                "memory" => result.memory = value(quantity),
                "ephemeral-storage" => result.ephemeral_storage = value(quantity),
                "pods" => result.pods = value(quantity),
                name => result.scalar.push((name.to_owned(), value(quantity))),
            }
        }
        result
    }

    /// The amount of an extended resource.
    pub(crate) fn scalar(&self, name: &str) -> i64 {
        self.scalar
            .binary_search_by(|(known, _)| known.as_str().cmp(name))
            .map_or(0, |index| self.scalar[index].1)
    }

    fn scalar_mut(&mut self, name: &str) -> &mut i64 {
        let index = match self.scalar.binary_search_by(|(known, _)| known.as_str().cmp(name)) {
            Ok(index) => index,
            Err(index) => {
                self.scalar.insert(index, (name.to_owned(), 0));
                index
            }
        };
        &mut self.scalar[index].1
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.milli_cpu += other.milli_cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            *self.scalar_mut(name) += amount;
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.milli_cpu -= other.milli_cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            *self.scalar_mut(name) -= amount;
        }
    }

    fn max(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            let mine = self.scalar_mut(name);
            *mine = (*mine).max(*amount);
        }
    }

    /// No request at all.
    #[cfg(test)]
    pub(crate) fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalar.iter().all(|(_, amount)| *amount == 0)
    }
}

/// What a pod counts for: `exact` for the fit, `scored` with the default minimum for each container
/// that requests no CPU or memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodRequests {
    pub exact: Resources,
    pub scored: Resources,
}

/// What a pod counts for while it is resized (KEP-1287): the most of what each container asks for, was granted
/// and has; what can never be granted does not count. `None`: as its spec says.
pub(crate) fn resized_spec(pod: &Pod) -> Option<PodSpec> {
    fn asked(container: &Container) -> Option<&List> {
        container.resources.as_ref()?.requests.as_ref()
    }
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let statuses = || {
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        all.filter(|known| known.resources.is_some())
    };
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let differs = statuses().any(|known| {
        let has = known.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let wish = containers().find(|container| container.name == known.name).and_then(asked);
        has != wish || (known.allocated_resources.is_some() && known.allocated_resources.as_ref() != wish)
    });
    if !differs {
        return None;
    }
    let infeasible = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
    });
    let mut spec = spec.clone();
    let all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in all {
        let Some(known) = statuses().find(|known| known.name == container.name) else { continue };
        let has = known.resources.as_ref().and_then(|resources| resources.requests.clone());
        let wish = asked(container).cloned().filter(|_| !infeasible);
        let mut most = List::new();
        for (name, amount) in [wish, has, known.allocated_resources.clone()].into_iter().flatten().flatten() {
            match most.get(&name) {
                Some(known) if milli(known) >= milli(&amount) => {}
                _ => drop(most.insert(name, amount)),
            }
        }
        container.resources.get_or_insert_default().requests = Some(most);
    }
    Some(spec)
}

/// The formula of component-helpers `resource.PodRequests`: the sum of the containers and restartable
/// init containers, but at least what each init container needs beside the restartable ones that
/// started before it; pod-level requests replace CPU, memory and huge pages; overhead on top.
pub(crate) fn pod_requests(spec: &PodSpec) -> PodRequests {
    let pod_level = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut requests = PodRequests { exact: aggregate(spec, false), scored: aggregate(spec, true) };
    if let Some(list) = pod_level {
        for (name, quantity) in list {
            match name.as_str() {
                "cpu" => {
                    requests.exact.milli_cpu = milli(quantity);
                    requests.scored.milli_cpu = milli(quantity);
                }
                "memory" => {
                    requests.exact.memory = value(quantity);
                    requests.scored.memory = value(quantity);
                }
                name if name.starts_with("hugepages-") => {
                    *requests.exact.scalar_mut(name) = value(quantity);
                    *requests.scored.scalar_mut(name) = value(quantity);
                }
                _ => {}
            }
        }
    }
    if let Some(overhead) = &spec.overhead {
        let overhead = Resources::from_list(overhead);
        requests.exact.add(&overhead);
        requests.scored.add(&overhead);
    }
    requests.exact.pods = 0;
    requests.scored.pods = 0;
    requests
}

fn aggregate(spec: &PodSpec, defaults: bool) -> Resources {
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&container_requests(container, defaults));
    }
    let mut sidecars = Resources::default();
    let mut init_peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut needs = container_requests(container, defaults);
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&needs);
            sidecars.add(&needs);
            needs = sidecars.clone();
        } else {
            needs.add(&sidecars);
        }
        init_peak.max(&needs);
    }
    total.max(&init_peak);
    total
}

fn container_requests(container: &Container, defaults: bool) -> Resources {
    let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut requests = list.map(Resources::from_list).unwrap_or_default();
    if defaults {
        let has = |name: &str| list.is_some_and(|list| list.contains_key(name));
        if !has("cpu") {
            requests.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !has("memory") {
            requests.memory = DEFAULT_MEMORY;
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ResourceRequirements;

    fn list(entries: &[(&str, &str)]) -> List {
        entries.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
    }

    #[test]
    fn a_resize_counts_as_the_most_of_wish_grant_and_use() {
        let pod = |wish: &str, granted: &str, has: &str, reason: Option<&str>| -> Pod {
            let conditions = reason.map(|reason| {
                serde_json::json!([{"type": "PodResizePending", "status": "True", "reason": reason}])
            });
            serde_json::from_value(serde_json::json!({
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": wish, "memory": "1Gi"}}}]},
                "status": {"conditions": conditions.unwrap_or_default(), "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": {"cpu": granted, "memory": "1Gi"},
                    "resources": {"requests": {"cpu": has, "memory": "1Gi"}},
                }]},
            }))
            .expect("a pod")
        };
        for (wish, granted, has, reason, expected) in [
            ("1", "1", "1", None, None),
            ("2", "1", "1", None, Some(2000)),
            ("2", "1", "1", Some("Deferred"), Some(2000)),
            ("2", "1", "1", Some("Infeasible"), Some(1000)),
            ("1", "1", "3", None, Some(3000)),
            ("1", "1500m", "500m", None, Some(1500)),
        ] {
            let spec = resized_spec(&pod(wish, granted, has, reason));
            let counted = spec.as_ref().map(|spec| pod_requests(spec).exact);
            assert_eq!(
                counted.as_ref().map(|all| all.milli_cpu),
                expected,
                "{wish} {granted} {has} {reason:?}"
            );
            assert!(counted.is_none_or(|all| all.memory == 1 << 30));
        }
    }

    fn container(requests: &[(&str, &str)], restart: Option<&str>) -> Container {
        Container {
            name: "c".into(),
            restart_policy: restart.map(str::to_owned),
            resources: Some(ResourceRequirements {
                requests: Some(list(requests)),
                ..ResourceRequirements::default()
            }),
            ..Container::default()
        }
    }

    #[test]
    fn requests_follow_the_formula() {
        struct Case {
            what: &'static str,
            spec: PodSpec,
            cpu: i64,
            memory: i64,
        }
        let cases = [
            Case {
                what: "containers are summed",
                spec: PodSpec {
                    containers: vec![
                        container(&[("cpu", "100m"), ("memory", "1Ki")], None),
                        container(&[("cpu", "1"), ("memory", "1Ki")], None),
                    ],
                    ..PodSpec::default()
                },
                cpu: 1100,
                memory: 2048,
            },
            Case {
                what: "a large init container wins",
                spec: PodSpec {
                    containers: vec![container(&[("cpu", "100m"), ("memory", "4Ki")], None)],
                    init_containers: Some(vec![container(&[("cpu", "2"), ("memory", "1Ki")], None)]),
                    ..PodSpec::default()
                },
                cpu: 2000,
                memory: 4096,
            },
            Case {
                what: "sidecars count with containers and with later init containers",
                spec: PodSpec {
                    containers: vec![container(&[("cpu", "100m")], None)],
                    init_containers: Some(vec![
                        container(&[("cpu", "50m")], Some("Always")),
                        container(&[("cpu", "300m")], None),
                    ]),
                    ..PodSpec::default()
                },
                cpu: 350,
                memory: 0,
            },
            Case {
                what: "overhead is added",
                spec: PodSpec {
                    containers: vec![container(&[("cpu", "100m")], None)],
                    overhead: Some(list(&[("cpu", "10m"), ("memory", "1Ki")])),
                    ..PodSpec::default()
                },
                cpu: 110,
                memory: 1024,
            },
            Case {
                what: "the pod's own requests replace the sum",
                spec: PodSpec {
                    containers: vec![container(&[("cpu", "100m"), ("memory", "1Ki")], None)],
                    resources: Some(ResourceRequirements {
                        requests: Some(list(&[("cpu", "3")])),
                        ..ResourceRequirements::default()
                    }),
                    ..PodSpec::default()
                },
                cpu: 3000,
                memory: 1024,
            },
        ];
        for case in cases {
            let requests = pod_requests(&case.spec).exact;
            assert_eq!((requests.milli_cpu, requests.memory), (case.cpu, case.memory), "{}", case.what);
        }
    }

    #[test]
    fn missing_requests_count_when_scored() {
        let spec = PodSpec {
            containers: vec![container(&[], None), container(&[("cpu", "0")], None)],
            ..PodSpec::default()
        };
        let requests = pod_requests(&spec);
        assert!(requests.exact.is_zero());
        assert_eq!(requests.scored.milli_cpu, DEFAULT_MILLI_CPU);
        assert_eq!(requests.scored.memory, 2 * DEFAULT_MEMORY);
    }

    #[test]
    fn extended_resources_are_kept_by_name() {
        let mut sum = Resources::from_list(&list(&[("example.com/b", "2"), ("example.com/a", "1")]));
        sum.add(&Resources::from_list(&list(&[("example.com/b", "3")])));
        assert_eq!((sum.scalar("example.com/a"), sum.scalar("example.com/b"), sum.scalar("x")), (1, 5, 0));
        sum.subtract(&Resources::from_list(&list(&[("example.com/b", "5"), ("example.com/a", "1")])));
        assert!(sum.is_zero());
    }
}
