use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use raft::eraftpb::ConfState;

use super::*;

const GOOD: Health = Health { healthy: true, dead: false, caught_up: true };
const BEHIND: Health = Health { healthy: true, dead: false, caught_up: false };
const SILENT: Health = Health { healthy: false, dead: false, caught_up: true };
const DEAD: Health = Health { healthy: false, dead: true, caught_up: false };

fn member(id: u64, domain: Option<&str>) -> (u64, Member) {
    let failure_domain = domain.map(str::to_owned);
    (id, Member { id, name: format!("n{id}"), address: format!("h{id}:1"), failure_domain })
}

fn members(ids: &[u64]) -> Members {
    ids.iter().map(|&id| member(id, None)).collect()
}

fn config(voters: &[u64], learners: &[u64]) -> ConfState {
    ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..ConfState::default() }
}

/// Everybody is well but for these.
fn health(ids: &[u64], but: &[(u64, Health)]) -> BTreeMap<u64, Health> {
    let mut all: BTreeMap<u64, Health> = ids.iter().map(|&id| (id, GOOD)).collect();
    all.extend(but.iter().copied());
    all
}

fn change(voters: &[u64], learners: &[u64]) -> Step {
    Step::Change { voters: voters.iter().copied().collect(), learners: learners.iter().copied().collect() }
}

#[test]
fn the_next_step() {
    struct Case {
        what: &'static str,
        members: &'static [u64],
        voters: &'static [u64],
        learners: &'static [u64],
        but: &'static [(u64, Health)],
        leader: u64,
        step: Step,
    }
    let case = |what, members, voters, learners, but, leader, step| Case {
        what,
        members,
        voters,
        learners,
        but,
        leader,
        step,
    };
    let all: &[u64] = &[1, 2, 3, 4, 5, 6, 7];
    let table = [
        case("no records yet", &[], &[1], &[], &[], 1, Step::Nothing),
        case("alone", &[1], &[1], &[], &[], 1, Step::Nothing),
        case("a second one is let in", &[1, 2], &[1], &[], &[], 1, change(&[1], &[2])),
        case("and does not vote", &[1, 2], &[1], &[2], &[], 1, Step::Nothing),
        case("a third one is let in", &[1, 2, 3], &[1], &[2], &[(3, DEAD)], 1, change(&[1], &[2, 3])),
        case("both vote at once", &[1, 2, 3], &[1], &[2, 3], &[], 1, change(&[1, 2, 3], &[])),
        case("two would be worse than one", &[1, 2, 3], &[1], &[2, 3], &[(3, BEHIND)], 1, Step::Nothing),
        case("four: three vote", &[1, 2, 3, 4], &[1, 2, 3], &[4], &[], 1, Step::Nothing),
        case("five", &[1, 2, 3, 4, 5], &[1, 2, 3], &[4, 5], &[], 1, change(&[1, 2, 3, 4, 5], &[])),
        case("no four voters", &[1, 2, 3, 4, 5], &[1, 2, 3], &[4, 5], &[(5, BEHIND)], 1, Step::Nothing),
        case("six: five vote", all, &[1, 2, 3, 4, 5], &[6, 7], &[], 1, Step::Nothing),
        case("five to four", &[1, 2, 3, 4], &[1, 2, 3, 4, 5], &[], &[], 1, change(&[1, 2, 3], &[4])),
        case("the leader stays", &[1, 2, 3, 4], &[1, 2, 3, 4, 5], &[], &[], 4, change(&[1, 2, 4], &[3])),
        case("back to one", &[1, 2], &[1, 2, 3], &[], &[], 2, change(&[2], &[1])),
        case("with the third one dead", &[1, 2], &[1, 2, 3], &[], &[(3, DEAD)], 1, change(&[1], &[2])),
        case(
            "a silent voter is left alone",
            &[1, 2, 3, 4],
            &[1, 2, 3],
            &[4],
            &[(2, SILENT)],
            1,
            Step::Nothing,
        ),
        case(
            "a dead one is replaced",
            &[1, 2, 3, 4],
            &[1, 2, 3],
            &[4],
            &[(2, DEAD)],
            1,
            change(&[1, 3, 4], &[2]),
        ),
        case(
            "but not by one that lags",
            &[1, 2, 3, 4],
            &[1, 2, 3],
            &[4],
            &[(2, DEAD), (4, BEHIND)],
            1,
            Step::Nothing,
        ),
        case("nor by nobody", &[1, 2, 3], &[1, 2, 3], &[], &[(2, DEAD)], 1, Step::Nothing),
        case("a voter is removed", &[1, 2, 3], &[1, 2, 3, 4], &[], &[], 1, change(&[1, 2, 3], &[])),
        case("and replaced", &[1, 2, 4], &[1, 2, 3], &[4], &[], 1, change(&[1, 2, 4], &[])),
        case("a standby is removed", &[1, 2, 3], &[1, 2, 3], &[4], &[], 1, change(&[1, 2, 3], &[])),
        case("the leader is removed", &[1, 2], &[1, 2, 3], &[], &[(1, SILENT)], 3, Step::Transfer(2)),
        case("its only heir must vote first", &[2], &[1], &[2], &[], 1, change(&[1, 2], &[])),
        case("or be let in", &[2], &[1], &[], &[(2, DEAD)], 1, change(&[1], &[2])),
    ];
    for Case { what, members: ids, voters, learners, but, leader, step } in table {
        let found =
            plan(&members(ids), &BTreeSet::new(), &config(voters, learners), &health(all, but), leader);
        assert_eq!(found, step, "{what}");
    }
}

