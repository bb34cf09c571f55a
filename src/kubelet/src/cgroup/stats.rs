//! All that is told of a cgroup at `/metrics/cadvisor`, from the files of both kinds of hierarchy, as upstream's
//! cAdvisor reads them (`container/common/helpers.go`, `container/libcontainer/handler.go`). What the kernel
//! does not say stays empty. Reads files of the cgroup file systems only.

use std::path::PathBuf;

use super::Cgroups;

/// One figure of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Nanoseconds, as all times.
    CpuUsage,
    CpuUser,
    CpuSystem,
    Periods,
    ThrottledPeriods,
    Throttled,
    BurstPeriods,
    Burst,
    CpuSome,
    CpuFull,
    /// Shares of cgroup v1, also where the kernel has a weight.
    Shares,
    /// Microseconds.
    Period,
    Quota,
    /// Bytes, as all of memory.
    Memory,
    MaxMemory,
    WorkingSet,
    Rss,
    Cache,
    Mapped,
    Swap,
    Kernel,
    ActiveFile,
    InactiveFile,
    /// How often the limit was reached.
    Failures,
    OomKills,
    /// Page faults of the group alone, and with those of the groups below.
    Faults,
    AllFaults,
    MajorFaults,
    AllMajorFaults,
    MemorySome,
    MemoryFull,
    /// 0 is no limit.
    MemoryLimit,
    SwapLimit,
    Reservation,
    IoSome,
    IoFull,
    /// Of the group alone.
    Processes,
    Threads,
    /// 0 is no limit.
    MaxThreads,
    /// Nanoseconds since 1970.
    Created,
}

const FIGURES: usize = Figure::Created as usize + 1;
/// Larger numbers stand for "no limit", as cAdvisor's `maxMemorySize`.
const UNLIMITED: u64 = 1 << 62;

/// What a group has done with one disk: bytes and requests, read and written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskUse {
    /// `MAJOR:MINOR`.
    pub(crate) device: String,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

/// The figures of one group.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    figures: [Option<u64>; FIGURES],
    pub(crate) disks: Vec<DiskUse>,
    /// One of the group's own processes.
    pub(crate) process: Option<u32>,
}

impl Stats {
    fn new() -> Self {
        Self { figures: [None; FIGURES], disks: Vec::new(), process: None }
    }

    pub(crate) fn get(&self, figure: Figure) -> Option<u64> {
        self.figures[figure as usize]
    }

    pub(crate) fn set(&mut self, figure: Figure, value: Option<u64>) {
        self.figures[figure as usize] = value;
    }

    /// Lines `KEY VALUE`: each key's figure, with what it counts in.
    fn take(&mut self, text: &str, keys: &[(&str, Figure, u64)]) {
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else { continue };
            for (_, figure, unit) in keys.iter().filter(|(known, ..)| *known == key) {
                self.set(*figure, value.trim().parse::<u64>().ok().map(|value| value.saturating_mul(*unit)));
            }
        }
    }

    /// `some avg10=... total=MICROSECONDS` and the same of `full`.
    fn take_pressure(&mut self, text: &str, some: Figure, full: Figure) {
        for line in text.lines() {
            let total = line.rsplit_once("total=").and_then(|(_, total)| total.trim().parse::<u64>().ok());
            let figure = if line.starts_with("some ") { some } else { full };
            self.set(figure, total.map(|micros| micros.saturating_mul(1000)));
        }
    }

    fn disk(&mut self, device: &str) -> &mut DiskUse {
        let place = self.disks.iter().position(|disk| disk.device == device).unwrap_or_else(|| {
            self.disks.push(DiskUse { device: device.to_owned(), ..DiskUse::default() });
            self.disks.len() - 1
        });
        &mut self.disks[place]
    }

    fn without_idle_quota(mut self) -> Self {
        // cAdvisor tells of throttling only where there is something to be throttled by.
        if self.get(Figure::Quota).is_none() {
            use Figure::{Burst, BurstPeriods, Periods, Throttled, ThrottledPeriods};
            for figure in [Periods, ThrottledPeriods, Throttled, BurstPeriods, Burst] {
                self.set(figure, None);
            }
        }
        let inactive = self.get(Figure::InactiveFile).unwrap_or(0);
        self.set(Figure::WorkingSet, self.get(Figure::Memory).map(|all| all.saturating_sub(inactive)));
        self
    }
}

/// The files of one group.
struct Group<'a> {
    cgroups: &'a Cgroups,
    path: &'a str,
}

