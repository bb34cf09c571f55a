//! The extension points of upstream's scheduling framework, as far as the built-in plugins need
//! them, and the state that plugins keep during one pod's cycle.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::cache::Cache;
use crate::node::NodeInfo;
use crate::plugins;
use crate::pod::PodInfo;
use crate::selector::Selector;

/// The best score a plugin gives.
pub(crate) const MAX_SCORE: i64 = 100;

/// Kinds of changes in the cluster that can make a rejected pod fit, as a set of bits.
pub(crate) type Events = u16;
/// A node appeared.
pub(crate) const NODE_ADDED: Events = 1;
/// A node's allocatable resources changed.
pub(crate) const NODE_ALLOCATABLE: Events = 1 << 1;
/// A node's labels changed.
pub(crate) const NODE_LABELS: Events = 1 << 2;
/// A node's taints, or whether it is schedulable, changed.
pub(crate) const NODE_TAINTS: Events = 1 << 3;
/// A pod was placed, or a placed pod's labels changed.
pub(crate) const POD_ASSIGNED: Events = 1 << 4;
/// A placed pod went away, ended, or asks for less.
pub(crate) const POD_DELETED: Events = 1 << 5;
/// A claim, a volume or a storage class changed.
pub(crate) const VOLUMES: Events = 1 << 6;
/// A namespace's labels changed.
pub(crate) const NAMESPACES: Events = 1 << 7;
/// Everything.
pub(crate) const ALL_EVENTS: Events = Events::MAX;

/// Whether removing pods could help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Unschedulable,
    /// No preemption helps.
    Unresolvable,
}

/// Why a pod does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub code: Code,
    pub reasons: Vec<Cow<'static, str>>,
    /// Index of the plugin in [`Framework::plugins`]; filled in by the framework.
    pub plugin: usize,
}

impl Rejection {
    pub(crate) fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code: Code::Unschedulable, reasons: vec![reason.into()], plugin: 0 }
    }

    pub(crate) fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code: Code::Unresolvable, reasons: vec![reason.into()], plugin: 0 }
    }
}

/// What a plugin says before nodes are looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PreFilter {
    /// Ask the plugin about every node.
    Run,
    /// The plugin has nothing to say about this pod.
    Skip,
    /// Only these nodes are possible.
    Nodes(HashSet<String>),
}

/// What plugins look up beside nodes and pods.
pub(crate) trait Lookup: Send + Sync {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    fn budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>>;
    /// The merged selectors of the Services and the workload that the pod belongs to.
    fn default_selector(&self, pod: &PodInfo) -> Option<Selector>;
}

/// Everything a plugin may look at.
#[derive(Clone, Copy)]
pub(crate) struct Cluster<'a> {
    pub cache: &'a Cache,
    pub lookup: &'a dyn Lookup,
}

/// What plugins remember between the steps of one cycle.
#[derive(Clone, Debug, Default)]
pub(crate) struct CycleState {
    /// Bits of plugins whose filter has nothing to say.
    pub skip_filter: u32,
    pub spread_filter: Option<plugins::pod_topology_spread::FilterState>,
    pub spread_score: Option<plugins::pod_topology_spread::ScoreState>,
    pub affinity_filter: Option<plugins::inter_pod_affinity::FilterState>,
    pub affinity_score: Option<plugins::inter_pod_affinity::ScoreState>,
    pub volumes: Option<plugins::volume_binding::State>,
}

/// One plugin. All methods are pure functions of what they are given.
pub(crate) trait Plugin: Send + Sync {
    /// Upstream's name.
    fn name(&self) -> &'static str;

    /// How much its score counts; 0 for plugins that do not score.
    fn weight(&self) -> i64 {
        0
    }

    /// What can make a pod fit that this plugin rejected.
    fn wakes_on(&self) -> Events;

    /// Before nodes are looked at.
    fn pre_filter(&self, _: &mut CycleState, _: &PodInfo, _: Cluster<'_>) -> Result<PreFilter, Rejection> {
        Ok(PreFilter::Run)
    }

    /// Whether the pod fits onto the node.
    fn filter(&self, _: &CycleState, _: &PodInfo, _: &NodeInfo, _: Cluster<'_>) -> Result<(), Rejection> {
        Ok(())
    }

    /// Another pod is added to (`delta` 1) or taken from (-1) a node in a what-if calculation.
    fn other_pod(
        &self,
        _: &mut CycleState,
        _: &PodInfo,
        _other: &PodInfo,
        _: &NodeInfo,
        _: Cluster<'_>,
        _delta: i64,
    ) {
    }

    /// Before nodes are scored; false when the plugin has nothing to say.
    fn pre_score(&self, _: &mut CycleState, _: &PodInfo, _feasible: &[usize], _: Cluster<'_>) -> bool {
        true
    }

