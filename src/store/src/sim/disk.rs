//! A disk that keeps what was synced, and of what was not any sectors.

use raft::eraftpb::{ConfState, Entry, HardState};

use super::weather::Random;
use crate::core::Append;
use crate::raftlog::{RaftLog, SnapshotId};
use crate::recover;
use crate::state::State;
use crate::wal::simulated::Log;

#[derive(Clone)]
pub(super) struct Disk {
    log: Log,
    /// What the engine holds.
    state: State,
    /// The last snapshot that was made here.
    pub(super) snapshot: Option<(SnapshotId, State)>,
}

impl Disk {
    pub(super) fn new(id: u64, voters: Vec<u64>) -> Self {
        let state = State::empty(ConfState { voters, ..ConfState::default() });
        Self { log: Log::new(id), state, snapshot: None }
    }

    pub(super) fn append(&mut self, append: &Append) {
        self.log.append(append.hard_state.as_ref(), &append.entries);
    }

    /// The power goes while this is written.
    pub(super) fn tear(&mut self, append: &Append, random: &mut Random) {
        self.log.tear(append.hard_state.as_ref(), &append.entries, luck(random));
    }

    /// It cannot be written, or not all of it.
    pub(super) fn fail(&mut self, append: &Append, random: &mut Random) {
        self.log.fail(append.hard_state.as_ref(), &append.entries, luck(random));
    }

    /// The engine is written.
    pub(super) fn flush(&mut self, state: &State) {
        self.state = state.clone();
    }

    /// The log is cut up to what the engine holds.
    pub(super) fn cut(&mut self) {
        self.log.cut(self.state.meta.applied);
    }

    pub(super) fn install(&mut self, state: &State) {
        let meta = &state.meta;
        let (mut hard_state, _) = self.reread();
        hard_state.commit = meta.applied;
        self.log.reset(meta.applied, meta.applied_term, &hard_state);
        self.state = state.clone();
        self.snapshot = None;
    }

    /// What a member starts with.
    pub(super) fn load(&mut self, id: u64) -> (State, RaftLog) {
        let (hard_state, entries) = self.log.open(self.state.meta.applied);
        let log = recover::raft_log(id, &self.state.meta, hard_state, entries);
        (self.state.clone(), log)
    }

    pub(super) fn reread(&self) -> (HardState, Vec<Entry>) {
        self.log.reread(self.state.meta.applied)
    }
}

/// Which sectors arrive: all, none, or some.
fn luck(random: &mut Random) -> impl FnMut() -> bool {
    let mood = random.below(4);
    move || match mood {
        0 => true,
        1 => false,
        _ => random.one_in(2),
    }
}
