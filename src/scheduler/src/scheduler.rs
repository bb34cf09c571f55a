//! The task that owns the scheduler's state: takes changes, runs cycles, starts requests.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kedge_base::{Chain, Tasks};
use kedge_client::{Change, EventType, Informers, Recorder, Watched, reference};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use crate::Config;
use crate::binding;
use crate::cache::Cache;
use crate::cycle::{Algorithm, Diagnosis, Nominated, Outcome};
use crate::framework::{
    Cluster, CycleState, Events, NAMESPACES, NODE_ADDED, NODE_ALLOCATABLE, NODE_LABELS, NODE_TAINTS,
    POD_ASSIGNED, POD_DELETED, VOLUMES,
};
use crate::lookup::Caches;
use crate::pod::{Interner, PodInfo};
use crate::preemption::preempt;
use crate::queue::Queue;
use crate::resources::resized_spec;

/// How often waiting pods and assumptions are looked over, while there are any.
const SWEEP: Duration = Duration::from_secs(60);
/// After this many cycles in a row other tasks of the thread get their turn.
const CYCLES_PER_TURN: u32 = 16;

const GATED: &str = "Scheduling is blocked due to non-empty scheduling gates";

enum Message {
    Pod { old: Option<Arc<Pod>>, new: Option<Arc<Pod>> },
    Node { old: Option<Arc<Node>>, new: Option<Arc<Node>> },
    Namespace { old: Option<Arc<Namespace>>, new: Option<Arc<Namespace>> },
    Volumes,
    Bound { pod: Arc<PodInfo>, result: Result<Bound, kedge_client::Error> },
}

enum Bound {
    Bound,
    WaitsForVolumes,
}

/// Starts the task; after a panic it begins again with fresh state.
pub(crate) fn spawn(config: Config, informers: Informers, tasks: Tasks) {
    let recorder = Recorder::new(informers.client().clone(), &tasks, &config.scheduler_name, "");
    let group = tasks.clone();
    tasks.spawn_restarting("scheduler", move || {
        run(config.clone(), informers.clone(), group.clone(), recorder.clone())
    });
}

fn forward<K: Watched>(
    informers: &Informers,
    sender: &UnboundedSender<Message>,
    make: impl Fn(&Change<K>) -> Message + Send + Sync + 'static,
) {
    let sender = sender.clone();
    informers.informer::<K>().on_change(move |change| {
        // The receiver is gone after a restart; the new run has handlers of its own.
        let _ = sender.send(make(change));
    });
}

async fn run(config: Config, informers: Informers, tasks: Tasks, recorder: Recorder) {
    let lookup = Arc::new(Caches::new(&informers));
    lookup.synced().await;
    informers.informer::<Node>().synced().await;
    informers.informer::<Namespace>().synced().await;
    informers.informer::<Pod>().synced().await;
    let (sender, receiver) = unbounded_channel();
    forward::<Namespace>(&informers, &sender, |change| Message::Namespace {
        old: change.old.clone(),
        new: change.new.clone(),
    });
    forward::<Node>(&informers, &sender, |change| Message::Node {
        old: change.old.clone(),
        new: change.new.clone(),
    });
    forward::<Pod>(&informers, &sender, |change| Message::Pod {
        old: change.old.clone(),
        new: change.new.clone(),
    });
    forward::<PersistentVolumeClaim>(&informers, &sender, |_| Message::Volumes);
    forward::<PersistentVolume>(&informers, &sender, |_| Message::Volumes);
    forward::<StorageClass>(&informers, &sender, |_| Message::Volumes);
    let seed = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(1);
    let scheduler = Scheduler {
        client: informers.client().clone(),
        config,
        tasks,
        recorder,
        lookup,
        sender,
        cache: Cache::default(),
        queue: Queue::default(),
        algorithm: Algorithm::new(seed),
        interner: Interner::default(),
        nominated: Nominated::new(),
        in_flight: 0,
    };
    scheduler.work(receiver).await;
}

struct Scheduler {
    client: kube::Client,
    config: Config,
    tasks: Tasks,
    recorder: Recorder,
    lookup: Arc<Caches>,
    sender: UnboundedSender<Message>,
    cache: Cache,
    queue: Queue,
    algorithm: Algorithm,
    interner: Interner,
    nominated: Nominated,
    in_flight: usize,
}

