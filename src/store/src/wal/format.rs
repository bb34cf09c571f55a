//! The bytes of a log segment. All numbers are little-endian.
//!
//! ```text
//! segment = header (128 bytes), frames from there on, each at a multiple of 8
//! header  = "KEDGELOG", version u32, flags u32, sequence u64, node u64, term u64, vote u64, commit u64,
//!           previous index u64, previous term u64, CRC32 u32 of all before; zeros
//! frame   = magic u32, payload length u32, CRC32 u32 of (sequence, length, payload), 0 u32, payload
//! payload = records, then zeros up to a multiple of 8
//! record  = kind u8, term u64, index u64, context length u32, data length u32, context, data
//! ```
//!
//! Flag 1: the log starts anew here, after a snapshot took the place of all before; earlier segments are void.
//! The sequence in the checksum keeps frames of a reused file from being taken for new ones. Kinds 1 to 3
//! are Raft's entry types, 16 is a hard state (index: commit; data: vote u64), 0 is padding.

use raft::eraftpb::{Entry, EntryType, HardState};

use crate::command::{DecodeError, Reader};

pub(super) const SEGMENT_HEADER: usize = 128;
pub(super) const FRAME_HEADER: usize = 16;
pub(super) const ALIGN: usize = 8;
const MAGIC: &[u8; 8] = b"KEDGELOG";
const VERSION: u32 = 1;
const FRAME_MAGIC: [u8; 4] = *b"KFR1";
const HEADER_USED: usize = 80;
const RECORD: usize = 25;
const HARD_STATE: u8 = 16;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    pub(super) node_id: u64,
    pub(super) hard_state: HardState,
    pub(super) previous_index: u64,
    pub(super) previous_term: u64,
    /// All that earlier segments hold is void.
    pub(super) anew: bool,
}

const ANEW: u32 = 1;

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u32::from(self.anew).to_le_bytes());
        let state = &self.hard_state;
        for n in [
            self.sequence,
            self.node_id,
            state.term,
            state.vote,
            state.commit,
            self.previous_index,
            self.previous_term,
        ] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.resize(HEADER_USED, 0);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out.resize(SEGMENT_HEADER, 0);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let short = |_| "its header is cut short".to_owned();
        let mut input = Reader(bytes);
        if input.take(8).map_err(short)? != MAGIC {
            return Err("it does not begin like a log segment".into());
        }
        let version = input.u32().map_err(short)?;
        if version != VERSION {
            return Err(format!("its version is {version}, this program reads {VERSION}"));
        }
        let flags = input.u32().map_err(short)?;
        let mut number = || input.u64().map_err(short);
        let (sequence, node_id) = (number()?, number()?);
        let hard_state = HardState { term: number()?, vote: number()?, commit: number()? };
        let (previous_index, previous_term) = (number()?, number()?);
        let crc = Reader(bytes.get(HEADER_USED..).unwrap_or_default()).u32().map_err(short)?;
        if crc32fast::hash(&bytes[..HEADER_USED]) != crc {
            return Err("its header's checksum is wrong".into());
        }
        if flags & !ANEW != 0 {
            return Err(format!("its flags {flags:x} are unknown to this program"));
        }
        Ok(Self { sequence, node_id, hard_state, previous_index, previous_term, anew: flags & ANEW != 0 })
    }
}

pub(super) enum Record {
    HardState(HardState),
    Entry(Entry),
}

/// An upper bound of the frame for so many entries with so many bytes of data, and a hard state.
pub(super) fn frame_size(entries: usize, bytes: usize) -> usize {
    FRAME_HEADER + (RECORD + 8 + entries * RECORD + bytes).next_multiple_of(ALIGN)
}

/// A frame that lacks what [`finish`] writes. `out` is empty.
pub(super) fn put_frame(out: &mut Vec<u8>, hard_state: Option<&HardState>, entries: &[Entry]) {
    out.extend_from_slice(&FRAME_MAGIC);
    out.resize(FRAME_HEADER, 0);
    if let Some(state) = hard_state {
        put_hard_state(out, state);
    }
    for entry in entries {
        put_entry(out, entry);
    }
    out.resize(out.len().next_multiple_of(ALIGN), 0);
}

