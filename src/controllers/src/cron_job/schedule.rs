//! Cron schedules as Kubernetes reads them: five fields, names, ranges, steps, `@hourly` and its
//! like, `@every` (github.com/robfig/cron v3, `ParseStandard`). Pure.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// The values of one field, and whether it was a star: a day must match both day fields when one of
/// them is a star, and one of them otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    star: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Schedule {
    kind: Kind,
    zone: TimeZone,
}

#[derive(Clone, Debug)]
enum Kind {
    Every(Duration),
    Fields { minute: Field, hour: Field, day: Field, month: Field, weekday: Field },
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn number(text: &str, names: &[&str], first: u32) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    if let Some(position) = names.iter().position(|name| *name == lower) {
        return Ok(u32::try_from(position).unwrap_or(0) + first);
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("failed to parse int from {text}"));
    }
    text.parse().map_err(|_| format!("failed to parse int from {text}"))
}

/// One field: ranges separated by commas.
fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<Field, String> {
    let mut field = Field { bits: 0, star: false };
    for expression in text.split(',') {
        let (range, step) = match expression.split_once('/') {
            Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {expression}")),
            Some((range, step)) => (range, Some(step)),
            None => (expression, None),
        };
        let every: u32 = match step {
            Some(step) => number(step, &[], 0)?,
            None => 1,
        };
        let (start, end, star) = match range.split_once('-') {
            None if matches!(range, "*" | "?") => (min, max, every == 1),
            None => {
                let start = number(range, names, min)?;
                // "3/5" means from 3 on.
                (start, if step.is_some() { max } else { start }, false)
            }
            Some((_, end)) if end.contains('-') => return Err(format!("too many hyphens: {expression}")),
            Some((start, end)) => (number(start, names, min)?, number(end, names, min)?, false),
        };
        if start < min {
            return Err(format!("beginning of range ({start}) below minimum ({min}): {expression}"));
        }
        if end > max {
            return Err(format!("end of range ({end}) above maximum ({max}): {expression}"));
        }
        if start > end {
            return Err(format!("beginning of range ({start}) beyond end of range ({end}): {expression}"));
        }
        if every == 0 {
            return Err(format!("step of range should be a positive number: {expression}"));
        }
        let step = usize::try_from(every).unwrap_or(usize::MAX);
        for value in (start..=end).step_by(step) {
            field.bits |= 1 << value;
        }
        field.star |= star;
    }
    Ok(field)
}

/// Go's `time.ParseDuration`, at least a second and in whole seconds, as `@every` wants it.
fn every(text: &str) -> Result<Duration, String> {
    let bad = || format!("failed to parse duration @every {text}");
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let value: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(bad()),
            };
        rest = &rest[unit..];
    }
    let whole = Duration::try_from_secs_f64(total).map_err(|_| bad())?.as_secs();
    if text.is_empty() { Err(bad()) } else { Ok(Duration::from_secs(whole.max(1))) }
}

