//! What other servers have said, for as long as they allow. Bounded in entries and in records, so that
//! long answers cannot fill the memory; a full shard forgets something that has run out, else anything.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use parking_lot::Mutex;

/// CoreDNS's `cache` as kubeadm sets it keeps negative answers no longer than this.
const MAX_NEGATIVE_TTL: u32 = 30;
/// One hour, CoreDNS's own limit.
const MAX_TTL: u32 = 3600;
const SHARDS: usize = 16;
/// Longer answers are not worth their memory.
const MAX_RECORDS: usize = 100;
/// How many records the entries may have on average.
const AVERAGE_RECORDS: usize = 8;
/// How many entries are looked at to find one that has run out.
const PROBES: usize = 8;

/// An answer of another server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    /// The server has verified the answer (AD).
    pub(crate) authentic: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

/// A question, in lower case. With DNSSEC records and without are different questions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    pub(crate) class: DNSClass,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

/// CoreDNS counts these apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Success,
    Denial,
}

#[derive(Clone)]
struct Entry {
    reply: Arc<Reply>,
    stored: Instant,
    ttl: Duration,
    sort: Sort,
    records: usize,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<Question, Entry>,
    /// Of all entries together.
    records: usize,
}

pub(crate) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    per_shard: usize,
    success: AtomicUsize,
    denial: AtomicUsize,
}

impl Reply {
    fn records(&self) -> impl Iterator<Item = &Record> {
        self.answers.iter().chain(&self.authorities).chain(&self.additionals)
    }

    /// For how long the reply may be kept, in seconds. `None`: not at all.
    fn ttl(&self, kind: RecordType) -> Option<(Sort, u32)> {
        let positive = self.code == ResponseCode::NoError
            && self.answers.iter().any(|record| {
                record.record_type() == kind || (kind == RecordType::ANY && !self.answers.is_empty())
            });
        if positive {
            let ttl = self.answers.iter().map(|record| record.ttl).min()?;
            return (ttl > 0).then_some((Sort::Success, ttl.min(MAX_TTL)));
        }
        if !matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return None;
        }
        // RFC 2308: without a SOA a negative answer is not kept.
        let soa = self.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
            _ => None,
        })?;
        let aliases = self.answers.iter().map(|record| record.ttl).min().unwrap_or(u32::MAX);
        let ttl = soa.min(aliases).min(MAX_NEGATIVE_TTL);
        (ttl > 0).then_some((Sort::Denial, ttl))
    }

    /// As whoever asks now is told: times to live are cut to what the cache itself keeps to.
    pub(crate) fn limited(self, kind: RecordType) -> Self {
        let limit = match self.ttl(kind) {
            Some((Sort::Denial, ttl)) => ttl,
            _ => MAX_TTL,
        };
        self.aged(0, limit)
    }

    /// The same with all times to live reduced by the time it has been kept.
    fn aged(mut self, seconds: u32, limit: u32) -> Self {
        let parts = self.answers.iter_mut().chain(&mut self.authorities).chain(&mut self.additionals);
        for record in parts {
            record.ttl = record.ttl.min(limit).saturating_sub(seconds);
        }
        self
    }
}

