//! The families of `/metrics/cadvisor`: cAdvisor's names, kinds and help (`metrics/prometheus.go`).

use kedge_base::prometheus::Kind;

use crate::cgroup::{DiskUse, Figure};

/// How a figure is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Plain,
    /// From nanoseconds.
    Seconds,
    WholeSeconds,
}

/// One figure and where it is told. Those of one family follow one another.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    pub(super) figure: Figure,
    pub(super) unit: Unit,
    /// Labels that this figure has besides.
    pub(super) more: &'static str,
}

const fn entry(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figure: Figure,
    unit: Unit,
    more: &'static str,
) -> Entry {
    Entry { name, kind, help, figure, unit, more }
}

const fn count(name: &'static str, help: &'static str, figure: Figure) -> Entry {
    entry(name, Kind::Counter, help, figure, Unit::Plain, "")
}

const fn seconds(name: &'static str, help: &'static str, figure: Figure) -> Entry {
    entry(name, Kind::Counter, help, figure, Unit::Seconds, "")
}

const fn gauge(name: &'static str, help: &'static str, figure: Figure) -> Entry {
    entry(name, Kind::Gauge, help, figure, Unit::Plain, "")
}

const fn failures(figure: Figure, more: &'static str) -> Entry {
    let help = "Cumulative count of memory allocation failures.";
    entry("container_memory_failures_total", Kind::Counter, help, figure, Unit::Plain, more)
}

pub(super) const FIGURES: &[Entry] = &[
    entry(
        "container_start_time_seconds",
        Kind::Gauge,
        "Start time of the container since unix epoch in seconds.",
        Figure::Created,
        Unit::WholeSeconds,
        "",
    ),
    entry(
        "container_cpu_usage_seconds_total",
        Kind::Counter,
        "Cumulative cpu time consumed in seconds.",
        Figure::CpuUsage,
        Unit::Seconds,
        "cpu=\"total\"",
    ),
    seconds(
        "container_cpu_user_seconds_total",
        "Cumulative user cpu time consumed in seconds.",
        Figure::CpuUser,
    ),
    seconds(
        "container_cpu_system_seconds_total",
        "Cumulative system cpu time consumed in seconds.",
        Figure::CpuSystem,
    ),
    count(
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement period intervals.",
        Figure::Periods,
    ),
    count(
        "container_cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        Figure::ThrottledPeriods,
    ),
    seconds(
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        Figure::Throttled,
    ),
    count(
        "container_cpu_cfs_burst_periods_total",
        "Number of periods when burst occurs.",
        Figure::BurstPeriods,
    ),
    seconds(
        "container_cpu_cfs_burst_seconds_total",
        "Total time duration the container has been bursted.",
        Figure::Burst,
    ),
    gauge("container_spec_cpu_shares", "CPU share of the container.", Figure::Shares),
    gauge("container_spec_cpu_period", "CPU period of the container.", Figure::Period),
    gauge("container_spec_cpu_quota", "CPU quota of the container.", Figure::Quota),
    gauge("container_spec_memory_limit_bytes", "Memory limit for the container.", Figure::MemoryLimit),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Memory swap limit for the container.",
        Figure::SwapLimit,
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory reservation limit for the container.",
        Figure::Reservation,
    ),
    gauge(
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        Figure::Memory,
    ),
    gauge("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", Figure::MaxMemory),
    gauge("container_memory_working_set_bytes", "Current working set in bytes.", Figure::WorkingSet),
    gauge("container_memory_rss", "Size of RSS in bytes.", Figure::Rss),
    gauge("container_memory_cache", "Number of bytes of page cache memory.", Figure::Cache),
    gauge("container_memory_mapped_file", "Size of memory mapped files in bytes.", Figure::Mapped),
    gauge("container_memory_swap", "Container swap usage in bytes.", Figure::Swap),
    gauge("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", Figure::Kernel),
    gauge(
        "container_memory_total_active_file_bytes",
        "Current total active file in bytes.",
        Figure::ActiveFile,
    ),
    gauge(
        "container_memory_total_inactive_file_bytes",
        "Current total inactive file in bytes.",
        Figure::InactiveFile,
    ),
    count("container_memory_failcnt", "Number of memory usage hits limits", Figure::Failures),
    failures(Figure::Faults, "failure_type=\"pgfault\",scope=\"container\""),
    failures(Figure::MajorFaults, "failure_type=\"pgmajfault\",scope=\"container\""),
    failures(Figure::AllFaults, "failure_type=\"pgfault\",scope=\"hierarchy\""),
    failures(Figure::AllMajorFaults, "failure_type=\"pgmajfault\",scope=\"hierarchy\""),
    count(
        "container_oom_events_total",
        "Count of out of memory events observed for the container",
        Figure::OomKills,
    ),
    gauge("container_processes", "Number of processes running inside the container.", Figure::Processes),
    gauge("container_threads", "Number of threads running inside the container", Figure::Threads),
    gauge(
        "container_threads_max",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        Figure::MaxThreads,
    ),
    seconds(
        "container_pressure_cpu_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        Figure::CpuSome,
    ),
    seconds(
        "container_pressure_cpu_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        Figure::CpuFull,
    ),
    seconds(
        "container_pressure_memory_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to memory congestion.",
        Figure::MemorySome,
    ),
    seconds(
        "container_pressure_memory_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        Figure::MemoryFull,
    ),
    seconds(
        "container_pressure_io_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to IO congestion.",
        Figure::IoSome,
    ),
    seconds(
        "container_pressure_io_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        Figure::IoFull,
    ),
];

/// By interface.
pub(super) const NETWORK: [(&str, &str); 8] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received"),
    ("container_network_receive_packets_total", "Cumulative count of packets received"),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving"),
    (
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted"),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting"),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
    ),
];

/// By device.
pub(super) const FILE_SYSTEM: [(&str, &str); 4] = [
    ("container_fs_inodes_free", "Number of available Inodes"),
    ("container_fs_inodes_total", "Number of Inodes"),
    ("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem."),
    ("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem."),
];

type OfDisk = fn(&DiskUse) -> u64;

/// By device.
pub(super) const DISK: [(&str, &str, OfDisk); 4] = [
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read", |disk| disk.read_bytes),
    ("container_fs_reads_total", "Cumulative count of reads completed", |disk| disk.reads),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", |disk| disk.written_bytes),
    ("container_fs_writes_total", "Cumulative count of writes completed", |disk| disk.writes),
];
