//! Room on the disk and how long it takes to write through to it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kedge_kubelet::{Signal, Thresholds};

use super::{Context, Found, Moment, fail, ok, warn};

/// Less than this in the data folder's file system and nothing would fit.
const LEAST_SPACE: u64 = 1024 * 1024 * 1024;
/// What is free beyond the node's eviction thresholds, in per cent of the disk, before somebody is warned.
const MARGIN_PERCENT: u64 = 5;
/// A sync that takes longer delays every write of the cluster noticeably.
pub(crate) const SLOW_SYNC: Duration = Duration::from_millis(50);
const SAMPLES: usize = 8;

pub(super) fn space(context: &Context<'_>) -> Vec<Found> {
    let Some(dir) = existing(&context.config.data_dir) else { return Vec::new() };
    match nix::sys::statvfs::statvfs(&dir) {
        Ok(stat) => vec![judge_space(
            &dir,
            stat.blocks_available().saturating_mul(stat.fragment_size()),
            stat.blocks().saturating_mul(stat.fragment_size()),
            (stat.files_available(), stat.files()),
            &context.config.eviction.hard,
        )],
        Err(errno) => vec![warn(
            format!("the free space of {} is not known: {errno}", dir.display()),
            "look at it with df",
        )],
    }
}

/// The folder, or what will hold it.
fn existing(dir: &Path) -> Option<PathBuf> {
    dir.ancestors().find(|dir| dir.is_dir()).map(Path::to_path_buf)
}

fn judge_space(
    dir: &Path,
    free: u64,
    total: u64,
    (inodes_free, inodes): (u64, u64),
    thresholds: &Thresholds,
) -> Found {
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let remedy = "free some space (kedge images prune removes images that nothing uses), or choose a folder on \
                  another disk with --data-dir";
    let place = dir.display();
    if free < LEAST_SPACE {
        return fail(format!("only {} MiB are free for {place}; Kedge needs 1 GiB", mib(free)), remedy);
    }
    if inodes > 0 && inodes_free * 20 < inodes {
        return warn(format!("only {inodes_free} of {inodes} inodes are free for {place}"), remedy);
    }
    let text = format!("{} of {} MiB are free for {place}", mib(free), mib(total));
    // Pods and images are on the data folder's disk.
    let capacity = i64::try_from(total).unwrap_or(i64::MAX);
    let floors = [Signal::NodefsAvailable, Signal::ImagefsAvailable]
        .map(|signal| u64::try_from(thresholds.reserved(signal, capacity)).unwrap_or(0));
    let floor = floors.into_iter().max().unwrap_or(0);
    if floor > 0 && free < floor.saturating_add(total / 100 * MARGIN_PERCENT) {
        let text = format!("{text}; below {} MiB (eviction-hard) the node evicts pods", mib(floor));
        return warn(text, remedy);
    }
    ok(text)
}

pub(super) fn sync_time(context: &Context<'_>) -> Vec<Found> {
    // What the running datastore measured tells more than a few writes now.
    let measured = context.status.as_ref().and_then(|status| status.datastore.sync_micros);
    if let Some(micros) = measured.filter(|_| context.moment == Moment::Inspect) {
        return vec![judge_sync(Duration::from_micros(micros), "the datastore's usual write")];
    }
    let Some(dir) = existing(&context.config.data_dir) else { return Vec::new() };
    match measure(&dir) {
        Ok(took) => vec![judge_sync(took, "a synced write")],
        Err(error) => vec![fail(
            format!("{} cannot be written to: {error}", dir.display()),
            "mount the disk for writing (a broken card is mounted read-only: see dmesg), or choose another \
             folder with --data-dir",
        )],
    }
}

/// The median of a few small synced writes.
fn measure(dir: &Path) -> io::Result<Duration> {
    let path = dir.join(format!(".kedge-inspect-{}", std::process::id()));
    let mut file = OpenOptions::new().create_new(true).write(true).open(&path)?;
    // Nameless from now on: whatever ends this process, no file is left.
    fs::remove_file(&path)?;
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        file.write_all(&[0x5a; 1024])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn judge_sync(took: Duration, what: &str) -> Found {
    let text = format!("{what} takes {:.1} ms", took.as_secs_f64() * 1000.0);
    if took > SLOW_SYNC {
        warn(
            format!("disk slow: {text}; every change waits for it"),
            "put the data folder on a better disk (--data-dir; an SSD on USB 3 in place of an SD card), and end \
             what else writes to this one",
        )
    } else {
        ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn little_space_is_a_problem() {
        const GIB: u64 = 1 << 30;
        let usual = Thresholds::default();
        let cases = [
            (50 * GIB, 100 * GIB, (900, 1000), Verdict::Ok),
            (11 * GIB, 100 * GIB, (900, 1000), Verdict::Ok),
            (9 * GIB, 100 * GIB, (900, 1000), Verdict::Warn),
            (50 * GIB, 100 * GIB, (10, 1000), Verdict::Warn),
            // btrfs has no table of inodes.
            (50 * GIB, 100 * GIB, (0, 0), Verdict::Ok),
            (10 << 20, 100 * GIB, (900, 1000), Verdict::Fail),
        ];
        for (free, total, inodes, expected) in cases {
            let found = judge_space(Path::new("/x"), free, total, inodes, &usual);
            assert_eq!(found.0, expected, "{free} {total} {inodes:?} {found:?}");
        }
        let own: Thresholds = "nodefs.available<1Gi".parse().unwrap();
        assert_eq!(judge_space(Path::new("/x"), 12 * GIB, 100 * GIB, (1, 1), &own).0, Verdict::Ok);
        assert_eq!(judge_space(Path::new("/x"), 5 * GIB, 100 * GIB, (1, 1), &own).0, Verdict::Warn);
        assert!(judge_space(Path::new("/x"), 10 << 20, 1 << 40, (1, 1), &usual).1.contains("only 10 MiB"));
    }

    #[test]
    fn a_slow_disk_is_called_so_and_a_measurement_leaves_nothing() {
        assert_eq!(judge_sync(Duration::from_millis(2), "x").0, Verdict::Ok);
        let slow = judge_sync(Duration::from_millis(300), "x");
        assert_eq!(slow.0, Verdict::Warn);
        assert!(slow.1.contains("disk slow"), "{slow:?}");
        let dir = tempfile::tempdir().unwrap();
        measure(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(measure(&dir.path().join("none")).is_err());
    }
}
