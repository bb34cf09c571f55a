//! Durations and timestamps as protobuf has them: texts of Go's durations and of RFC 3339, arithmetic that
//! does not wrap around, parts of a date in a time zone.

use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::meter::Meter;
use super::value::Value;
use super::{Outcome, Stop, no_overload};

const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];

/// A duration as Go writes it (`1h30m`, `-1.5s`), in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (before, after) = number.split_once('.').unwrap_or((number, ""));
        if before.is_empty() && after.is_empty() {
            return None;
        }
        let units: i64 = if before.is_empty() { 0 } else { before.parse().ok()? };
        let fraction: f64 = format!("0.{after}0").parse().ok()?;
        let more = units.checked_mul(*nanos as i64)?.checked_add((fraction * nanos) as i64)?;
        total = total.checked_add(more)?;
        rest = tail;
    }
    total.checked_mul(sign)
}

/// Seconds with as many decimals as there are.
pub(super) fn duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, rest) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let rest = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", rest.trim_end_matches('0'))
}

/// RFC 3339 in UTC.
pub(super) fn timestamp_text(time: DateTime) -> String {
    format!("{time}Z")
}

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// Whole seconds since 1970, those before it rounded down.
pub(super) fn seconds_of(time: DateTime) -> i64 {
    let since = time.duration_since(EPOCH);
    since.as_secs() - i64::from(since.subsec_nanos() < 0)
}

/// `duration(x)`
pub(super) fn duration(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Duration(_)] => Ok(args[0].clone()),
        [Value::Int(nanos)] => Ok(Value::Duration(*nanos)),
        [Value::String(text)] => parse_duration(text)
            .map(Value::Duration)
            .ok_or_else(|| Stop::failed(format!("time: invalid duration {text:?}"))),
        _ => no_overload(),
    }
}

/// `timestamp(x)`
pub(super) fn timestamp(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Timestamp(_)] => Ok(args[0].clone()),
        [Value::Int(seconds)] => after(EPOCH, SignedDuration::from_secs(*seconds)),
        [Value::String(text)] => parse_timestamp(text).map(Value::Timestamp).ok_or_else(|| {
            Stop::failed(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse"))
        }),
        _ => no_overload(),
    }
}

/// RFC 3339 to the letter: other forms of ISO 8601 are none.
pub(super) fn parse_timestamp(text: &str) -> Option<DateTime> {
    let b = text.as_bytes();
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if b.len() < 20 || !text.is_ascii() || marks.iter().any(|(at, mark)| b[*at] != *mark) {
        return None;
    }
    let (civil, seconds) = match text.strip_suffix('Z') {
        Some(civil) => (civil, 0),
        None => {
            let (civil, zone) = text.split_at(text.len() - 6);
            (civil, offset_seconds(zone).filter(|_| zone.starts_with(['+', '-']))?)
        }
    };
    let civil: DateTime = civil.parse().ok()?;
    let time = civil.checked_sub(SignedDuration::from_secs(seconds)).ok()?;
    (time.year() >= 1).then_some(time)
}

/// `-08:00` in seconds.
fn offset_seconds(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let minutes: i64 = minutes.parse().ok().filter(|minutes| (0..60).contains(minutes))?;
    let sign = if hours.starts_with('-') { -1 } else { 1 };
    let hours: i64 =
        hours.trim_start_matches(['+', '-']).parse().ok().filter(|hours| (0..24).contains(hours))?;
    Some(sign * (hours * 3600 + minutes * 60))
}

fn after(time: DateTime, duration: SignedDuration) -> Outcome {
    match time.checked_add(duration) {
        Ok(time) if time.year() >= 1 => Ok(Value::Timestamp(time)),
        _ => Err(Stop::failed("timestamp overflow")),
    }
}

/// `+`
pub(super) fn add(a: &Value, b: &Value) -> Outcome {
    match (a, b) {
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (Value::Timestamp(time), Value::Duration(nanos))
        | (Value::Duration(nanos), Value::Timestamp(time)) => {
            after(*time, SignedDuration::from_nanos(*nanos))
        }
        _ => no_overload(),
    }
}

/// `-`
pub(super) fn sub(a: &Value, b: &Value) -> Outcome {
    match (a, b) {
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (Value::Timestamp(time), Value::Duration(nanos)) => after(*time, -SignedDuration::from_nanos(*nanos)),
        (Value::Timestamp(a), Value::Timestamp(b)) => {
            let nanos = a.duration_since(*b).as_nanos();
            i64::try_from(nanos).map(Value::Duration).map_err(|_| overflow())
        }
        _ => no_overload(),
    }
}

