//! Node-pressure eviction (upstream `pkg/kubelet/eviction`). This file: below which floors the node is under
//! pressure, kubelet's `--eviction-hard` and `--eviction-soft` (`helpers.go` and `defaults_linux.go`). What a
//! hard floor keeps free of memory and of the pods' disk is not allocatable either. Pure: [`crate::node`] looks
//! at the machine, [`manager`] acts.

mod limits;
mod manager;
mod message;
mod policy;
mod pressure;
mod rank;
mod stalls;
mod usage;

use std::fmt;
use std::str::FromStr;

use kedge_api::quantity::{Format, Quantity};

pub(crate) use manager::{observe, run};
pub use policy::{Eviction, GracePeriods, MinimumReclaim, duration_text, parse_duration};
pub(crate) use pressure::{Condition, Pressure, refusal};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that processes could still get.
    MemoryAvailable,
    /// Bytes free on the disk of the pods' folders.
    NodefsAvailable,
    /// Inodes free there.
    NodefsInodesFree,
    /// Bytes free on the disk of the images.
    ImagefsAvailable,
    /// Inodes free there.
    ImagefsInodesFree,
    /// Process ids that nobody has.
    PidAvailable,
}

const SIGNALS: [(Signal, &str); 6] = [
    (Signal::MemoryAvailable, "memory.available"),
    (Signal::NodefsAvailable, "nodefs.available"),
    (Signal::NodefsInodesFree, "nodefs.inodesFree"),
    (Signal::ImagefsAvailable, "imagefs.available"),
    (Signal::ImagefsInodesFree, "imagefs.inodesFree"),
    (Signal::PidAvailable, "pid.available"),
];

impl Signal {
    /// Kubelet's name.
    pub(crate) fn name(self) -> &'static str {
        SIGNALS.iter().find(|(known, _)| *known == self).map_or("", |(_, name)| name)
    }

    fn parse(name: &str) -> Result<Self, String> {
        SIGNALS.iter().find(|(_, known)| *known == name).map(|(signal, _)| *signal).ok_or_else(|| {
            let all: Vec<&str> = SIGNALS.iter().map(|(_, name)| *name).collect();
            format!("{name:?} is no eviction signal; there are {}", all.join(", "))
        })
    }

    /// What of the node runs short, as events and messages name it.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// How upstream writes what is left of it.
    fn format(self) -> Format {
        match self {
            Self::MemoryAvailable | Self::NodefsAvailable | Self::ImagefsAvailable => Format::BinarySi,
            Self::NodefsInodesFree | Self::ImagefsInodesFree | Self::PidAvailable => Format::DecimalSi,
        }
    }

    pub(crate) fn is_of_disk(self) -> bool {
        !matches!(self, Self::MemoryAvailable | Self::PidAvailable)
    }
}

/// How much must be free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Floor {
    /// A quantity as it was written, and its value.
    Amount(String, i64),
    /// Hundredths of a per cent of the capacity.
    Share(u32),
}

impl Floor {
    fn of(&self, capacity: i64) -> i64 {
        match self {
            Self::Amount(_, amount) => *amount,
            Self::Share(share) => {
                let part = i128::from(capacity.max(0)) * i128::from(*share) / 10_000;
                i64::try_from(part).unwrap_or(i64::MAX)
            }
        }
    }

    /// As upstream's messages have it.
    fn text(&self, capacity: i64) -> String {
        match self {
            Self::Amount(text, _) => {
                text.parse::<Quantity>().map_or(text.clone(), |amount| amount.to_string())
            }
            Self::Share(_) => Quantity::from_units(self.of(capacity), Format::BinarySi).to_string(),
        }
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount(text, _) => f.write_str(text),
            Self::Share(share) => write!(f, "{}%", f64::from(*share) / 100.0),
        }
    }
}

/// The floors of one node, as `SIGNAL<FLOOR,...` in text; none is `off`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds(Vec<(Signal, Floor)>);

impl Default for Thresholds {
    /// Upstream's for Linux, with k3s's twentieth of the disks in place of a tenth and a seventh: cards are
    /// small, and a large disk has room enough.
    fn default() -> Self {
        let share = |percent: u32| Floor::Share(percent * 100);
        Self(vec![
            (Signal::MemoryAvailable, Floor::Amount("100Mi".to_owned(), 100 << 20)),
            (Signal::NodefsAvailable, share(5)),
            (Signal::NodefsInodesFree, share(5)),
            (Signal::ImagefsAvailable, share(5)),
            (Signal::ImagefsInodesFree, share(5)),
        ])
    }
}

