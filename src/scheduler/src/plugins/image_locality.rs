//! ImageLocality: nodes that hold the pod's images, weighed by size and spread, are better.

use crate::framework::{Cluster, CycleState, Events, MAX_SCORE, Plugin};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

const MIB: i64 = 1024 * 1024;
const MIN_THRESHOLD: i64 = 23 * MIB;
const MAX_PER_CONTAINER: i64 = 1000 * MIB;

pub(crate) struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn wakes_on(&self) -> Events {
        0
    }

    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &[usize], cluster: Cluster<'_>) -> bool {
        pod.images.iter().any(|image| cluster.cache.nodes_with_image(image) > 0)
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo, cluster: Cluster<'_>) -> i64 {
        let total = cluster.cache.order().len().max(1) as f64;
        let held = pod.images.iter().filter_map(|image| {
            let size = *node.images.get(image)?;
            // An image that few nodes have does not draw all pods there.
            Some((size as f64 * (cluster.cache.nodes_with_image(image) as f64 / total)) as i64)
        });
        let most = MAX_PER_CONTAINER * i64::try_from(pod.containers.max(1)).unwrap_or(1);
        let sum = held.sum::<i64>().clamp(MIN_THRESHOLD, most);
        MAX_SCORE * (sum - MIN_THRESHOLD) / (most - MIN_THRESHOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};

    #[test]
    fn large_and_common_images_count() {
        let world = World::of(vec![
            testing::node("a").image("big:1", 2000 * MIB).image("small:latest", MIB),
            testing::node("b"),
        ]);
        let score = |image: &str, index: usize| {
            let pod = testing::pod("p").image(image).info();
            ImageLocality.score(&CycleState::default(), &pod, world.cache.node(index), world.cluster())
        };
        assert_eq!(score("big:1", 0), 100);
        assert_eq!(score("big:1", 1), 0);
        assert_eq!(score("small", 0), 0, "below the threshold");
        let pod = testing::pod("p").image("unknown").info();
        assert!(!ImageLocality.pre_score(&mut CycleState::default(), &pod, &[0], world.cluster()));
    }
}
