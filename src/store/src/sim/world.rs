//! The simulated world: members, their disks, the network between them, clients, and bad luck.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::{Arc, Mutex};

use raft::eraftpb::{Message, MessageType};

use super::check::{History, Watcher};
use super::disk::Disk;
use super::weather::Random;
use crate::core::{Append, Core, Output, Settings};
use crate::error::CommitError;
use crate::membership;
use crate::raftlog::SnapshotId;
use crate::state::State;
use crate::types::Revision;

/// Milliseconds of faults; then everything heals.
pub(super) const STORMY: u64 = 8_000;
/// Until then the group must have come to rest.
const END: u64 = 60_000;
/// Changes of the members write this instead of a number.
pub(super) const NO_OP: u64 = u64::MAX;

pub(super) enum Event {
    /// The number tells lives apart: what was meant for an earlier life does not happen.
    Tick(u64, u64),
    Deliver(Message, Option<State>),
    Appended(u64, u64),
    Installed(u64, u64, State),
    SnapshotMade(u64, u64, SnapshotId, State),
    SnapshotSent(u64, u64, u64, bool),
    Client,
    Fault,
    Restart(u64),
    Heal,
}

pub(super) struct Node {
    life: u64,
    /// `None` while it is down.
    pub(super) core: Option<Core<u64, u64>>,
    out: Output<u64, u64>,
    disk: Disk,
    /// What is being written.
    appending: Option<Append>,
    installing: bool,
    making: bool,
    /// Snapshots that have arrived.
    received: HashMap<(u64, u64), State>,
    /// Milliseconds between its ticks: clocks differ.
    pace: u64,
    /// How slow its disk is at most, in milliseconds.
    disk_time: u64,
}

