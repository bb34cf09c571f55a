//! The task that keeps one peer connected and supplied.

use std::sync::Arc;
use std::time::Duration;

use kedge_base::Backoff;
use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::lane::Lane;
use super::{Context, client};
use crate::node::Msg;

/// What the tasks for one peer share.
pub(super) struct PeerShared {
    pub(super) context: Arc<Context>,
    pub(super) id: u64,
    pub(super) address: String,
    pub(super) urgent: Arc<Lane>,
    pub(super) bulk: Arc<Lane>,
    /// Open, as far as is known.
    channel: Mutex<Option<Channel>>,
    stopped: CancellationToken,
}

/// Dropping it ends the peer's task.
pub(super) struct PeerHandle {
    shared: Arc<PeerShared>,
}

impl Drop for PeerHandle {
    fn drop(&mut self) {
        self.shared.stopped.cancel();
    }
}

impl PeerHandle {
    pub(super) fn start(context: &Arc<Context>, id: u64, address: &str) -> Self {
        let shared = Arc::new(PeerShared {
            context: context.clone(),
            id,
            address: address.to_owned(),
            urgent: Arc::default(),
            bulk: Arc::default(),
            channel: Mutex::new(None),
            stopped: context.tasks.token().child_token(),
        });
        let _guard = context.runtime.enter();
        let (task, stopped) = (shared.clone(), shared.stopped.clone());
        context.tasks.spawn("peer", async move {
            stopped.run_until_cancelled(task.run()).await;
            *task.channel.lock() = None;
        });
        Self { shared }
    }

    pub(super) fn address(&self) -> &str {
        &self.shared.address
    }

    pub(super) fn shared(&self) -> &Arc<PeerShared> {
        &self.shared
    }

    pub(super) fn push(&self, message: Message) {
        // Only entries are large.
        let bulk = message.msg_type() == MessageType::MsgAppend && !message.entries.is_empty();
        if bulk { self.shared.bulk.push(message) } else { self.shared.urgent.push(message) }
    }
}

impl PeerShared {
    /// An open connection, the present one if there is one.
    pub(super) async fn channel(&self) -> Result<Channel, String> {
        if let Some(channel) = self.channel.lock().clone() {
            return Ok(channel);
        }
        let channel = client::connect(self).await?;
        *self.channel.lock() = Some(channel.clone());
        Ok(channel)
    }

    /// The connection has failed.
    pub(super) fn disconnected(&self) {
        *self.channel.lock() = None;
    }

    async fn run(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            tokio::select! {
                () = self.urgent.wait() => {}
                () = self.bulk.wait() => {}
            }
            let why = match self.channel().await {
                Ok(channel) => {
                    tracing::debug!(peer = self.id, address = self.address, "connected to a member");
                    backoff.reset();
                    let own = self.context.address.read().clone();
                    tokio::select! {
                        why = client::deliver(channel.clone(), &self.urgent, own) => why,
                        why = client::deliver(channel, &self.bulk, None) => why,
                    }
                }
                Err(why) => why,
            };
            self.disconnected();
            tracing::debug!(peer = self.id, address = self.address, why, "no connection to a member");
            self.urgent.clear();
            self.bulk.clear();
            if why == client::REMOVED {
                let _ = self.context.sender.send(Msg::Removed);
            }
            let _ = self.context.sender.send(Msg::Unreachable(self.id));
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}