impl Group<'_> {
    fn file(&self, controller: &str, file: &str) -> PathBuf {
        self.cgroups.dir(controller, self.path).join(file)
    }

    fn text(&self, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.file(controller, file)).ok()
    }

    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        self.text(controller, file)?.trim().parse().ok()
    }

    /// 0 where the kernel says that there is none.
    fn limit(&self, controller: &str, file: &str) -> Option<u64> {
        let text = self.text(controller, file)?;
        let value = text.trim().parse::<u64>().ok().filter(|value| *value < UNLIMITED);
        Some(value.unwrap_or(0))
    }

    /// When the group was made: its folder's times change with the groups in it, those of this file do not.
    fn created(&self) -> Option<u64> {
        let unified = self.cgroups.unified;
        let files = if unified { ["cgroup.events", "."] } else { ["cgroup.clone_children", "."] };
        let times = files.iter().filter_map(|file| {
            let time = std::fs::metadata(self.file("memory", file)).ok()?.modified().ok()?;
            let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        });
        times.min()
    }
}

impl Cgroups {
    /// `None`: there is no such group (any more). `path` is from the mount's root, without a leading slash; empty
    /// is the root.
    pub(crate) fn stats(&self, path: &str) -> Option<Stats> {
        let group = Group { cgroups: self, path };
        let mut stats = Stats::new();
        if self.unified {
            unified(&group, &mut stats)?;
        } else {
            split(&group, &mut stats)?;
        }
        let procs = group.text("memory", "cgroup.procs").unwrap_or_default();
        let own = procs.lines().filter(|line| !line.trim().is_empty());
        stats.process = procs.lines().find_map(|line| line.trim().parse().ok()).filter(|id| *id > 0);
        stats.set(Figure::Processes, u64::try_from(own.count()).ok());
        stats.set(Figure::Threads, group.number("pids", "pids.current"));
        stats.set(Figure::MaxThreads, group.limit("pids", "pids.max"));
        stats.set(Figure::Created, group.created());
        Some(stats.without_idle_quota())
    }

    /// The groups that hold all pods, from the top.
    pub(crate) fn classes(&self) -> [String; 3] {
        ["", "/burstable", "/besteffort"].map(|class| format!("{}{class}", self.root))
    }

    pub(crate) fn is_unified(&self) -> bool {
        self.unified
    }
}

fn split(group: &Group<'_>, stats: &mut Stats) -> Option<()> {
    use Figure as F;
    let usage = group.number("cpuacct", "cpuacct.usage")?;
    stats.set(F::CpuUsage, Some(usage));
    // In units of 1/100 s, whatever the kernel's own clock.
    let ticks = 10_000_000;
    let text = group.text("cpuacct", "cpuacct.stat").unwrap_or_default();
    stats.take(&text, &[("user", F::CpuUser, ticks), ("system", F::CpuSystem, ticks)]);
    let text = group.text("cpu", "cpu.stat").unwrap_or_default();
    stats.take(
        &text,
        &[
            ("nr_periods", F::Periods, 1),
            ("nr_throttled", F::ThrottledPeriods, 1),
            ("throttled_time", F::Throttled, 1),
            ("nr_bursts", F::BurstPeriods, 1),
            ("burst_time", F::Burst, 1),
        ],
    );
    stats.set(F::Shares, group.number("cpu", "cpu.shares"));
    stats.set(F::Period, group.number("cpu", "cpu.cfs_period_us"));
    // -1 is none.
    stats.set(F::Quota, group.number("cpu", "cpu.cfs_quota_us"));
    let text = group.text("memory", "memory.stat").unwrap_or_default();
    stats.take(
        &text,
        &[
            ("total_rss", F::Rss, 1),
            ("total_cache", F::Cache, 1),
            ("total_mapped_file", F::Mapped, 1),
            ("total_swap", F::Swap, 1),
            ("total_active_file", F::ActiveFile, 1),
            ("total_inactive_file", F::InactiveFile, 1),
            ("pgfault", F::Faults, 1),
            ("pgmajfault", F::MajorFaults, 1),
            ("total_pgfault", F::AllFaults, 1),
            ("total_pgmajfault", F::AllMajorFaults, 1),
        ],
    );
    stats.set(F::Memory, group.number("memory", "memory.usage_in_bytes"));
    stats.set(F::MaxMemory, group.number("memory", "memory.max_usage_in_bytes"));
    stats.set(F::Kernel, group.number("memory", "memory.kmem.usage_in_bytes"));
    stats.set(F::Failures, group.number("memory", "memory.failcnt"));
    let text = group.text("memory", "memory.oom_control").unwrap_or_default();
    stats.take(&text, &[("oom_kill", F::OomKills, 1)]);
    stats.set(F::MemoryLimit, group.limit("memory", "memory.limit_in_bytes"));
    stats.set(F::SwapLimit, group.limit("memory", "memory.memsw.limit_in_bytes"));
    stats.set(F::Reservation, group.limit("memory", "memory.soft_limit_in_bytes"));
    for (file, bytes) in [("io_service_bytes", true), ("io_serviced", false)] {
        let text = group.text("blkio", &format!("blkio.throttle.{file}_recursive")).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(device), Some(what), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let Ok(value) = value.parse() else { continue };
            match (what, bytes) {
                ("Read", true) => stats.disk(device).read_bytes = value,
                ("Read", false) => stats.disk(device).reads = value,
                ("Write", true) => stats.disk(device).written_bytes = value,
                ("Write", false) => stats.disk(device).writes = value,
                _ => {}
            }
        }
    }
    Some(())
}

