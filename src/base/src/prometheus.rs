//! What is told to Prometheus: its text format 0.0.4, counters and histograms, and the usual figures of this
//! process. The one place where the format is written.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

/// The media type of [`Exposition`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The kind of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until its owner starts again.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations by size.
    Histogram,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A text of families, one after another.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// With room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Begins a family; its lines must follow one another, and no other family may have its name. One without a
    /// sample leaves nothing in the text.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &'a str) -> Family<'a> {
        Family { text: &mut self.0, name, head: Some((kind, help)) }
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample("", value);
    }

    /// The text.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

/// The samples of one name.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
    head: Option<(Kind, &'a str)>,
}

impl Family<'_> {
    /// One sample; the labels are written already, see [`labels`].
    pub fn sample(&mut self, labels: &str, value: impl Display) {
        self.line("", &[labels], &value);
    }

    /// One sample with two runs of labels, of which either may be empty.
    pub fn sample_with(&mut self, labels: &str, more: &str, value: impl Display) {
        self.line("", &[labels, more], &value);
    }

    /// The buckets, the sum and the count of a histogram.
    pub fn histogram(&mut self, labels: &str, histogram: &Histogram) {
        let mut total = 0;
        let bounds = histogram.bounds.iter().map(|bound| bound.to_string()).chain(["+Inf".to_owned()]);
        for (count, bound) in histogram.counts.iter().zip(bounds) {
            total += count.load(Ordering::Relaxed);
            self.line("_bucket", &[labels, &format!("le=\"{bound}\"")], &total);
        }
        self.line("_sum", &[labels], &histogram.sum());
        self.line("_count", &[labels], &total);
    }

    fn line(&mut self, suffix: &str, labels: &[&str], value: &dyn Display) {
        let name = self.name;
        // Writing to a String cannot fail.
        if let Some((kind, help)) = self.head.take() {
            let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.text());
        }
        self.text.push_str(name);
        self.text.push_str(suffix);
        let mut opened = false;
        for run in labels.iter().filter(|run| !run.is_empty()) {
            self.text.push(if opened { ',' } else { '{' });
            self.text.push_str(run);
            opened = true;
        }
        if opened {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// `name="value",...`, with the values as the format wants them.
#[must_use]
pub fn labels(labels: &[(&str, &str)]) -> String {
    let mut text =
        String::with_capacity(labels.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    text
}

/// Whole seconds and a fraction: no figure is rounded.
#[derive(Clone, Copy, Debug)]
pub struct Nanoseconds(pub u64);

impl Display for Nanoseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What it has come to.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// client_golang's `DefBuckets`, which most of upstream's histograms of seconds have.
pub const DEFAULT_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How many observations were how large.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// Below or at each bound but above the one before; the last: above all.
    counts: Box<[AtomicU64]>,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, in growing order.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::default()).collect();
        Self { bounds, counts, sum: AtomicU64::default() }
    }

    /// Counts one.
    pub fn observe(&self, value: f64) {
        let place = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    /// Counts the seconds since then.
    pub fn observe_since(&self, begun: std::time::Instant) {
        self.observe(begun.elapsed().as_secs_f64());
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// The usual figures of a process, as far as /proc has them.
pub fn process(out: &mut Exposition) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // The name before the last parenthesis may hold anything; field 3 follows it.
    let Some((_, fields)) = stat.rsplit_once(')') else { return };
    let fields: Vec<u64> = fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    // Linux counts processor time in 1/100 s for user space, whatever its own tick is.
    let seconds = |ticks: u64| ticks as f64 / 100.0;
    let cpu = seconds(field(14) + field(15));
    out.single("process_cpu_seconds_total", Kind::Counter, "CPU time spent, in seconds.", cpu);
    // Not the same figures of `stat`: those are zeros under qemu-user.
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = pages.split(' ').map_while(|field| field.parse::<u64>().ok());
    if let (Some(all), Some(resident)) = (pages.next(), pages.next()) {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        let page = page.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096);
        let (all, resident) = (all.saturating_mul(page), resident.saturating_mul(page));
        out.single("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", resident);
        out.single("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes.", all);
    }
    let machine = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    if let Some(boot) = boot {
        let help = "Start time of the process since unix epoch in seconds.";
        out.single("process_start_time_seconds", Kind::Gauge, help, boot + seconds(field(22)));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        out.single("process_open_fds", Kind::Gauge, "Number of open file descriptors.", open.count());
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let most = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(most) = most {
        out.single("process_max_fds", Kind::Gauge, "Maximum number of open file descriptors.", most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_one_head_and_only_with_samples() {
        let mut out = Exposition::default();
        let mut family = out.family("a_total", Kind::Counter, "All a.");
        family.sample("", 1);
        family.sample(&labels(&[("x", "q\"\\\n"), ("y", "")]), Nanoseconds(1_500_000_001));
        family.sample_with("x=\"1\"", "y=\"2\"", 2.5);
        let _ = out.family("empty", Kind::Gauge, "Nothing.");
        out.single("b", Kind::Gauge, "B.", 3);
        let expected = "# HELP a_total All a.\n# TYPE a_total counter\na_total 1\n\
            a_total{x=\"q\\\"\\\\\\n\",y=\"\"} 1.500000001\na_total{x=\"1\",y=\"2\"} 2.5\n\
            # HELP b B.\n# TYPE b gauge\nb 3\n";
        assert_eq!(out.finish(), expected);
    }

    #[test]
    fn histograms_add_up() {
        let histogram = Histogram::new(&[0.005, 1.0]);
        for value in [0.005, 0.5, 1.0, 7.0] {
            histogram.observe(value);
        }
        let mut out = Exposition::default();
        out.family("h", Kind::Histogram, "H.").histogram("k=\"v\"", &histogram);
        let expected = "# HELP h H.\n# TYPE h histogram\nh_bucket{k=\"v\",le=\"0.005\"} 1\n\
            h_bucket{k=\"v\",le=\"1\"} 3\nh_bucket{k=\"v\",le=\"+Inf\"} 4\nh_sum{k=\"v\"} 8.505\nh_count{k=\"v\"} 4\n";
        assert_eq!(out.finish(), expected);
        assert_eq!(histogram.count(), 4);
    }

    #[test]
    fn this_process_has_figures() {
        let mut out = Exposition::default();
        process(&mut out);
        let text = out.finish();
        let of = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default();
            line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(-1.0)
        };
        assert!(of("process_resident_memory_bytes") > 100_000.0, "{text}");
        assert!(of("process_open_fds") >= 3.0 && of("process_max_fds") >= of("process_open_fds"), "{text}");
        // After 2001, and not in the future by more than clocks differ.
        assert!(of("process_start_time_seconds") > 1e9, "{text}");
        assert!(of("process_cpu_seconds_total") >= 0.0, "{text}");
    }
}
