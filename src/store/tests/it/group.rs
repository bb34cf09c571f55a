//! Several stores on real connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kedge_store::{Bootstrap, CommitError, Error, Member, MemberError, MemberStatus, Op, Role, Store, Txn};

use crate::model::{put, txn};
use crate::net::{Group, Node, voters};

/// Writes until it is acknowledged, as a client that may repeat its write would: on a busy machine leaders
/// change.
async fn write(node: &Node, key: &str, value: &[u8]) -> u64 {
    loop {
        match node.store.commit(txn(&[], vec![put(key, value)])).await {
            Ok(revision) => return revision,
            Err(CommitError::NoLeader | CommitError::Unavailable(_) | CommitError::Unknown(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn three(group: &Group) -> Vec<Node> {
    let first = group.first().await;
    write(&first, "before", b"1").await;
    let second = group.join(2, None, &first).await;
    let third = group.join(3, None, &first).await;
    let nodes = vec![first, second, third];
    for node in &nodes {
        node.wait_voters(&[1, 2, 3]).await;
        // Whoever has not heard yet that the change is over could not elect a leader without the old voter.
        node.wait("the end of the change", |s| !s.changing).await;
    }
    nodes
}

fn same(nodes: &[Node]) {
    for node in &nodes[1..] {
        assert_eq!(node.mirror.content(), nodes[0].mirror.content(), "node {}", node.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_are_highly_available_by_themselves() {
    let group = Group::new();
    let first = group.first().await;
    assert_eq!(first.store.members().len(), 1);
    let revision = write(&first, "before", b"1").await;
    let second = group.join(2, None, &first).await;
    let status = first.wait("a standby", |s| s.members.iter().any(|m| m.role == Role::Standby)).await;
    assert_eq!(voters(&status), [1], "two voters are no better than one");
    assert!(!status.high_availability);
    second.wait_revision(revision).await;
    let third = group.join(3, None, &second).await;
    let status = first.wait_voters(&[1, 2, 3]).await;
    assert!(status.high_availability);
    let nodes = [first, second, third];
    // Every node takes every write, and whoever wrote sees what it wrote.
    for (i, node) in nodes.iter().enumerate() {
        let revision = write(node, &format!("k{i}"), b"v").await;
        assert!(node.mirror.revision() >= revision);
        assert!(node.mirror.content().contains_key(&format!("k{i}")));
    }
    let newest = nodes[0].store.revision();
    for node in &nodes {
        assert!(node.store.read_barrier().await.unwrap() >= newest);
        assert!(node.mirror.content().keys().all(|key| !key.starts_with("kedge.")), "the store's own keys");
    }
    same(&nodes);
    for node in &nodes {
        // Everybody is well sooner or later.
        loop {
            let Ok(status) = node.store.leader_status().await else { continue };
            assert_eq!(status.id, node.id);
            let well = |member: &MemberStatus| {
                member.healthy == Some(true) && member.lag.is_some_and(|lag| lag < 100)
            };
            if status.members.iter().all(well) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for node in nodes {
        node.store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_comes_back() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    let mut took = Vec::new();
    for round in 0..5 {
        let leader = nodes[0].wait_leader().await;
        let at = nodes.iter().position(|node| node.id == leader).unwrap();
        write(&nodes[at], &format!("round{round}"), b"before").await;
        let killed = nodes.remove(at);
        let started = Instant::now();
        killed.kill().await;
        let revision = write(&nodes[0], &format!("round{round}"), b"after").await;
        took.push(started.elapsed());
        let back = group.open(leader, Bootstrap::New).await.unwrap();
        back.wait_revision(revision).await;
        nodes.push(back);
    }
    took.sort();
    println_figure("leader killed until the next acknowledged write, median of 5", took[2]);
    let revision = nodes[0].store.revision();
    for node in &nodes {
        node.wait_revision(revision).await;
    }
    same(&nodes);
}

#[expect(clippy::print_stdout, reason = "a figure for whoever runs the test")]
fn println_figure(what: &str, took: Duration) {
    println!("{what}: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_long_gets_a_snapshot() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    nodes[0].store.close().await.unwrap();
    let away = nodes.remove(0);
    away.kill().await;
    let leader =
        nodes[0].wait("another leader", |s| s.leader.is_some_and(|id| id != 1)).await.leader.unwrap();
    let leader = nodes.iter().find(|node| node.id == leader).unwrap();
    let value = vec![7; 50_000];
    for i in 0..200 {
        write(leader, &format!("large{}", i % 50), &value).await;
    }
    let revision = leader.store.revision();
    let back = group.open(1, Bootstrap::New).await.unwrap();
    back.wait_revision(revision).await;
    assert!(back.mirror.resets() > 1, "a snapshot replaced the state");
    nodes.push(back);
    for node in &nodes {
        node.wait_revision(revision).await;
    }
    same(&nodes);
    // What was installed survives a restart.
    let back = nodes.pop().unwrap();
    back.kill().await;
    let back = group.open(1, Bootstrap::New).await.unwrap();
    back.wait_revision(revision).await;
    nodes.push(back);
    same(&nodes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_three_the_group_steps_back_and_the_leader_may_be_the_one_that_goes() {
    let group = Group::new();
    let nodes = three(&group).await;
    let leader = nodes[1].wait_leader().await;
    let others: Vec<&Node> = nodes.iter().filter(|node| node.id != leader).collect();
    others[0].store.remove(leader, Txn::default()).await.unwrap();
    others[0].store.gone(leader).await;
    let status = others[0].wait("one voter", |s| s.members.len() == 2 && voters(s).len() == 1).await;
    assert_ne!(status.leader, Some(leader));
    let gone = nodes.iter().find(|node| node.id == leader).unwrap();
    gone.store.gone(leader).await;
    write(others[1], "after", b"1").await;
    let left = others[1].id;
    others[0].store.remove(left, Txn::default()).await.unwrap();
    others[0].wait("being alone", |s| s.members.len() == 1).await;
    write(others[0], "alone", b"1").await;
    let own = others[0].id;
    assert_eq!(others[0].store.remove(own, Txn::default()).await, Err(MemberError::Last));
    assert_eq!(others[0].store.remove(77, Txn::default()).await, Err(MemberError::Unknown(77)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_goes_whom_the_others_need() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    let leader = nodes[0].wait_leader().await;
    let leader = nodes.remove(nodes.iter().position(|node| node.id == leader).unwrap());
    let (other, dead) = (nodes.remove(0), nodes.remove(0));
    let (other_id, dead_id) = (other.id, dead.id);
    dead.kill().await;
    let silent =
        |id| move |s: &kedge_store::Status| s.members.iter().any(|m| m.id == id && m.healthy == Some(false));
    leader.wait("the silence of the dead one", silent(dead_id)).await;
    // Neither by the leader, nor by itself, nor the leader: each would leave one of three.
    for (asked, going) in [(&leader, other_id), (&other, other_id), (&leader, leader.id), (&other, leader.id)]
    {
        let refused = asked.store.remove(going, Txn::default()).await;
        let Err(MemberError::Unsafe(why)) = &refused else { panic!("{refused:?}") };
        for part in
            [&format!("node{dead_id} does not answer"), "1 of 3", &format!("remove-node node{dead_id}")]
        {
            assert!(why.contains(part), "{part:?} is not in {why}");
        }
    }
    assert_eq!(voters(&leader.store.status().borrow()), [1, 2, 3], "nothing has changed");
    write(&leader, "refused", b"1").await;

    // The dead one may go. What is left is one voter with a standby, and that one cannot be without it.
    leader.store.remove(dead_id, Txn::default()).await.unwrap();
    leader.wait("one voter", |s| s.members.len() == 2 && voters(s).len() == 1 && !s.changing).await;
    other.kill().await;
    leader.wait("the silence of the standby", silent(other_id)).await;
    let refused = leader.store.remove(leader.id, Txn::default()).await;
    let Err(MemberError::Unsafe(why)) = &refused else { panic!("{refused:?}") };
    assert!(
        why.contains("only living copy") && why.contains(&format!("node{other_id} does not answer")),
        "{why}"
    );
    write(&leader, "alone", b"1").await;
}

/// A member that is asked whether it may leave must not hear of a dead one later than the leader does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_knows_others_hear_at_once() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    let leader = nodes[0].wait_leader().await;
    let leader = nodes.remove(nodes.iter().position(|node| node.id == leader).unwrap());
    let (other, dead) = (nodes.remove(0), nodes.remove(0));
    let dead_id = dead.id;
    dead.kill().await;
    let silent = async |node: &Node| {
        let status = node.store.leader_status().await.unwrap();
        status.members.iter().any(|member| member.id == dead_id && member.healthy == Some(false))
    };
    while !silent(&leader).await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(silent(&other).await, "it heard less than the leader knew");
}

/// The leader has not noticed yet that the third one is dead. Whether the removal is refused or not, the votes
/// that are needed for it are there until it is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_right_after_a_death_does_not_cost_the_quorum() {
    for by_itself in [false, true] {
        let group = Group::new();
        let mut nodes = three(&group).await;
        let leader = nodes[0].wait_leader().await;
        let leader = nodes.remove(nodes.iter().position(|node| node.id == leader).unwrap());
        let (other, dead) = (nodes.remove(0), nodes.remove(0));
        dead.kill().await;
        let asked = if by_itself { &other } else { &leader };
        let removed = asked.store.remove(other.id, Txn::default()).await;
        assert!(matches!(removed, Ok(_) | Err(MemberError::Unsafe(_))), "{removed:?}");
        // The one that is off is gone at once, as the machine of somebody who was told so.
        if removed.is_ok() {
            other.kill().await;
        }
        write(&leader, "after", b"1").await;
        let status = leader.wait("the end of it", |s| !s.changing).await;
        assert_eq!(voters(&status).len(), if removed.is_ok() { 1 } else { 3 }, "{status:#?}");
    }
}

struct Dead;

impl kedge_store::Book for Dead {
    fn wants(&self, key: &str) -> bool {
        key == "kept"
    }

    fn rewrite(&self, removed: &[Member], values: &BTreeMap<String, Vec<u8>>) -> Vec<Op> {
        let names: Vec<&str> = values.keys().map(String::as_str).collect();
        let text = format!("{} dead, {} value {}", removed.len(), values.len(), names.join(" "));
        vec![put("dead", text.as_bytes())]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_writes_fail_and_recovery_makes_a_group_of_one() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    let revision = write(&nodes[0], "kept", b"1").await;
    for node in &nodes {
        node.wait_revision(revision).await;
    }
    for node in nodes.drain(1..) {
        node.kill().await;
    }
    let last = nodes.remove(0);
    last.wait("the loss of the leader", |s| s.leader.is_none()).await;
    let failed = last.store.commit(txn(&[], vec![put("lost", b"1")])).await;
    assert!(matches!(failed, Err(CommitError::Unavailable(_))), "{failed:?}");
    assert!(matches!(last.store.read_barrier().await, Err(Error::Unavailable(_))));
    assert!(last.mirror.content().contains_key("kept"), "plain reads go on");
    let config = group.config(1, Bootstrap::New);
    assert!(matches!(Store::recover(config.clone(), Dead).await, Err(Error::InUse(_))));
    last.kill().await;
    let recovered = Store::recover(config, Dead).await.unwrap();
    let mut names: Vec<_> = recovered.removed.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["node2", "node3"]);
    let alone = group.open(1, Bootstrap::New).await.unwrap();
    assert!(alone.mirror.content().contains_key("kept"));
    // The caller's own keys changed in the same step.
    assert_eq!(alone.mirror.content()["dead"].0, b"2 dead, 1 value kept");
    assert!(alone.store.revision() >= recovered.revision);
    write(&alone, "again", b"1").await;
    assert_eq!(alone.store.members().len(), 1);
    // And it can grow again.
    let fresh = group.join(4, None, &alone).await;
    fresh.wait_revision(alone.store.revision()).await;
    assert!(fresh.mirror.content().contains_key("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_voter_is_replaced_by_a_standby() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    let fourth = group.join(4, None, &nodes[0]).await;
    fourth.wait("its place as a standby", |s| s.members.len() == 4).await;
    nodes[0]
        .wait("a ready standby", |s| s.members.iter().any(|m| m.id == 4 && m.role == Role::Standby))
        .await;
    let leader = nodes[0].wait_leader().await;
    let at = nodes.iter().position(|node| node.id != leader).unwrap();
    let dead = nodes.remove(at);
    let id = dead.id;
    dead.kill().await;
    let status = nodes[0].wait("the standby's promotion", |s| voters(s).contains(&4)).await;
    assert!(!voters(&status).contains(&id) && voters(&status).len() == 3, "{status:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_names_and_addresses_are_unique_and_a_used_token_admits_nobody() {
    let group = Group::new();
    let first = group.open(1, Bootstrap::New).await.unwrap();
    let member = |id, name: &str, address: &str| Member {
        id,
        name: name.into(),
        address: address.into(),
        failure_domain: None,
    };
    let admit = |m: Member| first.store.admit(m, Txn::default());
    assert_eq!(admit(member(2, "b", "h:2")).await, Err(MemberError::NotAnnounced));
    first.store.announce("a", "h:1", None).await.unwrap();
    first.store.announce("a", "h:1", None).await.unwrap();
    assert_eq!(admit(member(1, "b", "h:2")).await, Err(MemberError::IdTaken(1)));
    assert_eq!(admit(member(2, "a", "h:2")).await, Err(MemberError::NameTaken("a".into())));
    assert_eq!(admit(member(2, "b", "h:1")).await, Err(MemberError::AddressTaken("h:1".into())));
    assert!(matches!(admit(member(2, "b", "nowhere")).await, Err(MemberError::Invalid(_))));
    write(&first, "token", b"unused").await;
    let consume = || txn(&[("token", kedge_store::Check::Any)], vec![crate::model::delete("token")]);
    first.store.admit(member(2, "b", "h:2"), consume()).await.unwrap();
    let again = first.store.admit(member(3, "c", "h:3"), consume()).await;
    assert!(
        matches!(&again, Err(MemberError::Commit(CommitError::Conflict { key, .. })) if &**key == "token"),
        "{again:?}"
    );
    first.store.update_address(2, "h:9").await.unwrap();
    first.store.admit(member(3, "c", "h:2"), Txn::default()).await.unwrap();
    first.store.announce("a", "h:10", Some("rack1")).await.unwrap();
    let own = first
        .wait("its new record", |s| s.members[0].member.as_ref().is_some_and(|m| m.failure_domain.is_some()));
    assert_eq!(own.await.members[0].member.as_ref().unwrap().address, "h:10");
    let forged = first.store.commit(txn(&[], vec![put("kedge.member/0000000000000009", b"")])).await;
    assert!(matches!(forged, Err(CommitError::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_steps_down_and_loses_nothing_acknowledged() {
    let group = Group::new();
    let nodes = three(&group).await;
    let leader = nodes[0].wait_leader().await;
    let others: Vec<u64> = nodes.iter().map(|node| node.id).filter(|&id| id != leader).collect();
    let (old, rest): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| node.id == leader);
    group.net.isolate(leader, &others);
    rest[0].wait("a new leader", |s| s.leader.is_some_and(|id| id != leader)).await;
    let revision = write(rest[0], "during", b"1").await;
    old[0].wait("stepping down", |s| s.leader.is_none()).await;
    assert!(old[0].store.read_barrier().await.is_err(), "it cannot know what is committed");
    group.net.heal();
    old[0].wait_revision(revision).await;
    write(old[0], "after", b"1").await;
    let newest = old[0].store.revision();
    for node in &nodes {
        node.wait_revision(newest).await;
    }
    same(&nodes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_closes_hands_over_and_leaves_nothing_behind() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    let mut handed_over = 0;
    for round in 0..3 {
        let leader = nodes[0].wait_leader().await;
        let at = nodes.iter().position(|node| node.id == leader).unwrap();
        let closed = nodes.remove(at);
        write(&closed, "round", &[round]).await;
        closed.store.close().await.unwrap();
        handed_over += usize::from(closed.store.leader().is_some_and(|id| id != leader));
        let failed = closed.store.commit(txn(&[], vec![put("late", b"1")])).await;
        assert_eq!(failed, Err(CommitError::Closed));
        closed.kill().await;
        let revision = write(&nodes[0], "after", &[round]).await;
        let back = group.open(leader, Bootstrap::New).await.unwrap();
        back.wait_revision(revision).await;
        nodes.push(back);
    }
    same(&nodes);
    assert!(handed_over > 0, "no lead was handed over in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hears_nobody_disturbs_nobody() {
    let group = Group::new();
    let nodes = three(&group).await;
    let leader = nodes[0].wait_leader().await;
    let deaf = nodes.iter().find(|node| node.id != leader).unwrap();
    // What others send does not arrive; what it sends does.
    for node in nodes.iter().filter(|node| node.id != deaf.id) {
        group.net.block(node.id, deaf.id);
    }
    deaf.wait("the loss of the leader", |s| s.leader.is_none()).await;
    let lead = nodes.iter().find(|node| node.id == leader).unwrap();
    for i in 0..20 {
        write(lead, &format!("k{i}"), b"v").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(lead.wait_leader().await, deaf.id);
    group.net.heal();
    deaf.wait_revision(lead.store.revision()).await;
    same(&nodes);
}

/// Twenty writers on all nodes while leaders are killed: what was acknowledged is there afterwards, in the
/// order in which it was acknowledged, and each read sees all that was acknowledged before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_everywhere_lose_nothing_while_leaders_die() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    let group = Group::new();
    let mut nodes = three(&group).await;
    let tasks = kedge_base::Tasks::new("writers");
    let mut kept = Vec::new();
    for round in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut writers = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            for writer in 0..6 {
                let (store, stop) = (node.store.clone(), stop.clone());
                let acknowledged = acknowledged.clone();
                writers.push(tasks.spawn("writer", async move {
                    let mut mine = Vec::new();
                    for i in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        let before = acknowledged.load(Ordering::SeqCst);
                        if writer == 0 {
                            if let Ok(seen) = store.read_barrier().await {
                                assert!(seen >= before, "a read sees {seen}, {before} was acknowledged");
                            }
                            continue;
                        }
                        let key = format!("w{round}/{at}/{writer}/{i}");
                        match store.commit(txn(&[], vec![put(&key, b"v")])).await {
                            Ok(revision) => {
                                assert!(revision > before, "{revision} began after {before}");
                                acknowledged.fetch_max(revision, Ordering::SeqCst);
                                mine.push((key, revision));
                            }
                            Err(CommitError::Closed) => break,
                            Err(_) => {}
                        }
                    }
                    mine
                }));
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let leader = nodes[0].wait_leader().await;
        let at = nodes.iter().position(|node| node.id == leader).unwrap();
        let killed = nodes.remove(at);
        killed.kill().await;
        write(&nodes[0], "alive", b"1").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            kept.extend(writer.await.unwrap());
        }
        let newest = write(&nodes[0], "round", &[round]).await;
        let back = group.open(leader, Bootstrap::New).await.unwrap();
        nodes.push(back);
        for node in &nodes {
            node.wait_revision(newest).await;
        }
        same(&nodes);
        let content = nodes[0].mirror.content();
        for (key, revision) in &kept {
            assert_eq!(content.get(key).map(|row| row.2), Some(*revision), "{key}");
        }
    }
    assert!(kept.len() > 100, "only {} writes were acknowledged", kept.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn load_of_three() {
    let group = Group::new();
    let nodes = three(&group).await;
    let leader = nodes[0].wait_leader().await;
    let tasks = kedge_base::Tasks::new("load");
    for (what, leads) in [("leader", true), ("follower", false)] {
        let node = nodes.iter().find(|node| (node.id == leader) == leads).unwrap();
        for clients in [1, 16, 64] {
            let each = if clients == 1 { 300 } else { 8000 / clients };
            let started = Instant::now();
            let running: Vec<_> = (0..clients)
                .map(|client| {
                    let store = node.store.clone();
                    tasks.spawn("client", async move {
                        for i in 0..each {
                            let key = format!("{what}/{clients}/{client}/{i}");
                            store.commit(txn(&[], vec![put(&key, &[b'x'; 1000])])).await.unwrap();
                        }
                    })
                })
                .collect();
            for client in running {
                client.await.unwrap();
            }
            let took = started.elapsed();
            let rate = f64::from(clients * each) / took.as_secs_f64();
            println_figure(&format!("{clients} clients at the {what}, {rate:.0}/s"), took / (each as u32));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_the_one_with_the_vote_may_leave() {
    let group = Group::new();
    let first = group.first().await;
    let second = group.join(2, None, &first).await;
    let standby = |m: &MemberStatus| m.role == Role::Standby && m.healthy == Some(true);
    first.wait("a standby that answers", |s| s.members.iter().any(standby)).await;
    let revision = write(&first, "kept", b"1").await;
    first.store.remove(1, Txn::default()).await.unwrap();
    first.store.gone(1).await;
    first.store.close().await.unwrap();
    second.wait("being alone", |s| s.members.len() == 1 && s.leader == Some(2)).await;
    assert!(write(&second, "after", b"1").await > revision);
    assert!(second.mirror.content().contains_key("kept"));
    first.kill().await;
    // It is alone like one that has always been, after a restart too.
    second.kill().await;
    let second = group.open(2, Bootstrap::New).await.unwrap();
    assert!(second.mirror.content().contains_key("after"));
    write(&second, "again", b"1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_was_interrupted_is_taken_up_again() {
    let group = Group::new();
    let first = group.first().await;
    for i in 0..50 {
        write(&first, &format!("k{i}"), &[1; 2000]).await;
    }
    let second = group.join(2, None, &first).await;
    let peers: Vec<Member> = first.store.members().into_iter().filter_map(|status| status.member).collect();
    let mut joining = second;
    for _ in 0..4 {
        joining.kill().await;
        joining = group.open(2, Bootstrap::Join { peers: peers.clone() }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    joining.wait_revision(first.store.revision()).await;
    first.wait("a standby", |s| s.members.iter().any(|m| m.role == Role::Standby)).await;
    joining.wait_revision(first.store.revision()).await;
    assert_eq!(joining.mirror.content(), first.mirror.content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_finds_a_leader_that_it_was_not_told_of() {
    let group = Group::new();
    let mut nodes = three(&group).await;
    let sponsor = nodes[0].wait_leader().await;
    let at = nodes.iter().position(|node| node.id == sponsor).unwrap();
    let old = nodes.remove(at);
    let address = "127.0.0.1:1".to_owned();
    let record = Member { id: 4, name: "node4".into(), address, failure_domain: None };
    old.store.admit(record, Txn::default()).await.unwrap();
    let known = old.store.members().into_iter().filter(|status| status.id == sponsor);
    let peers = known.filter_map(|status| status.member).collect();
    // The only one that it knows is gone before it starts.
    old.store.close().await.unwrap();
    old.kill().await;
    let joining = group.open(4, Bootstrap::Join { peers }).await.unwrap();
    nodes[0].wait("a leader", |s| s.leader.is_some_and(|id| id != sponsor)).await;
    nodes[0].store.update_address(4, &joining.address).await.unwrap();
    joining.wait_revision(nodes[0].store.revision()).await;
}
