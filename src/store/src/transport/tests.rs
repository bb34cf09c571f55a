use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use kedge_base::Tasks;
use prost11::Message as _;
use raft::eraftpb::{Message, MessageType};
use tonic::client::Grpc;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::wire::{self, Batch, Chunk, Empty, Offer, Progress, Propose, Proposed};
use super::*;
use crate::types::{Change, Cluster, Config, Entry, Key, Observer, Txn};
use crate::{CommitError, Member, Store};

struct Nobody;

impl Observer for Nobody {
    fn reset(&self, _: u64, _: &mut dyn Iterator<Item = (Key, Entry)>) {}
    fn applied(&self, _: u64, _: &[Change]) {}
}

struct Nowhere;

impl Dial for Nowhere {
    fn dial(&self, _: u64, _: &str) -> Dialing {
        Box::pin(async { Err(io::ErrorKind::HostUnreachable.into()) })
    }
}

async fn store(dir: &std::path::Path) -> Store {
    let config = Config { cluster: Some(Cluster::new(Arc::new(Nowhere))), ..Config::new(dir) };
    Store::open(config, Arc::new(Nobody), &Tasks::new("test")).await.unwrap()
}

/// A store that knows of member 2.
async fn store_of_two(dir: &std::path::Path) -> Store {
    let store = store(dir).await;
    store.announce("one", "h:1", None).await.unwrap();
    let second = Member { id: 2, name: "two".into(), address: "h:2".into(), failure_domain: None };
    store.admit(second, Txn::default()).await.unwrap();
    store
}

fn id(id: u64) -> Option<Peer> {
    Some(Peer { member_id: Some(id), name: None })
}

fn name(name: &str) -> Option<Peer> {
    Some(Peer { member_id: None, name: Some(name.into()) })
}

fn request<T>(peer: Option<Peer>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    request
}

async fn client(store: &Store) -> Grpc<Routes> {
    let mut client = Grpc::new(store.service());
    client.ready().await.unwrap();
    client
}

async fn deliver(store: &Store, peer: Option<Peer>, message: &Message) -> Result<(), Status> {
    let batch = Batch { messages: vec![message.encode_to_vec().into()], address: None };
    let request = request(peer, futures::stream::iter([batch]));
    let codec = ProstCodec::<Batch, Empty>::default();
    let path = PathAndQuery::from_static(wire::DELIVER);
    client(store).await.client_streaming(request, path, codec).await.map(drop)
}

