//! What the book says of encryption at rest: one record for the cluster, and what each control-plane node
//! has.

use std::collections::BTreeSet;

use super::Registry;
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
        self.get_here(STATE)
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
        self.replace(STATE, state, revision).await
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
        self.report(held_key(id), &Held { keys, resources }).await
    }

    /// The names of control-plane nodes that the next key has not reached.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn lacking_encryption(&self, state: &EncryptionState) -> Result<Vec<String>, Refusal> {
        let (nodes, held) = self.reports(held_key).await?;
        Ok(state.lacking(&nodes, &held))
    }
}
