//! Unpacked layers and power cuts. containerd unpacks a layer and says in its database, durably, that it is
//! there, but leaves the files to the page cache (1.7 has no setting for it, and 2 only one for pulls). When
//! the power is cut within the next half minute they come back empty, and no container of that image ever
//! starts again: with Kedge's own layer none at all. So what is unpacked is synced here and then written to a
//! record; after a reboot a layer that is not in it is removed, and containerd unpacks it again when it is
//! needed, from the blobs, which it syncs.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::snapshots as api;
use kedge_base::{Backoff, Chain};
use tokio::sync::oneshot;

use super::store::Store;
use crate::Error;
use crate::runtime::Runtime;

const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One of containerd's snapshots.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Layer {
    pub(super) snapshotter: &'static str,
    pub(super) name: String,
    pub(super) parent: String,
    /// A layer, which never changes; else the files of a container.
    pub(super) committed: bool,
    /// Seconds and nanoseconds: a layer that is unpacked anew has the name of the one before.
    pub(super) created: (i64, i32),
}

impl Layer {
    pub(super) fn of(snapshotter: &'static str, info: api::Info) -> Self {
        let created = info.created_at.unwrap_or_default();
        Self {
            snapshotter,
            committed: info.kind() == api::Kind::Committed,
            name: info.name,
            parent: info.parent,
            created: (created.seconds, created.nanos),
        }
    }

    /// Its line in the record.
    fn line(&self) -> String {
        format!("{} {} {}.{:09}", self.snapshotter, self.name, self.created.0, self.created.1)
    }
}

/// The layers that a power cut does not harm.
pub(crate) struct Layers {
    runtime: Runtime,
    store: Store,
    /// A folder on their file system.
    folder: PathBuf,
    /// The boot it was written in, then a line for each synced layer.
    record: PathBuf,
    boot: String,
    synced: HashSet<String>,
    /// They could not be removed.
    suspect: HashSet<String>,
}

impl Layers {
    /// # Errors
    /// The machine does not say which boot this is.
    pub(crate) fn new(runtime: &Runtime, folder: &Path, record: &Path) -> Result<Self, Error> {
        let boot =
            std::fs::read_to_string(BOOT_ID).map_err(|error| Error::io("read the boot's id", error))?;
        Ok(Self {
            runtime: runtime.clone(),
            store: Store::of(runtime),
            folder: folder.to_owned(),
            record: record.to_owned(),
            boot: boot.trim().to_owned(),
            synced: HashSet::new(),
            suspect: HashSet::new(),
        })
    }

    /// Removes what a power cut may have spoiled and says so: the first container may be made then, and not
    /// before. After that syncs what is unpacked, whenever something may have been.
    pub(crate) async fn follow(mut self, mended: oneshot::Sender<()>) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        while let Err(error) = self.mend().await {
            tracing::warn!(error = %Chain(&error), "no pod starts before the images' layers were looked at; it is tried again");
            tokio::time::sleep(backoff.next_delay()).await;
        }
        let _ = mended.send(());
        loop {
            if let Err(error) = self.sync().await {
                tracing::warn!(error = %Chain(&error), "unpacked layers are not synced; it is tried again with the next container");
            }
            self.runtime.unpacked().notified().await;
        }
    }

    async fn mend(&mut self) -> Result<(), Error> {
        let written = kedge_base::read_optional(&self.record)
            .map_err(|error| Error::io("read the layers' record", error))?;
        if let Some(kept) = written.and_then(|bytes| of_another_boot(&bytes, &self.boot)) {
            self.remove(spoiled(&self.list().await?, &kept)).await;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Layer>, Error> {
        let mut all = Vec::new();
        for snapshotter in SNAPSHOTTERS {
            all.extend(self.store.layers(snapshotter).await?);
        }
        Ok(all)
    }

    async fn remove(&mut self, spoiled: Vec<Layer>) {
        for layer in spoiled {
            match self.store.remove_layer(layer.snapshotter, &layer.name).await {
                Ok(()) => tracing::warn!(
                    layer = layer.name,
                    "the power was cut before this layer's files were on the disk; it is unpacked again"
                ),
                Err(error) => {
                    tracing::warn!(layer = layer.name, error = %Chain(&error), "a layer that may be incomplete cannot be removed");
                    self.suspect.insert(layer.line());
                }
            }
        }
    }

    async fn sync(&mut self) -> Result<(), Error> {
        let present: HashSet<String> =
            self.list().await?.iter().filter(|layer| layer.committed).map(Layer::line).collect();
        let present: HashSet<String> = present.difference(&self.suspect).cloned().collect();
        if present == self.synced && self.record.exists() {
            return Ok(());
        }
        let (folder, record) = (self.folder.clone(), self.record.clone());
        let text = text(&self.boot, &present);
        tokio::task::spawn_blocking(move || write(&folder, &record, &text))
            .await
            .map_err(|error| Error::other(error.to_string()))?
            .map_err(|error| Error::io("sync unpacked layers", error))?;
        self.synced = present;
        Ok(())
    }
}

/// What is in the list is complete: first it goes to the disk, then it is written that it is there.
fn write(folder: &Path, record: &Path, text: &str) -> io::Result<()> {
    nix::unistd::syncfs(File::open(folder)?)?;
    kedge_base::write_atomic(record, text.as_bytes(), 0o600)
}

fn text(boot: &str, layers: &HashSet<String>) -> String {
    let mut lines: Vec<&str> = layers.iter().map(String::as_str).collect();
    lines.sort_unstable();
    format!("{boot}\n{}\n", lines.join("\n"))
}

/// The record's layers, unless it is of this boot: then the page cache has all that the disk lacks.
fn of_another_boot(bytes: &[u8], boot: &str) -> Option<HashSet<String>> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    (lines.next() != Some(boot)).then(|| lines.map(str::to_owned).collect())
}