#[test]
fn what_would_cost_the_majority_is_refused_with_its_reason() {
    type Row = (&'static [u64], &'static [u64], &'static [u64], &'static [(u64, Health)], &'static str);
    let table: &[Row] = &[
        // Two of three are lost: nothing can be committed, so nothing is begun.
        (&[1, 2, 3, 4], &[1, 2, 3], &[4], &[(2, DEAD), (3, DEAD)], "only 1 of the 3 present ones"),
        (&[1, 2], &[1, 2, 3], &[], &[(2, DEAD), (3, DEAD)], "only 1 of the 3 present ones"),
        // Nobody is there who could take over.
        (&[2, 3], &[1], &[2, 3], &[(2, BEHIND), (3, DEAD)], "no other member is reachable and up to date"),
    ];
    for (ids, voters, learners, but, why) in table {
        let found =
            plan(&members(ids), &BTreeSet::new(), &config(voters, learners), &health(&[1, 2, 3, 4], but), 1);
        assert!(matches!(&found, Step::Wait(text) if text.contains(why)), "{found:?}");
    }
}

#[test]
fn one_that_is_about_to_go_gets_no_vote_and_hears_of_everything() {
    type Row =
        (&'static [u64], &'static [u64], &'static [u64], &'static [u64], &'static [(u64, Health)], u64, Step);
    let table: [Row; 8] = [
        (&[1, 2, 3], &[3], &[1, 2, 3], &[], &[], 1, change(&[1], &[2, 3])),
        (&[1, 2, 3], &[3], &[1], &[2, 3], &[], 1, Step::Nothing),
        (&[1, 2, 3, 4], &[3], &[1, 2, 3], &[4], &[], 1, change(&[1, 2, 4], &[3])),
        (&[1, 2, 3], &[3], &[1, 2, 3], &[], &[(3, DEAD)], 1, change(&[1], &[2, 3])),
        (&[1, 2, 3], &[1], &[1, 2, 3], &[], &[], 1, Step::Transfer(2)),
        (&[1, 2], &[1], &[1], &[2], &[], 1, change(&[1, 2], &[])),
        (&[1, 2], &[1], &[1, 2], &[], &[], 2, change(&[2], &[1])),
        // Its word was taken back.
        (&[1, 2, 3], &[], &[1], &[2, 3], &[], 1, change(&[1, 2, 3], &[])),
    ];
    for (ids, leaving, voters, learners, but, leader, step) in table {
        let leaving = leaving.iter().copied().collect();
        let found = plan(&members(ids), &leaving, &config(voters, learners), &health(ids, but), leader);
        assert_eq!(found, step, "{ids:?} without {leaving:?}");
    }
    let all: BTreeSet<u64> = [1, 2].into();
    let found = plan(&members(&[1, 2]), &all, &config(&[1], &[2]), &health(&[1, 2], &[]), 1);
    assert!(matches!(found, Step::Wait(_)), "{found:?}");
}

#[test]
fn an_unfinished_change_is_finished_first() {
    let joint = ConfState { voters_outgoing: vec![1], ..config(&[1, 2, 3], &[]) };
    assert_eq!(plan(&members(&[1]), &BTreeSet::new(), &joint, &health(&[1, 2, 3], &[]), 1), Step::LeaveJoint);
}

#[test]
fn voters_are_spread_over_failure_domains() {
    let in_domains = |domains: &[(u64, &str)]| -> Members {
        domains.iter().map(|&(id, domain)| member(id, Some(domain))).collect()
    };
    let all = health(&[1, 2, 3, 4, 5], &[]);
    // Of the standbys the one from elsewhere is taken.
    let four = in_domains(&[(1, "a"), (2, "a"), (3, "b"), (4, "c")]);
    assert_eq!(plan(&four, &BTreeSet::new(), &config(&[1], &[2, 3, 4]), &all, 1), change(&[1, 3, 4], &[2]));
    // A better spread is worth a change, once.
    assert_eq!(plan(&four, &BTreeSet::new(), &config(&[1, 2, 3], &[4]), &all, 1), change(&[1, 3, 4], &[2]));
    assert_eq!(plan(&four, &BTreeSet::new(), &config(&[1, 3, 4], &[2]), &all, 1), Step::Nothing);
    // The leader is never moved for that.
    assert_eq!(plan(&four, &BTreeSet::new(), &config(&[1, 2, 3], &[4]), &all, 2), change(&[2, 3, 4], &[1]));
    // Nor anybody while a voter is silent.
    let silent = health(&[1, 2, 3, 4], &[(3, SILENT)]);
    assert_eq!(plan(&four, &BTreeSet::new(), &config(&[1, 2, 3], &[4]), &silent, 1), Step::Nothing);
}

#[test]
fn records_come_back_as_they_were() {
    let (id, member) = member(0xfeed, Some("rack 1"));
    assert_eq!(decode(&encode(&member)), Some(member));
    assert_eq!(parse_key(&key(id)), Some(id));
    assert_eq!(parse_key(&name_key("0000000000000001")), None);
    assert_eq!((parse_leaving(&leaving_key(id)), parse_leaving(&key(id))), (Some(id), None));
    assert_eq!(parse_key(&leaving_key(id)), None);
    assert!([key(id), name_key("n"), address_key("a"), leaving_key(id)].iter().all(|key| is_reserved(key)));
    assert!(!is_reserved("configmaps/kedge.member/x"));
    assert_eq!(decode(b"noise"), None);
    assert_ne!(Member::new_id(), Member::new_id());
}

/// A group in any condition.
fn situation() -> impl Strategy<Value = (Members, ConfState, BTreeMap<u64, Health>, u64)> {
    let one = (
        0..4u8,
        0..3u8,
        prop_oneof![3 => Just(GOOD), 1 => Just(BEHIND), 1 => Just(SILENT), 1 => Just(DEAD)],
        any::<bool>(),
    );
    (proptest::collection::vec(one, 1..9), any::<prop::sample::Index>()).prop_map(|(nodes, leader)| {
        let (mut members, mut config, mut health) = (Members::new(), ConfState::default(), BTreeMap::new());
        for (i, (domain, place, well, recorded)) in nodes.iter().enumerate() {
            let id = i as u64 + 1;
            let domain = [None, Some("a"), Some("b"), Some("c")][usize::from(*domain)];
            if *recorded {
                members.insert(id, member(id, domain).1);
            }
            match place {
                0 => config.voters.push(id),
                1 => config.learners.push(id),
                _ => {}
            }
            health.insert(id, *well);
        }
        if config.voters.is_empty() {
            config.voters.push(1);
            config.learners.retain(|&id| id != 1);
        }
        let leader = config.voters[leader.index(config.voters.len())];
        (members, config, health, leader)
    })
}

fn apply(config: &mut ConfState, step: &Step) {
    if let Step::Change { voters, learners } = step {
        config.voters = voters.iter().copied().collect();
        config.learners = learners.iter().copied().collect();
    }
}

fn healthy_majority(voters: &[u64], health: &BTreeMap<u64, Health>, leader: u64) -> bool {
    let well = voters.iter().filter(|id| **id == leader || health.get(id).is_some_and(|h| h.healthy)).count();
    well > voters.len() / 2
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_change_never_costs_the_majority((members, config, health, leader) in situation()) {
        if let Step::Change { voters, learners } = plan(&members, &BTreeSet::new(), &config, &health, leader) {
            let new: Vec<u64> = voters.iter().copied().collect();
            prop_assert!(voters.contains(&leader), "the leader stays");
            prop_assert!(voters.is_disjoint(&learners));
            let old: BTreeSet<u64> = config.voters.iter().copied().collect();
            if voters != old {
                prop_assert!(healthy_majority(&config.voters, &health, leader), "the change can be committed");
                prop_assert!(healthy_majority(&new, &health, leader), "and the new group can go on");
            }
            for id in voters.difference(&old) {
                let h = health[id];
                prop_assert!(h.healthy && h.caught_up && members.contains_key(id), "{} is not ready", id);
            }
            let others = voters.iter().filter(|id| members.contains_key(id)).count();
            // A leader that is to go may need one more for a while.
            let most = wanted_voters(members.len()).max(old.len()) + usize::from(!members.contains_key(&leader));
            prop_assert!(others <= most);
        }
    }

    #[test]
    fn it_comes_to_rest((members, mut config, health, mut leader) in situation()) {
        for _ in 0..20 {
            match plan(&members, &BTreeSet::new(), &config, &health, leader) {
                Step::Nothing | Step::Wait(_) => return Ok(()),
                Step::Transfer(to) => {
                    prop_assert!(config.voters.contains(&to) && to != leader);
                    leader = to;
                }
                step => apply(&mut config, &step),
            }
        }
        prop_assert!(false, "still changing: {:?}", config);
    }

    #[test]
    fn when_all_are_well_the_group_is_what_was_asked_for((members, mut config, _, mut leader) in situation()) {
        prop_assume!(!members.is_empty());
        let health: BTreeMap<u64, Health> = (1..10).map(|id| (id, GOOD)).collect();
        for _ in 0..20 {
            match plan(&members, &BTreeSet::new(), &config, &health, leader) {
                Step::Nothing => break,
                Step::Transfer(to) => leader = to,
                step => apply(&mut config, &step),
            }
        }
        prop_assert_eq!(config.voters.len(), wanted_voters(members.len()));
        let everybody: BTreeSet<u64> = config.voters.iter().chain(&config.learners).copied().collect();
        prop_assert_eq!(everybody, members.keys().copied().collect::<BTreeSet<u64>>());
    }
}
