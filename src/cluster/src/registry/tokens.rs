//! Tokens in the book: made, listed, revoked, used.

use jiff::{SignedDuration, Timestamp};
use kedge_base::Order as _;
use serde::{Deserialize, Serialize};

use super::{Check, Registry, TOKENS, Transaction, encode};
use crate::token::UsedBy;
use crate::wire::NodeFacts;
use crate::{Error, NodeId, Refusal, Role, Token, TokenHash, TokenOptions, TokenRecord};

/// A used or expired token is remembered for so long, for a clear answer to whoever comes with it.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24 * 7);

/// A token in a list: enough to know and revoke it, nothing to join with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenSummary {
    /// The first digits of its hash.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// From then on it admits nobody.
    pub expires: Timestamp,
    /// Admits any number of nodes.
    pub reusable: bool,
    /// What nodes may join as.
    pub roles: Vec<Role>,
    /// How many nodes it admitted.
    pub uses: u32,
    /// Would it admit a node now?
    pub usable: bool,
}

impl Registry {
    /// Make a token and store its hash. The token itself is only in the answer.
    ///
    /// # Errors
    /// When there are no random numbers or the store cannot be written.
    pub async fn create_token(&self, options: &TokenOptions) -> Result<(Token, TokenRecord), Error> {
        let token = Token::generate()?;
        let now = self.now();
        let ttl = SignedDuration::try_from(options.ttl).unwrap_or(SignedDuration::MAX);
        let record = TokenRecord {
            hash: token.hash(),
            created: now,
            expires: now.saturating_add(ttl).unwrap_or(Timestamp::MAX),
            reusable: options.reusable,
            roles: options.roles.clone(),
            uses: 0,
            used_by: None,
        };
        let key = token_key(&record.hash);
        let forgotten = self.forgotten(now).await?;
        let transaction = Transaction {
            checks: vec![Check::Absent(key.clone())],
            puts: vec![(key, encode(&record)?)],
            deletes: forgotten,
            member: None,
        };
        if !self.commit(transaction).await? {
            return Err(Error::Random);
        }
        Ok((token, record))
    }

    /// All tokens that are remembered, the oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn tokens(&self) -> Result<Vec<TokenSummary>, Error> {
        let now = self.now();
        let mut records: Vec<TokenRecord> = self.list(TOKENS).await?;
        records.order_by(|one, other| (one.created, &one.hash).cmp(&(other.created, &other.hash)));
        Ok(records
            .into_iter()
            .map(|record| TokenSummary {
                id: record.hash.id().to_owned(),
                created: record.created,
                expires: record.expires,
                usable: now < record.expires && (record.reusable || record.used_by.is_none()),
                reusable: record.reusable,
                roles: record.roles,
                uses: record.uses,
            })
            .collect())
    }

    /// Forget a token, by its id in the list or the beginning of it (4 digits at least).
    ///
    /// # Errors
    /// [`Error::NoSuchToken`] when none begins so, [`Error::TokenUnclear`] when several do.
    pub async fn revoke_token(&self, id: &str) -> Result<TokenRecord, Error> {
        let id = id.to_ascii_lowercase();
        let records: Vec<TokenRecord> = self.list(TOKENS).await?;
        let mut hits = records.into_iter().filter(|record| record.hash.as_str().starts_with(&id));
        let record = match (hits.next(), hits.next()) {
            (Some(record), None) if id.len() >= 4 => record,
            (None, _) => return Err(Error::NoSuchToken(id)),
            _ => return Err(Error::TokenUnclear(id)),
        };
        let transaction = Transaction { deletes: vec![token_key(&record.hash)], ..Transaction::default() };
        self.commit(transaction).await?;
        Ok(record)
    }

    /// Check a token without using it, so that a stranger learns nothing else without one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn check_token(&self, token: &TokenHash, id: NodeId, role: Role) -> Result<(), Refusal> {
        let (record, _) = self.get::<TokenRecord>(&token_key(token)).await?.ok_or(Refusal::UnknownToken)?;
        record.admits(id, role, self.now()).map(|_| ())
    }

    /// Add the use of a token to the transaction that admits a node.
    pub(super) async fn use_token(
        &self,
        token: &TokenHash,
        id: NodeId,
        facts: &NodeFacts,
        transaction: &mut Transaction,
    ) -> Result<(), Refusal> {
        let key = token_key(token);
        let (mut record, revision) = self.get::<TokenRecord>(&key).await?.ok_or(Refusal::UnknownToken)?;
        let again = record.admits(id, facts.role, self.now())?;
        transaction.checks.push(Check::At(key.clone(), revision));
        if !again {
            record.uses += 1;
            record.used_by = Some(UsedBy { id, name: facts.name.clone() });
            transaction.puts.push((key, encode(&record)?));
        }
        Ok(())
    }

    /// Keys of tokens that expired long ago.
    async fn forgotten(&self, now: Timestamp) -> Result<Vec<String>, Refusal> {
        let records: Vec<TokenRecord> = self.list(TOKENS).await?;
        let old = records.iter().filter(|record| now.duration_since(record.expires) > REMEMBERED);
        Ok(old.map(|record| token_key(&record.hash)).collect())
    }
}

fn token_key(hash: &TokenHash) -> String {
    format!("{TOKENS}{}", hash.as_str())
}
