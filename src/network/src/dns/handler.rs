//! One question, one answer: the zone's own names from the index, all others from other servers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::cache::{Question, Reply};
use super::forward::{Failure, Forwarder};
use super::metrics::{Metrics, Observation, Plugin};
use super::records::Index;
use super::zone::{Lookup, Zone};

/// Larger answers by UDP would be cut into fragments, which networks lose (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
/// What a client without EDNS takes (RFC 1035).
const MIN_UDP: u16 = 512;
/// An OPT record without options.
const OPT_SIZE: u16 = 11;

/// Says whether everything the index is made of is known.
pub(crate) type Synced = Box<dyn Fn() -> bool + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) zone: Zone,
    pub(crate) index: Arc<Index>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Metrics,
    pub(crate) synced: Synced,
    /// Questions under way.
    pub(crate) active: AtomicUsize,
    /// Where the next list of addresses begins.
    pub(crate) turn: AtomicUsize,
}

/// hickory-server's view of it.
pub(crate) struct Handler(pub(crate) Arc<Shared>);

struct Answer {
    code: ResponseCode,
    plugin: Plugin,
    authoritative: bool,
    authentic: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Answer {
    fn code(code: ResponseCode, plugin: Plugin) -> Self {
        Self {
            code,
            plugin,
            authoritative: false,
            authentic: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    fn own(
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
        additionals: Vec<Record>,
    ) -> Self {
        let (authoritative, authentic) = (true, false);
        Self { code, plugin: Plugin::Kubernetes, authoritative, authentic, answers, authorities, additionals }
    }
}

/// Counts a question as under way until it is dropped.
struct Active<'a>(&'a AtomicUsize);

impl<'a> Active<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        // The library answers with the question's bytes as they came, and the answer's header is another one.
        if names_the_header(request.as_slice()) {
            return unanswered(request, Metadata::response_from_request(&request.metadata));
        }
        let shared = &*self.0;
        let _active = Active::new(&shared.active);
        let begun = Instant::now();
        let mut answer = shared.answer(request).await;
        shared.rotate(&mut answer.answers);

        let tcp = request.protocol() == Protocol::Tcp;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_version(0).set_max_payload(asked.max_payload().clamp(MIN_UDP, MAX_UDP));
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.authentic_data = answer.authentic;
        metadata.recursion_available = true;
        let limit = match &edns {
            _ if tcp => u16::MAX,
            Some(edns) => edns.max_payload(),
            None => MIN_UDP,
        };
        let limit = if edns.is_some() { limit - OPT_SIZE } else { limit };
        let size = fit(request, &mut metadata, &mut answer, limit);
        // Many questions can be longer than any answer may be.
        if size == 0 {
            return unanswered(request, metadata);
        }

        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            answer.answers.iter(),
            answer.authorities.iter(),
            std::iter::empty::<&Record>(),
            answer.additionals.iter(),
        );
        let sent = handle.send_response(response).await;
        let seen = Observation {
            tcp,
            ipv6: is_ipv6(request.src()),
            kind: request.queries.queries().first().map(|query| query.query_type()),
            code: answer.code,
            plugin: answer.plugin,
            request_size: request.as_slice().len(),
            response_size: size + if edns.is_some() { usize::from(OPT_SIZE) } else { 0 },
            seconds: begun.elapsed().as_secs_f64(),
        };
        shared.metrics.observe(&seen);
        sent.unwrap_or_else(|error| {
            // The client is gone or does not read; it will ask again.
            tracing::debug!(client = %request.src(), %error, "an answer could not be sent");
            info(metadata)
        })
    }
}

fn info(metadata: Metadata) -> ResponseInfo {
    ResponseInfo::from(hickory_proto::op::Header { metadata, counts: Default::default() })
}

fn unanswered(request: &Request, metadata: Metadata) -> ResponseInfo {
    tracing::debug!(client = %request.src(), "a message to which there is no answer that could be read");
    info(metadata)
}

/// Whether a question's name goes on within the message's header (RFC 1035 section 4.1.4), which no client has
/// a reason to write.
fn names_the_header(message: &[u8]) -> bool {
    const HEADER: usize = 12;
    let number =
        |at: usize| Some(usize::from(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?])));
    let mut at = HEADER;
    for _ in 0..number(4).unwrap_or_default() {
        loop {
            match message.get(at) {
                Some(&length @ 1..=63) => at += 1 + usize::from(length),
                Some(0) => {
                    at += 1;
                    break;
                }
                Some(0xC0..) if number(at).is_some_and(|target| target & 0x3FFF < HEADER) => return true,
                Some(0xC0..) => {
                    at += 2;
                    break;
                }
                // No name: nothing that came so far.
                _ => return false,
            }
        }
        // Type and class.
        at += 4;
    }
    false
}

/// Keep what fits into the limit. Additional records are left out silently, anything else sets the
/// bit that makes the client ask by TCP (RFC 2181 section 9). The result is the size in bytes, without
/// EDNS. Done here because the library would leave out the EDNS record first.
fn fit(request: &Request, metadata: &mut Metadata, answer: &mut Answer, limit: u16) -> usize {
    loop {
        let mut bytes = Vec::with_capacity(MIN_UDP.into());
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(limit);
        let response = MessageResponseBuilder::from_message_request(request).build(
            *metadata,
            answer.answers.iter(),
            answer.authorities.iter(),
            std::iter::empty::<&Record>(),
            answer.additionals.iter(),
        );
        let Ok(info) = response.destructive_emit(&mut encoder) else { return 0 };
        let counts = info.counts();
        let whole = answer.answers.len() + answer.authorities.len();
        let kept = usize::from(counts.answers) + usize::from(counts.authorities);
        if kept == whole && usize::from(counts.additionals) == answer.additionals.len() {
            return bytes.len();
        }
        metadata.truncation |= kept < whole;
        answer.answers.truncate(counts.answers.into());
        answer.authorities.truncate(counts.authorities.into());
        answer.additionals.truncate(if kept < whole { 0 } else { counts.additionals.into() });
    }
}

