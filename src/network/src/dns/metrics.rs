//! Figures in Prometheus' text format, under CoreDNS's names and labels where it has such a figure, so
//! that its dashboards and alerts work.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::cache::Sort;
use super::forward::Forwarder;

/// CoreDNS's own set; all others are counted as "other".
const TYPES: [(RecordType, &str); 17] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::MX, "MX"),
    (RecordType::SOA, "SOA"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::PTR, "PTR"),
    (RecordType::TXT, "TXT"),
    (RecordType::NS, "NS"),
    (RecordType::SRV, "SRV"),
    (RecordType::DS, "DS"),
    (RecordType::DNSKEY, "DNSKEY"),
    (RecordType::RRSIG, "RRSIG"),
    (RecordType::NSEC, "NSEC"),
    (RecordType::NSEC3, "NSEC3"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::SVCB, "SVCB"),
    (RecordType::ANY, "ANY"),
];
const CODES: [(ResponseCode, &str); 7] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::BADVERS, "BADVERS"),
];
/// Response codes that are counted apart, and one for all others.
pub(crate) const RCODES: usize = CODES.len() + 1;
const PLUGINS: [&str; 3] = ["", "kubernetes", "forward"];
const PROTOCOLS: [&str; 2] = ["udp", "tcp"];
const FAMILIES: [&str; 2] = ["1", "2"];
/// CoreDNS's plugin.TimeBuckets: from 0.25 ms, doubled.
const TIMES: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048,
    4.096, 8.192,
];
const SIZES: [f64; 14] =
    [0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3];

/// Where a response code is counted.
pub(crate) fn rcode_place(code: ResponseCode) -> usize {
    CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len())
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Observations of seconds, or of bytes in [`Sizes`]; the sum is kept in millionths.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; 16],
    over: AtomicU64,
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, value: f64) {
        self.observe_in(&TIMES, value);
    }

    fn observe_in(&self, bounds: &[f64], value: f64) {
        let place = bounds.iter().position(|bound| value <= *bound);
        place.map_or(&self.over, |place| &self.buckets[place]).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str, bounds: &[f64]) {
        let mut total = 0;
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            total += bucket.load(Ordering::Relaxed);
            line(out, &format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), total);
        }
        total += self.over.load(Ordering::Relaxed);
        line(out, &format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), total);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        line(out, &format!("{name}_sum"), labels, sum);
        line(out, &format!("{name}_count"), labels, total);
    }

    fn is_empty(&self) -> bool {
        self.over.load(Ordering::Relaxed) == 0
            && self.buckets.iter().all(|bucket| bucket.load(Ordering::Relaxed) == 0)
    }
}

/// Who made the answer, as CoreDNS's label `plugin` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugin {
    /// This server itself, without a look anywhere.
    None,
    Kubernetes,
    Forward,
}

/// What is counted about one question and its answer.
pub(crate) struct Observation {
    pub(crate) tcp: bool,
    pub(crate) ipv6: bool,
    pub(crate) kind: Option<RecordType>,
    pub(crate) code: ResponseCode,
    pub(crate) plugin: Plugin,
    pub(crate) request_size: usize,
    pub(crate) response_size: usize,
    pub(crate) seconds: f64,
}

pub(crate) struct Metrics {
    /// The label `server`, e.g. `dns://:53`.
    server: String,
    /// By protocol, family and type.
    requests: Box<[Counter]>,
    /// By code and plugin.
    responses: Box<[Counter]>,
    durations: Histogram,
    request_sizes: [Histogram; 2],
    response_sizes: [Histogram; 2],
}

impl Metrics {
    pub(crate) fn new(port: u16) -> Self {
        let counters = |count: usize| (0..count).map(|_| Counter::default()).collect();
        Self {
            server: format!("dns://:{port}"),
            requests: counters(2 * 2 * (TYPES.len() + 1)),
            responses: counters(RCODES * PLUGINS.len()),
            durations: Histogram::default(),
            request_sizes: Default::default(),
            response_sizes: Default::default(),
        }
    }