pub(super) struct World {
    seed: u64,
    pub(super) random: Random,
    pub(super) now: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    waiting: HashMap<u64, Event>,
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) cut: BTreeSet<(u64, u64)>,
    lossy: u64,
    pub(super) history: Arc<Mutex<History>>,
    /// Reads under way: the acknowledged revision when they began.
    pub(super) reads: Vec<Revision>,
    pub(super) next_id: u64,
    pub(super) calm: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let lossy = [0, 0, 50, 10][random.below(4) as usize];
        let mut world = Self {
            seed,
            random,
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            waiting: HashMap::new(),
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            lossy,
            history: Arc::default(),
            reads: Vec::new(),
            next_id: 2,
            calm: false,
        };
        world.create(1, Disk::new(1, vec![1]));
        world.start(1);
        world
    }

    pub(super) fn create(&mut self, id: u64, disk: Disk) {
        let pace = 45 + self.random.below(12);
        let disk_time = [1, 3, 20, 120][self.random.below(4) as usize];
        let node = Node {
            life: 0,
            core: None,
            out: Output::default(),
            disk,
            appending: None,
            installing: false,
            making: false,
            received: HashMap::new(),
            pace,
            disk_time,
        };
        self.nodes.insert(id, node);
    }

    pub(super) fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + delay, self.sequence)));
        self.waiting.insert(self.sequence, event);
    }

    pub(super) fn run(mut self) -> Result<(), String> {
        self.admit(1);
        self.at(1, Event::Client);
        self.at(500, Event::Fault);
        self.at(STORMY, Event::Heal);
        while let Some(Reverse((now, sequence))) = self.events.pop() {
            self.now = now;
            let Some(event) = self.waiting.remove(&sequence) else { continue };
            self.happen(event);
            self.history.lock().unwrap().result()?;
            if self.calm && self.is_settled() {
                return self.final_check();
            }
            if now > END {
                return Err(format!("no rest after {END} ms: {}", self.describe()));
            }
        }
        Err("nothing happens any more".into())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(id, life) => self.tick(id, life),
            Event::Deliver(message, state) => self.deliver(message, state),
            Event::Appended(id, life) => self.appended(id, life),
            Event::Installed(id, life, state) => {
                let Some(node) = self.alive(id, life) else { return };
                node.disk.install(&state);
                node.installing = false;
                let Node { core: Some(core), out, .. } = node else { return };
                core.installed(state, out);
                self.drive(id);
            }
            Event::SnapshotMade(id, life, snapshot, state) => {
                let Some(node) = self.alive(id, life) else { return };
                node.making = false;
                node.disk.flush(&state);
                node.disk.cut();
                node.disk.snapshot = Some((snapshot.clone(), state));
                if let Some(core) = &mut node.core {
                    core.offer(snapshot);
                }
                self.drive(id);
            }
            Event::SnapshotSent(id, life, to, arrived) => {
                let Some(node) = self.alive(id, life) else { return };
                if let Some(core) = &mut node.core {
                    core.snapshot_sent(to, arrived);
                }
                self.drive(id);
            }
            Event::Client => self.client(),
            Event::Fault => self.fault(),
            Event::Restart(id) => {
                if self.nodes.get(&id).is_some_and(|node| node.core.is_none()) {
                    self.start(id);
                }
            }
            Event::Heal => {
                self.calm = true;
                self.cut.clear();
                self.lossy = 0;
                let down: Vec<u64> =
                    self.nodes.iter().filter(|(_, n)| n.core.is_none()).map(|(id, _)| *id).collect();
                for id in down {
                    self.start(id);
                }
            }
        }
    }

    fn alive(&mut self, id: u64, life: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&id).filter(|node| node.life == life && node.core.is_some())
    }

    pub(super) fn start(&mut self, id: u64) {
        let seed = self.random.next();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.life += 1;
        let (state, log) = node.disk.load(id);
        let settings = Settings { id, seed, replace_after: 60, forget_after: 60, patience: 60, lag: 8 };
        let watcher = Watcher { member: id, history: self.history.clone() };
        let mut core = Core::new(settings, state, log, Arc::new(watcher)).unwrap();
        core.set_muted(false);
        (node.core, node.out) = (Some(core), Output::default());
        (node.appending, node.installing, node.making) = (None, false, false);
        node.received.clear();
        let (life, pace) = (node.life, node.pace);
        let phase = self.random.below(pace);
        self.drive(id);
        if let Some(core) = self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()) {
            core.lead().unwrap();
        }
        self.drive(id);
        self.at(phase, Event::Tick(id, life));
    }

    pub(super) fn crash(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.core = None;
        if let Some(append) = node.appending.take() {
            node.disk.tear(&append, &mut self.random);
        }
        let back = 100 + self.random.below(3000);
        self.at(back, Event::Restart(id));
    }

    fn tick(&mut self, id: u64, life: u64) {
        let Some(node) = self.alive(id, life) else { return };
        let pace = node.pace;
        let Node { core: Some(core), out, .. } = node else { return };
        if !core.is_alone() {
            core.tick(out);
        }
        self.drive(id);
        self.maybe_flush(id);
        self.at(pace, Event::Tick(id, life));
    }

    fn maybe_flush(&mut self, id: u64) {
        let (flush, cut) = (self.random.one_in(20), self.random.one_in(3));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        // One at a time writes the engine.
        let busy = node.making || node.installing || node.out.install.is_some();
        if let Some(core) = node.core.as_ref().filter(|_| flush && !busy) {
            node.disk.flush(&core.state);
            if cut {
                node.disk.cut();
            }
        }
    }

    /// Carries out what a core wants done.
    pub(super) fn drive(&mut self, id: u64) {
        loop {
            let (slow, fails, now_or_later) =
                (self.random.next(), self.random.one_in(400), self.random.one_in(3));
            let calm = self.calm;
            let Some(node) = self.nodes.get_mut(&id) else { return };
            let life = node.life;
            let Node { core: Some(core), out, .. } = node else { return };
            core.drive(out).unwrap();
            // A term that is not on the disk yet was never seen by anybody and may be forgotten.
            if core.is_leader() && core.term_is_durable() {
                self.history.lock().unwrap().lead(core.term(), id);
            }
            let messages = std::mem::take(&mut out.messages);
            let commits = std::mem::take(&mut out.commits);
            let reads = std::mem::take(&mut out.reads);
            let delay = slow % node.disk_time;
            if core.wants_snapshot() && !node.making && !node.installing && node.out.install.is_none() {
                node.making = true;
                let meta = core.state.meta.clone();
                core.hold(meta.applied);
                let snapshot =
                    SnapshotId { index: meta.applied, term: meta.applied_term, members: meta.members };
                let event = Event::SnapshotMade(id, life, snapshot, core.state.clone());
                self.at(delay + slow % 200, event);
            }
            for message in messages {
                self.send(message, life);
            }
            let mut history = self.history.lock().unwrap();
            for (token, result) in commits {
                if token != NO_OP {
                    history.answered(token as usize, &result);
                }
            }
            for (token, result) in reads {
                if let Ok(revision) = result {
                    history.read(self.reads[token as usize], revision);
                }
            }
            drop(history);
            let Some(node) = self.nodes.get_mut(&id) else { return };
            if node.appending.is_some() || node.installing || node.making && node.out.install.is_some() {
                return;
            }
            if let Some(snapshot) = node.out.install.take() {
                let Some(state) = node.received.remove(&(snapshot.index, snapshot.term)) else {
                    return self.history.lock().unwrap().fail("a snapshot that was never received".into());
                };
                node.installing = true;
                return self.at(delay + slow % 300, Event::Installed(id, life, state));
            }
            let Some(append) = node.out.append.take() else { return };
            if fails && !calm && self.now > 0 {
                return self.disk_full(id, &append);
            }
            node.appending = Some(append);
            if now_or_later {
                self.appended_now(id);
            } else {
                return self.at(delay, Event::Appended(id, life));
            }
        }
    }

    fn appended(&mut self, id: u64, life: u64) {
        if self.alive(id, life).is_some() {
            self.appended_now(id);
            self.drive(id);
        }
    }

    fn appended_now(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Node { core: Some(core), out, disk, appending, .. } = node else { return };
        let Some(append) = appending.take() else { return };
        disk.append(&append);
        core.persisted(append.number, out);
    }

    /// What could not be written is forgotten, as the driver does it.
    fn disk_full(&mut self, id: u64, append: &Append) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Node { core: Some(core), out, disk, .. } = node else { return };
        let error =
            if core.is_sole_voter() { CommitError::Full } else { CommitError::Unknown(String::new()) };
        let tokens: Vec<u64> = core.take_pending().collect();
        (out.append, out.messages) = (None, vec![]);
        disk.fail(append, &mut self.random);
        let (hard_state, entries) = disk.reread();
        core.restart(hard_state, entries).unwrap();
        for token in tokens {
            if token != NO_OP {
                self.history.lock().unwrap().answered(token as usize, &Err(error.clone()));
            }
        }
    }

    fn send(&mut self, message: Message, life: u64) {
        let (from, to) = (message.from, message.to);
        let mut state = None;
        if message.msg_type() == MessageType::MsgSnapshot {
            let index = message.get_snapshot().get_metadata().index;
            let made = self.nodes.get(&from).and_then(|node| node.disk.snapshot.clone());
            state = made.filter(|(id, _)| id.index == index).map(|(_, state)| state);
            let arrives = state.is_some() && !self.is_lost(from, to);
            let took = 20 + self.random.below(400);
            self.at(took + 10, Event::SnapshotSent(from, life, to, arrives));
            if arrives {
                self.at(took, Event::Deliver(message, state));
            }
            return;
        }
        if self.is_lost(from, to) {
            return;
        }
        let mut delay = 1 + self.random.below(8);
        if !self.calm && self.random.one_in(40) {
            delay += self.random.below(1500);
        }
        if !self.calm && self.random.one_in(40) {
            let again = delay + self.random.below(600);
            self.at(again, Event::Deliver(message.clone(), None));
        }
        self.at(delay, Event::Deliver(message, state));
    }

    fn is_lost(&mut self, from: u64, to: u64) -> bool {
        self.cut.contains(&(from, to)) || self.lossy > 0 && self.random.one_in(self.lossy)
    }

    fn deliver(&mut self, message: Message, state: Option<State>) {
        let to = message.to;
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let Node { core: Some(core), received, .. } = node else { return };
        if let Some(state) = state {
            received.insert((state.meta.applied, state.meta.applied_term), state);
        }
        core.step(message);
        self.drive(to);
    }

    /// Everybody has everything, and the configuration is what the records ask for.
    fn is_settled(&self) -> bool {
        if self.now < STORMY + 1000 {
            return false;
        }
        let Some(leader) = self.leader() else { return false };
        let Some(core) = self.nodes.get(&leader).and_then(|node| node.core.as_ref()) else { return false };
        let members = core.state.members();
        let config = &core.state.meta.members;
        if !core.state.leaving().is_empty() {
            return false;
        }
        // The founder may have been cut short before it announced itself.
        if members.is_empty() {
            return core.is_alone();
        }
        members.contains_key(&leader)
            && core.state.meta.revision == self.history.lock().unwrap().newest()
            && config.voters_outgoing.is_empty()
            && config.voters.len() == membership::wanted_voters(members.len())
            && config.voters.len() + config.learners.len() == members.len()
            && members.keys().all(|id| {
                let member = self.nodes.get(id).and_then(|node| node.core.as_ref());
                member.is_some_and(|member| member.state.meta.applied == core.state.meta.applied)
            })
            && !core.has_pending()
    }

    fn final_check(&self) -> Result<(), String> {
        let history = self.history.lock().unwrap();
        let mut sums = BTreeSet::new();
        for id in self.members() {
            if let Some(core) = self.nodes.get(&id).and_then(|node| node.core.as_ref()) {
                sums.insert((core.state.meta.revision, core.state.meta.sum, core.state.meta.count));
            }
        }
        if sums.len() > 1 {
            return Err(format!("the members differ: {sums:?}"));
        }
        if history.acknowledged > history.newest() {
            return Err("acknowledged transactions are lost".into());
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let mut text = format!("seed {}, cut {:?}", self.seed, self.cut);
        for (id, node) in &self.nodes {
            match &node.core {
                None => text.push_str(&format!("\n{id}: down")),
                Some(core) => text.push_str(&format!(
                    "\n{id}: term {} leader {:?} applied {} revision {} config {:?} members {:?} waits {:?} \
                     busy {:?}",
                    core.term(),
                    core.leader(),
                    core.state.meta.applied,
                    core.state.meta.revision,
                    core.state.meta.members,
                    core.state.members().keys().collect::<Vec<_>>(),
                    core.waits(),
                    (node.appending.is_some(), node.installing, node.making),
                )),
            }
        }
        text
    }
}
