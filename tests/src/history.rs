//! What clients and watchers saw of a few objects, and whether an API server that keeps its promises can
//! have shown it to them. Pure: nothing here opens a file or a socket.
//!
//! Each object is a register that exists or not, with a value (no two writes have the same one) and a
//! revision. [`History::check`] proves three things or says what contradicts them:
//! - one order of all operations explains every answer, and it contradicts neither the times of calls and
//!   answers nor the revisions ([`linear`], after Wing & Gong 1993 and Lowe 2017; each object for itself,
//!   which is allowed because linearizability is a local property);
//! - revisions are one clock for the whole store: what was acknowledged before another write began has the
//!   lower revision;
//! - every watch shows every change of its time exactly once and in order, over all its connections
//!   ([`watching`]).

mod linear;
#[cfg(test)]
mod tests;
mod watching;

use std::collections::HashMap;
use std::fmt;

/// Nanoseconds since the history began.
pub type Time = u64;
/// A `resourceVersion`.
pub type Revision = u64;
/// What a write writes; no other one writes the same.
pub type Value = u64;

/// The time of an answer that never came.
pub const NEVER: Time = Time::MAX;

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// POST.
    Create(Value),
    /// PUT; with a revision only if the object still has it (compare and swap).
    Update(Value, Option<Revision>),
    /// DELETE.
    Delete,
    /// GET or LIST without a `resourceVersion`: the newest state.
    Read,
}

impl Call {
    fn value(self) -> Option<Value> {
        match self {
            Self::Create(value) | Self::Update(value, _) => Some(value),
            Self::Delete | Self::Read => None,
        }
    }
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write happened, at this revision.
    Written(Revision),
    /// The object was deleted.
    Deleted,
    /// The read found this.
    Found(Revision, Value),
    /// There is no such object (404).
    Absent,
    /// The object exists already (409 to a create).
    Exists,
    /// The object has another revision (409 to an update).
    Conflict,
    /// Nothing happened and nothing will: the request never left, or was turned away.
    Refused,
    /// No answer, or one that leaves it open (5xx): it may have happened, or may yet.
    Unknown,
}

/// One call of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Who called.
    pub client: usize,
    /// Which server was asked.
    pub server: usize,
    /// The object.
    pub key: usize,
    /// What was asked for.
    pub call: Call,
    /// When it began.
    pub invoked: Time,
    /// When the answer was there; [`NEVER`] when it is unknown.
    pub returned: Time,
    /// The answer.
    pub outcome: Outcome,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Time| time as f64 / 1e6;
        write!(f, "client {} at server {}, ", self.client, self.server + 1)?;
        match self.returned {
            NEVER => write!(f, "{:.3}..never", ms(self.invoked))?,
            returned => write!(f, "{:.3}..{:.3}", ms(self.invoked), ms(returned))?,
        }
        write!(f, " ms: object {} {:?} -> {:?}", self.key, self.call, self.outcome)
    }
}

/// The kind of a watch's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// ADDED.
    Added,
    /// MODIFIED.
    Modified,
    /// DELETED.
    Deleted,
}

/// One event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// The object.
    pub key: usize,
    /// The object's revision, of the deletion when it was deleted.
    pub revision: Revision,
    /// The object's value, the last one when it was deleted.
    pub value: Value,
    /// When it arrived.
    pub seen: Time,
}

/// A watch over all its connections.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// It began after this revision.
    pub from: Revision,
    /// It has seen everything up to this one: its last event or bookmark.
    pub to: Revision,
    /// All events, in the order in which they came.
    pub events: Vec<Event>,
    /// Where the server had forgotten the changes after the first and the client read the list at the second
    /// revision instead (410 Expired).
    pub gaps: Vec<(Revision, Revision)>,
    /// How often it went on with a new connection.
    pub resumed: usize,
}

impl Watch {
    /// Whether it must have seen what happened at `revision`.
    fn covers(&self, revision: Revision) -> bool {
        revision > self.from
            && revision <= self.to
            && !self.gaps.iter().any(|(after, at)| revision > *after && revision <= *at)
    }
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All calls, in any order.
    pub ops: Vec<Op>,
    /// All watches.
    pub watches: Vec<Watch>,
}

