//! How often strangers may be wrong: a token bucket for each source and one for all of them, in bounded
//! memory. Only failed attempts count. Pure: the caller says what time it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How many failures are let through, and how fast they are forgotten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// So many at once.
    pub(crate) burst: u32,
    /// One is forgotten in this time.
    pub(crate) every: Duration,
}

const SOURCE: Rate = Rate { burst: 10, every: Duration::from_secs(6) };
const TOTAL: Rate = Rate { burst: 100, every: Duration::from_millis(250) };
/// More sources than this share what the global bucket allows.
const SOURCES: usize = 1024;

/// The buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    sources: HashMap<IpAddr, Bucket>,
    total: Bucket,
    source_rate: Rate,
    total_rate: Rate,
}

/// Failures not yet forgotten, as the time it takes to forget them.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    empty_at: Instant,
}

impl Bucket {
    /// How long until one more failure may be had; zero: at once.
    fn wait(self, rate: Rate, now: Instant) -> Duration {
        let full = rate.every * (rate.burst - 1);
        self.empty_at.saturating_duration_since(now).saturating_sub(full)
    }

    fn fail(&mut self, rate: Rate, now: Instant) {
        self.empty_at = self.empty_at.max(now) + rate.every;
    }
}

impl Limiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            sources: HashMap::new(),
            total: Bucket { empty_at: now },
            source_rate: SOURCE,
            total_rate: TOTAL,
        }
    }

    /// May this source try?
    ///
    /// # Errors
    /// How long it has to wait.
    pub(crate) fn check(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let own = self
            .sources
            .get(&group(source))
            .map_or(Duration::ZERO, |bucket| bucket.wait(self.source_rate, now));
        let wait = own.max(self.total.wait(self.total_rate, now));
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// It tried and was wrong.
    pub(crate) fn failed(&mut self, source: IpAddr, now: Instant) {
        self.total.fail(self.total_rate, now);
        let source = group(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= SOURCES {
            self.sources.retain(|_, bucket| bucket.empty_at > now);
            if self.sources.len() >= SOURCES {
                // The one with the fewest failures is forgotten; the global bucket still counts.
                let least = self.sources.iter().min_by_key(|(_, bucket)| bucket.empty_at);
                if let Some(least) = least.map(|(source, _)| *source) {
                    self.sources.remove(&least);
                }
            }
        }
        let rate = self.source_rate;
        self.sources.entry(source).or_insert(Bucket { empty_at: now }).fail(rate, now);
    }
}

/// One host can have all addresses of an IPv6 network of 64 bits.
fn group(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn a_source_is_stopped_and_forgiven() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        for attempt in 0..SOURCE.burst {
            assert!(limiter.check(source(1), start).is_ok(), "{attempt}");
            limiter.failed(source(1), start);
        }
        let wait = limiter.check(source(1), start).unwrap_err();
        assert_eq!(wait, SOURCE.every);
        assert!(limiter.check(source(2), start).is_ok(), "others go on");
        assert!(limiter.check(source(1), start + wait).is_ok());
        limiter.failed(source(1), start + wait);
        assert!(limiter.check(source(1), start + wait).is_err());
        assert!(limiter.check(source(1), start + SOURCE.every * 30).is_ok());
    }

    #[test]
    fn many_sources_are_stopped_together_and_take_bounded_memory() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        for number in 0..5_000 {
            limiter.failed(source(number), start);
        }
        assert!(limiter.sources.len() <= SOURCES);
        assert!(limiter.check(source(70_000), start).is_err());
        assert!(limiter.check(source(70_000), start + TOTAL.every * 5_000).is_ok());
    }

    #[test]
    fn one_ipv6_network_is_one_source() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        for number in 0..SOURCE.burst {
            limiter.failed(format!("2001:db8::{number:x}").parse().unwrap(), start);
        }
        assert!(limiter.check("2001:db8::ffff".parse().unwrap(), start).is_err());
        assert!(limiter.check("2001:db8:0:1::1".parse().unwrap(), start).is_ok());
        for _ in 0..SOURCE.burst {
            limiter.failed("::ffff:192.0.2.1".parse().unwrap(), start);
        }
        assert!(limiter.check("192.0.2.1".parse().unwrap(), start).is_err());
    }
}
