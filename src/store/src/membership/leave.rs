//! Whether a member may go. Pure.

use crate::error::MemberError;
use crate::status::{MemberStatus, Role, Status};

/// A copy that lacks no more entries than this is worth something.
const NEARLY_WHOLE: u64 = 1000;

/// Why the member `id` must stay, by the group as its leader sees it now: the others have to be able to commit
/// without it, by the old configuration and by the new one, and one of them must hold the data. Whoever goes
/// is counted on for nothing, though its vote may still take part in the change.
pub(crate) fn objection(status: &Status, id: u64) -> Option<MemberError> {
    let name = |member: &MemberStatus| {
        member.member.as_ref().map_or_else(|| format!("{:016x}", member.id), |record| record.name.clone())
    };
    let answers = |member: &MemberStatus| member.is_leader || member.healthy == Some(true);
    let list = |members: &[&MemberStatus]| members.iter().map(|m| name(m)).collect::<Vec<_>>().join(", ");
    let Some(going) = status.members.iter().find(|member| member.id == id) else {
        return Some(MemberError::Unknown(id));
    };
    let stay =
        |member: &&MemberStatus| member.id != id && member.member.is_some() && member.role != Role::Leaving;
    let others: Vec<&MemberStatus> = status.members.iter().filter(stay).collect();
    if others.is_empty() {
        return Some(MemberError::Last);
    }
    let silent = |members: &[&MemberStatus]| -> (String, &'static str) {
        let silent: Vec<&MemberStatus> = members.iter().copied().filter(|m| !answers(m)).collect();
        (list(&silent), if silent.len() == 1 { "does" } else { "do" })
    };
    let whole = |m: &&MemberStatus| answers(m) && m.lag.is_none_or(|lag| lag <= NEARLY_WHOLE);
    if !others.iter().any(whole) {
        let going = name(going);
        let (names, verb) = silent(&others);
        if names.is_empty() {
            return Some(MemberError::Unsafe(format!(
                "{going} has the only living copy of the cluster's data: {} is still being sent it; wait until \
                 kedge status shows it as standby",
                list(&others)
            )));
        }
        return Some(MemberError::Unsafe(format!(
            "{going} has the only living copy of the cluster's data, because {names} {verb} not answer: start it \
             (kedge start there) and wait until kedge status shows it healthy; or, if it is gone for good, take it \
             off first (kedge remove-node {names} --force) and keep this node"
        )));
    }
    let voters: Vec<&MemberStatus> = status.members.iter().filter(|member| member.votes).collect();
    // Two vote only while a leader is about to be replaced: that change needs both, and waits for them.
    if !going.votes || voters.len() < 3 {
        return None;
    }
    let needed = voters.len() / 2 + 1;
    let rest: Vec<&MemberStatus> = voters.iter().copied().filter(|member| member.id != id).collect();
    let living = rest.iter().filter(|member| answers(member)).count();
    if living >= needed {
        return None;
    }
    let (names, verb) = silent(&rest);
    Some(MemberError::Unsafe(format!(
        "{names} {verb} not answer, so without {} only {living} of {} voters of the datastore would be left and \
         {needed} are needed: bring {names} back (kedge start there), or, if it is gone for good, take it off \
         first: kedge remove-node {names} --force",
        name(going),
        voters.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Member;

    fn status(members: &[(u64, bool, bool, u64)]) -> Status {
        let member = |&(id, votes, healthy, lag): &(u64, bool, bool, u64)| MemberStatus {
            id,
            member: Some(Member {
                id,
                name: format!("n{id}"),
                address: format!("h{id}:1"),
                failure_domain: None,
            }),
            role: if votes { Role::Voter } else { Role::Standby },
            votes,
            is_leader: id == 1,
            healthy: Some(healthy),
            silent_for: None,
            lag: Some(lag),
        };
        Status { id: 1, leader: Some(1), members: members.iter().map(member).collect(), ..Status::default() }
    }

    #[test]
    fn who_may_go() {
        type Row = (&'static str, &'static [(u64, bool, bool, u64)], u64, Option<&'static [&'static str]>);
        let healthy: &[_] = &[(1, true, true, 0), (2, true, true, 0), (3, true, true, 0)];
        let one_dead: &[_] = &[(1, true, true, 0), (2, true, true, 0), (3, true, false, 9)];
        let pair: &[_] = &[(1, true, true, 0), (2, false, true, 0)];
        let pair_dead: &[_] = &[(1, true, true, 0), (2, false, false, 0)];
        let pair_behind: &[_] = &[(1, true, true, 0), (2, false, true, 5000)];
        let five: &[_] = &[
            (1, true, true, 0),
            (2, true, true, 0),
            (3, true, true, 0),
            (4, true, false, 0),
            (5, true, false, 0),
        ];
        let table: &[Row] = &[
            ("one of three", healthy, 3, None),
            ("the leader of three", healthy, 1, None),
            ("the dead one of three", one_dead, 3, None),
            (
                "another one than the dead",
                one_dead,
                2,
                Some(&["n3 does not answer", "kedge remove-node n3", "1 of 3"]),
            ),
            ("the leader beside a dead one", one_dead, 1, Some(&["n3 does not answer"])),
            ("a standby", pair, 2, None),
            ("the voter, whose standby takes over", pair, 1, None),
            (
                "the voter beside a dead standby",
                pair_dead,
                1,
                Some(&["only living copy", "n2 does not answer"]),
            ),
            ("the dead standby", pair_dead, 2, None),
            (
                "the voter whose standby has not all yet",
                pair_behind,
                1,
                Some(&["only living copy", "n2 is still"]),
            ),
            ("a dead one of two in five", five, 4, None),
            (
                "a living one beside two dead in five",
                five,
                3,
                Some(&["n4, n5 do not answer", "2 of 5", "3 are needed"]),
            ),
        ];
        for (what, members, id, expected) in table {
            match (objection(&status(members), *id), expected) {
                (None, None) => {}
                (Some(MemberError::Unsafe(text)), Some(words)) => {
                    for word in *words {
                        assert!(text.contains(word), "{what}: {word:?} is not in {text}");
                    }
                }
                (found, _) => panic!("{what}: {found:?}"),
            }
        }
        assert_eq!(objection(&status(&[(1, true, true, 0)]), 1), Some(MemberError::Last));
        assert_eq!(objection(&status(pair), 9), Some(MemberError::Unknown(9)));
        let mut both = status(pair);
        both.members[1].role = Role::Leaving;
        assert_eq!(objection(&both, 1), Some(MemberError::Last), "the other one is about to go too");
    }
}
