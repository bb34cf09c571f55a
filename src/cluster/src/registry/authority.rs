//! What the book says of the authority's replacement: one record for the cluster, and what each node has.

use super::Registry;
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
        self.get_here(STATE)
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
        self.replace(STATE, state, revision).await
    }

    /// Writes down what a node has; nothing when that is known.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn report_authority(&self, id: NodeId, report: &AuthorityReport) -> Result<(), Refusal> {
        self.report(report_key(id), report).await
    }

    /// The names of the nodes that have not done what the stage asks for.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn lacking_authority(&self, state: &AuthorityState) -> Result<Vec<String>, Refusal> {
        let (nodes, reports) = self.reports(report_key).await?;
        Ok(state.lacking(&nodes, &reports))
    }
}
