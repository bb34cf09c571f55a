//! Clients and watchers at several API servers that never stop, whatever happens to the servers, and write
//! down all they see: at the end a [`History`] must explain it.

mod watcher;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::history::{Call, Counts, History, NEVER, Op, Outcome, Revision, Time, Value, Watch};
use crate::https::{Connection, Server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How long a client waits for an answer before it goes elsewhere.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a client thinks between two calls.
const PACE: Duration = Duration::from_millis(15);

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Objects.
    pub keys: usize,
    /// Clients that write and read.
    pub clients: usize,
    /// Clients that watch.
    pub watchers: usize,
}

impl Default for Amount {
    fn default() -> Self {
        Self { keys: 5, clients: 6, watchers: 3 }
    }
}

/// What all of them share.
struct Shared {
    /// The beginning of the objects' names.
    name: String,
    servers: Vec<Server>,
    keys: usize,
    began: Instant,
    ops: Mutex<Vec<Op>>,
    more: Condvar,
    next_value: AtomicU64,
    /// Clients stop.
    stop: AtomicBool,
    /// When it is not 0, watchers stop as soon as they have seen this revision.
    last: AtomicU64,
    /// What was answered besides what there should be, and how often.
    refusals: Mutex<BTreeMap<String, usize>>,
}

impl Shared {
    fn now(&self) -> Time {
        self.time(Instant::now())
    }

    fn time(&self, at: Instant) -> Time {
        u64::try_from(at.saturating_duration_since(self.began).as_nanos()).unwrap_or(NEVER)
    }

    fn value(&self) -> Value {
        self.next_value.fetch_add(1, Relaxed)
    }

    fn note(&self, op: Op) {
        self.ops.lock().expect("no client panicked").push(op);
        self.more.notify_all();
    }

    fn refused(&self, what: String) {
        *self.refusals.lock().expect("no client panicked").entry(what).or_default() += 1;
    }

    fn stopped(&self) -> bool {
        self.stop.load(Acquire)
    }

    /// The number of an object of this load.
    fn key(&self, name: &str) -> Option<usize> {
        name.strip_prefix(&self.name)?.strip_prefix('-')?.parse().ok()
    }
}

/// Revision and value of an object as it is in an answer or an event.
fn contents(object: &Json) -> Option<(Revision, Value)> {
    let revision = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    Some((revision, object["data"]["v"].as_str()?.parse().ok()?))
}

/// What goes on until it is finished.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<Watch>>,
}

