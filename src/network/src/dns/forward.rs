//! Asks other servers: the stub domain's, else the general ones, in their order, passing over those
//! that have just failed. There is no health check: a server is judged by the answers it gives.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kedge_base::Order as _;
use kedge_base::prometheus::{Counter, Histogram};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::cache::{Cache, Question, Reply, Sort};
use super::metrics::{RCODES, TIMES, rcode_place};
use super::name::parse_name;
use super::servers::{StubDomain, from_files};
use crate::Error;

/// A lost packet is no reason to give up on the only server.
const MIN_TRIES: usize = 3;
/// How long a server that gave no answer is asked last.
const PENALTY: Duration = Duration::from_secs(10);
/// Fits into one packet everywhere (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
const BUFFER: usize = 4096;
/// How often the host's files are looked at, and only while there are questions.
const REREAD: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no server to ask.
    NoServers,
    /// Too many questions are under way.
    Busy,
    /// No server answered in time.
    Unanswered,
}

pub(crate) struct Forwarder {
    servers: ArcSwap<Vec<Arc<Server>>>,
    stubs: Vec<(Name, Vec<Arc<Server>>)>,
    cache: Cache,
    permits: Semaphore,
    /// For one try, and for all of them.
    limits: (Duration, Duration),
    started: Instant,
    /// The host's files, when the servers come from there, and when they are to be read again.
    files: Option<(Vec<PathBuf>, Mutex<Instant>)>,
    told_of_none: AtomicBool,
    pub(crate) hits: [Counter; 2],
    pub(crate) misses: Counter,
    pub(crate) rejected: Counter,
}

/// A server and how it behaves.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Milliseconds since the forwarder's start until which it is asked last.
    avoided_until: AtomicU64,
    /// By response code; the last is for tries without an answer.
    pub(crate) durations: [Histogram; RCODES + 1],
}

impl Server {
    fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address,
            avoided_until: AtomicU64::new(0),
            durations: [(); RCODES + 1].map(|()| Histogram::new(&TIMES)),
        })
    }
}

/// Where the servers come from.
pub(crate) enum Source {
    Given(Vec<SocketAddr>),
    /// The first of these files that names a usable one.
    Files(Vec<PathBuf>),
}

impl Forwarder {
    /// # Errors
    /// When a file with servers cannot be read or a stub domain is no domain.
    pub(crate) fn new(
        source: Source,
        stubs: &[StubDomain],
        cache_entries: usize,
        max_concurrent: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let (addresses, files) = match source {
            Source::Given(addresses) => (addresses, None),
            Source::Files(files) => (from_files(&files)?, Some((files, Mutex::new(Instant::now() + REREAD)))),
        };
        let mut domains = Vec::new();
        for stub in stubs {
            let name = parse_name(&stub.domain.to_ascii_lowercase()).filter(|name| !name.is_root());
            let name = name.ok_or_else(|| Error::Invalid(format!("{:?} is no domain name", stub.domain)))?;
            domains.push((name, stub.servers.iter().copied().map(Server::new).collect()));
        }
        // The longest domain that fits wins.
        domains.order_by_key(|(name, _): &(Name, Vec<_>)| std::cmp::Reverse(name.num_labels()));
        Ok(Self {
            servers: ArcSwap::from_pointee(addresses.into_iter().map(Server::new).collect()),
            stubs: domains,
            cache: Cache::new(cache_entries),
            permits: Semaphore::new(max_concurrent.clamp(1, Semaphore::MAX_PERMITS)),
            limits: (timeout, timeout * 5 / 2),
            started: Instant::now(),
            files,
            told_of_none: AtomicBool::new(false),
            hits: Default::default(),
            misses: Counter::default(),
            rejected: Counter::default(),
        })
    }

    /// All servers, the general ones first.
    pub(crate) fn servers(&self) -> Vec<Arc<Server>> {
        let stubs = self.stubs.iter().flat_map(|(_, servers)| servers);
        self.servers.load().iter().chain(stubs).cloned().collect()
    }

    pub(crate) fn cache_entries(&self, sort: Sort) -> usize {
        self.cache.entries(sort)
    }

