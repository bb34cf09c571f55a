//! A bounded queue of messages to one peer. When it is full the oldest go: newer ones say more.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use prost11::Message as _;
use raft::eraftpb::Message;
use tokio::sync::Notify;

use super::wire::Batch;

const LONGEST: usize = 4096;
const LARGEST: usize = 32 << 20;
const BATCH_BYTES: usize = 1 << 20;
const BATCH: usize = 256;

#[derive(Default)]
pub(super) struct Lane {
    queue: Mutex<Queue>,
    more: Notify,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<(usize, Message)>,
    bytes: usize,
}

fn size(message: &Message) -> usize {
    let entries: usize = message.entries.iter().map(|entry| entry.data.len() + 32).sum();
    64 + entries + message.context.len()
}

impl Lane {
    pub(super) fn push(&self, message: Message) {
        let size = size(&message);
        let mut queue = self.queue.lock();
        queue.bytes += size;
        queue.messages.push_back((size, message));
        while queue.messages.len() > LONGEST || queue.bytes > LARGEST && queue.messages.len() > 1 {
            let Some((size, _)) = queue.messages.pop_front() else { break };
            queue.bytes -= size;
        }
        drop(queue);
        self.more.notify_one();
    }

    pub(super) fn clear(&self) {
        *self.queue.lock() = Queue::default();
    }

    pub(super) async fn wait(&self) {
        loop {
            let more = self.more.notified();
            if !self.queue.lock().messages.is_empty() {
                return;
            }
            more.await;
        }
    }

    /// What goes into one message on the wire.
    pub(super) async fn batch(&self) -> Batch {
        loop {
            self.wait().await;
            let taken = self.take();
            if !taken.is_empty() {
                let messages = taken.iter().map(|message| Bytes::from(message.encode_to_vec())).collect();
                return Batch { messages, address: None };
            }
        }
    }

    fn take(&self) -> Vec<Message> {
        let mut queue = self.queue.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some((size, _)) = queue.messages.front() {
            if !taken.is_empty() && (bytes + size > BATCH_BYTES || taken.len() >= BATCH) {
                break;
            }
            let Some((size, message)) = queue.messages.pop_front() else { break };
            queue.bytes -= size;
            bytes += size;
            taken.push(message);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;

    fn message(index: u64, bytes: usize) -> Message {
        let entries =
            if bytes > 0 { vec![Entry { data: vec![0; bytes], ..Entry::default() }] } else { vec![] };
        Message { index, entries, ..Message::default() }
    }

    async fn indexes(lane: &Lane) -> Vec<u64> {
        let batch = lane.batch().await;
        batch.messages.iter().map(|bytes| Message::decode(&bytes[..]).unwrap().index).collect()
    }

    #[tokio::test]
    async fn the_newest_win_and_batches_are_bounded() {
        let lane = Lane::default();
        for index in 0..LONGEST as u64 + 10 {
            lane.push(message(index, 0));
        }
        assert_eq!(indexes(&lane).await, (10..10 + BATCH as u64).collect::<Vec<_>>());
        lane.clear();
        for index in 0..40 {
            lane.push(message(index, 1 << 20));
        }
        let first = indexes(&lane).await;
        assert_eq!(first.len(), 1, "a large one goes alone");
        assert!(first[0] >= 8, "the oldest were dropped: {first:?}");
    }
}
