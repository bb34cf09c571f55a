//! Whether watches are complete, in order, and agree with each other and with what clients were told.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Call, Change, Event, History, Op, Outcome, Revision, Value, Watch};

pub(super) fn check(history: &History) -> Result<(), String> {
    let writers: HashMap<Value, &Op> =
        history.ops.iter().filter_map(|op| Some((op.call.value()?, op))).collect();
    let mut all: BTreeMap<Revision, Event> = BTreeMap::new();
    for (number, watch) in history.watches.iter().enumerate() {
        let fail = |what: String| Err(format!("watch {number}: {what}"));
        if let Err(what) = in_order(watch).and_then(|()| by_someone(watch, &writers)) {
            return fail(what);
        }
        for event in &watch.events {
            let same = |other: &Event| {
                (other.change, other.key, other.value) == (event.change, event.key, event.value)
            };
            let known = all.entry(event.revision).or_insert(*event);
            if !same(known) {
                return fail(format!("shows {event:?} where another one shows {known:?}"));
            }
        }
    }
    for (number, watch) in history.watches.iter().enumerate() {
        complete(watch, history, &all).map_err(|what| format!("watch {number}: {what}"))?;
    }
    deletions(history, &all)
}

/// Revisions only rise, and an object is added before it is changed, and changed before it is deleted.
fn in_order(watch: &Watch) -> Result<(), String> {
    let mut last = watch.from;
    let mut objects: HashMap<usize, (Change, Value)> = HashMap::new();
    for event in &watch.events {
        if event.revision <= last {
            return Err(format!("{event:?} comes after revision {last}"));
        }
        if watch.gaps.iter().any(|(_, at)| *at > last && *at < event.revision) {
            // What happened to the objects meanwhile is not known.
            objects.clear();
        }
        last = event.revision;
        let before = objects.insert(event.key, (event.change, event.value));
        let fits = match (before, event.change) {
            (None, _) => true,
            (Some((Change::Deleted, _)), change) => change == Change::Added,
            (Some(_), Change::Modified) => true,
            (Some((_, value)), Change::Deleted) => value == event.value,
            (Some(_), Change::Added) => false,
        };
        if !fits {
            return Err(format!("{event:?} cannot follow {before:?}"));
        }
    }
    if watch.to < last {
        return Err(format!("it ends at revision {} and shows {last}", watch.to));
    }
    Ok(())
}

/// Nothing appears that nobody wrote, before it was written, or that was refused.
fn by_someone(watch: &Watch, writers: &HashMap<Value, &Op>) -> Result<(), String> {
    for event in &watch.events {
        let Some(op) = writers.get(&event.value) else {
            return Err(format!("{event:?}: nobody wrote that value"));
        };
        if op.key != event.key {
            return Err(format!("{event:?}: the value was written to object {}: {op}", op.key));
        }
        if op.invoked > event.seen {
            return Err(format!("{event:?} came before the write began: {op}"));
        }
        let fits = match event.change {
            Change::Added => matches!(op.call, Call::Create(_)),
            Change::Modified => matches!(op.call, Call::Update(..)),
            Change::Deleted => true,
        };
        let happened = matches!(op.outcome, Outcome::Written(_) | Outcome::Unknown);
        if !fits || !happened {
            return Err(format!("{event:?} does not come from {op}"));
        }
    }
    Ok(())
}

/// Every change of the watch's time that anybody was told of is there.
fn complete(watch: &Watch, history: &History, all: &BTreeMap<Revision, Event>) -> Result<(), String> {
    let shown: HashSet<(usize, Revision, Value)> = watch
        .events
        .iter()
        .filter(|event| event.change != Change::Deleted)
        .map(|event| (event.key, event.revision, event.value))
        .collect();
    for op in &history.ops {
        let (revision, value) = match (op.call.value(), op.outcome) {
            (Some(value), Outcome::Written(revision)) => (revision, value),
            (_, Outcome::Found(revision, value)) => (revision, value),
            _ => continue,
        };
        if watch.covers(revision) && !shown.contains(&(op.key, revision, value)) {
            return Err(format!(
                "it goes from revision {} to {} and does not show this:\n  {op}",
                watch.from, watch.to
            ));
        }
    }
    let own: HashSet<Revision> = watch.events.iter().map(|event| event.revision).collect();
    for (revision, event) in all {
        if watch.covers(*revision) && !own.contains(revision) {
            return Err(format!("it lacks {event:?}, which another one shows"));
        }
    }
    Ok(())
}

/// There are as many deletions as were acknowledged, and no more than were asked for. Only when one watch
/// has seen everything can they be counted.
fn deletions(history: &History, all: &BTreeMap<Revision, Event>) -> Result<(), String> {
    let first = history.ops.iter().filter_map(|op| match op.outcome {
        Outcome::Written(revision) | Outcome::Found(revision, _) => Some(revision),
        _ => None,
    });
    let Some(lowest) = first.min() else { return Ok(()) };
    let whole = |watch: &Watch| watch.gaps.is_empty() && watch.from < lowest;
    let Some(watch) = history.watches.iter().find(|watch| whole(watch)) else { return Ok(()) };
    let keys: HashSet<usize> = history.ops.iter().map(|op| op.key).collect();
    for key in keys {
        let count = |outcome: Outcome| {
            history
                .ops
                .iter()
                .filter(|op| op.key == key && op.call == Call::Delete && op.outcome == outcome)
                .count()
        };
        let shown = all
            .range(..=watch.to)
            .filter(|(_, event)| event.key == key && event.change == Change::Deleted)
            .count();
        let (least, most) = (count(Outcome::Deleted), count(Outcome::Deleted) + count(Outcome::Unknown));
        if shown < least || shown > most {
            return Err(format!(
                "object {key} was deleted {shown} times by the watches, {least} to {most} times by the clients"
            ));
        }
    }
    Ok(())
}
