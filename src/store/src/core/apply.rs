//! Committed entries become changes of the state, calls of the observer and answers.

use prost11::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, ConfState, Entry, EntryType};

use super::{Core, Output};
use crate::error::{CommitError, Error};
use crate::membership::is_reserved;
use crate::recover::command_of;
use crate::state::Outcome;
use crate::types::{Change, Revision};

impl<T, R> Core<T, R> {
    pub(super) fn apply(&mut self, entries: &[Entry], out: &mut Output<T, R>) -> Result<(), Error> {
        for entry in entries {
            let result = match entry.entry_type() {
                EntryType::EntryNormal => self.apply_normal(entry)?,
                EntryType::EntryConfChange => {
                    let change = ConfChange::decode(&entry.data[..]).map_err(|_| malformed(entry))?;
                    let members = self.raw.apply_conf_change(&change)?;
                    self.configured(members)
                }
                EntryType::EntryConfChangeV2 => {
                    let change = ConfChangeV2::decode(&entry.data[..]).map_err(|_| malformed(entry))?;
                    let members = self.raw.apply_conf_change(&change)?;
                    self.configured(members)
                }
            };
            self.state.meta.applied = entry.index;
            self.state.meta.applied_term = entry.term;
            self.acknowledge(entry, result, out);
        }
        Ok(())
    }

    fn configured(&mut self, members: ConfState) -> Result<Revision, CommitError> {
        tracing::info!(
            voters = ?members.voters,
            outgoing = ?members.voters_outgoing,
            learners = ?members.learners,
            "the store's group changed"
        );
        self.raw.mut_store().members = members.clone();
        self.state.meta.members = members;
        self.configured_version += 1;
        // A leader never plans its own removal, but it may have inherited it from the one before. Raft itself
        // would go on leading a group that it is no part of.
        if self.is_leader() && !self.raw.raft.promotable() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        self.settle();
        Ok(self.state.meta.revision)
    }

    /// The outer error stops the store: going on without an entry that others apply would make this
    /// node's state another one.
    fn apply_normal(&mut self, entry: &Entry) -> Result<Result<Revision, CommitError>, Error> {
        let Some(command) = command_of(entry)? else { return Ok(Ok(self.state.meta.revision)) };
        self.changes.clear();
        let outcome = self.state.apply(&command, &mut self.changes);
        let revision = self.state.meta.revision;
        Ok(match outcome {
            Outcome::Conflict { key, current } => Err(CommitError::Conflict { key, current }),
            Outcome::Nothing => Ok(revision),
            Outcome::Done => {
                if !self.muted {
                    self.show(revision);
                }
                self.changes.clear();
                self.applied_transactions += 1;
                Ok(revision)
            }
        })
    }

    /// The store's own keys are not shown, but every revision is.
    fn show(&self, revision: Revision) {
        if self.changes.iter().any(|change| is_reserved(&change.key)) {
            let visible = self.changes.iter().filter(|change| !is_reserved(&change.key));
            let visible: Vec<Change> = visible.cloned().collect();
            self.observer.applied(revision, &visible);
        } else {
            self.observer.applied(revision, &self.changes);
        }
    }

    fn acknowledge(&mut self, entry: &Entry, result: Result<Revision, CommitError>, out: &mut Output<T, R>) {
        let mut result = Some(result);
        while self.pending.front().is_some_and(|pending| pending.index <= entry.index) {
            let Some(pending) = self.pending.pop_front() else { return };
            let ours = (pending.index, pending.term) == (entry.index, entry.term);
            let answer = match result.take_if(|_| ours) {
                Some(result) => result,
                // Another leader's entry is in its place for good: it did not happen, and never will.
                None => Err(CommitError::NoLeader),
            };
            out.commits.push((pending.token, answer));
        }
    }
}

fn malformed(entry: &Entry) -> Error {
    Error::Entry { index: entry.index, source: crate::command::DecodeError::Short }
}
