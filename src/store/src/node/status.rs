//! What others may know of the group, published when it changes.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Node, TICK};
use crate::core::Placement;
use crate::error::Error;
use crate::status::{Group, MemberStatus, Role, Status};

/// What changes seldom and must be seen at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct StatusKey {
    term: u64,
    leader: Option<u64>,
    leads: bool,
    members: u64,
    configured: u64,
    removed: bool,
    failed: bool,
    alone: bool,
}

/// Health and lag are looked at this often, as long as there are others.
const EVERY: Duration = Duration::from_millis(500);

impl Node {
    pub(super) fn publish_status(&mut self) {
        let key = StatusKey {
            term: self.core.term(),
            leader: self.core.leader(),
            leads: self.core.leads_for_sure(),
            members: self.core.state.members_version(),
            configured: self.core.configured_version(),
            removed: self.removed,
            failed: self.failed.is_some(),
            alone: self.core.is_alone(),
        };
        let changed = self.status_key != Some(key);
        if !changed && (key.alone || self.status_at.elapsed() < EVERY) {
            return;
        }
        self.status_key = Some(key);
        self.status_at = Instant::now();
        if let Some(transport) = &self.transport {
            transport.set_leader(key.leader);
        }
        if changed {
            self.publish_group();
        }
        let status = self.status();
        self.shared.status.send_if_modified(|known| {
            let differs = *known != status;
            if differs {
                *known = status;
            }
            differs
        });
    }

    fn publish_group(&mut self) {
        let config = &self.core.state.meta.members;
        let configured: Vec<u64> = [&config.voters, &config.learners, &config.voters_outgoing]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let names = self.core.state.members().iter().map(|(id, member)| (*id, member.name.clone())).collect();
        *self.shared.group.write() = Group { leads: self.core.leads_for_sure(), names, configured };
        let core = &self.core;
        if let Some(transport) = &mut self.transport {
            let own = core.state.members().get(&core.id());
            transport.set_address(own.map(|member| member.address.as_str()));
            self.heard.retain(|id, _| !core.state.members().contains_key(id));
            // One that was removed is written to until the group does without it, or it would not hear of that.
            self.former.extend(core.state.members().iter().map(|(id, member)| (*id, member.address.clone())));
            self.former.retain(|id, _| core.knows(*id));
            // Before the records have arrived nothing is known about who is gone.
            transport.retain(|id| core.state.members().is_empty() || core.knows(id));
        }
    }

    /// The leader knows itself; others ask it.
    pub(super) fn ask(&mut self, reply: oneshot::Sender<Result<Status, Error>>) {
        let status = self.status();
        let leader = self.core.leader();
        let answer = if leader == Some(self.core.id()) {
            Ok(status)
        } else {
            let address = leader.and_then(|id| self.core.state.members().get(&id));
            if let (Some(leader), Some(transport)) = (address, &mut self.transport) {
                return transport.ask(leader.id, &leader.address, status, reply);
            }
            Err(Error::Unavailable("there is no leader at the moment".into()))
        };
        let _ = reply.send(answer);
    }

    pub(super) fn status(&self) -> Status {
        let core = &self.core;
        let leader = core.leader();
        let members: Vec<MemberStatus> =
            core.placements().into_iter().map(|placement| self.member_status(&placement, leader)).collect();
        let voters = members.iter().filter(|member| member.role == Role::Voter).count();
        let changing = !core.state.meta.members.voters_outgoing.is_empty();
        Status {
            id: core.id(),
            leader,
            term: core.term(),
            high_availability: voters >= 3 && leader.is_some() && !changing,
            changing,
            members,
            waits: core.waits().map(str::to_owned),
            removed: self.removed,
        }
    }

    fn member_status(&self, placement: &Placement, leader: Option<u64>) -> MemberStatus {
        let record = self.core.state.members().get(&placement.id);
        let stays = record.is_some() && !self.core.state.leaving().contains(&placement.id);
        let role = match (stays || self.core.state.members().is_empty(), placement) {
            (false, _) => Role::Leaving,
            (_, Placement { voter: true, .. }) => Role::Voter,
            // A follower does not know how far others are.
            (_, Placement { learner: true, health, .. }) if health.is_none_or(|h| h.caught_up) => {
                Role::Standby
            }
            _ => Role::Joining,
        };
        MemberStatus {
            id: placement.id,
            member: record.cloned(),
            role,
            votes: placement.voter,
            is_leader: leader == Some(placement.id),
            healthy: placement.health.map(|health| health.healthy),
            silent_for: placement.silent.map(|ticks| TICK * u32::try_from(ticks).unwrap_or(u32::MAX)),
            lag: placement.lag,
        }
    }
}
