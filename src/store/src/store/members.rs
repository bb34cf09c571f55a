//! The part of [`Store`] that is about the group.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tonic::service::Routes;

use super::Store;
use crate::error::{CommitError, Error, MemberError};
use crate::membership::{self, Member};
use crate::node::Msg;
use crate::recover::{self, Book};
use crate::status::{MemberStatus, Role, Status};
use crate::types::{Check, Condition, Config, Key, Op, Revision, Txn, Value};

/// How long a member that is to go waits until the group counts on its vote no more.
const OUTVOTED: Duration = Duration::from_secs(20);
/// A word is taken back so often, each with the store's own patience.
const TAKEN_BACK: u32 = 4;

/// What [`Store::recover`] has kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The last log entry. What other members had beyond it is lost.
    pub index: u64,
    pub term: u64,
    pub revision: Revision,
    /// The members that are none any more; they have to join again with empty folders.
    pub removed: Vec<Member>,
}

fn put(key: Key, bytes: Vec<u8>) -> Op {
    Op::Put { key, value: Value { bytes: bytes.into(), splice: None } }
}

fn claim(id: u64) -> Vec<u8> {
    format!("{id:016x}").into_bytes()
}

fn condition(key: Key, check: Check) -> Condition {
    Condition { key, check }
}

/// What must hold when a member goes: it is there, and so is another one that stays.
fn stays(id: u64, other: u64) -> Vec<Condition> {
    vec![
        condition(membership::key(id), Check::Any),
        condition(membership::key(other), Check::Any),
        condition(membership::leaving_key(other), Check::Absent),
    ]
}

fn not_removed(error: CommitError, id: u64, other: u64) -> MemberError {
    match error {
        CommitError::Conflict { key, .. } if key == membership::key(id) => MemberError::Unknown(id),
        CommitError::Conflict { key, .. }
            if key == membership::key(other) || key == membership::leaving_key(other) =>
        {
            MemberError::Unsafe("another node is leaving at the same time; try again when it has".into())
        }
        CommitError::Conflict { key, .. } if key == membership::leaving_key(id) => MemberError::Unsafe(
            "the removal took so long that the leader has taken it back; try again".into(),
        ),
        other => MemberError::Commit(other),
    }
}

fn check_member(member: &Member) -> Result<(), MemberError> {
    let invalid = |text: &str| Err(MemberError::Invalid(text.into()));
    if member.id == 0 {
        return invalid("a member's id must not be 0");
    }
    if member.name.is_empty() {
        return invalid("a member needs a name");
    }
    let port = member.address.rsplit_once(':').and_then(|(host, port)| {
        let port: u16 = port.parse().ok()?;
        (!host.is_empty() && port != 0).then_some(port)
    });
    if port.is_none() {
        return invalid("a member's address must be HOST:PORT");
    }
    Ok(())
}

impl Store {
    /// Admits a member in the same transaction as `txn`, in which the caller consumes the join token. The
    /// leader makes it a learner and, when the group has a place for it and it has all data, a voter.
    ///
    /// # Errors
    /// Nothing has changed when id, name or address are taken, or a condition of `txn` does not hold.
    pub async fn admit(&self, member: Member, txn: Txn) -> Result<Revision, MemberError> {
        check_member(&member)?;
        // Who is no member itself would lose its vote as soon as there is a record of another one.
        let own = membership::key(self.shared.id);
        let mut extra = vec![];
        if member.id != self.shared.id {
            extra.push(condition(own.clone(), Check::Any));
        }
        extra.extend([
            condition(membership::key(member.id), Check::Absent),
            condition(membership::name_key(&member.name), Check::Absent),
            condition(membership::address_key(&member.address), Check::Absent),
        ]);
        let ops = vec![
            put(membership::key(member.id), membership::encode(&member)),
            put(membership::name_key(&member.name), claim(member.id)),
            put(membership::address_key(&member.address), claim(member.id)),
        ];
        self.commit_with(txn, extra, ops).await.map_err(|error| match error {
            CommitError::Conflict { key, .. } if key == membership::key(member.id) => {
                MemberError::IdTaken(member.id)
            }
            CommitError::Conflict { key, .. } if key == membership::name_key(&member.name) => {
                MemberError::NameTaken(member.name.clone())
            }
            CommitError::Conflict { key, .. } if key == membership::address_key(&member.address) => {
                MemberError::AddressTaken(member.address.clone())
            }
            CommitError::Conflict { key, .. } if key == own => MemberError::NotAnnounced,
            other => MemberError::Commit(other),
        })
    }