fn unified(group: &Group<'_>, stats: &mut Stats) -> Option<()> {
    use Figure as F;
    let micros = 1000;
    let text = group.text("cpu", "cpu.stat")?;
    stats.take(
        &text,
        &[
            ("usage_usec", F::CpuUsage, micros),
            ("user_usec", F::CpuUser, micros),
            ("system_usec", F::CpuSystem, micros),
            ("nr_periods", F::Periods, 1),
            ("nr_throttled", F::ThrottledPeriods, 1),
            ("throttled_usec", F::Throttled, micros),
            ("nr_bursts", F::BurstPeriods, 1),
            ("burst_usec", F::Burst, micros),
        ],
    );
    // The root has neither of the two.
    let weight = group.number("cpu", "cpu.weight").filter(|weight| (1..=10_000).contains(weight));
    stats.set(F::Shares, weight.map(|weight| 2 + (weight - 1) * 262_142 / 9999));
    if let Some(text) = group.text("cpu", "cpu.max") {
        let mut words = text.split_whitespace().map(|word| word.parse::<u64>().ok());
        stats.set(F::Quota, words.next().flatten());
        stats.set(F::Period, words.next().flatten());
    }
    let text = group.text("memory", "memory.stat").unwrap_or_default();
    stats.take(
        &text,
        &[
            ("anon", F::Rss, 1),
            ("file", F::Cache, 1),
            ("file_mapped", F::Mapped, 1),
            ("kernel", F::Kernel, 1),
            ("active_file", F::ActiveFile, 1),
            ("inactive_file", F::InactiveFile, 1),
            ("pgfault", F::Faults, 1),
            ("pgmajfault", F::MajorFaults, 1),
            // The second hierarchy counts nothing without the groups below.
            ("pgfault", F::AllFaults, 1),
            ("pgmajfault", F::AllMajorFaults, 1),
        ],
    );
    // The root has no such file; upstream takes these two together for it.
    let all = || Some(stats.get(F::Rss)? + stats.get(F::Cache)?);
    let memory = group.number("memory", "memory.current").or_else(all);
    stats.set(F::Memory, memory);
    stats.set(F::MaxMemory, group.number("memory", "memory.peak"));
    stats.set(F::Swap, group.number("memory", "memory.swap.current"));
    let text = group.text("memory", "memory.events").unwrap_or_default();
    stats.take(&text, &[("max", F::Failures, 1), ("oom_kill", F::OomKills, 1)]);
    stats.set(F::MemoryLimit, group.limit("memory", "memory.max"));
    stats.set(F::SwapLimit, group.limit("memory", "memory.swap.max"));
    stats.set(F::Reservation, group.limit("memory", "memory.min"));
    for (file, some, full) in [
        ("cpu.pressure", F::CpuSome, F::CpuFull),
        ("memory.pressure", F::MemorySome, F::MemoryFull),
        ("io.pressure", F::IoSome, F::IoFull),
    ] {
        stats.take_pressure(&group.text("", file).unwrap_or_default(), some, full);
    }
    for line in group.text("io", "io.stat").unwrap_or_default().lines() {
        // Disks that the group has not used may be named without a figure.
        let Some((device, used)) = line.split_once(' ') else { continue };
        let disk = stats.disk(device);
        for (key, value) in used.split_whitespace().filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.written_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                _ => {}
            }
        }
    }
    Some(())
}

#[cfg(test)]
#[path = "stats_tests.rs"]
pub(crate) mod tests;
