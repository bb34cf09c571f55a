//! Histories that hold, histories that must be refused, and random ones of a server that keeps its promises.

use std::collections::HashSet;

use proptest::prelude::*;

use super::{Call, Change, Event, History, NEVER, Op, Outcome, Revision, Time, Value, Watch};
use Call::{Create, Delete, Read, Update};
use Outcome::{Absent, Conflict, Deleted, Exists, Found, Refused, Unknown, Written};

fn op(invoked: Time, returned: Time, call: Call, outcome: Outcome) -> Op {
    let returned = if outcome == Unknown { NEVER } else { returned };
    Op { client: 0, server: 0, key: 0, call, invoked, returned, outcome }
}

fn history(ops: &[Op]) -> History {
    History { ops: ops.to_vec(), watches: Vec::new() }
}

#[test]
fn histories_that_hold() {
    let table: &[(&str, &[Op])] = &[
        ("nothing", &[]),
        ("absent before anything", &[op(0, 1, Read, Absent), op(2, 3, Delete, Absent)]),
        (
            "one after the other",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Read, Found(5, 1)),
                op(4, 5, Create(2), Exists),
                op(6, 7, Update(3, Some(5)), Written(9)),
                op(8, 9, Update(4, Some(5)), Conflict),
                op(10, 11, Update(5, None), Written(10)),
                op(12, 13, Delete, Deleted),
                op(14, 15, Read, Absent),
                op(16, 17, Update(6, None), Absent),
                op(18, 19, Create(7), Written(12)),
            ],
        ),
        (
            "a read beside a write sees either",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 9, Update(2, None), Written(6)),
                op(3, 4, Read, Found(5, 1)),
                op(3, 5, Read, Found(6, 2)),
            ],
        ),
        (
            "an unknown write happens much later",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Update(2, None), Unknown),
                op(4, 5, Read, Found(5, 1)),
                op(6, 7, Update(3, Some(5)), Written(6)),
                op(8, 9, Read, Found(7, 2)),
            ],
        ),
        (
            "an unknown write that nobody saw explains a conflict",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Update(2, None), Unknown),
                op(4, 5, Update(3, Some(5)), Conflict),
                op(6, 7, Update(4, None), Written(8)),
            ],
        ),
        (
            "an unknown deletion explains an absence, and does not happen twice",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Delete, Unknown),
                op(4, 5, Read, Absent),
                op(6, 7, Create(2), Written(7)),
                op(8, 9, Read, Found(7, 2)),
            ],
        ),
        (
            "what was refused never happened",
            &[op(0, 1, Create(1), Refused), op(2, 3, Read, Absent), op(4, 5, Read, Unknown)],
        ),
    ];
    for (name, ops) in table {
        if let Err(why) = history(ops).check() {
            panic!("{name}: {why}");
        }
    }
}

#[test]
fn histories_that_must_be_refused() {
    let table: &[(&str, &[Op], &str)] = &[
        (
            "a stale read",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Update(2, None), Written(6)),
                op(4, 5, Read, Found(5, 1)),
            ],
            "no order",
        ),
        ("a lost creation", &[op(0, 1, Create(1), Written(5)), op(2, 3, Read, Absent)], "no order"),
        (
            "a lost update",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Update(2, None), Written(6)),
                op(4, 5, Update(3, Some(5)), Written(7)),
            ],
            "no order",
        ),
        (
            "two winners of one compare and swap",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 9, Update(2, Some(5)), Written(6)),
                op(2, 9, Update(3, Some(5)), Written(7)),
            ],
            "no order",
        ),
        ("two creations", &[op(0, 9, Create(1), Written(5)), op(0, 9, Create(2), Written(6))], "no order"),
        (
            "two deletions of one object",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 9, Delete, Deleted),
                op(2, 9, Delete, Deleted),
                op(10, 11, Read, Absent),
            ],
            "no order",
        ),
        (
            "a deletion undone",
            &[op(0, 1, Create(1), Written(5)), op(2, 3, Delete, Deleted), op(4, 5, Read, Found(5, 1))],
            "no order",
        ),
        (
            "a write that happened twice",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Update(2, None), Unknown),
                op(4, 5, Read, Found(6, 2)),
                op(6, 7, Update(3, None), Written(7)),
                op(8, 9, Read, Found(8, 2)),
            ],
            "written once",
        ),
        (
            "a write that was refused and happened",
            &[op(0, 1, Create(1), Refused), op(2, 3, Read, Found(5, 1))],
            "refused",
        ),
        (
            "a write that is seen before it begins",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 3, Read, Found(6, 2)),
                op(4, 5, Update(2, None), Unknown),
            ],
            "no order",
        ),
        ("a value out of nowhere", &[op(0, 1, Read, Found(5, 1))], "no order"),
        (
            "reads that go back",
            &[
                op(0, 1, Create(1), Written(5)),
                op(2, 20, Update(2, None), Written(6)),
                op(3, 4, Read, Found(6, 2)),
                op(5, 6, Read, Found(5, 1)),
            ],
            "no order",
        ),
        (
            "a conflict with the right revision",
            &[op(0, 1, Create(1), Written(5)), op(2, 3, Update(2, Some(5)), Conflict)],
            "no order",
        ),
        (
            "revisions against time",
            &[op(0, 1, Create(1), Written(9)), Op { key: 1, ..op(2, 3, Create(2), Written(8)) }],
            "acknowledged before it began",
        ),
        (
            "one revision for two writes",
            &[op(0, 1, Create(1), Written(9)), Op { key: 1, ..op(0, 1, Create(2), Written(9)) }],
            "two writes are at revision 9",
        ),
    ];
    for (name, ops, part) in table {
        match history(ops).check() {
            Ok(counts) => panic!("{name} was not noticed: {counts}"),
            Err(why) => assert!(why.contains(part), "{name}: {why}"),
        }
    }
}

