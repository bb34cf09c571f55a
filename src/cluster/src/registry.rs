//! The cluster's book: which nodes are in it, which tokens are good, which nodes were taken off. Every
//! change is one transaction with checks, so that any number of control-plane nodes can decide at once.
//!
//! It lies in the replicated store, which this module knows only as [`Records`].

mod authority;
mod encryption;
mod lost;
mod replica;
mod step;
mod tokens;

pub use lost::{is_of_nodes, nodes_of, strike_others};
pub use replica::Replica;
pub use tokens::TokenSummary;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::issue::BACK_DATED;
use crate::wire::{NodeFacts, NodeRecord, Peer, RemovedRecord};
use crate::{Clock, HostPort, NodeId, Refusal, Role, TokenHash};

const NODES: &str = "nodes.cluster.kedge.internal//";
const NAMES: &str = "names.cluster.kedge.internal//";
const ADDRESSES: &str = "addresses.cluster.kedge.internal//";
const REMOVED: &str = "removed.cluster.kedge.internal//";
const TOKENS: &str = "tokens.cluster.kedge.internal//";
/// As long as a certificate of a removed node may be valid, it can come back and ask.
const REMOVED_FOR: i64 = 366 * 24 * 60 * 60;
/// A node's certificates are signed before it is written down that it joined, by seconds; clocks may differ by more.
const SIGNED_BEFORE: i64 = 5 * 60;
/// A transaction that lost against another is decided anew so many times.
const ATTEMPTS: u32 = 16;

/// A value in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// JSON.
    pub bytes: Vec<u8>,
    /// When it was last modified.
    pub revision: u64,
}

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// There is no such key.
    Absent(String),
    /// The key was last modified at this revision.
    At(String, u64),
}

/// A change of the control plane that goes with a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member, at first without a vote. Only a join with a token admits; the founder, and a member
    /// whose address changed, announce themselves to the store.
    Admit(Peer),
    /// The member is gone.
    Remove(NodeId),
}

/// Checks and changes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub checks: Vec<Check>,
    /// Create or replace.
    pub puts: Vec<(String, Vec<u8>)>,
    /// Remove; no error when it is not there.
    pub deletes: Vec<String>,
    /// At most one.
    pub member: Option<MemberChange>,
}

/// Why a transaction or a read did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordsError {
    /// A check does not hold.
    Conflict,
    /// It would endanger the quorum; the text says how and what to do.
    Unsafe(String),
    /// No quorum, or the store is stopping. It may have happened or not.
    Unavailable(String),
}

/// The replicated store, as far as the cluster's book needs it. A key is `RESOURCE.GROUP//NAME`.
pub trait Records: Send + Sync + 'static {
    /// A fresh read: it sees everything that was acknowledged before.
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Record>, RecordsError>>;
    /// All keys that begin so, in order, with their values; fresh.
    fn list(&self, prefix: String) -> BoxFuture<'_, Result<Vec<(String, Record)>, RecordsError>>;
    /// This node's own copy, which may be behind; it answers at once, even without a quorum.
    fn local(&self, key: &str) -> Option<Record>;
    /// All keys of this node's own copy that begin so.
    fn local_list(&self, prefix: &str) -> Vec<(String, Record)>;
    /// Could the others do without this member now? [`RecordsError::Unsafe`] says why not and what to do.
    fn removable(&self, id: NodeId) -> BoxFuture<'_, Result<(), RecordsError>>;
    /// All or nothing. A member is removed when the others have confirmed that they do without it.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<(), RecordsError>>;
}

/// The book.
#[derive(Clone)]
pub struct Registry {
    records: Arc<dyn Records>,
    clock: Arc<Clock>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// The book over a store.
    pub fn new(records: Arc<dyn Records>, clock: Arc<Clock>) -> Self {
        Self { records, clock }
    }

