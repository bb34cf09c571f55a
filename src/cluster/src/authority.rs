//! How the cluster's authority is replaced by another one, without anything being interrupted. Pure: what a
//! node has to do next follows from the cluster's record and from what the node has; whether the cluster may
//! go on follows from what all nodes have.
//!
//! 1. Trusting: every node trusts the old authority and the new one; control-plane nodes get the new key.
//! 2. Issuing: all certificates are issued again by the new one. Servers show along with theirs a certificate
//!    of the new authority that the old one signed, so that those who know only the old one go on.
//! 3. Finishing, when the operator says so: the old one is trusted no more.
//!
//! Stages 1 and 3 end by themselves. Stage 2 does not: who else holds the old authority (kubeconfigs, pods
//! that read it at their start) is nothing that the cluster can see.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::trust::authority_hash;
use crate::{NodeId, NodeRecord, Refusal, Role};

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthorityStage {
    /// Every node is to trust both.
    Trusting,
    /// Every certificate is to be the new one's.
    Issuing,
    /// Every node is to forget the old one.
    Finishing,
    /// There is one authority.
    Settled,
}

/// The cluster's record. Certificates are public; keys are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityState {
    /// How far it is.
    pub stage: AuthorityStage,
    /// The authority that goes, PEM. Empty when there is one only.
    pub old: String,
    /// The one that stays, PEM.
    pub new: String,
    /// The new one's key with the old one's signature, PEM.
    pub cross: String,
    /// When this stage began.
    pub since: Timestamp,
}

/// What a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityReport {
    /// The hashes of the authorities it trusts.
    pub trusts: BTreeSet<String>,
    /// Of those whose keys it has; a worker has none.
    pub keys: BTreeSet<String>,
    /// Of the one it signs with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signs: Option<String>,
    /// Of those that issued its certificates.
    pub issuers: BTreeSet<String>,
}

/// What a node does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityStep {
    /// Trust both.
    Trust,
    /// Get the new key from another control-plane node.
    GetKey,
    /// Sign with the new key.
    Sign,
    /// Replace its certificates by the new authority's.
    Reissue,
    /// Trust the new one alone.
    Forget,
}

impl AuthorityState {
    /// The hash of the authority that goes; `None`: there is one only.
    pub fn old_hash(&self) -> Option<String> {
        Some(authority_hash(&self.old)).filter(|hash| !hash.is_empty())
    }

    /// The hash of the one that stays.
    pub fn new_hash(&self) -> String {
        authority_hash(&self.new)
    }

    /// What a node that has `own` does next; `None`: all of this stage is done there.
    pub fn next_step(&self, role: Role, own: &AuthorityReport) -> Option<AuthorityStep> {
        let (new, old) = (self.new_hash(), self.old_hash());
        let finishing = self.stage >= AuthorityStage::Finishing;
        let signs = role == Role::ControlPlane;
        if !own.trusts.contains(&new) || (!finishing && old.is_some_and(|old| !own.trusts.contains(&old))) {
            return Some(AuthorityStep::Trust);
        }
        if signs && !own.keys.contains(&new) {
            return Some(AuthorityStep::GetKey);
        }
        if self.stage >= AuthorityStage::Issuing {
            if signs && own.signs.as_ref() != Some(&new) {
                return Some(AuthorityStep::Sign);
            }
            if own.issuers.iter().any(|issuer| *issuer != new) {
                return Some(AuthorityStep::Reissue);
            }
        }
        (finishing && own.trusts.len() > 1).then_some(AuthorityStep::Forget)
    }

    /// The names of the nodes that have not done what this stage asks for.
    pub(crate) fn lacking(
        &self,
        nodes: &[NodeRecord],
        reports: &BTreeMap<NodeId, AuthorityReport>,
    ) -> Vec<String> {
        let done = |node: &&NodeRecord| {
            reports.get(&node.id).is_some_and(|report| self.next_step(node.role, report).is_none())
        };
        nodes.iter().filter(|node| !done(node)).map(|node| node.name.clone()).collect()
    }

    /// The stage that follows by itself when no node lacks anything.
    pub fn advanced(&self, now: Timestamp) -> Option<Self> {
        let next = |stage| Some(Self { stage, since: now, ..self.clone() });
        match self.stage {
            AuthorityStage::Trusting => next(AuthorityStage::Issuing),
            AuthorityStage::Finishing => Some(Self::settled(self.new.clone(), now)),
            AuthorityStage::Issuing | AuthorityStage::Settled => None,
        }
    }

