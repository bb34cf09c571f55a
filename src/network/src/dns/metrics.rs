//! Figures in Prometheus' text format, under CoreDNS's names and labels where it has such a figure, so
//! that its dashboards and alerts work.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use kedge_base::prometheus::{self, Counter, Exposition, Histogram, Kind};

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
pub(crate) const TIMES: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048,
    4.096, 8.192,
];
const SIZES: [f64; 14] =
    [0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3];

/// Where a response code is counted.
pub(crate) fn rcode_place(code: ResponseCode) -> usize {
    CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len())
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
            durations: Histogram::new(&TIMES),
            request_sizes: [(); 2].map(|()| Histogram::new(&SIZES)),
            response_sizes: [(); 2].map(|()| Histogram::new(&SIZES)),
        }
    }

    pub(crate) fn observe(&self, seen: &Observation) {
        let kind = seen.kind.and_then(|kind| TYPES.iter().position(|(known, _)| *known == kind));
        let kind = kind.unwrap_or(TYPES.len());
        let (protocol, family) = (usize::from(seen.tcp), usize::from(seen.ipv6));
        self.requests[(protocol * 2 + family) * (TYPES.len() + 1) + kind].add();
        self.responses[rcode_place(seen.code) * PLUGINS.len() + seen.plugin as usize].add();
        self.durations.observe(seen.seconds);
        self.request_sizes[protocol].observe(seen.request_size as f64);
        self.response_sizes[protocol].observe(seen.response_size as f64);
    }

    /// Everything, as Prometheus reads it.
    pub(crate) fn render(&self, forwarder: &Forwarder) -> String {
        let mut out = Exposition::with_capacity(8 * 1024);
        let base = format!("server=\"{}\",zone=\".\",view=\"\"", self.server);
        let version = kedge_base::VERSION;
        let help = "The version of this server; it is Kedge's, not CoreDNS.";
        out.family("coredns_build_info", Kind::Gauge, help)
            .sample(&format!("goversion=\"\",revision=\"\",version=\"kedge-{version}\""), 1);
        let help = "Questions by protocol, family and type.";
        let mut family = out.family("coredns_dns_requests_total", Kind::Counter, help);
        for (place, counter) in self.requests.iter().enumerate().filter(|(_, counter)| counter.get() > 0) {
            let (rest, kind) = (place / (TYPES.len() + 1), place % (TYPES.len() + 1));
            let kind = TYPES.get(kind).map_or("other", |(_, text)| text);
            let (protocol, ip) = (PROTOCOLS[rest / 2], FAMILIES[rest % 2]);
            let more = format!("proto=\"{protocol}\",family=\"{ip}\",type=\"{kind}\"");
            family.sample_with(&base, &more, counter.get());
        }
        let help = "Answers by response code and by who made them.";
        let mut family = out.family("coredns_dns_responses_total", Kind::Counter, help);
        for (place, counter) in self.responses.iter().enumerate().filter(|(_, counter)| counter.get() > 0) {
            let code = code_text(place / PLUGINS.len());
            let plugin = PLUGINS[place % PLUGINS.len()];
            family.sample_with(&base, &format!("rcode=\"{code}\",plugin=\"{plugin}\""), counter.get());
        }
        let name = "coredns_dns_request_duration_seconds";
        out.family(name, Kind::Histogram, "Time from question to answer.").histogram(&base, &self.durations);
        for (name, histograms, help) in [
            ("coredns_dns_request_size_bytes", &self.request_sizes, "Size of questions."),
            ("coredns_dns_response_size_bytes", &self.response_sizes, "Size of answers."),
        ] {
            let mut family = out.family(name, Kind::Histogram, help);
            for (protocol, histogram) in PROTOCOLS.iter().zip(histograms) {
                family.histogram(&format!("{base},proto=\"{protocol}\""), histogram);
            }
        }
        self.render_forwarder(&mut out, forwarder);
        prometheus::process(&mut out);
        out.finish()
    }

    fn render_forwarder(&self, out: &mut Exposition, forwarder: &Forwarder) {
        let zones = format!("server=\"{}\",zones=\".\",view=\"\"", self.server);
        let sorts = [("success", Sort::Success), ("denial", Sort::Denial)];
        let help = "Answers of other servers that are held.";
        let mut family = out.family("coredns_cache_entries", Kind::Gauge, help);
        for (text, sort) in sorts {
            family.sample_with(&zones, &format!("type=\"{text}\""), forwarder.cache_entries(sort));
        }
        let help = "Questions answered from the cache.";
        let mut family = out.family("coredns_cache_hits_total", Kind::Counter, help);
        for (text, sort) in sorts {
            family.sample_with(&zones, &format!("type=\"{text}\""), forwarder.hits[sort as usize].get());
        }
        out.family("coredns_cache_misses_total", Kind::Counter, "Questions that had to be asked.")
            .sample(&zones, forwarder.misses.get());
        let requests = forwarder.misses.get() + forwarder.hits.iter().map(Counter::get).sum::<u64>();
        out.family("coredns_cache_requests_total", Kind::Counter, "Questions the cache was asked for.")
            .sample(&zones, requests);
        let name = "coredns_forward_max_concurrent_rejects_total";
        let help = "Questions refused because too many were under way.";
        out.single(name, Kind::Counter, help, forwarder.rejected.get());
        let name = "coredns_proxy_request_duration_seconds";
        let mut family = out.family(name, Kind::Histogram, "Time that other servers took.");
        for server in forwarder.servers() {
            for (place, histogram) in server.durations.iter().enumerate() {
                if histogram.count() > 0 {
                    let code = if place == RCODES { "" } else { code_text(place) };
                    let labels = format!("proxy_name=\"forward\",to=\"{}\",rcode=\"{code}\"", server.address);
                    family.histogram(&labels, histogram);
                }
            }
        }
    }
}

fn code_text(place: usize) -> &'static str {
    CODES.get(place).map_or("other", |(_, text)| text)
}