    /// Write down a node that needs no token: a control-plane node itself at each start (the founder has no
    /// other way into the book), and every node whose address changed. Repeating it changes nothing. The
    /// store's own record of a member is not touched: a member announces itself there.
    ///
    /// # Errors
    /// [`Refusal::NameTaken`], [`Refusal::AddressTaken`], [`Refusal::Removed`], [`Refusal::Unavailable`].
    pub async fn enroll(&self, id: NodeId, facts: &NodeFacts) -> Result<NodeRecord, Refusal> {
        self.decide(|| self.enter(id, facts, None).boxed()).await
    }

    /// Admit a node and use up its token in one transaction. The same node with the same token again gives
    /// the same answer, so a join that was cut off can be repeated.
    ///
    /// # Errors
    /// What is wrong with the token, the name or the address; then nothing was changed.
    pub async fn admit(
        &self,
        token: &TokenHash,
        id: NodeId,
        facts: &NodeFacts,
    ) -> Result<NodeRecord, Refusal> {
        self.decide(|| self.enter(id, facts, Some(token)).boxed()).await
    }

    /// One attempt; `None`: another transaction came first.
    async fn enter(
        &self,
        id: NodeId,
        facts: &NodeFacts,
        token: Option<&TokenHash>,
    ) -> Result<Option<NodeRecord>, Refusal> {
        let mut transaction = Transaction::default();
        if let Some(token) = token {
            self.use_token(token, id, facts, &mut transaction).await?;
        }
        if let Some((removed, _)) = self.get::<RemovedRecord>(&removed_key(id)).await? {
            return Err(Refusal::Removed { name: removed.name, since: removed.at });
        }
        transaction.checks.push(Check::Absent(removed_key(id)));
        let known = self.get::<NodeRecord>(&node_key(id)).await?;
        let record = NodeRecord {
            id,
            name: facts.name.clone(),
            role: facts.role,
            address: facts.address.clone(),
            addresses: facts.addresses.clone(),
            failure_domain: facts.failure_domain.clone(),
            joined: known.as_ref().map_or_else(|| self.now(), |(known, _)| known.joined),
            token: known.as_ref().map_or_else(|| token.cloned(), |(known, _)| known.token.clone()),
        };
        match &known {
            None => {
                self.claim(&name_key(&record.name), id, &mut transaction)
                    .await?
                    .map_err(|_| Refusal::NameTaken { name: record.name.clone() })?;
                transaction.checks.push(Check::Absent(node_key(id)));
                if token.is_some() && record.role == Role::ControlPlane {
                    transaction.member = Some(MemberChange::Admit(record.peer()));
                }
            }
            Some((known, revision)) => {
                if known.name != record.name || known.role != record.role {
                    return Err(Refusal::Forbidden {
                        message: format!(
                            "this node is already in the cluster as {} ({}); run kedge leave before it joins as \
                             {} ({})",
                            known.name, known.role, record.name, record.role
                        ),
                    });
                }
                transaction.checks.push(Check::At(node_key(id), *revision));
            }
        }
        let known = known.map(|(known, _)| known);
        if known.as_ref().is_none_or(|known| known.address != record.address) {
            if let Err(other) = self.claim(&address_key(&record.address), id, &mut transaction).await? {
                let by = self.get::<NodeRecord>(&node_key(other)).await?;
                return Err(Refusal::AddressTaken {
                    address: record.address.to_string(),
                    by: by.map_or_else(|| other.to_string(), |(by, _)| by.name),
                });
            }
            if let Some(known) = &known {
                transaction.deletes.push(address_key(&known.address));
            }
        }
        if known.as_ref() == Some(&record) && transaction.puts.is_empty() {
            return Ok(Some(record));
        }
        transaction.puts.push((node_key(id), encode(&record)?));
        Ok(self.commit(transaction).await?.then_some(record))
    }

    /// Take a node off the cluster by its own wish.
    ///
    /// # Errors
    /// [`Refusal::Unsafe`] when the cluster would not survive it.
    pub async fn leave(&self, id: NodeId) -> Result<NodeRecord, Refusal> {
        self.decide(|| self.strike(id, true).boxed()).await
    }

    /// Take a node off the cluster: by name, id or address (with or without port).
    ///
    /// # Errors
    /// [`Refusal::NoSuchNode`], [`Refusal::Unsafe`].
    pub async fn remove(&self, which: &str) -> Result<NodeRecord, Refusal> {
        let nodes = self.nodes().await?;
        let id = find(&nodes, which)?.id;
        self.decide(|| self.strike(id, false).boxed()).await
    }

