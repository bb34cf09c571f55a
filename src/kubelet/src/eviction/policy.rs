//! What an operator says about evictions beside the hard thresholds, in the formats of kubelet's flags
//! (upstream `ParseThresholdConfig`). Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::pressure::Threshold;
use super::{Floor, Signal, Thresholds, floor};

/// Kubelet's eviction settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// `--eviction-hard`: pods end at once.
    pub hard: Thresholds,
    /// `--eviction-soft`: pods end when it has lasted.
    pub soft: Thresholds,
    /// `--eviction-soft-grace-period`: how long that is, for each of the soft thresholds.
    pub soft_grace: GracePeriods,
    /// `--eviction-max-pod-grace-period`: the most seconds that a pod gets to end at a soft threshold.
    pub max_pod_grace: u32,
    /// `--eviction-minimum-reclaim`: how much more than a threshold has to be free for it to be over.
    pub minimum_reclaim: MinimumReclaim,
    /// `--eviction-pressure-transition-period`: for how long a condition outlasts its cause.
    pub transition: Duration,
}

impl Default for Eviction {
    /// Upstream's, but for the thresholds.
    fn default() -> Self {
        Self {
            hard: Thresholds::default(),
            soft: Thresholds::off(),
            soft_grace: GracePeriods::default(),
            max_pod_grace: 0,
            minimum_reclaim: MinimumReclaim::default(),
            transition: Duration::from_secs(300),
        }
    }
}

impl Eviction {
    /// Whether the parts fit each other.
    ///
    /// # Errors
    /// Why they do not.
    pub fn check(&self) -> Result<(), String> {
        match self.soft.0.iter().find(|(signal, _)| self.soft_grace.of(*signal).is_none()) {
            Some((signal, _)) => Err(format!(
                "grace period must be specified for the soft eviction threshold {}",
                signal.name()
            )),
            None => Ok(()),
        }
    }

    /// All thresholds, those of memory first: they are acted upon first.
    pub(crate) fn thresholds(&self) -> Vec<Threshold> {
        let reclaim = |signal: Signal| self.minimum_reclaim.of(signal).cloned();
        let hard = self.hard.0.iter().map(|(signal, floor)| Threshold {
            signal: *signal,
            floor: floor.clone(),
            grace: None,
            reclaim: reclaim(*signal),
        });
        let soft = self.soft.0.iter().map(|(signal, floor)| Threshold {
            signal: *signal,
            floor: floor.clone(),
            grace: Some(self.soft_grace.of(*signal).unwrap_or_default()),
            reclaim: reclaim(*signal),
        });
        let (mut first, rest): (Vec<Threshold>, Vec<Threshold>) =
            hard.chain(soft).partition(|threshold| threshold.signal == Signal::MemoryAvailable);
        first.extend(rest);
        first
    }
}

/// `SIGNAL=VALUE,...`, each signal once.
fn pairs<T>(
    text: &str,
    example: &str,
    mut value: impl FnMut(&str) -> Result<T, String>,
) -> Result<Vec<(Signal, T)>, String> {
    let mut list: Vec<(Signal, T)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, given) =
            part.split_once('=').ok_or_else(|| format!("{part:?} is not such as {example}"))?;
        let signal = Signal::parse(name.trim())?;
        if list.iter().any(|(known, _)| *known == signal) {
            return Err(format!("{} is there twice", name.trim()));
        }
        list.push((signal, value(given.trim()).map_err(|fault| format!("{part}: {fault}"))?));
    }
    Ok(list)
}

/// How long each soft threshold is borne, as `SIGNAL=TIME,...` in text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GracePeriods(Vec<(Signal, Duration)>);

impl GracePeriods {
    fn of(&self, signal: Signal) -> Option<Duration> {
        self.0.iter().find(|(known, _)| *known == signal).map(|(_, period)| *period)
    }
}

impl FromStr for GracePeriods {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        pairs(text, "memory.available=1m30s", parse_duration).map(Self)
    }
}

impl fmt::Display for GracePeriods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts =
            self.0.iter().map(|(signal, period)| format!("{}={}", signal.name(), duration_text(*period)));
        f.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

/// How much more than its threshold of something has to be free, as `SIGNAL=AMOUNT,...` in text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MinimumReclaim(Vec<(Signal, Floor)>);

