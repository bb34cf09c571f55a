use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};

use super::*;
use crate::command;
use crate::types::{Entry as Object, Key, Op, Txn, Value};

struct Nobody;

impl Observer for Nobody {
    fn reset(&self, _: Revision, _: &mut dyn Iterator<Item = (Key, Object)>) {}
    fn applied(&self, _: Revision, _: &[Change]) {}
}

type Tested = (Core<u32, u32>, Output<u32, u32>);

fn core(id: u64, voters: &[u64], learners: &[u64]) -> Tested {
    let members = ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..ConfState::default() };
    let state = State::empty(members.clone());
    let log = RaftLog::new(HardState::default(), members, (0, 0), vec![]);
    let settings = Settings { id, seed: 1, replace_after: 100, forget_after: 200, patience: 20, lag: 10 };
    (Core::new(settings, state, log, Arc::new(Nobody)).unwrap(), Output::default())
}

fn write(key: &str) -> Vec<u8> {
    let value = Value { bytes: b"v".to_vec().into(), splice: None };
    command::encode(&Txn { ops: vec![Op::Put { key: key.into(), value }], ..Txn::default() })
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message { from, to, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

fn kinds(out: &mut Output<u32, u32>) -> Vec<MessageType> {
    out.messages.drain(..).map(|message| message.msg_type()).collect()
}

fn sync((core, out): &mut Tested) {
    core.drive(out).unwrap();
    while let Some(append) = out.append.take() {
        core.persisted(append.number, out);
        core.drive(out).unwrap();
    }
}

#[test]
fn heartbeats_do_not_wait_for_the_disk_and_what_promises_entries_does() {
    let mut tested = core(2, &[1, 2, 3], &[]);
    tested.0.step(message(MessageType::MsgHeartbeat, 1, 2, 1));
    // The term is new: even a heartbeat's answer promises that.
    tested.0.drive(&mut tested.1).unwrap();
    assert_eq!(kinds(&mut tested.1), []);
    sync(&mut tested);
    assert_eq!(kinds(&mut tested.1), [MessageType::MsgHeartbeatResponse]);
    let (core, out) = &mut tested;
    let mut append = message(MessageType::MsgAppend, 1, 2, 1);
    append.entries = vec![Entry { index: 1, term: 1, ..Entry::default() }];
    core.step(append);
    core.drive(out).unwrap();
    assert_eq!(kinds(out), [], "the entry is not on the disk");
    core.step(message(MessageType::MsgHeartbeat, 1, 2, 1));
    core.drive(out).unwrap();
    assert_eq!(kinds(out), [MessageType::MsgHeartbeatResponse]);
    sync(&mut tested);
    assert_eq!(kinds(&mut tested.1), [MessageType::MsgAppendResponse]);
}

#[test]
fn a_leader_says_nothing_in_a_term_that_it_might_forget() {
    let mut tested = core(1, &[1], &[2]);
    let (core, out) = &mut tested;
    core.lead().unwrap();
    core.drive(out).unwrap();
    assert!(core.is_leader());
    assert_eq!(kinds(out), []);
    sync(&mut tested);
    assert!(!kinds(&mut tested.1).is_empty());
}

#[test]
fn what_gets_no_majority_is_given_up_and_is_not_said_to_have_failed() {
    let mut tested = core(1, &[1, 2, 3], &[]);
    let elect = |(core, out): &mut Tested| {
        for _ in 0..2 * ELECTION_MIN {
            core.tick(out);
            core.drive(out).unwrap();
        }
    };
    elect(&mut tested);
    let term = tested.0.term() + 1;
    tested.0.step(message(MessageType::MsgRequestPreVoteResponse, 2, 1, term));
    sync(&mut tested);
    tested.0.step(message(MessageType::MsgRequestVoteResponse, 2, 1, term));
    sync(&mut tested);
    let (core, out) = &mut tested;
    assert!(core.is_leader());
    core.propose(write("a"), 7).unwrap();
    core.read(8);
    for _ in 0..30 {
        core.tick(out);
        core.drive(out).unwrap();
    }
    assert!(!core.is_leader(), "nobody follows");
    assert!(matches!(&out.commits[..], [(7, Err(CommitError::Unavailable(_)))]), "{:?}", out.commits);
    assert_eq!(out.reads, [(8, Err(()))]);
    assert_eq!(core.propose(write("b"), 9), Err(9));
}

#[test]
fn a_lead_that_was_lost_and_regained_mixes_up_nothing() {
    let mut tested = core(1, &[1, 2, 3], &[]);
    let vote = |tested: &mut Tested, term| {
        for _ in 0..2 * ELECTION_MIN {
            tested.0.tick(&mut tested.1);
            sync(tested);
        }
        tested.0.step(message(MessageType::MsgRequestPreVoteResponse, 2, 1, term));
        sync(tested);
        tested.0.step(message(MessageType::MsgRequestVoteResponse, 2, 1, term));
        sync(tested);
        assert!(tested.0.is_leader());
    };
    vote(&mut tested, 1);
    // Three that nobody else gets: entries 2 to 4 of term 1.
    for token in 1..=3 {
        tested.0.propose(write("old"), token).unwrap();
    }
    sync(&mut tested);
    // Another leader of term 2 has one entry in the place of the first one.
    let mut append = message(MessageType::MsgAppend, 3, 1, 2);
    append.entries = vec![Entry { index: 1, term: 2, ..Entry::default() }];
    tested.0.step(append);
    sync(&mut tested);
    assert!(tested.1.commits.is_empty(), "it is not over for them yet");
    vote(&mut tested, 3);
    // Entry 2 is the new leader's own, 3 is this one: in front of the old 4.
    tested.0.propose(write("new"), 9).unwrap();
    sync(&mut tested);
    let mut answer = message(MessageType::MsgAppendResponse, 2, 1, 3);
    answer.index = 3;
    tested.0.step(answer);
    sync(&mut tested);
    let mut commits = std::mem::take(&mut tested.1.commits);
    commits.sort_by_key(|(token, _)| *token);
    assert_eq!(
        commits,
        [(1, Err(CommitError::NoLeader)), (2, Err(CommitError::NoLeader)), (9, Ok(2))],
        "the old 4 may still come"
    );
}

#[test]
fn who_is_alone_needs_no_clock_and_stops_being_so_with_a_second_record() {
    let mut tested = core(1, &[1], &[]);
    tested.0.lead().unwrap();
    sync(&mut tested);
    assert!(tested.0.is_alone());
    let admit = |tested: &mut Tested, id| {
        let member =
            crate::Member { id, name: format!("n{id}"), address: "h:1".into(), failure_domain: None };
        let value = Value { bytes: crate::membership::encode(&member).into(), splice: None };
        let key = crate::membership::key(id);
        let txn = Txn { ops: vec![Op::Put { key, value }], ..Txn::default() };
        tested.0.propose(command::encode(&txn), 1).unwrap();
        sync(tested);
    };
    admit(&mut tested, 1);
    assert!(tested.0.is_alone());
    admit(&mut tested, 2);
    assert!(!tested.0.is_alone());
    for _ in 0..8 {
        tested.0.tick(&mut tested.1);
        sync(&mut tested);
    }
    assert_eq!(tested.0.state.meta.members.learners, [2]);
    assert!(tested.0.is_sole_voter() && tested.0.has_peers());
}
