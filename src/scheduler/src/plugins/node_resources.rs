//! NodeResourcesFit (scored by LeastAllocated) and NodeResourcesBalancedAllocation.

use std::borrow::Cow;

use crate::framework::{
    Cluster, Code, CycleState, Events, MAX_SCORE, NODE_ADDED, NODE_ALLOCATABLE, POD_DELETED, Plugin,
    Rejection,
};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(crate) struct Fit;
pub(crate) struct BalancedAllocation;

/// Everything that the node lacks for the pod.
fn lacking(pod: &PodInfo, node: &NodeInfo) -> Option<Rejection> {
    let mut rejection = Rejection { code: Code::Unschedulable, reasons: Vec::new(), plugin: 0 };
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.allocatable.pods {
        rejection.reasons.push("Too many pods".into());
    }
    let request = &pod.requests.exact;
    let mut check = |reason: Cow<'static, str>, wanted: i64, used: i64, total: i64| {
        if wanted > 0 && wanted > total - used {
            rejection.reasons.push(reason);
            // More than the whole node: nobody's removal helps.
            if wanted > total {
                rejection.code = Code::Unresolvable;
            }
        }
    };
    let (used, total) = (&node.requested, &node.allocatable);
    check("Insufficient cpu".into(), request.milli_cpu, used.milli_cpu, total.milli_cpu);
    check("Insufficient memory".into(), request.memory, used.memory, total.memory);
    check(
        "Insufficient ephemeral-storage".into(),
        request.ephemeral_storage,
        used.ephemeral_storage,
        total.ephemeral_storage,
    );
    for (name, amount) in &request.scalar {
        if *amount > total.scalar(name) - used.scalar(name) {
            check(format!("Insufficient {name}").into(), *amount, used.scalar(name), total.scalar(name));
        }
    }
    (!rejection.reasons.is_empty()).then_some(rejection)
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn wakes_on(&self) -> Events {
        NODE_ADDED | NODE_ALLOCATABLE | POD_DELETED
    }

    fn filter(
        &self,
        _: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        _: Cluster<'_>,
    ) -> Result<(), Rejection> {
        lacking(pod, node).map_or(Ok(()), Err)
    }

    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: Cluster<'_>) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        let wanted = &pod.requests.scored;
        for (requested, total) in [
            (node.scored.milli_cpu + wanted.milli_cpu, node.allocatable.milli_cpu),
            (node.scored.memory + wanted.memory, node.allocatable.memory),
        ] {
            if total == 0 {
                continue;
            }
            weights += 1;
            if requested <= total {
                sum += (total - requested) * MAX_SCORE / total;
            }
        }
        if weights == 0 { 0 } else { sum / weights }
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn wakes_on(&self) -> Events {
        0
    }

    /// Best-effort pods would all go to one node.
    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &[usize], _: Cluster<'_>) -> bool {
        pod.requests.exact.milli_cpu > 0 || pod.requests.exact.memory > 0
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, _: Cluster<'_>) -> i64 {
        let wanted = &pod.requests.exact;
        let fraction = |requested: i64, total: i64| (requested as f64 / total as f64).min(1.0);
        let (cpu, memory) = (node.allocatable.milli_cpu, node.allocatable.memory);
        let deviation = if cpu == 0 || memory == 0 {
            0.0
        } else {
            let cpu = fraction(node.requested.milli_cpu + wanted.milli_cpu, cpu);
            let memory = fraction(node.requested.memory + wanted.memory, memory);
            ((cpu - memory) / 2.0).abs()
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, PodBuilder, World};

    #[test]
    fn what_is_lacking() {
        let mut world =
            World::of(vec![testing::node("a").allocatable("pods", "2").allocatable("example.com/gpu", "1")]);
        world.run(testing::pod("other").cpu("3").request("memory", "1Gi"), "a");
        let cases: Vec<(PodBuilder, Vec<&str>, Code)> = vec![
            (testing::pod("p"), vec![], Code::Unschedulable),
            (testing::pod("p").cpu("1"), vec![], Code::Unschedulable),
            (testing::pod("p").cpu("2"), vec!["Insufficient cpu"], Code::Unschedulable),
            (testing::pod("p").cpu("5"), vec!["Insufficient cpu"], Code::Unresolvable),
            (
                testing::pod("p").cpu("2").request("memory", "7.5Gi"),
                vec!["Insufficient cpu", "Insufficient memory"],
                Code::Unschedulable,
            ),
            (
                testing::pod("p").request("example.com/gpu", "2"),
                vec!["Insufficient example.com/gpu"],
                Code::Unresolvable,
            ),
        ];
        for (pod, reasons, code) in cases {
            let result = lacking(&pod.info(), world.cache.node(0));
            assert_eq!(result.as_ref().map(|r| r.reasons.clone()).unwrap_or_default(), reasons);
            assert_eq!(result.map_or(Code::Unschedulable, |r| r.code), code, "{reasons:?}");
        }
        world.run(testing::pod("second"), "a");
        let full = lacking(&testing::pod("p").info(), world.cache.node(0)).expect("the node is full");
        assert_eq!(full.reasons, ["Too many pods"]);
    }

    #[test]
    fn scores() {
        let mut world = World::of(vec![testing::node("a")]);
        world.run(testing::pod("other").cpu("1").request("memory", "2Gi"), "a");
        let state = CycleState::default();
        let pod = testing::pod("p").cpu("1").request("memory", "2Gi").info();
        assert_eq!(Fit.score(&state, &pod, world.cache.node(0), world.cluster()), 50);
        assert_eq!(BalancedAllocation.score(&state, &pod, world.cache.node(0), world.cluster()), 100);
        let lopsided = testing::pod("p").cpu("3").info();
        // CPU is full, memory a quarter: the deviation is 0.375.
        assert_eq!(BalancedAllocation.score(&state, &lopsided, world.cache.node(0), world.cluster()), 62);
        let mut state = CycleState::default();
        assert!(!BalancedAllocation.pre_score(&mut state, &testing::pod("p").info(), &[0], world.cluster()));
    }
}