impl MinimumReclaim {
    fn of(&self, signal: Signal) -> Option<&Floor> {
        self.0.iter().find(|(known, _)| *known == signal).map(|(_, amount)| amount)
    }
}

impl FromStr for MinimumReclaim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let amount = |text: &str| {
            if matches!(text, "0" | "0Mi" | "0Gi") {
                return Ok(Floor::Amount(text.to_owned(), 0));
            }
            Ok(floor(text)?.unwrap_or(Floor::Share(0)))
        };
        pairs(text, "nodefs.available=500Mi", amount).map(Self)
    }
}

impl fmt::Display for MinimumReclaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().map(|(signal, amount)| format!("{}={amount}", signal.name()));
        f.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

/// The units of Go's durations that make sense here, in milliseconds.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];

/// Go's format: `1m30s`, `5m`, `0`.
///
/// # Errors
/// Why it is none.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("{text:?} is no time such as 90s, 1m30s or 5m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| fault())?;
        let (unit, millis) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit)).ok_or_else(fault)?;
        total = number.checked_mul(*millis).and_then(|part| total.checked_add(part)).ok_or_else(fault)?;
        rest = &tail[unit.len()..];
    }
    if text.is_empty() { Err(fault()) } else { Ok(Duration::from_millis(total)) }
}

/// The text that [`parse_duration`] reads as this.
#[must_use]
pub fn duration_text(time: Duration) -> String {
    let mut left = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if left >= millis {
            text.push_str(&format!("{}{unit}", left / millis));
            left %= millis;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, seconds, back) in [
            ("90s", 90, "1m30s"),
            ("1m30s", 90, "1m30s"),
            ("5m0s", 300, "5m"),
            ("2h", 7200, "2h"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
        ] {
            let read = parse_duration(text).expect(text);
            assert_eq!((read.as_secs(), duration_text(read).as_str()), (seconds, back), "{text}");
        }
        assert_eq!(duration_text(parse_duration("1s500ms").expect("read")), "1s500ms");
        for text in ["", "5", "m", "-5m", "5d", "5m3", "99999999999999999999s", "9999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_come_back() {
        let grace: GracePeriods = "memory.available=1m30s, nodefs.available=2m".parse().expect("read");
        assert_eq!(grace.to_string(), "memory.available=1m30s,nodefs.available=2m");
        let reclaim: MinimumReclaim = "memory.available=0Mi,nodefs.available=5%".parse().expect("read");
        assert_eq!(reclaim.to_string(), "memory.available=0Mi,nodefs.available=5%");
        for (text, part) in [
            ("memory.available<1m", "is not such as memory.available=1m30s"),
            ("memory=1m", "no eviction signal"),
            ("memory.available=soon", "no time such as"),
            ("memory.available=1m,memory.available=2m", "twice"),
        ] {
            let fault = text.parse::<GracePeriods>().expect_err(text);
            assert!(fault.contains(part), "{text}: {fault}");
        }
        assert!("nodefs.available=-1Gi".parse::<MinimumReclaim>().is_err());
    }

    #[test]
    fn soft_ones_need_a_grace_period_and_memory_comes_first() {
        let mut policy = Eviction {
            hard: "nodefs.available<5%,memory.available<100Mi".parse().expect("read"),
            soft: "memory.available<300Mi,imagefs.available<10%".parse().expect("read"),
            soft_grace: "memory.available=1m".parse().expect("read"),
            minimum_reclaim: "memory.available=50Mi".parse().expect("read"),
            ..Eviction::default()
        };
        assert_eq!(
            policy.check(),
            Err("grace period must be specified for the soft eviction threshold imagefs.available".to_owned())
        );
        policy.soft_grace = "memory.available=1m,imagefs.available=5m".parse().expect("read");
        assert_eq!(policy.check(), Ok(()));
        let order: Vec<(Signal, bool, bool)> = policy
            .thresholds()
            .iter()
            .map(|threshold| (threshold.signal, threshold.grace.is_none(), threshold.reclaim.is_some()))
            .collect();
        assert_eq!(
            order,
            [
                (Signal::MemoryAvailable, true, true),
                (Signal::MemoryAvailable, false, true),
                (Signal::NodefsAvailable, true, false),
                (Signal::ImagefsAvailable, false, false),
            ]
        );
    }
}
