//! Which thresholds are met, since when, and what the node says of itself meanwhile. Pure: times and levels
//! come from outside.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint};
use kedge_client::node_fit::tolerates;
use tokio::time::Instant;

use super::{Eviction, Floor, Levels, Signal};
use crate::pod;
use crate::resources::{self, Qos};
use crate::worker::Verdict;

/// One of the node's conditions that thresholds bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    Disk,
    Memory,
    Pid,
}

impl Condition {
    fn name(self) -> &'static str {
        match self {
            Self::Disk => "DiskPressure",
            Self::Memory => "MemoryPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

/// A floor of one signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Threshold {
    pub(super) signal: Signal,
    pub(super) floor: Floor,
    /// How long it is borne; `None` is a hard threshold.
    pub(super) grace: Option<Duration>,
    /// How much more has to be free for it to be over.
    pub(super) reclaim: Option<Floor>,
}

impl Threshold {
    fn condition(&self) -> Condition {
        match self.signal {
            Signal::MemoryAvailable => Condition::Memory,
            Signal::PidAvailable => Condition::Pid,
            _ => Condition::Disk,
        }
    }

    /// How much is missing. `None`: there is enough, or nobody knows.
    pub(super) fn missing(&self, levels: &Levels, with_reclaim: bool) -> Option<i64> {
        let found = levels[self.signal as usize]?;
        let mut floor = self.floor.of(found.capacity);
        if with_reclaim && let Some(more) = &self.reclaim {
            floor = floor.saturating_add(more.of(found.capacity));
        }
        (found.available < floor).then(|| floor - found.available)
    }
}

/// What is known of the node's shortages.
#[derive(Debug)]
pub(crate) struct Pressure {
    thresholds: Vec<Threshold>,
    transition: Duration,
    /// When each threshold that is met, by its place, was met first.
    since: HashMap<usize, Instant>,
    /// Those that have been met for as long as they are borne.
    active: Vec<usize>,
    /// When there was a reason for a condition last.
    seen: BTreeMap<Condition, Instant>,
    conditions: Vec<Condition>,
}

impl Pressure {
    pub(crate) fn new(policy: &Eviction) -> Self {
        Self {
            thresholds: policy.thresholds(),
            transition: policy.transition,
            since: HashMap::new(),
            active: Vec::new(),
            seen: BTreeMap::new(),
            conditions: Vec::new(),
        }
    }

    /// Notes a look at the machine; true: the node's conditions are other ones now.
    pub(crate) fn observe(&mut self, levels: &Levels, now: Instant) -> bool {
        let met: Vec<usize> = (0..self.thresholds.len())
            .filter(|place| {
                // What has led to evictions is over only when the minimum was reclaimed.
                self.thresholds[*place].missing(levels, self.active.contains(place)).is_some()
            })
            .collect();
        self.since.retain(|place, _| met.contains(place));
        for place in &met {
            self.since.entry(*place).or_insert(now);
            self.seen.insert(self.thresholds[*place].condition(), now);
        }
        self.active = met
            .into_iter()
            .filter(|place| {
                let borne = self.thresholds[*place].grace.unwrap_or_default();
                self.since.get(place).is_some_and(|since| now.duration_since(*since) >= borne)
            })
            .collect();
        let transition = self.transition;
        // One that has a reason now is there whatever the period is.
        self.seen.retain(|_, last| *last == now || now.duration_since(*last) < transition);
        let conditions: Vec<Condition> = self.seen.keys().copied().collect();
        std::mem::replace(&mut self.conditions, conditions) != self.conditions
    }

    pub(crate) fn has(&self, condition: Condition) -> bool {
        self.conditions.contains(&condition)
    }

    pub(crate) fn conditions(&self) -> Vec<Condition> {
        self.conditions.clone()
    }

