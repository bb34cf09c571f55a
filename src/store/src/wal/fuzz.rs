//! A segment of the log for fuzz/, with its checksums made right: damage is found by them, and what they let
//! through must not panic either.

use raft::eraftpb::{Entry, HardState};

use super::format::{self, FRAME_HEADER, Header, Record, SEGMENT_HEADER};
use crate::fuzz::Scratch;

/// Rights the checksums of the header and of every frame whose beginning is recognised.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if bytes.len() < SEGMENT_HEADER {
        return bytes;
    }
    let crc = crc32fast::hash(&bytes[..80]);
    bytes[80..84].copy_from_slice(&crc.to_le_bytes());
    let Ok(header) = Header::decode(&bytes) else { return bytes };
    let mut at = SEGMENT_HEADER;
    while let Some(begin) = bytes.get(at..at + FRAME_HEADER) {
        let length = u32::from_le_bytes([begin[4], begin[5], begin[6], begin[7]]) as usize;
        let end = at + FRAME_HEADER + length;
        if end > bytes.len() {
            break;
        }
        format::finish(&mut bytes[at..end], header.sequence);
        at = end;
    }
    bytes
}

/// One segment, read as at a start.
pub fn log(data: &[u8]) {
    let _ = Header::decode(data);
    let bytes = sealed(data);
    let _ = format::find_frame(&bytes, 0, 1);
    let Ok(header) = Header::decode(&bytes) else { return };
    let again = Header::decode(&header.encode());
    assert_eq!(again.as_ref(), Ok(&header));
    let mut at = SEGMENT_HEADER;
    while let Some((payload, next)) = format::frame(&bytes, at, header.sequence) {
        if let Ok(records) = format::records(payload) {
            let mut out = Vec::new();
            for record in &records {
                match record {
                    Record::HardState(state) => format::put_hard_state(&mut out, state),
                    Record::Entry(entry) => format::put_entry(&mut out, entry),
                }
            }
            let count = format::records(&out).map(|again| again.len());
            assert_eq!(count, Ok(records.len()));
        }
        at = next;
    }
    let scratch = Scratch::new();
    let path = scratch.path().join(format!("{:016x}.log", header.sequence));
    std::fs::write(&path, &bytes).expect("written");
    let _ = super::read(scratch.path(), header.node_id, 0, 0);
    let _ = super::read(scratch.path(), header.node_id, 1, 3);
}

/// A segment with two frames.
pub fn log_seeds() -> Vec<Vec<u8>> {
    let hard_state = HardState { term: 2, vote: 1, commit: 3 };
    let header = Header { sequence: 1, node_id: 1, hard_state: hard_state.clone(), ..Header::default() };
    let mut bytes = header.encode();
    for first in [1, 3] {
        let entry =
            |index| Entry { term: 2, index, data: vec![7; 9], context: b"ab".to_vec(), ..Entry::default() };
        let mut frame = Vec::new();
        format::put_frame(&mut frame, Some(&hard_state), &[entry(first), entry(first + 1)]);
        format::finish(&mut frame, 1);
        bytes.extend(frame);
    }
    let mut padded = bytes.clone();
    padded.resize(bytes.len() + 64, 0);
    vec![bytes, padded]
}