fn event(change: Change, revision: Revision, value: Value) -> Event {
    Event { change, key: 0, revision, value, seen: 1000 }
}

/// Four changes and a watch of all of them.
fn watched() -> History {
    let mut history = history(&[
        op(0, 1, Create(1), Written(5)),
        op(2, 3, Update(2, None), Written(6)),
        op(4, 5, Update(3, None), Unknown),
        op(6, 7, Delete, Deleted),
        op(8, 9, Create(4), Written(9)),
    ]);
    let events = vec![
        event(Change::Added, 5, 1),
        event(Change::Modified, 6, 2),
        event(Change::Modified, 7, 3),
        event(Change::Deleted, 8, 3),
        event(Change::Added, 9, 4),
    ];
    history.watches.push(Watch { from: 4, to: 9, events, ..Watch::default() });
    history
}

#[test]
fn watches() {
    watched().check().unwrap();
    type Spoil = fn(&mut Watch);
    let table: &[(&str, Spoil, &str)] = &[
        ("an event lost", |watch| _ = watch.events.remove(1), "does not show this"),
        ("a deletion lost", |watch| _ = watch.events.remove(3), "cannot follow"),
        ("the last one lost", |watch| _ = watch.events.pop(), "does not show this"),
        ("an event twice", |watch| watch.events.insert(2, watch.events[1]), "comes after"),
        ("out of order", |watch| watch.events.swap(1, 2), "comes after"),
        (
            "changed without having been there",
            |watch| watch.events[4].change = Change::Modified,
            "cannot follow",
        ),
        ("another value", |watch| watch.events[1].value = 77, "nobody wrote"),
        ("another revision", |watch| watch.events[4].revision = 10, "written once"),
        (
            "applied twice",
            |watch| {
                watch.to = 10;
                watch.events.push(event(Change::Modified, 10, 2));
            },
            "written once",
        ),
        ("an event before its cause", |watch| watch.events[1].seen = 1, "before the write began"),
    ];
    for (name, spoil, part) in table {
        let mut history = watched();
        spoil(&mut history.watches[0]);
        match history.check() {
            Ok(counts) => panic!("{name} was not noticed: {counts}"),
            Err(why) => assert!(why.contains(part), "{name}: {why}"),
        }
    }
    // What a server has said that it forgot need not be there, but nothing else.
    let mut history = watched();
    history.watches[0].events.drain(1..4);
    history.watches[0].gaps.push((5, 8));
    history.check().unwrap();
    history.watches[0].gaps[0] = (5, 7);
    history.watches[0].events[1].change = Change::Modified;
    history.check().unwrap_err();
    // One watch lacks the unknown write that the other one shows.
    let mut history = watched();
    let mut other = history.watches[0].clone();
    other.events.remove(2);
    other.events[2].value = 2;
    history.watches.push(other);
    history.check().unwrap_err();
    // A watch that begins later sees less.
    let mut history = watched();
    let mut other = history.watches[0].clone();
    other.events.drain(..2);
    other.from = 6;
    history.watches.push(other);
    history.check().unwrap();
}

/// What a client does: (object, kind of call, time until it happens, time until the answer, answered).
type Plan = (usize, u8, u64, u64, bool);

fn plans() -> impl Strategy<Value = Vec<Vec<Plan>>> {
    let plan = (0..3_usize, 0..6_u8, 1..20_u64, 1..20_u64, prop::bool::weighted(0.9));
    prop::collection::vec(prop::collection::vec(plan, 1..40), 1..6)
}