    /// Would this node be let go now? Before anything is done for it: moving pods takes a while.
    ///
    /// # Errors
    /// As [`Registry::leave`].
    pub async fn check_removal(&self, id: NodeId) -> Result<(), Refusal> {
        let Some((record, _)) = self.get::<NodeRecord>(&node_key(id)).await? else {
            return Err(self.stranger(id).await?);
        };
        if record.role != Role::ControlPlane {
            return Ok(());
        }
        if !self.nodes().await?.iter().any(|node| node.role == Role::ControlPlane && node.id != id) {
            return Err(only_one(&record));
        }
        self.records.removable(id).await.map_err(refusal)
    }

    async fn strike(&self, id: NodeId, left: bool) -> Result<Option<NodeRecord>, Refusal> {
        let Some((record, revision)) = self.get::<NodeRecord>(&node_key(id)).await? else {
            return Err(self.stranger(id).await?);
        };
        let mut transaction =
            Transaction { checks: vec![Check::At(node_key(id), revision)], ..Transaction::default() };
        if record.role == Role::ControlPlane {
            let nodes = self.nodes().await?;
            let another = nodes.iter().find(|node| node.role == Role::ControlPlane && node.id != id);
            let Some(another) = another else {
                return Err(only_one(&record));
            };
            // That one must still be there when this one goes: both may leave at the same time.
            let Some((_, revision)) = self.get::<NodeRecord>(&node_key(another.id)).await? else {
                return Ok(None);
            };
            transaction.checks.push(Check::At(node_key(another.id), revision));
            transaction.member = Some(MemberChange::Remove(id));
        }
        let now = self.now();
        transaction.deletes = vec![
            node_key(id),
            name_key(&record.name),
            address_key(&record.address),
            encryption::held_key(id),
            authority::report_key(id),
        ];
        transaction.deletes.extend(self.outdated(now).await?);
        let removed = RemovedRecord { id, name: record.name.clone(), at: now, left };
        transaction.puts.push((removed_key(id), encode(&removed)?));
        Ok(self.commit(transaction).await?.then_some(record))
    }

    /// Nobody gets a certificate for another node's address.
    pub(crate) async fn check_addresses(
        &self,
        id: NodeId,
        addresses: &[std::net::IpAddr],
    ) -> Result<(), Refusal> {
        not_taken(&self.nodes().await?, |node| node.id == id, addresses)
    }

    /// The same, and for its name, for who asks by the name of a Node object, which may be no node of the book (a
    /// stock kubelet's). By this node's copy.
    pub(crate) fn check_serving_names(
        &self,
        node: &str,
        names: &[String],
        addresses: &[std::net::IpAddr],
    ) -> Result<(), Refusal> {
        let nodes = self.records.local_list(NODES).into_iter();
        let nodes: Vec<NodeRecord> =
            nodes.filter_map(|(_, record)| serde_json::from_slice(&record.bytes).ok()).collect();
        match nodes.iter().find(|other| other.name != node && names.contains(&other.name)) {
            Some(other) => Err(Refusal::NameTaken { name: other.name.clone() }),
            None => not_taken(&nodes, |other| other.name == node, addresses),
        }
    }

