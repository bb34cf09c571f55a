//! Removes unused images when the disk that holds them is nearly full, as upstream does
//! (`pkg/kubelet/images/image_gc_manager.go`): from the high threshold down to the low one, the image that
//! was used the longest ago first, and never one that has just come.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use kedge_base::Order as _;
use kedge_client::EventType;
use tokio::time::Instant;

use super::listing::{in_use, is_named, pinned};
use super::store::Store;
use crate::Error;
use crate::core::Core;

/// When images are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGc {
    /// Per cent of the disk in use from which on images are removed.
    pub high_threshold_percent: u8,
    /// Per cent down to which they are.
    pub low_threshold_percent: u8,
    /// An image that was first seen less long ago stays: its container may be about to be made.
    pub minimum_age: Duration,
}

impl Default for ImageGc {
    /// Upstream's defaults.
    fn default() -> Self {
        Self { high_threshold_percent: 85, low_threshold_percent: 80, minimum_age: Duration::from_secs(120) }
    }
}

/// `None` is a time before this process.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    last_used: Option<Instant>,
    first_seen: Option<Instant>,
    size: u64,
    /// Pinned, or the sandbox's.
    kept: bool,
}

/// What is known of each image, by its id.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    records: HashMap<String, Record>,
    looked: bool,
}

impl Collector {
    /// Learns what is there and what is used now.
    async fn look(&mut self, core: &Core, now: Instant) -> Result<(), Error> {
        let images = core.images.list().await?;
        let used = in_use(&core.runtime).await?;
        let pinned = pinned(&Store::of(&core.runtime)).await?;
        let first_seen = self.looked.then_some(now);
        self.looked = true;
        let present: HashSet<&String> = images.iter().map(|image| &image.id).collect();
        self.records.retain(|id, _| present.contains(id));
        for image in &images {
            let new = Record { first_seen, ..Record::default() };
            let record = self.records.entry(image.id.clone()).or_insert(new);
            record.size = image.size;
            record.kept = image.pinned
                || is_named(image, &pinned)
                || image.repo_tags.contains(&core.config.pause_image);
            if used.contains(&image.id) || is_named(image, &used) {
                record.last_used = Some(now);
            }
        }
        Ok(())
    }

    /// One look, and removal of what must go; at least `missing` bytes where the eviction thresholds ask for
    /// them.
    pub(crate) async fn run(&mut self, core: &Core, missing: Option<u64>) -> Result<(), Error> {
        let now = Instant::now();
        self.look(core, now).await?;
        let asked = k8s_cri::v1::ImageFsInfoRequest {};
        let info = core.runtime.cri().image_fs_info(asked).await?.into_inner();
        let Some(disk) = info.image_filesystems.first().and_then(|fs| fs.fs_id.clone()) else {
            return Ok(());
        };
        let stat = nix::sys::statvfs::statvfs(disk.mountpoint.as_str())
            .map_err(|error| Error::io(format!("look at {}", disk.mountpoint), error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let policy = core.config.image_gc;
        let full = to_free(bytes(stat.blocks()), bytes(stat.blocks_available()), &policy);
        let Some(wanted) = full.max(missing) else { return Ok(()) };
        // The eviction thresholds' want is the whole machine's: whether it was met is looked up there.
        let enough = full.unwrap_or(0);
        let mut freed = 0;
        for id in in_order(&self.records, now, policy.minimum_age) {
            if freed >= wanted {
                break;
            }
            let size = self.records.get(&id).map_or(0, |record| record.size);
            tracing::info!(image = id, size, "removing an unused image, the disk is nearly full");
            match core.images.remove(&id).await {
                Ok(()) => {
                    freed += size;
                    self.records.remove(&id);
                }
                Err(error) => tracing::warn!(image = id, error = %error.text(), "image not removed"),
            }
        }
        if freed < enough {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {enough} bytes, but only found {freed} bytes eligible to free."
            );
            if let Some(node) = core.node.get("", &core.config.node_name) {
                let node = kedge_client::reference(node.as_ref());
                core.recorder.event(node, EventType::Warning, "FreeDiskSpaceFailed", message.clone());
            }
            return Err(Error::other(message));
        }
        Ok(())
    }
}

/// How many bytes must go; `None`: the disk has room.
fn to_free(capacity: u64, available: u64, policy: &ImageGc) -> Option<u64> {
    if capacity == 0 || policy.high_threshold_percent >= 100 {
        return None;
    }
    let available = available.min(capacity);
    let percent = |part: u64| u128::from(part) * 100 / u128::from(capacity);
    let used = 100 - percent(available);
    if used < u128::from(policy.high_threshold_percent) {
        return None;
    }
    let free = u128::from(capacity) * u128::from(100 - policy.low_threshold_percent.min(100)) / 100;
    Some(u64::try_from(free).unwrap_or(u64::MAX).saturating_sub(available))
}

/// Images that may go, in the order in which they do.
fn in_order(records: &HashMap<String, Record>, now: Instant, minimum_age: Duration) -> Vec<String> {
    let mut images: Vec<(&String, &Record)> = records
        .iter()
        .filter(|(_, record)| !record.kept && record.last_used.is_none_or(|used| used < now))
        .filter(|(_, record)| record.first_seen.is_none_or(|seen| now.duration_since(seen) >= minimum_age))
        .collect();
    images.order_by_key(|(id, record)| (record.last_used, record.first_seen, *id));
    images.into_iter().map(|(id, _)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_high_threshold_down_to_the_low_one() {
        let policy = ImageGc::default();
        for (capacity, available, expected) in [
            (1000, 1000, None),
            // Whole per cents, as upstream counts them: 15 free are 85 used.
            (1000, 160, None),
            (1000, 151, Some(49)),
            (1000, 150, Some(50)),
            (1000, 0, Some(200)),
            (0, 0, None),
            (100, 500, None),
            (u64::MAX, 0, Some(u64::MAX / 5)),
        ] {
            assert_eq!(to_free(capacity, available, &policy), expected, "{available} of {capacity}");
        }
        let never = ImageGc { high_threshold_percent: 100, ..policy };
        assert_eq!(to_free(1000, 0, &never), None);
    }

    #[test]
    fn the_one_used_the_longest_ago_goes_first() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let record = |last_used: Option<u64>, first_seen: Option<u64>, kept: bool| Record {
            last_used: last_used.map(at),
            first_seen: first_seen.map(at),
            size: 1,
            kept,
        };
        let records = HashMap::from([
            ("in use".to_owned(), record(Some(1000), None, false)),
            ("used long ago".to_owned(), record(Some(100), None, false)),
            ("used lately".to_owned(), record(Some(900), None, false)),
            ("never used".to_owned(), record(None, Some(200), false)),
            ("never used, from before".to_owned(), record(None, None, false)),
            ("just pulled".to_owned(), record(None, Some(950), false)),
            ("pinned".to_owned(), record(None, None, true)),
        ]);
        assert_eq!(
            in_order(&records, at(1000), Duration::from_secs(120)),
            ["never used, from before", "never used", "used long ago", "used lately"]
        );
    }
}
