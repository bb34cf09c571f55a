//! Calls to other members.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::Outcome;
use super::lane::Lane;
use super::peer::PeerShared;
use super::wire::{self, Batch, Empty, Health, LARGEST, Propose, Proposed};
use crate::node::{Msg, PATIENCE};

/// What a member says to one that was removed.
pub(super) const REMOVED: &str = "this node was removed from the cluster; leave it, or join it again";
const CONNECT: Duration = Duration::from_secs(3);
/// A connection over which nothing comes back is given up after about twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long a leader that was deposed has to answer by itself.
const DEPOSED: Duration = Duration::from_millis(150);
const WINDOW: u32 = 4 << 20;

/// Opens a connection now; an error says why it cannot be.
pub(super) async fn connect(peer: &PeerShared) -> Result<Channel, String> {
    let (dial, id, address) = (peer.context.dial.clone(), peer.id, peer.address.clone());
    // The name is not resolved: the connector knows the address.
    let endpoint = Endpoint::from_static("http://member")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW);
    let connector = tower::service_fn(move |_: Uri| {
        let dialing = dial.dial(id, &address);
        async move { dialing.await.map(TokioIo::new) }
    });
    let connecting = endpoint.connect_with_connector(connector);
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(kedge_base::Chain(&error).to_string()),
        Err(_) => Err("no connection in time".into()),
    }
}

/// A client whose messages may be as large as ours are.
pub(super) async fn client(channel: Channel) -> Result<Grpc<Channel>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client)
}

/// Delivers what comes along a lane until that fails. Returns why.
pub(super) async fn deliver(channel: Channel, lane: &Arc<Lane>, address: Option<String>) -> String {
    let mut client = match client(channel).await {
        Ok(client) => client,
        Err(status) => return status.message().to_owned(),
    };
    let stream = futures::stream::unfold((lane.clone(), address), |(lane, address)| async move {
        let batch = lane.batch().await;
        Some((Batch { address, ..batch }, (lane, None)))
    });
    let codec = ProstCodec::<Batch, Empty>::default();
    let path = PathAndQuery::from_static(wire::DELIVER);
    match client.client_streaming(Request::new(stream), path, codec).await {
        Ok(_) => "the other side ended the stream".into(),
        Err(status) => status.message().to_owned(),
    }
}

/// Hands a transaction to the leader and waits for the answer.
pub(super) async fn forward(peer: &PeerShared, command: &[u8], lazy: bool) -> Outcome {
    let Ok(channel) = peer.channel().await else { return Outcome::NotSent };
    let Ok(mut client) = client(channel).await else {
        peer.disconnected();
        return Outcome::NotSent;
    };
    let request = Propose { command: Bytes::copy_from_slice(command), lazy };
    let codec = ProstCodec::<Propose, Proposed>::default();
    let path = PathAndQuery::from_static(wire::PROPOSE);
    let call = client.unary(Request::new(request), path, codec);
    // The leader itself gives up after its patience.
    let answer = tokio::time::timeout(PATIENCE + PATIENCE / 2, call);
    let answer = tokio::select! {
        answer = answer => answer,
        () = led_by_another(peer) => {
            return Outcome::Lost("another node leads now, and the former leader has not answered".into());
        }
    };
    match answer {
        Ok(Ok(response)) => {
            let proposed = response.into_inner();
            let seen = proposed.seen;
            match proposed.result() {
                Some(result) => Outcome::Answer { result, seen },
                None => Outcome::NotSent,
            }
        }
        // The other side's own words: it has refused before doing anything.
        Ok(Err(status)) if matches!(status.code(), Code::PermissionDenied | Code::FailedPrecondition) => {
            if status.message() == REMOVED {
                let _ = peer.context.sender.send(Msg::Removed);
            }
            Outcome::NotSent
        }
        Ok(Err(status)) => Outcome::Lost(format!(
            "the connection to the leader broke before its answer ({})",
            status.message()
        )),
        Err(_) => Outcome::Lost("the leader did not answer in time".into()),
    }
}

/// Waits until another member leads, and as long again as one that still lives takes to say so itself. A
/// connection to one that is cut off would be given up only much later.
async fn led_by_another(peer: &PeerShared) {
    let mut leader = peer.context.leader.subscribe();
    // The sender lives in the context.
    let _ = leader.wait_for(|leader| leader.is_some_and(|id| id != peer.id)).await;
    tokio::time::sleep(DEPOSED).await;
}

/// Adds what the leader knows of the members to `status`.
pub(super) async fn health(peer: &PeerShared, status: &mut crate::Status) -> Result<(), String> {
    let mut client = client(peer.channel().await?).await.map_err(|status| status.message().to_owned())?;
    let codec = ProstCodec::<Empty, Health>::default();
    let path = PathAndQuery::from_static(wire::HEALTH);
    let call = client.unary(Request::new(Empty {}), path, codec);
    let answer = tokio::time::timeout(CONNECT, call).await.map_err(|_| "no answer in time".to_owned())?;
    let health = answer.map_err(|status| status.message().to_owned())?.into_inner();
    if !health.leads {
        return Err("it does not lead any more".into());
    }
    health.add_to(status);
    Ok(())
}
