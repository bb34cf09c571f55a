//! What happens to the simulated world: clients, and bad luck.

use std::collections::BTreeSet;

use super::check::Op;
use super::disk::Disk;
use super::world::{Event, NO_OP, Node, STORMY, World};
use crate::command;
use crate::core::Core;
use crate::error::CommitError;
use crate::membership::{self, Member};
use crate::types::{Check, Condition, Op as Change, Txn, Value};

const KEYS: u64 = 6;

/// A small generator (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len() as u64) as usize]) }
    }
}

impl World {
    pub(super) fn members(&self) -> Vec<u64> {
        let newest =
            self.nodes.values().filter_map(|node| node.core.as_ref()).max_by_key(|c| c.state.meta.applied);
        newest.map(|core| core.state.members().keys().copied().collect()).unwrap_or_default()
    }

    pub(super) fn client(&mut self) {
        let pause = 5 + self.random.below(60);
        if !self.calm || self.random.one_in(2) {
            let running: Vec<u64> =
                self.nodes.iter().filter(|(_, n)| n.core.is_some()).map(|(id, _)| *id).collect();
            if let Some(id) = self.random.pick(&running) {
                if self.random.one_in(4) { self.read(id) } else { self.write(id) }
            }
        }
        // Clients rest when the weather is good, so that the group can.
        if self.now < STORMY + 500 {
            self.at(pause, Event::Client);
        }
    }

    fn read(&mut self, id: u64) {
        self.reads.push(self.history.lock().unwrap().acknowledged);
        let token = self.reads.len() as u64 - 1;
        if let Some(core) = self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()) {
            core.read(token);
        }
        self.drive(id);
    }

    fn write(&mut self, id: u64) {
        // Most go where they will be taken, some where they will not.
        let leader = self.nodes.get(&id).and_then(|n| n.core.as_ref()).and_then(Core::leader);
        let id = if self.random.one_in(5) { id } else { leader.unwrap_or(id) };
        let key = format!("key{}", self.random.below(KEYS));
        let seen = self.nodes.get(&id).and_then(|n| n.core.as_ref()).map(|c| c.state.meta.revision);
        let check = match self.random.below(5) {
            0 => Some(Check::Absent),
            1 => Some(Check::Any),
            2 => Some(Check::At(seen.unwrap_or(1).saturating_sub(self.random.below(4)))),
            _ => None,
        };
        let number = {
            let mut history = self.history.lock().unwrap();
            let after = history.acknowledged;
            let op = Op { key: key.clone(), check, after, refused: false, acknowledged: None };
            history.ops.push(op);
            history.ops.len() - 1
        };
        let key: crate::types::Key = key.into();
        let value = Value { bytes: number.to_string().into(), splice: None };
        let txn = Txn {
            conditions: check.map(|check| Condition { key: key.clone(), check }).into_iter().collect(),
            ops: vec![Change::Put { key, value }],
            lazy: false,
        };
        if !self.propose(id, &txn, number as u64) {
            self.history.lock().unwrap().answered(number, &Err(CommitError::NoLeader));
        }
        self.drive(id);
    }

    fn propose(&mut self, id: u64, txn: &Txn, token: u64) -> bool {
        let Some(core) = self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()) else { return false };
        core.lead().unwrap();
        core.propose(command::encode(txn), token).is_ok()
    }

    pub(super) fn leader(&self) -> Option<u64> {
        let leads = |node: &&Node| node.core.as_ref().is_some_and(Core::is_leader);
        let by_term = self.nodes.values().filter(leads).filter_map(|node| node.core.as_ref());
        by_term.max_by_key(|core| core.term()).map(Core::id)
    }

    /// Writes a member's record, as the join does.
    pub(super) fn admit(&mut self, id: u64) {
        let Some(leader) = self.leader() else { return };
        let domain = ["a", "b", "c"][self.random.below(3) as usize];
        let failure_domain = self.random.one_in(2).then(|| domain.to_owned());
        let member = Member { id, name: format!("n{id}"), address: format!("n{id}:1"), failure_domain };
        let value = Value { bytes: membership::encode(&member).into(), splice: None };
        let txn = Txn {
            conditions: vec![Condition { key: membership::key(id), check: Check::Absent }],
            ops: vec![Change::Put { key: membership::key(id), value }],
            lazy: false,
        };
        self.propose(leader, &txn, NO_OP);
        self.drive(leader);
    }

    fn remove(&mut self, id: u64, other: u64) {
        let Some(leader) = self.leader() else { return };
        let condition = |id: u64| Condition { key: membership::key(id), check: Check::Any };
        let mark = membership::leaving_key(id);
        // Or it is cut off before that.
        let ops = if self.random.one_in(3) {
            vec![Change::Put { key: mark, value: Value { bytes: Vec::new().into(), splice: None } }]
        } else {
            vec![Change::Delete { key: membership::key(id) }, Change::Delete { key: mark }]
        };
        let stays = Condition { key: membership::leaving_key(other), check: Check::Absent };
        let txn = Txn { conditions: vec![condition(id), condition(other), stays], ops, lazy: false };
        self.propose(leader, &txn, NO_OP);
        self.drive(leader);
    }

    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let members = self.members();
        match self.random.below(12) {
            0..=2 if self.next_id <= 7 => {
                let id = self.next_id;
                self.next_id += 1;
                self.create(id, Disk::new(id, vec![]));
                self.start(id);
                self.admit(id);
            }
            3 if members.len() > 1 => {
                let (id, other) = (self.random.pick(&members), self.random.pick(&members));
                if let (Some(id), Some(other)) = (id, other)
                    && id != other
                {
                    self.remove(id, other);
                }
            }
            4..=6 => {
                if let Some(id) = self.random.pick(&ids) {
                    self.crash(id);
                }
            }
            7 => {
                // One side cannot reach the other; perhaps the other way goes on.
                let both = self.random.one_in(2);
                let side: BTreeSet<u64> = ids.iter().copied().filter(|_| self.random.one_in(2)).collect();
                for &a in &ids {
                    for &b in &ids {
                        if side.contains(&a) && !side.contains(&b) {
                            self.cut.insert((a, b));
                            if both {
                                self.cut.insert((b, a));
                            }
                        }
                    }
                }
            }
            8 => {
                if let Some(leader) = self.leader()
                    && let Some(core) = self.nodes.get_mut(&leader).and_then(|node| node.core.as_mut())
                {
                    core.transfer();
                    self.drive(leader);
                }
            }
            9 => {
                for id in ids {
                    self.crash(id);
                }
            }
            _ => self.cut.clear(),
        }
        let pause = 50 + self.random.below(900);
        self.at(pause, Event::Fault);
    }
}
