//! The wanted content of the whole table, and what has to change for it. Pure; the cost of a change
//! is that of the Services it touches, never that of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kedge_client::ObjectKey;

use super::ProxyConfig;
use super::model::{Balancer, Chain, ElementKey, Family, Map, Name, ServiceState, Target};
use super::rules::{
    affinity_set, balancer_rule, chain_rules, fixed_chains, fixed_sets, key_bytes, target_verdict,
};
use crate::nft::{Batch, Remembered};

/// Everything that should be in the kernel.
#[derive(Debug, Default)]
pub(crate) struct Table {
    services: HashMap<Arc<ObjectKey>, ServiceState>,
    /// Which Service has an element. Two can want the same one (an external IP, say): the first has it.
    owners: HashMap<ElementKey, Arc<ObjectKey>>,
    /// The others that want it.
    waiting: HashMap<ElementKey, BTreeSet<Arc<ObjectKey>>>,
    /// The shared chains that were ever used. They are few and stay.
    balancers: BTreeSet<Balancer>,
}

/// What one or several changes of Services mean for the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    sets: BTreeMap<Name, (Family, u32)>,
    balancers: BTreeSet<Balancer>,
    /// New or different chains with the Service they belong to.
    chains: BTreeMap<Name, (Chain, Arc<ObjectKey>)>,
    removed_elements: BTreeSet<ElementKey>,
    added_elements: BTreeMap<ElementKey, Target>,
    /// No longer referred to once this is written.
    unused_chains: BTreeSet<Name>,
    unused_sets: BTreeSet<Name>,
}

/// Chains and sets that are to be deleted. Older kernels still count references from rules of the same
/// transaction, so they go in a later one.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    pub(crate) chains: BTreeSet<Name>,
    pub(crate) sets: BTreeSet<Name>,
}

impl Garbage {
    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.sets.is_empty()
    }

    /// What was written again is no garbage any more; what is no longer used becomes it.
    pub(crate) fn follow(&mut self, delta: &Delta) {
        self.chains.retain(|name| !delta.chains.contains_key(name));
        self.sets.retain(|name| !delta.sets.contains_key(name));
        self.chains.extend(&delta.unused_chains);
        self.sets.extend(&delta.unused_sets);
    }
}

impl Table {
    /// The state of a Service, when it has one.
    pub(crate) fn service(&self, key: &ObjectKey) -> Option<&ServiceState> {
        self.services.get(key)
    }

