//! What the segments of a log say together, read one after another from the first to the last. Touches no
//! file: it is given each one's bytes.

use std::collections::VecDeque;
use std::path::Path;

use raft::eraftpb::{Entry, HardState};

use super::Segment;
use super::format::{self, Header, Record, SEGMENT_HEADER};
use crate::error::Error;

pub(super) struct Scan {
    pub(super) segments: VecDeque<Segment>,
    pub(super) hard_state: HardState,
    /// Those after the index that was asked for, without gaps.
    pub(super) entries: Vec<Entry>,
    pub(super) previous_index: u64,
    pub(super) last_index: u64,
    pub(super) last_term: u64,
    /// Of the last segment: the position after the last valid frame, and whether something torn follows.
    pub(super) end: u64,
    pub(super) torn: bool,
}

fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Error {
    Error::DamagedLog { path: path.to_owned(), offset, what: what.into() }
}

impl Scan {
    pub(super) fn new() -> Self {
        Self {
            segments: VecDeque::new(),
            hard_state: HardState::default(),
            entries: Vec::new(),
            previous_index: 0,
            last_index: 0,
            last_term: 0,
            end: SEGMENT_HEADER as u64,
            torn: false,
        }
    }

    /// Reads the next segment, which `path` names `sequence`. Entries up to `from` are passed over.
    ///
    /// # Errors
    /// The log is damaged, or another node's.
    pub(super) fn segment(
        &mut self,
        path: &Path,
        bytes: &[u8],
        sequence: u64,
        node_id: u64,
        from: u64,
    ) -> Result<(), Error> {
        let header = Header::decode(bytes).map_err(|what| damaged(path, 0, what))?;
        if header.sequence != sequence {
            return Err(damaged(path, 0, format!("its header is that of segment {:x}", header.sequence)));
        }
        if header.node_id != node_id {
            return Err(Error::WrongNode { path: path.to_owned(), found: header.node_id, expected: node_id });
        }
        match self.segments.back() {
            None => self.begin(&header),
            Some(_) if header.anew => self.begin(&header),
            // Names are different numbers in order: there is none after the last.
            Some(before) if before.sequence + 1 != sequence => {
                let what = format!("lacks segment {:016x}.log", before.sequence + 1);
                let folder = path.parent().unwrap_or(path).to_owned();
                return Err(Error::LogLost { path: folder, what });
            }
            Some(before) if header.previous_index != self.last_index => {
                let what = format!(
                    "entry {} is followed by {} in the next segment",
                    self.last_index,
                    header.previous_index.saturating_add(1)
                );
                return Err(damaged(&before.path, before.used, what));
            }
            Some(_) => {}
        }
        self.hard_state = header.hard_state.clone();
        let mut end = SEGMENT_HEADER;
        while let Some((payload, next)) = format::frame(bytes, end, sequence) {
            let frame_at = end as u64;
            let records =
                format::records(payload).map_err(|error| damaged(path, frame_at, error.to_string()))?;
            for record in records {
                match record {
                    Record::HardState(state) => self.hard_state = state,
                    Record::Entry(entry) => self.push(entry, from, path, frame_at)?,
                }
            }
            end = next;
        }
        if let Some(at) = format::find_frame(bytes, end + format::ALIGN, sequence) {
            let what = format!("a bad record, but a good one follows at {at}");
            return Err(damaged(path, end as u64, what));
        }
        self.end = end as u64;
        self.torn = !format::is_clean_end(bytes, end);
        self.segments.push_back(Segment {
            sequence,
            path: path.to_owned(),
            previous_index: header.previous_index,
            used: end as u64,
        });
        Ok(())
    }

    fn begin(&mut self, header: &Header) {
        self.entries.clear();
        self.previous_index = header.previous_index;
        self.last_index = header.previous_index;
        self.last_term = header.previous_term;
    }

    fn push(&mut self, entry: Entry, from: u64, path: &Path, offset: u64) -> Result<(), Error> {
        if entry.index > self.last_index.saturating_add(1) || entry.index == 0 {
            let what = format!("entry {} follows entry {}", entry.index, self.last_index);
            return Err(damaged(path, offset, what));
        }
        // A new leader may have replaced the end of the log: what is written later wins.
        if entry.index <= self.last_index {
            while self.entries.last().is_some_and(|last| last.index >= entry.index) {
                self.entries.pop();
            }
            // The replaced ones were in a segment that is cut off already.
            self.previous_index = self.previous_index.min(entry.index - 1);
        }
        self.last_index = entry.index;
        self.last_term = entry.term;
        if entry.index > from {
            self.entries.push(entry);
        }
        Ok(())
    }
}
