//! Brings stored objects into the form that [`crate::sealing`] says: after encryption was switched on or
//! off, after a new key. It keeps no book of its own: what is left follows from what is stored, so it goes on
//! after a crash wherever it was.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kedge_store::{Check, CommitError, Condition, Key, Op, Txn};

use crate::ApiServer;
use crate::cache::Stored;
use crate::sealing::Writing;

/// How many are written at a time: they share the log's flushes and leave room for others.
const AT_ONCE: usize = 8;

/// How a resource's objects are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The storage key: `secrets`.
    pub resource: String,
    /// How many there are.
    pub objects: usize,
    /// How many of them are encrypted, with whatever key.
    pub encrypted: usize,
}

/// Why objects were not all rewritten.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// What was asked for is not asked for any more.
    #[error("objects are to be written otherwise now")]
    Superseded,
    /// The object cannot be encrypted.
    #[error("encrypt {object}: {reason}")]
    Seal {
        /// Its key in the store.
        object: String,
        /// Why not.
        reason: String,
    },
    /// The store did not take it.
    #[error("write {object}")]
    Commit {
        /// Its key in the store.
        object: String,
        /// Why not.
        #[source]
        source: CommitError,
    },
}

impl ApiServer {
    /// Whether there is a resource that is stored under this name (`secrets`, `widgets.example.com`).
    pub fn stores(&self, resource: &str) -> bool {
        self.0.registry.read().iter().any(|known| known.stored && *known.storage_key == *resource)
    }

    /// How what is or is to be encrypted is stored, by this node's copy.
    pub fn forms(&self) -> Vec<Form> {
        let found = self.0.cache.sealed(self.0.sealing.writing().as_deref());
        let form = |(resource, objects, encrypted)| Form { resource, objects, encrypted };
        found.into_iter().map(form).collect()
    }

    /// How many objects are not stored as they are to be, by this node's copy.
    pub fn to_be_rewritten(&self) -> usize {
        let Some(writing) = self.0.sealing.writing() else { return 0 };
        self.0.cache.to_be_rewritten(&writing).iter().map(|(_, objects)| objects.len()).sum()
    }

    /// Rewrites everything that is not stored as it is to be. Returns how many objects that were; 0: nothing
    /// was left. Objects that somebody else writes meanwhile are in the right form by that.
    ///
    /// # Errors
    /// See [`RewriteError`]; what was rewritten stays so.
    pub async fn rewrite(&self) -> Result<usize, RewriteError> {
        let Some(writing) = self.0.sealing.writing() else { return Ok(0) };
        let mut count = 0;
        for (resource, objects) in self.0.cache.to_be_rewritten(&writing) {
            count += objects.len();
            let one = |stored: Arc<Stored>| self.rewrite_one(&writing, &resource, stored);
            stream::iter(objects.into_iter().map(one)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
        Ok(count)
    }

    async fn rewrite_one(
        &self,
        writing: &Writing,
        resource: &str,
        stored: Arc<Stored>,
    ) -> Result<(), RewriteError> {
        let key: Key = format!("{resource}/{}", stored.key).into();
        let object = || key.to_string();
        // In the clear as well, it is only so for as long as that is what is wanted.
        let (record, revision) = &writing.record;
        let conditions = vec![
            Condition { key: key.clone(), check: Check::At(stored.modified) },
            Condition { key: record.clone(), check: Check::At(*revision) },
        ];
        let value = stored.unspliced();
        let sealed = self.0.sealing.seal(resource, &key, value, &mut Vec::new());
        let value = sealed.map_err(|reason| RewriteError::Seal { object: object(), reason })?;
        let ops = vec![Op::Put { key: key.clone(), value }];
        match self.0.store.commit(Txn { conditions, ops, lazy: false }).await {
            Err(CommitError::Conflict { key: at, .. }) if at == *record => Err(RewriteError::Superseded),
            // Somebody else has written it, or it is gone.
            Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
            Err(source) => Err(RewriteError::Commit { object: object(), source }),
        }
    }
}
