//! How fast an autoscaler may move: stabilisation windows, policies, the range (upstream
//! controller/podautoscaler/horizontal.go: normalizeDesiredReplicas and ...WithBehaviors). Pure.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec,
};

use crate::time;

/// `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWNSCALE_WINDOW: i32 = 300;

/// What the autoscaler remembers between its looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    /// When which number was asked for.
    pub(super) recommendations: Vec<(Timestamp, i32)>,
    /// When how many were added or removed.
    pub(super) ups: Vec<(Timestamp, i32)>,
    pub(super) downs: Vec<(Timestamp, i32)>,
}

/// A condition's reason and message.
pub(super) type Why = (&'static str, &'static str);

/// The number to go to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) replicas: i32,
    /// For AbleToScale.
    pub(super) stabilized: Why,
    /// For ScalingLimited, and whether it is.
    pub(super) limited: (bool, Why),
}

const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const IN_RANGE: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Why = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Why = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: Why =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Why =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// The rules of one direction, with upstream's defaults for what is not said.
struct Rules {
    window: i32,
    select: Select,
    policies: Vec<HPAScalingPolicy>,
}

#[derive(PartialEq)]
enum Select {
    Max,
    Min,
    Disabled,
}

fn rules(given: Option<&HPAScalingRules>, up: bool) -> Rules {
    let policy = |kind: &str, value| HPAScalingPolicy { type_: kind.into(), value, period_seconds: 15 };
    let default =
        if up { vec![policy("Pods", 4), policy("Percent", 100)] } else { vec![policy("Percent", 100)] };
    let policies = given.and_then(|rules| rules.policies.clone()).filter(|policies| !policies.is_empty());
    Rules {
        window: given.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(if up {
            0
        } else {
            DOWNSCALE_WINDOW
        }),
        select: match given.and_then(|rules| rules.select_policy.as_deref()) {
            Some("Disabled") => Select::Disabled,
            Some("Min") => Select::Min,
            _ => Select::Max,
        },
        policies: policies.unwrap_or(default),
    }
}

fn since(now: Timestamp, seconds: i32) -> Timestamp {
    time::plus(now, -i64::from(seconds))
}

fn changed(events: &[(Timestamp, i32)], now: Timestamp, seconds: i32) -> i32 {
    let start = since(now, seconds);
    events.iter().filter(|(at, _)| *at > start).map(|(_, count)| count).sum()
}

/// How far up or down the policies let us go at the moment.
fn limit(rules: &Rules, current: i32, past: &Past, up: bool, now: Timestamp) -> i32 {
    let proposals = rules.policies.iter().map(|policy| {
        let added = changed(&past.ups, now, policy.period_seconds);
        let removed = changed(&past.downs, now, policy.period_seconds);
        let start = current - added + removed;
        match (policy.type_.as_str(), up) {
            ("Percent", true) => {
                let wanted = i64::from(start) * (100 + i64::from(policy.value));
                i32::try_from((wanted + 99) / 100).unwrap_or(i32::MAX)
            }
            ("Percent", false) => {
                let wanted = i64::from(start) * (100 - i64::from(policy.value));
                i32::try_from(wanted / 100).unwrap_or(0)
            }
            (_, true) => start.saturating_add(policy.value),
            (_, false) => start - policy.value,
        }
    });
    let most = (rules.select == Select::Max) == up;
    let chosen = if most { proposals.max() } else { proposals.min() };
    if rules.select == Select::Disabled { current } else { chosen.unwrap_or(current) }
}

/// Bring what the metrics ask for into bounds. `past` keeps the recommendation.
pub(super) fn decide(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    wanted: i32,
    past: &mut Past,
    now: Timestamp,
) -> Decision {
    let min = spec.min_replicas.unwrap_or(1);
    match &spec.behavior {
        None => {
            let start = since(now, DOWNSCALE_WINDOW);
            past.recommendations.retain(|(at, _)| *at > start);
            let highest = past.recommendations.iter().map(|(_, count)| *count).max().unwrap_or(wanted);
            past.recommendations.push((now, wanted));
            let stable = highest.max(wanted);
            let stabilized = if stable == wanted { READY } else { DOWN_STABILIZED };
            let rate = current.saturating_mul(2).max(4);
            let (most, why) =
                if spec.max_replicas > rate { (rate, UP_LIMIT) } else { (spec.max_replicas, TOO_MANY) };
            let (replicas, limited) = if stable < min {
                (min, (true, TOO_FEW))
            } else if stable > most {
                (most, (true, why))
            } else {
                (stable, (false, IN_RANGE))
            };
            Decision { replicas, stabilized, limited }
        }
        Some(behavior) => with_behavior(behavior, (min, spec.max_replicas), current, wanted, past, now),
    }
}

