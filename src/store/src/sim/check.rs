//! The history of a simulated group, and what must be true of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::error::CommitError;
use crate::types::{Change, Check, Entry, Key, Observer, Revision};

/// A transaction as its client sees it. It writes its own number under one key.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) key: String,
    pub(super) check: Option<Check>,
    /// The highest acknowledged revision when it began.
    pub(super) after: Revision,
    pub(super) refused: bool,
    pub(super) acknowledged: Option<Revision>,
}

#[derive(Default)]
pub(super) struct History {
    pub(super) ops: Vec<Op>,
    /// The changes of each revision as the first member applied them, in order from revision 2.
    applied: Vec<Vec<Change>>,
    model: HashMap<Key, Revision>,
    /// Which revision an operation got.
    happened: HashMap<usize, Revision>,
    pub(super) acknowledged: Revision,
    leaders: BTreeMap<u64, u64>,
    pub(super) commits: usize,
    pub(super) reads: usize,
    error: Option<String>,
}

impl History {
    pub(super) fn fail(&mut self, what: String) {
        self.error.get_or_insert(what);
    }

    pub(super) fn result(&self) -> Result<(), String> {
        self.error.clone().map_or(Ok(()), Err)
    }

    pub(super) fn newest(&self) -> Revision {
        1 + self.applied.len() as u64
    }

    pub(super) fn lead(&mut self, term: u64, id: u64) {
        let known = *self.leaders.entry(term).or_insert(id);
        if known != id {
            self.fail(format!("{known} and {id} both lead in term {term}"));
        }
    }

    fn applied(&mut self, member: u64, revision: Revision, changes: &[Change]) {
        let at = (revision - 2) as usize;
        if let Some(known) = self.applied.get(at) {
            if known != changes {
                self.fail(format!("{member} applies {changes:?} at {revision}, others {known:?}"));
            }
            return;
        }
        if at != self.applied.len() {
            self.fail(format!("{member} applies {revision} after {}", self.newest()));
            return;
        }
        for change in changes {
            let Some(entry) = &change.entry else { continue };
            let Some(number) = std::str::from_utf8(&entry.bytes).ok().and_then(|text| text.parse().ok())
            else {
                continue;
            };
            self.happens(number, revision, change);
        }
        for change in changes {
            match &change.entry {
                Some(entry) => self.model.insert(change.key.clone(), entry.modified),
                None => self.model.remove(&change.key),
            };
        }
        self.applied.push(changes.to_vec());
    }

    fn happens(&mut self, number: usize, revision: Revision, change: &Change) {
        let Some(op) = self.ops.get(number).cloned() else {
            return self.fail(format!("operation {number} was never begun"));
        };
        if *op.key != *change.key {
            self.fail(format!("operation {number} writes {}", change.key));
        }
        if let Some(first) = self.happened.insert(number, revision) {
            self.fail(format!("operation {number} happens at {first} and at {revision}"));
        }
        if op.refused {
            self.fail(format!("operation {number} was refused and happens at {revision}"));
        }
        if revision <= op.after {
            self.fail(format!("operation {number} began after {} and happens at {revision}", op.after));
        }
        let current = self.model.get(&change.key).copied();
        let holds = match op.check {
            None => true,
            Some(Check::Absent) => current.is_none(),
            Some(Check::Any) => current.is_some(),
            Some(Check::At(revision)) => current == Some(revision),
        };
        if !holds {
            self.fail(format!("operation {number} happens though {:?} does not hold", op.check));
        }
    }

    pub(super) fn answered(&mut self, number: usize, result: &Result<Revision, CommitError>) {
        let happened = self.happened.get(&number).copied();
        match result {
            Ok(revision) => {
                self.commits += 1;
                if happened != Some(*revision) {
                    self.fail(format!(
                        "operation {number} is said to be at {revision}, it is at {happened:?}"
                    ));
                }
                self.ops[number].acknowledged = Some(*revision);
                self.acknowledged = self.acknowledged.max(*revision);
            }
            Err(CommitError::Unavailable(_) | CommitError::Unknown(_)) => {}
            Err(_) => {
                if happened.is_some() {
                    self.fail(format!(
                        "operation {number} is refused with {result:?} and is at {happened:?}"
                    ));
                }
                self.ops[number].refused = true;
            }
        }
    }

    pub(super) fn read(&mut self, after: Revision, revision: Revision) {
        self.reads += 1;
        if revision < after {
            self.fail(format!("a read sees {revision}, but {after} was acknowledged before it began"));
        }
    }
}

/// Tells the history what one member applies.
pub(super) struct Watcher {
    pub(super) member: u64,
    pub(super) history: Arc<Mutex<History>>,
}

impl Observer for Watcher {
    fn reset(&self, _: Revision, _: &mut dyn Iterator<Item = (Key, Entry)>) {}

    fn applied(&self, revision: Revision, changes: &[Change]) {
        self.history.lock().unwrap().applied(self.member, revision, changes);
    }
}
