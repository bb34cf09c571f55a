//! Carries out what was granted to a running pod: containers get their new limits, or are restarted where
//! their resize policy says so, and the pod's cgroup grows before them and shrinks after them
//! (upstream `kuberuntime_manager.go`, `computePodResizeAction` and `doPodResizeAction`).

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::actions::{Kill, Plan};
use crate::allocation::{self, Sizes};
use crate::cgroup::{Part, PodLimits};
use crate::core::Core;
use crate::runtime::RuntimePod;
use crate::{Error, container_config, pod, volumes};

/// cgroups know no smaller share and no smaller quota, in thousandths of a processor.
const LEAST_REQUEST: i64 = 2;
const LEAST_LIMIT: i64 = 10;

/// A running container that has not what it was granted.
#[derive(Clone, Debug)]
struct Update {
    container: Container,
    id: String,
    /// What it has.
    now: ResourceRequirements,
}

impl Update {
    fn wanted(&self) -> Sizes {
        self.container.resources.as_ref().map(Sizes::of).unwrap_or_default()
    }

    /// Whether its policy asks for a restart.
    fn restarts(&self) -> bool {
        let (new, old) = (self.wanted(), Sizes::of(&self.now));
        let asks = |name: &str| {
            let policies = self.container.resize_policy.iter().flatten();
            policies
                .into_iter()
                .any(|policy| policy.resource_name == name && policy.restart_policy == "RestartContainer")
        };
        (!same_cpu(&new, &old) && asks("cpu")) || (!new.same_memory(&old) && asks("memory"))
    }
}

/// Below what cgroups know everything is the same.
fn same_cpu(left: &Sizes, right: &Sizes) -> bool {
    let same = |left: i64, right: i64, least: i64| left == right || (left <= least && right <= least);
    // No limit is not a small one.
    let limits = (left.cpu_limit == 0) == (right.cpu_limit == 0);
    limits
        && same(left.cpu_limit, right.cpu_limit, LEAST_LIMIT)
        && same(left.cpu_request, right.cpu_request, LEAST_REQUEST)
}

fn updates(core: &Core, target: &Pod, real: &RuntimePod) -> Vec<Update> {
    let uid = pod::uid(target);
    let lagging = |container: &Container| {
        let now = core.allocations.actual(&uid, &container.name)?;
        let running = real.latest(&container.name).filter(|current| current.is_running())?;
        Some(Update { container: container.clone(), id: running.id.clone(), now })
    };
    allocation::resizable(target).filter_map(lagging).collect()
}

/// Adds the restarts that resize policies ask for to the plan; returns the containers' names.
pub(crate) fn restarts(core: &Core, target: &Pod, real: &RuntimePod, plan: &mut Plan) -> HashSet<String> {
    let mut names = HashSet::new();
    if plan.kill_pod || plan.create_sandbox {
        return names;
    }
    for update in updates(core, target, real).into_iter().filter(Update::restarts) {
        if plan.kill.iter().any(|kill| kill.id == update.id) {
            continue;
        }
        let name = update.container.name.clone();
        plan.kill.push(Kill {
            id: update.id,
            name: name.clone(),
            message: format!("Container {name} resize requires restart"),
        });
        if !plan.start.contains(&name) {
            plan.start.push(name.clone());
        }
        names.insert(name);
    }
    names
}

/// Makes the running containers and the pod's cgroup what was granted. `real` is what runs after those to be
/// restarted were stopped. False: there was nothing to do.
///
/// # Errors
/// The first thing that could not be done; what was done until then stays and is not done again.
pub(crate) async fn carry_out(core: &Core, target: &Pod, real: &RuntimePod) -> Result<bool, Error> {
    let uid = pod::uid(target);
    let under_way =
        core.allocations.lock().records.get(&uid).is_some_and(|record| record.in_progress.is_some());
    let updates = updates(core, target, real);
    if (!under_way && updates.is_empty()) || real.ready_sandbox().is_none() {
        return Ok(false);
    }
    let (cgroups, of) = (core.cgroups.clone(), target.clone());
    let (wanted, found) = volumes::blocking(move || Ok((cgroups.wanted(&of), cgroups.found(&of)?))).await?;
    check_memory(core, target, &updates, &wanted, &found)?;
    let done = actuate(core, target, updates, &wanted, &found).await;
    allocation::save(core, &uid).await?;
    done.map(|()| true)
}

