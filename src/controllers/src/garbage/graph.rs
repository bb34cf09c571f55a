//! Who depends on whom: a node for every object of the cluster, as small as can be. Pure data;
//! every change answers with what has to be looked at (upstream graph_builder.go).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::discovery::Served;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// A uid. Shared between the node, its dependents and the queues.
pub(super) type Uid = Arc<str>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) resource: Arc<Served>,
    /// Empty for cluster scope.
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    owners: Box<[(Uid, bool)]>,
    /// Its deletion has begun.
    pub(super) deleting: bool,
    /// ... and it waits until what depends on it is gone.
    pub(super) foreground: bool,
    /// ... and what depends on it must be set free first.
    pub(super) orphaning: bool,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, BTreeSet<Uid>>,
}

/// What to look at after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// May have to be deleted, or may finish its deletion.
    pub(super) delete: Vec<Uid>,
    /// Set its dependents free.
    pub(super) orphan: Vec<Uid>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes that name `uid` as an owner, with whether they block its foreground deletion.
    pub(super) fn dependents(&self, uid: &str) -> Vec<(Uid, Node, bool)> {
        let Some(dependents) = self.dependents.get(uid) else { return Vec::new() };
        dependents
            .iter()
            .filter_map(|dependent| {
                let node = self.nodes.get(dependent)?;
                let blocks = node.owners.iter().any(|(owner, blocks)| &**owner == uid && *blocks);
                Some((dependent.clone(), node.clone(), blocks))
            })
            .collect()
    }

    /// The object was added or changed.
    pub(super) fn apply(&mut self, resource: &Arc<Served>, meta: &ObjectMeta) -> Work {
        let mut work = Work::default();
        let Some(uid) = meta.uid.as_deref() else { return work };
        let uid: Uid = self.intern(uid);
        let references = meta.owner_references.as_deref().unwrap_or_default();
        let owners: Box<[(Uid, bool)]> = references
            .iter()
            .map(|owner| (self.intern(&owner.uid), owner.block_owner_deletion == Some(true)))
            .collect();
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let node = Node {
            resource: resource.clone(),
            namespace: meta.namespace.as_deref().unwrap_or_default().into(),
            name: meta.name.as_deref().unwrap_or_default().into(),
            deleting,
            foreground: deleting && finalizers.iter().any(|finalizer| finalizer == FOREGROUND),
            orphaning: deleting && finalizers.iter().any(|finalizer| finalizer == ORPHAN),
            owners: owners.clone(),
        };
        let (foreground, orphaning) = (node.foreground, node.orphaning);
        let old = self.nodes.insert(uid.clone(), node);
        let old_owners = old.as_ref().map(|old| old.owners.clone()).unwrap_or_default();
        for (owner, blocked) in &old_owners {
            let now = owners.iter().find(|(other, _)| other == owner);
            if now.is_none() {
                self.unlink(owner, &uid);
            }
            // An owner that waited for us need not wait any longer.
            let released = *blocked && now.is_none_or(|(_, blocks)| !blocks);
            if released && self.nodes.get(owner).is_some_and(|owner| owner.foreground) {
                work.delete.push(owner.clone());
            }
        }
        for (owner, _) in &owners {
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
            // Not known (yet, or any more), or on its way out: find out.
            let unsettled = self.nodes.get(owner).is_none_or(|owner| owner.foreground);
            let news = !old_owners.iter().any(|(other, _)| other == owner);
            if unsettled && news && !work.delete.contains(&uid) {
                work.delete.push(uid.clone());
            }
        }
        if foreground && !old.as_ref().is_some_and(|old| old.foreground) {
            work.delete.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
            work.delete.push(uid.clone());
        }
        if orphaning && !old.as_ref().is_some_and(|old| old.orphaning) {
            work.orphan.push(uid);
        }
        work
    }

    /// The object is gone.
    pub(super) fn remove(&mut self, uid: &str) -> Work {
        let mut work = Work::default();
        let Some(node) = self.nodes.remove(uid) else { return work };
        for (owner, _) in &node.owners {
            self.unlink(owner, uid);
            if self.nodes.get(owner).is_some_and(|owner| owner.foreground) {
                work.delete.push(owner.clone());
            }
        }
        work.delete.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        work
    }

    /// How many objects of a resource a namespace has.
    pub(super) fn count(&self, group: &str, plural: &str, namespace: &str) -> usize {
        let nodes = self.nodes.values();
        nodes
            .filter(|node| {
                *node.namespace == *namespace
                    && node.resource.api.plural == plural
                    && node.resource.api.group == group
            })
            .count()
    }

    /// The uids of a resource's nodes.
    pub(super) fn of_resource(&self, resource: &Served) -> Vec<Uid> {
        let nodes = self.nodes.iter().filter(|(_, node)| node.resource.api == resource.api);
        nodes.map(|(uid, _)| uid.clone()).collect()
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// One allocation for one uid.
    fn intern(&self, uid: &str) -> Uid {
        if let Some((known, _)) = self.nodes.get_key_value(uid) {
            return known.clone();
        }
        if let Some((known, _)) = self.dependents.get_key_value(uid) {
            return known.clone();
        }
        uid.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use kube::discovery::ApiResource;

    fn resource() -> Arc<Served> {
        Arc::new(Served {
            api: ApiResource {
                group: String::new(),
                version: "v1".into(),
                api_version: "v1".into(),
                kind: "ConfigMap".into(),
                plural: "configmaps".into(),
            },
            namespaced: true,
            verbs: Vec::new(),
        })
    }

    fn meta(uid: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.into()),
            name: Some(uid.into()),
            deletion_timestamp: finalizer.map(|_| crate::time::now()),
            finalizers: finalizer.map(|finalizer| vec![finalizer.to_owned()]),
            owner_references: Some(
                owners
                    .iter()
                    .map(|(uid, block)| OwnerReference {
                        uid: (*uid).into(),
                        block_owner_deletion: Some(*block),
                        ..OwnerReference::default()
                    })
                    .collect(),
            ),
            ..ObjectMeta::default()
        }
    }

    fn deletes(work: &Work) -> Vec<&str> {
        work.delete.iter().map(|uid| &**uid).collect()
    }

    #[test]
    fn dependents_follow_their_owner() {
        let (mut graph, kind) = (Graph::default(), resource());
        assert_eq!(graph.apply(&kind, &meta("owner", &[], None)), Work::default());
        assert_eq!(graph.apply(&kind, &meta("a", &[("owner", true)], None)), Work::default());
        let work = graph.apply(&kind, &meta("b", &[("missing", false)], None));
        assert_eq!(deletes(&work), ["b"], "an owner that is not known must be verified");
        assert_eq!(graph.apply(&kind, &meta("b", &[("missing", false)], None)), Work::default());
        assert_eq!(deletes(&graph.remove("owner")), ["a"]);
        assert_eq!(graph.remove("owner"), Work::default());
        assert_eq!(graph.remove("a"), Work::default());
        assert_eq!(graph.len(), 1);
    }

    #[test]
    fn a_foreground_deletion_waits_for_those_that_block() {
        let (mut graph, kind) = (Graph::default(), resource());
        graph.apply(&kind, &meta("owner", &[], None));
        graph.apply(&kind, &meta("a", &[("owner", true)], None));
        graph.apply(&kind, &meta("b", &[("owner", false)], None));
        let work = graph.apply(&kind, &meta("owner", &[], Some(FOREGROUND)));
        assert_eq!(deletes(&work), ["a", "b", "owner"]);
        let blocking: Vec<bool> = graph.dependents("owner").iter().map(|(_, _, blocks)| *blocks).collect();
        assert_eq!(blocking, [true, false]);
        let work = graph.apply(&kind, &meta("a", &[("owner", false)], None));
        assert_eq!(deletes(&work), ["owner"], "it blocks no more");
        assert_eq!(deletes(&graph.remove("b")), ["owner"]);
    }

    #[test]
    fn orphaning_is_asked_for_once() {
        let (mut graph, kind) = (Graph::default(), resource());
        let work = graph.apply(&kind, &meta("owner", &[], Some(ORPHAN)));
        assert_eq!(work.orphan.len(), 1);
        assert_eq!(graph.apply(&kind, &meta("owner", &[], Some(ORPHAN))), Work::default());
    }

    #[test]
    fn objects_are_counted_by_resource_and_namespace() {
        let mut graph = Graph::default();
        for (uid, namespace) in [("a", "ns"), ("b", "ns"), ("c", "other")] {
            let meta = ObjectMeta { namespace: Some(namespace.into()), ..meta(uid, &[], None) };
            graph.apply(&resource(), &meta);
        }
        for (group, plural, namespace, expected) in [
            ("", "configmaps", "ns", 2),
            ("", "configmaps", "none", 0),
            ("", "secrets", "ns", 0),
            ("apps", "configmaps", "ns", 0),
        ] {
            assert_eq!(graph.count(group, plural, namespace), expected, "{plural}.{group} in {namespace}");
        }
        graph.remove("a");
        assert_eq!(graph.count("", "configmaps", "ns"), 1);
    }
}