    /// Nothing is under way, and this is the authority.
    pub(crate) fn settled(authority: String, now: Timestamp) -> Self {
        Self {
            stage: AuthorityStage::Settled,
            old: String::new(),
            new: authority,
            cross: String::new(),
            since: now,
        }
    }

    /// The operator wants the old one gone. `None`: it is going or gone.
    ///
    /// # Errors
    /// [`Refusal::Unsafe`] while it is needed.
    pub fn finished(
        before: Option<&Self>,
        lacking: &[String],
        now: Timestamp,
    ) -> Result<Option<Self>, Refusal> {
        let unsafe_ = |message: String| Err(Refusal::Unsafe { message });
        match before.map(|before| (before.stage, before)) {
            None | Some((AuthorityStage::Finishing | AuthorityStage::Settled, _)) => Ok(None),
            Some((AuthorityStage::Trusting, _)) => unsafe_(format!(
                "not every node trusts the new authority yet ({}); wait for them, or take nodes that are gone off \
                 the cluster with kedge remove-node",
                names(lacking)
            )),
            Some((AuthorityStage::Issuing, _)) if !lacking.is_empty() => unsafe_(format!(
                "certificates of the old authority are in use on {}; wait for them, or take nodes that are gone off \
                 the cluster with kedge remove-node",
                names(lacking)
            )),
            Some((AuthorityStage::Issuing, before)) => {
                Ok(Some(Self { stage: AuthorityStage::Finishing, since: now, ..before.clone() }))
            }
        }
    }

    /// The operator does not want it after all. `None`: nothing is under way.
    ///
    /// # Errors
    /// [`Refusal::Unsafe`] when the new one has issued certificates.
    pub fn aborted(before: Option<&Self>, now: Timestamp) -> Result<Option<Self>, Refusal> {
        match before.map(|before| (before.stage, before)) {
            None | Some((AuthorityStage::Settled, _)) => Ok(None),
            Some((AuthorityStage::Trusting, before)) => Ok(Some(Self::settled(before.old.clone(), now))),
            Some(_) => Err(Refusal::Unsafe {
                message: "the new authority has issued certificates already; go on, and replace it again if need be"
                    .into(),
            }),
        }
    }
}

