//! Who else is in this node's cluster: asked before what would cost the others something. The running node
//! is asked; one that is stopped tells by what is on its disk.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use kedge_cluster::{Admitted, Pki, Role};
use kedge_store::backup;

use crate::config::Config;
use crate::control::{self, CallError};
use crate::node::ops;
use crate::output::Step;
use crate::{service, status};

const SOON: Duration = Duration::from_secs(30);
/// How long a node that starts is waited for.
const SERVES: Duration = Duration::from_secs(120);

/// How this node stands to other nodes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// In a cluster with these; with none: a single node.
    With(Vec<String>),
    /// The cluster does without it.
    Removed,
}

impl Standing {
    /// The nodes that would notice what is done here.
    pub(crate) fn names(self) -> Vec<String> {
        match self {
            Self::With(names) => names,
            Self::Removed => Vec::new(),
        }
    }
}

/// What is known here of the other nodes.
///
/// # Errors
/// The node runs, and cannot say it.
pub(crate) fn of(config: &Config) -> anyhow::Result<Standing> {
    let socket = config.status_socket();
    let status = status::ask(&socket).ok().flatten();
    if status.as_ref().is_some_and(status::Status::was_removed) {
        return Ok(Standing::Removed);
    }
    match control::call(&socket, "GET", ops::OTHER_NODES, &(), SOON) {
        Ok(names) => Ok(Standing::With(names)),
        Err(CallError::NotRunning) => on_disk(config),
        Err(error) => {
            // Without a leader it still knows who holds the data with it.
            let members = status.into_iter().flat_map(|status| status.datastore.members);
            let names = members.map(|member| member.name).filter(|name| *name != config.node_name);
            let names: Vec<String> = names.collect();
            if names.is_empty() {
                return Err(error).context("ask this node for the others");
            }
            Ok(Standing::With(names))
        }
    }
}

/// What a stopped node has left: a founder's store tells who came later, a node that joined wrote down whom it
/// knows.
///
/// # Errors
/// What joining wrote is there and cannot be read.
pub(crate) fn on_disk(config: &Config) -> anyhow::Result<Standing> {
    let joined = Admitted::read(&config.pki_dir())?;
    let worker = joined.as_ref().is_some_and(|joined| joined.facts.role == Role::Worker);
    if !worker && let Some(standing) = in_store(config) {
        return Ok(standing);
    }
    let peers = joined.into_iter().flat_map(|joined| joined.peers);
    Ok(Standing::With(peers.map(|peer| peer.name).collect()))
}

/// What the store of a stopped node says; nothing when there is none, when it is empty or cannot be read.
fn in_store(config: &Config) -> Option<Standing> {
    let own = Pki::id_in(&config.pki_dir()).ok().flatten()?;
    let mut store = kedge_store::Config::new(config.store_dir());
    store.node_id = own.get();
    let found = backup::inspect(&store, &kedge_cluster::is_of_nodes).ok()?;
    if found.members.is_empty() {
        return None;
    }
    if found.members.iter().all(|member| member.id != own.get()) {
        return Some(Standing::Removed);
    }
    let book = kedge_cluster::nodes_of(&found.values).into_iter();
    Some(Standing::With(book.filter(|record| record.id != own).map(|record| record.name).collect()))
}

/// Waits while the node starts: until it serves it answers nothing but its status.
pub(crate) fn wait_until_it_serves(config: &Config, step: &mut Step) {
    let deadline = Instant::now() + SERVES;
    let socket = config.status_socket();
    while Instant::now() < deadline {
        let text = match control::call::<String>(&socket, "GET", control::PROGRESS, &(), SOON) {
            Err(CallError::Starting(told)) => told.to_string(),
            // Its process is there, its socket not yet.
            Err(CallError::NotRunning) if service::running(config).is_ok_and(|process| process.is_some()) => {
                "the node is starting".to_owned()
            }
            _ => return,
        };
        step.update(&text);
        std::thread::sleep(Duration::from_millis(200));
    }
}