    /// Every node, in the order of ids.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, Refusal> {
        self.list(NODES).await
    }

    /// The node that an operator means: by name, id or address (with or without port).
    ///
    /// # Errors
    /// [`Refusal::NoSuchNode`], or when the store cannot be read.
    pub async fn find(&self, which: &str) -> Result<NodeRecord, Refusal> {
        Ok(find(&self.nodes().await?, which)?.clone())
    }

    /// Is this node in the cluster, as far as this node's copy says? Never waits.
    ///
    /// # Errors
    /// [`Refusal::Removed`] or [`Refusal::NotAMember`].
    pub fn standing(&self, id: NodeId) -> Result<NodeRecord, Refusal> {
        let decode =
            |record: Option<Record>| record.and_then(|record| serde_json::from_slice(&record.bytes).ok());
        if let Some(node) = decode(self.records.local(&node_key(id))) {
            return Ok(node);
        }
        match self.gone(id) {
            Some(removed) => Err(Refusal::Removed { name: removed.name, since: removed.at }),
            None => Err(Refusal::NotAMember),
        }
    }

    /// Was this node taken off, as far as this node's copy says?
    pub fn gone(&self, id: NodeId) -> Option<RemovedRecord> {
        serde_json::from_slice(&self.records.local(&removed_key(id))?.bytes).ok()
    }

    /// The names of nodes that went and that no node has now, by this node's copy.
    pub fn departed(&self) -> Vec<String> {
        let read = |prefix| self.records.local_list(prefix).into_iter();
        let present: BTreeSet<String> = read(NODES)
            .filter_map(|(_, record)| serde_json::from_slice::<NodeRecord>(&record.bytes).ok())
            .map(|node| node.name)
            .collect();
        read(REMOVED)
            .filter_map(|(_, record)| serde_json::from_slice::<RemovedRecord>(&record.bytes).ok())
            .map(|removed| removed.name)
            .filter(|name| !present.contains(name))
            .collect()
    }

    /// Is this certificate of a kubelet one of a node that went: no other node has its name, or the one that has joined
    /// later than it was signed? By this node's copy; `not_before` in Unix seconds.
    pub fn is_of_departed(&self, name: &str, not_before: i64) -> bool {
        // Usually nobody has gone, and then this is all that is done.
        let went = |(_, record): &(String, Record)| {
            serde_json::from_slice::<RemovedRecord>(&record.bytes).is_ok_and(|removed| removed.name == name)
        };
        if !self.records.local_list(REMOVED).iter().any(went) {
            return false;
        }
        let nodes = self.records.local_list(NODES).into_iter();
        let present = nodes
            .filter_map(|(_, record)| serde_json::from_slice::<NodeRecord>(&record.bytes).ok())
            .find(|node| node.name == name);
        let signed = not_before.saturating_add_unsigned(BACK_DATED);
        present.is_none_or(|node| signed.saturating_add(SIGNED_BEFORE) < node.joined.as_second())
    }

    /// The control-plane nodes, by this node's copy.
    pub fn control_plane(&self) -> Vec<Peer> {
        let nodes = self.records.local_list(NODES);
        let nodes =
            nodes.iter().filter_map(|(_, record)| serde_json::from_slice::<NodeRecord>(&record.bytes).ok());
        nodes.filter(|node| node.role == Role::ControlPlane).map(|node| node.peer()).collect()
    }

    pub(crate) fn now(&self) -> Timestamp {
        let seconds = i64::try_from(self.clock.now()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    }

    async fn stranger(&self, id: NodeId) -> Result<Refusal, Refusal> {
        let removed = self.get::<RemovedRecord>(&removed_key(id)).await?;
        Ok(removed.map_or(Refusal::NotAMember, |(removed, _)| Refusal::Removed {
            name: removed.name,
            since: removed.at,
        }))
    }

    /// What stays of nodes that went so long ago that no certificate of theirs is valid.
    async fn outdated(&self, now: Timestamp) -> Result<Vec<String>, Refusal> {
        let removed: Vec<RemovedRecord> = self.list(REMOVED).await?;
        let old = removed.iter().filter(|removed| now.as_second() - removed.at.as_second() > REMOVED_FOR);
        Ok(old.map(|removed| removed_key(removed.id)).collect())
    }

    /// Reserve a name or address. The inner error: who has it.
    async fn claim(
        &self,
        key: &str,
        id: NodeId,
        transaction: &mut Transaction,
    ) -> Result<Result<(), NodeId>, Refusal> {
        match self.get::<NodeId>(key).await? {
            Some((owner, _)) if owner != id => Ok(Err(owner)),
            Some((_, revision)) => {
                transaction.checks.push(Check::At(key.to_owned(), revision));
                Ok(Ok(()))
            }
            None => {
                transaction.checks.push(Check::Absent(key.to_owned()));
                transaction.puts.push((key.to_owned(), encode(&id)?));
                Ok(Ok(()))
            }
        }
    }

    /// Repeat a decision until no other transaction comes in between.
    async fn decide<'a, T>(
        &self,
        attempt: impl Fn() -> BoxFuture<'a, Result<Option<T>, Refusal>>,
    ) -> Result<T, Refusal> {
        for _ in 0..ATTEMPTS {
            if let Some(done) = attempt().await? {
                return Ok(done);
            }
        }
        Err(Refusal::Unavailable { message: "too many changes at the same time".into() })
    }

    async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, Refusal> {
        let record = self.records.get(key.to_owned()).await.map_err(refusal)?;
        record.map(|record| Ok((decode(key, &record)?, record.revision))).transpose()
    }

    async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>, Refusal> {
        let records = self.records.list(prefix.to_owned()).await.map_err(refusal)?;
        records.iter().map(|(key, record)| decode(key, record)).collect()
    }

    /// `false`: a check failed.
    async fn commit(&self, transaction: Transaction) -> Result<bool, Refusal> {
        match self.records.commit(transaction).await {
            Ok(()) => Ok(true),
            Err(RecordsError::Conflict) => Ok(false),
            Err(error) => Err(refusal(error)),
        }
    }
}

