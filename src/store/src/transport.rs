//! How members talk: tonic over connections that somebody else opens and secures. Knows addresses, queues
//! and streams; what is in a message is Raft's business.
//!
//! To each peer go two streams of Raft messages, one for what is small and urgent, one for entries, so that
//! no heartbeat waits behind a big append; snapshots travel on a stream of their own. Queues are bounded and
//! the newest message wins: Raft repeats what is lost.

mod client;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod lane;
mod peer;
mod service;
mod snapshots;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use kedge_base::Tasks;
use parking_lot::RwLock;
use raft::eraftpb::{Message, MessageType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use self::peer::PeerHandle;
pub(crate) use self::service::Service;
use crate::error::{CommitError, Error};
use crate::node::{Msg, Proposal};
use crate::recover::Paths;
use crate::status::Status;
use crate::types::Revision;

/// A connection to another member.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// What [`Dial::dial`] returns.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Opens connections to the cluster port of other members: encrypted, and sure to lead to that member. The
/// store does not care how.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a member at `host:port`. Should give up after a few seconds.
    fn dial(&self, member_id: u64, address: &str) -> Dialing;
}

/// Who is at the other end of a connection. Whoever serves [`crate::Store::service`] puts it into each
/// request's extensions, as the connection's certificate says; without it every request is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The member's id, if the certificate names it.
    pub member_id: Option<u64>,
    /// The node's name otherwise; compared with the member's record.
    pub name: Option<String>,
}

/// What came of a transaction that was sent to the leader.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It did not happen: it was not sent, or the other one does not lead.
    NotSent,
    /// It was sent, but there was no answer.
    Lost(String),
    /// The answer; it holds once this member has applied everything up to `seen`.
    Answer { result: Result<Revision, CommitError>, seen: Revision },
}

/// The sending half. Owned by the store's thread; never blocks.
pub(crate) struct Transport {
    context: Arc<Context>,
    peers: HashMap<u64, PeerHandle>,
}

/// What all tasks of the transport need.
pub(crate) struct Context {
    dial: Arc<dyn Dial>,
    runtime: Handle,
    tasks: Tasks,
    snapshots: PathBuf,
    sender: Sender<Msg>,
    /// Where this member can be reached, once its record says so.
    address: RwLock<Option<String>>,
    /// Who leads, as far as this member knows.
    leader: watch::Sender<Option<u64>>,
}

impl Transport {
    pub(crate) fn new(dial: Arc<dyn Dial>, runtime: Handle, paths: &Paths, sender: Sender<Msg>) -> Self {
        let tasks = Tasks::new("store-transport");
        let snapshots = paths.snapshots.clone();
        let (address, leader) = (RwLock::default(), watch::Sender::new(None));
        let context = Context { dial, runtime, tasks, snapshots, sender, address, leader };
        Self { context: Arc::new(context), peers: HashMap::new() }
    }

    fn peer(&mut self, id: u64, address: &str) -> &PeerHandle {
        let moved = self.peers.get(&id).is_some_and(|peer| peer.address() != address);
        if moved {
            // Dropping the handle ends its task.
            self.peers.remove(&id);
        }
        self.peers.entry(id).or_insert_with(|| PeerHandle::start(&self.context, id, address))
    }

    pub(crate) fn send(&mut self, address: &str, message: Message) {
        let context = self.context.clone();
        let peer = self.peer(message.to, address);
        if message.msg_type() == MessageType::MsgSnapshot {
            snapshots::spawn_send(&context, peer.shared(), message);
        } else {
            peer.push(message);
        }
    }

    /// Sends a transaction to the leader; the answer comes as a message to the store's thread.
    pub(crate) fn forward(&mut self, id: u64, address: &str, proposal: Proposal) {
        let context = self.context.clone();
        let peer = self.peer(id, address).shared().clone();
        let sender = context.sender.clone();
        let _guard = context.runtime.enter();
        context.tasks.spawn_until_stopped("forward", async move {
            let outcome = client::forward(&peer, &proposal.data, proposal.lazy).await;
            let _ = sender.send(Msg::Forwarded(proposal, outcome));
        });
    }

    /// Completes `status` with what the leader knows.
    pub(crate) fn ask(
        &mut self,
        id: u64,
        address: &str,
        mut status: Status,
        reply: oneshot::Sender<Result<Status, Error>>,
    ) {
        let context = self.context.clone();
        let peer = self.peer(id, address).shared().clone();
        let _guard = context.runtime.enter();
        context.tasks.spawn_until_stopped("health", async move {
            let asked = client::health(&peer, &mut status).await;
            let _ = reply.send(asked.map(|()| status).map_err(Error::Unavailable));
        });
    }

    /// This member's own address, which it tells others.
    pub(crate) fn set_address(&self, address: Option<&str>) {
        *self.context.address.write() = address.map(str::to_owned);
    }

    /// Who leads now: what is on its way to another one need not wait for an answer any more.
    pub(crate) fn set_leader(&self, leader: Option<u64>) {
        self.context.leader.send_if_modified(|known| std::mem::replace(known, leader) != leader);
    }

    /// Forgets peers that are gone.
    pub(crate) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.peers.retain(|&id, _| keep(id));
    }

    /// Ends all tasks; does not wait for them.
    pub(crate) fn stop(&mut self) {
        self.peers.clear();
        self.context.tasks.token().cancel();
    }
}
