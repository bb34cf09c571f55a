//! What this member answers to others, as a tonic service without generated code.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request as HttpRequest, Response as HttpResponse};
use prost11::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::Peer;
use super::client::REMOVED;
use super::snapshots::Inbox;
use super::wire::{self, Batch, Chunk, Empty, Health, LARGEST, Offer, Progress, Propose, Proposed};
use crate::command;
use crate::node::{Msg, Proposal, Ticket};
use crate::store::Shared;

type Answer = Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, Infallible>> + Send>>;

/// The receiving half. Clones serve the same store.
#[derive(Clone)]
pub(crate) struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    inbox: Inbox,
}

impl NamedService for Service {
    const NAME: &'static str = wire::SERVICE;
}

impl tower::Service<HttpRequest<Body>> for Service {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Answer {
        let inner = self.inner.clone();
        Box::pin(async move { Ok(inner.route(request).await) })
    }
}

fn grpc<I, O>() -> Grpc<ProstCodec<O, I>>
where
    I: prost::Message + Default + Send + 'static,
    O: prost::Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::default()).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST)
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let inbox = Inbox::new(shared.snapshots.clone());
        Self { inner: Arc::new(Inner { shared, inbox }) }
    }
}

impl Inner {
    async fn route(self: Arc<Self>, request: HttpRequest<Body>) -> HttpResponse<Body> {
        let inner = self;
        match request.uri().path() {
            wire::DELIVER => {
                let deliver = service_fn(move |request| inner.clone().deliver(request));
                grpc::<Batch, Empty>().client_streaming(deliver, request).await
            }
            wire::PROPOSE => {
                let propose = service_fn(move |request| inner.clone().propose(request));
                grpc::<Propose, Proposed>().unary(propose, request).await
            }
            wire::HEALTH => {
                let health = service_fn(move |request| inner.clone().health(request));
                grpc::<Empty, Health>().unary(health, request).await
            }
            wire::OFFER => {
                let offer = service_fn(move |request| inner.clone().offer(request));
                grpc::<Offer, Progress>().unary(offer, request).await
            }
            wire::SNAPSHOT => {
                let receive = service_fn(move |request| inner.clone().receive(request));
                grpc::<Chunk, Progress>().client_streaming(receive, request).await
            }
            _ => Status::unimplemented("the store has no such method").into_http(),
        }
    }

    /// Who sent this. Nobody else may speak in its name.
    fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let known = peer.filter(|peer| peer.member_id.is_some() || peer.name.is_some());
        known.ok_or_else(|| Status::permission_denied("it is not known who is at the other end"))
    }

    fn check(&self, peer: &Peer, from: u64) -> Result<(), Status> {
        let group = self.shared.group.read();
        // A member that comes back with an empty folder must not vote under its old id.
        if group.names.is_empty() && group.configured == [self.shared.id] {
            return Err(Status::failed_precondition("this node has no group, or has lost its data"));
        }
        let name = group.names.get(&from);
        let by_name = |name: Option<&String>| match (&peer.name, name) {
            (Some(claimed), Some(known)) => claimed == known,
            // Not heard of yet: this member may lag behind.
            (Some(_), None) => true,
            (None, _) => false,
        };
        if !peer.member_id.map_or_else(|| by_name(name), |id| id == from) {
            return Err(Status::permission_denied("a message in the name of another member"));
        }
        if group.leads && name.is_none() && !group.configured.contains(&from) {
            return Err(Status::failed_precondition(REMOVED));
        }
        Ok(())
    }

    fn take(&self, peer: &Peer, bytes: &[u8]) -> Result<Message, Status> {
        let bad = |_| Status::invalid_argument("a message that cannot be read");
        let message = Message::decode(bytes).map_err(bad)?;
        self.check(peer, message.from)?;
        if message.to != self.shared.id {
            return Err(Status::permission_denied("a message for another member"));
        }
        Ok(message)
    }

    async fn deliver(self: Arc<Self>, request: Request<Streaming<Batch>>) -> Result<Response<Empty>, Status> {
        let peer = Self::peer(&request)?;
        let mut batches = request.into_inner();
        loop {
            let batch = tokio::select! {
                batch = batches.message() => batch?,
                () = self.shared.closed.cancelled() => return Err(closed()),
            };
            let Some(batch) = batch else { return Ok(Response::new(Empty {})) };
            let mut address = batch.address;
            for bytes in batch.messages {
                let message = self.take(&peer, &bytes)?;
                // Transactions and snapshots have their own ways, where they are looked at.
                if matches!(message.msg_type(), MessageType::MsgPropose | MessageType::MsgSnapshot) {
                    return Err(Status::invalid_argument("a message that does not belong here"));
                }
                if let Some(address) = address.take() {
                    let _ = self.shared.sender.send(Msg::Heard(message.from, address));
                }
                self.shared.sender.send(Msg::Step(message)).map_err(|_| closed())?;
            }
        }
    }

    /// Only members may ask for anything.
    fn member<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let peer = Self::peer(request)?;
        let group = self.shared.group.read();
        let member = |(id, name): (&u64, &String)| match peer.member_id {
            Some(peer) => peer == *id,
            None => peer.name.as_ref() == Some(name),
        };
        if group.names.iter().any(member) { Ok(()) } else { Err(Status::failed_precondition(REMOVED)) }
    }

    async fn health(self: Arc<Self>, request: Request<Empty>) -> Result<Response<Health>, Status> {
        self.member(&request)?;
        let (reply, answer) = oneshot::channel();
        self.shared.sender.send(Msg::Look(reply)).map_err(|_| closed())?;
        Ok(Response::new(Health::of(&answer.await.map_err(|_| closed())?)))
    }

    async fn propose(self: Arc<Self>, request: Request<Propose>) -> Result<Response<Proposed>, Status> {
        self.member(&request)?;
        let Propose { command, lazy } = request.into_inner();
        // What cannot be decoded must not get into the log.
        command::decode(&command).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let permit = self.shared.permit(command.len()).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket { reply, permit };
        let proposal = Proposal { data: command.to_vec(), lazy, remote: true, since: Instant::now(), ticket };
        self.shared.sender.send(Msg::Propose(proposal)).map_err(|_| closed())?;
        // No answer: the store ended with the transaction perhaps in the log.
        let result = answer.await.map_err(|_| Status::aborted("the leader stopped"))?;
        Ok(Response::new(Proposed::new(result, self.shared.revision())))
    }

    async fn offer(self: Arc<Self>, request: Request<Offer>) -> Result<Response<Progress>, Status> {
        let peer = Self::peer(&request)?;
        let offer = request.into_inner();
        let message = self.take(&peer, &offer.message)?;
        if message.msg_type() != MessageType::MsgSnapshot {
            return Err(Status::invalid_argument("no snapshot"));
        }
        let offset = self.inbox.begin(message, offer.length).await?;
        Ok(Response::new(Progress { offset }))
    }

    async fn receive(
        self: Arc<Self>,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<Progress>, Status> {
        let peer = Self::peer(&request)?;
        let received = self.inbox.receive(request.into_inner(), |from| self.check(&peer, from)).await?;
        let offset = received.length;
        self.shared.sender.send(Msg::Step(received.message)).map_err(|_| closed())?;
        Ok(Response::new(Progress { offset }))
    }
}

fn closed() -> Status {
    Status::unavailable("the store is closed")
}
