//! What the running node knows about itself: a board that the assembly writes and `kedge status`
//! reads through a unix socket in the run folder.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kedge_base::Tasks;
use kedge_client::Informers;
use kedge_cluster::Role;
use kedge_kubelet::{Registries, Summary};
use kedge_store::Store;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::control::{self, Handler, Reply, Request};
use crate::inspect::SLOW_SYNC;
use crate::node::ops::Ops;
use crate::status::{Component, Datastore, Member, State, Status, Warning, remedy_for};

/// The parts of a node in the order in which they start.
const CONTROL_PLANE: [&str; 6] =
    ["apiserver", "controllers", "scheduler", "containerd", "network", "kubelet"];
const WORKER: [&str; 3] = ["containerd", "network", "kubelet"];
/// A leader that does not answer in this time is not waited for.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);

/// What helps a node that was removed.
const LEAVE: &str = "run kedge leave to make this a single node, then join again";

/// Clones share the board.
#[derive(Clone)]
pub(crate) struct Board(Arc<Inner>);

struct Inner {
    status: watch::Sender<Status>,
    store: OnceLock<Store>,
    snapshots: std::path::PathBuf,
    operations: OnceLock<Ops>,
    registries: OnceLock<Registries>,
    /// What the kubelet's part is made of.
    kubelet: Mutex<KubeletPart>,
    /// The Node object of this node was deleted.
    unregistered: Notify,
}

#[derive(Default)]
struct KubeletPart {
    /// The Node's Ready condition: why not. `None` while nobody knows.
    node: Option<Result<(), String>>,
    /// The API server does not answer.
    api: Option<String>,
}

