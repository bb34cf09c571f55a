//! The store in memory, for tests.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{Check, MemberChange, Record, Records, RecordsError, Replica, Transaction};
use crate::NodeId;

#[derive(Default)]
pub(crate) struct Memory {
    replica: Replica,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: u64,
    members: BTreeMap<NodeId, String>,
    refuse: Option<RecordsError>,
}

impl Memory {
    /// Every key and value, to show that nothing changed.
    pub(crate) fn dump(&self) -> Vec<(String, String)> {
        let text = |record: Record| String::from_utf8(record.bytes).unwrap();
        self.replica.list("").into_iter().map(|(key, record)| (key, text(record))).collect()
    }

    pub(crate) fn members(&self) -> BTreeMap<NodeId, String> {
        self.state.lock().members.clone()
    }

    /// Answer the next transactions so.
    pub(crate) fn refuse(&self, error: Option<RecordsError>) {
        self.state.lock().refuse = error;
    }
}

impl Records for Memory {
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Record>, RecordsError>> {
        async move {
            // Others get their turn between a read and the transaction.
            tokio::task::yield_now().await;
            Ok(self.local(&key))
        }
        .boxed()
    }

    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<(String, Record)>, RecordsError>> {
        async move { Ok(self.local_list(&prefix)) }.boxed()
    }

    fn local(&self, key: &str) -> Option<Record> {
        self.replica.get(key)
    }

    fn local_list(&self, prefix: &str) -> Vec<(String, Record)> {
        self.replica.list(prefix)
    }

    fn removable(&self, _: NodeId) -> BoxFuture<'_, Result<(), RecordsError>> {
        async move { self.state.lock().refuse.clone().map_or(Ok(()), Err) }.boxed()
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<(), RecordsError>> {
        async move {
            let mut state = self.state.lock();
            if let Some(error) = &state.refuse {
                return Err(error.clone());
            }
            let holds = |check: &Check| match check {
                Check::Absent(key) => self.replica.get(key).is_none(),
                Check::At(key, revision) => {
                    self.replica.get(key).is_some_and(|record| record.revision == *revision)
                }
            };
            if !transaction.checks.iter().all(holds) {
                return Err(RecordsError::Conflict);
            }
            state.revision += 1;
            let revision = state.revision;
            for key in transaction.deletes {
                self.replica.delete(&key);
            }
            for (key, bytes) in transaction.puts {
                self.replica.put(&key, bytes, revision);
            }
            match transaction.member {
                Some(MemberChange::Admit(peer)) => {
                    state.members.insert(peer.id, peer.name);
                }
                Some(MemberChange::Remove(id)) => {
                    state.members.remove(&id);
                }
                None => {}
            }
            Ok(())
        }
        .boxed()
    }
}