fn overflow() -> Stop {
    Stop::failed("duration overflow")
}

/// The parts that dates and durations have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    FullYear,
    Month,
    DayOfYear,
    DayOfMonth,
    Date,
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

macro_rules! parts {
    ($($name:ident => $part:ident),* $(,)?) => {
        $(pub(super) fn $name(_: &mut Meter, args: &[Value]) -> Outcome {
            part(Part::$part, args)
        })*
    };
}

parts! {
    full_year => FullYear, month => Month, day_of_year => DayOfYear, day_of_month => DayOfMonth, date => Date,
    day_of_week => DayOfWeek, hours => Hours, minutes => Minutes, seconds => Seconds,
    milliseconds => Milliseconds,
}

fn part(part: Part, args: &[Value]) -> Outcome {
    let time = match args {
        [Value::Duration(nanos)] => {
            let unit = match part {
                Part::Hours => 3_600_000_000_000,
                Part::Minutes => 60_000_000_000,
                Part::Seconds => 1_000_000_000,
                Part::Milliseconds => 1_000_000,
                _ => return no_overload(),
            };
            return Ok(Value::Int(nanos / unit));
        }
        [Value::Timestamp(time)] => *time,
        [Value::Timestamp(time), Value::String(zone)] => in_zone(*time, zone)?,
        _ => return no_overload(),
    };
    Ok(Value::Int(of_date(part, time)))
}

/// Months, days of a year and (but for `getDate`) of a month count from 0, Sunday is 0.
fn of_date(part: Part, time: DateTime) -> i64 {
    match part {
        Part::FullYear => time.year().into(),
        Part::Month => i64::from(time.month()) - 1,
        Part::DayOfYear => i64::from(time.day_of_year()) - 1,
        Part::DayOfMonth => i64::from(time.day()) - 1,
        Part::Date => time.day().into(),
        Part::DayOfWeek => time.weekday().to_sunday_zero_offset().into(),
        Part::Hours => time.hour().into(),
        Part::Minutes => time.minute().into(),
        Part::Seconds => time.second().into(),
        Part::Milliseconds => time.millisecond().into(),
    }
}

/// The time on the clocks of `UTC`, of `-08:00` or of a name of the time zone database.
fn in_zone(time: DateTime, zone: &str) -> Result<DateTime, Stop> {
    let unknown = || Stop::failed(format!("unknown time zone {zone}"));
    if zone.is_empty() || zone == "UTC" {
        return Ok(time);
    }
    let seconds = if zone.contains(':') {
        offset_seconds(zone).ok_or_else(unknown)?
    } else {
        let zone = TimeZone::get(zone).map_err(|_| unknown())?;
        let utc = time.to_zoned(TimeZone::UTC).map_err(|_| Stop::failed("timestamp overflow"))?;
        i64::from(zone.to_offset(utc.timestamp()).seconds())
    };
    time.checked_add(SignedDuration::from_secs(seconds)).map_err(|_| Stop::failed("timestamp overflow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("1h30m", Some(5_400_000_000_000)),
            ("-1.5s", Some(-1_500_000_000)),
            ("0", Some(0)),
            ("1.5ms", Some(1_500_000)),
            (".5s", Some(500_000_000)),
            ("", None),
            ("-", None),
            ("1", None),
            ("1x", None),
            (".s", None),
            ("3000000h", None),
        ] {
            assert_eq!(parse_duration(text), nanos, "{text}");
        }
        assert_eq!(duration_text(-1_500_000_000), "-1.5s");
        assert_eq!(duration_text(5_400_000_000_000), "5400s");
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        for (text, good) in [
            ("2024-02-29T12:00:00Z", true),
            ("2024-02-29T12:00:00.5+02:00", true),
            ("2024-02-29 12:00:00Z", false),
            ("2024-02-30T12:00:00Z", false),
            ("2024-02-29", false),
            ("9999-12-31T23:59:59.999999999Z", true),
            ("0001-01-01T00:00:00Z", true),
            ("2024-02-29T12:00:00+0200", false),
        ] {
            assert_eq!(parse_timestamp(text).is_some(), good, "{text}");
        }
    }
}
