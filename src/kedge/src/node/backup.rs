//! Snapshots that the running node makes: on request, and by itself every few hours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use kedge_base::{Backoff, Chain};
use kedge_cluster::{ClusterConfig, EncryptionKeys, Pki};
use kedge_store::Store;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::failure::Remedied;
use crate::snapshot::{self, ENDING, SCHEDULED};

/// A node that was just started does other things first.
const FIRST: Duration = Duration::from_secs(600);

/// `POST /snapshots`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Save {
    /// An absolute path; the node's own folder otherwise.
    pub(crate) file: Option<PathBuf>,
    /// Its name in the node's own folder.
    pub(crate) name: Option<String>,
    /// One of that name gives way, once this one is whole.
    #[serde(default)]
    pub(crate) replace: bool,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saved {
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) revision: u64,
    pub(crate) objects: u64,
    pub(crate) time: Timestamp,
    /// A majority had confirmed that nothing newer was acknowledged.
    pub(crate) confirmed: bool,
}

/// What makes snapshots; on control-plane nodes.
pub(crate) struct Backups {
    pub(crate) store: Store,
    pub(crate) pki: Arc<Pki>,
    pub(crate) pki_dir: PathBuf,
    /// The node's own folder of snapshots.
    pub(crate) folder: PathBuf,
    pub(crate) node: String,
    pub(crate) cluster: ClusterConfig,
    /// One at a time.
    pub(crate) busy: Mutex<()>,
}

impl Backups {
    /// Makes one, and returns when it was read back.
    ///
    /// # Errors
    /// When the name is taken or the disk refuses.
    pub(crate) async fn save(&self, wish: &Save) -> anyhow::Result<Saved> {
        let _one = self.busy.lock().await;
        // With a majority everything acknowledged so far is in it. Without one, what is here is what there
        // is, and worth keeping all the more.
        let confirmed = match self.store.read_barrier().await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "no majority confirms that the snapshot is up to date");
                false
            }
        };
        // Keys may come and go while the copy is made; those that it needs are among these and the later ones.
        let mut encryption = EncryptionKeys::read(&self.pki_dir)?;
        let time = self.pki.clock().now();
        let time = Timestamp::from_second(i64::try_from(time)?)?;
        let copy = self.store.backup().await.context("copy the datastore")?;
        let target = self.target(wish, time, copy.summary().revision)?;
        let mut keys = Vec::new();
        for name in snapshot::KEYS {
            let path = self.pki_dir.join(name);
            keys.push((
                name.to_owned(),
                fs::read(&path).with_context(|| format!("read {}", path.display()))?,
            ));
        }
        encryption.add(EncryptionKeys::read(&self.pki_dir)?);
        if !encryption.is_empty() {
            keys.push((snapshot::MORE_KEYS[0].to_owned(), encryption.text().into_bytes()));
        }
        for name in &snapshot::MORE_KEYS[1..] {
            let bytes = kedge_base::read_optional(&self.pki_dir.join(name));
            if let Some(bytes) = bytes.with_context(|| format!("read {name}"))? {
                keys.push(((*name).to_owned(), bytes));
            }
        }
        let header = snapshot::new_header(
            self.pki.ca_hash(),
            self.cluster.clone(),
            self.node.clone(),
            time,
            copy.summary(),
            confirmed,
        );
        let file = target.clone();
        let written = tokio::task::spawn_blocking(move || {
            // The copy is removed with the end of this.
            snapshot::write(&file, header, &keys, copy.path())
        });
        let verified = written.await.context("write the snapshot")??;
        Ok(Saved {
            file: target,
            bytes: verified.bytes,
            revision: verified.header.revision,
            objects: verified.header.objects,
            time,
            confirmed,
        })
    }

    fn target(&self, wish: &Save, time: Timestamp, revision: u64) -> anyhow::Result<PathBuf> {
        if let Some(file) = &wish.file {
            if !file.is_absolute() || file.is_dir() {
                bail!("{} is not an absolute path of a file", file.display());
            }
            if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
                let what = format!("the folder {} does not exist", folder.display());
                return Err(Remedied::new(what, "make it first, or mount what it is on").into());
            }
            return Ok(file.clone());
        }
        make_folder(&self.folder).with_context(|| format!("create {}", self.folder.display()))?;
        let name = match &wish.name {
            Some(name) => name.clone(),
            None => format!("{}-r{revision}", time.strftime("%Y-%m-%dT%H-%M-%SZ")),
        };
        let file = self.folder.join(format!("{name}.{ENDING}"));
        if wish.name.is_some() && !wish.replace && file.exists() {
            let what = format!("there is a snapshot {name} already");
            return Err(Remedied::new(what, "say --replace or choose another name").into());
        }
        Ok(file)
    }

    /// Makes one every `interval`, counted from the last one, also over restarts, and keeps the `keep`
    /// newest of these.
    pub(crate) async fn schedule(self: Arc<Self>, interval: Duration, keep: usize) {
        let mut backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(3600));
        let mut wait = self.due(interval).max(FIRST.min(interval));
        loop {
            tokio::time::sleep(wait).await;
            let name = format!("{SCHEDULED}{}", Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ"));
            wait = match self.save(&Save { file: None, name: Some(name), replace: false }).await {
                Ok(saved) => {
                    tracing::info!(file = %saved.file.display(), objects = saved.objects, "snapshot saved");
                    if let Err(error) = prune(&self.folder, keep) {
                        tracing::warn!(%error, "old snapshots were not removed");
                    }
                    backoff.reset();
                    interval
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the scheduled snapshot was not saved");
                    backoff.next_delay()
                }
            };
        }
    }

    /// How long until the next one.
    fn due(&self, interval: Duration) -> Duration {
        let last = snapshot::list(&self.folder).unwrap_or_default();
        let Some(last) = last.into_iter().find(|found| found.scheduled) else { return Duration::ZERO };
        let age = Timestamp::now().duration_since(last.time);
        // A file from the future (a clock that was wrong) puts nothing off for longer than the interval.
        interval.saturating_sub(Duration::try_from(age).unwrap_or_default())
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// Removes scheduled snapshots but the newest, and what a crash left half written.
fn prune(folder: &Path, keep: usize) -> io::Result<()> {
    for old in snapshot::list(folder)?.into_iter().filter(|found| found.scheduled).skip(keep) {
        fs::remove_file(old.file)?;
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = format!(".{}.part", std::process::id());
        if name.starts_with('.') && name.ends_with(".part") && !name.ends_with(&own) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
