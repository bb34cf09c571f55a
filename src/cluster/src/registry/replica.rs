//! This node's copy of the book, fed by whoever observes the store. A store that hands out changes and
//! keeps no values to read makes [`super::Records`] with it: a fresh read waits until all is applied, then
//! looks here.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::Record;

/// Keys of the book belong to this group.
const GROUP: &str = ".cluster.kedge.internal//";

/// Keys and values in order.
#[derive(Debug, Default)]
pub struct Replica {
    records: RwLock<BTreeMap<String, Record>>,
}

impl Replica {
    /// Is it a key of the book?
    pub fn owns(key: &str) -> bool {
        key.contains(GROUP)
    }

    /// The key was created or changed. Other keys are ignored.
    pub fn put(&self, key: &str, bytes: Vec<u8>, revision: u64) {
        if Self::owns(key) {
            self.records.write().insert(key.to_owned(), Record { bytes, revision });
        }
    }

    /// The key is gone.
    pub fn delete(&self, key: &str) {
        self.records.write().remove(key);
    }

    /// The store starts over, from a snapshot.
    pub fn clear(&self) {
        self.records.write().clear();
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<Record> {
        self.records.read().get(key).cloned()
    }

    /// All keys that begin so.
    pub fn list(&self, prefix: &str) -> Vec<(String, Record)> {
        let records = self.records.read();
        let from = records.range(prefix.to_owned()..);
        let hits = from.take_while(|(key, _)| key.starts_with(prefix));
        hits.map(|(key, record)| (key.clone(), record.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_books_keys_and_no_others() {
        let replica = Replica::default();
        for (revision, key) in
            ["nodes.cluster.kedge.internal//b", "nodes.cluster.kedge.internal//a", "configmaps/default/x"]
                .into_iter()
                .enumerate()
        {
            replica.put(key, vec![1], u64::try_from(revision).unwrap());
        }
        replica.put("names.cluster.kedge.internal//a", vec![2], 9);
        let listed = |prefix: &str| replica.list(prefix).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(
            listed("nodes.cluster.kedge.internal//"),
            ["nodes.cluster.kedge.internal//a", "nodes.cluster.kedge.internal//b"]
        );
        assert_eq!(listed("").len(), 3);
        replica.delete("nodes.cluster.kedge.internal//a");
        assert_eq!(replica.get("nodes.cluster.kedge.internal//a"), None);
        replica.clear();
        assert!(listed("").is_empty());
    }
}