/// The node that an operator means.
pub(crate) fn find<'a>(nodes: &'a [NodeRecord], which: &str) -> Result<&'a NodeRecord, Refusal> {
    let by_name = nodes.iter().find(|node| node.name == which || node.id.to_string() == which);
    let wanted: Option<std::net::IpAddr> = which.trim_matches(['[', ']']).parse().ok();
    let place: Option<HostPort> = which.parse().ok();
    let by_address = || {
        let mut hits = nodes.iter().filter(|node| {
            place.as_ref() == Some(&node.address)
                || node.address.host == which
                || wanted.is_some() && (node.address.address() == wanted)
        });
        // An address that several nodes have says nothing.
        hits.next().filter(|_| hits.next().is_none())
    };
    by_name.or_else(by_address).ok_or_else(|| Refusal::NoSuchNode {
        wanted: which.to_owned(),
        known: nodes.iter().map(|node| node.name.clone()).collect(),
    })
}

/// Every machine has the loopback addresses.
fn not_taken(
    nodes: &[NodeRecord],
    asks: impl Fn(&NodeRecord) -> bool,
    addresses: &[std::net::IpAddr],
) -> Result<(), Refusal> {
    for node in nodes.iter().filter(|node| !asks(node)) {
        let mut own = node.addresses.iter().copied().chain(node.address.address());
        if let Some(address) = own.find(|own| !own.is_loopback() && addresses.contains(own)) {
            return Err(Refusal::AddressTaken { address: address.to_string(), by: node.name.clone() });
        }
    }
    Ok(())
}

fn only_one(record: &NodeRecord) -> Refusal {
    Refusal::Unsafe {
        message: format!(
            "{} is the only control-plane node, so the cluster would be gone; to wipe it on purpose and start anew, \
             run kedge reset there",
            record.name
        ),
    }
}

fn refusal(error: RecordsError) -> Refusal {
    match error {
        RecordsError::Conflict => Refusal::Unavailable { message: "a change came in between".into() },
        RecordsError::Unsafe(message) => Refusal::Unsafe { message },
        RecordsError::Unavailable(message) => Refusal::Unavailable { message },
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Refusal::Unavailable { message: error.to_string() })
}

fn decode<T: DeserializeOwned>(key: &str, record: &Record) -> Result<T, Refusal> {
    serde_json::from_slice(&record.bytes)
        .map_err(|error| Refusal::Unavailable { message: format!("the record {key} is damaged: {error}") })
}

fn node_key(id: NodeId) -> String {
    format!("{NODES}{id}")
}

fn name_key(name: &str) -> String {
    format!("{NAMES}{name}")
}

fn address_key(address: &HostPort) -> String {
    format!("{ADDRESSES}{address}")
}

fn removed_key(id: NodeId) -> String {
    format!("{REMOVED}{id}")
}

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;