impl Schedule {
    /// `zone` is for schedules that do not name one themselves (`TZ=Europe/Rome 0 6 * * *`).
    pub(super) fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let mut text = text.trim();
        let mut zone = zone;
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        if let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            let (name, schedule) = rest.split_once(' ').ok_or("no schedule after the time zone")?;
            zone = TimeZone::get(name).map_err(|error| format!("provided bad location {name}: {error}"))?;
            text = schedule.trim();
        }
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(duration) = fields.strip_prefix("@every ") {
            return Ok(Self { kind: Kind::Every(every(duration)?), zone });
        }
        if fields.starts_with('@') {
            return Err(format!("unrecognized descriptor: {fields}"));
        }
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {parts:?}", parts.len()));
        };
        Ok(Self {
            kind: Kind::Fields {
                minute: field(minute, 0, 59, &[])?,
                hour: field(hour, 0, 23, &[])?,
                day: field(day, 1, 31, &[])?,
                month: field(month, 1, 12, &MONTHS)?,
                weekday: field(weekday, 0, 6, &DAYS)?,
            },
            zone,
        })
    }

    /// The first time after `after`; `None` when there is none within five years.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let (minute, hour, day, month, weekday) = match &self.kind {
            Kind::Every(duration) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*duration).ok();
            }
            Kind::Fields { minute, hour, day, month, weekday } => (minute, hour, day, month, weekday),
        };
        let has =
            |field: &Field, value: i8| u32::try_from(value).is_ok_and(|value| field.bits & (1 << value) != 0);
        let day_matches = |at: &Zoned| {
            let by_day = has(day, at.day());
            let by_weekday = has(weekday, at.weekday().to_sunday_zero_offset());
            if day.star || weekday.star { by_day && by_weekday } else { by_day || by_weekday }
        };
        // The start of the next minute. Hours and minutes are counted on the absolute clock: a time
        // that is left out when the clocks go forward does not come that day, one that comes twice
        // does.
        let start = Timestamp::from_second(after.as_second().div_euclid(60) * 60 + 60).ok()?;
        let mut at = start.to_zoned(self.zone.clone());
        let last_year = at.year() + 5;
        loop {
            if at.year() > last_year {
                return None;
            }
            if !has(month, at.month()) {
                at = at.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?;
            } else if !day_matches(&at) {
                at = at.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(hour, at.hour()) {
                let left = 3600 - i64::from(at.minute()) * 60 - i64::from(at.second());
                at = at.checked_add(SignedDuration::from_secs(left)).ok()?;
            } else if !has(minute, at.minute()) {
                at = at.checked_add(SignedDuration::from_secs(60 - i64::from(at.second()))).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn next_times() {
        for (schedule, zone, after, expected) in [
            ("*/15 * * * *", "UTC", "2026-07-09T14:45:00Z", "2026-07-09T15:00:00Z"),
            ("*/15 * * * *", "UTC", "2026-07-09T14:59:59.9Z", "2026-07-09T15:00:00Z"),
            ("20-35/15 * * * *", "UTC", "2026-07-09T14:46:00Z", "2026-07-09T15:20:00Z"),
            ("5/20 * * * *", "UTC", "2026-07-09T14:46:00Z", "2026-07-09T15:05:00Z"),
            ("0 0 9 feb ?", "UTC", "2026-07-09T23:35:00Z", "2027-02-09T00:00:00Z"),
            ("0 0 29 2 *", "UTC", "2026-07-09T23:35:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 * * Mon", "UTC", "2026-11-21T00:00:00Z", "2026-11-23T00:00:00Z"),
            // Either day field, when both are given; both, when one is a star.
            ("0 0 1,15 * sun", "UTC", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
            ("0 0 1,15 * sun", "UTC", "2026-11-29T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("0 0 * * sun", "UTC", "2026-11-30T00:00:00Z", "2026-12-06T00:00:00Z"),
            ("0 0 */2 * sun", "UTC", "2026-12-01T00:00:00Z", "2026-12-03T00:00:00Z"),
            ("@hourly", "UTC", "2026-07-09T14:46:00Z", "2026-07-09T15:00:00Z"),
            ("@daily", "America/New_York", "2026-07-09T14:46:00Z", "2026-07-10T04:00:00Z"),
            ("@weekly", "UTC", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
            ("@every 1h30m", "UTC", "2026-11-21T00:00:00.5Z", "2026-11-21T01:30:00Z"),
            ("TZ=Europe/Rome 0 6 * * *", "UTC", "2026-11-21T06:00:00Z", "2026-11-22T05:00:00Z"),
            ("0 6 * * *", "Asia/Kolkata", "2026-11-21T00:29:00Z", "2026-11-21T00:30:00Z"),
            // The clocks go forward: 02:30 is left out. They go back: 01:30 comes twice.
            ("30 2 * * *", "America/New_York", "2026-03-08T05:00:00Z", "2026-03-09T06:30:00Z"),
            ("30 1 * * *", "America/New_York", "2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z"),
            ("30 1 * * *", "America/New_York", "2026-11-01T06:30:00Z", "2026-11-02T06:30:00Z"),
        ] {
            let parsed = Schedule::parse(schedule, TimeZone::get(zone).expect("a zone")).expect(schedule);
            assert_eq!(parsed.next(at(after)), Some(at(expected)), "{schedule} after {after}");
        }
        let never = Schedule::parse("59 23 31 2 *", TimeZone::UTC).expect("it parses");
        assert_eq!(never.next(at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn refused() {
        for schedule in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "5-2 * * * *",
            "*/0 * * * *",
            "1-2-3 * * * *",
            "*/2/3 * * * *",
            "x * * * *",
            "-1 * * * *",
            "@never",
            "@every x",
            "@every ",
            "TZ=Nowhere/None * * * * *",
            "TZ=UTC",
            "1, * * * *",
        ] {
            assert!(Schedule::parse(schedule, TimeZone::UTC).is_err(), "{schedule}");
        }
    }
}