fn names(nodes: &[String]) -> String {
    if nodes.is_empty() { "they are about to".to_owned() } else { nodes.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostPort;
    use crate::issue::authority_params;

    fn authority(name: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        authority_params(name, 1_800_000_000).unwrap().self_signed(&key).unwrap().pem()
    }

    fn state() -> AuthorityState {
        AuthorityState {
            stage: AuthorityStage::Trusting,
            old: authority("old"),
            new: authority("new"),
            cross: String::new(),
            since: Timestamp::UNIX_EPOCH,
        }
    }

    fn node(id: u64, role: Role) -> NodeRecord {
        NodeRecord {
            id: NodeId::new(id),
            name: format!("n{id}"),
            role,
            address: HostPort { host: format!("192.0.2.{id}"), port: 25000 },
            addresses: Vec::new(),
            failure_domain: None,
            joined: Timestamp::UNIX_EPOCH,
            token: None,
        }
    }

    /// Does on a model of a node what the step says.
    fn act(step: AuthorityStep, state: &AuthorityState, own: &mut AuthorityReport) {
        let new = state.new_hash();
        match step {
            AuthorityStep::Trust => own.trusts.extend([Some(new), state.old_hash()].into_iter().flatten()),
            AuthorityStep::GetKey => own.keys = own.keys.iter().cloned().chain([new]).collect(),
            AuthorityStep::Sign => own.signs = Some(new),
            AuthorityStep::Reissue => own.issuers = [new].into(),
            AuthorityStep::Forget => {
                own.trusts = [new.clone()].into();
                own.keys = own.keys.iter().filter(|key| **key == new).cloned().collect();
            }
        }
    }

    fn before(role: Role, state: &AuthorityState) -> AuthorityReport {
        let old = state.old_hash().unwrap();
        let cp = role == Role::ControlPlane;
        AuthorityReport {
            trusts: [old.clone()].into(),
            keys: cp.then(|| old.clone()).into_iter().collect(),
            signs: cp.then(|| old.clone()),
            issuers: [old].into(),
        }
    }

    fn steps(state: &AuthorityState, role: Role, own: &mut AuthorityReport) -> Vec<AuthorityStep> {
        let mut done = Vec::new();
        while let Some(step) = state.next_step(role, own) {
            assert!(done.len() < 10, "it does not end: {done:?}");
            act(step, state, own);
            done.push(step);
        }
        done
    }

    #[test]
    fn both_kinds_of_nodes_go_through_all_stages() {
        use AuthorityStep::{Forget, GetKey, Reissue, Sign, Trust};
        for (role, stages) in [
            (Role::ControlPlane, [vec![Trust, GetKey], vec![Sign, Reissue], vec![Forget]]),
            (Role::Worker, [vec![Trust], vec![Reissue], vec![Forget]]),
        ] {
            let mut state = state();
            let mut own = before(role, &state);
            for (index, expected) in stages.into_iter().enumerate() {
                assert_eq!(steps(&state, role, &mut own), expected, "{role} {:?}", state.stage);
                state = match index {
                    1 => AuthorityState::finished(Some(&state), &[], Timestamp::UNIX_EPOCH).unwrap().unwrap(),
                    _ => state.advanced(Timestamp::UNIX_EPOCH).unwrap(),
                };
            }
            assert_eq!((state.stage, state.old_hash()), (AuthorityStage::Settled, None));
            assert_eq!(steps(&state, role, &mut own), []);
        }
    }

    #[test]
    fn who_comes_late_catches_up_in_a_safe_order() {
        use AuthorityStep::{Forget, GetKey, Reissue, Sign, Trust};
        let mut state = state();
        state.stage = AuthorityStage::Finishing;
        for role in [Role::ControlPlane, Role::Worker] {
            let mut own = before(role, &state);
            let expected = match role {
                Role::ControlPlane => vec![Trust, GetKey, Sign, Reissue, Forget],
                Role::Worker => vec![Trust, Reissue, Forget],
            };
            assert_eq!(steps(&state, role, &mut own), expected);
        }
    }

    #[test]
    fn nothing_goes_on_before_every_node_is_that_far() {
        let nodes = [node(1, Role::ControlPlane), node(2, Role::ControlPlane), node(3, Role::Worker)];
        let mut state = state();
        let mut reports = BTreeMap::new();
        assert_eq!(state.lacking(&nodes, &reports), ["n1", "n2", "n3"]);
        for node in &nodes {
            let mut own = before(node.role, &state);
            steps(&state, node.role, &mut own);
            reports.insert(node.id, own);
        }
        assert!(state.lacking(&nodes, &reports).is_empty());
        let refused = AuthorityState::finished(Some(&state), &["n2".to_owned()], Timestamp::UNIX_EPOCH);
        assert!(refused.unwrap_err().to_string().contains("n2"));

        state = state.advanced(Timestamp::UNIX_EPOCH).unwrap();
        assert!(state.advanced(Timestamp::UNIX_EPOCH).is_none(), "only the operator ends this one");
        assert_eq!(state.lacking(&nodes, &reports), ["n1", "n2", "n3"]);
        steps(&state, Role::Worker, reports.get_mut(&NodeId::new(3)).unwrap());
        assert_eq!(state.lacking(&nodes, &reports), ["n1", "n2"]);
        assert!(AuthorityState::finished(Some(&state), &["n1".to_owned()], Timestamp::UNIX_EPOCH).is_err());
        assert!(AuthorityState::aborted(Some(&state), Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn given_up_before_anything_was_issued() {
        let state = state();
        let mut own = before(Role::ControlPlane, &state);
        steps(&state, Role::ControlPlane, &mut own);
        let aborted = AuthorityState::aborted(Some(&state), Timestamp::UNIX_EPOCH).unwrap().unwrap();
        assert_eq!(aborted.new_hash(), state.old_hash().unwrap());
        assert_eq!(steps(&aborted, Role::ControlPlane, &mut own), [AuthorityStep::Forget]);
        assert_eq!(own, before(Role::ControlPlane, &state));
        for none in [None, Some(&aborted)] {
            assert_eq!(AuthorityState::aborted(none, Timestamp::UNIX_EPOCH).unwrap(), None);
            assert_eq!(AuthorityState::finished(none, &[], Timestamp::UNIX_EPOCH).unwrap(), None);
        }
    }
}