impl Load {
    /// Begins. Objects are ConfigMaps whose names begin with `name`.
    ///
    /// # Panics
    /// When no server answers.
    #[must_use]
    pub fn start(name: &str, servers: Vec<Server>, amount: Amount) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            servers,
            keys: amount.keys,
            began: Instant::now(),
            ops: Mutex::default(),
            more: Condvar::new(),
            next_value: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            last: AtomicU64::new(0),
            refusals: Mutex::default(),
        });
        let from = crate::eventually("a list to watch from", || watcher::list(&shared, 0));
        let watchers = (0..amount.watchers)
            .map(|number| {
                let shared = shared.clone();
                std::thread::spawn(move || watcher::watch(&shared, number, from))
            })
            .collect();
        let clients = (0..amount.clients)
            .map(|number| {
                let shared = shared.clone();
                std::thread::spawn(move || Client::new(&shared, number).run())
            })
            .collect();
        Self { shared, clients, watchers }
    }

    /// Waits for the first acknowledged write that began at `at` or later; how long after `at` the
    /// acknowledgement came.
    ///
    /// # Panics
    /// When there is none within five minutes.
    #[must_use]
    pub fn acknowledged_after(&self, at: Instant) -> Duration {
        let time = self.shared.time(at);
        let deadline = Instant::now() + crate::LIMIT;
        let mut ops = self.shared.ops.lock().expect("no client panicked");
        loop {
            // From the end: answers come in about the order of their times, and it is the first that counts.
            let first = ops
                .iter()
                .rev()
                .take_while(|op| op.returned == NEVER || op.returned >= time.saturating_sub(1_000_000_000))
                .filter(|op| {
                    op.invoked >= time && matches!(op.outcome, Outcome::Written(_) | Outcome::Deleted)
                })
                .min_by_key(|op| op.returned);
            if let Some(op) = first {
                return Duration::from_nanos(op.returned - time);
            }
            assert!(Instant::now() < deadline, "no write is acknowledged any more:\n{}", self.refusals());
            ops = self.shared.more.wait_timeout(ops, Duration::from_secs(1)).expect("no client panicked").0;
        }
    }

    /// Acknowledged writes that began since `at`, and the longest that one of them took.
    ///
    /// # Panics
    /// Never, unless a client did.
    #[must_use]
    pub fn writes_since(&self, at: Instant) -> (usize, Duration) {
        let time = self.shared.time(at);
        let ops = self.shared.ops.lock().expect("no client panicked");
        let took = ops
            .iter()
            .filter(|op| op.invoked >= time && matches!(op.outcome, Outcome::Written(_) | Outcome::Deleted))
            .map(|op| op.returned - op.invoked);
        let longest = took.clone().max().unwrap_or(0);
        (took.count(), Duration::from_nanos(longest))
    }

    /// The longest time until calls that began since `at` had any answer, or were given up.
    ///
    /// # Panics
    /// Never, unless a client did.
    #[must_use]
    pub fn slowest_answer_since(&self, at: Instant) -> Duration {
        let time = self.shared.time(at);
        let ops = self.shared.ops.lock().expect("no client panicked");
        let took = ops.iter().filter(|op| op.invoked >= time && op.returned != NEVER);
        Duration::from_nanos(took.map(|op| op.returned - op.invoked).max().unwrap_or(0))
    }

    /// Lets it go on for a while.
    pub fn go_on(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Ends it when all servers have answered once more and all watches have seen the last write, and proves
    /// that everything fits.
    ///
    /// # Panics
    /// When something does not fit, with what.
    pub fn finish(self) -> Counts {
        let Self { shared, clients, watchers } = self;
        shared.stop.store(true, Release);
        let number = clients.len();
        for client in clients {
            client.join().expect("no client panicked");
        }
        // Keys above the clients' are nobody else's. Only now: watches must see all that clients did.
        let mut last = Client::new(&shared, number);
        let revision = crate::eventually("a last write", || {
            match last.call(shared.keys + 1, Call::Create(shared.value())) {
                Outcome::Written(revision) => Some(revision),
                _ => {
                    last.call(shared.keys + 1, Call::Delete);
                    None
                }
            }
        });
        shared.last.store(revision, Release);
        for server in 0..shared.servers.len() {
            crate::eventually(&format!("a fresh list from server {}", server + 1), || {
                watcher::list(&shared, server)
            });
        }
        let watches =
            watchers.into_iter().map(|watcher| watcher.join().expect("no watcher panicked")).collect();
        let seconds = shared.began.elapsed().as_secs();
        let ops = std::mem::take(&mut *shared.ops.lock().expect("no client panicked"));
        let history = History { ops, watches };
        let began = Instant::now();
        let counts = match history.check() {
            Ok(counts) => counts,
            Err(why) => panic!("the history \"{}\" of {seconds} s cannot be:\n{why}", shared.name),
        };
        eprintln!(
            "FIGURE history \"{}\" of {seconds} s is linearizable and complete: {counts}; proved in {:?}",
            shared.name,
            began.elapsed()
        );
        let refusals = refusals(&shared);
        if !refusals.is_empty() {
            eprintln!("what else was answered:\n{refusals}");
        }
        counts
    }

    /// What was answered besides what there should be.
    #[must_use]
    pub fn refusals(&self) -> String {
        refusals(&self.shared)
    }
}

fn refusals(shared: &Shared) -> String {
    let mut text = String::new();
    for (what, count) in &*shared.refusals.lock().expect("no client panicked") {
        let _ = writeln!(text, "  {count:>5} x {what}");
    }
    text
}

/// Random numbers that differ from client to client: which interleavings come about is up to the machine,
/// so a seed would repeat nothing.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

/// One that writes and reads.
struct Client<'a> {
    shared: &'a Shared,
    number: usize,
    server: usize,
    connection: Option<Connection>,
    random: Random,
    /// The revision it saw last of each object.
    known: BTreeMap<usize, Revision>,
}

impl<'a> Client<'a> {
    fn new(shared: &'a Shared, number: usize) -> Self {
        let server = number % shared.servers.len();
        let (connection, known) = (None, BTreeMap::new());
        Self { shared, number, server, connection, random: Random::new(number), known }
    }

