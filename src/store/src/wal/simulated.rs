//! The log of a simulated disk: the bytes of [`Wal`](super::Wal)'s segments, written by the same steps. A
//! crash keeps any of the sectors that were not synced, each whole.

use std::collections::VecDeque;
use std::path::Path;

use raft::eraftpb::{Entry, HardState};

use super::format::{self, FRAME_HEADER, Header, SEGMENT_HEADER};
use super::scan::Scan;

const SECTOR: usize = 512;
/// Small, so that logs have several.
const SEGMENT: usize = 8 * SECTOR;

#[derive(Clone)]
struct Segment {
    header: Header,
    bytes: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct Log {
    node_id: u64,
    /// Never empty; the last one is written to.
    segments: VecDeque<Segment>,
    /// The bytes of one that was cut off, to be used again.
    spare: Option<Vec<u8>>,
    position: usize,
    hard_state: HardState,
    last: (u64, u64),
}

impl Log {
    pub(crate) fn new(node_id: u64) -> Self {
        let mut log = Self {
            node_id,
            segments: VecDeque::new(),
            spare: None,
            position: 0,
            hard_state: HardState::default(),
            last: (0, 0),
        };
        log.add_segment(0, false);
        log
    }

    /// `Wal::create` makes a segment known only when it is whole and synced.
    fn add_segment(&mut self, frame: usize, anew: bool) {
        let header = Header {
            sequence: self.segments.back().map_or(1, |last| last.header.sequence + 1),
            node_id: self.node_id,
            hard_state: self.hard_state.clone(),
            previous_index: self.last.0,
            previous_term: self.last.1,
            anew,
        };
        let size = SEGMENT.max(SEGMENT_HEADER + frame);
        let mut bytes = self.spare.take_if(|spare| spare.len() == size).unwrap_or_else(|| vec![0; size]);
        let mut begin = header.encode();
        begin.resize(SEGMENT_HEADER + FRAME_HEADER, 0);
        let fits = begin.len().min(size);
        bytes[..fits].copy_from_slice(&begin[..fits]);
        self.segments.push_back(Segment { header, bytes });
        self.position = SEGMENT_HEADER;
    }

    /// Writes a frame, of which those sectors arrive that `arrives` says. Returns its end.
    fn write(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        mut arrives: impl FnMut() -> bool,
    ) -> usize {
        let mut frame = Vec::new();
        format::put_frame(&mut frame, hard_state, entries);
        if self.position + frame.len() > self.last_segment().bytes.len() {
            self.add_segment(frame.len(), false);
        }
        let from = self.position;
        let segment = self.last_segment();
        format::finish(&mut frame, segment.header.sequence);
        let end = from + frame.len();
        // The zeros after it mark the clean end of the log.
        let until = (end + FRAME_HEADER).min(segment.bytes.len());
        frame.resize(until - from, 0);
        let mut at = from;
        while at < until {
            let next = (at / SECTOR + 1) * SECTOR;
            let next = next.min(until);
            if arrives() {
                segment.bytes[at..next].copy_from_slice(&frame[at - from..next - from]);
            }
            at = next;
        }
        end
    }

    fn last_segment(&mut self) -> &mut Segment {
        self.segments.back_mut().expect("never empty")
    }

    /// An append that was synced.
    pub(crate) fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) {
        self.position = self.write(hard_state, entries, || true);
        if let Some(state) = hard_state {
            self.hard_state = state.clone();
        }
        if let Some(entry) = entries.last() {
            self.last = (entry.index, entry.term);
        }
    }

    /// An append that the power's end cuts off: [`Log::open`] comes next.
    pub(crate) fn tear(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        arrives: impl FnMut() -> bool,
    ) {
        self.write(hard_state, entries, arrives);
    }

    /// An append that fails: what of it has arrived is made void.
    pub(crate) fn fail(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
        arrives: impl FnMut() -> bool,
    ) {
        self.write(hard_state, entries, arrives);
        self.end_here();
    }

    fn end_here(&mut self) {
        let at = self.position;
        let bytes = &mut self.last_segment().bytes;
        let end = (at + FRAME_HEADER).min(bytes.len());
        bytes[at..end].fill(0);
    }

    pub(crate) fn reset(&mut self, index: u64, term: u64, hard_state: &HardState) {
        self.last = (index, term);
        self.hard_state = hard_state.clone();
        self.add_segment(0, true);
        self.segments.drain(..self.segments.len() - 1);
    }

    pub(crate) fn cut(&mut self, index: u64) {
        while self.segments.len() > 1 && self.segments[1].header.previous_index <= index {
            let first = self.segments.pop_front();
            self.spare = first.map(|segment| segment.bytes).filter(|bytes| bytes.len() == SEGMENT);
        }
    }

    fn scan(&self, from: u64) -> Scan {
        let mut scan = Scan::new();
        for segment in &self.segments {
            let sequence = segment.header.sequence;
            let path = format!("{sequence:016x}.log");
            scan.segment(Path::new(&path), &segment.bytes, sequence, self.node_id, from)
                .expect("only the end is torn");
        }
        assert!(scan.previous_index <= from, "the log begins after entry {from}");
        scan
    }

    /// What a start finds after entry `from`; a torn end is cut off.
    pub(crate) fn open(&mut self, from: u64) -> (HardState, Vec<Entry>) {
        let scan = self.scan(from);
        self.position = usize::try_from(scan.end).expect("small");
        if scan.torn {
            self.end_here();
        }
        self.hard_state = scan.hard_state.clone();
        self.last = (scan.last_index, scan.last_term);
        (scan.hard_state, scan.entries)
    }

    pub(crate) fn reread(&self, from: u64) -> (HardState, Vec<Entry>) {
        let scan = self.scan(from);
        (scan.hard_state, scan.entries)
    }
}
