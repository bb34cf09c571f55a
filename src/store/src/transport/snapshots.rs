//! Snapshots on their way: offered, sent in checksummed chunks, taken up again where they broke off.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use kedge_base::{Backoff, Chain};
use prost11::Message as _;
use raft::eraftpb::Message;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Context;
use super::client::client;
use super::peer::PeerShared;
use super::wire::{self, Chunk, Offer, Progress};
use crate::node::Msg;
use crate::snapshot;

const CHUNK: usize = 256 << 10;
const ATTEMPTS: usize = 8;
const SILENCE: Duration = Duration::from_secs(10);

/// Sends the snapshot that the message names; how it went comes as a message to the store's thread.
pub(super) fn spawn_send(context: &Arc<Context>, peer: &Arc<PeerShared>, message: Message) {
    let _guard = context.runtime.enter();
    let (context, peer) = (context.clone(), peer.clone());
    let tasks = context.tasks.clone();
    tasks.spawn_until_stopped("snapshot", async move {
        let to = message.to;
        let arrived = match send(&context, &peer, &message).await {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!(to, why, "a snapshot could not be sent; it is tried again");
                false
            }
        };
        let _ = context.sender.send(Msg::SnapshotSent(to, arrived));
    });
}

async fn send(context: &Context, peer: &PeerShared, message: &Message) -> Result<(), String> {
    let index = message.get_snapshot().get_metadata().index;
    let path = snapshot::path(&context.snapshots, index);
    // Open, it stays readable even when a newer one takes its place.
    let mut file = File::open(&path).await.map_err(|error| format!("open {}: {error}", path.display()))?;
    let length = file.metadata().await.map_err(|error| error.to_string())?.len();
    let offer = Offer { message: message.encode_to_vec().into(), length };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match attempt(peer, &mut file, &offer).await {
            Ok(()) => return Ok(()),
            Err(error) => why = error,
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    Err(why)
}

async fn attempt(peer: &PeerShared, file: &mut File, offer: &Offer) -> Result<(), String> {
    let say = |status: Status| status.message().to_owned();
    let mut client = client(peer.channel().await?).await.map_err(say)?;
    let path = PathAndQuery::from_static(wire::OFFER);
    let codec = ProstCodec::<Offer, Progress>::default();
    let known = client.unary(Request::new(offer.clone()), path, codec).await.map_err(say)?;
    let offset = known.into_inner().offset.min(offer.length);
    file.seek(SeekFrom::Start(offset)).await.map_err(|error| error.to_string())?;
    let file = file.try_clone().await.map_err(|error| error.to_string())?;
    let stream = futures::stream::unfold((file, offset), |(mut file, offset)| async move {
        let mut data = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match file.read(&mut data[filled..]).await {
                Ok(0) => break,
                Ok(n) => filled += n,
                // The receiver sees that the end is missing.
                Err(_) => return None,
            }
        }
        if filled == 0 {
            return None;
        }
        data.truncate(filled);
        let crc = crc32fast::hash(&data);
        Some((Chunk { offset, data: Bytes::from(data), crc }, (file, offset + filled as u64)))
    });
    client.ready().await.map_err(|error| error.to_string())?;
    let path = PathAndQuery::from_static(wire::SNAPSHOT);
    let codec = ProstCodec::<Chunk, Progress>::default();
    client.client_streaming(Request::new(stream), path, codec).await.map_err(say)?;
    Ok(())
}

/// A snapshot that is whole and verified under its [`snapshot::received`] name.
pub(super) struct Received {
    pub(super) message: Message,
    pub(super) length: u64,
}

struct Incoming {
    message: Message,
    length: u64,
    path: PathBuf,
    file: File,
    /// Bytes whose checksums were right.
    offset: u64,
}

/// Where snapshots arrive; one at a time.
pub(super) struct Inbox {
    dir: PathBuf,
    incoming: Mutex<Option<Incoming>>,
}

fn disk(path: &Path) -> impl Fn(std::io::Error) -> Status {
    move |error| Status::internal(format!("{}: {error}", path.display()))
}

