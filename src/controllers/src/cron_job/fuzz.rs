//! Schedules, for fuzz/.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::schedule::Schedule;

/// A schedule and its next times, which come one after another.
pub fn schedule(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(schedule) = Schedule::parse(text, TimeZone::UTC) else { return };
    for start in [0, 1_709_164_800, 32_503_680_000, Timestamp::MAX.as_second() - 90_000] {
        let mut at = Timestamp::from_second(start).expect("in range");
        for _ in 0..4 {
            let Some(next) = schedule.next(at) else { break };
            assert!(next > at, "{text:?} after {at} is {next}");
            at = next;
        }
    }
}
