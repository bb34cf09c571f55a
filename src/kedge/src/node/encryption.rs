//! Encryption of stored objects on a running control-plane node: its file of keys, the cluster's record, and
//! what has to be rewritten. What is agreed on how is [`kedge_cluster::EncryptionState`]'s; the cipher is the
//! API server's.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use kedge_apiserver::{ApiServer, KeyId, RewriteError, Sealing, Unreadable, Writing};
use kedge_base::{Chain, Tasks};
use kedge_cluster::{
    EncryptionKeys, EncryptionStage, EncryptionState, EncryptionWish, Members, Pki, Refusal, Registry,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::in_step::in_step;

/// A decision that another one came before is made again so many times.
const ATTEMPTS: u32 = 16;

/// How objects are stored: `GET /secrets-encryption`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EncryptionStatus {
    /// New objects are encrypted.
    pub(crate) enabled: bool,
    pub(crate) stage: EncryptionStage,
    /// The key that is written with.
    pub(crate) key: Option<String>,
    pub(crate) resources: Vec<ResourceForm>,
    /// How many objects are not yet stored as they are to be.
    pub(crate) to_be_rewritten: usize,
    /// Control-plane nodes that do not have the next key yet.
    pub(crate) waiting_for: Vec<String>,
    /// The keys in this node's file.
    pub(crate) keys: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResourceForm {
    pub(crate) resource: String,
    pub(crate) objects: usize,
    pub(crate) encrypted: usize,
}

/// This node's part in it.
pub(crate) struct Encryption {
    pki: Arc<Pki>,
    pki_dir: PathBuf,
    registry: Registry,
    server: ApiServer,
    sealing: Sealing,
    others: Members,
    /// Held while the file or the record is changed: a fresh key is not taken for an old one meanwhile.
    file: Mutex<()>,
}

/// The keys of this node's file, for reading the store from its beginning.
///
/// # Errors
/// When the file is damaged.
pub(crate) fn sealing(pki_dir: &std::path::Path) -> anyhow::Result<Sealing> {
    let sealing = Sealing::default();
    use_keys(&sealing, &EncryptionKeys::read(pki_dir).context("read the encryption keys")?);
    Ok(sealing)
}

fn use_keys(sealing: &Sealing, keys: &EncryptionKeys) {
    let keys = keys.iter().filter_map(|(id, key)| Some((id.parse::<KeyId>().ok()?, *key)));
    sealing.set_keys(keys);
}

/// The record was written, at this revision: from now on objects are written as it says.
pub(crate) fn follow_record(sealing: &Sealing, bytes: &[u8], revision: u64) {
    let read = |bytes| -> Option<Writing> {
        let state: EncryptionState = serde_json::from_slice(bytes).ok()?;
        let key = state.key.as_ref().map(|key| key.parse::<KeyId>()).transpose().ok()?;
        let guarded = state.guarded();
        let record = (EncryptionState::RECORD.into(), revision);
        Some(Writing { key, resources: state.resources, guarded, record })
    };
    match read(bytes) {
        Some(writing) => sealing.write_as(Some(writing)),
        // Nothing is written in the clear because of what cannot be understood.
        None => sealing.give_up(Unreadable::Unknown { object: EncryptionState::RECORD.to_owned() }),
    }
}

/// What to do about an object that cannot be read.
pub(crate) fn remedy(error: &Unreadable) -> &'static str {
    match error {
        Unreadable::NoKey { .. } => {
            "put pki/encryption.json of the data folder back, from another control-plane node or from a snapshot of \
             this cluster (tar -xOf FILE pki/encryption.json), and start again"
        }
        Unreadable::Damaged { .. } => {
            "take this node's data from the others (kedge leave --force, then kedge join), or restore a snapshot \
             (kedge snapshot restore)"
        }
        Unreadable::Unknown { .. } => {
            "start a version of Kedge that is not older than the one that ran before"
        }
    }
}

impl Encryption {
    /// # Errors
    /// When the certificates are of no use for TLS.
    pub(crate) fn new(
        pki: Arc<Pki>,
        pki_dir: PathBuf,
        registry: Registry,
        server: ApiServer,
        sealing: Sealing,
    ) -> anyhow::Result<Arc<Self>> {
        let others = Members::new(pki.clone(), Vec::new())?;
        Ok(Arc::new(Self { pki, pki_dir, registry, server, sealing, others, file: Mutex::default() }))
    }

    /// Keeps this node's keys as the record says, until `tasks` stop.
    pub(crate) fn follow(self: &Arc<Self>, changes: watch::Receiver<u64>, tasks: &Tasks) {
        let own = self.clone();
        let sync = move || {
            let own = own.clone();
            async move { own.sync().await }
        };
        tasks.spawn_until_stopped("encryption keys", in_step(changes, "the encryption keys", sync));
    }

    async fn sync(&self) -> anyhow::Result<()> {
        let Some((state, revision)) = self.registry.encryption_here()? else { return Ok(()) };
        self.keep_keys(&state).await?;
        if let Some(next) = state.spread()
            && self.registry.lacking_encryption(&state).await?.is_empty()
            && self.registry.set_encryption(&next, Some(revision)).await?
        {
            tracing::info!(
                key = next.key,
                "every control-plane node has the key: stored objects are rewritten"
            );
        }
        Ok(())
    }