    /// How good a node is.
    fn score(&self, _: &CycleState, _: &PodInfo, _: &NodeInfo, _: Cluster<'_>) -> i64 {
        0
    }

    /// Brings its scores between 0 and [`MAX_SCORE`]; `scores` go with `feasible`.
    fn normalize(&self, _: &CycleState, _feasible: &[usize], _scores: &mut [i64], _: Cluster<'_>) {}
}

/// The plugins in upstream's default order.
pub(crate) struct Framework {
    pub plugins: Vec<Box<dyn Plugin>>,
}

impl Default for Framework {
    fn default() -> Self {
        Self { plugins: plugins::all() }
    }
}

impl Framework {
    /// Runs the plugins' pre-filters; the result restricts the nodes. `Err` rejects all nodes.
    pub(crate) fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        cluster: Cluster<'_>,
    ) -> Result<Option<(HashSet<String>, u32)>, Rejection> {
        let mut nodes: Option<(HashSet<String>, u32)> = None;
        for (index, plugin) in self.plugins.iter().enumerate() {
            match plugin.pre_filter(state, pod, cluster) {
                Ok(PreFilter::Run) => {}
                Ok(PreFilter::Skip) => state.skip_filter |= 1 << index,
                Ok(PreFilter::Nodes(names)) => {
                    nodes = Some(match nodes {
                        None => (names, 1 << index),
                        Some((known, by)) => (known.intersection(&names).cloned().collect(), by | 1 << index),
                    });
                }
                Err(mut rejection) => {
                    rejection.plugin = index;
                    return Err(rejection);
                }
            }
        }
        Ok(nodes)
    }

    /// The first plugin that rejects the node decides.
    pub(crate) fn filter(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        node: &NodeInfo,
        cluster: Cluster<'_>,
    ) -> Result<(), Rejection> {
        for (index, plugin) in self.plugins.iter().enumerate() {
            if state.skip_filter & (1 << index) != 0 {
                continue;
            }
            if let Err(mut rejection) = plugin.filter(state, pod, node, cluster) {
                rejection.plugin = index;
                return Err(rejection);
            }
        }
        Ok(())
    }

    /// See [`Plugin::other_pod`].
    pub(crate) fn other_pod(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        cluster: Cluster<'_>,
        delta: i64,
    ) {
        for (index, plugin) in self.plugins.iter().enumerate() {
            if state.skip_filter & (1 << index) == 0 {
                plugin.other_pod(state, pod, other, node, cluster, delta);
            }
        }
    }

    /// The weighted sum of all plugins for every feasible node.
    pub(crate) fn score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        feasible: &[usize],
        cluster: Cluster<'_>,
    ) -> Vec<i64> {
        let mut totals = vec![0; feasible.len()];
        let mut scores = vec![0; feasible.len()];
        for plugin in self.plugins.iter().filter(|plugin| plugin.weight() > 0) {
            if !plugin.pre_score(state, pod, feasible, cluster) {
                continue;
            }
            for (score, &index) in scores.iter_mut().zip(feasible) {
                *score = plugin.score(state, pod, cluster.cache.node(index), cluster);
            }
            plugin.normalize(state, feasible, &mut scores, cluster);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total += score * plugin.weight();
            }
        }
        totals
    }

    /// What can make a pod fit that the plugins of these bits rejected.
    pub(crate) fn wakes_on(&self, plugins: u32) -> Events {
        let mut events = 0;
        for (index, plugin) in self.plugins.iter().enumerate() {
            if plugins & (1 << index) != 0 {
                events |= plugin.wakes_on();
            }
        }
        events
    }

    /// The names of plugins, ordered.
    pub(crate) fn names(&self, plugins: u32) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = self
            .plugins
            .iter()
            .enumerate()
            .filter(|(index, _)| plugins & (1 << index) != 0)
            .map(|(_, plugin)| plugin.name())
            .collect();
        names.sort_unstable();
        names
    }
}

/// Scales scores so that the highest becomes [`MAX_SCORE`] (upstream's helper DefaultNormalizeScore).
pub(crate) fn scale(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if highest != 0 {
            *score = MAX_SCORE * *score / highest;
        }
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling() {
        for (given, reverse, expected) in [
            (vec![1, 2, 4], false, vec![25, 50, 100]),
            (vec![1, 2, 4], true, vec![75, 50, 0]),
            (vec![0, 0], false, vec![0, 0]),
            (vec![0, 0], true, vec![100, 100]),
        ] {
            let mut scores = given.clone();
            scale(&mut scores, reverse);
            assert_eq!(scores, expected, "{given:?} {reverse}");
        }
    }

    #[test]
    fn every_plugin_has_a_bit_and_a_name_of_its_own() {
        let framework = Framework::default();
        assert!(framework.plugins.len() <= 32);
        let names = framework.names(u32::MAX);
        let distinct: HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), framework.plugins.len());
    }
}
