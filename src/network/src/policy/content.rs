//! The wanted content of a table, and the transactions that bring it about. Pure.

use std::collections::BTreeMap;

use crate::nft::{BaseChain, Batch, Expr, SetSpec, Verdict};

/// Everything that should be in the table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) sets: BTreeMap<String, Set>,
    pub(super) chains: BTreeMap<String, Chain>,
}

/// A named set, or a map to verdicts, with its elements by their keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) spec: SetSpec,
    pub(super) elements: BTreeMap<Vec<u8>, Option<Verdict>>,
}

/// A chain with its rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) base: Option<BaseChain>,
    /// Shows in `nft list`.
    pub(super) comment: String,
    pub(super) rules: Vec<Vec<Expr>>,
}

impl Content {
    /// Replace whatever is in the table.
    pub(super) fn full(&self, table: &str) -> Batch {
        let mut batch = Batch::new(table);
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        self.write(&Self::default(), &mut batch);
        batch
    }

    /// From `old` to this, all but deleting what is unused then; that is [`Content::garbage`].
    pub(super) fn change(&self, old: &Self, table: &str) -> Batch {
        let mut batch = Batch::new(table);
        self.write(old, &mut batch);
        batch
    }

    fn write(&self, old: &Self, batch: &mut Batch) {
        for (name, set) in &self.sets {
            if !old.sets.contains_key(name) {
                batch.add_set(&set.spec);
            }
        }
        for (name, chain) in &self.chains {
            if !old.chains.contains_key(name) {
                batch.add_chain(name, chain.base, &chain.comment);
            }
        }
        for (name, set) in &self.sets {
            let before = old.sets.get(name).map(|set| &set.elements);
            let is_same = |key: &Vec<u8>, verdict| before.is_some_and(|old| old.get(key) == Some(verdict));
            let gone =
                before.into_iter().flatten().filter(|(key, verdict)| set.elements.get(*key) != Some(verdict));
            let gone: Vec<Vec<u8>> = gone.map(|(key, _)| key.clone()).collect();
            if !gone.is_empty() {
                batch.delete_elements(name, gone);
            }
            let new = set.elements.iter().filter(|(key, verdict)| !is_same(key, verdict));
            let new: Vec<_> = new.map(|(key, verdict)| (key.clone(), verdict.clone())).collect();
            if !new.is_empty() {
                batch.add_elements(name, new);
            }
        }
        for (name, chain) in &self.chains {
            let before = old.chains.get(name);
            if before.is_some_and(|before| before.rules == chain.rules) {
                continue;
            }
            if before.is_some() {
                batch.flush_chain(name);
            }
            chain.rules.iter().for_each(|rule| batch.add_rule(name, rule));
        }
        // What is unused refers to nothing any more, so that it can be deleted in any order.
        for name in self.unused_chains(old) {
            batch.flush_chain(name);
        }
    }

    fn unused_chains<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = &'a String> {
        old.chains.keys().filter(|name| !self.chains.contains_key(*name))
    }

    /// Delete what `old` has and this has not. In a transaction of its own: older kernels still count
    /// references of rules that were deleted in the same one.
    pub(super) fn garbage(&self, old: &Self, table: &str) -> Batch {
        let mut batch = Batch::new(table);
        self.unused_chains(old).for_each(|name| batch.delete_chain(name));
        old.sets.keys().filter(|name| !self.sets.contains_key(*name)).for_each(|name| batch.delete_set(name));
        batch
    }
}