    /// Fetches what is missing, forgets what is of no use any more, and says so in the book.
    async fn keep_keys(&self, state: &EncryptionState) -> anyhow::Result<()> {
        let _file = self.file.lock().await;
        let mut keys = EncryptionKeys::read(&self.pki_dir)?;
        let (needed, held) = (state.needed(), keys.ids());
        let mut changed = false;
        if !needed.is_subset(&held) {
            self.others.set_peers(self.registry.control_plane());
            let parse = |text: &str| EncryptionKeys::parse(text).unwrap_or_default();
            let shared = self
                .others
                .keys(|shared| {
                    needed.difference(&held).all(|id| parse(&shared.encryption).ids().contains(id))
                })
                .await
                .context("fetch the encryption keys")?;
            keys.add(parse(&shared.encryption));
            changed = true;
        }
        if state.stage == EncryptionStage::Settled {
            changed |= keys.retain(&needed);
        }
        if changed {
            keys.write(&self.pki_dir)?;
            use_keys(&self.sealing, &keys);
            tracing::info!(keys = ?keys, "the encryption keys of this node changed");
        }
        self.registry.report_encryption(self.pki.node_id(), keys.ids(), state.guarded()).await?;
        Ok(())
    }

    /// Changes what the cluster does.
    ///
    /// # Errors
    /// When it does not make sense now, or the store does not take it.
    pub(crate) async fn wish(&self, wish: &EncryptionWish) -> anyhow::Result<EncryptionStatus> {
        if let EncryptionWish::Enable(resources) = wish {
            for resource in resources {
                anyhow::ensure!(
                    self.server.stores(resource),
                    "there is no resource {resource}; name it in the plural, with its group: secrets, \
                     widgets.example.com (kedge kubectl api-resources lists them)"
                );
            }
        }
        let file = self.file.lock().await;
        let mut keys = EncryptionKeys::read(&self.pki_dir)?;
        let fresh = keys.generate()?;
        for _ in 0..ATTEMPTS {
            let before = self.registry.encryption().await?;
            let state = before.as_ref().map(|(state, _)| state);
            let wished = EncryptionState::wish(state, wish, &fresh).map_err(|refusal| match refusal {
                // The message says all.
                Refusal::Invalid { message } => anyhow::Error::msg(message),
                other => other.into(),
            });
            let Some(next) = wished? else {
                drop(file);
                return self.status().await;
            };
            if next.needed().contains(&fresh) {
                // First the key, then the record that names it.
                keys.write(&self.pki_dir)?;
                use_keys(&self.sealing, &keys);
            }
            if self.registry.set_encryption(&next, before.map(|(_, revision)| revision)).await? {
                drop(file);
                return self.status().await;
            }
        }
        Err(crate::failure::Remedied::new("too many changes at the same time", "try again").into())
    }

    /// # Errors
    /// When the store or the file cannot be read.
    pub(crate) async fn status(&self) -> anyhow::Result<EncryptionStatus> {
        let state = self.registry.encryption().await?.map(|(state, _)| state);
        let waiting_for = match &state {
            Some(state) => self.registry.lacking_encryption(state).await?,
            None => Vec::new(),
        };
        let forms = self.server.forms().into_iter().map(|form| ResourceForm {
            resource: form.resource,
            objects: form.objects,
            encrypted: form.encrypted,
        });
        Ok(EncryptionStatus {
            enabled: state.as_ref().is_some_and(|state| state.key.is_some()),
            stage: state.as_ref().map_or(EncryptionStage::Settled, |state| state.stage),
            key: state.and_then(|state| state.key),
            resources: forms.collect(),
            to_be_rewritten: self.server.to_be_rewritten(),
            waiting_for,
            keys: EncryptionKeys::read(&self.pki_dir)?.ids().into_iter().collect(),
        })
    }
}

/// Rewrites what is stored otherwise than it is to be, whenever that changes. Runs on the node that leads.
pub(crate) async fn rewrite(registry: Registry, changes: watch::Receiver<u64>, server: ApiServer) {
    in_step(changes, "how objects are stored", || rewrite_all(&registry, &server)).await;
}

async fn rewrite_all(registry: &Registry, server: &ApiServer) -> anyhow::Result<()> {
    let Some((state, revision)) = registry.encryption().await? else { return Ok(()) };
    let Some(settled) = state.settled() else { return Ok(()) };
    loop {
        match server.rewrite().await {
            // Writes of another opinion are refused since that revision, so none can follow.
            Ok(0) => break,
            Ok(objects) => tracing::info!(objects, "stored objects were rewritten"),
            Err(RewriteError::Superseded) => return Ok(()),
            Err(error) => anyhow::bail!("{}", Chain(&error)),
        }
    }
    if registry.set_encryption(&settled, Some(revision)).await? {
        tracing::info!(key = settled.key, "everything is stored as it is to be");
    }
    Ok(())
}
