//! Whether nodes that hold addresses are there. A Node is called unready only after most of a minute; a
//! connection to its kubelet's port that the kernel keeps checking breaks within seconds. Nothing is said over
//! the connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kedge_base::Tasks;
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a node may be silent: Kedge starts again in less, as a rule.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// The same for a node that is lost.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// Follows some nodes.
pub(super) struct Reach {
    tasks: Tasks,
    followed: Mutex<BTreeMap<String, (SocketAddr, Tasks)>>,
    lost: Arc<Lost>,
}

struct Lost {
    names: Mutex<BTreeSet<String>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

impl Lost {
    fn set(&self, name: &str, lost: bool) {
        let mut names = self.names.lock();
        let changed = if lost { names.insert(name.to_owned()) } else { names.remove(name) };
        drop(names);
        if changed {
            tracing::info!(node = name, lost, "a node that holds addresses of Services was lost, or is back");
            (self.changed)();
        }
    }
}

impl Reach {
    /// `changed` is called when a node is lost or back.
    pub(super) fn new(tasks: &Tasks, changed: impl Fn() + Send + Sync + 'static) -> Self {
        let lost = Lost { names: Mutex::default(), changed: Box::new(changed) };
        Self { tasks: tasks.clone(), followed: Mutex::default(), lost: Arc::new(lost) }
    }

    pub(super) fn is_lost(&self, node: &str) -> bool {
        self.lost.names.lock().contains(node)
    }

    /// From now on these nodes are followed, and no others.
    pub(super) fn follow(&self, wanted: BTreeMap<String, SocketAddr>) {
        let mut followed = self.followed.lock();
        followed.retain(|name, (address, tasks)| {
            let stays = wanted.get(name) == Some(address);
            if !stays {
                tasks.token().cancel();
                self.lost.names.lock().remove(name);
            }
            stays
        });
        for (name, address) in wanted {
            followed.entry(name).or_insert_with_key(|name| {
                let tasks = self.tasks.child("reach of a node");
                let follow = follow(name.clone(), address, self.lost.clone());
                tasks.spawn_until_stopped("reach of a node", follow);
                (address, tasks)
            });
        }
    }
}

async fn follow(name: String, address: SocketAddr, lost: Arc<Lost>) {
    let mut silent_since: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(address)).await {
            silent_since = None;
            lost.set(&name, false);
            if let Err(error) = until_closed(&stream).await {
                tracing::debug!(node = name, %error, "the connection to a node broke");
            }
        } else {
            let since = *silent_since.get_or_insert(begun);
            if since.elapsed() >= PATIENCE {
                lost.set(&name, true);
            }
        }
        let is_lost = lost.names.lock().contains(&name);
        sleep(if is_lost { LONG_PAUSE } else { PAUSE }).await;
    }
}

/// The kernel asks every second or two whether the other end is there.
async fn until_closed(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &2)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &1)?;
    setsockopt(stream, sockopt::TcpKeepCount, &2)?;
    let mut ignored = [0; 256];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut ignored) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_node_is_lost_when_nobody_listens_and_back_when_somebody_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new("test");
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let reach = Reach::new(&tasks, move || notify.notify_one());
        reach.follow([("a".to_owned(), address)].into());
        let (first, _) = listener.accept().await.unwrap();
        assert!(!reach.is_lost("a"));
        drop((first, listener));
        changed.notified().await;
        assert!(reach.is_lost("a"));

        let listener = TcpListener::bind(address).await.unwrap();
        let (_second, _) = listener.accept().await.unwrap();
        changed.notified().await;
        assert!(!reach.is_lost("a"));
        reach.follow(BTreeMap::new());
        assert!(tasks.shutdown(Duration::from_secs(60)).await.is_empty());
    }
}
