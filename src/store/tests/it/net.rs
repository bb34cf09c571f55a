//! Stores that talk over TCP on this machine, without encryption: the first eight bytes of a connection say
//! who is there, as a certificate would.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use kedge_base::Tasks;
use kedge_store::{
    Bootstrap, Cluster, Config, Connection, Dial, Dialing, Error, Member, Peer, Revision, Role, Status,
    Store, Txn,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::model::{Mirror, config};

/// Who may talk to whom.
#[derive(Default)]
pub(crate) struct Net {
    blocked: Mutex<HashSet<(u64, u64)>>,
    open: Mutex<HashMap<(u64, u64), Vec<CancellationToken>>>,
}

impl Net {
    /// Nothing gets from `a` to `b` on connections that `a` opens, or has opened.
    pub(crate) fn block(&self, a: u64, b: u64) {
        self.blocked.lock().unwrap().insert((a, b));
        for token in self.open.lock().unwrap().remove(&(a, b)).unwrap_or_default() {
            token.cancel();
        }
    }

    pub(crate) fn isolate(&self, a: u64, others: &[u64]) {
        for &b in others {
            self.block(a, b);
            self.block(b, a);
        }
    }

    pub(crate) fn heal(&self) {
        self.blocked.lock().unwrap().clear();
    }
}

struct Dialer {
    id: u64,
    net: Arc<Net>,
}

impl Dial for Dialer {
    fn dial(&self, member_id: u64, address: &str) -> Dialing {
        let (id, net, address) = (self.id, self.net.clone(), address.to_owned());
        Box::pin(async move {
            if net.blocked.lock().unwrap().contains(&(id, member_id)) {
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            stream.write_all(&id.to_le_bytes()).await?;
            let cut = CancellationToken::new();
            net.open.lock().unwrap().entry((id, member_id)).or_default().push(cut.clone());
            Ok(Box::new(Wire { stream, peer: Peer::default(), cut }) as Box<dyn Connection>)
        })
    }
}

/// A connection that can be cut.
struct Wire {
    stream: TcpStream,
    peer: Peer,
    cut: CancellationToken,
}

impl Wire {
    fn check(&self) -> io::Result<()> {
        if self.cut.is_cancelled() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Wire {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// One node of a test's group.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) store: Store,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) address: String,
    dir: PathBuf,
    tasks: Tasks,
}

pub(crate) struct Group {
    pub(crate) net: Arc<Net>,
    dir: tempfile::TempDir,
    /// Where a node that is down will be found again.
    addresses: Mutex<HashMap<u64, String>>,
}

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

impl Group {
    pub(crate) fn new() -> Self {
        Self { net: Arc::default(), dir: tempfile::tempdir().unwrap(), addresses: Mutex::default() }
    }

    /// The founder, announced.
    pub(crate) async fn first(&self) -> Node {
        let node = self.open(1, Bootstrap::New).await.unwrap();
        node.store.announce("node1", &node.address, None).await.unwrap();
        node
    }

    pub(crate) fn config(&self, id: u64, bootstrap: Bootstrap) -> Config {
        let dial = Arc::new(Dialer { id, net: self.net.clone() });
        let cluster = Cluster { bootstrap, replace_after: Duration::from_secs(3), ..Cluster::new(dial) };
        let dir = self.dir.path().join(format!("node{id}"));
        Config { node_id: id, cluster: Some(cluster), ..config(&dir) }
    }

    async fn listen(&self, id: u64) -> TcpListener {
        let known = self.addresses.lock().unwrap().get(&id).cloned();
        let listener = TcpListener::bind(known.as_deref().unwrap_or("127.0.0.1:0")).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        self.addresses.lock().unwrap().insert(id, address);
        listener
    }

    /// Admits a node by way of `sponsor` and starts it.
    pub(crate) async fn join(&self, id: u64, domain: Option<&str>, sponsor: &Node) -> Node {
        let listener = self.listen(id).await;
        let member = Member {
            id,
            name: format!("node{id}"),
            address: listener.local_addr().unwrap().to_string(),
            failure_domain: domain.map(str::to_owned),
        };
        sponsor.store.admit(member, Txn::default()).await.unwrap();
        let peers = sponsor.store.members().into_iter().filter_map(|status| status.member).collect();
        self.open_at(id, Bootstrap::Join { peers }, listener).await.unwrap()
    }

    pub(crate) async fn open(&self, id: u64, bootstrap: Bootstrap) -> Result<Node, Error> {
        let listener = self.listen(id).await;
        self.open_at(id, bootstrap, listener).await
    }

    async fn open_at(&self, id: u64, bootstrap: Bootstrap, listener: TcpListener) -> Result<Node, Error> {
        let tasks = Tasks::new("node");
        let mirror = Arc::new(Mirror::default());
        let config = self.config(id, bootstrap);
        let dir = config.dir.clone();
        let store = Store::open(config, mirror.clone(), &tasks).await?;
        let address = listener.local_addr().unwrap().to_string();
        let (sender, incoming) = tokio::sync::mpsc::channel(16);
        tasks.spawn_until_stopped("accept", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let mut id = [0; 8];
                if stream.read_exact(&mut id).await.is_err() {
                    continue;
                }
                let peer = Peer { member_id: Some(u64::from_le_bytes(id)), name: None };
                let wire = Wire { stream, peer, cut: CancellationToken::new() };
                if sender.send(Ok::<_, io::Error>(wire)).await.is_err() {
                    return;
                }
            }
        });
        let server = tonic::transport::Server::builder()
            .add_routes(store.service())
            .serve_with_incoming(ReceiverStream::new(incoming));
        tasks.spawn_until_stopped("serve", server);
        Ok(Node { id, store, mirror, address, dir, tasks })
    }
}

impl Node {
    /// Ends the node as a crash would. Returns its folder.
    pub(crate) async fn kill(self) -> PathBuf {
        self.store.abandon().await;
        self.tasks.shutdown(LONG).await;
        self.dir
    }

    /// Waits until the group looks like this from here.
    pub(crate) async fn wait(&self, what: &str, mut is: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.store.status();
        let waited = tokio::time::timeout(LONG, status.wait_for(|status| is(status))).await;
        match waited {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("node {} waits for {what}: {:#?}", self.id, self.store.status().borrow()),
        }
    }

    pub(crate) async fn wait_voters(&self, ids: &[u64]) -> Status {
        self.wait(&format!("voters {ids:?}"), |status| voters(status) == ids && !status.changing).await
    }

    pub(crate) async fn wait_leader(&self) -> u64 {
        let status = self.wait("a leader", |status| status.leader.is_some()).await;
        status.leader.unwrap()
    }

    /// Waits until this node has applied so much.
    pub(crate) async fn wait_revision(&self, revision: Revision) {
        let reach = async {
            while self.mirror.revision() < revision {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, reach).await.unwrap();
    }
}

pub(crate) fn voters(status: &Status) -> Vec<u64> {
    let voters = status.members.iter().filter(|member| member.role == Role::Voter);
    voters.map(|member| member.id).collect()
}