    /// The Services that are in the table.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<ObjectKey>> {
        self.services.keys()
    }

    /// Replace what a Service contributes (by nothing when the state is empty) and add what follows to
    /// `delta`. Call once per Service and delta. Returns the Services that now get elements they had to
    /// wait for: build them again, after this delta.
    pub(crate) fn set(&mut self, key: &ObjectKey, state: ServiceState, delta: &mut Delta) -> Vec<ObjectKey> {
        let (owner, old) = match self.services.remove_entry(key) {
            Some((owner, old)) => (owner, old),
            None => (Arc::new(key.clone()), ServiceState::default()),
        };
        for (name, chain) in &state.chains {
            if old.chains.get(name) != Some(chain) {
                delta.chains.insert(*name, (chain.clone(), owner.clone()));
            }
        }
        for (name, set) in &state.affinity_sets {
            if !old.affinity_sets.contains_key(name) {
                delta.sets.insert(*name, *set);
            }
        }
        delta.unused_chains.extend(old.chains.keys().filter(|name| !state.chains.contains_key(*name)));
        delta
            .unused_sets
            .extend(old.affinity_sets.keys().filter(|name| !state.affinity_sets.contains_key(*name)));

        let mut released = Vec::new();
        for (element, target) in &old.elements {
            let is_owner = self.owners.get(element) == Some(&owner);
            let new = state.elements.get(element);
            if is_owner && new.is_none() && self.inherit(element, *target) {
                continue;
            }
            if is_owner && new != Some(target) {
                delta.removed_elements.insert(*element);
            }
            if new.is_none() {
                if is_owner {
                    self.owners.remove(element);
                    released.extend(self.next_in_line(element));
                } else {
                    self.stop_waiting(element, &owner);
                }
            }
        }
        for (element, target) in &state.elements {
            let is_newly_owned = !self.owners.contains_key(element);
            let current = self.owners.entry(*element).or_insert_with(|| owner.clone());
            if *current != owner {
                // Several Services may well have the same endpoint.
                let is_shared = element.map.is_set();
                if self.waiting.entry(*element).or_default().insert(owner.clone()) && !is_shared {
                    tracing::warn!(service = %owner, other = %current, element = ?element, "address and port belong to another service already");
                }
                continue;
            }
            self.stop_waiting(element, &owner);
            if let Target::Balance(balancer) = target
                && self.balancers.insert(*balancer)
            {
                delta.balancers.insert(*balancer);
            }
            if is_newly_owned || old.elements.get(element) != Some(target) {
                delta.added_elements.insert(*element, *target);
            }
        }
        if state != ServiceState::default() {
            self.services.insert(owner, state);
        }
        released
    }

    /// Gives a free element to one that waits for the very same, so that the kernel need not know. False
    /// when there is none.
    fn inherit(&mut self, element: &ElementKey, target: Target) -> bool {
        let same = |key: &&Arc<ObjectKey>| {
            self.services.get(*key).is_some_and(|state| state.elements.get(element) == Some(&target))
        };
        let Some(next) = self.waiting.get(element).and_then(|waiting| waiting.iter().find(same)).cloned()
        else {
            return false;
        };
        self.stop_waiting(element, &next);
        self.owners.insert(*element, next);
        true
    }

    /// Gives a free element to the first that waits, in such a way that building that Service again
    /// writes it.
    fn next_in_line(&mut self, element: &ElementKey) -> Option<ObjectKey> {
        let waiting = self.waiting.get(element)?;
        let next = waiting.first()?.clone();
        self.stop_waiting(element, &next);
        if let Some(state) = self.services.get_mut(&next) {
            state.elements.remove(element);
        }
        Some((*next).clone())
    }

    fn stop_waiting(&mut self, element: &ElementKey, key: &Arc<ObjectKey>) {
        if let Some(waiting) = self.waiting.get_mut(element) {
            waiting.remove(key);
            if waiting.is_empty() {
                self.waiting.remove(element);
            }
        }
    }

    /// The sets of clients that stick to an endpoint.
    pub(crate) fn affinity_sets(&self) -> Vec<Name> {
        self.services.values().flat_map(|state| state.affinity_sets.keys()).copied().collect()
    }

    /// The whole table in one transaction: whatever was there is replaced. `clients` are put back into
    /// their sets.
    pub(crate) fn full(&self, config: &ProxyConfig, clients: BTreeMap<Name, Remembered>) -> Batch {
        let mut delta = Delta { balancers: self.balancers.clone(), ..Delta::default() };
        for (key, state) in &self.services {
            for (name, chain) in &state.chains {
                delta.chains.insert(*name, (chain.clone(), key.clone()));
            }
            delta.sets.extend(&state.affinity_sets);
            let owned = state.elements.iter().filter(|(element, _)| self.owners.get(*element) == Some(key));
            delta.added_elements.extend(owned);
        }
        let mut batch = Batch::new(&config.table_name);
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        for set in fixed_sets() {
            batch.add_set(&set);
        }
        let fixed = fixed_chains(config);
        for chain in &fixed {
            batch.add_chain(chain.name, chain.base, "");
        }
        for chain in &fixed {
            for rule in &chain.rules {
                batch.add_rule(chain.name, rule);
            }
        }
        delta.write(config, &mut batch, true);
        for (set, elements) in clients {
            batch.restore_elements(&set.to_string(), elements);
        }
        batch
    }
}

impl Delta {
    /// Whether the kernel has nothing to do for it.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The transaction, all but deleting what becomes unused.
    pub(crate) fn batch(&self, config: &ProxyConfig) -> Batch {
        let mut batch = Batch::new(&config.table_name);
        self.write(config, &mut batch, false);
        batch
    }