    /// Makes this node's own record what it should be: written if there is none, changed if name, address or
    /// failure domain are others. To be called at each start, once a leader is known.
    ///
    /// # Errors
    /// As of [`Store::admit`] and [`Store::update_address`].
    pub async fn announce(
        &self,
        name: &str,
        address: &str,
        failure_domain: Option<&str>,
    ) -> Result<(), MemberError> {
        let member = Member {
            id: self.shared.id,
            name: name.to_owned(),
            address: address.to_owned(),
            failure_domain: failure_domain.map(str::to_owned),
        };
        match self.member(self.shared.id).await? {
            Some(known) if known == member => {}
            Some(known) => self.replace(known, member).await.map(drop)?,
            None => self.admit(member, Txn::default()).await.map(drop)?,
        }
        // A removal that was cut off is not gone on with: who starts wants to take part.
        if self.is_leaving(self.shared.id) {
            let mark = membership::leaving_key(self.shared.id);
            self.commit_any(Txn { ops: vec![Op::Delete { key: mark }], ..Txn::default() }).await?;
        }
        Ok(())
    }

    /// Whether the others could do without this member now: see [`MemberError::Unsafe`].
    ///
    /// # Errors
    /// Why it must stay and what to do about it, or that there is no leader to ask.
    pub async fn check_removal(&self, id: u64) -> Result<(), MemberError> {
        let status = self.leader_status().await;
        let status = status.map_err(|error| CommitError::Unavailable(error.to_string()))?;
        membership::objection(&status, id).map_or(Ok(()), Err)
    }

    /// Removes a member in the same transaction as `txn`. Before that the group learns to do without its vote:
    /// the leader hands the lead over if it is the one that goes, and takes a standby in its place if there is
    /// one. Only when that is committed, by the old voters and by the new ones, is the member removed; when it
    /// cannot be in 20 s, all is as it was.
    ///
    /// # Errors
    /// Nothing has changed when there is no such member or no other one, or the others cannot do without it.
    pub async fn remove(&self, id: u64, txn: Txn) -> Result<Revision, MemberError> {
        let member = self.member(id).await?.ok_or(MemberError::Unknown(id))?;
        self.check_removal(id).await?;
        // Another one must stay, in the same transaction, or two removals could leave nobody.
        let Some(other) = self
            .members()
            .into_iter()
            .find(|other| other.id != id && other.member.is_some() && other.role != Role::Leaving)
        else {
            return Err(MemberError::Last);
        };
        let votes = self.members().iter().any(|status| status.id == id && status.votes);
        if votes {
            let mark = put(membership::leaving_key(id), Vec::new());
            let done = self.commit_with(Txn::default(), stays(id, other.id), vec![mark]).await;
            if let Err(error) = done {
                self.take_back(id).await;
                return Err(not_removed(error, id, other.id));
            }
            if tokio::time::timeout(OUTVOTED, self.outvoted(id)).await.is_err() {
                let why = self.leader_status().await;
                let why =
                    why.map_or_else(|error| error.to_string(), |status| status.waits.unwrap_or_default());
                self.take_back(id).await;
                let why = if why.is_empty() {
                    "the leader did not change the voters in time, as one of an older version does not (upgrade \
                     that node first)"
                        .to_owned()
                } else {
                    why
                };
                return Err(MemberError::Unsafe(format!(
                    "the others did not confirm within {} s that they do without {}: {why}; it stays in the \
                     cluster. See kedge status for who does not answer, and try again when all do",
                    OUTVOTED.as_secs(),
                    member.name
                )));
            }
        }
        let ops = vec![
            Op::Delete { key: membership::key(id) },
            Op::Delete { key: membership::name_key(&member.name) },
            Op::Delete { key: membership::address_key(&member.address) },
            Op::Delete { key: membership::leaving_key(id) },
        ];
        let mut conditions = stays(id, other.id);
        if votes {
            // The leader forgets a removal that takes too long.
            conditions.push(condition(membership::leaving_key(id), Check::Any));
        }
        match self.commit_with(txn, conditions, ops).await {
            Ok(revision) => Ok(revision),
            Err(error) => {
                // Where it happened after all, this changes nothing.
                if votes {
                    self.take_back(id).await;
                }
                Err(not_removed(error, id, other.id))
            }
        }
    }

    /// Waits until this member's vote counts no more, by what was committed here.
    async fn outvoted(&self, id: u64) {
        let mut status = self.shared.status.subscribe();
        let done = status.wait_for(|status| {
            !status.changing && status.members.iter().all(|member| member.id != id || !member.votes)
        });
        // An error: the store is closed.
        let _ = done.await;
    }