/// Clients of a server that does everything at one moment between call and answer; without an answer in
/// half of the cases not at all, and in the others some time later.
fn simulated(plans: &[Vec<Plan>]) -> History {
    struct Pending {
        at: Time,
        op: Op,
        happens: bool,
    }
    let mut pending = Vec::new();
    let mut value = 0;
    for (client, plan) in plans.iter().enumerate() {
        let mut now = 0;
        for (number, (key, kind, delay, answer, answered)) in plan.iter().enumerate() {
            value += 1;
            let call = match kind {
                0 => Create(value),
                1 => Update(value, None),
                2 => Update(value, Some(0)),
                3 => Delete,
                _ => Read,
            };
            let invoked = now * 100 + client as u64;
            let at = if *answered { invoked + delay * 100 } else { invoked + delay * answer * 100 };
            now += delay + answer;
            let returned = if *answered { now * 100 } else { NEVER };
            let outcome = Unknown;
            let op = Op { client, server: 0, key: *key, call, invoked, returned, outcome };
            pending.push(Pending { at: at + number as u64 % 7, op, happens: *answered || number % 2 == 0 });
            now += 1;
        }
    }
    pending.sort_by_key(|pending| pending.at);
    let mut objects: [Option<(Revision, Value)>; 3] = [None; 3];
    let mut revision = 10;
    let mut told = HashSet::new();
    let mut history = History::default();
    let mut watch = Watch { from: 10, ..Watch::default() };
    for Pending { at, mut op, happens } in pending {
        let object = &mut objects[op.key];
        // Compare with what it is now, or, now and then, with what it was; nobody can name a revision that
        // nobody was told.
        if let Update(value, Some(_)) = op.call {
            let expected = object.map_or(1, |(revision, _)| revision - at % 2);
            op.call = Update(value, Some(if told.contains(&expected) { expected } else { 1 }));
        }
        if happens {
            let before = *object;
            let outcome = match (op.call, before) {
                (Create(value), None) => {
                    *object = Some((revision + 1, value));
                    Written(revision + 1)
                }
                (Create(_), Some(_)) => Exists,
                (Update(value, expected), Some((current, _))) => {
                    if expected.is_none_or(|expected| expected == current) {
                        *object = Some((revision + 1, value));
                        Written(revision + 1)
                    } else {
                        Conflict
                    }
                }
                (Delete, Some(_)) => {
                    *object = None;
                    Deleted
                }
                (Read, Some((revision, value))) => Found(revision, value),
                (Update(..) | Delete | Read, None) => Absent,
            };
            if *object != before {
                revision += 1;
                let change = match (before, *object) {
                    (None, _) => Change::Added,
                    (_, Some(_)) => Change::Modified,
                    (_, None) => Change::Deleted,
                };
                let value = object.or(before).map_or(0, |(_, value)| value);
                watch.events.push(Event { change, key: op.key, revision, value, seen: at });
            }
            op.outcome = if op.returned == NEVER { Unknown } else { outcome };
            if let Written(revision) | Found(revision, _) = op.outcome {
                told.insert(revision);
            }
        }
        history.ops.push(op);
    }
    watch.to = revision;
    history.watches.push(watch);
    history
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_good_server_shows_is_accepted(plans in plans(), watched in any::<bool>()) {
        let mut history = simulated(&plans);
        if !watched {
            history.watches.clear();
        }
        if let Err(why) = history.check() {
            prop_assert!(false, "{why}");
        }
    }

    /// Whatever was acknowledged last on an object and vanishes is noticed by a read that comes after.
    #[test]
    fn a_lost_write_is_noticed(plans in plans(), index in any::<prop::sample::Index>()) {
        let mut history = simulated(&plans);
        history.watches.clear();
        let written: Vec<Op> =
            history.ops.iter().filter(|op| matches!(op.outcome, Written(_))).copied().collect();
        prop_assume!(!written.is_empty());
        let lost = index.get(&written);
        // A deletion nobody knows the answer of would explain it, and so would one that comes later.
        prop_assume!(!history.ops.iter().any(|op| op.key == lost.key && op.call == Delete && op.returned >= lost.invoked));
        history.ops.push(Op { key: lost.key, ..op(1 << 40, (1 << 40) + 1, Read, Absent) });
        prop_assert!(history.check().is_err());
    }

    #[test]
    fn a_lost_event_is_noticed(plans in plans(), index in any::<prop::sample::Index>()) {
        let mut history = simulated(&plans);
        let acknowledged: Vec<usize> = (0..history.watches[0].events.len())
            .filter(|at| {
                let event = history.watches[0].events[*at];
                event.change != Change::Deleted
                    && history.ops.iter().any(|op| op.outcome == Written(event.revision))
            })
            .collect();
        prop_assume!(!acknowledged.is_empty());
        let at = *index.get(&acknowledged);
        history.watches[0].events.remove(at);
        prop_assert!(history.check().is_err());
    }
}