    /// Answer from the cache or ask. `own` are the addresses of this server, which is never asked: hosts
    /// that resolve the cluster's names by it name it in their configuration.
    pub(crate) async fn resolve(
        &self,
        question: &Question,
        own: impl FnOnce() -> Vec<IpAddr>,
    ) -> Result<Reply, Failure> {
        if let Some((sort, reply)) = self.cache.get(question, Instant::now()) {
            self.hits[sort as usize].add();
            return Ok(reply);
        }
        self.misses.add();
        let servers = match self.stubs.iter().find(|(domain, _)| domain.zone_of(&question.name)) {
            Some((_, servers)) => servers.clone(),
            None => self.general(&own())?,
        };
        let Ok(_permit) = self.permits.try_acquire() else {
            self.rejected.add();
            return Err(Failure::Busy);
        };
        let asked = tokio::time::timeout(self.limits.1, self.ask_all(&servers, question));
        let reply = asked.await.unwrap_or(Err(Failure::Unanswered))?;
        self.cache.put(question, &reply, Instant::now());
        Ok(reply.limited(question.kind))
    }

    fn general(&self, own: &[IpAddr]) -> Result<Vec<Arc<Server>>, Failure> {
        self.reread();
        let servers = self.servers.load();
        let others = servers.iter().filter(|server| !own.contains(&server.address.ip()));
        let others: Vec<_> = others.cloned().collect();
        if !others.is_empty() {
            return Ok(others);
        }
        if !self.told_of_none.swap(true, Ordering::Relaxed) {
            let files: Vec<_> =
                self.files.iter().flat_map(|(files, _)| files).map(|file| file.display()).collect();
            tracing::warn!(
                looked_in = ?files,
                "no DNS server for names outside the cluster: the host's resolver configuration names none \
                 that a pod can reach; name one with --upstream (kedge enable dns:upstream=ADDRESS)"
            );
        }
        Err(Failure::NoServers)
    }

    /// Networks change under a laptop or a board: the host's file is looked at again now and then.
    fn reread(&self) {
        let Some((files, next)) = &self.files else { return };
        // Whoever finds the lock taken does without.
        let Some(mut next) = next.try_lock() else { return };
        let now = Instant::now();
        if now < *next {
            return;
        }
        *next = now + REREAD;
        // A file that is being written or cannot be read is no reason to forget what was there.
        let found = from_files(files).unwrap_or_default();
        if found.is_empty() {
            return;
        }
        let known = self.servers.load();
        if known.iter().map(|server| server.address).ne(found.iter().copied()) {
            tracing::info!(servers = ?found, "the host's resolver configuration has changed");
            let keep = |address: SocketAddr| {
                known
                    .iter()
                    .find(|server| server.address == address)
                    .cloned()
                    .unwrap_or_else(|| Server::new(address))
            };
            self.servers.store(Arc::new(found.into_iter().map(keep).collect()));
        }
    }

    async fn ask_all(&self, servers: &[Arc<Server>], question: &Question) -> Result<Reply, Failure> {
        let now = self.clock();
        let (mut order, avoided): (VecDeque<_>, VecDeque<_>) =
            servers.iter().partition(|server| server.avoided_until.load(Ordering::Relaxed) <= now);
        order.extend(avoided);
        let mut refusal = None;
        for _ in 0..order.len().max(MIN_TRIES) {
            let Some(server) = order.pop_front() else { break };
            let begun = Instant::now();
            match tokio::time::timeout(self.limits.0, exchange(server.address, question)).await {
                Ok(Ok(reply)) => {
                    server.durations[rcode_place(reply.code)].observe(begun.elapsed().as_secs_f64());
                    server.avoided_until.store(0, Ordering::Relaxed);
                    if matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain) {
                        return Ok(reply);
                    }
                    // It cannot answer this one; another may.
                    refusal = Some(reply);
                }
                failed => {
                    if let Ok(Err(error)) = failed {
                        tracing::debug!(server = %server.address, %error, "a DNS server could not be asked");
                    }
                    server.durations[RCODES].observe(begun.elapsed().as_secs_f64());
                    let until = self.clock() + u64::try_from(PENALTY.as_millis()).unwrap_or(u64::MAX);
                    server.avoided_until.store(until, Ordering::Relaxed);
                    order.push_back(server);
                }
            }
        }
        refusal.ok_or(Failure::Unanswered)
    }

    fn clock(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Ask one server by UDP, and by TCP when the answer does not fit.
async fn exchange(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let mut request = message(question, true);
    let mut response = exchange_udp(server, &request).await?;
    if response.metadata.response_code == ResponseCode::FormErr && response.edns.is_none() {
        // It does not know EDNS (RFC 6891 section 7).
        request = message(question, false);
        response = exchange_udp(server, &request).await?;
    }
    if response.metadata.truncation {
        response = exchange_tcp(server, &request).await?;
    }
    let authentic = response.metadata.authentic_data;
    let code = response.metadata.response_code;
    response.additionals.retain(|record| record.record_type() != RecordType::OPT);
    Ok(Reply {
        code,
        authentic,
        answers: response.answers,
        authorities: response.authorities,
        additionals: response.additionals,
    })
}

/// A query with a random id.
fn message(question: &Question, edns: bool) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    let mut query = Query::query(question.name.clone(), question.kind);
    query.query_class = question.class;
    message.add_query(query);
    if edns {
        let mut own = Edns::new();
        own.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(question.dnssec_ok);
        message.set_edns(own);
    }
    message
}