impl Scheduler {
    async fn work(mut self, mut receiver: UnboundedReceiver<Message>) {
        let mut cycles = 0;
        let mut sweep: Option<Instant> = None;
        loop {
            let mut woken = 0;
            while let Ok(message) = receiver.try_recv() {
                woken |= self.take(message);
            }
            let now = Instant::now();
            if woken != 0 {
                self.queue.wake(woken, now);
            }
            let may_bind = self.in_flight < self.config.max_bindings;
            if may_bind && self.queue.has_active(now) {
                self.cycle(now);
                cycles += 1;
                if cycles % CYCLES_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            if sweep.is_none() && (self.queue.has_unschedulable() || self.cache.has_assumed()) {
                sweep = Some(now + SWEEP);
            }
            let backoff = self.queue.next_backoff().filter(|_| may_bind);
            let until = [backoff, sweep].into_iter().flatten().min();
            let alarm = async move {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = receiver.recv() => {
                    if let Some(message) = message {
                        let woken = self.take(message);
                        self.queue.wake(woken, Instant::now());
                    }
                }
                () = alarm => {}
            }
            let now = Instant::now();
            if sweep.is_some_and(|at| at <= now) {
                sweep = None;
                self.queue.flush(now);
                if self.cache.expire(now) > 0 {
                    self.queue.wake_all(now);
                }
            }
        }
    }

    /// Applies a change and says what it may make possible.
    fn take(&mut self, message: Message) -> Events {
        match message {
            Message::Pod { old, new } => self.pod_changed(old.as_ref(), new),
            Message::Node { old, new: Some(new) } => {
                self.cache.set_node(new.clone());
                node_events(old.as_deref(), &new)
            }
            Message::Node { old, new: None } => {
                if let Some(name) = old.and_then(|node| node.metadata.name.clone()) {
                    self.cache.remove_node(&name);
                }
                0
            }
            Message::Namespace { old, new } => {
                let name = new.as_ref().or(old.as_ref()).and_then(|n| n.metadata.name.clone());
                let name = name.unwrap_or_default();
                match new {
                    Some(namespace) => {
                        let labels = namespace.metadata.labels.clone().unwrap_or_default();
                        let changed = self.cache.namespaces.get(&name) != Some(&labels);
                        self.cache.namespaces.insert(name, labels);
                        if changed { NAMESPACES } else { 0 }
                    }
                    None => {
                        self.cache.namespaces.remove(&name);
                        0
                    }
                }
            }
            Message::Volumes => VOLUMES,
            Message::Bound { pod, result } => self.bound(&pod, result),
        }
    }

    fn pod_changed(&mut self, old: Option<&Arc<Pod>>, new: Option<Arc<Pod>>) -> Events {
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        let mut events = 0;
        let mut old = old;
        if let Some(before) = old
            && new.as_ref().is_none_or(|new| uid(new) != uid(before))
        {
            events |= self.pod_gone(&uid(before));
            old = None;
        }
        let Some(new) = new else { return events };
        let phase = new.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if phase == "Succeeded" || phase == "Failed" {
            return events | self.pod_gone(&uid(&new));
        }
        let changed = old.is_none_or(|old| {
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
                // While it is resized its status counts too.
                || resized_spec(old).is_some()
                || resized_spec(&new).is_some()
        });
        let spec = new.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty());
        if let Some(node) = node {
            let uid = uid(&new);
            self.queue.remove(&uid);
            self.drop_nomination(&uid);
            if changed || !self.cache.has_pod(&uid) {
                let info = Arc::new(PodInfo::new(new, &mut self.interner));
                self.cache.set_pod(info, &node);
                events |= POD_ASSIGNED;
                if old.is_some() {
                    // It may have been resized or relabelled.
                    events |= POD_DELETED;
                }
            }
            return events;
        }
        let ours = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler")
            == self.config.scheduler_name;
        if !ours || new.metadata.deletion_timestamp.is_some() {
            return events | self.pod_gone(&uid(&new));
        }
        let gated = spec.is_some_and(|spec| spec.scheduling_gates.iter().flatten().next().is_some());
        let info = Arc::new(PodInfo::new(new, &mut self.interner));
        if gated && !binding::has_condition(&info.pod, "SchedulingGated", GATED) {
            self.mark(&info, "SchedulingGated", GATED.to_owned(), None);
        }
        self.drop_nomination(&info.uid);
        self.nominate(&info, info.nominated_node());
        self.queue.set(info, gated, changed, Instant::now());
        events
    }