    pub(crate) fn observe(&self, seen: &Observation) {
        let kind = seen.kind.and_then(|kind| TYPES.iter().position(|(known, _)| *known == kind));
        let kind = kind.unwrap_or(TYPES.len());
        let (protocol, family) = (usize::from(seen.tcp), usize::from(seen.ipv6));
        self.requests[(protocol * 2 + family) * (TYPES.len() + 1) + kind].add();
        self.responses[rcode_place(seen.code) * PLUGINS.len() + seen.plugin as usize].add();
        self.durations.observe(seen.seconds);
        self.request_sizes[protocol].observe_in(&SIZES, seen.request_size as f64);
        self.response_sizes[protocol].observe_in(&SIZES, seen.response_size as f64);
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn render(&self, forwarder: &Forwarder) -> String {
        let mut out = String::with_capacity(8 * 1024);
        let base = format!("server=\"{}\",zone=\".\",view=\"\"", self.server);
        let version = kedge_base::VERSION;
        head(
            &mut out,
            "coredns_build_info",
            "gauge",
            "The version of this server; it is Kedge's, not CoreDNS.",
        );
        line(
            &mut out,
            "coredns_build_info",
            &format!("goversion=\"\",revision=\"\",version=\"kedge-{version}\""),
            1,
        );
        head(&mut out, "coredns_dns_requests_total", "counter", "Questions by protocol, family and type.");
        for (place, counter) in self.requests.iter().enumerate().filter(|(_, counter)| counter.get() > 0) {
            let (rest, kind) = (place / (TYPES.len() + 1), place % (TYPES.len() + 1));
            let kind = TYPES.get(kind).map_or("other", |(_, text)| text);
            let (protocol, family) = (PROTOCOLS[rest / 2], FAMILIES[rest % 2]);
            let labels = format!("{base},proto=\"{protocol}\",family=\"{family}\",type=\"{kind}\"");
            line(&mut out, "coredns_dns_requests_total", &labels, counter.get());
        }
        head(
            &mut out,
            "coredns_dns_responses_total",
            "counter",
            "Answers by response code and by who made them.",
        );
        for (place, counter) in self.responses.iter().enumerate().filter(|(_, counter)| counter.get() > 0) {
            let code = code_text(place / PLUGINS.len());
            let plugin = PLUGINS[place % PLUGINS.len()];
            let labels = format!("{base},rcode=\"{code}\",plugin=\"{plugin}\"");
            line(&mut out, "coredns_dns_responses_total", &labels, counter.get());
        }
        let name = "coredns_dns_request_duration_seconds";
        head(&mut out, name, "histogram", "Time from question to answer.");
        self.durations.write(&mut out, name, &base, &TIMES);
        for (name, histograms, help) in [
            ("coredns_dns_request_size_bytes", &self.request_sizes, "Size of questions."),
            ("coredns_dns_response_size_bytes", &self.response_sizes, "Size of answers."),
        ] {
            head(&mut out, name, "histogram", help);
            for (protocol, histogram) in PROTOCOLS.iter().zip(histograms) {
                histogram.write(&mut out, name, &format!("{base},proto=\"{protocol}\""), &SIZES);
            }
        }
        self.render_forwarder(&mut out, forwarder);
        process(&mut out);
        out
    }

    fn render_forwarder(&self, out: &mut String, forwarder: &Forwarder) {
        let zones = format!("server=\"{}\",zones=\".\",view=\"\"", self.server);
        let sorts = [("success", Sort::Success), ("denial", Sort::Denial)];
        head(out, "coredns_cache_entries", "gauge", "Answers of other servers that are held.");
        for (text, sort) in sorts {
            let labels = format!("{zones},type=\"{text}\"");
            line(out, "coredns_cache_entries", &labels, forwarder.cache_entries(sort));
        }
        head(out, "coredns_cache_hits_total", "counter", "Questions answered from the cache.");
        for (text, sort) in sorts {
            let labels = format!("{zones},type=\"{text}\"");
            line(out, "coredns_cache_hits_total", &labels, forwarder.hits[sort as usize].get());
        }
        head(out, "coredns_cache_misses_total", "counter", "Questions that had to be asked.");
        line(out, "coredns_cache_misses_total", &zones, forwarder.misses.get());
        let requests = forwarder.misses.get() + forwarder.hits.iter().map(Counter::get).sum::<u64>();
        head(out, "coredns_cache_requests_total", "counter", "Questions the cache was asked for.");
        line(out, "coredns_cache_requests_total", &zones, requests);
        let name = "coredns_forward_max_concurrent_rejects_total";
        head(out, name, "counter", "Questions refused because too many were under way.");
        let _ = writeln!(out, "{name} {}", forwarder.rejected.get());
        let name = "coredns_proxy_request_duration_seconds";
        head(out, name, "histogram", "Time that other servers took.");
        for server in forwarder.servers() {
            for (place, histogram) in server.durations.iter().enumerate() {
                if !histogram.is_empty() {
                    let code = if place == RCODES { "" } else { code_text(place) };
                    let labels = format!("proxy_name=\"forward\",to=\"{}\",rcode=\"{code}\"", server.address);
                    histogram.write(out, name, &labels, &TIMES);
                }
            }
        }
    }
}

fn code_text(place: usize) -> &'static str {
    CODES.get(place).map_or("other", |(_, text)| text)
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

/// The usual figures of a process, as far as /proc has them.
fn process(out: &mut String) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // The name before the last parenthesis may hold anything; field 3 follows it.
    let Some((_, fields)) = stat.rsplit_once(')') else { return };
    let fields: Vec<u64> = fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    // Linux counts both in units that are fixed for user space: 1/100 s, and pages of sysconf's size.
    let ticks = field(14) + field(15);
    head(out, "process_cpu_seconds_total", "counter", "CPU time spent, in seconds.");
    let _ = writeln!(out, "process_cpu_seconds_total {}", ticks as f64 / 100.0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    head(out, "process_resident_memory_bytes", "gauge", "Resident memory.");
    let resident = field(24).saturating_mul(u64::try_from(page).unwrap_or(4096));
    let _ = writeln!(out, "process_resident_memory_bytes {resident}");
}
