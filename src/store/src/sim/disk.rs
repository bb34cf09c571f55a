//! A disk that keeps what was synced.

use raft::eraftpb::{ConfState, Entry, HardState};

use crate::core::Append;
use crate::raftlog::{RaftLog, SnapshotId};
use crate::recover;
use crate::state::State;

#[derive(Clone)]
pub(super) struct Disk {
    hard_state: HardState,
    /// The log's entries, none of them at or before `base`.
    entries: Vec<Entry>,
    base: u64,
    /// What the engine holds.
    state: State,
    /// The last snapshot that was made here.
    pub(super) snapshot: Option<(SnapshotId, State)>,
}

impl Disk {
    pub(super) fn new(voters: Vec<u64>) -> Self {
        let state = State::empty(ConfState { voters, ..ConfState::default() });
        Self { hard_state: HardState::default(), entries: vec![], base: 0, state, snapshot: None }
    }

    pub(super) fn append(&mut self, append: &Append) {
        if let Some(hard_state) = &append.hard_state {
            self.hard_state = hard_state.clone();
        }
        for entry in &append.entries {
            self.entries.retain(|old| old.index < entry.index);
            let last = self.entries.last().map_or(self.base, |last| last.index);
            assert_eq!(entry.index, last + 1, "the log has no gaps");
            self.entries.push(entry.clone());
        }
    }

    /// The engine is written.
    pub(super) fn flush(&mut self, state: &State) {
        self.state = state.clone();
    }

    /// The log is cut up to what the engine holds.
    pub(super) fn cut(&mut self) {
        self.base = self.state.meta.applied;
        self.entries.retain(|entry| entry.index > self.base);
    }

    pub(super) fn install(&mut self, state: &State) {
        self.state = state.clone();
        self.base = state.meta.applied;
        self.entries.clear();
        self.hard_state.commit = self.base;
        self.snapshot = None;
    }

    /// What a member starts with.
    pub(super) fn load(&self, id: u64) -> (State, RaftLog) {
        let log = recover::raft_log(id, &self.state.meta, self.hard_state.clone(), self.entries.clone());
        (self.state.clone(), log)
    }

    pub(super) fn reread(&self) -> (HardState, Vec<Entry>) {
        (self.hard_state.clone(), self.entries.clone())
    }
}