async fn exchange_udp(server: SocketAddr, request: &Message) -> io::Result<Message> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket of its own for every question: the kernel picks a random port, and a connected socket
    // takes packets from this server only.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&encode(request)?).await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let bytes = &buffer[..length];
        match Message::from_vec(bytes) {
            Ok(response) if answers(&response, request) => return Ok(response),
            // There is no use in waiting for another one.
            Err(error) if bytes.starts_with(&request.metadata.id.to_be_bytes()) => {
                return Err(io::Error::other(error));
            }
            // Late or forged: the right one may still come.
            _ => {}
        }
    }
}

async fn exchange_tcp(server: SocketAddr, request: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let bytes = encode(request)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(bytes.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    let response = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if !answers(&response, request) {
        return Err(io::Error::other("the answer is not to the question"));
    }
    Ok(response)
}

fn encode(request: &Message) -> io::Result<Vec<u8>> {
    request.to_vec().map_err(io::Error::other)
}

pub(super) fn answers(response: &Message, request: &Message) -> bool {
    use hickory_proto::op::MessageType;
    response.metadata.id == request.metadata.id
        && response.metadata.message_type == MessageType::Response
        // Some servers leave the question out of an error.
        && (response.queries == request.queries
            || (response.queries.is_empty() && response.metadata.response_code != ResponseCode::NoError))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        // A board whose network comes up late.
        std::fs::write(&file, "nameserver 127.0.0.53\n").unwrap();
        let forwarder =
            Forwarder::new(Source::Files(vec![file.clone()]), &[], 16, 16, Duration::from_secs(60)).unwrap();
        let general = |own: &[&str]| {
            let own: Vec<IpAddr> = own.iter().map(|text| text.parse().unwrap()).collect();
            let found = forwarder.general(&own).unwrap_or_default();
            found.iter().map(|server| server.address.ip().to_string()).collect::<Vec<_>>()
        };
        let due = || *forwarder.files.as_ref().unwrap().1.lock() = Instant::now();
        assert!(general(&[]).is_empty());
        std::fs::write(&file, "nameserver 10.96.0.10\nnameserver 192.0.2.53\n").unwrap();
        assert!(general(&[]).is_empty(), "not due yet");
        due();
        assert_eq!(general(&[]), ["10.96.0.10", "192.0.2.53"]);
        assert_eq!(general(&["10.96.0.10"]), ["192.0.2.53"]);
        // What is known about a server outlives a change of the others.
        let kept = forwarder.servers()[1].clone();
        std::fs::write(&file, "nameserver 192.0.2.53\n").unwrap();
        due();
        assert_eq!(general(&[]), ["192.0.2.53"]);
        assert!(Arc::ptr_eq(&kept, &forwarder.servers()[0]));
        // A file that has gone or is being written is no reason to forget.
        std::fs::write(&file, "").unwrap();
        due();
        assert_eq!(general(&[]), ["192.0.2.53"]);
    }
}
