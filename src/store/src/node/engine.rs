//! When the engine is written, when snapshots are made and installed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kedge_base::Chain;

use super::{Flushing, Node};
use crate::backup;
use crate::disk::{Done, Flush, Job};
use crate::error::Error;
use crate::raftlog::SnapshotId;

/// The engine is written at the latest after so many bytes of log.
const FLUSH_BYTES: u64 = 4 << 20;
/// How long after a failure of the engine it is tried again.
const RETRY: Duration = Duration::from_secs(5);

impl Node {
    /// Starts a batch to the engine when enough has changed.
    pub(super) fn flush_if_due(&mut self, now: bool) {
        let limit = (self.config.snapshot_after_bytes / 4).clamp(1, FLUSH_BYTES);
        let waiting = self.retry_at.is_some_and(|at| at > Instant::now());
        let wish = self.snapshot_wanted || !self.backups.is_empty();
        let due = now || (self.since_flush >= limit || wish) && !waiting;
        if self.flushing.is_some() || self.installing || self.out.install.is_some() || !due {
            return;
        }
        self.retry_at = None;
        let overlay = Arc::new(self.core.state.take_overlay());
        let meta = self.core.state.meta.clone();
        let snapshot_limit = self.config.snapshot_after_bytes.max(self.snapshot_bytes.saturating_mul(4));
        let wanted = std::mem::take(&mut self.snapshot_wanted);
        let backups = std::mem::take(&mut self.backups);
        let snapshot = wanted || !backups.is_empty() || self.since_snapshot >= snapshot_limit;
        if wanted {
            self.core.hold(meta.applied);
        }
        let job = Flush { overlay: overlay.clone(), meta: meta.clone(), snapshot };
        if self.disk.submit(Job::Flush(job)) {
            self.since_flush = 0;
            self.flushing = Some(Flushing { overlay, meta, backups });
        } else {
            self.core.state.restore_overlay(&overlay);
        }
    }

    pub(super) fn disk_done(&mut self, done: Done) {
        let (result, snapshot) = match done {
            Done::Installed(state) => return self.installed(state),
            Done::Flushed { result, snapshot } => (result, snapshot),
        };
        let Some(Flushing { overlay, meta, backups }) = self.flushing.take() else { return };
        backup::answer(backups, &self.shared.snapshots, &meta, matches!(snapshot, Some(Ok(_))));
        if let Err(error) = result {
            tracing::warn!(error = %Chain(&error), "the state engine cannot be written; it is tried again");
            self.core.state.restore_overlay(&overlay);
            self.since_flush = FLUSH_BYTES;
            self.retry_at = Some(Instant::now() + RETRY);
        }
        match snapshot {
            Some(Ok((bytes, keep))) => {
                self.snapshot_bytes = bytes;
                self.since_snapshot = 0;
                tracing::debug!(index = meta.applied, bytes, "snapshot made");
                let id = SnapshotId { index: meta.applied, term: meta.applied_term, members: meta.members };
                self.core.offer(id);
                // Should it not do, it is asked for again.
                self.snapshot_wanted = false;
                self.flusher.cut(keep);
            }
            Some(Err(error)) => {
                // The log grows on; the next one comes after as many bytes again.
                self.since_snapshot = 0;
                tracing::warn!(error = %Chain(&error), "no snapshot could be made");
            }
            None => {}
        }
    }

    /// Hands a snapshot that was received to the disk's thread, when nothing else is written.
    pub(super) fn start_install(&mut self) {
        if self.installing || self.flushing.is_some() || self.flusher.is_busy() {
            return;
        }
        let Some(id) = self.out.install.take() else { return };
        tracing::info!(index = id.index, "the state is replaced by a snapshot from the leader");
        self.installing = self.disk.submit(Job::Install(id.index, id.term));
    }

    fn installed(&mut self, state: Result<crate::state::State, Error>) {
        self.installing = false;
        match state {
            Ok(state) => {
                self.since_flush = 0;
                self.since_snapshot = 0;
                self.core.installed(state, &mut self.out);
            }
            // Log and engine may be half replaced: opening the folder again finishes that.
            Err(error) => self.fail(&error),
        }
    }
}