impl Board {
    /// Make the board and answer on the status socket.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn serve(config: &Config, role: Role, tasks: &Tasks) -> anyhow::Result<Self> {
        let parts = match role {
            Role::ControlPlane => CONTROL_PLANE.as_slice(),
            Role::Worker => &WORKER,
        };
        let part = |name: &&str| Component {
            name: (*name).to_owned(),
            ready: false,
            last_error: None,
            remedy: None,
        };
        let status = Status {
            state: State::Starting,
            components: parts.iter().map(part).collect(),
            ..Status::stopped(&config.node_name)
        };
        let board = Self(Arc::new(Inner {
            status: watch::Sender::new(status),
            store: OnceLock::new(),
            snapshots: config.snapshot_dir(),
            operations: OnceLock::new(),
            registries: OnceLock::new(),
            kubelet: Mutex::default(),
            unregistered: Notify::new(),
        }));
        let answers = board.clone();
        let handler: Handler = Arc::new(move |request| {
            let board = answers.clone();
            Box::pin(async move { board.answer(request).await })
        });
        control::serve(&config.status_socket(), handler, tasks)?;
        Ok(board)
    }

    async fn answer(&self, request: Request) -> Reply {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/status") => Reply::json(&self.now().await),
            _ => match self.0.operations.get() {
                None => Reply::failed(control::STARTING, "the node is starting; see kedge status"),
                Some(operations) => operations
                    .answer(&request)
                    .await
                    .unwrap_or_else(|| Reply::failed(404, "this node knows no such request")),
            },
        }
    }

    /// Answer more than the status from now on.
    pub(crate) fn serve_operations(&self, operations: Ops) {
        // There is one node in a process; a second call would change nothing.
        let _ = self.0.operations.set(operations);
    }

    async fn now(&self) -> Status {
        if let Some(registries) = self.0.registries.get() {
            // Usually a look at the file's time. What is wrong is one of the problems.
            let _ = registries.refresh();
            self.note(&registries.file().display().to_string(), registries.problem().borrow().clone());
        }
        let mut status = self.0.status.borrow().clone();
        if let Some(store) = self.0.store.get() {
            status.datastore = datastore(store).await;
            // Names and sizes only: no file is read.
            let snapshots = crate::snapshot::list(&self.0.snapshots).unwrap_or_default();
            status.datastore.last_snapshot = snapshots.into_iter().next();
            status.warnings = warnings(store);
            if status.datastore.removed
                && let Some(part) =
                    status.components.iter_mut().find(|part| part.name == "kubelet" && !part.ready)
            {
                part.last_error = Some("this node was removed from the cluster".to_owned());
            }
        }
        if status.was_removed() {
            // Nothing else helps, least of all to recover a cluster that lives on without this node.
            status.problems.clear();
            for part in status.components.iter_mut().filter(|part| !part.ready) {
                part.remedy = part.last_error.is_some().then(|| LEAVE.to_owned());
            }
        } else if self.0.store.get().is_some() && !status.datastore.has_leader {
            without_leader(&mut status);
        }
        status
    }

    /// The addresses that the node announces, and those of the API server itself.
    pub(crate) fn set_addresses(&self, addresses: &[IpAddr], virtual_addresses: &[IpAddr]) {
        let text = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect();
        self.0.status.send_modify(|status| {
            status.addresses = text(addresses);
            status.virtual_addresses = text(virtual_addresses);
        });
    }

    /// How pods reach those of other nodes.
    pub(crate) fn set_pod_network(&self, backend: &str) {
        self.0.status.send_if_modified(|status| {
            let changed = status.pod_network != backend;
            backend.clone_into(&mut status.pod_network);
            changed
        });
    }

    /// Their file is read when somebody asks, so that a mistake shows before the next pull.
    pub(crate) fn follow_registries(&self, registries: Registries) {
        // There is one kubelet in a process; a second call would change nothing.
        let _ = self.0.registries.set(registries);
    }

    /// The store tells its figures when somebody asks.
    pub(crate) fn follow_store(&self, store: Store) {
        // There is one store in a process; a second call would change nothing.
        let _ = self.0.store.set(store);
    }

    /// A part works.
    pub(crate) fn ready(&self, part: &str) {
        self.set(part, true, None, None);
    }

    /// A part does not work, or not yet.
    pub(crate) fn failed(&self, part: &str, error: &str) {
        self.set(part, false, Some(error.to_owned()), remedy_for(part, error));
    }

    /// Why a part does not work, if so.
    pub(crate) fn problem(&self, part: &str) -> Result<(), String> {
        let status = self.0.status.borrow();
        match status.components.iter().find(|component| component.name == part) {
            Some(component) if component.ready => Ok(()),
            Some(component) => {
                Err(component.last_error.clone().unwrap_or_else(|| "it is starting".to_owned()))
            }
            None => Err("it does not run here".to_owned()),
        }
    }

    /// One more part that has to become ready, before the others.
    pub(crate) fn expect(&self, part: &str) {
        let part = Component { name: part.to_owned(), ready: false, last_error: None, remedy: None };
        self.0.status.send_modify(|status| status.components.insert(0, part));
    }

    /// The cluster says that this node is none of its. That is why nothing works, whatever the parts say.
    pub(crate) fn removed(&self, why: &str) {
        self.set("kubelet", false, Some(why.to_owned()), Some(LEAVE.to_owned()));
        self.0.status.send_modify(|status| status.in_cluster = Some(false));
    }

    /// Returns when this node's Node object was deleted: perhaps the node was removed from the cluster.
    pub(crate) async fn until_unregistered(&self) {
        self.0.unregistered.notified().await;
    }

    /// The cluster says that this node is one of its.
    pub(crate) fn belongs(&self) {
        self.0.status.send_modify(|status| status.in_cluster = Some(true));
    }

    /// Something beside the parts that an operator has to mend, or (`None`) that it is mended. It does not
    /// make the node less ready.
    pub(crate) fn note(&self, what: &str, problem: Option<String>) {
        self.0.status.send_if_modified(|status| match problem {
            Some(problem) => {
                status.problems.insert(what.to_owned(), problem.clone()).as_ref() != Some(&problem)
            }
            None => status.problems.remove(what).is_some(),
        });
    }

    fn set(&self, part: &str, ready: bool, error: Option<String>, remedy: Option<String>) {
        self.0.status.send_if_modified(|status| {
            if status.in_cluster == Some(false) && part == "kubelet" {
                return false;
            }
            let before = status.clone();
            if let Some(component) = status.components.iter_mut().find(|component| component.name == part) {
                component.ready = ready;
                component.last_error = error;
                component.remedy = remedy;
            }
            status.state = match (status.components.iter().all(|component| component.ready), status.state) {
                (true, _) => State::Ready,
                (false, State::Ready | State::Degraded) => State::Degraded,
                (false, state) => state,
            };
            *status != before
        });
    }

    /// The kubelet is ready when its Node object says so; its own words say why not. What it sees of the
    /// machine says whether containerd and the network plugins are there.
    pub(crate) fn follow_node(
        &self,
        name: &str,
        informers: &Informers,
        mut kubelet: watch::Receiver<Summary>,
        tasks: &Tasks,
    ) {
        let board = self.clone();
        let informer = informers.informer_with_fields::<Node>(&format!("metadata.name={name}"));
        informer.on_change(move |change| {
            let conditions = change.new.as_ref().and_then(|node| node.status.as_ref()?.conditions.as_ref());
            let condition =
                conditions.and_then(|list| list.iter().find(|condition| condition.type_ == "Ready"));
            let node = match condition {
                Some(condition) if condition.status == "True" => Ok(()),
                Some(condition) => Err(condition.message.as_deref().unwrap_or("not ready").to_owned()),
                None => Err("the node is not registered".to_owned()),
            };
            if condition.is_none() {
                board.0.unregistered.notify_one();
            }
            board.0.kubelet.lock().node = Some(node);
            board.tell_kubelet();
        });
        let board = self.clone();
        tasks.spawn_until_stopped("kubelet's status", async move {
            loop {
                let now = kubelet.borrow_and_update().clone();
                board.tell("containerd", now.runtime.as_deref());
                board.tell("network", now.plugins.as_deref());
                board.0.kubelet.lock().api = now.api;
                board.tell_kubelet();
                if kubelet.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn tell(&self, part: &str, problem: Option<&str>) {
        match problem {
            None => self.ready(part),
            Some(problem) => self.failed(part, problem),
        }
    }

    fn tell_kubelet(&self) {
        let part = self.0.kubelet.lock();
        match (&part.api, &part.node) {
            // Why it is so has been told.
            (Some(_), _) if self.0.status.borrow().was_removed() => {}
            (Some(problem), _) => self.failed("kubelet", problem),
            (None, Some(node)) => self.tell("kubelet", node.as_ref().err().map(String::as_str)),
            (None, None) => {}
        }
    }

    /// Returns when every part works, or when the tasks are asked to stop.
    pub(crate) async fn all_ready(&self, tasks: &Tasks) {
        let mut status = self.0.status.subscribe();
        // The sender lives in `self`, so the channel cannot close.
        let _ =
            tasks.token().run_until_cancelled(status.wait_for(|status| status.state == State::Ready)).await;
    }
}

/// The API server reads on alone, which is not what it is for.
fn without_leader(status: &mut Status) {
    if status.state == State::Ready {
        status.state = State::Degraded;
    }
    let Some(part) = status.components.iter_mut().find(|part| part.name == "apiserver") else { return };
    part.ready = false;
    part.last_error.get_or_insert_with(|| {
        "there is no leader: what is stored can be read, nothing can be written".to_owned()
    });
    part.remedy.get_or_insert_with(|| {
        "a majority of the voters must run and reach each other: see kedge status on them; when they are lost for \
         good: kedge recover"
            .to_owned()
    });
}

/// What works, but will bite.
fn warnings(store: &Store) -> Vec<Warning> {
    let warning = |name: &str, message: String, remedy: &str| Warning {
        name: name.to_owned(),
        message,
        remedy: remedy.to_owned(),
    };
    let mut warnings = Vec::new();
    let stats = store.stats();
    if stats.disk_full {
        warnings.push(warning(
            "disk full",
            "writes are refused until there is space in the data folder's file system".to_owned(),
            "free some space (df -h); kedge goes on by itself",
        ));
    }
    if stats.quota_exceeded || stats.quota_bytes > 0 && stats.bytes >= stats.quota_bytes / 5 * 4 {
        let (name, what) = if stats.quota_exceeded {
            ("store full", "nothing is added (mvcc: database space exceeded); reading and deleting go on")
        } else {
            ("store filling", "beyond that nothing is added")
        };
        let (bytes, quota) = (crate::snapshot::size(stats.bytes), crate::snapshot::size(stats.quota_bytes));
        warnings.push(warning(
            name,
            format!("the objects take {bytes} of {quota}: {what}"),
            "delete what is not needed (kedge kubectl get --raw /metrics | grep storage_objects counts them), or \
             raise --store-quota on the control-plane nodes and start them again",
        ));
    }
    if stats.sync_lately > SLOW_SYNC {
        let took = stats.sync_lately;
        warnings.push(warning(
            "disk slow",
            format!("a write takes {} ms until it is on the disk, and every change waits for it", took.as_millis()),
            "put the data folder on a better disk (--data-dir; an SSD in place of an SD card), and end what else \
             writes to this one",
        ));
    }
    warnings
}

/// The store's group in the words of `kedge status`.
async fn datastore(store: &Store) -> Datastore {
    // Health is what the leader alone knows; without one this node tells what it has.
    let asked = tokio::time::timeout(LEADER_PATIENCE, store.leader_status()).await;
    let own = store.status().borrow().clone();
    let status = match asked {
        Ok(Ok(status)) => kedge_store::Status { id: own.id, removed: own.removed, ..status },
        _ => own,
    };
    let own = status.members.iter().find(|member| member.id == status.id);
    let role = if status.leader == Some(status.id) {
        "leader"
    } else {
        match own.map(|member| member.role) {
            Some(kedge_store::Role::Voter) => "voter",
            Some(kedge_store::Role::Standby) => "standby",
            Some(kedge_store::Role::Joining) => "joining",
            Some(kedge_store::Role::Leaving) => "leaving",
            None => "alone",
        }
    };
    let word = |role| match role {
        kedge_store::Role::Voter => "voter",
        kedge_store::Role::Standby => "standby",
        kedge_store::Role::Joining => "joining",
        kedge_store::Role::Leaving => "leaving",
    };
    let members = status
        .members
        .iter()
        .filter_map(|member| {
            let record = member.member.as_ref()?;
            Some(Member {
                name: record.name.clone(),
                id: format!("{:016x}", member.id),
                address: record.address.clone(),
                role: word(member.role).to_owned(),
                leader: member.is_leader,
                healthy: member.healthy,
            })
        })
        .collect();
    Datastore {
        role: role.to_owned(),
        revision: store.revision(),
        high_availability: status.high_availability,
        has_leader: status.leader.is_some(),
        waits: status.waits.clone(),
        removed: status.removed,
        term: status.term,
        bytes: store.stats().bytes,
        quota_bytes: store.stats().quota_bytes,
        members,
        last_snapshot: None,
        sync_micros: Some(store.stats().sync_lately)
            .filter(|took| !took.is_zero())
            .and_then(|took| u64::try_from(took.as_micros()).ok()),
    }
}
