//! What a pod asks for and may use: upstream's `component-helpers/resource`. LimitRange, ResourceQuota
//! and whoever else adds up containers shares this.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Quantities by the resource's name.
pub type List = BTreeMap<String, Quantity>;

/// Which half of `resources` is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

impl Side {
    /// The field's name.
    pub fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// A JSON map of quantities; what is no quantity is left out (validation has refused it).
pub fn list(value: &Value) -> List {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, quantity)| Some((name.clone(), Quantity::from_value(quantity)?)))
        .collect()
}

/// Adds every quantity of `more`.
pub fn add(to: &mut List, more: &List) {
    for (name, quantity) in more {
        let sum = to.get(name).map_or(*quantity, |own| *own + *quantity);
        to.insert(name.clone(), sum);
    }
}

fn raise(to: &mut List, other: &List) {
    for (name, quantity) in other {
        if to.get(name).is_none_or(|own| quantity > own) {
            to.insert(name.clone(), *quantity);
        }
    }
}

/// The sum of a pod's containers: init containers count by the largest step, those that keep running
/// (sidecars) on top of everything after them; pod-level resources win, overhead comes on top.
pub fn pod_total(spec: &Value, side: Side) -> List {
    let containers = |field: &str| spec[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = |container: &Value| list(&container["resources"][side.field()]);
    let mut total = List::new();
    for container in containers("containers") {
        add(&mut total, &own(container));
    }
    let (mut sidecars, mut largest) = (List::new(), List::new());
    for container in containers("initContainers") {
        let mut step = own(container);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &step);
            add(&mut sidecars, &step);
            step = sidecars.clone();
        } else {
            add(&mut step, &sidecars);
        }
        raise(&mut largest, &step);
    }
    raise(&mut total, &largest);
    // KEP-2837: what is said of the pod as a whole takes the place of the sum.
    total.extend(list(&spec["resources"][side.field()]));
    for (name, quantity) in list(&spec["overhead"]) {
        match total.get(&name) {
            Some(own) => drop(total.insert(name, *own + quantity)),
            // An overhead does not limit a pod that has no limit.
            None if side == Side::Requests => drop(total.insert(name, quantity)),
            None => {}
        }
    }
    total
}

/// `cpu=1,memory=1Gi`, sorted by name.
pub fn pretty(list: &List) -> String {
    list.iter().map(|(name, quantity)| format!("{name}={quantity}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn totals() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (spec, expected) in [
            (json!({"containers": [c("100m"), c("200m")]}), "cpu=300m"),
            (json!({"containers": [c("100m")], "initContainers": [c("1"), c("2")]}), "cpu=2"),
            (json!({"containers": [c("1")], "initContainers": [sidecar("1"), c("2")]}), "cpu=3"),
            (json!({"containers": [c("3")], "initContainers": [c("2"), sidecar("1")]}), "cpu=4"),
            (
                json!({"containers": [c("1")], "overhead": {"cpu": "100m", "memory": "1Mi"}}),
                "cpu=1100m,memory=1Mi",
            ),
            (json!({"containers": [c("1")], "resources": {"requests": {"cpu": "5"}}}), "cpu=5"),
        ] {
            assert_eq!(pretty(&pod_total(&spec, Side::Requests)), expected, "{spec}");
        }
        assert!(pod_total(&json!({"overhead": {"cpu": "1"}}), Side::Limits).is_empty());
    }
}
