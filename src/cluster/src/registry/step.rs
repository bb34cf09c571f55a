//! What the whole cluster does in step stands in the book as one record that says what is to be, and one for
//! each node that says what it has.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Check, Registry, Transaction, decode, encode};
use crate::{NodeId, NodeRecord, Refusal};

impl Registry {
    /// By this node's copy, with its revision.
    pub(super) fn get_here<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, Refusal> {
        let record = self.records.local(key);
        record.map(|record| Ok((decode(key, &record)?, record.revision))).transpose()
    }

    /// Writes a record if it is still at `revision` (`None`: if there is none). `false`: it is not.
    pub(super) async fn replace<T: Serialize + Sync>(
        &self,
        key: &str,
        value: &T,
        revision: Option<u64>,
    ) -> Result<bool, Refusal> {
        let check = match revision {
            Some(revision) => Check::At(key.into(), revision),
            None => Check::Absent(key.into()),
        };
        let puts = vec![(key.to_owned(), encode(value)?)];
        self.commit(Transaction { checks: vec![check], puts, ..Transaction::default() }).await
    }

    /// Writes down what a node has; nothing when that is known.
    pub(super) async fn report<T: Serialize + DeserializeOwned + PartialEq + Sync>(
        &self,
        key: String,
        value: &T,
    ) -> Result<(), Refusal> {
        // What cannot be read is written anew.
        if self.get_here::<T>(&key).ok().flatten().is_some_and(|(known, _)| known == *value) {
            return Ok(());
        }
        let puts = vec![(key, encode(value)?)];
        self.commit(Transaction { puts, ..Transaction::default() }).await.map(drop)
    }

    /// The nodes of the cluster, and what those have that have reported.
    pub(super) async fn reports<T: DeserializeOwned>(
        &self,
        key: impl Fn(NodeId) -> String,
    ) -> Result<(Vec<NodeRecord>, BTreeMap<NodeId, T>), Refusal> {
        let nodes = self.nodes().await?;
        let mut reports = BTreeMap::new();
        for node in &nodes {
            if let Some((report, _)) = self.get(&key(node.id)).await? {
                reports.insert(node.id, report);
            }
        }
        Ok((nodes, reports))
    }
}
