//! Time for boards without a battery-backed clock: never earlier than what was seen before.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kedge_base::{read_optional, write_atomic};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

use crate::Error;

/// No build of Kedge is older than this (2026-01-01): a clock before it is known to be wrong.
const OLDEST: u64 = 1_767_225_600;
/// The floor on disk is rewritten at most this often: it must not wear out a card.
const WRITE_EVERY: u64 = 24 * 60 * 60;

/// The system's clock, but never before the latest time that was recorded in the floor file. While the
/// system's clock is behind, time runs on from the floor by the monotonic clock.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
    /// Unix seconds: the time can not have been earlier when this clock was opened.
    floor: u64,
    opened: Instant,
    written: AtomicU64,
}

impl Clock {
    /// Read the floor from `file`; a missing or unreadable number counts as none.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let bytes = read_optional(file).map_err(|source| Error::File {
            action: "read",
            path: file.into(),
            source,
        })?;
        let recorded = bytes
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let clock = Self {
            file: file.into(),
            floor: recorded.max(OLDEST),
            opened: Instant::now(),
            written: AtomicU64::new(recorded),
        };
        if system_seconds() < clock.floor {
            tracing::warn!(
                floor = clock.floor,
                "the system's clock is behind the last time seen; certificates use the recorded time until it is set"
            );
        }
        Ok(clock)
    }

    /// Seconds since 1970.
    pub fn now(&self) -> u64 {
        system_seconds().max(self.floor + self.opened.elapsed().as_secs())
    }

    /// The same as [`Clock::now`], as the standard library's type.
    pub fn system_time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.now())
    }

    /// Record the time as the floor for the next start; at most one write a day.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&self) -> Result<(), Error> {
        let now = self.now();
        if now < self.written.load(Ordering::Relaxed).saturating_add(WRITE_EVERY) {
            return Ok(());
        }
        write_atomic(&self.file, format!("{now}\n").as_bytes(), 0o600).map_err(|source| Error::File {
            action: "write",
            path: self.file.clone(),
            source,
        })?;
        self.written.store(now, Ordering::Relaxed);
        Ok(())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}

fn system_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_holds_time_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("time-floor");
        let future = system_seconds() + 1_000_000;
        std::fs::write(&file, format!("{future}\n")).unwrap();
        let clock = Clock::open(&file).unwrap();
        assert!(clock.now() >= future);
    }

    #[test]
    fn records_once_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("time-floor");
        let clock = Clock::open(&file).unwrap();
        clock.record().unwrap();
        let first = std::fs::read_to_string(&file).unwrap();
        assert!(first.trim().parse::<u64>().unwrap() >= OLDEST);
        std::fs::remove_file(&file).unwrap();
        clock.record().unwrap();
        assert!(!file.exists(), "a second record on the same day writes nothing");
    }

    #[test]
    fn a_damaged_floor_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("time-floor");
        std::fs::write(&file, b"\xff\xfe").unwrap();
        assert!(Clock::open(&file).unwrap().now() >= OLDEST);
    }
}
