//! DefaultPreemption: which pods of lower priority have to go so that a pod fits. Pure calculation;
//! `binding` carries it out.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cycle::{Algorithm, Diagnosis, Nominated, preemption_may_help, summary};
use crate::framework::{Cluster, CycleState, Rejection};
use crate::pod::PodInfo;
use crate::selector::Selector;

/// A node and the pods that have to leave it.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub node: String,
    /// The most important first.
    pub victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

fn started(pod: &PodInfo) -> Timestamp {
    let start = pod.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    start.map_or_else(Timestamp::now, |start| start.0)
}

/// Finds the node where preemption costs least, or says why there is none.
pub(crate) fn preempt(
    algorithm: &Algorithm,
    state: &CycleState,
    pod: &PodInfo,
    diagnosis: &Diagnosis,
    cluster: Cluster<'_>,
    nominated: &Nominated,
) -> Result<Candidate, String> {
    if !pod.may_preempt() {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if let Some(index) = pod.nominated_node().and_then(|name| cluster.cache.index_of(name)) {
        let resolvable =
            diagnosis.nodes.iter().any(|(node, rejection)| *node == index && preemption_may_help(rejection));
        let leaving = |other: &Arc<PodInfo>| other.terminating && other.priority < pod.priority;
        if resolvable && cluster.cache.node(index).pods.iter().any(leaving) {
            return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
        }
    }
    let mut candidates = Vec::new();
    let mut refusals: Vec<Rejection> = Vec::new();
    for (index, rejection) in &diagnosis.nodes {
        if preemption_may_help(rejection) {
            match victims_on(algorithm, state, pod, *index, cluster, nominated) {
                Ok(candidate) => candidates.push(candidate),
                Err(rejection) => refusals.push(rejection),
            }
        }
    }
    let refused = refusals.len();
    best(candidates).ok_or_else(|| {
        let reasons = refusals.iter().flat_map(|rejection| rejection.reasons.iter().map(Cow::as_ref));
        let rest = diagnosis.total.saturating_sub(refused);
        summary(diagnosis.total, reasons, Some(("Preemption is not helpful for scheduling", rest)))
    })
}

/// The fewest broken budgets, then the least important victims, then the fewest, then the youngest.
fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|candidate| {
        let highest = candidate.victims.iter().map(|victim| victim.priority).max().unwrap_or(i32::MIN);
        let sum: i64 =
            candidate.victims.iter().map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1).sum();
        let earliest =
            candidate.victims.iter().filter(|victim| victim.priority == highest).map(|v| started(v)).min();
        (candidate.violations, highest, sum, candidate.victims.len(), Reverse(earliest))
    })
}

/// All pods of lower priority are taken away; then as many as possible come back.
fn victims_on(
    algorithm: &Algorithm,
    state: &CycleState,
    pod: &PodInfo,
    index: usize,
    cluster: Cluster<'_>,
    nominated: &Nominated,
) -> Result<Candidate, Rejection> {
    let mut state = state.clone();
    let mut node = cluster.cache.node(index).clone();
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return Err(Rejection::unresolvable("No preemption victims found for incoming pod"));
    }
    for victim in &lower {
        node.remove_pod(&victim.uid);
        algorithm.framework.other_pod(&mut state, pod, victim, &node, cluster, -1);
    }
    algorithm.fits(&state, pod, &node, cluster, nominated)?;
    lower.sort_by_key(|victim| (Reverse(victim.priority), started(victim)));
    let (violating, harmless) = split_by_budget(lower, cluster);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (breaks_budget, candidates) in [(true, violating), (false, harmless)] {
        for victim in candidates {
            node.add_pod(victim.clone());
            algorithm.framework.other_pod(&mut state, pod, &victim, &node, cluster, 1);
            if algorithm.fits(&state, pod, &node, cluster, nominated).is_err() {
                node.remove_pod(&victim.uid);
                algorithm.framework.other_pod(&mut state, pod, &victim, &node, cluster, -1);
                violations += usize::from(breaks_budget);
                victims.push(victim);
            }
        }
    }
    victims.sort_by_key(|victim| (Reverse(victim.priority), started(victim)));
    Ok(Candidate { node: node.name, victims, violations })
}

/// Pods whose eviction a PodDisruptionBudget does not allow, and the others; the order stays.
fn split_by_budget(pods: Vec<Arc<PodInfo>>, cluster: Cluster<'_>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut budgets: Vec<(Arc<PodDisruptionBudget>, Selector, i32)> = Vec::new();
    let mut namespaces: Vec<&str> = Vec::new();
    for pod in &pods {
        if namespaces.contains(&pod.namespace()) {
            continue;
        }
        namespaces.push(pod.namespace());
        for budget in cluster.lookup.budgets(pod.namespace()) {
            let selector = Selector::new(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
            let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0);
            budgets.push((budget, selector, allowed));
        }
    }
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (budget, selector, allowed) in &mut budgets {
            let concerned = budget.metadata.namespace.as_deref() == Some(pod.namespace())
                && !pod.labels().is_empty()
                && !selector.is_empty()
                && selector.matches(pod.labels());
            let counted = budget
                .status
                .as_ref()
                .and_then(|status| status.disrupted_pods.as_ref())
                .is_some_and(|disrupted| disrupted.contains_key(&pod.name));
            if concerned && !counted {
                *allowed -= 1;
                violates |= *allowed < 0;
            }
        }
        violates
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cycle::Outcome;
    use crate::testing::{self, World};

    fn run(world: &World, pod: &PodInfo) -> Result<Candidate, String> {
        let mut algorithm = Algorithm::new(3);
        let mut state = CycleState::default();
        let nominated = Nominated::new();
        let Outcome::Unfit(diagnosis) = algorithm.schedule(&mut state, pod, world.cluster(), &nominated)
        else {
            panic!("it fits without preemption")
        };
        preempt(&algorithm, &state, pod, &diagnosis, world.cluster(), &nominated)
    }

    #[test]
    fn the_cheapest_victims_on_the_cheapest_node() {
        let mut world = World::of(vec![testing::node("a"), testing::node("b")]);
        world.run(testing::pod("high").priority(5).cpu("3"), "a");
        world.run(testing::pod("low").priority(1).cpu("2"), "b");
        world.run(testing::pod("lower").priority(0).cpu("1"), "b");
        world.run(testing::pod("small").priority(0).cpu("500m"), "b");
        let candidate = run(&world, &testing::pod("p").priority(10).cpu("2").info()).expect("b has victims");
        assert_eq!(candidate.node, "b");
        let names: Vec<&str> = candidate.victims.iter().map(|victim| victim.name.as_str()).collect();
        assert_eq!(names, ["lower", "small"], "the more important one stays");
    }

    #[test]
    fn why_nobody_goes() {
        let mut world = World::of(vec![testing::node("a"), testing::node("b").taint("k", "v", "NoSchedule")]);
        world.run(testing::pod("x").cpu("4"), "a");
        let pod = testing::pod("p").cpu("1").info();
        assert_eq!(
            run(&world, &pod).expect_err("nobody is less important"),
            "0/2 nodes are available: 1 No preemption victims found for incoming pod, \
             1 Preemption is not helpful for scheduling."
        );
        let polite = testing::pod("p").priority(9).cpu("1");
        let polite = polite.spec(|spec| spec.preemption_policy = Some("Never".into())).info();
        assert_eq!(
            run(&world, &polite).err().as_deref(),
            Some("not eligible due to preemptionPolicy=Never.")
        );
    }
}
