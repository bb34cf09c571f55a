//! The arithmetic of a rollout, free of any request (upstream deployment/util and rolling.go).

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kedge_base::Order as _;

use super::revision::{DESIRED_ANNOTATION, MAX_ANNOTATION, int_annotation};
use crate::percent::resolve;

/// `spec.replicas` with its default.
pub(super) fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// `spec.replicas` with its default.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// The sum of `of` over some sets.
pub(super) fn sum<'a>(
    sets: impl IntoIterator<Item = &'a ReplicaSet>,
    of: impl Fn(&ReplicaSet) -> i32,
) -> i32 {
    sets.into_iter().map(of).sum()
}

pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).is_none_or(|kind| kind == "RollingUpdate")
}

/// (maxSurge, maxUnavailable) as numbers. Both zero could never move: then one may be unavailable.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
        .and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), wanted(deployment), true);
    let unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted(deployment), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { fenceposts(deployment).0 } else { 0 }
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    if !is_rolling(deployment) || wanted(deployment) == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(wanted(deployment))
}

/// How large the new set may be now. `total`: the sizes of all sets together.
pub(super) fn new_set_size(deployment: &Deployment, total: i32, current: i32) -> i32 {
    let wanted = wanted(deployment);
    if !is_rolling(deployment) {
        return wanted;
    }
    let room = wanted + max_surge(deployment) - total;
    if room <= 0 { current } else { current + room.min(wanted - current) }
}

/// How many pods of old sets may go, unavailable ones of the new set held against them.
pub(super) fn max_scaled_down(deployment: &Deployment, total: i32, new: &ReplicaSet) -> i32 {
    let min_available = wanted(deployment) - max_unavailable(deployment);
    total - min_available - (size(new) - available(new))
}

/// The sizes after taking up to `max` pods that are not available from the old sets, oldest first.
pub(super) fn without_unhealthy(old: &[ReplicaSet], max: i32) -> Vec<i32> {
    let mut left = max;
    let each = old.iter().map(|set| {
        let (size, available) = (size(set), available(set));
        if size == 0 || size == available {
            return size;
        }
        let down = left.min(size - available).max(0);
        left -= down;
        size - down
    });
    each.collect()
}

/// The sizes after taking as many available pods from the old sets as may go, oldest first.
/// `available_now`: of all sets.
pub(super) fn scaled_down(deployment: &Deployment, sizes: &[i32], available_now: i32) -> Vec<i32> {
    let mut left = available_now - (wanted(deployment) - max_unavailable(deployment));
    let each = sizes.iter().map(|&size| {
        let down = left.min(size).max(0);
        left -= down;
        size - down
    });
    each.collect()
}

/// Whether the new set is all there is: it has the wanted size, knows it, and all are available.
pub(super) fn is_saturated(deployment: &Deployment, new: Option<&ReplicaSet>) -> bool {
    let wanted = wanted(deployment);
    new.is_some_and(|new| {
        int_annotation(&new.metadata, DESIRED_ANNOTATION) == Some(wanted)
            && size(new) == wanted
            && available(new) == wanted
    })
}

/// The sizes of the sets (all active ones, in the order in which they were given) when a
/// Deployment is scaled in the middle of a rollout: each changes in proportion to its size.
pub(super) fn proportional(deployment: &Deployment, sets: &[ReplicaSet]) -> Vec<i32> {
    let wanted = wanted(deployment);
    let allowed = if wanted > 0 { wanted + max_surge(deployment) } else { 0 };
    let to_add = allowed - sum(sets, size);
    let mut order: Vec<usize> = (0..sets.len()).collect();
    let created = |i: usize| sets[i].metadata.creation_timestamp.as_ref().map(|t| t.0);
    // The largest first; among equals the newest when adding, the oldest when taking away.
    order.order_by(|&a, &b| {
        let by_age = if to_add > 0 { created(b).cmp(&created(a)) } else { created(a).cmp(&created(b)) };
        size(&sets[b])
            .cmp(&size(&sets[a]))
            .then(by_age)
            .then_with(|| sets[a].metadata.name.cmp(&sets[b].metadata.name))
    });
    let mut sizes: Vec<i32> = sets.iter().map(size).collect();
    if to_add == 0 {
        return sizes;
    }
    let mut added = 0;
    for &i in &order {
        let part = proportion(deployment, &sets[i], to_add, added);
        sizes[i] += part;
        added += part;
    }
    // What rounding left over goes to the largest.
    if let Some(&first) = order.first() {
        sizes[first] = (sizes[first] + to_add - added).max(0);
    }
    sizes
}

