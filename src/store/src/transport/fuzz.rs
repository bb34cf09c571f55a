//! What members send each other, for fuzz/.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, Message};

use super::wire::{Batch, Chunk, Health, Offer, Progress, Propose, Proposed};

fn round_trip<T: prost::Message + Default + PartialEq>(data: &[u8]) -> Option<T> {
    let decoded = T::decode(data).ok()?;
    assert!(T::decode(&decoded.encode_to_vec()[..]).is_ok_and(|again| again == decoded), "decoded otherwise");
    Some(decoded)
}

fn raft(data: &[u8]) {
    let Ok(message) = <Message as prost11::Message>::decode(data) else { return };
    let again = <Message as prost11::Message>::decode(&prost11::Message::encode_to_vec(&message)[..]);
    assert!(again.is_ok_and(|again| again == message), "decoded otherwise");
    let _ = message.msg_type();
    for entry in &message.entries {
        let _ = crate::recover::command_of(entry);
    }
}

/// A message of any kind.
pub fn message(data: &[u8]) {
    if let Some(batch) = round_trip::<Batch>(data) {
        for bytes in &batch.messages {
            raft(bytes);
        }
    }
    if let Some(propose) = round_trip::<Propose>(data) {
        let _ = crate::command::decode(&propose.command);
    }
    if let Some(offer) = round_trip::<Offer>(data) {
        raft(&offer.message);
    }
    if let Some(health) = round_trip::<Health>(data) {
        health.add_to(&mut crate::Status::default());
    }
    if let Some(proposed) = round_trip::<Proposed>(data) {
        let _ = proposed.result();
    }
    let _ = round_trip::<Chunk>(data);
    let _ = round_trip::<Progress>(data);
    raft(data);
}

/// Messages to begin with.
pub fn message_seeds() -> Vec<Vec<u8>> {
    let mut message = Message { from: 1, to: 2, term: 3, commit: 4, ..Message::default() };
    let command = crate::fuzz::transaction_seeds().swap_remove(0);
    message.entries = vec![Entry { index: 5, term: 3, data: command.clone(), ..Entry::default() }];
    let raft: Bytes = prost11::Message::encode_to_vec(&message).into();
    let address = Some("192.0.2.1:25000".to_owned());
    vec![
        Batch { messages: vec![raft.clone(), raft.clone()], address }.encode_to_vec(),
        Propose { command: command.into(), lazy: true }.encode_to_vec(),
        Offer { message: raft.clone(), length: 9 }.encode_to_vec(),
        Chunk { offset: 3, data: Bytes::from_static(b"abc"), crc: 4 }.encode_to_vec(),
        raft.to_vec(),
    ]
}