    fn run(&mut self) {
        while !self.shared.stopped() {
            let key = self.random.below(self.shared.keys);
            let known = self.known.get(&key).copied();
            let call = match (self.random.below(10), known) {
                (0, _) => Call::Delete,
                (1..=3, _) | (_, None) if self.random.below(3) > 0 => Call::Read,
                (_, None) => Call::Create(self.shared.value()),
                (4..=5, _) => Call::Update(self.shared.value(), None),
                (6..=8, Some(_)) => Call::Update(self.shared.value(), known),
                _ => Call::Read,
            };
            self.call(key, call);
            if self.random.below(20) == 0 {
                self.move_on();
            }
            std::thread::sleep(PACE);
        }
    }

    fn move_on(&mut self) {
        self.connection = None;
        self.server = (self.server + 1) % self.shared.servers.len();
    }

    /// One call, written down.
    fn call(&mut self, key: usize, call: Call) -> Outcome {
        if self.connection.is_none() {
            match Connection::open(&self.shared.servers[self.server], ANSWER) {
                Ok(connection) => self.connection = Some(connection),
                // Nothing was asked.
                Err(error) => {
                    self.shared.refused(format!("connecting: {error}"));
                    self.move_on();
                    return Outcome::Refused;
                }
            }
        }
        let (server, client) = (self.server, self.number);
        let invoked = self.shared.now();
        let outcome = self.exchange(key, call).unwrap_or_else(|error| {
            self.shared.refused(format!("no answer: {error}"));
            self.move_on();
            Outcome::Unknown
        });
        let returned = if outcome == Outcome::Unknown { NEVER } else { self.shared.now() };
        self.shared.note(Op { client, server, key, call, invoked, returned, outcome });
        match outcome {
            Outcome::Written(revision) | Outcome::Found(revision, _) => {
                self.known.insert(key, revision);
            }
            Outcome::Deleted | Outcome::Absent => {
                self.known.remove(&key);
            }
            Outcome::Exists | Outcome::Conflict => {
                // Conflicts are wanted, but not for ever.
                if self.random.below(2) == 0 {
                    self.known.remove(&key);
                }
            }
            Outcome::Refused | Outcome::Unknown => {}
        }
        outcome
    }

    fn exchange(&mut self, key: usize, call: Call) -> std::io::Result<Outcome> {
        let Some(connection) = &mut self.connection else { return Ok(Outcome::Refused) };
        let name = format!("{}-{key}", self.shared.name);
        let object = |value: Value, expected: Option<Revision>| {
            let expected = expected.map_or(String::new(), |at| format!(r#","resourceVersion":"{at}""#));
            format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"{expected}}},"data":{{"v":"{value}"}}}}"#
            )
        };
        let one = format!("{MAPS}/{name}");
        match call {
            Call::Create(value) => connection.send("POST", MAPS, &object(value, None))?,
            Call::Update(value, expected) => connection.send("PUT", &one, &object(value, expected))?,
            Call::Delete => connection.send("DELETE", &one, "")?,
            Call::Read => connection.send("GET", &one, "")?,
        }
        let head = connection.head()?;
        let body = connection.body(&head)?;
        let json = || serde_json::from_slice::<Json>(&body).unwrap_or_default();
        let outcome = match (call, head.status) {
            (Call::Create(_) | Call::Update(..), 200 | 201) => {
                contents(&json()).map(|(revision, _)| Outcome::Written(revision))
            }
            (Call::Read, 200) => contents(&json()).map(|(revision, value)| Outcome::Found(revision, value)),
            (Call::Delete, 200) => Some(Outcome::Deleted),
            (Call::Read | Call::Delete | Call::Update(..), 404) => Some(Outcome::Absent),
            (Call::Create(_), 409) if json()["reason"] == "AlreadyExists" => Some(Outcome::Exists),
            (Call::Update(_, Some(_)), 409) if json()["reason"] == "Conflict" => Some(Outcome::Conflict),
            (Call::Read, status) if status >= 500 => Some(Outcome::Refused),
            (_, 403 | 429) => Some(Outcome::Refused),
            (_, status) if status >= 500 => Some(Outcome::Unknown),
            _ => None,
        };
        if matches!(outcome, Some(Outcome::Refused | Outcome::Unknown)) {
            let kind = if call == Call::Read { "read" } else { "write" };
            self.shared.refused(format!("{kind}: {} {}", head.status, json()["message"]));
        }
        Ok(outcome.unwrap_or_else(|| {
            panic!("{call:?} of {name}: {} {}", head.status, String::from_utf8_lossy(&body))
        }))
    }
}
