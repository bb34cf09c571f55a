//! The leader makes Raft's configuration follow the members' records.

use std::collections::BTreeMap;

use raft::ProgressState;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::{Core, HEALTHY};
use crate::command;
use crate::membership::{self, Health, Step, plan};
use crate::types::{Op, Txn};

/// How often the leader looks, in ticks.
const EVERY: u64 = 4;

/// What a core knows about the place of one member in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) id: u64,
    pub(crate) voter: bool,
    pub(crate) learner: bool,
    /// What follows is known to the leader alone.
    pub(crate) health: Option<Health>,
    /// Ticks since it was heard of.
    pub(crate) silent: Option<u64>,
    /// Entries that it lacks.
    pub(crate) lag: Option<u64>,
}

impl<T, R> Core<T, R> {
    pub(super) fn reconcile_if_due(&mut self) {
        if self.is_leader() && self.ticks.is_multiple_of(EVERY) && self.installing.is_none() {
            self.reconcile();
        }
    }

    /// Takes the next step towards what the records ask for, if the last one is done.
    pub(crate) fn reconcile(&mut self) {
        let raft = &self.raw.raft;
        if !self.is_leader() || raft.has_pending_conf() || raft.lead_transferee.is_some() {
            return;
        }
        // Nothing may be changed before this leader knows what is committed.
        if !raft.commit_to_current_term() {
            return;
        }
        self.forget_removals();
        let config = &self.state.meta.members;
        let step = plan(self.state.members(), self.state.leaving(), config, &self.health(), self.settings.id);
        let waits = if let Step::Wait(reason) = &step { Some(reason.clone()) } else { None };
        if waits != self.waits {
            if let Some(reason) = &waits {
                tracing::warn!(reason, "the store's group is not changed");
            }
            self.waits = waits;
        }
        match step {
            Step::Nothing | Step::Wait(_) => {}
            Step::Transfer(to) => {
                tracing::info!(to, "this node leaves the group: another one takes the lead");
                self.raw.transfer_leader(to);
            }
            Step::LeaveJoint => self.propose_change(ConfChangeV2::default()),
            Step::Change { voters, learners } => {
                let mut changes = Vec::new();
                let mut add = |id: u64, kind: ConfChangeType| {
                    let mut change = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
                    change.set_change_type(kind);
                    changes.push(change);
                };
                for &id in voters.iter().filter(|id| !config.voters.contains(id)) {
                    add(id, ConfChangeType::AddNode);
                }
                for &id in learners.iter().filter(|id| !config.learners.contains(id)) {
                    add(id, ConfChangeType::AddLearnerNode);
                }
                for &id in config.voters.iter().chain(&config.learners) {
                    if !voters.contains(&id) && !learners.contains(&id) {
                        add(id, ConfChangeType::RemoveNode);
                    }
                }
                let mut change = ConfChangeV2 { changes, ..ConfChangeV2::default() };
                change.set_transition(ConfChangeTransition::Implicit);
                tracing::info!(?voters, ?learners, "the store's group is about to change");
                self.propose_change(change);
            }
        }
        self.settle();
    }

    /// Who asked for a removal takes its mark back or removes the member. One that was cut off does neither,
    /// and the member must not stay without a vote for it.
    fn forget_removals(&mut self) {
        let leaving = self.state.leaving();
        self.marks.retain(|id, _| leaving.contains(id));
        let mut forgotten = Vec::new();
        for &id in leaving {
            let since = self.marks.entry(id).or_insert(self.ticks);
            *since = self.led_since.max(*since);
            if self.ticks - *since >= self.settings.forget_after {
                *since = self.ticks;
                forgotten.push(id);
            }
        }
        for id in forgotten {
            tracing::warn!(id, "the removal of a member was not finished: it stays and may vote again");
            let ops = vec![Op::Delete { key: membership::leaving_key(id) }];
            // What is not taken is proposed again after as long.
            let _ = self.raw.propose(Vec::new(), command::encode(&Txn { ops, ..Txn::default() }));
        }
    }

    fn propose_change(&mut self, change: ConfChangeV2) {
        if let Err(error) = self.raw.propose_conf_change(Vec::new(), change) {
            tracing::debug!(%error, "the change of the group was not accepted; it is planned again");
        }
    }

    fn silence(&self, id: u64) -> u64 {
        // A new leader has not had the time to hear of everybody.
        let seen = self.seen.get(&id).copied().unwrap_or(0).max(self.led_since);
        self.ticks - seen.min(self.ticks)
    }

    fn health(&self) -> BTreeMap<u64, Health> {
        // One that is to leave still counts for the majority.
        let config = &self.state.meta.members;
        let known = self.state.members().keys().chain(&config.voters).chain(&config.learners).copied();
        let progress = self.raw.raft.prs();
        let last = self.raw.raft.raft_log.last_index();
        known
            .map(|id| {
                let heard = self.seen.contains_key(&id) || self.silence(id) == 0;
                let caught_up = progress.get(id).is_some_and(|p| {
                    p.state != ProgressState::Snapshot && p.matched + self.settings.lag >= last
                });
                let silent = self.silence(id);
                let healthy = heard && silent <= HEALTHY;
                (id, Health { healthy, dead: silent > self.settings.replace_after, caught_up })
            })
            .collect()
    }

    /// Leadership goes to the member that is best prepared for it. Returns false if there is none.
    pub(crate) fn transfer(&mut self) -> bool {
        if !self.is_leader() {
            return false;
        }
        let health = self.health();
        let progress = self.raw.raft.prs();
        let heir = self.state.meta.members.voters.iter().copied().filter(|&id| id != self.settings.id);
        let heir = heir
            .filter(|id| health.get(id).is_some_and(|h| h.healthy))
            .max_by_key(|&id| progress.get(id).map_or(0, |p| p.matched));
        let Some(heir) = heir else { return false };
        self.raw.transfer_leader(heir);
        self.settle();
        true
    }

    /// Everybody who is in the records or in the configuration.
    pub(crate) fn placements(&self) -> Vec<Placement> {
        let config = &self.state.meta.members;
        let leader = self.is_leader();
        let health = if leader { self.health() } else { BTreeMap::new() };
        let last = self.raw.raft.raft_log.last_index();
        let mut ids: Vec<u64> = self.state.members().keys().copied().collect();
        ids.extend(config.voters.iter().chain(&config.learners).chain(&config.voters_outgoing));
        ids.sort_unstable();
        ids.dedup();
        let place = |id: u64| {
            let me = id == self.settings.id;
            let matched = self.raw.raft.prs().get(id).map(|p| p.matched);
            let known = Health { healthy: true, dead: false, caught_up: true };
            Placement {
                id,
                voter: config.voters.contains(&id),
                learner: config.learners.contains(&id),
                health: if leader && me { Some(known) } else { health.get(&id).copied() },
                silent: leader.then(|| if me { 0 } else { self.silence(id) }),
                lag: matched.filter(|_| leader).map(|m| if me { 0 } else { last.saturating_sub(m) }),
            }
        };
        ids.into_iter().map(place).collect()
    }

    /// Why the group is not what the records ask for, if the leader cannot change it now.
    pub(crate) fn waits(&self) -> Option<&str> {
        self.waits.as_deref()
    }

    /// Whether this member is known to take part.
    pub(crate) fn knows(&self, id: u64) -> bool {
        let config = &self.state.meta.members;
        self.state.members().contains_key(&id)
            || config.voters.iter().chain(&config.learners).chain(&config.voters_outgoing).any(|&m| m == id)
    }
}
