//! The cluster's book (nodes, tokens) inside the replicated store: a few keys beside the API's objects,
//! kept here as they are applied, written through the store's transactions.

use std::sync::Arc;

use futures::future::BoxFuture;
use kedge_apiserver::Sealing;
use kedge_cluster::{
    Check, EncryptionState, MemberChange, NodeId, Record, Records, RecordsError, Replica, Transaction,
};
use kedge_store::{
    Change, CommitError, Condition, Entry, Key, Member, MemberError, Observer, Op, Revision, Store, Txn,
    Value,
};
use tokio::sync::watch;

use super::encryption;

/// Tells the API server of its objects and the book of its records.
pub(crate) struct Observers {
    pub(crate) api: Arc<dyn Observer>,
    pub(crate) book: Arc<Replica>,
    /// Counts the changes of the book.
    pub(crate) changes: watch::Sender<u64>,
    /// Is told how objects are to be stored.
    pub(crate) sealing: Sealing,
}

impl Observers {
    fn record(&self, key: &Key, entry: &Entry) {
        if **key == *EncryptionState::RECORD {
            encryption::follow_record(&self.sealing, &entry.bytes, entry.modified);
        }
        self.book.put(key, entry.bytes.to_vec(), entry.modified);
    }
}

impl Observer for Observers {
    fn reset(&self, revision: Revision, entries: &mut dyn Iterator<Item = (Key, Entry)>) {
        self.book.clear();
        let mut others = entries.filter(|(key, entry)| {
            let own = Replica::owns(key);
            if own {
                self.record(key, entry);
            }
            !own
        });
        self.api.reset(revision, &mut others);
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn applied(&self, revision: Revision, changes: &[Change]) {
        if !changes.iter().any(|change| Replica::owns(&change.key)) {
            return self.api.applied(revision, changes);
        }
        let (own, others): (Vec<Change>, Vec<Change>) =
            changes.iter().cloned().partition(|change| Replica::owns(&change.key));
        for change in own {
            match change.entry {
                Some(entry) => self.record(&change.key, &entry),
                None => self.book.delete(&change.key),
            }
        }
        self.api.applied(revision, &others);
        self.changes.send_modify(|changes| *changes += 1);
    }
}

/// The store as the cluster's book sees it.
pub(crate) struct StoreRecords {
    pub(crate) store: Store,
    pub(crate) book: Arc<Replica>,
}

impl StoreRecords {
    async fn fresh(&self) -> Result<&Replica, RecordsError> {
        match self.store.read_barrier().await {
            Ok(_) => Ok(&self.book),
            Err(error) => Err(RecordsError::Unavailable(kedge_base::Chain(&error).to_string())),
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<(), RecordsError> {
        let member = transaction.member.clone();
        let txn = translated(transaction);
        match member {
            None => self.store.commit(txn).await.map(drop).map_err(refused),
            Some(MemberChange::Remove(id)) => match self.store.remove(id.get(), txn.clone()).await {
                // Its record in the store's group was removed by an attempt that was cut off.
                Err(MemberError::Unknown(_)) => self.store.commit(txn).await.map(drop).map_err(refused),
                other => other.map(drop).map_err(not_changed),
            },
            Some(MemberChange::Admit(peer)) => {
                let member = Member {
                    id: peer.id.get(),
                    name: peer.name,
                    address: peer.address.to_string(),
                    failure_domain: peer.failure_domain,
                };
                let known = self
                    .store
                    .members()
                    .into_iter()
                    .any(|known| known.id == member.id && known.member.is_some());
                if !known {
                    return self.store.admit(member, txn).await.map(drop).map_err(not_changed);
                }
                // Only its address can be new. Both writes may be repeated.
                self.store.update_address(member.id, &member.address).await.map_err(not_changed)?;
                self.store.commit(txn).await.map(drop).map_err(refused)
            }
        }
    }
}

impl Records for StoreRecords {
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Record>, RecordsError>> {
        Box::pin(async move { Ok(self.fresh().await?.get(&key)) })
    }

    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<(String, Record)>, RecordsError>> {
        Box::pin(async move { Ok(self.fresh().await?.list(&prefix)) })
    }

    fn local(&self, key: &str) -> Option<Record> {
        self.book.get(key)
    }

    fn local_list(&self, prefix: &str) -> Vec<(String, Record)> {
        self.book.list(prefix)
    }

    fn removable(&self, id: NodeId) -> BoxFuture<'_, Result<(), RecordsError>> {
        Box::pin(async move {
            match self.store.check_removal(id.get()).await {
                // Of such a member only the book knows: see `commit`.
                Ok(()) | Err(MemberError::Unknown(_)) => Ok(()),
                Err(error) => Err(not_changed(error)),
            }
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<(), RecordsError>> {
        Box::pin(self.commit(transaction))
    }
}

fn translated(transaction: Transaction) -> Txn {
    let condition = |check| match check {
        Check::Absent(key) => Condition { key: key.into(), check: kedge_store::Check::Absent },
        Check::At(key, revision) => Condition { key: key.into(), check: kedge_store::Check::At(revision) },
    };
    let puts = transaction
        .puts
        .into_iter()
        .map(|(key, bytes)| Op::Put { key: key.into(), value: Value { bytes: bytes.into(), splice: None } });
    let deletes = transaction.deletes.into_iter().map(|key| Op::Delete { key: key.into() });
    Txn {
        conditions: transaction.checks.into_iter().map(condition).collect(),
        ops: puts.chain(deletes).collect(),
        lazy: false,
    }
}

fn refused(error: CommitError) -> RecordsError {
    match error {
        CommitError::Conflict { .. } => RecordsError::Conflict,
        other => RecordsError::Unavailable(kedge_base::Chain(&other).to_string()),
    }
}

fn not_changed(error: MemberError) -> RecordsError {
    match error {
        MemberError::Commit(error) => refused(error),
        // Another node was faster: the book is asked again and knows the words.
        MemberError::IdTaken(_) | MemberError::NameTaken(_) | MemberError::AddressTaken(_) => {
            RecordsError::Conflict
        }
        other => RecordsError::Unsafe(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Observer for Seen {
        fn reset(&self, _: Revision, entries: &mut dyn Iterator<Item = (Key, Entry)>) {
            *self.0.lock() = entries.map(|(key, _)| key.to_string()).collect();
        }

        fn applied(&self, revision: Revision, changes: &[Change]) {
            self.0.lock().push(format!("{revision}:{}", changes.len()));
        }
    }

    fn entry(text: &'static str) -> Entry {
        Entry { bytes: text.into(), splice: None, created: 1, modified: 3 }
    }

    #[test]
    fn records_and_objects_go_different_ways() {
        let (api, book) = (Arc::new(Seen::default()), Arc::new(Replica::default()));
        let changes = watch::Sender::new(0);
        let observers = Observers {
            api: api.clone(),
            book: book.clone(),
            changes: changes.clone(),
            sealing: Sealing::default(),
        };
        let own = "nodes.cluster.kedge.internal//a";
        let all = [("pods/ns/a.cluster.kedge.internal", "p"), (own, "n")];
        observers.reset(3, &mut all.into_iter().map(|(key, text)| (key.into(), entry(text))));
        assert_eq!(*api.0.lock(), ["pods/ns/a.cluster.kedge.internal"]);
        assert_eq!(book.get(own), Some(Record { bytes: b"n".to_vec(), revision: 3 }));

        // The API server hears of every revision, even of one that is not about it.
        observers.applied(4, &[Change { key: own.into(), revision: 4, entry: None }]);
        observers.applied(5, &[Change { key: "pods//x".into(), revision: 5, entry: Some(entry("")) }]);
        assert_eq!(api.0.lock()[1..], ["4:0", "5:1"]);
        assert_eq!(book.get(own), None);
        assert_eq!(*changes.borrow(), 2);
    }
}