fn proportion(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set);
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let wanted = wanted(deployment);
    if wanted == 0 {
        return -size(set);
    }
    let max = i64::from(wanted + max_surge(deployment));
    let noted = int_annotation(&set.metadata, MAX_ANNOTATION).filter(|&max| max != 0);
    let before = noted.or_else(|| deployment.status.as_ref().and_then(|s| s.replicas)).unwrap_or(0);
    if before <= 0 {
        return 0;
    }
    let before = i64::from(before);
    // Rounded to the nearest, halves up.
    let new = (2 * i64::from(size(set)) * max + before).div_euclid(2 * before);
    i32::try_from(new).unwrap_or(i32::MAX) - size(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{
        DeploymentSpec, DeploymentStrategy, ReplicaSetSpec, ReplicaSetStatus, RollingUpdateDeployment,
    };
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn value(text: &str) -> IntOrString {
        text.parse().map_or_else(|_| IntOrString::String(text.into()), IntOrString::Int)
    }

    fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
        Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(value(surge)),
                        max_unavailable: Some(value(unavailable)),
                    }),
                }),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        }
    }

    fn set(replicas: i32, available: i32, max: Option<i32>) -> ReplicaSet {
        let mut set = ReplicaSet {
            spec: Some(ReplicaSetSpec { replicas: Some(replicas), ..ReplicaSetSpec::default() }),
            status: Some(ReplicaSetStatus {
                available_replicas: Some(available),
                ..ReplicaSetStatus::default()
            }),
            ..ReplicaSet::default()
        };
        if let Some(max) = max {
            set.metadata.annotations = Some([(MAX_ANNOTATION.to_owned(), max.to_string())].into());
        }
        set
    }

    #[test]
    fn fenceposts_round_surge_up_and_unavailable_down() {
        for (replicas, surge, unavailable, expected) in [
            (10, "25%", "25%", (3, 2)),
            (2, "25%", "25%", (1, 0)),
            (2, "0", "1", (0, 1)),
            (1, "0%", "25%", (0, 1)),
            (4, "100%", "0", (4, 0)),
            (3, "1", "10", (1, 3)),
            (0, "1", "1", (1, 0)),
        ] {
            let d = deployment(replicas, surge, unavailable);
            assert_eq!((max_surge(&d), max_unavailable(&d)), expected, "{replicas} {surge} {unavailable}");
        }
    }

    #[test]
    fn the_new_set_grows_into_the_room() {
        for (replicas, surge, total, current, expected) in
            [(2, "0", 2, 0, 0), (2, "0", 1, 0, 1), (4, "1", 4, 0, 1), (4, "50%", 5, 1, 2), (3, "10", 3, 0, 3)]
        {
            assert_eq!(new_set_size(&deployment(replicas, surge, "1"), total, current), expected);
        }
    }

    #[test]
    fn old_sets_shrink_unhealthy_pods_first() {
        let d = deployment(10, "2", "2");
        let old = [set(8, 5, None), set(0, 0, None), set(4, 1, None)];
        assert_eq!(without_unhealthy(&old, 4), [5, 0, 3]);
        assert_eq!(without_unhealthy(&old, 100), [5, 0, 1]);
        assert_eq!(max_scaled_down(&d, 12, &set(5, 3, None)), 2);
        assert_eq!(scaled_down(&d, &[5, 0, 3], 14), [0, 0, 2]);
        assert_eq!(scaled_down(&d, &[5, 0, 3], 8), [5, 0, 3]);
    }

    #[test]
    fn scaling_in_a_rollout_is_proportional() {
        // Upstream's documented example: 10 (+3 surge) as 8 old and 5 new, scaled to 15.
        let d = deployment(15, "3", "2");
        assert_eq!(proportional(&d, &[set(8, 8, Some(13)), set(5, 0, Some(13))]), [11, 7]);
        assert_eq!(
            proportional(&deployment(0, "3", "2"), &[set(8, 8, Some(13)), set(5, 0, Some(13))]),
            [0, 0]
        );
        assert_eq!(
            proportional(&deployment(10, "3", "2"), &[set(8, 8, Some(13)), set(5, 0, Some(13))]),
            [8, 5]
        );
        assert_eq!(
            proportional(&deployment(5, "0", "2"), &[set(5, 5, Some(10)), set(5, 0, Some(10))])
                .iter()
                .sum::<i32>(),
            5
        );
    }

    #[test]
    fn saturation_needs_the_annotation() {
        let d = deployment(2, "1", "0");
        let mut new = set(2, 2, None);
        assert!(!is_saturated(&d, Some(&new)) && !is_saturated(&d, None));
        new.metadata.annotations = Some([(DESIRED_ANNOTATION.to_owned(), "2".to_owned())].into());
        assert!(is_saturated(&d, Some(&new)));
    }
}