    /// What has to be done something about, the most urgent first.
    pub(super) fn active(&self) -> Vec<Threshold> {
        self.active.iter().map(|place| self.thresholds[*place].clone()).collect()
    }
}

/// Why a node under pressure does not take the pod (upstream `managerImpl.Admit`).
pub(crate) fn refusal(target: &Pod, conditions: &[Condition]) -> Option<Verdict> {
    if conditions.is_empty() || pod::is_critical(target) {
        return None;
    }
    if *conditions == [Condition::Memory] {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let mut tolerations = target.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
        if resources::qos(target) != Qos::BestEffort
            || tolerations.any(|toleration| tolerates(toleration, &taint))
        {
            return None;
        }
    }
    let names: Vec<&str> = conditions.iter().map(|condition| condition.name()).collect();
    Some(Verdict {
        reason: "Evicted".into(),
        message: format!("Pod was rejected: The node had condition: [{}]. ", names.join(" ")),
        ..Verdict::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Level;
    use serde_json::json;

    fn levels(memory: i64, nodefs: i64) -> Levels {
        let level = |available: i64| Some(Level { available, capacity: 1000 });
        let mut levels: Levels = [None; 6];
        levels[Signal::MemoryAvailable as usize] = level(memory);
        levels[Signal::NodefsAvailable as usize] = level(nodefs);
        levels
    }

    fn policy() -> Eviction {
        Eviction {
            hard: "memory.available<100,nodefs.available<10%".parse().expect("read"),
            soft: "memory.available<200".parse().expect("read"),
            soft_grace: "memory.available=1m".parse().expect("read"),
            minimum_reclaim: "nodefs.available=50".parse().expect("read"),
            ..Eviction::default()
        }
    }

    #[test]
    fn floors() {
        let all = policy().thresholds();
        for (place, found, with_reclaim, missing) in [
            (0, levels(100, 100), false, None),
            (0, levels(99, 100), false, Some(1)),
            (1, levels(99, 100), false, Some(101)),
            (2, levels(0, 100), false, None),
            (2, levels(0, 100), true, Some(50)),
            (2, levels(0, 150), true, None),
            (2, [None; 6], true, None),
        ] {
            assert_eq!(all[place].missing(&found, with_reclaim), missing, "{place} {found:?}");
        }
    }

    #[test]
    fn conditions_outlast_their_cause_and_soft_ones_are_borne() {
        let start = Instant::now();
        let mut pressure = Pressure::new(&policy());
        // Seconds, levels, what the node says, places of what is acted upon.
        for (at, found, conditions, active) in [
            (0, levels(500, 500), &[][..], &[][..]),
            (10, levels(150, 500), &[Condition::Memory], &[]),
            (60, levels(150, 500), &[Condition::Memory], &[]),
            (70, levels(150, 500), &[Condition::Memory], &[1]),
            (80, levels(90, 500), &[Condition::Memory], &[0, 1]),
            // Better for a moment: the soft one is borne anew.
            (90, levels(250, 500), &[Condition::Memory], &[]),
            (100, levels(150, 500), &[Condition::Memory], &[]),
            (110, levels(250, 500), &[Condition::Memory], &[]),
            (399, levels(250, 500), &[Condition::Memory], &[]),
            (400, levels(250, 500), &[], &[]),
            (410, levels(250, 99), &[Condition::Disk], &[2]),
            // Above the floor, but the minimum is not reclaimed yet.
            (420, levels(250, 149), &[Condition::Disk], &[2]),
            (430, levels(250, 150), &[Condition::Disk], &[]),
            (440, levels(250, 120), &[Condition::Disk], &[]),
            (450, levels(50, 120), &[Condition::Disk, Condition::Memory], &[0]),
        ] {
            let before = pressure.conditions();
            let changed = pressure.observe(&found, start + Duration::from_secs(at));
            assert_eq!(pressure.conditions(), conditions, "{at}");
            assert_eq!(pressure.active, active, "{at}");
            assert_eq!(changed, before != conditions, "{at}");
        }
    }

    #[test]
    fn no_period_is_no_condition_beyond_its_cause() {
        let start = Instant::now();
        let mut pressure = Pressure::new(&Eviction { transition: Duration::ZERO, ..policy() });
        assert!(pressure.observe(&levels(500, 0), start));
        assert!(pressure.has(Condition::Disk));
        assert!(pressure.observe(&levels(500, 500), start + Duration::from_secs(1)));
        assert!(!pressure.has(Condition::Disk));
    }

    #[test]
    fn who_is_taken_under_pressure() {
        let of = |spec: serde_json::Value| -> Pod {
            let mut spec = spec;
            if spec.get("containers").is_none() {
                spec["containers"] = json!([{"name": "c"}]);
            }
            serde_json::from_value(json!({"spec": spec})).expect("a pod")
        };
        let plain = of(json!({}));
        let critical = of(json!({"priority": 2_000_000_000}));
        let burstable =
            of(json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}));
        let tolerant = of(json!({"tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]}));
        let tolerates_all = of(json!({"tolerations": [{"operator": "Exists"}]}));
        let other = of(json!({"tolerations": [
            {"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"},
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoExecute"}]}));
        let (memory, disk) = (Condition::Memory, Condition::Disk);
        for (target, conditions, refused) in [
            (&plain, &[][..], false),
            (&plain, &[memory], true),
            (&plain, &[disk], true),
            (&plain, &[Condition::Pid], true),
            (&burstable, &[memory], false),
            (&burstable, &[disk, memory], true),
            (&tolerant, &[memory], false),
            (&tolerates_all, &[memory], false),
            (&tolerates_all, &[disk], true),
            (&other, &[memory], true),
            (&critical, &[disk, memory], false),
        ] {
            assert_eq!(refusal(target, conditions).is_some(), refused, "{:?} {conditions:?}", target.spec);
        }
        let verdict = refusal(&plain, &[disk, memory]).expect("refused");
        assert_eq!(verdict.reason, "Evicted");
        assert_eq!(
            verdict.message,
            "Pod was rejected: The node had condition: [DiskPressure MemoryPressure]. "
        );
    }
}
