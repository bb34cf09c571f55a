//! The folder of image archives: what lies there is imported before the first pod starts and when it
//! appears, and pinned, because nobody could fetch it again. When a file goes, so do its images that nobody else
//! holds; those that containers use go later, at the next change of the folder or the next start.
//!
//! What was imported, and what is to go, is noted in the folder (`.imported.json`), so that a start does not read
//! every archive again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use kedge_base::{Backoff, Changed, FolderWatch};
use kedge_kubelet::ImportOptions;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::image_build;
use crate::node_status::Board;

const NOTES: &str = ".imported.json";
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

/// What a file was when it was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Imported {
    size: u64,
    inode: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    images: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    imported: BTreeMap<String, Imported>,
    /// Images of files that are gone.
    going: BTreeSet<String>,
}

/// The folder of one node.
pub(crate) struct ImageFolder {
    folder: PathBuf,
    work_dir: PathBuf,
    socket: PathBuf,
    board: Board,
    notes: Notes,
}

impl ImageFolder {
    pub(crate) fn new(config: &Config, board: Board) -> Self {
        let folder = config.image_dir();
        let text = kedge_base::read_optional(&folder.join(NOTES)).ok().flatten().unwrap_or_default();
        Self {
            work_dir: config.image_work_dir(),
            socket: config.containerd_socket(),
            board,
            // Without it everything is imported once more, which does no harm.
            notes: serde_json::from_slice(&text).unwrap_or_default(),
            folder,
        }
    }

    /// Imports what is there. What cannot be imported is told on the board and does not stop the node.
    pub(crate) async fn import_all(&mut self) {
        let _ = self.sync(None).await;
    }

    /// Follows the folder; never ends.
    pub(crate) async fn follow(mut self) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        loop {
            if let Err(error) = self.follow_folder(&mut backoff).await {
                self.tell("", Some(format!("the folder cannot be watched: {error}")));
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn follow_folder(&mut self, backoff: &mut Backoff) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut watch = FolderWatch::new(&self.folder)?;
        self.tell("", None);
        let mut waiting: Option<BTreeSet<String>> = None;
        loop {
            let mut again = self.sync(waiting.take()).await;
            let changed = if again.is_empty() {
                backoff.reset();
                watch.changed().await?
            } else {
                watch.changed_within(backoff.next_delay()).await?
            };
            waiting = match changed {
                Changed::Everything => None,
                Changed::Files(names) => {
                    again.extend(names.iter().filter_map(|name| name.to_str()).map(str::to_owned));
                    Some(again)
                }
            };
        }
    }

    /// Looks at these files, or at all. Returns those to be tried again.
    async fn sync(&mut self, names: Option<BTreeSet<String>>) -> BTreeSet<String> {
        let names = names.unwrap_or_else(|| {
            let here = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
            here.map(|file| file.file_name().to_string_lossy().into_owned())
                .chain(self.notes.imported.keys().cloned())
                .collect()
        });
        let names: Vec<String> = names.into_iter().filter(|name| is_archive(name)).collect();
        let mut again = BTreeSet::new();
        if names.is_empty() && self.notes.going.is_empty() {
            return again;
        }
        let present = match kedge_kubelet::list_images(&self.socket).await {
            Ok(present) => present,
            Err(error) => {
                self.tell("", Some(format!("containerd does not answer: {}", kedge_base::Chain(&error))));
                return names.into_iter().collect();
            }
        };
        let before = self.notes.clone();
        for name in names {
            match self.file(&name, &present).await {
                Ok(()) => self.tell(&name, None),
                Err(error) => {
                    self.tell(&name, Some(kedge_base::Chain(&error).to_string()));
                    // Only a change of the file mends the others.
                    if matches!(error, kedge_kubelet::Error::Runtime(_)) {
                        again.insert(name);
                    }
                }
            }
        }
        self.let_go().await;
        if self.notes != before {
            self.save();
        }
        again
    }

    /// Removes images that no file holds any more, when nobody else does.
    async fn let_go(&mut self) {
        let Notes { imported, going } = &mut self.notes;
        going.retain(|image| !imported.values().any(|imported| imported.images.contains(image)));
        if going.is_empty() {
            return;
        }
        match kedge_kubelet::let_go_of_images(&self.socket, going, &image_build::names()).await {
            Ok(in_use) => *going = in_use,
            Err(error) => {
                tracing::warn!(error = %kedge_base::Chain(&error), "images of archives that are gone not removed yet");
            }
        }
    }

    async fn file(&mut self, name: &str, present: &[String]) -> Result<(), kedge_kubelet::Error> {
        let path = self.folder.join(name);
        let Some(meta) = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file) else {
            if let Some(gone) = self.notes.imported.remove(name) {
                self.notes.going.extend(gone.images);
            }
            return Ok(());
        };
        let mut now = Imported {
            size: meta.size(),
            inode: meta.ino(),
            modified: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
            images: Vec::new(),
        };
        if let Some(known) = self.notes.imported.get(name) {
            now.images.clone_from(&known.images);
            if *known == now && now.images.iter().all(|image| present.contains(image)) {
                return Ok(());
            }
        }
        let options = ImportOptions { work_dir: self.work_dir.clone(), pin: true };
        now.images = kedge_kubelet::import_images(&self.socket, &path, &options).await?;
        tracing::info!(file = name, images = now.images.join(", "), "imported");
        if let Some(old) = self.notes.imported.insert(name.to_owned(), now) {
            self.notes.going.extend(old.images);
        }
        Ok(())
    }

    fn save(&self) {
        let saved = serde_json::to_vec(&self.notes)
            .map_err(std::io::Error::other)
            .and_then(|text| kedge_base::write_atomic(&self.folder.join(NOTES), &text, 0o644));
        if let Err(error) = saved {
            tracing::warn!(%error, "the archives of images will be read again at the next start");
        }
    }

    fn tell(&self, name: &str, problem: Option<String>) {
        if let Some(problem) = &problem {
            tracing::warn!(file = name, problem, "images not imported");
        }
        self.board.note(&self.folder.join(name).display().to_string(), problem);
    }
}

fn is_archive(name: &str) -> bool {
    !name.starts_with('.') && ENDINGS.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_archives_count() {
        for (name, is) in [
            ("a.tar", true),
            ("a.tar.gz", true),
            ("a.tgz", true),
            ("a.tar.zst", true),
            (".a.tar.Xy12", false),
            (".a.tar", false),
            ("a.tar.partial", false),
            (NOTES, false),
        ] {
            assert_eq!(is_archive(name), is, "{name}");
        }
    }
}
