//! The next change of the Raft configuration.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::ConfState;

use super::{Member, Members};

/// What the leader knows of another member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// It was heard of within the last election timeout or two.
    pub(crate) healthy: bool,
    /// It was not heard of for so long that another member takes its place.
    pub(crate) dead: bool,
    /// Its log is nearly the leader's.
    pub(crate) caught_up: bool,
}

impl Health {
    fn ready(self) -> bool {
        self.healthy && self.caught_up
    }
}

/// What to do next. One step at a time: the next one is planned when this one is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Configuration and records agree.
    Nothing,
    /// Enter, by joint consensus, the configuration with these voters and learners.
    Change { voters: BTreeSet<u64>, learners: BTreeSet<u64> },
    /// A leader died between entering a joint configuration and leaving it.
    LeaveJoint,
    /// The leader is to go: another one must lead first.
    Transfer(u64),
    /// Something is to be done, but not now; the text says what and why.
    Wait(String),
}

/// How many voters a group of `members` has: high availability begins with three.
pub(crate) fn wanted_voters(members: usize) -> usize {
    match members {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Plans the next step towards the configuration that the records ask for. `leader` is the member that
/// plans. The result never needs a majority that is not healthy now. Those that are `leaving` are let in as
/// learners and get no vote.
pub(crate) fn plan(
    members: &Members,
    leaving: &BTreeSet<u64>,
    config: &ConfState,
    health: &BTreeMap<u64, Health>,
    leader: u64,
) -> Step {
    if !config.voters_outgoing.is_empty() {
        return Step::LeaveJoint;
    }
    // A group that has no records yet is one node that has not announced itself.
    if members.is_empty() {
        return Step::Nothing;
    }
    let voters: BTreeSet<u64> = config.voters.iter().copied().collect();
    let learners: BTreeSet<u64> = config.learners.iter().copied().collect();
    let everybody = members;
    let staying: Members =
        members.iter().filter(|(id, _)| !leaving.contains(id)).map(|(id, m)| (*id, m.clone())).collect();
    let members = if leaving.is_empty() { everybody } else { &staying };
    let view = View { everybody, members, voters: &voters, learners: &learners, health, leader };
    let step = match view.choose() {
        Ok(chosen) => view.check(&chosen),
        Err(step) => step,
    };
    let unchanged = |step: &Step| matches!(step, Step::Change { voters: v, learners: l } if *v == voters && *l == learners);
    match step {
        // The rest need not wait for the voters: newcomers are let in as learners meanwhile.
        waits @ Step::Wait(_) => match view.check(&voters) {
            same if unchanged(&same) => waits,
            other => other,
        },
        same if unchanged(&same) => Step::Nothing,
        step => step,
    }
}

struct View<'a> {
    everybody: &'a Members,
    /// Without those that are about to be removed.
    members: &'a Members,
    voters: &'a BTreeSet<u64>,
    learners: &'a BTreeSet<u64>,
    health: &'a BTreeMap<u64, Health>,
    leader: u64,
}

impl View<'_> {
    fn health(&self, id: u64) -> Health {
        if id == self.leader {
            return Health { healthy: true, dead: false, caught_up: true };
        }
        self.health.get(&id).copied().unwrap_or_default()
    }

    fn domain(&self, id: u64) -> Option<&str> {
        self.members.get(&id).and_then(|member: &Member| member.failure_domain.as_deref())
    }

    /// How many of `ids` share the failure domain of `id`.
    fn crowd<'b>(&self, id: u64, ids: impl IntoIterator<Item = &'b u64>) -> usize {
        let Some(domain) = self.domain(id) else { return 0 };
        ids.into_iter().filter(|&&other| other != id && self.domain(other) == Some(domain)).count()
    }

    /// Takes candidates one by one, always the one whose failure domain has the fewest so far.
    fn spread(&self, chosen: &mut BTreeSet<u64>, mut candidates: BTreeSet<u64>, up_to: usize) {
        while chosen.len() < up_to
            && let Some(&next) = candidates.iter().min_by_key(|&&id| (self.crowd(id, chosen.iter()), id))
        {
            candidates.remove(&next);
            chosen.insert(next);
        }
    }

    /// The voters there should be.
    fn choose(&self) -> Result<BTreeSet<u64>, Step> {
        let known = |id: &u64| self.members.contains_key(id);
        let ready_standbys = || -> BTreeSet<u64> {
            let all = self.members.keys().filter(|id| !self.voters.contains(id));
            all.filter(|id| self.learners.contains(id) && self.health(**id).ready()).copied().collect()
        };
        if !known(&self.leader) {
            return Err(self.replace_leader(&ready_standbys()));
        }
        let want = wanted_voters(self.members.len());
        let mut chosen = BTreeSet::from([self.leader]);
        let others = || self.voters.iter().filter(|id| known(id) && **id != self.leader).copied();
        let alive: BTreeSet<u64> = others().filter(|&id| self.health(id).healthy).collect();
        let silent: BTreeSet<u64> = others().filter(|id| !alive.contains(id)).collect();
        let lost = |id: &u64| self.health(*id).dead;
        self.spread(&mut chosen, alive, want);
        self.spread(&mut chosen, silent.iter().filter(|id| !lost(id)).copied().collect(), want);
        let kept = chosen.len();
        self.spread(&mut chosen, ready_standbys(), want);
        // Without anyone to replace it a dead voter stays: removing it would win nothing.
        self.spread(&mut chosen, silent.iter().filter(|id| lost(id)).copied().collect(), want);
        // An even number of voters survives no more failures than one less.
        if chosen.len().is_multiple_of(2)
            && chosen.len() > kept
            && chosen.len() > self.voters.iter().filter(|id| known(id)).count()
            && let Some(&last) = chosen.iter().rfind(|id| !self.voters.contains(id))
        {
            chosen.remove(&last);
        }
        self.improve_spread(&mut chosen, &ready_standbys());
        Ok(chosen)
    }

    /// One voter whose failure domain has another voter gives way to a standby of a domain that has none.
    fn improve_spread(&self, chosen: &mut BTreeSet<u64>, standbys: &BTreeSet<u64>) {
        if chosen.len() < 3 || chosen.iter().any(|&id| !self.health(id).healthy) {
            return;
        }
        let fresh = standbys.iter().find(|&&id| {
            !chosen.contains(&id) && self.domain(id).is_some() && self.crowd(id, chosen.iter()) == 0
        });
        let crowded = chosen
            .iter()
            .filter(|&&id| id != self.leader && self.crowd(id, chosen.iter()) > 0)
            .max_by_key(|&&id| (self.crowd(id, chosen.iter()), id))
            .copied();
        if let (Some(&fresh), Some(crowded)) = (fresh, crowded) {
            chosen.remove(&crowded);
            chosen.insert(fresh);
        }
    }

    /// The leader's record is gone.
    fn replace_leader(&self, standbys: &BTreeSet<u64>) -> Step {
        let heirs = self.voters.iter().filter(|id| self.members.contains_key(id));
        if let Some(&heir) = heirs.into_iter().find(|id| self.health(**id).ready()) {
            return Step::Transfer(heir);
        }
        let Some(&standby) = standbys.first() else {
            return Step::Wait(
                "the leader was removed, but no other member is reachable and up to date".into(),
            );
        };
        let mut voters = self.voters.clone();
        voters.insert(standby);
        self.check(&voters)
    }

    /// The change to these voters, unless it could not be completed, or would leave a group that cannot
    /// commit.
    fn check(&self, voters: &BTreeSet<u64>) -> Step {
        if voters != self.voters {
            for (set, which) in [(self.voters, "present"), (voters, "new")] {
                let healthy = set.iter().filter(|id| self.health(**id).healthy).count();
                if healthy < majority(set.len()) {
                    return Step::Wait(format!(
                        "the voters cannot be changed: only {healthy} of the {} {which} ones are reachable",
                        set.len()
                    ));
                }
            }
        }
        let stays = |id: &&u64| !voters.contains(id);
        Step::Change {
            voters: voters.clone(),
            learners: self.everybody.keys().filter(stays).copied().collect(),
        }
    }
}
