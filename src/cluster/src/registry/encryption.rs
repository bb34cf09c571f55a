//! What the book says of encryption at rest: one record for the cluster, and what each control-plane node
//! has.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Record, Registry, Transaction, decode, encode};
use crate::encryption::Held;
use crate::{EncryptionState, NodeId, Refusal};

const STATE: &str = "encryption.cluster.kedge.internal//state";
const HELD: &str = "encryption-keys.cluster.kedge.internal//";

pub(super) fn held_key(id: NodeId) -> String {
    format!("{HELD}{id}")
}

impl EncryptionState {
    /// The record's key in the store.
    pub const RECORD: &str = STATE;
}

impl Registry {
    /// The cluster's record and its revision; fresh. `None`: encryption was never asked for.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn encryption(&self) -> Result<Option<(EncryptionState, u64)>, Refusal> {
        self.get(STATE).await
    }

    /// The same by this node's copy.
    ///
    /// # Errors
    /// When the record is damaged.
    pub fn encryption_here(&self) -> Result<Option<(EncryptionState, u64)>, Refusal> {
        let record: Option<Record> = self.records.local(STATE);
        record.map(|record| Ok((decode(STATE, &record)?, record.revision))).transpose()
    }

    /// Writes the record, if it is still at `revision` (`None`: if there is none). `false`: it is not.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn set_encryption(
        &self,
        state: &EncryptionState,
        revision: Option<u64>,
    ) -> Result<bool, Refusal> {
        let check = match revision {
            Some(revision) => Check::At(STATE.into(), revision),
            None => Check::Absent(STATE.into()),
        };
        let puts = vec![(STATE.to_owned(), encode(state)?)];
        self.commit(Transaction { checks: vec![check], puts, ..Transaction::default() }).await
    }

    /// Says which keys this node has, and what it writes under the record's condition.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn report_encryption(
        &self,
        id: NodeId,
        keys: BTreeSet<String>,
        resources: BTreeSet<String>,
    ) -> Result<(), Refusal> {
        let held = Held { keys, resources };
        let key = held_key(id);
        let known = self.records.local(&key).and_then(|record| decode::<Held>(&key, &record).ok());
        if known.as_ref() == Some(&held) {
            return Ok(());
        }
        let puts = vec![(key, encode(&held)?)];
        self.commit(Transaction { puts, ..Transaction::default() }).await.map(drop)
    }

    /// The names of control-plane nodes that the next key has not reached.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn lacking_encryption(&self, state: &EncryptionState) -> Result<Vec<String>, Refusal> {
        let nodes = self.nodes().await?;
        let mut held = BTreeMap::new();
        for node in &nodes {
            if let Some((keys, _)) = self.get::<Held>(&held_key(node.id)).await? {
                held.insert(node.id, keys);
            }
        }
        Ok(state.lacking(&nodes, &held))
    }
}
