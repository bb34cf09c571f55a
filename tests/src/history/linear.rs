//! Wing & Gong's search for an order that explains what was answered about one object, with a memory of
//! the states it has been in. Revisions leave little to search: only writes that nobody saw and whose
//! answers are unknown can be at several places.

use std::collections::{HashMap, HashSet};

use super::{Call, NEVER, Op, Outcome, Revision, Seen, Time, Value};

/// More than any history of a few minutes takes; a proof that takes longer is no proof.
const LIMIT: usize = 5_000_000;

/// What the object is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct State {
    /// The value, when it exists, and its revision, when somebody saw it.
    object: Option<(Value, Option<Revision>)>,
    /// The highest revision that was written so far.
    floor: Revision,
}

/// A call with what is known about its effect.
struct Step<'a> {
    op: &'a Op,
    /// The revision of what it wrote, also when only others saw it.
    revision: Option<Revision>,
    returned: Time,
}

impl Step<'_> {
    /// The state after this call, when it can have happened in `state` and have been answered like that.
    fn apply(&self, state: State) -> Option<State> {
        let State { object, floor } = state;
        let write = |value| {
            let fits = self.revision.is_none_or(|revision| revision > floor);
            let floor = self.revision.unwrap_or(floor);
            fits.then_some(State { object: Some((value, self.revision)), floor })
        };
        match (self.op.call, self.op.outcome) {
            (Call::Create(value), Outcome::Written(_) | Outcome::Unknown) => {
                object.is_none().then(|| write(value))?
            }
            (Call::Update(value, expected), Outcome::Written(_) | Outcome::Unknown) => {
                let (_, revision) = object?;
                (expected.is_none() || expected == revision).then(|| write(value))?
            }
            (Call::Delete, Outcome::Deleted | Outcome::Unknown) => {
                object.map(|_| State { object: None, floor })
            }
            (Call::Create(_), Outcome::Exists) => object.map(|_| state),
            (Call::Update(_, Some(expected)), Outcome::Conflict) => {
                object.filter(|(_, revision)| *revision != Some(expected)).map(|_| state)
            }
            (Call::Update(..) | Call::Delete | Call::Read, Outcome::Absent) => {
                object.is_none().then_some(state)
            }
            (Call::Read, Outcome::Found(revision, value)) => {
                (object == Some((value, Some(revision)))).then_some(state)
            }
            // No server may answer this.
            _ => None,
        }
    }
}

/// What the search knows at one moment: everything before `first` is done, and these besides.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    first: usize,
    beyond: Vec<u32>,
    /// Calls that may never have happened, and did.
    guessed: Vec<u32>,
    state: State,
}

/// The number of steps it took.
pub(super) fn check(ops: &[Op], seen: &Seen) -> Result<usize, String> {
    let mut required = Vec::new();
    let mut optional = Vec::new();
    for op in ops {
        let revision = op.call.value().and_then(|value| seen.get(&value).copied());
        let step = |returned| Step { op, revision, returned };
        match (op.call, op.outcome) {
            (_, Outcome::Refused) => {
                if let Some(revision) = revision {
                    return Err(format!("a write was refused and is at revision {revision}:\n  {op}"));
                }
            }
            (Call::Read, Outcome::Unknown) => {}
            (_, Outcome::Unknown) if revision.is_none() => optional.push(step(NEVER)),
            (_, Outcome::Unknown) => required.push(step(NEVER)),
            _ => required.push(step(op.returned)),
        }
    }
    required.sort_by_key(|step| (step.op.invoked, step.returned));
    optional.sort_by_key(|step| step.op.invoked);
    Search { required, optional, visited: HashSet::new(), steps: 0, furthest: None }.run()
}

struct Search<'a> {
    required: Vec<Step<'a>>,
    optional: Vec<Step<'a>>,
    visited: HashSet<Place>,
    steps: usize,
    furthest: Option<Place>,
}

impl Search<'_> {
    fn run(mut self) -> Result<usize, String> {
        let state = State { object: None, floor: 0 };
        let mut stack = vec![Place { first: 0, beyond: Vec::new(), guessed: Vec::new(), state }];
        while let Some(place) = stack.pop() {
            if place.first == self.required.len() {
                return Ok(self.steps);
            }
            self.steps += 1;
            if self.steps > LIMIT {
                return Err(format!(
                    "no order was found in {LIMIT} steps, and none was excluded\n{}",
                    self.story()
                ));
            }
            let done = |place: &Place| place.first + place.beyond.len();
            if self.furthest.as_ref().is_none_or(|furthest| done(&place) > done(furthest)) {
                self.furthest = Some(place.clone());
            }
            // The last that is pushed is tried first: what surely happened goes before guesses, and what
            // was answered first before what was answered later.
            let until = self.deadline(&place);
            for (number, step) in self.optional.iter().enumerate().rev() {
                let number = number as u32;
                if step.op.invoked > until || place.guessed.binary_search(&number).is_ok() {
                    continue;
                }
                let Some(state) = step.apply(place.state) else { continue };
                let mut next = Place { state, ..place.clone() };
                next.guessed.push(number);
                next.guessed.sort_unstable();
                if self.visited.insert(next.clone()) {
                    stack.push(next);
                }
            }
            let mut candidates: Vec<usize> =
                self.open(&place).take_while(|at| self.required[*at].op.invoked <= until).collect();
            candidates.sort_by_key(|at| std::cmp::Reverse((self.required[*at].returned, *at)));
            for at in candidates {
                let Some(state) = self.required[at].apply(place.state) else { continue };
                let next = self.after(&place, at, state);
                if self.visited.insert(next.clone()) {
                    stack.push(next);
                }
            }
        }
        Err(format!("no order of the calls explains the answers\n{}", self.story()))
    }

    /// The required calls that are not done, by the time they began.
    fn open(&self, place: &Place) -> impl Iterator<Item = usize> {
        (place.first..self.required.len()).filter(|at| place.beyond.binary_search(&(*at as u32)).is_err())
    }

    /// What begins after this cannot be next: something else has been answered by then.
    fn deadline(&self, place: &Place) -> Time {
        let mut until = NEVER;
        for at in self.open(place) {
            if self.required[at].op.invoked > until {
                break;
            }
            until = until.min(self.required[at].returned);
        }
        until
    }

    fn after(&self, place: &Place, at: usize, state: State) -> Place {
        let mut next = Place { state, ..place.clone() };
        next.beyond.push(at as u32);
        next.beyond.sort_unstable();
        let prefix =
            next.beyond.iter().zip(place.first..).take_while(|(beyond, first)| **beyond as usize == *first);
        let count = prefix.count();
        next.beyond.drain(..count);
        next.first += count;
        next
    }

    /// How far an order goes, and what comes then.
    fn story(&self) -> String {
        let Some(place) = &self.furthest else { return String::new() };
        let mut text = format!(
            "at best {} of {} calls can be ordered; then the object is {:?}, and these are open:",
            place.first + place.beyond.len(),
            self.required.len(),
            place.state
        );
        for at in self.open(place).take(12) {
            text.push_str(&format!("\n  {}", self.required[at].op));
        }
        text.push_str("\nbefore them:");
        let known: HashMap<usize, &Step<'_>> = self.required[..place.first].iter().enumerate().collect();
        for at in place.first.saturating_sub(6)..place.first {
            text.push_str(&format!("\n  {}", known[&at].op));
        }
        text
    }
}