fn with_behavior(
    behavior: &HorizontalPodAutoscalerBehavior,
    (min, max): (i32, i32),
    current: i32,
    wanted: i32,
    past: &mut Past,
    now: Timestamp,
) -> Decision {
    let (ups, downs) = (rules(behavior.scale_up.as_ref(), true), rules(behavior.scale_down.as_ref(), false));
    let within = |window: i32| {
        let start = since(now, window);
        past.recommendations.iter().filter(move |(at, _)| *at > start).map(|(_, count)| *count)
    };
    let lowest = within(ups.window).chain([wanted]).min().unwrap_or(wanted);
    let highest = within(downs.window).chain([wanted]).max().unwrap_or(wanted);
    let mut stable = current;
    if stable < lowest {
        stable = lowest;
    }
    if stable > highest {
        stable = highest;
    }
    let longest = ups.window.max(downs.window);
    past.recommendations.retain(|(at, _)| *at > since(now, longest));
    past.recommendations.push((now, wanted));
    let stabilized = match stable.cmp(&wanted) {
        std::cmp::Ordering::Equal => READY,
        // Held above what is asked for now, or below it.
        std::cmp::Ordering::Greater => DOWN_STABILIZED,
        std::cmp::Ordering::Less => UP_STABILIZED,
    };
    let (replicas, limited) = if stable > current {
        let rate = limit(&ups, current, past, true, now).max(current);
        let (most, why) = if max > rate { (rate, UP_LIMIT) } else { (max, TOO_MANY) };
        if stable > most { (most, (true, why)) } else { (stable, (false, IN_RANGE)) }
    } else if stable < current {
        let rate = limit(&downs, current, past, false, now).min(current);
        let (least, why) = if min < rate { (rate, DOWN_LIMIT) } else { (min, TOO_FEW) };
        if stable < least { (least, (true, why)) } else { (stable, (false, IN_RANGE)) }
    } else {
        (stable, (false, IN_RANGE))
    };
    Decision { replicas, stabilized, limited }
}

/// Note a change, and forget those that no policy looks at any more.
pub(super) fn note(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    past: &mut Past,
    change: i32,
    now: Timestamp,
) {
    let Some(behavior) = behavior else { return };
    let period = |given: Option<&HPAScalingRules>, up| {
        rules(given, up).policies.iter().map(|policy| policy.period_seconds).max().unwrap_or(0)
    };
    let longest = period(behavior.scale_up.as_ref(), true).max(period(behavior.scale_down.as_ref(), false));
    let start = since(now, longest);
    past.ups.retain(|(at, _)| *at > start);
    past.downs.retain(|(at, _)| *at > start);
    if change > 0 {
        past.ups.push((now, change));
    } else {
        past.downs.push((now, -change));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::at;
    use serde_json::{Value, json};

    fn spec(min: i32, max: i32, behavior: Value) -> HorizontalPodAutoscalerSpec {
        serde_json::from_value(json!({ "minReplicas": min, "maxReplicas": max, "behavior": behavior,
            "scaleTargetRef": { "kind": "Deployment", "name": "d" } }))
        .expect("a spec")
    }

    #[test]
    fn bounds_of_a_move() {
        let slow = json!({ "scaleUp": { "policies": [{ "type": "Pods", "value": 1, "periodSeconds": 60 }] },
            "scaleDown": { "stabilizationWindowSeconds": 0, "policies": [{ "type": "Percent", "value": 10, "periodSeconds": 60 }] } });
        let off = json!({ "scaleDown": { "selectPolicy": "Disabled", "stabilizationWindowSeconds": 0 } });
        let careful = json!({ "scaleUp": { "stabilizationWindowSeconds": 60 } });
        let least = json!({ "scaleUp": { "selectPolicy": "Min" } });
        // Range, behaviour, now, asked; earlier recommendation (seconds ago), added (seconds ago).
        for (what, range, behavior, current, wanted, before, added, expected, reason) in [
            ("plain", (1, 10), Value::Null, 3, 5, None, None, 5, "DesiredWithinRange"),
            ("at most twice as many", (1, 100), Value::Null, 3, 50, None, None, 6, "ScaleUpLimit"),
            ("but at least four", (1, 100), Value::Null, 1, 50, None, None, 4, "ScaleUpLimit"),
            ("the most", (1, 10), Value::Null, 8, 50, None, None, 10, "TooManyReplicas"),
            ("the fewest", (2, 10), Value::Null, 8, 1, None, None, 2, "TooFewReplicas"),
            ("a fall waits", (1, 10), Value::Null, 8, 1, Some((200, 7)), None, 7, "DesiredWithinRange"),
            ("but not for ever", (1, 10), Value::Null, 8, 1, Some((400, 7)), None, 1, "DesiredWithinRange"),
            ("defaults of a behaviour", (1, 100), json!({}), 3, 50, None, None, 7, "ScaleUpLimit"),
            ("one pod a minute", (1, 100), slow.clone(), 3, 50, None, None, 4, "ScaleUpLimit"),
            ("and that was it", (1, 100), slow.clone(), 4, 50, None, Some((30, 1)), 4, "ScaleUpLimit"),
            ("until it is over", (1, 100), slow.clone(), 4, 50, None, Some((90, 1)), 5, "ScaleUpLimit"),
            ("a tenth a minute", (1, 100), slow, 50, 10, None, None, 45, "ScaleDownLimit"),
            ("never down", (1, 100), off, 50, 10, None, None, 50, "ScaleDownLimit"),
            ("a rise waits", (1, 100), careful, 3, 5, Some((30, 4)), None, 4, "DesiredWithinRange"),
            ("the smaller policy", (1, 100), least, 3, 50, None, None, 6, "ScaleUpLimit"),
        ] {
            let now = at(10_000);
            let mut past = Past {
                recommendations: before.into_iter().map(|(ago, count)| (at(10_000 - ago), count)).collect(),
                ups: added.into_iter().map(|(ago, count)| (at(10_000 - ago), count)).collect(),
                downs: Vec::new(),
            };
            let decision = decide(&spec(range.0, range.1, behavior), current, wanted, &mut past, now);
            assert_eq!((decision.replicas, decision.limited.1.0), (expected, reason), "{what}");
        }
    }
}