    /// It stays, and may vote again. What cannot be written now the leader mends after [`membership::FORGOTTEN`].
    async fn take_back(&self, id: u64) {
        for _ in 0..TAKEN_BACK {
            let txn = Txn { ops: vec![Op::Delete { key: membership::leaving_key(id) }], ..Txn::default() };
            match self.commit_any(txn).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(id, %error, "a removal is not taken back yet"),
            }
        }
    }

    fn is_leaving(&self, id: u64) -> bool {
        self.members().iter().any(|member| member.id == id && member.role == Role::Leaving)
    }

    /// Waits until the group does without a member that was removed. Before that the member must go on
    /// running if it can: its vote may be needed for the change. On the member itself this ends when the
    /// others say that it is gone. The caller decides how long to wait; without a majority it is for ever.
    pub async fn gone(&self, id: u64) {
        let mut status = self.shared.status.subscribe();
        let own = id == self.shared.id;
        let gone = status.wait_for(|status| {
            own && status.removed || status.leader.is_some() && status.members.iter().all(|m| m.id != id)
        });
        // An error: the store is closed.
        let _ = gone.await;
    }

    /// A member is reached at another address from now on.
    ///
    /// # Errors
    /// Nothing has changed when there is no such member, or another one has the address.
    pub async fn update_address(&self, id: u64, address: &str) -> Result<Revision, MemberError> {
        let known = self.member(id).await?.ok_or(MemberError::Unknown(id))?;
        let member = Member { address: address.to_owned(), ..known.clone() };
        self.replace(known, member).await
    }

    async fn replace(&self, known: Member, member: Member) -> Result<Revision, MemberError> {
        check_member(&member)?;
        let id = member.id;
        let record = membership::key(id);
        let mut extra = vec![condition(record.clone(), Check::Any)];
        let mut ops = vec![put(record.clone(), membership::encode(&member))];
        let (old_name, name) = (membership::name_key(&known.name), membership::name_key(&member.name));
        let (old_address, address) =
            (membership::address_key(&known.address), membership::address_key(&member.address));
        for (old, new) in [(old_name, &name), (old_address, &address)] {
            if old != *new {
                extra.push(condition(new.clone(), Check::Absent));
                ops.push(put(new.clone(), claim(id)));
                extra.push(condition(old.clone(), Check::Any));
                ops.push(Op::Delete { key: old });
            }
        }
        self.commit_with(Txn::default(), extra, ops).await.map_err(|error| match error {
            CommitError::Conflict { key, .. } if key == record => MemberError::Unknown(id),
            CommitError::Conflict { key, .. } if key == name => MemberError::NameTaken(member.name),
            CommitError::Conflict { key, .. } if key == address => MemberError::AddressTaken(member.address),
            other => MemberError::Commit(other),
        })
    }

    async fn commit_with(
        &self,
        txn: Txn,
        extra: Vec<Condition>,
        ops: Vec<Op>,
    ) -> Result<Revision, CommitError> {
        if let Some(op) = txn.ops.iter().find(|op| membership::is_reserved(op.key())) {
            return Err(CommitError::Invalid(format!("{} is the store's own key", op.key())));
        }
        let mut all = txn;
        // The caller's conditions come first: a used token is a better answer than a taken name.
        all.conditions.extend(extra);
        all.ops.extend(ops);
        all.lazy = false;
        self.commit_any(all).await
    }

    /// The record of a member, as fresh as can be.
    async fn member(&self, id: u64) -> Result<Option<Member>, MemberError> {
        let fresh = self.read_barrier().await;
        fresh.map_err(|error| CommitError::Unavailable(error.to_string()))?;
        Ok(self.records().into_iter().find(|member| member.id == id))
    }

    fn records(&self) -> Vec<Member> {
        self.shared.status.borrow().members.iter().filter_map(|status| status.member.clone()).collect()
    }

    /// All members as this node sees them. Who is healthy and who lags behind only the leader knows.
    pub fn members(&self) -> Vec<MemberStatus> {
        self.shared.status.borrow().members.clone()
    }

    /// The leader's id, if this node knows one.
    pub fn leader(&self) -> Option<u64> {
        self.shared.status.borrow().leader
    }

    /// This node's id in the group.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The group as this node sees it, and each change of that.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// The group with what the leader alone knows: who is healthy and how far behind, and why it does not
    /// change what should be changed.
    ///
    /// # Errors
    /// There is no leader, or it cannot be asked; [`Store::status`] still says what this node knows.
    pub async fn leader_status(&self) -> Result<Status, Error> {
        let (reply, answer) = oneshot::channel();
        self.shared.sender.send(Msg::Ask(reply)).map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// What other members call, to be served on the cluster port, with a [`crate::Peer`] among each
    /// request's extensions.
    pub fn service(&self) -> Routes {
        Routes::new(self.service.clone())
    }

    /// Rewrites the group of a closed store to this member alone: for when the majority is lost for good.
    /// The data stays, what was not yet committed included; what only others had is lost. The other members
    /// must not be started again with their old folders. `book` says what the caller's own keys become.
    ///
    /// # Errors
    /// The folder is in use or damaged, or holds no data yet.
    pub async fn recover(config: Config, book: impl Book) -> Result<Recovered, Error> {
        let work = tokio::task::spawn_blocking(move || recover::alone(&config, &book, &Arc::default()));
        work.await.map_err(|error| Error::Failed(error.to_string()))?
    }
}