/// Layers that are not in the record and all that lies on them, what lies on top first.
fn spoiled(present: &[Layer], kept: &HashSet<String>) -> Vec<Layer> {
    let mut found: Vec<Layer> = Vec::new();
    let mut next: Vec<&Layer> =
        present.iter().filter(|layer| layer.committed && !kept.contains(&layer.line())).collect();
    while !next.is_empty() {
        let above = present
            .iter()
            .filter(|layer| {
                next.iter().any(|under| {
                    under.snapshotter == layer.snapshotter
                        && !layer.parent.is_empty()
                        && under.name == layer.parent
                })
            })
            .collect();
        // One that is found again lies higher than was thought.
        found.retain(|layer| !next.contains(&layer));
        found.extend(next.into_iter().cloned());
        next = above;
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, parent: &str, committed: bool) -> Layer {
        Layer {
            snapshotter: "overlayfs",
            name: name.into(),
            parent: parent.into(),
            committed,
            created: (7, 5),
        }
    }

    fn names(present: &[Layer], kept: &[&Layer]) -> Vec<String> {
        let kept = kept.iter().map(|layer| layer.line()).collect();
        spoiled(present, &kept).into_iter().map(|layer| layer.name).collect()
    }

    #[test]
    fn what_was_not_synced_goes_with_all_that_lies_on_it() {
        let (base, middle, top) =
            (layer("base", "", true), layer("middle", "base", true), layer("top", "middle", true));
        let (container, other) = (layer("container", "top", false), layer("other", "", true));
        let all = [base.clone(), container, other.clone(), top.clone(), middle.clone()];
        assert!(names(&all, &[&base, &middle, &top, &other]).is_empty());
        assert_eq!(names(&all, &[&base, &middle, &other]), ["container", "top"]);
        // Also what is in the record, should its parent not be.
        assert_eq!(names(&all, &[&base, &top, &other]), ["container", "top", "middle"]);
        let all_gone = names(&all, &[]);
        assert_eq!(all_gone.len(), 5);
        let place = |name: &str| all_gone.iter().position(|one| one == name).unwrap();
        assert!(
            place("container") < place("top")
                && place("top") < place("middle")
                && place("middle") < place("base")
        );
    }

    #[test]
    fn a_layer_that_was_unpacked_anew_is_another_one() {
        let before = layer("base", "", true);
        let now = Layer { created: (8, 0), ..before.clone() };
        assert_eq!(names(&[now], &[&before]), ["base"]);
    }

    #[test]
    fn a_container_without_layers_stays() {
        assert!(names(&[layer("container", "", false)], &[]).is_empty());
    }

    #[test]
    fn a_record_of_this_boot_says_nothing_against_the_others() {
        let base = layer("base", "", true);
        let written = text("boot-1", &HashSet::from([base.line()]));
        assert_eq!(of_another_boot(written.as_bytes(), "boot-1"), None);
        assert_eq!(of_another_boot(written.as_bytes(), "boot-2"), Some(HashSet::from([base.line()])));
        let none = of_another_boot(text("boot-1", &HashSet::new()).as_bytes(), "boot-2").unwrap();
        assert_eq!(names(std::slice::from_ref(&base), &[]), ["base"]);
        assert!(!none.contains(&base.line()));
    }

    #[test]
    fn the_record_is_written_after_a_sync() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("layers");
        write(dir.path(), &record, "boot\nline\n").unwrap();
        assert_eq!(std::fs::read_to_string(&record).unwrap(), "boot\nline\n");
        assert!(write(&dir.path().join("missing"), &record, "other\n").is_err());
        assert_eq!(std::fs::read_to_string(&record).unwrap(), "boot\nline\n");
    }
}
