//! Counters that cost an atomic add.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What the store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes written to the log (padding included), the engine's batches and the snapshots.
    pub bytes_written: u64,
    /// Flushes of the log.
    pub fsyncs: u64,
    /// Bytes in the log since its oldest segment.
    pub wal_bytes: u64,
    /// Transactions applied.
    pub transactions: u64,
    /// Keys that exist.
    pub keys: u64,
    /// What they take, keys and values, in bytes.
    pub bytes: u64,
    /// How much they may take; 0: no limit.
    pub quota_bytes: u64,
    /// Something was refused for that, and not much has been deleted since. Only who leads knows.
    pub quota_exceeded: bool,
    /// Snapshots made.
    pub snapshots: u64,
    /// Batches written to the engine.
    pub engine_flushes: u64,
    /// Median time of a log flush, to within 19 %.
    pub sync_p50: Duration,
    /// 99th percentile of the same.
    pub sync_p99: Duration,
    /// What a flush of the log takes lately.
    pub sync_lately: Duration,
    /// The last write found no space; the next one that finds some ends this.
    pub disk_full: bool,
}

const BUCKETS: usize = 100;

pub(crate) struct Counters {
    pub(crate) bytes_written: AtomicU64,
    pub(crate) wal_bytes: AtomicU64,
    pub(crate) transactions: AtomicU64,
    pub(crate) keys: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) quota_bytes: AtomicU64,
    pub(crate) quota_exceeded: AtomicBool,
    pub(crate) snapshots: AtomicU64,
    pub(crate) engine_flushes: AtomicU64,
    pub(crate) sync_lately_micros: AtomicU64,
    pub(crate) disk_full: AtomicBool,
    /// Log flushes by time: four buckets to each power of two microseconds.
    syncs: [AtomicU64; BUCKETS],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            bytes_written: AtomicU64::new(0),
            wal_bytes: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            quota_bytes: AtomicU64::new(0),
            quota_exceeded: AtomicBool::new(false),
            snapshots: AtomicU64::new(0),
            engine_flushes: AtomicU64::new(0),
            sync_lately_micros: AtomicU64::new(0),
            disk_full: AtomicBool::new(false),
            syncs: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(4);
    let log = micros.ilog2();
    let quarter = (micros >> (log - 2)) & 3;
    ((log as usize - 2) * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The upper end of a bucket.
fn limit(bucket: usize) -> Duration {
    let (log, quarter) = (bucket / 4 + 2, bucket % 4 + 1);
    Duration::from_micros((1 << log) + ((quarter as u64) << (log - 2)))
}

impl Counters {
    pub(crate) fn synced(&self, took: Duration) {
        self.syncs[bucket(took)].fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Stats {
        let syncs: Vec<u64> = self.syncs.iter().map(|n| n.load(Relaxed)).collect();
        let total: u64 = syncs.iter().sum();
        let percentile = |p: u64| {
            let mut left = (total * p).div_ceil(100);
            if left == 0 {
                return Duration::ZERO;
            }
            for (i, n) in syncs.iter().enumerate() {
                if left <= *n {
                    return limit(i);
                }
                left -= n;
            }
            limit(BUCKETS - 1)
        };
        Stats {
            bytes_written: self.bytes_written.load(Relaxed),
            fsyncs: total,
            wal_bytes: self.wal_bytes.load(Relaxed),
            transactions: self.transactions.load(Relaxed),
            keys: self.keys.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            quota_bytes: self.quota_bytes.load(Relaxed),
            quota_exceeded: self.quota_exceeded.load(Relaxed),
            snapshots: self.snapshots.load(Relaxed),
            engine_flushes: self.engine_flushes.load(Relaxed),
            sync_p50: percentile(50),
            sync_p99: percentile(99),
            sync_lately: Duration::from_micros(self.sync_lately_micros.load(Relaxed)),
            disk_full: self.disk_full.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_right_bucket() {
        let counters = Counters::default();
        for _ in 0..98 {
            counters.synced(Duration::from_micros(200));
        }
        for _ in 0..2 {
            counters.synced(Duration::from_millis(30));
        }
        let stats = counters.read();
        assert_eq!(stats.fsyncs, 100);
        assert!((200..=256).contains(&stats.sync_p50.as_micros()), "{:?}", stats.sync_p50);
        assert!((30_000..=36_000).contains(&stats.sync_p99.as_micros()), "{:?}", stats.sync_p99);
        assert_eq!(Counters::default().read().sync_p99, Duration::ZERO);
    }

    #[test]
    fn every_duration_has_a_bucket() {
        for micros in [0, 1, 4, 5, 7, 8, 1000, 1 << 40] {
            let took = Duration::from_micros(micros);
            assert!(bucket(took) < BUCKETS);
        }
        for b in 0..BUCKETS - 1 {
            assert_eq!(bucket(limit(b)), b + 1);
        }
    }
}