fn is_ipv6(client: SocketAddr) -> bool {
    client.ip().to_canonical().is_ipv6()
}

impl Shared {
    async fn answer(&self, request: &Request) -> Answer {
        if request.metadata.op_code != OpCode::Query {
            return Answer::code(ResponseCode::NotImp, Plugin::None);
        }
        let [query] = request.queries.queries() else {
            return Answer::code(ResponseCode::FormErr, Plugin::None);
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return Answer::code(ResponseCode::BADVERS, Plugin::None);
        }
        // Transfers of a zone are for secondary servers; there are none.
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || transfer {
            return Answer::code(ResponseCode::Refused, Plugin::None);
        }
        let (name, kind) = (&query.original().name, query.query_type());
        let resolve = async |name: &Name| {
            let question = Question {
                name: name.to_lowercase(),
                kind,
                class: DNSClass::IN,
                dnssec_ok: request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
                checking_disabled: request.metadata.checking_disabled,
            };
            self.forwarder.resolve(&question, || self.zone.all_own_addresses(&self.index.records())).await
        };
        let lookup = {
            let records = self.index.records();
            self.zone.lookup(&records, name, kind)
        };
        match lookup {
            Lookup::Found { answers, additionals } => {
                Answer::own(ResponseCode::NoError, answers, Vec::new(), additionals)
            }
            // What is not known yet may exist: the client is to ask again (as CoreDNS).
            Lookup::NoData { .. } | Lookup::NoName { .. } if !(self.synced)() => {
                Answer::code(ResponseCode::ServFail, Plugin::Kubernetes)
            }
            Lookup::NoData { answers, soa } => {
                Answer::own(ResponseCode::NoError, answers, vec![*soa], Vec::new())
            }
            Lookup::NoName { answers, soa } => {
                Answer::own(ResponseCode::NXDomain, answers, vec![*soa], Vec::new())
            }
            Lookup::Alias { mut answers, target } => match resolve(&target).await {
                // The alias holds, whatever becomes of its target (RFC 6604).
                Ok(reply) if matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                    answers.extend(reply.answers);
                    Answer::own(reply.code, answers, reply.authorities, Vec::new())
                }
                _ => Answer { answers, ..Answer::code(ResponseCode::ServFail, Plugin::Kubernetes) },
            },
            Lookup::NoAddress { private } => match resolve(name).await {
                Ok(reply) => forwarded(reply, name, request),
                Err(Failure::NoServers) if private => {
                    let zone = name.trim_to(2);
                    let soa = self.zone.soa(&self.index.records(), &zone);
                    Answer::own(ResponseCode::NXDomain, Vec::new(), vec![soa], Vec::new())
                }
                Err(_) => Answer::code(ResponseCode::ServFail, Plugin::Forward),
            },
            Lookup::Foreign => match resolve(name).await {
                Ok(reply) => forwarded(reply, name, request),
                Err(_) => Answer::code(ResponseCode::ServFail, Plugin::Forward),
            },
        }
    }

    /// Another address comes first each time; aliases keep their places.
    fn rotate(&self, answers: &mut [Record]) {
        let is_address = |record: &Record| matches!(record.record_type(), RecordType::A | RecordType::AAAA);
        let Some(first) = answers.iter().position(is_address) else { return };
        let addresses = &mut answers[first..];
        let count = addresses.iter().take_while(|record| is_address(record)).count();
        if count > 1 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            addresses[..count].rotate_left(turn % count);
        }
    }
}

/// The question went out in lower case and may have been another client's: the name is put back as
/// this one has written it.
fn forwarded(reply: Reply, name: &Name, request: &Request) -> Answer {
    let mut answers = reply.answers;
    for record in &mut answers {
        if record.name == *name {
            record.name = name.clone();
        }
    }
    Answer {
        code: reply.code,
        plugin: Plugin::Forward,
        authoritative: false,
        // Only for those who know what it means (RFC 6840 section 5.7).
        authentic: reply.authentic
            && (request.metadata.authentic_data
                || request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)),
        answers,
        authorities: reply.authorities,
        additionals: reply.additionals,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_the_header() {
        let message = |questions: &[&[u8]]| {
            let mut bytes =
                vec![1, 0xA4, 0, 0, 0, u8::try_from(questions.len()).expect("few"), 0, 0, 0, 0, 0, 0];
            questions.iter().for_each(|name| bytes.extend([name, &[0, 1, 0, 1][..]].concat()));
            bytes
        };
        let web = b"\x03web\0".as_slice();
        for (questions, expected) in [
            (&[web][..], false),
            (&[b"\xC0\0"], true),
            (&[b"\x03web\xC0\x0B"], true),
            (&[web, b"\x01a\xC0\x0C"], false),
            (&[web, b"\x01a\xC0\x04"], true),
            (&[b"\x80"], false),
            (&[], false),
        ] {
            assert_eq!(names_the_header(&message(questions)), expected, "{questions:?}");
        }
        assert!(!names_the_header(&[0; 5]));
    }
}