    fn write(&self, config: &ProxyConfig, batch: &mut Batch, fresh: bool) {
        for (name, (family, seconds)) in &self.sets {
            batch.add_set(&affinity_set(&name.to_string(), *family, *seconds));
        }
        for balancer in &self.balancers {
            let name = balancer.to_string();
            batch.add_chain(&name, None, "");
            batch.add_rule(&name, &balancer_rule(balancer));
        }
        for (name, (_, owner)) in &self.chains {
            batch.add_chain(&name.to_string(), None, &owner.to_string());
        }
        let mut removed: BTreeMap<(Map, Family), Vec<Vec<u8>>> = BTreeMap::new();
        for element in &self.removed_elements {
            removed.entry((element.map, element.family)).or_default().push(key_bytes(element));
        }
        for ((map, family), keys) in removed {
            batch.delete_elements(&map.name(family), keys);
        }
        for (name, (chain, _)) in &self.chains {
            let name = name.to_string();
            if !fresh {
                batch.flush_chain(&name);
            }
            for rule in chain_rules(config, chain) {
                batch.add_rule(&name, &rule);
            }
        }
        let mut added: BTreeMap<(Map, Family), Vec<(&ElementKey, Target)>> = BTreeMap::new();
        for (element, target) in &self.added_elements {
            added.entry((element.map, element.family)).or_default().push((element, *target));
        }
        for ((map, family), elements) in added {
            if map == Map::Endpoints {
                let target = |(key, target): (&ElementKey, Target)| match target {
                    Target::To(to) => Some((key_bytes(key), to)),
                    _ => None,
                };
                batch.add_targets(&map.name(family), elements.into_iter().filter_map(target));
                continue;
            }
            let elements = elements.into_iter().map(|(key, target)| (key_bytes(key), target_verdict(target)));
            batch.add_elements(&map.name(family), elements);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::proxy::model::{Kind, Protocol};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    fn element(address: &str) -> ElementKey {
        let address: IpAddr = address.parse().unwrap();
        ElementKey {
            map: Map::ServiceIps,
            family: Family::of(address),
            address: Some(address),
            port: Some((Protocol::Tcp, 80)),
            number: 0,
        }
    }

    fn state(chains: &[(&str, u16)], elements: &[(&str, Target)]) -> ServiceState {
        let chain = |port: u16| Chain::Direct {
            targets: vec![(IpAddr::from([10, 244, 0, 5]), port).into()],
            protocol: Protocol::Tcp,
        };
        ServiceState {
            chains: chains
                .iter()
                .map(|(name, port)| (Name::new(Kind::Endpoint, &[name]), chain(*port)))
                .collect(),
            elements: elements.iter().map(|(address, target)| (element(address), *target)).collect(),
            ..ServiceState::default()
        }
    }

    #[test]
    fn only_the_difference_is_written() {
        let mut table = Table::default();
        let mut first = Delta::default();
        table.set(&key("a"), state(&[("x", 1), ("y", 2)], &[("10.96.0.1", Target::Drop)]), &mut first);
        assert_eq!((first.chains.len(), first.added_elements.len()), (2, 1));

        let mut same = Delta::default();
        table.set(&key("a"), state(&[("x", 1), ("y", 2)], &[("10.96.0.1", Target::Drop)]), &mut same);
        assert!(same.is_empty(), "{same:?}");

        let mut second = Delta::default();
        table.set(&key("a"), state(&[("x", 3)], &[("10.96.0.1", Target::Reject)]), &mut second);
        assert_eq!(second.chains.keys().copied().collect::<Vec<_>>(), [Name::new(Kind::Endpoint, &["x"])]);
        assert_eq!(second.unused_chains, BTreeSet::from([Name::new(Kind::Endpoint, &["y"])]));
        assert_eq!(
            second.removed_elements,
            BTreeSet::from([element("10.96.0.1")]),
            "a changed verdict is replaced"
        );
        assert_eq!(second.added_elements, BTreeMap::from([(element("10.96.0.1"), Target::Reject)]));

        let mut gone = Delta::default();
        table.set(&key("a"), ServiceState::default(), &mut gone);
        assert_eq!(
            (gone.unused_chains.len(), gone.removed_elements.len(), gone.added_elements.len()),
            (1, 1, 0)
        );
        assert!(table.service(&key("a")).is_none());
        assert!(table.owners.is_empty() && table.waiting.is_empty());
    }

    #[test]
    fn an_address_goes_to_the_first_and_then_to_who_waits() {
        let mut table = Table::default();
        let mut delta = Delta::default();
        let shared = [("192.0.2.1", Target::Drop)];
        table.set(&key("a"), state(&[], &shared), &mut delta);
        let mut second = Delta::default();
        table.set(&key("b"), state(&[], &[("192.0.2.1", Target::Reject)]), &mut second);
        assert!(second.is_empty(), "{second:?}");

        let mut third = Delta::default();
        let released = table.set(&key("a"), ServiceState::default(), &mut third);
        assert_eq!(released, [key("b")]);
        assert_eq!(third.removed_elements.len(), 1);

        let mut fourth = Delta::default();
        table.set(&key("b"), state(&[], &[("192.0.2.1", Target::Reject)]), &mut fourth);
        assert_eq!(fourth.added_elements, BTreeMap::from([(element("192.0.2.1"), Target::Reject)]));
        let mut fifth = Delta::default();
        table.set(&key("b"), ServiceState::default(), &mut fifth);
        assert_eq!(fifth.removed_elements.len(), 1);
        assert!(table.owners.is_empty() && table.waiting.is_empty());
    }

    #[test]
    fn what_two_have_stays_until_both_are_gone() {
        let mut table = Table::default();
        let same = || state(&[], &[("192.0.2.1", Target::Member)]);
        table.set(&key("a"), same(), &mut Delta::default());
        table.set(&key("b"), same(), &mut Delta::default());
        let mut first = Delta::default();
        assert_eq!(table.set(&key("a"), ServiceState::default(), &mut first), []);
        assert!(first.is_empty(), "{first:?}");
        let mut second = Delta::default();
        table.set(&key("b"), ServiceState::default(), &mut second);
        assert_eq!(second.removed_elements.len(), 1);
        assert!(table.owners.is_empty() && table.waiting.is_empty());
    }

    #[test]
    fn what_is_wanted_again_is_not_deleted() {
        let mut table = Table::default();
        let mut garbage = Garbage::default();
        for (chains, expected) in [(vec![("x", 1)], 0), (vec![], 1), (vec![("x", 1)], 0)] {
            let mut delta = Delta::default();
            table.set(&key("a"), state(&chains, &[]), &mut delta);
            garbage.follow(&delta);
            assert_eq!(garbage.chains.len(), expected);
        }
    }
}