/// What a history that holds consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls.
    pub operations: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Writes that may have happened or not.
    pub unknown: usize,
    /// Calls that were turned away.
    pub refused: usize,
    /// Objects.
    pub keys: usize,
    /// Watches.
    pub watches: usize,
    /// Events of all watches.
    pub events: usize,
    /// Connections that went on where another one had ended.
    pub resumed: usize,
    /// Watches that had to begin anew.
    pub gaps: usize,
    /// Steps of the search for an order.
    pub steps: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations on {} objects ({} writes acknowledged, {} fresh reads, {} unknown, {} refused), {} \
             events in {} watches ({} resumed, {} begun anew), {} steps of search",
            self.operations,
            self.keys,
            self.acknowledged,
            self.reads,
            self.unknown,
            self.refused,
            self.events,
            self.watches,
            self.resumed,
            self.gaps,
            self.steps
        )
    }
}

/// The revisions at which values were seen, whoever saw them.
type Seen = HashMap<Value, Revision>;

impl History {
    /// Proves that the history is one that may be, or says what contradicts that.
    ///
    /// # Errors
    /// The first contradiction, with the calls and events around it.
    pub fn check(&self) -> Result<Counts, String> {
        let seen = self.seen()?;
        self.one_clock(&seen)?;
        watching::check(self)?;
        let mut keys: Vec<usize> = self.ops.iter().map(|op| op.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut steps = 0;
        for key in &keys {
            let ops: Vec<Op> = self.ops.iter().filter(|op| op.key == *key).copied().collect();
            steps += linear::check(&ops, &seen)?;
        }
        let count = |fits: fn(&Op) -> bool| self.ops.iter().filter(|op| fits(op)).count();
        Ok(Counts {
            operations: self.ops.len(),
            acknowledged: count(|op| matches!(op.outcome, Outcome::Written(_) | Outcome::Deleted)),
            reads: count(|op| {
                op.call == Call::Read && !matches!(op.outcome, Outcome::Unknown | Outcome::Refused)
            }),
            unknown: count(|op| op.call != Call::Read && op.outcome == Outcome::Unknown),
            refused: count(|op| op.outcome == Outcome::Refused),
            keys: keys.len(),
            watches: self.watches.len(),
            events: self.watches.iter().map(|watch| watch.events.len()).sum(),
            resumed: self.watches.iter().map(|watch| watch.resumed).sum(),
            gaps: self.watches.iter().map(|watch| watch.gaps.len()).sum(),
            steps,
        })
    }

    /// Where each value was seen. A write that took effect twice has two revisions.
    fn seen(&self) -> Result<Seen, String> {
        let mut seen = Seen::new();
        let mut note = |value, revision, who: &dyn Fn() -> String| match seen.insert(value, revision) {
            Some(other) if other != revision => Err(format!(
                "value {value} was written once and is at revision {other} and at {revision}: {}",
                who()
            )),
            _ => Ok(()),
        };
        for op in &self.ops {
            match (op.call, op.outcome) {
                (Call::Create(value) | Call::Update(value, _), Outcome::Written(revision)) => {
                    note(value, revision, &|| op.to_string())?;
                }
                (_, Outcome::Found(revision, value)) => note(value, revision, &|| op.to_string())?,
                _ => {}
            }
        }
        for (number, watch) in self.watches.iter().enumerate() {
            for event in watch.events.iter().filter(|event| event.change != Change::Deleted) {
                note(event.value, event.revision, &|| format!("watch {number}, {event:?}"))?;
            }
        }
        Ok(seen)
    }

    /// Revisions follow the order in which writes happened, over all objects.
    fn one_clock(&self, seen: &Seen) -> Result<(), String> {
        let mut written: Vec<(Revision, &Op)> = self
            .ops
            .iter()
            .filter(|op| !matches!(op.outcome, Outcome::Refused))
            .filter_map(|op| Some((*seen.get(&op.call.value()?)?, op)))
            .collect();
        written.sort_unstable_by_key(|(revision, op)| (*revision, op.invoked));
        // From the highest revision down: nothing may have begun after something higher was acknowledged.
        let mut earliest: Option<(Revision, &Op)> = None;
        for (revision, op) in written.into_iter().rev() {
            if let Some((other, above)) = earliest {
                if other == revision {
                    return Err(format!("two writes are at revision {revision}:\n  {above}\n  {op}"));
                }
                if above.returned < op.invoked {
                    return Err(format!(
                        "a write is at revision {revision}, though {other} was acknowledged before it began:\n  \
                         {above}\n  {op}"
                    ));
                }
            }
            if earliest.is_none_or(|(_, above)| op.returned < above.returned) {
                earliest = Some((revision, op));
            }
        }
        Ok(())
    }
}