impl Cache {
    /// Room for about `entries` answers; 0 keeps none.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            per_shard: entries.div_ceil(SHARDS),
            success: AtomicUsize::new(0),
            denial: AtomicUsize::new(0),
        }
    }

    /// What is known and still true.
    pub(crate) fn get(&self, question: &Question, now: Instant) -> Option<(Sort, Reply)> {
        let entry = self.shard(question).lock().entries.get(question).cloned()?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.ttl {
            return None;
        }
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let limit = u32::try_from(entry.ttl.as_secs()).unwrap_or(MAX_TTL);
        let limit = if entry.sort == Sort::Denial { limit } else { MAX_TTL };
        Some((entry.sort, Reply::clone(&entry.reply).aged(seconds, limit)))
    }

    /// Keep a reply if it may be kept.
    pub(crate) fn put(&self, question: &Question, reply: &Reply, now: Instant) {
        let Some((sort, ttl)) = reply.ttl(question.kind) else { return };
        let records = reply.records().count();
        if self.per_shard == 0 || records > MAX_RECORDS {
            return;
        }
        let ttl = Duration::from_secs(ttl.into());
        let entry = Entry { reply: Arc::new(reply.clone()), stored: now, ttl, sort, records };
        let mut shard = self.shard(question).lock();
        self.remove(&mut shard, question);
        while shard.entries.len() >= self.per_shard
            || (shard.records + records > self.per_shard * AVERAGE_RECORDS && !shard.entries.is_empty())
        {
            // The map's order is random, so is the victim when nothing seen has run out.
            let over = |entry: &Entry| now.saturating_duration_since(entry.stored) >= entry.ttl;
            let seen = || shard.entries.iter().take(PROBES);
            let victim = seen().find(|(_, entry)| over(entry)).or_else(|| seen().next());
            let Some(victim) = victim.map(|(question, _)| question.clone()) else { break };
            self.remove(&mut shard, &victim);
        }
        shard.records += records;
        shard.entries.insert(question.clone(), entry);
        self.count(sort).fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, shard: &mut Shard, question: &Question) {
        if let Some(old) = shard.entries.remove(question) {
            shard.records -= old.records;
            self.count(old.sort).fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many entries of the sort are held, run out or not.
    pub(crate) fn entries(&self, sort: Sort) -> usize {
        self.count(sort).load(Ordering::Relaxed)
    }

    fn count(&self, sort: Sort) -> &AtomicUsize {
        match sort {
            Sort::Success => &self.success,
            Sort::Denial => &self.denial,
        }
    }

    fn shard(&self, question: &Question) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(question);
        // There are fewer shards than a u32 can count.
        &self.shards[(hash >> 32) as u32 as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::parse_name;
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};

    fn question(name: &str) -> Question {
        Question {
            name: parse_name(name).unwrap(),
            kind: RecordType::A,
            class: DNSClass::IN,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn address(ttl: u32) -> Record {
        Record::from_rdata(parse_name("a.example").unwrap(), ttl, RData::A(A::new(192, 0, 2, 1)))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let name = || parse_name("example").unwrap();
        Record::from_rdata(name(), ttl, RData::SOA(SOA::new(name(), name(), 1, 1, 1, 1, minimum)))
    }

    fn alias(ttl: u32) -> Record {
        let target = CNAME(parse_name("b.example").unwrap());
        Record::from_rdata(parse_name("a.example").unwrap(), ttl, RData::CNAME(target))
    }

    fn reply(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Reply {
        Reply { code, authentic: false, answers, authorities, additionals: Vec::new() }
    }

    #[test]
    fn how_long_a_reply_is_kept() {
        use ResponseCode::{NXDomain, NoError, ServFail};
        let cases = [
            (reply(NoError, vec![address(60), address(20)], vec![]), Some(20)),
            (reply(NoError, vec![alias(10), address(60)], vec![]), Some(10)),
            (reply(NoError, vec![address(86_400)], vec![]), Some(3600)),
            (reply(NoError, vec![address(0)], vec![]), None),
            (reply(NXDomain, vec![], vec![soa(900, 10)]), Some(10)),
            (reply(NXDomain, vec![], vec![soa(900, 900)]), Some(30)),
            (reply(NXDomain, vec![alias(4)], vec![soa(900, 900)]), Some(4)),
            (reply(NoError, vec![], vec![soa(7, 900)]), Some(7)),
            (reply(NoError, vec![alias(60)], vec![soa(20, 900)]), Some(20)),
            (reply(NXDomain, vec![], vec![]), None),
            (reply(ServFail, vec![], vec![soa(900, 900)]), None),
        ];
        for (reply, expected) in cases {
            assert_eq!(reply.ttl(RecordType::A).map(|(_, ttl)| ttl), expected, "{reply:?}");
        }
    }

    #[test]
    fn times_to_live_count_down_and_run_out() {
        let cache = Cache::new(64);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        cache.put(&question("a.example"), &reply(ResponseCode::NoError, vec![address(20)], vec![]), start);
        let ttl = |seconds| {
            let found = cache.get(&question("a.example"), at(seconds));
            found.map(|(sort, reply)| (sort, reply.answers[0].ttl))
        };
        assert_eq!(ttl(0), Some((Sort::Success, 20)));
        assert_eq!(ttl(19), Some((Sort::Success, 1)));
        assert_eq!(ttl(20), None);
        let negative = reply(ResponseCode::NXDomain, vec![], vec![soa(900, 900)]);
        cache.put(&question("b.example"), &negative, start);
        let (sort, kept) = cache.get(&question("b.example"), at(10)).unwrap();
        assert_eq!((sort, kept.authorities[0].ttl), (Sort::Denial, 20));
        let mut other = question("a.example");
        other.dnssec_ok = true;
        assert!(cache.get(&other, start).is_none());
    }

    #[test]
    fn the_cache_is_bounded() {
        let now = Instant::now();
        for length in [1, 50, 101] {
            let cache = Cache::new(64);
            for number in 0..1000 {
                let answer = reply(ResponseCode::NoError, vec![address(20); length], vec![]);
                // Some again and again.
                cache.put(&question(&format!("{}.example", number % 700)), &answer, now);
            }
            let held: usize = cache.shards.iter().map(|shard| shard.lock().entries.len()).sum();
            assert_eq!(cache.entries(Sort::Success), held, "{length}");
            assert!(
                held <= 64 && held * length <= (64 * AVERAGE_RECORDS).max(SHARDS * length),
                "{length}: {held}"
            );
            assert_eq!(held == 0, length > MAX_RECORDS, "{length}");
        }
        let none = Cache::new(0);
        none.put(&question("a"), &reply(ResponseCode::NoError, vec![address(20)], vec![]), now);
        assert_eq!(none.entries(Sort::Success), 0);
    }
}
