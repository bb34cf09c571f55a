//! What the book says of the authority's replacement: one record for the cluster, and what each node has.

use std::collections::BTreeMap;

use super::{Check, Registry, Transaction, decode, encode};
use crate::{AuthorityReport, AuthorityState, NodeId, Refusal};

const STATE: &str = "authority.cluster.kedge.internal//state";
const REPORTS: &str = "authority-nodes.cluster.kedge.internal//";

pub(super) fn report_key(id: NodeId) -> String {
    format!("{REPORTS}{id}")
}

impl Registry {
    /// The cluster's record and its revision; fresh. `None`: the authority was never replaced.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn authority(&self) -> Result<Option<(AuthorityState, u64)>, Refusal> {
        self.get(STATE).await
    }

    /// The same by this node's copy.
    ///
    /// # Errors
    /// When the record is damaged.
    pub fn authority_here(&self) -> Result<Option<(AuthorityState, u64)>, Refusal> {
        let record = self.records.local(STATE);
        record.map(|record| Ok((decode(STATE, &record)?, record.revision))).transpose()
    }

    /// Writes the record, if it is still at `revision` (`None`: if there is none). `false`: it is not.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn set_authority(
        &self,
        state: &AuthorityState,
        revision: Option<u64>,
    ) -> Result<bool, Refusal> {
        let check = match revision {
            Some(revision) => Check::At(STATE.into(), revision),
            None => Check::Absent(STATE.into()),
        };
        let puts = vec![(STATE.to_owned(), encode(state)?)];
        self.commit(Transaction { checks: vec![check], puts, ..Transaction::default() }).await
    }

    /// Writes down what a node has; nothing when that is known.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn report_authority(&self, id: NodeId, report: &AuthorityReport) -> Result<(), Refusal> {
        let key = report_key(id);
        let known = self.records.local(&key);
        let known = known.and_then(|record| decode::<AuthorityReport>(&key, &record).ok());
        if known.as_ref() == Some(report) {
            return Ok(());
        }
        let puts = vec![(key, encode(report)?)];
        self.commit(Transaction { puts, ..Transaction::default() }).await.map(drop)
    }

    /// The names of the nodes that have not done what the stage asks for.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn lacking_authority(&self, state: &AuthorityState) -> Result<Vec<String>, Refusal> {
        let nodes = self.nodes().await?;
        let mut reports = BTreeMap::new();
        for node in &nodes {
            if let Some((report, _)) = self.get::<AuthorityReport>(&report_key(node.id)).await? {
                reports.insert(node.id, report);
            }
        }
        Ok(state.lacking(&nodes, &reports))
    }
}