/// Writes length and checksum; `frame` is what [`put_frame`] made.
pub(super) fn finish(frame: &mut [u8], sequence: u64) {
    let (header, payload) = frame.split_at_mut(FRAME_HEADER);
    let length = (payload.len() as u32).to_le_bytes();
    header[4..8].copy_from_slice(&length);
    header[8..12].copy_from_slice(&checksum(sequence, length, payload).to_le_bytes());
}

fn checksum(sequence: u64, length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

fn put_record(out: &mut Vec<u8>, kind: u8, term: u64, index: u64, context: &[u8], data: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&term.to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&(context.len() as u32).to_le_bytes());
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out.extend_from_slice(context);
    out.extend_from_slice(data);
}

pub(super) fn put_hard_state(out: &mut Vec<u8>, state: &HardState) {
    put_record(out, HARD_STATE, state.term, state.commit, &[], &state.vote.to_le_bytes());
}

pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let kind = match entry.entry_type() {
        EntryType::EntryNormal => 1,
        EntryType::EntryConfChange => 2,
        EntryType::EntryConfChangeV2 => 3,
    };
    put_record(out, kind, entry.term, entry.index, &entry.context, &entry.data);
}

/// The payload of the frame at `at`, if there is a valid one, and where the next one begins.
pub(super) fn frame(bytes: &[u8], at: usize, sequence: u64) -> Option<(&[u8], usize)> {
    let header = bytes.get(at..at + FRAME_HEADER)?;
    if header[..4] != FRAME_MAGIC || header[12..] != [0; 4] {
        return None;
    }
    let length = [header[4], header[5], header[6], header[7]];
    let start = at + FRAME_HEADER;
    let end = start.checked_add(u32::from_le_bytes(length) as usize)?;
    let payload = bytes.get(start..end)?;
    let good = checksum(sequence, length, payload).to_le_bytes() == header[8..12];
    (good && end % ALIGN == 0).then_some((payload, end))
}

/// The position of the first valid frame at or after `from`.
pub(super) fn find_frame(bytes: &[u8], from: usize, sequence: u64) -> Option<usize> {
    (from..bytes.len().saturating_sub(FRAME_HEADER))
        .step_by(ALIGN)
        .find(|&at| bytes[at..at + 4] == FRAME_MAGIC && frame(bytes, at, sequence).is_some())
}

/// Whether the log ends at `at` the way a finished append leaves it.
pub(super) fn is_clean_end(bytes: &[u8], at: usize) -> bool {
    bytes[at.min(bytes.len())..].iter().take(FRAME_HEADER).all(|&b| b == 0)
}

/// The records of a payload whose checksum is right.
pub(super) fn records(payload: &[u8]) -> Result<Vec<Record>, DecodeError> {
    let mut input = Reader(payload);
    let mut out = Vec::new();
    while !input.0.is_empty() {
        let kind = input.u8()?;
        if kind == 0 {
            break;
        }
        let (term, index) = (input.u64()?, input.u64()?);
        let (context, data) = (input.u32()? as usize, input.u32()? as usize);
        let (context, data) = (input.take(context)?, input.take(data)?);
        let entry_type = match kind {
            1 => EntryType::EntryNormal,
            2 => EntryType::EntryConfChange,
            3 => EntryType::EntryConfChangeV2,
            HARD_STATE => {
                let vote = Reader(data).u64()?;
                out.push(Record::HardState(HardState { term, vote, commit: index }));
                continue;
            }
            other => return Err(DecodeError::Tag(other)),
        };
        let mut entry = Entry { term, index, ..Entry::default() };
        entry.set_entry_type(entry_type);
        entry.context = context.to_vec();
        entry.data = data.to_vec();
        out.push(Record::Entry(entry));
    }
    Ok(out)
}
