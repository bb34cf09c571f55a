//! The part of the Raft log that Raft itself may ask for, in memory. Everything in it is in the
//! write-ahead log, or on the way into it; entries leave it once they are applied and no follower can
//! need them. A follower that needs what has left gets a snapshot.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

/// Raft's view of the log. Entries up to `base_index` are gone ("compacted", in Raft's words).
#[derive(Clone, Default)]
pub(crate) struct RaftLog {
    pub(crate) hard_state: HardState,
    pub(crate) members: ConfState,
    base_index: u64,
    base_term: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The snapshot that may be sent.
    snapshot: Option<SnapshotId>,
    /// Entries after this one are kept while a snapshot up to it is on its way to a follower.
    hold: Option<u64>,
    /// A follower needs a snapshot that reaches at least to this index, and there is none.
    wanted: Cell<Option<u64>>,
}

/// A snapshot file, as Raft knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SnapshotId {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) members: ConfState,
}

impl SnapshotId {
    fn knows(&self, id: u64) -> bool {
        let ConfState { voters, learners, voters_outgoing, .. } = &self.members;
        [voters, learners, voters_outgoing].into_iter().any(|ids| ids.contains(&id))
    }
}

/// Entries kept beyond the usual while a snapshot is under way, in bytes.
const HOLD_BYTES: usize = 64 << 20;

impl RaftLog {
    pub(crate) fn new(
        hard_state: HardState,
        members: ConfState,
        base: (u64, u64),
        entries: Vec<Entry>,
    ) -> Self {
        let bytes = entries.iter().map(size).sum();
        let (base_index, base_term) = base;
        Self { hard_state, members, base_index, base_term, entries: entries.into(), bytes, ..Self::default() }
    }

    /// A snapshot takes the place of everything.
    pub(crate) fn restore(&mut self, index: u64, term: u64, members: ConfState) {
        let hard_state = HardState { commit: self.hard_state.commit.max(index), ..self.hard_state.clone() };
        *self = Self::new(hard_state, members, (index, term), Vec::new());
    }

    /// A snapshot that can be sent from now on.
    pub(crate) fn offer(&mut self, snapshot: SnapshotId) {
        self.wanted.set(None);
        self.snapshot = Some(snapshot);
    }

    /// Whether somebody asked for a snapshot that is not there.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take().is_some()
    }

    pub(crate) fn set_hold(&mut self, hold: Option<u64>) {
        self.hold = hold;
    }

    pub(crate) fn last(&self) -> u64 {
        self.base_index + self.entries.len() as u64
    }

    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            while self.last() >= entry.index {
                let Some(replaced) = self.entries.pop_back() else { break };
                self.bytes -= size(&replaced);
            }
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
    }

    /// Forget applied entries until at most `keep` bytes are left. The very first entry never stays: who
    /// has nothing at all must begin with a snapshot, for only that names the members.
    pub(crate) fn compact(&mut self, applied: u64, keep: usize) {
        while self.bytes > keep || keep == 0 || self.base_index == 0 {
            match self.entries.front() {
                Some(entry) if self.is_held(entry.index) => break,
                Some(entry) if entry.index <= applied => {
                    self.bytes -= size(entry);
                    (self.base_index, self.base_term) = (entry.index, entry.term);
                    self.entries.pop_front();
                }
                _ => break,
            }
        }
        if self.entries.is_empty() && self.entries.capacity() > 4096 {
            self.entries = VecDeque::new();
        }
    }

    fn is_held(&self, index: u64) -> bool {
        self.bytes < HOLD_BYTES && self.hold.is_some_and(|hold| index > hold)
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + size_of::<Entry>()
}

impl Storage for RaftLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.members.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base_index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let start = (low - self.base_index - 1) as usize;
        let end = (high - self.base_index - 1) as usize;
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut total = 0;
        let fits = |entry: &&Entry| {
            total += size(entry) as u64;
            total <= limit || total == size(entry) as u64
        };
        Ok(self.entries.range(start..end).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base_index {
            return Ok(self.base_term);
        }
        let Some(offset) = index.checked_sub(self.base_index + 1) else {
            return Err(StorageError::Compacted.into());
        };
        let entry = self.entries.get(offset as usize).ok_or(StorageError::Unavailable)?;
        Ok(entry.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Names the snapshot; the file travels on a stream of its own. It must join the entries that are here,
    /// and know the one who gets it, or that one would not take it.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let least = request_index.max(self.base_index).max(1);
        match &self.snapshot {
            Some(found) if found.index >= least && found.knows(to) => {
                let mut snapshot = Snapshot::default();
                let metadata = snapshot.mut_metadata();
                (metadata.index, metadata.term) = (found.index, found.term);
                metadata.conf_state = Some(found.members.clone());
                Ok(snapshot)
            }
            _ => {
                self.wanted.set(Some(least));
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 100], ..Entry::default() }
    }

    fn indexes(log: &RaftLog, low: u64, high: u64, max: u64) -> Vec<u64> {
        let entries = log.entries(low, high, max, GetEntriesContext::empty(false)).unwrap();
        entries.iter().map(|e| e.index).collect()
    }

    #[test]
    fn appends_replaces_and_forgets() {
        let start = vec![entry(5, 1), entry(6, 1), entry(7, 1)];
        let mut log = RaftLog::new(HardState::default(), ConfState::default(), (4, 1), start);
        log.append(vec![entry(6, 2), entry(7, 2), entry(8, 2)]);
        assert_eq!(indexes(&log, 5, 9, u64::MAX), [5, 6, 7, 8]);
        assert_eq!(indexes(&log, 5, 9, 0), [5], "always at least one");
        assert_eq!((log.term(4).unwrap(), log.term(5).unwrap(), log.term(8).unwrap()), (1, 1, 2));
        assert!(log.term(3).is_err() && log.term(9).is_err());
        log.compact(7, 0);
        assert_eq!((log.first_index().unwrap(), log.last()), (8, 8));
        assert_eq!(log.term(7).unwrap(), 2);
        assert!(log.entries(7, 9, None, GetEntriesContext::empty(false)).is_err());
        log.compact(8, 0);
        assert_eq!((log.last(), log.bytes, log.term(8).unwrap()), (8, 0, 2));
    }
}
