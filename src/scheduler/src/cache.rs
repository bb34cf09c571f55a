//! What the scheduler believes about nodes and assigned pods: the API server's state plus the pods
//! it has just placed (assumed) and whose binding it has not seen confirmed.
//! One task owns the cache and changes it between scheduling cycles only, so a cycle works on it
//! directly: it is its own snapshot, and nothing is copied.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::selector::Labels;

/// How long a pod may stay assumed after its binding was acknowledged.
pub(crate) const ASSUMED_TTL: Duration = Duration::from_secs(15 * 60);

#[derive(Debug)]
struct PodState {
    slot: usize,
    assumed: bool,
    /// Set when the binding was acknowledged.
    deadline: Option<Instant>,
}

/// Nodes and assigned pods.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    slots: Vec<NodeInfo>,
    free: Vec<usize>,
    by_name: HashMap<String, usize>,
    /// The nodes that exist, zones taking turns.
    order: Vec<usize>,
    order_is_stale: bool,
    pods: HashMap<String, PodState>,
    /// On how many nodes an image is.
    image_nodes: HashMap<String, usize>,
    /// Labels of every namespace.
    pub namespaces: HashMap<String, Labels>,
}

impl Cache {
    /// The nodes in the order in which they are tried. Call [`Cache::refresh`] after changes.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    pub(crate) fn node(&self, index: usize) -> &NodeInfo {
        &self.slots[index]
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.order.iter().map(|&index| &self.slots[index])
    }

    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().filter(|&index| self.slots[index].node.is_some())
    }

    pub(crate) fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    /// Whether the pod is on a node already, by the API server's word or by assumption.
    pub(crate) fn has_pod(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Brings the order of nodes up to date: regions' zones take turns (upstream's node tree).
    pub(crate) fn refresh(&mut self) {
        if !self.order_is_stale {
            return;
        }
        self.order_is_stale = false;
        let mut zones: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
        let mut present: Vec<usize> = self.by_name.values().copied().collect();
        present.retain(|&index| self.slots[index].node.is_some());
        present.sort_by(|&a, &b| self.slots[a].name.cmp(&self.slots[b].name));
        for &index in &present {
            zones.entry(self.slots[index].zone()).or_default().push(index);
        }
        self.order.clear();
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        for turn in 0..longest {
            self.order.extend(zones.values().filter_map(|zone| zone.get(turn)));
        }
    }

    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let index = self.slot(&name);
        self.count_images(index, false);
        let before = self.slots[index].node.is_some().then(|| self.slots[index].zone());
        self.slots[index].set_node(node);
        self.order_is_stale |= before != Some(self.slots[index].zone());
        self.count_images(index, true);
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(&index) = self.by_name.get(name) else { return };
        self.count_images(index, false);
        self.slots[index].node = None;
        self.slots[index].images.clear();
        self.order_is_stale = true;
        self.release(index);
    }

    fn count_images(&mut self, index: usize, present: bool) {
        for image in self.slots[index].images.keys() {
            if present {
                *self.image_nodes.entry(image.clone()).or_default() += 1;
            } else if let Some(count) = self.image_nodes.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.image_nodes.remove(image);
                }
            }
        }
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let fresh = NodeInfo::named(name);
        let index = if let Some(index) = self.free.pop() {
            self.slots[index] = fresh;
            index
        } else {
            self.slots.push(fresh);
            self.slots.len() - 1
        };
        self.by_name.insert(name.to_owned(), index);
        index
    }

    /// Frees the slot of a node that is gone and empty.
    fn release(&mut self, index: usize) {
        if self.slots[index].node.is_none() && self.slots[index].pods.is_empty() {
            self.by_name.remove(&self.slots[index].name);
            self.slots[index] = NodeInfo::default();
            self.free.push(index);
            self.order_is_stale = true;
        }
    }

    /// The pod counts on the node from now on, before the API server knows.
    pub(crate) fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, true);
    }

    /// The API server says the pod is on the node. Confirms an assumption or corrects it.
    pub(crate) fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, false);
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(&pod.uid);
        let slot = self.slot(node);
        self.pods.insert(pod.uid.clone(), PodState { slot, assumed, deadline: None });
        self.slots[slot].add_pod(pod);
    }

    /// The pod is gone, or has ended and holds nothing any more.
    pub(crate) fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(state) = self.pods.remove(uid) else { return false };
        self.slots[state.slot].remove_pod(uid);
        self.release(state.slot);
        true
    }

    /// The binding failed. Does nothing when the API server has confirmed the pod meanwhile.
    pub(crate) fn forget(&mut self, uid: &str) -> bool {
        let assumed = self.pods.get(uid).is_some_and(|state| state.assumed);
        assumed && self.remove_pod(uid)
    }

    /// The binding was acknowledged: the informer's word has to come within [`ASSUMED_TTL`].
    pub(crate) fn finish_binding(&mut self, uid: &str, now: Instant) {
        if let Some(state) = self.pods.get_mut(uid).filter(|state| state.assumed) {
            state.deadline = Some(now + ASSUMED_TTL);
        }
    }

    /// Forgets assumed pods whose confirmation never came.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        let late: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, state)| state.assumed && state.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(uid, _)| uid.clone())
            .collect();
        late.iter().filter(|uid| self.remove_pod(uid)).count()
    }

    /// Whether [`Cache::expire`] may have something to do later.
    pub(crate) fn has_assumed(&self) -> bool {
        self.pods.values().any(|state| state.assumed && state.deadline.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn requested(cache: &Cache, node: &str) -> i64 {
        cache.index_of(node).map_or(-1, |index| cache.node(index).requested.milli_cpu)
    }

    #[test]
    fn assume_confirm_forget_expire() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for name in ["n1", "n2"] {
            cache.set_node(Arc::new(testing::node(name).build()));
        }
        let pod = testing::pod("p").cpu("100m").info();

        cache.assume(pod.clone(), "n1");
        assert_eq!(requested(&cache, "n1"), 100);
        assert!(cache.forget(&pod.uid));
        assert_eq!(requested(&cache, "n1"), 0);

        cache.assume(pod.clone(), "n1");
        cache.set_pod(pod.clone(), "n2");
        assert_eq!((requested(&cache, "n1"), requested(&cache, "n2")), (0, 100), "the API server is right");
        assert!(!cache.forget(&pod.uid), "a confirmed pod stays");
        cache.finish_binding(&pod.uid, now);
        assert_eq!(cache.expire(now + ASSUMED_TTL), 0, "a confirmed pod does not expire");
        assert!(cache.remove_pod(&pod.uid));

        cache.assume(pod.clone(), "n1");
        assert_eq!(cache.expire(now + ASSUMED_TTL), 0, "no deadline while the binding is under way");
        cache.finish_binding(&pod.uid, now);
        assert!(cache.has_assumed());
        assert_eq!(cache.expire(now + ASSUMED_TTL / 2), 0);
        assert_eq!(cache.expire(now + ASSUMED_TTL), 1);
        assert!(!cache.has_pod(&pod.uid) && !cache.has_assumed());
        assert_eq!(requested(&cache, "n1"), 0);
    }

    #[test]
    fn zones_take_turns_and_slots_are_used_again() {
        let mut cache = Cache::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")] {
            cache.set_node(Arc::new(testing::node(name).label("topology.kubernetes.io/zone", zone).build()));
        }
        cache.refresh();
        let names = |cache: &Cache| cache.nodes().map(|node| node.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&cache), ["a1", "b1", "a2", "a3"]);
        let pod = testing::pod("p").info();
        cache.set_pod(pod.clone(), "a2");
        cache.remove_node("a2");
        cache.refresh();
        assert_eq!(names(&cache), ["a1", "b1", "a3"]);
        assert!(cache.index_of("a2").is_none() && cache.free.is_empty(), "its pod is still there");
        cache.remove_pod(&pod.uid);
        assert_eq!(cache.free.len(), 1);
    }

    #[test]
    fn images_are_counted_over_nodes() {
        let mut cache = Cache::default();
        cache.set_node(Arc::new(testing::node("a").image("i:1", 10).build()));
        cache.set_node(Arc::new(testing::node("b").image("i:1", 10).build()));
        assert_eq!(cache.nodes_with_image("i:1"), 2);
        cache.set_node(Arc::new(testing::node("b").build()));
        cache.remove_node("a");
        assert_eq!(cache.nodes_with_image("i:1"), 0);
    }
}