    fn pod_gone(&mut self, uid: &str) -> Events {
        self.queue.remove(uid);
        let nominated = self.drop_nomination(uid);
        if self.cache.remove_pod(uid) || nominated { POD_DELETED } else { 0 }
    }

    fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        if let Some(node) = node {
            self.nominated.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }

    fn drop_nomination(&mut self, uid: &str) -> bool {
        if self.nominated.is_empty() {
            return false;
        }
        let mut found = false;
        self.nominated.retain(|_, pods| {
            let before = pods.len();
            pods.retain(|pod| pod.uid != uid);
            found |= pods.len() != before;
            !pods.is_empty()
        });
        found
    }

    fn bound(&mut self, pod: &Arc<PodInfo>, result: Result<Bound, kedge_client::Error>) -> Events {
        let now = Instant::now();
        self.in_flight -= 1;
        match result {
            Ok(Bound::Bound) => {
                self.cache.finish_binding(&pod.uid, now);
                0
            }
            Ok(Bound::WaitsForVolumes) => {
                let forgotten = self.cache.forget(&pod.uid);
                // The claims may have been bound before this message came.
                self.queue.failed(&pod.uid, now);
                if forgotten { POD_DELETED } else { 0 }
            }
            Err(error) => {
                let message = format!("binding rejected: {}", Chain(&error));
                tracing::debug!(pod = %pod.name, namespace = pod.namespace(), error = %Chain(&error), "binding failed");
                let forgotten = self.cache.forget(&pod.uid);
                if self.queue.get(&pod.uid).is_some() {
                    self.queue.failed(&pod.uid, now);
                    self.recorder.event(
                        reference(&*pod.pod),
                        EventType::Warning,
                        "FailedScheduling",
                        &*message,
                    );
                    self.mark(pod, "SchedulerError", message, None);
                }
                if forgotten { POD_DELETED } else { 0 }
            }
        }
    }

    /// One pod's scheduling cycle.
    fn cycle(&mut self, now: Instant) {
        let Some(pod) = self.queue.pop(now) else { return };
        if self.cache.has_pod(&pod.uid) {
            return;
        }
        self.cache.refresh();
        let mut state = CycleState::default();
        let cluster = Cluster { cache: &self.cache, lookup: &*self.lookup };
        match self.algorithm.schedule(&mut state, &pod, cluster, &self.nominated) {
            Outcome::Fits(index) => {
                let node = self.cache.node(index).name.clone();
                let volumes = state.volumes.filter(|volumes| volumes.is_waiting());
                let waiting = volumes.is_some();
                let actions =
                    volumes.map(|volumes| volumes.actions(self.cache.node(index))).unwrap_or_default();
                if waiting && actions.is_empty() {
                    // All is said; the volume controller or the provisioner has to act.
                    self.queue.unschedulable(&pod.uid, VOLUMES, now);
                    return;
                }
                self.drop_nomination(&pod.uid);
                self.cache.assume(pod.clone(), &node);
                self.start_binding(pod, node, actions);
            }
            Outcome::NoNodes => {
                self.queue.unschedulable(&pod.uid, NODE_ADDED, now);
                self.refuse(&pod, "no nodes available to schedule pods".to_owned(), None);
            }
            Outcome::Unfit(diagnosis) => self.unfit(&pod, &state, &diagnosis, now),
        }
    }

    fn unfit(&mut self, pod: &Arc<PodInfo>, state: &CycleState, diagnosis: &Diagnosis, now: Instant) {
        let events = self.algorithm.framework.wakes_on(diagnosis.plugins);
        // Placed pods that leave or are placed change what is possible beside nodes' own changes.
        self.queue.unschedulable(&pod.uid, events, now);
        let mut message = diagnosis.message();
        let cluster = Cluster { cache: &self.cache, lookup: &*self.lookup };
        let nominated = match preempt(&self.algorithm, state, pod, diagnosis, cluster, &self.nominated) {
            Ok(candidate) => {
                self.drop_nomination(&pod.uid);
                self.nominate(pod, Some(&candidate.node));
                for victim in candidate.victims {
                    self.evict(victim, pod, &candidate.node);
                }
                Some(candidate.node)
            }
            Err(reason) => {
                message.push_str(" preemption: ");
                message.push_str(&reason);
                let waits = reason.starts_with("not eligible due to a terminating pod");
                (!waits && pod.nominated_node().is_some()).then(String::new)
            }
        };
        self.refuse(pod, message, nominated);
    }

