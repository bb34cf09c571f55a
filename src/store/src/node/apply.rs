//! Committed entries become changes of the state, calls of the observer and acknowledgements.

use std::sync::atomic::Ordering::{Relaxed, Release};

use prost11::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType};
use raft::prelude::ConfState;

use super::Node;
use crate::engine::Engine;
use crate::error::{CommitError, Error};
use crate::recover::command_of;
use crate::state::{Outcome, decode_object, merged};
use crate::types::{Key, Revision};

impl Node {
    pub(super) fn apply(&mut self, entries: &[Entry]) -> Result<(), Error> {
        for entry in entries {
            let result = match entry.entry_type() {
                EntryType::EntryNormal => self.apply_normal(entry)?,
                EntryType::EntryConfChange => {
                    let change = ConfChange::decode(&entry.data[..]).map_err(|_| malformed(entry))?;
                    let members = self.raw.apply_conf_change(&change)?;
                    self.members_changed(members)
                }
                EntryType::EntryConfChangeV2 => {
                    let change = ConfChangeV2::decode(&entry.data[..]).map_err(|_| malformed(entry))?;
                    let members = self.raw.apply_conf_change(&change)?;
                    self.members_changed(members)
                }
            };
            self.state.meta.applied = entry.index;
            self.state.meta.applied_term = entry.term;
            self.acknowledge(entry, result);
        }
        Ok(())
    }

    fn members_changed(&mut self, members: ConfState) -> Result<Revision, CommitError> {
        self.raw.mut_store().members = members.clone();
        self.state.meta.members = members;
        self.publish();
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
                    self.observer.applied(revision, &self.changes);
                }
                self.changes.clear();
                let counters = &self.shared.counters;
                counters.transactions.fetch_add(1, Relaxed);
                counters.keys.store(self.state.meta.count, Relaxed);
                self.shared.revision.store(revision, Release);
                Ok(revision)
            }
        })
    }

    fn acknowledge(&mut self, entry: &Entry, result: Result<Revision, CommitError>) {
        while let Some(pending) = self.pending.front() {
            if pending.index > entry.index {
                return;
            }
            let ours = (pending.index, pending.term) == (entry.index, entry.term);
            let Some(pending) = self.pending.pop_front() else { return };
            if ours {
                let _ = pending.reply.send(result);
                return;
            }
            // Another leader's entry took its place.
            let _ = pending.reply.send(Err(CommitError::NoLeader));
        }
    }

    /// Shows the observer everything that exists.
    pub(super) fn reset_observer(&self, engine: &dyn Engine) -> Result<(), Error> {
        let mut failure = None;
        let mut shown = 0;
        {
            let state = &self.state;
            let mut objects = engine.objects();
            let failure = &mut failure;
            let resting = std::iter::from_fn(|| {
                loop {
                    let (key, object) = match objects.next()? {
                        Ok(pair) => pair,
                        Err(error) => {
                            *failure = Some(error);
                            return None;
                        }
                    };
                    let Ok(key) = std::str::from_utf8(&key) else { continue };
                    // Deleted since: the overlay says so, or will have said so.
                    let Some(shared) = state.shared_key(key) else { continue };
                    if let Some((entry, _)) = decode_object(key, &object) {
                        return Some((shared, entry));
                    }
                }
            });
            let mut all = merged(state, resting).inspect(|_: &(Key, _)| shown += 1);
            self.observer.reset(state.meta.revision, &mut all);
            // An observer may stop early; the count must be that of all.
            all.for_each(drop);
        }
        match failure {
            Some(error) => Err(error),
            None if shown == self.state.meta.count => Ok(()),
            None => {
                let what = format!("it shows {shown} of {} objects", self.state.meta.count);
                Err(Error::Engine { path: self.config.dir.join("engine"), what })
            }
        }
    }
}

fn malformed(entry: &Entry) -> Error {
    Error::Entry { index: entry.index, source: crate::command::DecodeError::Short }
}