fn heartbeat(from: u64, to: u64) -> Message {
    let mut message = Message { from, to, ..Message::default() };
    message.set_msg_type(MessageType::MsgHeartbeatResponse);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_in_the_name_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of_two(dir.path()).await;
    let table = [
        ("nobody", None, heartbeat(2, 1), Some(Code::PermissionDenied)),
        ("nobody in particular", Some(Peer::default()), heartbeat(2, 1), Some(Code::PermissionDenied)),
        ("itself, by id", id(2), heartbeat(2, 1), None),
        ("itself, by name", name("two"), heartbeat(2, 1), None),
        ("another, by id", id(3), heartbeat(2, 1), Some(Code::PermissionDenied)),
        ("another, by name", name("one"), heartbeat(2, 1), Some(Code::PermissionDenied)),
        ("to somebody else", id(2), heartbeat(2, 9), Some(Code::PermissionDenied)),
        ("who was removed", id(3), heartbeat(3, 1), Some(Code::FailedPrecondition)),
    ];
    for (what, peer, message, code) in table {
        let result = deliver(&store, peer, &message).await;
        assert_eq!(result.as_ref().err().map(Status::code), code, "{what}: {result:?}");
    }
    for kind in [MessageType::MsgPropose, MessageType::MsgSnapshot] {
        let mut message = heartbeat(2, 1);
        message.set_msg_type(kind);
        let refused = deliver(&store, id(2), &message).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{kind:?}");
    }
    // The leader says so in words that the other one understands.
    let removed = deliver(&store, id(3), &heartbeat(3, 1)).await.unwrap_err();
    assert_eq!(removed.message(), client::REMOVED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_group_takes_part_in_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let refused = deliver(&store, id(2), &heartbeat(2, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_ne!(refused.message(), client::REMOVED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_write_and_nothing_unreadable_gets_into_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of_two(dir.path()).await;
    let propose = async |peer, command: Vec<u8>| {
        let codec = ProstCodec::<Propose, Proposed>::default();
        let path = PathAndQuery::from_static(wire::PROPOSE);
        let message = Propose { command: command.into(), lazy: false };
        client(&store).await.unary(request(peer, message), path, codec).await.map(|r| r.into_inner())
    };
    let key: Key = "a".into();
    let absent = crate::types::Condition { key: key.clone(), check: crate::types::Check::Absent };
    let value = crate::types::Value { bytes: Bytes::from_static(b"v"), splice: None };
    let txn = Txn {
        conditions: vec![absent],
        ops: vec![crate::types::Op::Put { key: key.clone(), value }],
        lazy: false,
    };
    let command = crate::command::encode(&txn);
    assert_eq!(propose(id(7), command.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(propose(id(2), b"noise".to_vec()).await.unwrap_err().code(), Code::InvalidArgument);
    let done = propose(id(2), command.clone()).await.unwrap();
    let revision = store.revision();
    assert_eq!((done.seen, done.result()), (revision, Some(Ok(revision))));
    let conflict = propose(name("two"), command).await.unwrap();
    assert_eq!(conflict.result(), Some(Err(CommitError::Conflict { key, current: Some(revision) })));
}

#[test]
fn every_answer_comes_back_as_it_was() {
    let table = [
        (Ok(7), Some(Ok(7))),
        (Err(CommitError::Full), Some(Err(CommitError::Full))),
        (Err(CommitError::NoLeader), None),
        (Err(CommitError::Closed), None),
        (
            Err(CommitError::Conflict { key: "k".into(), current: None }),
            Some(Err(CommitError::Conflict { key: "k".into(), current: None })),
        ),
        (Err(CommitError::Unavailable("a".into())), Some(Err(CommitError::Unavailable("a".into())))),
        (Err(CommitError::Unknown("b".into())), Some(Err(CommitError::Unknown("b".into())))),
    ];
    for (given, expected) in table {
        assert_eq!(Proposed::new(given, 9).result(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_on_where_it_broke_off() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of_two(dir.path()).await;
    // What is sent: a snapshot of another store.
    let (index, term) = (40, 3);
    let other = tempfile::tempdir().unwrap();
    let mut engine = crate::engine::Sled::open(&other.path().join("engine"), 1 << 20).unwrap();
    let mut meta = crate::state::State::empty(raft::eraftpb::ConfState::default()).meta;
    (meta.applied, meta.applied_term) = (index, term);
    crate::engine::write_overlay(&mut engine, &crate::state::Overlay::new(), &meta).unwrap();
    crate::snapshot::write_received(other.path(), &engine, &meta).unwrap();
    let bytes = std::fs::read(crate::snapshot::received(other.path(), index, term)).unwrap();

    let mut message = Message { from: 2, to: 1, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (index, term);
    let offer = async |peer| {
        let codec = ProstCodec::<Offer, Progress>::default();
        let path = PathAndQuery::from_static(wire::OFFER);
        let message = Offer { message: message.encode_to_vec().into(), length: bytes.len() as u64 };
        client(&store).await.unary(request(peer, message), path, codec).await.map(|r| r.into_inner().offset)
    };
    let send = async |chunks: Vec<Chunk>| {
        let codec = ProstCodec::<Chunk, Progress>::default();
        let path = PathAndQuery::from_static(wire::SNAPSHOT);
        let request = request(id(2), futures::stream::iter(chunks));
        client(&store).await.client_streaming(request, path, codec).await.map(|r| r.into_inner().offset)
    };
    let chunk = |from: usize, to: usize| {
        let data = Bytes::copy_from_slice(&bytes[from..to]);
        Chunk { offset: from as u64, crc: crc32fast::hash(&data), data }
    };
    assert_eq!(send(vec![chunk(0, 10)]).await.unwrap_err().code(), Code::FailedPrecondition, "not offered");
    assert_eq!(offer(id(3)).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(offer(id(2)).await.unwrap(), 0);
    let mut bad = chunk(10, 20);
    bad.crc ^= 1;
    assert_eq!(send(vec![chunk(0, 10), bad]).await.unwrap_err().code(), Code::DataLoss);
    assert_eq!(offer(id(2)).await.unwrap(), 10, "what was right is kept");
    assert_eq!(send(vec![chunk(10, 30)]).await.unwrap_err().code(), Code::Aborted, "the end is missing");
    assert_eq!(offer(id(2)).await.unwrap(), 30);
    assert_eq!(send(vec![chunk(30, bytes.len())]).await.unwrap(), bytes.len() as u64);
    let arrived = crate::snapshot::received(&dir.path().join("snapshots"), index, term);
    assert_eq!(std::fs::read(arrived).unwrap(), bytes);

    // Right in its pieces and wrong as a whole: it is not kept, and the next offer begins anew.
    assert_eq!(offer(id(2)).await.unwrap(), 0);
    let mut wrong = chunk(0, bytes.len());
    let mut data = wrong.data.to_vec();
    data[20] ^= 1;
    wrong.crc = crc32fast::hash(&data);
    wrong.data = data.into();
    assert_eq!(send(vec![wrong]).await.unwrap_err().code(), Code::DataLoss);
    assert_eq!(offer(id(2)).await.unwrap(), 0);
}