    /// Event and condition of a pod that fits nowhere.
    fn refuse(&self, pod: &Arc<PodInfo>, message: String, nominated: Option<String>) {
        self.recorder.event(reference(&*pod.pod), EventType::Warning, "FailedScheduling", message.as_str());
        if nominated.is_some() || !binding::has_condition(&pod.pod, "Unschedulable", &message) {
            self.mark(pod, "Unschedulable", message, nominated);
        }
    }

    fn mark(&self, pod: &Arc<PodInfo>, reason: &'static str, message: String, nominated: Option<String>) {
        let (client, pod) = (self.client.clone(), pod.clone());
        self.tasks.spawn_until_stopped("scheduler condition", async move {
            let written =
                binding::mark_unscheduled(&client, &pod, reason, &message, nominated.as_deref()).await;
            if let Err(error) = written
                && !error.is_not_found()
            {
                tracing::debug!(pod = %pod.name, error = %Chain(&error), "condition not written");
            }
        });
    }

    fn evict(&self, victim: Arc<PodInfo>, preemptor: &Arc<PodInfo>, node: &str) {
        if victim.terminating {
            return;
        }
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        let scheduler = self.config.scheduler_name.clone();
        let message = format!("Preempted by pod {} on node {node}", preemptor.uid);
        self.tasks.spawn_until_stopped("scheduler preemption", async move {
            match binding::evict(&client, &victim, &scheduler).await {
                Ok(()) => recorder.event(reference(&*victim.pod), EventType::Normal, "Preempted", message),
                Err(error) => {
                    tracing::warn!(pod = %victim.name, error = %Chain(&error), "preemption failed");
                }
            }
        });
    }

    fn start_binding(
        &mut self,
        pod: Arc<PodInfo>,
        node: String,
        actions: Vec<crate::plugins::volume_binding::Action>,
    ) {
        self.in_flight += 1;
        let (client, recorder, sender) = (self.client.clone(), self.recorder.clone(), self.sender.clone());
        self.tasks.spawn_until_stopped("scheduler binding", async move {
            let result = if actions.is_empty() {
                binding::bind(&client, &pod, &node).await.map(|()| Bound::Bound)
            } else {
                let mut result = Ok(Bound::WaitsForVolumes);
                for action in &actions {
                    if let Err(error) = binding::prepare_volume(&client, action).await {
                        result = Err(error);
                        break;
                    }
                }
                result
            };
            if matches!(result, Ok(Bound::Bound)) {
                let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name);
                recorder.event(reference(&*pod.pod), EventType::Normal, "Scheduled", message);
            }
            let _ = sender.send(Message::Bound { pod, result });
        });
    }
}

fn node_events(old: Option<&Node>, new: &Node) -> Events {
    let Some(old) = old else { return NODE_ADDED };
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    let spec = |node: &Node| node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable));
    let mut events = 0;
    if allocatable(old) != allocatable(new) {
        events |= NODE_ALLOCATABLE;
    }
    if old.metadata.labels != new.metadata.labels {
        events |= NODE_LABELS;
    }
    if spec(old) != spec(new) {
        events |= NODE_TAINTS;
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_a_node_change_may_help() {
        let old = testing::node("a").build();
        for (new, expected) in [
            (testing::node("a"), 0),
            (testing::node("a").allocatable("cpu", "8"), NODE_ALLOCATABLE),
            (testing::node("a").label("x", "y"), NODE_LABELS),
            (testing::node("a").unschedulable(), NODE_TAINTS),
            (testing::node("a").taint("k", "v", "NoSchedule").label("x", "y"), NODE_TAINTS | NODE_LABELS),
        ] {
            assert_eq!(node_events(Some(&old), &new.build()), expected);
        }
        assert_eq!(node_events(None, &old), NODE_ADDED);
    }
}