impl Thresholds {
    /// No threshold at all.
    #[must_use]
    pub fn off() -> Self {
        Self(Vec::new())
    }

    /// What must stay free of a capacity; 0: nothing in particular.
    pub fn reserved(&self, signal: Signal, capacity: i64) -> i64 {
        self.0.iter().find(|(known, _)| *known == signal).map_or(0, |(_, floor)| floor.of(capacity))
    }
}

/// What there is of something, and what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) available: i64,
    pub(crate) capacity: i64,
}

/// One for each [`Signal`], in their order; `None` where the machine does not say.
pub(crate) type Levels = [Option<Level>; 6];

impl FromStr for Thresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(Vec::new()));
        }
        let mut floors: Vec<(Signal, Floor)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((name, value)) = part.split_once('<') else {
                return Err(format!("{part:?} is no threshold such as nodefs.available<10%"));
            };
            let (name, value) = (name.trim(), value.trim());
            let signal = Signal::parse(name)?;
            if floors.iter().any(|(known, _)| *known == signal) {
                return Err(format!("{name} is there twice"));
            }
            if let Some(floor) = floor(value).map_err(|fault| format!("{part}: {fault}"))? {
                floors.push((signal, floor));
            }
        }
        Ok(Self(floors))
    }
}

/// `None`: 0% and 100% switch a threshold off, as upstream has it.
fn floor(text: &str) -> Result<Option<Floor>, String> {
    if let Some(number) = text.strip_suffix('%') {
        let percent: f64 = number.parse().map_err(|_| format!("{text:?} is no percentage such as 10%"))?;
        if !(0.0..=100.0).contains(&percent) {
            return Err("a percentage is between 0% and 100%".to_owned());
        }
        // In range: two digits after the point are kept.
        let share = (percent * 100.0).round() as u32;
        return Ok((share > 0 && share < 10_000).then_some(Floor::Share(share)));
    }
    match text.parse::<Quantity>() {
        Ok(amount) if amount.value() > 0 => Ok(Some(Floor::Amount(text.to_owned(), amount.value()))),
        Ok(_) => Err("an amount must be more than nothing; 0% switches a threshold off".to_owned()),
        Err(_) => Err(format!("{text:?} is neither an amount such as 100Mi nor a percentage such as 10%")),
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("off");
        }
        for (index, (signal, floor)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}<{floor}", signal.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_kubelets_and_comes_back() {
        for text in [
            "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%",
            "nodefs.available<1Gi",
            "pid.available<12.5%",
            "off",
        ] {
            let read: Thresholds = text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"));
            assert_eq!(read.to_string(), text);
        }
        assert_eq!(
            Thresholds::default().to_string(),
            "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%"
        );
        let spaced: Thresholds = " nodefs.available < 0% , memory.available<1Gi,".parse().expect("read");
        assert_eq!(spaced.to_string(), "memory.available<1Gi");
        for (text, part) in [
            ("nodefs.available", "is no threshold such as"),
            ("nodefs.available=10%", "is no threshold such as"),
            ("disk<10%", "there are memory.available, "),
            ("nodefs.available<ten", "neither an amount"),
            ("nodefs.available<101%", "between 0% and 100%"),
            ("nodefs.available<-1Gi", "more than nothing"),
            ("nodefs.available<x%", "no percentage"),
            ("nodefs.available<1Gi,nodefs.available<2Gi", "twice"),
        ] {
            let fault = text.parse::<Thresholds>().expect_err(text);
            assert!(fault.contains(part), "{text}: {fault}");
        }
    }

    #[test]
    fn floors_of_a_capacity() {
        let all: Thresholds = "memory.available<100Mi,nodefs.available<10%".parse().expect("read");
        assert_eq!(all.reserved(Signal::MemoryAvailable, 1 << 30), 100 << 20);
        assert_eq!(all.reserved(Signal::NodefsAvailable, 1000), 100);
        assert_eq!(all.reserved(Signal::ImagefsAvailable, 1000), 0);
    }
}