async fn actuate(
    core: &Core,
    target: &Pod,
    mut updates: Vec<Update>,
    wanted: &PodLimits,
    found: &PodLimits,
) -> Result<(), Error> {
    let unlimited = |limit: Option<i64>| limit.unwrap_or(i64::MAX);
    // Memory and CPU apart: one may grow while the other shrinks.
    let memory = Part::Memory(wanted.memory);
    if unlimited(wanted.memory) > unlimited(found.memory) {
        core.cgroups.set(target, &memory)?;
    }
    // Decreases come first, so that the pod's limit holds all the time.
    updates.sort_by_key(|update| update.wanted().memory_limit >= Sizes::of(&update.now).memory_limit);
    for update in &mut updates {
        if !update.wanted().same_memory(&Sizes::of(&update.now)) {
            change(core, target, update, "memory").await?;
        }
    }
    if unlimited(wanted.memory) < unlimited(found.memory) {
        core.cgroups.set(target, &memory)?;
    }
    let (quota, shares) = (Part::Quota(wanted.quota), Part::Shares(wanted.shares));
    if unlimited(wanted.quota) > unlimited(found.quota) {
        core.cgroups.set(target, &quota)?;
    }
    if wanted.shares > found.shares {
        core.cgroups.set(target, &shares)?;
    }
    updates.sort_by_key(|update| {
        let (new, old) = (update.wanted(), Sizes::of(&update.now));
        (new.cpu_limit, new.cpu_request) >= (old.cpu_limit, old.cpu_request)
    });
    for update in &mut updates {
        if !update.wanted().same_cpu(&Sizes::of(&update.now)) {
            change(core, target, update, "cpu").await?;
        }
    }
    if wanted.shares < found.shares {
        core.cgroups.set(target, &shares)?;
    }
    if unlimited(wanted.quota) < unlimited(found.quota) {
        core.cgroups.set(target, &quota)?;
    }
    Ok(())
}

/// Gives the container one resource, `cpu` or `memory`, as granted; the other stays as it is.
async fn change(core: &Core, target: &Pod, update: &mut Update, name: &str) -> Result<(), Error> {
    let granted = update.container.resources.clone().unwrap_or_default();
    let next = allocation::with_resource(&update.now, &granted, name);
    let container = Container { resources: Some(next.clone()), ..update.container.clone() };
    let mut asked = container_config::linux_resources(core, target, &container);
    // What cannot change while it runs stays out.
    asked.unified.clear();
    asked.oom_score_adj = 0;
    core.runtime.update_container(&update.id, asked).await?;
    tracing::info!(
        pod = pod::name(target),
        container = update.container.name,
        resource = name,
        "container resized"
    );
    core.allocations.actuate(&pod::uid(target), &update.container.name, next.clone());
    update.now = next;
    Ok(())
}

/// No memory limit is set below what is in use: the kernel would end the processes
/// (upstream `validatePodResizeAction`).
fn check_memory(
    core: &Core,
    target: &Pod,
    updates: &[Update],
    wanted: &PodLimits,
    found: &PodLimits,
) -> Result<(), Error> {
    let mut errors = Vec::new();
    if let Some(limit) = wanted.memory.filter(|limit| found.memory.is_none_or(|now| *limit < now)) {
        match core.cgroups.memory_usage(target, None) {
            None => errors.push("missing pod memory usage".to_owned()),
            Some(usage) if usage >= unsigned(limit) => errors
                .push(format!("attempting to set pod memory limit ({limit}) below current usage ({usage})")),
            Some(_) => {}
        }
    }
    for update in updates {
        let (limit, now) = (update.wanted().memory_limit, Sizes::of(&update.now).memory_limit);
        if limit == 0 || (now != 0 && limit >= now) {
            continue;
        }
        let name = &update.container.name;
        match core.cgroups.memory_usage(target, Some(&update.id)) {
            None => errors.push(format!("missing container {name:?} memory usage")),
            Some(usage) if usage >= unsigned(limit) => errors.push(format!(
                "attempting to set container {name:?} memory limit ({limit}) below current usage ({usage})"
            )),
            Some(_) => {}
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::other(format!("cannot decrease memory limits: {one}"))),
        many => Err(Error::other(format!("cannot decrease memory limits: [{}]", many.join(", ")))),
    }
}

fn unsigned(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn update(policy: serde_json::Value, new: serde_json::Value, old: serde_json::Value) -> Update {
        let container = json!({"name": "c", "resources": new, "resizePolicy": policy});
        Update {
            container: serde_json::from_value(container).expect("a container"),
            id: "id".into(),
            now: serde_json::from_value(old).expect("resources"),
        }
    }

    #[test]
    fn a_restart_is_due_when_the_resource_with_that_policy_changes() {
        let policy = json!([
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"},
        ]);
        let sizes = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}});
        for (new, restarts) in
            [(sizes("200m", "64Mi"), false), (sizes("100m", "128Mi"), true), (sizes("200m", "32Mi"), true)]
        {
            let update = update(policy.clone(), new.clone(), sizes("100m", "64Mi"));
            assert_eq!(update.restarts(), restarts, "{new}");
        }
        assert!(!update(json!(null), sizes("1", "1Gi"), sizes("2", "2Gi")).restarts());
        // Nothing that a cgroup could tell apart.
        let cpu = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        assert!(!update(cpu.clone(), sizes("2m", "1Gi"), sizes("1m", "1Gi")).restarts());
        assert!(update(cpu, sizes("3m", "1Gi"), sizes("1m", "1Gi")).restarts());
    }
}