impl Inbox {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, incoming: Mutex::new(None) }
    }

    /// Prepares for a snapshot. Returns how much of it is here already.
    pub(super) async fn begin(&self, message: Message, length: u64) -> Result<u64, Status> {
        let mut incoming = self.incoming.lock().await;
        let metadata = message.get_snapshot().get_metadata();
        let same = |known: &Incoming| {
            let old = known.message.get_snapshot().get_metadata();
            let origin = (known.message.from, known.length);
            (old.index, old.term) == (metadata.index, metadata.term) && origin == (message.from, length)
        };
        if let Some(known) = incoming.as_mut().filter(|known| same(known)) {
            known.message = message;
            return Ok(known.offset);
        }
        if metadata.index == 0 {
            return Err(Status::invalid_argument("a snapshot of nothing"));
        }
        let path = self.dir.join(format!("{:016x}-{:016x}.part", metadata.index, metadata.term));
        if let Some(old) = incoming.take() {
            let _ = fs::remove_file(&old.path).await;
        }
        fs::create_dir_all(&self.dir).await.map_err(disk(&self.dir))?;
        let file = File::create(&path).await.map_err(disk(&path))?;
        *incoming = Some(Incoming { message, length, path, file, offset: 0 });
        Ok(0)
    }

    /// Takes the chunks of the snapshot that [`Inbox::begin`] has prepared for. `allowed` says whether the
    /// sender of this stream is the one who offered it.
    pub(super) async fn receive(
        &self,
        mut chunks: Streaming<Chunk>,
        allowed: impl Fn(u64) -> Result<(), Status>,
    ) -> Result<Received, Status> {
        let mut guard = self.incoming.lock().await;
        let Some(incoming) = guard.as_mut() else {
            return Err(Status::failed_precondition("no snapshot was offered"));
        };
        allowed(incoming.message.from)?;
        let path = incoming.path.clone();
        incoming.file.seek(SeekFrom::Start(incoming.offset)).await.map_err(disk(&path))?;
        loop {
            // A sender that is gone without a word must not keep others from sending.
            let next = tokio::time::timeout(SILENCE, chunks.message()).await;
            let next = next.map_err(|_| Status::deadline_exceeded("no piece came for a while"))?;
            let Some(chunk) = next? else { break };
            if chunk.offset != incoming.offset || crc32fast::hash(&chunk.data) != chunk.crc {
                return Err(Status::data_loss("a damaged piece of a snapshot"));
            }
            if chunk.data.len() as u64 > incoming.length.saturating_sub(incoming.offset) {
                return Err(Status::data_loss("more of a snapshot than was offered"));
            }
            incoming.file.write_all(&chunk.data).await.map_err(disk(&path))?;
            incoming.offset += chunk.data.len() as u64;
        }
        if incoming.offset != incoming.length {
            return Err(Status::aborted("the end of the snapshot is missing"));
        }
        incoming.file.flush().await.map_err(disk(&path))?;
        incoming.file.sync_all().await.map_err(disk(&path))?;
        let Some(Incoming { message, length, .. }) = guard.take() else {
            return Err(Status::internal("the snapshot vanished"));
        };
        let dir = self.dir.clone();
        let metadata = message.get_snapshot().get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        let verified = tokio::task::spawn_blocking(move || verify(&dir, &path, index, term)).await;
        match verified {
            Ok(Ok(())) => Ok(Received { message, length }),
            Ok(Err(why)) => Err(Status::data_loss(why)),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

/// Reads the whole file again; it gets its name only when it is right.
fn verify(dir: &Path, path: &Path, index: u64, term: u64) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| Chain(error).to_string();
    let result = snapshot::open(path).map_err(|error| text(&error)).and_then(|opened| {
        if (opened.meta.applied, opened.meta.applied_term) != (index, term) {
            return Err("it is another snapshot than was offered".into());
        }
        std::fs::rename(path, snapshot::received(dir, index, term))
            .and_then(|()| kedge_base::sync_dir(dir))
            .map_err(|error| text(&error))
    });
    if result.is_err() {
        let _ = std::fs::remove_file(path);
    }
    result
}
